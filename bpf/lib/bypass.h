/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * bypass.h: which connections bypass the core, asked of the map `bypass` when they are opened.
 *
 * One longest-prefix-match trie for a run directory, kept by agent/nodeseal/capture/bypass.py from the mesh
 * state:
 *
 *     scope           owner               what     meaning
 *     PEER            address             -        enrolled, or a service that leads to one: NS_PEER_...
 *     NODE            address (prefix)    -        the node's: NS_NODE_..., see steer_ingress.c
 *     OUTBOUND_PORT   workload's address  port     it dials this port directly
 *     OUTBOUND_RANGE  workload's address  address  it dials these addresses directly
 *     INBOUND_PORT    workload's address  port     it is dialled at this port directly
 *     INBOUND_RANGE   workload's address  address  it is dialled from these addresses directly
 *     EXTENT          address (prefix)    -        of the mesh or certain to be outside: NS_EXTENT_...
 *
 * The last column of the key is a prefix.
 *
 * All enrolled workloads of the mesh are in it, not only those of this node, because of the rule: between two
 * of them a connection bypasses the core only if the one excludes it outbound and the other inbound. The
 * sender's program asks that before it lets go of a connection, so that not one byte leaves in plaintext that
 * only one side wanted so; and the receiver's program asks it again.
 */
#include "nodeseal.h"

#define NS_SCOPE_PEER 1
#define NS_SCOPE_NODE 2
#define NS_SCOPE_OUTBOUND_PORT 3
#define NS_SCOPE_OUTBOUND_RANGE 4
#define NS_SCOPE_INBOUND_PORT 5
#define NS_SCOPE_INBOUND_RANGE 6
#define NS_SCOPE_EXTENT 7

#define NS_PEER_ALONE 1  /* the address is the workload's own */
#define NS_PEER_SHARED 2 /* it is a node's, with processes that are not enrolled */

#define NS_EXTENT_INSIDE 1  /* in a range of pods or services, or an address of the mesh state */
#define NS_EXTENT_OUTSIDE 2 /* the node's configuration is certain of it */

#define NS_NODE_LOCAL 1   /* only what a socket of this machine has sent */
#define NS_NODE_TRUSTED 2 /* from wherever it comes: the operator named the address */

/* The kernel's struct bpf_lpm_trie_key: how many bits of what follows count, and those bits. A connection's
 * two ends are of one family, so that the owner's tells which of its ranges count. */
struct ns_bypass_key {
    u32 prefix_length;
    u32 scope;
    struct ns_address owner;
    union {
        struct ns_address address;
        /* Network order. */
        u16 port;
    } what;
};
#define NS_BYPASS_OWNER_BITS (32 + 128)
#define NS_BYPASS_ENTRIES (1 << 20)

BPF_F_TABLE("lpm_trie", struct ns_bypass_key, u32, bypass, NS_BYPASS_ENTRIES, BPF_F_NO_PREALLOC);

static __always_inline u32 *bypass_of(u32 scope, const struct ns_address *owner)
{
    struct ns_bypass_key key = {NS_BYPASS_OWNER_BITS, scope, *owner};

    return bypass.lookup(&key);
}

static __always_inline int bypass_peer(const struct ns_address *address)
{
    return bypass_of(NS_SCOPE_PEER, address) != 0;
}

/* Whether the workload `owner` excludes a connection with `remote`, dialled at `port` (network order): by
 * which of the two, NS_NATIVE_EXCLUDED_...; 0: it does not. */
static __always_inline u32 bypass_excluded(u32 port_scope, const struct ns_address *owner,
                                           const struct ns_address *remote, u16 port)
{
    struct ns_bypass_key key = {NS_BYPASS_OWNER_BITS + 16, port_scope, *owner};

    key.what.port = port;
    if (bypass.lookup(&key))
        return NS_NATIVE_EXCLUDED_PORT;
    key.prefix_length = NS_BYPASS_OWNER_BITS + 128;
    key.scope = port_scope + 1;
    key.what.address = *remote;
    return bypass.lookup(&key) ? NS_NATIVE_EXCLUDED_RANGE : 0;
}

/* Whether the connection that the workload `own` opens from `source`, which is its address as well, bypasses
 * the core because it excludes it: why, or 0. */
static __always_inline u32 bypass_outbound(const struct ns_address *own, const struct ns_address *source,
                                           const struct ns_address *remote, u16 port)
{
    u32 why = bypass_excluded(NS_SCOPE_OUTBOUND_PORT, own, remote, port);

    if (!why || !bypass_peer(remote))
        return why;
    return bypass_excluded(NS_SCOPE_INBOUND_PORT, remote, source, port) ? why : 0;
}

/* The same of one that is opened to it. What comes from an address that processes of a node share is of one
 * that is not enrolled: the others' is captured where it is dialled. */
static __always_inline u32 bypass_inbound(const struct ns_address *own, const struct ns_address *remote,
                                          u16 port)
{
    u32 why = bypass_excluded(NS_SCOPE_INBOUND_PORT, own, remote, port);
    u32 *peer;

    if (!why)
        return 0;
    peer = bypass_of(NS_SCOPE_PEER, remote);
    if (!peer || *peer == NS_PEER_SHARED)
        return why;
    return bypass_excluded(NS_SCOPE_OUTBOUND_PORT, remote, own, port) ? why : 0;
}

/* Whether nobody enrolled can be at the address, whatever became of our processes. */
static __always_inline int bypass_outside(const struct ns_address *address)
{
    u32 *extent = bypass_of(NS_SCOPE_EXTENT, address);

    return extent && *extent == NS_EXTENT_OUTSIDE && !bypass_peer(address);
}
