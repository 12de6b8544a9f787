/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* rate: what one source may send, in packets, bytes and SYNs. A source's cells live in one set,
 * which is one cache line. Each class is a budget of its own. Fails open.
 */
#ifndef BERM_RATE_H
#define BERM_RATE_H

#include "cell.h"
#include "clock.h"
#include "maps.h"
#include "packet.h"

static __always_inline int rate_check(struct packet *pkt, const struct now *now)
{
	__u32 class = pkt->record.rate_class ? pkt->record.rate_class : pkt->vip->rate_class;
	__u32 key = pkt->source & pkt->cfg->rate_mask;
	struct berm_rate_class *limits;
	struct berm_rate_set *set;
	__u64 time;
	bool shadow;

	if (!class)
		return STAGE_NEXT;
	set = bpf_map_lookup_elem(&berm_rate_cells, &key);
	limits = bpf_map_lookup_elem(&berm_rate_classes, &class);
	if (!set || !limits || !(limits->flags & BERM_RATE_USED))
		return STAGE_NEXT;
	shadow = limits->flags & BERM_RATE_SHADOW;
	time = limits->flags & BERM_RATE_FINE_CLOCK ? clock_fine(now) : clock_coarse(now, pkt->cfg);
	time &= CELL_TIME;

	if (limits->packets.cost &&
	    !rate_take(set, &limits->packets, rate_tag(pkt->source, class, RATE_PACKETS), time, 1))
		STAGE(refuse(pkt, BERM_DROP_RATE_PACKETS, shadow));
	if (limits->bytes.cost &&
	    !rate_take_anywhere(set, &limits->bytes, rate_tag(pkt->source, class, RATE_BYTES), time,
				pkt->len))
		STAGE(refuse(pkt, BERM_DROP_RATE_BYTES, shadow));
	if (is(pkt, PACKET_SYN) && limits->syns.cost &&
	    !rate_take(set, &limits->syns, rate_tag(pkt->source, class, RATE_SYNS), time, 1))
		STAGE(refuse(pkt, BERM_DROP_RATE_SYN, shadow));
	return STAGE_NEXT;
}

#endif
