/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * nodeseal.h: constants and structs shared by the BPF programs and by agent/nodeseal/capture.
 *
 * Marks and the port have the same values in cext/include/nodeseal_core.h; Python reads the rest from here by
 * name (capture/constants.py). A unit test compares all three, so that they cannot drift apart.
 *
 * No kernel headers: only what bcc brings along (u32 and friends, the bpf context structs and helper
 * prototypes). There is no htons here: constants that are compared with packet bytes are written through
 * NS_NET16.
 */
#ifndef NODESEAL_BPF_H
#define NODESEAL_BPF_H

/* Socket and packet marks, meaningful only inside the workload's network namespace. */
#define NS_MARK_CAPTURED 0x4e530001 /* on the application's socket: goes to the core, for life */
#define NS_MARK_TO_APP 0x4e530002   /* on the core's socket towards the application: replies come back */
#define NS_MARK_CORE 0x4e530003     /* on every other socket of the core: never captured */

#define NS_HBONE_PORT 15008 /* peers' tunnels: the core listens there itself, nothing is to be steered */

/* Keys of the `listeners` sockmap: enum ns_listener_role of the core without NS_LISTEN_HBONE. */
#define NS_LISTENER_OUTBOUND 0
#define NS_LISTENER_INBOUND 1
#define NS_LISTENER_COUNT 2

/* Value of the `enrolled` map, keyed by the cookie of the workload's network namespace. */
struct ns_enrolment {
    u32 address; /* the workload's own IPv4 address, network order: never captured */
    u32 state;   /* NS_STATE_CAPTURE or NS_STATE_LEAVE */
};
#define NS_STATE_CAPTURE 1 /* new connections are marked */
#define NS_STATE_LEAVE 2   /* un-enrolling: a socket that dials again loses its mark */

/*
 * Key of the `revisited` map: a SYN that the kernel may take to a listener of its choice although it met a
 * socket, in the order and byte order of the packet. The value is when, in nanoseconds (bpf_ktime_get_ns).
 * steer_ingress.c writes, assign_lookup.c reads.
 */
struct ns_flow {
    u32 source;
    u32 destination;
    u16 source_port;
    u16 destination_port;
};
#define NS_REVISIT_NS 1000000000ULL /* older entries do not count: the packet is long gone */

/* Keys of the `counters` map, a per-CPU array of u64. Drop and refuse: the program failed closed. */
#define NS_COUNT_CONNECT_MARK_FAILED 0   /* refuse: the mark could not be set */
#define NS_COUNT_CONNECT_UNBIND_FAILED 1 /* refuse: the socket could not be freed from its device */
#define NS_COUNT_CONNECT_FOREIGN_MARK 2  /* pass: the application's own SO_MARK was found; not captured */
#define NS_COUNT_LOOKUP_NO_LISTENER 3    /* drop: captured, but nobody holds the listener */
#define NS_COUNT_LOOKUP_ASSIGN_FAILED 4  /* drop: bpf_sk_assign */
#define NS_COUNT_STEER_TRUNCATED 5       /* pass: headers could not be read; the stack drops such packets */
#define NS_COUNT_STEER_FRAGMENT 6        /* drop: a fragment; reassembly would lose the assigned socket */
#define NS_COUNT_STEER_ROUTE_FAILED 7    /* treated as ours: bpf_fib_lookup could not tell */
#define NS_COUNT_STEER_NO_LISTENER 8     /* drop: a new connection, but nobody holds the inbound listener */
#define NS_COUNT_STEER_ASSIGN_FAILED 9   /* drop: bpf_sk_assign */
#define NS_COUNT_STEER_REVISIT_FAILED 10 /* drop: the SYN could not be noted for assign_lookup */
#define NS_COUNT_COUNT 11

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define NS_NET16(n) ((u16)((((n) & 0xff) << 8) | (((n) >> 8) & 0xff)))
#define NS_LOOPBACK_NET(address) (((address) & 0xff) == 127)
#else
#define NS_NET16(n) ((u16)(n))
#define NS_LOOPBACK_NET(address) (((address) >> 24) == 127)
#endif

/* Values of the Linux ABI that bcc's own headers do not bring. */
#define NS_AF_INET 2
#define NS_SOCK_STREAM 1
#define NS_IPPROTO_TCP 6
#define NS_SOL_SOCKET 1
#define NS_SO_BINDTODEVICE 25
#define NS_SO_MARK 36
#define NS_LOOPBACK_IFINDEX 1 /* the kernel gives lo this index in every namespace */

#endif
