/*
 * tunnel_server.h: a tunnel that a peer dials, until the peer has proven who it is: a stranger (strangers.h),
 * that costs the workload nothing.
 */
#ifndef NS_TUNNEL_SERVER_H
#define NS_TUNNEL_SERVER_H

#include "flow/tunnel.h"

/* Takes over an accepted connection on 15008. */
void tunnel_accept(struct worker *worker, struct workload *workload, int fd, const struct ns_address *peer);
/* When the peer has sent its first bytes: the session begins. 0, or -1. */
int tunnel_answer(struct tunnel *tunnel);
/* After TLS_CHOOSE: makes it the workload's whom the peer asks for by name. Without a name it is always the
 * same one who answers, whoever accepted. */
void tunnel_choose(struct tunnel *tunnel);
/* When the handshake is done: counts the tunnel in, or dooms it if it meets a limit. */
void tunnel_proven(struct tunnel *tunnel);
/* Of either role: its peer is known, and a limit is met. It is to end. */
void tunnel_refuse(struct tunnel *tunnel, enum ns_limit limit);

#endif
