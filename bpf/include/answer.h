/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Answers that are made of the packet itself, in its frame. */
#ifndef BERM_ANSWER_H
#define BERM_ANSWER_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include "addr.h"
#include "csum.h"
#include "maps.h"
#include "packet.h"

#define ANSWER_TTL 64
#define ANSWER_DF 0x4000
/* An Ethernet header with its tags. */
#define L2_MAX (sizeof(struct ethhdr) + VLANS * sizeof(struct vlan_hdr))

/* What an answer needs to know of a packet. It is of its own, since functions that the verifier
 * checks by themselves cannot be given pointers inside of what they are given.
 */
struct answer {
	struct berm_addr client; /* who sent the packet, and gets the answer */
	struct berm_addr vip;	 /* whom it was sent to */
	__u32 l3;		 /* offset of the frame's first IP header */
	__u32 outer;		 /* bytes of the tunnel's header there; 0 = none */
	__u32 six;		 /* is the packet itself IPv6? */
	__u32 pad;
};

/* In shadow form, what should have been dropped goes on; but nobody answers it. */
#define UNANSWERED (PACKET_BAD | PACKET_BROKEN | SHADOWED(BERM_DROP_LAND))

static __always_inline bool answer_is_sane(const struct answer *to)
{
	return to->l3 >= sizeof(struct ethhdr) && to->l3 <= L2_MAX &&
	       to->outer <= sizeof(struct ipv6hdr);
}

/* Sum over both addresses, for a checksum with a pseudo-header. */
static __always_inline __u64 answer_addresses(const struct answer *to)
{
	__u64 sum = (__u64)to->client.words[3] + to->vip.words[3];

	if (to->six)
		sum += (__u64)to->client.words[0] + to->client.words[1] + to->client.words[2] +
		       to->vip.words[0] + to->vip.words[1] + to->vip.words[2];
	return sum;
}

/* Through which frames leave that came through a tunnel: where they came from is a peer, or the
 * router, and only the router knows the way to clients.
 */
static __always_inline const struct berm_next_hop *answer_via(const struct answer *to)
{
	struct berm_reply *reply;
	__u32 key = 0;

	reply = bpf_map_lookup_elem(&berm_reply, &key);
	if (!reply)
		return NULL;
	return to->six ? &reply->via6 : &reply->via4;
}

/* Was the frame sent to this host alone? Nobody answers from a group's address. */
static __always_inline bool frame_is_ours(struct xdp_md *ctx)
{
	struct cursor cur = cur_from(ctx);
	struct ethhdr *eth = TAKE(&cur, struct ethhdr);

	return eth && !(eth->h_dest[0] & 1);
}

static __always_inline void swap_words(__u16 *mac)
{
#pragma unroll
	for (__u32 i = 0; i < ETH_ALEN / 2; i++) {
		__u16 dst = mac[i];

		mac[i] = mac[i + ETH_ALEN / 2];
		mac[i + ETH_ALEN / 2] = dst;
	}
}

/* Back to where the frame came from. */
static __always_inline bool swap_macs(struct xdp_md *ctx)
{
	struct cursor cur = cur_from(ctx);
	__u16 *mac = cur_take(&cur, sizeof(struct ethhdr));

	if (mac)
		swap_words(mac);
	return mac;
}

/* Takes the tunnel's header away, and addresses the frame to the next hop. */
static __always_inline bool strip_tunnel(struct xdp_md *ctx, const struct answer *to,
					 const struct berm_next_hop *via)
{
	__be16 proto = bpf_htons(to->six ? ETH_P_IPV6 : ETH_P_IP);
	__u8 l2[L2_MAX + 2] = {};
	__u32 size = to->l3;

	if (size < sizeof(struct ethhdr) || size > L2_MAX)
		return false;
	if (bpf_xdp_load_bytes(ctx, 0, l2, size) || bpf_xdp_adjust_head(ctx, (int)to->outer))
		return false;
	__builtin_memcpy(l2, via->mac, ETH_ALEN);
	__builtin_memcpy(l2 + ETH_ALEN, via->src_mac, ETH_ALEN);
	return !bpf_xdp_store_bytes(ctx, 0, l2, size) &&
	       !bpf_xdp_store_bytes(ctx, size - sizeof(proto), &proto, sizeof(proto));
}

/* Makes the frame so long that it holds a packet of size bytes, addressed back. Returns the action that
 * sends it, XDP_PASS where nothing was done, XDP_ABORTED where it cannot be undone.
 */
static __always_inline int answer_frame(struct xdp_md *ctx, const struct answer *to, __u32 size)
{
	const struct berm_next_hop *via = NULL;
	int grow = (int)(to->l3 + to->outer + size) - (int)bpf_xdp_get_buff_len(ctx);

	if (!frame_is_ours(ctx))
		return XDP_PASS;
	if (to->outer) {
		via = answer_via(to);
		if (!via || !via->ifindex)
			return XDP_PASS;
	}
	if (grow && bpf_xdp_adjust_tail(ctx, grow))
		return XDP_PASS;
	if (!via)
		return swap_macs(ctx) ? XDP_TX : XDP_ABORTED;
	if (!strip_tunnel(ctx, to, via))
		return XDP_ABORTED;
	return via->ifindex == ctx->ingress_ifindex ? XDP_TX : (int)bpf_redirect(via->ifindex, 0);
}

/* Writes the IP header of an answer with so many bytes behind it, at the cursor. */
static __always_inline bool put_answer_ip(struct cursor *cur, const struct answer *to, __u32 size,
					  __u8 proto)
{
	struct ipv6hdr *ip6;
	struct iphdr *ip;
	__u32 words[3];
	__u32 *out;

	if (to->six) {
		ip6 = TAKE(cur, struct ipv6hdr);
		if (!ip6)
			return false;
		out = (__u32 *)ip6;
		out[0] = bpf_htonl(6u << 28);
		out[1] = bpf_htonl(size << 16 | (__u32)proto << 8 | ANSWER_TTL);
		addr_put(&ip6->saddr, &to->vip);
		addr_put(&ip6->daddr, &to->client);
		return true;
	}
	ip = TAKE(cur, struct iphdr);
	if (!ip)
		return false;
	words[0] = bpf_htonl(4u << 28 | 5u << 24 | (size + sizeof(*ip)));
	words[1] = bpf_htonl(ANSWER_DF);
	words[2] = bpf_htonl(ANSWER_TTL << 24 | (__u32)proto << 16);
	out = (__u32 *)ip;
	out[0] = words[0];
	out[1] = words[1];
	out[2] = words[2] | (__u32)(__u16)~csum_fold((__u64)words[0] + words[1] + words[2] +
						     to->vip.words[3] + to->client.words[3])
				    << 16;
	out[3] = to->vip.words[3];
	out[4] = to->client.words[3];
	return true;
}

#endif
