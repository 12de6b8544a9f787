/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* cc: congestion control. A connection that has just been established begins with the profile of the
 * longest prefix that has a rule, else of its network, else of its country, else the host's. A rule may hold out a share of the
 * flows for other profiles. What the kernel refuses is counted, and the connection goes on with what it
 * had.
 */
#ifndef BERM_CC_H
#define BERM_CC_H

#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/tcp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "hash.h"
#include "maps.h"
#include "path.h"
#include "prefix.h"

/* What a network, else a country, has; of an address whose prefix has no rule. */
static __always_inline __u32 cc_profile_of_record(const struct berm_addr *far)
{
	struct berm_prefix_record *record;
	struct berm_config *cfg;
	__u32 key = 0, active, country, *profile;
	__u64 *asn;
	bool mapped = !far->halves[0] && far->words[2] == bpf_htonl(0xffff);

	cfg = bpf_map_lookup_elem(&berm_config, &key);
	if (!cfg)
		return 0;
	active = cfg->prefix_active & 1;
	key = mapped ? prefix4_lookup(bpf_ntohl(far->words[3]), active) :
		       prefix6_lookup(bpf_be64_to_cpu(far->halves[0]), active);
	key = active * BERM_RECORDS + (key & (BERM_RECORDS - 1));
	record = bpf_map_lookup_elem(&berm_prefix_records, &key);
	if (record && record->network) {
		key = active * BERM_NETWORKS + (record->network & (BERM_NETWORKS - 1));
		asn = bpf_map_lookup_elem(&berm_networks, &key);
		key = asn ? *asn : 0;
		profile = bpf_map_lookup_elem(&berm_cc_networks, &key);
		if (profile)
			return *profile;
	}
	country = record ? record->country & (BERM_COUNTRIES - 1) : 0;
	profile = bpf_map_lookup_elem(&berm_cc_countries, &country);
	return profile ? *profile : 0;
}

/* One of the others, for a share of the flows. Who has not the seed cannot tell which. */
static __always_inline __u32 cc_drawn(struct bpf_sock_ops *ctx, const struct berm_addr *far,
				      const struct berm_cc_rule *rule)
{
	struct berm_config *cfg;
	__u64 flow, hash;
	__u32 zero = 0;

	if (!rule->holdout)
		return rule->profile;
	cfg = bpf_map_lookup_elem(&berm_config, &zero);
	if (!cfg)
		return rule->profile;
	flow = far->halves[0] * HASH_B ^ far->halves[1];
	flow ^= ((__u64)ctx->remote_port << 32 | ctx->local_port) * HASH_C;
	hash = source_hash(cfg->seed, flow) >> 32;
	if ((hash & 0xff) >= rule->holdout)
		return rule->profile;
	return rule->others[hash >> 8 & 1];
}

static __always_inline __u32 cc_profile_of(struct bpf_sock_ops *ctx)
{
	struct berm_cc_key key = { .bits = 128 };
	struct berm_cc_rule *rule;
	struct berm_addr far;

	path_far(ctx, &far);
	__builtin_memcpy(key.prefix, far.octets, sizeof(key.prefix));
	rule = bpf_map_lookup_elem(&berm_cc_rules, &key);
	return rule ? cc_drawn(ctx, &far, rule) : cc_profile_of_record(&far);
}

/* Returns the profile that the connection has: 0 where it keeps the host's parameters. */
static __always_inline __u32 cc_apply(struct bpf_sock_ops *ctx)
{
	__u32 id = cc_profile_of(ctx);
	struct berm_cc_profile *profile = bpf_map_lookup_elem(&berm_cc_profiles, &id);
	struct berm_cc_stats *stats = bpf_map_lookup_elem(&berm_cc_stats, &id);
	char controller[BERM_NAME];
	long refused = 0;
	int value;

	if (!profile || !stats)
		return 0;
	stats->connections++;
	if (!profile->used)
		return 0;
	if (profile->controller[0]) {
		__builtin_memcpy(controller, profile->controller, sizeof(controller));
		refused |= bpf_setsockopt(ctx, IPPROTO_TCP, TCP_CONGESTION, controller,
					  sizeof(controller));
	}
	if (profile->initial_window) {
		value = profile->initial_window;
		refused |= bpf_setsockopt(ctx, IPPROTO_TCP, TCP_BPF_IW, &value, sizeof(value));
	}
	if (profile->rto_min_us) {
		value = profile->rto_min_us;
		refused |= bpf_setsockopt(ctx, IPPROTO_TCP, TCP_BPF_RTO_MIN, &value, sizeof(value));
	}
	if (profile->ack_delay_us) {
		value = profile->ack_delay_us;
		refused |=
			bpf_setsockopt(ctx, IPPROTO_TCP, TCP_BPF_DELACK_MAX, &value, sizeof(value));
	}
	if (!refused)
		return id;
	stats->refused++;
	return 0;
}

#endif
