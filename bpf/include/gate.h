/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* gate: on the owner of a flow, what can be done about a flood of new connections whose sources are
 * made up, so that no limit by source holds them: SYN cookies, which cost no memory, and Retry for
 * QUIC, which the daemon sends while this says so. Each VIP has a gauge of its own, so that one
 * under attack does not change how others are served. Fails open: to the stack, which has cookies too.
 */
#ifndef BERM_GATE_H
#define BERM_GATE_H

#include <linux/in.h>

#include "chance.h"
#include "clock.h"
#include "initial.h"
#include "maps.h"
#include "packet.h"
#include "syn.h"

#define GATE_HOLD (BERM_GATE_HOLD_NS >> 6) /* in units */

/* Charges a gauge for one more. While the gate is shut everything costs twice as much, so that
 * it opens below half of the limit. Two CPUs may race, and one of the two goes uncharged: near
 * the limit that makes no difference, and far above it neither does.
 */
static __always_inline bool gauge_over(struct berm_gauge *gauge, const struct berm_limit *limit,
				       __u64 now, bool shut)
{
	__u64 old = gauge->spent, debt = old - now;
	__u64 cost = (limit->cost + (old * HASH_A >> 48)) >> 16;

	if ((__s64)debt < 0 || debt > limit->burst_units)
		debt = 0; /* long past, or of a larger limit of before */
	debt += cost << shut;
	if (debt > limit->burst_units)
		return true;
	__sync_val_compare_and_swap(&gauge->spent, old, now + debt);
	return false;
}

/* Is the gate shut for what the gauge counts? */
static __always_inline bool gate_is_shut(struct berm_gauge *gauge, const struct berm_limit *limit,
					 __u32 mode, const struct gated *in)
{
	bool shut = gauge->over_ns && in->units - gauge->over < GATE_HOLD;

	if (!limit->cost || !gauge_over(gauge, limit, in->units, shut))
		return mode == BERM_GATE_ON || shut;
	if (gauge->over != in->units || !gauge->over_ns) {
		gauge->over = in->units;
		gauge->over_ns = in->ns ? in->ns : bpf_ktime_get_ns();
	}
	return true;
}

enum gate_verdict {
	GATE_OPEN = -1,
	GATE_BAD_INITIAL = 64, /* above every action */
};

static __always_inline enum quic_kind gate_look(struct xdp_md *ctx, const struct gated *in)
{
	struct cursor cur = cur_from(ctx);

	if (!answer_is_sane(&in->to) || !cur_skip(&cur, in->to.l3 + in->to.outer))
		return QUIC_OTHER;
	if (!(in->to.six ? cur_take(&cur, sizeof(struct ipv6hdr)) :
			   cur_take(&cur, sizeof(struct iphdr))))
		return QUIC_OTHER;
	return quic_look(cur);
}

/* A function of its own for the verifier's sake: it checks it once, and not once for each kind of
 * packet. Returns an enum gate_verdict, or the action that sends the answer.
 */
__noinline int gate_pass(struct xdp_md *ctx, struct gated *in)
{
	struct berm_gate_state *state;
	struct berm_gate *gate;
	__u32 id;

	if (!in)
		return GATE_OPEN;
	id = in->vip_id;
	gate = bpf_map_lookup_elem(&berm_gates, &id);
	state = bpf_map_lookup_elem(&berm_gate_states, &id);
	if (!gate || !state)
		return GATE_OPEN;
	if (in->syn) {
		if (!gate->cookies || !gate_is_shut(&state->syns, &gate->syns, gate->cookies, in))
			return GATE_OPEN;
		return syn_answer(ctx, in);
	}
	switch (gate_look(ctx, in)) {
	case QUIC_BAD:
		return gate->bad_initial ? GATE_BAD_INITIAL + gate->bad_initial : GATE_OPEN;
	case QUIC_INITIAL:
		if (gate->retry)
			gate_is_shut(&state->initials, &gate->initials, gate->retry, in);
		return GATE_OPEN;
	default:
		return GATE_OPEN;
	}
}

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct gated);
} gate_packets SEC(".maps");

static __always_inline int gate(struct packet *pkt, const struct now *now)
{
	struct gated *in;
	__u32 key = 0;
	int act;

	if (LIKELY(pkt->backend || !(pkt->vip->flags & BERM_VIP_GATE)))
		return STAGE_NEXT;
	if (is(pkt, PACKET_FRAGMENT | PACKET_OPTIONS | UNANSWERED) ||
	    (pkt->vip->proto == IPPROTO_TCP && !is(pkt, PACKET_SYN)))
		return STAGE_NEXT;
	in = bpf_map_lookup_elem(&gate_packets, &key);
	if (!in)
		return fail_open(pkt, BERM_STAGE_GATE);
	in->to.client = pkt->src;
	in->to.vip = pkt->dst;
	in->to.l3 = l3_of(pkt);
	in->to.outer = outer_of(pkt->facts);
	in->to.six = !!is(pkt, PACKET_V6);
	in->syn = !!is(pkt, PACKET_SYN);
	in->vip_id = pkt->vip_id;
	in->units = clock_coarse(now, pkt->cfg);
	in->ns = now->ns;
	act = gate_pass(pkt->ctx, in);
	if (LIKELY(act < 0))
		return STAGE_NEXT;
	if (act >= GATE_BAD_INITIAL)
		return refuse(pkt, BERM_DROP_BAD_INITIAL,
			      act != GATE_BAD_INITIAL + BERM_ACTION_DROP);
	if (act == XDP_ABORTED)
		return abort_packet(pkt, BERM_STAGE_GATE);
	return leave(pkt, BERM_STAGE_GATE, BERM_EXIT_ANSWER, act);
}

/* Ports of services that answer more than they are asked, and so are asked in a victim's name: chargen,
 * QOTD, DNS, portmap, NTP, NetBIOS, SNMP, CLDAP, RIP, SSDP, WS-Discovery, mDNS, memcached and others.
 */
static __always_inline bool amplifies(__u32 port)
{
	switch (port) {
	case 17:
	case 19:
	case 53:
	case 111:
	case 123:
	case 137:
	case 161:
	case 389:
	case 520:
	case 1900:
	case 3283:
	case 3702:
	case 5353:
	case 10001:
	case 11211:
	case 37810:
		return true;
	}
	return false;
}

/* What is to be done, as an enum berm_action, with a packet from such a port. */
__noinline int amplified_action(__u32 vip, __u32 port)
{
	struct berm_gate *gate = bpf_map_lookup_elem(&berm_gates, &vip);

	return gate && gate->amplified && amplifies(port) ? gate->amplified : BERM_ACTION_NONE;
}

/* At the first hop: what no client has sent. */
static __always_inline int gate_amplified(struct packet *pkt)
{
	int action;

	if (LIKELY(!(pkt->vip->flags & BERM_VIP_GUARD)))
		return STAGE_NEXT;
	action = amplified_action(pkt->vip_id, pkt->ports >> 24 & 0xffff);
	if (LIKELY(!action))
		return STAGE_NEXT;
	return refuse(pkt, BERM_DROP_AMPLIFIED, action != BERM_ACTION_DROP);
}

#endif
