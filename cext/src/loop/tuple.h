/* tuple.h: the two ends of a connection of a workload, as its SYN has them. */
#ifndef NS_TUPLE_H
#define NS_TUPLE_H

#include "nodeseal_core.h"

struct tuple {
    uint64_t workload;
    struct ns_address source;
    struct ns_address destination;
};

#endif
