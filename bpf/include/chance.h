/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* chance: whose flow is this, by the sockets of this host? An owner without one lets the packet
 * have a second chance at the row's second, once: there it is delivered whatever happens. Our
 * own failure counts as "ours", so that the packet stays where it is.
 */
#ifndef BERM_CHANCE_H
#define BERM_CHANCE_H

#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>

#include "addr.h"
#include "maps.h"
#include "packet.h"
#include "parse.h"

#define TCP_STATE_TIME_WAIT 6 /* of the kernel's enum, which is not in its headers for us */
#define TCP_STATE_LISTEN 10

/* Bytes of the outer header that the packet came in, without a branch for the verifier to follow. */
static __always_inline __u32 outer_of(__u64 facts)
{
	return (facts / PACKET_OUTER4 & 1) * sizeof(struct iphdr) +
	       (facts / PACKET_OUTER6 & 1) * sizeof(struct ipv6hdr);
}

/* The headers of the packet that policy and steering are about, as far as they are of this
 * protocol: extension headers are not followed.
 */
struct headers {
	void *ip; /* NULL = not so */
	struct cursor payload;
};

static __always_inline struct headers headers_from(struct xdp_md *ctx, __u64 facts, __u8 proto)
{
	struct headers h = { .payload = cur_from(ctx) };
	__u32 tags = !!(facts & PACKET_TAGGED) + !!(facts & PACKET_TAGGED_TWICE);
	struct ipv6hdr *ip6;
	struct iphdr *ip;

	if (!cur_skip(&h.payload,
		      sizeof(struct ethhdr) + tags * sizeof(struct vlan_hdr) + outer_of(facts)))
		return h;
	if (facts & PACKET_V6) {
		ip6 = TAKE(&h.payload, struct ipv6hdr);
		if (ip6 && ip6->nexthdr == proto)
			h.ip = ip6;
		return h;
	}
	ip = TAKE(&h.payload, struct iphdr);
	if (ip && ip->protocol == proto && ip->ihl >= 5 &&
	    cur_skip(&h.payload, ip->ihl * 4 - sizeof(*ip)))
		h.ip = ip;
	return h;
}

/* Is the packet the last step of a handshake that the listener answered with a SYN cookie? Only
 * the cookie knows of that flow.
 */
static __always_inline bool has_cookie(struct xdp_md *ctx, struct bpf_sock *listener, __u64 facts)
{
	struct headers h = headers_from(ctx, facts, IPPROTO_TCP);
	struct tcphdr *tcp;

	if (!h.ip || !(tcp = TAKE(&h.payload, struct tcphdr)))
		return false;
	if (facts & PACKET_V6)
		return !bpf_tcp_check_syncookie(listener, h.ip, sizeof(struct ipv6hdr), tcp,
						sizeof(*tcp));
	return !bpf_tcp_check_syncookie(listener, h.ip, sizeof(struct iphdr), tcp, sizeof(*tcp));
}

/* What is left of a connection, as the kernel has it: found by name, wherever it is there. */
struct sock_common {
	__u32 skc_tw_rcv_nxt;
} __attribute__((preserve_access_index));
struct inet_timewait_sock {
	struct sock_common __tw_common;
} __attribute__((preserve_access_index));
struct tcp_timewait_sock {
	struct inet_timewait_sock tw_sk;
} __attribute__((preserve_access_index));

#define CHANCE_WINDOW (1 << 16) /* sequence numbers before and after what is expected next */

/* Is the packet of the connection that this is the rest of (TIME_WAIT, and FIN_WAIT_2 of one that
 * nobody reads from), or of one that came after, from the same port, whose owner is another? The
 * next one's sequence numbers begin elsewhere (RFC 6528): 16,000 further for each millisecond.
 */
static __always_inline bool is_rest(struct xdp_md *ctx, struct bpf_sock *sk, __u64 facts)
{
	struct tcp_timewait_sock *rest = bpf_skc_to_tcp_timewait_sock(sk);
	struct headers h = headers_from(ctx, facts, IPPROTO_TCP);
	struct tcphdr *tcp;

	if (!rest || !h.ip || !(tcp = TAKE(&h.payload, struct tcphdr)))
		return true;
	return bpf_ntohl(tcp->seq) - rest->tw_sk.__tw_common.skc_tw_rcv_nxt + CHANCE_WINDOW <
	       2 * CHANCE_WINDOW;
}

static __always_inline bool is_of(struct xdp_md *ctx, struct bpf_sock *sk, __u64 facts)
{
	switch (sk->state) {
	case TCP_STATE_LISTEN:
		return has_cookie(ctx, sk, facts);
	case TCP_STATE_TIME_WAIT:
		return is_rest(ctx, sk, facts);
	}
	return true;
}

/* Does this host have the TCP flow: a connection, a request for one, the end of one, or a cookie? */
static __always_inline bool holds_flow(struct xdp_md *ctx, const struct flow *flow, __u64 facts)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk;
	bool holds;

	if (facts & PACKET_V6) {
		for (int i = 0; i < 4; i++) {
			tuple.ipv6.saddr[i] = flow->client.words[i];
			tuple.ipv6.daddr[i] = flow->dst.words[i];
		}
		tuple.ipv6.sport = bpf_htons(flow->ports >> 24);
		tuple.ipv6.dport = bpf_htons(flow->ports >> 8);
		sk = bpf_skc_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
	} else {
		tuple.ipv4.saddr = flow->client.words[3];
		tuple.ipv4.daddr = flow->dst.words[3];
		tuple.ipv4.sport = bpf_htons(flow->ports >> 24);
		tuple.ipv4.dport = bpf_htons(flow->ports >> 8);
		sk = bpf_skc_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	}
	if (!sk)
		return false;
	holds = is_of(ctx, sk, facts);
	bpf_sk_release(sk);
	return holds;
}

#endif
