/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The two clocks, in units of 64 ns. They have different zeros: never compare one with the other. */
#ifndef BERM_CLOCK_H
#define BERM_CLOCK_H

#include "packet.h"

static __always_inline __u64 clock_ns(const struct now *now)
{
	return now->ns ? now->ns : bpf_ktime_get_ns();
}

/* Moves once a tick: limits whose burst covers two ticks are exact on average. */
static __always_inline __u64 clock_coarse(const struct now *now, const struct berm_config *cfg)
{
	return now->jiffies * cfg->tick_units;
}

static __always_inline __u64 clock_fine(const struct now *now)
{
	return clock_ns(now) >> 6;
}

#endif
