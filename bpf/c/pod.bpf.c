/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * The programs at both sides of a pod's interface, seen from the host: what the pod sends comes in there.
 * parse → connection → guard → own node → who opened → policy → verdict. docs/datapath.md tells it in prose.
 */
#include "conntrack.h"
#include "fragment.h"
#include "guard.h"
#include "opener.h"
#include "service.h"

char _license[] SEC("license") = "GPL";

static __always_inline bool is_unknown(const struct ep *e)
{
	return READ_ONCE(e->flags) & EP_UNKNOWN;
}

/* The node's own traffic always passes. Its entry lets replies pass, and nothing that was forwarded. */
__noinline int pass_host(struct ep *e, struct packet *p, struct ctv *v, __u32 dir)
{
	if (!e || !p)
		return DROP;

	__u32 opener = (v && !p->opening ? v->opener : dir) & 1;

	if (p->fragment == LATER || p->kind != KIND_FLOW)
		return NEXT;
	p->word = READ_ONCE(e->word[opener]);
	p->act = ACT_ALLOW;
	p->ct_flags = CT_HOST;
	return admit(e, p, opener, dir);
}

/* Made by this host: it came in by no interface. Fragments that the stack makes of forwarded IPv6 packets look
 * alike, but no socket sent them. */
static __always_inline bool made_here(struct __sk_buff *ctx, const struct packet *p)
{
	if (ctx->ingress_ifindex)
		return false;
	return !p->fragment || is_v4(&p->key.local) || bpf_get_socket_cookie(ctx);
}

/* The key of the connection that an ICMP error is about, from the packet that it quotes; 0 if it quotes none. */
static __noinline bool quoted(struct __sk_buff *ctx, struct packet *p, struct packet *q, __u32 dir)
{
	/* The quoted packet went the other way. */
	__u32 back = !dir, at = p->l4 + 8;
	__u8 h[8], ip[40];

	__builtin_memset(q, 0, sizeof(*q));
	q->key.if_proto = p->key.if_proto & ~0xffU;
	if (is_v4(&p->key.local)) {
		if (bpf_skb_load_bytes(ctx, at, ip, 20) || ip[0] >> 4 != 4 || (ip[6] & 0x1f) || ip[7])
			return false;
		set_ends4(q, back, *(__be32 *)(ip + 12), *(__be32 *)(ip + 16));
		q->proto = ip[9];
		at += (ip[0] & 15) * 4;
	} else {
		if (bpf_skb_load_bytes(ctx, at, ip, 40) || ip[0] >> 4 != 6)
			return false;
		__builtin_memcpy(back == EGRESS ? &q->key.local : &q->key.remote, ip + 8, 16);
		__builtin_memcpy(back == EGRESS ? &q->key.remote : &q->key.local, ip + 24, 16);
		q->proto = ip[6];
		at += 40;
	}
	q->key.if_proto |= q->proto;
	if (!has_header(q->proto))
		return true;
	if (bpf_skb_load_bytes(ctx, at, h, 8))
		return false;
	if (q->proto == IPPROTO_ICMP || q->proto == IPPROTO_ICMPV6) {
		bool asked = h[0] == 8 || h[0] == 128;

		if (!asked && h[0] != 0 && h[0] != 129)
			return false; /* no error is sent about an error */
		set_echo(q, *(__be16 *)(h + 4), asked ? back : dir);
	} else {
		set_ports(q, back, *(__be16 *)h, *(__be16 *)(h + 2));
	}
	return true;
}

/* An ICMP error passes if it is about a live connection that the present rules allow. */
__noinline int pass_error(struct __sk_buff *ctx, struct ep *e, struct packet *p, __u32 dir)
{
	if (!e || !p)
		return DROP;

	struct packet q;
	struct ctv *v;
	/* Who sent the quoted packet is told of it, and nobody else: what a pod says outside of its connections is judged.
	 * To the pod, any router may tell. */
	if (!p->fragment && quoted(ctx, p, &q, dir) && same(&q.key.local, &p->key.local) &&
	    (dir == INGRESS || same(&q.key.remote, &p->key.remote))) {
		v = bpf_map_lookup_elem(&ct, &q.key);
		if (v && is_live(v, &q.key, jiffies()) && fits_host(ctx, v, dir) &&
		    READ_ONCE(v->word) == READ_ONCE(e->word[v->opener & 1]))
			return NEXT;
	}
	return drop(e->slot, dir, DROP_ICMP_ERROR);
}

/* Judges a packet in mid-flow that belongs to no connection that we know. */
__noinline int adopt(struct __sk_buff *ctx, struct ep *e, struct packet *p, __u32 dir)
{
	if (!e || !p)
		return dir;

	int opener = NOBODY;
	bool by_socket = false;

	if (p->proto == IPPROTO_TCP || p->proto == IPPROTO_UDP)
		opener = ask_conntrack(ctx, p);
	if (opener == NOBODY && p->proto == IPPROTO_TCP) {
		opener = ask_socket(ctx, e, p);
		by_socket = opener != NOBODY;
	}
	p->adopted = opener != NOBODY || p->proto == IPPROTO_TCP;
	if (opener == NOBODY)
		opener = dir;
	/* The pod makes its sockets: they never let out what its own rules forbid. */
	if (by_socket && dir == EGRESS && opener == INGRESS && !(judge(e, p, EGRESS) & ACT_ALLOW))
		return EGRESS;
	judge(e, p, opener);
	return opener;
}

/* A packet of a connection that was cut, and whose rules have not changed since. */
__noinline int still_cut(struct ep *e, struct packet *p, struct ctv *v)
{
	if (!e || !p || !v)
		return DROP;

	__u32 opener = v->opener & 1;
	struct counters *c = counters_of(e->slot, opener);

	if (c)
		c->cut++;
	p->act = v->act;
	if (p->act & ACT_ALLOW) /* kept for the record that is due */
		p->act = judge(e, p, opener) & ~ACT_ALLOW;
	return fold(e, p, opener, EVENT_DENY);
}

#define NO_CALL 0 /* neither NEXT nor DROP */

/* To the pod, perhaps an answer to its call to a frontend that has no judgement under the present rules. */
__noinline int answer_call(struct __sk_buff *ctx, struct ep *e, struct packet *p, struct ctv *v)
{
	if (!e || !p)
		return DROP;

	bool is_call = v && (v->flags & CT_FRONT);
	__u64 word = READ_ONCE(e->word[EGRESS]), was;
	struct front to = {}, *stamped = NULL;

	if (!is_call && !may_answer_call(p))
		return NO_CALL;
	if (is_call && v && READ_ONCE(v->word) != WORD_UNSTAMPED)
		stamped = bpf_map_lookup_elem(&front, &p->key);
	if (stamped) {
		to = *stamped;
	} else if (!translated_to(ctx, p, &to)) {
		if (!is_call || !v)
			return NO_CALL;
		if (word >> 32)
			return drop(e->slot, INGRESS, DROP_DEFERRED);
		was = READ_ONCE(v->word);
		__sync_val_compare_and_swap(&v->word, was, word);
		touch(v, p, INGRESS, jiffies());
		p->word = word;
		if (p->fragment == FIRST)
			remember_first(p, INGRESS, EGRESS);
		return NEXT;
	}
	return judge_reply(e, p, v, &to, stamped);
}

/* Everything but packets of connections that are known, allowed, and judged under the present rules. */
__noinline int slow(struct __sk_buff *ctx, struct ep *e, struct packet *p, struct ctv *v, __u32 dir)
{
	if (!e || !p)
		return DROP;

	int r = guard(ctx, e, p, dir);
	bool known, mine;
	__u32 opener;

	if (r != PASS)
		return drop(e->slot, dir, r);
	if (p->kind == KIND_NEIGHBOUR || p->kind == KIND_MULTICAST || is_dhcp(e, p))
		return NEXT;
	if (!v && !p->opening && p->fragment != LATER && p->kind != KIND_ICMP_ERROR && p->kind != KIND_REDIRECT)
		v = bpf_map_lookup_elem(&ct, &p->key);
	known = v && is_live(v, &p->key, jiffies()) && fits_host(ctx, v, dir);
	if (dir == INGRESS && made_here(ctx, p))
		return pass_host(e, p, known ? v : NULL, dir);
	/* What answers a caller is judged with his call, also where the caller hides behind the node's address. */
	mine = known && !(v->flags & CT_HOST) && v->opener == INGRESS && !p->opening;
	if (dir == EGRESS && !mine && !is_unknown(e) && is_deferred(p, known ? v : NULL)) {
		if (p->fragment == LATER)
			return follow_first(e, p, dir);
		p->word = READ_ONCE(e->word[EGRESS]);
		if (p->fragment == FIRST)
			remember_first(p, dir, EGRESS);
		return defer(e, p, known ? v : NULL);
	}
	if (dir == EGRESS && !mine && host_kind(&p->key.remote) == HOST_THIS && !is_judged_frontend(p))
		return pass_host(e, p, known ? v : NULL, dir);
	if (is_unknown(e))
		return drop(e->slot, dir, DROP_UNKNOWN_POD);
	if (p->kind == KIND_ICMP_ERROR || p->kind == KIND_REDIRECT)
		return pass_error(ctx, e, p, dir);
	if (p->fragment == LATER)
		return follow_first(e, p, dir);

	if (dir == INGRESS && !p->opening && !(known && v->opener == INGRESS)) {
		int answer = answer_call(ctx, e, p, known ? v : NULL);

		if (answer != NO_CALL)
			return answer;
	}
	/* A HOST entry that a packet from the pod meets for another address is of no use here. */
	known = known && !(v->flags & CT_HOST);
	if (known && !p->opening) {
		opener = v->opener & 1;
		judge(e, p, opener);
	} else if (p->opening) {
		opener = dir;
		judge(e, p, opener);
	} else {
		opener = adopt(ctx, e, p, dir) & 1;
	}
	if (!p->act)
		return drop(e->slot, dir, DROP_NO_ROW);
	if (p->act & ACT_ALLOW) {
		if (p->fragment == FIRST)
			remember_first(p, dir, opener);
		if (known && !p->opening)
			return keep(v, p, dir);
		/* A reply without a call opens nothing, a reset ends what there is not. */
		if (is_echo_reply(p) || p->tcp & TCP_RST)
			return NEXT;
		return admit(e, p, opener, dir);
	}
	if (known && !p->opening)
		return cut(e, p, v);
	if (dir == INGRESS && host_kind(&p->key.remote) == HOST_THIS && is_hairpin(ctx, p))
		return NEXT;
	if (p->tcp & TCP_RST)
		return drop(e->slot, dir, DROP_STRAY_RESET);
	return deny(e, p, opener);
}

static __always_inline int parse(struct __sk_buff *ctx, struct ethhdr *eth, struct packet *p, __u32 dir)
{
	p->kind = p->fragment = p->opening = p->adopted = p->ct_flags = p->tcp = p->icmp = p->has_service = 0;
	p->key.lport = p->key.rport = 0;
	return eth->h_proto == bpf_htons(ETH_P_IP) ? parse4(ctx, p, dir) : parse6(ctx, p, dir);
}

static __noinline int not_ip(struct __sk_buff *ctx, struct ep *e, __be16 proto, __u32 dir)
{
	int r = PASS;

	if (proto == bpf_htons(ETH_P_ARP))
		r = dir == EGRESS ? guard_arp(ctx, e) : PASS;
	else if ((e->word[0] | e->word[1]) >> 32 || is_unknown(e))
		r = DROP_NOT_IP;
	return r == PASS ? NEXT : drop(e->slot, dir, r);
}

static __always_inline int work(struct __sk_buff *ctx, const __u32 dir)
{
	struct ep *e = endpoint_of(ctx->ifindex);
	struct ethhdr *eth;
	struct packet p;
	struct ctv *v = NULL;
	__u32 now, linear;
	int r;

	if (unlikely(!e))
		return drop(0, dir, DROP_NO_ENDPOINT);
	linear = ctx->data_end - ctx->data;
	if (unlikely(linear < HEADERS && ctx->len > linear))
		bpf_skb_pull_data(ctx, ctx->len < HEADERS ? ctx->len : HEADERS);
	eth = (void *)(long)ctx->data;
	if (unlikely((void *)(eth + 1) > (void *)(long)ctx->data_end))
		return drop(e->slot, dir, DROP_MALFORMED);
	/* The kernel strips a second tag after us, and would find an address that we did not see. */
	if (dir == EGRESS && unlikely(ctx->vlan_present || eth->h_proto == bpf_htons(ETH_P_8021Q) ||
				      eth->h_proto == bpf_htons(ETH_P_8021AD)))
		return drop(e->slot, dir, DROP_VLAN);
	if (unlikely(eth->h_proto != bpf_htons(ETH_P_IP) && eth->h_proto != bpf_htons(ETH_P_IPV6)))
		return not_ip(ctx, e, eth->h_proto, dir);
	r = parse(ctx, eth, &p, dir);
	if (unlikely(r != PARSED))
		return drop(e->slot, dir, r);
	p.key.if_proto = ctx->ifindex << 8 | p.proto;

	if (!((READ_ONCE(e->word[0]) | READ_ONCE(e->word[1])) >> 32) && !is_unknown(e)) {
		r = guard(ctx, e, &p, dir);
		return r == PASS ? NEXT : drop(e->slot, dir, r);
	}
	if (likely(!p.kind && !p.fragment && !p.opening)) {
		v = bpf_map_lookup_elem(&ct, &p.key);
		now = jiffies();
		if (likely(v)) {
			__u64 word = READ_ONCE(v->word);

			if (likely((word & ~WORD_CUT) == READ_ONCE(e->word[v->opener & 1]) &&
				   is_live(v, &p.key, now) && fits_host(ctx, v, dir))) {
				if (unlikely(word & WORD_CUT))
					return still_cut(e, &p, v);
				touch(v, &p, dir, now);
				return NEXT;
			}
		}
	}
	return slow(ctx, e, &p, v, dir);
}

/* The pod's packets reach the host. */
SEC("tcx/ingress")
int from_pod(struct __sk_buff *ctx)
{
	return work(ctx, EGRESS);
}

/* The host's packets leave for the pod. */
SEC("tcx/egress")
int to_pod(struct __sk_buff *ctx)
{
	return work(ctx, INGRESS);
}

/* User space asks what time it is here. */
SEC("syscall")
int clock(struct clock *now)
{
	now->jiffies = bpf_jiffies64();
	now->ns = bpf_ktime_get_ns();
	return 0;
}

/* User space asks to try again to write the record that a connection owes: 0 if none is due any more. */
SEC("syscall")
int settle(struct ctk *asked)
{
	struct ctk key = *asked;
	struct ctv *v = bpf_map_lookup_elem(&ct, &key);
	struct ctk about = key;
	struct note n = {};
	struct front *to;

	if (!v || !v->owed)
		return 0;
	n.act = v->act;
	n.kind = EVENT_ALLOW;
	n.dir = v->opener;
	to = v->flags & CT_FRONT ? bpf_map_lookup_elem(&front, &key) : NULL;
	if (to) {
		n.service = key.remote;
		n.sport = key.rport;
		about.remote = to->backend;
		about.rport = to->port;
	}
	if (!emit(&about, &n))
		return 1;
	v->owed = 0;
	return 0;
}
