/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The one exit: counts what became of the packet, and samples. Counters are per CPU, so nothing
 * here is atomic. Packets that are not ours are counted, and nothing of them is kept.
 */
#ifndef BERM_STATS_H
#define BERM_STATS_H

#include "capture.h"
#include "clock.h"
#include "maps.h"
#include "packet.h"

/* Returns the packets counted before this one. */
static __always_inline __u64 count(void *map, __u32 key, __u64 bytes)
{
	struct berm_counter *counter = bpf_map_lookup_elem(map, &key);

	if (!counter)
		return 0;
	counter->bytes += bytes;
	return counter->packets++;
}

static __always_inline void add(struct berm_counter *counter, __u64 bytes)
{
	counter->packets++;
	counter->bytes += bytes;
}

/* Facts that a VIP's counters have beside how the packet ended. */
#define COUNTED                                                                            \
	(PACKET_CID | PACKET_CID_LOST | PACKET_STUN | PACKET_STUN_LOST | PACKET_NEWCOMER | \
	 PACKET_FORMER | PACKET_CROWDED | SHADOWED_ANY)

static __always_inline void count_facts(const struct packet *pkt, struct berm_vip_stats *stats)
{
	if (UNLIKELY(shadowed_of(pkt)))
		add(&stats->shadowed, pkt->len);
	if (UNLIKELY(is(pkt, PACKET_CID | PACKET_CID_LOST)))
		add(is(pkt, PACKET_CID) ? &stats->cid : &stats->cid_lost, pkt->len);
	if (UNLIKELY(is(pkt, PACKET_STUN | PACKET_STUN_LOST)))
		add(is(pkt, PACKET_STUN) ? &stats->stun : &stats->stun_lost, pkt->len);
	if (UNLIKELY(is(pkt, PACKET_NEWCOMER | PACKET_FORMER | PACKET_CROWDED)))
		add(is(pkt, PACKET_NEWCOMER) ? &stats->newcomer :
		    is(pkt, PACKET_FORMER)   ? &stats->former :
					       &stats->crowded,
		    pkt->len);
}

static __always_inline void count_vip(const struct packet *pkt, enum berm_exit exit)
{
	struct berm_vip_stats *stats;
	__u32 id = pkt->vip_id;

	stats = bpf_map_lookup_elem(&berm_vip_stats, &id);
	if (!stats)
		return;
	add(&stats->in, pkt->len);
	if (exit == BERM_EXIT_DROP)
		add(&stats->dropped, pkt->len);
	else if (exit == BERM_EXIT_FORWARD ||
		 UNLIKELY(exit == BERM_EXIT_CHANCE || exit == BERM_EXIT_DEADMAN ||
			  exit == BERM_EXIT_CARRY || exit == BERM_EXIT_SPILL))
		add(&stats->forwarded, pkt->len);
	else if (UNLIKELY(exit == BERM_EXIT_ANSWER))
		add(&stats->answered, pkt->len);
	if (UNLIKELY(is(pkt, COUNTED)))
		count_facts(pkt, stats);
	if (pkt->vip->tenant)
		count(&berm_tenant_stats, pkt->vip->tenant, pkt->len);
}

/* Counts every reason that the packet would have been dropped for, and returns the first. A
 * function of its own for the verifier's sake: in line it walks the loop for each way here.
 */
__noinline int count_shadows(__u32 shadowed, __u32 bytes)
{
	__u32 first = 0;

	for (__u32 why = BERM_DROP_MAX - 1; why; why--) {
		if (!(shadowed >> why & 1))
			continue;
		count(&berm_shadows, why, bytes);
		count(&berm_stage_stats, stage_of(why) * BERM_EXIT_MAX + BERM_EXIT_SHADOW, bytes);
		first = why;
	}
	return first;
}

/* before is how many packets left by the same exit, or for the same reason, before this one. */
static __always_inline void sample(const struct packet *pkt, const struct now *now, __u64 before,
				   __u32 shadow)
{
	__u32 why = pkt->drop ? pkt->drop : shadow;
	struct berm_sample *sample;
	struct berm_event *event;

	if (LIKELY(!why && !(pkt->cfg->flags & BERM_CONFIG_SAMPLE_PASSED)))
		return;
	sample = bpf_map_lookup_elem(&berm_sample, &why);
	if (!sample || LIKELY(before & sample->mask) || !(sample->mask + 1))
		return;
	/* A full ring loses the event, never the packet. */
	event = bpf_ringbuf_reserve(&berm_events, sizeof(*event), 0);
	if (!event)
		return;
	event->time_ns = clock_ns(now);
	event->source = pkt->src;
	event->destination = pkt->dst;
	event->sport = bpf_htons(pkt->ports >> 24);
	event->dport = bpf_htons(pkt->ports >> 8);
	event->proto = pkt->proto;
	event->exit = exit_of_end(pkt->end);
	event->reason = pkt->drop;
	event->shadow = shadow;
	event->len = pkt->len;
	event->vip = pkt->vip ? pkt->vip_id : 0;
	event->record = pkt->record_id;
	event->weight = sample->mask + 1;
	bpf_ringbuf_submit(event, 0);
}

/* A function of its own, verified by itself and out of the way of packets that nobody asks for. */
__noinline int copy_packet(struct xdp_md *ctx, const struct fate *fate, __u32 shadow)
{
	__u32 why;

	if (!fate)
		return 0;
	why = fate->reason ? fate->reason : shadow;
	return capture(ctx, fate, shadow, why ? stage_of(why) : fate->end / BERM_EXIT_MAX);
}

static __always_inline int finish(struct packet *pkt, const struct now *now, int act)
{
	__u32 exit = exit_of_end(pkt->end), shadow = 0;
	__u64 before;

	before = count(&berm_stage_stats, pkt->end, pkt->len);
	if (pkt->end == BERM_STAGE_PARSE * BERM_EXIT_MAX + BERM_EXIT_FOREIGN)
		return act;
	if (LIKELY(pkt->vip))
		count_vip(pkt, exit);
	if (UNLIKELY(is(pkt, SHADOWED_ANY)))
		shadow = count_shadows(shadowed_of(pkt), pkt->len);
	if (pkt->drop)
		before = count(&berm_drops, pkt->drop, pkt->len);
	if (exit == BERM_EXIT_FOREIGN && !shadow)
		return act;
	sample(pkt, now, before, shadow);
	if (UNLIKELY(pkt->cfg->flags & BERM_CONFIG_CAPTURE))
		copy_packet(pkt->ctx, fate_of(pkt), shadow);
	return act;
}

#endif
