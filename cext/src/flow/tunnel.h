/*
 * tunnel.h: one mutual-TLS HTTP/2 connection to or from a peer, and the pool of those that this node opened.
 *
 * A tunnel belongs to one workload of this node (whose certificate it presents) and one peer. Many flows
 * share it, a stream each. A client tunnel takes streams before it is connected; they leave when the
 * handshake is done.
 */
#ifndef NS_TUNNEL_H
#define NS_TUNNEL_H

#include "wire/h2.h"
#include "loop/handshakes.h"
#include "flow/windows.h"
#include "loop/worker.h"

enum { TUNNEL_MAGIC = 0x6e737475 };

#define PROTOCOL_BROKEN "the peer broke the HTTP/2 protocol"

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
    int retired;      /* takes no new streams: new credentials, a GOAWAY, or doomed */
    const char *doom; /* why it must end; acted on when the callback that found out has returned */
    struct worker *worker;
    struct workload *workload;
    struct link link;       /* in its workload's tunnels */
    struct link pool_link;  /* client: in the pool's bucket while it takes streams */
    struct link dirty_link; /* in the writes of its workload's share of the turns */
    struct task task;       /* same, in the tasks; before OPEN in the steps */
    struct link flows;      /* by flow.tunnel_link */
    struct pollable poll;
    struct tls tls;
    struct step step; /* of the handshake; while it is out, `tls` is not to be touched */
    enum step_kind step_kind;
    size_t shaken;            /* bytes that the peer has sent before the handshake was done */
    struct stranger stranger; /* server: until the peer has proven who it is */
    int admitted;             /* server: counted in with the workload's quota */
    int opened;               /* the handshake was done, once */
    int parted;               /* PARTING: all was said, and that it was all */
    struct h2 *h2;
    struct holder *holder;   /* from OPEN on: its peer's part of the workload's memory */
    struct link holder_link; /* in the holder's tunnels */
    uint32_t window;         /* of the connection, as set; 0 before OPEN */
    int withholding;         /* nothing of it is given back on receipt */
    size_t owed;             /* of it: received for live flows and not given back yet; windows.h */
    size_t lost;             /* same, of flows that have left */
    uint64_t taken;          /* by applications */
    uint64_t widen_bytes;    /* from how many taken on the window is looked at again */
    uint64_t widen_us;       /* when it was last looked at, 0: never */
    struct byte_queue
        pending; /* ciphertext that the socket did not take; nothing is produced while there is some */
    struct byte_queue
        unfed; /* plaintext for which there was no time yet; nothing is read while there is some */
    const char *unfed_doom;  /* what came behind it */
    size_t slice;            /* of plaintext handed on at once, while workloads share the turn */
    struct ns_address local; /* server: where the peer connected to */
    struct ns_address peer;
    uint64_t first_try_ms;
    uint64_t deadline_ms; /* CONNECTING, HANDSHAKE and PARTING end here; WAITING: next try */
    uint64_t heard_ms;    /* last bytes from the peer */
    uint64_t ping_ms;     /* when the unanswered ping left, 0 if none */
    uint64_t idle_ms;     /* since when it has had no flow */
    uint64_t notice_ms;   /* server, the core retires: when the peer was told, 0 if it was not */

    struct ns_address destination; /* client: where its last flow went */
    uint64_t used_ms;  /* client: when its last flow left; dialled ahead: that of the one before */
    uint32_t failures; /* dialled ahead: how often in vain before this */
    uint32_t ahead;    /* 1: dialled ahead of need, and no flow has come yet */
};

/* The pooled tunnel of `workload` to `identity` at address:15008 with room for a stream; NULL if there is
 * none. */
struct tunnel *tunnel_pooled(struct worker *worker, struct workload *workload,
                             const struct ns_address *address, const char *identity);
/* A tunnel of `workload` to `identity` at address:15008 with room for a stream: from the pool, or a new one.
 * `by_name`: several identities live there, and the peer is told which is meant. NULL if none can be made (no
 * credentials, no descriptor). */
struct tunnel *tunnel_to(struct worker *worker, struct workload *workload, const struct ns_address *address,
                         const char *identity, int by_name);
/* Takes over an accepted connection on 15008: a stranger (strangers.h), that costs the workload nothing. */
void tunnel_accept(struct worker *worker, struct workload *workload, int fd, const struct ns_address *peer);
/* Server, when the peer has sent its first bytes: the session begins. 0, or -1. */
int tunnel_answer(struct tunnel *tunnel);
/* Server, when the handshake is done: counts the tunnel in, or dooms it if it meets a limit. */
void tunnel_proven(struct tunnel *tunnel);
/* Its peer is known, and a limit is met: it is to end. */
void tunnel_refuse(struct tunnel *tunnel, enum ns_limit limit);

/* Server, after TLS_CHOOSE: makes it the workload's whom the peer asks for by name. Without a name it is
 * always the same one who answers, whoever accepted. */
void tunnel_choose(struct tunnel *tunnel);

/* Whether the peer was asked (PING), and nothing has come since, of whatever kind, for 20 s. The answer
 * itself may take longer over a way that loses much: in the peer's socket it stands behind megabytes of bulk.
 */
int tunnel_peer_is_gone(const struct tunnel *tunnel, uint64_t now_ms);
/* The last flow may have gone. */
void tunnel_flow_left(struct tunnel *tunnel);
/* The handshake has failed, or the peer refuses what comes behind it: notes why, for who looks at refusals. A
 * peer that went away without having said anything was not refused. */
void tunnel_note_failed(const struct tunnel *tunnel, const char *reason);
/* Server: a request was answered with this status, without a flow having begun. */
void tunnel_note_refused(const struct tunnel *tunnel, int status, const struct ns_address *destination,
                         const char *reason);
void tunnel_event(struct tunnel *tunnel, uint32_t events);
void tunnel_tick(struct tunnel *tunnel);
/* Asks the peer for another window of each stream; the connection's is windows.h's. */
void tunnel_windows(struct tunnel *tunnel, uint32_t window);
/* Whether nobody needs it any more, and the peer has acknowledged all that was sent. */
int tunnel_is_done(const struct tunnel *tunnel);
/* No new streams; ends with its last flow. */
void tunnel_retire(struct tunnel *tunnel);
/* It ends, and is in this state from now on: no new streams, and its flows are reset or routed anew. */
void tunnel_lose_flows(struct tunnel *tunnel, enum tunnel_state state, const char *reason);
/* Ends it now: its flows are reset, or routed anew if they had not begun. */
void tunnel_abort(struct tunnel *tunnel, const char *reason);
void tunnel_free(struct tunnel *tunnel);

#endif
