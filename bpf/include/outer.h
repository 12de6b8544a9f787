/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The headers that a packet gets in front of it. */
#ifndef BERM_OUTER_H
#define BERM_OUTER_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include "addr.h"
#include "csum.h"
#include "packet.h"

/* The outer TTL counts hops from site to site, in steps that are larger than the ways between edges are
 * long; the tag is keyed for them, so that a longer way, or somebody else, makes no other number of it.
 */
#define OUTER_TTL 64
#define OUTER_TTL_HOP 60
#define IPV4_DF 0x4000

/* Two MAC addresses as Ethernet has them, in words: bytes would be copied one by one. */
struct macs {
	__u32 dst0;
	__u16 dst4;
	__u16 src0;
	__u32 src2;
};
_Static_assert(sizeof(struct macs) == 2 * ETH_ALEN, "macs is the start of an Ethernet header");

/* From this host to the backend's next hop. */
static __always_inline struct macs macs_to(const struct berm_backend *to, const struct ethhdr *eth)
{
	const void *was = eth; /* a packed structure is read in bytes */
	struct macs macs = {
		.dst0 = *(__u32 *)to->mac,
		.dst4 = *(__u16 *)(to->mac + 4),
		.src0 = *(__u16 *)was,
		.src2 = *(__u32 *)(was + 2),
	};

	if (UNLIKELY(to->ifindex)) {
		macs.src0 = *(__u16 *)to->src_mac;
		macs.src2 = *(__u32 *)(to->src_mac + 2);
	}
	return macs;
}

static __always_inline bool put_ethernet(struct cursor *cur, const struct frame *frame,
					 const struct macs *macs, __u32 vlans, __be16 proto)
{
	struct ethhdr *eth = TAKE(cur, struct ethhdr);

	if (!eth)
		return false;
	*(struct macs *)eth = *macs;
	*(__be16 *)((void *)eth + sizeof(*macs)) = vlans ? (__be16)frame->tpids : proto;
#pragma unroll
	for (__u32 i = 0; i < VLANS && UNLIKELY(i < vlans); i++) {
		struct vlan_hdr *tag = TAKE(cur, struct vlan_hdr);

		if (!tag)
			return false;
		tag->tci = frame->tags >> VLAN_SHIFT * i;
		tag->proto = i + 1 == vlans ? proto : frame->tpids >> VLAN_SHIFT;
	}
	return true;
}

/* For a packet with size bytes of headers in front of it, this one included. DSCP is the inner
 * packet's; ECN is not, since nobody would carry a mark back in (RFC 6040, compatibility mode). The
 * ID carries the tag; nothing fragments the packet, so it is free for it.
 */
static __always_inline bool write_ipv4(struct cursor *cur, const struct frame *frame, __u32 size,
				       __u32 proto, __u16 tag, __u32 ttl, __be32 src, __be32 dst)
{
	struct iphdr *ip = TAKE(cur, struct iphdr);
	__u32 words[3] = {
		bpf_htonl(4u << 28 | 5u << 24 | (frame->tos & 0xfc) << 16 | (frame->len + size)),
		bpf_htonl((__u32)tag << 16 | IPV4_DF),
		bpf_htonl(ttl << 24 | proto << 16),
	};
	__u32 *out = (__u32 *)ip;

	if (!ip)
		return false;
	out[0] = words[0];
	out[1] = words[1];
	out[2] = words[2] |
		 (__u32)(__u16)~csum_fold((__u64)words[0] + words[1] + words[2] + src + dst) << 16;
	out[3] = src;
	out[4] = dst;
	return true;
}

/* For a packet with size bytes of headers between it and this one. */
static __always_inline bool write_ipv6(struct cursor *cur, const struct frame *frame, __u32 size,
				       __u32 proto, __u32 label, __u32 ttl,
				       const struct berm_addr *src, const struct berm_addr *dst)
{
	struct ipv6hdr *ip = TAKE(cur, struct ipv6hdr);
	__u32 *out = (__u32 *)ip;

	if (!ip)
		return false;
	out[0] = bpf_htonl(6u << 28 | (frame->tos & 0xfc) << 20 | label);
	out[1] = bpf_htonl((frame->len + size) << 16 | proto << 8 | ttl);
	addr_put(&ip->saddr, src);
	addr_put(&ip->daddr, dst);
	return true;
}

#endif
