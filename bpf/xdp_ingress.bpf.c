//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"

/* Never called, so never loaded: these keep the types that no map mentions in BTF, whence Go's come. */
int berm_types_rules(enum berm_config_flags *config, enum berm_vip_flags *vip, enum berm_rate_flags *rate,
		     enum berm_backend_flags *backend, enum berm_action *action)
{
	return *config + *vip + *rate + *backend + *action;
}

int berm_types_fates(enum berm_drop *drop, enum berm_stage *stage, enum berm_exit *exit,
		     struct berm_event *event, enum berm_owner *owner)
{
	return *drop + *stage + *exit + event->exit + *owner;
}

SEC("xdp")
int xdp_berm(struct xdp_md *ctx __attribute__((unused)))
{
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
