/* secure_heap.c: see secure_heap.h. */
#include "base/secure_heap.h"

#include <openssl/crypto.h>

enum { PIECE = 32 }; /* the smallest allocation in it */

int secure_heap_begin(size_t size)
{
    static int result = -1;
    if (CRYPTO_secure_malloc_initialized())
        return result;
    switch (CRYPTO_secure_malloc_init(size, PIECE)) {
    case 1:
        result = 1;
        break;
    case 2:
        result = 0;
        break;
    default:
        result = -1;
    }
    return result;
}
