/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* deadman: the daemon beats, and XDP notes by the tick when it last did. One that is silent for
 * too long does not serve; what would begin a flow here goes to the row's second meanwhile.
 */
#ifndef BERM_DEADMAN_H
#define BERM_DEADMAN_H

#include "chance.h"
#include "maps.h"
#include "packet.h"
#include "quic.h"

#define QUIC_TYPES_OF_START 2 /* Initial and 0-RTT: sent before the server has said anything */

/* A beat and the tick at which it was seen are one word, so that no CPU sees half of the news. An
 * edge that nothing comes to notes nothing, and is silent only a limit after the next packet.
 */
static __always_inline bool deadman_silent(struct berm_heart *heart, const struct now *now)
{
	__u64 noted = heart->noted;
	__u32 beat = heart->beat, tick = now->jiffies;

	if (!heart->limit_ticks)
		return false;
	if (noted >> 32 != beat) {
		heart->noted = (__u64)beat << 32 | tick;
		return false;
	}
	return tick - (__u32)noted > heart->limit_ticks;
}

/* Does a UDP packet begin a QUIC connection? All others may be of flows that are here: no socket knows
 * them, so they stay.
 */
static __always_inline bool begins_quic(struct xdp_md *ctx, __u64 facts)
{
	struct headers h = headers_from(ctx, facts, IPPROTO_UDP);
	struct start {
		__u8 first;
		__u8 version[4];
	} *start;
	__u32 version, type;

	if (!h.ip || !TAKE(&h.payload, struct udphdr) || !(start = TAKE(&h.payload, struct start)))
		return false;
	version = (__u32)start->version[0] << 24 | start->version[1] << 16 |
		  start->version[2] << 8 | start->version[3];
	if (!(start->first & QUIC_LONG) || !version)
		return false;
	type = (start->first >> 4) - (version == QUIC_V2);
	return (type & 3) < QUIC_TYPES_OF_START;
}

#endif
