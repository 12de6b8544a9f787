//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Gives each datagram of QUIC to the process of bermd that knows its connection, among those that have
 * sockets at the same address. It fails towards the newest, which answers what it does not know with
 * a stateless reset.
 */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#include "generation.h"

SEC("sk_reuseport")
int berm_reuseport(struct sk_reuseport_md *ctx)
{
	struct berm_generations *all;
	__u32 zero = 0, slot, *port, at;

	all = bpf_map_lookup_elem(&berm_generations, &zero);
	/* One alone has the only socket. */
	if (!all || LIKELY(!(all->live & (all->live - 1))))
		return SK_PASS;
	port = generation_port(ctx);
	if (!port)
		return SK_PASS;
	slot = generation_slot(ctx, all);
	at = *port * BERM_GENERATIONS + slot;
	if (bpf_sk_select_reuseport(ctx, &berm_generation_sockets, &at, 0) && slot != all->newest) {
		at = *port * BERM_GENERATIONS + (all->newest & (BERM_GENERATIONS - 1));
		bpf_sk_select_reuseport(ctx, &berm_generation_sockets, &at, 0);
	}
	return SK_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
