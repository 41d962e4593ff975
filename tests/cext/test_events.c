/* events.c: what is told is told once and in order, what finds no room is counted, and no side waits. */
#include "loop/events.h"

#include <pthread.h>

#include "check.h"

static int tell(struct events *events, uint64_t id)
{
    struct ns_event *event = events_room(events, NS_EVENT_OPENED);
    if (event == NULL)
        return 0;
    event->connection.id = id;
    events_put(events);
    return 1;
}

TEST(nothing_is_kept_while_nobody_listens)
{
    struct events events;
    struct ns_event out[4];
    uint64_t lost = 0;
    events_init(&events);
    CHECK_EQUAL(tell(&events, 1), 0);
    CHECK(events.slots == NULL);
    CHECK_EQUAL(events_take(&events, 0, out, 4, &lost), 0);
    CHECK_EQUAL(lost, 0);
    events_dispose(&events);
}

TEST(events_come_in_their_order_and_once)
{
    struct events events;
    struct ns_event out[4];
    uint64_t lost = 0;
    events_init(&events);
    events_listen(&events, 1);
    for (uint64_t id = 1; id <= 3; id++)
        CHECK_EQUAL(tell(&events, id), 1);
    CHECK_EQUAL(events_take(&events, 0, out, 2, &lost), 2);
    CHECK_EQUAL(out[0].connection.id, 1);
    CHECK_EQUAL(out[1].connection.id, 2);
    CHECK_EQUAL(out[1].kind, NS_EVENT_OPENED);
    CHECK_EQUAL(events_take(&events, 0, out, 4, &lost), 1);
    CHECK_EQUAL(out[0].connection.id, 3);
    CHECK_EQUAL(events_take(&events, 0, out, 4, &lost), 0);
    CHECK_EQUAL(lost, 0);
    events_dispose(&events);
}

TEST(a_slow_listener_loses_the_newest_and_is_told_how_many)
{
    struct events events;
    struct ns_event out;
    uint64_t lost = 0;
    events_init(&events);
    events_listen(&events, 1);
    for (uint64_t id = 0; id < EVENTS_KEPT + 7; id++)
        CHECK_EQUAL(tell(&events, id), id < EVENTS_KEPT);
    for (uint64_t id = 0; id < EVENTS_KEPT; id++) {
        CHECK_EQUAL(events_take(&events, 0, &out, 1, &lost), 1);
        CHECK_EQUAL(out.connection.id, id);
    }
    CHECK_EQUAL(lost, 7);
    CHECK_EQUAL(tell(&events, 1000), 1);
    CHECK_EQUAL(events_take(&events, 0, &out, 1, &lost), 1);
    CHECK_EQUAL(out.connection.id, 1000);
    CHECK_EQUAL(lost, 7);
    events_dispose(&events);
}

TEST(the_next_listener_gets_nothing_of_before)
{
    struct events events;
    struct ns_event out;
    uint64_t lost = 0;
    events_init(&events);
    events_listen(&events, 1);
    for (uint64_t id = 0; id < EVENTS_KEPT + 7; id++)
        tell(&events, id);
    events_listen(&events, 0);
    CHECK_EQUAL(tell(&events, 1), 0);
    events_listen(&events, 1);
    CHECK_EQUAL(events_take(&events, 0, &out, 1, &lost), 0);
    CHECK_EQUAL(lost, 0);
    CHECK_EQUAL(tell(&events, 2), 1);
    CHECK_EQUAL(events_take(&events, 0, &out, 1, &lost), 1);
    CHECK_EQUAL(out.connection.id, 2);
    events_dispose(&events);
}

enum { TOLD = 20000 };

static void *tell_all(void *argument)
{
    for (uint64_t id = 1; id <= TOLD; id++)
        tell(argument, id);
    return NULL;
}

TEST(a_reader_beside_the_writer_gets_whole_events_in_order)
{
    struct events events;
    struct ns_event out[16];
    uint64_t lost = 0, got = 0, last = 0;
    pthread_t writer;
    events_init(&events);
    events_listen(&events, 1);
    CHECK_EQUAL(pthread_create(&writer, NULL, tell_all, &events), 0);
    while (got + lost < TOLD) {
        size_t count = events_take(&events, 0, out, 16, &lost);
        for (size_t i = 0; i < count; i++) {
            CHECK(out[i].connection.id > last);
            last = out[i].connection.id;
        }
        got += count;
    }
    CHECK_EQUAL(pthread_join(writer, NULL), 0);
    CHECK_EQUAL(got + lost, TOLD);
    events_dispose(&events);
}

CHECK_MAIN
