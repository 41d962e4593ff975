/* patience.c: whose streams end when a peer is silent, and when. The peer's kernel is this test's. */
#include "flow/patience.h"

#include <linux/sockios.h>
#include <sys/ioctl.h>

#include "check.h"
#include "wire/h2.h"

enum { STREAMS = 4, NEVER = 0 };

static int asked;                  /* by PING, in all */
static int on_its_way;             /* bytes that the kernel has not acknowledged yet */
static uint64_t unacknowledged_ms; /* for how long the kernel has said nothing */

void __wrap_h2_ping(struct h2 *h2);
void __real_h2_ping(struct h2 *h2);
uint64_t __wrap_socket_unacknowledged_ms(int fd);
int __wrap_ioctl(int fd, unsigned long request, void *argument);

void __wrap_h2_ping(struct h2 *h2)
{
    asked++;
    __real_h2_ping(h2);
}

uint64_t __wrap_socket_unacknowledged_ms(int fd)
{
    (void)fd;
    return unacknowledged_ms;
}

int __wrap_ioctl(int fd, unsigned long request, void *argument)
{
    (void)fd;
    CHECK_EQUAL(request, SIOCOUTQ);
    *(int *)argument = on_its_way;
    return 0;
}

/* A tunnel with streams, and what became of them. */
struct scene {
    struct worker worker;
    struct workload workload;
    struct descriptors descriptors;
    struct notices notices;
    struct core_options options;
    struct tunnel tunnel;
    struct stream streams[STREAMS];
    struct byte_queue unread[STREAMS];
    size_t count;
};

static int is_broken[STREAMS], is_refused[STREAMS];
static struct scene *scene;

static size_t number_of(const struct stream *stream)
{
    return (size_t)(stream - scene->streams);
}

static void on_broken(struct stream *stream, const char *reason)
{
    CHECK_TEXT(reason, PEER_SILENT);
    is_broken[number_of(stream)]++;
    stream_leave(stream);
}

static void on_refused(struct stream *stream, int again, enum cause cause, const char *reason)
{
    CHECK(again);
    CHECK_EQUAL(cause, CAUSE_SILENT);
    CHECK_TEXT(reason, PEER_SILENT);
    is_refused[number_of(stream)]++;
    stream_leave(stream);
}

static const struct stream_events EVENTS = {.broken = on_broken, .refused = on_refused};

static void begin(void)
{
    scene = calloc(1, sizeof(*scene));
    CHECK(scene != NULL);
    struct worker *worker = &scene->worker;
    struct tunnel *tunnel = &scene->tunnel;
    worker->options = &scene->options;
    worker->stream_events = &EVENTS;
    worker->now_ms = 1000000;
    link_init(&worker->hasty.tunnels);
    for (int i = 0; i < HOLDER_BUCKETS; i++)
        link_init(&worker->holders[i]);
    turns_init(&worker->turns);
    budget_init(&scene->workload.budget);
    link_init(&scene->workload.preconnects);
    scene->workload.quota = quota_new(1, &scene->descriptors, &scene->notices);
    tunnel->magic = TUNNEL_MAGIC;
    tunnel->state = TUNNEL_OPEN;
    tunnel->worker = worker;
    tunnel->workload = &scene->workload;
    tunnel->poll.fd = -1;
    tunnel->patience_ms = PATIENCE_MS;
    tunnel->heard_ms = worker->now_ms;
    link_init(&tunnel->dirty_link);
    link_init(&tunnel->hasty_link);
    link_init(&tunnel->pool_link);
    link_init(&tunnel->streams);
    tunnel->role = TLS_SERVER; /* the pool is not its matter */
    tunnel->h2 = h2_new(0, &STREAM_H2_EVENTS, tunnel);
    asked = on_its_way = 0;
    unacknowledged_ms = NEVER;
    memset(is_broken, 0, sizeof(is_broken));
    memset(is_refused, 0, sizeof(is_refused));
}

static void end(void)
{
    for (size_t i = 0; i < scene->count; i++)
        stream_leave(&scene->streams[i]);
    budget_dispose(&scene->worker.turns, &scene->workload.budget);
    h2_free(scene->tunnel.h2);
    quota_release(scene->workload.quota);
    free(scene);
}

/* Whose application bears that. */
static size_t stream_that_bears(uint32_t patience_ms)
{
    size_t number = scene->count++;
    struct stream *stream = &scene->streams[number];
    static const struct ns_address ADDRESS = {.ip = {[10] = 0xff, 0xff, 10, 0, 0, 1}, .port = 80};
    CHECK(number < STREAMS);
    stream_init(stream, &scene->unread[number]);
    stream->state = STREAM_OPEN;
    stream->id = h2_connect(scene->tunnel.h2, &ADDRESS, &ADDRESS, stream);
    CHECK(stream->id > 0);
    stream->tunnel = &scene->tunnel;
    link_append(&scene->tunnel.streams, &stream->link);
    stream_bear(stream, patience_ms);
    return number;
}

static int is_left(size_t number)
{
    return !is_broken[number] && !is_refused[number];
}

static void heard(void)
{
    scene->tunnel.heard_ms = scene->worker.now_ms;
    scene->tunnel.ping_ms = 0;
}

enum kernel { SILENT, ACKNOWLEDGES };

/* So much time goes by without a word of the peer, with a look each tenth of a second. 1: the tunnel is to
 * end, and all of it has gone by. */
static int silence(uint64_t ms, enum kernel kernel)
{
    int is_over = 0;
    for (uint64_t end_ms = scene->worker.now_ms + ms; scene->worker.now_ms < end_ms && !is_over;) {
        scene->worker.now_ms += 100;
        unacknowledged_ms = kernel == SILENT ? scene->worker.now_ms - scene->tunnel.heard_ms : NEVER;
        is_over = patience_look(&scene->tunnel);
        CHECK(!is_over || scene->worker.now_ms == end_ms);
    }
    return is_over;
}

TEST(a_peer_is_asked_after_ten_seconds_and_gone_after_thirty)
{
    begin();
    size_t stream = stream_that_bears(0);
    CHECK(!silence(10000, SILENT));
    CHECK_EQUAL(asked, 0);
    CHECK(!silence(20100, SILENT));
    CHECK_EQUAL(asked, 1);
    CHECK(silence(100, SILENT));
    CHECK(is_left(stream)); /* it goes with its tunnel */
    end();
}

TEST(a_peer_that_answers_is_asked_again)
{
    begin();
    (void)stream_that_bears(0);
    for (int i = 0; i < 5; i++) {
        CHECK(!silence(10100, SILENT));
        CHECK_EQUAL(asked, i + 1);
        heard();
    }
    end();
}

TEST(a_stream_that_bears_less_ends_alone)
{
    begin();
    size_t other = stream_that_bears(0);
    size_t hasty = stream_that_bears(3000);
    CHECK(!silence(1000, SILENT));
    CHECK_EQUAL(asked, 0);
    CHECK(!silence(2100, SILENT));
    CHECK_EQUAL(asked, 1);
    CHECK(is_left(hasty));
    CHECK(!silence(100, SILENT));
    CHECK(!is_left(hasty) && is_left(other));
    CHECK(!scene->tunnel.retired);
    CHECK_EQUAL(scene->tunnel.patience_ms, PATIENCE_MS);
    end();
}

TEST(a_peer_whose_kernel_acknowledges_is_busy)
{
    begin();
    size_t other = stream_that_bears(150000);
    size_t hasty = stream_that_bears(3000);
    CHECK(!silence(30000, ACKNOWLEDGES));
    CHECK(is_left(hasty) && is_left(other));
    CHECK(asked > 1); /* for the kernel to have something to acknowledge */
    /* But not for ever. */
    CHECK(!silence(100, ACKNOWLEDGES));
    CHECK(!is_left(hasty) && is_left(other));
    CHECK(!silence(119900, ACKNOWLEDGES));
    CHECK(is_left(other));
    CHECK(silence(100, ACKNOWLEDGES));
    end();
}

TEST(a_kernel_is_not_asked_again_before_it_has_acknowledged)
{
    begin();
    size_t hasty = stream_that_bears(3000);
    on_its_way = 1;
    CHECK(!silence(10000, ACKNOWLEDGES));
    CHECK_EQUAL(asked, 1);
    CHECK(is_left(hasty));
    end();
}

TEST(a_stream_that_bears_more_outlives_the_others)
{
    begin();
    size_t other = stream_that_bears(0);
    size_t patient = stream_that_bears(90000);
    CHECK(!silence(30100, SILENT));
    CHECK(is_left(other));
    CHECK(!silence(100, SILENT));
    CHECK(!is_left(other) && is_left(patient));
    CHECK(scene->tunnel.retired); /* new ones are to find another */
    CHECK(!silence(59800, SILENT));
    CHECK(silence(100, SILENT));
    CHECK(is_left(patient));
    end();
}

TEST(a_peer_that_comes_back_keeps_the_stream_that_bore_it)
{
    begin();
    size_t patient = stream_that_bears(90000);
    CHECK(!silence(60000, SILENT));
    heard();
    CHECK(!silence(60000, SILENT));
    heard();
    CHECK(is_left(patient));
    end();
}

TEST(a_stream_that_was_not_answered_is_tried_elsewhere)
{
    begin();
    size_t asking = stream_that_bears(3000);
    scene->streams[asking].state = STREAM_ASKED;
    CHECK(!silence(3200, SILENT));
    CHECK_EQUAL(is_refused[asking], 1);
    end();
}

TEST(what_an_application_bears_may_change)
{
    begin();
    size_t stream = stream_that_bears(2000);
    stream_bear(&scene->streams[stream], 0);
    CHECK(!silence(30000, SILENT));
    CHECK(is_left(stream));
    heard();
    CHECK(!silence(5000, SILENT));
    stream_bear(&scene->streams[stream], 2000);
    int before = asked;
    CHECK(!silence(100, SILENT));
    CHECK_EQUAL(asked, before + 1);
    CHECK(!silence(1300, SILENT)); /* it is asked first, however long it was silent */
    CHECK(is_left(stream));
    CHECK(!silence(200, SILENT));
    CHECK(!is_left(stream));
    end();
}

TEST(less_than_a_second_counts_as_one)
{
    begin();
    size_t stream = stream_that_bears(1);
    CHECK(!silence(1000, SILENT));
    CHECK(is_left(stream));
    CHECK(!silence(300, SILENT));
    CHECK(!is_left(stream));
    end();
}

TEST(a_node_may_not_wait_for_what_is_not_acknowledged)
{
    begin();
    scene->options.unacknowledged_ms = 5000;
    size_t other = stream_that_bears(0);
    size_t patient = stream_that_bears(90000);
    CHECK(!silence(30000, ACKNOWLEDGES));
    heard();
    CHECK(!silence(5000, SILENT));
    CHECK(is_left(other));
    CHECK(!silence(100, SILENT));
    CHECK(!is_left(other) && is_left(patient));
    CHECK(scene->tunnel.retired);
    end();
}

TEST(a_tunnel_ends_early_where_nobody_bears_more)
{
    begin();
    scene->options.unacknowledged_ms = 5000;
    (void)stream_that_bears(0);
    CHECK(!silence(5000, SILENT));
    CHECK(silence(100, SILENT));
    end();
}

TEST(hasty_tunnels_are_looked_at_in_time)
{
    begin();
    struct worker *worker = &scene->worker;
    (void)stream_that_bears(0);
    CHECK(link_empty(&worker->hasty.tunnels));
    size_t hasty = stream_that_bears(4000);
    CHECK(!link_empty(&worker->hasty.tunnels));
    uint64_t begun_ms = worker->now_ms;
    for (int looks = 0; is_left(hasty); looks++) {
        unacknowledged_ms = worker->now_ms - begun_ms;
        patience_look_at_hasty(worker);
        CHECK(worker->hasty.due_ms > worker->now_ms && looks < 12);
        worker->now_ms = worker->hasty.due_ms;
    }
    CHECK(worker->now_ms - begun_ms > 4000 && worker->now_ms - begun_ms < 6000);
    CHECK(link_empty(&worker->hasty.tunnels));
    end();
}

CHECK_MAIN
