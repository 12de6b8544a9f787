/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The Internet checksum (RFC 1071) of IPv4 headers. */
#ifndef BERM_CSUM_H
#define BERM_CSUM_H

#include <linux/ip.h>
#include <linux/types.h>

#define IPV4_WORDS_MAX 15

static __always_inline __u16 csum_fold(__u64 sum)
{
	__u32 half = (__u32)sum + (__u32)(sum >> 32);

	half += half < (__u32)sum; /* the carry */
	half = (half & 0xffff) + (half >> 16);
	return (half & 0xffff) + (half >> 16);
}

/* Is the sum over a header with its checksum wrong? It has to fold to 0xffff, so that has to divide
 * it. The factor is 1/0xffff modulo 2^64: what is divisible gives the quotient, and all else
 * gives more than the largest quotient, which is below 2^48 + 1 (Granlund, Montgomery 1994).
 */
static __always_inline bool csum_bad(__u64 sum)
{
	return sum * 0xfffefffefffeffff >> 48;
}

/* Sum of the fixed part, in words of 32 bits: folding makes the halves one. */
static __always_inline __u64 csum_ipv4(const struct iphdr *ip)
{
	const __u32 *word = (const __u32 *)ip;

	return (__u64)word[0] + word[1] + word[2] + word[3] + word[4];
}

/* Sum of the options; what lies behind end counts as nothing. */
static __always_inline __u64 csum_ipv4_options(const struct iphdr *ip, __u32 words, const void *end)
{
	const __u32 *word = (const __u32 *)ip;
	__u64 sum = 0;

	for (__u32 i = 5; i < IPV4_WORDS_MAX; i++) {
		if (i >= words || (const void *)(word + i + 1) > end)
			break;
		sum += word[i];
	}
	return sum;
}

#endif
