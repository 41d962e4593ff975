/*
 * check.h: the smallest test harness: TEST(name) { ... CHECK(...) ... } and CHECK_MAIN at the end of the
 * program.
 *
 * `program --list` prints the names of its tests, one per line; `program NAME` runs one; `program` runs all.
 * A failed check prints where and why and ends the process at once with status 1, without unwinding, so that
 * what the leak checker would say about an interrupted test does not hide the failure.
 */
#ifndef NS_CHECK_H
#define NS_CHECK_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct check_test {
    const char *name;
    void (*run)(void);
    struct check_test *next; /* in the order of definition; NULL: last */
};

static struct check_test *check_first;
/* Not used in a source that has CHECKs and no TEST. */
__attribute__((unused)) static struct check_test **check_tail = &check_first;

/* Constructors of one file run in the order of their definition. */
#define TEST(test_name)                                                                                      \
    static void test_name(void);                                                                             \
    static struct check_test check_test_##test_name = {#test_name, test_name, NULL};                         \
    __attribute__((constructor)) static void check_add_##test_name(void)                                     \
    {                                                                                                        \
        *check_tail = &check_test_##test_name;                                                               \
        check_tail = &check_test_##test_name.next;                                                           \
    }                                                                                                        \
    static void test_name(void)

__attribute__((noreturn, format(printf, 3, 4))) static inline void check_failed(const char *file, int line,
                                                                                const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "%s:%d: ", file, line);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    fflush(stderr);
    _exit(1);
}

#define CHECK(condition)                                                                                     \
    do {                                                                                                     \
        if (!(condition))                                                                                    \
            check_failed(__FILE__, __LINE__, "not true: %s", #condition);                                    \
    } while (0)

/* For integers of any width; both are evaluated once. */
#define CHECK_EQUAL(actual, expected)                                                                        \
    do {                                                                                                     \
        long long check_actual = (long long)(actual);                                                        \
        long long check_expected = (long long)(expected);                                                    \
        if (check_actual != check_expected)                                                                  \
            check_failed(__FILE__, __LINE__, "%s is %lld, expected %lld (%s)", #actual, check_actual,        \
                         check_expected, #expected);                                                         \
    } while (0)

#define CHECK_TEXT(actual, expected)                                                                         \
    do {                                                                                                     \
        const char *check_actual = (actual);                                                                 \
        const char *check_expected = (expected);                                                             \
        if (strcmp(check_actual, check_expected) != 0)                                                       \
            check_failed(__FILE__, __LINE__, "%s is \"%s\", expected \"%s\"", #actual, check_actual,         \
                         check_expected);                                                                    \
    } while (0)

/* With a note that says which case of a table, or which seed, it was. */
#define CHECK_CASE(condition, ...)                                                                           \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            char check_note[256];                                                                            \
            snprintf(check_note, sizeof(check_note), __VA_ARGS__);                                           \
            check_failed(__FILE__, __LINE__, "not true: %s [%s]", #condition, check_note);                   \
        }                                                                                                    \
    } while (0)

static inline int check_main(int argc, char **argv)
{
    int ran = 0;
    for (struct check_test *test = check_first; test != NULL; test = test->next) {
        if (argc == 2 && strcmp(argv[1], "--list") == 0) {
            puts(test->name);
            ran++;
        } else if (argc == 1 || (argc == 2 && strcmp(argv[1], test->name) == 0)) {
            test->run();
            ran++;
        }
    }
    if (ran == 0)
        fprintf(stderr, "usage: %s [--list | TEST]\n", argv[0]);
    return ran > 0 ? 0 : 2;
}

#define CHECK_MAIN                                                                                           \
    int main(int argc, char **argv)                                                                          \
    {                                                                                                        \
        return check_main(argc, argv);                                                                       \
    }

#endif
