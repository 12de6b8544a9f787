//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The way of a packet through the kernel half. Each stage is a header, named as here. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#include "decap.h"
#include "deliver.h"
#include "gate.h"
#include "geo.h"
#include "icmp.h"
#include "maps.h"
#include "packet.h"
#include "parse.h"
#include "prefix.h"
#include "rate.h"
#include "site.h"
#include "stats.h"
#include "steer.h"
#include "verdict.h"
#include "vip.h"

/* Never called, so never loaded: these keep the types that no map mentions in BTF, whence Go's come. */
int berm_types_rules(enum berm_config_flags *config, enum berm_vip_flags *vip,
		     enum berm_rate_flags *rate, enum berm_backend_flags *backend,
		     enum berm_action *action)
{
	return *config + *vip + *rate + *backend + *action;
}

int berm_types_cid(enum berm_cid_flags *cid)
{
	return *cid;
}

int berm_types_fates(enum berm_drop *drop, enum berm_stage *stage, enum berm_exit *exit,
		     struct berm_event *event, enum berm_owner *owner)
{
	return *drop + *stage + *exit + event->exit + *owner;
}

int berm_types_captured(struct berm_captured *captured)
{
	return captured->exit;
}

int berm_types_gate(enum berm_gate_mode *mode, enum berm_reply_flags *reply)
{
	return *mode + *reply;
}

/* What a peer of ours has let through, policy does not judge again; what a verdict allows, no other
 * policy does.
 */
static __always_inline int run_policy(struct packet *pkt, const struct now *now)
{
	if (is(pkt, PACKET_TRUSTED))
		return STAGE_NEXT;
	STAGE(verdict_check(pkt, now));
	if (UNLIKELY(is(pkt, PACKET_ALLOWED)))
		return STAGE_NEXT;
	STAGE(prefix_check(pkt));
	STAGE(geo_check(pkt));
	STAGE(gate_amplified(pkt));
	STAGE(rate_check(pkt, now));
	return icmp_echo(pkt);
}

static __always_inline int run_stages(struct packet *pkt, const struct now *now)
{
	STAGE(parse(pkt));
	STAGE(decap(pkt));
	STAGE(vip_find(pkt));
	STAGE(run_policy(pkt, now));
	STAGE(steer(pkt, now));
	STAGE(site(pkt, now));
	STAGE(gate(pkt, now));
	return deliver(pkt, now);
}

static __always_inline int run(struct xdp_md *ctx, const struct now *now)
{
	struct packet pkt;
	__u32 key = 0;

	asm volatile("" : : "r"(&pkt));
	pkt.ctx = ctx;
	pkt.cfg = bpf_map_lookup_elem(&berm_config, &key);
	if (!pkt.cfg || !pkt.cfg->vips)
		return XDP_PASS;
	pkt.zero = unknown_zero(pkt.cfg);
	pkt.facts = pkt.ports = pkt.record_word = pkt.zero;
	OPAQUE(pkt.facts);
	pkt.tags = pkt.tpids = 0;
	pkt.vip = NULL;
	pkt.backend = NULL;
	pkt.vip_id = pkt.record_id = 0;
	pkt.drop = 0;
	pkt.flow = 0;
	return finish(&pkt, now, run_stages(&pkt, now));
}

SEC("xdp.frags")
int xdp_berm(struct xdp_md *ctx)
{
	struct now now = { .jiffies = bpf_jiffies64() };

	return run(ctx, &now);
}

char _license[] SEC("license") = "Dual BSD/GPL";
