/*
 * tunnel_handshake.h: a tunnel before it is open: each step of its handshake is made by another thread
 * (handshakes.h), on a copy of what the peer has sent.
 */
#ifndef NS_TUNNEL_HANDSHAKE_H
#define NS_TUNNEL_HANDSHAKE_H

#include "flow/tunnel.h"

/* It is its turn to make a step of the handshake: reads, and gives the step away. */
void tunnel_handshake(struct tunnel *tunnel);
/* The step was taken back. */
void tunnel_stepped(struct tunnel *tunnel);

#endif
