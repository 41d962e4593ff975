/*
 * commands.h: what a worker does when the core's public calls tell it so: workloads come and go, the mesh
 * state moves on, a snapshot is wanted.
 */
#ifndef NS_COMMANDS_H
#define NS_COMMANDS_H

#include "loop/worker.h"
#include "loop/workload.h"

/* Carries out a turn's worth of what the mailbox has, once in a turn. */
void commands_run(struct worker *worker);
/* Ends `most` flows and tunnels at most of removed workloads: ten thousand connections take as long to close
 * as to open. A workload that has none left goes to the graveyard. */
void commands_end_workloads(struct worker *worker, int most);
/* Removes a workload: its listeners are closed, its flows and tunnels left to commands_end_workloads. A
 * workload_visit. */
void commands_remove(struct worker *worker, struct workload *workload, void *unused);

#endif
