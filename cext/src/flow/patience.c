/* patience.c: see patience.h. */
#include "flow/patience.h"

#include <linux/sockios.h>
#include <sys/ioctl.h>

#include "flow/tunnel_end.h"
#include "wire/h2.h"

enum {
    LOOKS = 8, /* so often in the time that a stream bears */
    LOOK_LEAST_MS = PATIENCE_LEAST_MS / LOOKS,
    LOOK_MOST_MS = 1000,
};

static uint32_t borne_by(const struct stream *stream)
{
    return stream->patience_ms != 0 ? stream->patience_ms : PATIENCE_MS;
}

/* Not more than PATIENCE_MS. */
static uint32_t least_borne(const struct tunnel *tunnel)
{
    uint32_t least = PATIENCE_MS;
    for (struct link *at = tunnel->streams.next; at != &tunnel->streams; at = at->next) {
        uint32_t borne = borne_by(container_of(at, struct stream, link));
        least = borne < least ? borne : least;
    }
    return least;
}

static void ask(struct tunnel *tunnel)
{
    h2_ping(tunnel->h2);
    tunnel_touch(tunnel);
}

/* What ends the streams of a tunnel, in milliseconds. */
struct silence {
    /* Since the peer was heard of. */
    uint64_t unheard;
    /* Since it was asked; 0: it was not. */
    uint64_t asked;
    /* For as long its kernel has acknowledged nothing of what was sent again; 0 while that does not matter.
     */
    uint64_t unacknowledged;
    /* It is enough for streams whose applications have not said what they bear. */
    int is_gone;
};

/* What is left of it for an answer. */
static uint64_t left_of(uint64_t borne_ms)
{
    return borne_ms - borne_ms / 3;
}

static int is_longer(const struct silence *silence, uint64_t borne_ms)
{
    return silence->unheard > borne_ms && silence->asked > left_of(borne_ms);
}

static int is_over(const struct stream *stream, const struct silence *silence)
{
    uint64_t borne_ms = stream->patience_ms;
    if (borne_ms == 0)
        return silence->is_gone;
    return is_longer(silence, borne_ms) &&
           (silence->unacknowledged > left_of(borne_ms) ||
            is_longer(silence, borne_ms > PATIENCE_MS ? borne_ms : PATIENCE_MS));
}

/* How many streams are left once those that bear no more are gone. */
static size_t count_patient(const struct tunnel *tunnel, const struct silence *silence)
{
    size_t count = 0;
    for (struct link *at = tunnel->streams.next; at != &tunnel->streams; at = at->next)
        count += !is_over(container_of(at, struct stream, link), silence);
    return count;
}

static void end_impatient(struct tunnel *tunnel, const struct silence *silence)
{
    struct link *at, *next;
    link_each(at, next, &tunnel->streams)
    {
        struct stream *stream = container_of(at, struct stream, link);
        if (is_over(stream, silence))
            stream_give_up(stream, PEER_SILENT);
    }
    tunnel->patience_ms = least_borne(tunnel);
}

static struct silence silence_of(const struct tunnel *tunnel)
{
    uint64_t now_ms = tunnel->worker->now_ms;
    uint64_t most = tunnel->worker->options->unacknowledged_ms;
    struct silence silence = {.unheard = now_ms - tunnel->heard_ms,
                              .asked = tunnel->ping_ms != 0 ? now_ms - tunnel->ping_ms : 0};
    int is_late = most != 0 && silence.unheard > most;
    if (is_late || is_longer(&silence, tunnel->patience_ms))
        silence.unacknowledged = socket_unacknowledged_ms(tunnel->poll.fd);
    silence.is_gone = (is_late && silence.unacknowledged > most) || tunnel_peer_is_gone(tunnel, now_ms);
    return silence;
}

/* More on top of what is on its way would only put off the time at which TCP sends that again. */
static int is_acknowledged(const struct tunnel *tunnel)
{
    int left = 0;
    return ioctl(tunnel->poll.fd, SIOCOUTQ, &left) != 0 || left == 0;
}

int patience_look(struct tunnel *tunnel)
{
    struct silence silence = silence_of(tunnel);
    if (silence.is_gone || is_longer(&silence, tunnel->patience_ms)) {
        if (silence.is_gone && count_patient(tunnel, &silence) == 0)
            return 1;
        if (silence.is_gone)
            tunnel_leave_pool(tunnel); /* first: what ends here may be tried elsewhere */
        end_impatient(tunnel, &silence);
        if (silence.unacknowledged == 0 && is_acknowledged(tunnel))
            ask(tunnel); /* its kernel, again */
    } else if (tunnel->ping_ms == 0 && silence.unheard > tunnel->patience_ms / 3) {
        tunnel->patience_ms = least_borne(tunnel); /* streams have left since */
        tunnel->ping_ms = tunnel->worker->now_ms;
        ask(tunnel);
    }
    return 0;
}

void patience_look_at_hasty(struct worker *worker)
{
    if (worker->now_ms < worker->hasty.due_ms)
        return;
    uint32_t least = PATIENCE_MS;
    struct link *at, *next;
    link_each(at, next, &worker->hasty.tunnels)
    {
        struct tunnel *tunnel = container_of(at, struct tunnel, hasty_link);
        int is_over = tunnel->state == TUNNEL_OPEN && patience_look(tunnel);
        if (is_over || tunnel->state > TUNNEL_OPEN || tunnel->patience_ms >= PATIENCE_MS)
            link_remove(&tunnel->hasty_link);
        else if (tunnel->patience_ms < least)
            least = tunnel->patience_ms;
        if (is_over)
            tunnel_abort(tunnel, PEER_SILENT);
    }
    uint32_t pause = least / LOOKS;
    pause = pause < LOOK_LEAST_MS ? LOOK_LEAST_MS : pause;
    worker->hasty.due_ms = worker->now_ms + (pause > LOOK_MOST_MS ? LOOK_MOST_MS : pause);
}
