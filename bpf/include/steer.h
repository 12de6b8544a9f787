/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* steer: who owns this flow. The row of the flow's keyed hash names the owner, and the one
 * before it for when the owner cannot be reached; the same on every edge of the site,
 * without any state. If neither can, this host serves the flow if it is an edge at all.
 */
#ifndef BERM_STEER_H
#define BERM_STEER_H

#include "hash.h"
#include "maps.h"
#include "packet.h"

/* The backend if its next hop is known. */
static __always_inline struct berm_backend *backend_ready(__u32 id)
{
	struct berm_backend *backend = id ? bpf_map_lookup_elem(&berm_backends, &id) : NULL;

	if (!backend || !(backend->flags & BERM_BACKEND_READY))
		return NULL;
	return backend;
}

static __always_inline int steer(struct packet *pkt)
{
	__u32 set = pkt->vip->set, self = pkt->cfg->self;
	__u32 row, key, owner, previous;
	__u64 *cell;

	if (!set || set >= BERM_SETS || is(pkt, PACKET_OUTER | PACKET_BROKEN))
		return STAGE_NEXT;
	pkt->flow = flow_hash(pkt->cfg->secret, is(pkt, PACKET_V6), &pkt->client, &pkt->dst,
			      pkt->ports);
	row = flow_row(pkt->flow);
	key = set * BERM_ROW_CELLS + row / 2;
	cell = bpf_map_lookup_elem(&berm_rows, &key);
	if (!cell)
		return fail_open(pkt, BERM_STAGE_STEER);
	row = *cell >> (row & 1) * 32;
	owner = row & 0xffff;
	previous = row >> 16;

	if (owner && owner == self)
		return STAGE_NEXT;
	pkt->backend = backend_ready(owner);
	if (LIKELY(pkt->backend))
		return STAGE_NEXT;
	if (previous && previous == self)
		return STAGE_NEXT;
	pkt->backend = backend_ready(previous);
	if (pkt->backend)
		return STAGE_NEXT;
	if (!self)
		STAGE(refuse(pkt, BERM_DROP_NO_BACKEND, false));
	return fail_open(pkt, BERM_STAGE_STEER);
}

#endif
