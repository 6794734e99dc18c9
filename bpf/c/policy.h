/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * From a packet and its opener to an act: atom, row, bound.
 */
#ifndef DURWARD_POLICY_H
#define DURWARD_POLICY_H

#include "parse.h"

/* The class of a remote address: its own, else that of its longest block, else 0. */
static __always_inline __u32 atom_of(const struct addr *remote)
{
	struct atom_cell *cell = bpf_map_lookup_elem(&ip_atom, remote);
	struct cidrk key = { .prefixlen = 128, .addr = *remote };
	__u32 atom = cell ? READ_ONCE(cell->atom) : 0, *found;

	if (atom)
		return atom;
	found = bpf_map_lookup_elem(&cidr_atom, &key);
	return found ? *found : 0;
}

/* 1 if a <= b, else 0, without a branch: each would double what the verifier has to walk. */
static __always_inline __u32 at_most(__u32 a, __u32 b)
{
	__u64 below = (__u64)a - b - 1;

	asm volatile("" : "+r"(below)); /* or the compiler makes it a branch again */
	return below >> 63;
}

/* The last of sorted bounds that is not above the key; the first is never above it. */
static __always_inline __u32 search(const __u32 *lo, __u32 bounds, __u32 key)
{
	__u32 i = 0;

	for (__u32 step = bounds / 2; step; step /= 2)
		i += at_most(lo[(i + step) & (bounds - 1)], key) * step;
	return i & (bounds - 1);
}

/* 0: the page was replaced while it was read. */
__noinline __u32 search_big(__u32 row, __u32 key)
{
	struct pagek k = { row, INDEX_PAGE };
	struct page *page = bpf_map_lookup_elem(&big_row, &k);
	__u32 act;

	if (!page)
		return 0;
	act = page->act[search(page->lo, PAGE_BOUNDS, key)];
	if (page->self.row != row || page->self.page != INDEX_PAGE)
		return 0;
	k.page = act;
	page = bpf_map_lookup_elem(&big_row, &k);
	if (!page)
		return 0;
	act = page->act[search(page->lo, PAGE_BOUNDS, key)];
	return page->self.row == row && page->self.page == k.page ? act : 0;
}

/* What a set says of an atom and a port; 0: nothing, not even its base row. */
static __always_inline __u32 act_of(__u32 set, __u32 atom, __u32 port)
{
	struct rowk key = { set, atom };

	/* An element that is freed is reused at once: what was read may have been another row's. */
	for (int again = 0; again < 3; again++) {
		struct row *found = bpf_map_lookup_elem(&row, &key);
		__u32 act;

		if (!found && key.atom) {
			key.atom = 0;
			found = bpf_map_lookup_elem(&row, &key);
		}
		if (!found)
			return 0;
		act = found->big ? search_big(found->big, port) : found->act[search(found->lo, ROW_BOUNDS, port)];
		if (likely(found->self.set == key.set && found->self.atom == key.atom && act))
			return act;
	}
	return 0;
}

/* What a packet's remote is to the rules. A NodePort is not judged by the node's address that it is called at, where
 * calls are judged by frontend. */
static __always_inline __u32 remote_atom(const struct packet *p, __u32 opener)
{
	const struct addr *remote = &p->key.remote;
	struct addr every = {};

	if (opener == EGRESS && services() == SERVICES_BY_FRONTEND && !is_vip(remote, p->key.rport, p->proto) &&
	    is_node_port(remote, p->key.rport, p->proto))
		remote = &every;
	return atom_of(remote);
}

/* Judges a packet by its opener's own rules: the word that counted and the act, or 0 if nothing says one. */
__noinline __u32 judge(struct ep *e, struct packet *p, __u32 opener)
{
	if (!e || !p)
		return 0;

	__be16 port = opener == EGRESS ? p->key.rport : p->key.lport;
	__u32 set;

	/* First the word: all that it leads to was written before it. */
	p->word = READ_ONCE(e->word[opener & 1]);
	set = p->word >> 32;
	if (!set) {
		p->act = ACT_ALLOW;
		return p->act;
	}
	if (p->proto == IPPROTO_ICMP || p->proto == IPPROTO_ICMPV6)
		port = 0;
	p->act = act_of(set, remote_atom(p, opener), (__u32)p->proto << 16 | bpf_ntohs(port));
	return p->act;
}

#endif
