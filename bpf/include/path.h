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

/* What a connection has yet to report of its profile (result.h). */
struct result {
	__u64 looked_ns; /* at the connection, the last time */
	__u64 bytes;	 /* acknowledged, as of the last report */
	__u64 seen;	 /* as of the last look */
	__u32 sent;
	__u32 again;
	__u32 busy_us; /* since the last report, like all below */
	__u32 rtt_us;
	__u32 queue_us;
	__u32 looks;
	__u32 kbps;
	__u32 profile;
	__u8 flying; /* there were segments on their way */
	__u8 told;
	__u8 pad[6];
};

/* What a connection has reported. */
struct path_reported {
	__u32 delivered;
	__u32 sent;
	__u32 retransmitted;
	__u32 lost; /* segments held for lost at the last look, which is not a sum */
	struct result result;
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
	/* clang-19 makes one load of two, which a context does not allow. */
	for (int i = 0; i < 4; i++) {
		__u32 word = ctx->remote_ip6[i];

		barrier_var(word);
		far->words[i] = word;
	}
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

static __always_inline __u32 path_kbps(const struct bpf_sock_ops *ctx)
{
	__u64 bits = (__u64)ctx->rate_delivered * ctx->mss_cache * 8;
	__u64 kbps = ctx->rate_interval_us ? bits * 1000 / ctx->rate_interval_us : 0;

	return kbps > ~0u ? ~0u : kbps;
}

static __always_inline void path_rate(struct berm_path *path, __u32 kbps)
{
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
static __always_inline void path_add(struct berm_path *path, struct path_reported *reported,
				     const struct bpf_tcp_sock *tcp)
{
	struct path_reported seen = *reported;

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

/* What a connection looks like now. */
struct look {
	__u64 now;
	__u32 srtt_us;
	__u32 min_us; /* ~0 = no sample yet */
	__u32 kbps;
	__u32 again; /* segments sent again since the look before */
	struct bpf_tcp_sock *tcp;
};

/* Writes what happened on the connection since the last time, and returns what it has reported. */
static __always_inline struct path_reported *path_report(struct bpf_sock_ops *ctx,
							 struct berm_path *path, struct look *look)
{
	struct path_reported *reported;
	struct bpf_sock *sk = ctx->sk;

	look->now = bpf_ktime_get_ns();
	look->srtt_us = ctx->srtt_us >> 3;
	look->min_us = ctx->rtt_min;
	look->kbps = path_kbps(ctx);
	path->updated_ns = look->now;
	path_rtt(path, look->srtt_us, look->min_us);
	path_rate(path, look->kbps);
	look->tcp = sk ? bpf_tcp_sock(sk) : NULL;
	if (!look->tcp)
		return NULL;
	reported = bpf_sk_storage_get(&path_reports, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!reported)
		return NULL;
	look->again = look->tcp->total_retrans - reported->retransmitted;
	path_add(path, reported, look->tcp);
	return reported;
}

#endif
