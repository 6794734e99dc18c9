/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Connections to a Service's frontend. Which backend is called is known only after the host has translated them,
 * so the pod's program lets them pass unstamped, `forward` judges and stamps them, and replies wait for that.
 */
#ifndef DURWARD_SERVICE_H
#define DURWARD_SERVICE_H

#include "conntrack.h"
#include "fragment.h"
#include "policy.h"

static __always_inline bool is_frontend(const struct addr *address, __be16 port, __u8 proto)
{
	return is_vip(address, port, proto) || is_node_port(address, port, proto);
}

/* Whether a packet from a pod is for a frontend and judged by it, also where the node itself has the address. */
static __always_inline bool is_judged_frontend(const struct packet *p)
{
	return services() == SERVICES_BY_FRONTEND && p->kind == KIND_FLOW &&
	       is_frontend(&p->key.remote, p->key.rport, p->proto);
}

/* Whether a packet to a pod may be an answer to a call that is judged after translation. */
static __always_inline bool may_answer_call(const struct packet *p)
{
	return services() == SERVICES_TRANSLATED && p->kind == KIND_FLOW &&
	       is_frontend(&p->key.remote, p->key.rport, p->proto);
}

/* Whether a packet from a pod is judged after translation. A connection that was goes on being so, also if its
 * Service is deleted. */
static __always_inline bool is_deferred(const struct packet *p, const struct ctv *v)
{
	/* `forward` reads no further than this. Behind other headers a frontend is an address like any other. */
	if (!is_v4(&p->key.remote) && p->l4 != ETH_HLEN + sizeof(struct ipv6hdr) + (p->fragment ? 8 : 0))
		return false;
	if (services() != SERVICES_TRANSLATED || p->kind != KIND_FLOW)
		return false;
	return (v && (v->flags & CT_FRONT)) ||
	       ((p->proto == IPPROTO_TCP || p->proto == IPPROTO_UDP || p->proto == IPPROTO_SCTP) &&
		is_frontend(&p->key.remote, p->key.rport, p->proto));
}

/* From the pod, to a frontend: passes, to be judged by `forward`. Where nothing isolates, replies may pass at once. */
__noinline int defer(struct ep *e, struct packet *p, struct ctv *v)
{
	if (!e || !p)
		return DROP;

	__u64 word = READ_ONCE(e->word[EGRESS]), was;
	struct ctv fresh = { .word = word >> 32 ? WORD_UNSTAMPED : word, .seen = jiffies(), .act = ACT_ALLOW,
			     .opener = EGRESS, .state = first_state(p), .flags = CT_FRONT, .mark = mark_of(&p->key) };

	if (v && (v->flags & CT_FRONT) && !p->opening) {
		touch(v, p, EGRESS, fresh.seen);
		return NEXT;
	}
	if (p->proto == IPPROTO_TCP && !p->opening)
		fresh.flags |= CT_ADOPTED;
	if (!bpf_map_update_elem(&ct, &p->key, &fresh, BPF_NOEXIST))
		return NEXT;
	v = bpf_map_lookup_elem(&ct, &p->key);
	if (!v)
		return NEXT;
	was = READ_ONCE(v->word);
	/* The SYN again: it may lead to another backend, but it is no other connection. */
	if ((v->flags & CT_FRONT) && v->state == CT_TCP_NEW && !expired(v, fresh.seen))
		fresh.flags |= v->flags & CT_TOLD;
	reset(v, &fresh, was);
	return NEXT;
}

/* The packet as it is judged: of the backend, with the frontend beside it. */
static __always_inline void reveal(struct packet *p, const struct front *to)
{
	p->has_service = true;
	p->service = p->key.remote;
	p->sport = p->key.rport;
	p->key.remote = to->backend;
	p->key.rport = to->port;
}

/* To the pod, from a frontend, of a call that has no entry as such: it was there before the frontend was known, or
 * the pod isolated. Its backend is asked of the host, since the pod may have nothing to say for long. */
__noinline int adopt_call(struct ep *e, struct packet *p, struct ctv *v, struct front *to)
{
	if (!e || !p || !to)
		return DROP;

	struct counters *c = counters_of(e->slot, EGRESS);
	struct ctk key = p->key;
	struct ctv fresh = { .seen = jiffies(), .opener = EGRESS, .state = first_state(p),
			     .flags = CT_FRONT | CT_ADOPTED, .mark = mark_of(&key) };

	reveal(p, to);
	judge(e, p, EGRESS);
	if (same(&to->backend, &key.local))
		p->act = ACT_ALLOW; /* to itself */
	if (!p->act)
		return drop(e->slot, EGRESS, DROP_NO_ROW);
	if (!(p->act & ACT_ALLOW)) {
		if (c && v)
			c->cut++;
		else if (c)
			c->denied++;
		return fold(e, p, EGRESS, v ? EVENT_CUT : EVENT_DENY);
	}
	fresh.word = p->word;
	fresh.act = p->act;
	p->key = key;
	bpf_map_update_elem(&front, &key, to, BPF_ANY);
	bpf_map_update_elem(&ct, &key, &fresh, BPF_ANY);
	if (c && !v)
		c->adopted++;
	if (p->fragment == FIRST)
		remember_first(p, INGRESS, EGRESS);
	return NEXT;
}

/* To the pod, from a frontend, under rules that have changed or before there was a judgement. */
__noinline int judge_reply(struct ep *e, struct packet *p, struct ctv *v)
{
	if (!e || !p || !v)
		return DROP;

	__u64 was = READ_ONCE(v->word);
	struct counters *c = counters_of(e->slot, EGRESS);
	struct ctk key = p->key;
	struct front *to = bpf_map_lookup_elem(&front, &key);

	if (was == WORD_UNSTAMPED || !to)
		return drop(e->slot, INGRESS, DROP_DEFERRED);
	reveal(p, to);
	if (judge(e, p, EGRESS) & ACT_ALLOW) {
		if (__sync_val_compare_and_swap(&v->word, was, p->word) == was && !v->owed)
			v->act = p->act;
		touch(v, p, INGRESS, jiffies());
		p->key = key;
		if (p->fragment == FIRST)
			remember_first(p, INGRESS, EGRESS);
		return NEXT;
	}
	__sync_val_compare_and_swap(&v->word, was, WORD_UNSTAMPED);
	if (!p->act)
		return drop(e->slot, EGRESS, DROP_NO_ROW);
	if (c)
		c->cut++;
	return fold(e, p, EGRESS, EVENT_CUT);
}

#endif
