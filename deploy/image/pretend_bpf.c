/*
 * bpf(2) for a compiler that has no right to it: `LD_PRELOAD=pretend_bpf.so python -m
 * nodeseal.capture.bpf.compile`.
 *
 * bcc makes each map while it compiles, because the instructions name its descriptor, and asks for its shape.
 * So a build would need CAP_BPF, which builds of images do not have. The maps are used for nothing: here each
 * is an empty file, and its shape is remembered. Everything else is refused, as by a kernel without BPF. A
 * test compares what comes of it with what is compiled with the kernel's maps.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <linux/bpf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define FDS_MAX 1024

static struct bpf_map_info shapes[FDS_MAX];

static long map_create(const union bpf_attr *attr)
{
    int fd = memfd_create("map", MFD_CLOEXEC);
    if (fd < 0)
        return -1;
    if (fd >= FDS_MAX) {
        close(fd);
        errno = EMFILE;
        return -1;
    }
    shapes[fd] = (struct bpf_map_info){
        .type = attr->map_type,
        .key_size = attr->key_size,
        .value_size = attr->value_size,
        .max_entries = attr->max_entries,
        .map_flags = attr->map_flags,
    };
    memcpy(shapes[fd].name, attr->map_name, sizeof shapes[fd].name);
    return fd;
}

static long info(union bpf_attr *attr)
{
    unsigned int fd = attr->info.bpf_fd, size = attr->info.info_len;
    if (fd >= FDS_MAX || shapes[fd].type == BPF_MAP_TYPE_UNSPEC) {
        errno = EINVAL;
        return -1;
    }
    if (size > sizeof shapes[fd])
        size = sizeof shapes[fd];
    memcpy((void *)(unsigned long)attr->info.info, &shapes[fd], size);
    attr->info.info_len = size;
    return 0;
}

long syscall(long number, ...)
{
    static long (*next)(long, ...);
    long arguments[6];
    va_list list;
    va_start(list, number);
    for (int i = 0; i < 6; i++)
        arguments[i] = va_arg(list, long);
    va_end(list);
    if (number == SYS_bpf) {
        if (arguments[0] == BPF_MAP_CREATE)
            return map_create((const union bpf_attr *)arguments[1]);
        if (arguments[0] == BPF_OBJ_GET_INFO_BY_FD)
            return info((union bpf_attr *)arguments[1]);
        errno = EPERM;
        return -1;
    }
    if (next == NULL)
        next = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    return next(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]);
}
