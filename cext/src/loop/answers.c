/* answers.c: see answers.h. */
#define _GNU_SOURCE
#include "loop/answers.h"

#include <errno.h>
#include <string.h>

#include "loop/sockets.h"

void answers_init(struct answers *answers)
{
    link_init(&answers->released);
}

void answers_dispose(struct answers *answers)
{
    free(answers->waiting);
    answers->waiting = NULL;
}

struct answer *answers_room(struct answers *answers, int fd, const struct ns_address *to, uint32_t mark)
{
    if (answers->waiting == NULL)
        answers->waiting = ns_alloc(ANSWERS_AT_ONCE * sizeof(answers->waiting[0]));
    if (answers->count == ANSWERS_AT_ONCE)
        answers_send(answers);
    struct answer *answer = &answers->waiting[answers->count++];
    struct ns_address where = *to;
    where.port = 0; /* of a raw socket it would be a protocol (raw(7), ipv6(7)) */
    answer->fd = fd;
    answer->mark = mark;
    answer->length = 0;
    answer->to_length = address_to_sockaddr(&where, &answer->to);
    return answer;
}

union mark_message {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(sizeof(uint32_t))];
};

static void message_make(struct mmsghdr *message, struct iovec *piece, union mark_message *control,
                         struct answer *answer)
{
    *piece = (struct iovec){.iov_base = answer->bytes, .iov_len = answer->length};
    memset(control, 0, sizeof(*control));
    message->msg_hdr = (struct msghdr){.msg_name = &answer->to,
                                       .msg_namelen = answer->to_length,
                                       .msg_iov = piece,
                                       .msg_iovlen = 1,
                                       .msg_control = control,
                                       .msg_controllen = sizeof(*control)};
    control->header.cmsg_level = SOL_SOCKET;
    control->header.cmsg_type = SO_MARK;
    control->header.cmsg_len = CMSG_LEN(sizeof(answer->mark));
    memcpy(CMSG_DATA(&control->header), &answer->mark, sizeof(answer->mark));
}

/* One call for what goes through one socket; what fails is passed over. */
static void send_run(struct answer *first, uint32_t count)
{
    struct mmsghdr messages[ANSWERS_AT_ONCE];
    struct iovec pieces[ANSWERS_AT_ONCE];
    union mark_message controls[ANSWERS_AT_ONCE];
    uint32_t made = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (first[i].length == 0)
            continue;
        message_make(&messages[made], &pieces[made], &controls[made], &first[i]);
        made++;
    }
    for (uint32_t done = 0; done < made;) {
        int sent = sendmmsg(first->fd, messages + done, made - done, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent > 0)
            done += (uint32_t)sent;
        else if (errno != EINTR)
            done++;
    }
}

void answers_send(struct answers *answers)
{
    for (uint32_t begin = 0, end; begin < answers->count; begin = end) {
        for (end = begin + 1; end < answers->count; end++)
            if (answers->waiting[end].fd != answers->waiting[begin].fd)
                break;
        send_run(&answers->waiting[begin], end - begin);
    }
    answers->count = 0;
}
