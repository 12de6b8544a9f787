/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* path: what TCP connections learn about the network behind a prefix. Each connection keeps sums in its
 * own storage, and reports once a second and at its end, as far as its client may be heard (turn.h).
 * Nothing here may disturb a connection: what is missing is not written.
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
#include "turn.h"

#define AF_INET 2

/* Averages move by 1/2^n of the difference, as those of RFC 6298 do. So does the least round trip, which
 * rises by less: what one client made too small, the others put right. The rate moves by as much of
 * itself at most, however large one is claimed.
 */
#define SRTT_SHIFT 3
#define RTTVAR_SHIFT 2
#define MIN_DOWN_SHIFT 3
#define MIN_UP_SHIFT 6
#define RATE_SHIFT 3

#define PATH_EVERY_NS 1000000000ULL

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

/* What a connection has reported, and has yet to. */
struct path_reported {
	__u64 at_ns;	 /* the last time */
	__u32 delivered; /* as of then */
	__u32 sent;
	__u32 retransmitted;
	__u32 again; /* segments sent again, as of the last look */
	__u32 held;  /* segments held for lost at the last look, which is not a sum */
	__u32 lost;  /* since the last report, like all below */
	__u32 kbps;  /* the best */
	__u32 bursts[BERM_BURSTS];
	__u32 pad;
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

/* What a new entry is: nobody writes it, and the stack has no room for it. */
ARRAY(path_none, struct berm_path, 1, 0);

static __always_inline struct berm_path *path_get(struct bpf_sock_ops *ctx)
{
	struct berm_path_key key = path_key(ctx);
	struct berm_path *path = bpf_map_lookup_elem(&berm_paths, &key);
	struct berm_path *none;
	__u32 zero = 0;

	if (path)
		return path;
	none = bpf_map_lookup_elem(&path_none, &zero);
	if (!none)
		return NULL;
	/* Another CPU may have been first: its entry serves as well. */
	bpf_map_update_elem(&berm_paths, &key, none, BPF_NOEXIST);
	return bpf_map_lookup_elem(&berm_paths, &key);
}

/* Averages are read and written by all CPUs without order: a lost sample costs nothing. */
static __always_inline void path_rtt(struct berm_path *path, __u32 srtt_us)
{
	__s32 off;

	if (!srtt_us)
		return;
	if (!path->srtt_us) {
		path->srtt_us = srtt_us;
		path->rttvar_us = srtt_us / 2;
		return;
	}
	off = (__s32)(srtt_us - path->srtt_us);
	path->srtt_us += off >> SRTT_SHIFT;
	off = (off < 0 ? -off : off) - (__s32)path->rttvar_us;
	path->rttvar_us += off >> RTTVAR_SHIFT;
}

static __always_inline void path_min(struct berm_path *path, __u32 min_us)
{
	__s32 off = (__s32)(min_us - path->min_rtt_us);

	if (!min_us || min_us == ~0u) /* the kernel's "no sample yet" */
		return;
	if (!path->min_rtt_us)
		path->min_rtt_us = min_us;
	else
		path->min_rtt_us += off >> (off < 0 ? MIN_DOWN_SHIFT : MIN_UP_SHIFT);
}

static __always_inline void path_rate(struct berm_path *path, __u32 kbps)
{
	__s64 step = ((__s64)kbps - path->rate_kbps) >> RATE_SHIFT;
	__s64 most = (path->rate_kbps >> RATE_SHIFT) + 1;

	if (!kbps)
		return;
	if (!path->rate_kbps)
		path->rate_kbps = kbps;
	else
		path->rate_kbps += step < most ? step : most;
}

/* 1, 2, 3-4, 5-8 … 65 and more */
static __always_inline __u32 burst_class(__u32 lost)
{
	__u32 class = 0;

	for (__u32 most = 1; class < BERM_BURSTS - 1 && lost > most; most *= 2)
		class ++;
	return class;
}

static __always_inline __u32 path_kbps(const struct bpf_sock_ops *ctx)
{
	__u64 bits = (__u64)ctx->rate_delivered * ctx->mss_cache * 8;
	__u64 kbps = ctx->rate_interval_us ? bits * 1000 / ctx->rate_interval_us : 0;

	return kbps > ~0u ? ~0u : kbps;
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

/* Segments that a connection came to hold for lost within a round trip are one burst. Those it
 * sent again were lost too, though it may have found out and repaired them between two looks.
 */
static __always_inline void path_loss(struct path_reported *reported, __u32 held, __u32 again)
{
	__u32 lost = held > reported->held ? held - reported->held : 0;

	reported->held = held;
	if (again > lost)
		lost = again;
	if (!lost)
		return;
	reported->lost += lost;
	reported->bursts[burst_class(lost) & (BERM_BURSTS - 1)]++;
}

/* Looks at the connection, adds what it sees to what is to be reported, and returns that. */
static __always_inline struct path_reported *path_look(struct bpf_sock_ops *ctx, struct look *look)
{
	struct path_reported *reported;
	struct bpf_sock *sk = ctx->sk;

	look->now = bpf_ktime_get_ns();
	look->srtt_us = ctx->srtt_us >> 3;
	look->min_us = ctx->rtt_min;
	look->kbps = path_kbps(ctx);
	look->tcp = sk ? bpf_tcp_sock(sk) : NULL;
	if (!look->tcp)
		return NULL;
	reported = bpf_sk_storage_get(&path_reports, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!reported)
		return NULL;
	look->again = look->tcp->total_retrans - reported->again;
	reported->again = look->tcp->total_retrans;
	path_loss(reported, look->tcp->lost_out, look->again);
	if (look->kbps > reported->kbps)
		reported->kbps = look->kbps;
	return reported;
}

/* A new connection. Of a prefix that nothing is known of, its handshake says something; its rate would be none. */
static __always_inline struct path_reported *path_begin(struct bpf_sock_ops *ctx, struct look *look)
{
	struct path_reported *reported = path_look(ctx, look);
	struct berm_path *path = path_get(ctx);

	if (reported)
		reported->at_ns = look->now;
	if (!path)
		return reported;
	path->updated_ns = look->now;
	__sync_fetch_and_add(&path->connections, 1);
	if (path->srtt_us)
		return reported;
	path_rtt(path, look->srtt_us);
	path_min(path, look->min_us);
	return reported;
}

/* One key for both: the stack has no room for two. */
static __always_inline bool path_heard(struct bpf_sock_ops *ctx, __u64 now, struct turn *turn)
{
	struct turn_key key = { .prefix = 1 };
	__u64 *all, *mine;

	key.addr = path_key(ctx).prefix;
	all = turn_get(&key);
	path_far(ctx, &key.addr);
	if (key.addr.halves[0] || key.addr.words[2] != bpf_htonl(0xffff))
		key.addr.halves[1] = 0; /* an IPv6 client is a /64 */
	key.prefix = 0;
	mine = turn_get(&key);
	return mine && all && turn_take(mine, all, now, turn);
}

static __always_inline void path_counts(struct berm_path *path, struct path_reported *reported,
					const struct bpf_tcp_sock *tcp, const struct turn *turn)
{
	__u32 lost = turn_part(turn, reported->lost);

	__sync_fetch_and_add(&path->lost, lost);
	__sync_fetch_and_add(&path->delivered, turn->taken - lost);
	__sync_fetch_and_add(&path->sent, turn_part(turn, tcp->segs_out - reported->sent));
	__sync_fetch_and_add(&path->retransmitted,
			     turn_part(turn, tcp->total_retrans - reported->retransmitted));
	for (int i = 0; i < BERM_BURSTS; i++)
		if (reported->bursts[i])
			__sync_fetch_and_add(&path->bursts[i],
					     turn_part(turn, reported->bursts[i]));
}

/* Adds what the connection has measured since it last reported to what is known of its path. */
static __always_inline void path_add(struct bpf_sock_ops *ctx, struct berm_path *path,
				     struct path_reported *reported, const struct look *look)
{
	struct turn turn = {
		.packets =
			(__u64)(__u32)(look->tcp->delivered - reported->delivered) + reported->lost,
	};

	if (!path_heard(ctx, look->now, &turn))
		return;
	path->updated_ns = look->now;
	path_counts(path, reported, look->tcp, &turn);
	if (turn.times) {
		path_rtt(path, look->srtt_us);
		path_min(path, look->min_us);
		path_rate(path, reported->kbps);
	}
	reported->at_ns = look->now;
	reported->delivered = look->tcp->delivered;
	reported->sent = look->tcp->segs_out;
	reported->retransmitted = look->tcp->total_retrans;
	reported->lost = 0;
	reported->kbps = 0;
	__builtin_memset(reported->bursts, 0, sizeof(reported->bursts));
}

/* Reports once a second and at the end. */
static __always_inline void path_report(struct bpf_sock_ops *ctx, struct path_reported *reported,
					const struct look *look, bool last)
{
	struct berm_path *path;

	if (!last && look->now - reported->at_ns < PATH_EVERY_NS)
		return;
	path = path_get(ctx);
	if (path)
		path_add(ctx, path, reported, look);
}

#endif
