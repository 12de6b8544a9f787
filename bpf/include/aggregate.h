/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* aggregate: what the sources of an IPv4 /24 or an IPv6 /48, and those of a network (ASN), may send
 * together, since whoever has all of it, or makes up addresses of it, has as many limits as addresses.
 * Where it sends more, a part of it (an IPv4 address, an IPv6 /56; of a network the /24s and /48s that a
 * keyed hash puts together) still has a fair share of the limit, one in 256. That is
 * charged to the aggregate too: all together get the limit and no more, and who sends little gets
 * what he sends, whatever his neighbours do. A TCP connection that this host has is not
 * refused: its peer has shown that it receives there. Nobody is remembered as an offender.
 */
#ifndef BERM_AGGREGATE_H
#define BERM_AGGREGATE_H

#include <linux/in.h>

#include "cell.h"
#include "chance.h"
#include "hash.h"
#include "maps.h"
#include "packet.h"

/* A packet of a class whose aggregates have limits: more than fits on the stack. */
struct aggregated {
	struct flow flow;
	__u64 facts;
	__u64 number; /* source_number() */
	__u64 units;  /* now, by the clock of the class */
	__u32 class;
	__u32 len;
	__u32 kinds;   /* bit n: enum aggregate_kind n counts it */
	__u32 network; /* the record's; 0 = unknown */
};

/* The limits of struct berm_aggregate, in their order. */
enum aggregate_kind {
	AGGREGATE_PACKETS,
	AGGREGATE_BYTES,
	AGGREGATE_SYNS,
	AGGREGATE_INITIALS,
	AGGREGATE_KINDS,
};
_Static_assert(sizeof(struct berm_aggregate) == AGGREGATE_KINDS * sizeof(struct berm_limit), "");

static __always_inline __u32 aggregate_dimension(__u32 kind)
{
	switch (kind) {
	case AGGREGATE_PACKETS:
		return RATE_PACKETS;
	case AGGREGATE_BYTES:
		return RATE_BYTES;
	case AGGREGATE_SYNS:
		return RATE_SYNS;
	default:
		return RATE_INITIALS;
	}
}

/* May the packet pass, as far as one of the two is concerned, whose cells and whose part's these are? */
static __always_inline bool aggregate_allows(const struct aggregated *in,
					     const struct berm_limit *limit, __u32 mask,
					     __u64 whole, __u64 part)
{
	struct berm_rate_set *set, *parts;
	struct berm_limit other; /* one for both: the stack is short */
	__u32 key = whole & mask, amount;
	__u64 tag;

	set = bpf_map_lookup_elem(&berm_rate_cells, &key);
	key = part & mask;
	parts = bpf_map_lookup_elem(&berm_rate_cells, &key);
	if (!set || !parts)
		return true;
#pragma clang loop unroll(disable)
	for (__u32 kind = 0; kind < AGGREGATE_KINDS; kind++, limit++) {
		if (!limit->cost || !(in->kinds >> kind & 1))
			continue;
		amount = kind == AGGREGATE_BYTES ? in->len : 1;
		tag = rate_tag(whole, in->class, aggregate_dimension(kind) ^ RATE_AGGREGATE);
		if (rate_take(set, limit, tag, in->units, amount))
			continue;
		/* Below 2^48; amounts are below 2^16. */
		other.cost = limit->cost * BERM_AGGREGATE_SHARES;
		other.burst_units = limit->burst_units;
		if (rate_take_anywhere(
			    parts, &other,
			    rate_tag(part, in->class, aggregate_dimension(kind) ^ RATE_SHARE),
			    in->units, amount) == RATE_REFUSED)
			return false;
		other.cost = limit->cost;
		/* As far as can be counted: what shares come to ends it long before. */
		other.burst_units = RATE_CHARGE_MAX;
		rate_take_anywhere(set, &other, tag, in->units, amount);
	}
	return true;
}

/* May the packet pass, as far as its source's aggregate is concerned? A function of its own for
 * the verifier's sake, as below.
 */
__noinline int aggregate_take(const struct aggregated *in)
{
	struct berm_rate_class *class;
	struct berm_config *cfg;
	__u32 key = 0;

	cfg = bpf_map_lookup_elem(&berm_config, &key);
	if (!in || !cfg)
		return true;
	key = in->class;
	class = bpf_map_lookup_elem(&berm_rate_classes, &key);
	return !class ||
	       aggregate_allows(in, &class->aggregate.packets, cfg->rate_mask,
				aggregate_hash(cfg->seed, in->number, in->facts & PACKET_V6),
				share_hash(cfg->seed, in->number, in->facts & PACKET_V6));
}

/* And its network? Of one whose number is not known nothing is limited. Cells are its for as long as it has the
 * number of its autonomous system, whatever its index is in the next table.
 */
__noinline int network_take(const struct aggregated *in)
{
	struct berm_rate_class *class;
	struct berm_config *cfg;
	__u32 key = 0;
	__u64 *asn;

	cfg = bpf_map_lookup_elem(&berm_config, &key);
	if (!in || !cfg || !in->network)
		return true;
	key = in->class;
	class = bpf_map_lookup_elem(&berm_rate_classes, &key);
	key = (cfg->prefix_active & 1) * BERM_NETWORKS + in->network;
	asn = bpf_map_lookup_elem(&berm_networks, &key);
	return !class || !asn || !*asn ||
	       aggregate_allows(in, &class->network.packets, cfg->rate_mask,
				network_hash(cfg->seed, *asn),
				network_share_hash(cfg->seed, *asn,
						   aggregate_hash(cfg->seed, in->number,
								  in->facts & PACKET_V6)));
}

/* Is the packet of a TCP connection that this host has? */
__noinline int aggregate_spares(struct xdp_md *ctx, const struct aggregated *in)
{
	return in && (in->flow.ports & 0xff) == IPPROTO_TCP && flow_has_port(in->flow.ports) &&
	       !(in->facts & PACKET_SYN) && holds_flow(ctx, &in->flow, in->facts);
}

#endif
