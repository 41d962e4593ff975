/*
 * syn_answer.h: what a parked SYN is answered (parking.h), and the end of its being held.
 */
#ifndef NS_SYN_ANSWER_H
#define NS_SYN_ANSWER_H

#include "base/cause.h"
#include "loop/parking.h"

enum { RELEASED_MS = 3000 }; /* a released SYN is accepted within; another one begins it anew */

struct worker;
struct workload;

/* The workload's listener gets it, at the end of the turn; it stays held until then. */
void syn_release(struct worker *worker, struct workload *workload, struct held *held);
/* Goes to where it was going, marked NS_MARK_NATIVE or NS_MARK_ADMITTED (that of a process of the node: with
 * no mark); where there is no way, the application is told. Held no more. */
void syn_send_on(struct worker *worker, struct workload *workload, struct held *held, uint32_t mark);
/* The application's connect() fails as `cause` says, or waits on. Held no more. */
void syn_refuse(struct worker *worker, struct workload *workload, struct held *held, enum cause cause);
/* No answer. Harmless if nothing is held. */
void syn_forget(struct worker *worker, struct held *held);

#endif
