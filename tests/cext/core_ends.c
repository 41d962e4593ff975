/* core_ends.c: see core_ends.h. */
#include "core_ends.h"

#include <sys/socket.h>

struct ends lab_connect(struct lab *lab)
{
    struct ends ends;
    ends.client = dial(lab->outbound);
    ends.server = take_connection(lab->application);
    return ends;
}

void ends_close(struct ends *ends)
{
    close(ends->client);
    close(ends->server);
}

void exchange(struct ends *ends, uint64_t from)
{
    send_stream(ends->client, 1, from, 100);
    receive_stream(ends->server, 1, from, 100);
    send_stream(ends->server, 2, from, 100);
    receive_stream(ends->client, 2, from, 100);
}

void check_both_ways(struct lab *lab, uint64_t length)
{
    struct ends ends = lab_connect(lab);
    struct sender up, down;
    sender_start(&up, ends.client, 1, length);
    sender_start(&down, ends.server, 2, length);
    struct sender *senders[] = {&up, &down};
    for (uint64_t at = 0; at < length;) {
        uint64_t part = length - at < 100000 ? length - at : 100000;
        receive_stream(ends.server, 1, at, part);
        receive_stream(ends.client, 2, at, part);
        at += part;
    }
    for (int i = 0; i < 2; i++)
        sender_join(senders[i]);
    shutdown(ends.client, SHUT_WR);
    expect_end(ends.server);
    shutdown(ends.server, SHUT_WR);
    expect_end(ends.client);
    ends_close(&ends);
}

void check_server_speaks_first(struct lab *lab)
{
    struct ends ends = lab_connect(lab);
    send_stream(ends.server, 1, 0, 100);
    receive_stream(ends.client, 1, 0, 100);
    ends_close(&ends);
}

void check_server_speaks_at_once(struct lab *lab, int hangs_up)
{
    struct ends ends;
    gate_close(&lab->endpoint);
    ends.client = dial(lab->outbound);
    ends.server = take_connection(lab->application);
    send_stream(ends.server, 1, 0, 100);
    if (hangs_up)
        shutdown(ends.server, SHUT_WR);
    gate_open();
    receive_stream(ends.client, 1, 0, 100);
    if (hangs_up)
        expect_end(ends.client);
    send_stream(ends.client, 2, 0, 100);
    receive_stream(ends.server, 2, 0, 100);
    ends_close(&ends);
}

/* One end says what it has to and hangs up; the other answers afterwards. */
static void check_half_close(struct lab *lab, int first, int second)
{
    send_stream(first, 1, 0, 300000);
    shutdown(first, SHUT_WR);
    receive_stream(second, 1, 0, 300000);
    expect_end(second);
    struct sender answer;
    sender_start(&answer, second, 2, 3000000);
    receive_stream(first, 2, 0, 3000000);
    sender_join(&answer);
    shutdown(second, SHUT_WR);
    expect_end(first);
    close(first);
    close(second);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).connections == 0);
}

void check_client_half_close(struct lab *lab)
{
    struct ends ends = lab_connect(lab);
    check_half_close(lab, ends.client, ends.server);
}

void check_server_half_close(struct lab *lab)
{
    struct ends ends = lab_connect(lab);
    check_half_close(lab, ends.server, ends.client);
}

static void check_reset(struct lab *lab, int first, int second)
{
    send_stream(first, 1, 0, 10);
    receive_stream(second, 1, 0, 10);
    reset(first);
    expect_reset(second);
    close(second);
    WAIT_UNTIL(lab_stats(lab, SHIPPER_KEY).connections == 0);
}

void check_client_reset(struct lab *lab)
{
    struct ends ends = lab_connect(lab);
    check_reset(lab, ends.client, ends.server);
}

void check_server_reset(struct lab *lab)
{
    struct ends ends = lab_connect(lab);
    check_reset(lab, ends.server, ends.client);
}
