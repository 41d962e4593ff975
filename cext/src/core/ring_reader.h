/*
 * ring_reader.h: what the home worker does with the records of a workload's ring (loop/ring.h) or of the
 * queue in its place (loop/packet_queue.h), and with what other workers ask of it about parked SYNs.
 */
#ifndef NS_RING_READER_H
#define NS_RING_READER_H

#include "loop/worker.h"
#include "loop/workload.h"

/* There is something to read in the ring of the listener's workload. */
void ring_reader_event(struct worker *worker, struct listener *listener);
/* The same of its queue. */
void ring_reader_queue_event(struct worker *worker, struct listener *listener);
/* Those whose applications have been silent for too long are taken for gone. */
void ring_reader_tick(struct worker *worker);
/* COMMAND_PARKED, from the home worker. `workload`: NULL if it is gone. */
void ring_reader_parked(struct worker *worker, struct workload *workload, struct command *command);

#endif
