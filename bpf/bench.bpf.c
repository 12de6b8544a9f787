//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The benchmark's harness. BPF_PROG_TEST_RUN does not restore the packet between repetitions, so
 * this does, picks the next flow, and tail-calls the program to measure. What the harness
 * itself costs is measured with bench_pass as the target.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "addr.h"
#include "csum.h"
#include "hash.h"
#include "packet.h"
#include "prefix.h"

#define BENCH_FRAME 96	     /* bytes of a frame that a program may have written to */
#define GOLDEN32 2654435761u /* odd, so a bijection; its high bits are well mixed */
/* Words of 8 bytes behind the Ethernet header that are restored. */
#define WORDS ((BENCH_FRAME - sizeof(struct ethhdr)) / 8)

struct bench_case {
	__u32 len;	    /* of the frame */
	__u32 family;	    /* 4 or 6 */
	__u32 flow_mask;    /* flows - 1 */
	__u32 source_mask;  /* different sources - 1: as many as flows or fewer */
	__u32 first;	    /* number of the first source */
	__u32 ifindex;	    /* bench_send: out through */
	__u64 sum;	    /* of the IPv4 header without source and checksum */
	__u64 noise[WORDS]; /* bits that vary with the flow, beside its addresses and ports */
	__u64 tail;	    /* 1: the program changes the frame's end, and not its head */
	__u64 portless;	    /* 1: no port stands where TCP and UDP have theirs */
	__u8 frame[BENCH_FRAME + 2];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bench_case);
} bench_cases SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} bench_packets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} bench_target SEC(".maps");

/* Every flow once in as many packets as there are flows, in an order without stride, which the
 * hardware cannot prefetch: each step is a bijection of the bits in the mask.
 */
static __always_inline __u32 next_flow(__u64 *packets, __u32 mask)
{
	__u32 x = (*packets)++ & mask;

	x = x * GOLDEN32 & mask;
	x ^= x >> 7;
	x = x * GOLDEN32 & mask;
	return x ^ x >> 9;
}

/* A unicast source: first octet 1 to 126 or 128 to 223. */
static __always_inline __be32 source4(__u32 n)
{
	__u32 x = n * GOLDEN32;
	__u32 first = 1 + ((x >> 24) * 222 >> 8);

	if (first >= 127)
		first++;
	return bpf_htonl(first << 24 | (x & 0xffffff));
}

/* A source in 2a00::/12, of the 16 shortest roots in use there and 65536 /32s of each. */
static __always_inline __be64 source6(__u32 n)
{
	__u32 x = n * GOLDEN32;

	return bpf_cpu_to_be64(0x2a00ULL << 48 | (__u64)(x & 15) << 48 | (__u64)(x >> 4) << 20);
}

/* Words that always vary. */
#define WORD_SOURCE 1 /* IPv4: TTL, protocol, checksum, source; IPv6: the source's high half */
#define WORD_PORTS4 2 /* destination, ports */
#define WORD_PORTS6 5

/* Restores the frame, with another flow. Each byte is written once and in words that hold the
 * fields that programs read: reading what several stores wrote stalls, which no packet
 * that comes from a network card does.
 */
static __always_inline bool put_frame(const struct bench_case *now, void *frame, void *end,
				      __u32 flow)
{
	__u32 source = now->first + (flow & now->source_mask);
	__u64 port = bpf_htons((flow * GOLDEN32 >> 16 & 0xfbff) | 0x0400) & (now->portless - 1);
	bool six = now->family == 6;
	__be32 v4 = source4(source);
	__u64 varied = six ? source6(source) :
			     (__u64)v4 << 32 | (__u64)(__u16)~csum_fold(now->sum + v4) << 16;
	const void *from = now->frame;
	__u64 noise = mix(flow * HASH_A);

	if (frame + BENCH_FRAME > end)
		return false;
	*(__u64 *)frame = *(__u64 *)from;
	*(__u32 *)(frame + 8) = *(__u32 *)(from + 8);
	*(__u16 *)(frame + 12) = *(__u16 *)(from + 12);
#pragma unroll
	for (__u32 i = 0; i < WORDS; i++) {
		__u64 word = *(__u64 *)(from + sizeof(struct ethhdr) + 8 * i);

		word |= noise & now->noise[i];
		if (i == WORD_SOURCE)
			word |= varied;
		if (i == WORD_PORTS4)
			word |= six ? 0 : port << 32;
		if (i == WORD_PORTS6)
			word |= six ? port : 0;
		*(__u64 *)(frame + sizeof(struct ethhdr) + 8 * i) = word;
	}
	return true;
}

SEC("xdp.frags")
int bench_harness(struct xdp_md *ctx)
{
	struct bench_case *now;
	struct cursor cur;
	__u64 *packets;
	__u32 key = 0;
	int grown;

	now = bpf_map_lookup_elem(&bench_cases, &key);
	packets = bpf_map_lookup_elem(&bench_packets, &key);
	if (!now || !packets)
		return XDP_ABORTED;
	cur = cur_from(ctx);
	grown = (int)distance(cur.pos, cur.end) - (int)now->len;
	if (grown &&
	    (now->tail ? bpf_xdp_adjust_tail(ctx, -grown) : bpf_xdp_adjust_head(ctx, grown)))
		return XDP_ABORTED;
	cur = cur_from(ctx);
	if (!put_frame(now, cur.pos, cur.end, next_flow(packets, now->flow_mask)))
		return XDP_ABORTED;
	bpf_tail_call(ctx, &bench_target, 0);
	return XDP_ABORTED;
}

/* Nothing: what the harness costs. */
SEC("xdp.frags")
int bench_pass(struct xdp_md *ctx __attribute__((unused)))
{
	return XDP_PASS;
}

/* The floor of anything that drops. */
SEC("xdp.frags")
int bench_drop(struct xdp_md *ctx __attribute__((unused)))
{
	return XDP_DROP;
}

/* Onto a wire, for live frames. */
SEC("xdp.frags")
int bench_send(struct xdp_md *ctx __attribute__((unused)))
{
	struct bench_case *now;
	__u32 key = 0;

	now = bpf_map_lookup_elem(&bench_cases, &key);
	return now ? bpf_redirect(now->ifindex, 0) : XDP_ABORTED;
}

/* The floor of anything that encapsulates: move the head, and write the Ethernet and the outer
 * header, all of it constant but the length and the checksum.
 */
SEC("xdp.frags")
int bench_floor4(struct xdp_md *ctx)
{
	struct cursor cur = cur_from(ctx);
	__u32 len = distance(cur.pos, cur.end) - sizeof(struct ethhdr);
	struct iphdr *ip;
	__u64 *eth;

	if (bpf_xdp_adjust_head(ctx, -(int)sizeof(*ip)))
		return XDP_ABORTED;
	cur = cur_from(ctx);
	eth = (__u64 *)TAKE(&cur, struct ethhdr);
	if (!eth || !(ip = TAKE(&cur, struct iphdr)))
		return XDP_ABORTED;
	eth[0] = 0x0002010000000002;
	*(__u32 *)(eth + 1) = 0x01000000;
	((struct ethhdr *)eth)->h_proto = bpf_htons(ETH_P_IP);
	*(__u32 *)ip = bpf_htonl(0x45000000 | (len + sizeof(*ip)));
	((__u32 *)ip)[1] = bpf_htonl(0x00014000);
	((__u32 *)ip)[2] = bpf_htonl(0x40040000);
	ip->saddr = bpf_htonl(0x0a000001);
	ip->daddr = bpf_htonl(0x0a000002);
	ip->check = ~csum_fold(csum_ipv4(ip));
	return XDP_TX;
}

SEC("xdp.frags")
int bench_floor6(struct xdp_md *ctx)
{
	struct cursor cur = cur_from(ctx);
	__u32 len = distance(cur.pos, cur.end) - sizeof(struct ethhdr);
	struct ipv6hdr *ip;
	__u64 *eth;

	if (bpf_xdp_adjust_head(ctx, -(int)sizeof(*ip)))
		return XDP_ABORTED;
	cur = cur_from(ctx);
	eth = (__u64 *)TAKE(&cur, struct ethhdr);
	if (!eth || !(ip = TAKE(&cur, struct ipv6hdr)))
		return XDP_ABORTED;
	eth[0] = 0x0002010000000002;
	*(__u32 *)(eth + 1) = 0x01000000;
	((struct ethhdr *)eth)->h_proto = bpf_htons(ETH_P_IPV6);
	*(__u32 *)ip = bpf_htonl(0x60000001);
	((__u32 *)ip)[1] = bpf_htonl(len << 16 | 0x2940);
	__builtin_memset(&ip->saddr, 0x20, 2 * sizeof(ip->saddr));
	return XDP_TX;
}

/* The prefix stage's lookup and nothing else; the record decides, so that it is not left out. */
static __always_inline int prefix_only(__u32 id, __u32 active)
{
	__u32 key = active * BERM_RECORDS + (id & (BERM_RECORDS - 1));
	struct berm_prefix_record *record = bpf_map_lookup_elem(&berm_prefix_records, &key);

	return record && record->acl == BERM_ACTION_DROP ? XDP_DROP : XDP_PASS;
}

SEC("xdp.frags")
int bench_prefix4(struct xdp_md *ctx)
{
	struct cursor cur = cur_from(ctx);
	struct berm_config *cfg;
	struct iphdr *ip;
	__u32 key = 0;

	cfg = bpf_map_lookup_elem(&berm_config, &key);
	if (!cfg || !TAKE(&cur, struct ethhdr) || !(ip = TAKE(&cur, struct iphdr)))
		return XDP_ABORTED;
	return prefix_only(prefix4_lookup(bpf_ntohl(ip->saddr), cfg->prefix_active & 1),
			   cfg->prefix_active & 1);
}

SEC("xdp.frags")
int bench_prefix6(struct xdp_md *ctx)
{
	struct cursor cur = cur_from(ctx);
	struct berm_config *cfg;
	struct ipv6hdr *ip;
	__u32 key = 0;

	cfg = bpf_map_lookup_elem(&berm_config, &key);
	if (!cfg || !TAKE(&cur, struct ethhdr) || !(ip = TAKE(&cur, struct ipv6hdr)))
		return XDP_ABORTED;
	return prefix_only(
		prefix6_lookup(bpf_be64_to_cpu(*(__be64 *)&ip->saddr), cfg->prefix_active & 1),
		cfg->prefix_active & 1);
}

char _license[] SEC("license") = "Dual BSD/GPL";
