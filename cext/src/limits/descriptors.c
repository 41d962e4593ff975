/* descriptors.c: see descriptors.h. */
#define _GNU_SOURCE
#include "limits/descriptors.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/clock.h"

enum {
    LOOK_EVERY_MS = 1000,
    TABLE_MAX = 65536, /* descriptors that the kernel's table has room for from the start */
};

static uint64_t get(const uint64_t *from)
{
    return __atomic_load_n(from, __ATOMIC_RELAXED);
}

static void set(uint64_t *to, uint64_t value)
{
    __atomic_store_n(to, value, __ATOMIC_RELAXED);
}

uint32_t descriptors_open(void)
{
    DIR *directory = opendir("/proc/self/fd");
    uint32_t count = 0;
    if (directory == NULL)
        return 0;
    while (readdir(directory) != NULL)
        count++;
    closedir(directory);
    return count;
}

/* The kernel's table of descriptors doubles when it is full, and a process of several threads then waits for
 * all CPUs (fs/file.c, expand_fdtable: synchronize_rcu), milliseconds in which a worker serves nobody. So it
 * is made large now: 8 bytes for each. Without it everything works as well. */
static void widen_table(struct descriptors *process)
{
    uint64_t most = descriptors_left(process, clock_us(CLOCK_MONOTONIC) / 1000);
    int last = (int)(most < TABLE_MAX ? most : TABLE_MAX) - 1;
    int any = open("/dev/null", O_RDONLY | O_CLOEXEC);
    int high = any >= 0 && last > 0 ? fcntl(any, F_DUPFD_CLOEXEC, last) : -1;
    if (high >= 0)
        close(high);
    if (any >= 0)
        close(any);
}

void descriptors_init(struct descriptors *process, uint64_t strangers)
{
    process->reserved = strangers;
    widen_table(process);
}

void descriptors_change(struct descriptors *process, int64_t change)
{
    __atomic_add_fetch(&process->used, (uint64_t)change, __ATOMIC_RELAXED);
}

void descriptors_strangers(struct descriptors *process, int64_t change)
{
    __atomic_add_fetch(&process->strangers, (uint64_t)change, __ATOMIC_RELAXED);
}

static void look_at_limit(struct descriptors *process, uint64_t now_ms)
{
    struct rlimit limit;
    if (get(&process->looked_ms) != 0 && now_ms - get(&process->looked_ms) < LOOK_EVERY_MS)
        return;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) /* fails for no process that asks about itself */
        set(&process->limit, limit.rlim_cur);
    set(&process->looked_ms, now_ms);
}

uint64_t descriptors_for_strangers(struct descriptors *process, uint64_t now_ms)
{
    look_at_limit(process, now_ms);
    uint64_t part = get(&process->limit) / DESCRIPTORS_STRANGE;
    return part < get(&process->reserved) ? part : get(&process->reserved);
}

uint64_t descriptors_left(struct descriptors *process, uint64_t now_ms)
{
    uint64_t used = get(&process->used) + DESCRIPTORS_RESERVED + descriptors_for_strangers(process, now_ms);
    uint64_t limit = get(&process->limit);
    return limit > used ? limit - used : 0;
}
