/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * nodeseal.h: constants and structs shared by the BPF programs and by agent/nodeseal/capture.
 *
 * Marks and the port have the same values in cext/include/nodeseal_core.h; Python reads the rest from here by
 * name (capture/constants.py). A unit test compares all three, so that they cannot drift apart.
 *
 * No kernel headers: only what bcc brings along (u32 and friends, the bpf context structs and helper
 * prototypes). There is no htons here: constants that are compared with packet bytes are written through
 * NS_NET16 (lib/address.h).
 *
 * What several programs have in common is in lib/, the maps among it. bcc rewrites the calls of map methods
 * in the main file only, so it is given one file: agent/nodeseal/capture/bpf/sources.py puts the text of each
 * header, once, where it is included first. Headers need no guards for that; their names are those below
 * bpf/.
 */

/* Socket and packet marks, meaningful only inside the workload's network namespace. */
#define NS_MARK_CAPTURED 0x4e530001 /* on the application's socket: goes to the core, for life */
#define NS_MARK_TO_APP 0x4e530002   /* on the core's socket towards the application: replies come back */
#define NS_MARK_CORE 0x4e530003     /* on every other socket of the core: never captured */
#define NS_MARK_ANSWER 0x4e530004   /* on the core's socket towards a process of the node that has dialled */
/* 0x4e530005 is the iptables backend's own. The next ones are on packets that the core sends by a raw socket:
 * SYNs that were parked (struct ns_parked), once it is known what becomes of them. */
#define NS_MARK_RELEASED 0x4e530006 /* the workload's, the far side is there: to the core's listener */
#define NS_MARK_NATIVE 0x4e530007   /* the workload's: leaves as if there were no capture (lib/let_out.h) */
#define NS_MARK_ADMITTED 0x4e530008 /* from outside: to the application itself */

/*
 * In the node's own namespace a workload is a cgroup: its connections carry a mark of its own, this and its
 * number, 1 to 255. Others set bits in packets' marks as they like (kube-proxy 0xc000, Cilium 0x0f00): see
 * lib/captured.h for what becomes of that.
 */
#define NS_MARK_HOST 0x4e540000
#define NS_MARK_HOST_MASK 0xffffff00

#define NS_HBONE_PORT 15008 /* peers' tunnels: the core listens there itself, nothing is to be steered */

/* Keys of the `listeners` sockmap: enum ns_listener_role of the core without those for HBONE. */
#define NS_LISTENER_OUTBOUND 0
#define NS_LISTENER_INBOUND 1
#define NS_LISTENER_COUNT 2
/* Of a workload with a namespace of its own also the two for peers' tunnels, as the core numbers them: IPv4
 * and IPv6, for those that arrive at an address that the listener is not bound to. */
#define NS_LISTENER_HBONE 2
#define NS_LISTENER_HBONE6 3
#define NS_POD_LISTENERS 4

/* An address of either family, network order: IPv4 as ::ffff:a.b.c.d, so that one key serves both. */
struct ns_address {
    u32 word[4];
};

/* Bits of the values of the `own` map, which is keyed by addresses of the namespace. */
#define NS_OWN_PRESENT 1    /* it is on a device of the namespace */
#define NS_OWN_ATTRIBUTED 2 /* the mesh state gives it to the workload: peers' tunnels arrive there */

/* Key of the `owned` map: an address of an enrolled namespace, for who sees them all. */
struct ns_owned {
    u64 netns; /* its cookie */
    struct ns_address address;
};
#define NS_OWNED_ENTRIES 65536

/*
 * Value of the `enrolled` map, keyed by the cookie of the workload's network namespace. The addresses stand
 * for the workload in this family, and what is dialled there is never captured (of others see `owned`); all
 * zero: it has none of this family, and nothing of it is captured.
 */
struct ns_enrolment {
    u32 state; /* NS_STATE_CAPTURE or NS_STATE_LEAVE */
    u32 open;  /* 1: new connections go direct while nobody holds the outbound listener */
    u32 ipv4;
    struct ns_address ipv6;
};
#define NS_STATE_CAPTURE 1 /* new connections are marked */
#define NS_STATE_LEAVE 2   /* un-enrolling: a socket that dials again loses its mark */

/* The only value of the `host` map: a workload of the node's own namespace. */
struct ns_host {
    u64 netns; /* cookie of the node's namespace: the cgroup may hold containers with others */
    u32 mark;  /* NS_MARK_HOST and the workload's number */
    struct ns_enrolment enrolment;
};

/* Key of the `places` map: where a host workload listens, port in the packet's byte order. The any address of
 * a family (0.0.0.0 is mapped) stands for those of the node that are no workload's. */
struct ns_place {
    struct ns_address address;
    u16 port;
    u16 reserved;
};
/* Its value. */
struct ns_claim {
    u32 number; /* the workload's */
    u32 state;  /* NS_STATE_CAPTURE; NS_STATE_LEAVE: new connections go to the application itself */
    u32 open;   /* 1: the same while nobody holds the inbound listener */
};

/* Value of the `looped` map: an opening packet that came by on lo with a mark just now. */
struct ns_looped {
    u64 when; /* nanoseconds (bpf_ktime_get_ns) */
    u32 mark;
    u32 reserved;
};

/* Key of the `host_listeners` sockmap: this and NS_LISTENER_OUTBOUND or _INBOUND. */
#define NS_HOST_LISTENER(number) ((number) * NS_LISTENER_COUNT)
#define NS_HOST_NUMBERS 256 /* 1 to 255 */

/* What a SYN of a process of the node that is released carries, with the workload's number. */
#define NS_MARK_HOST_RELEASED 0x4e550000

/* Bits of the only value of the `settings` map: the families in which the namespace's workload has an
 * address, and whether what comes in goes to the application while nobody holds the inbound listener. */
#define NS_FAMILY_IPV4 1
#define NS_FAMILY_IPV6 2
#define NS_SETTING_OPEN 4
#define NS_SETTING_PARK 8     /* SYNs that the workload sends are parked: a core reads its ring */
#define NS_SETTING_PARK_IN 16 /* the same of SYNs that arrive from outside */
#define NS_SETTING_NATIVE 32  /* the core may send on a SYN of the workload's as it is */

/*
 * Key of the `revisited` map: a SYN that the kernel may take to a listener of its choice although it met a
 * socket, in the order and byte order of the packet. The value is when, in nanoseconds (bpf_ktime_get_ns).
 * steer_ingress.c writes, assign_lookup.c reads.
 */
struct ns_flow {
    struct ns_address source;
    struct ns_address destination;
    u16 source_port;
    u16 destination_port;
};
#define NS_REVISIT_NS 1000000000ULL /* older entries do not count: the packet is long gone */

/*
 * A record in a workload's ring `parked` (BPF ring buffer, NS_RING_BYTES of data), from the BPF programs to
 * the one core that reads it (cext/src/loop/ring.h). Records of one connection are in their order. A SYN is
 * in no other place once it is parked: the program drops the packet, and the sender's kernel sends it again
 * if nobody answers. So nothing is lost with a record, but time.
 *
 * Of a record as many bytes are written as its kind has: up to the end of `packet` or of `flow`.
 */
struct ns_parked {
    u32 kind;   /* NS_PARKED_... */
    u32 length; /* of `packet` that count: from the IP header to the end of TCP's, without options cut off */
    u32 value;  /* SYN, ARRIVED: native connections it has, NS_PARKED_NATIVE; TOLERANCE: see there */
    u32 mark;   /* SYN: what it is to carry when it is released: NS_MARK_RELEASED, or that of a process */
    union {
        u8 packet[120];      /* SYN, ARRIVED: 60 + 60 bytes for IPv4, 40 + 60 for IPv6; more is not parked */
        struct ns_flow flow; /* the others: the source is the workload's end */
    };
};
#define NS_PARKED_SYN 1     /* the workload dials */
#define NS_PARKED_GONE 2    /* its application gave up a connection that was not established */
#define NS_PARKED_ARRIVED 3 /* somebody dials the workload */
/* What its end of an established `flow` bears of the peer's silence, in ms, 0 where it has not said: `value`,
 * SO_KEEPALIVE with all of its times; `mark`, TCP_USER_TIMEOUT. */
#define NS_PARKED_TOLERANCE 4
#define NS_PARKED_NATIVE 0x80000000 /* in `value` of a SYN: it may leave marked NS_MARK_NATIVE */
#define NS_PARKED_HEAD 16           /* bytes before the union */
#define NS_RING_BYTES 131072

/* Key of maps about single workloads: the namespace's cookie, and the number of a process of the node, 0 for
 * a workload that has the namespace for itself. `rings` has those in which their SYNs are parked. */
struct ns_ring {
    u64 netns;
    u32 number;
    u32 reserved;
};

/* Why a connection is native: it goes from kernel to kernel, and nothing of ours is on its way. */
#define NS_NATIVE_EXCLUDED_PORT 1  /* by the workload, see lib/bypass.h */
#define NS_NATIVE_EXCLUDED_RANGE 2 /* the same */
#define NS_NATIVE_OUTSIDE 3        /* dialled, and certain to be outside the mesh */
#define NS_NATIVE_DECIDED 4        /* the core has decided that it is plaintext */
#define NS_NATIVE_MARK 5           /* dialled by a socket with a mark of the application's own */
#define NS_NATIVE_OPEN 6           /* the workload is open on failure, and nobody holds the listener */
#define NS_NATIVE_NODE 7           /* opened by the node itself */

/* Value of the map `let_go`, keyed by a socket's cookie: the connect programs have let it go. */
struct ns_let_go {
    u32 number; /* the workload's, of a process of the node; 0: it has the namespace for itself */
    u32 reason;
};

/* Value of the maps `let_out` and `let_in`, keyed by the flow: a SYN that was let go. */
struct ns_let {
    u64 when; /* nanoseconds (bpf_ktime_get_ns) */
    u32 sequence;
    u32 reason;
};
/* The ACK that ends a handshake with SYN cookies comes within this time behind its SYN. */
#define NS_LET_IN_NS 10000000000ULL

/* Value of the map `natives`, keyed by the socket's cookie: a native connection that is open. */
struct ns_native {
    u64 netns; /* cookie of its namespace, with `number` the workload's */
    u32 number;
    u32 inbound; /* 1: the workload accepted it */
    u32 reason;
    struct ns_flow flow; /* source: who dialled */
    u64 opened;          /* nanoseconds (bpf_ktime_get_ns) */
};

/* Key of the map `native_totals`. */
struct ns_native_place {
    u64 netns;
    u32 number;
    u16 inbound;
    u16 reason;
    struct ns_address far;
};
/* Its value; bytes are added when a connection is closed: what the far kernel has acknowledged, and what the
 * own one has received. */
struct ns_native_total {
    u64 opened;
    u64 closed;
    u64 acknowledged;
    u64 received;
};

/*
 * In the map `native_log`, of each CPU the last NS_NATIVE_LOG in turn: the place is the number, counted from
 * 0, modulo that. `native_told` has the next number of each CPU. The only value of `native_wanted` is not 0
 * while somebody listens.
 */
struct ns_native_event {
    u64 number; /* plus one, written last; another one: it is being written */
    u64 when;   /* nanoseconds (bpf_ktime_get_ns) */
    u64 cookie;
    u32 kind; /* NS_NATIVE_OPENED or NS_NATIVE_CLOSED */
    u32 reserved;
    u64 acknowledged; /* as in the totals; of one that is closed */
    u64 received;
    struct ns_native native;
};
#define NS_NATIVE_LOG 256
#define NS_NATIVE_OPENED 1 /* told while somebody listens */
#define NS_NATIVE_CLOSED 2

/* Keys of the `counters` map, a per-CPU array of u64. Drop and refuse: the program failed closed. */
#define NS_COUNT_CONNECT_MARK_FAILED 0    /* refuse: the mark could not be set */
#define NS_COUNT_CONNECT_UNBIND_FAILED 1  /* refuse: the socket could not be freed from its device */
#define NS_COUNT_CONNECT_FOREIGN_MARK 2   /* pass: the application's own SO_MARK was found; not captured */
#define NS_COUNT_LOOKUP_NO_LISTENER 3     /* drop: captured, but nobody holds the listener */
#define NS_COUNT_LOOKUP_ASSIGN_FAILED 4   /* drop: bpf_sk_assign */
#define NS_COUNT_STEER_TRUNCATED 5        /* pass: headers could not be read; the stack drops such packets */
#define NS_COUNT_STEER_FRAGMENT 6         /* drop: a fragment; reassembly would lose the assigned socket */
#define NS_COUNT_STEER_ROUTE_FAILED 7     /* treated as ours: bpf_fib_lookup could not tell */
#define NS_COUNT_STEER_NO_LISTENER 8      /* drop: a new connection, but nobody holds the inbound listener */
#define NS_COUNT_STEER_ASSIGN_FAILED 9    /* drop: bpf_sk_assign */
#define NS_COUNT_STEER_REVISIT_FAILED 10  /* drop: the SYN could not be noted for assign_lookup */
#define NS_COUNT_STEER_HEADERS 11         /* drop: IPv6 extension headers that hide what the packet is for */
#define NS_COUNT_CONNECT_MARK_REPLACED 12 /* captured: the application's SO_MARK gave way to ours */
#define NS_COUNT_CONNECT_EXCLUDED 13      /* pass: the workload excludes the connection, see lib/bypass.h */
#define NS_COUNT_STEER_EXCLUDED 14        /* pass: the same, inbound */
#define NS_COUNT_STEER_FROM_NODE 15       /* pass: opened by the node itself */
#define NS_COUNT_MARK_KEPT 16          /* refuse: SO_MARK on the application's end of a captured connection */
#define NS_COUNT_LOOP_UNKNOWN 17       /* drop: a marked packet on lo whose headers could not be read */
#define NS_COUNT_LOOP_NOTE_FAILED 18   /* drop: a marked packet on lo could not be noted for lookup_host */
#define NS_COUNT_RETURN_FAILED 19      /* drop: an answer for the core could not be turned round to lo */
#define NS_COUNT_EGRESS_HELD 20        /* drop: of a captured connection, about to leave in plaintext */
#define NS_COUNT_LOOP_MARK_RESTORED 21 /* pass: on lo, and has its socket's mark again */
#define NS_COUNT_CONNECT_OUTSIDE 22    /* pass: certain to be outside the mesh */
#define NS_COUNT_PARK_UNREADABLE 23    /* drop: captured, on lo, and its headers could not be read */
#define NS_COUNT_PARK_FULL 24          /* drop: a SYN, and the ring had no room; its sender sends it again */
#define NS_COUNT_PARK_RESET_HELD 25    /* drop: a reset whose own sender is established */
#define NS_COUNT_DIAL_UNWATCHED 26     /* pass: a captured socket, of whose end the core will not be told */
#define NS_COUNT_DIAL_UNTOLD 27    /* pass: the core was not told: its ring was full, or the kernel silent */
#define NS_COUNT_DIAL_SLOW 28      /* pass: first bytes that are lost are sent again after 200 ms */
#define NS_COUNT_NATIVE_UNNOTED 29 /* pass: a native connection that will not be accounted for */
#define NS_COUNT_NATIVE_LOST 30    /* pass: the same, `natives` had no room or could not watch it */
#define NS_COUNT_NATIVE_TOTAL_LOST 31 /* pass: counted nowhere, `native_totals` had no room */
#define NS_COUNT_NATIVE_HELD 32       /* the socket stays captured: its mark could not be taken off */
#define NS_COUNT_COUNT 33

/* Values of the Linux ABI that bcc's own headers do not bring. */
#define NS_AF_INET 2
#define NS_AF_INET6 10
#define NS_SOCK_STREAM 1
#define NS_SOCK_RAW 3
#define NS_IPPROTO_TCP 6
#define NS_IPPROTO_UDP 17
#define NS_SOL_SOCKET 1
#define NS_SO_BINDTODEVICE 25
#define NS_SO_MARK 36
#define NS_LOOPBACK_IFINDEX 1 /* the kernel gives lo this index in every namespace */
