/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* generation: which process of bermd a datagram of QUIC is for, while an old one ends what it began,
 * and which of the process's workers. The hash of a connection ID, keyed with this host's seed, has the
 * slot of the process that gave it out in its low half and the worker in its high half; the worker makes
 * IDs until one has both. So IDs need no room for it, in any format, nobody else can tell from them that
 * two are of one process, and no ID is decrypted for it. IDs that a client made up say nothing of the
 * process, and are for the newest; but all packets that carry one meet the same worker.
 */
#ifndef BERM_GENERATION_H
#define BERM_GENERATION_H

#include <linux/bpf.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "cid.h"
#include "hash.h"
#include "maps.h"

/* What is looked at is at most this, and no packet that can be decrypted is shorter than it. */
struct quic_start {
	__u8 first;
	__u8 version[4];
	__u8 cid_len;
	__u8 pad[2];
};

/* A connection ID as numbers, which the verifier lets programs read from the stack only when aligned. */
union quic_cid {
	__u8 bytes[24];
	__be64 words[3];
};

/* The first len bytes of a connection ID, counted from the word's own first. */
static __always_inline __u64 cid_word(const union quic_cid *cid, __u32 i, __s32 len)
{
	len -= 8 * i;
	if (len <= 0)
		return 0;
	return bpf_be64_to_cpu(cid->words[i]) & (len >= 8 ? ~0ULL : ~0ULL << (64 - 8 * len));
}

/* Is this the ID of a server, this one? Clients' own name it once in 2^16 times or less. */
static __always_inline bool cid_is_ours(__u64 a, __u64 b, __u64 c, __u32 len)
{
	struct cid_content in = { a << 8 | b >> 56, b << 8 | c >> 56, c << 8 };
	struct berm_config *cfg;
	struct berm_cid *format;
	struct berm_sid *sid;
	__u32 key = a >> 61, zero = 0;
	__u64 server = in.hi;

	format = bpf_map_lookup_elem(&berm_cids, &key);
	cfg = bpf_map_lookup_elem(&berm_config, &zero);
	if (!format || !cfg || !(format->flags & BERM_CID_USED) || len != 1u + format->content_len)
		return false;
	if (format->flags & BERM_CID_BLOCK)
		server = cid_open_block(format, in.hi, in.lo);
	else if (format->flags != BERM_CID_USED)
		server = cid_open_feistel(format, in.hi, in.lo, in.rest);
	server >>= (BERM_CID_SERVER - format->server_len) * 8 & 63;
	if (server < BERM_SIDS) {
		key = server;
		sid = bpf_map_lookup_elem(&berm_sids, &key);
	} else {
		sid = bpf_map_lookup_elem(&berm_sids_long, &server);
	}
	return sid && sid->backend && sid->backend == cfg->self;
}

/* Initial and 0-RTT: only their IDs may be the client's own. */
static __always_inline bool starts_quic(const struct quic_start *q)
{
	__u32 version = (__u32)q->version[0] << 24 | q->version[1] << 16 | q->version[2] << 8 |
			q->version[3];
	__u32 type = (q->first >> 4) - (version == QUIC_V2);

	return (type & 3) < QUIC_TYPES_OF_START;
}

/* The slot that a datagram is for, and the hash that names its worker. What is no QUIC is for the newest,
 * and for any worker.
 */
static __always_inline __u32 generation_slot(struct sk_reuseport_md *ctx,
					     const struct berm_generations *all, __u64 *hash)
{
	__u32 at = sizeof(struct udphdr), len;
	union quic_cid cid = {};
	struct quic_start q = {};
	__u64 a, b, c;

	*hash = (__u64)ctx->hash << 32; /* of the flow */
	if (bpf_skb_load_bytes(ctx, at, &q, 6))
		return all->newest;
	at += q.first & QUIC_LONG ? 6 : 1;
	if (bpf_skb_load_bytes(ctx, at, &cid, 1 + BERM_CID_CONTENT))
		return all->newest;
	len = q.first & QUIC_LONG ? q.cid_len : 1u + (cid.bytes[0] & 31);
	if (!len || len > 1 + BERM_CID_CONTENT)
		return all->newest;
	a = cid_word(&cid, 0, len);
	b = cid_word(&cid, 1, len);
	c = cid_word(&cid, 2, len);
	*hash = cid_hash(all->seed, a, b, c);
	if (q.first & QUIC_LONG && starts_quic(&q) && !cid_is_ours(a, b, c, len))
		return all->newest;
	return *hash & (BERM_GENERATIONS - 1);
}

/* Gives the datagram to a slot's worker; not 0 where there is no such socket. */
static __always_inline long generation_give(struct sk_reuseport_md *ctx,
					    const struct berm_generations *all, __u32 port,
					    __u32 slot, __u64 hash)
{
	__u32 at;

	slot &= BERM_GENERATIONS - 1;
	at = (port * BERM_GENERATIONS + slot) * BERM_WORKERS +
	     ((hash >> 32) * all->workers[slot] >> 32);
	return bpf_sk_select_reuseport(ctx, &berm_generation_sockets, &at, 0);
}

/* The number of the address that the sockets of all generations are bound to, or NULL. */
static __always_inline __u32 *generation_port(struct sk_reuseport_md *ctx)
{
	struct berm_generation_port key = {};
	struct bpf_sock *sk = ctx->sk;
	__be32 last, four = sk->src_ip4;

	key.port = sk->src_port;
	key.addr.words[0] = sk->src_ip6[0];
	key.addr.words[1] = sk->src_ip6[1];
	key.addr.words[2] = sk->src_ip6[2];
	last = sk->src_ip6[3];
	/* Else clang 19 adds one of two offsets to sk, which the verifier prohibits. */
	asm volatile("" : "+r"(last), "+r"(four));
	if (sk->family != 10 /* AF_INET6 */) {
		key.addr.words[0] = 0;
		key.addr.words[1] = 0;
		key.addr.words[2] = bpf_htonl(0xffff);
		last = four;
	}
	key.addr.words[3] = last;
	return bpf_map_lookup_elem(&berm_generation_ports, &key);
}

#endif
