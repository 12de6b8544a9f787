/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* result: what came of connections, by the profile that they began with. A connection looks at itself once
 * a round trip, keeps sums in its own storage, and adds them to berm_cc_results after each second of work and
 * at its end. Nothing here may disturb a connection: what is missing is not written.
 */
#ifndef BERM_RESULT_H
#define BERM_RESULT_H

#include <linux/bpf.h>
#include <linux/in.h>
#include <stdbool.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "contract.h"
#include "hash.h"
#include "maps.h"
#include "path.h"

/* What ten segments carry: all controllers do the same with a first window. */
#define RESULT_BYTES 14600
#define RESULT_EVERY_US 1000000
/* The best rate loses 1/2^n a report, so that it follows a path that has become worse. */
#define BEST_RATE_SHIFT 7
/* A client that is gone is waited for much longer, and tells nothing more. */
#define RESULT_GAP_US 3000000

/* How long the connection has worked since the last look, in us. Where nothing was lost, what is longer than
 * the acknowledgements took was the application's silence: two round trips with delayed ones while
 * segments were on their way, else one.
 */
static __always_inline __u32 result_busy(const struct result *result, const struct look *look)
{
	__u64 gap = (look->now - result->looked_ns) / 1000;
	__u64 most = RESULT_GAP_US;

	if (!look->again && look->tcp->bytes_acked == result->seen)
		return 0;
	if (!look->again)
		most = (__u64)look->srtt_us << (result->flying ? 1 : 0);
	return gap < most ? gap : most;
}

/* Adds a look to what the connection has to report. */
static __always_inline void result_look(struct result *result, const struct look *look)
{
	if (look->now > result->looked_ns)
		result->busy_us += result_busy(result, look);
	result->looked_ns = look->now;
	result->seen = look->tcp->bytes_acked;
	result->flying = look->tcp->packets_out > 0;
	if (look->kbps > result->kbps)
		result->kbps = look->kbps;
	if (!look->srtt_us || look->min_us == ~0u)
		return;
	result->rtt_us += look->srtt_us;
	if (look->srtt_us > look->min_us)
		result->queue_us += look->srtt_us - look->min_us;
	result->looks++;
}

/* The part of its prefix that a client is in. Who has not the seed cannot choose it. */
static __always_inline __u32 result_part(const struct berm_addr *far)
{
	bool mapped = !far->halves[0] && far->words[2] == bpf_htonl(0xffff);
	struct berm_config *cfg;
	__u32 zero = 0;

	cfg = bpf_map_lookup_elem(&berm_config, &zero);
	if (!cfg)
		return 0;
	return share_hash(cfg->seed, source_number(far, !mapped), !mapped) >> 32 &
	       (BERM_CC_PARTS - 1);
}

/* What a new entry is: nobody writes it, and the stack has no room for it. */
ARRAY(result_none, struct berm_cc_result, 1, 0);

static __always_inline struct berm_cc_result *result_get(struct bpf_sock_ops *ctx, __u32 profile)
{
	struct berm_path_key path = path_key(ctx);
	struct berm_cc_result_key key = { .prefix = path.prefix,
					  .proto = path.proto,
					  .profile = profile };
	struct berm_cc_result *found = bpf_map_lookup_elem(&berm_cc_results, &key);
	struct berm_cc_result *none;
	__u32 zero = 0;

	if (found)
		return found;
	none = bpf_map_lookup_elem(&result_none, &zero);
	if (!none)
		return NULL;
	/* Another CPU may have been first: its entry serves as well. */
	bpf_map_update_elem(&berm_cc_results, &key, none, BPF_NOEXIST);
	return bpf_map_lookup_elem(&berm_cc_results, &key);
}

static __always_inline void result_add(struct berm_cc_part *part, struct result *result,
				       const struct bpf_tcp_sock *tcp)
{
	__sync_fetch_and_add(&part->bytes, tcp->bytes_acked - result->bytes);
	__sync_fetch_and_add(&part->busy_us, result->busy_us);
	__sync_fetch_and_add(&part->rtt_us, result->rtt_us);
	__sync_fetch_and_add(&part->queue_us, result->queue_us);
	__sync_fetch_and_add(&part->looks, result->looks);
	__sync_fetch_and_add(&part->sent, tcp->data_segs_out - result->sent);
	__sync_fetch_and_add(&part->again, tcp->total_retrans - result->again);
	if (!result->told)
		__sync_fetch_and_add(&part->connections, 1);
	if (result->kbps >= part->rate_kbps)
		part->rate_kbps = result->kbps;
	else
		part->rate_kbps -= part->rate_kbps >> BEST_RATE_SHIFT;
	result->told = 1;
	result->bytes = tcp->bytes_acked;
	result->sent = tcp->data_segs_out;
	result->again = tcp->total_retrans;
	result->busy_us = 0;
	result->rtt_us = 0;
	result->queue_us = 0;
	result->looks = 0;
	result->kbps = 0;
}

/* Reports what the connection has done since the last time, if there is enough of it. */
static __always_inline void result_report(struct bpf_sock_ops *ctx, struct result *result,
					  const struct bpf_tcp_sock *tcp, bool last)
{
	struct berm_cc_result *to;
	struct berm_addr far;

	if (tcp->bytes_acked < RESULT_BYTES || !result->looks)
		return;
	if (!last && result->busy_us < RESULT_EVERY_US)
		return;
	to = result_get(ctx, result->profile);
	if (!to)
		return;
	path_far(ctx, &far);
	to->updated_ns = result->looked_ns;
	result_add(&to->parts[result_part(&far)], result, tcp);
}

#endif
