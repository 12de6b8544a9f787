/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* turn: how far one client sways what is known of its prefix. In each second it counts for as many packets as all
 * others of the prefix together, or 256, and is heard once about times. The reports of QUIC connections are bounded
 * alike (userspace/congestion/quiccc).
 */
#ifndef BERM_TURN_H
#define BERM_TURN_H

#include <linux/bpf.h>
#include <stdbool.h>

#include <bpf/bpf_helpers.h>

#include "contract.h"
#include "maps.h"

#define TURN_NS 1000000000ULL
#define TURN_PACKETS 256
#define TURN_ENTRIES (1 << 16) /* 6 MiB; who was not heard for longest is forgotten */

struct turn_key {
	struct berm_addr addr; /* an IPv4 address or an IPv6 /64, or its prefix */
	__u32 prefix;	       /* 1 for the prefix */
	__u32 pad;
};

/* The number of the second in which it was heard last, and in the low half the packets that counted in it. In one word, so
 * that two CPUs cannot both begin a second.
 */
LRU(turns, struct turn_key, __u64, TURN_ENTRIES);

/* What of a report is taken. */
struct turn {
	__u64 packets; /* that it is about */
	__u64 taken;   /* of these */
	__u64 draw;    /* less than packets: what is rounded up how often */
	bool times;
};

/* NULL when there is no room: then nothing is taken. */
static __always_inline __u64 *turn_get(const struct turn_key *key)
{
	__u64 *word = bpf_map_lookup_elem(&turns, key);
	__u64 none = 0;

	if (word)
		return word;
	/* Another CPU may have been first: its entry serves as well. */
	bpf_map_update_elem(&turns, key, &none, BPF_NOEXIST);
	return bpf_map_lookup_elem(&turns, key);
}

static __always_inline __u64 turn_packets(__u64 word, __u64 second)
{
	return word >> 32 == second ? (__u32)word : 0;
}

static __always_inline __u64 turn_word(__u64 second, __u64 packets)
{
	return second << 32 | (packets < ~0u ? packets : ~0u);
}

/* Says what is taken of a client's report, by its account and its prefix's. False when another CPU takes one of the same client:
 * then nothing is, and the connection reports later.
 */
static __always_inline bool turn_take(__u64 *mine, __u64 *all, __u64 now, struct turn *turn)
{
	__u64 second = now / TURN_NS;
	__u64 was, counted, most;

	was = *mine;
	if (was >> 32 > second) /* written by another CPU after we read the clock */
		second = was >> 32;
	counted = turn_packets(was, second);
	most = turn_packets(*all, second);
	most = most > counted ? most - counted : 0;
	if (most < TURN_PACKETS)
		most = TURN_PACKETS;
	turn->taken = most > counted ? most - counted : 0;
	if (turn->taken > turn->packets)
		turn->taken = turn->packets;
	turn->times = was >> 32 != second;
	turn->draw = turn->packets ? bpf_get_prandom_u32() % turn->packets : 0;
	if (__sync_val_compare_and_swap(mine, was, turn_word(second, counted + turn->taken)) != was)
		return false;
	/* Of two CPUs that write this one may be forgotten: then others may add less, never more. */
	*all = turn_word(second, turn_packets(*all, second) + turn->taken);
	return true;
}

/* The part of n that counts. Rounded up as often as keeps the sum right: few losses would vanish otherwise. */
static __always_inline __u32 turn_part(const struct turn *turn, __u32 n)
{
	return turn->packets ? ((__u64)n * turn->taken + turn->draw) / turn->packets : 0;
}

#endif
