/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* capture: copies of packets for whoever asks, by stage, reason and VIP. What does not fit is not
 * copied, and while nobody asks a packet costs one bit to look at. A full ring loses the
 * copy, counted, never the packet.
 */
#ifndef BERM_CAPTURE_H
#define BERM_CAPTURE_H

#include <stddef.h>

#include "maps.h"
#include "packet.h"

struct capture_buffer {
	struct berm_captured head;
	__u8 frame[BERM_SNAP + 1];
};
PERCPU(capture_buffers, struct capture_buffer, 1); /* too large for the stack */

/* What became of a packet: the end of struct packet's part for vip and policy. */
struct fate {
	__u32 vip;
	__u32 record;
	__u32 reason; /* enum berm_drop */
	__u32 end;    /* stage * BERM_EXIT_MAX + exit */
};
_Static_assert(offsetof(struct packet, end) - offsetof(struct packet, vip_id) ==
		       offsetof(struct fate, end),
	       "struct fate is a part of struct packet");

static __always_inline const struct fate *fate_of(const struct packet *pkt)
{
	return (const struct fate *)&pkt->vip_id;
}

static __always_inline bool capture_fits(struct berm_capture *want, const struct fate *fate,
					 __u32 why, __u32 stage)
{
	return want->reasons >> (why & 63) & 1 && want->stages >> (stage & 31) & 1 &&
	       (!want->vip || want->vip == fate->vip) &&
	       !(__sync_fetch_and_add(&want->seen, 1) & want->mask) && (__s64)want->left > 0 &&
	       (__s64)__sync_fetch_and_sub(&want->left, 1) > 0;
}

static __always_inline int capture(struct xdp_md *ctx, const struct fate *fate, __u32 shadow,
				   __u32 stage)
{
	struct berm_capture *want;
	struct capture_buffer *buf;
	__u32 key = 0;
	__u64 bytes;

	want = bpf_map_lookup_elem(&berm_captures, &key);
	buf = bpf_map_lookup_elem(&capture_buffers, &key);
	if (!want || !buf || !capture_fits(want, fate, fate->reason ? fate->reason : shadow, stage))
		return 0;
	buf->head.time_ns = bpf_ktime_get_ns();
	buf->head.len = bpf_xdp_get_buff_len(ctx);
	buf->head.vip = fate->vip;
	buf->head.record = fate->record;
	buf->head.weight = want->mask + 1;
	buf->head.stage = stage;
	buf->head.exit = exit_of_end(fate->end);
	buf->head.reason = fate->reason;
	buf->head.shadow = shadow;
	buf->head.pad = 0;
	bytes = buf->head.len < want->snap ? buf->head.len : want->snap;
	if (!bytes)
		return 0;
	/* From 1 on, as it is: 6.1 does not conclude that from "not 0". clang-19 must not either. */
	OPAQUE(bytes);
	bytes = ((bytes - 1) & BERM_SNAP) + 1;
	if (bpf_xdp_load_bytes(ctx, 0, buf->frame, bytes))
		return 0;
	if (bpf_ringbuf_output(&berm_packets, buf, sizeof(buf->head) + bytes, 0))
		__sync_fetch_and_add(&want->lost, 1);
	return 0;
}

#endif
