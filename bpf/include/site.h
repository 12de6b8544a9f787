/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* site: is the packet another site's? Routers take a client from one site to another in the middle of a flow, and no
 * edge there has a socket for it. Where this site's last edge to be asked has none, the packet is
 * carried to the owner of its row at the next site, and so on until every site was asked: the hops
 * are counted in the tunnel, and the tag is keyed for them. So also come back the packets of
 * flows that begin elsewhere because a share of the new ones is to (spill). A service with a region
 * is served, carried and spilled within it alone. Fails to "here".
 */
#ifndef BERM_SITE_H
#define BERM_SITE_H

#include "chance.h"
#include "clock.h"
#include "deadman.h"
#include "hash.h"
#include "maps.h"
#include "packet.h"
#include "rate.h"
#include "steer.h"

/* What decides, as it lies in struct packet. */
struct sited {
	struct flow flow;
	__u64 hash;
	__u64 number;
	__u32 vip_id;
	__u32 record_id;
};
_Static_assert(__builtin_offsetof(struct packet, flow) - __builtin_offsetof(struct packet, dst) ==
			       __builtin_offsetof(struct sited, hash) &&
		       __builtin_offsetof(struct packet, record_id) -
				       __builtin_offsetof(struct packet, dst) ==
			       __builtin_offsetof(struct sited, record_id),
	       "struct packet has a struct sited in it");

/* What site_of() answers: 0 to leave it at what the rows say; a backend's id, if that is another; PACKET_CARRIED
 * or PACKET_SPILLED, if it is at another site; and a reason to refuse.
 */
#define SITE_WHY 16 /* shift of the reason, 5 bits */

/* What it is told of the backend that the rows, or a connection ID, name: none is this host. */
#define SITE_AWAY (1 << 16)
#define SITE_REMOTE (1 << 17) /* in the low byte, its region */

/* Can it be reached, and is it of the service's region? */
static __always_inline bool site_ready(const struct berm_vip *vip, __u32 id)
{
	struct berm_backend *backend = backend_ready(id);

	return backend && (!vip->region || backend->region == vip->region);
}

/* The edge of another site's that the flow's row there names; 0 = none. */
static __always_inline __u32 site_owner(const struct berm_vip *vip, __u32 set, __u64 flow)
{
	__u32 row = flow_row(flow), key, owner, second;
	__u64 *cell;

	if (!set || set >= BERM_SETS)
		return 0;
	key = set * BERM_ROW_CELLS + row / 2;
	cell = bpf_map_lookup_elem(&berm_rows, &key);
	if (!cell)
		return 0;
	row = *cell >> (row & 1) * 32;
	owner = row & BERM_ROW_BACKEND;
	second = row >> BERM_ROW_SECOND & BERM_ROW_BACKEND;
	if (site_ready(vip, owner))
		return owner;
	return site_ready(vip, second) ? second : 0;
}

/* Does the packet begin a flow that may begin at another site? Of QUIC, what names a server does not. */
static __always_inline bool begins_flow(struct xdp_md *ctx, const struct berm_vip *vip, __u64 facts)
{
	if (vip->proto == IPPROTO_TCP)
		return facts & PACKET_SYN;
	return vip->flags & BERM_VIP_QUIC && !(facts & PACKET_CID) && begins_quic(ctx, facts);
}

/* May one more packet be carried? Of all sources together it is one cell that knows. */
static __always_inline bool carry_allowed(const struct berm_config *cfg, __u64 number,
					  __u64 jiffies)
{
	__u64 source = source_hash(cfg->seed, number), tag;
	__u64 time = jiffies * cfg->tick_units & CELL_TIME;
	__u32 zero = 0, key = source & cfg->rate_mask;
	struct berm_carry *carry = bpf_map_lookup_elem(&berm_carry, &zero);
	struct berm_rate_set *set = bpf_map_lookup_elem(&berm_rate_cells, &key);

	if (!carry)
		return true;
	tag = rate_tag(source, 0, RATE_CARRY);
	if (carry->source.cost && set &&
	    rate_take_anywhere(set, &carry->source, tag, time, 1) == RATE_REFUSED)
		return false;
	set = bpf_map_lookup_elem(&berm_rate_cells, &zero);
	tag = rate_tag(0, 0, RATE_CARRY);
	return !carry->all.cost || !set ||
	       rate_take_anywhere(set, &carry->all, tag, time, 1) != RATE_REFUSED;
}

/* A packet that this host's stack would get, of a flow that it does not have. */
static __always_inline int site_carry(const struct berm_vip *vip, const struct sited *in,
				      __u64 jiffies)
{
	__u32 key = 0, to = site_owner(vip, vip->carry_set, in->hash), why = 0;
	struct berm_config *cfg = bpf_map_lookup_elem(&berm_config, &key);

	if (!to || !cfg)
		return 0;
	if (!carry_allowed(cfg, in->number, jiffies))
		why = BERM_DROP_CARRY;
	return to | PACKET_CARRIED | why << SITE_WHY;
}

static __always_inline int site_outside(const struct berm_vip *vip, const struct sited *in,
					__u32 hops)
{
	__u32 to = hops ? 0 : site_owner(vip, vip->carry_set, in->hash);

	return to ? to | PACKET_CARRIED : BERM_DROP_REGION << SITE_WHY;
}

/* Where does the packet go? A function of its own for the verifier's sake. */
__noinline int site_of(struct xdp_md *ctx, const struct sited *in, __u64 facts, __u32 backend,
		       __u64 jiffies)
{
	__u32 id = in ? in->vip_id : 0, hops = hops_of(facts), to;
	struct berm_vip *vip = bpf_map_lookup_elem(&berm_vips, &id);

	if (!in || !vip)
		return 0;
	if (backend & SITE_REMOTE) /* by its connection ID */
		return PACKET_CARRIED |
		       (vip->region && vip->region != (__u8)backend ? BERM_DROP_REGION : 0)
			       << SITE_WHY;
	if (vip->flags & BERM_VIP_OUTSIDE)
		return site_outside(vip, in, hops);
	if (!(facts & (PACKET_OUTER | PACKET_FRAGMENT | PACKET_OTHER)) &&
	    (__u32)(in->hash >> 48) < vip->spill && begins_flow(ctx, vip, facts)) {
		to = site_owner(vip, vip->spill_set, in->hash);
		return to ? to | PACKET_SPILLED : 0;
	}
	if (backend || facts & PACKET_SYN || hops >= vip->carry_hops)
		return 0;
	/* Sockets tell TCP's flows apart alone, and fragments have no ports to ask by. */
	if ((in->flow.ports & 0xff) != IPPROTO_TCP || !flow_has_port(in->flow.ports) ||
	    holds_flow(ctx, &in->flow, facts))
		return 0;
	return site_carry(vip, in, jiffies);
}

static __always_inline int site_leave(struct packet *pkt, const struct now *now)
{
	__u32 named = 0, why, to;

	if (pkt->backend)
		named = SITE_AWAY | (pkt->backend->flags & BERM_BACKEND_REMOTE ? SITE_REMOTE : 0) |
			pkt->backend->region;
	to = site_of(pkt->ctx, (const struct sited *)&pkt->dst, pkt->facts, named, now->jiffies);
	if (LIKELY(!to))
		return STAGE_NEXT;
	why = to >> SITE_WHY & 31;
	if (why)
		STAGE(refuse(pkt, why, false));
	if (!(to & (PACKET_CARRIED | PACKET_SPILLED)))
		return STAGE_NEXT; /* only counted: served here */
	pkt->facts &= ~(__u64)(PACKET_HANDED | PACKET_SILENT);
	pkt->facts |= to & (PACKET_CARRIED | PACKET_SPILLED);
	pkt->facts += PACKET_HOP;
	to &= BERM_ROW_BACKEND;
	if (to)
		pkt->backend = bpf_map_lookup_elem(&berm_backends, &to);
	return STAGE_NEXT;
}

static __always_inline int site(struct packet *pkt, const struct now *now)
{
	if (LIKELY(!(pkt->vip->flags & (BERM_VIP_SITES | BERM_VIP_REGION))))
		return STAGE_NEXT;
	if (is(pkt, PACKET_BROKEN) || (is(pkt, PACKET_OUTER) && !is(pkt, PACKET_TRUSTED)))
		return STAGE_NEXT;
	return site_leave(pkt, now);
}

#endif
