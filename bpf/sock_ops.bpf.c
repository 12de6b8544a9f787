//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Watches the TCP connections that clients make to this host: says what they begin with, and writes
 * what they learn about the network to berm_paths, and what came of them to berm_cc_results. Only
 * connections of the cgroup it is attached to are seen.
 */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>
#include <stdbool.h>

#include "cc.h"
#include "path.h"
#include "result.h"

static __always_inline void established(struct bpf_sock_ops *ctx)
{
	__u32 profile = cc_apply(ctx);
	struct path_reported *reported;
	struct look look = {};

	reported = path_begin(ctx, &look);
	if (reported) {
		reported->result.profile = profile;
		reported->result.looked_ns = look.now;
	}
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG |
					       BPF_SOCK_OPS_RTT_CB_FLAG);
}

static __always_inline void progressed(struct bpf_sock_ops *ctx, bool last)
{
	struct path_reported *reported;
	struct look look = {};

	reported = path_look(ctx, &look);
	if (!reported)
		return;
	path_report(ctx, reported, &look, last);
	result_look(&reported->result, &look);
	result_report(ctx, &reported->result, look.tcp, last);
}

SEC("sockops")
int berm_sock_ops(struct bpf_sock_ops *ctx)
{
	bool last = ctx->op == BPF_SOCK_OPS_STATE_CB;

	if (ctx->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		established(ctx);
	/* The last look is at the end. Later the numbers are gone. */
	else if (ctx->op == BPF_SOCK_OPS_RTT_CB || (last && ctx->args[1] == BPF_TCP_CLOSE))
		progressed(ctx, last);
	return 1;
}

char _license[] SEC("license") = "Dual BSD/GPL";
