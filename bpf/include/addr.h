/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Addresses: IPv4 is v4-mapped everywhere, so that keys and hashes know one form. */
#ifndef BERM_ADDR_H
#define BERM_ADDR_H

#include <linux/in6.h>
#include <linux/types.h>
#include <stdbool.h>

#include <bpf/bpf_endian.h>

#include "contract.h"

/* ::ffff:a.b.c.d; the low half is 00 00 ff ff a b c d in memory. Little-endian only, as we build. */
#define MAPPED 0xffff0000ULL

static __always_inline struct berm_addr addr_v4(__be32 v4)
{
	struct berm_addr addr = { .halves = { 0, (__u64)v4 << 32 | MAPPED } };

	return addr;
}

/* Two loads of 8 bytes, not four of 4: reading those back as 8 stalls on the store. */
static __always_inline struct berm_addr addr_v6(const struct in6_addr *v6)
{
	const __be64 *half = (const __be64 *)v6;
	struct berm_addr addr = { .halves = { half[0], half[1] } };

	return addr;
}

static __always_inline void addr_put(struct in6_addr *to, const struct berm_addr *addr)
{
	__be64 *half = (__be64 *)to;

	half[0] = addr->halves[0];
	half[1] = addr->halves[1];
}

static __always_inline __be32 addr_to_v4(const struct berm_addr *addr)
{
	return addr->halves[1] >> 32;
}

static __always_inline bool addr_is_mapped(const struct berm_addr *addr)
{
	return !addr->halves[0] && (__u32)addr->halves[1] == MAPPED;
}

static __always_inline bool addr_equal(const struct berm_addr *a, const struct berm_addr *b)
{
	return a->halves[0] == b->halves[0] && a->halves[1] == b->halves[1];
}

static __always_inline bool addr_is_zero(const struct berm_addr *addr)
{
	return !(addr->halves[0] | addr->halves[1]);
}

/* 1 for zero */
static __always_inline __u64 is_zero(__u64 n)
{
	return (n - 1 & ~n) >> 63;
}

/* Could addr_v4_bad_source() be 1? One bit for each /6. */
static __always_inline bool addr_v4_odd_source(__u64 addr)
{
	return 0x8f00000080000001 >> (addr >> 26) & 1;
}

/* 1 for a source that no packet from the wire has: 0/8, 127/8, 224/4 and the broadcast address. */
static __always_inline __u64 addr_v4_bad_source(__u64 addr)
{
	return is_zero(addr >> 24) | is_zero(addr >> 24 ^ 127) | is_zero(addr >> 28 ^ 14) |
	       (addr + 1) >> 32;
}

/* ::/96 (unspecified, loopback, long obsolete mappings), ::ffff:0:0/96 and ff00::/8. */
static __always_inline __u64 addr_v6_bad_source(const struct berm_addr *addr)
{
	__u64 third = addr->words[2];

	return is_zero(addr->octets[0] ^ 0xff) |
	       (is_zero(addr->halves[0]) & (is_zero(third) | is_zero(third ^ bpf_htonl(0xffff))));
}

#endif
