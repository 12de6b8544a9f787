/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* verdict: a time-limited decision about this source. Three bits of one word say whether there may be
 * any; without them the table is not asked: by one bit, a full one would be for 1 source in 16. An entry for the VIP goes before one for all.
 * A missing or expired entry is no opinion.
 */
#ifndef BERM_VERDICT_H
#define BERM_VERDICT_H

#include "clock.h"
#include "hash.h"
#include "maps.h"
#include "packet.h"

static __always_inline bool verdict_possible(__u64 source)
{
	__u32 word = source >> 20 & (BERM_VERDICT_WORDS - 1);
	__u64 *bits = bpf_map_lookup_elem(&berm_verdict_bits, &word);

	return bits && UNLIKELY(*bits >> (source >> 34 & 63) & 1) &&
	       *bits >> (source >> 40 & 63) & 1 && *bits >> (source >> 46 & 63) & 1;
}

static __always_inline struct berm_verdict *verdict_lookup(const struct packet *pkt, __u32 vip,
							   const struct now *now)
{
	struct berm_verdict_key key = {
		.source = source_of(&pkt->src, is(pkt, PACKET_V6)),
		.vip = vip,
	};
	struct berm_verdict *verdict = bpf_map_lookup_elem(&berm_verdicts, &key);

	if (!verdict || (verdict->expires_ns && verdict->expires_ns <= clock_ns(now)))
		return NULL;
	return verdict;
}

static __always_inline int verdict_check(struct packet *pkt, const struct now *now)
{
	struct berm_verdict *verdict;
	__u8 action;

	pkt->source = source_hash(pkt->cfg->seed, pkt->number);
	if (LIKELY(!verdict_possible(pkt->source)))
		return STAGE_NEXT;
	verdict = verdict_lookup(pkt, pkt->vip_id, now);
	if (!verdict)
		verdict = verdict_lookup(pkt, 0, now);
	if (!verdict)
		return STAGE_NEXT;
	__sync_fetch_and_add(&verdict->hits, 1);
	action = verdict->action;
	if (action == BERM_ACTION_DROP || action == BERM_ACTION_SHADOW)
		return refuse(pkt, BERM_DROP_VERDICT, action == BERM_ACTION_SHADOW);
	if (action == BERM_ACTION_ALLOW)
		learn(pkt, PACKET_ALLOWED);
	return STAGE_NEXT;
}

#endif
