/* Private keys of the agent: made, written and read without a leak, and refused where there is no room. */
#include "check.h"

#include <string.h>
#include <unistd.h>

#include "nodeseal_keys.h"

static const char URI[] = "spiffe://example.org/ns/default/sa/shipper";

static size_t exported(const struct ns_key *key, uint8_t *out, size_t capacity)
{
    char error[256];
    int fd = key_export(key, error, sizeof(error));
    CHECK(fd >= 0);
    ssize_t size = pread(fd, out, capacity, 0);
    close(fd);
    CHECK(size > 0);
    return (size_t)size;
}

TEST(a_key_of_each_kind_is_read_again_as_it_was_exported)
{
    CHECK(keys_begin() >= 0);
    for (int kind = NS_KEY_P256; kind <= NS_KEY_ED25519; kind++) {
        char error[256];
        uint8_t one[512], other[512], pkcs8[512], again[512];
        struct ns_key *key = key_new(kind, error, sizeof(error));
        CHECK(key != NULL);
        size_t size = exported(key, pkcs8, sizeof(pkcs8));
        struct ns_key *read = key_read(pkcs8, size, error, sizeof(error));
        CHECK(read != NULL);
        size_t length = key_public(key, one, sizeof(one), error, sizeof(error));
        CHECK(length > 0 && length == key_public(read, other, sizeof(other), error, sizeof(error)));
        CHECK(memcmp(one, other, length) == 0);
        CHECK(exported(read, again, sizeof(again)) == size && memcmp(again, pkcs8, size) == 0);
        key_free(read);
        key_free(key);
    }
}

TEST(what_does_not_fit_is_refused_with_a_reason)
{
    char error[256] = "";
    uint8_t out[16];
    struct ns_key *key = key_new(NS_KEY_P256, error, sizeof(error));
    CHECK(key != NULL);
    CHECK(key_public(key, out, sizeof(out), error, sizeof(error)) == 0);
    CHECK(strstr(error, "larger") != NULL);
    error[0] = 0;
    CHECK(key_request(key, URI, out, sizeof(out), error, sizeof(error)) == 0);
    CHECK(strstr(error, "larger") != NULL);
    key_free(key);
    CHECK(key_new(7, error, sizeof(error)) == NULL);
    CHECK(strcmp(error, "no such kind of key") == 0);
}

TEST(bytes_that_are_no_key_are_refused)
{
    char error[256];
    uint8_t pkcs8[512];
    struct ns_key *key = key_new(NS_KEY_P256, error, sizeof(error));
    size_t size = exported(key, pkcs8, sizeof(pkcs8));
    key_free(key);
    CHECK(key_read(pkcs8, 0, error, sizeof(error)) == NULL);
    for (size_t cut = 1; cut < size; cut += 7) {
        struct ns_key *read = key_read(pkcs8, size - cut, error, sizeof(error));
        CHECK(read == NULL);
        CHECK(strstr(error, "no private key") != NULL);
    }
}

CHECK_MAIN
