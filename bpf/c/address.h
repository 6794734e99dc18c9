/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Questions to addresses, and whose they are.
 */
#ifndef DURWARD_ADDRESS_H
#define DURWARD_ADDRESS_H

#include <bpf/bpf_endian.h>
#include "maps.h"

#define MAPPED bpf_htonl(0x0000ffff)

static __always_inline bool same(const struct addr *a, const struct addr *b)
{
	return a->w[0] == b->w[0] && a->w[1] == b->w[1] && a->w[2] == b->w[2] && a->w[3] == b->w[3];
}

static __always_inline bool is_v4(const struct addr *a)
{
	return !a->w[0] && !a->w[1] && a->w[2] == MAPPED;
}

static __always_inline bool is_unspecified(const struct addr *a)
{
	return !a->w[0] && !a->w[1] && (!a->w[2] || a->w[2] == MAPPED) && !a->w[3];
}

static __always_inline bool is_link_local(const struct addr *a)
{
	if (is_v4(a))
		return (a->w[3] & bpf_htonl(0xffff0000)) == bpf_htonl(0xa9fe0000);
	return (a->w[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

/* IPv4's broadcast counts: it goes to everybody on the link, as multicast does. */
static __always_inline bool is_multicast(const struct addr *a)
{
	if (is_v4(a))
		return (a->w[3] & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) || a->w[3] == 0xffffffff;
	return (a->w[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
}

static __always_inline bool is_link_multicast(const struct addr *a)
{
	return (a->w[0] & bpf_htonl(0xff0f0000)) == bpf_htonl(0xff020000);
}

/* enum host_kind; 0: no node's. */
static __always_inline __u32 host_kind(const struct addr *a)
{
	__u32 *kind = bpf_map_lookup_elem(&host, a);

	return kind ? *kind : 0;
}

/* Whether a Service is called there, by an address of its own. */
static __always_inline bool is_vip(const struct addr *address, __be16 port, __u8 proto)
{
	struct vipk key = { .addr = *address, .port = port, .proto = proto };

	return bpf_map_lookup_elem(&vip, &key);
}

/* Whether a Service is called there, by a port that every address of this node has for it. */
static __always_inline bool is_node_port(const struct addr *address, __be16 port, __u8 proto)
{
	struct vipk key = { .port = port, .proto = proto };

	return host_kind(address) == HOST_THIS && bpf_map_lookup_elem(&vip, &key);
}

static __always_inline __u32 services(void)
{
	struct config *cfg = configuration();

	return cfg ? cfg->services : SERVICES_BY_ADDRESS;
}

static __always_inline struct ep *endpoint_of(__u32 ifindex)
{
	__u32 index = ifindex & 0xffff;
	struct ep *found = bpf_map_lookup_elem(&ep, &index);

	if (likely(found && READ_ONCE(found->ifindex) == ifindex))
		return found;
	return bpf_map_lookup_elem(&ep_overflow, &ifindex);
}

/* Whether an address is one of the endpoint's own. */
static __always_inline bool is_own(const struct ep *e, const struct addr *a)
{
	struct sourcek key;

	if (same(a, &e->ip4) || same(a, &e->ip6))
		return !is_unspecified(a);
	if (!(e->flags & EP_MORE_ADDRESSES))
		return false;
	key.ifindex = e->ifindex;
	key.addr = *a;
	return bpf_map_lookup_elem(&source, &key);
}

#endif
