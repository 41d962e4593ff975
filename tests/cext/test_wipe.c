/* What has worked with a private number leaves nothing of it behind, on the stack or in registers. */
#define _GNU_SOURCE
#include "base/wipe.h"

#include <pthread.h>
#include <sys/mman.h>

#include "core_ends.h"
#include "credentials.h"
#include "loop/handshakes.h"

/* As it is compiled for use: a call at its end would become a jump, behind which nothing is wiped any more.
 */
#pragma GCC push_options
#pragma GCC optimize("O2")
#define wipe_behind wipe_behind_in_use
#define noinline noinline, no_sanitize("address", "undefined")
#include "base/wipe.c"
#undef noinline
#undef wipe_behind
#pragma GCC pop_options

/* ---- the stack ---- */

enum { STACK = 1 << 20 };

/* A copy of a private number that OpenSSL's assembler has worked on. */
static const uint8_t LEFT[] = "a copy of a private number that nobody has wiped";

/* The sanitizer of later compilers keeps variables elsewhere. */
static __attribute__((noinline, no_sanitize("address"))) void leave_behind(void)
{
    volatile uint8_t deep[8192]; /* what is called next does not reach its end */
    for (size_t i = 0; i < sizeof(LEFT); i++)
        deep[i] = LEFT[i];
    (void)deep[0];
}

int __real_tls_credentials_init(struct tls_credentials *credentials, OSSL_LIB_CTX *libctx,
                                struct trust *trust, const char *chain, struct tls_key key, char *error,
                                size_t error_size);
int __wrap_tls_credentials_init(struct tls_credentials *credentials, OSSL_LIB_CTX *libctx,
                                struct trust *trust, const char *chain, struct tls_key key, char *error,
                                size_t error_size);
int __real_SSL_do_handshake(SSL *ssl);
int __wrap_SSL_do_handshake(SSL *ssl);

int __wrap_tls_credentials_init(struct tls_credentials *credentials, OSSL_LIB_CTX *libctx,
                                struct trust *trust, const char *chain, struct tls_key key, char *error,
                                size_t error_size)
{
    int result = __real_tls_credentials_init(credentials, libctx, trust, chain, key, error, error_size);
    leave_behind();
    return result;
}

int __wrap_SSL_do_handshake(SSL *ssl)
{
    int result = __real_SSL_do_handshake(ssl);
    leave_behind();
    return result;
}

/* Runs it on a stack of its own, for the caller to look at and to unmap. */
static uint8_t *run_on_stack(void *(*run)(void *), void *argument)
{
    uint8_t *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pthread_attr_t attributes;
    pthread_t thread;
    CHECK(stack != MAP_FAILED);
    CHECK_EQUAL(pthread_attr_init(&attributes), 0);
    CHECK_EQUAL(pthread_attr_setstack(&attributes, stack, STACK), 0);
    CHECK_EQUAL(pthread_create(&thread, &attributes, run, argument), 0);
    pthread_join(thread, NULL);
    pthread_attr_destroy(&attributes);
    return stack;
}

/* The sanitizer knows of variables there that are gone. */
__attribute__((no_sanitize("address"))) static int stack_has(const uint8_t *stack, const uint8_t *part,
                                                             size_t length)
{
    for (size_t at = 0; at + length <= STACK; at++) {
        size_t same = 0;
        while (same < length && stack[at + same] == part[same])
            same++;
        if (same == length)
            return 1;
    }
    return 0;
}

struct handing {
    struct lab *lab;
    const char *chain;
    int fd, result;
};

static void *hand_over(void *argument)
{
    struct handing *handing = argument;
    char error[256] = "";
    handing->result = core_workload_credentials_from(handing->lab->core, SHIPPER_KEY, handing->chain,
                                                     handing->fd, error, sizeof(error));
    return NULL;
}

static void *make_step(void *argument)
{
    handshakes_make(argument);
    return NULL;
}

/* What is found there without any wiping: else the other tests would hold nothing. */
static void *leave(void *unused)
{
    leave_behind();
    return unused;
}

TEST(what_is_left_on_a_stack_is_found)
{
    uint8_t *stack = run_on_stack(leave, NULL);
    CHECK(stack_has(stack, LEFT, sizeof(LEFT)));
    munmap(stack, STACK);
}

TEST(nothing_of_a_key_that_was_handed_over_stays_on_the_stack)
{
    struct lab *lab = lab_new();
    struct certificate_wish wish = {.uris = {SHIPPER}};
    struct certificate leaf = certificate_new(&lab->authority.intermediate, &wish);
    char *chain = certificate_chain_pem(&leaf, &lab->authority.intermediate);
    char *pem = certificate_key_pem(&leaf);
    struct handing handing = {.lab = lab, .chain = chain, .fd = memfd_create("key", MFD_CLOEXEC)};
    CHECK_EQUAL(write(handing.fd, pem, strlen(pem)), (ssize_t)strlen(pem));
    uint8_t *stack = run_on_stack(hand_over, &handing);
    CHECK_EQUAL(handing.result, 0);
    CHECK(!stack_has(stack, LEFT, sizeof(LEFT)));
    CHECK(!stack_has(stack, (const uint8_t *)pem + 60, 16)); /* of its second line */
    munmap(stack, STACK);
    close(handing.fd);
    free(chain);
    free(pem);
    certificate_dispose(&leaf);
    lab_free(lab);
}

TEST(nothing_that_a_handshake_has_worked_with_stays_on_the_stack)
{
    struct authority authority = authority_new();
    struct certificate_wish wish = {.uris = {SHIPPER}};
    struct certificate leaf = certificate_new(&authority.intermediate, &wish);
    char *chain = certificate_chain_pem(&leaf, &authority.intermediate);
    char *pem = certificate_key_pem(&leaf);
    char *bundle = certificate_chain_pem(&authority.root, NULL);
    char error[NS_REASON_MAX] = "";
    struct tls_credentials credentials;
    struct handshakes handshakes = {0};
    struct link made;
    struct tls tls;
    struct step step;
    CHECK_EQUAL(credentials_init(&credentials, NULL, chain, pem, bundle, error, sizeof(error)), 0);
    CHECK_EQUAL(tls_init(&tls, TLS_CLIENT, &credentials, "example.org", PIPELINE), 0);
    step_init(&step, &tls);
    handshakes_init(&handshakes, -1);
    handshakes_give(&handshakes, &step);
    uint8_t *stack = run_on_stack(make_step, &handshakes);
    link_init(&made);
    handshakes_take(&handshakes, &made);
    CHECK_EQUAL(step.result, TLS_WANT);
    CHECK(step.output_length > 0);
    CHECK(!stack_has(stack, LEFT, sizeof(LEFT)));
    munmap(stack, STACK);
    step_dispose(&step);
    handshakes_dispose(&handshakes);
    tls_dispose(&tls);
    credentials_dispose(&credentials);
    free(chain);
    free(pem);
    free(bundle);
    certificate_dispose(&leaf);
    authority_dispose(&authority);
}

/* ---- registers ---- */

/* Vector registers have 32 bytes, of which compilers for processors without AVX know half. */
TEST(registers_are_wiped_whole)
{
#if defined(__x86_64__)
    uint64_t general;
    static uint8_t left[2][32];
    static uint8_t secret[32], nothing[32];
    if (!__builtin_cpu_supports("avx"))
        return;
    memset(secret, 0x5a, sizeof(secret));
    __asm__ volatile("vmovdqu %[secret], %%ymm3\n\t"
                     "vmovdqu %[secret], %%ymm15\n\t"
                     "mov $0x5a5a5a5a, %%r10\n\t"
                     "mov %%rsp, %%r12\n\t"
                     "sub $256, %%rsp\n\t" /* beyond the red zone */
                     "and $-64, %%rsp\n\t"
                     "call wipe_behind_in_use\n\t"
                     "mov %%r12, %%rsp\n\t"
                     "mov %%r10, %[general]\n\t"
                     "vmovdqu %%ymm3, %[third]\n\t"
                     "vmovdqu %%ymm15, %[last]\n\t"
                     "vzeroupper"
                     : [general] "=m"(general), [third] "=m"(left[0]), [last] "=m"(left[1])
                     : [secret] "m"(secret)
                     : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "cc", "memory",
                       "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
                       "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
    CHECK_EQUAL(general, 0);
    for (int i = 0; i < 2; i++)
        CHECK_CASE(memcmp(left[i], nothing, sizeof(nothing)) == 0, "%d", i);
#endif
}

CHECK_MAIN
