/* occupant.c: see occupant.h. Netlink answers within the call that asks, so nothing waits here. */
#include "loop/occupant.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>

#include "wire/names.h"

struct request {
    struct nlmsghdr header;
    struct inet_diag_req_v2 body;
};

/* Room for one answer; attributes that follow are of no interest, and may be cut off. */
union answer {
    struct nlmsghdr header;
    char bytes[1024];
};

static void request_init(struct request *request, uint16_t type, uint16_t flags, uint8_t family)
{
    memset(request, 0, sizeof(*request));
    request->header.nlmsg_len = sizeof(*request);
    request->header.nlmsg_type = type;
    request->header.nlmsg_flags = (uint16_t)(NLM_F_REQUEST | flags);
    request->body.sdiag_family = family;
    request->body.sdiag_protocol = IPPROTO_TCP;
}

/* 0, or -1: no answer could be had. */
static int ask(int fd, struct request *request, union answer *answer)
{
    static _Thread_local uint32_t sequence;
    request->header.nlmsg_seq = ++sequence;
    if (send(fd, request, sizeof(*request), MSG_DONTWAIT) != (ssize_t)sizeof(*request))
        return -1;
    for (;;) {
        ssize_t got = recv(fd, answer, sizeof(*answer), MSG_DONTWAIT);
        if (got < (ssize_t)sizeof(answer->header))
            return -1;
        if (answer->header.nlmsg_seq == sequence && answer->header.nlmsg_len >= sizeof(answer->header))
            return 0;
    }
}

/* The number of an answer that is an error, 0 for none at all; -1: it is something else. */
static int error_of(const union answer *answer)
{
    if ((answer->header.nlmsg_type != NLMSG_ERROR && answer->header.nlmsg_type != NLMSG_DONE) ||
        answer->header.nlmsg_len < NLMSG_LENGTH(sizeof(int)))
        return -1;
    int number;
    memcpy(&number, NLMSG_DATA(&answer->header), sizeof(number));
    return -number;
}

/* A kernel that has no tcp_diag says ENOENT, as it does of a pair that nobody has. It says so of all sockets
 * in no state, too, where others answer with an empty list. */
int occupant_prepare(int fd)
{
    const struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
    struct request request;
    union answer answer;
    request_init(&request, SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, AF_INET);
    if (connect(fd, (const struct sockaddr *)&kernel, sizeof(kernel)) != 0)
        return -1;
    if (ask(fd, &request, &answer) != 0 || error_of(&answer) != 0) {
        errno = EPROTONOSUPPORT;
        return -1;
    }
    return 0;
}

static void end_set(const struct ns_address *address, __be16 *port, __be32 ip[4])
{
    *port = htons(address->port);
    if (address_is_v4(address))
        memcpy(ip, address->ip + 12, 4);
    else
        memcpy(ip, address->ip, 16);
}

static int occupant_end(int fd, const struct request *found, const struct inet_diag_sockid *id)
{
    struct request request;
    union answer answer;
    request_init(&request, SOCK_DESTROY, NLM_F_ACK, found->body.sdiag_family);
    request.body.id = *id; /* its cookie as well: no other socket is meant */
    if (ask(fd, &request, &answer) != 0)
        return 0;
    int number = error_of(&answer);
    return number == 0 || number == ENOENT;
}

enum occupancy occupant_find(int fd, const struct ns_address *own, const struct ns_address *far)
{
    struct request request;
    union answer answer;
    struct inet_diag_msg found;
    request_init(&request, SOCK_DIAG_BY_FAMILY, 0, address_is_v4(own) ? AF_INET : AF_INET6);
    struct inet_diag_sockid *id = &request.body.id;
    end_set(own, &id->idiag_sport, id->idiag_src);
    end_set(far, &id->idiag_dport, id->idiag_dst);
    id->idiag_cookie[0] = id->idiag_cookie[1] = INET_DIAG_NOCOOKIE;
    if (fd < 0 || ask(fd, &request, &answer) != 0)
        return OCCUPANT_UNKNOWN;
    int number = error_of(&answer);
    if (number == ENOENT)
        return OCCUPANT_NONE;
    if (number >= 0 || answer.header.nlmsg_type != SOCK_DIAG_BY_FAMILY ||
        answer.header.nlmsg_len < NLMSG_LENGTH(sizeof(found)))
        return OCCUPANT_UNKNOWN;
    memcpy(&found, NLMSG_DATA(&answer.header), sizeof(found));
    if (found.idiag_state == TCP_LISTEN ||
        (found.idiag_state == TCP_TIME_WAIT && occupant_end(fd, &request, &found.id)))
        return OCCUPANT_NONE;
    return OCCUPANT_SOME;
}
