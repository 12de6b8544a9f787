/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a pass through the stages knows of its packet, how a stage ends it, and the one
 * place that checks bounds.
 */
#ifndef BERM_PACKET_H
#define BERM_PACKET_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/types.h>
#include <stdbool.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "contract.h"

#define STAGE_NEXT -1

#define STAGE(call)                     \
	do {                            \
		int act_ = (call);      \
		if (act_ != STAGE_NEXT) \
			return act_;    \
	} while (0)

#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

#define VLANS 2	      /* 802.1ad outside of 802.1Q; deeper stacks pass as foreign */
#define VLAN_SHIFT 16 /* of the inner tag in packet.tags and packet.tpids */

struct cursor {
	void *pos;
	void *end;
};

struct vlan_hdr {
	__be16 tci;
	__be16 proto; /* EtherType of what follows */
};

/* Time as a value. The tick is read once a packet, being nearly free; nanoseconds (34 ns a
 * reading) only by those who need them.
 */
struct now {
	__u64 jiffies;
	__u64 ns; /* 0: not read */
};

/* What is known of a packet, in one word. */
enum packet_fact {
	PACKET_V6 = 1 << 0,
	PACKET_FRAGMENT = 1 << 1,
	PACKET_BROKEN = 1 << 2,	 /* so malformed that only this host's stack may have it */
	PACKET_SYN = 1 << 3,	 /* TCP SYN without ACK */
	PACKET_OUTER4 = 1 << 4,	 /* was encapsulated in IPv4 */
	PACKET_OUTER6 = 1 << 5,	 /* or in IPv6 */
	PACKET_TRUSTED = 1 << 6, /* by a peer, with the flow's tag: policy ran at the first hop */
	PACKET_ALLOWED = 1 << 7, /* a verdict lets it past the other policies */
	PACKET_TAGGED = 1 << 8,	 /* has a VLAN tag */
	PACKET_TAGGED_TWICE = 1 << 9,
	PACKET_OTHER = 1 << 10,	   /* its payload is neither TCP nor UDP */
	PACKET_OPTIONS = 1 << 11,  /* has IPv4 options or IPv6 extension headers */
	PACKET_SHADOW = 1 << 12,   /* its VIP's policies are counted and not enforced */
	PACKET_CID = 1 << 13,	   /* its connection ID named its backend */
	PACKET_CID_LOST = 1 << 14, /* should have, and did not */
	PACKET_STUN = 1 << 15,	   /* its ICE username fragment named its backend, or has once */

	PACKET_OUTER = PACKET_OUTER4 | PACKET_OUTER6,
	PACKET_BAD = 0xff << 16, /* see BAD() */

	PACKET_CARRIED = 1 << 24, /* goes to another site, where its flow may be */
	PACKET_SPILLED = 1 << 25, /* or where it begins */
	PACKET_HOP = 1 << 26,	  /* two bits that count: from site to site so often */
	PACKET_HOPS = 3 << 26,

	PACKET_CHANCE = 1 << 28, /* a peer's second chance: delivered here whatever happens */
	PACKET_HANDED = 1 << 29, /* goes to another edge as its second chance */
	PACKET_SILENT =
		1 << 30, /* and begins a flow, which this edge's silent daemon would not serve */

	/* above SHADOWED(); the first three of a row whose newcomers are noted (newcomer.h) */
	PACKET_NEWCOMER = 1ULL << 60,  /* it is one's */
	PACKET_FORMER = 1ULL << 61,    /* it is not: its row's former owner gets it */
	PACKET_CROWDED = 1ULL << 62,   /* it would be, but there is no place: the same */
	PACKET_STUN_LOST = 1ULL << 63, /* the fragment named nobody who can be reached */
};

_Static_assert(!((PACKET_CID | PACKET_CID_LOST | PACKET_STUN | PACKET_HANDED | PACKET_SILENT) &
		 (BERM_ROW_MOVED | BERM_ROW_BACKEND | BERM_ROW_BACKEND << BERM_ROW_SECOND)),
	       "steer has them in rows");

/* To be refused for this reason if it is for a VIP; only parse has such reasons. */
#define BAD(why) (1ULL << (16 + (why)))
_Static_assert(BERM_DROP_BAD_FRAGMENT < 8, "BAD() has 8 bits");
/* Would have been dropped for this reason. */
#define SHADOWED(why) (1ULL << (SHADOWED_SHIFT + (why)))
#define SHADOWED_SHIFT 32
#define SHADOWED_BITS 28
#define SHADOWED_ANY (((1ULL << SHADOWED_BITS) - 1) << SHADOWED_SHIFT)
_Static_assert(BERM_DROP_MAX <= SHADOWED_BITS, "SHADOWED() has room for every reason");

/* Every field costs a store where it is set, and few more would fit on the stack: what few
 * packets need is computed anew for them. Small numbers are 32 bits wide: narrower ones cost an
 * instruction each time one is used.
 */
struct packet {
	struct xdp_md *ctx;
	struct berm_config *cfg;
	__u64 zero;  /* see learn() */
	__u64 facts; /* enum packet_fact, BAD(), SHADOWED() */

	/* parse: of the outer packet, and again of the inner one where decap finds one */
	__u32 tags;  /* the two VLAN tags' TCIs, the outer one's in the low half; network order */
	__u32 tpids; /* and the EtherTypes that announce them */
	__u32 tos;
	__u32 proto; /* of the payload; of fragments as the first header says */
	__u32 len;   /* bytes of the IP packet */
	struct berm_addr src;
	struct berm_addr dst;
	/* The flow that the packet is of, or, of an ICMP error, the one that it quotes. */
	struct berm_addr client;
	__u64 ports;  /* flow_ports() */
	__u64 flow;   /* its hash: decap and steer set it */
	__u64 number; /* source_number() of src; parse sets it */

	/* vip and policy */
	/* As struct fate, for whoever is told of the packet (capture.h). */
	__u32 vip_id;
	__u32 record_id;
	__u32 drop;	      /* enum berm_drop */
	__u32 end;	      /* how it ended: stage * BERM_EXIT_MAX + exit */
	struct berm_vip *vip; /* NULL until found */
	__u64 source;	      /* source_hash() of number */
	union {
		struct berm_prefix_record record;
		__u64 record_word;
	};

	/* steer */
	struct berm_backend *backend; /* NULL = this host */
};

/* What names a flow, as it lies in struct packet. */
struct flow {
	struct berm_addr dst;
	struct berm_addr client;
	__u64 ports;
};
_Static_assert(__builtin_offsetof(struct packet, client) - __builtin_offsetof(struct packet, dst) ==
			       __builtin_offsetof(struct flow, client) &&
		       __builtin_offsetof(struct packet, ports) -
				       __builtin_offsetof(struct packet, dst) ==
			       __builtin_offsetof(struct flow, ports),
	       "struct packet has a struct flow in it");

/* What sending a packet on needs to know of it beside its facts, as it lies in struct packet. */
struct frame {
	__u32 tags;
	__u32 tpids;
	__u32 tos;
	__u32 proto;
	__u32 len;
};

#define FRAME_HAS(field)                                                                       \
	(__builtin_offsetof(struct packet, field) - __builtin_offsetof(struct packet, tags) == \
	 __builtin_offsetof(struct frame, field))
_Static_assert(FRAME_HAS(tpids) && FRAME_HAS(tos) && FRAME_HAS(proto) && FRAME_HAS(len),
	       "struct packet has a struct frame in it");

static __always_inline const struct frame *frame_of(const struct packet *pkt)
{
	return (const struct frame *)&pkt->tags;
}

static __always_inline bool is(const struct packet *pkt, __u64 facts)
{
	return pkt->facts & facts;
}

/* Bit n: it would have been dropped for reason n. */
static __always_inline __u32 shadowed_of(const struct packet *pkt)
{
	return pkt->facts >> SHADOWED_SHIFT & ((1 << SHADOWED_BITS) - 1);
}

/* 1 or 0, for arithmetic instead of a branch: fact is a single bit. */
static __always_inline __u64 fact(const struct packet *pkt, __u64 fact)
{
	return pkt->facts >> __builtin_ctzll(fact) & 1;
}

/* How often the packet went from one site to another. */
static __always_inline __u32 hops_of(__u64 facts)
{
	return facts / PACKET_HOP & BERM_SITE_HOPS;
}

static __always_inline __u32 vlans_of(const struct packet *pkt)
{
	return is(pkt, PACKET_TAGGED_TWICE) ? 2 : is(pkt, PACKET_TAGGED);
}

/* Offset of the IP header. */
static __always_inline __u32 l3_of(const struct packet *pkt)
{
	return sizeof(struct ethhdr) + vlans_of(pkt) * sizeof(struct vlan_hdr);
}

/* 0, but to the verifier it could be any number: it cannot know that the contract's is small. */
static __always_inline __u64 unknown_zero(const struct berm_config *cfg)
{
	return (cfg->contract >> 31) * cfg->seed[0];
}

/* The same number, but one that the verifier does not know: what it knows it follows through the
 * rest of the program, once for each of hundreds of kinds of packets (more than its million
 * instructions). Facts are unknown to it from the start.
 */
static __always_inline __u64 unknown(const struct packet *pkt, __u64 n)
{
	return n ^ pkt->zero;
}

static __always_inline void learn(struct packet *pkt, __u64 facts)
{
	pkt->facts |= unknown(pkt, facts);
}

/* Hides a value's origin from the compiler, which else puts back the branches that arithmetic
 * avoids, and from the verifier.
 */
#define OPAQUE(x) asm volatile("" : "+r"(x))

/* Notes a reason to refuse the packet if bit is 1. Without a branch: each would double the ways
 * through the parser that the verifier has to follow.
 */
static __always_inline void note(struct packet *pkt, enum berm_drop why, __u64 bit)
{
	OPAQUE(bit);
	pkt->facts |= bit * BAD(why);
}

/* Take the next len bytes, or NULL if the packet ends before them.
 * len must be a constant: the verifier follows constants, not sums.
 */
static __always_inline void *cur_take(struct cursor *cur, __u64 len)
{
	void *pos = cur->pos;

	if (pos + len > cur->end)
		return NULL;
	__builtin_assume(pos); /* a packet is never at NULL: clang would ask again */
	cur->pos = pos + len;
	return pos;
}

#define TAKE(cur, type) ((type *)cur_take((cur), sizeof(type)))

/* Skip len bytes; false if the packet ends before them. The verifier needs a bound, and headers
 * that take more than this are not followed.
 */
#define SKIP_MAX 4095

static __always_inline bool cur_skip(struct cursor *cur, __u32 len)
{
	__u64 bytes = len;
	void *pos;

	/* Else clang-19 compares one register and adds another, which the verifier takes for unbounded. */
	asm volatile("" : "+r"(bytes));
	if (bytes > SKIP_MAX)
		return false;
	pos = cur->pos + bytes;
	if (pos > cur->end)
		return false;
	cur->pos = pos;
	return true;
}

/* Needed anew after every helper that moves packet memory. */
static __always_inline struct cursor cur_from(struct xdp_md *ctx)
{
	struct cursor cur = {
		.pos = (void *)(long)ctx->data,
		.end = (void *)(long)ctx->data_end,
	};

	return cur;
}

/* Bytes from one pointer to another. Without the barrier clang-19 goes on in 32 bits with the
 * pointers themselves, which the verifier refuses ("32-bit pointer arithmetic prohibited").
 */
static __always_inline __u32 distance(const void *from, const void *to)
{
	__u64 bytes = to - from;

	asm volatile("" : "+r"(bytes));
	return bytes;
}

/* Bit n is set where reason n is counted and not enforced for this packet. */
static __always_inline __u64 shadow_of(const struct packet *pkt)
{
	if (is(pkt, PACKET_SHADOW) || pkt->cfg->flags & BERM_CONFIG_OBSERVE_ONLY)
		return ~0ULL;
	return pkt->cfg->shadow;
}

static __always_inline int leave(struct packet *pkt, enum berm_stage stage, enum berm_exit exit,
				 int act)
{
	pkt->end = stage * BERM_EXIT_MAX + exit;
	return act;
}

/* Of pkt->end. Multiplied, since clang leaves the division to the processor, which takes longer. */
#define PER_EXIT_MAX (1024 / BERM_EXIT_MAX + 1)
_Static_assert(BERM_STAGE_MAX *BERM_EXIT_MAX *(PER_EXIT_MAX *BERM_EXIT_MAX - 1024) < 1024,
	       "exact for every end");

static __always_inline enum berm_exit exit_of_end(__u32 end)
{
	return end - (end * PER_EXIT_MAX >> 10) * BERM_EXIT_MAX;
}

/* The stage that refuses for this reason. */
static __always_inline enum berm_stage stage_of(__u32 why)
{
	if (why <= BERM_DROP_BAD_FRAGMENT)
		return BERM_STAGE_PARSE;
	if (why <= BERM_DROP_TUNNEL_INNER)
		return BERM_STAGE_DECAP;
	switch (why) {
	case BERM_DROP_NO_SERVICE:
		return BERM_STAGE_VIP;
	case BERM_DROP_VERDICT:
		return BERM_STAGE_VERDICT;
	case BERM_DROP_ACL:
		return BERM_STAGE_PREFIX;
	case BERM_DROP_GEO:
		return BERM_STAGE_GEO;
	case BERM_DROP_NO_BACKEND:
	case BERM_DROP_CARRY:
	case BERM_DROP_REGION:
		return BERM_STAGE_STEER;
	case BERM_DROP_TOO_BIG:
		return BERM_STAGE_DELIVER;
	case BERM_DROP_AMPLIFIED:
	case BERM_DROP_BAD_INITIAL:
		return BERM_STAGE_GATE;
	default:
		return BERM_STAGE_RATE;
	}
}

/* Refuse the packet for why, or, in the rule's shadow form, remember it and go on. */
static __always_inline int refuse(struct packet *pkt, enum berm_drop why, bool shadow)
{
	if (shadow || shadow_of(pkt) >> why & 1) {
		learn(pkt, SHADOWED(why));
		return STAGE_NEXT;
	}
	pkt->drop = why;
	return leave(pkt, stage_of(why), BERM_EXIT_DROP, XDP_DROP);
}

/* Not for a service of ours: passed as it came. */
static __always_inline int foreign(struct packet *pkt, enum berm_stage stage)
{
	return leave(pkt, stage, BERM_EXIT_FOREIGN, XDP_PASS);
}

/* Our own failure before the first write: the host's stack gets the packet as it came. */
static __always_inline int fail_open(struct packet *pkt, enum berm_stage stage)
{
	return leave(pkt, stage, BERM_EXIT_FAIL_OPEN, XDP_PASS);
}

/* Our own failure after it. */
static __always_inline int abort_packet(struct packet *pkt, enum berm_stage stage)
{
	return leave(pkt, stage, BERM_EXIT_ABORTED, XDP_ABORTED);
}

#endif
