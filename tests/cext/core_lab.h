/*
 * core_lab.h: the whole core, worker threads, epoll and all, over loopback addresses and without privileges
 * (core_calls.h says how), and those who decide for it.
 *
 * One core holds both ends: the workload `shipper` with an outbound listener, and `pipeline` with an HBONE
 * listener. The original destination of a captured connection is its listener's own address, so the answer to
 * its question names where the application really listens.
 */
#ifndef NS_CORE_LAB_H
#define NS_CORE_LAB_H

#include <time.h>

#include "applications.h"
#include "certificates.h"
#include "check.h"
#include "core_calls.h"
#include "nodeseal_core.h"
#include "loop/worker.h"

#define SHIPPER "spiffe://example.org/ns/default/sa/shipper"
#define PIPELINE "spiffe://example.org/ns/default/sa/pipeline"
#define SIEM "spiffe://example.org/ns/default/sa/siem"

enum { SHIPPER_KEY = 1, PIPELINE_KEY = 2, SIEM_KEY = 3 };

struct lab {
    struct core *core;
    struct authority authority;
    int outbound, hbone; /* listeners that the core has duplicates of */
    int application;     /* pipeline's own listener */
    pthread_t decider;
    pthread_mutex_t mutex; /* over what follows */
    int stopping;
    int tunnel;                  /* outbound answers: enum ns_way */
    const char *identity;        /* expected of its peer */
    struct sockaddr_in endpoint; /* outbound answers name this */
    struct sockaddr_in first;    /* and this before it; port 0: they do not */
    uint32_t outbound_verdict, tunnel_verdict, plaintext_verdict;
    uint64_t epoch;
    struct ns_question last_tunnel; /* the last question about a tunnel's stream */
    int answers;                    /* given; counted */
    int stuck;                      /* nothing is answered; `changed` is waited for */
    pthread_cond_t changed;
};

struct core_options options_default(void);
/* Everything is allowed, through tunnels. The caller frees it. */
struct lab *lab_with(struct core_options options);
struct lab *lab_new(void);
/* What two workers would do twice is done once. */
struct lab *lab_new_of_one_worker(void);
/* Without tunnels. */
struct lab *lab_plain(void);
/* Stops the core; closes the lab's own listeners. */
void lab_free(struct lab *lab);

/* Changes what is answered from now on. */
#define LAB_SET(lab, field, value)                                                                           \
    do {                                                                                                     \
        pthread_mutex_lock(&(lab)->mutex);                                                                   \
        (lab)->field = (value);                                                                              \
        pthread_cond_broadcast(&(lab)->changed);                                                             \
        pthread_mutex_unlock(&(lab)->mutex);                                                                 \
    } while (0)

/* Begins a new epoch: what has been decided is asked again. */
void lab_move_on(struct lab *lab);

/* New ones, of this identity. */
void lab_credentials(struct lab *lab, uint64_t key, const char *identity);
/* Its root is the only anchor from now on; the lab's own is, unless this is called. */
void lab_trust(struct lab *lab, const struct authority *authority);
/* Adds a workload at host `number`, with credentials; `netns` stands for its namespace, by its inode. */
void lab_workload_in(struct lab *lab, int netns, uint64_t key, int number, const char *identity);
/* In a namespace of its own. */
void lab_workload(struct lab *lab, uint64_t key, int number, const char *identity);
/* The core duplicates `fd`, which is returned. */
int lab_listen(struct lab *lab, uint64_t key, int role, int fd);

struct ns_workload_stats lab_stats(struct lab *lab, uint64_t key);
struct ns_core_stats lab_core_stats(struct lab *lab);
struct ns_address mapped(struct sockaddr_in from);

/* When what is waited for from now on is too late. */
time_t deadline(void);

/* Asks the core again and again; each time its workers take a turn. */
#define WAIT_UNTIL(condition)                                                                                \
    do {                                                                                                     \
        time_t wait_end = deadline();                                                                        \
        while (!(condition))                                                                                 \
            CHECK_CASE(time(NULL) < wait_end, "waited %d s", (int)WAIT_SECONDS);                             \
    } while (0)

#endif
