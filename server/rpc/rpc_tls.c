/* See rpc_tls.h. The core asks a callback at every handshake whether there is something new. It
 * looks at the files' stamps first, then at a digest of what is in them, and then tries all of it
 * on an OpenSSL context of its own, as the core will: what the core could not use never reaches it.
 * The texts live from the reading to the handing over. */
#include "rpc/rpc_tls.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include "engine/mem.h"
#include "log.h"

enum {
    CERT,
    KEY,
    CLIENT_CA,
    FILES,
    MAX_FILE = 1 << 20,
    SETTLED_S = 2, /* a file may change again within one tick of its time stamp */
    DIGEST = 32,
};

typedef struct stamp {
    dev_t device;
    ino_t inode;
    off_t size;
    struct timespec modified, changed;
} stamp;

typedef struct pem {
    char *text; /* NUL-terminated; NULL: not read */
    size_t size;
} pem;

struct tk__rpc_tls {
    char *paths[FILES]; /* paths[CLIENT_CA] may be NULL */
    bool optional;      /* client certificates */
    pthread_mutex_t lock;
    stamp seen[FILES];           /* lock */
    bool settled;                /* lock; `seen` is enough to know that nothing changed */
    unsigned char tried[DIGEST]; /* lock; of the texts that were checked last */
    pem good[FILES];             /* lock; checked, and not handed over yet */
    bool warned_of_mode;         /* lock */
    tk_diag told;                /* lock; why the files cannot be read, in the log already */
};

/* -- files -- */

static void pem_fini(pem *p)
{
    if (p->text) OPENSSL_cleanse(p->text, p->size); /* it may be a key */
    tk_free(p->text);
    *p = (pem){0};
}

static void all_fini(pem texts[FILES])
{
    for (size_t i = 0; i < FILES; i++)
        pem_fini(&texts[i]);
}

static stamp stamp_of(const struct stat *st)
{
    return (stamp){st->st_dev, st->st_ino, st->st_size, st->st_mtim, st->st_ctim};
}

static bool same_time(struct timespec a, struct timespec b)
{
    return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

static bool same_stamp(const stamp *a, const stamp *b)
{
    return a->device == b->device && a->inode == b->inode && a->size == b->size &&
           same_time(a->modified, b->modified) && same_time(a->changed, b->changed);
}

static bool unchanged_locked(const tk__rpc_tls *tls)
{
    for (size_t i = 0; i < FILES; i++) {
        struct stat st;
        if (!tls->paths[i]) continue;
        if (stat(tls->paths[i], &st) != 0) return false;
        const stamp now = stamp_of(&st);
        if (!same_stamp(&now, &tls->seen[i])) return false;
    }
    return tls->settled;
}

static tk_err read_all(int fd, const char *path, pem *out, tk_diag *diag)
{
    size_t got = 0;
    while (got < out->size) {
        const ssize_t n = read(fd, out->text + got, out->size - got);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return tk_fail_errno(diag, "cannot read %s", path);
        if (n == 0) break;
        got += (size_t)n;
    }
    if (got == out->size && !memchr(out->text, '\0', got)) return TK_OK;
    return tk_fail(diag, TK_BADDATA, "%s is not a PEM file, or is being written", path);
}

static tk_err read_open(int fd, const char *path, pem *out, struct stat *st, tk_diag *diag)
{
    if (fstat(fd, st) != 0) return tk_fail_errno(diag, "cannot read %s", path);
    if (!S_ISREG(st->st_mode)) return tk_fail(diag, TK_BADDATA, "%s is not a file", path);
    if (st->st_size > MAX_FILE)
        return tk_fail(diag, TK_BADDATA, "%s has %lld bytes, the limit is %d", path,
                       (long long)st->st_size, MAX_FILE);
    out->size = (size_t)st->st_size;
    out->text = tk_calloc(out->size + 1, 1);
    if (!out->text) return tk_fail(diag, TK_NOMEM, "no memory for %s", path);
    return read_all(fd, path, out, diag);
}

static tk_err read_file(const char *path, pem *out, struct stat *st, tk_diag *diag)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe would block here */
    if (fd < 0) return tk_fail_errno(diag, "cannot read %s", path);
    const tk_err err = read_open(fd, path, out, st, diag);
    close(fd);
    return err;
}

static void warn_of_mode_locked(tk__rpc_tls *tls, const struct stat *st)
{
    if (tls->warned_of_mode || !(st->st_mode & (S_IROTH | S_IWOTH))) return;
    tls->warned_of_mode = true;
    tk_log(TK_LOG_WARN, "everybody on this machine may reach the TLS key; run chmod o= on it",
           (tk_log_field[]){tk_log_str("key", tls->paths[KEY]), tk_log_end()});
}

/* All texts, and the stamps that they had. The caller frees `texts`, also after a failure. */
static tk_err read_texts_locked(tk__rpc_tls *tls, pem texts[FILES], tk_diag *diag)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    tls->settled = true;
    for (size_t i = 0; i < FILES; i++) {
        struct stat st = {0};
        if (!tls->paths[i]) continue;
        const tk_err err = read_file(tls->paths[i], &texts[i], &st, diag);
        if (err != TK_OK) {
            tls->settled = false;
            return err;
        }
        if (i == KEY) warn_of_mode_locked(tls, &st);
        tls->seen[i] = stamp_of(&st);
        tls->settled &= now.tv_sec - st.st_ctim.tv_sec > SETTLED_S;
    }
    return TK_OK;
}

static bool digest_of(const pem texts[FILES], unsigned char out[DIGEST])
{
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    bool ok = ctx && EVP_DigestInit_ex(ctx, EVP_sha256(), NULL);
    for (size_t i = 0; ok && i < FILES; i++) {
        ok = EVP_DigestUpdate(ctx, &texts[i].size, sizeof texts[i].size) != 0;
        if (ok && texts[i].text) ok = EVP_DigestUpdate(ctx, texts[i].text, texts[i].size) != 0;
    }
    ok = ok && EVP_DigestFinal_ex(ctx, out, NULL);
    EVP_MD_CTX_free(ctx);
    return ok;
}

/* -- do they hold together? -- */

/* Whether reading ended for want of another certificate, not in the midst of one. */
static bool at_end(void)
{
    return ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
}

/* In place of OpenSSL's own, which asks on the terminal. */
static int no_password(char *buffer, int size, int writing, void *asked)
{
    (void)buffer, (void)size, (void)writing;
    *(bool *)asked = true;
    return -1;
}

static BIO *reader(const pem *p)
{
    return p->text ? BIO_new_mem_buf(p->text, (int)p->size) : NULL;
}

static tk_err refused(const char *path, const char *what, tk_diag *diag)
{
    char reason[160] = "";
    const unsigned long code = ERR_peek_last_error();
    if (code) ERR_error_string_n(code, reason, sizeof reason);
    const char *words = strrchr(reason, ':');
    return tk_fail(diag, TK_BADDATA, "%s: %s%s%s", path, what, words ? ": " : "",
                   words ? words + 1 : "");
}

static tk_err use_chain(SSL_CTX *ctx, const char *path, const pem *p, tk_diag *diag)
{
    bool asked = false;
    BIO *in = reader(p);
    X509 *first = in ? PEM_read_bio_X509_AUX(in, NULL, no_password, &asked) : NULL;
    tk_err err = TK_OK;
    if (!first || SSL_CTX_use_certificate(ctx, first) != 1)
        err = refused(path, "no certificate that TLS can use", diag);
    X509_free(first);
    for (X509 *next; err == TK_OK && (next = PEM_read_bio_X509(in, NULL, no_password, &asked));) {
        if (SSL_CTX_add_extra_chain_cert(ctx, next) == 1) continue; /* the context's now */
        X509_free(next);
        err = refused(path, "its chain has a certificate that TLS cannot use", diag);
    }
    if (err == TK_OK && !at_end()) err = refused(path, "its chain is broken", diag);
    BIO_free(in);
    return err;
}

static tk_err use_key(SSL_CTX *ctx, char *const paths[FILES], const pem *p, tk_diag *diag)
{
    bool asked = false;
    BIO *in = reader(p);
    EVP_PKEY *key = in ? PEM_read_bio_PrivateKey(in, NULL, no_password, &asked) : NULL;
    tk_err err = TK_OK;
    if (asked)
        err = tk_fail(diag, TK_BADDATA, "%s: the key is encrypted, and trunkd takes no password",
                      paths[KEY]);
    else if (!key)
        err = refused(paths[KEY], "no private key", diag);
    else if (SSL_CTX_use_PrivateKey(ctx, key) != 1 || SSL_CTX_check_private_key(ctx) != 1)
        err = tk_fail(diag, TK_BADDATA, "%s: the key is not that of the certificate in %s",
                      paths[KEY], paths[CERT]);
    EVP_PKEY_free(key);
    BIO_free(in);
    return err;
}

static tk_err check_ca(const char *path, const pem *p, tk_diag *diag)
{
    bool asked = false;
    size_t n = 0;
    BIO *in = reader(p);
    for (X509 *next; in && (next = PEM_read_bio_X509_AUX(in, NULL, no_password, &asked)); n++)
        X509_free(next);
    BIO_free(in);
    if (n > 0 && at_end()) return TK_OK;
    return refused(path, n ? "broken after its first certificates" : "no certificate in it", diag);
}

static tk_err check_texts(const tk__rpc_tls *tls, const pem texts[FILES], tk_diag *diag)
{
    ERR_clear_error();
    SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());
    tk_err err = ctx ? TK_OK : tk_fail(diag, TK_NOMEM, "no memory for TLS");
    if (err == TK_OK) err = use_chain(ctx, tls->paths[CERT], &texts[CERT], diag);
    if (err == TK_OK) err = use_key(ctx, tls->paths, &texts[KEY], diag);
    if (err == TK_OK && tls->paths[CLIENT_CA])
        err = check_ca(tls->paths[CLIENT_CA], &texts[CLIENT_CA], diag);
    SSL_CTX_free(ctx);
    ERR_clear_error(); /* the core asks the same thread's queue about its own calls */
    return err;
}

/* -- telling -- */

static void date_of(const ASN1_TIME *time, char out[32])
{
    struct tm tm;
    snprintf(out, 32, "unknown");
    if (ASN1_TIME_to_tm(time, &tm)) strftime(out, 32, "%Y-%m-%dT%H:%M:%SZ", &tm);
}

static void log_loaded(const tk__rpc_tls *tls, const pem *chain)
{
    bool asked = false;
    char until[32] = "unknown";
    BIO *in = reader(chain);
    X509 *cert = in ? PEM_read_bio_X509_AUX(in, NULL, no_password, &asked) : NULL;
    bool expired = false, early = false;
    if (cert) {
        date_of(X509_get0_notAfter(cert), until);
        expired = X509_cmp_current_time(X509_get0_notAfter(cert)) < 0;
        early = X509_cmp_current_time(X509_get0_notBefore(cert)) > 0;
    }
    X509_free(cert);
    BIO_free(in);
    tk_log(expired || early ? TK_LOG_WARN : TK_LOG_INFO,
           expired ? "certificate loaded, but it has expired"
           : early ? "certificate loaded, but it is not valid yet"
                   : "certificate loaded",
           (tk_log_field[]){tk_log_str("file", tls->paths[CERT]), tk_log_str("until", until),
                            tk_log_end()});
}

static void log_kept(const tk_diag *diag)
{
    tk_log(TK_LOG_WARN, "new certificate not taken, the old one stays",
           (tk_log_field[]){tk_log_str("reason", diag->text), tk_log_end()});
}

/* -- loading -- */

/* Checks what was read, unless it is what was tried last; takes it when it is good. */
static tk_err try_texts_locked(tk__rpc_tls *tls, pem texts[FILES], tk_diag *diag)
{
    unsigned char digest[DIGEST];
    if (!digest_of(texts, digest)) return tk_fail(diag, TK_INTERNAL, "no SHA-256");
    if (memcmp(digest, tls->tried, DIGEST) == 0) return TK_OK;
    memcpy(tls->tried, digest, DIGEST);
    const tk_err err = check_texts(tls, texts, diag);
    if (err == TK_NOMEM) { /* says nothing about the files: again at the next handshake */
        memset(tls->tried, 0, DIGEST);
        tls->settled = false;
    }
    if (err != TK_OK) return err;
    all_fini(tls->good);
    memcpy(tls->good, texts, sizeof tls->good);
    memset(texts, 0, sizeof tls->good);
    log_loaded(tls, &tls->good[CERT]);
    return TK_OK;
}

static tk_err load_locked(tk__rpc_tls *tls, tk_diag *diag)
{
    pem texts[FILES] = {{0}};
    tk_err err = read_texts_locked(tls, texts, diag);
    if (err == TK_OK) err = try_texts_locked(tls, texts, diag);
    all_fini(texts);
    return err;
}

/* At a handshake. A fault is told once, not at every handshake while it lasts. */
static void reload_locked(tk__rpc_tls *tls)
{
    tk_diag diag = {0};
    if (load_locked(tls, &diag) == TK_OK) {
        tls->told.text[0] = '\0';
    } else if (strcmp(diag.text, tls->told.text) != 0) {
        tls->told = diag;
        log_kept(&diag);
    }
}

/* The core's callback; its handshakes' threads. */
static grpc_ssl_certificate_config_reload_status fetch(void *self,
                                                       grpc_ssl_server_certificate_config **out)
{
    tk__rpc_tls *tls = self;
    pthread_mutex_lock(&tls->lock);
    if (!unchanged_locked(tls)) reload_locked(tls);
    const bool new = tls->good[CERT].text != NULL;
    if (new) {
        const grpc_ssl_pem_key_cert_pair pair = {tls->good[KEY].text, tls->good[CERT].text};
        /* Debian's core asserts that there are roots, also where no client is asked for anything:
         * then they are never looked at. */
        const char *roots = tls->good[CLIENT_CA].text ? tls->good[CLIENT_CA].text : pair.cert_chain;
        *out = grpc_ssl_server_certificate_config_create(roots, &pair, 1);
        all_fini(tls->good);
    }
    pthread_mutex_unlock(&tls->lock);
    return new ? GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW
               : GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
}

tk_err tk__rpc_tls_create(tk__rpc_tls **out, const tk_rpc_tls *files, tk_diag *diag)
{
    *out = NULL;
    tk__rpc_tls *tls = tk_calloc(1, sizeof *tls);
    if (!tls) return tk_fail(diag, TK_NOMEM, "no memory for TLS");
    pthread_mutex_init(&tls->lock, NULL);
    tls->optional = files->client_optional;
    tls->paths[CERT] = tk_strdup(files->cert);
    tls->paths[KEY] = tk_strdup(files->key);
    if (files->client_ca) tls->paths[CLIENT_CA] = tk_strdup(files->client_ca);
    tk_err err = TK_OK;
    if (!tls->paths[CERT] || !tls->paths[KEY] || (files->client_ca && !tls->paths[CLIENT_CA]))
        err = tk_fail(diag, TK_NOMEM, "no memory for TLS");
    pthread_mutex_lock(&tls->lock);
    if (err == TK_OK) err = load_locked(tls, diag);
    pthread_mutex_unlock(&tls->lock);
    if (err == TK_OK)
        *out = tls;
    else
        tk__rpc_tls_destroy(tls);
    return err;
}

void tk__rpc_tls_destroy(tk__rpc_tls *tls)
{
    if (!tls) return;
    all_fini(tls->good);
    for (size_t i = 0; i < FILES; i++)
        tk_free(tls->paths[i]);
    pthread_mutex_destroy(&tls->lock);
    tk_free(tls);
}

grpc_server_credentials *tk__rpc_tls_credentials(tk__rpc_tls *tls)
{
    const grpc_ssl_client_certificate_request_type clients =
        !tls->paths[CLIENT_CA] ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
        : tls->optional        ? GRPC_SSL_REQUEST_CLIENT_CERTIFICATE_AND_VERIFY
                               : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY;
    return grpc_ssl_server_credentials_create_with_options(
        grpc_ssl_server_credentials_create_options_using_config_fetcher(clients, fetch, tls));
}

bool tk__rpc_tls_verifies(const tk__rpc_tls *tls)
{
    return tls && tls->paths[CLIENT_CA];
}

/* -- whom a client's certificate names -- */

static bool copy_name(tk__rpc_named *out, const char *text, size_t len)
{
    if (len == 0 || len >= sizeof out->name || memchr(text, '\0', len)) return false;
    memcpy(out->name, text, len);
    out->name[len] = '\0';
    return true;
}

static tk_err name_by_uri(const grpc_auth_context *peer, tk__rpc_named *out, tk_diag *diag)
{
    static const char prefix[] = "trunkd:tenant:";
    const size_t skip = sizeof prefix - 1;
    grpc_auth_property_iterator it =
        grpc_auth_context_find_properties_by_name(peer, GRPC_PEER_URI_PROPERTY_NAME);
    for (const grpc_auth_property *p; (p = grpc_auth_property_iterator_next(&it));) {
        if (p->value_length < skip || memcmp(p->value, prefix, skip) != 0) continue;
        if (out->by_uri)
            return tk_fail(diag, TK_UNAUTHENTICATED, "the client certificate names two tenants");
        if (!copy_name(out, p->value + skip, p->value_length - skip))
            return tk_fail(diag, TK_UNAUTHENTICATED,
                           "the client certificate's URI \"%s...\" names no tenant", prefix);
        out->by_uri = true;
    }
    return TK_OK;
}

static void name_by_common_name(const grpc_auth_context *peer, tk__rpc_named *out)
{
    grpc_auth_property_iterator it =
        grpc_auth_context_find_properties_by_name(peer, GRPC_X509_CN_PROPERTY_NAME);
    const grpc_auth_property *p = grpc_auth_property_iterator_next(&it);
    if (p) copy_name(out, p->value, p->value_length);
}

tk_err tk__rpc_tls_named(grpc_call *call, tk__rpc_named *out, tk_diag *diag)
{
    *out = (tk__rpc_named){0};
    grpc_auth_context *peer = grpc_call_auth_context(call);
    if (!peer) return TK_OK;
    tk_err err = TK_OK;
    if (grpc_auth_context_peer_is_authenticated(peer)) {
        err = name_by_uri(peer, out, diag);
        if (err == TK_OK && !out->by_uri) name_by_common_name(peer, out);
    }
    grpc_auth_context_release(peer);
    return err;
}
