/*
 * nodeseal_core.h: the splice core's public interface.
 *
 * The core moves bytes: it accepts captured connections, asks what to do with each new one, and relays it,
 * either in plaintext or through a pooled mutual-TLS HTTP/2 tunnel (HBONE). It makes no decision itself.
 * Everything here may be called from any thread; nothing here blocks on the network. The two calls that wait
 * (core_next_questions and the snapshots) say so.
 *
 * The text between the cffi marks is read by cext/build_core.py as well: keep preprocessor lines out of it.
 */
#ifndef NODESEAL_CORE_H
#define NODESEAL_CORE_H

#include <stddef.h>
#include <stdint.h>

/* cffi: begin */

/* Sizes are enum constants so that Python reads the same values as C. */
enum {
    NS_IDENTITY_MAX = 512, /* a SPIFFE id with its terminating zero; longer ones are refused when parsed */
    NS_REASON_MAX = 96,    /* a machine-readable word, or a short sentence, with its terminating zero */
    NS_ENDPOINTS_MAX = 32, /* endpoints in one answer; callers with more send a sample */
};

/* Socket marks; bpf/nodeseal.h holds the same values and a test compares them. */
enum {
    /* On the application's socket: this connection goes to the core, for life. */
    NS_MARK_CAPTURED = 0x4e530001,
    /* On the core's socket towards the application: replies come back to the core. */
    NS_MARK_TO_APP = 0x4e530002,
    /* On every other socket of the core: never captured. */
    NS_MARK_CORE = 0x4e530003,
    /* On SYNs that were parked, once it is known what becomes of them; bpf/nodeseal.h says what each means.
     */
    NS_MARK_RELEASED = 0x4e530006,
    NS_MARK_NATIVE = 0x4e530007,
    NS_MARK_ADMITTED = 0x4e530008,
    /* The same as RELEASED, with the number of a workload that is a process of the node. */
    NS_MARK_HOST_RELEASED = 0x4e550000,
    NS_HBONE_PORT = 15008,
};

/* An address and port. IPv4 addresses are in their v4-mapped form (::ffff:a.b.c.d), so that one type serves
 * both. */
struct ns_address {
    /* Network order. */
    uint8_t ip[16];
    /* Host order. */
    uint16_t port;
};

enum ns_listener_role {
    /* Captured connections of the workload; getsockname() is the original destination. */
    NS_LISTEN_OUTBOUND = 0,
    /* Captured plaintext connections to the workload; same. */
    NS_LISTEN_INBOUND = 1,
    /* Mutual TLS from peers, port 15008 of the workload's IPv4 address. */
    NS_LISTEN_HBONE = 2,
    /* The same of its IPv6 address. */
    NS_LISTEN_HBONE6 = 3,
    /* No listener: the ring in which the workload's SYNs are parked (bpf/nodeseal.h, struct ns_parked), or
     * where rules capture it, a netlink socket that is bound to a queue of packets (NFQUEUE). One core at a
     * time may have it. */
    NS_LISTEN_PARKED = 4,
};

enum ns_question_kind {
    NS_ASK_OUTBOUND = 0,
    NS_ASK_INBOUND_TUNNEL = 1,
    NS_ASK_INBOUND_PLAINTEXT = 2,
};

/* What the core wants to know about a new flow, or, after a new epoch, about a live one. */
struct ns_question {
    /* To be given back in the answer. */
    uint64_t id;
    /* The key given to core_workload_add. */
    uint64_t workload;
    /* enum ns_question_kind. */
    uint32_t kind;
    /* 1: the flow is already running in plaintext; 0: it is new, or runs in a tunnel. */
    uint32_t established;
    /* The client's address; outbound: the workload's own, port always 0. */
    struct ns_address source;
    /* Outbound: original destination; tunnel: the authority; plaintext: as dialled. */
    struct ns_address destination;
    /* Inbound tunnel: the peer's verified SPIFFE id; otherwise "". */
    char peer[512];
};

/* What a change of the mesh state can concern; any other answer would be the same again. */
struct ns_concern {
    /* Everything: the rest is not looked at. */
    uint32_t all;
    /* 16 bytes each, as in struct ns_address: connections that come from there or go there. */
    const uint8_t *addresses;
    size_t address_count;
    /* Connections to these ports, at whatever address. */
    const uint16_t *ports;
    size_t port_count;
    /* All connections of these: keys of core_workload_add. */
    const uint64_t *workloads;
    size_t workload_count;
};

enum ns_verdict {
    NS_REFUSE = 0,      /* reset the connection; a tunnel stream is answered 401 */
    NS_ALLOW = 1,       /* outbound: use the endpoints; inbound: connect to the application */
    NS_UNAVAILABLE = 2, /* reset; a tunnel stream is answered 502 */
    NS_NOT_YET = 3,     /* it may be known in a moment: who can wait does; a tunnel stream is answered 503 */
};

enum ns_way {
    NS_PLAINTEXT = 0,      /* to address */
    NS_TUNNEL = 1,         /* through HBONE to address.ip:15008 */
    NS_TUNNEL_BY_NAME = 2, /* the same, where several identities live: the handshake says which is meant */
};

struct ns_endpoint {
    /* Where the application listens; a tunnel's authority. */
    struct ns_address address;
    /* enum ns_way. */
    uint32_t tunnel;
    /* Tunnel: the only SPIFFE id accepted from the peer. */
    char identity[512];
    /* Plaintext: why there is no mTLS. */
    char reason[96];
};

struct ns_answer {
    uint64_t id;
    /* Of the mesh state that the answer was made from. */
    uint64_t epoch;
    uint32_t verdict;
    /* Outbound and NS_ALLOW: at least 1. */
    uint32_t endpoint_count;
    /* After so long a new flow asks again; 0: not before the epoch has moved on. */
    uint32_t valid_ms;
    uint32_t reserved;
    /* Refuse and unavailable: why; inbound plaintext allowed: why there is no mTLS. */
    char reason[96];
    struct ns_endpoint endpoints[32];
};

enum ns_direction { NS_OUTBOUND = 0, NS_INBOUND = 1 };

enum ns_connection_state {
    NS_STATE_DECIDING = 0,
    NS_STATE_CONNECTING = 1,
    NS_STATE_OPEN = 2,
    NS_STATE_CLOSED = 3, /* ended less than a minute ago; the core keeps the last few */
};

struct ns_connection {
    /* Unique in the life of the core process. */
    uint64_t id;
    uint64_t workload;
    /* enum ns_direction. */
    uint32_t direction;
    /* enum ns_connection_state. */
    uint32_t state;
    /* 1: the bytes cross the wire in a TLS tunnel whose peer is `peer`. */
    uint32_t mtls;
    uint32_t reserved;
    /* The application that dialled. */
    struct ns_address source;
    /* What it dialled (outbound: the original destination). */
    struct ns_address destination;
    /* Outbound: the endpoint that was chosen; inbound: same as destination. */
    struct ns_address endpoint;
    /* By the dialling application. */
    uint64_t bytes_sent;
    /* By the dialling application. */
    uint64_t bytes_received;
    /* Since it was accepted. */
    uint64_t age_ms;
    /* Closed ones: how long ago. */
    uint64_t closed_ms;
    /* mTLS: the peer's verified SPIFFE id. */
    char peer[512];
    /* mTLS: protocol and cipher suite as negotiated, "TLSv1.3 TLS_AES_128_GCM_SHA256". */
    char tls[64];
    /* mTLS: the group of the key exchange, "X25519MLKEM768". */
    char group[24];
    /* mTLS: by which the peer has signed the handshake, "ecdsa_secp256r1_sha256". */
    char signature[32];
    /* mTLS: the trust anchor that the peer was verified by: half of its certificate's SHA-256. Zeros: none.
     */
    uint8_t anchor[16];
    /* Open plaintext: why; closed or failing: what ended it. */
    char reason[96];
};

/* What one workload may have; 0: as much as it takes. */
struct ns_limits {
    /* At once: flows, and tunnels that peers opened. */
    uint64_t connections;
    /* Bytes held for it; cext/src/limits/quota.h says which. */
    uint64_t memory;
    /* Per second; a second's worth may come at once. */
    uint64_t new_connections;
};

/* What a refused connection met. */
enum ns_limit {
    NS_LIMIT_CONNECTIONS = 0,
    NS_LIMIT_RATE = 1,
    NS_LIMIT_MEMORY = 2,
    NS_LIMIT_DESCRIPTORS = 3, /* they run out, and the workload has its part of the process's */
    NS_LIMIT_QUESTIONS = 4,   /* too many of its flows wait for decisions */
    NS_LIMIT_HANDSHAKES = 5,  /* from port 15008: it had not proven who it is, and had to go for another */
    NS_LIMITS = 6,            /* how many there are */
};

struct ns_limited {
    /* Connections, since the workload was added. */
    uint64_t refused;
    /* How long ago the first was, 0 if none. */
    uint64_t first_ms;
    /* And the last. */
    uint64_t last_ms;
};

/* To be logged: connections that were refused since the last notice of the same workload and limit. */
struct ns_limit_notice {
    uint64_t workload;
    /* enum ns_limit. */
    uint32_t limit;
    uint32_t reserved;
    /* The limit; 0 for those that are not set by anyone. */
    uint64_t value;
    uint64_t refused;
};

enum ns_refusal_kind {
    NS_REFUSED_HANDSHAKE = 0, /* TLS with a peer failed: it was refused, refused this end, or gave up */
    NS_REFUSED_STREAM = 1,    /* a request in a tunnel, of a peer whose identity is known */
    NS_REFUSED_PLAINTEXT = 2, /* a connection without mutual TLS */
    NS_REFUSAL_KINDS = 3,     /* how many there are */
};

/* Refusals of one source that have the same kind and reason. */
struct ns_refusal {
    uint64_t workload;
    uint64_t count;
    /* Notices: refusals of other sources that none will tell, there were too many. */
    uint64_t untold;
    /* How long ago the first was. */
    uint64_t first_ms;
    /* And the last. */
    uint64_t last_ms;
    /* enum ns_refusal_kind. */
    uint32_t kind;
    /* enum ns_direction; outbound: a handshake with a peer that the workload dialled. */
    uint32_t direction;
    /* Streams: what the peer was answered, 400 to 504; otherwise 0. */
    uint32_t status;
    uint32_t reserved;
    /* Inbound: whom it came from, without a port; outbound: the workload. */
    struct ns_address source;
    /* What the last one dialled. */
    struct ns_address destination;
    /* Streams: the peer's verified SPIFFE id. */
    char peer[512];
    char reason[96];
    /* Handshakes: what the certificate that was refused says of whom it is for: the peer's, unverified, or,
     * where the peer has refused it, the workload's own. "": no certificate was, or it does not say. */
    char presented[192];
    /* Handshakes: what the peer's certificate should have said, where it says something else: a SPIFFE id,
     * or a trust domain. */
    char expected[192];
};

enum ns_event_kind {
    NS_EVENT_OPENED = 0,  /* a connection: bytes may move */
    NS_EVENT_CLOSED = 1,  /* an open connection ended */
    NS_EVENT_FAILED = 2,  /* a connection ended before it was open; `reason` says why, a decision perhaps */
    NS_EVENT_REFUSED = 3, /* a peer was refused, or refused this end */
    NS_EVENT_LIMIT = 4,   /* connections met a limit: at most one event in a second for each */
    NS_EVENT_KINDS = 5,   /* how many there are */
};

/* What happened a moment ago. */
struct ns_event {
    /* enum ns_event_kind. */
    uint32_t kind;
    uint32_t reserved;
    uint64_t ago_ms;
    union {
        struct ns_connection connection; /* opened, closed, failed */
        struct ns_refusal refusal;       /* refused: `count` is 1 */
        struct ns_limit_notice limit;    /* limit: `refused` are those since the last event of the kind */
    };
};

struct ns_workload_stats {
    uint64_t workload;
    /* Live flows, tunnels' streams included. */
    uint64_t connections;
    /* Live TLS connections, both roles. */
    uint64_t tunnels;
    /* Flows since the workload was added, by listener role below. */
    uint64_t accepted;
    /* Flows relayed through mTLS, both directions. */
    uint64_t tunnelled;
    /* Flows relayed in plaintext, both directions. */
    uint64_t plaintext;
    /* Flows ended by a decision. */
    uint64_t refused;
    /* Flows ended because an endpoint or the application could not be reached. */
    uint64_t failed;
    /* TLS handshakes that failed, either role. */
    uint64_t tls_failed;
    /* Bytes held now, as the limit counts them. */
    uint64_t memory;
    /* Bytes that peers may send in addition. */
    uint64_t promised;
    /* Open now for its connections. */
    uint64_t descriptors;
    struct ns_limits limits;
    /* By enum ns_limit. */
    struct ns_limited limited[6];
};

struct ns_core_stats {
    uint64_t epoch;
    uint64_t workers;
    /* Asked of Python since start. */
    uint64_t questions;
    uint64_t cache_hits;
    uint64_t live_connections;
    uint64_t live_tunnels;
    /* From a worker's question to its having the answer, known to 12 %; 0: none. */
    uint64_t decision_p50_ns;
    uint64_t decision_p99_ns;
    /* Open in the process, about. */
    uint64_t descriptors;
    /* RLIMIT_NOFILE. */
    uint64_t descriptor_limit;
    /* Accepted on port 15008, and have not proven who they are. */
    uint64_t strangers;
    /* That had to go for others, since start. */
    uint64_t strangers_ended;
    /* Steps of handshakes that waited because of what their source had cost. */
    uint64_t strangers_slowed;
};

/* What runs because a trust anchor verified the peer. */
struct ns_anchor_use {
    /* As in struct ns_connection. */
    uint8_t anchor[16];
    /* Live ones. */
    uint64_t connections;
    /* With those that have no connection now. */
    uint64_t tunnels;
};

struct core;

struct core_options {
    /* 1..64. */
    uint32_t workers;
    /* Towards peers and applications; 10000. */
    uint32_t connect_timeout_ms;
    /* How long a refused connection to a peer's 15008 is tried again; 2000. */
    uint32_t refused_retry_ms;
    /* A pooled tunnel without streams is closed after; 300000. */
    uint32_t idle_timeout_ms;
    /* A peer that acknowledges nothing for so long is given up, unless an application bears more; 0: none
     * is. */
    uint32_t unacknowledged_ms;
    /* Before a worker sleeps it looks for events so long; 0: not at all. */
    uint32_t spin_us;
    /* Of the connections to and from peers; "": what the system has. */
    char congestion_control[16];
    /* Peers used within it are dialled again ahead of need; 0: none. */
    uint32_t preconnect_ms;
    /* 1: handshakes and records use OpenSSL's FIPS module alone (cext/src/wire/profile.h); 0: all that is
     * sound. */
    uint32_t fips;
    char trust_domain[256];
};

/* Private numbers are in locked memory from now on, for the life of the process; before core_start. 1; 0: it
 * could not be locked, or not be left out of core dumps; -1: there is none, and they are in ordinary memory.
 */
int core_protect_keys(void);
/* Starts the worker threads. Returns NULL and writes one line to error on failure. */
struct core *core_start(const struct core_options *options, char *error, size_t error_size);
/* Ends the workers and frees everything; live connections are reset. No other call may be running, except
 * that a waiting core_next_questions returns 0 first. */
void core_stop(struct core *core);

/* Adds a workload. `netns_fd` is duplicated. `address` is the workload's own (port ignored). Key must be new.
 * 0, or -1 with error. */
int core_workload_add(struct core *core, uint64_t workload, int netns_fd, const struct ns_address *address,
                      char *error, size_t error_size);
/* What it may have from now on; without this call there is no limit. What exceeds a new limit already stays.
 */
int core_workload_limits(struct core *core, uint64_t workload, const struct ns_limits *limits, char *error,
                         size_t error_size);
/* The trust anchors of one trust domain. */
struct ns_bundle {
    const char *trust_domain;
    /* Certificates in PEM form, at least one. */
    const char *pem;
};

/* The trust domains that peers of all workloads may be of from now on, and the anchors by which each one's
 * are verified; without this call they trust nobody. Running tunnels go on; tunnels that workloads opened
 * take no new streams. Nothing changes when it fails. */
int core_trust(struct core *core, const struct ns_bundle *bundles, size_t count, char *error,
               size_t error_size);
/* What is revoked from now on: digests of 16 bytes each (cext/src/wire/revoked.h), and those of them that are
 * not any more; `whole`: nothing else is revoked. Handshakes refuse it, and what runs with it is cut. One
 * caller at a time. Returns how many are revoked. */
size_t core_revoke(struct core *core, const uint8_t *revoked, size_t revoked_count, const uint8_t *restored,
                   size_t restored_count, int whole);
/* New credentials: certificate chain (leaf first) and private key, both PEM. Running tunnels keep theirs;
 * tunnels this workload opened take no new streams. Nothing changes when it fails. */
int core_workload_credentials(struct core *core, uint64_t workload, const char *chain_pem,
                              const char *key_pem, char *error, size_t error_size);
/* The same with the key in a file, PEM or DER, which is read from its beginning and stays the caller's; what
 * was read is wiped. */
int core_workload_credentials_from(struct core *core, uint64_t workload, const char *chain_pem, int key_fd,
                                   char *error, size_t error_size);
/* Listens on fd (duplicated, made non-blocking); one per role. What is accepted inherits its options:
 * TCP_NODELAY should be set on it, and keepalive on that of NS_LISTEN_INBOUND. */
int core_workload_listen(struct core *core, uint64_t workload, int role, int fd, char *error,
                         size_t error_size);
/* Closes the listener of one role; running connections are untouched. With NS_LISTEN_PARKED it waits until
 * nothing more is read from the ring (milliseconds), so that another core may. */
int core_workload_unlisten(struct core *core, uint64_t workload, int role, char *error, size_t error_size);
/* Forgets the workload: listeners close, its remaining connections are reset. */
int core_workload_remove(struct core *core, uint64_t workload, char *error, size_t error_size);

/* Another core takes over. Listeners close, and what waits in their queues is left to whoever else holds
 * them; tunnels take no new streams, which their peers are told in time (RFC 9113, 6.8). What runs goes on to
 * its end: the core has finished when core_stats shows neither connections nor tunnels. */
void core_retire(struct core *core);

/* The mesh state moved on: cached answers that it concerns are void, and live flows are asked about again.
 * The model that answers must be in place before. Epochs only grow. */
void core_epoch(struct core *core, uint64_t epoch, const struct ns_concern *concern);

/* Workloads were published, or withdrawn: `count` addresses of 16 bytes each, as in struct ns_address; one
 * that two workloads share is there twice. Handshakes with peers that come from there go before those of
 * others. One caller at a time. */
void core_publish(struct core *core, const uint8_t *addresses, size_t count);
void core_withdraw(struct core *core, const uint8_t *addresses, size_t count);

/* Waits up to timeout_ms for questions and takes the oldest, at most `capacity`. How many; 0: none, or the
 * core is stopping. */
size_t core_next_questions(struct core *core, struct ns_question *questions, size_t capacity,
                           uint32_t timeout_ms);
/* Answers once; an unknown id is ignored (its flows may have gone). */
void core_answer(struct core *core, const struct ns_answer *answer);

/* Writes at most `capacity` notices of refused connections, at most one in ten seconds for a workload and
 * limit; returns how many. Cheap when there is none. */
size_t core_limit_notices(struct core *core, struct ns_limit_notice *out, size_t capacity);

/* The same for peers that were refused: what is new, at most 8 in a minute for a workload, and one for a row.
 * `count` is what came since the row's last notice. */
size_t core_refusal_notices(struct core *core, struct ns_refusal *out, size_t capacity);
/* All that is kept of the last day. Writes at most `capacity` rows, returns how many there are. Waits for
 * nobody. */
size_t core_refusals(struct core *core, struct ns_refusal *out, size_t capacity);

/* From now on events are kept for core_next_events (1), or not any more (0, as at the start). They are
 * bounded in number: what finds no room is lost, and counted. */
void core_events_listen(struct core *core, int wanted);
/* Takes what has happened, at most `capacity`, and adds to `lost` what was lost since the last call. Waits
 * for nobody. Events of one connection are in their order. */
size_t core_next_events(struct core *core, struct ns_event *out, size_t capacity, uint64_t *lost);

/* Snapshots, taken by every worker at its next turn; waits for them (milliseconds; a worker never waits for
 * the caller). Writes at most `capacity` items, returns how many there are in all. */
size_t core_connections(struct core *core, struct ns_connection *out, size_t capacity);
size_t core_workload_stats(struct core *core, struct ns_workload_stats *out, size_t capacity);
void core_stats(struct core *core, struct ns_core_stats *out);
/* Costs as much as there are tunnels. */
size_t core_anchors(struct core *core, struct ns_anchor_use *out, size_t capacity);

/* cffi: end */

#endif
