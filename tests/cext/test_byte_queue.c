/* byte_queue.c against a model: the stream of bytes `SEED`, of which [taken, put) is in the queue. */
#define _DEFAULT_SOURCE
#include "wire/byte_queue.h"

#include <sys/mman.h>

#include "check.h"
#include "noise.h"

enum { SEED = 7, PART_MAX = 3 * BLOCK_SIZE };

struct model {
    struct block_pool pool;
    struct byte_queue queue;
    uint64_t put;
    uint64_t taken;
};

static void model_put(struct model *model, size_t length)
{
    uint8_t *bytes = malloc(length);
    noise_fill(SEED, model->put, bytes, length);
    byte_queue_append(&model->queue, &model->pool, bytes, length);
    free(bytes);
    model->put += length;
    CHECK_EQUAL(model->queue.length, model->put - model->taken);
}

static void model_take(struct model *model, size_t length)
{
    byte_queue_consume(&model->queue, &model->pool, length);
    model->taken += length;
    CHECK_EQUAL(model->queue.length, model->put - model->taken);
}

/* The vectors hold exactly the queue's bytes, none of them empty. */
static void model_check(const struct model *model)
{
    enum { VECTORS = 64 };
    struct iovec vectors[VECTORS];
    int count = byte_queue_vectors(&model->queue, vectors, VECTORS);
    uint64_t at = model->taken;
    for (int i = 0; i < count; i++) {
        CHECK(vectors[i].iov_len > 0);
        CHECK(noise_matches(SEED, at, vectors[i].iov_base, vectors[i].iov_len));
        at += vectors[i].iov_len;
    }
    CHECK(count == VECTORS || at == model->put);
}

static void model_dispose(struct model *model)
{
    byte_queue_clear(&model->queue, &model->pool);
    CHECK_EQUAL(model->queue.length, 0);
    CHECK(model->queue.head == NULL);
    block_pool_dispose(&model->pool);
}

TEST(appended_bytes_come_out_in_order_across_block_borders)
{
    static const size_t LENGTHS[] = {
        1, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 2 * BLOCK_SIZE, 2 * BLOCK_SIZE + 1};
    for (size_t i = 0; i < 6; i++) {
        for (size_t j = 0; j < 6; j++) {
            struct model model = {0};
            model_put(&model, LENGTHS[i]);
            model_put(&model, LENGTHS[j]);
            model_check(&model);
            model_take(&model, LENGTHS[j]);
            model_check(&model);
            model_put(&model, LENGTHS[i]);
            model_check(&model);
            model_take(&model, 2 * LENGTHS[i]);
            CHECK(model.queue.head == NULL);
            model_dispose(&model);
        }
    }
}

TEST(random_use_agrees_with_the_model)
{
    struct noise noise = noise_new(3);
    struct model model = {0};
    for (int i = 0; i < 1500; i++) {
        size_t held = model.queue.length;
        if (held > 0 && (held > 20 * BLOCK_SIZE || noise_below(&noise, 2)))
            model_take(&model, noise_below(&noise, 8) == 0 ? held : 1 + noise_below(&noise, held));
        else
            model_put(&model,
                      noise_below(&noise, 4) == 0 ? noise_below(&noise, 64) : noise_below(&noise, PART_MAX));
        model_check(&model);
    }
    model_dispose(&model);
}

TEST(empty_append_takes_no_block)
{
    struct model model = {0};
    model_put(&model, 0);
    CHECK(model.queue.head == NULL);
    struct iovec vector;
    CHECK_EQUAL(byte_queue_vectors(&model.queue, &vector, 1), 0);
    model_dispose(&model);
}

/* How much memory of the system the pool's slabs have. */
static size_t resident(const struct model *model)
{
    size_t pages = 0;
    const struct link *roomy = &model->pool.roomy;
    for (const struct link *at = roomy->next; at != roomy; at = at->next) {
        unsigned char in[SLAB_SIZE / 4096];
        void *slab = (void *)((uintptr_t)at / SLAB_SIZE * SLAB_SIZE);
        CHECK_EQUAL(mincore(slab, SLAB_SIZE, in), 0);
        for (size_t i = 0; i < sizeof(in); i++)
            pages += in[i] & 1;
    }
    return pages * 4096;
}

TEST(an_emptied_queue_gives_its_blocks_back)
{
    struct model model = {0};
    model_put(&model, 3 * BLOCK_SIZE + 5);
    CHECK_EQUAL(model.pool.touched, 0);
    model_take(&model, BLOCK_SIZE);
    CHECK_EQUAL(model.pool.touched, 1);
    model_take(&model, 2 * BLOCK_SIZE + 5);
    CHECK_EQUAL(model.pool.touched, 4);
    model_put(&model, 2 * BLOCK_SIZE);
    CHECK_EQUAL(model.pool.touched, 2);
    CHECK_EQUAL(model.pool.slabs, 1);
    model_dispose(&model);
    CHECK_EQUAL(model.pool.slabs, 0);
}

TEST(memory_of_blocks_that_were_not_needed_is_given_back)
{
    enum { BLOCKS = 4 * SLAB_BLOCKS };
    struct model model = {0};
    model_put(&model, (size_t)BLOCKS * BLOCK_SIZE);
    CHECK_EQUAL(model.pool.slabs, 4);
    model_take(&model, (size_t)(BLOCKS - 1) * BLOCK_SIZE); /* of the last slab one stays in use */
    block_pool_trim(&model.pool, BLOCKS);                  /* not yet: all was needed a moment ago */
    CHECK_EQUAL(model.pool.touched, BLOCKS - 1);
    CHECK(resident(&model) >= (BLOCKS - 1) * BLOCK_SIZE);
    model_put(&model, 10 * BLOCK_SIZE); /* and ten of them are needed again */
    model_take(&model, 10 * BLOCK_SIZE);
    block_pool_trim(&model.pool, 100); /* no more than this at once */
    CHECK_EQUAL(model.pool.touched, BLOCKS - 1 - 100);
    while (model.pool.touched > 0)
        block_pool_trim(&model.pool, 100);
    CHECK(model.pool.slabs >= 1);
    CHECK(resident(&model) <= model.pool.slabs * BLOCK_SIZE + BLOCK_SIZE); /* headers, and the one */
    model_check(&model);
    model_put(&model, 30 * BLOCK_SIZE); /* and all can be used again */
    model_check(&model);
    model_take(&model, model.queue.length);
    model_dispose(&model);
}

TEST(a_block_is_as_large_as_what_the_queue_holds)
{
    struct account all = {0}, part = {.parent = &all};
    struct model model = {.queue.account = &part};
    model_put(&model, 1);
    CHECK_EQUAL(part.bytes, BLOCK_LEAST);
    for (int i = 0; i < 100000; i += 10) {
        model_put(&model, 10);
        CHECK(part.bytes <= 2 * model.queue.length + BLOCK_LEAST);
    }
    CHECK_EQUAL(all.bytes, part.bytes);
    model_check(&model);
    struct account other = {.parent = &all};
    uint64_t held = part.bytes;
    byte_queue_charge(&model.queue, &other);
    CHECK_EQUAL(part.bytes, 0);
    CHECK_EQUAL(other.bytes, held);
    CHECK_EQUAL(all.bytes, held);
    model_take(&model, model.queue.length);
    CHECK_EQUAL(all.bytes, 0);
    model_dispose(&model);
}

TEST(vectors_stop_at_their_capacity)
{
    struct model model = {0};
    struct iovec vectors[2];
    model_put(&model, 5 * BLOCK_SIZE);
    CHECK_EQUAL(byte_queue_vectors(&model.queue, vectors, 2), 2);
    CHECK_EQUAL(vectors[0].iov_len, BLOCK_SIZE);
    CHECK_EQUAL(vectors[1].iov_len, BLOCK_SIZE);
    CHECK_EQUAL(byte_queue_vectors(&model.queue, vectors, 0), 0);
    CHECK_EQUAL(model.queue.length, 5 * BLOCK_SIZE);
    model_dispose(&model);
}

TEST(queues_share_a_pool)
{
    struct model one = {0};
    struct byte_queue other = {0};
    model_put(&one, 100);
    byte_queue_append(&other, &one.pool, "other", 5);
    model_put(&one, BLOCK_SIZE);
    struct iovec vector;
    CHECK_EQUAL(byte_queue_vectors(&other, &vector, 1), 1);
    CHECK_EQUAL(vector.iov_len, 5);
    CHECK(memcmp(vector.iov_base, "other", 5) == 0);
    byte_queue_clear(&other, &one.pool);
    model_check(&one);
    model_dispose(&one);
}

CHECK_MAIN
