/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* path: what TCP connections learn about the network behind a prefix. Each connection keeps
 * what it has reported in its own storage, so that only differences are added. Nothing here may
 * disturb a connection: what is missing is not written.
 */
#ifndef BERM_PATH_H
#define BERM_PATH_H

#include <linux/bpf.h>
#include <linux/in.h>
#include <stdbool.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "contract.h"
#include "maps.h"

#define AF_INET 2

/* Averages move by 1/2^n of the difference, as those of RFC 6298 do. */
#define SRTT_SHIFT 3
#define RTTVAR_SHIFT 2
/* The best rate loses 1/2^n a round trip, so that it follows a path that has become worse. */
#define RATE_SHIFT 7

/* What a connection has reported. */
struct path_reported {
	__u32 delivered;
	__u32 sent;
	__u32 retransmitted;
	__u32 lost; /* segments held for lost at the last look, which is not a sum */
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct path_reported);
} path_reports SEC(".maps");

/* The far end. A v4-mapped one is IPv4 on an IPv6 socket, as most of Go's are. */
static __always_inline void path_far(const struct bpf_sock_ops *ctx, struct berm_addr *far)
{
	if (ctx->family == AF_INET) {
		__u32 four = ctx->remote_ip4;

		barrier_var(
			four); /* one load from either of two places is no access to a context */
		far->halves[0] = 0;
		far->words[2] = bpf_htonl(0xffff);
		far->words[3] = four;
		return;
	}
	far->words[0] = ctx->remote_ip6[0];
	far->words[1] = ctx->remote_ip6[1];
	far->words[2] = ctx->remote_ip6[2];
	far->words[3] = ctx->remote_ip6[3];
}

/* Its /24 or /48. */
static __always_inline struct berm_path_key path_key(struct bpf_sock_ops *ctx)
{
	struct berm_path_key key = { .proto = IPPROTO_TCP };

	path_far(ctx, &key.prefix);
	if (!key.prefix.halves[0] && key.prefix.words[2] == bpf_htonl(0xffff)) {
		key.prefix.words[3] &= bpf_htonl(0xffffff00);
		return key;
	}
	key.prefix.words[1] &= bpf_htonl(0xffff0000);
	key.prefix.halves[1] = 0;
	return key;
}

static __always_inline struct berm_path *path_get(struct bpf_sock_ops *ctx)
{
	struct berm_path_key key = path_key(ctx);
	struct berm_path *path = bpf_map_lookup_elem(&berm_paths, &key);
	struct berm_path none = {};

	if (path)
		return path;
	/* Another CPU may have been first: its entry serves as well. */
	bpf_map_update_elem(&berm_paths, &key, &none, BPF_NOEXIST);
	return bpf_map_lookup_elem(&berm_paths, &key);
}

/* Averages are read and written by all CPUs without order: a lost sample costs nothing. */
static __always_inline void path_rtt(struct berm_path *path, __u32 srtt_us, __u32 min_us)
{
	__s32 off;

	if (!srtt_us)
		return;
	if (!path->srtt_us) {
		path->srtt_us = srtt_us;
		path->rttvar_us = srtt_us / 2;
	} else {
		off = (__s32)(srtt_us - path->srtt_us);
		path->srtt_us += off >> SRTT_SHIFT;
		off = (off < 0 ? -off : off) - (__s32)path->rttvar_us;
		path->rttvar_us += off >> RTTVAR_SHIFT;
	}
	/* ~0 is the kernel's "no sample yet" */
	if (min_us && min_us != ~0u && (!path->min_rtt_us || min_us < path->min_rtt_us))
		path->min_rtt_us = min_us;
}

static __always_inline void path_rate(struct berm_path *path, const struct bpf_sock_ops *ctx)
{
	__u64 bits = (__u64)ctx->rate_delivered * ctx->mss_cache * 8;
	__u64 kbps = ctx->rate_interval_us ? bits * 1000 / ctx->rate_interval_us : 0;

	if (kbps > ~0u)
		kbps = ~0u;
	if (kbps >= path->rate_kbps)
		path->rate_kbps = kbps;
	else
		path->rate_kbps -= path->rate_kbps >> RATE_SHIFT;
}

/* 1, 2, 3-4, 5-8 … 65 and more */
static __always_inline __u32 burst_class(__u32 lost)
{
	__u32 class = 0;

	for (__u32 most = 1; class < BERM_BURSTS - 1 && lost > most; most *= 2)
		class ++;
	return class;
}

/* Segments that a connection came to hold for lost within a round trip are one burst. Those it
 * sent again were lost too, though it may have found out and repaired them between two looks.
 */
static __always_inline void path_loss(struct berm_path *path, __u32 held, __u32 held_before,
				      __u32 again)
{
	__u32 lost = held > held_before ? held - held_before : 0;

	if (again > lost)
		lost = again;
	if (!lost)
		return;
	__sync_fetch_and_add(&path->lost, lost);
	__sync_fetch_and_add(&path->bursts[burst_class(lost) & (BERM_BURSTS - 1)], 1);
}

/* Adds what happened on the connection since the last time. */
static __always_inline void path_report(struct bpf_sock_ops *ctx, struct berm_path *path)
{
	struct path_reported *reported, seen;
	struct bpf_sock *sk = ctx->sk;
	struct bpf_tcp_sock *tcp;

	path->updated_ns = bpf_ktime_get_ns();
	path_rtt(path, ctx->srtt_us >> 3, ctx->rtt_min);
	path_rate(path, ctx);
	tcp = sk ? bpf_tcp_sock(sk) : NULL;
	reported = tcp ? bpf_sk_storage_get(&path_reports, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE) :
			 NULL;
	if (!reported)
		return;
	seen = *reported;
	reported->delivered = tcp->delivered;
	reported->sent = tcp->segs_out;
	reported->retransmitted = tcp->total_retrans;
	reported->lost = tcp->lost_out;
	__sync_fetch_and_add(&path->delivered, (__u32)(reported->delivered - seen.delivered));
	__sync_fetch_and_add(&path->sent, (__u32)(reported->sent - seen.sent));
	__sync_fetch_and_add(&path->retransmitted,
			     (__u32)(reported->retransmitted - seen.retransmitted));
	path_loss(path, reported->lost, seen.lost, reported->retransmitted - seen.retransmitted);
}

#endif
