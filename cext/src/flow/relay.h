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

/* Stream callbacks of struct h2_events; the stream is the flow. */
void relay_stream_data(void *owner, void *stream, const uint8_t *bytes, size_t length);
void relay_stream_end(void *owner, void *stream);
ssize_t relay_stream_source(void *owner, void *stream, uint8_t *out, size_t capacity, int *end);

/* Writes what relay_stream_data has gathered. To be called after each h2_feed, before its bytes go. */
void relay_gathered(struct worker *worker);

/* Gives a direction's pipe back, and what is in it up. */
void relay_give_pipe(struct flow *flow, struct half *half);

/* Both directions have ended and everything is written: closes in order. (flow.c) */
void flow_finish(struct flow *flow);

#endif
