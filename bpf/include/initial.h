/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* initial: does a long header of QUIC make sense from a client, and does it begin a connection? */
#ifndef BERM_INITIAL_H
#define BERM_INITIAL_H

#include <linux/in.h>
#include <linux/udp.h>

#include "chance.h"
#include "packet.h"
#include "quic.h"

#define QUIC_TYPE(first) ((first) >> 4 & 3)
#define QUIC_DATAGRAM 1200 /* at least, of a datagram with an Initial (RFC 9000, section 14.1) */
#define QUIC_ID_MOST 20

enum quic_kind {
	QUIC_OTHER, /* short headers, and what only the stack can judge */
	QUIC_INITIAL,
	QUIC_BAD,
};

struct quic_long {
	__u8 first;
	__u8 version[4];
	__u8 id_len;
} __attribute__((packed));

/* cur is at the UDP header. */
static __always_inline enum quic_kind quic_look(struct cursor cur)
{
	struct quic_long *quic;
	struct udphdr *udp;
	__u32 version, len;
	__u8 *first;

	udp = TAKE(&cur, struct udphdr);
	if (!udp)
		return QUIC_OTHER;
	len = bpf_ntohs(udp->len) - sizeof(*udp);
	if (!len)
		return QUIC_BAD;
	first = cur.pos;
	if ((void *)(first + 1) > cur.end)
		return QUIC_OTHER; /* cannot be: the parser has seen the length */
	if (!(*first & QUIC_LONG))
		return QUIC_OTHER;
	quic = TAKE(&cur, struct quic_long);
	if (!quic || len < sizeof(*quic))
		return QUIC_BAD;
	version = (__u32)quic->version[0] << 24 | quic->version[1] << 16 | quic->version[2] << 8 |
		  quic->version[3];
	if (!version)
		return QUIC_BAD; /* version negotiation: servers send it */
	if (version != QUIC_V1 && version != QUIC_V2)
		return len < QUIC_DATAGRAM ? QUIC_BAD :
					     QUIC_OTHER; /* not to be answered if smaller */
	if (!(quic->first & QUIC_FIXED) || quic->id_len > QUIC_ID_MOST)
		return QUIC_BAD;
	if (QUIC_TYPE(quic->first) != (version == QUIC_V2))
		return QUIC_OTHER;
	/* A client's first ID has 8 bytes or more, but it goes on with one of the server's. */
	return len < QUIC_DATAGRAM ? QUIC_BAD : QUIC_INITIAL;
}

/* Does a packet to a service that speaks QUIC begin a connection? What cannot be looked at, behind
 * extension headers of IPv6, counts as if it did. A function of its own for the verifier's sake.
 */
__noinline int is_initial(struct xdp_md *ctx, __u64 facts)
{
	struct headers h = headers_from(ctx, facts, IPPROTO_UDP);

	return !h.ip || quic_look(h.payload) == QUIC_INITIAL;
}

#endif
