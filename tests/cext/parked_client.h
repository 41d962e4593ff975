/*
 * parked_client.h: a ring without programs, raw sockets without a namespace, and applications whose SYNs are
 * in that ring. The core's calls are replaced at the linker's --wrap.
 *
 * An application here is a socket that is bound and not connected: its SYN is put into the ring, and when the
 * core releases it, it connects to the workload's listener, as its kernel's retransmitted SYN would.
 */
#ifndef NS_PARKED_CLIENT_H
#define NS_PARKED_CLIENT_H

#include <stdint.h>

#include "core_lab.h"
#include "loop/ring.h"

/* A packet that the core has sent by a raw socket. */
struct sent {
    uint32_t mark;
    size_t length;
    uint8_t bytes[160];
};

/* The ring's descriptor, for core_workload_listen; the caller closes it. What was in the ring is forgotten.
 */
int parked_ring(void);
/* What comes from the ring is dealt with by another worker than the one that reads it, from now on. */
void parked_elsewhere(void);
/* A socket of an application at host(5). */
int parked_client(void);
/* Puts the SYN of `client` to the lab's outbound listener into the ring. */
void parked_syn(struct lab *lab, int client, uint32_t sequence, uint32_t value);
/* The same, as that of a process of the node. */
void parked_host_syn(struct lab *lab, int client, uint32_t sequence, uint32_t value);
/* The same, as somebody's who dials the workload. */
void parked_arrival(struct lab *lab, int client, uint32_t sequence);
/* The application gives up. */
void parked_gone(struct lab *lab, int client);
/* It is connected, and says what it bears of its peer's silence. */
void parked_bears(struct lab *lab, int client, uint32_t keepalive_ms, uint32_t unacknowledged_ms);

/* Waits for the next packet that the core has sent. */
struct sent parked_sent(void);
/* How many were sent and not taken by parked_sent. */
int parked_sent_count(void);
/* Bytes of TCP's flags in an IPv4 packet. */
uint8_t parked_flags(const struct sent *sent);
/* Connects the application as its kernel would. */
void parked_connect(struct lab *lab, int client);

#endif
