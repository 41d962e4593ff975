/* pick.h: which of a decision's endpoints a connection goes to. Pure. */
#ifndef NS_PICK_H
#define NS_PICK_H

#include <stdint.h>

#include "balance/endpoint.h"

/* The number of one of `count` endpoints, at least one, of which `known[i]` is remembered (NULL: nothing): in
 * turn from `first` on, the first that has not refused since `since_ms`; the one that is in turn if all have.
 */
uint32_t pick(const struct endpoint *const known[], uint32_t count, uint32_t first, uint64_t since_ms);

#endif
