/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* SYN cookies: the SYN becomes its own answer, with a cookie of the kernel's, which checks it itself
 * when the ACK comes. The kernel accepts cookies only while net.ipv4.tcp_syncookies is 2 (with 1
 * only when its own queue has overflowed, which here it never does); else it gets the SYN.
 */
#ifndef BERM_SYN_H
#define BERM_SYN_H

#include <linux/in.h>

#include "answer.h"
#include "chance.h"
#include "maps.h"
#include "packet.h"
#include "parse_l4.h"

#define TCP_OPTIONS_MAX 40

enum tcp_option {
	TCP_OPT_END = 0,
	TCP_OPT_NOP = 1,
	TCP_OPT_MSS = 2,
	TCP_OPT_WSCALE = 3,
	TCP_OPT_SACK = 4,
	TCP_OPT_TIME = 8,
};

#define TCP_WSCALE_MAX 14
/* What every link carries (RFC 9293, section 3.7.1; RFC 8200, section 5). */
#define TCP_MSS4_LEAST 536
#define TCP_MSS6_LEAST 1220
/* Below what Linux grants a new connection, whatever its settings say. */
#define SYN_ACK_WINDOW 29200

/* As the kernel has them in the low bits of a cookie's timestamp (net/ipv4/syncookies.c). */
#define STAMP_BITS 6
#define STAMP_NO_WSCALE 15
#define STAMP_SACK 16

/* What a SYN says in its options. */
struct syn_options {
	__u32 mss; /* 0 = none */
	__u32 wscale;
	__u32 sack;
	__u32 timed;
	__be32 stamp;
};

/* What the SYN-ACK says, in words as they are on the wire. */
struct syn_ack {
	struct tcp_header tcp;
	__be32 mss;
	/* With options: SACK and timestamps, no-operation and window scale. */
	__be32 time[3];
	__be32 wscale;
};
#define SYN_ACK_SHORT 24
#define SYN_ACK_LONG 40
_Static_assert(sizeof(struct syn_ack) == SYN_ACK_LONG, "syn_ack is on the wire");

/* A packet at the gate, and what is worked out about it there: more than fits on a stack. */
struct gated {
	struct answer to;
	__u64 units; /* now, by the coarse clock */
	__u64 ns;    /* now, where it has been read */
	__u32 vip_id;
	__u32 syn; /* TCP SYN; else UDP */

	struct tcp_header tcp; /* of the SYN */
	__be32 cookie_mss;     /* the one option of it that a cookie is made of */
	struct syn_options got;
	__u32 at; /* how far the options have been read */
	struct bpf_sock_tuple tuple;
	__u8 options[64]; /* so many that six bits count them */
	struct syn_ack ack;
};

/* Reads the options one by one, as any stack does: a length that makes no sense ends them. A
 * function of its own, which the verifier checks by itself.
 */
__noinline int read_options(struct gated *in, __u32 size)
{
	struct syn_options *got;
	const __u8 *opt;

	if (!in)
		return 0;
	got = &in->got;
	opt = in->options;
	in->at = 0;
	got->mss = in->to.six ? TCP_MSS6_LEAST : TCP_MSS4_LEAST;
	got->wscale = STAMP_NO_WSCALE;
	got->sack = got->timed = got->stamp = 0;
	for (__u32 n = 0; n < TCP_OPTIONS_MAX; n++) {
		/* From memory, or the verifier follows every number that it could be: more than a million. */
		__u32 at = *(volatile __u32 *)&in->at;
		__u32 kind = opt[at & 63], len = opt[(at + 1) & 63];
		__u32 first = opt[(at + 2) & 63];

		if (at >= size || kind == TCP_OPT_END)
			break;
		if (kind == TCP_OPT_NOP) {
			in->at = at + 1;
			continue;
		}
		if (len < 2 || at + len > size)
			break;
		if (kind == TCP_OPT_MSS && len == 4)
			got->mss = first << 8 | opt[(at + 3) & 63];
		if (kind == TCP_OPT_WSCALE && len == 3)
			got->wscale = first > TCP_WSCALE_MAX ? TCP_WSCALE_MAX : first;
		if (kind == TCP_OPT_SACK && len == 2)
			got->sack = 1;
		if (kind == TCP_OPT_TIME && len == 10) {
			got->timed = 1;
			got->stamp = bpf_htonl(first << 24 | (__u32)opt[(at + 3) & 63] << 16 |
					       (__u32)opt[(at + 4) & 63] << 8 | opt[(at + 5) & 63]);
		}
		in->at = at + len;
	}
	return 0;
}

/* The kernel's cookie for the SYN; negative if it gives none. */
static __always_inline __s64 syn_cookie(struct xdp_md *ctx, struct gated *in, void *ip)
{
	struct bpf_sock_tuple *tuple = &in->tuple;
	void *tcp = &in->tcp;
	const __u32 size = sizeof(in->tcp) + sizeof(in->cookie_mss);
	__be16 sport = in->tcp.ports, dport = in->tcp.ports >> 16;
	struct bpf_sock *sk;
	__s64 cookie = -1;

	in->cookie_mss = bpf_htonl(TCP_OPT_MSS << 24 | 4 << 16 | in->got.mss);
	in->tcp.offset = size / 4 << 4;
	if (in->to.six) {
		addr_put((struct in6_addr *)tuple->ipv6.saddr, &in->to.client);
		addr_put((struct in6_addr *)tuple->ipv6.daddr, &in->to.vip);
		tuple->ipv6.sport = sport;
		tuple->ipv6.dport = dport;
		sk = bpf_skc_lookup_tcp(ctx, tuple, sizeof(tuple->ipv6), BPF_F_CURRENT_NETNS, 0);
	} else {
		tuple->ipv4.saddr = in->to.client.words[3];
		tuple->ipv4.daddr = in->to.vip.words[3];
		tuple->ipv4.sport = sport;
		tuple->ipv4.dport = dport;
		sk = bpf_skc_lookup_tcp(ctx, tuple, sizeof(tuple->ipv4), BPF_F_CURRENT_NETNS, 0);
	}
	if (!sk)
		return -1;
	if (sk->state == TCP_STATE_LISTEN && in->to.six)
		cookie = bpf_tcp_gen_syncookie(sk, ip, sizeof(struct ipv6hdr), tcp, size);
	else if (sk->state == TCP_STATE_LISTEN)
		cookie = bpf_tcp_gen_syncookie(sk, ip, sizeof(struct iphdr), tcp, size);
	bpf_sk_release(sk);
	return cookie;
}

/* The time with the options in its low bits, never ahead of the clock. */
static __always_inline __u32 cookie_stamp(const struct syn_options *got, __u64 ns)
{
	__u64 now = ns / 1000000;
	__u32 options = got->wscale | (got->sack ? STAMP_SACK : 0);
	__u64 stamp = now >> STAMP_BITS << STAMP_BITS | options;

	return stamp > now ? stamp - (1 << STAMP_BITS) : stamp;
}

static __always_inline void make_syn_ack(struct gated *in, const struct berm_reply *reply,
					 __u32 cookie)
{
	const struct syn_options *got = &in->got;
	struct syn_ack *out = &in->ack;
	__u32 words = (got->timed ? SYN_ACK_LONG : SYN_ACK_SHORT) / 4;
	__u32 mss = in->to.six ? reply->mss6 : reply->mss4;
	__u32 *word = (__u32 *)out;
	__u64 sum = answer_addresses(&in->to) + bpf_htonl(IPPROTO_TCP) + bpf_htonl(words * 4);

	if (!mss)
		mss = in->to.six ? TCP_MSS6_LEAST : TCP_MSS4_LEAST;
	word[0] = in->tcp.ports >> 16 | in->tcp.ports << 16;
	word[1] = bpf_htonl(cookie);
	word[2] = bpf_htonl(bpf_ntohl(in->tcp.seq) + 1);
	word[3] = bpf_htonl(words << 28 | (__u32)(TCP_SYN | TCP_ACK) << 16 | SYN_ACK_WINDOW);
	word[4] = 0;
	out->mss = bpf_htonl(TCP_OPT_MSS << 24 | 4 << 16 | mss);
	if (got->timed) {
		__u32 sack = got->sack ? TCP_OPT_SACK << 24 | 2 << 16 :
					 TCP_OPT_NOP << 24 | TCP_OPT_NOP << 16;
		__u32 scale = got->wscale == STAMP_NO_WSCALE ?
				      TCP_OPT_NOP << 16 | TCP_OPT_NOP << 8 | TCP_OPT_NOP :
				      TCP_OPT_WSCALE << 16 | 3 << 8 | reply->window_scale;

		out->time[0] = bpf_htonl(sack | TCP_OPT_TIME << 8 | 10);
		out->time[1] = bpf_htonl(cookie_stamp(got, in->ns ? in->ns : bpf_ktime_get_ns()));
		out->time[2] = got->stamp;
		out->wscale = bpf_htonl(TCP_OPT_NOP << 24 | scale);
	}
#pragma unroll
	for (__u32 i = 0; i < SYN_ACK_SHORT / 4; i++)
		sum += word[i];
	if (got->timed)
		sum += (__u64)out->time[0] + out->time[1] + out->time[2] + out->wscale;
	out->tcp.check = ~csum_fold(sum);
}

/* Writes the answer over the packet; size is constant. */
static __always_inline bool put_syn_ack(struct xdp_md *ctx, const struct gated *in, __u32 size)
{
	const __u32 *from = (const __u32 *)&in->ack;
	struct cursor cur = cur_from(ctx);
	__u32 *out;

	if (!cur_skip(&cur, in->to.l3) || !put_answer_ip(&cur, &in->to, size, IPPROTO_TCP))
		return false;
	out = cur_take(&cur, size);
	if (!out)
		return false;
#pragma unroll
	for (__u32 i = 0; i < SYN_ACK_LONG / 4; i++)
		if (i < size / 4)
			out[i] = from[i];
	return true;
}

/* Returns the action that sends the answer, or -1 if there is none. */
static __always_inline int syn_answer(struct xdp_md *ctx, struct gated *in)
{
	__u32 at = in->to.l3 + in->to.outer, key = 0, size;
	struct cursor cur = cur_from(ctx);
	struct berm_reply *reply;
	struct tcp_header *tcp;
	__s64 cookie;
	void *ip;
	int act;

	reply = bpf_map_lookup_elem(&berm_reply, &key);
	if (!reply || !answer_is_sane(&in->to) || !cur_skip(&cur, at))
		return -1;
	ip = in->to.six ? cur_take(&cur, sizeof(struct ipv6hdr)) :
			  cur_take(&cur, sizeof(struct iphdr));
	if (!ip || !(tcp = TAKE(&cur, struct tcp_header)))
		return -1;
	in->tcp = *tcp;
	at += (in->to.six ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)) + sizeof(*tcp);
	size = (in->tcp.offset >> 4) * 4 - sizeof(*tcp);
	if (size) {
		/* Linux 6.1 sees a bound only where the very register is compared. */
		OPAQUE(size);
		if (size < 4 || size > TCP_OPTIONS_MAX ||
		    bpf_xdp_load_bytes(ctx, at, in->options, size))
			return -1;
	}
	read_options(in, size);
	cookie = syn_cookie(ctx, in, ip);
	if (cookie < 0)
		return -1;
	if (!(reply->flags & BERM_REPLY_OPTIONS))
		in->got.timed = 0;
	make_syn_ack(in, reply, cookie);

	size = in->got.timed ? SYN_ACK_LONG : SYN_ACK_SHORT;
	act = answer_frame(ctx, &in->to,
			   size + (in->to.six ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)));
	if (act == XDP_PASS)
		return -1;
	if (act == XDP_ABORTED || !(in->got.timed ? put_syn_ack(ctx, in, SYN_ACK_LONG) :
						    put_syn_ack(ctx, in, SYN_ACK_SHORT)))
		return XDP_ABORTED;
	return act;
}

#endif
