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

/* The low bits of an outer source vary with the flow, so that the receiver's queues do too. */
static __always_inline __u32 spread_mask(const struct berm_config *cfg)
{
	return (1u << (cfg->spread & 31)) - 1;
}

static __always_inline bool is_tunnel(const struct packet *pkt)
{
	const struct berm_addr *self = is(pkt, PACKET_V6) ? &pkt->cfg->self6 : &pkt->cfg->self4;

	if (LIKELY(pkt->proto != IPPROTO_IPIP && pkt->proto != IPPROTO_IPV6))
		return false;
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

static __always_inline bool tag_fits(const struct berm_config *cfg, __u64 flow, __u16 tag)
{
	const __u64 *secrets = cfg->tag_secrets;

	if (!secrets[0] && !secrets[1])
		return true; /* a site without a secret has no tags */
	return (secrets[0] && flow_tag(flow, secrets[0]) == tag) ||
	       (secrets[1] && flow_tag(flow, secrets[1]) == tag);
}

/* Takes the outer header and returns its tag. Our edges write neither options nor extension
 * headers.
 */
static __always_inline __u16 take_outer(struct packet *pkt, struct cursor *cur)
{
	struct ipv6hdr *ip6;
	struct iphdr *ip;

	if (!is(pkt, PACKET_V6)) {
		ip = TAKE(cur, struct iphdr);
		pkt->facts |= PACKET_OUTER4;
		return ip ? bpf_ntohs(ip->id) : 0;
	}
	ip6 = TAKE(cur, struct ipv6hdr);
	pkt->facts &= ~PACKET_V6;
	pkt->facts |= PACKET_OUTER6;
	return ip6 ? (__u16)(ip6->flow_lbl[1] << 8 | ip6->flow_lbl[2]) : 0;
}

static __always_inline int parse_inner(struct packet *pkt, struct cursor *cur)
{
	__be16 proto = bpf_htons(pkt->proto == IPPROTO_IPIP ? ETH_P_IP : ETH_P_IPV6);
	__u32 room = pkt->len - pkt->header;

	pkt->bad = BERM_DROP_NONE;
	return parse_ip(pkt, cur, proto, pkt->l3 + pkt->header, room);
}

static __always_inline int decap(struct packet *pkt)
{
	bool shadowed = false;
	struct cursor cur;
	__u16 tag;

	if (LIKELY(!is_tunnel(pkt)))
		return STAGE_NEXT;
	if (pkt->bad) {
		STAGE(refuse(pkt, first_bad(pkt), false));
		return foreign(pkt, BERM_STAGE_DECAP);
	}
	if (is(pkt, PACKET_FRAGMENT) || pkt->header != outer_size(pkt)) {
		STAGE(refuse(pkt, BERM_DROP_TUNNEL_PEER, false));
		return foreign(pkt, BERM_STAGE_DECAP);
	}
	if (!is_peer(pkt)) {
		STAGE(refuse(pkt, BERM_DROP_TUNNEL_PEER, false));
		shadowed = true;
	}

	cur = cur_from(pkt->ctx);
	if (!cur_skip(&cur, pkt->l3))
		return fail_open(pkt, BERM_STAGE_DECAP);
	tag = take_outer(pkt, &cur);
	if (parse_inner(pkt, &cur) != STAGE_NEXT || pkt->bad) {
		STAGE(refuse(pkt, BERM_DROP_TUNNEL_INNER, false));
		return foreign(pkt, BERM_STAGE_DECAP);
	}
	forget_headers(pkt);
	pkt->flow = flow_hash(pkt->cfg->secret, is(pkt, PACKET_V6), &pkt->client, &pkt->dst,
			      pkt->sport, pkt->dport, pkt->flow_proto);
	if (!tag_fits(pkt->cfg, pkt->flow, tag)) {
		STAGE(refuse(pkt, BERM_DROP_TUNNEL_TAG, false));
		shadowed = true;
	}
	if (!shadowed)
		pkt->facts |= PACKET_TRUSTED;
	return STAGE_NEXT;
}

#endif
