/* key_heap.c: see key_heap.h. */
#include "wire/key_heap.h"

#include <openssl/crypto.h>

#include "base/secure_heap.h"

enum {
    SESSION = 1024,      /* a handshake, and what its thread needs */
    GREATEST_KEY = 8192, /* RSA's of 16,384 bits are in pieces of 1 kB */
};

/* Bytes of it; 0: there is none. */
static size_t heap_size;

int key_heap_begin(size_t size)
{
    int result = secure_heap_begin(size);
    if (heap_size == 0 && result >= 0)
        heap_size = size;
    return result;
}

static int has_room(size_t size)
{
    void *probe = OPENSSL_secure_malloc(size);
    OPENSSL_secure_free(probe);
    return probe != NULL;
}

int key_heap_is_full(void)
{
    return heap_size > 0 &&
           (CRYPTO_secure_used() > heap_size - heap_size / KEY_HEAP_SHARE || !has_room(GREATEST_KEY));
}

int key_heap_is_spent(void)
{
    return heap_size > 0 && !has_room(SESSION);
}
