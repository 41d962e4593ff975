/* pick.h: which of a decision's endpoints a connection goes to. Pure. */
#ifndef NS_PICK_H
#define NS_PICK_H

#include <stdint.h>

#include "balance/endpoint.h"

/* The number of one of `count` endpoints, at most 32, of which `known[i]` is remembered (NULL: nothing) and
 * those in the set `tried` (a bit each) are none; at least one is left. In turn from `first` on, the first
 * that is not away; if all are, the one that is to be back soonest. */
uint32_t pick(const struct endpoint *const known[], uint32_t count, uint32_t tried, uint32_t first,
              uint64_t now_ms);

#endif
