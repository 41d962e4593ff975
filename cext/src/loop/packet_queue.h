/*
 * packet_queue.h: the reader of the queue in which a workload's SYNs are parked where rules capture it.
 *
 * There the target NFQUEUE takes the place of park_loopback.c, and a netlink socket that of the ring. The
 * agent makes it in the workload's namespace and binds it to the number that the rules name; the queue is
 * that very socket's (its port's), whoever holds it. Each datagram is a message with one packet, of which the
 * kernel keeps the original until it has a verdict. The copy is all that is needed here, so whatever was read
 * is dropped, with one verdict for all of it; from then on it is as with a record of the ring. A packet whose
 * message finds no room at the socket is dropped by the kernel. Its sender sends it again.
 *
 * Nothing tells of an application that gave up: see loop/parking.h. The packets in it are an application's:
 * see wire/syn.h.
 */
#ifndef NS_PACKET_QUEUE_H
#define NS_PACKET_QUEUE_H

#include "loop/ring.h"

enum {
    QUEUE_PACKETS = 16,      /* that are read at once */
    QUEUE_MESSAGE_MAX = 512, /* what of a message is read; with its other attributes a SYN takes half of it */
};

/* A message; see packet_message_parse. */
struct packet_message {
    /* The number of its queue. */
    uint16_t queue;
    /* By which a verdict names it: counted up in its queue. */
    uint32_t id;
    /* Within the message. */
    const uint8_t *packet;
    /* Of it, at most PARKED_PACKET_MAX; 0: it has none. */
    uint32_t length;
};

struct packet_batch {
    /* Of `records` that count. */
    int count;
    struct parked_record records[QUEUE_PACKETS];
};

/* Whether a descriptor is of a queue: a netlink socket, not the map of a ring. */
int packet_queue_is(int fd);
/* Reads up to QUEUE_PACKETS messages without waiting, and has what they are about dropped. Returns how many
 * were read, of which some may be no packets; less than QUEUE_PACKETS: there are no more. */
int packet_queue_read(int fd, struct packet_batch *batch);
/* 0, or -1 for what is no message about a packet. Sans-I/O. */
int packet_message_parse(const uint8_t *bytes, size_t length, struct packet_message *out);

#endif
