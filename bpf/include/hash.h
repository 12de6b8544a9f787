/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Every hash that the kernel half computes. maps/hash.go computes the same; a test compares them. */
#ifndef BERM_HASH_H
#define BERM_HASH_H

#include <linux/types.h>
#include <stdbool.h>

#include <bpf/bpf_endian.h>

#include "contract.h"

#define HASH_A 0x9E3779B97F4A7C15ULL
#define HASH_B 0xff51afd7ed558ccdULL
#define HASH_C 0xc4ceb9fe1a85ec53ULL

static __always_inline __u64 mix(__u64 h)
{
	return h ^ (h >> 32);
}

/* The ports, source first as on the wire, and the protocol of a flow in one word. */
static __always_inline __u64 flow_ports(__be32 ports, __u8 proto)
{
	return (__u64)bpf_ntohl(ports) << 8 | proto;
}

/* Of those, what names the service. */
static __always_inline __u32 flow_service(__u64 ports)
{
	return ports & 0xffffff;
}

static __always_inline bool flow_has_port(__u64 ports)
{
	return ports & 0xffff00;
}

/* Place of a service in the VIP table. Userspace chooses displacements without collisions: the seed
 * is for it to have another try, and halves are taken as they lie in memory, in no order of bytes.
 */
static __always_inline __u64 vip_hash(const __u64 seed[2], const struct berm_addr *addr,
				      __u32 service)
{
	__u64 h = mix((addr->halves[0] * HASH_B ^ addr->halves[1] ^ seed[0]) * HASH_A);

	return mix((h ^ service) * HASH_A);
}

/* What limits and verdicts call one source: an IPv4 address, an IPv6 /64. */
static __always_inline struct berm_addr source_of(const struct berm_addr *addr, bool six)
{
	struct berm_addr source = { .halves = { addr->halves[0], six ? 0 : addr->halves[1] } };

	return source;
}

/* The same as a number. No host has an address in ::/32, where the two families would meet. */
static __always_inline __u64 source_number(const struct berm_addr *addr, bool six)
{
	return six ? bpf_be64_to_cpu(addr->halves[0]) : bpf_ntohl(addr->words[3]);
}

static __always_inline __u64 source_hash(const __u64 seed[2], __u64 source)
{
	return mix((mix((source ^ seed[0]) * HASH_B) ^ seed[1]) * HASH_A);
}

/* What limits call the aggregate of a source, an IPv4 /24 or an IPv6 /48, and the part of it that has a
 * share: the address, or a /56.
 */
static __always_inline __u64 aggregate_hash(const __u64 seed[2], __u64 source, bool six)
{
	return source_hash(seed, source >> (six ? 16 : 8));
}

static __always_inline __u64 share_hash(const __u64 seed[2], __u64 source, bool six)
{
	return source_hash(seed, source >> (six ? 8 : 0));
}

/* What limits call a network, by the number of its autonomous system: above IPv4's numbers, and below those
 * of all IPv6 that is in use.
 */
#define HASH_NETWORK (1ULL << 40)

static __always_inline __u64 network_hash(const __u64 seed[2], __u32 asn)
{
	return source_hash(seed, HASH_NETWORK | asn);
}

/* And the part of it that has a share: which one a /24 or /48 is of, nobody can know who has not the seed. */
static __always_inline __u64 network_share_hash(const __u64 seed[2], __u32 asn, __u64 aggregate)
{
	return source_hash(seed, HASH_NETWORK << 1 | (__u64)asn << 8 | aggregate >> 56);
}

#define ROTL(x, b) ((x) << (b) | (x) >> (64 - (b)))

struct sip {
	__u64 v0, v1, v2, v3;
};

static __always_inline void sip_round(struct sip *s)
{
	s->v0 += s->v1;
	s->v1 = ROTL(s->v1, 13);
	s->v1 ^= s->v0;
	s->v0 = ROTL(s->v0, 32);
	s->v2 += s->v3;
	s->v3 = ROTL(s->v3, 16);
	s->v3 ^= s->v2;
	s->v0 += s->v3;
	s->v3 = ROTL(s->v3, 21);
	s->v3 ^= s->v0;
	s->v2 += s->v1;
	s->v1 = ROTL(s->v1, 17);
	s->v1 ^= s->v2;
	s->v2 = ROTL(s->v2, 32);
}

static __always_inline void sip_word(struct sip *s, __u64 word)
{
	s->v3 ^= word;
	sip_round(s);
	s->v0 ^= word;
}

/* SipHash-1-3 (Aumasson, Bernstein 2012), over words as numbers. Keyed, because whoever can
 * predict the row of a flow can send all of his to one edge.
 */
static __always_inline struct sip sip_init(const __u64 key[2])
{
	struct sip s = {
		.v0 = key[0] ^ 0x736f6d6570736575ULL,
		.v1 = key[1] ^ 0x646f72616e646f6dULL,
		.v2 = key[0] ^ 0x6c7967656e657261ULL,
		.v3 = key[1] ^ 0x7465646279746573ULL,
	};

	return s;
}

/* The last word has the last bytes, fewer than eight, and the number of all. */
static __always_inline __u64 sip_end(struct sip *s, __u64 word, __u64 bytes)
{
	sip_word(s, bytes << 56 | word);
	s->v2 ^= 0xff;
	sip_round(s);
	sip_round(s);
	sip_round(s);
	return s->v0 ^ s->v1 ^ s->v2 ^ s->v3;
}

static __always_inline __u64 flow_hash(const __u64 key[2], bool six, const struct berm_addr *src,
				       const struct berm_addr *dst, __u64 ports)
{
	struct sip s = sip_init(key);

	if (!six) {
		sip_word(&s, bpf_be64_to_cpu(src->halves[1]) << 32 | bpf_ntohl(dst->words[3]));
		return sip_end(&s, ports, 13);
	}
	sip_word(&s, bpf_be64_to_cpu(src->halves[0]));
	sip_word(&s, bpf_be64_to_cpu(src->halves[1]));
	sip_word(&s, bpf_be64_to_cpu(dst->halves[0]));
	sip_word(&s, bpf_be64_to_cpu(dst->halves[1]));
	return sip_end(&s, ports, 37);
}

/* Of a QUIC connection ID as numbers, zero behind its last byte. Its first byte tells its length. */
static __always_inline __u64 cid_hash(const __u64 key[2], __u64 a, __u64 b, __u64 c)
{
	struct sip s = sip_init(key);

	sip_word(&s, a);
	sip_word(&s, b);
	return sip_end(&s, c >> 32, 20);
}

/* What shows that an ICE username fragment is ours: 48 bits of the keyed hash of its first 48. No flow
 * has six bytes, so that one says nothing about the other.
 */
static __always_inline __u64 ufrag_check(const __u64 key[2], __u64 named)
{
	struct sip s = sip_init(key);

	return sip_end(&s, named, 6) >> 16;
}

static __always_inline __u32 flow_row(__u64 flow)
{
	return (flow & 0xffffffff) * BERM_ROWS >> 32;
}

/* Says that a tunnelled packet is a second chance. It is a bit of its own, so that no accident
 * of the other 15 can make a packet go round.
 */
#define TAG_CHANCE 0x8000

/* The 15 bits that show that a tunnelled packet was encapsulated by somebody with the secret, who
 * meant it as a second chance (1) or did not (0), and counted so many hops from site to site.
 */
static __always_inline __u16 flow_tag(__u64 flow, __u64 secret, __u64 chance, __u64 hops)
{
	__u16 tag = (flow ^ secret ^ hops * HASH_C) * (HASH_A ^ chance * (HASH_A ^ HASH_B)) >> 49;

	return (tag ? tag : 1) | chance * TAG_CHANCE;
}

#endif
