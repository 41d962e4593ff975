/* ring.c: see ring.h. The layout is the kernel's: kernel/bpf/ringbuf.c, Documentation/bpf/ringbuf.rst. */
#include "loop/ring.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
    MAP_TYPE_RINGBUF = 27, /* enum bpf_map_type */
    RECORD_HEADER = 8,     /* of which the first four bytes are the length and two flags */
    FDINFO_LINE = 128,
};

#define RECORD_BUSY 0x80000000u    /* being written */
#define RECORD_DISCARD 0x40000000u /* given up by its writer: passed over */

_Static_assert(offsetof(struct parked_record, packet) == PARKED_HEAD, "the head of struct ns_parked");
_Static_assert(offsetof(struct parked_record, flow) == PARKED_HEAD, "the head of struct ns_parked");
_Static_assert(sizeof(struct parked_flow) == 36, "struct ns_flow");
_Static_assert(sizeof(struct parked_record) == PARKED_HEAD + PARKED_PACKET_MAX, "struct ns_parked");

size_t ring_size(int fd)
{
    char text[FDINFO_LINE];
    snprintf(text, sizeof(text), "/proc/self/fdinfo/%d", fd);
    FILE *file = fopen(text, "re");
    if (file == NULL)
        return 0;
    unsigned type = 0, size = 0;
    while (fgets(text, sizeof(text), file) != NULL) {
        sscanf(text, "map_type: %u", &type);
        sscanf(text, "max_entries: %u", &size);
    }
    fclose(file);
    if (type == MAP_TYPE_RINGBUF)
        return size;
    errno = EINVAL;
    return 0;
}

int ring_open(struct ring *ring, int fd, size_t size)
{
    memset(ring, 0, sizeof(*ring));
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (size < page || (size & (size - 1)) != 0) {
        errno = EINVAL;
        return -1;
    }
    void *consumer = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (consumer == MAP_FAILED)
        return -1;
    void *producer = mmap(NULL, page + 2 * size, PROT_READ, MAP_SHARED, fd, (off_t)page);
    if (producer == MAP_FAILED) {
        int error = errno;
        munmap(consumer, page);
        errno = error;
        return -1;
    }
    ring->consumer = consumer;
    ring->producer = producer;
    ring->data = (const uint8_t *)producer + page;
    ring->size = size;
    ring->at = __atomic_load_n(ring->consumer, __ATOMIC_ACQUIRE);
    return 0;
}

void ring_close(struct ring *ring)
{
    if (ring->consumer == NULL)
        return;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    munmap(ring->consumer, page);
    munmap((void *)ring->producer, page + 2 * ring->size);
    memset(ring, 0, sizeof(*ring));
}

/* Whether so many bytes are a record of its kind. */
static int record_fits(const struct parked_record *record, uint32_t size)
{
    if (size < PARKED_HEAD)
        return 0;
    switch (record->kind) {
    case PARKED_SYN:
    case PARKED_ARRIVED:
        return record->length <= PARKED_PACKET_MAX && size >= PARKED_HEAD + record->length;
    case PARKED_GONE:
    case PARKED_TOLERANCE:
        return size >= PARKED_HEAD + sizeof(struct parked_flow);
    default:
        return 0;
    }
}

/* The header of the record at `ring->at`; RECORD_BUSY: there is none yet. */
static uint32_t ring_header(const struct ring *ring)
{
    /* Pairs with the kernel's release when it has reserved a record: its header is there, BUSY. */
    if (ring->at >= __atomic_load_n(ring->producer, __ATOMIC_SEQ_CST))
        return RECORD_BUSY;
    /* Pairs with the exchange by which the kernel commits: what it holds is there. */
    return __atomic_load_n((const uint32_t *)(const void *)(ring->data + (ring->at & (ring->size - 1))),
                           __ATOMIC_ACQUIRE);
}

const struct parked_record *ring_next(struct ring *ring)
{
    uint32_t header;
    while (((header = ring_header(ring)) & RECORD_BUSY) == 0) {
        const uint8_t *at = ring->data + (ring->at & (ring->size - 1));
        uint32_t size = header & ~RECORD_DISCARD;
        ring->at += RECORD_HEADER + (((uint64_t)size + 7) & ~(uint64_t)7);
        if (header & RECORD_DISCARD)
            continue;
        const struct parked_record *record = (const void *)(at + RECORD_HEADER);
        if (record_fits(record, size))
            return record;
        ring->broken++;
    }
    return NULL;
}

int ring_done(struct ring *ring)
{
    /* In the one order of all such accesses, before the look at what is written: of a record that is written
     * meanwhile either that look, or the kernel as it commits, sees. */
    if (__atomic_load_n(ring->consumer, __ATOMIC_RELAXED) != ring->at)
        __atomic_store_n(ring->consumer, ring->at, __ATOMIC_SEQ_CST);
    return (ring_header(ring) & RECORD_BUSY) == 0;
}

void parked_addresses(const struct parked_record *record, struct ns_address *source,
                      struct ns_address *destination)
{
    const struct parked_flow *flow = &record->flow;
    memset(source, 0, sizeof(*source));
    memset(destination, 0, sizeof(*destination));
    memcpy(source->ip, flow->source, sizeof(flow->source));
    memcpy(destination->ip, flow->destination, sizeof(flow->destination));
    source->port = ntohs(flow->source_port);
    destination->port = ntohs(flow->destination_port);
}
