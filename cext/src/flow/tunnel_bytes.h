/*
 * tunnel_bytes.h: a tunnel's bytes, between its socket and HTTP/2.
 *
 * Reading: one recv of up to SCRATCH_SIZE, decrypted into one buffer, given to HTTP/2 in one piece, which
 * hands the bytes of each DATA frame straight to the application's socket. Writing: at the end of a turn,
 * frames of all ready streams are produced into one buffer, sealed into another, and sent. Whatever the
 * socket does not take is kept in `pending`, and as long as there is some, nothing new is produced: streams
 * then stay unread, and so the applications feel the pressure.
 *
 * A workload that holds half of its memory limit produces and reads little at once, so that little can be
 * left. A tunnel is read in any case: unread, it would answer no ping, and its peer would end all that runs
 * in it. What arrives is bounded by its windows (windows.h).
 */
#ifndef NS_TUNNEL_BYTES_H
#define NS_TUNNEL_BYTES_H

#include "flow/tunnel.h"

/* It is its turn to be written: produces, seals and sends. Ends the tunnel if it is doomed or done. */
void tunnel_flush(struct tunnel *tunnel);
/* The socket takes bytes again. */
void tunnel_writable(struct tunnel *tunnel);
/* It is its turn to be read: hands on what could not be before, or else what one recv gives. Ends the tunnel
 * if it is doomed. */
void tunnel_read(struct tunnel *tunnel);

/* For the handshake, which moves bytes of its own. */

/* Reads ciphertext into the worker's scratch.incoming, up to `room` bytes. Returns how much; 0: nothing, or
 * the tunnel is doomed. */
size_t tunnel_receive(struct tunnel *tunnel, size_t room);
/* Sends what the session has to say, also when the tunnel is doomed: an alert is worth it. */
void tunnel_say(struct tunnel *tunnel, const uint8_t *bytes, size_t length);
/* Decrypts what has been fed and hands it on, or keeps it. */
void tunnel_digest(struct tunnel *tunnel);
/* Not all is done: it goes on in its turn. What was read before comes first. */
void tunnel_go_on_later(struct tunnel *tunnel);

#endif
