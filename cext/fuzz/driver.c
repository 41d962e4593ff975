/*
 * driver.c: gives a fuzz target its corpus and changes of it, without clang: `target ROUNDS SEED FILE...`.
 * The same arguments are the same inputs. A sanitizer, or a target that aborts, ends it.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { INPUT_MAX = 8192, CHANGES_MAX = 6 };

static uint64_t state;

/* xorshift64* */
static uint64_t noise(void)
{
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 2685821657736338717u;
}

static size_t below(size_t limit)
{
    return (size_t)(noise() % limit);
}

/* One change of an input: a byte, a piece that is taken out, one that is doubled, an end. The new length. */
static size_t change(uint8_t *bytes, size_t size)
{
    static const char odd[] = "{}[]\",:\\u0e-+.\0\x7f\xff 1n";
    if (size == 0)
        return 0;
    size_t at = below(size), piece = 1 + below(size - at < 16 ? size - at : 16);
    switch (below(5)) {
    case 0:
        bytes[at] = (uint8_t)noise();
        return size;
    case 1:
        bytes[at] = (uint8_t)odd[below(sizeof(odd) - 1)];
        return size;
    case 2:
        memmove(bytes + at, bytes + at + piece, size - at - piece);
        return size - piece;
    case 3:
        if (size + piece > INPUT_MAX)
            return size;
        memmove(bytes + at + piece, bytes + at, size - at);
        return size + piece;
    default:
        return at;
    }
}

int main(int count, char **arguments)
{
    if (count < 4)
        return 2;
    long rounds = strtol(arguments[1], NULL, 10);
    state = strtoull(arguments[2], NULL, 10) | 1;
    for (int i = 3; i < count; i++) {
        static uint8_t original[INPUT_MAX], changed[INPUT_MAX];
        FILE *file = fopen(arguments[i], "rb");
        if (file == NULL)
            return 2;
        size_t size = fread(original, 1, sizeof(original), file);
        fclose(file);
        LLVMFuzzerTestOneInput(original, size);
        for (long round = 0; round < rounds; round++) {
            size_t length = size;
            memcpy(changed, original, size);
            for (size_t changes = 1 + below(CHANGES_MAX); changes > 0; changes--)
                length = change(changed, length);
            LLVMFuzzerTestOneInput(changed, length);
        }
    }
    return 0;
}
