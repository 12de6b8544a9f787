/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* steer: who owns this flow. The row of the flow's keyed hash names the owner and a second; the same
 * on every edge of the site, without any state. The second gets the packet while the owner cannot
 * be reached, where the row has moved and the owner has no socket for it (chance.h) or cannot be
 * asked (newcomer.h), and, if it begins a flow, while the owner's daemon is silent (deadman.h). If neither can be
 * reached, this host serves the flow if it is an edge at all. A QUIC packet is its server's that
 * its connection ID names (cid.h), and WebRTC its edge's whose ICE username fragment it has shown
 * (stun.h), whatever the row says.
 */
#ifndef BERM_STEER_H
#define BERM_STEER_H

#include "chance.h"
#include "cid.h"
#include "deadman.h"
#include "hash.h"
#include "maps.h"
#include "newcomer.h"
#include "packet.h"
#include "stun.h"

/* The backend if its next hop is known. */
static __always_inline struct berm_backend *backend_ready(__u32 id)
{
	struct berm_backend *backend = id ? bpf_map_lookup_elem(&berm_backends, &id) : NULL;

	if (!backend || !(backend->flags & BERM_BACKEND_READY))
		return NULL;
	return backend;
}

/* A row for a QUIC packet whose connection ID names a backend: that one owns it, and there is no
 * second, since nobody else knows the connection. 0 if it names nobody who can be reached.
 * PACKET_CID or PACKET_CID_LOST is among the row's free bits. Verified by itself, as whose() is.
 */
__noinline int row_of_cid(struct xdp_md *ctx, __u64 facts, __u32 set, __u32 self)
{
	int id;

	if (facts & (PACKET_OTHER | PACKET_FRAGMENT | PACKET_OUTER))
		return 0; /* ICMP errors quote IDs of the client's, and a peer has seen to it already */
	id = cid_backend(ctx, facts, set);
	if (!id)
		return 0;
	if (id != CID_LOST && ((__u32)id == self || backend_ready(id)))
		return (id & BERM_ROW_BACKEND) | PACKET_CID;
	return PACKET_CID_LOST;
}

/* The same for any packet to a service that speaks QUIC. Of the usual kind it finds the backend too. */
static __always_inline __u32 steer_by_cid(struct packet *pkt, __u32 set, __u32 self)
{
	__u32 named = cid_usual(pkt, set);

	if (named && named == self)
		return named | PACKET_CID;
	pkt->backend = backend_ready(named);
	return LIKELY(pkt->backend) ? unknown(pkt, PACKET_CID) :
				      row_of_cid(pkt->ctx, pkt->facts, set, self);
}

/* A row for a packet of a flow that has shown an ICE username fragment: of the backend that has given
 * that out, with PACKET_STUN; PACKET_STUN alone if it cannot be reached, 0 if none is known. An
 * ICMP error about the flow has its hash. Verified by itself.
 */
__noinline int row_of_stun(struct xdp_md *ctx, __u64 facts, __u64 flow, __u32 set, __u32 seconds)
{
	__u32 key = 0, self;
	struct berm_config *cfg = bpf_map_lookup_elem(&berm_config, &key);
	int id;

	if (!cfg || facts & (PACKET_FRAGMENT | PACKET_OUTER))
		return 0;
	self = cfg->self;
	id = stun_backend(ctx, facts, flow, set, seconds);
	if (id > 0 && ((__u32)id == self || backend_ready(id)))
		return (id & BERM_ROW_BACKEND) | PACKET_STUN;
	return id ? PACKET_STUN : 0;
}

/* Whose is a packet whose row alone does not tell? Answers with the row as it is for this packet:
 * the owner that it goes to, this edge as its second, and PACKET_HANDED and PACKET_SILENT among the
 * row's free bits. Verified by itself, and not once for each kind of packet.
 */
__noinline int whose(struct xdp_md *ctx, const struct flow *flow, __u64 facts, __u32 row,
		     __u32 silent)
{
	__u32 owner = row & BERM_ROW_BACKEND, second = row >> BERM_ROW_SECOND & BERM_ROW_BACKEND;
	__u32 key = 0, self, fate = PACKET_HANDED;
	bool begins = facts & PACKET_SYN, tcp;
	struct berm_config *cfg = bpf_map_lookup_elem(&berm_config, &key);
	struct berm_heart *heart = bpf_map_lookup_elem(&berm_heart, &key);

	if (!flow || !cfg || !heart)
		return row;
	self = cfg->self & BERM_ROW_BACKEND;
	/* Fragments have no ports to ask by; but for TCP, sockets do not tell flows apart. */
	tcp = (flow->ports & 0xff) == IPPROTO_TCP && flow_has_port(flow->ports);
	if (owner != self && !(facts & PACKET_OUTER)) {
		/* This edge has owned the row, and keeps what it has to the end. */
		return tcp && !begins && holds_flow(ctx, flow, facts) ? self : row;
	}
	if (tcp) {
		if ((begins && !silent) || holds_flow(ctx, flow, facts))
			return self;
	} else {
		if (!silent || !begins_quic(ctx, facts))
			return self;
		begins = true;
	}
	if (owner != self) /* a peer took this edge for the owner: one of the two tables is older */
		return begins ? self : owner | self << BERM_ROW_SECOND | fate;
	if (!second || second == self)
		return self;
	if (silent) {
		heart->fired =
			1; /* the daemon has to know, when it wakes, that flows are elsewhere */
		fate |= begins ? PACKET_SILENT : 0;
	}
	return second | self << BERM_ROW_SECOND | fate;
}

/* Is there more to ask than who owns the row? Rows that have never moved cost no more than this. */
static __always_inline bool is_contested(const struct packet *pkt, const struct now *now, __u32 row,
					 bool *silent)
{
	__u32 self = pkt->cfg->self, key = 0;
	struct berm_heart *heart;

	if ((row & BERM_ROW_BACKEND) != self)
		return is(pkt, PACKET_OUTER) ||
		       (row & BERM_ROW_MOVED &&
			(row >> BERM_ROW_SECOND & BERM_ROW_BACKEND) == self);
	heart = bpf_map_lookup_elem(&berm_heart, &key);
	if (!heart)
		return false;
	*silent = deadman_silent(heart, now);
	return row & BERM_ROW_MOVED || *silent || heart->fired;
}

static __always_inline int steer(struct packet *pkt, const struct now *now)
{
	__u32 set = pkt->vip->set, self = pkt->cfg->self;
	__u32 row, named = 0, key, owner, second;
	bool silent = false;
	__u64 *cell;

	if (!set || set >= BERM_SETS || is(pkt, PACKET_BROKEN | PACKET_CHANCE))
		return STAGE_NEXT;
	if (LIKELY(!is(pkt, PACKET_OUTER)))
		pkt->flow = flow_hash(pkt->cfg->secret, is(pkt, PACKET_V6), &pkt->client, &pkt->dst,
				      pkt->ports);
	else if (!is(pkt, PACKET_TRUSTED))
		return STAGE_NEXT;
	if (UNLIKELY(pkt->vip->flags & BERM_VIP_QUIC)) {
		named = steer_by_cid(pkt, set, self);
		pkt->facts |= named & (PACKET_CID | PACKET_CID_LOST);
		if (LIKELY(pkt->backend))
			return STAGE_NEXT;
	}
	row = flow_row(pkt->flow);
	key = set * BERM_ROW_CELLS + row / 2;
	cell = bpf_map_lookup_elem(&berm_rows, &key);
	if (!cell)
		return fail_open(pkt, BERM_STAGE_STEER);
	row = *cell >> (row & 1) * 32;
	row = named & PACKET_CID ? named : row;
	if (UNLIKELY(pkt->vip->flags & BERM_VIP_STUN)) {
		named = row_of_stun(pkt->ctx, pkt->facts, pkt->flow, set,
				    stun_seconds(now, pkt->cfg));
		row = named & BERM_ROW_BACKEND ? named & BERM_ROW_BACKEND : row;
		pkt->facts |= named & BERM_ROW_BACKEND ? PACKET_STUN : named ? PACKET_STUN_LOST : 0;
	}
	if (UNLIKELY(row & BERM_ROW_NEWCOMERS) && !is(pkt, PACKET_OUTER)) {
		row = newcomer_row(pkt->ctx, (const struct flow *)&pkt->dst, pkt->facts,
				   (__u64)newcomer_now(now, pkt->cfg) << 32 | row, pkt->flow);
		pkt->facts |= (__u64)(row >> NEWCOMER_FATES & 7) * PACKET_NEWCOMER;
	}
	if (UNLIKELY(self && is_contested(pkt, now, row, &silent)) &&
	    !is(pkt, PACKET_NEWCOMER | PACKET_FORMER | PACKET_CROWDED)) {
		row = whose(pkt->ctx, (const struct flow *)&pkt->dst, pkt->facts, row, silent);
		pkt->facts |= row & (PACKET_HANDED | PACKET_SILENT);
	}
	owner = row & BERM_ROW_BACKEND;
	second = row >> BERM_ROW_SECOND & BERM_ROW_BACKEND;

	if (owner && owner == self)
		return STAGE_NEXT;
	pkt->backend = backend_ready(owner);
	if (LIKELY(pkt->backend))
		return STAGE_NEXT;
	if (second && second == self)
		return STAGE_NEXT;
	pkt->backend = backend_ready(second);
	if (pkt->backend)
		return STAGE_NEXT;
	if (!self)
		STAGE(refuse(pkt, BERM_DROP_NO_BACKEND, false));
	return fail_open(pkt, BERM_STAGE_STEER);
}

#endif
