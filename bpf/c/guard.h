/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * What holds for every packet, whatever the policies say: nobody sends from, or claims, an address that is not
 * his, and nothing is smuggled past in a tunnel or a neighbour message.
 */
#ifndef DURWARD_GUARD_H
#define DURWARD_GUARD_H

#include "report.h"

#define PASS (-1)
#define RA 134
#define NS 135
#define NA 136
#define ND_REDIRECT 137
/* A solicitation with its link address and a nonce. More would be somebody's data. */
#define ND_LONGEST 40

struct arp4 {
	__be16 htype, ptype;
	__u8 hlen, plen;
	__be16 op;
	__u8 sha[6], spa[4], tha[6], tpa[4];
};

/* An ARP packet names its sender, and others believe it. */
static __noinline int guard_arp(struct __sk_buff *ctx, struct ep *e)
{
	struct addr sender = { { 0, 0, MAPPED, 0 } };
	struct arp4 arp;

	if (bpf_skb_load_bytes(ctx, ETH_HLEN, &arp, sizeof(arp)))
		return DROP_MALFORMED;
	if (arp.ptype != bpf_htons(ETH_P_IP) || arp.hlen != 6 || arp.plen != 4)
		return DROP_ARP;
	__builtin_memcpy(&sender.w[3], arp.spa, 4);
	return !sender.w[3] || (e->flags & EP_GATEWAY) || is_own(e, &sender) ? PASS : DROP_ARP;
}

/* A link-local address that a pod may speak for: the host's is not. */
static __always_inline bool is_free_link_local(const struct addr *a)
{
	return is_link_local(a) && !host_kind(a);
}

static __noinline int guard_neighbour(struct __sk_buff *ctx, struct ep *e, struct packet *p)
{
	const struct addr *src = &p->key.local, *dst = &p->key.remote;
	struct addr target;

	if (p->icmp == RA || p->icmp == ND_REDIRECT)
		return DROP_NEIGHBOUR;
	if (!is_own(e, src) && !is_unspecified(src) && !is_free_link_local(src))
		return DROP_NEIGHBOUR;
	if (p->payload > ND_LONGEST)
		return DROP_NEIGHBOUR;
	if (p->icmp == NS || p->icmp == NA) {
		if (bpf_skb_load_bytes(ctx, p->l4 + 8, &target, sizeof(target)))
			return DROP_MALFORMED;
		if (p->icmp == NA && !is_own(e, &target) && !is_free_link_local(&target))
			return DROP_NEIGHBOUR;
	}
	if (is_link_multicast(dst) || is_link_local(dst) || host_kind(dst) == HOST_THIS)
		return PASS;
	/* To a neighbour's own address, where its prefix says that it is on the link. */
	if (dst->w[0] != e->ip6.w[0] || dst->w[1] != e->ip6.w[1])
		return DROP_NEIGHBOUR;
	return p->icmp == NA || (p->icmp == NS && same(&target, dst)) ? PASS : DROP_NEIGHBOUR;
}

static __always_inline bool is_dhcp(const struct ep *e, const struct packet *p)
{
	__u16 local = bpf_ntohs(p->key.lport), remote = bpf_ntohs(p->key.rport);

	return (e->flags & EP_DHCP) && p->proto == IPPROTO_UDP &&
	       ((local == 68 && remote == 67) || (local == 546 && remote == 547));
}

/* Would a node unpack it? Then its inner source would be believed. Whatever the destination: this node knows its own
 * addresses, not the others', and a tunnel device also takes what is broadcast. */
static __noinline bool is_tunnel(struct packet *p)
{
	struct config *cfg = configuration();
	bool tunnel = p->proto == 4 || p->proto == 41 || p->proto == 47;

	if (p->proto == IPPROTO_UDP && cfg) {
		for (int i = 0; i < TUNNEL_PORTS; i++)
			tunnel |= cfg->tunnel_port[i] && cfg->tunnel_port[i] == p->key.rport;
	}
	return tunnel;
}

/* PASS, or why not. */
__noinline int guard(struct __sk_buff *ctx, struct ep *e, struct packet *p, __u32 dir)
{
	if (!e || !p)
		return DROP_MALFORMED;

	__u8 first;

	if (dir == EGRESS) {
		if (p->kind == KIND_REDIRECT)
			return DROP_NEIGHBOUR;
		if (e->flags & EP_GATEWAY)
			return PASS;
		if (p->kind == KIND_NEIGHBOUR)
			return guard_neighbour(ctx, e, p);
		if (is_tunnel(p))
			return DROP_TUNNEL;
		if (is_own(e, &p->key.local) || is_dhcp(e, p))
			return PASS;
		if (p->kind == KIND_MULTICAST &&
		    (is_unspecified(&p->key.local) || is_free_link_local(&p->key.local)))
			return PASS;
		return DROP_SOURCE;
	}
	if ((e->flags & EP_GATEWAY) || is_own(e, &p->key.local) || is_multicast(&p->key.local) ||
	    is_link_local(&p->key.local) || is_dhcp(e, p))
		return PASS;
	/* A subnet's broadcast is for everybody; a frame for one is for somebody else. */
	return !bpf_skb_load_bytes(ctx, 0, &first, 1) && (first & 1) ? PASS : DROP_DESTINATION;
}

#endif
