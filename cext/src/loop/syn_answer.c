/* syn_answer.c: see syn_answer.h. */
#include "loop/syn_answer.h"

#include <errno.h>

#include "loop/worker.h"
#include "loop/workload.h"
#include "wire/names.h"

/* Room for a packet to `to`; NULL: no socket can be had. */
static struct answer *room(struct worker *worker, struct workload *workload, const struct ns_address *to,
                           uint32_t mark)
{
    int fd = workload_raw(workload, address_is_v4(to), mark);
    return fd < 0 ? NULL : answers_room(&worker->answers, fd, to, mark);
}

/* That of a process of the node keeps what refuses it from the node's conntrack, which would find it invalid.
 */
static uint32_t refusal_mark(const struct held *held)
{
    return mark_is_host_released(held->mark) ? held->mark : NS_MARK_CORE;
}

void syn_forget(struct worker *worker, struct held *held)
{
    if (!held_is(held))
        return;
    struct worker *home = worker_home(worker->context, held->tuple.workload);
    if (home == worker) {
        parked_answered(&worker->parking, &held->tuple, held->syn->sequence);
    } else {
        struct command *command = command_new(COMMAND_ANSWERED, held->tuple.workload);
        command->tuple = held->tuple;
        command->sequence = held->syn->sequence;
        mailbox_post(&home->mailbox, command);
    }
    held_end(held);
}

void syn_release(struct worker *worker, struct workload *workload, struct held *held)
{
    struct answer *answer = room(worker, workload, &held->tuple.destination, held->mark);
    if (answer == NULL)
        return; /* it comes again */
    answer->length = syn_again(held->syn, 0, answer->bytes, sizeof(answer->bytes));
    if (link_empty(&workload->released_link))
        link_append(&worker->answers.released, &workload->released_link);
}

/* The SYN itself, to where it was going; `mss`: see syn_again. */
static void put_syn(struct answer *answer, const struct held *held, uint16_t mss)
{
    if (answer != NULL)
        answer->length = syn_again(held->syn, mss, answer->bytes, sizeof(answer->bytes));
}

/* That of a process of the node goes through the node's rules as its own would, without a mark. */
static void send_among_others(struct worker *worker, struct workload *workload, struct held *held,
                              uint16_t mss)
{
    const struct ns_address *to = &held->tuple.destination;
    int fd = workload_raw_native(workload, address_is_v4(to));
    if (fd < 0)
        return;
    struct answer *notice = answers_room(&worker->answers, fd, to, NS_MARK_NATIVE);
    notice->length = syn_notice(held->syn, notice->bytes, sizeof(notice->bytes));
    put_syn(answers_room(&worker->answers, fd, to, 0), held, mss);
}

void syn_send_on(struct worker *worker, struct workload *workload, struct held *held, uint32_t mark)
{
    const struct ns_address *to = &held->tuple.destination;
    int is_native = mark == NS_MARK_NATIVE, of_node = is_native && mark_is_host_released(held->mark);
    /* Its own number is that of lo. */
    uint16_t mss = is_native ? workload_path_mss(workload, to, of_node ? 0 : NS_MARK_CORE) : 0;
    if (is_native && mss == 0) {
        syn_refuse(worker, workload, held, cause_of_errno(errno));
        return;
    }
    if (of_node)
        send_among_others(worker, workload, held, mss);
    else
        put_syn(room(worker, workload, to, mark), held, mss);
    syn_forget(worker, held);
}

void syn_refuse(struct worker *worker, struct workload *workload, struct held *held, enum cause cause)
{
    if (cause == CAUSE_REFUSED || cause == CAUSE_NO_HOST || cause == CAUSE_NO_NETWORK) {
        struct answer *answer = room(worker, workload, &held->tuple.source, refusal_mark(held));
        if (answer != NULL)
            answer->length = cause == CAUSE_REFUSED
                                 ? syn_refusal(held->syn, answer->bytes, sizeof(answer->bytes))
                                 : syn_unreachable(held->syn, cause, answer->bytes, sizeof(answer->bytes));
    }
    syn_forget(worker, held);
}
