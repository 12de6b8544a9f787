/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* newcomer: whose flow is this, of a row that has moved to a server? A server cannot say what it has no
 * socket for, so flows that begin after the move are noted, and what is not noted is the former
 * owner's. Only rows that have moved are looked for, and only SYNs write. What an attacker can do:
 * - SYNs, or SYNs and ACKs, of made-up flows take places. Nobody who has a place loses it to them
 *   before it has been idle for long. Who finds none goes to the former owner, and so does all that
 *   follows: the move is late for that flow, which does not break.
 * - A SYN with the addresses and ports of somebody's old flow is noted too, but decides nothing: only
 *   what goes on within 64 KiB of its sequence number, which the old flow does by one chance in 2^15.
 * - Packets that begin nothing write nothing.
 * UDP is not looked for: nothing tells which of its packets begin a flow.
 */
#ifndef BERM_NEWCOMER_H
#define BERM_NEWCOMER_H

#include "chance.h"
#include "clock.h"
#include "maps.h"
#include "packet.h"

#define NEWCOMER_TAG 40
#define NEWCOMER_SEQ 24
#define NEWCOMER_BACKEND 12
#define NEWCOMER_STATE 10
#define NEWCOMER_SEEN ((1 << NEWCOMER_STATE) - 1)
#define NEWCOMER_UNITS 27 /* of 64 ns: 8.6 s */
/* Units without a packet after which a place can be given to another: between 8.6 and 17 s for who has
 * not shown that it receives, or has said goodbye; else an hour. The count wraps after 2.4.
 */
#define NEWCOMER_SHORT 2
#define NEWCOMER_LONG 419
/* How long a SYN after FIN or RST, which anybody may have sent, does not begin another flow: 60 s. */
#define NEWCOMER_TIME_WAIT 7

/* What the answer says beside the row, in bits that rows leave free. */
#define NEWCOMER_FATES 12
_Static_assert(PACKET_FORMER == PACKET_NEWCOMER << 1 && PACKET_CROWDED == PACKET_NEWCOMER << 2,
	       "fates are three bits in a row");

enum newcomer_fate {
	FATE_NEWCOMER = 1 << NEWCOMER_FATES,
	FATE_FORMER = 2 << NEWCOMER_FATES,
	FATE_CROWDED = 4 << NEWCOMER_FATES,
};

struct newcomer {
	__u64 tag;
	__u32 seq; /* high 16 bits */
	__u32 now; /* in units */
	bool readable;
	bool begins;
	bool ends;
};

static __always_inline __u32 newcomer_now(const struct now *now, const struct berm_config *cfg)
{
	return clock_coarse(now, cfg) >> NEWCOMER_UNITS & NEWCOMER_SEEN;
}

static __always_inline __u32 cell_backend(__u64 cell)
{
	return cell >> NEWCOMER_BACKEND & BERM_ROW_BACKEND;
}

static __always_inline __u32 cell_state(__u64 cell)
{
	return cell >> NEWCOMER_STATE & 3;
}

static __always_inline __u32 cell_idle(__u64 cell, __u32 now)
{
	return (now - (__u32)cell) & NEWCOMER_SEEN;
}

static __always_inline bool cell_is_free(__u64 cell, __u32 now)
{
	__u32 idle = cell_idle(cell, now);

	return !cell_backend(cell) ||
	       idle >= (cell_state(cell) == BERM_NEWCOMER_OPEN ? NEWCOMER_LONG : NEWCOMER_SHORT);
}

/* Does the packet go on where the cell's flow began? ICMP errors and what has extension headers
 * cannot show it.
 */
static __always_inline bool cell_fits(__u64 cell, const struct newcomer *pkt)
{
	if (cell_state(cell) == BERM_NEWCOMER_OPEN)
		return true;
	if (cell_state(cell) == BERM_NEWCOMER_CLOSING)
		return !pkt->begins || cell_idle(cell, pkt->now) < NEWCOMER_TIME_WAIT;
	return pkt->readable && ((pkt->seq - (__u32)(cell >> NEWCOMER_SEQ)) & 0xffff) <= 1;
}

static __always_inline bool newcomer_reads(struct xdp_md *ctx, __u64 facts, struct newcomer *pkt)
{
	struct headers h = headers_from(ctx, facts, IPPROTO_TCP);
	struct tcphdr *tcp;

	if (facts & PACKET_OTHER || !h.ip || !(tcp = TAKE(&h.payload, struct tcphdr)))
		return false;
	pkt->seq = bpf_ntohl(tcp->seq) >> 16;
	pkt->ends = tcp->fin || tcp->rst;
	return true;
}

static __always_inline bool is_reachable(__u32 id, __u32 self)
{
	struct berm_backend *backend = bpf_map_lookup_elem(&berm_backends, &id);

	return id && (id == self || (backend && backend->flags & BERM_BACKEND_READY));
}

/* The place of the flow; if it has none and begins, one that is free. BERM_NEWCOMER_WAYS: none. */
static __always_inline __u32 newcomer_place(const struct berm_newcomer_set *set,
					    const struct newcomer *pkt)
{
	__u32 found = BERM_NEWCOMER_WAYS;

	for (__u32 i = 0; i < BERM_NEWCOMER_WAYS; i++) {
		__u64 cell = set->cells[i];

		if (cell >> NEWCOMER_TAG == pkt->tag && cell_backend(cell))
			return i;
		if (pkt->begins && found == BERM_NEWCOMER_WAYS && cell_is_free(cell, pkt->now))
			found = i;
	}
	return found;
}

/* The cell as it is after a packet of its flow. */
static __always_inline __u64 newcomer_seen(__u64 cell, const struct newcomer *pkt)
{
	__u64 state = cell_state(cell);

	if (pkt->readable && !pkt->begins)
		state = pkt->ends || state == BERM_NEWCOMER_CLOSING ? BERM_NEWCOMER_CLOSING :
								      BERM_NEWCOMER_OPEN;
	return (cell & ~((1ULL << NEWCOMER_BACKEND) - 1)) | state << NEWCOMER_STATE | pkt->now;
}

/* Whose is a packet of a row that has newcomers? at is when, in units. Answers with the row as it is
 * for this packet: who gets it as its owner, and an enum newcomer_fate among the free bits.
 */
__noinline int newcomer_row(struct xdp_md *ctx, const struct flow *flow, __u64 facts, __u64 row_at,
			    __u64 hash)
{
	struct newcomer pkt = {
		.tag = hash >> 24 & 0xffffff,
		.now = row_at >> 32 & NEWCOMER_SEEN,
		.begins = facts & PACKET_SYN,
	};
	__u32 row = row_at & ~(__u32)BERM_ROW_NEWCOMERS, owner = row & BERM_ROW_BACKEND;
	__u32 second = row >> BERM_ROW_SECOND & BERM_ROW_BACKEND, rest = row & BERM_ROW_MOVED;
	__u32 key = 0, set_key = hash >> 48 & (BERM_NEWCOMER_SETS - 1), self;
	__u32 former = second | owner << BERM_ROW_SECOND | rest;
	struct berm_newcomer_set *set = bpf_map_lookup_elem(&berm_newcomers, &set_key);
	struct berm_config *cfg = bpf_map_lookup_elem(&berm_config, &key);
	__u64 *cell, old, fresh;
	__u32 place;

	if (!flow || !cfg || !set || (flow->ports & 0xff) != IPPROTO_TCP ||
	    !flow_has_port(flow->ports))
		return row;
	self = cfg->self & BERM_ROW_BACKEND;
	pkt.readable = newcomer_reads(ctx, facts, &pkt);
	place = newcomer_place(set, &pkt);
	cell = &set->cells[place & (BERM_NEWCOMER_WAYS - 1)];
	old = *cell;
	if (place < BERM_NEWCOMER_WAYS && old >> NEWCOMER_TAG == pkt.tag && cell_fits(old, &pkt) &&
	    is_reachable(cell_backend(old), self)) {
		fresh = newcomer_seen(old, &pkt);
		if (fresh != old)
			__sync_val_compare_and_swap(cell, old, fresh); /* or another CPU has */
		return cell_backend(old) | second << BERM_ROW_SECOND | rest | FATE_NEWCOMER;
	}
	if (place < BERM_NEWCOMER_WAYS && pkt.begins && pkt.readable && owner != second) {
		fresh = pkt.tag << NEWCOMER_TAG | (__u64)pkt.seq << NEWCOMER_SEQ |
			owner << NEWCOMER_BACKEND | pkt.now;
		if (__sync_val_compare_and_swap(cell, old, fresh) == old)
			return row | FATE_NEWCOMER;
		/* Another CPU took the place: there is none, then. */
	}
	if (pkt.begins)
		return owner == second ? row : (int)(former | FATE_CROWDED);
	/* This edge's sockets say it better, and are asked next. */
	if (self && (second == self || owner == self))
		return row;
	return former | FATE_FORMER;
}

#endif
