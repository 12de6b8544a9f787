/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* vip: is this for a service of ours? What is not passes as it came, however malformed; what
 * is must be well formed.
 */
#ifndef BERM_VIP_H
#define BERM_VIP_H

#include <linux/in.h>

#include "addr.h"
#include "hash.h"
#include "maps.h"
#include "packet.h"
#include "probe.h"

/* One probe: userspace builds the table without collisions, two copies of it. */
static __always_inline struct berm_vip *
vip_lookup(const struct berm_config *cfg, const struct berm_addr *addr, __u32 service, __u32 *id)
{
	__u64 hash = vip_hash(cfg->seed, addr, service);
	__u32 active = cfg->vip_active & 1;
	__u32 key = active * BERM_VIP_BUCKETS + (hash & (BERM_VIP_BUCKETS - 1));
	struct berm_vip *vip;
	__u64 *cell;

	cell = bpf_map_lookup_elem(&berm_vip_seeds, &key);
	if (!cell)
		return NULL;
	key = ((hash >> 12) + *cell * ((hash >> 40) | 1)) & (BERM_VIP_SLOTS - 1);
	key += active * BERM_VIP_SLOTS;
	cell = bpf_map_lookup_elem(&berm_vip_slots, &key);
	if (!cell || !*cell)
		return NULL;
	key = *cell;
	*id = key;
	vip = bpf_map_lookup_elem(&berm_vips, &key);
	if (!vip || !addr_equal(&vip->addr, addr) ||
	    ((__u32)bpf_ntohs(vip->port) << 8 | vip->proto) != service ||
	    !(vip->flags & BERM_VIP_USED))
		return NULL;
	return vip;
}

static __always_inline bool is_land(const struct packet *pkt)
{
	return addr_equal(&pkt->client, &pkt->dst) &&
	       (pkt->ports >> 24 & 0xffff) == (pkt->ports >> 8 & 0xffff);
}

/* Does the packet ask for a port, and has the address said that it has services only? */
static __always_inline bool lacks_service(const struct packet *pkt)
{
	const __u32 strict = BERM_VIP_ADDRESS | BERM_VIP_STRICT;
	__u64 proto;

	if (LIKELY((pkt->vip->flags & strict) != strict || is(pkt, PACKET_FRAGMENT)))
		return false;
	proto = unknown(pkt, pkt->proto);
	return proto == IPPROTO_TCP || proto == IPPROTO_UDP;
}

static __always_inline int vip_find(struct packet *pkt)
{
	struct berm_vip *vip = NULL;

	if (LIKELY(flow_has_port(pkt->ports)))
		vip = vip_lookup(pkt->cfg, &pkt->dst, flow_service(pkt->ports), &pkt->vip_id);
	if (!vip)
		vip = vip_lookup(pkt->cfg, &pkt->dst, 0, &pkt->vip_id);
	if (!vip && UNLIKELY(is(pkt, PACKET_OUTER)))
		STAGE(refuse(pkt, BERM_DROP_TUNNEL_INNER, false));
	if (!vip) {
		if (UNLIKELY(pkt->cfg->flags & BERM_CONFIG_PROBES))
			probe_answer(pkt->ctx, (const struct flow *)&pkt->dst, pkt->facts);
		return foreign(pkt, BERM_STAGE_VIP);
	}
	pkt->vip = vip;
	if (UNLIKELY(vip->flags & BERM_VIP_SHADOW))
		learn(pkt, PACKET_SHADOW);

	if (UNLIKELY(is(pkt, PACKET_BAD)))
		STAGE(refuse(pkt, first_bad(pkt), false));
	if (UNLIKELY(is_land(pkt)))
		STAGE(refuse(pkt, BERM_DROP_LAND, false));
	if (UNLIKELY(lacks_service(pkt)))
		STAGE(refuse(pkt, BERM_DROP_NO_SERVICE, false));
	return STAGE_NEXT;
}

#endif
