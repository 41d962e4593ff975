/*
 * tunnel.h: one mutual-TLS HTTP/2 connection to or from a peer, and its streams.
 *
 * A tunnel belongs to one workload of this node (whose certificate it presents) and one peer. Many flows
 * share it, a stream each. A client tunnel takes streams before it is connected; they leave when the
 * handshake is done.
 *
 * What is here is what everybody may do with a tunnel. How one begins is in pool.h and tunnel_server.h, its
 * bytes in tunnel_bytes.h and tunnel_handshake.h, how it ends in tunnel_end.h; tunnel_events.h is what calls
 * them.
 */
#ifndef NS_TUNNEL_H
#define NS_TUNNEL_H

#include "flow/preconnect.h"
#include "loop/worker.h"
#include "loop/workload.h"
#include "wire/outcome.h"

enum { TUNNEL_MAGIC = 0x6e737475 };

#define PROTOCOL_BROKEN "the peer broke the HTTP/2 protocol"
#define PEER_SILENT "the peer does not answer"

enum {
    PATIENCE_MS = 30000,      /* for streams that bear no other silence of the peer */
    PATIENCE_LEAST_MS = 1000, /* what is less counts as this */
};

struct h2;
struct holder;

/* Ordered: a tunnel only moves forward, except from CONNECTING back to WAITING. */
enum tunnel_state {
    TUNNEL_WAITING = 0,    /* the peer refused; to be dialled again in a moment */
    TUNNEL_CONNECTING = 1, /* TCP */
    TUNNEL_HANDSHAKE = 2,  /* TLS */
    TUNNEL_OPEN = 3,
    TUNNEL_PARTING = 4, /* the peer broke the protocol, and is told so; nothing is read any more */
    TUNNEL_CLOSED = 5,  /* in the graveyard */
};

struct tunnel {
    uint32_t magic;
    enum tunnel_state state;
    enum tls_role role;
    /* Takes no new streams: new credentials, a GOAWAY, or doomed. */
    int retired;
    /* For the streams that have not begun if it ends: why they come to nothing. */
    enum cause cause;
    /* Why it must end; acted on when the callback that found out has returned. */
    const char *doom;
    /* The alert with which it ends; 0: close_notify. */
    uint8_t last_alert;
    struct worker *worker;
    struct workload *workload;
    /* In its workload's tunnels. */
    struct link link;
    /* Client: in the pool's bucket while it takes streams. */
    struct link pool_link;
    /* In the writes of its workload's budget. */
    struct link dirty_link;
    /* Same, in the tasks; before OPEN in the steps. */
    struct task task;
    /* By stream.link. */
    struct link streams;
    /* How many these are. */
    uint32_t stream_count;
    struct pollable poll;
    struct tls tls;
    struct h2 *h2;
    /* Server: where the peer connected to. */
    struct ns_address local;
    struct ns_address peer;
    /* Client: where its streams come from, and it too. Port 0: that is left to the first dialling. */
    struct ns_address from;

    /* The handshake: while its step is out, `tls` is not to be touched. */
    struct step step;
    enum step_kind step_kind;
    /* Bytes that the peer has sent before the handshake was done. */
    size_t shaken;
    /* Server: until the peer has proven who it is. */
    struct stranger stranger;
    /* Server: counted in with the workload's quota. */
    int admitted;
    /* The handshake was done, once. */
    int opened;
    /* PARTING: all was said, and that it was all. */
    int parted;

    /* From OPEN on: its peer's part of the workload's memory. */
    struct holder *holder;
    /* In the holder's tunnels. */
    struct link holder_link;
    /* Receive window of the connection, as set; 0 before OPEN. */
    uint32_t window;
    /* Nothing of it is given back on receipt. */
    int withholding;
    /* Of it: received for live streams and not given back yet; windows.h. */
    size_t owed;
    /* Same, of streams that have left. */
    size_t lost;
    /* Bytes taken by applications. */
    uint64_t taken;
    /* From how many taken on the window is looked at again. */
    uint64_t widen_bytes;
    /* When it was last looked at, 0: never. */
    uint64_t widen_us;

    /* Ciphertext that the socket did not take; nothing is produced while there is some. */
    struct byte_queue pending;
    /* Plaintext for which there was no time yet; nothing is read while there is some. */
    struct byte_queue unfed;
    /* What came behind it. */
    const char *unfed_doom;
    /* Plaintext handed on at once, while workloads share the turn. */
    size_t slice;

    /* CONNECTING, HANDSHAKE and PARTING end here. */
    uint64_t deadline_ms;
    /* Last bytes from the peer. */
    uint64_t heard_ms;
    /* When the unanswered ping left, 0 if none. */
    uint64_t ping_ms;
    /* What its least patient stream bears, or one that has left; at most PATIENCE_MS. */
    uint32_t patience_ms;
    /* In worker->hasty while that is less. */
    struct link hasty_link;
    /* Since when it has had no stream. */
    uint64_t idle_ms;
    /* Server, the core retires: when the peer was told, 0 if it was not. */
    uint64_t notice_ms;
    /* Client. */
    struct preconnect_use use;
};

/* Ordered. */
enum stream_state {
    STREAM_NONE = 0,  /* there is none, or it has ended */
    STREAM_ASKED = 1, /* client: the peer has not answered yet */
    STREAM_OPEN = 2,
};

/* A stream of a tunnel; embedded in what it belongs to, a flow. stream.h says what may be done with it. */
struct stream {
    enum stream_state state;
    /* HTTP/2's; 0: there is none, or it has ended. */
    int32_t id;
    /* NULL: it has none, or the stream has ended and only `unread` is left. */
    struct tunnel *tunnel;
    /* In its tunnel's streams. */
    struct link link;
    /* The owner's: what the peer has sent and the application has not taken. */
    struct byte_queue *unread;
    /* The peer's silence that its application bears; 0: it has not said. */
    uint32_t patience_ms;
    /* Receive window. */
    uint32_t window;
    /* Of its tunnel's window: received for it, and not given back yet. */
    size_t owed;
    /* Received, from which on the window is looked at again. */
    uint64_t widen_bytes;
    /* When it was last looked at, 0: never. */
    uint64_t widen_us;
};

/* In its workload's list, with an HTTP/2 session and without a socket: CONNECTING. */
struct tunnel *tunnel_new(struct worker *worker, struct workload *workload, enum tls_role role);
/* It is closed, and its step is not out. */
void tunnel_free(struct tunnel *tunnel);

/* Takes a socket over, counted as a stranger's or the workload's, as it is now. */
void tunnel_adopt(struct tunnel *tunnel, int fd);
/* Sets what a socket between two nodes is to have. */
void tunnel_prepare_socket(const struct tunnel *tunnel, int fd);
/* Closes the socket; harmless if it has none. */
void tunnel_close(struct tunnel *tunnel);
/* Opened (1) or closed (-1) descriptor of the tunnel's: a stranger's is none of the workload's. */
void tunnel_count_descriptor(struct tunnel *tunnel, int change);
/* One more (1), or one less (-1), of the worker's and the workload's tunnels. */
void tunnel_count(struct tunnel *tunnel, int change);

/* Something is to be written: it will be at the end of the turn. */
void tunnel_touch(struct tunnel *tunnel);
/* It has more to do than it may do now: to read, or before OPEN to make a step of the handshake. */
void tunnel_defer(struct tunnel *tunnel);
/* Where what is sealed goes: the worker's buffer. */
static inline struct tls_sink tunnel_sink(const struct tunnel *tunnel)
{
    struct tls_sink sink = {.bytes = tunnel->worker->scratch.cipher,
                            .capacity = TLS_SEALED_SIZE(SCRATCH_SIZE) + 4096};
    return sink;
}

/* One of its streams bears so much silence of the peer (patience.h). */
void tunnel_note_patience(struct tunnel *tunnel, uint32_t patience_ms);
/* Whether nothing has come from the peer, of whatever kind, for PATIENCE_MS, and it was asked (PING) with two
 * thirds of it left. */
int tunnel_peer_is_gone(const struct tunnel *tunnel, uint64_t now_ms);
/* Whether nobody needs it any more, and the peer has acknowledged all that was sent. */
int tunnel_is_done(const struct tunnel *tunnel);
/* A stream has parted from it, perhaps the last one. */
void tunnel_stream_left(struct tunnel *tunnel);
/* Takes it out of the pool; harmless if it is retired already. */
void tunnel_leave_pool(struct tunnel *tunnel);
/* No new streams; ends with its last one. */
void tunnel_retire(struct tunnel *tunnel);

/* The handshake has failed, or one end refuses the other behind it: notes why, for who looks at refusals. A
 * peer that went away without having said anything was not refused. */
void tunnel_note_failed(const struct tunnel *tunnel, const char *reason);
/* Server: a request was answered so, without a flow having begun. */
void tunnel_note_refused(const struct tunnel *tunnel, enum outcome outcome,
                         const struct ns_address *destination, const char *reason);

#endif
