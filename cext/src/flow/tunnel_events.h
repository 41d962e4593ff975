/* tunnel_events.h: what happens to a tunnel: events of its socket, and time that passes. */
#ifndef NS_TUNNEL_EVENTS_H
#define NS_TUNNEL_EVENTS_H

#include "flow/tunnel.h"

/* Of epoll; re-arms what it has not used up by noting it in `poll`. */
void tunnel_event(struct tunnel *tunnel, uint32_t events);
/* At each tick. */
void tunnel_tick(struct tunnel *tunnel);

#endif
