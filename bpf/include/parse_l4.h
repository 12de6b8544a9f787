/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* TCP, UDP and the packets that ICMP errors quote. Each returns STAGE_NEXT, or foreign. */
#ifndef BERM_PARSE_L4_H
#define BERM_PARSE_L4_H

#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>

#include "addr.h"
#include "hash.h"
#include "packet.h"

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10
#define TCP_FLAGS 0x3f /* without those of ECN */

/* linux/tcp.h has its flags as bit fields. */
struct tcp_header {
	__be32 ports;
	__be32 seq;
	__be32 ack_seq;
	__u8 offset; /* high four bits: words of header */
	__u8 flags;
	__be16 window;
	__be16 check;
	__be16 urgent;
};
_Static_assert(sizeof(struct tcp_header) == 20, "tcp_header is on the wire");

/* Of ICMP and ICMPv6. linux/icmp.h drags the C library in. */
struct icmp_header {
	__u8 type;
	__u8 code;
	__be16 check;
	__be32 rest;
};

#define ICMP_DEST_UNREACH 3
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12
#define ICMPV6_DEST_UNREACH 1 /* errors are 1 to 4 */
#define ICMPV6_PARAMPROB 4
#define ICMPV6_ND_FIRST 133 /* router solicitation … redirect */
#define ICMPV6_ND_LAST 137

struct ports {
	__be16 source;
	__be16 dest;
};

static __always_inline int broken(struct packet *pkt, enum berm_drop why)
{
	learn(pkt, BAD(why) | PACKET_BROKEN);
	return STAGE_NEXT;
}

/* The reason with the lowest number. */
static __always_inline enum berm_drop first_bad(const struct packet *pkt)
{
	__u32 why;

	for (why = BERM_DROP_TRUNCATED; why < BERM_DROP_BAD_FRAGMENT; why++)
		if (is(pkt, BAD(why)))
			break;
	return why;
}

/* Bytes the packet has room for. Only the start of a frame in several buffers can be looked
 * at; headers are there, but the length has to be asked for.
 */
static __always_inline __u32 packet_room(struct packet *pkt, __u32 total, __u32 room)
{
	struct cursor cur;

	if (LIKELY(total <= room))
		return room;
	cur = cur_from(pkt->ctx);
	return room + bpf_xdp_get_buff_len(pkt->ctx) - distance(cur.pos, cur.end);
}

/* Is a fragment with left bytes of payload possible where the whole has at most so many? The
 * first has to hold the first header of the payload, and no other may reach into it.
 */
static __always_inline bool fragment_fits(__u8 proto, __u32 offset, bool more, __u32 left,
					  __u32 most)
{
	__u32 least = proto == IPPROTO_TCP ? sizeof(struct tcp_header) :
		      proto == IPPROTO_UDP ? sizeof(struct udphdr) :
					     1;

	return left && !(more && left % 8) && offset + left <= most &&
	       (offset ? offset : left) >= least;
}

/* Combinations that no stack sends, one bit each: none at all, SYN with FIN or RST. */
static __always_inline bool tcp_flags_bad(__u32 flags)
{
	return 0xc8c8c8c8c8c8c8c9 >> (flags & TCP_FLAGS) & 1;
}

static __always_inline int parse_tcp(struct packet *pkt, struct cursor *cur, __u32 left)
{
	struct tcp_header *tcp;
	__u32 header;
	__u32 flags;

	if (left < sizeof(*tcp) || !(tcp = TAKE(cur, struct tcp_header)))
		return broken(pkt, BERM_DROP_TRUNCATED);
	pkt->ports = flow_ports(tcp->ports, IPPROTO_TCP);
	header = (tcp->offset >> 4) * 4;
	flags = tcp->flags;
	if (header < sizeof(*tcp))
		return broken(pkt, BERM_DROP_MALFORMED);
	if (header > left)
		return broken(pkt, BERM_DROP_TRUNCATED);
	if (UNLIKELY(tcp_flags_bad(flags)))
		learn(pkt, BAD(BERM_DROP_BAD_TCP_FLAGS));
	if (UNLIKELY((flags & (TCP_SYN | TCP_ACK)) == TCP_SYN))
		learn(pkt, PACKET_SYN);
	return STAGE_NEXT;
}

static __always_inline int parse_udp(struct packet *pkt, struct cursor *cur, __u32 left)
{
	struct udphdr *udp;
	__u32 len;

	if (left < sizeof(*udp) || !(udp = TAKE(cur, struct udphdr)))
		return broken(pkt, BERM_DROP_TRUNCATED);
	pkt->ports = flow_ports(*(__be32 *)udp, IPPROTO_UDP);
	len = bpf_ntohs(udp->len);
	if (len < sizeof(*udp))
		return broken(pkt, BERM_DROP_MALFORMED);
	if (len > left)
		return broken(pkt, BERM_DROP_TRUNCATED);
	return STAGE_NEXT;
}

/* The first 8 bytes behind a quoted IP header. */
struct quoted {
	union {
		struct ports ports;
		struct { /* of an IPv6 fragment header */
			__u8 nexthdr;
			__u8 pad;
			__be16 frag_off;
		};
	};
	__be32 rest;
};

/* An error goes to the owner of the flow it is about, so that the owner learns the path's MTU.
 * It quotes what the VIP sent: its source is the VIP's end. Where there are no ports it is the
 * flow of the addresses and the protocol, as for fragments. What quotes a packet of somebody else's,
 * or too little, is an ICMP packet to the bare address: the flow stays as it is. The ICMP header is at
 * this offset of the frame. Verified by itself, for few packets come here.
 */
__noinline int quoted_flow(struct xdp_md *ctx, struct flow *flow, __u32 at, __u32 left, __u32 six)
{
	__u32 need = sizeof(struct icmp_header) + sizeof(struct ports);
	struct cursor cur = cur_from(ctx);
	struct berm_addr from, to;
	struct quoted *quoted;
	struct ipv6hdr *ip6;
	bool ports = true;
	struct iphdr *ip;
	__u8 proto;

	if (!flow || !cur_skip(&cur, at + sizeof(struct icmp_header)))
		return 0;
	if (six) {
		ip6 = TAKE(&cur, struct ipv6hdr);
		if (!ip6 || ip6->version != 6)
			return 0;
		need += sizeof(*ip6);
		from = addr_v6(&ip6->saddr);
		to = addr_v6(&ip6->daddr);
		proto = ip6->nexthdr;
	} else {
		ip = TAKE(&cur, struct iphdr);
		if (!ip || ip->version != 4 || ip->ihl < 5 ||
		    !cur_skip(&cur, ip->ihl * 4 - sizeof(*ip)))
			return 0;
		need += ip->ihl * 4;
		from = addr_v4(ip->saddr);
		to = addr_v4(ip->daddr);
		proto = ip->protocol;
		ports = !(ip->frag_off & bpf_htons(0x1fff));
	}
	quoted = (struct quoted *)cur.pos;
	if (six && proto == IPPROTO_FRAGMENT && TAKE(&cur, struct quoted)) {
		need += sizeof(*quoted);
		proto = quoted->nexthdr;
		ports = !(quoted->frag_off & bpf_htons(0xfff8));
	}
	quoted = cur.pos;
	if (left < need || !TAKE(&cur, struct ports) || !addr_equal(&from, &flow->dst))
		return 0;
	flow->client = to;
	flow->ports =
		ports && (proto == IPPROTO_TCP || proto == IPPROTO_UDP) ?
			flow_ports(quoted->ports.dest | (__u32)quoted->ports.source << 16, proto) :
			proto;
	return 0;
}

static __always_inline int parse_quote(struct packet *pkt, const struct icmp_header *icmp,
				       __u32 left)
{
	struct cursor frame = cur_from(pkt->ctx);

	quoted_flow(pkt->ctx, (struct flow *)&pkt->dst, distance(frame.pos, icmp), left,
		    is(pkt, PACKET_V6));
	return STAGE_NEXT;
}

static __always_inline int parse_icmp(struct packet *pkt, struct cursor *cur, __u32 left)
{
	struct icmp_header *icmp;

	if (left < sizeof(*icmp) || !(icmp = TAKE(cur, struct icmp_header)))
		return broken(pkt, BERM_DROP_TRUNCATED);
	if (icmp->type != ICMP_DEST_UNREACH && icmp->type != ICMP_TIME_EXCEEDED &&
	    icmp->type != ICMP_PARAMETERPROB)
		return STAGE_NEXT;
	return parse_quote(pkt, icmp, left);
}

static __always_inline int parse_icmpv6(struct packet *pkt, struct cursor *cur, __u32 left)
{
	struct icmp_header *icmp;

	if (left < sizeof(*icmp) || !(icmp = TAKE(cur, struct icmp_header)))
		return broken(pkt, BERM_DROP_TRUNCATED);
	/* Neighbour discovery is between this host and its link, whatever the address. */
	if (icmp->type >= ICMPV6_ND_FIRST && icmp->type <= ICMPV6_ND_LAST)
		return foreign(pkt, BERM_STAGE_PARSE);
	if (icmp->type < ICMPV6_DEST_UNREACH || icmp->type > ICMPV6_PARAMPROB)
		return STAGE_NEXT;
	return parse_quote(pkt, icmp, left);
}

/* left is how many bytes the IP packet has behind its headers. */
static __always_inline int parse_l4(struct packet *pkt, struct cursor *cur, __u32 left)
{
	if (LIKELY(pkt->proto == IPPROTO_TCP))
		return parse_tcp(pkt, cur, left);
	if (pkt->proto == IPPROTO_UDP)
		return parse_udp(pkt, cur, left);
	pkt->ports = unknown(pkt, pkt->proto);
	learn(pkt, PACKET_OTHER);
	if (pkt->proto == IPPROTO_ICMP && !is(pkt, PACKET_V6))
		return parse_icmp(pkt, cur, left);
	if (pkt->proto == IPPROTO_ICMPV6 && is(pkt, PACKET_V6))
		return parse_icmpv6(pkt, cur, left);
	return STAGE_NEXT;
}

#endif
