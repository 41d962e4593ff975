/* core_lab.c: see core_lab.h. */
#define _GNU_SOURCE
#include "core_lab.h"

#include <sys/mman.h>

#define DOMAIN "example.org"

struct ns_address mapped(struct sockaddr_in from)
{
    struct ns_address address = {.port = ntohs(from.sin_port)};
    address.ip[10] = address.ip[11] = 0xff;
    memcpy(address.ip + 12, &from.sin_addr, 4);
    return address;
}

static void lab_name_endpoint(const struct lab *lab, struct sockaddr_in at, struct ns_answer *answer)
{
    struct ns_endpoint *endpoint = &answer->endpoints[answer->endpoint_count++];
    endpoint->address = mapped(at);
    endpoint->tunnel = (uint32_t)lab->tunnel;
    snprintf(endpoint->identity, NS_IDENTITY_MAX, "%s", lab->tunnel ? lab->identity : "");
    snprintf(endpoint->reason, NS_REASON_MAX, "%s", lab->tunnel ? "" : "destination-not-in-mesh");
}

static void lab_decide(struct lab *lab, const struct ns_question *question, struct ns_answer *answer)
{
    memset(answer, 0, sizeof(*answer));
    answer->id = question->id;
    pthread_mutex_lock(&lab->mutex);
    while (lab->stuck)
        pthread_cond_wait(&lab->changed, &lab->mutex);
    answer->epoch = lab->epoch;
    answer->verdict = question->kind == NS_ASK_OUTBOUND         ? lab->outbound_verdict
                      : question->kind == NS_ASK_INBOUND_TUNNEL ? lab->tunnel_verdict
                                                                : lab->plaintext_verdict;
    snprintf(answer->reason, sizeof(answer->reason), "%s",
             answer->verdict == NS_ALLOW ? "allowed" : "strict");
    if (question->kind == NS_ASK_OUTBOUND) {
        if (lab->first.sin_port != 0)
            lab_name_endpoint(lab, lab->first, answer);
        lab_name_endpoint(lab, lab->endpoint, answer);
    } else if (question->kind == NS_ASK_INBOUND_TUNNEL) {
        lab->last_tunnel = *question;
    }
    pthread_mutex_unlock(&lab->mutex);
}

static void *decider_main(void *argument)
{
    struct lab *lab = argument;
    struct ns_question question;
    struct ns_answer *answer = malloc(sizeof(*answer));
    for (;;) {
        pthread_mutex_lock(&lab->mutex);
        int stopping = lab->stopping;
        pthread_mutex_unlock(&lab->mutex);
        if (stopping)
            break;
        if (core_next_questions(lab->core, &question, 1, 20) == 1) {
            lab_decide(lab, &question, answer);
            core_answer(lab->core, answer);
            __atomic_add_fetch(&lab->answers, 1, __ATOMIC_RELAXED);
        }
    }
    free(answer);
    return NULL;
}

void lab_credentials(struct lab *lab, uint64_t key, const char *identity)
{
    struct certificate_wish wish = {.uris = {identity}};
    struct certificate leaf = certificate_new(&lab->authority.intermediate, &wish);
    char *chain = certificate_chain_pem(&leaf, &lab->authority.intermediate);
    char *secret = certificate_key_pem(&leaf);
    char error[NS_REASON_MAX] = "";
    CHECK_EQUAL(core_workload_credentials(lab->core, key, chain, secret, error, sizeof(error)), 0);
    free(chain);
    free(secret);
    certificate_dispose(&leaf);
}

void lab_trust(struct lab *lab, const struct authority *authority)
{
    char *bundle = certificate_chain_pem(&authority->root, NULL);
    const struct ns_bundle own = {DOMAIN, bundle};
    char error[NS_REASON_MAX] = "";
    CHECK_EQUAL(core_trust(lab->core, &own, 1, error, sizeof(error)), 0);
    free(bundle);
}

void lab_workload_in(struct lab *lab, int netns, uint64_t key, int number, const char *identity)
{
    char error[NS_REASON_MAX] = "";
    struct ns_address address = mapped(host(number, 0));
    CHECK_EQUAL(core_workload_add(lab->core, key, netns, &address, error, sizeof(error)), 0);
    lab_credentials(lab, key, identity);
}

void lab_workload(struct lab *lab, uint64_t key, int number, const char *identity)
{
    int netns = memfd_create("netns", MFD_CLOEXEC);
    CHECK(netns >= 0);
    lab_workload_in(lab, netns, key, number, identity);
    close(netns);
}

int lab_listen(struct lab *lab, uint64_t key, int role, int fd)
{
    char error[NS_REASON_MAX] = "";
    CHECK_EQUAL(core_workload_listen(lab->core, key, role, fd, error, sizeof(error)), 0);
    return fd;
}

struct core_options options_default(void)
{
    struct core_options options = {.workers = 2,
                                   .connect_timeout_ms = 3 * WAIT_SECONDS * 1000,
                                   .refused_retry_ms = 100,
                                   .idle_timeout_ms = 300000,
                                   .trust_domain = DOMAIN};
    return options;
}

struct lab *lab_with(struct core_options options)
{
    struct lab *lab = calloc(1, sizeof(*lab));
    char error[NS_REASON_MAX] = "";
    CHECK(lab != NULL);
    pthread_mutex_init(&lab->mutex, NULL);
    pthread_cond_init(&lab->changed, NULL);
    lab->authority = authority_new();
    lab->core = core_start(&options, error, sizeof(error));
    CHECK_TEXT(error, "");
    CHECK(lab->core != NULL);
    lab->tunnel = 1;
    lab->identity = PIPELINE;
    lab->outbound_verdict = lab->tunnel_verdict = lab->plaintext_verdict = NS_ALLOW;
    lab->epoch = 1;
    core_epoch(lab->core, 1, &(struct ns_concern){.all = 1});
    lab->application = listen_at(host(2, 0));
    lab->endpoint = local_of(lab->application);
    lab_trust(lab, &lab->authority);
    lab_workload(lab, SHIPPER_KEY, 1, SHIPPER);
    lab_workload(lab, PIPELINE_KEY, 2, PIPELINE);
    lab->outbound = lab_listen(lab, SHIPPER_KEY, NS_LISTEN_OUTBOUND, listen_at(host(1, 0)));
    lab->hbone = lab_listen(lab, PIPELINE_KEY, NS_LISTEN_HBONE, listen_at(host(2, NS_HBONE_PORT)));
    CHECK_EQUAL(pthread_create(&lab->decider, NULL, decider_main, lab), 0);
    return lab;
}

struct lab *lab_new(void)
{
    return lab_with(options_default());
}

struct lab *lab_new_of_one_worker(void)
{
    struct core_options options = options_default();
    options.workers = 1;
    return lab_with(options);
}

struct lab *lab_plain(void)
{
    struct lab *lab = lab_new();
    LAB_SET(lab, tunnel, 0);
    return lab;
}

void lab_free(struct lab *lab)
{
    pthread_mutex_lock(&lab->mutex);
    lab->stopping = 1;
    pthread_mutex_unlock(&lab->mutex);
    pthread_join(lab->decider, NULL);
    core_stop(lab->core);
    close(lab->outbound);
    close(lab->hbone);
    close(lab->application);
    authority_dispose(&lab->authority);
    pthread_cond_destroy(&lab->changed);
    pthread_mutex_destroy(&lab->mutex);
    free(lab);
}

void lab_move_on(struct lab *lab)
{
    pthread_mutex_lock(&lab->mutex);
    uint64_t epoch = ++lab->epoch;
    pthread_mutex_unlock(&lab->mutex);
    core_epoch(lab->core, epoch, &(struct ns_concern){.all = 1});
}

struct ns_workload_stats lab_stats(struct lab *lab, uint64_t key)
{
    struct ns_workload_stats stats[64];
    size_t count = core_workload_stats(lab->core, stats, 64);
    CHECK(count <= 64);
    for (size_t i = 0; i < count; i++)
        if (stats[i].workload == key)
            return stats[i];
    check_failed(__FILE__, __LINE__, "no workload has the key %d", (int)key);
}

struct ns_core_stats lab_core_stats(struct lab *lab)
{
    struct ns_core_stats stats;
    core_stats(lab->core, &stats);
    return stats;
}

time_t deadline(void)
{
    return time(NULL) + WAIT_SECONDS;
}
