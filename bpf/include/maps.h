/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Every pinned map. The writer of each is named; nobody else writes. */
#ifndef BERM_MAPS_H
#define BERM_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "contract.h"

#define ARRAY(map, val, n, flags)                 \
	struct {                                  \
		__uint(type, BPF_MAP_TYPE_ARRAY); \
		__uint(max_entries, (n));         \
		__uint(map_flags, (flags));       \
		__type(key, __u32);               \
		__type(value, val);               \
	} map SEC(".maps")

#define PERCPU(map, val, n)                              \
	struct {                                         \
		__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY); \
		__uint(max_entries, (n));                \
		__type(key, __u32);                      \
		__type(value, val);                      \
	} map SEC(".maps")

#define LRU(map, k, val, n)                          \
	struct {                                     \
		__uint(type, BPF_MAP_TYPE_LRU_HASH); \
		__uint(max_entries, (n));            \
		__type(key, k);                      \
		__type(value, val);                  \
	} map SEC(".maps")

/* control */
ARRAY(berm_config, struct berm_config, 1, BPF_F_MMAPABLE);
ARRAY(berm_vip_seeds, __u64, 2 * BERM_VIP_BUCKETS, BPF_F_MMAPABLE);
ARRAY(berm_vip_slots, __u64, 2 * BERM_VIP_SLOTS, BPF_F_MMAPABLE);
ARRAY(berm_vips, struct berm_vip, BERM_VIPS, 0);
ARRAY(berm_geo_rules, struct berm_geo_rule, BERM_GEO_POLICIES * BERM_COUNTRIES, BPF_F_MMAPABLE);
ARRAY(berm_geo_policies, struct berm_geo_policy, BERM_GEO_POLICIES, 0);
ARRAY(berm_rate_classes, struct berm_rate_class, BERM_RATE_CLASSES, 0);

ARRAY(berm_gates, struct berm_gate, BERM_VIPS, 0);
ARRAY(berm_reply, struct berm_reply, 1, 0);

/* prefix compiler */
ARRAY(berm_prefix4, __u64, 2 * BERM_PREFIX4_CELLS, BPF_F_MMAPABLE);
ARRAY(berm_prefix4_leaves, __u64, 2 * BERM_PREFIX4_LEAVES, BPF_F_MMAPABLE);
ARRAY(berm_prefix4_blocks, __u64, 2 * BERM_PREFIX4_BLOCKS * 64, BPF_F_MMAPABLE);
ARRAY(berm_prefix6_root, __u64, 2 * BERM_PREFIX6_ROOT, BPF_F_MMAPABLE);
ARRAY(berm_prefix6_nodes, struct berm_prefix6_node, 2 * BERM_PREFIX6_NODES, BPF_F_MMAPABLE);
ARRAY(berm_prefix6_leaves, __u64, 2 * BERM_PREFIX6_LEAVES, BPF_F_MMAPABLE);
ARRAY(berm_prefix_records, struct berm_prefix_record, 2 * BERM_RECORDS, BPF_F_MMAPABLE);
ARRAY(berm_networks, __u64, 2 * BERM_NETWORKS, BPF_F_MMAPABLE); /* numbers of autonomous systems */

/* XDP */
ARRAY(berm_rate_cells, struct berm_rate_set, BERM_RATE_SETS, BPF_F_MMAPABLE);

ARRAY(berm_newcomers, struct berm_newcomer_set, BERM_NEWCOMER_SETS, BPF_F_MMAPABLE);

ARRAY(berm_gate_states, struct berm_gate_state, BERM_VIPS, BPF_F_MMAPABLE);

/* guard, operator (hits: XDP). No LRU: a full table refuses the next verdict aloud, and loses none. */
ARRAY(berm_verdict_bits, __u64, BERM_VERDICT_WORDS, BPF_F_MMAPABLE);
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, BERM_VERDICTS);
	__type(key, struct berm_verdict_key);
	__type(value, struct berm_verdict);
} berm_verdicts SEC(".maps");

/* steering */
ARRAY(berm_rows, __u64, BERM_SETS * BERM_ROW_CELLS, BPF_F_MMAPABLE);
ARRAY(berm_sets, struct berm_set, BERM_SETS, 0);
ARRAY(berm_backends, struct berm_backend, BERM_BACKENDS, 0);
ARRAY(berm_heart, struct berm_heart, 1, BPF_F_MMAPABLE);
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, BERM_PEERS);
	__type(key, struct berm_addr); /* outer source */
	__type(value, __u64);	       /* backend id */
} berm_peers SEC(".maps");
ARRAY(berm_carry, struct berm_carry, 1, 0);
ARRAY(berm_probes, struct berm_probe, BERM_PROBES, 0); /* sent: egress */

/* steering: QUIC connection IDs */
ARRAY(berm_cids, struct berm_cid, BERM_CIDS, 0);
ARRAY(berm_sids, struct berm_sid, BERM_SIDS, 0);
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, BERM_SIDS_LONG);
	__type(key, __u64); /* server ID */
	__type(value, struct berm_sid);
} berm_sids_long SEC(".maps");

/* XDP */
ARRAY(berm_stun, struct berm_stun_set, BERM_STUN_SETS, 0);

/* XDP; metrics and top read */
PERCPU(berm_drops, struct berm_counter, BERM_DROP_MAX);
PERCPU(berm_shadows, struct berm_counter, BERM_DROP_MAX);
PERCPU(berm_stage_stats, struct berm_counter, BERM_STAGE_MAX *BERM_EXIT_MAX);
PERCPU(berm_vip_stats, struct berm_vip_stats, BERM_VIPS);
PERCPU(berm_tenant_stats, struct berm_counter, BERM_TENANTS);

/* control writes sample; XDP writes events; the daemon reads them */
ARRAY(berm_sample, struct berm_sample, BERM_DROP_MAX, BPF_F_MMAPABLE);
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} berm_events SEC(".maps");

/* whoever captures (left, seen, lost: XDP); XDP writes packets; whoever captures reads them */
ARRAY(berm_captures, struct berm_capture, 1, BPF_F_MMAPABLE);
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} berm_packets SEC(".maps");

/* daemon: its generations' sockets of QUIC; entry (port * BERM_GENERATIONS + slot) * BERM_WORKERS + worker */
ARRAY(berm_generations, struct berm_generations, 1, BPF_F_MMAPABLE);
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, BERM_GENERATION_PORTS);
	__type(key, struct berm_generation_port);
	__type(value, __u32);
} berm_generation_ports SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_REUSEPORT_SOCKARRAY);
	__uint(max_entries, BERM_GENERATION_PORTS *BERM_GENERATIONS *BERM_WORKERS);
	__type(key, __u32);
	__type(value, __u64);
} berm_generation_sockets SEC(".maps");

/* sock_ops (TCP), daemon (QUIC) */
LRU(berm_paths, struct berm_path_key, struct berm_path, BERM_PATHS);

/* congestion control: control; sock_ops counts */
ARRAY(berm_cc_profiles, struct berm_cc_profile, BERM_CC_PROFILES, 0);
ARRAY(berm_cc_countries, __u32, BERM_COUNTRIES, 0);
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, BERM_CC_RULES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct berm_cc_key);
	__type(value, struct berm_cc_rule);
} berm_cc_rules SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, BERM_CC_NETWORKS);
	__type(key, __u32);   /* number of an autonomous system */
	__type(value, __u32); /* profile */
} berm_cc_networks SEC(".maps");
PERCPU(berm_cc_stats, struct berm_cc_stats, BERM_CC_PROFILES);
LRU(berm_cc_results, struct berm_cc_result_key, struct berm_cc_result, BERM_CC_RESULTS);

#endif
