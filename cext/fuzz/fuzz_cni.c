/*
 * fuzz_cni.c: what nodeseal-cni reads of JSON, given any bytes. Entry point of libFuzzer (clang
 * -fsanitize=fuzzer), or of fuzz/driver.c, which needs no clang.
 *
 * Invariants: whatever is found is within the text; each element of an array and each member is JSON by
 * itself; a request around a configuration that is good is good, and gives that configuration back.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../cni/call.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MUST(condition) ((condition) ? (void)0 : abort())

static void within(struct text whole, struct text part)
{
    if (part.bytes == NULL)
        return;
    MUST(part.bytes >= whole.bytes && part.size <= whole.size);
    MUST((size_t)(part.bytes - whole.bytes) <= whole.size - part.size && part.size > 0);
}

static void look(struct text whole)
{
    static const char *const names[] = {"prevResult",      "socket",     "on_failure", "open_namespaces",
                                        "timeout_seconds", "cniVersion", "ips"};
    char text[16];
    long number;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        struct text member = json_member(whole, names[i]), element;
        size_t position = 0;
        within(whole, member);
        if (json_string(member, text, sizeof(text)))
            MUST(strlen(text) < sizeof(text));
        if (json_integer(member, -7, 7, &number))
            MUST(number >= -7 && number <= 7);
        while ((element = json_element(member, &position)).bytes != NULL)
            within(member, element);
        if (member.bytes != NULL && member.bytes[0] == '{')
            MUST(json_object_check(member));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    /* Of its own, and exactly as large: the sanitizer sees a byte too far. */
    char *copy = malloc(size > 0 ? size : 1);
    MUST(copy != NULL);
    if (size > 0)
        memcpy(copy, data, size);
    struct text whole = {copy, size};
    if (json_object_check(whole)) {
        struct environment environment = {"ADD", "a\"b", "/run/netns/\\x", "eth0", "K8S_POD_NAME=a;"};
        struct options options;
        size_t room = size + 512;
        char *request = malloc(room);
        MUST(request != NULL);
        look(whole);
        version_known(whole);
        if (options_read(whole, &options) == NULL)
            options_open(&options, "default");
        size_t used = request_write(request, room, &environment, whole);
        MUST(used > 0 && json_object_check((struct text){request, used}));
        struct text back = json_member((struct text){request, used}, "config");
        MUST(back.size > 0 && memmem(copy, size, back.bytes, back.size) != NULL);
        MUST(request_write(request, used - 1, &environment, whole) == 0);
        free(request);
    }
    free(copy);
    return 0;
}
