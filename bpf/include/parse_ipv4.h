/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* IPv4, with options and fragments. */
#ifndef BERM_PARSE_IPV4_H
#define BERM_PARSE_IPV4_H

#include <linux/ip.h>

#include "addr.h"
#include "csum.h"
#include "packet.h"
#include "parse_l4.h"

#define IPV4_MF 0x2000
#define IPV4_OFFSET 0x1fff

/* Fragments belong together by addresses and protocol: only the first has ports. */
static __always_inline int parse_fragment4(struct packet *pkt, __u32 offset, bool more, __u32 left)
{
	pkt->facts |= PACKET_FRAGMENT;
	if (!fragment_fits(pkt->proto, offset, more, left, 65535 - pkt->header))
		return broken(pkt, BERM_DROP_BAD_FRAGMENT);
	return STAGE_NEXT;
}

static __always_inline int parse_ipv4(struct packet *pkt, struct cursor *cur, __u32 room)
{
	struct iphdr *ip = TAKE(cur, struct iphdr);
	__u32 header, total;
	__u16 frag;
	__u64 sum;

	if (!ip)
		return foreign(pkt, BERM_STAGE_PARSE);
	header = ip->ihl * 4;
	total = bpf_ntohs(ip->tot_len);
	frag = bpf_ntohs(ip->frag_off);
	pkt->tos = ip->tos;
	pkt->src = addr_v4(ip->saddr);
	pkt->dst = addr_v4(ip->daddr);
	pkt->client = pkt->src;
	pkt->header = header;
	pkt->proto = pkt->flow_proto = ip->protocol;

	if (ip->version != 4 || header < sizeof(*ip) || total < header)
		return broken(pkt, BERM_DROP_MALFORMED);
	room = packet_room(pkt, total, room);
	if (total > room)
		return broken(pkt, BERM_DROP_TRUNCATED);
	pkt->len = total;

	sum = csum_ipv4(ip);
	if (UNLIKELY(header > sizeof(*ip))) {
		sum += csum_ipv4_options(ip, header / 4, cur->end);
		if (!cur_skip(cur, header - sizeof(*ip)))
			return broken(pkt, BERM_DROP_TRUNCATED);
	}
	note(pkt, BERM_DROP_BAD_CHECKSUM, csum_bad(sum));
	note(pkt, BERM_DROP_BAD_SOURCE, addr_v4_bad_source(ip->saddr));
	if (UNLIKELY(frag & (IPV4_MF | IPV4_OFFSET)))
		return parse_fragment4(pkt, (frag & IPV4_OFFSET) * 8, frag & IPV4_MF,
				       total - header);
	return parse_l4(pkt, cur, total - header);
}

#endif
