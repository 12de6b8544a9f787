/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* probe: servers that run no Berm are asked as clients' packets reach them, by a daemon that may open no
 * tunnel. It connects to the server's own address; on the way out (egress.bpf.c) its packets become ones
 * to the service, in the server's tunnel, and here the answer, which comes from the service's address
 * straight to this host, becomes one of the server's own. What fits no probe is not touched.
 */
#ifndef BERM_PROBE_H
#define BERM_PROBE_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>

#include "addr.h"
#include "csum.h"
#include "hash.h"
#include "maps.h"
#include "packet.h"

static __always_inline struct berm_probe *probe_at(__u32 local, __u32 port)
{
	__u32 key = local & (BERM_PROBES - 1);
	struct berm_probe *probe = bpf_map_lookup_elem(&berm_probes, &key);

	return probe && probe->port && probe->port == port ? probe : NULL;
}

/* Sum over an address as a pseudo-header has it. IPv4's mapped prefix counts as nothing: 0xffff is zero. */
static __always_inline __u64 addr_sum(const struct berm_addr *addr)
{
	return (__u64)addr->words[0] + addr->words[1] + addr->words[2] + addr->words[3];
}

/* RFC 1624, equation 3, where from becomes to. */
static __always_inline __u16 csum_moved(__u16 check, const struct berm_addr *from,
					const struct berm_addr *to)
{
	__u64 sum = (__u64)(__u16)~check + addr_sum(to);

	for (__u32 i = 0; i < 4; i++)
		sum += (__u32)~from->words[i];
	return ~csum_fold(sum);
}

static __always_inline bool answer_ipv4(struct cursor *cur, const struct berm_probe *probe)
{
	struct iphdr *ip = TAKE(cur, struct iphdr);
	struct tcphdr *tcp = TAKE(cur, struct tcphdr);

	if (!ip || !tcp || ip->ihl != 5 || !addr_is_mapped(&probe->server))
		return false;
	ip->check = csum_moved(ip->check, &probe->service, &probe->server);
	tcp->check = csum_moved(tcp->check, &probe->service, &probe->server);
	ip->saddr = addr_to_v4(&probe->server);
	return true;
}

static __always_inline bool answer_ipv6(struct cursor *cur, const struct berm_probe *probe)
{
	struct ipv6hdr *ip = TAKE(cur, struct ipv6hdr);
	struct tcphdr *tcp = TAKE(cur, struct tcphdr);

	if (!ip || !tcp || ip->nexthdr != IPPROTO_TCP || addr_is_mapped(&probe->server))
		return false;
	tcp->check = csum_moved(tcp->check, &probe->service, &probe->server);
	addr_put(&ip->saddr, &probe->server);
	return true;
}

/* Of a packet for no service. In a function of its own, so that the verifier checks it once. */
__noinline int probe_answer(struct xdp_md *ctx, const struct flow *flow, __u64 facts)
{
	struct berm_probe *probe;
	struct cursor cur = cur_from(ctx);

	if (!flow || (flow->ports & 0xff) != IPPROTO_TCP ||
	    facts & (PACKET_FRAGMENT | PACKET_BROKEN | PACKET_OUTER | PACKET_OPTIONS))
		return 0;
	probe = probe_at(flow->ports >> 8 & 0xffff, flow->ports >> 24 & 0xffff);
	if (!probe || !addr_equal(&probe->service, &flow->client))
		return 0;
	if (!TAKE(&cur, struct ethhdr) || (facts & PACKET_TAGGED && !TAKE(&cur, struct vlan_hdr)) ||
	    (facts & PACKET_TAGGED_TWICE && !TAKE(&cur, struct vlan_hdr)))
		return 0;
	return facts & PACKET_V6 ? answer_ipv6(&cur, probe) : answer_ipv4(&cur, probe);
}

#endif
