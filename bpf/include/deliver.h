/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* deliver: to this host's stack, or in IPIP / IP6IP6 to the flow's owner; to servers that run no Berm
 * also in GUE, or as it is to their Ethernet address (server.h). The inner packet is never changed, and
 * VLAN tags stay on frames that leave where they came from. Failing before the first write passes the
 * packet to the stack; after it, XDP_ABORTED.
 */
#ifndef BERM_DELIVER_H
#define BERM_DELIVER_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include "addr.h"
#include "chance.h"
#include "csum.h"
#include "decap.h"
#include "icmp.h"
#include "outer.h"
#include "packet.h"
#include "server.h"

#define IP_TOTAL_MAX 65535

/* Few packets are second chances, or of other sites. Asking for that is cheaper than arithmetic. */
static __always_inline bool is_first_way(const struct packet *pkt)
{
	return LIKELY(!is(pkt, PACKET_HANDED | PACKET_HOPS | PACKET_CARRIED | PACKET_SPILLED));
}

static __always_inline __u32 outer_ttl(const struct packet *pkt)
{
	return OUTER_TTL + (is_first_way(pkt) ? 0 : hops_of(pkt->facts) * OUTER_TTL_HOP);
}

static __always_inline __u16 outer_tag(const struct packet *pkt)
{
	__u64 secret = pkt->cfg->tag_secrets[0], chance = fact(pkt, PACKET_HANDED);

	if (is_first_way(pkt))
		return secret ? flow_tag(pkt->flow, secret, 0, 0) : 0;
	return secret ? flow_tag(pkt->flow, secret, chance, hops_of(pkt->facts)) :
			chance * TAG_CHANCE;
}

static __always_inline bool put_ipv4(const struct packet *pkt, struct cursor *cur, __be32 src,
				     __be32 dst, __u16 tag)
{
	return write_ipv4(cur, frame_of(pkt), sizeof(struct iphdr),
			  is(pkt, PACKET_V6) ? IPPROTO_IPV6 : IPPROTO_IPIP, tag, outer_ttl(pkt),
			  src, dst);
}

static __always_inline bool put_ipv6(const struct packet *pkt, struct cursor *cur,
				     const struct berm_addr *src, const struct berm_addr *dst,
				     __u16 tag)
{
	return write_ipv6(cur, frame_of(pkt), 0, is(pkt, PACKET_V6) ? IPPROTO_IPV6 : IPPROTO_IPIP,
			  tag, outer_ttl(pkt), src, dst);
}

/* Our address with its low bits taken from the flow, bits that chose neither row nor tag. */
static __always_inline __be32 spread(const struct packet *pkt, __be32 word)
{
	__be32 mask = bpf_htonl(spread_mask(pkt->cfg));

	return (word & ~mask) | ((__u32)(pkt->flow >> 32) & mask);
}

static __always_inline bool put_outer(const struct packet *pkt, struct cursor *cur,
				      const struct berm_backend *to, bool six)
{
	const struct berm_config *cfg = pkt->cfg;
	__u16 tag = outer_tag(pkt);
	struct berm_addr src;

	if (!six)
		return put_ipv4(pkt, cur, spread(pkt, cfg->self4.words[3]), to->addr.words[3], tag);
	src = cfg->self6;
	src.words[3] = spread(pkt, src.words[3]);
	return put_ipv6(pkt, cur, &src, &to->addr, tag);
}

static __always_inline enum berm_exit exit_of(const struct packet *pkt)
{
	if (is_first_way(pkt))
		return BERM_EXIT_FORWARD;
	return BERM_EXIT_FORWARD +
	       fact(pkt, PACKET_HANDED) * (BERM_EXIT_CHANCE - BERM_EXIT_FORWARD) +
	       fact(pkt, PACKET_SILENT) * (BERM_EXIT_DEADMAN - BERM_EXIT_CHANCE) +
	       fact(pkt, PACKET_CARRIED) * (BERM_EXIT_CARRY - BERM_EXIT_FORWARD) +
	       fact(pkt, PACKET_SPILLED) * (BERM_EXIT_SPILL - BERM_EXIT_FORWARD);
}

/* six is constant, so that each of the two ways knows its sizes. */
static __always_inline int encapsulate(struct packet *pkt, const struct now *now, bool six)
{
	const struct berm_backend *to = pkt->backend;
	__u32 size = six ? sizeof(struct ipv6hdr) : sizeof(struct iphdr), away = to->ifindex;
	__u32 total = pkt->len + size, most = pkt->cfg->mtu, vlans = 0;
	int grow = size;
	struct cursor cur = cur_from(pkt->ctx);
	struct ethhdr *eth = TAKE(&cur, struct ethhdr);
	struct macs macs;

	if (!eth || (six ? addr_is_zero(&pkt->cfg->self6) : !pkt->cfg->self4.words[3]))
		return fail_open(pkt, BERM_STAGE_DELIVER);
	if (UNLIKELY(total > (most ? most : IP_TOTAL_MAX))) {
		if (most)
			STAGE(icmp_too_big(pkt, now, most - size));
		if (total > IP_TOTAL_MAX)
			return fail_open(pkt, BERM_STAGE_DELIVER);
	}

	macs = macs_to(to, eth);
	if (UNLIKELY(away) && away == pkt->ctx->ingress_ifindex)
		away = 0;
	/* Nobody answers from a group's address: what was sent to all is not ours to send on. */
	if (UNLIKELY(macs.src0 & 1))
		return leave(pkt, BERM_STAGE_DELIVER, BERM_EXIT_LOCAL, XDP_PASS);
	if (UNLIKELY(is(pkt, PACKET_TAGGED | PACKET_OUTER))) {
		vlans = away ? 0 : vlans_of(pkt);
		grow -= (int)((vlans_of(pkt) - vlans) * sizeof(struct vlan_hdr) +
			      outer_of(pkt->facts));
	}

	if (bpf_xdp_adjust_head(pkt->ctx, -grow))
		return fail_open(pkt, BERM_STAGE_DELIVER);
	cur = cur_from(pkt->ctx);
	if (!put_ethernet(&cur, frame_of(pkt), &macs, vlans,
			  bpf_htons(six ? ETH_P_IPV6 : ETH_P_IP)) ||
	    !put_outer(pkt, &cur, to, six))
		return abort_packet(pkt, BERM_STAGE_DELIVER);
	return leave(pkt, BERM_STAGE_DELIVER, exit_of(pkt),
		     UNLIKELY(away) ? bpf_redirect(away, 0) : XDP_TX);
}

static __always_inline int deliver_to_server(struct packet *pkt, const struct now *now)
{
	__u32 size = server_overhead(pkt->backend), most = pkt->cfg->mtu;
	int end;

	if (UNLIKELY(pkt->len + size > (most ? most : IP_TOTAL_MAX))) {
		if (most)
			STAGE(icmp_too_big(pkt, now, most - size));
		if (pkt->len + size > IP_TOTAL_MAX)
			return fail_open(pkt, BERM_STAGE_DELIVER);
	}
	end = send_to_server(pkt->ctx, pkt->backend, frame_of(pkt), pkt->facts, pkt->flow);
	if (end == BERM_EXIT_ABORTED)
		return abort_packet(pkt, BERM_STAGE_DELIVER);
	if (end < 0)
		return leave(pkt, BERM_STAGE_DELIVER, exit_of(pkt), -end);
	return leave(pkt, BERM_STAGE_DELIVER, end, XDP_PASS);
}

static __always_inline int strip_outer(struct packet *pkt)
{
	int size = outer_of(pkt->facts);
	struct cursor cur = cur_from(pkt->ctx);
	struct ethhdr *eth = TAKE(&cur, struct ethhdr);
	struct macs macs;

	if (!eth)
		return fail_open(pkt, BERM_STAGE_DELIVER);
	macs = *(struct macs *)eth;
	if (bpf_xdp_adjust_head(pkt->ctx, size))
		return fail_open(pkt, BERM_STAGE_DELIVER);
	cur = cur_from(pkt->ctx);
	if (!put_ethernet(&cur, frame_of(pkt), &macs, vlans_of(pkt),
			  bpf_htons(is(pkt, PACKET_V6) ? ETH_P_IPV6 : ETH_P_IP)))
		return abort_packet(pkt, BERM_STAGE_DELIVER);
	return leave(pkt, BERM_STAGE_DELIVER, BERM_EXIT_DECAP, XDP_PASS);
}

static __always_inline int deliver(struct packet *pkt, const struct now *now)
{
	if (UNLIKELY(is(pkt, PACKET_OUTER)) && !pkt->backend)
		return strip_outer(pkt);
	if (!pkt->backend)
		return leave(pkt, BERM_STAGE_DELIVER, BERM_EXIT_LOCAL, XDP_PASS);
	if (UNLIKELY(pkt->backend->via >= BERM_VIA_GUE))
		return deliver_to_server(pkt, now);
	if (pkt->backend->family == 6)
		return encapsulate(pkt, now, true);
	return encapsulate(pkt, now, false);
}

#endif
