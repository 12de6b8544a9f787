//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* For tests: the same stages at a time that the test chooses, and the hashes, to compare with Go's. */
#include "xdp_ingress.bpf.c"

#include "csum.h"

volatile __u64 test_now_ns;
volatile __u64 test_jiffies;

SEC("xdp.frags")
int xdp_berm_at(struct xdp_md *ctx)
{
	struct now now = { .jiffies = test_jiffies, .ns = test_now_ns };

	return run(ctx, &now);
}

/* Many packets at once, from as many CPUs as like: each that comes is later by the same time,
 * whichever CPU has it, and of the next source. So what may pass is known exactly, while the
 * CPUs race as they do.
 */
#define TEST_SOURCES 256
#define TEST_TICK_NS 4000000 /* 62500 units of 64 ns */

volatile __u64 test_step_ns;
volatile __u64 test_sources; /* - 1 */
volatile bool test_networks; /* sources are of as many aggregates */
__u64 test_given;
volatile __u32 test_last_cpu;
__u64 test_turns; /* packets before which another CPU had one */
__u64 test_passed[TEST_SOURCES];

/* Writes the number of a source into the last byte of the IPv4 address, or of the IPv6 /64; or into that
 * of the /24 or /48.
 */
static __always_inline bool put_source(struct xdp_md *ctx, __u8 source)
{
	struct cursor cur = cur_from(ctx);
	struct ethhdr *eth = TAKE(&cur, struct ethhdr);
	struct ipv6hdr *six;
	struct iphdr *four;
	__u16 *half, old;

	if (!eth)
		return false;
	if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		if (!(six = TAKE(&cur, struct ipv6hdr)))
			return false;
		six->saddr.s6_addr[test_networks ? 5 : 7] = source;
		return true;
	}
	if (!(four = TAKE(&cur, struct iphdr)))
		return false;
	half = (__u16 *)&four->saddr + 1;
	old = *half;
	*half = test_networks ? (old & 0xff00) | source : (old & 0xff) | source << 8;
	four->check = ~csum_fold((__u16)~four->check + (__u16)~old + *half); /* RFC 1624 */
	return true;
}

SEC("xdp.frags")
int xdp_berm_many(struct xdp_md *ctx)
{
	__u64 n = __sync_fetch_and_add(&test_given, 1), past = n * test_step_ns;
	struct now now = { .jiffies = test_jiffies + past / TEST_TICK_NS,
			   .ns = test_now_ns + past };
	__u32 cpu = bpf_get_smp_processor_id();
	__u8 source = n & test_sources;
	int act;

	if (test_last_cpu != cpu)
		__sync_fetch_and_add(&test_turns, 1);
	test_last_cpu = cpu;
	if (!put_source(ctx, source))
		return XDP_ABORTED;
	act = run(ctx, &now);
	if (act == XDP_PASS)
		__sync_fetch_and_add(&test_passed[source], 1);
	return act;
}

/* Reads a flow from the start of a frame of its own, and writes its hashes behind it. */
struct test_hashes {
	struct berm_addr src;
	struct berm_addr dst;
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 six;
	__u16 pad;
	__u64 vip;
	__u64 source;
	__u64 flow;
	__u32 row;
	__u32 tag; /* with the first secret */
	__u32 chance;
	__u32 hop; /* the same from site to site, the second time */
	__u64 aggregate;
	__u64 share;
	__u64 network;
	__u64 network_share;
};

SEC("xdp")
int test_hash(struct xdp_md *ctx)
{
	struct cursor cur = cur_from(ctx);
	struct test_hashes *io = TAKE(&cur, struct test_hashes);
	struct berm_addr src, dst;
	__u64 source;
	struct berm_config *cfg;
	__u64 ports;
	__u32 key = 0;

	cfg = bpf_map_lookup_elem(&berm_config, &key);
	if (!cfg || !io)
		return XDP_ABORTED;
	src = io->src;
	dst = io->dst;
	source = source_number(&src, io->six);
	ports = flow_ports(*(__be32 *)&io->sport, io->proto);
	io->vip = vip_hash(cfg->seed, &dst, flow_service(ports));
	io->source = source_hash(cfg->seed, source);
	io->aggregate = aggregate_hash(cfg->seed, source, io->six);
	io->share = share_hash(cfg->seed, source, io->six);
	io->network = network_hash(cfg->seed, io->src.words[3]);
	io->network_share = network_share_hash(cfg->seed, io->src.words[3], io->aggregate);
	io->flow = flow_hash(cfg->secret, io->six, &src, &dst, ports);
	io->row = flow_row(io->flow);
	io->tag = flow_tag(io->flow, cfg->tag_secrets[0], false, 0);
	io->chance = flow_tag(io->flow, cfg->tag_secrets[0], true, 0);
	io->hop = flow_tag(io->flow, cfg->tag_secrets[0], true, 2);
	return XDP_PASS;
}

/* The cookie that the listener would answer a SYN with. */
volatile __s64 test_cookie;

SEC("xdp")
int test_make_cookie(struct xdp_md *ctx)
{
	struct bpf_sock_tuple tuple = {};
	struct cursor cur = cur_from(ctx);
	struct ethhdr *eth = TAKE(&cur, struct ethhdr);
	__u64 facts = eth && eth->h_proto == bpf_htons(ETH_P_IPV6) ? PACKET_V6 : 0;
	struct headers h = headers_from(ctx, facts, IPPROTO_TCP);
	struct bpf_sock *sk;
	struct tcphdr *tcp;

	if (!h.ip || !(tcp = TAKE(&h.payload, struct tcphdr)))
		return XDP_ABORTED;
	if (facts) {
		__builtin_memcpy(tuple.ipv6.saddr, &((struct ipv6hdr *)h.ip)->saddr, 32);
		tuple.ipv6.sport = tcp->source;
		tuple.ipv6.dport = tcp->dest;
		sk = bpf_skc_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
	} else {
		__builtin_memcpy(&tuple.ipv4.saddr, &((struct iphdr *)h.ip)->saddr, 8);
		tuple.ipv4.sport = tcp->source;
		tuple.ipv4.dport = tcp->dest;
		sk = bpf_skc_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	}
	if (!sk)
		return XDP_ABORTED;
	test_cookie =
		facts ? bpf_tcp_gen_syncookie(sk, h.ip, sizeof(struct ipv6hdr), tcp, sizeof(*tcp)) :
			bpf_tcp_gen_syncookie(sk, h.ip, sizeof(struct iphdr), tcp, sizeof(*tcp));
	bpf_sk_release(sk);
	return XDP_PASS;
}
