/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Fragments: later ones have no ports, and follow what was said of their first.
 */
#ifndef DURWARD_FRAGMENT_H
#define DURWARD_FRAGMENT_H

#include "report.h"

static __always_inline void fragment_key(struct fragk *k, const struct packet *p, __u32 dir)
{
	k->src = dir == EGRESS ? p->key.local : p->key.remote;
	k->dst = dir == EGRESS ? p->key.remote : p->key.local;
	k->id = p->fragment_id;
	k->if_dir = p->key.if_proto >> 8 << 1 | dir;
	/* IPv6's later fragments name a header that need not be the transport's. */
	k->proto = is_v4(&p->key.local) ? p->proto : 0;
}

/* A later fragment has no ports: what was said of the first holds, while the same rules do. */
__noinline int follow_first(struct ep *e, struct packet *p, __u32 dir)
{
	if (!e || !p)
		return DROP;

	struct fragk k;
	struct fragv *first;

	fragment_key(&k, p, dir);
	first = bpf_map_lookup_elem(&frag, &k);
	if (first && (__s32)(jiffies() - first->seen) <= (__s32)timing.fragment &&
	    first->word == READ_ONCE(e->word[first->opener & 1]))
		return NEXT;
	return drop(e->slot, dir, DROP_FRAGMENT);
}

static __noinline void remember_first(struct packet *p, __u32 dir, __u32 opener)
{
	struct fragv said = { .word = p->word, .seen = jiffies(), .opener = opener };
	struct fragk k;

	fragment_key(&k, p, dir);
	bpf_map_update_elem(&frag, &k, &said, BPF_ANY);
}

#endif
