/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Cells of GCRA (ITU-T I.371, the virtual scheduling algorithm). A cell holds the time up to which
 * somebody's allowance is spent; once that has passed the cell says nothing and is free, so
 * evicting it loses nothing. With all cells of a set in debt the least one goes: a flood of
 * made-up sources, each with little debt, cannot push out an offender.
 */
#ifndef BERM_CELL_H
#define BERM_CELL_H

#include "clock.h"
#include "hash.h"
#include "maps.h"
#include "packet.h"

#define CELL_TAG_SHIFT 40
#define CELL_TIME ((1ULL << CELL_TAG_SHIFT) - 1)
/* The largest burst and the largest charge are 2^32 units: further ahead nothing can be. */
#define RATE_CHARGE_MAX (1ULL << 32)
#define RATE_AHEAD_MAX (2 * RATE_CHARGE_MAX)
/* Tries at a cell that other CPUs are changing; then the packet passes uncharged. */
#define RATE_TRIES 3

enum rate_dimension {
	RATE_PACKETS = 0,
	RATE_BYTES = 0x5bd1e9,
	RATE_SYNS = 0xa0761d,
	RATE_INITIALS = 0x78bd64,
	RATE_CARRY = 0x165667, /* see site.h */
	/* Added to one of those: what the aggregate, or the network, has sent, and what of its share a part
	 * of it has.
	 */
	RATE_AGGREGATE = 0x8ebc6a,
	RATE_SHARE = 0x589965,
};

static __always_inline __u64 rate_tag(__u64 source, __u32 class, __u32 dimension)
{
	__u64 tag = (source >> CELL_TAG_SHIFT ^ dimension ^ class * 0x9E3779) & 0xffffff;

	return tag ? tag : 1;
}

/* Time that the cell lies ahead of now, 0 if by more than a live one can. */
static __always_inline __u64 cell_debt(__u64 cell, __u64 now, __u64 most)
{
	__u64 debt = (cell - now) & CELL_TIME;

	return debt > most ? 0 : debt;
}

/* The searches go without branches: their outcomes are nobody's to predict, and the verifier
 * would follow each through the rest of the program.
 */
/* The number of the cell that has the tag; BERM_RATE_WAYS if none has. */
static __always_inline __u64 cell_of(const struct berm_rate_set *set, __u64 tag)
{
	__u64 found = 0, seen = 0;

#pragma unroll
	for (__u32 i = 0; i < BERM_RATE_WAYS; i++) {
		/* 1 where the tag fits, for the first that does: two CPUs may have made two */
		__u64 hit = ((set->cells[i] >> CELL_TAG_SHIFT ^ tag) - 1) >> 63 & ~seen;

		OPAQUE(hit);
		seen |= hit;
		found += hit * i;
	}
	return seen ? found : BERM_RATE_WAYS;
}

/* The number of the cell with the least debt. */
static __always_inline __u64 cell_poorest(const struct berm_rate_set *set, __u64 now)
{
	__s64 least = BERM_RATE_WAYS - 1, ahead, below;

	least |= RATE_AHEAD_MAX << 4;
#pragma unroll
	for (__u32 i = 0; i < BERM_RATE_WAYS; i++) {
		__s64 debt = (set->cells[i] - now) & CELL_TIME;

		/* All ones where the debt is below the bound; else it is stale and counts as none. */
		below = (debt - (__s64)RATE_AHEAD_MAX) >> 63;
		OPAQUE(below);
		debt = (debt & below) << 3 | i;
		ahead = debt - least;
		below = ahead >> 63;
		OPAQUE(below);
		least += ahead & below;
	}
	return least;
}

/* The cell to charge. Each tag has a home, where it is looked for first and put if that is
 * free: as long as the table is not crowded, everybody is at home.
 */
static __always_inline __u64 cell_find(const struct berm_rate_set *set, __u64 tag, __u64 now)
{
	__u64 home = tag & (BERM_RATE_WAYS - 1), way;

	if (LIKELY(set->cells[home] >> CELL_TAG_SHIFT == tag))
		return home;
	way = cell_of(set, tag);
	if (way < BERM_RATE_WAYS)
		return way;
	return cell_debt(set->cells[home], now, RATE_AHEAD_MAX) ? cell_poorest(set, now) : home;
}

enum rate_result {
	RATE_REFUSED,
	RATE_TAKEN,
	RATE_RACED, /* another CPU changed the cell */
};

/* Charges the cell at a source's arrival for amount, if its debt allows that. A source without
 * debt may always send one packet, whatever its size.
 */
static __always_inline enum rate_result cell_charge(__u64 *cell, __u64 old, __u64 tag, __u64 now,
						    const struct berm_limit *limit, __u32 amount)
{
	/* A live cell lies no further ahead than its burst or one charge, neither of which is above the
	 * bound. What does is behind, by the clock's wrap or a step of it.
	 */
	__u64 debt = old >> CELL_TAG_SHIFT == tag ? cell_debt(old, now, RATE_CHARGE_MAX) : 0;
	__u64 charge, next;

	/* Fractions of a unit are kept on average: the arrival time dithers them. */
	charge = (limit->cost * amount + ((now + debt) * HASH_A >> 48)) >> 16;
	if (UNLIKELY(charge > RATE_CHARGE_MAX))
		charge = RATE_CHARGE_MAX;
	if (debt && debt + charge > limit->burst_units)
		return RATE_REFUSED;
	next = tag << CELL_TAG_SHIFT | ((now + debt + charge) & CELL_TIME);
	return __sync_val_compare_and_swap(cell, old, next) == old ? RATE_TAKEN : RATE_RACED;
}

/* For sources that are not at home. A function of its own, which the verifier checks by itself:
 * in line, three limits with three tries each are more than it is willing to follow.
 */
__noinline int rate_take_anywhere(struct berm_rate_set *set, const struct berm_limit *limit,
				  __u64 tag, __u64 now, __u32 amount)
{
	if (!set || !limit)
		return RATE_TAKEN;
	for (int i = 0; i < RATE_TRIES; i++) {
		__u64 *cell = &set->cells[cell_find(set, tag, now) & (BERM_RATE_WAYS - 1)];
		enum rate_result result = cell_charge(cell, *cell, tag, now, limit, amount);

		if (result != RATE_RACED)
			return result;
	}
	return RATE_TAKEN;
}

/* May the source send amount more? In line for sources at home: a call costs 15 ns. */
static __always_inline bool rate_take(struct berm_rate_set *set, const struct berm_limit *limit,
				      __u64 tag, __u64 now, __u32 amount)
{
	__u64 *home = &set->cells[tag & (BERM_RATE_WAYS - 1)], old = *home;
	enum rate_result result = RATE_RACED;

	if (LIKELY(old >> CELL_TAG_SHIFT == tag))
		result = cell_charge(home, old, tag, now, limit, amount);
	if (UNLIKELY(result == RATE_RACED))
		result = rate_take_anywhere(set, limit, tag, now, amount);
	return result != RATE_REFUSED;
}

#endif
