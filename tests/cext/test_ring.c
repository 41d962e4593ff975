/* ring.c: a ring in a file, written as the kernel does; tests/netns/test_ring.py has the kernel's own. */
#define _GNU_SOURCE
#include "loop/ring.h"

#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>

#include "check.h"
#include "noise.h"

#define BUSY 0x80000000u
#define DISCARD 0x40000000u

/* A multiple of every page size. */
enum { SIZE = 65536 };

/* The writer's side of a ring. */
struct writer {
    int fd;
    /* All of the file: two pages, then the data, twice. */
    uint8_t *file;
    size_t page;
    uint64_t end;
};

static uint64_t *writer_consumer(struct writer *writer)
{
    return (uint64_t *)(void *)writer->file;
}

static uint64_t *writer_producer(struct writer *writer)
{
    return (uint64_t *)(void *)(writer->file + writer->page);
}

static void writer_open(struct writer *writer, uint64_t position)
{
    writer->page = (size_t)sysconf(_SC_PAGESIZE);
    writer->fd = memfd_create("ring", MFD_CLOEXEC);
    CHECK(writer->fd >= 0);
    size_t length = 2 * writer->page + 2 * SIZE;
    CHECK_EQUAL(ftruncate(writer->fd, (off_t)length), 0);
    writer->file = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, writer->fd, 0);
    CHECK(writer->file != MAP_FAILED);
    writer->end = position;
    *writer_consumer(writer) = *writer_producer(writer) = position;
}

static void writer_close(struct writer *writer)
{
    munmap(writer->file, 2 * writer->page + 2 * SIZE);
    close(writer->fd);
}

/* In both copies of the data. */
static void writer_put(struct writer *writer, uint64_t position, const void *bytes, size_t length)
{
    uint8_t *data = writer->file + 2 * writer->page;
    for (size_t i = 0; i < length; i++) {
        size_t at = (position + i) % SIZE;
        data[at] = data[at + SIZE] = ((const uint8_t *)bytes)[i];
    }
}

/* The header of a record that has been reserved; atomically, in both copies. */
static void writer_mark(struct writer *writer, uint64_t position, uint32_t header)
{
    uint8_t *data = writer->file + 2 * writer->page + position % SIZE;
    __atomic_store_n((uint32_t *)(void *)(data + SIZE), header, __ATOMIC_SEQ_CST);
    __atomic_store_n((uint32_t *)(void *)data, header, __ATOMIC_SEQ_CST);
}

/* Room for a record, BUSY; where its header is. `UINT64_MAX`: there is none. */
static uint64_t writer_reserve(struct writer *writer, uint32_t size)
{
    uint64_t whole = 8 + (size + 7) / 8 * 8, position = writer->end;
    if (position + whole - __atomic_load_n(writer_consumer(writer), __ATOMIC_SEQ_CST) > SIZE)
        return UINT64_MAX;
    writer_mark(writer, position, size | BUSY);
    writer->end = position + whole;
    __atomic_store_n(writer_producer(writer), writer->end, __ATOMIC_SEQ_CST);
    return position;
}

static int writer_write(struct writer *writer, const void *bytes, uint32_t size, uint32_t flags)
{
    uint64_t position = writer_reserve(writer, size);
    if (position == UINT64_MAX)
        return -1;
    writer_put(writer, position + 8, bytes, size);
    writer_mark(writer, position, size | flags);
    return 0;
}

static struct parked_record record_of(uint32_t kind, uint32_t length, uint32_t value)
{
    struct parked_record record = {.kind = kind, .length = length, .value = value};
    noise_fill(value, 0, record.packet, length);
    return record;
}

static int writer_syn(struct writer *writer, uint32_t length, uint32_t value)
{
    struct parked_record record = record_of(PARKED_SYN, length, value);
    return writer_write(writer, &record, PARKED_HEAD + length, 0);
}

static void check_syn(const struct parked_record *record, uint32_t length, uint32_t value)
{
    CHECK(record != NULL);
    CHECK_EQUAL(record->kind, PARKED_SYN);
    CHECK_EQUAL(record->length, length);
    CHECK_EQUAL(record->value, value);
    CHECK(noise_matches(value, 0, record->packet, length));
}

static void ends_open(struct writer *writer, struct ring *ring)
{
    writer_open(writer, 0);
    CHECK_EQUAL(ring_open(ring, writer->fd, SIZE), 0);
}

static void ends_close(struct writer *writer, struct ring *ring)
{
    ring_close(ring);
    ring_close(ring);
    writer_close(writer);
}

TEST(records_come_in_order)
{
    struct writer writer;
    struct ring ring;
    ends_open(&writer, &ring);
    CHECK(ring_next(&ring) == NULL);
    for (uint32_t i = 0; i < 5; i++)
        CHECK_EQUAL(writer_syn(&writer, 60 + i, i), 0);
    for (uint32_t i = 0; i < 5; i++)
        check_syn(ring_next(&ring), 60 + i, i);
    CHECK(ring_next(&ring) == NULL);
    ends_close(&writer, &ring);
}

TEST(room_is_given_back_when_it_is_said)
{
    struct writer writer;
    struct ring ring;
    ends_open(&writer, &ring);
    CHECK_EQUAL(writer_syn(&writer, 60, 1), 0);
    CHECK_EQUAL(writer_syn(&writer, 60, 2), 0);
    check_syn(ring_next(&ring), 60, 1);
    CHECK_EQUAL(*writer_consumer(&writer), 0);
    CHECK_EQUAL(ring_done(&ring), 1);
    CHECK_EQUAL(*writer_consumer(&writer), 8 + 80);
    check_syn(ring_next(&ring), 60, 2);
    CHECK_EQUAL(ring_done(&ring), 0);
    CHECK_EQUAL(*writer_consumer(&writer), writer.end);
    ends_close(&writer, &ring);
}

TEST(the_next_reader_goes_on_with_what_is_not_done)
{
    struct writer writer;
    struct ring former, next;
    ends_open(&writer, &former);
    for (uint32_t i = 1; i <= 3; i++)
        CHECK_EQUAL(writer_syn(&writer, 60, i), 0);
    check_syn(ring_next(&former), 60, 1);
    ring_done(&former);
    check_syn(ring_next(&former), 60, 2);
    ring_close(&former);
    CHECK_EQUAL(ring_open(&next, writer.fd, SIZE), 0);
    check_syn(ring_next(&next), 60, 2);
    check_syn(ring_next(&next), 60, 3);
    CHECK(ring_next(&next) == NULL);
    ends_close(&writer, &next);
}

TEST(a_record_that_is_being_written_is_waited_for)
{
    struct writer writer;
    struct ring ring;
    ends_open(&writer, &ring);
    struct parked_record record = record_of(PARKED_SYN, 60, 7);
    uint64_t position = writer_reserve(&writer, PARKED_HEAD + 60);
    CHECK_EQUAL(writer_syn(&writer, 60, 8), 0);
    CHECK(ring_next(&ring) == NULL);
    CHECK_EQUAL(ring_done(&ring), 0);
    writer_put(&writer, position + 8, &record, PARKED_HEAD + 60);
    writer_mark(&writer, position, PARKED_HEAD + 60);
    check_syn(ring_next(&ring), 60, 7);
    check_syn(ring_next(&ring), 60, 8);
    ends_close(&writer, &ring);
}

TEST(a_record_that_was_given_up_is_passed_over)
{
    struct writer writer;
    struct ring ring;
    ends_open(&writer, &ring);
    struct parked_record record = record_of(PARKED_SYN, 60, 1);
    CHECK_EQUAL(writer_write(&writer, &record, PARKED_HEAD + 60, DISCARD), 0);
    CHECK_EQUAL(writer_syn(&writer, 60, 2), 0);
    CHECK_EQUAL(writer_write(&writer, &record, PARKED_HEAD + 60, DISCARD), 0);
    check_syn(ring_next(&ring), 60, 2);
    CHECK(ring_next(&ring) == NULL);
    ring_done(&ring);
    CHECK_EQUAL(*writer_consumer(&writer), writer.end);
    CHECK_EQUAL(ring.broken, 0);
    ends_close(&writer, &ring);
}

TEST(records_that_do_not_fit_their_kind_are_passed_over_and_counted)
{
    struct writer writer;
    struct ring ring;
    ends_open(&writer, &ring);
    struct parked_record record = record_of(PARKED_SYN, 60, 1);
    CHECK_EQUAL(writer_write(&writer, &record, 0, 0), 0);
    CHECK_EQUAL(writer_write(&writer, &record, PARKED_HEAD - 1, 0), 0);
    CHECK_EQUAL(writer_write(&writer, &record, PARKED_HEAD + 59, 0), 0);
    record.length = PARKED_PACKET_MAX + 1;
    uint8_t more[sizeof(record) + 8] = {0};
    memcpy(more, &record, sizeof(record));
    CHECK_EQUAL(writer_write(&writer, more, sizeof(more), 0), 0);
    record.length = UINT32_MAX - 10;
    CHECK_EQUAL(writer_write(&writer, &record, sizeof(record), 0), 0);
    record = record_of(PARKED_GONE, 0, 0);
    CHECK_EQUAL(writer_write(&writer, &record, PARKED_HEAD + 35, 0), 0);
    record.kind = PARKED_TOLERANCE;
    CHECK_EQUAL(writer_write(&writer, &record, PARKED_HEAD + 35, 0), 0);
    record.kind = 0;
    CHECK_EQUAL(writer_write(&writer, &record, sizeof(record), 0), 0);
    record.kind = PARKED_TOLERANCE + 1;
    CHECK_EQUAL(writer_write(&writer, &record, sizeof(record), 0), 0);
    CHECK_EQUAL(writer_syn(&writer, 60, 2), 0);
    check_syn(ring_next(&ring), 60, 2);
    CHECK(ring_next(&ring) == NULL);
    CHECK_EQUAL(ring.broken, 9);
    ends_close(&writer, &ring);
}

TEST(a_record_may_be_longer_than_its_kind_asks_for)
{
    struct writer writer;
    struct ring ring;
    ends_open(&writer, &ring);
    struct parked_record record = record_of(PARKED_SYN, 60, 1);
    CHECK_EQUAL(writer_write(&writer, &record, sizeof(record), 0), 0);
    record = record_of(PARKED_TOLERANCE, 0, 2500);
    memset(&record.flow, 0, sizeof(record.flow));
    static const uint8_t FROM[16] = {[10] = 0xff, 0xff, 10, 77, 0, 1}, TO[16] = {0xfd, [15] = 2};
    static const uint8_t PORTS[4] = {0x12, 0x34, 0x1f, 0x90};
    memcpy(record.flow.source, FROM, 16);
    memcpy(record.flow.destination, TO, 16);
    memcpy(&record.flow.source_port, PORTS, 4);
    CHECK_EQUAL(writer_write(&writer, &record, sizeof(record), 0), 0);
    check_syn(ring_next(&ring), 60, 1);
    const struct parked_record *tolerance = ring_next(&ring);
    CHECK(tolerance != NULL && tolerance->kind == PARKED_TOLERANCE);
    CHECK_EQUAL(tolerance->value, 2500);
    struct ns_address source, destination;
    parked_addresses(tolerance, &source, &destination);
    CHECK(memcmp(source.ip, FROM, 16) == 0 && memcmp(destination.ip, TO, 16) == 0);
    CHECK_EQUAL(source.port, 0x1234);
    CHECK_EQUAL(destination.port, 8080);
    ends_close(&writer, &ring);
}

TEST(records_run_over_the_end)
{
    struct writer writer;
    struct ring ring;
    /* Positions far on, as after years. */
    writer_open(&writer, (uint64_t)SIZE << 40);
    CHECK_EQUAL(ring_open(&ring, writer.fd, SIZE), 0);
    struct noise noise = noise_new(5);
    uint32_t written = 0, read = 0;
    while (read < 60000) {
        for (size_t burst = noise_below(&noise, 800); burst > 0; burst--)
            if (writer_syn(&writer, 40 + written % 81, written) == 0)
                written++;
        for (size_t burst = noise_below(&noise, 800); burst > 0 && read < written; burst--, read++)
            check_syn(ring_next(&ring), 40 + read % 81, read);
        if (read == written)
            CHECK(ring_next(&ring) == NULL);
        ring_done(&ring);
    }
    CHECK_EQUAL(ring.broken, 0);
    ends_close(&writer, &ring);
}

TEST(a_full_ring_is_read_to_its_end)
{
    struct writer writer;
    struct ring ring;
    ends_open(&writer, &ring);
    for (int round = 0; round < 3; round++) {
        uint32_t written = 0;
        while (writer_syn(&writer, 120, written) == 0)
            written++;
        CHECK_EQUAL(written, SIZE / 144);
        for (uint32_t i = 0; i < written; i++)
            check_syn(ring_next(&ring), 120, i);
        CHECK(ring_next(&ring) == NULL);
        ring_done(&ring);
    }
    ends_close(&writer, &ring);
}

enum { RACED = 200000 };

static void *write_all(void *argument)
{
    for (uint32_t i = 0; i < RACED; i++)
        while (writer_syn(argument, 40 + i % 81, i) != 0)
            ;
    return NULL;
}

TEST(a_writer_in_another_thread_is_read_without_a_gap)
{
    struct writer writer;
    struct ring ring;
    ends_open(&writer, &ring);
    pthread_t thread;
    CHECK_EQUAL(pthread_create(&thread, NULL, write_all, &writer), 0);
    for (uint32_t i = 0; i < RACED; i++) {
        const struct parked_record *record;
        while ((record = ring_next(&ring)) == NULL)
            ring_done(&ring);
        check_syn(record, 40 + i % 81, i);
    }
    pthread_join(thread, NULL);
    ends_close(&writer, &ring);
}

TEST(what_is_no_ring_is_not_opened)
{
    struct writer writer;
    struct ring ring;
    writer_open(&writer, 0);
    CHECK_EQUAL(ring_size(writer.fd), 0);
    CHECK_EQUAL(errno, EINVAL);
    CHECK_EQUAL(ring_open(&ring, writer.fd, 0), -1);
    CHECK_EQUAL(ring_open(&ring, writer.fd, SIZE + 8), -1);
    CHECK_EQUAL(ring_open(&ring, writer.fd, 64), -1);
    int pipes[2];
    CHECK_EQUAL(pipe(pipes), 0);
    CHECK_EQUAL(ring_size(pipes[0]), 0);
    CHECK_EQUAL(ring_open(&ring, pipes[0], SIZE), -1);
    ring_close(&ring);
    close(pipes[0]);
    close(pipes[1]);
    CHECK_EQUAL(ring_size(pipes[0]), 0);
    writer_close(&writer);
}

CHECK_MAIN
