/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * All maps, each with who writes, who reads, and why it is what it is. All are pinned by name.
 */
#ifndef DURWARD_MAPS_H
#define DURWARD_MAPS_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "abi.h"

/* Constants to the programs: user space sets them before the load. */
const volatile struct timing timing = {};

/* Endpoints by ifindex & 0xffff. Written by user space through its own mapping, so that a word is one store:
 * an update by system call copies bytes and may tear. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct ep);
} ep SEC(".maps");

/* Endpoints whose place in `ep` another one has. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct ep);
} ep_overflow SEC(".maps");

/* Further addresses of endpoints. Written by user space. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct sourcek);
	__type(value, __u32);
} source SEC(".maps");

/* Addresses of nodes, enum host_kind. Written by user space. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct addr);
	__type(value, __u32);
} host SEC(".maps");

/* Exact remote addresses. Written by user space in place, under the lock: a freed node is reused at once,
 * and a packet that still reads it would see another address's atom. */
struct atom_cell {
	struct bpf_spin_lock lock;
	__u32 atom;
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 524288);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct addr);
	__type(value, struct atom_cell);
} ip_atom SEC(".maps");

/* Remote blocks, IPv4 as /96 and longer. Written by user space. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct cidrk);
	__type(value, __u32);
} cidr_atom SEC(".maps");

/* Verdicts. Written by user space, an element at a time. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct rowk);
	__type(value, struct row);
} row SEC(".maps");

/* Pages of rows with more bounds than fit. Written before the row that names them. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct pagek);
	__type(value, struct page);
} big_row SEC(".maps");

/* Connections. Written by the programs; user space deletes. Evicts the longest silent when full. The number
 * of entries is user space's choice. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 524288);
	__type(key, struct ctk);
	__type(value, struct ctv);
} ct SEC(".maps");

/* What was said of first fragments. Written by the programs. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct fragk);
	__type(value, struct fragv);
} frag SEC(".maps");

/* Which endpoint has an address, for packets that are seen elsewhere than at its interface. Written by user space. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct addr);
	__type(value, __u32);
} owner SEC(".maps");

/* Frontends of Services. Written by user space. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct vipk);
	__type(value, __u32);
} vip SEC(".maps");

/* The backends that connections to frontends were judged by; beside their entries in `ct`. Written by `forward`. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 131072);
	__type(key, struct ctk);
	__type(value, struct front);
} front SEC(".maps");

/* Windows of denials. The programs open and count, user space closes and frees, through its own mapping. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, DENIALS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct denial);
} denial SEC(".maps");

/* Totals by slot * 2 + direction. Written by the programs, read and cleared by user space. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 8192);
	__type(key, __u32);
	__type(value, struct counters);
} counter SEC(".maps");

/* What was not logged. Written by the programs; user space takes epochs that are over. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct suppk);
	__type(value, struct suppv);
} suppressed SEC(".maps");

/* Records for the log, 26,000 of them. One reader, that polls: waking it would cost a packet microseconds.
 * Its memory counts twice in the reader's. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 2 * 1024 * 1024);
} events SEC(".maps");

/* One element. Written by user space. */
struct config_map {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct config);
} config SEC(".maps");

/* Replaced by user space to wait until no program runs any more that began before. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct config_map);
} grace SEC(".maps");

/* Functions that are not static are verified once, by themselves, instead of at each call with all that the
 * caller knows: it keeps the verifier's work small. Their first lines tell it that no pointer is NULL. */

static __always_inline struct config *configuration(void)
{
	__u32 only = 0;

	return bpf_map_lookup_elem(&config, &only);
}

static __always_inline __u32 jiffies(void)
{
	return (__u32)bpf_jiffies64();
}

static __always_inline struct counters *counters_of(__u32 slot, __u32 dir)
{
	__u32 key = slot * 2 + dir;

	return bpf_map_lookup_elem(&counter, &key);
}

#define READ_ONCE(x) (*(const volatile typeof(x) *)&(x))
#define WRITE_ONCE(x, v) (*(volatile typeof(x) *)&(x) = (v))

#endif
