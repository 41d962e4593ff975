/*
 * listener.h: a socket on which a workload's home worker accepts connections, one for each role.
 *
 * A connection is counted in (quota.h), or reset and shown as refused; then it begins on the worker that
 * placement.h chooses. One for a tunnel is a stranger first (strangers.h), and is counted in later. A
 * listener is watched level triggered: of those who wait in its queue a turn's worth is taken, and the rest
 * wakes the worker again. Where nothing can be accepted though somebody waits, it is paused until the next
 * tick.
 *
 * The ring or queue in which SYNs are parked is opened and closed here as well; core/ring_reader.h reads it.
 * What the outbound listener accepts then belongs to a flow that waits for it.
 */
#ifndef NS_LISTENER_H
#define NS_LISTENER_H

#include "loop/worker.h"
#include "loop/workload.h"

/* Takes the descriptor of a COMMAND_LISTEN over; closes what was open in that role. */
void listener_open(struct worker *worker, struct workload *workload, struct command *command);
/* Accepts a turn's worth; what is left raises the event again. */
void listener_event(struct worker *worker, struct listener *listener);
/* The worker that is to have what `home` has accepted, or is about to. */
struct worker *listener_place(struct worker *home);
/* Watches those again that were paused. */
void listeners_resume(struct worker *worker);
/* Accepts all who wait in the queue now, and closes; harmless if it is not open. */
void listener_close(struct worker *worker, struct listener *listener);
/* Closes, and leaves the queue to whoever else holds the socket; same. */
void listener_leave(struct worker *worker, struct listener *listener);

/* Begins, on this worker, what another one has accepted; takes the descriptor of a COMMAND_ACCEPTED over.
 * `workload` NULL: it is gone. */
void connection_taken(struct worker *worker, struct workload *workload, struct command *command);

#endif
