/*
 * tls.c: see tls.h.
 *
 * In the handshake OpenSSL talks to a BIO of our own type whose read side is the bytes being fed and whose
 * write side is the sink. It reads no further than the last record of the handshake, whatever else is fed
 * with it, because `read_ahead` is off.
 */
#include "wire/tls.h"

#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "wire/chain.h"
#include "wire/key_heap.h"
#include "wire/peer.h"
#include "wire/pem.h"
#include "wire/profile.h"
#include "wire/svid.h"
#include "wire/tls_bounds.h"
#include "wire/tls_words.h"

static const unsigned char ALPN_H2[] = {2, 'h', '2'};
static const char HEAP_FULL[] = "the locked memory for private keys is full";

/* ---- the BIO ---- */

static int bio_write(BIO *bio, const char *bytes, size_t length, size_t *written)
{
    struct tls *tls = BIO_get_data(bio);
    struct tls_sink *sink = tls->sink;
    /* Those of an earlier read would make a full sink look like a wish for input. */
    BIO_clear_retry_flags(bio);
    if (sink == NULL || sink->capacity - sink->length < length)
        return 0;
    memcpy(sink->bytes + sink->length, bytes, length);
    sink->length += length;
    *written = length;
    return 1;
}

static int bio_read(BIO *bio, char *out, size_t capacity, size_t *got)
{
    struct tls *tls = BIO_get_data(bio);
    BIO_clear_retry_flags(bio);
    if (library_is_flooded(&tls->library))
        return 0; /* without a wish to go on: an error */
    if (tls->feed.length == 0) {
        BIO_set_retry_read(bio);
        return 0;
    }
    size_t part = capacity < tls->feed.length ? capacity : tls->feed.length;
    memcpy(out, tls->feed.bytes, part);
    tls->feed.bytes += part;
    tls->feed.length -= part;
    *got = part;
    return 1;
}

static long bio_ctrl(BIO *bio, int command, long number, void *pointer)
{
    (void)bio;
    (void)number;
    (void)pointer;
    return command == BIO_CTRL_FLUSH;
}

static BIO_METHOD *bio_method;
static int session_index; /* of the struct tls in an SSL's ex_data */

__attribute__((constructor)) static void bio_method_init(void)
{
    bio_method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "nodeseal");
    BIO_meth_set_write_ex(bio_method, bio_write);
    BIO_meth_set_read_ex(bio_method, bio_read);
    BIO_meth_set_ctrl(bio_method, bio_ctrl);
    session_index = SSL_get_ex_new_index(0, NULL, NULL, NULL, NULL);
}

/* ---- identity ---- */

/* Runs inside the handshake in the place of OpenSSL's own verification: 0 ends it with an alert. */
static int verify_peer(X509_STORE_CTX *store_ctx, void *unused)
{
    (void)unused;
    SSL *ssl = X509_STORE_CTX_get_ex_data(store_ctx, SSL_get_ex_data_X509_STORE_CTX_idx());
    struct tls *tls = SSL_get_ex_data(ssl, session_index);
    const int is_server = SSL_is_server(ssl);
    const struct peer peer = {
        .libctx = tls->libctx,
        .trust = tls->trust,
        .trust_domain = tls->trust_domain,
        .role = is_server ? SVID_CLIENT : SVID_SERVER,
        .expected = is_server ? NULL : tls->expected,
        .own = &tls->own,
    };
    if (peer_verify(&peer, store_ctx, &tls->peers, tls->error))
        return 1;
    /* Of a peer that is not at fault, as when this end is revoked, nothing is shown. */
    const int own = X509_STORE_CTX_get_error(store_ctx) == X509_V_ERR_APPLICATION_VERIFICATION;
    if (!own && tls->presented == NULL && (tls->presented = malloc(TLS_PRESENTED_MAX)) != NULL)
        svid_presented(X509_STORE_CTX_get0_cert(store_ctx), tls->presented, TLS_PRESENTED_MAX);
    return 0;
}

static int select_alpn(SSL *ssl, const unsigned char **out, unsigned char *out_length,
                       const unsigned char *in, unsigned int in_length, void *unused)
{
    (void)ssl;
    (void)unused;
    for (unsigned int i = 0; i + 1 < in_length; i += in[i] + 1u) {
        if (in[i] == 2 && i + 2 < in_length && memcmp(in + i + 1, ALPN_H2 + 1, 2) == 0) {
            *out = in + i + 1;
            *out_length = 2;
            return SSL_TLSEXT_ERR_OK;
        }
    }
    return SSL_TLSEXT_ERR_ALERT_FATAL;
}

void tls_name_of(OSSL_LIB_CTX *libctx, const char *identity, char out[TLS_NAME_SIZE])
{
    enum { USED = 16 };
    unsigned char digest[EVP_MAX_MD_SIZE];
    size_t length;
    out[0] = 0;
    if (!EVP_Q_digest(libctx, "SHA256", NULL, identity, strlen(identity), digest, &length))
        return;
    for (int i = 0; i < USED; i++)
        snprintf(out + 2 * i, 3, "%02x", digest[i]);
    snprintf(out + 2 * USED, TLS_NAME_SIZE - 2 * USED, ".nodeseal");
}

/* Runs inside a handshake before a certificate is needed. -1 leaves it (SSL_CTX_set_cert_cb(3)): a server has
 * read the hello, and answered nothing. Its answer will not tell that the name was read. */
static int wait_for_choice(SSL *ssl, void *unused)
{
    (void)unused;
    const struct tls *tls = SSL_get_ex_data(ssl, session_index);
    return tls->choosing ? -1 : 1;
}

/* ---- what the record layer needs to go on after the handshake ---- */

/* The session's keys are known only here. Of the four secrets of a handshake those of its data are kept. */
static void take_secret(const SSL *ssl, const char *line)
{
    static const char *const LABELS[] = {"CLIENT_TRAFFIC_SECRET_0 ", "SERVER_TRAFFIC_SECRET_0 "};
    struct tls *tls = SSL_get_ex_data(ssl, session_index);
    for (int of_server = 0; of_server < 2; of_server++) {
        size_t label_length = strlen(LABELS[of_server]);
        if (strncmp(line, LABELS[of_server], label_length) != 0)
            continue;
        struct record_keys *keys =
            of_server == SSL_is_server(ssl) ? &tls->record.sealing : &tls->record.opening;
        const char *secret = strchr(line + label_length, ' '); /* behind the client's random bytes */
        if (secret == NULL || !OPENSSL_hexstr2buf_ex(keys->secret, sizeof(keys->secret), &keys->secret_length,
                                                     secret + 1, '\0'))
            keys->secret_length = 0;
    }
}

/* OpenSSL tells of a message before it reads it, and cannot be told to leave it: so it finds another one. */
static void look_at_chain(struct tls *tls, const void *bytes, size_t length)
{
    const char *wrong = chain_refused(bytes, length);
    if (wrong == NULL)
        return;
    snprintf(tls->error, sizeof(tls->error), "%s", wrong);
    chain_spoil((uint8_t *)(uintptr_t)bytes, length);
}

/* Behind its Finished a side writes under the keys that the record layer is to begin with, so that nothing
 * may have been written or read there. */
static void watch_message(int writes, int version, int type, const void *bytes, size_t length, SSL *ssl,
                          void *unused)
{
    (void)version;
    (void)unused;
    struct tls *tls = SSL_get_ex_data(ssl, session_index);
    const uint8_t side = writes ? 1 : 2;
    if (type != SSL3_RT_HANDSHAKE && type != SSL3_RT_ALERT)
        return;
    if (tls->finished & side)
        tls->late = 1;
    if (type == SSL3_RT_HANDSHAKE && !writes && tls->library.ssl != NULL)
        library_note_message(&tls->library);
    if (type == SSL3_RT_HANDSHAKE && length > 0 && *(const uint8_t *)bytes == SSL3_MT_FINISHED)
        tls->finished |= side;
    if (type == SSL3_RT_HANDSHAKE && length > 0 && *(const uint8_t *)bytes == SSL3_MT_CERTIFICATE && !writes)
        look_at_chain(tls, bytes, length);
}

/* Lets the record layer go on where OpenSSL stands now, and frees OpenSSL's session. NULL, or why it cannot.
 */
static const char *record_begin(struct tls *tls)
{
    const SSL_CIPHER *cipher = SSL_get_current_cipher(tls->ssl);
    if (SSL_version(tls->ssl) != TLS1_3_VERSION || cipher == NULL || tls->finished != 3 || tls->late ||
        SSL_has_pending(tls->ssl))
        return "the handshake has no clean end";
    if (record_start(&tls->record, SSL_CIPHER_get_protocol_id(cipher), tls->libctx,
                     !SSL_is_server(tls->ssl)) != 0)
        return tls->record.failure;
    SSL_free(tls->ssl);
    tls->ssl = NULL;
    return NULL;
}

/* The handshake is done: to the record layer, or with the profile `fips` to OpenSSL itself. 0, or -1 with an
 * error. */
static int tls_hand_over(struct tls *tls)
{
    unsigned fragment = SSL_SESSION_get_max_fragment_length(SSL_get0_session(tls->ssl));
    const char *wrong = NULL;
    if (fragment >= TLSEXT_max_fragment_length_512 && fragment <= TLSEXT_max_fragment_length_4096)
        wrong = "the peer asks for short records (max_fragment_length)";
    else if (profile_is_fips(tls->libctx))
        library_start(&tls->library, tls->ssl);
    else
        wrong = record_begin(tls);
    if (wrong == NULL)
        return 0;
    tls->record.failure = wrong;
    snprintf(tls->error, sizeof(tls->error), "TLS: %s", wrong);
    return -1;
}

/* ---- credentials ---- */

static void error_line(char *error, size_t size, const char *what)
{
    unsigned long code = ERR_peek_error();
    const char *reason = code == 0 ? NULL : ERR_reason_error_string(code);
    snprintf(error, size, "%s%s%s", what, reason == NULL ? "" : ": ", reason == NULL ? "" : reason);
    ERR_clear_error();
}

/* One for both roles: a session takes its role when it begins. */
static SSL_CTX *context_new(OSSL_LIB_CTX *libctx, const char *chain_pem, struct tls_key key, char *error,
                            size_t error_size)
{
    ERR_clear_error();
    /* Those that are there go on: what is left is for their handshakes. */
    SSL_CTX *ctx = key_heap_is_full() ? NULL : SSL_CTX_new_ex(libctx, NULL, TLS_method());
    if (ctx == NULL) {
        error_line(error, error_size, key_heap_is_full() ? HEAP_FULL : "OpenSSL cannot make a context");
        return NULL;
    }
    const char *wrong = NULL;
    if (!SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION) ||
        !SSL_CTX_set_ciphersuites(ctx, "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384"))
        wrong = "OpenSSL lacks TLS 1.3 with AES-GCM";
    else if ((wrong = tls_bounds_set(ctx, profile_is_fips(libctx))) != NULL)
        ;
    else if (pem_load_chain(ctx, libctx, chain_pem) != 0)
        wrong = "the certificate chain cannot be read";
    else if (pem_load_key(ctx, libctx, key.bytes, key.length) != 0)
        wrong = "the private key cannot be read or does not fit the certificate";
    if (wrong != NULL) {
        error_line(error, error_size, key_heap_is_full() ? HEAP_FULL : wrong);
        SSL_CTX_free(ctx);
        return NULL;
    }
    /* Tickets right after the handshake can deadlock a peer that only writes; pooled tunnels do not need
     * them. */
    SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION);
    SSL_CTX_set_num_tickets(ctx, 0);
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_mode(ctx, SSL_MODE_RELEASE_BUFFERS);
    if (!profile_is_fips(libctx))
        SSL_CTX_set_keylog_callback(ctx, take_secret);
    SSL_CTX_set_msg_callback(ctx, watch_message);
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    SSL_CTX_set_cert_verify_callback(ctx, verify_peer, NULL);
    SSL_CTX_set_alpn_protos(ctx, ALPN_H2, sizeof(ALPN_H2));
    SSL_CTX_set_alpn_select_cb(ctx, select_alpn, NULL);
    SSL_CTX_set_cert_cb(ctx, wait_for_choice, NULL);
    return ctx;
}

int tls_credentials_init(struct tls_credentials *credentials, OSSL_LIB_CTX *libctx, struct trust *trust,
                         const char *chain_pem, struct tls_key key, char *error, size_t error_size)
{
    char identity[NS_IDENTITY_MAX];
    memset(credentials, 0, sizeof(*credentials));
    credentials->libctx = libctx;
    credentials->trust = trust;
    credentials->context = context_new(libctx, chain_pem, key, error, error_size);
    if (credentials->context == NULL)
        return -1;
    X509 *certificate = SSL_CTX_get0_certificate(credentials->context);
    credentials->presented = malloc(TLS_PRESENTED_MAX);
    if (credentials->presented != NULL)
        svid_presented(certificate, credentials->presented, TLS_PRESENTED_MAX);
    if (svid_identity(certificate, identity) == 0) {
        tls_name_of(libctx, identity, credentials->name);
        STACK_OF(X509) *signers = NULL;
        (void)SSL_CTX_get0_chain_certs(credentials->context, &signers);
        /* A root may be sent along, behind as many as there can be. */
        int count = signers == NULL ? 0 : sk_X509_num(signers);
        count = count < REVOKED_SIGNERS_MOST ? count : REVOKED_SIGNERS_MOST;
        if (digests_of(libctx, certificate, identity, signers, 0, count, &credentials->digests) != 0)
            memset(&credentials->digests, 0, sizeof(credentials->digests));
    }
    return 0;
}

void tls_credentials_dispose(struct tls_credentials *credentials)
{
    SSL_CTX_free(credentials->context);
    free(credentials->presented);
    credentials->context = NULL;
    credentials->presented = NULL;
}

/* ---- sessions ---- */

int tls_init(struct tls *tls, enum tls_role role, const struct tls_credentials *credentials,
             const char *trust_domain, const char *expected)
{
    memset(tls, 0, sizeof(*tls));
    tls->trust_domain = trust_domain;
    tls->trust = credentials->trust;
    tls->libctx = credentials->libctx;
    tls->own = credentials->digests;
    tls->facts = TLS_NO_FACTS;
    if (expected != NULL)
        snprintf(tls->expected, sizeof(tls->expected), "%s", expected);
    tls->ssl = SSL_new(credentials->context);
    BIO *bio = tls->ssl == NULL ? NULL : BIO_new(bio_method);
    if (bio == NULL || !SSL_set_ex_data(tls->ssl, session_index, tls)) {
        BIO_free(bio);
        tls_dispose(tls);
        return -1;
    }
    BIO_set_data(bio, tls);
    BIO_set_init(bio, 1);
    SSL_set_bio(tls->ssl, bio, bio);
    if (role == TLS_CLIENT)
        SSL_set_connect_state(tls->ssl);
    else
        SSL_set_accept_state(tls->ssl);
    return 0;
}

int tls_ask_by_name(struct tls *tls)
{
    char name[TLS_NAME_SIZE];
    tls_name_of(tls->libctx, tls->expected, name);
    return name[0] != 0 && SSL_set_tlsext_host_name(tls->ssl, name) ? 0 : -1;
}

void tls_dispose(struct tls *tls)
{
    SSL_free(tls->ssl);
    tls->ssl = NULL;
    tls->library.ssl = NULL;
    record_dispose(&tls->record);
    free(tls->presented);
    tls->presented = NULL;
}

void tls_feed(struct tls *tls, const uint8_t *bytes, size_t length)
{
    tls->feed.bytes = bytes;
    tls->feed.length = length;
}

/* Notes why OpenSSL failed. */
static enum tls_result openssl_failed(struct tls *tls)
{
    if (ERR_peek_error() != 0)
        tls->record.alert = tls_error_alert(ERR_peek_error());
    if (tls->error[0] == 0 && tls_error_words(ERR_peek_error()) != NULL)
        snprintf(tls->error, sizeof(tls->error), "%s", tls_error_words(ERR_peek_error()));
    if (tls->error[0] == 0 && key_heap_is_spent())
        snprintf(tls->error, sizeof(tls->error), "TLS: %s", HEAP_FULL);
    if (tls->error[0] == 0)
        error_line(tls->error, sizeof(tls->error), "TLS");
    ERR_clear_error();
    return TLS_FAILED;
}

/* Turns OpenSSL's error for the last call into a result. */
static enum tls_result handshake_result(struct tls *tls, int returned)
{
    switch (SSL_get_error(tls->ssl, returned)) {
    case SSL_ERROR_WANT_READ:
        return TLS_WANT;
    case SSL_ERROR_WANT_X509_LOOKUP:
        return TLS_CHOOSE;
    case SSL_ERROR_ZERO_RETURN:
        return TLS_CLOSED;
    default:
        return openssl_failed(tls);
    }
}

enum tls_result tls_handshake(struct tls *tls, struct tls_sink *sink)
{
    ERR_clear_error();
    tls->sink = sink;
    int done = SSL_do_handshake(tls->ssl);
    tls->sink = NULL;
    if (done != 1)
        return handshake_result(tls, done);
    const unsigned char *alpn;
    unsigned int alpn_length;
    SSL_get0_alpn_selected(tls->ssl, &alpn, &alpn_length);
    if (alpn_length != 2 || memcmp(alpn, ALPN_H2 + 1, 2) != 0) {
        snprintf(tls->error, sizeof(tls->error), "peer does not speak HTTP/2 (ALPN h2)");
        return TLS_FAILED;
    }
    char peer[NS_IDENTITY_MAX];
    struct tls_facts facts = tls_facts_of(tls->ssl);
    memcpy(facts.anchor, tls->peers.anchor, sizeof(facts.anchor));
    if (svid_identity(SSL_get0_peer_certificate(tls->ssl), peer) != 0 || tls_hand_over(tls) != 0)
        return TLS_FAILED;
    tls->facts = facts;
    /* Only now has the peer proved that it holds the certificate's key. */
    snprintf(tls->peer, sizeof(tls->peer), "%s", peer);
    return TLS_OK;
}

const char *tls_wanted(const struct tls *tls)
{
    return SSL_get_servername(tls->ssl, TLSEXT_NAMETYPE_host_name);
}

void tls_present(struct tls *tls, const struct tls_credentials *credentials)
{
    tls->choosing = 0;
    if (credentials != NULL && SSL_get_SSL_CTX(tls->ssl) != credentials->context) {
        (void)SSL_set_SSL_CTX(tls->ssl, credentials->context);
        tls->own = credentials->digests;
    }
}

/* Notes why the record layer failed; the words for an alert say already who means what. */
static enum tls_result record_result(struct tls *tls, enum tls_result result)
{
    if (result == TLS_FAILED && tls->error[0] == 0) {
        const char *failure = tls->record.failure;
        int of_peer = strncmp(failure, "peer ", strlen("peer ")) == 0;
        snprintf(tls->error, sizeof(tls->error), "%s%s", of_peer ? "" : "TLS: ", failure);
    }
    return result;
}

/* After a call of library.h: its reason, once, if it broke the session. */
static enum tls_result library_result(struct tls *tls, enum tls_result result)
{
    tls->sink = NULL;
    if (tls->library.failure != NULL && tls->error[0] == 0)
        snprintf(tls->error, sizeof(tls->error), "TLS: %s", tls->library.failure);
    if (tls->library.broken && tls->error[0] == 0)
        (void)openssl_failed(tls);
    return result;
}

enum tls_result tls_read(struct tls *tls, struct tls_sink *sink, uint8_t *out, size_t capacity,
                         size_t *length)
{
    if (tls->library.ssl == NULL)
        return record_result(tls, record_read(&tls->record, &tls->feed, sink, out, capacity, length));
    tls->sink = sink;
    return library_result(tls, library_read(&tls->library, out, capacity, length));
}

enum tls_result tls_write(struct tls *tls, struct tls_sink *sink, const uint8_t *bytes, size_t length)
{
    if (tls->library.ssl == NULL)
        return record_result(tls, record_write(&tls->record, sink, bytes, length));
    tls->sink = sink;
    return library_result(tls, library_write(&tls->library, bytes, length));
}

void tls_close(struct tls *tls, struct tls_sink *sink)
{
    if (tls->library.ssl == NULL) {
        record_end(&tls->record, sink);
        return;
    }
    tls->sink = sink;
    library_end(&tls->library);
    tls->sink = NULL;
}

void tls_refuse(struct tls *tls, struct tls_sink *sink, uint8_t alert)
{
    if (tls->library.ssl == NULL)
        record_refuse(&tls->record, sink, alert);
    else
        tls->library.ended = 1;
}

int tls_was_refused(const struct tls *tls)
{
    return tls_alert_refuses(tls->record.alert);
}

int tls_has_heard(const struct tls *tls)
{
    return tls->library.ssl == NULL ? tls->record.opening.sequence > 1 : tls->library.heard;
}

const char *tls_revoked(const struct tls *tls, uint8_t *alert)
{
    return revoked_reason(tls->trust->revoked, &tls->peers, &tls->own, alert);
}
