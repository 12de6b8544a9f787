/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* rate: what one source may send, in packets, bytes, SYNs and QUIC Initials, and what its aggregate and
 * its network may.
 * A source's cells live in one set, which is one cache line. Each class is a budget of its own.
 * Fails open.
 */
#ifndef BERM_RATE_H
#define BERM_RATE_H

#include "aggregate.h"
#include "cell.h"
#include "clock.h"
#include "initial.h"
#include "maps.h"
#include "packet.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct aggregated);
} aggregated_packets SEC(".maps");

static __always_inline int rate_aggregate(struct packet *pkt, __u32 flags, __u32 class, __u64 time,
					  bool initial, bool shadow)
{
	struct aggregated *in;
	__u32 key = 0;

	in = bpf_map_lookup_elem(&aggregated_packets, &key);
	if (!in)
		return STAGE_NEXT;
	in->flow = *(const struct flow *)&pkt->dst;
	in->facts = pkt->facts;
	in->number = pkt->number;
	in->units = time;
	in->class = class;
	in->len = pkt->len;
	in->network = pkt->record.network;
	in->kinds = 1 << AGGREGATE_PACKETS | 1 << AGGREGATE_BYTES |
		    fact(pkt, PACKET_SYN) << AGGREGATE_SYNS | initial << AGGREGATE_INITIALS;
	if (flags & BERM_RATE_AGGREGATE && !aggregate_take(in)) {
		if (aggregate_spares(pkt->ctx, in))
			return STAGE_NEXT;
		STAGE(refuse(pkt, BERM_DROP_RATE_AGGREGATE, shadow));
	}
	if (!(flags & BERM_RATE_NETWORK) || network_take(in) || aggregate_spares(pkt->ctx, in))
		return STAGE_NEXT;
	return refuse(pkt, BERM_DROP_RATE_NETWORK, shadow);
}

/* What few classes have. */
static __always_inline int rate_more(struct packet *pkt, struct berm_rate_set *set,
				     const struct berm_rate_class *limits, __u32 class, __u64 time,
				     bool shadow)
{
	bool initial = limits->flags & BERM_RATE_INITIALS && pkt->vip->flags & BERM_VIP_QUIC &&
		       is_initial(pkt->ctx, pkt->facts);

	if (initial && limits->initials.cost &&
	    rate_take_anywhere(set, &limits->initials, rate_tag(pkt->source, class, RATE_INITIALS),
			       time, 1) == RATE_REFUSED)
		STAGE(refuse(pkt, BERM_DROP_RATE_INITIAL, shadow));
	if (limits->flags & (BERM_RATE_AGGREGATE | BERM_RATE_NETWORK))
		return rate_aggregate(pkt, limits->flags, class, time, initial, shadow);
	return STAGE_NEXT;
}

static __always_inline int rate_check(struct packet *pkt, const struct now *now)
{
	__u32 class = pkt->record.rate_class ? pkt->record.rate_class : pkt->vip->rate_class;
	__u32 key = pkt->source & pkt->cfg->rate_mask;
	struct berm_rate_class *limits;
	struct berm_rate_set *set;
	__u64 time;
	bool shadow;

	if (!class)
		return STAGE_NEXT;
	set = bpf_map_lookup_elem(&berm_rate_cells, &key);
	limits = bpf_map_lookup_elem(&berm_rate_classes, &class);
	if (!set || !limits || !(limits->flags & BERM_RATE_USED))
		return STAGE_NEXT;
	shadow = limits->flags & BERM_RATE_SHADOW;
	time = limits->flags & BERM_RATE_FINE_CLOCK ? clock_fine(now) : clock_coarse(now, pkt->cfg);
	time &= CELL_TIME;

	if (limits->packets.cost &&
	    !rate_take(set, &limits->packets, rate_tag(pkt->source, class, RATE_PACKETS), time, 1))
		STAGE(refuse(pkt, BERM_DROP_RATE_PACKETS, shadow));
	if (limits->bytes.cost &&
	    !rate_take_anywhere(set, &limits->bytes, rate_tag(pkt->source, class, RATE_BYTES), time,
				pkt->len))
		STAGE(refuse(pkt, BERM_DROP_RATE_BYTES, shadow));
	if (is(pkt, PACKET_SYN) && limits->syns.cost &&
	    !rate_take(set, &limits->syns, rate_tag(pkt->source, class, RATE_SYNS), time, 1))
		STAGE(refuse(pkt, BERM_DROP_RATE_SYN, shadow));
	if (UNLIKELY(limits->flags &
		     (BERM_RATE_INITIALS | BERM_RATE_AGGREGATE | BERM_RATE_NETWORK)))
		return rate_more(pkt, set, limits, class, time, shadow);
	return STAGE_NEXT;
}

#endif
