//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Gives each datagram of QUIC to the process of bermd that knows its connection, among those that have
 * sockets at the same address, and to the worker there. It fails towards the newest, which answers what it
 * does not know with a stateless reset.
 */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#include "generation.h"

SEC("sk_reuseport")
int berm_reuseport(struct sk_reuseport_md *ctx)
{
	struct berm_generations *all;
	__u32 zero = 0, slot, *port;
	__u64 hash;

	all = bpf_map_lookup_elem(&berm_generations, &zero);
	if (!all || LIKELY(all->sockets <= 1))
		return SK_PASS;
	port = generation_port(ctx);
	if (!port)
		return SK_PASS;
	slot = generation_slot(ctx, all, &hash);
	if (generation_give(ctx, all, *port, slot, hash) && slot != all->newest)
		generation_give(ctx, all, *port, all->newest, hash);
	return SK_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
