//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"

SEC("sockops")
int berm_sock_ops(struct bpf_sock_ops *ctx __attribute__((unused)))
{
	return 1;
}

char _license[] SEC("license") = "Dual BSD/GPL";
