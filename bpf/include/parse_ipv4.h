/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* IPv4, with options and fragments. */
#ifndef BERM_PARSE_IPV4_H
#define BERM_PARSE_IPV4_H

#include <linux/ip.h>

#include "addr.h"
#include "csum.h"
#include "packet.h"
#include "parse_l4.h"

#define IPV4_PLAIN 0x45 /* the first byte of a header without options */
#define IPV4_MF 0x2000
#define IPV4_OFFSET 0x1fff

/* Fragments belong together by addresses and protocol: only the first has ports. */
static __always_inline int parse_fragment4(struct packet *pkt, __u32 header, __u32 offset,
					   bool more, __u32 left)
{
	learn(pkt, PACKET_FRAGMENT);
	pkt->ports = unknown(pkt, pkt->proto);
	if (!fragment_fits(pkt->proto, offset, more, left, 65535 - header))
		return broken(pkt, BERM_DROP_BAD_FRAGMENT);
	return STAGE_NEXT;
}

static __always_inline int parse_ipv4(struct packet *pkt, struct cursor *cur, __u32 room)
{
	struct iphdr *ip = TAKE(cur, struct iphdr);
	__u32 header, total;
	__u64 sum;

	if (!ip)
		return foreign(pkt, BERM_STAGE_PARSE);
	header = sizeof(*ip);
	total = bpf_ntohs(ip->tot_len);
	pkt->tos = ip->tos;
	pkt->src = addr_v4(ip->saddr);
	pkt->dst = addr_v4(ip->daddr);
	pkt->client = pkt->src;
	pkt->number = bpf_ntohl(ip->saddr);
	pkt->proto = ip->protocol;

	if (UNLIKELY(*(__u8 *)ip != IPV4_PLAIN)) {
		header = ip->ihl * 4;
		if (ip->version != 4 || header < sizeof(*ip))
			return broken(pkt, BERM_DROP_MALFORMED);
	}
	if (total < header)
		return broken(pkt, BERM_DROP_MALFORMED);
	if (UNLIKELY(total > packet_room(pkt, total, room)))
		return broken(pkt, BERM_DROP_TRUNCATED);
	pkt->len = unknown(pkt, total);

	sum = csum_ipv4(ip);
	/* Not "> 20": that 21 to 23 are impossible, Linux 6.1 finds out too late. */
	if (UNLIKELY(header >= sizeof(*ip) + 4)) {
		learn(pkt, PACKET_OPTIONS);
		sum += csum_ipv4_options(ip, header / 4, cur->end);
		if (!cur_skip(cur, header - sizeof(*ip)))
			return broken(pkt, BERM_DROP_TRUNCATED);
	}
	if (UNLIKELY(csum_bad(sum)))
		learn(pkt, BAD(BERM_DROP_BAD_CHECKSUM));
	if (UNLIKELY(addr_v4_odd_source(pkt->number)))
		note(pkt, BERM_DROP_BAD_SOURCE, addr_v4_bad_source(pkt->number));
	if (UNLIKELY(ip->frag_off & bpf_htons(IPV4_MF | IPV4_OFFSET)))
		return parse_fragment4(pkt, header, (bpf_ntohs(ip->frag_off) & IPV4_OFFSET) * 8,
				       ip->frag_off & bpf_htons(IPV4_MF), total - header);
	return parse_l4(pkt, cur, total - header);
}

#endif
