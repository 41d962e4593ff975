/*
 * key_heap.h: where OpenSSL keeps private numbers, those of workloads' keys and of key exchanges.
 *
 * Its secure heap is one for the process: memory that is locked (mlock), left out of core dumps
 * (MADV_DONTDUMP), between guard pages, and wiped when it is freed. Only what is in use of it becomes
 * resident. Nothing takes its place when it is full: OpenSSL then fails whatever it was asked.
 */
#ifndef NS_KEY_HEAP_H
#define NS_KEY_HEAP_H

#include <stddef.h>

/* Bytes. Credentials with a key of P-256 or Ed25519 take 96, of P-384 128, of RSA with 2,048 bits 1,024: 64
 * of them are OpenSSL's for its context. A worker has them of each workload, twice while they are renewed:
 * for 1,000 workloads and 64 workers that is 12 MiB. A handshake that is under way takes 64, and with the
 * profile `fips` as long as the session lasts; a thread 1 kB. */
enum { KEY_HEAP_SIZE = 16 << 20 };

/* Makes it, once for the process; later calls do nothing. `size` is a power of two. 1; 0: there is one, but
 * it could not be locked, or not be left out of dumps; -1: there is none, and keys are in ordinary memory. */
int key_heap_begin(size_t size);
/* Of the heap one part in so many is for handshakes: no new credentials are taken that would use it. */
enum { KEY_HEAP_SHARE = 8 };

/* Whether that share is all that is left, or a key of the greatest size that is taken finds no room. */
int key_heap_is_full(void);
/* Whether handshakes find no room either. */
int key_heap_is_spent(void);

#endif
