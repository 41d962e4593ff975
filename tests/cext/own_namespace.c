/* own_namespace.c: see own_namespace.h. */
#define _GNU_SOURCE
#include "own_namespace.h"

#include <errno.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "check.h"

void own_namespace(void)
{
    struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    if (unshare(CLONE_NEWNET) != 0)
        CHECK_CASE(unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0, "%s", strerror(errno));
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0);
    CHECK_CASE(ioctl(fd, SIOCSIFFLAGS, &lo) == 0, "%s", strerror(errno));
    close(fd);
}
