/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* initial: does a long header of QUIC make sense from a client, and does it begin a connection? */
#ifndef BERM_INITIAL_H
#define BERM_INITIAL_H

#include <linux/udp.h>

#include "packet.h"
#include "quic.h"
#include "syn.h"

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

static __always_inline enum quic_kind quic_look(struct xdp_md *ctx, const struct gated *in)
{
	struct cursor cur = cur_from(ctx);
	struct quic_long *quic;
	struct udphdr *udp;
	__u32 version, len;
	__u8 *first;

	if (!answer_is_sane(&in->to) || !cur_skip(&cur, in->to.l3 + in->to.outer))
		return QUIC_OTHER;
	if (!(in->to.six ? cur_take(&cur, sizeof(struct ipv6hdr)) :
			   cur_take(&cur, sizeof(struct iphdr))))
		return QUIC_OTHER;
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

#endif
