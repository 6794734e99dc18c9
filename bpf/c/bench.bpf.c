/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * For the benchmark only: makes each repetition of a tried packet another connection, then calls the program
 * that is measured.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "GPL";

/* Which bytes change, set by user space. */
struct {
	__u32 next, connections, peers, first_peer;
	__u32 peer_at, port_at; /* offsets of the last two bytes of the peer's address, and of its port */
} vary;

/* The program that is measured. A map of programs holds those of one hook. */
struct program {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} measured_from SEC(".maps"), measured_to SEC(".maps");

static __always_inline int call(struct __sk_buff *ctx, void *measured)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 n = vary.next, peer_at = vary.peer_at & 127, port_at = vary.port_at & 127;
	__u32 peers = vary.peers ? vary.peers : 1;

	__be16 *peer = data + peer_at, *port = data + port_at;

	if ((void *)(peer + 1) > end || (void *)(port + 1) > end)
		return 0;
	*peer = bpf_htons(256 + vary.first_peer + n % peers);
	*port = bpf_htons(1024 + n / peers);
	vary.next = n + 1 < vary.connections ? n + 1 : 0;
	bpf_tail_call(ctx, measured, 0);
	return 0;
}

SEC("tcx/ingress")
int vary_from(struct __sk_buff *ctx)
{
	return call(ctx, &measured_from);
}

SEC("tcx/egress")
int vary_to(struct __sk_buff *ctx)
{
	return call(ctx, &measured_to);
}

SEC("tcx/ingress")
int empty_from(struct __sk_buff *ctx)
{
	(void)ctx;
	return -1;
}

SEC("tcx/egress")
int empty_to(struct __sk_buff *ctx)
{
	(void)ctx;
	return -1;
}
