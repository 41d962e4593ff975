/*
 * stream.h: the far side of a flow that goes through a tunnel, as the flow sees it: HTTP/2 is hidden here,
 * and so is which tunnel it is. What the peer does is told by stream_events.h.
 *
 * A flow whose far side is a socket has a stream that is STREAM_NONE and in no tunnel.
 */
#ifndef NS_STREAM_H
#define NS_STREAM_H

#include "flow/stream_events.h"
#include "flow/tunnel.h"
#include "wire/outcome.h"

/* For the worker's tunnels; owner: the tunnel, stream: the stream. */
extern const struct h2_events STREAM_H2_EVENTS;

/* In no tunnel. What the peer will have sent and the application not taken is in `unread`. */
void stream_init(struct stream *stream, struct byte_queue *unread);

/* Client: asks for the endpoint's address in a tunnel of the workload to the endpoint's node, pooled or new,
 * on behalf of `client`, who dialled `destination`. 0: `opened` or `refused` follows; -1 with errno: there is
 * no tunnel to be had. */
int stream_connect(struct stream *stream, struct worker *worker, struct workload *workload,
                   const struct ns_endpoint *endpoint, const struct ns_address *client,
                   const struct ns_address *destination);
/* Server: takes what was `requested`. */
void stream_accept(struct stream *stream, struct tunnel *tunnel, int32_t id);
/* Server: the application is reached; bytes may move. Harmless if it is in no tunnel. */
void stream_let_in(struct stream *stream);
/* Server: the application will not be reached; answered so. Still in its tunnel. */
void stream_refuse(struct stream *stream, enum outcome outcome);

/* The application has something to send, or has ended: `source` is called at the end of the turn. */
void stream_ready(struct stream *stream);
/* The application took `length` bytes that `data` delivered. `received`: bytes that came since it was opened,
 * if nothing of them is left to take; else 0. */
void stream_taken(struct stream *stream, size_t length, uint64_t received);
/* True while flow control, the peer's reluctance, keeps it from sending. */
int stream_is_blocked(const struct stream *stream);

/* The verified identity of the peer, and how the tunnel is protected. */
void stream_describe(const struct stream *stream, char peer[NS_IDENTITY_MAX], struct tls_facts *facts);

/* Its application bears so much silence of the peer; 0: it has not said. In a tunnel or not. */
void stream_bear(struct stream *stream, uint32_t patience_ms);
/* The peer is silent for too long: ends it with a reset, and tells so (`refused` with `again`, or `broken`).
 */
void stream_give_up(struct stream *stream, const char *reason);
/* Ends it with a reset, unless it has ended, and parts from the tunnel. `unread` is empty. Harmless if it is
 * in none. */
void stream_close(struct stream *stream, int was_open);
/* Parts it from its tunnel, where it is no more; harmless if it is in none. */
void stream_leave(struct stream *stream);

#endif
