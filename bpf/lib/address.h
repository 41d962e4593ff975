/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * address.h: addresses of either family, and the byte order of the wire.
 */
#include "nodeseal.h"

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define NS_NET16(n) ((u16)((((n) & 0xff) << 8) | (((n) >> 8) & 0xff)))
#define NS_NET32(n) __builtin_bswap32(n)
#define NS_LOOPBACK_NET(address) (((address) & 0xff) == 127)
#else
#define NS_NET16(n) ((u16)(n))
#define NS_NET32(n) ((u32)(n))
#define NS_LOOPBACK_NET(address) (((address) >> 24) == 127)
#endif

static __always_inline struct ns_address ns_mapped(u32 ipv4)
{
    struct ns_address address = {{0, 0, NS_NET32(0xffff), ipv4}};

    return address;
}

static __always_inline int ns_same(const struct ns_address *one, const struct ns_address *other)
{
    return one->word[0] == other->word[0] && one->word[1] == other->word[1] &&
           one->word[2] == other->word[2] && one->word[3] == other->word[3];
}

static __always_inline int ns_same_flow(const struct ns_flow *one, const struct ns_flow *other)
{
    return ns_same(&one->source, &other->source) && ns_same(&one->destination, &other->destination) &&
           one->source_port == other->source_port && one->destination_port == other->destination_port;
}

static __always_inline int ns_none(const struct ns_address *address)
{
    return !(address->word[0] | address->word[1] | address->word[2] | address->word[3]);
}

/* An address of either family. */
static __always_inline int ns_is_mapped(const struct ns_address *address)
{
    return !address->word[0] && !address->word[1] && address->word[2] == NS_NET32(0xffff);
}

static __always_inline struct ns_address ns_any_like(const struct ns_address *address)
{
    struct ns_address any = {};

    return ns_is_mapped(address) ? ns_mapped(0) : any;
}

/*
 * Whether an IPv6 address is one that is never captured: on loopback (:: means the machine itself), on the
 * link only (it has a meaning together with a device, which a socket of the core in the client's stead cannot
 * have), or a group's.
 */
static __always_inline int ns_near(const struct ns_address *address)
{
    if ((address->word[0] & NS_NET32(0xffc00000)) == NS_NET32(0xfe800000) ||
        (address->word[0] & NS_NET32(0xff000000)) == NS_NET32(0xff000000))
        return 1;
    return !address->word[0] && !address->word[1] && !address->word[2] && !(address->word[3] & ~NS_NET32(1));
}

/* The same for either family. */
static __always_inline int ns_loopback(const struct ns_address *address)
{
    return ns_is_mapped(address) ? NS_LOOPBACK_NET(address->word[3]) : ns_near(address);
}
