/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * From bytes to a packet: its connection's key, and what kind of packet it is. Decides nothing.
 */
#ifndef DURWARD_PARSE_H
#define DURWARD_PARSE_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include "address.h"

#define TCP_FIN 1
#define TCP_SYN 2
#define TCP_RST 4
#define TCP_ACK 16

#define MAX_EXTENSIONS 6
/* Ethernet, the longest IPv4 header, TCP up to its flags. What is not in the linear part is pulled there. */
#define HEADERS 88
#define PARSED (-1)

enum kind {
	KIND_FLOW = 0,
	KIND_ICMP_ERROR,
	KIND_REDIRECT,
	KIND_NEIGHBOUR, /* discovery, with hop limit 255, hence from the link */
	KIND_MULTICAST, /* listener discovery, within the link */
};

enum fragment {
	WHOLE = 0,
	FIRST,
	LATER,
};

struct packet {
	struct ctk key __attribute__((aligned(8)));
	__u64 word;     /* it was judged under */
	__u32 fragment_id;
	__u32 act;
	__u16 l4;       /* where the transport header starts */
	__u16 payload;  /* of IPv6: what follows its header */
	__u8 proto;
	__u8 tcp;       /* flags */
	__u8 icmp;      /* type */
	__u8 kind;      /* enum kind */
	__u8 fragment;  /* enum fragment */
	__u8 opening;   /* asks for a new connection */
	__u8 adopted;   /* of a connection that was there before us */
	__u8 ct_flags;  /* of its entry */
	__u8 has_service;
	__u8 from_link; /* of IPv6: hop limit 255, which no router leaves as it is */
	__be16 sport;   /* the frontend that was called; the key has its backend */
	struct addr service;
};

static __always_inline void set_ports(struct packet *p, __u32 dir, __be16 src, __be16 dst)
{
	p->key.lport = dir == EGRESS ? src : dst;
	p->key.rport = dir == EGRESS ? dst : src;
}

/* An echo's key tells its opener, so that two pings with one id, one each way, are two connections. */
static __always_inline void set_echo(struct packet *p, __be16 id, __u32 opener)
{
	p->key.lport = id;
	p->key.rport = bpf_htons(opener);
}

static __always_inline bool is_echo_reply(const struct packet *p)
{
	return (p->proto == IPPROTO_ICMP && p->icmp == 0) || (p->proto == IPPROTO_ICMPV6 && p->icmp == 129);
}

static __always_inline void icmp(struct packet *p, __u32 dir, __u8 type, __be16 id)
{
	p->icmp = type;
	switch (type) {
	case 8:
		set_echo(p, id, dir);
		break;
	case 0:
		set_echo(p, id, !dir);
		break;
	case 3:
	case 4:
	case 11:
	case 12:
		p->kind = KIND_ICMP_ERROR;
		break;
	case 5:
		p->kind = KIND_REDIRECT;
		break;
	}
}

static __always_inline void icmp6(struct packet *p, __u32 dir, __u8 type, __be16 id)
{
	const struct addr *dst = dir == EGRESS ? &p->key.remote : &p->key.local;

	p->icmp = type;
	if (type == 128) {
		set_echo(p, id, dir);
	} else if (type == 129) {
		set_echo(p, id, !dir);
	} else if (type >= 1 && type <= 4) {
		p->kind = KIND_ICMP_ERROR;
	} else if (type >= 133 && type <= 137 && p->from_link) {
		p->kind = KIND_NEIGHBOUR;
	} else if (((type >= 130 && type <= 132) || type == 143) && is_link_multicast(dst)) {
		p->kind = KIND_MULTICAST;
	}
}

/* Reads the transport header: 14 bytes of it, of which `have` are there. */
static __always_inline int transport(struct packet *p, __u32 dir, const __u8 *h, __u32 have)
{
	__be16 first = *(__be16 *)h, second = *(__be16 *)(h + 2);

	switch (p->proto) {
	case IPPROTO_TCP:
		if (have < 14)
			break;
		p->tcp = h[13];
		p->opening = (p->tcp & (TCP_SYN | TCP_ACK)) == TCP_SYN;
		set_ports(p, dir, first, second);
		return PARSED;
	case IPPROTO_UDP:
		set_ports(p, dir, first, second);
		return PARSED;
	case IPPROTO_SCTP:
		if (have < 13)
			break;
		p->opening = h[12] == 1; /* INIT */
		set_ports(p, dir, first, second);
		return PARSED;
	case IPPROTO_ICMP:
		if (is_v4(&p->key.remote))
			icmp(p, dir, h[0], *(__be16 *)(h + 4));
		return PARSED;
	case IPPROTO_ICMPV6:
		if (!is_v4(&p->key.remote))
			icmp6(p, dir, h[0], *(__be16 *)(h + 4));
		return PARSED;
	default: /* no ports */
		return PARSED;
	}
	return p->fragment ? DROP_SHORT_FRAGMENT : DROP_MALFORMED;
}

static __always_inline bool has_header(__u8 proto)
{
	return proto == IPPROTO_TCP || proto == IPPROTO_UDP || proto == IPPROTO_SCTP || proto == IPPROTO_ICMP ||
	       proto == IPPROTO_ICMPV6;
}

/* The transport header where direct access would not do, or of a fragment with `len` bytes of it. */
__noinline int load_transport(struct __sk_buff *ctx, struct packet *p, __u32 dir, __u32 len)
{
	if (!p)
		return DROP_MALFORMED;

	__u8 h[16] = {};

	if (!has_header(p->proto))
		return PARSED;
	if (len >= 14 && !bpf_skb_load_bytes(ctx, p->l4, h, 14))
		return transport(p, dir, h, 14);
	/* Of UDP and ICMP 8 bytes are enough; of a fragment of TCP they are not: its flags come later. */
	if (len >= 8 && !bpf_skb_load_bytes(ctx, p->l4, h, 8))
		return transport(p, dir, h, 8);
	return p->fragment ? DROP_SHORT_FRAGMENT : DROP_MALFORMED;
}

/* Offset and `more` of a fragment, in IPv4's bits. */
static __always_inline int set_fragment(struct packet *p, __u16 offset, bool more, __u32 id)
{
	if (!offset && !more)
		return PARSED; /* a fragment header without fragments */
	p->fragment = offset ? LATER : FIRST;
	p->fragment_id = id;
	/* It would overwrite the flags of the first. */
	return offset == 1 && p->proto == IPPROTO_TCP ? DROP_SHORT_FRAGMENT : PARSED;
}

static __always_inline void set_ends4(struct packet *p, __u32 dir, __be32 src, __be32 dst)
{
	p->key.local.w[0] = p->key.local.w[1] = p->key.remote.w[0] = p->key.remote.w[1] = 0;
	p->key.local.w[2] = p->key.remote.w[2] = MAPPED;
	p->key.local.w[3] = dir == EGRESS ? src : dst;
	p->key.remote.w[3] = dir == EGRESS ? dst : src;
}

static __always_inline int parse4(struct __sk_buff *ctx, struct packet *p, __u32 dir)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct iphdr *ip = data + ETH_HLEN;
	__u32 header, have, total;
	__u8 *h;

	if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl < 5)
		return DROP_MALFORMED;
	set_ends4(p, dir, ip->saddr, ip->daddr);
	p->proto = ip->protocol;
	header = ip->ihl * 4;
	p->l4 = ETH_HLEN + header;
	if (unlikely(ip->frag_off & bpf_htons(0x3fff))) {
		__u16 off = bpf_ntohs(ip->frag_off);
		int r = set_fragment(p, off & 0x1fff, off & 0x2000, bpf_ntohs(ip->id));

		total = bpf_ntohs(ip->tot_len);
		if (r != PARSED || p->fragment == LATER)
			return r;
		/* Counted by the header: what follows may be padding that the receiver never sees. */
		return load_transport(ctx, p, dir, total < header ? 0 : total - header);
	}
	h = data + ETH_HLEN + header;
	if (likely((void *)h + 14 <= end))
		return transport(p, dir, h, 14);
	if (!has_header(p->proto))
		return PARSED;
	have = 8;
	if ((void *)h + have > end)
		return DROP_MALFORMED;
	/* Only protocols of which 8 bytes are enough read no further. */
	if (p->proto == IPPROTO_UDP) {
		set_ports(p, dir, *(__be16 *)h, *(__be16 *)(h + 2));
		return PARSED;
	}
	return load_transport(ctx, p, dir, have);
}

/* Walks IPv6's extension headers to the transport header. */
__noinline int extensions(struct __sk_buff *ctx, struct packet *p, __u32 dir)
{
	if (!p)
		return DROP_MALFORMED;

	/* A jumbogram (GSO beyond 64 KiB) says 0. */
	__u32 left = p->payload ? p->payload : ctx->len - p->l4;

	for (int i = 0; i <= MAX_EXTENSIONS; i++) {
		__u8 h[8];
		__u32 len;

		switch (p->proto) {
		case 0:   /* hop by hop */
		case 43:  /* routing */
		case 44:  /* fragment */
		case 51:  /* authentication */
		case 60:  /* destination options */
			break;
		case IPPROTO_NONE:
			return PARSED;
		default:
			return load_transport(ctx, p, dir, left);
		}
		if (bpf_skb_load_bytes(ctx, p->l4, h, sizeof(h)))
			return DROP_MALFORMED;
		/* With segments left, the destination that we judge is not the last. */
		if (p->proto == 43 && h[3])
			return DROP_EXTENSION;
		len = p->proto == 44 ? 8 : p->proto == 51 ? (h[1] + 2) * 4 : (h[1] + 1) * 8;
		left = left < len ? 0 : left - len;
		p->l4 += len;
		if (p->proto == 44) {
			__u16 off = bpf_ntohs(*(__be16 *)(h + 2));
			int r;

			p->proto = h[0];
			r = set_fragment(p, off >> 3, off & 1, *(__u32 *)(h + 4));
			if (r != PARSED || p->fragment == LATER)
				return r;
			continue;
		}
		p->proto = h[0];
	}
	return DROP_EXTENSION;
}

static __always_inline int parse6(struct __sk_buff *ctx, struct packet *p, __u32 dir)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ipv6hdr *ip = data + ETH_HLEN;
	struct addr *src = dir == EGRESS ? &p->key.local : &p->key.remote;
	struct addr *dst = dir == EGRESS ? &p->key.remote : &p->key.local;
	__u8 *h = (__u8 *)(ip + 1);

	if ((void *)h > end || ip->version != 6)
		return DROP_MALFORMED;
	__builtin_memcpy(src, &ip->saddr, sizeof(*src));
	__builtin_memcpy(dst, &ip->daddr, sizeof(*dst));
	/* IPv4 lives there. */
	if (is_v4(src) || is_v4(dst))
		return DROP_MAPPED;
	p->proto = ip->nexthdr;
	p->payload = bpf_ntohs(ip->payload_len);
	p->l4 = ETH_HLEN + sizeof(*ip);
	p->from_link = ip->hop_limit == 255;
	if (likely((void *)h + 14 <= end && has_header(p->proto)))
		return transport(p, dir, h, 14);
	if ((void *)h + 8 <= end && p->proto == IPPROTO_ICMPV6) {
		icmp6(p, dir, h[0], *(__be16 *)(h + 4));
		return PARSED;
	}
	return extensions(ctx, p, dir);
}

#endif
