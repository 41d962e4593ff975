/*
 * identity.c: calls about certificates (nodeseal_core.h): what workloads present, whom they trust, and what
 * is revoked.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <openssl/crypto.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/wipe.h"
#include "core/core.h"
#include "wire/key_heap.h"
#include "wire/pem.h"

int core_protect_keys(void)
{
    return key_heap_begin(KEY_HEAP_SIZE);
}

int core_trust(struct core *core, const struct ns_bundle *bundles, size_t count, char *error,
               size_t error_size)
{
    NS_CHECK(core, CORE_MAGIC);
    struct bundles *made[WORKERS_MAX];
    for (uint32_t i = 0; i < core->worker_count; i++) {
        made[i] = bundles_new(core->workers[i].libctx, bundles, count, error, error_size);
        if (made[i] == NULL) {
            while (i-- > 0)
                bundles_release(made[i]);
            return -1;
        }
    }
    pthread_mutex_lock(&core->mutex);
    for (uint32_t i = 0; i < core->worker_count; i++) {
        struct command *command = command_new(COMMAND_TRUST, 0);
        command->bundles = made[i];
        mailbox_post(&core->workers[i].mailbox, command);
    }
    pthread_mutex_unlock(&core->mutex);
    return 0;
}

size_t core_revoke(struct core *core, const uint8_t *revoked, size_t revoked_count, const uint8_t *restored,
                   size_t restored_count, int whole)
{
    NS_CHECK(core, CORE_MAGIC);
    size_t count = revoked_change(&core->revoked, revoked, revoked_count, restored, restored_count, whole);
    pthread_mutex_lock(&core->mutex);
    for (uint32_t i = 0; i < core->worker_count; i++)
        mailbox_post(&core->workers[i].mailbox, command_new(COMMAND_REVOKED, 0));
    pthread_mutex_unlock(&core->mutex);
    return count;
}

/* The file from its beginning, at most `capacity` bytes of it. 0, or -1 with errno. */
static int key_read(int fd, uint8_t *out, size_t capacity, size_t *length)
{
    ssize_t got;
    *length = 0;
    do {
        got = pread(fd, out + *length, capacity - *length, (off_t)*length);
        if (got > 0)
            *length += (size_t)got;
    } while ((got > 0 && *length < capacity) || (got < 0 && errno == EINTR));
    return got < 0 ? -1 : 0;
}

static int give_credentials(struct core *core, uint64_t workload, const char *chain_pem, struct tls_key key,
                            char *error, size_t error_size)
{
    struct tls_credentials made[WORKERS_MAX];
    /* Made here, each in its worker's library context, so that no worker spends time on parsing. */
    for (uint32_t i = 0; i < core->worker_count; i++) {
        struct worker *worker = &core->workers[i];
        int result =
            tls_credentials_init(&made[i], worker->libctx, &worker->trust, chain_pem, key, error, error_size);
        wipe_behind(); /* here: `made` is larger than what a caller's wiping reaches */
        if (result != 0) {
            while (i-- > 0)
                tls_credentials_dispose(&made[i]);
            return -1;
        }
    }
    pthread_mutex_lock(&core->mutex);
    int known = registered_find(core, workload) != NULL;
    for (uint32_t i = 0; i < core->worker_count; i++) {
        if (!known) {
            tls_credentials_dispose(&made[i]);
            continue;
        }
        struct command *command = command_new(COMMAND_CREDENTIALS, workload);
        command->credentials = made[i];
        mailbox_post(&core->workers[i].mailbox, command);
    }
    pthread_mutex_unlock(&core->mutex);
    return known ? 0 : core_fail(error, error_size, "no workload has this key", 0);
}

int core_workload_credentials(struct core *core, uint64_t workload, const char *chain_pem,
                              const char *key_pem, char *error, size_t error_size)
{
    NS_CHECK(core, CORE_MAGIC);
    const struct tls_key key = {(const uint8_t *)key_pem, strlen(key_pem)};
    return give_credentials(core, workload, chain_pem, key, error, error_size);
}

int core_workload_credentials_from(struct core *core, uint64_t workload, const char *chain_pem, int key_fd,
                                   char *error, size_t error_size)
{
    NS_CHECK(core, CORE_MAGIC);
    uint8_t room[PEM_KEY_MOST + 1] = {0};
    struct tls_key key = {room, 0};
    (void)mlock(room, sizeof(room)); /* where it cannot be, it is there for a moment only all the same */
    if (key_read(key_fd, room, sizeof(room), &key.length) != 0)
        core_fail(error, error_size, "the private key cannot be read", errno);
    else if (key.length > PEM_KEY_MOST)
        core_fail(error, error_size, "the private key is too long", 0);
    else if (give_credentials(core, workload, chain_pem, key, error, error_size) == 0)
        key.bytes = NULL;
    OPENSSL_cleanse(room, sizeof(room));
    wipe_behind(); /* what the last copies have left in registers */
    (void)munlock(room, sizeof(room));
    return key.bytes == NULL ? 0 : -1;
}
