/*
 * ring.h: the reader of a workload's ring, in which BPF programs park what they see (bpf/nodeseal.h).
 *
 * A BPF ring buffer is three mappings of one descriptor: a page with the position up to which it is read,
 * which is ours to write; a page with the position up to which it is written; and the data, there twice in a
 * row, so that a record which runs over the end is in one piece. Positions only grow. It has one reader.
 *
 * Its descriptor can be polled: EPOLLIN while anything is unread. The kernel wakes nobody for a record that
 * is not the first unread one. So who sleeps until an edge says first that all that was read is done, and
 * looks once more: ring_done does both.
 *
 * Only the kernel writes into it, but the packets in it are an application's: see wire/syn.h.
 */
#ifndef NS_RING_H
#define NS_RING_H

#include <stddef.h>
#include <stdint.h>

#include "nodeseal_core.h"

enum parked_kind {
    PARKED_SYN = 1,       /* the workload dials */
    PARKED_GONE = 2,      /* its application gave up a connection that was not established */
    PARKED_ARRIVED = 3,   /* somebody dials the workload */
    PARKED_TOLERANCE = 4, /* what its end of `flow` bears of the peer's silence has changed */
};

enum {
    PARKED_HEAD = 16, /* bytes before the union */
    PARKED_PACKET_MAX = 120,
};

/* In `value` of a SYN: it may go on as it is (NS_MARK_NATIVE). */
#define PARKED_NATIVE 0x80000000u

/* struct ns_flow: as on the wire. */
struct parked_flow {
    /* IPv4 addresses are in their v4-mapped form. */
    uint8_t source[16];
    uint8_t destination[16];
    /* Network order, as the next. */
    uint16_t source_port;
    uint16_t destination_port;
};

/* struct ns_parked. */
struct parked_record {
    /* enum parked_kind. */
    uint32_t kind;
    /* SYN and ARRIVED: of `packet` that count, at most PARKED_PACKET_MAX; others: 0. */
    uint32_t length;
    /* SYN and ARRIVED: how many native connections the workload has, and PARKED_NATIVE; TOLERANCE: that of
     * SO_KEEPALIVE, ms (struct tolerance). */
    uint32_t value;
    /* SYN: of the packet that releases it; TOLERANCE: TCP_USER_TIMEOUT, ms. */
    uint32_t mark;
    union {
        /* SYN and ARRIVED: only `length` bytes are there. */
        uint8_t packet[PARKED_PACKET_MAX];
        /* Others. The source is the workload's end. */
        struct parked_flow flow;
    };
};

struct ring {
    /* Shared with the kernel; NULL: not open. */
    uint64_t *consumer;
    /* Same, read only. */
    const uint64_t *producer;
    const uint8_t *data;
    /* Bytes of data, a power of two. */
    size_t size;
    /* Read up to here; ring_done tells the kernel. */
    uint64_t at;
    /* Records of unknown kinds, or too short for theirs: they were passed over. */
    uint64_t broken;
};

/* Bytes of data of a BPF ring buffer; 0 with errno: the descriptor is of no such map. */
size_t ring_size(int fd);
/* Goes on where the last reader left off. `size`: see above. The descriptor stays the caller's, and is not
 * needed for reading. 0, or -1 with errno and nothing to close. */
int ring_open(struct ring *ring, int fd, size_t size);
/* Harmless if it is all zero, or closed. What was read but not done is there for the next reader. */
void ring_close(struct ring *ring);

/* The next record, as long as its kind asks for; it stays in place until ring_done. NULL: there is none, or
 * a program is still writing it (the descriptor can be read until it has). */
const struct parked_record *ring_next(struct ring *ring);
/* Gives back the room of all that was read. 1: there is more to read; 0: the next record wakes who polls. */
int ring_done(struct ring *ring);
/* The addresses of a record that has a flow. */
void parked_addresses(const struct parked_record *record, struct ns_address *source,
                      struct ns_address *destination);

#endif
