/*
 * quota.c: see quota.h.
 *
 * The bucket of new connections is kept as one number, so that workers share it without a lock (GCRA, the
 * generic cell rate algorithm of ITU-T I.371): `rate_ns` is when the bucket will be full again. Each
 * connection moves it by one interval; one that would move it further than a full bucket's time ahead of now
 * finds the bucket empty.
 */
#include "limits/quota.h"

static const uint64_t SECOND_NS = 1000000000;

static uint64_t get(const uint64_t *from)
{
    return __atomic_load_n(from, __ATOMIC_RELAXED);
}

static void set(uint64_t *to, uint64_t value)
{
    __atomic_store_n(to, value, __ATOMIC_RELAXED);
}

/* ---- life ---- */

struct quota *quota_new(uint64_t workload, struct descriptors *process, struct notices *notices)
{
    struct quota *quota = ns_alloc(sizeof(*quota));
    quota->references = 1;
    quota->workload = workload;
    quota->process = process;
    quota->notices = notices;
    link_init(&quota->questions);
    link_init(&quota->question_link);
    return quota;
}

struct quota *quota_hold(struct quota *quota)
{
    __atomic_add_fetch(&quota->references, 1, __ATOMIC_RELAXED);
    return quota;
}

void quota_release(struct quota *quota)
{
    if (quota != NULL && __atomic_sub_fetch(&quota->references, 1, __ATOMIC_ACQ_REL) == 0) {
        refusals_free(quota->refusals);
        free(quota);
    }
}

void quota_set_limits(struct quota *quota, const struct ns_limits *limits)
{
    set(&quota->limits.connections, limits->connections);
    set(&quota->limits.memory, limits->memory);
    set(&quota->limits.new_connections, limits->new_connections);
}

struct ns_limits quota_limits(const struct quota *quota)
{
    struct ns_limits limits = {.connections = get(&quota->limits.connections),
                               .memory = get(&quota->limits.memory),
                               .new_connections = get(&quota->limits.new_connections)};
    return limits;
}

void quota_descriptors(struct quota *quota, int change)
{
    __atomic_add_fetch(&quota->descriptors, (uint64_t)(int64_t)change, __ATOMIC_RELAXED);
    descriptors_change(quota->process, change);
}

/* ---- admission ---- */

const char *quota_reason(enum ns_limit limit)
{
    static const char *const REASONS[] = {"limit-connections", "limit-rate",      "limit-memory",
                                          "limit-descriptors", "limit-questions", "limit-handshakes"};
    return REASONS[limit];
}

static uint64_t limit_value(const struct quota *quota, int limit)
{
    return limit == NS_LIMIT_CONNECTIONS ? get(&quota->limits.connections)
           : limit == NS_LIMIT_RATE      ? get(&quota->limits.new_connections)
           : limit == NS_LIMIT_MEMORY    ? get(&quota->limits.memory)
                                         : 0;
}

void quota_refused(struct quota *quota, enum ns_limit limit, uint64_t now_ms)
{
    struct limited *limited = &quota->limited[limit];
    uint64_t never = 0;
    __atomic_compare_exchange_n(&limited->first_ms, &never, now_ms, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    set(&limited->last_ms, now_ms);
    set(&limited->value, limit_value(quota, (int)limit));
    __atomic_add_fetch(&limited->refused, 1, __ATOMIC_RELAXED);
    notices_set(quota->notices);
}

static int rate_allows(struct quota *quota, uint64_t now_us)
{
    uint64_t rate = get(&quota->limits.new_connections);
    if (rate == 0)
        return 1;
    uint64_t now_ns = now_us * 1000;
    uint64_t interval = SECOND_NS / rate;
    uint64_t full_ns = get(&quota->rate_ns);
    uint64_t next;
    do {
        next = (full_ns > now_ns ? full_ns : now_ns) + interval;
        if (next - now_ns > SECOND_NS)
            return 0;
    } while (
        !__atomic_compare_exchange_n(&quota->rate_ns, &full_ns, next, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return 1;
}

static enum ns_limit limit_met(struct quota *quota, uint64_t connections, uint64_t now_us)
{
    uint64_t most = get(&quota->limits.connections);
    uint64_t memory = get(&quota->limits.memory);
    if (most != 0 && connections > most)
        return NS_LIMIT_CONNECTIONS;
    if (memory != 0 && get(&quota->memory.bytes) >= memory)
        return NS_LIMIT_MEMORY;
    if (get(&quota->descriptors) >= DESCRIPTORS_SHARE * descriptors_left(quota->process, now_us / 1000))
        return NS_LIMIT_DESCRIPTORS;
    return rate_allows(quota, now_us) ? NS_LIMITS : NS_LIMIT_RATE;
}

enum ns_limit quota_admit(struct quota *quota, uint64_t now_us)
{
    return quota_admit_beside(quota, 0, now_us);
}

enum ns_limit quota_admit_beside(struct quota *quota, uint64_t beside, uint64_t now_us)
{
    enum ns_limit limit =
        limit_met(quota, beside + __atomic_add_fetch(&quota->connections, 1, __ATOMIC_RELAXED), now_us);
    if (limit != NS_LIMITS) {
        quota_leave(quota);
        quota_refused(quota, limit, now_us / 1000);
    }
    return limit;
}

void quota_leave(struct quota *quota)
{
    __atomic_sub_fetch(&quota->connections, 1, __ATOMIC_RELAXED);
}

/* ---- memory ---- */

void quota_memory(struct quota *quota, int64_t change)
{
    account_change(&quota->memory, change);
}

int64_t quota_left(const struct quota *quota)
{
    uint64_t limit = get(&quota->limits.memory);
    if (limit == 0 || limit > INT64_MAX)
        return INT64_MAX;
    return (int64_t)(limit - get(&quota->memory.bytes) - get(&quota->promised));
}

/* Linux keeps twice what it is asked for, in each of two directions: a quarter of the limit, divided by the
 * connections, is the limit for all of them together. Those that came earlier have more, because there were
 * fewer. */
uint32_t quota_buffers(const struct quota *quota)
{
    uint64_t limit = get(&quota->limits.memory);
    uint64_t connections = get(&quota->connections);
    if (limit == 0 || connections <= BUFFERS_FREE)
        return 0;
    uint64_t each = limit / 4 / connections;
    return (uint32_t)(each < BUFFERS_LEAST ? BUFFERS_LEAST : each > BUFFERS_MOST ? BUFFERS_MOST : each);
}

/* ---- what is told ---- */

void quota_stats(const struct quota *quota, uint64_t now_ms, struct ns_workload_stats *stats)
{
    stats->memory = get(&quota->memory.bytes);
    stats->promised = get(&quota->promised);
    stats->descriptors = get(&quota->descriptors);
    stats->limits = quota_limits(quota);
    for (int i = 0; i < NS_LIMITS; i++) {
        const struct limited *limited = &quota->limited[i];
        uint64_t first = get(&limited->first_ms), last = get(&limited->last_ms);
        stats->limited[i].refused = get(&limited->refused);
        stats->limited[i].first_ms = first != 0 && first < now_ms ? now_ms - first : 0;
        stats->limited[i].last_ms = last != 0 && last < now_ms ? now_ms - last : 0;
    }
}

uint64_t quota_refused_at(const struct quota *quota, enum ns_limit limit)
{
    return get(&quota->limited[limit].value);
}

int quota_notice(struct quota *quota, uint64_t now_ms, struct ns_limit_notice *notice)
{
    for (int i = 0; i < NS_LIMITS; i++) {
        struct limited *limited = &quota->limited[i];
        uint64_t refused = get(&limited->refused);
        if (refused == limited->noticed)
            continue;
        if (limited->noticed_ms != 0 && now_ms - limited->noticed_ms < QUOTA_NOTICE_MS) {
            notices_set(quota->notices); /* due later */
            continue;
        }
        notice->workload = quota->workload;
        notice->limit = (uint32_t)i;
        notice->reserved = 0;
        notice->value = get(&limited->value);
        notice->refused = refused - limited->noticed;
        limited->noticed = refused;
        limited->noticed_ms = now_ms;
        notices_set(quota->notices); /* the other limits */
        return 1;
    }
    return 0;
}
