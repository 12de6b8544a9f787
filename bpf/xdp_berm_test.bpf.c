//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* For tests: the same stages at a time that the test chooses, and the hashes, to compare with Go's. */
#include "xdp_ingress.bpf.c"

volatile __u64 test_now_ns;
volatile __u64 test_jiffies;

SEC("xdp.frags")
int xdp_berm_at(struct xdp_md *ctx)
{
	struct now now = { .jiffies = test_jiffies, .ns = test_now_ns };

	return run(ctx, &now);
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
	io->flow = flow_hash(cfg->secret, io->six, &src, &dst, ports);
	io->row = flow_row(io->flow);
	io->tag = flow_tag(io->flow, cfg->tag_secrets[0]);
	return XDP_PASS;
}
