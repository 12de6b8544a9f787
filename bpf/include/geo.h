/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* geo: the VIP's policy for the source's country. An ACL that allows the source goes before it. */
#ifndef BERM_GEO_H
#define BERM_GEO_H

#include "maps.h"
#include "packet.h"

static __always_inline int geo_check(struct packet *pkt)
{
	__u32 policy = pkt->vip->geo_policy;
	__u32 key = policy * BERM_COUNTRIES + (pkt->record.country & (BERM_COUNTRIES - 1));
	struct berm_geo_rule *rule;

	if (!policy || pkt->record.acl == BERM_ACTION_ALLOW)
		return STAGE_NEXT;
	rule = bpf_map_lookup_elem(&berm_geo_rules, &key);
	if (rule &&
	    UNLIKELY(rule->action == BERM_ACTION_DROP || rule->action == BERM_ACTION_SHADOW))
		return refuse(pkt, BERM_DROP_GEO, rule->action == BERM_ACTION_SHADOW);
	return STAGE_NEXT;
}

#endif
