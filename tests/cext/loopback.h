/* loopback.h: connections over loopback, by their ends. */
#ifndef NS_TEST_LOOPBACK_H
#define NS_TEST_LOOPBACK_H

#include "nodeseal_core.h"

/* Of "10.0.0.1:80" or "[::1]:80". */
struct ns_address address_of(const char *text);
/* A listener at `host`, and where it is; port 0: any. An IPv6 one at a mapped address
 * takes IPv4 alone. */
int listen_at(int family, const char *host, uint16_t port, struct ns_address *where);
/* Waits for the next connection of a listener. */
int accept_in_time(int listener, struct ns_address *peer);
/* A blocking connection from an end of the caller's choosing, with SO_REUSEADDR; its port 0: any. */
int connect_as(struct ns_address *own, const struct ns_address *destination);

#endif
