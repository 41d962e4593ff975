/*
 * core_ends.h: both ends of one connection that the core relays, and what holds for one whatever its way.
 */
#ifndef NS_CORE_ENDS_H
#define NS_CORE_ENDS_H

#include "core_lab.h"

struct ends {
    int client, server; /* sockets of applications */
};

/* From shipper to pipeline's application. The caller closes it. */
struct ends lab_connect(struct lab *lab);
void ends_close(struct ends *ends);
/* 100 bytes in each direction: those at `from` of the streams 1, to the server, and 2. */
void exchange(struct ends *ends, uint64_t from);

/* Each is for a connection of its own, from its beginning to its end. */
void check_both_ways(struct lab *lab, uint64_t length);
void check_server_speaks_first(struct lab *lab);
/* The application has spoken, and perhaps hung up, before the core sees that it is connected to it. */
void check_server_speaks_at_once(struct lab *lab, int hangs_up);
void check_client_half_close(struct lab *lab);
void check_server_half_close(struct lab *lab);
void check_client_reset(struct lab *lab);
void check_server_reset(struct lab *lab);

#endif
