/* revocation.h: what becomes of a worker's tunnels when something is revoked. */
#ifndef NS_REVOCATION_H
#define NS_REVOCATION_H

#include "loop/worker.h"

/* The set of what is revoked has changed: cuts the open tunnels that it names, on either end, those in the
 * pool too. Handshakes look at it themselves. */
void revocation_enforce(struct worker *worker);

#endif
