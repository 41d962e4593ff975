/*
 * balance.h: which worker gets a new connection.
 *
 * A workload's home worker, which accepts for it, keeps what it accepts: one tunnel serves a peer and one
 * turn many connections. It hands over only what it cannot serve well itself: when it uses up nearly a whole
 * CPU and another worker does not, or when it holds many more connections than another. A connection that
 * lives stays where it is.
 */
#ifndef NS_BALANCE_H
#define NS_BALANCE_H

#include "loop/worker.h"

/* Tells the other workers how busy this one is; at the end of each turn. */
void balance_show(struct worker *worker);
/* Who is to have a connection that `home` has accepted; often `home` itself. */
struct worker *balance_choose(struct worker *home);

#endif
