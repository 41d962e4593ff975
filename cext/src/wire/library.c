/* library.c: see library.h. */
#include "wire/library.h"

#include <openssl/err.h>

/* RFC 8446, 5.5, allows 2^24.5 records under one AES-GCM key; OpenSSL itself never changes it. */
static const uint64_t RENEW_AFTER = 1u << 23;

enum { DATALESS_MAX = 32 }; /* as in record.c */

void library_start(struct library *library, SSL *ssl)
{
    *library = (struct library){.ssl = ssl, .renew_after = RENEW_AFTER};
}

static enum tls_result broken(struct library *library)
{
    library->broken = 1;
    return TLS_FAILED;
}

enum tls_result library_read(struct library *library, uint8_t *out, size_t capacity, size_t *length)
{
    enum tls_result result = TLS_OK;
    *length = 0;
    if (library->broken)
        return TLS_FAILED;
    ERR_clear_error();
    /* One record at a time. */
    while (*length < capacity && result == TLS_OK) {
        size_t got = 0;
        if (SSL_read_ex(library->ssl, out + *length, capacity - *length, &got) == 1) {
            *length += got;
            library->heard = 1;
            library->dataless = 0;
            continue;
        }
        int error = SSL_get_error(library->ssl, 0);
        result = error == SSL_ERROR_WANT_READ     ? TLS_WANT
                 : error == SSL_ERROR_ZERO_RETURN ? TLS_CLOSED
                                                  : TLS_FAILED;
    }
    if (result == TLS_FAILED && library_is_flooded(library))
        library->failure = "too many records without data";
    if (result == TLS_FAILED)
        (void)broken(library);
    return *length > 0 ? TLS_OK : result; /* what came behind these bytes is told by the next call */
}

enum tls_result library_write(struct library *library, const uint8_t *bytes, size_t length)
{
    ERR_clear_error();
    while (length > 0 && !library->broken) {
        size_t part = length < RECORD_CONTENT_MAX ? length : RECORD_CONTENT_MAX;
        size_t written = 0;
        if (library->ended) {
            library->failure = "written to after its end";
            return broken(library);
        }
        if (library->written >= library->renew_after) {
            if (!SSL_key_update(library->ssl, SSL_KEY_UPDATE_NOT_REQUESTED))
                return broken(library);
            library->written = 0;
        }
        if (SSL_write_ex(library->ssl, bytes, part, &written) != 1 || written != part) {
            if (SSL_want_read(library->ssl))
                library->failure = "half a message came, and OpenSSL writes nothing before its end";
            return broken(library);
        }
        library->written++;
        bytes += part;
        length -= part;
    }
    return library->broken ? TLS_FAILED : TLS_OK;
}

void library_end(struct library *library)
{
    if (library->ended || library->broken)
        return;
    library->ended = 1;
    ERR_clear_error();
    (void)SSL_shutdown(library->ssl);
    ERR_clear_error();
}

void library_note_message(struct library *library)
{
    if (library->dataless <= DATALESS_MAX)
        library->dataless++;
}

int library_is_flooded(const struct library *library)
{
    return library->dataless > DATALESS_MAX;
}
