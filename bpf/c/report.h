/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * What is told to user space: totals, records, windows of denials, and what was suppressed.
 */
#ifndef DURWARD_REPORT_H
#define DURWARD_REPORT_H

#include "parse.h"

#define NEXT (-1) /* TCX_NEXT. Never TCX_PASS: it would switch off the programs of others */
#define DROP 2    /* TCX_DROP */

static __noinline int drop(__u32 slot, __u32 dir, __u32 reason)
{
	struct counters *c = counters_of(slot, dir);

	if (c && reason < REASONS)
		c->dropped[reason]++;
	return DROP;
}

/* A token of a CPU's bucket: of EVENT_DENY or EVENT_ALLOW. */
static __always_inline bool take_token(struct counters *c, const struct config *cfg, __u32 kind)
{
	__u32 now = jiffies(), passed = now - c->filled[kind];
	__u64 cost = timing.hz, most = (__u64)cfg->log_burst * cost;

	if (passed) {
		__u64 tokens = c->tokens[kind] + (__u64)passed * cfg->log_rate;

		c->tokens[kind] = tokens < most ? tokens : most;
		c->filled[kind] = now;
	}
	if (c->tokens[kind] < cost)
		return false;
	c->tokens[kind] -= cost;
	return true;
}

struct note {
	__u32 act;
	__u8 kind, dir;
	__be16 sport;
	struct addr service;
};

static __always_inline struct note note_of(const struct packet *p, __u32 kind, __u32 dir)
{
	struct note n = { .act = p->act, .kind = kind, .dir = dir };

	if (p->has_service) {
		n.service = p->service;
		n.sport = p->sport;
	}
	return n;
}

__noinline int emit(const struct ctk *key, const struct note *n)
{
	if (!key || !n)
		return false;

	struct event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);

	if (!e)
		return false;
	__builtin_memset(e, 0, sizeof(*e));
	e->at_ns = bpf_ktime_get_ns();
	e->local = key->local;
	e->remote = key->remote;
	e->ifindex = key->if_proto >> 8;
	e->act = n->act;
	e->lport = key->lport;
	e->rport = key->rport;
	e->protocol = key->if_proto;
	e->kind = n->kind;
	e->direction = n->dir;
	e->service = n->service;
	e->sport = n->sport;
	bpf_ringbuf_submit(e, BPF_RB_NO_WAKEUP);
	return true;
}

/* Counts what is not written, under what it would have said. */
__noinline int suppress(struct counters *c, __u32 ifindex, const struct note *n)
{
	if (!c || !n)
		return 0;

	struct suppk key = { ifindex, n->act, 0, n->dir };
	struct suppv zero = {}, *v;

	c->suppressed++;
	key.epoch = bpf_jiffies64() / (timing.window ? timing.window : 1);
	v = bpf_map_lookup_elem(&suppressed, &key);
	if (!v) {
		bpf_map_update_elem(&suppressed, &key, &zero, BPF_NOEXIST);
		v = bpf_map_lookup_elem(&suppressed, &key);
	}
	if (!v)
		return 0; /* the map is full; the total above still counts it */
	if (n->kind == EVENT_ALLOW)
		v->connections++;
	else
		v->packets++;
	return 0;
}

/* Writes the record of a connection that is allowed, or says in its entry that it is due. */
__noinline int record(struct ep *e, const struct ctk *key, const struct note *n, const struct ctk *entry)
{
	if (!e || !key || !n || !entry)
		return 0;

	struct config *cfg = configuration();
	struct counters *c = counters_of(e->slot, n->dir);
	struct ctv *v;

	if (!cfg || !c)
		return 0;
	if (!take_token(c, cfg, EVENT_ALLOW))
		return suppress(c, e->ifindex, n);
	if (emit(key, n))
		return 0;
	c->unwritten++;
	v = bpf_map_lookup_elem(&ct, entry);
	if (v)
		WRITE_ONCE(v->owed, 1);
	return 0;
}

/* One line for each connection that a policy allows, if somebody wants it. */
static __always_inline void record_allowed(struct ep *e, struct packet *p, __u32 opener, const struct ctk *entry)
{
	struct note n = note_of(p, EVENT_ALLOW, opener);
	__u32 flags = READ_ONCE(e->flags);

	if (!(flags & EP_LOG_ALLOW) || !(p->act & ACT_ATTRIBUTION))
		return;
	if ((flags & EP_LOG_LOGGABLE) && !(p->act & ACT_LOGGABLE))
		return;
	record(e, &p->key, &n, entry);
}

/* The name of a window: without the opener's port. Seeded, so that nobody can choose to collide. */
static __always_inline __u64 tag_of(const struct packet *p, const struct config *cfg, __u32 opener)
{
	const __u64 *w = (const __u64 *)&p->key;
	__u64 k = cfg->seed[0] | 1, step = cfg->seed[1] | 2;
	__u64 port = opener == EGRESS ? p->key.rport : p->key.lport;
	__u64 h = w[0] * k;

	if (p->proto == IPPROTO_ICMP || p->proto == IPPROTO_ICMPV6)
		port = 0; /* an echo's id is no port */
	h += w[1] * (k + step);
	h += w[2] * (k + 2 * step);
	h += w[3] * (k + 3 * step);
	h += ((__u64)p->key.if_proto << 32 | port << 8 | opener) * (k + 4 * step);
	h += p->act * (k + 5 * step);
	h ^= h >> 32;
	h *= 0xd6e8feb86659fd93ULL;
	h ^= h >> 32;
	return h | TAG_USED | TAG_OPEN;
}

/* Counts a denied packet in its window, or opens one with a record of this kind. */
__noinline int fold(struct ep *e, struct packet *p, __u32 opener, __u32 kind)
{
	if (!e || !p)
		return DROP;

	struct note n = note_of(p, kind, opener);
	struct counters *c = counters_of(e->slot, opener);
	struct config *cfg = configuration();
	struct denial *free = NULL;
	__u32 now = jiffies();
	__u64 tag, found;

	if (!c || !cfg)
		return DROP;
	if (!(READ_ONCE(e->flags) & EP_LOG_DENY))
		return DROP;
	tag = tag_of(p, cfg, opener);
	for (__u32 way = 0; way < DENIAL_WAYS; way++) {
		__u32 place = (tag >> 40) % DENIALS ^ way;
		struct denial *d = bpf_map_lookup_elem(&denial, &place);

		if (!d)
			continue;
		found = READ_ONCE(d->tag);
		if (found == tag) {
			__u32 opened = READ_ONCE(d->opened);

			/* Not filled in yet is just opened. One that is over gets no more counts. */
			if (!opened || (__s32)(now - opened) < (__s32)timing.window) {
				__sync_fetch_and_add(&d->count, 1);
				return DROP;
			}
		} else if (!found && !free) {
			free = d;
		}
	}
	if (!free || !take_token(c, cfg, EVENT_DENY)) {
		suppress(c, e->ifindex, &n);
		return DROP;
	}
	found = __sync_val_compare_and_swap(&free->tag, 0, tag);
	if (found == tag) {
		__sync_fetch_and_add(&free->count, 1);
		return DROP;
	}
	if (found) {
		suppress(c, e->ifindex, &n);
		return DROP;
	}
	__sync_fetch_and_add(&free->count, 1);
	free->at_ns = bpf_ktime_get_ns();
	free->act = p->act;
	free->if_proto = p->key.if_proto;
	free->local = p->key.local;
	free->remote = p->key.remote;
	free->lport = p->key.lport;
	free->rport = p->key.rport;
	free->direction = opener;
	free->service = n.service;
	free->sport = n.sport;
	WRITE_ONCE(free->opened, now | 1);
	if (!emit(&p->key, &n))
		c->unwritten++; /* provisional: the line comes from the table */
	return DROP;
}

static __always_inline int deny(struct ep *e, struct packet *p, __u32 opener)
{
	struct counters *c = counters_of(e->slot, opener);

	if (c)
		c->denied++;
	return fold(e, p, opener, EVENT_DENY);
}

#endif
