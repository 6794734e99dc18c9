/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Who opened a connection that we have no entry of? It was there before us, or its entry was evicted. Which
 * direction's rules count depends on it, and the packet does not say.
 */
#ifndef DURWARD_OPENER_H
#define DURWARD_OPENER_H

#include "parse.h"
#include <bpf/bpf_core_read.h>

/* The kernel's, of which only the names count: where the fields are is found out at load. */
struct nf_conntrack_tuple {
	__u32 src[4];
	__be16 sport;
	__u16 family;
	__u32 dst[4];
	__be16 dport;
	__u8 protonum, dir;
};
struct nf_conntrack_tuple_hash {
	struct nf_conntrack_tuple tuple;
} __attribute__((preserve_access_index));
struct nf_conn {
	unsigned long status;
	struct nf_conntrack_tuple_hash tuplehash[2];
} __attribute__((preserve_access_index));

#define IPS_SEEN_REPLY (1 << 1)
#define IPS_SRC_NAT (1 << 4)
#define IPS_DST_NAT (1 << 5)
#define IP_CT_DIR_ORIGINAL 0

struct bpf_ct_opts {
	__s32 netns_id;
	__s32 error;
	__u8 l4proto;
	__u8 dir;
	__u8 reserved[2];
};

extern struct nf_conn *bpf_skb_ct_lookup(struct __sk_buff *ctx, struct bpf_sock_tuple *tuple, __u32 tuple_size,
					 struct bpf_ct_opts *opts, __u32 opts_size) __ksym __weak;
extern void bpf_ct_release(struct nf_conn *nf) __ksym __weak;

static __always_inline struct addr tuple_addr(const struct nf_conntrack_tuple *t, const __u32 *a)
{
	struct addr mapped = { { 0, 0, MAPPED, a[0] } }, plain = { { a[0], a[1], a[2], a[3] } };

	return t->family == 2 /* AF_INET */ ? mapped : plain;
}

enum witness {
	NOBODY = -1,
	/* else enum direction: who opened */
};

/* A tuple from one end to the other; its length tells the family. */
static __always_inline __u32 tuple_of(struct bpf_sock_tuple *t, const struct addr *src, const struct addr *dst,
				      __be16 sport, __be16 dport)
{
	if (is_v4(src)) {
		t->ipv4.saddr = src->w[3];
		t->ipv4.daddr = dst->w[3];
		t->ipv4.sport = sport;
		t->ipv4.dport = dport;
		return sizeof(t->ipv4);
	}
	__builtin_memcpy(t->ipv6.saddr, src, sizeof(*src));
	__builtin_memcpy(t->ipv6.daddr, dst, sizeof(*dst));
	t->ipv6.sport = sport;
	t->ipv6.dport = dport;
	return sizeof(t->ipv6);
}

/* The host's entry for a connection between the pod and its remote; to be released. `opts->dir` says whether it is the
 * pod's own. */
static __always_inline struct nf_conn *host_entry(struct __sk_buff *ctx, const struct packet *p,
						  struct bpf_ct_opts *opts)
{
	struct bpf_sock_tuple t = {};

	opts->netns_id = BPF_F_CURRENT_NETNS;
	opts->l4proto = p->proto;
	if (!bpf_ksym_exists(bpf_skb_ct_lookup) || !bpf_ksym_exists(bpf_ct_release))
		return NULL;
	if (tuple_of(&t, &p->key.local, &p->key.remote, p->key.lport, p->key.rport) == sizeof(t.ipv4))
		return bpf_skb_ct_lookup(ctx, &t, sizeof(t.ipv4), opts, sizeof(*opts));
	return bpf_skb_ct_lookup(ctx, &t, sizeof(t.ipv6), opts, sizeof(*opts));
}

/* The host's conntrack. Only an entry that has seen a reply is a witness: a denied packet makes one too. */
__noinline int ask_conntrack(struct __sk_buff *ctx, struct packet *p)
{
	if (!p)
		return NOBODY;

	struct bpf_ct_opts opts = {};
	struct nf_conn *found = host_entry(ctx, p, &opts);
	int answer = NOBODY;

	if (!found)
		return NOBODY;
	if (found->status & IPS_SEEN_REPLY)
		answer = opts.dir == IP_CT_DIR_ORIGINAL ? EGRESS : INGRESS;
	bpf_ct_release(found);
	return answer;
}

/* The pod's own call to a Service that came back to it, masqueraded so that its answers do too. */
__noinline int is_hairpin(struct __sk_buff *ctx, struct packet *p)
{
	if (!p)
		return false;

	struct bpf_ct_opts opts = {};
	struct nf_conntrack_tuple original = {};
	struct nf_conn *found = host_entry(ctx, p, &opts);
	struct addr caller;

	if (!found)
		return false;
	bpf_core_read(&original, sizeof(original), &found->tuplehash[0].tuple);
	bpf_ct_release(found);
	caller = tuple_addr(&original, original.src);
	return opts.dir != IP_CT_DIR_ORIGINAL && same(&caller, &p->key.local);
}

/* The backend of the pod's call to a frontend, as the host has translated it. */
__noinline int translated_to(struct __sk_buff *ctx, struct packet *p, struct front *to)
{
	if (!p || !to)
		return false;

	struct bpf_ct_opts opts = {};
	struct nf_conntrack_tuple answer = {};
	struct nf_conn *found = host_entry(ctx, p, &opts);
	bool is;

	if (!found)
		return false;
	is = opts.dir == IP_CT_DIR_ORIGINAL && (found->status & IPS_DST_NAT);
	bpf_core_read(&answer, sizeof(answer), &found->tuplehash[1].tuple);
	bpf_ct_release(found);
	to->backend = tuple_addr(&answer, answer.src);
	to->port = answer.sport;
	return is;
}

/* The state of the pod's socket for a packet from `remote`:`rport`; 0: none. */
static __always_inline __u32 socket_state(struct __sk_buff *ctx, struct ep *e, struct packet *p, bool listener)
{
	struct bpf_sock_tuple t = {};
	struct addr nobody = {};
	struct bpf_sock *sk;
	__u32 state;

	/* No connection is from port 0: only a listener answers. */
	if (listener && is_v4(&p->key.local))
		nobody.w[2] = MAPPED;
	if (tuple_of(&t, listener ? &nobody : &p->key.remote, &p->key.local, listener ? 0 : p->key.rport,
		     p->key.lport) == sizeof(t.ipv4))
		sk = bpf_skc_lookup_tcp(ctx, &t, sizeof(t.ipv4), e->nsid, 0);
	else
		sk = bpf_skc_lookup_tcp(ctx, &t, sizeof(t.ipv6), e->nsid, 0);
	if (!sk)
		return 0;
	state = sk->state;
	bpf_sk_release(sk);
	return state;
}

/* The pod's socket: connected, and a listener beside it says that the pod was called. */
__noinline int ask_socket(struct __sk_buff *ctx, struct ep *e, struct packet *p)
{
	if (!e || !p)
		return NOBODY;

	__u32 state;

	if (e->nsid < 0)
		return NOBODY;
	state = socket_state(ctx, e, p, false);
	if (!state || state == BPF_TCP_SYN_SENT || state == BPF_TCP_SYN_RECV || state == BPF_TCP_NEW_SYN_RECV ||
	    state == BPF_TCP_LISTEN || state == BPF_TCP_CLOSE)
		return NOBODY;
	return socket_state(ctx, e, p, true) == BPF_TCP_LISTEN ? INGRESS : EGRESS;
}

#endif
