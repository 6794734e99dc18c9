/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Connections: one entry and one look-up for both directions.
 */
#ifndef DURWARD_CONNTRACK_H
#define DURWARD_CONNTRACK_H

#include "report.h"

#define EEXIST 17

/* Of a key: an entry that the LRU took for another connection while we read it has another mark. */
static __always_inline __u32 mark_of(const struct ctk *key)
{
	const __u64 *w = (const __u64 *)key;
	__u64 h = (w[0] ^ 0x9e3779b97f4a7c15ULL) * (w[1] ^ 0xc2b2ae3d27d4eb4fULL);

	h += (w[2] ^ 0x165667b19e3779f9ULL) * (w[3] ^ 0x27d4eb2f165667c5ULL);
	h += w[4] * 0x85ebca77c2b2ae63ULL;
	return h >> 32;
}

static __always_inline bool expired(const struct ctv *v, __u32 now)
{
	return (__s32)(now - v->seen) > (__s32)timing.timeout[v->state & (CT_STATES - 1)];
}

static __always_inline bool is_live(const struct ctv *v, const struct ctk *key, __u32 now)
{
	return v->mark == mark_of(key) && !expired(v, now);
}

/* A packet that was forwarded is not of a connection of the host's, whatever its addresses say. */
static __always_inline bool fits_host(struct __sk_buff *ctx, const struct ctv *v, __u32 dir)
{
	return !(v->flags & CT_HOST) || dir == EGRESS || !ctx->ingress_ifindex;
}

static __always_inline void tcp_ends(struct ctv *v, const struct packet *p, __u32 dir)
{
	__u8 both = CT_FIN_LOCAL | CT_FIN_REMOTE;

	if (p->tcp & TCP_RST) {
		v->state = CT_TCP_CLOSED;
		return;
	}
	v->flags |= dir == EGRESS ? CT_FIN_LOCAL : CT_FIN_REMOTE;
	v->state = (v->flags & both) == both ? CT_TCP_CLOSED : CT_TCP_HALF;
}

/* Follows a connection; only for packets that pass. */
static __always_inline void touch(struct ctv *v, const struct packet *p, __u32 dir, __u32 now)
{
	if (v->seen != now)
		v->seen = now;
	if (p->proto == IPPROTO_TCP) {
		if (unlikely(p->tcp & (TCP_FIN | TCP_RST)))
			tcp_ends(v, p, dir);
		/* Not by the SYN-ACK: it may be lost, and the SYN come again. */
		else if (v->state == CT_TCP_NEW && !(p->tcp & TCP_SYN))
			v->state = CT_TCP_OPEN;
	} else if (v->state == CT_UDP_ONE && dir != v->opener) {
		v->state = CT_UDP_TWO;
	}
}

static __always_inline __u8 first_state(const struct packet *p)
{
	switch (p->proto) {
	case IPPROTO_TCP:
		return p->tcp & TCP_SYN ? CT_TCP_NEW : p->tcp & TCP_FIN ? CT_TCP_HALF : CT_TCP_OPEN;
	case IPPROTO_UDP:
		return CT_UDP_ONE;
	case IPPROTO_SCTP:
		return CT_SCTP;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return CT_ICMP;
	}
	return CT_OTHER;
}

/* Makes an old entry one of a new connection. Whoever swaps the word has won, and may log. */
static __always_inline bool reset(struct ctv *v, const struct ctv *fresh, __u64 was)
{
	if (__sync_val_compare_and_swap(&v->word, was, fresh->word) != was)
		return false;
	v->opener = fresh->opener;
	v->state = fresh->state;
	v->flags = fresh->flags;
	v->act = fresh->act;
	v->owed = 0;
	v->seen = fresh->seen;
	return true;
}

/* Lets a packet pass that was judged, and its connection be known. */
__noinline int admit(struct ep *e, struct packet *p, __u32 opener, __u32 dir)
{
	if (!e || !p)
		return DROP;

	struct ctv fresh = { .word = p->word, .seen = jiffies(), .act = p->act, .opener = opener,
			     .state = first_state(p), .flags = p->ct_flags, .mark = mark_of(&p->key) };
	struct counters *c = counters_of(e->slot, opener);
	struct ctv *v;
	__u64 was;
	long err;

	if (p->adopted)
		fresh.flags |= CT_ADOPTED;
	err = bpf_map_update_elem(&ct, &p->key, &fresh, BPF_NOEXIST);
	if (err) {
		v = err == -EEXIST ? bpf_map_lookup_elem(&ct, &p->key) : NULL;
		if (!v) {
			if (c)
				c->untracked++;
			return NEXT; /* it was judged; its replies will be judged by who opened */
		}
		was = READ_ONCE(v->word);
		if (is_live(v, &p->key, fresh.seen) && (v->flags & CT_HOST) == (fresh.flags & CT_HOST)) {
			bool closed = v->state == CT_TCP_CLOSED && p->opening;

			if (v->opener != opener && !closed)
				return NEXT; /* both sides call: the older call stays */
			if (v->opener == opener && !(was & WORD_CUT) &&
			    (!p->opening || p->proto != IPPROTO_TCP || v->state == CT_TCP_NEW)) {
				/* The SYN again, or judged again and still allowed. */
				if (was != p->word &&
				    __sync_val_compare_and_swap(&v->word, was, p->word) == was && !v->owed)
					v->act = p->act;
				touch(v, p, dir, fresh.seen);
				return NEXT;
			}
		}
		if (!reset(v, &fresh, was))
			return NEXT;
	}
	if (!c || (p->ct_flags & CT_HOST))
		return NEXT;
	if (p->adopted) {
		c->adopted++;
		return NEXT;
	}
	c->allowed++;
	record_allowed(e, p, opener, &p->key);
	return NEXT;
}

/* Judged again, and still, or once more, allowed. */
static __always_inline int keep(struct ctv *v, struct packet *p, __u32 dir)
{
	__u64 was = READ_ONCE(v->word);

	if (__sync_val_compare_and_swap(&v->word, was, p->word) == was && !v->owed)
		v->act = p->act;
	touch(v, p, dir, jiffies());
	return NEXT;
}

/* Judged again by its opener's rules, and denied. Who saw it first gives the record; every packet counts. */
__noinline int cut(struct ep *e, struct packet *p, struct ctv *v)
{
	if (!e || !p || !v)
		return DROP;

	__u32 opener = v->opener & 1, kind = EVENT_DENY;
	struct counters *c = counters_of(e->slot, opener);
	__u64 was = READ_ONCE(v->word);

	if (c)
		c->cut++;
	if (__sync_val_compare_and_swap(&v->word, was, p->word | WORD_CUT) == was) {
		if (!(was & WORD_CUT))
			kind = EVENT_CUT;
		if (!v->owed)
			v->act = p->act;
	}
	return fold(e, p, opener, kind);
}

#endif
