//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Watches the TCP connections that clients make to this host: says what they begin with, and writes
 * what they learn about the network to berm_paths. Only connections of the cgroup it is attached to are
 * seen.
 */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#include "cc.h"
#include "path.h"

static __always_inline void established(struct bpf_sock_ops *ctx)
{
	struct berm_path *path;

	cc_apply(ctx);
	path = path_get(ctx);
	if (!path)
		return;
	__sync_fetch_and_add(&path->connections, 1);
	path_report(ctx, path);
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG |
					       BPF_SOCK_OPS_RTT_CB_FLAG);
}

static __always_inline void progressed(struct bpf_sock_ops *ctx)
{
	struct berm_path *path = path_get(ctx);

	if (path)
		path_report(ctx, path);
}

SEC("sockops")
int berm_sock_ops(struct bpf_sock_ops *ctx)
{
	switch (ctx->op) {
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		established(ctx);
		break;
	case BPF_SOCK_OPS_RTT_CB:
		progressed(ctx);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		/* The last look. Later the numbers are gone. */
		if (ctx->args[1] == BPF_TCP_CLOSE)
			progressed(ctx);
		break;
	}
	return 1;
}

char _license[] SEC("license") = "Dual BSD/GPL";
