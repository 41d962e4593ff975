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
 *
 * The handshake's steps are made by another thread (handshakes.h).
 */
#ifndef NS_TUNNEL_BYTES_H
#define NS_TUNNEL_BYTES_H

#include "flow/tunnel.h"

/* Something is to be written: it will be at the end of the turn. */
void tunnel_touch(struct tunnel *tunnel);
/* It is its turn to be written: produces, seals and sends. Ends the tunnel if it is doomed or done. */
void tunnel_flush(struct tunnel *tunnel);
/* The socket takes bytes again. */
void tunnel_writable(struct tunnel *tunnel);
/* Writes close_notify, if the socket takes it at once. */
void tunnel_farewell(struct tunnel *tunnel);

/* It is its turn to be read: hands on what could not be before, or else what one recv gives. Ends the tunnel
 * if it is doomed. */
void tunnel_read(struct tunnel *tunnel);
/* It has more to do than it may do now: to read, or before OPEN to make a step of the handshake. */
void tunnel_defer(struct tunnel *tunnel);

/* It is its turn to make a step of the handshake: reads, and gives the step away. */
void tunnel_handshake(struct tunnel *tunnel);
/* The step was taken back. */
void tunnel_stepped(struct tunnel *tunnel);

#endif
