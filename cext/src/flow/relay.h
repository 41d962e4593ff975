/*
 * relay.h: moving the bytes of an open flow, with backpressure, half close and reset carried to the other
 * side.
 *
 * Each direction ends on its own: the end that one side's application announces (FIN, END_STREAM) is passed
 * on after the last byte, and the other direction goes on. A reset on one side becomes a reset on the other.
 */
#ifndef NS_RELAY_H
#define NS_RELAY_H

#include "flow/flow.h"

/* Moves bytes as far as they go now; ends the flow if both directions have ended, or one broke. */
void relay_flow(struct flow *flow);
/* The same when it has just been opened. */
void relay_begin(struct flow *flow);

/* Of struct stream_events; the stream is a flow's. */
void relay_data(struct tunnel *tunnel, struct stream *stream, const uint8_t *bytes, size_t length);
void relay_end(struct stream *stream);
void relay_closed(struct stream *stream, int clean);
ssize_t relay_source(struct tunnel *tunnel, struct stream *stream, uint8_t *out, size_t capacity, int *end);
/* Writes what relay_data has gathered. */
void relay_gathered(struct worker *worker);

#endif
