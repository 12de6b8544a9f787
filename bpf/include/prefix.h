/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* prefix: one lookup gives what is known and decided about the source. IPv4 by the runs of equal
 * /24s in its /19, and a block where a /24 is split further; IPv6 by a multibit trie with
 * compressed nodes (contract.h has both layouts); the low half of an IPv6 address is not looked
 * at. A hole in the table is record 0, which knows nothing.
 */
#ifndef BERM_PREFIX_H
#define BERM_PREFIX_H

#include "addr.h"
#include "maps.h"
#include "packet.h"

#define PREFIX4_BLOCK 0x8000

static __always_inline __u32 leaf_of(const __u64 *cell, __u32 n)
{
	return cell ? *cell >> (n & 3) * 16 & 0xffff : 0;
}

static __always_inline __u32 prefix4_lookup(__u32 addr, __u32 active)
{
	__u32 key = active * BERM_PREFIX4_CELLS + (addr >> 13), leaf;
	__u64 *cell = bpf_map_lookup_elem(&berm_prefix4, &key);

	if (!cell)
		return 0;
	leaf = (*cell >> 32) - __builtin_popcount((__u32)*cell >> (addr >> 8 & 31));
	key = active * BERM_PREFIX4_LEAVES + leaf / 4;
	leaf = leaf_of(bpf_map_lookup_elem(&berm_prefix4_leaves, &key), leaf);
	if (LIKELY(!(leaf & PREFIX4_BLOCK)))
		return leaf;
	key = (active * BERM_PREFIX4_BLOCKS + (leaf & (PREFIX4_BLOCK - 1))) * 64 + (addr & 255) / 4;
	return leaf_of(bpf_map_lookup_elem(&berm_prefix4_blocks, &key), addr);
}

#define PREFIX6_STRIDE 6
#define PREFIX6_LEVELS 8 /* (64 - 16) / PREFIX6_STRIDE */

static __always_inline __u32 prefix6_lookup(__u64 addr, __u32 active)
{
	__u32 key = active * BERM_PREFIX6_ROOT + (addr >> 48);
	__u64 *root = bpf_map_lookup_elem(&berm_prefix6_root, &key);
	__u32 at = root ? *root : 0;

	for (int level = 0; level < PREFIX6_LEVELS && at & BERM_PREFIX6_NODE; level++) {
		__u32 branch = addr >> (64 - 16 - PREFIX6_STRIDE * (level + 1)) & 63;
		struct berm_prefix6_node *node;
		__u32 leaf;

		key = active * BERM_PREFIX6_NODES + (at & ~BERM_PREFIX6_NODE);
		node = bpf_map_lookup_elem(&berm_prefix6_nodes, &key);
		if (!node)
			return 0;
		if (node->kids >> branch & 1) {
			__u64 below = node->kids & ((1ULL << branch) - 1);

			at = BERM_PREFIX6_NODE | (node->kid_base + __builtin_popcountll(below));
			continue;
		}
		leaf = node->leaf_base +
		       __builtin_popcountll(node->leaves & (~0ULL >> (63 - branch))) - 1;
		key = active * BERM_PREFIX6_LEAVES + leaf / 4;
		return leaf_of(bpf_map_lookup_elem(&berm_prefix6_leaves, &key), leaf);
	}
	return at & BERM_PREFIX6_NODE ? 0 : at;
}

static __always_inline __u32 prefix_lookup(const struct packet *pkt, __u32 active)
{
	if (LIKELY(!is(pkt, PACKET_V6)))
		return prefix4_lookup(pkt->number, active);
	return prefix6_lookup(pkt->number, active);
}

static __always_inline int prefix_check(struct packet *pkt)
{
	__u32 active = pkt->cfg->prefix_active & 1;
	struct berm_prefix_record *record;
	__u32 key;

	pkt->record_id = prefix_lookup(pkt, active) & (BERM_RECORDS - 1);
	key = active * BERM_RECORDS + pkt->record_id;
	record = bpf_map_lookup_elem(&berm_prefix_records, &key);
	if (!record)
		return STAGE_NEXT;
	pkt->record_word = *(__u64 *)record;
	if (UNLIKELY(record->acl == BERM_ACTION_DROP || record->acl == BERM_ACTION_SHADOW))
		return refuse(pkt, BERM_DROP_ACL, record->acl == BERM_ACTION_SHADOW);
	return STAGE_NEXT;
}

#endif
