/*
 * occupant.h: who has a pair of ends, addresses and ports, in a network namespace.
 *
 * A socket's pair is its own end and the far one. With a socket between A and B in the namespace, connect()
 * refuses another from A to B. It does not see one from B to A, although in one namespace the two belong to
 * the same connection: a SYN from A to B would meet that socket, and the answer, or the reset that follows,
 * would meet whoever it belongs to. So the kernel is asked first, about this one pair (sock_diag(7)): 5 us,
 * however many sockets there are, and no capability.
 *
 * What is in TIME_WAIT has no application any more; natively a SYN of a new connection takes its place. Here
 * it is ended when it is found (SOCK_DESTROY, which takes CAP_NET_ADMIN and CONFIG_INET_DIAG_DESTROY), so
 * that a client can connect again from the port that it used before.
 */
#ifndef NS_OCCUPANT_H
#define NS_OCCUPANT_H

#include "nodeseal_core.h"

/* Makes of a netlink socket (NETLINK_SOCK_DIAG, non-blocking) one that can be asked. 0, or -1 with errno when
 * the kernel cannot answer (CONFIG_INET_DIAG). */
int occupant_prepare(int fd);
enum occupancy { OCCUPANT_NONE, OCCUPANT_SOME, OCCUPANT_UNKNOWN };

/* Whether a socket other than a listener has `own` as its own end and `far`, of the same family, as the far
 * one. What was in TIME_WAIT there has been ended: NONE. Nobody can be asked with fd -1: UNKNOWN. */
enum occupancy occupant_find(int fd, const struct ns_address *own, const struct ns_address *far);

#endif
