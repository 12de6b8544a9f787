/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* server: to a backend that runs no Berm, in GUE or as the packet is. In a function of its own, so that
 * packets to edges pay one branch, and the verifier checks it once.
 */
#ifndef BERM_SERVER_H
#define BERM_SERVER_H

#include <linux/udp.h>

#include "chance.h"
#include "maps.h"
#include "outer.h"

/* Source ports that tell flows apart on the way (RFC 6335's dynamic ones). */
#define GUE_PORT 0xc000
#define GUE_PORTS 0x3fff

/* Bytes in front of the packet. */
static __always_inline __u32 server_overhead(const struct berm_backend *to)
{
	if (to->via != BERM_VIA_GUE)
		return 0;
	return sizeof(struct udphdr) +
	       (to->family == 6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));
}

/* GUE, variant 1 (draft-ietf-intarea-gue, section 4): the packet follows UDP's header, and its own first
 * bits tell which it is. The checksum is zero: the inner packet has its own, and the receiver of a
 * packet that went astray does not listen (RFC 6935, 6936). Ports come from bits of the
 * flow that chose neither row nor tag.
 */
static __always_inline bool put_udp(struct cursor *cur, const struct berm_backend *to,
				    const struct frame *frame, __u64 flow)
{
	struct udphdr *udp = TAKE(cur, struct udphdr);

	if (!udp)
		return false;
	udp->source = bpf_htons(GUE_PORT | (flow >> 32 & GUE_PORTS));
	udp->dest = to->port;
	udp->len = bpf_htons(frame->len + sizeof(*udp));
	udp->check = 0;
	return true;
}

static __always_inline bool put_gue(struct cursor *cur, const struct berm_config *cfg,
				    const struct berm_backend *to, const struct frame *frame,
				    __u64 flow)
{
	const __u32 udp = sizeof(struct udphdr);
	bool done;

	if (to->family == 6)
		done = write_ipv6(cur, frame, udp, IPPROTO_UDP, 0, OUTER_TTL, &cfg->self6,
				  &to->addr);
	else
		done = write_ipv4(cur, frame, udp + sizeof(struct iphdr), IPPROTO_UDP, 0, OUTER_TTL,
				  cfg->self4.words[3], to->addr.words[3]);
	return done && put_udp(cur, to, frame, flow);
}

/* Returns the action that sends the packet, negated, or the exit by which it stays. The caller has seen
 * that it fits.
 */
__noinline int send_to_server(struct xdp_md *ctx, const struct berm_backend *to,
			      const struct frame *frame, __u64 facts, __u64 flow)
{
	__u32 vlans = !!(facts & PACKET_TAGGED) + !!(facts & PACKET_TAGGED_TWICE), key = 0, kept;
	__be16 proto = bpf_htons(facts & PACKET_V6 ? ETH_P_IPV6 : ETH_P_IP);
	struct cursor cur = cur_from(ctx);
	struct ethhdr *eth = TAKE(&cur, struct ethhdr);
	struct berm_config *cfg = bpf_map_lookup_elem(&berm_config, &key);
	struct macs macs;
	__u32 away;
	bool gue;
	int grow;

	if (!to || !frame || !cfg || !eth)
		return BERM_EXIT_FAIL_OPEN;
	gue = to->via == BERM_VIA_GUE;
	if (gue && addr_is_zero(to->family == 6 ? &cfg->self6 : &cfg->self4))
		return BERM_EXIT_FAIL_OPEN;
	macs = macs_to(to, eth);
	/* Nobody answers from a group's address: what was sent to all is not ours to send on. */
	if (macs.src0 & 1)
		return BERM_EXIT_LOCAL;
	away = to->ifindex == ctx->ingress_ifindex ? 0 : to->ifindex;
	kept = away ? 0 : vlans;
	grow = (int)server_overhead(to) - (int)outer_of(facts) -
	       (int)((vlans - kept) * sizeof(struct vlan_hdr));
	if (grow && bpf_xdp_adjust_head(ctx, -grow))
		return BERM_EXIT_FAIL_OPEN;
	if (gue)
		proto = bpf_htons(to->family == 6 ? ETH_P_IPV6 : ETH_P_IP);
	cur = cur_from(ctx);
	if (!put_ethernet(&cur, frame, &macs, kept, proto) ||
	    (gue && !put_gue(&cur, cfg, to, frame, flow)))
		return BERM_EXIT_ABORTED;
	return away ? -(int)bpf_redirect(away, 0) : -XDP_TX;
}

#endif
