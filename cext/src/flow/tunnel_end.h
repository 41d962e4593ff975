/*
 * tunnel_end.h: how a tunnel ends.
 *
 * A tunnel must not be torn down while nghttp2 or OpenSSL are on the stack: what finds a reason in a callback
 * sets `doom` (tunnel_touch makes sure that the end of the turn looks at it). One that ends while a step of
 * its handshake is out (handshakes.h) is kept until the step is back.
 */
#ifndef NS_TUNNEL_END_H
#define NS_TUNNEL_END_H

#include "flow/tunnel.h"

/* Ends it now: its flows are reset, or routed anew if they had not begun. */
void tunnel_abort(struct tunnel *tunnel, const char *reason);
/* The peer broke the protocol, and gets the time to read so: PARTING. */
void tunnel_part(struct tunnel *tunnel);
/* OPEN: one end must not talk with the other any more. Its flows end now, and the peer gets the time to read
 * the alert: PARTING. Outside of callbacks. */
void tunnel_cut(struct tunnel *tunnel, uint8_t alert, const char *reason);
/* PARTING: our last words are followed by the end of what we send, once the socket has taken them all. */
void tunnel_conclude(struct tunnel *tunnel);

#endif
