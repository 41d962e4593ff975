/*
 * descriptors.h: the file descriptors of the process, which all workloads share; one object for each core.
 *
 * Workloads take from what is left (quota.h). Connections on port 15008 that have not proven who they are
 * (strangers.h) have a part of their own, which is never counted in: however many there are, no workload is
 * left with less.
 */
#ifndef NS_DESCRIPTORS_H
#define NS_DESCRIPTORS_H

#include <stdint.h>

enum {
    DESCRIPTORS_RESERVED = 64, /* for the control socket, the mesh state, and what is counted a moment late */
    DESCRIPTORS_STRANGE = 8,   /* of so many one at most is for strangers */
};

/* All atomic. */
struct descriptors {
    /* About: counted at the start, and by everyone who opens many; without the next. */
    uint64_t used;
    /* Of connections that have not proven who they are. */
    uint64_t strangers;
    /* For those, where there are enough. */
    uint64_t reserved;
    /* RLIMIT_NOFILE when it was last looked at. */
    uint64_t limit;
    /* When that was; 0: never. */
    uint64_t looked_ms;
};

/* `strangers`: how many these may have, where there are enough. What the process has open already is not
 * counted. */
void descriptors_init(struct descriptors *process, uint64_t strangers);
/* How many the process has open; 0 where there is no /proc: then the reserve is all that is left for them. */
uint32_t descriptors_open(void);
/* The process's own, such as listeners, and workloads'. */
void descriptors_change(struct descriptors *process, int64_t change);
void descriptors_strangers(struct descriptors *process, int64_t change);
/* How many all strangers may have. */
uint64_t descriptors_for_strangers(struct descriptors *process, uint64_t now_ms);
/* How many are left for new connections, by RLIMIT_NOFILE, which is looked at once a second. */
uint64_t descriptors_left(struct descriptors *process, uint64_t now_ms);

#endif
