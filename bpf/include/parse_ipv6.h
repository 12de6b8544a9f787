/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* IPv6, with extension headers and fragments. */
#ifndef BERM_PARSE_IPV6_H
#define BERM_PARSE_IPV6_H

#include <linux/in6.h>
#include <linux/ipv6.h>

#include "addr.h"
#include "packet.h"
#include "parse_l4.h"

/* Each kind of extension header at most once, but destination options twice (RFC 8200, 4.1). */
#define IPV6_EXTENSIONS 6

/* The first 8 bytes of any: no extension header is smaller. */
struct ipv6_extension {
	__u8 nexthdr;
	__u8 len; /* words of 8 bytes after the first 8; of an AH, of 4 bytes less 2 */
	union {
		struct {
			__u8 type;
			__u8 segments; /* of a routing header: still to visit */
		};
		__be16 frag_off; /* of a fragment header */
	};
	__be32 rest;
};

#define IPV6_OFFSET 0xfff8
#define IPV6_MF 1

static __always_inline bool is_extension(__u8 proto)
{
	return proto == IPPROTO_HOPOPTS || proto == IPPROTO_ROUTING || proto == IPPROTO_DSTOPTS ||
	       proto == IPPROTO_AH || proto == IPPROTO_FRAGMENT;
}

/* Where a walk over extension headers is. It travels in one word between functions. */
struct ipv6_walk {
	__u32 header; /* bytes up to here */
	__u8 proto;   /* of what is here */
	__u8 bad;     /* enum berm_drop */
	__u8 fragment;
};

static __always_inline __u64 walk_pack(const struct ipv6_walk *walk)
{
	return (__u64)walk->header << 32 | walk->fragment << 16 | walk->bad << 8 | walk->proto;
}

static __always_inline struct ipv6_walk walk_unpack(__u64 packed)
{
	struct ipv6_walk walk = {
		.header = packed >> 32,
		.fragment = packed >> 16,
		.bad = packed >> 8,
		.proto = packed,
	};

	return walk;
}

/* Bytes of an extension header other than the fragment's; 0 if it contradicts itself. A VIP is
 * nobody's waypoint: segments left are not ours to follow.
 */
static __always_inline __u32 extension_size(__u8 proto, const struct ipv6_extension *ext,
					    bool first)
{
	if (proto == IPPROTO_AH)
		return ext->len ? (ext->len + 2) * 4 : 0;
	if ((proto == IPPROTO_HOPOPTS && !first) || (proto == IPPROTO_ROUTING && ext->segments))
		return 0;
	return (ext->len + 1) * 8;
}

/* Walks over the extension headers of a packet of len bytes at the offset; proto is the first
 * one's. Returns a packed struct ipv6_walk. Few packets come here, and the verifier checks
 * it by itself, which keeps the ways through it from multiplying with all others.
 */
__noinline __u64 ipv6_extensions(struct xdp_md *ctx, __u32 at, __u32 len, __u32 proto)
{
	struct ipv6_walk walk = { .header = sizeof(struct ipv6hdr), .proto = proto };

	for (int i = 0; i < IPV6_EXTENSIONS && is_extension(walk.proto); i++) {
		struct cursor cur = cur_from(ctx);
		struct ipv6_extension *ext;
		__u32 left = len - walk.header, size;

		walk.bad = BERM_DROP_TRUNCATED;
		if (left < sizeof(*ext) || !cur_skip(&cur, at + walk.header) ||
		    !(ext = TAKE(&cur, struct ipv6_extension)))
			return walk_pack(&walk);
		if (walk.proto == IPPROTO_FRAGMENT) {
			__u32 frag = bpf_ntohs(ext->frag_off);

			walk.bad = BERM_DROP_NONE;
			walk.header += sizeof(*ext);
			walk.proto = ext->nexthdr;
			/* Offset 0 and no more to come: a whole packet all the same (RFC 6946). */
			if (!(frag & (IPV6_OFFSET | IPV6_MF)))
				continue;
			walk.fragment = true;
			if (!fragment_fits(walk.proto, frag & IPV6_OFFSET, frag & IPV6_MF,
					   left - sizeof(*ext), 65535))
				walk.bad = BERM_DROP_BAD_FRAGMENT;
			return walk_pack(&walk);
		}
		size = extension_size(walk.proto, ext, i == 0);
		if (!size)
			walk.bad = BERM_DROP_MALFORMED;
		if (!size || size > left)
			return walk_pack(&walk);
		walk.bad = BERM_DROP_NONE;
		walk.header += size;
		walk.proto = ext->nexthdr;
	}
	if (is_extension(walk.proto))
		walk.bad = BERM_DROP_MALFORMED;
	return walk_pack(&walk);
}

/* Follows the extension headers, and puts the cursor behind them. */
static __always_inline bool skip_extensions(struct packet *pkt, struct cursor *cur, __u32 at,
					    __u32 *header)
{
	struct ipv6_walk walk;

	walk = walk_unpack(ipv6_extensions(pkt->ctx, at, pkt->len, pkt->proto));
	pkt->proto = walk.proto;
	learn(pkt, PACKET_OPTIONS);
	if (walk.fragment) {
		learn(pkt, PACKET_FRAGMENT);
		pkt->ports = unknown(pkt, pkt->proto);
	}
	if (walk.bad) {
		broken(pkt, walk.bad);
		return false;
	}
	*header = walk.header;
	*cur = cur_from(pkt->ctx);
	if (!cur_skip(cur, at + walk.header)) {
		broken(pkt, BERM_DROP_TRUNCATED);
		return false;
	}
	return true;
}

static __always_inline int parse_ipv6(struct packet *pkt, struct cursor *cur, __u32 at, __u32 room)
{
	struct ipv6hdr *ip = TAKE(cur, struct ipv6hdr);
	__u32 total, header = sizeof(*ip);

	if (!ip)
		return foreign(pkt, BERM_STAGE_PARSE);
	total = sizeof(*ip) + bpf_ntohs(ip->payload_len);
	learn(pkt, PACKET_V6);
	pkt->tos = ip->priority << 4 | ip->flow_lbl[0] >> 4;
	pkt->src = addr_v6(&ip->saddr);
	pkt->dst = addr_v6(&ip->daddr);
	pkt->client = pkt->src;
	pkt->number = source_number(&pkt->src, true);
	pkt->proto = ip->nexthdr;

	/* Else it would be taken for the IPv4 VIP that a v4-mapped address stands for here. */
	if (addr_is_mapped(&pkt->dst))
		return foreign(pkt, BERM_STAGE_PARSE);
	if (ip->version != 6)
		return broken(pkt, BERM_DROP_MALFORMED);
	if (UNLIKELY(total > packet_room(pkt, total, room)))
		return broken(pkt, BERM_DROP_TRUNCATED);
	pkt->len = unknown(pkt, total);
	note(pkt, BERM_DROP_BAD_SOURCE, addr_v6_bad_source(&pkt->src));

	if (UNLIKELY(is_extension(pkt->proto)) &&
	    (!skip_extensions(pkt, cur, at, &header) || is(pkt, PACKET_FRAGMENT)))
		return STAGE_NEXT;
	return parse_l4(pkt, cur, total - header);
}

#endif
