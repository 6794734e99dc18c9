/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * The kernel ABI: everything that is shared between the programs and user space. Rust's types are
 * generated from this file. A change of any layout is a new ABI number, hence a new folder of pins.
 *
 * All addresses are 16 bytes; IPv4 is ::ffff:a.b.c.d. Ports and addresses are in network order, all
 * other numbers in the host's.
 */
#ifndef DURWARD_ABI_H
#define DURWARD_ABI_H

#include <linux/types.h>

#define ABI 1

struct addr {
	__u32 w[4];
};

/* Which side of a connection the pod is on, seen from the pod. Also which way a packet goes. */
enum direction {
	INGRESS = 0, /* to the pod */
	EGRESS = 1,  /* from the pod */
};

/* A policy word names the set that judges a direction and the generation of its rules. Set 0 means
 * that nothing isolates the pod there. Bit 63 is never set in an endpoint; in a connection it says
 * that it was cut, so that word and verdict are one store. */
#define WORD_CUT (1ULL << 63)
/* Of a connection to a Service's frontend that is still to be judged. Is no endpoint's word. */
#define WORD_UNSTAMPED (WORD_CUT - 1)

/* An act: allow, whether an annotation asks for a log line, and the attribution's number. */
#define ACT_ALLOW (1U << 31)
#define ACT_LOGGABLE (1U << 30)
#define ACT_ATTRIBUTION (ACT_LOGGABLE - 1)

enum ep_flag {
	EP_UNKNOWN = 1 << 0,        /* nobody knows whose it is: only the node's own traffic passes */
	EP_GATEWAY = 1 << 1,        /* no source or destination guard, and tunnels are allowed */
	EP_DHCP = 1 << 2,           /* DHCP passes */
	EP_MORE_ADDRESSES = 1 << 3, /* further addresses are in map `source` */
	EP_LOG_ALLOW = 1 << 4,      /* allowed connections are logged */
	EP_LOG_LOGGABLE = 1 << 5,   /* ... only those whose act is loggable */
	EP_LOG_DENY = 1 << 6,       /* denials are logged */
};

/* A pod's interface: one cache line. */
struct ep {
	__u32 ifindex; /* 0: the place is free; written last */
	__u32 flags;   /* enum ep_flag */
	__u64 word[2]; /* by enum direction; one aligned store each */
	__u32 slot;    /* where its counters are */
	__s32 nsid;    /* of its network namespace, for socket look-ups; -1: none */
	struct addr ip4, ip6;
};

struct sourcek { /* a further address of an endpoint */
	__u32 ifindex;
	struct addr addr;
};

struct cidrk {
	__u32 prefixlen;
	struct addr addr;
};

/* The verdict row of a set and an atom: sorted lower bounds of `protocol << 16 | port`, the first is
 * 0, unused are ~0. `self` tells a look-up that its element was freed and taken for another key. */
#define ROW_BOUNDS 16
struct rowk {
	__u32 set, atom;
};
struct row {
	struct rowk self;
	__u32 bounds;
	__u32 big; /* not 0: the row has more bounds than fit, and they are in `big_row` under this number */
	__u32 lo[ROW_BOUNDS];
	__u32 act[ROW_BOUNDS];
};

/* A row of up to 128 x 128 bounds: the page INDEX_PAGE holds the first bound of each page and, as
 * act, the page's number. */
#define PAGE_BOUNDS 128
#define INDEX_PAGE 0xffffffffU
struct pagek {
	__u32 row, page;
};
struct page {
	struct pagek self;
	__u32 lo[PAGE_BOUNDS];
	__u32 act[PAGE_BOUNDS];
};

/* A connection, the pod's side first: one key, hence one look-up, for both directions. An ICMP echo has
 * its id as the local port and its opener as the remote one. */
struct ctk {
	struct addr local, remote;
	__be16 lport, rport;
	__u32 if_proto; /* ifindex << 8 | protocol */
};

enum ct_state { /* also the index of its timeout */
	CT_TCP_NEW = 0,
	CT_TCP_OPEN,
	CT_TCP_HALF, /* one side has finished */
	CT_TCP_CLOSED,
	CT_UDP_ONE, /* nobody answered yet */
	CT_UDP_TWO,
	CT_SCTP,
	CT_ICMP,
	CT_OTHER,
	CT_STATES = 16,
};

enum ct_flag {
	CT_HOST = 1 << 0,       /* between the pod and its own node */
	CT_ADOPTED = 1 << 1,    /* was there before us */
	CT_FIN_LOCAL = 1 << 2,
	CT_FIN_REMOTE = 1 << 3,
	CT_FRONT = 1 << 4, /* to a Service's frontend: judged after translation */
	CT_TOLD = 1 << 5,  /* ... and its record was given: its SYN may come again */
};

struct ctv {
	__u64 word;  /* it was judged under; WORD_CUT if it was cut. Changes only by compare-and-swap */
	__u32 seen;  /* jiffies of the last packet that passed */
	__u32 act;   /* what was said of it */
	__u8 opener; /* enum direction: whose rules count */
	__u8 state;  /* enum ct_state */
	__u8 flags;  /* enum ct_flag */
	__u8 owed;   /* 1: the record of its opening is due, and could not be written. `act` is kept for it */
	__u32 mark;  /* of its key: tells that the element was taken for another one */
};

/* A later fragment finds what was said of the first. */
struct fragk {
	struct addr src, dst;
	__u32 id;
	__u32 if_dir; /* ifindex << 1 | direction */
	__u32 proto;
};
struct fragv {
	__u64 word;
	__u32 seen;
	__u8 opener, flags, rsv[2];
};

/* An open window of denials of one remote, local address, port, protocol, direction and act.
 * tag 0: free; odd: open and counting; even: closing, no more counts are coming once a grace period is over. */
#define TAG_OPEN 1ULL
#define TAG_USED 2ULL
struct denial {
	__u64 tag;
	__u64 at_ns;  /* CLOCK_MONOTONIC of the first packet */
	__u32 opened; /* jiffies | 1; 0: not yet filled in */
	__u32 count;
	__u32 act;
	__u32 if_proto;
	struct addr local, remote;
	__be16 lport, rport;
	struct addr service; /* the frontend that was called, if it was one */
	__be16 sport;
	__u8 direction, rsv[5];
};
#define DENIALS 16384
#define DENIAL_WAYS 2

/* Why a packet was dropped that no policy spoke of. Numbers are never reused. */
enum reason {
	DROP_NO_ENDPOINT = 0,     /* the interface is not in `ep` */
	DROP_UNKNOWN_POD = 1,     /* EP_UNKNOWN, and not the node's own traffic */
	DROP_VLAN = 2,            /* a tagged frame from a pod */
	DROP_ARP = 3,             /* a claim to an address that is not the pod's */
	DROP_NEIGHBOUR = 4,       /* neighbour or router discovery that is not a pod's to send */
	DROP_MALFORMED = 5,       /* a header that ends too early or contradicts itself */
	DROP_NOT_IP = 6,          /* neither IP nor ARP, for or from an isolated pod */
	DROP_MAPPED = 7,          /* an IPv4-mapped address in an IPv6 header */
	DROP_EXTENSION = 8,       /* more than 6 IPv6 extension headers, or a route that is still to be walked */
	DROP_TUNNEL = 9,          /* would be unpacked by a node, and its inner source trusted */
	DROP_SOURCE = 10,         /* from a pod, with an address that is not its own */
	DROP_DESTINATION = 11,    /* to a pod, with an address that is not its own */
	DROP_NO_ROW = 12,         /* the set has no base row, or it was being replaced */
	DROP_SHORT_FRAGMENT = 13, /* a first fragment without the whole transport header, or at offset 1 */
	DROP_FRAGMENT = 14,       /* a later fragment whose first was not allowed, or not seen */
	DROP_ICMP_ERROR = 15,     /* an ICMP error of no live connection */
	DROP_STRAY_RESET = 16,    /* a TCP reset of no connection, that no policy allows */
	DROP_DEFERRED = 17,       /* a reply of a Service's connection that is not judged yet */
	REASONS = 24,
};

/* Per CPU, endpoint and direction. */
struct counters {
	__u64 allowed;    /* connections */
	__u64 denied;     /* packets, by policy */
	__u64 cut;        /* packets of connections that were cut */
	__u64 adopted;    /* connections from before us */
	__u64 untracked;  /* packets allowed whose connection found no room in `ct` */
	__u64 suppressed; /* records not written: over the budget, or no place in the deny table */
	__u64 unwritten;  /* records not written: the ring was full */
	__u64 dropped[REASONS];
	__u64 tokens[2]; /* log budgets, for denials and for allowed: one token is `hz` */
	__u32 filled[2]; /* when, in jiffies */
};

/* What was not logged, attributed exactly. An epoch that is over is not written to any more. */
struct suppk {
	__u32 ifindex;
	__u32 act;
	__u32 epoch; /* jiffies over those of a window */
	__u32 direction;
};
struct suppv {
	__u64 connections, packets;
};

enum event_kind {
	EVENT_DENY = 0,  /* provisional: the window's line follows from the deny table */
	EVENT_ALLOW = 1, /* a new connection */
	EVENT_CUT = 2,   /* as EVENT_DENY, but of an established connection that the rules no longer allow */
};

struct event {
	__u64 at_ns; /* CLOCK_MONOTONIC */
	struct addr local, remote;
	struct addr service; /* the frontend that was called, if it was one */
	__u32 ifindex;
	__u32 act;
	__be16 lport, rport, sport;
	__u8 protocol, kind, direction, rsv[3];
};

enum host_kind {
	HOST_THIS = 1,  /* an address of this node */
	HOST_OTHER = 2, /* one of another node */
};

/* Set before load: constants to the programs. In jiffies. */
struct timing {
	__u32 hz;
	__u32 window; /* of denials */
	__u32 timeout[CT_STATES];
	__u32 fragment;
};

/* How a pod's calls to a Service's frontend are judged. */
enum services {
	SERVICES_BY_ADDRESS = 0,  /* like calls to any address */
	SERVICES_TRANSLATED = 1,  /* by their backend, at the forward hook */
	SERVICES_BY_FRONTEND = 2, /* by what user space says of the frontend, whatever it leads to */
};

#define TUNNEL_PORTS 8
struct config {
	__u64 seed[2];    /* of the deny table's tags: an attacker must not choose where flows collide */
	__u32 log_rate;   /* records a second, of a CPU and endpoint and kind */
	__u32 log_burst;
	__u32 services;   /* enum services */
	__be16 tunnel_port[TUNNEL_PORTS]; /* UDP, 0: none */
	__u32 rsv[5];
};

/* A frontend of a Service. Written by user space. */
struct vipk {
	struct addr addr; /* all zero: a NodePort, on every address of the node */
	__be16 port;
	__u8 proto, rsv;
};
/* To which backend a connection to a frontend was stamped. */
struct front {
	struct addr backend;
	__be16 port, rsv;
};

/* Asked of the program `clock`. */
struct clock {
	__u64 jiffies, ns;
};

#define SIZE(type, size) _Static_assert(sizeof(type) == (size), #type)
SIZE(struct addr, 16);
SIZE(struct ep, 64);
SIZE(struct sourcek, 20);
SIZE(struct cidrk, 20);
SIZE(struct row, 144);
SIZE(struct page, 1032);
SIZE(struct ctk, 40);
SIZE(struct ctv, 24);
SIZE(struct fragk, 44);
SIZE(struct fragv, 16);
SIZE(struct denial, 96);
SIZE(struct counters, 272);
SIZE(struct suppk, 16);
SIZE(struct suppv, 16);
SIZE(struct event, 80);
SIZE(struct config, 64);
SIZE(struct vipk, 20);
SIZE(struct front, 20);
#undef SIZE

#endif
