/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* icmp: what this host says in a VIP's name. Echo is answered at the first hop, after policy, so that
 * it needs no address on lo and no tunnel; and who sends more than a tunnel carries, and
 * forbids fragments, is told how much it does carry.
 */
#ifndef BERM_ICMP_H
#define BERM_ICMP_H

#include <linux/in.h>

#include "answer.h"
#include "clock.h"
#include "csum.h"
#include "hash.h"
#include "maps.h"
#include "packet.h"
#include "parse_l4.h"
#include "rate.h"

#define ICMP_ECHOREPLY 0
#define ICMP_ECHO 8
#define ICMP_FRAG_NEEDED 4 /* code of destination unreachable */
#define ICMPV6_PKT_TOOBIG 2
#define ICMPV6_ECHO_REQUEST 128
#define ICMPV6_ECHO_REPLY 129

/* How much is quoted of a packet that is too big: its headers, with those of TCP. */
#define QUOTE4 (sizeof(struct iphdr) + sizeof(struct tcp_header))
#define QUOTE6 (sizeof(struct ipv6hdr) + sizeof(struct tcp_header))
#define MTU6_LEAST 1280 /* smaller packets no IPv6 link may ask for (RFC 8200, section 5) */

/* Of all that one source is told, 10 a second; more may be lost on the way than repeated. */
#define TOO_BIG_COST (1562500ULL << 16)
#define TOO_BIG_BURST 15625000ULL
#define RATE_TOO_BIG 0x27d4eb

/* Who sent a packet to whom, as it lies in struct packet. */
struct ends {
	struct berm_addr src;
	struct berm_addr dst;
};
_Static_assert(__builtin_offsetof(struct packet, dst) - __builtin_offsetof(struct packet, src) ==
		       __builtin_offsetof(struct ends, dst),
	       "struct packet has a struct ends in it");

/* Of packets that came through no tunnel. */
static __always_inline void answer_of(struct answer *to, const struct ends *ends, __u64 facts)
{
	__u32 tags = !!(facts & PACKET_TAGGED) + !!(facts & PACKET_TAGGED_TWICE);

	to->client = ends->src;
	to->vip = ends->dst;
	to->l3 = sizeof(struct ethhdr) + tags * sizeof(struct vlan_hdr);
	to->outer = 0;
	to->six = !!(facts & PACKET_V6);
	to->pad = 0;
}

/* Turns an echo request around, in place: but for the type, sums do not change, since both ends only
 * change places. Returns the action, or -1 where it is something else.
 */
__noinline int echo_answer(struct xdp_md *ctx, const struct ends *ends, __u64 facts)
{
	struct cursor cur = cur_from(ctx);
	struct icmp_header *icmp;
	struct answer to;
	__u32 check;

	if (!ends || !frame_is_ours(ctx))
		return -1;
	answer_of(&to, ends, facts);
	if (!cur_skip(&cur, to.l3))
		return -1;
	if (to.six) {
		struct ipv6hdr *ip = TAKE(&cur, struct ipv6hdr);

		icmp = TAKE(&cur, struct icmp_header);
		if (!ip || !icmp || icmp->type != ICMPV6_ECHO_REQUEST || icmp->code)
			return -1;
		addr_put(&ip->saddr, &to.vip);
		addr_put(&ip->daddr, &to.client);
		ip->hop_limit = ANSWER_TTL;
		icmp->type = ICMPV6_ECHO_REPLY;
		check = icmp->check + (__u16)~bpf_htons(0x0100);
	} else {
		struct iphdr *ip = TAKE(&cur, struct iphdr);

		icmp = TAKE(&cur, struct icmp_header);
		if (!ip || !icmp || icmp->type != ICMP_ECHO || icmp->code)
			return -1;
		ip->saddr = to.vip.words[3];
		ip->daddr = to.client.words[3];
		ip->ttl = ANSWER_TTL;
		ip->check = 0;
		ip->check = ~csum_fold(csum_ipv4(ip));
		icmp->type = ICMP_ECHOREPLY;
		check = icmp->check + bpf_htons(0x0800);
	}
	icmp->check = (check & 0xffff) + (check >> 16);
	return swap_macs(ctx) ? XDP_TX : XDP_ABORTED;
}

static __always_inline int icmp_echo(struct packet *pkt)
{
	const __u64 others = PACKET_FRAGMENT | PACKET_OPTIONS | PACKET_OUTER | UNANSWERED;
	int act;

	if (LIKELY(!is(pkt, PACKET_OTHER)) || is(pkt, others))
		return STAGE_NEXT;
	if (pkt->proto != (is(pkt, PACKET_V6) ? IPPROTO_ICMPV6 : IPPROTO_ICMP))
		return STAGE_NEXT;
	act = echo_answer(pkt->ctx, (const struct ends *)&pkt->src, pkt->facts);
	if (act < 0)
		return STAGE_NEXT;
	if (act == XDP_ABORTED)
		return abort_packet(pkt, BERM_STAGE_ICMP);
	return leave(pkt, BERM_STAGE_ICMP, BERM_EXIT_ANSWER, act);
}

static __always_inline bool may_fragment(struct xdp_md *ctx, const struct answer *to)
{
	struct cursor cur = cur_from(ctx);
	struct iphdr *ip;

	if (to->six)
		return false;
	if (!cur_skip(&cur, to->l3) || !(ip = TAKE(&cur, struct iphdr)))
		return true;
	return !(ip->frag_off & bpf_htons(ANSWER_DF));
}

/* Writes the headers in front of the quote, which is in the packet already; six is constant. */
static __always_inline bool put_too_big(struct xdp_md *ctx, const struct answer *to, bool six,
					__u32 mtu)
{
	const __u32 size = sizeof(struct icmp_header) + (six ? QUOTE6 : QUOTE4);
	struct cursor cur = cur_from(ctx);
	__u64 sum = 0;
	__u32 *word;

	if (!cur_skip(&cur, to->l3) ||
	    !put_answer_ip(&cur, to, size, six ? IPPROTO_ICMPV6 : IPPROTO_ICMP) ||
	    !(word = cur_take(&cur, size)))
		return false;
	word[0] = six ? bpf_htonl(ICMPV6_PKT_TOOBIG << 24) :
			bpf_htonl(ICMP_DEST_UNREACH << 24 | ICMP_FRAG_NEEDED << 16);
	word[1] = bpf_htonl(mtu);
#pragma unroll
	for (__u32 i = 0; i < (sizeof(struct icmp_header) + QUOTE6) / 4; i++)
		if (i < size / 4)
			sum += word[i];
	if (six)
		sum += answer_addresses(to) + bpf_htonl(IPPROTO_ICMPV6) + bpf_htonl(size);
	((struct icmp_header *)word)->check = ~csum_fold(sum);
	return true;
}

/* Makes of a packet that is too big the error about it, which asks for packets of mtu bytes. Returns
 * the action, or -1 where nobody is told.
 */
__noinline int too_big_answer(struct xdp_md *ctx, const struct ends *ends, __u64 facts, __u32 mtu)
{
	__u32 headers, quote, l3;
	__u8 l2[L2_MAX + 2] = {};
	struct answer to;
	int cut;

	if (!ends || !frame_is_ours(ctx))
		return -1;
	answer_of(&to, ends, facts);
	if (may_fragment(ctx, &to))
		return -1;
	headers = (to.six ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)) +
		  sizeof(struct icmp_header);
	quote = to.six ? QUOTE6 : QUOTE4;
	if (to.six && mtu < MTU6_LEAST)
		mtu = MTU6_LEAST;
	l3 = to.l3;
	if (l3 < sizeof(struct ethhdr) || l3 > L2_MAX || bpf_xdp_load_bytes(ctx, 0, l2, l3))
		return -1;
	cut = (int)(l3 + quote) - (int)bpf_xdp_get_buff_len(ctx);
	if (cut > 0 || bpf_xdp_adjust_tail(ctx, cut))
		return -1;
	swap_words((__u16 *)l2);
	if (bpf_xdp_adjust_head(ctx, -(int)headers) || bpf_xdp_store_bytes(ctx, 0, l2, l3) ||
	    !(to.six ? put_too_big(ctx, &to, true, mtu) : put_too_big(ctx, &to, false, mtu)))
		return XDP_ABORTED;
	return XDP_TX;
}

/* The packet does not fit the tunnel, which carries mtu bytes of it. */
static __always_inline int icmp_too_big(struct packet *pkt, const struct now *now, __u32 mtu)
{
	const __u64 others =
		PACKET_OTHER | PACKET_FRAGMENT | PACKET_OPTIONS | PACKET_OUTER | UNANSWERED;
	struct berm_limit limit = { .cost = TOO_BIG_COST, .burst_units = TOO_BIG_BURST };
	__u32 key = pkt->source & pkt->cfg->rate_mask;
	struct berm_rate_set *set;
	int act;

	if (refuse(pkt, BERM_DROP_TOO_BIG, false) == STAGE_NEXT)
		return STAGE_NEXT;
	set = bpf_map_lookup_elem(&berm_rate_cells, &key);
	if (is(pkt, others) || !set ||
	    rate_take_anywhere(set, &limit, rate_tag(pkt->source, 0, RATE_TOO_BIG),
			       clock_coarse(now, pkt->cfg) & CELL_TIME, 1) == RATE_REFUSED)
		return XDP_DROP;
	act = too_big_answer(pkt->ctx, (const struct ends *)&pkt->src, pkt->facts, mtu);
	if (act < 0)
		return XDP_DROP;
	if (act == XDP_ABORTED)
		return abort_packet(pkt, BERM_STAGE_DELIVER);
	return leave(pkt, BERM_STAGE_DELIVER, BERM_EXIT_ANSWER, act);
}

#endif
