/* secure_heap.h: OpenSSL's secure heap, which a process has one of. */
#ifndef NS_SECURE_HEAP_H
#define NS_SECURE_HEAP_H

#include <stddef.h>

/* Makes it, once for the process; later calls do nothing. `size`: bytes, a power of two. 1; 0: there is one,
 * but it could not be locked, or not be left out of dumps; -1: there is none. */
int secure_heap_begin(size_t size);

#endif
