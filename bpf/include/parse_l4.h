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

/* An error goes to the owner of the flow it is about, so that the owner learns the path's MTU.
 * It quotes what the VIP sent: its source is the VIP's end. What quotes anything else is
 * an ICMP packet to the bare address.
 */
static __always_inline void quoted_flow(struct packet *pkt, const struct berm_addr *from,
					const struct berm_addr *to, __u8 proto,
					const struct ports *ports)
{
	if ((proto != IPPROTO_TCP && proto != IPPROTO_UDP) || !addr_equal(from, &pkt->dst))
		return;
	pkt->client = *to;
	pkt->ports = flow_ports(ports->dest | (__u32)ports->source << 16, proto);
}

static __always_inline int parse_icmp(struct packet *pkt, struct cursor *cur, __u32 left)
{
	struct berm_addr from, to;
	struct icmp_header *icmp;
	struct ports *ports;
	struct iphdr *ip;

	if (left < sizeof(*icmp) || !(icmp = TAKE(cur, struct icmp_header)))
		return broken(pkt, BERM_DROP_TRUNCATED);
	if (icmp->type != ICMP_DEST_UNREACH && icmp->type != ICMP_TIME_EXCEEDED &&
	    icmp->type != ICMP_PARAMETERPROB)
		return STAGE_NEXT;
	ip = TAKE(cur, struct iphdr);
	if (!ip || ip->version != 4 || ip->ihl < 5 || ip->frag_off & bpf_htons(0x1fff) ||
	    !cur_skip(cur, ip->ihl * 4 - sizeof(*ip)))
		return STAGE_NEXT;
	ports = TAKE(cur, struct ports);
	if (!ports || left < sizeof(*icmp) + ip->ihl * 4 + sizeof(*ports))
		return STAGE_NEXT;
	from = addr_v4(ip->saddr);
	to = addr_v4(ip->daddr);
	quoted_flow(pkt, &from, &to, ip->protocol, ports);
	return STAGE_NEXT;
}

static __always_inline int parse_icmpv6(struct packet *pkt, struct cursor *cur, __u32 left)
{
	struct berm_addr from, to;
	struct icmp_header *icmp;
	struct ports *ports;
	struct ipv6hdr *ip;

	if (left < sizeof(*icmp) || !(icmp = TAKE(cur, struct icmp_header)))
		return broken(pkt, BERM_DROP_TRUNCATED);
	/* Neighbour discovery is between this host and its link, whatever the address. */
	if (icmp->type >= ICMPV6_ND_FIRST && icmp->type <= ICMPV6_ND_LAST)
		return foreign(pkt, BERM_STAGE_PARSE);
	if (icmp->type < ICMPV6_DEST_UNREACH || icmp->type > ICMPV6_PARAMPROB)
		return STAGE_NEXT;
	ip = TAKE(cur, struct ipv6hdr);
	if (!ip || ip->version != 6)
		return STAGE_NEXT;
	ports = TAKE(cur, struct ports);
	if (!ports || left < sizeof(*icmp) + sizeof(*ip) + sizeof(*ports))
		return STAGE_NEXT;
	from = addr_v6(&ip->saddr);
	to = addr_v6(&ip->daddr);
	quoted_flow(pkt, &from, &to, ip->nexthdr, ports);
	return STAGE_NEXT;
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
