/*
 * allowance.h: how much a peer may send on an HTTP/2 connection: its receive window (RFC 9113 section 6.9),
 * on a session of nghttp2 without automatic window updates.
 */
#ifndef NS_ALLOWANCE_H
#define NS_ALLOWANCE_H

#include <nghttp2/nghttp2.h>
#include <stddef.h>
#include <stdint.h>

struct allowance {
    /* What the peer may send beyond the window, since that was made smaller. */
    size_t surplus;
};

/* A smaller window than before leaves the peer what it may send already, and gives nothing back until that
 * has been sent. */
void allowance_set(struct allowance *allowance, nghttp2_session *session, uint32_t window);
/* `length` bytes may be sent again, as far as they were not sent beyond the window. */
void allowance_took(struct allowance *allowance, nghttp2_session *session, size_t length);
/* The same, and `withheld` others that were received may not yet. */
void allowance_give_back(struct allowance *allowance, nghttp2_session *session, size_t length,
                         size_t withheld);

#endif
