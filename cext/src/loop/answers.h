/*
 * answers.h: packets that answer parked SYNs, sent by a raw socket of the workload's namespace.
 *
 * They are gathered in a turn and sent with as few calls as there are workloads. A packet that cannot be sent
 * is lost, as packets are: the SYN comes again.
 *
 * What is sent on lo has been received when the call returns: the listener of a workload that has got its
 * released SYNs has connections to accept then.
 */
#ifndef NS_ANSWERS_H
#define NS_ANSWERS_H

#include <netinet/in.h>
#include <sys/socket.h>

#include "base/link.h"
#include "nodeseal_core.h"
#include "wire/syn.h"

enum {
    ANSWERS_AT_ONCE = 64,
};

struct answer {
    int fd;
    socklen_t to_length;
    struct sockaddr_storage to;
    uint32_t mark;
    /* Of `bytes`; 0: nothing is sent. */
    size_t length;
    uint8_t bytes[SYN_ANSWER_MAX];
};

/* One object per worker. */
struct answers {
    uint32_t count;
    /* ANSWERS_AT_ONCE of them; NULL until the first is needed. */
    struct answer *waiting;
    /* Workloads with SYNs that were released since the caller last looked. */
    struct link released;
};

void answers_init(struct answers *answers);
void answers_dispose(struct answers *answers);

/* Room for a packet to `to`, by the raw socket `fd` and with the mark: the caller fills in `bytes` and
 * `length`. The socket stays open until it is sent. */
struct answer *answers_room(struct answers *answers, int fd, const struct ns_address *to, uint32_t mark);
/* Sends what there is. */
void answers_send(struct answers *answers);

#endif
