/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* QUIC, as far as anybody can see it (RFC 8999, 9000, 9369). */
#ifndef BERM_QUIC_H
#define BERM_QUIC_H

#define QUIC_LONG 0x80 /* first octet of a long header */
#define QUIC_FIXED 0x40
#define QUIC_V1 1u
#define QUIC_V2 0x6b3343cfu /* counts its packet types one higher (RFC 9369) */

#endif
