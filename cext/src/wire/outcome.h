/*
 * outcome.h: what a request for a tunnel is answered: an HTTP status, and where it is refused the reason in
 * Proxy-Status (RFC 9209), by which the asking end knows what to tell its application. Sans-I/O.
 */
#ifndef NS_OUTCOME_H
#define NS_OUTCOME_H

#include <stddef.h>
#include <stdint.h>

#include "base/cause.h"

enum outcome {
    /* The application has accepted. */
    OUTCOME_OPEN = 0,
    /* Nobody listens there. */
    OUTCOME_REFUSED = 1,
    /* There is no way to it. */
    OUTCOME_UNROUTABLE = 2,
    /* It does not answer. */
    OUTCOME_TIMEOUT = 3,
    /* Soon over: it may be tried again. */
    OUTCOME_UNAVAILABLE = 4,
    /* It has as many connections as it may have. */
    OUTCOME_LIMIT = 5,
    /* No policy is needed for it: the mesh's own port, or one that is not this workload's. */
    OUTCOME_PROHIBITED = 6,
    OUTCOME_DENIED = 7,
    OUTCOME_MALFORMED = 8,
    OUTCOME_TOO_LARGE = 9,
    /* Of peers only: it cannot be reached, and they do not say why. */
    OUTCOME_FAILED = 10,
    /* Of peers only: any other. */
    OUTCOME_OTHER = 11,
    OUTCOMES = 12,
};

int outcome_status(enum outcome outcome);
/* The field's value, "nodeseal; error=connection_refused"; NULL: OUTCOME_OPEN has none. */
const char *outcome_proxy_status(enum outcome outcome);

/* What a peer's answer amounts to. `said`: what its fields say, OUTCOME_OPEN if nothing; else by its
 * status alone, which is not one of 2xx. */
enum outcome outcome_of(enum outcome said, int status);
/* What the value of a Proxy-Status field says: the error of its first member that has one, which comes from
 * the intermediary nearest to the application (RFC 9209 section 2). OUTCOME_OPEN: nothing that we know, or it
 * is no list (RFC 8941 section 3.1). The bytes are the peer's. */
enum outcome outcome_read(const uint8_t *value, size_t length);

/* Why the connection could not be made, for the application that asked. */
enum cause outcome_cause(enum outcome outcome);
/* What to answer when it could not be made for this reason. */
enum outcome outcome_for(enum cause cause);

#endif
