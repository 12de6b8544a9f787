/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* parse: what the packet is and whom it is for. Nothing is refused here: what is found to be
 * wrong is noted in pkt->facts, since only packets for a VIP may be dropped. A packet whose
 * destination cannot be known passes.
 */
#ifndef BERM_PARSE_H
#define BERM_PARSE_H

#include <linux/if_ether.h>

#include "packet.h"
#include "parse_ipv4.h"
#include "parse_ipv6.h"

static __always_inline bool is_vlan(__be16 proto)
{
	return proto == bpf_htons(ETH_P_8021Q) || proto == bpf_htons(ETH_P_8021AD);
}

/* Takes the Ethernet header and its tags, and returns the EtherType behind them, 0 if cut short. */
static __always_inline __be16 parse_ethernet(struct packet *pkt, struct cursor *cur)
{
	struct ethhdr *eth = TAKE(cur, struct ethhdr);
	__be16 proto;

	if (!eth)
		return 0;
	proto = *(__be16 *)((void *)eth + 2 * ETH_ALEN); /* a packed field is read in bytes */
#pragma unroll
	for (int i = 0; i < VLANS && UNLIKELY(is_vlan(proto)); i++) {
		struct vlan_hdr *tag = TAKE(cur, struct vlan_hdr);

		if (!tag)
			return 0;
		learn(pkt, PACKET_TAGGED << i);
		pkt->tpids |= (__u32)proto << VLAN_SHIFT * i;
		pkt->tags |= (__u32)tag->tci << VLAN_SHIFT * i;
		proto = tag->proto;
	}
	return proto;
}

/* The packet starts at this offset, where the cursor is, and has room for so many bytes. */
static __always_inline int parse_ip(struct packet *pkt, struct cursor *cur, __be16 proto, __u32 at,
				    __u32 room)
{
	if (LIKELY(proto == bpf_htons(ETH_P_IP)))
		return parse_ipv4(pkt, cur, room);
	if (proto == bpf_htons(ETH_P_IPV6))
		return parse_ipv6(pkt, cur, at, room);
	return foreign(pkt, BERM_STAGE_PARSE);
}

static __always_inline int parse(struct packet *pkt)
{
	struct cursor cur = cur_from(pkt->ctx);
	void *start = cur.pos;
	__be16 proto;

	proto = parse_ethernet(pkt, &cur);
	pkt->len = distance(cur.pos, cur.end);
	return parse_ip(pkt, &cur, proto, distance(start, cur.pos), pkt->len);
}

#endif
