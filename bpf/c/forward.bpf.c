/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * The program at the host's forward hook, where packets are translated and not yet masqueraded. It judges what could
 * not be judged at the pod's interface: connections to a Service's frontend, by their backend, and answers that seemed
 * to be for the node, by their real end. The source was guarded at the interface.
 */
#include "opener.h"
#include "service.h"

char _license[] SEC("license") = "GPL";

#define NF_DROP 0
#define NF_ACCEPT 1

struct sk_buff {
	unsigned long _nfct;
} __attribute__((preserve_access_index));

extern int bpf_dynptr_from_skb(struct sk_buff *skb, __u64 flags, struct bpf_dynptr *packet) __ksym;

struct bpf_nf_ctx {
	const struct nf_hook_state *state;
	struct sk_buff *skb;
};

/* Of the low bits of _nfct. What is related (ICMP errors) was judged at the interface. */
enum ctinfo {
	IP_CT_ESTABLISHED = 0,
	IP_CT_NEW = 2,
	IP_CT_REPLY = 3,
	IP_CT_UNTRACKED = 7,
};

static __always_inline struct ep *owner_of(const struct addr *address)
{
	__u32 *ifindex = bpf_map_lookup_elem(&owner, address);

	return ifindex ? endpoint_of(*ifindex) : NULL;
}

static __always_inline int refuse(struct ep *e, struct packet *p, __u32 kind)
{
	struct counters *c = counters_of(e->slot, EGRESS);

	if (!p->act) {
		drop(e->slot, EGRESS, DROP_NO_ROW);
		return NF_DROP;
	}
	if (c && kind == EVENT_CUT)
		c->cut++;
	else if (c)
		c->denied++;
	fold(e, p, EGRESS, kind);
	return NF_DROP;
}

/* Lets replies pass, and says once that a connection was made. */
static __always_inline int stamp(struct ep *e, struct packet *p, const struct ctk *key, struct ctv *v)
{
	struct front to = { .backend = p->key.remote, .port = p->key.rport };
	struct counters *c = counters_of(e->slot, EGRESS);
	__u64 was;

	bpf_map_update_elem(&front, key, &to, BPF_ANY);
	if (!v) {
		/* Its entry was evicted, or it was there before frontends were known. */
		struct ctv fresh = { .word = p->word, .seen = jiffies(), .act = p->act, .opener = EGRESS,
				     .state = first_state(p), .flags = CT_FRONT | CT_ADOPTED, .mark = mark_of(key) };

		bpf_map_update_elem(&ct, key, &fresh, BPF_ANY);
		return NF_ACCEPT;
	}
	was = READ_ONCE(v->word);
	if (__sync_val_compare_and_swap(&v->word, was, p->word) != was)
		return NF_ACCEPT;
	if (!v->owed)
		v->act = p->act;
	if (was != WORD_UNSTAMPED || !c)
		return NF_ACCEPT;
	if (v->flags & CT_ADOPTED) {
		c->adopted++;
		return NF_ACCEPT;
	}
	if (v->flags & CT_TOLD)
		return NF_ACCEPT;
	v->flags |= CT_TOLD;
	c->allowed++;
	record_allowed(e, p, EGRESS, key);
	return NF_ACCEPT;
}

/* A packet of a pod to a frontend, translated or not: judged by where it goes. */
static __noinline int judge_front(const struct nf_conntrack_tuple *asked, const struct nf_conntrack_tuple *answer,
				  bool translated)
{
	struct packet p = { .proto = asked->protonum, .has_service = true };
	struct ctk key = {};
	struct front *to;
	struct ctv *v;
	struct ep *e;
	__u64 was;

	key.local = p.key.local = tuple_addr(asked, asked->src);
	e = owner_of(&key.local);
	if (!e || !(READ_ONCE(e->word[EGRESS]) >> 32))
		return NF_ACCEPT;
	key.remote = p.service = tuple_addr(asked, asked->dst);
	key.lport = p.key.lport = asked->sport;
	key.rport = p.sport = asked->dport;
	if (!translated && !is_frontend(&key.remote, key.rport, p.proto))
		return NF_ACCEPT;
	key.if_proto = p.key.if_proto = e->ifindex << 8 | p.proto;
	p.key.remote = tuple_addr(answer, answer->src);
	p.key.rport = answer->sport;

	v = bpf_map_lookup_elem(&ct, &key);
	if (v && (!is_live(v, &key, jiffies()) || !(v->flags & CT_FRONT)))
		v = NULL;
	to = bpf_map_lookup_elem(&front, &key);
	was = v ? READ_ONCE(v->word) : 0;
	if (v && was == READ_ONCE(e->word[EGRESS]) && to && same(&to->backend, &p.key.remote) &&
	    to->port == p.key.rport)
		return NF_ACCEPT;
	judge(e, &p, EGRESS);
	if (same(&p.key.remote, &p.key.local))
		p.act = ACT_ALLOW; /* to itself */
	if (p.act & ACT_ALLOW)
		return stamp(e, &p, &key, v);
	if (v && was != WORD_UNSTAMPED)
		__sync_val_compare_and_swap(&v->word, was, WORD_UNSTAMPED);
	return refuse(e, &p, v && was != WORD_UNSTAMPED ? EVENT_CUT : EVENT_DENY);
}

/* An answer of a pod to the node's address, that turns out to be for somebody behind it. If the pod was called, it was
 * judged with the call; if it seemed to be for the node itself, it is judged by its real end. */
static __noinline int judge_answer(const struct nf_conntrack_tuple *asked, const struct nf_conntrack_tuple *answer)
{
	struct packet p = { .proto = answer->protonum };
	struct ctv *v;
	struct ep *e;

	p.key.local = tuple_addr(answer, answer->src);
	e = owner_of(&p.key.local);
	if (!e || !(READ_ONCE(e->word[EGRESS]) >> 32))
		return NF_ACCEPT;
	p.key.remote = tuple_addr(answer, answer->dst);
	p.key.lport = answer->sport;
	p.key.rport = answer->dport;
	p.key.if_proto = e->ifindex << 8 | p.proto;
	v = bpf_map_lookup_elem(&ct, &p.key);
	if (!v || !(v->flags & CT_HOST))
		return NF_ACCEPT;
	p.key.remote = tuple_addr(asked, asked->src);
	p.key.rport = asked->sport;
	judge(e, &p, EGRESS);
	if ((p.act & ACT_ALLOW) || same(&p.key.remote, &p.key.local))
		return NF_ACCEPT;
	return refuse(e, &p, EVENT_DENY);
}

/* What nobody tracks nobody translates: judged by the address that it shows. */
static __noinline int judge_untracked(struct sk_buff *skb)
{
	struct nf_conntrack_tuple asked = {}, answer = {};
	struct bpf_dynptr packet;
	__be16 ports[2];
	bool later = false;
	__u32 l4 = 40;
	__u8 h[40];

	if (bpf_dynptr_from_skb(skb, 0, &packet) || bpf_dynptr_read(h, 20, &packet, 0, 0))
		return NF_DROP;
	if (h[0] >> 4 == 4) {
		asked.family = 2;
		asked.protonum = h[9];
		asked.src[0] = *(__u32 *)(h + 12);
		asked.dst[0] = *(__u32 *)(h + 16);
		l4 = (h[0] & 15) * 4;
		later = ((h[6] & 0x1f) | h[7]) != 0;
	} else {
		if (bpf_dynptr_read(h, 40, &packet, 0, 0))
			return NF_DROP;
		asked.protonum = h[6];
		__builtin_memcpy(asked.src, h + 8, 16);
		__builtin_memcpy(asked.dst, h + 24, 16);
		if (asked.protonum == IPPROTO_FRAGMENT) {
			if (bpf_dynptr_read(h, 8, &packet, l4, 0))
				return NF_DROP;
			asked.protonum = h[0];
			l4 += 8;
			later = (h[2] | (h[3] & 0xf8)) != 0;
		}
	}
	if (later)
		return NF_ACCEPT; /* useless without its first */
	if (bpf_dynptr_read(ports, sizeof(ports), &packet, l4, 0))
		return NF_ACCEPT; /* no ports, so it was not put off until here */
	asked.sport = ports[0];
	asked.dport = ports[1];
	answer.family = asked.family;
	answer.sport = asked.dport;
	__builtin_memcpy(answer.src, asked.dst, sizeof(answer.src));
	return judge_front(&asked, &answer, false);
}

static __noinline int judge_tracked(struct nf_conn *known, __u32 info)
{
	struct nf_conntrack_tuple asked = {}, answer = {};
	unsigned long status = BPF_CORE_READ(known, status);

	if (info == IP_CT_REPLY && !(status & IPS_SRC_NAT))
		return NF_ACCEPT;
	bpf_core_read(&asked, sizeof(asked), &known->tuplehash[0].tuple);
	bpf_core_read(&answer, sizeof(answer), &known->tuplehash[1].tuple);
	if (info == IP_CT_REPLY)
		return judge_answer(&asked, &answer);
	return judge_front(&asked, &answer, status & IPS_DST_NAT);
}

SEC("netfilter")
int forward(struct bpf_nf_ctx *ctx)
{
	unsigned long nfct = ctx->skb->_nfct;
	struct nf_conn *known = (struct nf_conn *)(nfct & ~7UL);
	__u32 info = nfct & 7;

	if (!known || info == IP_CT_UNTRACKED)
		return services() == SERVICES_TRANSLATED ? judge_untracked(ctx->skb) : NF_ACCEPT;
	if (info != IP_CT_ESTABLISHED && info != IP_CT_NEW && info != IP_CT_REPLY)
		return NF_ACCEPT;
	return judge_tracked(known, info);
}
