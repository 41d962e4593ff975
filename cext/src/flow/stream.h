/*
 * stream.h: what the peer of a tunnel says of its streams, each of which is a flow's far side. relay.h moves
 * their bytes.
 */
#ifndef NS_STREAM_H
#define NS_STREAM_H

#include "wire/h2.h"

extern const struct h2_events STREAM_EVENTS; /* owner: the tunnel; stream: the flow */

#endif
