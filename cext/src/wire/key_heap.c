/* key_heap.c: see key_heap.h. */
#include "wire/key_heap.h"

#include <openssl/crypto.h>

enum {
    PIECE = 32,          /* the smallest allocation in it */
    GREATEST_KEY = 8192, /* RSA's of 16,384 bits are in pieces of 1 kB */
};

int key_heap_begin(size_t size)
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

int key_heap_is_full(void)
{
    if (!CRYPTO_secure_malloc_initialized())
        return 0;
    void *probe = OPENSSL_secure_malloc(GREATEST_KEY);
    OPENSSL_secure_free(probe);
    return probe == NULL;
}
