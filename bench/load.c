/* The load generator: one thread, one epoll, any mixture of these at the same time:
 *
 *   --keepalive N   connections that carry one request after the other, closed loop; with --rate R at R
 * requests/s in all
 *   --churn N       connections that are opened, carry one request, are closed by the server and opened again
 *   --up N          streams of bytes to the server
 *   --down N        streams of bytes from the server
 *   --idle N        connections that carry one request and then nothing
 *
 * Usage: load --target ADDRESS:PORT --warmup SECONDS --seconds SECONDS [--keepalive N ...]
 *
 * Life: open everything, at most RAMP at a time (each connection carries an exchange before it counts as
 * open, so that lazy proxies are open end to end) -> let it run for the warm-up -> print "ready" -> go on
 * until a line comes on stdin -> measure
 * -> stop the traffic, print "done" and a line of JSON, hold all connections -> end when stdin ends. The
 * program that drives this one reads the proxies' accounts before its line and after "done": what is measured
 * here and there is the same stretch of steady work. When stdin ends at any time, so does this program.
 *
 * Latency at a fixed rate counts from when a request was due, not from when the connection was free to send
 * it: a proxy that stalls for a second owes the latency of all that was due in that second (wrk2's method;
 * "coordinated omission"). Request number j of connection i of N is due at (i + j * N) / R. After the
 * measured time the answers to all requests are awaited for up to DRAIN seconds; what was due in it and is
 * still open then is counted with the age it has.
 *
 * Latencies go into a histogram of nanoseconds: exact up to 127, then 128 buckets for each power of two
 * (bench/histogram.py is the other side). A response is known by its length alone.
 */
#define _GNU_SOURCE
#include "exchange.h"

#include <getopt.h>
#include <signal.h>
#include <sys/prctl.h>
#include <time.h>

enum { RAMP = 64, MAX_ERRORS = 2000, DRAIN = 2, RAMP_SECONDS = 90, SUB_BITS = 7, SUB = 1 << SUB_BITS };
enum { BUCKETS = (64 - SUB_BITS) * SUB };

enum kind { KEEPALIVE, CHURN, UP, DOWN, IDLE, KINDS };
/* In this order: a slot goes from CLOSED to BUSY, and between BUSY and FREE from then on. */
enum state { CLOSED, CONNECTING, BUSY, FREE, STREAMING };
enum phase { OPENING, WARMING, WAITING, MEASURING, DRAINING, HOLDING };

struct slot {
    int fd;
    enum kind kind;
    enum state state;
    int opened;         /* has carried an exchange, or streams: counts towards the end of OPENING */
    size_t due_bytes;   /* BUSY: what is missing of the response */
    uint64_t began;     /* BUSY: ns, when the request was due or the connection was begun */
    uint64_t released;  /* fixed rate: requests that have become due */
    uint64_t served;    /* fixed rate: requests that were begun */
    uint64_t report;    /* UP: the bytes received so far, as they come in; may be there in part */
    size_t report_held; /* UP: bytes of the report that are here */
    uint64_t first_bytes, last_bytes; /* UP: the last reports before the measured time and within it */
    uint64_t bytes;                   /* DOWN: within the measured time */
};

struct tally {
    uint64_t count;      /* completed within the measured time */
    uint64_t errors;     /* since the start */
    uint64_t unfinished; /* fixed rate: due, but not answered at the end of DRAINING */
    uint64_t buckets[BUCKETS];
};

static struct sockaddr_in target;
static int poller;
static enum phase phase = OPENING;
static struct slot *slots;
static size_t slot_count, opened, opening, next_to_open;
static int wanted[KINDS];
static double rate;
static uint64_t released; /* fixed rate: requests that have become due on all connections */
static uint64_t rate_began, measure_began, measure_ends, now;
static struct tally tallies[2]; /* KEEPALIVE, CHURN */
static uint64_t lost;           /* streams and idle connections that ended */
static int last_error;
static char chunk[CHUNK];

static uint64_t clock_now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static size_t bucket_of(uint64_t value)
{
    if (value < SUB)
        return (size_t)value;
    const int shift = 63 - __builtin_clzll(value) - SUB_BITS;
    return (size_t)(shift + 1) * SUB + (size_t)(value >> shift) - SUB;
}

static void watch(struct slot *slot, uint32_t events, int operation)
{
    struct epoll_event event = {.events = events, .data.ptr = slot};

    if (epoll_ctl(poller, operation, slot->fd, &event) != 0)
        die("epoll_ctl");
}

static void count_opened(struct slot *slot)
{
    if (slot->opened)
        return;
    slot->opened = 1;
    opened++;
    opening--;
}

static void open_slot(struct slot *slot);

/* The connection ended when it should not have. Opened again, except for what is held or streams. */
static void fail(struct slot *slot, int error)
{
    uint64_t *const errors = slot->kind <= CHURN ? &tallies[slot->kind].errors : &lost;

    last_error = error;
    if (++*errors > MAX_ERRORS || (phase == OPENING && *errors > RAMP)) {
        fprintf(stderr, "load: too many connections failed, the last with: %s\n",
                error ? strerror(error) : "closed by the other side");
        exit(1);
    }
    if (slot->fd >= 0)
        close(slot->fd);
    slot->fd = -1;
    slot->state = CLOSED;
    if (slot->kind <= CHURN && phase < DRAINING)
        open_slot(slot);
    else
        count_opened(slot);
}

static void send_request(struct slot *slot)
{
    static const char *const requests[KINDS] = {
        REQUEST("/keep"), REQUEST("/close"), REQUEST("/upload"), REQUEST("/download"), REQUEST("/keep"),
    };
    const char *const request = requests[slot->kind];
    const size_t size = strlen(request);

    const ssize_t sent = send(slot->fd, request, size, MSG_NOSIGNAL);
    if (sent != (ssize_t)size) {
        fail(slot, sent < 0 ? errno : ENOBUFS);
        return;
    }
    slot->due_bytes = RESPONSE_SIZE;
    slot->state = BUSY;
    if (slot->kind == UP || slot->kind == DOWN) {
        slot->state = STREAMING;
        if (slot->kind == UP) {
            watch(slot, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
        }
    }
}

static void open_slot(struct slot *slot)
{
    slot->began = clock_now();
    slot->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (slot->fd < 0)
        die("socket");
    set_nodelay(slot->fd);
    slot->state = CONNECTING;
    if (connect(slot->fd, (struct sockaddr *)&target, sizeof target) != 0 && errno != EINPROGRESS) {
        fail(slot, errno);
        return;
    }
    watch(slot, EPOLLOUT, EPOLL_CTL_ADD);
}

/* Fixed rate: begins the next request of a free connection if one is due. */
static void serve_next(struct slot *slot)
{
    if (slot->state != FREE || slot->served == slot->released)
        return;
    const double place = (double)(size_t)(slot - slots) + (double)slot->served * wanted[KEEPALIVE];
    slot->served++;
    slot->began = rate_began + (uint64_t)(place / rate * 1e9);
    send_request(slot);
}

/* Fixed rate: marks what has become due. The keep-alive slots are the first in `slots`. */
static void release_due(void)
{
    if (rate <= 0 || phase < WARMING || phase > MEASURING)
        return;
    const uint64_t until = phase == MEASURING && now > measure_ends ? measure_ends : now;
    const uint64_t due = (uint64_t)((double)(until - rate_began) / 1e9 * rate) + 1;
    while (released < due) {
        struct slot *const slot = &slots[released++ % (uint64_t)wanted[KEEPALIVE]];
        slot->released++;
        serve_next(slot);
    }
}

static void record(struct slot *slot)
{
    struct tally *const tally = &tallies[slot->kind];
    const int due_in_time = slot->began >= measure_began && slot->began < measure_ends;

    if (phase == MEASURING && now < measure_ends)
        tally->count++;
    if ((phase == MEASURING || (phase == DRAINING && rate > 0 && slot->kind == KEEPALIVE)) && due_in_time)
        tally->buckets[bucket_of(now - slot->began)]++;
}

/* A response is complete. */
static void finish_exchange(struct slot *slot)
{
    if (slot->kind == KEEPALIVE || slot->kind == CHURN)
        record(slot);
    count_opened(slot);
    if (slot->kind == CHURN) {
        close(slot->fd);
        slot->fd = -1;
        slot->state = CLOSED;
        if (phase < DRAINING)
            open_slot(slot);
        return;
    }
    slot->state = FREE;
    if (slot->kind != KEEPALIVE)
        return;
    if (rate > 0) {
        serve_next(slot);
    } else if (phase < DRAINING) {
        slot->began = now;
        send_request(slot);
    }
}

static void read_response(struct slot *slot)
{
    const ssize_t got = recv(slot->fd, chunk, sizeof chunk, 0);

    if (got < 0 && errno == EAGAIN)
        return;
    /* The life of a connection of CHURN ends with the server's FIN. */
    if (got == 0 && slot->kind == CHURN && slot->due_bytes == 0) {
        finish_exchange(slot);
        return;
    }
    if (got <= 0 || slot->state != BUSY || (size_t)got > slot->due_bytes) {
        fail(slot, got < 0 ? errno : got > 0 ? EPROTO : 0);
        return;
    }
    slot->due_bytes -= (size_t)got;
    if (slot->due_bytes == 0 && slot->kind != CHURN)
        finish_exchange(slot);
}

static void read_down(struct slot *slot)
{
    const ssize_t got = recv(slot->fd, chunk, sizeof chunk, 0);

    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0) {
        fail(slot, got < 0 ? errno : 0);
        return;
    }
    count_opened(slot);
    if (phase == MEASURING)
        slot->bytes += (uint64_t)got;
}

static void read_report(struct slot *slot)
{
    const ssize_t got =
        recv(slot->fd, (char *)&slot->report + slot->report_held, sizeof slot->report - slot->report_held, 0);

    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0) {
        fail(slot, got < 0 ? errno : 0);
        return;
    }
    slot->report_held += (size_t)got;
    if (slot->report_held < sizeof slot->report)
        return;
    slot->report_held = 0;
    count_opened(slot);
    /* The rate is over the whole time: reports may come in a bunch, with no time between them. */
    if (phase <= MEASURING)
        slot->last_bytes = slot->report;
    if (phase < MEASURING)
        slot->first_bytes = slot->report;
}

static void on_connected(struct slot *slot)
{
    int error = 0;
    socklen_t size = sizeof error;

    getsockopt(slot->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0) {
        fail(slot, error);
        return;
    }
    watch(slot, EPOLLIN, EPOLL_CTL_MOD);
    send_request(slot);
}

static void on_event(struct slot *slot, uint32_t events)
{
    switch (slot->state) {
    case CLOSED:
        return;
    case CONNECTING:
        on_connected(slot);
        return;
    case BUSY:
    case FREE:
        read_response(slot);
        return;
    case STREAMING:
        break;
    }
    if (slot->kind == DOWN) {
        read_down(slot);
        return;
    }
    if (events & (EPOLLIN | EPOLLERR | EPOLLHUP))
        read_report(slot);
    if (slot->state == STREAMING && (events & EPOLLOUT) &&
        send(slot->fd, chunk, sizeof chunk, MSG_NOSIGNAL) < 0 && errno != EAGAIN)
        fail(slot, errno);
}

/* Streams stand still from here on; requests end as they are answered. */
static void stop_streams(void)
{
    for (size_t i = 0; i < slot_count; i++)
        if (slots[i].state == STREAMING)
            watch(&slots[i], 0, EPOLL_CTL_MOD);
}

/* Whether no exchange is under way and, at a fixed rate, none is due: every connection can then be closed in
 * peace. */
static int all_served(void)
{
    for (size_t i = 0; i < slot_count; i++) {
        const struct slot *const slot = &slots[i];
        if (slot->state == CONNECTING || slot->state == BUSY || slot->served < slot->released)
            return 0;
    }
    return 1;
}

/* What was due in the measured time and has no answer: counted with its age. */
static void count_unfinished(void)
{
    for (int i = 0; rate > 0 && i < wanted[KEEPALIVE]; i++) {
        struct slot *const slot = &slots[i];
        uint64_t request = slot->state == BUSY && slot->served > 0 ? slot->served - 1 : slot->served;
        for (; request < slot->released; request++) {
            const double place = i + (double)request * wanted[KEEPALIVE];
            const uint64_t due = rate_began + (uint64_t)(place / rate * 1e9);
            if (due < measure_began)
                continue;
            tallies[KEEPALIVE].unfinished++;
            tallies[KEEPALIVE].buckets[bucket_of(now - due)]++;
        }
    }
}

static void print_tally(const char *name, const struct tally *tally)
{
    const char *separator = "";

    printf(", \"%s\": {\"count\": %lu, \"errors\": %lu, \"unfinished\": %lu, \"buckets\": [", name,
           tally->count, tally->errors, tally->unfinished);
    for (size_t i = 0; i < BUCKETS; i++) {
        if (tally->buckets[i] > 0) {
            printf("%s[%zu, %lu]", separator, i, tally->buckets[i]);
            separator = ", ";
        }
    }
    printf("]}");
}

static void print_results(void)
{
    double up = 0, down = 0;
    const double seconds = (double)(measure_ends - measure_began) / 1e9;
    int idle = 0;

    for (size_t i = 0; i < slot_count; i++) {
        const struct slot *const slot = &slots[i];
        up += (double)(slot->last_bytes - slot->first_bytes) / seconds;
        down += (double)slot->bytes / seconds;
        idle += slot->kind == IDLE && slot->state == FREE;
    }
    printf("{\"seconds\": %.9f, \"up_bytes_per_s\": %.0f, \"down_bytes_per_s\": %.0f, \"idle\": %d, "
           "\"lost\": %lu, "
           "\"last_error\": \"%s\"",
           seconds, up, down, idle, lost, last_error ? strerror(last_error) : "");
    print_tally("requests", &tallies[KEEPALIVE]);
    print_tally("connections", &tallies[CHURN]);
    printf("}\n");
    fflush(stdout);
}

static void say(const char *word)
{
    puts(word);
    fflush(stdout);
}

/* Reads stdin, which has something. */
static void on_driver(void)
{
    char line[16];

    if (read(STDIN_FILENO, line, sizeof line) <= 0)
        exit(0);
    if (phase != WAITING)
        return;
    phase = MEASURING;
    measure_began = clock_now();
    measure_ends += measure_began; /* held the length until now */
}

/* Moves on to the next phase when it is time; what is still to wait for, in ns. */
static uint64_t step(uint64_t warmup)
{
    static uint64_t phase_ends;

    if (phase == OPENING) {
        while (next_to_open < slot_count && opening < RAMP) {
            opening++;
            open_slot(&slots[next_to_open++]);
        }
        if (opened == slot_count) {
            phase = WARMING;
            rate_began = now;
            phase_ends = now + warmup;
            for (int i = 0; rate <= 0 && i < wanted[KEEPALIVE]; i++)
                if (slots[i].state == FREE)
                    finish_exchange(&slots[i]);
        } else if (phase_ends == 0) {
            phase_ends = now + RAMP_SECONDS * 1000000000ull;
        } else if (now > phase_ends) {
            fprintf(stderr, "load: %zu of %zu connections are open after %d s\n", opened, slot_count,
                    RAMP_SECONDS);
            exit(1);
        }
    }
    if (phase == WARMING && now >= phase_ends) {
        phase = WAITING;
        say("ready");
    }
    release_due();
    if (phase == MEASURING && now >= measure_ends) {
        phase = DRAINING;
        phase_ends = now + DRAIN * 1000000000ull;
        stop_streams();
    }
    if (phase == DRAINING && (all_served() || now >= phase_ends)) {
        phase = HOLDING;
        count_unfinished();
        say("done");
        print_results();
    }
    if (phase == WAITING || phase == HOLDING)
        phase_ends = now + 3600 * 1000000000ull;
    uint64_t next = phase == MEASURING ? measure_ends : phase_ends;
    if (rate > 0 && phase >= WARMING && phase <= MEASURING) {
        const uint64_t due = rate_began + (uint64_t)((double)released / rate * 1e9) + 1;
        next = due < next ? due : next;
    }
    return next > now ? next - now : 0;
}

static void read_options(int count, char **arguments, uint64_t *warmup)
{
    static const struct option options[] = {
        {"keepalive", 1, NULL, KEEPALIVE},
        {"churn", 1, NULL, CHURN},
        {"up", 1, NULL, UP},
        {"down", 1, NULL, DOWN},
        {"idle", 1, NULL, IDLE},
        {"rate", 1, NULL, 'r'},
        {"target", 1, NULL, 't'},
        {"warmup", 1, NULL, 'w'},
        {"seconds", 1, NULL, 's'},
        {NULL, 0, NULL, 0},
    };
    int option;

    while ((option = getopt_long(count, arguments, "", options, NULL)) != -1) {
        if (option >= 0 && option < KINDS)
            wanted[option] = atoi(optarg);
        else if (option == 'r')
            rate = atof(optarg);
        else if (option == 't')
            target = parse_endpoint(optarg);
        else if (option == 'w')
            *warmup = (uint64_t)(atof(optarg) * 1e9);
        else if (option == 's')
            measure_ends = (uint64_t)(atof(optarg) * 1e9);
        else
            exit(2);
    }
    for (int kind = 0; kind < KINDS; kind++)
        slot_count += wanted[kind] > 0 ? (size_t)wanted[kind] : 0;
    if (target.sin_port == 0 || slot_count == 0 || measure_ends == 0 ||
        (rate > 0 && wanted[KEEPALIVE] <= 0)) {
        fprintf(stderr, "usage: load --target ADDRESS:PORT --seconds S [--warmup S] [--rate R] "
                        "[--keepalive N] [--churn N] [--up N] [--down N] [--idle N]\n");
        exit(2);
    }
}

int main(int count, char **arguments)
{
    struct epoll_event events[EVENTS], event = {.events = EPOLLIN};
    uint64_t warmup = 0;
    size_t filled = 0;

    read_options(count, arguments, &warmup);
    raise_file_limit();
    signal(SIGPIPE, SIG_IGN);
    /* The default slack of 50 us would be part of every latency at a fixed rate. */
    prctl(PR_SET_TIMERSLACK, 1000ul, 0ul, 0ul, 0ul);
    memset(chunk, 'x', sizeof chunk);
    slots = calloc(slot_count, sizeof *slots);
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (slots == NULL || poller < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, STDIN_FILENO, &event) != 0)
        die("load");
    for (int kind = 0; kind < KINDS; kind++)
        for (int i = 0; i < wanted[kind]; i++)
            slots[filled++] = (struct slot){.fd = -1, .kind = (enum kind)kind};

    for (;;) {
        now = clock_now();
        const uint64_t wait = step(warmup);
        const struct timespec timeout = {(time_t)(wait / 1000000000u), (long)(wait % 1000000000u)};
        const int ready = epoll_pwait2(poller, events, EVENTS, &timeout, NULL);
        if (ready < 0 && errno != EINTR)
            die("epoll_wait");
        for (int i = 0; i < ready; i++) {
            now = clock_now();
            if (events[i].data.ptr == NULL)
                on_driver();
            else
                on_event(events[i].data.ptr, events[i].events);
        }
    }
}
