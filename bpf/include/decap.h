/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* decap: packets that another edge sent on to us. A tunnel is a door: the outer source must be
 * a peer's and the outer header must carry the keyed tag of the flow; then policy has run at
 * the first hop and is not run again. Where a check is in its shadow form the packet is
 * let in, but as one that policy still has to see.
 */
#ifndef BERM_DECAP_H
#define BERM_DECAP_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include "addr.h"
#include "hash.h"
#include "maps.h"
#include "packet.h"
#include "parse.h"

/* The outer TTL counts hops from site to site, in steps that are larger than the ways between edges are
 * long; the tag is keyed for them, so that a longer way, or somebody else, makes no other number of it.
 */
#define OUTER_TTL 64
#define OUTER_TTL_HOP 60
#define HOPS_SHIFT 16 /* above the tag */

static __always_inline __u32 hops_by(__u8 ttl)
{
	return (__u32)(__u8)(ttl - 1) / OUTER_TTL << HOPS_SHIFT;
}

/* The low bits of an outer source vary with the flow, so that the receiver's queues do too. */
static __always_inline __u32 spread_mask(const struct berm_config *cfg)
{
	return (1u << (cfg->spread & 31)) - 1;
}

static __always_inline bool is_tunnel(const struct packet *pkt)
{
	const struct berm_addr *self;
	__u64 proto;

	if (LIKELY(!is(pkt, PACKET_OTHER | PACKET_FRAGMENT | PACKET_BROKEN)))
		return false;
	proto = unknown(pkt, pkt->proto);
	if (proto != IPPROTO_IPIP && proto != IPPROTO_IPV6)
		return false;
	self = is(pkt, PACKET_V6) ? &pkt->cfg->self6 : &pkt->cfg->self4;
	return addr_equal(&pkt->dst, self) && !addr_is_zero(self);
}

static __always_inline __u32 outer_size(const struct packet *pkt)
{
	return is(pkt, PACKET_V6) ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
}

static __always_inline bool is_peer(const struct packet *pkt)
{
	struct berm_addr peer = pkt->src;

	peer.words[3] &= bpf_htonl(~spread_mask(pkt->cfg));
	return bpf_map_lookup_elem(&berm_peers, &peer);
}

static __always_inline bool tag_fits(const struct berm_config *cfg, __u64 flow, __u16 tag,
				     __u32 hops)
{
	const __u64 *secrets = cfg->tag_secrets;
	__u64 chance = tag / TAG_CHANCE;

	if (!secrets[0] && !secrets[1])
		return true; /* a site without a secret has no tags */
	return (secrets[0] && flow_tag(flow, secrets[0], chance, hops) == tag) ||
	       (secrets[1] && flow_tag(flow, secrets[1], chance, hops) == tag);
}

/* Takes the outer header and returns its tag, with the hops from site to site above it. Our edges write
 * neither options nor extension headers.
 */
static __always_inline __u32 take_outer(struct packet *pkt, struct cursor *cur)
{
	struct ipv6hdr *ip6;
	struct iphdr *ip;

	if (!is(pkt, PACKET_V6)) {
		ip = TAKE(cur, struct iphdr);
		learn(pkt, PACKET_OUTER4);
		return ip ? hops_by(ip->ttl) | bpf_ntohs(ip->id) : 0;
	}
	ip6 = TAKE(cur, struct ipv6hdr);
	pkt->facts &= ~PACKET_V6;
	learn(pkt, PACKET_OUTER6);
	return ip6 ? hops_by(ip6->hop_limit) | ip6->flow_lbl[1] << 8 | ip6->flow_lbl[2] : 0;
}

static __always_inline int parse_inner(struct packet *pkt, struct cursor *cur, __u32 size)
{
	bool six = unknown(pkt, pkt->proto) == IPPROTO_IPV6;

	return parse_ip(pkt, cur, bpf_htons(six ? ETH_P_IPV6 : ETH_P_IP), l3_of(pkt) + size,
			pkt->len - size);
}

static __always_inline int decap(struct packet *pkt)
{
	bool shadowed = false;
	struct cursor cur;
	__u32 size, tag;

	if (LIKELY(!is_tunnel(pkt)))
		return STAGE_NEXT;
	if (is(pkt, PACKET_BAD)) {
		STAGE(refuse(pkt, first_bad(pkt), false));
		return foreign(pkt, BERM_STAGE_DECAP);
	}
	if (is(pkt, PACKET_FRAGMENT | PACKET_OPTIONS)) {
		STAGE(refuse(pkt, BERM_DROP_TUNNEL_PEER, false));
		return foreign(pkt, BERM_STAGE_DECAP);
	}
	if (!is_peer(pkt)) {
		STAGE(refuse(pkt, BERM_DROP_TUNNEL_PEER, false));
		shadowed = true;
	}

	cur = cur_from(pkt->ctx);
	if (!cur_skip(&cur, l3_of(pkt)))
		return fail_open(pkt, BERM_STAGE_DECAP);
	size = outer_size(pkt);
	tag = take_outer(pkt, &cur);
	if (parse_inner(pkt, &cur, size) != STAGE_NEXT || is(pkt, PACKET_BAD)) {
		STAGE(refuse(pkt, BERM_DROP_TUNNEL_INNER, false));
		return foreign(pkt, BERM_STAGE_DECAP);
	}
	pkt->flow = flow_hash(pkt->cfg->secret, is(pkt, PACKET_V6), &pkt->client, &pkt->dst,
			      pkt->ports);
	if (!tag_fits(pkt->cfg, pkt->flow, tag, tag >> HOPS_SHIFT)) {
		STAGE(refuse(pkt, BERM_DROP_TUNNEL_TAG, false));
		shadowed = true;
	}
	if (tag & TAG_CHANCE)
		learn(pkt, PACKET_CHANCE);
	learn(pkt, (__u64)(tag >> HOPS_SHIFT) * PACKET_HOP);
	if (!shadowed)
		learn(pkt, PACKET_TRUSTED);
	return STAGE_NEXT;
}

#endif
