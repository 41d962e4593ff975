/* cause.c: see cause.h. */
#include "base/cause.h"

#include <errno.h>

enum cause cause_of_errno(int error)
{
    switch (error) {
    case EHOSTUNREACH:
    case EHOSTDOWN:
        return CAUSE_NO_HOST;
    case ENETUNREACH:
    case ENETDOWN:
        return CAUSE_NO_NETWORK;
    case ETIMEDOUT:
        return CAUSE_SILENT;
    case EMFILE:
    case ENFILE:
    case ENOBUFS:
    case ENOMEM:
    case EAGAIN:
    case ENOSPC:        /* of epoll */
    case EADDRNOTAVAIL: /* all ports are in use */
        return CAUSE_PASSING;
    default:
        return CAUSE_REFUSED;
    }
}
