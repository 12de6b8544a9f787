//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What this host itself sends. Only packets of probes (probe.h) are touched: they leave as those of a service's
 * clients do, encapsulated by the same code (deliver.h). The stack has written the Ethernet header of the
 * server's next hop already, so that L2 needs nothing but the service's address. All others go on at once.
 * Whatever goes wrong after the first write loses the packet: at the server's own address it would say
 * nothing about the tunnel.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#include <bpf/bpf_helpers.h>

#include "deliver.h"
#include "probe.h"

#define L3 sizeof(struct ethhdr)

static __always_inline struct cursor cur_of(struct __sk_buff *skb)
{
	struct cursor cur = {
		.pos = (void *)(long)skb->data,
		.end = (void *)(long)skb->data_end,
	};

	return cur;
}

/* The stack sends neither IPv4 options nor extension headers with them. Returns the size of the IP header, or 0. */
static __always_inline __u32 parse_own(struct __sk_buff *skb, struct packet *pkt)
{
	struct cursor cur = cur_of(skb);
	__u32 size = sizeof(struct ipv6hdr);
	struct tcphdr *tcp;
	struct ethhdr *eth = TAKE(&cur, struct ethhdr);

	if (!eth)
		return 0;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = TAKE(&cur, struct iphdr);

		if (!ip || ip->protocol != IPPROTO_TCP || ip->ihl != 5)
			return 0;
		pkt->client = addr_v4(ip->saddr);
		pkt->dst = addr_v4(ip->daddr);
		pkt->tos = ip->tos;
		pkt->len = bpf_ntohs(ip->tot_len);
		size = sizeof(*ip);
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = TAKE(&cur, struct ipv6hdr);

		if (!ip || ip->nexthdr != IPPROTO_TCP)
			return 0;
		pkt->client = addr_v6(&ip->saddr);
		pkt->dst = addr_v6(&ip->daddr);
		pkt->tos = bpf_ntohl(*(__be32 *)ip) >> 20 & 0xff;
		pkt->len = bpf_ntohs(ip->payload_len) + sizeof(*ip);
		pkt->facts = PACKET_V6;
	} else {
		return 0;
	}
	tcp = TAKE(&cur, struct tcphdr);
	if (!tcp)
		return 0;
	pkt->ports = flow_ports(*(__be32 *)tcp, IPPROTO_TCP);
	return size;
}

/* The kernel's helpers know of checksums that the device is to make. */
static __always_inline bool readdress(struct __sk_buff *skb, const struct berm_probe *probe,
				      __u32 size)
{
	__u32 check = L3 + size + __builtin_offsetof(struct tcphdr, check);
	struct berm_addr from = probe->server, to = probe->service;
	__s64 diff;

	if (size == sizeof(struct ipv6hdr)) {
		diff = bpf_csum_diff(from.words, sizeof(from), to.words, sizeof(to), 0);
		return diff >= 0 && !bpf_l4_csum_replace(skb, check, 0, diff, BPF_F_PSEUDO_HDR) &&
		       !bpf_skb_store_bytes(skb, L3 + __builtin_offsetof(struct ipv6hdr, daddr),
					    &to, sizeof(to), 0);
	}
	return !bpf_l4_csum_replace(skb, check, from.words[3], to.words[3],
				    BPF_F_PSEUDO_HDR | sizeof(__be32)) &&
	       !bpf_l3_csum_replace(skb, L3 + __builtin_offsetof(struct iphdr, check),
				    from.words[3], to.words[3], sizeof(__be32)) &&
	       !bpf_skb_store_bytes(skb, L3 + __builtin_offsetof(struct iphdr, daddr), &to.words[3],
				    sizeof(__be32), 0);
}

/* six is constant, so that each of the two ways knows its sizes. */
static __always_inline bool into_tunnel(struct __sk_buff *skb, const struct packet *pkt,
					const struct berm_backend *to, bool six)
{
	__u64 flags = six ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV4;
	__u32 size = six ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	bool gue = to->via == BERM_VIA_GUE;
	struct cursor cur;

	if (gue) {
		size += sizeof(struct udphdr);
		flags |= BPF_F_ADJ_ROOM_ENCAP_L4_UDP;
	}
	if (addr_is_zero(six ? &pkt->cfg->self6 : &pkt->cfg->self4) ||
	    bpf_skb_adjust_room(skb, size, BPF_ADJ_ROOM_MAC, flags))
		return false;
	cur = cur_of(skb);
	if (!TAKE(&cur, struct ethhdr))
		return false;
	return gue ? put_gue(&cur, pkt->cfg, to, frame_of(pkt), pkt->flow) :
		     put_outer(pkt, &cur, to, six);
}

SEC("tc")
int berm_egress(struct __sk_buff *skb)
{
	struct packet pkt = {};
	struct berm_probe *probe;
	__u32 key = 0, size;

	pkt.cfg = bpf_map_lookup_elem(&berm_config, &key);
	if (!pkt.cfg || LIKELY(!(pkt.cfg->flags & BERM_CONFIG_PROBES)))
		return TC_ACT_UNSPEC;
	size = parse_own(skb, &pkt);
	if (!size)
		return TC_ACT_UNSPEC;
	probe = probe_at(pkt.ports >> 24 & 0xffff, pkt.ports >> 8 & 0xffff);
	if (!probe || !addr_equal(&probe->server, &pkt.dst))
		return TC_ACT_UNSPEC;
	key = probe->backend;
	pkt.backend = bpf_map_lookup_elem(&berm_backends, &key);
	if (!pkt.backend || addr_is_mapped(&probe->service) != addr_is_mapped(&probe->server))
		return TC_ACT_SHOT;
	if (!readdress(skb, probe, size))
		return TC_ACT_SHOT;
	pkt.flow = flow_hash(pkt.cfg->secret, is(&pkt, PACKET_V6), &pkt.client, &probe->service,
			     pkt.ports);
	probe->sent++;
	if (pkt.backend->via == BERM_VIA_L2)
		return TC_ACT_UNSPEC;
	if (is(&pkt, PACKET_V6) ? !into_tunnel(skb, &pkt, pkt.backend, true) :
				  !into_tunnel(skb, &pkt, pkt.backend, false))
		return TC_ACT_SHOT;
	return TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "Dual BSD/GPL";
