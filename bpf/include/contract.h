/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The contract: every type, enum and limit that the kernel half and userspace both see.
 * A change of layout or of sense bumps BERM_CONTRACT, which names the pin directory.
 * Enums are append-only; padding is explicit and zero; times are CLOCK_MONOTONIC ns.
 * Longer than 400 lines: a diff here is a change of the contract, and nowhere else is one.
 */
#ifndef BERM_CONTRACT_H
#define BERM_CONTRACT_H

#include <linux/types.h>

#define BERM_CONTRACT 2

/* Limits. Each is the size of an array map, so each has its price in memory. */
#define BERM_VIPS 4096		      /* 64 B each */
#define BERM_VIP_BUCKETS 4096	      /* displacement of each bucket, two copies */
#define BERM_VIP_SLOTS 16384	      /* VIP id by slot, two copies */
#define BERM_RECORDS 32768	      /* prefix records, two copies */
#define BERM_NETWORKS 16384	      /* autonomous systems that records name, 0 included */
#define BERM_PREFIX4_CELLS (1 << 19)  /* the first 19 bits of an address, 4 MiB a copy */
#define BERM_PREFIX4_LEAVES (1 << 20) /* 8 B cells of 4 runs of equal /24s, two copies */
#define BERM_PREFIX4_BLOCKS 32767     /* /24s that are split further; 512 B each, two copies */
#define BERM_PREFIX6_ROOT 65536	      /* the first 16 bits of an address */
#define BERM_PREFIX6_NODES (3 << 19)  /* 24 B each, two copies: 500,000 random /48s need 1.4 Mi */
#define BERM_PREFIX6_LEAVES (1 << 20) /* 8 B cells of 4 leaves, two copies */
#define BERM_GEO_POLICIES 256
#define BERM_COUNTRIES 1024 /* 0 unknown; ISO alpha-2 "XY" is 1 + (X-'A')*26 + (Y-'A') */
#define BERM_RATE_CLASSES 256
#define BERM_RATE_SETS (1 << 20) /* of 8 cells, 64 B: 64 MiB; the loader may size it down */
#define BERM_RATE_WAYS 8
#define BERM_VERDICT_WORDS 16384 /* of 64 bits: 1 Mi bits */
#define BERM_VERDICTS 65536
#define BERM_SETS 64	     /* backend sets */
#define BERM_ROWS 65537	     /* rows of a set; prime, as Maglev needs (NSDI '16, section 3.4) */
#define BERM_ROW_CELLS 32769 /* two rows of 32 bit a cell */
#define BERM_BACKENDS 4096
#define BERM_PEERS 4096
#define BERM_TENANTS 1024
#define BERM_PATHS 65536
#define BERM_NEWCOMER_SETS (1 << 16) /* of 8 cells, 64 B: 4 MiB, 524,288 flows */
#define BERM_NEWCOMER_WAYS 8
#define BERM_CC_PROFILES 32 /* 0 = the host's own */
#define BERM_CC_RULES 65536
#define BERM_CC_NETWORKS 4096
#define BERM_CC_RESULTS 16384 /* 456 B each, 7.5 MiB */
#define BERM_CC_PARTS 8
#define BERM_NAME 16	    /* bytes of a name, NUL-padded */
#define BERM_CIDS 8	    /* formats of QUIC connection IDs, by the three bits that name one */
#define BERM_SIDS 65536	    /* server IDs that fit two bytes: 16 B each */
#define BERM_SIDS_LONG 4096 /* those that do not */
#define BERM_STUN_SETS 8192 /* of 8 cells, 64 B: a cell for each flow of WebRTC */
#define BERM_STUN_WAYS 8
#define BERM_PROBES 65536 /* by port: 48 B each, 3 MiB */

/* Why a packet was refused. Numbers are for ever. */
enum berm_drop {
	BERM_DROP_NONE = 0,
	BERM_DROP_TRUNCATED = 1,     /* ends before its headers or lengths do */
	BERM_DROP_MALFORMED = 2,     /* a header contradicts itself */
	BERM_DROP_BAD_CHECKSUM = 3,  /* IPv4 header checksum */
	BERM_DROP_BAD_TCP_FLAGS = 4, /* SYN+FIN, SYN+RST, none, all: no stack sends them */
	BERM_DROP_LAND = 5,	     /* source address and port are the VIP's own */
	BERM_DROP_BAD_SOURCE = 6,    /* multicast, broadcast, loopback or unspecified source */
	BERM_DROP_BAD_FRAGMENT = 7,  /* overlaps the first headers, or exceeds 64 KiB */
	BERM_DROP_TUNNEL_PEER = 8,   /* encapsulated, but not by a peer of ours */
	BERM_DROP_TUNNEL_TAG = 9,    /* by a peer, but without the flow's keyed tag */
	BERM_DROP_TUNNEL_INNER = 10, /* the inner packet is malformed or not for a VIP */
	BERM_DROP_NO_SERVICE = 11,   /* a VIP's address, but a port without a service */
	BERM_DROP_VERDICT = 12,
	BERM_DROP_ACL = 13,
	BERM_DROP_GEO = 14,
	BERM_DROP_RATE_PACKETS = 15,
	BERM_DROP_RATE_BYTES = 16,
	BERM_DROP_RATE_SYN = 17,
	BERM_DROP_NO_BACKEND = 18,  /* the row names nobody */
	BERM_DROP_TOO_BIG = 19,	    /* cannot be encapsulated within the MTU */
	BERM_DROP_AMPLIFIED = 20,   /* UDP from the port of a service that amplifies */
	BERM_DROP_BAD_INITIAL = 21, /* of QUIC: a long header that no client sends */
	BERM_DROP_RATE_INITIAL = 22,
	BERM_DROP_RATE_AGGREGATE = 23, /* its /24 or /48 is over, and it over its share of that */
	BERM_DROP_CARRY = 24,  /* of no flow of this site, and more than may be carried to others */
	BERM_DROP_REGION = 25, /* of a service that another region's edges do not serve */
	BERM_DROP_RATE_NETWORK = 26, /* its network is over, and it over its share of that */
	BERM_DROP_MAX,
};

/* Stages, in the order of the pipeline. */
enum berm_stage {
	BERM_STAGE_PARSE = 0,
	BERM_STAGE_DECAP = 1,
	BERM_STAGE_VIP = 2,
	BERM_STAGE_VERDICT = 3,
	BERM_STAGE_PREFIX = 4,
	BERM_STAGE_GEO = 5,
	BERM_STAGE_RATE = 6,
	BERM_STAGE_STEER = 7,
	BERM_STAGE_DELIVER = 8,
	BERM_STAGE_GATE = 9,  /* between steer and deliver */
	BERM_STAGE_ICMP = 10, /* between rate and steer */
	BERM_STAGE_MAX,
};

/* What became of a packet at the one exit. */
enum berm_exit {
	BERM_EXIT_FOREIGN = 0, /* not for a service of ours: passed untouched */
	BERM_EXIT_LOCAL = 1,   /* passed to this host's stack: first hop */
	BERM_EXIT_DECAP = 2,   /* passed to this host's stack: came from a peer */
	BERM_EXIT_FORWARD = 3, /* encapsulated and sent to its owner */
	BERM_EXIT_DROP = 4,
	BERM_EXIT_SHADOW = 5,	 /* would have been dropped; counted beside its real exit */
	BERM_EXIT_FAIL_OPEN = 6, /* our own failure: a missing entry, a full table */
	BERM_EXIT_ABORTED = 7,	 /* our own failure after the first write to the packet */
	BERM_EXIT_CHANCE = 8, /* sent to the row's previous owner: this host has no socket for it */
	BERM_EXIT_DEADMAN = 9, /* sent to another edge, since this one's daemon is silent */
	BERM_EXIT_ANSWER = 10, /* answered from here, in place */
	BERM_EXIT_CARRY = 11,  /* sent to another site: its flow may be there, or is by its ID */
	BERM_EXIT_SPILL = 12,  /* sent to another site, where its flow is to begin */
	BERM_EXIT_MAX,
};

/* What a rule (geo policy, ACL, verdict) does. 0 is "no opinion". */
enum berm_action {
	BERM_ACTION_NONE = 0,
	BERM_ACTION_ALLOW = 1,
	BERM_ACTION_DROP = 2,
	BERM_ACTION_SHADOW = 3, /* count as if dropped, and go on */
	BERM_ACTION_MARK = 4,	/* let through; the daemon decides */
	BERM_ACTION_MAX,
};

/* Who wrote an entry: a reload of the file replaces only what came from the file. */
enum berm_owner {
	BERM_OWNER_OPERATOR = 0,
	BERM_OWNER_FILE = 1,
	BERM_OWNER_GUARD = 2,
	BERM_OWNER_LEARNER = 3,
	BERM_OWNER_MAX,
};

/* An IPv4 address is held v4-mapped (::ffff:a.b.c.d), network byte order. */
struct berm_addr {
	union {
		__u8 octets[16];
		__be32 words[4];
		__be64 halves[2];
	};
};

enum berm_config_flags {
	BERM_CONFIG_OBSERVE_ONLY = 1 << 0,  /* every drop becomes a shadow drop */
	BERM_CONFIG_SAMPLE_PASSED = 1 << 1, /* sample[0] is not "never" */
	BERM_CONFIG_CAPTURE = 1 << 2,	    /* somebody wants copies of packets: see berm_capture */
	BERM_CONFIG_PROBES = 1 << 3,	    /* servers are probed through tunnels: see berm_probe */
};

/* The one entry of berm_config. Index writes (vip_active, prefix_active) are single
 * 32-bit stores through the mapping, so that a packet sees one table or the other.
 */
struct berm_config {
	__u32 contract;	     /* BERM_CONTRACT */
	__u32 flags;	     /* enum berm_config_flags */
	__u32 vip_active;    /* 0 or 1: live copy of vip_seeds and vip_slots */
	__u32 prefix_active; /* 0 or 1: live copy of prefix4, prefix6 and records */
	__u64 shadow;	     /* bit n: drop reason n is counted and not enforced */
	__u64 secret[2];     /* site secret of the flow hash: the same rows on every edge */
	__u64 tag_secrets
		[2];	  /* of tunnel tags: used, and still accepted while it rotates; 0 = none */
	__u64 seed[2];	  /* this host's own secret: VIP slots, rate sets, verdict bits */
	__u32 tick_units; /* rate units (64 ns) in one jiffy, set at load */
	__u32 self;	  /* backend id of this edge; 0 = none: every row is another's */
	struct berm_addr self4; /* outer source, and the address tunnels arrive at; zero = none */
	struct berm_addr self6;
	__u32 rate_mask; /* rate sets - 1 */
	__u32 mtu;	 /* largest outer IP packet; 0 = no check */
	__u32 vips;	 /* number of VIPs; 0 lets everything pass at once */
	__u32 spread;	 /* low bits of the outer source that vary with the flow, for RSS */
};
_Static_assert(sizeof(struct berm_config) == 128, "berm_config is two cache lines");

enum berm_vip_flags {
	BERM_VIP_USED = 1 << 0,
	BERM_VIP_SHADOW = 1 << 1,   /* every policy of this VIP is counted and not enforced */
	BERM_VIP_ADDRESS = 1 << 2,  /* entry for the bare address: fragments, ICMP, other ports */
	BERM_VIP_STRICT = 1 << 3,   /* on the address entry: drop ports that have no service */
	BERM_VIP_QUIC = 1 << 4,	    /* packets go to the server that their connection ID names */
	BERM_VIP_STUN = 1 << 5,	    /* to the edge that their ICE username fragment names */
	BERM_VIP_GATE = 1 << 8,	    /* has an entry in berm_gates, for the owner */
	BERM_VIP_GUARD = 1 << 9,    /* and one for the first hop */
	BERM_VIP_SITES = 1 << 10,   /* other sites serve it too */
	BERM_VIP_REGION = 1 << 11,  /* edges of its region alone do */
	BERM_VIP_OUTSIDE = 1 << 12, /* and this one is in another */
};

/* A service, or (flag ADDRESS, port and proto 0) the bare address of services. */
struct berm_vip {
	struct berm_addr addr;
	__be16 port;
	__u8 proto;  /* IPPROTO_TCP, IPPROTO_UDP; 0 for the bare address */
	__u8 owner;  /* enum berm_owner */
	__u16 flags; /* enum berm_vip_flags */
	__u16 tenant;
	__u16 set;	  /* backend set; 0 = deliver on this host */
	__u16 geo_policy; /* 0 = none */
	__u16 rate_class; /* used where the source's record names no class; 0 = none */
	__u16 pad;
	char name[BERM_NAME];
	/* SITES: the set of the edges of the next site, in an order that all share, which gets the packets
	 * of flows that are not here; 0 = none. From site to site at most carry_hops times.
	 */
	__u8 carry_set;
	__u8 carry_hops;
	__u8 spill_set; /* of the edges of the site where a share of the new flows begins; 0 = none */
	__u8 region;	/* number of a region, on this host only; 0 = it has none */
	__u32 spill;	/* of that share: of 65536 new flows so many */
	__u64 pad2;
};
_Static_assert(sizeof(struct berm_vip) == 64, "berm_vip is one cache line");

/* What is known and decided about a source's prefix. */
struct berm_prefix_record {
	__u16 country;	 /* below BERM_COUNTRIES */
	__u8 acl;	 /* enum berm_action */
	__u8 rate_class; /* 0 = the VIP's */
	__u16 network;	 /* index of its autonomous system in berm_networks; 0 = unknown */
	__u16 rule;	 /* number of the override that decided, for explaining; 0 = database */
};
_Static_assert(sizeof(struct berm_prefix_record) == 8, "one inlined load");

/* IPv4: prefix4[active * BERM_PREFIX4_CELLS + (a >> 13)] stands for the 32 /24s of a /19. Bit i of
 * its low half is set where /24 number i + 1 has another leaf than number i; the leaf of number i is
 * that of 16 bit in prefix4_leaves with the number high half - popcount(low half >> i).
 * Bit 15 of a leaf set: the low 15 bits name a block; the leaf is then
 * prefix4_blocks[active * BERM_PREFIX4_BLOCKS * 64 + block * 64 + (a & 255) / 4], leaf a & 3.
 * Otherwise the leaf is a record id.
 *
 * IPv6: prefix6_root[active * BERM_PREFIX6_ROOT + first 16 bits] is BERM_PREFIX6_NODE | node,
 * or a record id. Nodes are those of Poptrie (Asai, Ohara; SIGCOMM '15) with 6-bit strides:
 * bit i of kids: branch i leads to node kid_base + popcount(kids below i);
 * else its leaf is number leaf_base + popcount(leaves up to and with i) - 1, where a bit in
 * leaves starts a run of equal leaves. The low 64 bits of an address are not looked at.
 * All indexes are relative to the active copy.
 */
#define BERM_PREFIX6_NODE 0x80000000u
struct berm_prefix6_node {
	__u64 kids;
	__u64 leaves;
	__u32 kid_base;
	__u32 leaf_base; /* in leaves of 16 bit, four to a cell */
};

/* geo_policy[policy * BERM_COUNTRIES + country] */
struct berm_geo_rule {
	__u8 action; /* enum berm_action */
	__u8 region;
	__u16 pad;
	__u32 pad2;
};

/* Names and defaults of policies; only userspace reads it. */
struct berm_geo_policy {
	char name[BERM_NAME];
	__u8 used;
	__u8 owner;    /* enum berm_owner */
	__u8 fallback; /* enum berm_action for countries without a rule, 0 (unknown) included */
	__u8 pad[5];
};

/* Limits of one source in a class. Units are 64 ns: a limit of r per second costs
 * 15,625,000 / r units each, held in 1/65536 of a unit so that bytes are exact enough.
 * cost 0 = unlimited. burst_units is the debt a source may run up.
 */
struct berm_limit {
	__u64 cost;	   /* 1/65536 units of 64 ns per packet or byte */
	__u64 burst_units; /* at most 2^32 */
};

enum berm_rate_flags {
	BERM_RATE_USED = 1 << 0,
	BERM_RATE_SHADOW = 1 << 1,
	BERM_RATE_FINE_CLOCK = 1 << 2, /* a burst is below two ticks: read ktime (34 ns) */
	BERM_RATE_INITIALS = 1 << 3,   /* initials, or the aggregate's, are limited */
	BERM_RATE_AGGREGATE = 1 << 4,  /* a limit of the aggregate is */
	BERM_RATE_NETWORK = 1 << 5,    /* a limit of the network is */
};

/* Limits of all sources of an IPv4 /24, or an IPv6 /48, together; or of those of a network (ASN). Where one
 * is exceeded, each of its BERM_AGGREGATE_SHARES parts (an address; a /56; of a network the /24s and /48s
 * that a hash puts together) may go on at its share of the limit.
 */
#define BERM_AGGREGATE_SHARES 256
struct berm_aggregate {
	struct berm_limit packets;
	struct berm_limit bytes;
	struct berm_limit syns;
	struct berm_limit initials;
};

struct berm_rate_class {
	struct berm_limit packets;
	struct berm_limit bytes; /* of IP packets */
	struct berm_limit syns;	 /* TCP SYN without ACK */
	__u16 flags;		 /* enum berm_rate_flags */
	__u8 owner;		 /* enum berm_owner */
	__u8 pad[5];
	char name[BERM_NAME];
	struct berm_limit initials; /* of QUIC, to VIPs that speak it */
	struct berm_aggregate aggregate;
	struct berm_aggregate network;
};
_Static_assert(sizeof(struct berm_rate_class) == 216, "berm_rate_class is a map value");

/* A cell: tag 24 bit << 40 | theoretical arrival time 40 bit in units of 64 ns (wraps after
 * 19.5 h). A cell whose time has passed, or lies further ahead than the largest burst, is free.
 */
struct berm_rate_set {
	__u64 cells[BERM_RATE_WAYS];
};

/* Guards against floods, by VIP, where it has BERM_VIP_GATE. */
enum berm_gate_mode {
	BERM_GATE_OFF = 0,
	BERM_GATE_AUTO =
		1, /* above a rate, and until it has been below half of it for BERM_GATE_HOLD_NS */
	BERM_GATE_ON = 2,
	BERM_GATE_MAX,
};

#define BERM_GATE_HOLD_NS 5000000000ULL

/* Limits are of all sources together, on this host, and burst_units covers two ticks. */
struct berm_gate {
	struct berm_limit syns;	    /* above it, SYN cookies */
	struct berm_limit initials; /* of QUIC: above it, Retry */
	__u8 cookies;		    /* enum berm_gate_mode */
	__u8 retry;		    /* enum berm_gate_mode; it is the daemon that sends Retry */
	__u8 amplified;		    /* enum berm_action */
	__u8 bad_initial;	    /* enum berm_action */
	__u32 pad;
};
_Static_assert(sizeof(struct berm_gate) == 40, "berm_gate is a map value");

/* A rate against its limit. Units of 64 ns are of the coarse clock. */
struct berm_gauge {
	__u64 spent;   /* the time up to which the allowance is spent, in units */
	__u64 over;    /* when the limit was last exceeded, in units; moves once a tick */
	__u64 over_ns; /* the same, for userspace; 0 = never */
};

struct berm_gate_state {
	struct berm_gauge syns;
	struct berm_gauge initials;
};

/* How this host answers in place of its stack. */
enum berm_reply_flags {
	/* The kernel decodes a SYN cookie's options from the timestamp as it is: tcp_timestamps = 2. */
	BERM_REPLY_OPTIONS = 1 << 0,
};

struct berm_next_hop {
	__u8 mac[6];
	__u8 src_mac[6];
	__u32 ifindex; /* 0 = not known */
};

/* The one entry of berm_reply. */
struct berm_reply {
	struct berm_next_hop via4; /* towards clients, for packets that came through a tunnel */
	struct berm_next_hop via6;
	__u16 mss4; /* what SYN-ACKs announce; 0 = what every link carries */
	__u16 mss6;
	__u8 window_scale; /* as the kernel computes it when it gets the cookie back */
	__u8 flags;	   /* enum berm_reply_flags */
	__u16 pad;
};
_Static_assert(sizeof(struct berm_reply) == 40, "berm_reply is a map value");

struct berm_verdict_key {
	struct berm_addr source; /* IPv6: the /64, low half zero */
	__u32 vip;		 /* VIP id; 0 = all */
	__u32 pad;
};

struct berm_verdict {
	__u64 expires_ns; /* 0 = never */
	__u64 evidence;	  /* id of what led to it, for the operator */
	__u64 hits;	  /* packets that met it; the kernel's field, all others userspace's */
	__u32 rule;
	__u8 action; /* enum berm_action */
	__u8 owner;  /* enum berm_owner */
	__u16 pad;
	char reason[BERM_NAME];
};

/* Row: rows[set * BERM_ROW_CELLS + row / 2], 32 bits each: the owner's id in the low half, the
 * second's in the high one. The second gets the row's packets when the owner cannot.
 */
#define BERM_ROW_BACKEND (BERM_BACKENDS - 1)
#define BERM_ROW_SECOND 16
#define BERM_ROW_MOVED (1u << 31) /* the second has owned the row, and may have flows of it */
/* It has moved, and its owner may be a server, which cannot give second chances: flows of it that have
 * begun since are in berm_newcomers, and those that are not there are the second's.
 */
#define BERM_ROW_NEWCOMERS (1u << 12)
_Static_assert(!(BERM_BACKENDS & BERM_ROW_BACKEND), "ids are masked");

/* The daemon's sign of life, and what XDP makes of it: by the tick, so that no clock is read. */
struct berm_heart {
	__u32 beat;	   /* daemon: another number each 100 ms */
	__u32 limit_ticks; /* daemon: silent for more than so many jiffies it counts as dead; 0 = never */
	__u64 noted; /* XDP: the last beat seen in the high half, the jiffies of then in the low */
	__u32 fired; /* XDP: 1 once a new flow went elsewhere; the daemon clears it */
	__u32 pad;
};

enum berm_backend_flags {
	BERM_BACKEND_USED = 1 << 0,
	BERM_BACKEND_READY = 1 << 1,  /* next hop is known: mac and ifindex are set */
	BERM_BACKEND_REMOTE = 1 << 2, /* at another site */
};

/* How packets get to a backend. All but the first are servers that run no Berm: they are no peers, and
 * give no second chances.
 */
enum berm_via {
	BERM_VIA_EDGE = 0, /* another edge: IPIP or IP6IP6 with the flow's keyed tag */
	BERM_VIA_IPIP = 1, /* the same, for a server */
	BERM_VIA_GUE =
		2, /* variant 1: the packet itself in UDP, whose checksum is zero (RFC 6936) */
	BERM_VIA_L2 = 3, /* as it came, to the server's Ethernet address */
	BERM_VIA_MAX,
};

struct berm_backend {
	struct berm_addr addr; /* outer destination */
	__u8 mac[6];	       /* next hop */
	__u16 flags;	       /* enum berm_backend_flags */
	__u32 ifindex;	       /* out through; 0 = back through where it came from */
	__u8 src_mac[6];       /* of that interface */
	__u8 family;	       /* 4: IPIP / 6 in 4; 6: in IPv6 */
	__u8 owner;	       /* enum berm_owner */
	char name[BERM_NAME];
	__be16 port;	    /* GUE: the server's */
	__u8 via;	    /* enum berm_via */
	__u8 region;	    /* number, on this host only; 0 = none */
	__u64 heartbeat_ns; /* last sign of life seen by this host */
};
_Static_assert(sizeof(struct berm_backend) == 64, "berm_backend is one cache line");

/* The one entry of berm_carry: how many packets of flows that are not here may go to other sites. What is
 * above it is made up, or would take their network away. Bursts cover two ticks.
 */
struct berm_carry {
	struct berm_limit source; /* of one source */
	struct berm_limit all;	  /* of all together */
};

#define BERM_SITE_HOPS 3 /* from site to site, at most: the outer TTL tells how many they were */
#define BERM_SPILL_ALL 65536 /* every new flow */

/* A probe of a server that runs no Berm, by the port of the daemon's socket, which is connected to the
 * server's own address. Its packets leave for the service's address through the server's tunnel, and what the
 * server answers from there gets back to the socket. Only TCP; the port is one and the same at both addresses.
 */
struct berm_probe {
	struct berm_addr server;
	struct berm_addr service;
	__u32 backend; /* id */
	__u32 port;    /* of the server and of the service; 0 = no probe */
	__u32 sent;    /* the kernel's: packets that left through the tunnel */
	__u32 pad;
};
_Static_assert(sizeof(struct berm_probe) == 48, "berm_probe is a map value");

/* Newcomers: flows that began after their row had moved. A cell: tag 24 bit << 40 | the first sequence
 * number's high 16 bit << 24 | backend 12 bit << 12 | enum berm_newcomer_state << 10 | when last
 * seen, in units of 2^33 ns (8.6 s), 10 bit. Backend 0: free.
 */
struct berm_newcomer_set {
	__u64 cells[BERM_NEWCOMER_WAYS];
};

enum berm_newcomer_state {
	BERM_NEWCOMER_OPENING = 0, /* a SYN was seen: whoever sent it */
	BERM_NEWCOMER_OPEN = 1,	   /* and a packet that goes on where it began */
	BERM_NEWCOMER_CLOSING = 2, /* and FIN or RST */
	BERM_NEWCOMER_MAX,
};

/* Names of backend sets; only userspace reads it. Set 0 is this host and has no entry. */
struct berm_set {
	char name[BERM_NAME];
	__u8 used;
	__u8 owner; /* enum berm_owner */
	__u8 pad[6];
};

struct berm_counter {
	__u64 packets;
	__u64 bytes; /* of IP packets */
};

struct berm_vip_stats {
	struct berm_counter in;
	struct berm_counter dropped;
	struct berm_counter shadowed;
	struct berm_counter forwarded;
	struct berm_counter answered;
	struct berm_counter cid; /* steered by connection ID */
	struct berm_counter
		cid_lost; /* by row instead: the ID names no server, or one that is not ready */
	struct berm_counter stun; /* steered by ICE username fragment, in it or learned from it */
	struct berm_counter stun_lost; /* by row instead: it names nobody who is ready */
	/* of rows with BERM_ROW_NEWCOMERS */
	struct berm_counter newcomer; /* of a flow that is noted in berm_newcomers */
	struct berm_counter former;   /* of one that is not: to the row's second */
	struct berm_counter crowded;  /* SYNs that found no place there: the same */
};

struct berm_stage_key { /* index is stage * BERM_EXIT_MAX + exit */
	__u32 stage;
	__u32 exit;
};

/* sample[reason]: every 2^n-th packet with this fate becomes an event; index 0 is "not dropped". */
struct berm_sample {
	__u64 mask; /* 2^n - 1; all ones = never */
};

/* A sampled packet in the ring buffer. No payload. */
struct berm_event {
	__u64 time_ns;
	struct berm_addr source;
	struct berm_addr destination;
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 exit;   /* enum berm_exit */
	__u8 reason; /* enum berm_drop */
	__u8 shadow; /* enum berm_drop that would have dropped it */
	__u32 len;   /* of the IP packet */
	__u32 vip;
	__u32 record;
	__u32 weight; /* packets that this event stands for */
};

/* The one entry of berm_captures: which packets are copied to the ring berm_packets. Whoever wants
 * them writes all of it before setting BERM_CONFIG_CAPTURE; seen and lost are the kernel's then, and so is
 * left, but that who wants more packets raises it again.
 */
struct berm_capture {
	__u64 left;    /* packets wanted for now, signed: CPUs may race below 0 */
	__u64 seen;    /* that fitted, copied or not */
	__u64 lost;    /* that found the ring full */
	__u64 reasons; /* bit n: refused, or in shadow, for reason n; bit 0: neither */
	__u32 stages;  /* bit n: stage n had the last word */
	__u32 vip;     /* 0 = every */
	__u32 mask;    /* 2^n - 1: every 2^n-th that fits */
	__u32 snap;    /* bytes of the frame that are copied, at most BERM_SNAP */
};

/* What precedes the frame's bytes in the ring. */
#define BERM_SNAP 2047
struct berm_captured {
	__u64 time_ns;
	__u32 len; /* of the frame */
	__u32 vip;
	__u32 record;
	__u32 weight; /* packets that this one stands for */
	__u8 stage;   /* enum berm_stage */
	__u8 exit;    /* enum berm_exit */
	__u8 reason;  /* enum berm_drop */
	__u8 shadow;  /* enum berm_drop that would have dropped it */
	__u32 pad;
};

/* Network facts of a prefix: IPv4 /24, IPv6 /48. Reports are bounded by client (turn.h). */
struct berm_path_key {
	struct berm_addr prefix;
	__u32 proto; /* IPPROTO_TCP or IPPROTO_UDP (QUIC) */
	__u32 pad;
};

#define BERM_BURSTS 8 /* lengths of loss bursts: 1, 2, 3-4, 5-8 … 65 and more */

struct berm_path {
	__u64 updated_ns;
	__u64 connections; /* ever established */
	__u64 delivered;   /* segments or packets acknowledged */
	__u64 lost;
	__u64 retransmitted;
	__u64 sent;    /* segments */
	__u32 srtt_us; /* moving average over connections */
	__u32 min_rtt_us;
	__u32 rttvar_us;
	__u32 rate_kbps; /* moving average of the best of each report */
	__u32 bursts[BERM_BURSTS];
};

/* What a connection begins with. */
struct berm_cc_profile {
	char controller[BERM_NAME]; /* TCP_CONGESTION; "" = the host's */
	__u32 initial_window;	    /* segments; 0 = the host's */
	__u32 rto_min_us;	    /* 0 = the host's */
	__u8 used;
	__u8 owner; /* enum berm_owner */
	__u8 pad[2];
	__u32 ack_delay_us; /* 0 = the host's */
	char name[BERM_NAME];
};
_Static_assert(sizeof(struct berm_cc_profile) == 48, "berm_cc_profile is a map value");

struct berm_cc_key {
	__u32 bits; /* of the prefix: IPv4's after 96 */
	__u8 prefix[16];
};
_Static_assert(sizeof(struct berm_cc_key) == 20, "a trie's key has no gap");

struct berm_cc_rule {
	__u32 profile;
	__u8 owner; /* enum berm_owner */
	/* Of 256 connections so many begin with one of the others, so that it is known what they would do. */
	__u8 holdout;
	__u8 others[2];
};
_Static_assert(sizeof(struct berm_cc_rule) == 8, "berm_cc_rule is a map value");

struct berm_cc_stats {
	__u64 connections;
	__u64 refused; /* the kernel knows no such controller, or takes no such value */
};

/* What came of the connections of a prefix that began with a profile. */
struct berm_cc_result_key {
	struct berm_addr prefix; /* IPv4 /24, IPv6 /48 */
	__u32 proto;		 /* IPPROTO_TCP or IPPROTO_UDP (QUIC) */
	__u32 profile;		 /* 0 = the host's, also where the kernel refused another */
};

/* Of one part of its clients: a hash of the address, of IPv6 the /56, names the part, so that one client
 * moves no more than one. Sums over connections that delivered more than a first window.
 */
struct berm_cc_part {
	__u64 bytes;	/* acknowledged */
	__u64 busy_us;	/* while there was something to acknowledge */
	__u64 rtt_us;	/* round trips, one for each look */
	__u64 queue_us; /* what they were above their connection's least */
	__u32 looks;	/* one a round trip */
	__u32 sent;	/* segments with data */
	__u32 again;	/* of those, sent again */
	__u32 connections;
	__u32 rate_kbps; /* best delivery rate seen, decaying */
	__u32 pad;
};

struct berm_cc_result {
	__u64 updated_ns;
	struct berm_cc_part parts[BERM_CC_PARTS];
};
_Static_assert(sizeof(struct berm_cc_result) == 456, "berm_cc_result is a map value");

/* A format of QUIC connection IDs, as draft-ietf-quic-load-balancers-21 has them: first byte
 * (format in the high three bits), server ID, nonce. Server IDs are numbers, big-endian.
 */
enum berm_cid_flags {
	BERM_CID_USED = 1 << 0,
	BERM_CID_BLOCK = 1 << 1,   /* server ID and nonce are one block of AES-128 */
	BERM_CID_FEISTEL = 1 << 2, /* or four passes of a Feistel network over AES-128 */
};

#define BERM_CID_CONTENT 19 /* bytes of server ID and nonce at most */
#define BERM_CID_SERVER 8   /* of server ID; the draft allows 15 */
#define BERM_CID_KEYS 44    /* words of AES-128's round keys */

struct berm_cid {
	__u32 flags;	  /* enum berm_cid_flags */
	__u8 server_len;  /* 1 to BERM_CID_SERVER */
	__u8 content_len; /* with the nonce, 5 to BERM_CID_CONTENT */
	__u8 pad[2];
	__u64 left[2]; /* FEISTEL: bits of the halves, each at the start of a block, as numbers */
	__u64 right[2];
	__u8 key[16];
	__u32 keys
		[BERM_CID_KEYS]; /* to decrypt a BLOCK (the equivalent inverse cipher's), to encrypt for FEISTEL */
};
_Static_assert(sizeof(struct berm_cid) == 232, "berm_cid is a map value");

/* Processes of bermd that have sockets of QUIC at the same time: the one that serves, and those before
 * it that end what they began. Each has a slot.
 */
#define BERM_GENERATIONS 4 /* a power of two: the connection IDs of a slot are one in so many */
#define BERM_GENERATION_PORTS 64
#define BERM_WORKERS 8 /* sockets of a slot at an address, at most */
_Static_assert(!(BERM_GENERATIONS & (BERM_GENERATIONS - 1)), "slots are low bits of a hash");

/* The one entry of berm_generations. */
struct berm_generations {
	__u64 seed
		[2]; /* of the hash of a connection ID, whose low bits are the slot that gave it out */
	__u32 newest; /* slot that new connections go to */
	__u32 live;   /* bit n: slot n has sockets, or is about to */
	__u32 pids[BERM_GENERATIONS];
	__u32 numbers[BERM_GENERATIONS]; /* how many processes had a slot, when this one took it */
	__u32 workers[BERM_GENERATIONS]; /* sockets of a slot at each address */
	__u32 sockets;			 /* of all live slots, at each address */
	__u32 pad;
};
_Static_assert(sizeof(struct berm_generations) == 80, "berm_generations is a map value");

/* An address that sockets of all generations are bound to. */
struct berm_generation_port {
	struct berm_addr addr; /* unspecified: any */
	__u32 port;
	__u32 pad;
};
/* Whose a flow is that has shown an edge's ICE username fragment: cells of 32 bits of the flow hash, 16 of
 * backend id and 16 of when that was last, in units of 2^30 ns. 0 is free.
 */
struct berm_stun_set {
	__u64 cells[BERM_STUN_WAYS];
};
_Static_assert(sizeof(struct berm_stun_set) == 64, "berm_stun_set is one cache line");

/* Who has a server ID. */
struct berm_sid {
	__u64 sets;    /* bit n: it is a backend of set n */
	__u32 backend; /* 0 = nobody */
	__u32 pad;
};

#endif
