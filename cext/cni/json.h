/*
 * json.h: finds values in JSON text (RFC 8259) without a copy of it. Sans-I/O; allocates nothing; the text is
 * hostile and need not be terminated.
 *
 * json_object_check looks at the whole text once. Everything else may be asked of a text, or of a part of
 * one, that it has found good, and is bounded by that text whatever it is asked of.
 */
#ifndef NS_CNI_JSON_H
#define NS_CNI_JSON_H

#include <stdbool.h>
#include <stddef.h>

/* Deepest nesting that is taken: a network's result has five. */
enum { JSON_DEPTH_MAX = 64 };

/* A part of somebody else's bytes. */
struct text {
    /* NULL: there is none. */
    const char *bytes;
    size_t size;
};

/* True if the text is one JSON object with nothing but white space around it. UTF-8 is not looked at. */
bool json_object_check(struct text whole);

/* The value of an object's member of this name, as it is spelt there; {NULL, 0} if there is none, or if this
 * is no object. Of several the last one counts, as in Go's encoding/json. */
struct text json_member(struct text object, const char *name);

/* The next element of an array: `position` is 0 at first, and moves on. {NULL, 0} behind the last one, or if
 * this is no array. */
struct text json_element(struct text array, size_t *position);

/* Writes a string's content into out, with its terminating zero. False if this is no string, if it does not
 * fit, or if it has a zero or half of a surrogate pair in it. */
bool json_string(struct text value, char *out, size_t size);

/* False if this is no integer, or not from minimum to maximum. */
bool json_integer(struct text value, long minimum, long maximum, long *out);

/* True if the text is exactly this: "true", "null". */
bool text_is(struct text text, const char *other);

#endif
