/*
 * agent.h: one question to the agent over its Unix socket, and the answer.
 *
 * A frame in either direction is the four bytes "NSC1", the length of its JSON object as 32 bits in network
 * order, in a question the milliseconds within which it is to be answered in the same way, and the object.
 * One connection has one question.
 */
#ifndef NS_CNI_AGENT_H
#define NS_CNI_AGENT_H

#include <stdbool.h>
#include <stddef.h>

/* Milliseconds of the monotonic clock. */
long long clock_ms(void);

/* Asks with a JSON object until there is an answer or the deadline (of clock_ms) has come. An agent that is
 * not there is tried again, and so is one that goes without an answer: the next one knows nothing of the
 * question. `once`: not so. Returns the length of the answer's object in `answer`, or 0 and what was in the
 * way, for people, in `why`. */
size_t agent_ask(const char *path, const char *question, size_t question_size, long long deadline, bool once,
                 char *answer, size_t answer_max, const char **why);

#endif
