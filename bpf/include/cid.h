/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* cid: QUIC packets go to the server that their connection ID names, wherever the client has moved
 * to. What is looked at is the same in every version of QUIC (RFC 8999). The ID of a client's
 * first packets is the client's own choice, and names nobody but by chance: then the row
 * decides, and if it names somebody, all edges agree on whom. Anything that is no QUIC goes by row.
 */
#ifndef BERM_CID_H
#define BERM_CID_H

#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>

#include "aes.h"
#include "deadman.h"
#include "maps.h"
#include "packet.h"
#include "parse_ipv6.h"

/* Of both headers as much is taken as the longest ID needs: no packet that can be decrypted is
 * shorter (RFC 9001, section 5.4.2).
 */
struct quic_header {
	__u8 first;
	__u8 cid[1 + BERM_CID_CONTENT];
};

/* What a long header has between the two. */
struct quic_version {
	__u8 version[4];
	__u8 cid_len;
};

/* A content as numbers: 8 bytes, 8 bytes and, in the highest bits of the last, 3. */
struct cid_content {
	__u64 hi;
	__u64 lo;
	__u64 rest;
};

static __always_inline struct cid_content cid_content(const __u8 *cid)
{
	struct cid_content in = {
		.hi = bpf_be64_to_cpu(*(__be64 *)(cid + 1)),
		.lo = bpf_be64_to_cpu(*(__be64 *)(cid + 9)),
		.rest = (__u64)bpf_ntohl(*(__be32 *)(cid + 16)) << 40,
	};

	return in;
}

/* The right half of a content, which begins at this byte, at the start of a block. */
static __always_inline struct aes_halves cid_right(const struct cid_content *in, __u32 at)
{
	struct aes_halves right = { in->hi, in->lo };
	__u64 next = in->rest;
	__u32 bits = (at & 7) * 8;

	if (at & 8) {
		right.hi = in->lo;
		right.lo = next;
		next = 0;
	}
	if (bits) {
		right.hi = right.hi << bits | right.lo >> (64 - bits);
		right.lo = right.lo << bits | next >> (64 - bits);
	}
	return right;
}

/* The functions below are global, so that the verifier checks each by itself, once. */

/* The first 8 bytes of a content that was encrypted as one block. */
__noinline __u64 cid_open_block(const struct berm_cid *format, __u64 hi, __u64 lo)
{
	return format ? aes_decrypt_start(aes_block(hi, lo), format->keys) : 0;
}

/* Encrypts a block in place. By itself also because all on one stack would be too much. */
__noinline int cid_encrypt(const struct berm_cid *format, struct aes_halves *block)
{
	if (format && block)
		*block = aes_encrypt(aes_block(block->hi, block->lo), format->keys);
	return 0;
}

/* Undoes or does a pass: what one half encrypts to is added to the other, as far as that has bits. */
static __always_inline void cid_pass(const struct berm_cid *format, __u32 pass,
				     const struct aes_halves *from, struct aes_halves *into,
				     const __u64 bits[2])
{
	struct aes_halves block = { from->hi, from->lo | format->content_len << 8 | pass };

	cid_encrypt(format, &block);
	into->hi = (into->hi ^ block.hi) & bits[0];
	into->lo = (into->lo ^ block.lo) & bits[1];
}

/* The first 8 bytes of a content that the Feistel network encrypted. The halves are held as the
 * blocks that they are encrypted in.
 */
__noinline __u64 cid_open_feistel(const struct berm_cid *format, __u64 hi, __u64 lo, __u64 rest)
{
	struct cid_content in = { hi, lo, rest };
	struct aes_halves left, right;
	__u32 len;

	if (!format)
		return 0;
	len = format->content_len;
	left.hi = hi & format->left[0];
	left.lo = lo & format->left[1];
	right = cid_right(&in, len / 2);
	right.hi &= format->right[0];
	right.lo &= format->right[1];
	cid_pass(format, 4, &right, &left, format->left);
	cid_pass(format, 3, &left, &right, format->right);
	cid_pass(format, 2, &right, &left, format->left);
	if (format->server_len * 2 <= len)
		return left.hi; /* that far no server ID reaches into the right half */
	cid_pass(format, 1, &left, &right, format->right);
	/* The right half, without the half byte that is not its own, comes behind the left one's bits. */
	if (len < 16)
		left.hi |= right.hi << (len & 1) * 4 >> (len * 4 & 63);
	return left.hi;
}

/* The first 8 bytes of an encrypted content. */
static __always_inline __u64 cid_open(const struct berm_cid *format, const __u8 *cid)
{
	struct cid_content in = cid_content(cid);

	if (format->flags & BERM_CID_BLOCK)
		return cid_open_block(format, in.hi, in.lo);
	return cid_open_feistel(format, in.hi, in.lo, in.rest);
}

/* The server ID of a connection ID of this format. */
static __always_inline __u64 cid_server(const struct berm_cid *format, const __u8 *cid)
{
	__u64 start = LIKELY(format->flags == BERM_CID_USED) ?
			      bpf_be64_to_cpu(*(__be64 *)(cid + 1)) :
			      cid_open(format, cid);

	return start >> ((BERM_CID_SERVER - format->server_len) * 8 & 63);
}

/* The backend that has a server ID, if it is one of the set; 0 if nobody is. */
static __always_inline __u32 sid_backend(__u64 server, __u32 set)
{
	struct berm_sid *sid;
	__u32 key = server;

	if (LIKELY(server < BERM_SIDS))
		sid = bpf_map_lookup_elem(&berm_sids, &key);
	else
		sid = bpf_map_lookup_elem(&berm_sids_long, &server);
	return sid && sid->sets >> (set & 63) & 1 ? sid->backend : 0;
}

/* The backend that an ID names which is of the usual kind: plain, in a short header, and with no tag, option
 * or tunnel before it; 0 where more has to be looked at. In line: with safe returns a call costs 15 ns.
 */
static __always_inline __u32 cid_usual(const struct packet *pkt, __u32 set)
{
	const __u64 unusual =
		PACKET_OTHER | PACKET_FRAGMENT | PACKET_OUTER | PACKET_TAGGED | PACKET_OPTIONS;
	__u32 headers = sizeof(struct ethhdr) + sizeof(struct iphdr) + sizeof(struct udphdr) +
			fact(pkt, PACKET_V6) * (sizeof(struct ipv6hdr) - sizeof(struct iphdr));
	struct cursor cur = cur_from(pkt->ctx);
	struct quic_header *quic;
	struct berm_cid *format;
	__u64 server;
	__u32 key;

	if (is(pkt, unusual) || !cur_skip(&cur, headers) ||
	    !(quic = TAKE(&cur, struct quic_header)) || quic->first & QUIC_LONG)
		return 0;
	key = quic->cid[0] >> 5;
	format = bpf_map_lookup_elem(&berm_cids, &key);
	if (!format || format->flags != BERM_CID_USED)
		return 0;
	server = cid_server(format, quic->cid);
	return server < BERM_SIDS ? sid_backend(server, set) : 0;
}

/* Skips what is in front of the payload of a UDP packet that came in no tunnel. */
static __always_inline bool skip_to_payload(struct cursor *cur, struct xdp_md *ctx, __u64 facts)
{
	__u32 l3 = sizeof(struct ethhdr);
	struct ipv6_walk walk;
	struct ipv6hdr *ip6;
	struct iphdr *ip;

	if (UNLIKELY(facts & PACKET_TAGGED))
		l3 += sizeof(struct vlan_hdr) << !!(facts & PACKET_TAGGED_TWICE);
	if (!cur_skip(cur, l3))
		return false;
	if (!(facts & PACKET_V6)) {
		ip = TAKE(cur, struct iphdr);
		return ip && TAKE(cur, struct udphdr) &&
		       (LIKELY(ip->ihl == 5) || cur_skip(cur, ip->ihl * 4 - sizeof(*ip)));
	}
	ip6 = TAKE(cur, struct ipv6hdr);
	if (ip6 && UNLIKELY(ip6->nexthdr != IPPROTO_UDP)) {
		walk = walk_unpack(ipv6_extensions(ctx, l3, SKIP_MAX, ip6->nexthdr));
		*cur = cur_from(ctx);
		if (walk.bad || walk.proto != IPPROTO_UDP || !cur_skip(cur, l3 + walk.header))
			return false;
	}
	return ip6 && TAKE(cur, struct udphdr);
}

/* The packet's ID names nobody, though it should: it is not one that a client makes up. */
#define CID_LOST -1

/* The backend that the connection ID of a datagram for this set names; 0 if it names nobody. */
static __always_inline int cid_backend(struct xdp_md *ctx, __u64 facts, __u32 set)
{
	struct cursor cur = cur_from(ctx);
	struct quic_header *quic;
	struct berm_cid *format;
	const __u8 *cid;
	__u32 key, len = 0, id = 0;

	if (!skip_to_payload(&cur, ctx, facts) || !(quic = TAKE(&cur, struct quic_header)))
		return 0;
	cid = quic->cid;
	if (quic->first & QUIC_LONG) {
		if (!TAKE(&cur, struct quic_version))
			return 0;
		len = ((struct quic_version *)cid)->cid_len;
		cid += sizeof(struct quic_version);
		if (!len)
			return 0;
	}
	key = *cid >> 5;
	format = bpf_map_lookup_elem(&berm_cids, &key);
	if (format && format->flags & BERM_CID_USED && (!len || len == 1u + format->content_len))
		id = sid_backend(cid_server(format, cid), set);
	return id || len ? (int)id : CID_LOST;
}

#endif
