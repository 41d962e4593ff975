#include "json.h"

#include <stdint.h>
#include <string.h>

/* Where a reading stands: at end, everything has been read. Each function leaves it behind what it has taken,
 * or anywhere if it returns false. */
struct cursor {
    const char *at;
    const char *end;
};

static bool value_skip(struct cursor *cursor, unsigned depth);

static void space_skip(struct cursor *cursor)
{
    while (cursor->at < cursor->end && strchr(" \t\r\n", *cursor->at) != NULL && *cursor->at != '\0')
        cursor->at++;
}

static bool take(struct cursor *cursor, char expected)
{
    if (cursor->at == cursor->end || *cursor->at != expected)
        return false;
    cursor->at++;
    return true;
}

static bool word_take(struct cursor *cursor, const char *word)
{
    size_t length = strlen(word);
    if ((size_t)(cursor->end - cursor->at) < length || memcmp(cursor->at, word, length) != 0)
        return false;
    cursor->at += length;
    return true;
}

static bool is_digit(char byte)
{
    return byte >= '0' && byte <= '9';
}

/* Takes at least one. */
static bool digits_take(struct cursor *cursor)
{
    const char *begin = cursor->at;
    while (cursor->at < cursor->end && is_digit(*cursor->at))
        cursor->at++;
    return cursor->at > begin;
}

static bool number_skip(struct cursor *cursor)
{
    take(cursor, '-');
    if (!take(cursor, '0') && !digits_take(cursor))
        return false;
    if (take(cursor, '.') && !digits_take(cursor))
        return false;
    if (take(cursor, 'e') || take(cursor, 'E')) {
        if (!take(cursor, '-'))
            take(cursor, '+');
        return digits_take(cursor);
    }
    return true;
}

static int hex_value(char byte)
{
    if (is_digit(byte))
        return byte - '0';
    if (byte >= 'a' && byte <= 'f')
        return byte - 'a' + 10;
    if (byte >= 'A' && byte <= 'F')
        return byte - 'A' + 10;
    return -1;
}

/* The four digits behind \u. */
static bool hex_take(struct cursor *cursor, uint32_t *unit)
{
    if (cursor->end - cursor->at < 4)
        return false;
    *unit = 0;
    for (int i = 0; i < 4; i++) {
        int value = hex_value(*cursor->at++);
        if (value < 0)
            return false;
        *unit = *unit << 4 | (uint32_t)value;
    }
    return true;
}

/* Behind the opening quote, to behind the closing one. */
static bool string_skip(struct cursor *cursor)
{
    while (cursor->at < cursor->end) {
        unsigned char byte = (unsigned char)*cursor->at++;
        if (byte == '"')
            return true;
        if (byte < 0x20)
            return false;
        if (byte != '\\')
            continue;
        if (cursor->at == cursor->end)
            return false;
        char escaped = *cursor->at++;
        uint32_t unit;
        if (escaped == 'u' ? !hex_take(cursor, &unit)
                           : escaped == '\0' || strchr("\"\\/bfnrt", escaped) == NULL)
            return false;
    }
    return false;
}

/* The next name and colon of an object. */
static bool name_take(struct cursor *cursor, struct text *name)
{
    name->bytes = cursor->at;
    if (!take(cursor, '"') || !string_skip(cursor))
        return false;
    name->size = (size_t)(cursor->at - name->bytes);
    space_skip(cursor);
    if (!take(cursor, ':'))
        return false;
    space_skip(cursor);
    return true;
}

/* Behind the opening bracket, to behind the closing one. */
static bool array_skip(struct cursor *cursor, unsigned depth)
{
    space_skip(cursor);
    if (take(cursor, ']'))
        return true;
    do {
        space_skip(cursor);
        if (!value_skip(cursor, depth))
            return false;
        space_skip(cursor);
    } while (take(cursor, ','));
    return take(cursor, ']');
}

static bool object_skip(struct cursor *cursor, unsigned depth)
{
    space_skip(cursor);
    if (take(cursor, '}'))
        return true;
    do {
        struct text name;
        space_skip(cursor);
        if (!name_take(cursor, &name) || !value_skip(cursor, depth))
            return false;
        space_skip(cursor);
    } while (take(cursor, ','));
    return take(cursor, '}');
}

static bool value_skip(struct cursor *cursor, unsigned depth)
{
    if (cursor->at == cursor->end || depth == JSON_DEPTH_MAX)
        return false;
    switch (*cursor->at) {
    case '{':
        cursor->at++;
        return object_skip(cursor, depth + 1);
    case '[':
        cursor->at++;
        return array_skip(cursor, depth + 1);
    case '"':
        cursor->at++;
        return string_skip(cursor);
    case 't':
        return word_take(cursor, "true");
    case 'f':
        return word_take(cursor, "false");
    case 'n':
        return word_take(cursor, "null");
    default:
        return number_skip(cursor);
    }
}

static struct cursor cursor_of(struct text text)
{
    struct cursor cursor = {text.bytes, text.bytes != NULL ? text.bytes + text.size : NULL};
    space_skip(&cursor);
    return cursor;
}

bool json_object_check(struct text whole)
{
    struct cursor cursor = cursor_of(whole);
    if (!take(&cursor, '{') || !object_skip(&cursor, 1))
        return false;
    space_skip(&cursor);
    return cursor.at == cursor.end;
}

/* True if a name, spelt with its quotes, is this one. */
static bool name_is(struct text name, const char *wanted)
{
    char decoded[64];
    return json_string(name, decoded, sizeof(decoded)) && strcmp(decoded, wanted) == 0;
}

struct text json_member(struct text object, const char *name)
{
    struct text found = {NULL, 0};
    struct cursor cursor = cursor_of(object);
    if (!take(&cursor, '{'))
        return found;
    do {
        struct text this;
        space_skip(&cursor);
        if (!name_take(&cursor, &this))
            return found;
        const char *begin = cursor.at;
        if (!value_skip(&cursor, 1))
            return found;
        if (name_is(this, name))
            found = (struct text){begin, (size_t)(cursor.at - begin)};
        space_skip(&cursor);
    } while (take(&cursor, ','));
    return found;
}

struct text json_element(struct text array, size_t *position)
{
    struct text none = {NULL, 0};
    struct cursor cursor = cursor_of(array);
    if (*position == 0) {
        if (!take(&cursor, '['))
            return none;
    } else {
        if (array.bytes == NULL || *position >= array.size)
            return none;
        cursor.at = array.bytes + *position;
        space_skip(&cursor);
        if (!take(&cursor, ','))
            return none;
    }
    space_skip(&cursor);
    const char *begin = cursor.at;
    if (!value_skip(&cursor, 1))
        return none;
    *position = (size_t)(cursor.at - array.bytes);
    return (struct text){begin, (size_t)(cursor.at - begin)};
}

/* Appends a code point as UTF-8. False if there is no room for it and the terminating zero. */
static bool append_utf8(char *out, size_t size, size_t *used, uint32_t point)
{
    unsigned char bytes[4];
    size_t count;
    if (point < 0x80) {
        bytes[0] = (unsigned char)point;
        count = 1;
    } else if (point < 0x800) {
        bytes[0] = (unsigned char)(0xc0 | point >> 6);
        bytes[1] = (unsigned char)(0x80 | (point & 0x3f));
        count = 2;
    } else if (point < 0x10000) {
        bytes[0] = (unsigned char)(0xe0 | point >> 12);
        bytes[1] = (unsigned char)(0x80 | (point >> 6 & 0x3f));
        bytes[2] = (unsigned char)(0x80 | (point & 0x3f));
        count = 3;
    } else {
        bytes[0] = (unsigned char)(0xf0 | point >> 18);
        bytes[1] = (unsigned char)(0x80 | (point >> 12 & 0x3f));
        bytes[2] = (unsigned char)(0x80 | (point >> 6 & 0x3f));
        bytes[3] = (unsigned char)(0x80 | (point & 0x3f));
        count = 4;
    }
    if (size - *used <= count)
        return false;
    memcpy(out + *used, bytes, count);
    *used += count;
    return true;
}

/* What is behind a backslash. */
static bool escape_take(struct cursor *cursor, uint32_t *point)
{
    static const char spelt[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
    if (cursor->at == cursor->end)
        return false;
    char escaped = *cursor->at++;
    if (escaped != 'u') {
        const char *found = escaped != '\0' ? strchr(spelt, escaped) : NULL;
        if (found == NULL)
            return false;
        *point = (uint32_t)meant[found - spelt];
        return true;
    }
    if (!hex_take(cursor, point))
        return false;
    if (*point < 0xd800 || *point > 0xdfff)
        return *point != 0;
    uint32_t low;
    if (*point > 0xdbff || !word_take(cursor, "\\u") || !hex_take(cursor, &low) || low < 0xdc00 ||
        low > 0xdfff)
        return false;
    *point = 0x10000 + ((*point - 0xd800) << 10) + (low - 0xdc00);
    return true;
}

bool json_string(struct text value, char *out, size_t size)
{
    struct cursor cursor = cursor_of(value);
    size_t used = 0;
    if (size == 0 || !take(&cursor, '"'))
        return false;
    while (cursor.at < cursor.end) {
        unsigned char byte = (unsigned char)*cursor.at++;
        if (byte == '"') {
            out[used] = '\0';
            return true;
        }
        if (byte == '\\') {
            uint32_t point;
            if (!escape_take(&cursor, &point) || !append_utf8(out, size, &used, point))
                return false;
            continue;
        }
        if (byte < 0x20 || size - used <= 1)
            return false;
        out[used++] = (char)byte;
    }
    return false;
}

bool json_integer(struct text value, long minimum, long maximum, long *out)
{
    struct cursor cursor = cursor_of(value);
    bool negative = take(&cursor, '-');
    const char *begin = cursor.at;
    long number = 0;
    if (!digits_take(&cursor) || cursor.at != cursor.end || cursor.at - begin > 9)
        return false;
    for (; begin < cursor.at; begin++)
        number = number * 10 + (*begin - '0');
    if (negative)
        number = -number;
    if (number < minimum || number > maximum)
        return false;
    *out = number;
    return true;
}

bool text_is(struct text text, const char *other)
{
    return text.bytes != NULL && text.size == strlen(other) && memcmp(text.bytes, other, text.size) == 0;
}
