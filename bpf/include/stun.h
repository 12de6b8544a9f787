/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* stun: WebRTC goes to the edge that has given out the ICE username fragment which the client's
 * connectivity checks name (RFC 8445, section 7.2.2; RFC 8489). It is 16 characters: server ID (two bytes)
 * and nonce (four), and six bytes of their keyed hash, in base64, whose alphabet ICE's is.
 *
 * DTLS and SRTP of the same flow name nobody, so who was named is remembered, by flow, and forgotten when
 * checks stay away for as long as consent lasts (RFC 7675): a client repeats them every five seconds, so an edge
 * that the router comes to choose learns within one. Made-up fragments fail the keyed check and leave
 * nothing; who has a real one may write 16 cells at once with it and one a second, whatever sources he makes up;
 * and no cell that is in use is given up or changes hands. With all cells of a set in use a new flow goes
 * by row.
 */
#ifndef BERM_STUN_H
#define BERM_STUN_H

#include "cid.h"
#include "clock.h"
#include "hash.h"
#include "maps.h"
#include "packet.h"
#include "rate.h"

#define STUN_BINDING_REQUEST 0x0001
#define STUN_COOKIE 0x2112A442
#define STUN_USERNAME 0x0006
/* Clients put it first or second; so many attributes are looked through. */
#define STUN_ATTRIBUTES 8
#define STUN_LIFE 28 /* units of 2^30 ns: 30 s */

#define UFRAG_CHARS 16
#define UFRAG_OURS (1ULL << 63)

#define STUN_COST (15625000ULL << 16) /* one new cell a second */
#define STUN_BURST 250000000ULL
#define RATE_STUN 0x51ed27

struct stun_header {
	__be16 type;
	__be16 len; /* of the attributes */
	__be32 cookie;
	__u8 id[12];
};

struct stun_attribute {
	__be16 type;
	__be16 len;
};

/* What a client sends as USERNAME: the server's fragment, then its own. */
struct stun_username {
	__u8 ufrag[UFRAG_CHARS];
	__u8 colon;
};

static __always_inline __u32 stun_seconds(const struct now *now, const struct berm_config *cfg)
{
	return clock_coarse(now, cfg) >> 24; /* units of 64 ns */
}

/* All ones where a character is among the count ones from the first on. Without a branch: the verifier
 * would follow 16 characters of five kinds each.
 */
static __always_inline __u64 char_in(__u64 c, __u64 first, __u64 count)
{
	__u64 below = (__s64)(c - first) >> 63, in = (__s64)(c - first - count) >> 63;

	OPAQUE(below);
	OPAQUE(in);
	return in & ~below;
}

/* Eight characters of base64 as a number of 48 bits; bit 63 where one is none. */
static __always_inline __u64 base64_number(const __u8 *chars)
{
	__u64 number = 0, bad = 0;

	for (int i = 0; i < UFRAG_CHARS / 2; i++) {
		__u64 c = chars[i];
		__u64 upper = char_in(c, 'A', 26), lower = char_in(c, 'a', 26);
		__u64 digit = char_in(c, '0', 10), plus = char_in(c, '+', 1);
		__u64 slash = char_in(c, '/', 1);

		number = number << 6 | (upper & (c - 'A')) | (lower & (c - 'a' + 26)) |
			 (digit & (c - '0' + 52)) | (plus & 62) | (slash & 63);
		bad |= ~(upper | lower | digit | plus | slash);
	}
	return number | (bad & 1ULL << 63);
}

/* The first 48 bits of a fragment, with UFRAG_OURS if it passes the check; 0 if it does not. */
__noinline __u64 ufrag_open(const struct stun_username *name)
{
	struct berm_config *cfg;
	__u64 named, check;
	__u32 key = 0;

	cfg = bpf_map_lookup_elem(&berm_config, &key);
	if (!cfg || !name)
		return 0;
	named = base64_number(name->ufrag);
	check = base64_number(name->ufrag + UFRAG_CHARS / 2);
	if (named >> 63 || check != ufrag_check(cfg->secret, named))
		return 0;
	return named | UFRAG_OURS;
}

/* The server's fragment in a connectivity check, as ufrag_open() has it; 0 in anything else. */
__noinline __u64 stun_ufrag(struct xdp_md *ctx, __u64 facts)
{
	struct cursor cur = cur_from(ctx);
	struct stun_username *username, name;
	struct stun_attribute *attribute;
	struct stun_header *stun;
	__u32 left, len;

	if (!skip_to_payload(&cur, ctx, facts) || !(stun = TAKE(&cur, struct stun_header)) ||
	    stun->type != bpf_htons(STUN_BINDING_REQUEST) || stun->cookie != bpf_htonl(STUN_COOKIE))
		return 0;
	left = bpf_ntohs(stun->len);
	for (int i = 0; i < STUN_ATTRIBUTES && left >= sizeof(*attribute); i++) {
		attribute = TAKE(&cur, struct stun_attribute);
		if (!attribute)
			return 0;
		left -= sizeof(*attribute);
		len = bpf_ntohs(attribute->len);
		if (len > left)
			return 0;
		if (attribute->type == bpf_htons(STUN_USERNAME)) {
			username = TAKE(&cur, struct stun_username);
			if (!username || len <= sizeof(*username) || username->colon != ':')
				return 0;
			name = *username;
			return ufrag_open(&name);
		}
		len = (len + 3) & ~3u;
		if (len > left || !cur_skip(&cur, len))
			return 0;
		left -= len;
	}
	return 0;
}

static __always_inline bool stun_alive(__u64 cell, __u32 seconds)
{
	return cell && (__u16)(seconds - cell) <= STUN_LIFE;
}

/* May one more flow be remembered for this fragment? */
static __always_inline bool stun_may_learn(__u64 named, __u64 now)
{
	struct berm_limit limit = { .cost = STUN_COST, .burst_units = STUN_BURST };
	__u64 source = mix(named * HASH_A) * HASH_B;
	struct berm_rate_set *rates;
	struct berm_config *cfg;
	__u32 key = 0;

	cfg = bpf_map_lookup_elem(&berm_config, &key);
	if (!cfg)
		return false;
	key = source & cfg->rate_mask;
	rates = bpf_map_lookup_elem(&berm_rate_cells, &key);
	return rates && rate_take_anywhere(rates, &limit, rate_tag(source, 0, RATE_STUN),
					   now & CELL_TIME, 1) != RATE_REFUSED;
}

/* Whose flow is it? The backend, 0 if nobody was named, CID_LOST if somebody was who is not of the set.
 * Two CPUs may write one cell: both write what is right.
 */
static __always_inline int stun_backend(struct xdp_md *ctx, __u64 facts, __u64 flow, __u32 set,
					__u32 seconds)
{
	__u64 named = facts & PACKET_OTHER ? 0 : stun_ufrag(ctx, facts), cell = 0;
	__u32 key = flow >> 32 & (BERM_STUN_SETS - 1), known, id;
	struct berm_stun_set *cells = bpf_map_lookup_elem(&berm_stun, &key);
	__u64 *at = NULL;

	if (!cells)
		return 0;
	for (int i = 0; i < BERM_STUN_WAYS; i++) {
		cell = cells->cells[i];
		if (cell >> 32 == (__u32)flow && stun_alive(cell, seconds)) {
			at = &cells->cells[i];
			break;
		}
		if (!stun_alive(cell, seconds))
			at = &cells->cells[i];
		cell = 0;
	}
	known = cell >> 16 & 0xffff;
	if (!(named & UFRAG_OURS))
		return known;
	id = sid_backend(named >> 32 & 0xffff, set);
	if (!id)
		return CID_LOST;
	if (at && (!known || known == id) && (known || stun_may_learn(named, (__u64)seconds << 24)))
		*at = flow << 32 | id << 16 | (__u16)seconds;
	return id;
}

#endif
