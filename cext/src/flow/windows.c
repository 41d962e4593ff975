/*
 * windows.c: see windows.h.
 *
 * For each open tunnel: window == what its peer may send + owed + lost, and owed is the sum of its streams'.
 * The first part is what quota and holder have as `promised`. What a peer may send beyond a window that was
 * made smaller (shrink) is not counted: it was granted under another limit.
 */
#include "flow/windows.h"

#include <string.h>

#include "base/clock.h"
#include "base/hash.h"
#include "flow/tunnel.h"
#include "loop/sockets.h"
#include "wire/h2.h"

enum {
    WIDEN_EVERY_WINDOWS = 4,
    REACTION_US = 300, /* until the application has taken what arrived, and the peer may send again */
    GENEROUS = 2, /* a peer that has so many times less than what is left gets back what it sends at once */
    SLACK = 4,    /* and may have larger windows */
    SHRUNK = 4,   /* where less than what was promised is left, this part of the limit is */
};

/* ---- holders ---- */

static uint64_t holder_has(const struct holder *holder)
{
    return holder->promised + __atomic_load_n(&holder->account.bytes, __ATOMIC_RELAXED);
}

/* Whether the peer has `times` less than what is left, after it got `more`. */
static int holder_within(const struct holder *holder, uint64_t more, uint64_t times)
{
    int64_t left = quota_left(holder->quota);
    return left == INT64_MAX || (int64_t)(more + times * (holder_has(holder) + more)) <= left;
}

static void holder_promise(struct holder *holder, int64_t change)
{
    holder->promised += (uint64_t)change;
    __atomic_add_fetch(&holder->quota->promised, (uint64_t)change, __ATOMIC_RELAXED);
}

/* A workload may have thousands of peers. */
static struct link *bucket_of(struct worker *worker, const struct quota *quota, const char *peer)
{
    return &worker->holders[hash_place(hash_bytes(quota->workload, peer, strlen(peer)), HOLDER_BUCKETS)];
}

static struct holder *holder_of(struct worker *worker, struct workload *workload, const char *peer)
{
    struct link *bucket = bucket_of(worker, workload->quota, peer);
    struct link *at, *next;
    link_each(at, next, bucket)
    {
        struct holder *holder = container_of(at, struct holder, found_link);
        if (holder->quota == workload->quota && strcmp(holder->peer, peer) == 0)
            return holder;
    }
    struct holder *holder = ns_alloc(sizeof(*holder) + strlen(peer) + 1);
    memcpy(holder->peer, peer, strlen(peer));
    holder->quota = workload->quota;
    holder->account.parent = &workload->quota->memory;
    link_init(&holder->tunnels);
    link_append(&workload->holders, &holder->link);
    link_append(bucket, &holder->found_link);
    return holder;
}

static void holder_free(struct holder *holder)
{
    link_remove(&holder->link);
    link_remove(&holder->found_link);
    free(holder);
}

/* Asks the peer for another window of each stream. */
static void set_stream_windows(struct tunnel *tunnel, uint32_t window)
{
    h2_windows(tunnel->h2, window);
    tunnel_touch(tunnel);
}

/* Its tunnels' streams have small windows, or large ones again. */
static void holder_set_tight(struct holder *holder, int tight)
{
    struct link *at, *next;
    holder->tight = tight;
    link_each(at, next, &holder->tunnels) set_stream_windows(container_of(at, struct tunnel, holder_link),
                                                             tight ? QUOTA_WINDOW_TIGHT : H2_STREAM_WINDOW);
}

/* ---- a tunnel's window ---- */

/* What all that have room get: with few tunnels as much as speed needs, with many what there is. Half of the
 * limit is not promised before it is needed. */
static uint32_t first_window(const struct quota *quota)
{
    uint64_t limit = quota_limits(quota).memory;
    uint64_t promised = __atomic_load_n(&quota->promised, __ATOMIC_RELAXED);
    if (limit == 0)
        return WINDOW_MOST;
    uint64_t part = promised < limit / 2 ? (limit / 2 - promised) / WINDOW_PART : 0;
    return (uint32_t)(part < WINDOW_LEAST ? WINDOW_LEAST : part > WINDOW_FIRST ? WINDOW_FIRST : part);
}

static void set_window(struct tunnel *tunnel, uint32_t window)
{
    holder_promise(tunnel->holder, (int64_t)window - (int64_t)tunnel->window);
    tunnel->window = window;
    tunnel->widen_bytes = tunnel->taken + WIDEN_EVERY_WINDOWS * (uint64_t)window;
    h2_connection_window(tunnel->h2, window);
}

enum ns_limit windows_open(struct tunnel *tunnel)
{
    struct holder *holder = holder_of(tunnel->worker, tunnel->workload, tunnel->tls.peer);
    uint32_t window = first_window(holder->quota);
    if (!holder_within(holder, window, SLACK))
        window = WINDOW_LEAST;
    /* Its first tunnel is nobody's harm, and has no smaller window. */
    if (!holder_within(holder, window, 1) && !link_empty(&holder->tunnels))
        return NS_LIMIT_MEMORY;
    link_append(&holder->tunnels, &tunnel->holder_link);
    tunnel->holder = holder;
    set_window(tunnel, window);
    byte_queue_charge(&tunnel->pending, &holder->account);
    byte_queue_charge(&tunnel->unfed, &holder->account);
    struct link *at, *next;
    link_each(at, next, &tunnel->streams) /* of a tunnel that we dialled */
        byte_queue_charge(container_of(at, struct stream, link)->unread, &holder->account);
    if (holder->tight)
        set_stream_windows(tunnel, QUOTA_WINDOW_TIGHT);
    return NS_LIMITS;
}

void windows_close(struct tunnel *tunnel)
{
    struct holder *holder = tunnel->holder;
    if (holder == NULL)
        return;
    holder_promise(holder, (int64_t)(tunnel->owed + tunnel->lost) - (int64_t)tunnel->window);
    link_remove(&tunnel->holder_link);
    tunnel->holder = NULL;
}

static void give_back(struct tunnel *tunnel, size_t length)
{
    if (length == 0)
        return;
    holder_promise(tunnel->holder, (int64_t)length);
    h2_give_back(tunnel->h2, length, tunnel->owed + tunnel->lost);
    tunnel_touch(tunnel);
}

void windows_look(struct tunnel *tunnel)
{
    int on = !holder_within(tunnel->holder, 0, GENEROUS) || tunnel->owed + tunnel->lost > 0;
    if (on == tunnel->withholding)
        return;
    tunnel->withholding = on;
    h2_withhold(tunnel->h2, on);
}

void windows_received(struct stream *stream, size_t length)
{
    struct tunnel *tunnel = stream->tunnel;
    struct holder *holder = tunnel->holder;
    if (holder_within(holder, 0, GENEROUS)) {
        h2_give_back(tunnel->h2, length, tunnel->owed + tunnel->lost);
        return;
    }
    tunnel->owed += length;
    stream->owed += length;
    holder_promise(holder, -(int64_t)length);
    if (!holder->tight)
        holder_set_tight(holder, 1);
}

void windows_dropped(struct stream *stream)
{
    size_t length = stream->owed;
    if (length == 0)
        return;
    stream->owed = 0;
    stream->tunnel->owed -= length;
    if (stream->tunnel->holder != NULL)
        give_back(stream->tunnel, length);
}

void windows_parted(struct stream *stream)
{
    stream->tunnel->owed -= stream->owed;
    stream->tunnel->lost += stream->owed;
    stream->owed = 0;
}

/* The connection's window is what limits it. */
static void widen(struct tunnel *tunnel)
{
    uint64_t span = WIDEN_EVERY_WINDOWS * (uint64_t)tunnel->window;
    uint64_t now_us = clock_us(CLOCK_MONOTONIC);
    uint64_t elapsed_us = now_us - tunnel->widen_us;
    int measured = tunnel->widen_us != 0;
    tunnel->widen_bytes = tunnel->taken + span;
    tunnel->widen_us = now_us;
    if (!measured || tunnel->window >= WINDOW_MOST)
        return;
    uint32_t wanted =
        window_wanted(tunnel->window, WINDOW_MOST, span, elapsed_us, socket_round_trip_us(tunnel->poll.fd));
    if (wanted > tunnel->window && holder_within(tunnel->holder, wanted - tunnel->window, SLACK))
        set_window(tunnel, wanted);
}

/* Beyond the connection's window a larger one is of no use. */
static void widen_stream(struct stream *stream, uint64_t received)
{
    struct tunnel *tunnel = stream->tunnel;
    uint64_t span = WIDEN_EVERY_WINDOWS * (uint64_t)stream->window;
    uint64_t now_us = clock_us(CLOCK_MONOTONIC);
    uint64_t elapsed_us = now_us - stream->widen_us;
    int measured = stream->widen_us != 0;
    stream->widen_bytes = received + span;
    stream->widen_us = now_us;
    if (!measured)
        return;
    uint32_t wanted = window_wanted(stream->window, H2_STREAM_WINDOW_MAX, span, elapsed_us,
                                    socket_round_trip_us(tunnel->poll.fd));
    if (wanted > stream->window && wanted <= tunnel->window && !tunnel->holder->tight) {
        stream->window = wanted;
        h2_widen(tunnel->h2, stream->id, wanted);
    }
}

void windows_taken(struct stream *stream, size_t length, uint64_t received)
{
    struct tunnel *tunnel = stream->tunnel;
    size_t back = stream->owed < length ? stream->owed : length;
    if (back > 0) {
        stream->owed -= back;
        tunnel->owed -= back;
        give_back(tunnel, back);
    }
    if (tunnel->taken >= tunnel->widen_bytes)
        widen(tunnel);
    if (stream->id > 0 && received > 0 && received >= stream->widen_bytes)
        widen_stream(stream, received);
}

/* Twice what arrives within a round trip and our own reaction to it: with less the peer waits for us, with
 * more the surplus lies in socket buffers, and all others of the tunnel wait behind it. */
uint32_t window_wanted(uint32_t window, uint32_t most, uint64_t bytes, uint64_t elapsed_us,
                       uint32_t round_trip_us)
{
    uint64_t needed = 2 * bytes * (round_trip_us + REACTION_US) / (elapsed_us > 0 ? elapsed_us : 1);
    if (needed <= window)
        return window;
    return window > most / 2 ? (window > most ? window : most) : 2 * window;
}

/* ---- the tick ---- */

static void give_all_back(struct tunnel *tunnel)
{
    size_t length = tunnel->owed + tunnel->lost;
    struct link *at, *next;
    link_each(at, next, &tunnel->streams) container_of(at, struct stream, link)->owed = 0;
    tunnel->owed = tunnel->lost = 0;
    give_back(tunnel, length);
}

static void tunnel_look(struct tunnel *tunnel)
{
    struct holder *holder = tunnel->holder;
    size_t withheld = tunnel->owed + tunnel->lost;
    int little = withheld > tunnel->window / 4 * 3;
    if (withheld == 0)
        return;
    if (!holder->tight || holder->account.bytes == 0 || (little && holder_within(holder, withheld, 1)))
        give_all_back(tunnel);
}

/* The limit was lowered below what is promised. Nothing of that can be taken back, but peers get no more of
 * it: a smaller window swallows what they still send of the larger one, and counts as what it is to be. */
static void shrink(struct workload *workload)
{
    uint64_t limit = quota_limits(workload->quota).memory;
    uint64_t promised = __atomic_load_n(&workload->quota->promised, __ATOMIC_RELAXED);
    struct link *at, *next;
    if (limit == 0 || promised <= limit)
        return;
    link_each(at, next, &workload->tunnels)
    {
        struct tunnel *tunnel = container_of(at, struct tunnel, link);
        uint64_t window = tunnel->window * (limit / SHRUNK) / promised;
        if (tunnel->holder != NULL && tunnel->window > WINDOW_LEAST && tunnel->owed + tunnel->lost == 0)
            set_window(tunnel, window < WINDOW_LEAST ? WINDOW_LEAST : (uint32_t)window);
    }
}

void windows_tick(struct workload *workload)
{
    struct link *at, *next;
    shrink(workload);
    link_each(at, next, &workload->holders)
    {
        struct holder *holder = container_of(at, struct holder, link);
        if (link_empty(&holder->tunnels) && holder->account.bytes == 0)
            holder_free(holder);
        else if (!holder->tight && !holder_within(holder, 0, GENEROUS))
            holder_set_tight(holder, 1);
        else if (holder->tight && holder_within(holder, 0, SLACK))
            holder_set_tight(holder, 0);
    }
    link_each(at, next, &workload->tunnels)
    {
        struct tunnel *tunnel = container_of(at, struct tunnel, link);
        if (tunnel->holder != NULL)
            tunnel_look(tunnel);
    }
}

void windows_forget(struct workload *workload)
{
    while (!link_empty(&workload->holders))
        holder_free(container_of(workload->holders.next, struct holder, link));
}
