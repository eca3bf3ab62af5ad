/* Credentials from files. They are looked at before the core gets them: of a file that it cannot
 * use it only says that there is no channel. */
#include "rpc_client_tls.h"

#include <errno.h>
#include <netdb.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

enum { MAX_FILE = 4 << 20, PATIENCE_S = 3 };

static void fail(tk_client_status *why, const char *path, const char *text)
{
    *why = (tk_client_status){.code = TK_CLIENT_INVALID_ARGUMENT};
    snprintf(why->text, sizeof why->text, "%s: %s", path, text);
}

/* The file's text, for wipe(); NULL: *why. */
static char *read_text(const char *path, tk_client_status *why)
{
    FILE *file = fopen(path, "re");
    struct stat st;
    if (!file || fstat(fileno(file), &st) != 0) {
        fail(why, path, strerror(errno));
        if (file) fclose(file);
        return NULL;
    }
    const bool fits = S_ISREG(st.st_mode) && st.st_size <= MAX_FILE;
    char *text = fits ? calloc(1, (size_t)st.st_size + 1) : NULL;
    if (!text)
        fail(why, path, fits ? "out of memory" : "not a PEM file");
    else if (fread(text, 1, (size_t)st.st_size, file) != (size_t)st.st_size)
        fail(why, path, "cannot be read");
    fclose(file);
    if (why->code == 0) return text;
    free(text);
    return NULL;
}

static void wipe(char *text)
{
    if (text) OPENSSL_cleanse(text, strlen(text));
    free(text);
}

/* In place of OpenSSL's own, which asks on the terminal. */
static int no_password(char *buffer, int size, int writing, void *asked)
{
    (void)buffer, (void)size, (void)writing;
    *(bool *)asked = true;
    return -1;
}

static X509 *first_certificate(const char *text)
{
    bool asked = false;
    BIO *in = BIO_new_mem_buf(text, -1);
    X509 *cert = in ? PEM_read_bio_X509_AUX(in, NULL, no_password, &asked) : NULL;
    BIO_free(in);
    return cert;
}

static bool has_certificate(const char *path, const char *text, tk_client_status *why)
{
    X509 *cert = first_certificate(text);
    if (!cert) fail(why, path, "no certificate in it (PEM is expected)");
    X509_free(cert);
    return cert != NULL;
}

static bool belong_together(const tk_client_tls *tls, const grpc_ssl_pem_key_cert_pair *pair,
                            tk_client_status *why)
{
    bool asked = false;
    BIO *in = BIO_new_mem_buf(pair->private_key, -1);
    EVP_PKEY *key = in ? PEM_read_bio_PrivateKey(in, NULL, no_password, &asked) : NULL;
    X509 *cert = first_certificate(pair->cert_chain);
    const bool fine = key && cert && X509_check_private_key(cert, key) == 1;
    if (!fine)
        fail(why, tls->key,
             asked ? "the key is encrypted, and no password is taken"
             : key ? "the key is not that of the certificate"
                   : "no private key in it (PEM is expected)");
    X509_free(cert);
    EVP_PKEY_free(key);
    BIO_free(in);
    return fine;
}

/* The system's certificates, where distributions keep them; Debian's first. */
static const char *system_roots(void)
{
    static const char *const places[] = {"/etc/ssl/certs/ca-certificates.crt",
                                         "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"};
    struct stat st;
    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        if (stat(places[i], &st) == 0) return places[i];
    return NULL;
}

grpc_channel_credentials *tk__client_tls_credentials(const tk_client_tls *tls,
                                                     tk_client_status *why)
{
    grpc_channel_credentials *made = NULL;
    const char *ca = tls->ca ? tls->ca : system_roots();
    char *roots = NULL, *cert = NULL, *key = NULL;
    if (!ca)
        fail(why, "TLS",
             "this system has no certificates to trust: name the server's CA (--tls-ca), or "
             "install ca-certificates");
    else if (!tls->cert != !tls->key)
        fail(why, tls->cert ? tls->cert : tls->key,
             "a client certificate and its key go together, and one is missing");
    else if ((roots = read_text(ca, why)) && has_certificate(ca, roots, why) && tls->cert &&
             (cert = read_text(tls->cert, why)) && has_certificate(tls->cert, cert, why))
        key = read_text(tls->key, why);
    grpc_ssl_pem_key_cert_pair pair = {key, cert};
    if (why->code == 0 && (!key || belong_together(tls, &pair, why)))
        made = grpc_ssl_credentials_create_ex(roots, key ? &pair : NULL, NULL, NULL);
    if (!made && why->code == 0) fail(why, ca, "no TLS with these files");
    ERR_clear_error();
    free(roots);
    free(cert);
    wipe(key);
    return made;
}

/* -- why a handshake failed -- */

static int connect_to(int family, const struct sockaddr *to, socklen_t len)
{
    const struct timeval patience = {.tv_sec = PATIENCE_S};
    const int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) == 0 &&
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience) == 0 &&
        connect(fd, to, len) == 0)
        return fd;
    close(fd);
    return -1;
}

static int connect_unix(const char *path)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    if (strncmp(path, "//", 2) == 0) path += 2;
    if (strlen(path) >= sizeof to.sun_path) return -1;
    memcpy(to.sun_path, path, strlen(path) + 1);
    return connect_to(AF_UNIX, (const struct sockaddr *)&to, sizeof to);
}

/* "host:port", "[::1]:port", "unix:path"; -1 for anything else, or nobody there. */
static int connect_address(const char *address)
{
    if (strncmp(address, "unix:", 5) == 0) return connect_unix(address + 5);
    char host[256];
    const char *colon = strrchr(address, ':');
    const bool bracket = *address == '[';
    if (!colon || colon == address || (bracket && colon[-1] != ']')) return -1;
    const int n = snprintf(host, sizeof host, "%.*s", (int)(colon - address) - 2 * bracket,
                           address + bracket);
    if (n <= 0 || (size_t)n >= sizeof host) return -1;
    const struct addrinfo wish = {.ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;
    if (getaddrinfo(host, colon + 1, &wish, &found) != 0) return -1;
    int fd = -1;
    for (const struct addrinfo *a = found; a && fd < 0; a = a->ai_next)
        fd = connect_to(a->ai_family, a->ai_addr, a->ai_addrlen);
    freeaddrinfo(found);
    return fd;
}

static bool of_server(long verified, const char *ca, char *text, size_t size)
{
    switch (verified) {
    case X509_V_OK:
        return false;
    case X509_V_ERR_CERT_HAS_EXPIRED:
        snprintf(text, size, "the server's certificate has expired");
        return true;
    case X509_V_ERR_CERT_NOT_YET_VALID:
        snprintf(text, size, "the server's certificate is not valid yet; is this clock right?");
        return true;
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
        snprintf(text, size, "the server's certificate is not from an authority in %s", ca);
        return true;
    default:
        snprintf(text, size, "the server's certificate: %s",
                 X509_verify_cert_error_string(verified));
        return true;
    }
}

/* The server's certificate is good, and the connection ended all the same. */
static bool of_client(SSL *ssl, const tk_client_tls *tls, char *text, size_t size)
{
    const STACK_OF(X509_NAME) *asked = SSL_get0_peer_CA_list(ssl);
    if (!asked || sk_X509_NAME_num(asked) == 0) return false;
    const X509 *own = tls->cert ? SSL_get_certificate(ssl) : NULL;
    if (!own)
        snprintf(text, size, "the server asks for a client certificate, and there is none");
    else if (X509_cmp_current_time(X509_get0_notAfter(own)) < 0)
        snprintf(text, size, "the server does not take the client certificate: %s has expired",
                 tls->cert);
    else
        snprintf(text, size, "the server does not take the client certificate %s", tls->cert);
    return true;
}

static bool try_handshake(SSL *ssl, const tk_client_tls *tls, const char *ca, char *text,
                          size_t size)
{
    char byte;
    ERR_clear_error();
    if (SSL_connect(ssl) == 1 && SSL_read(ssl, &byte, 1) == 1)
        return false; /* it goes well here: let the core's words stand */
    if (of_server(SSL_get_verify_result(ssl), ca, text, size)) return true;
    const int reason = ERR_GET_REASON(ERR_peek_error());
    if (reason == SSL_R_WRONG_VERSION_NUMBER) {
        snprintf(text, size, "the server does not speak TLS");
        return true;
    }
    return of_client(ssl, tls, text, size);
}

static int no_password_at_all(char *buffer, int size, int writing, void *unused)
{
    (void)unused;
    bool asked;
    return no_password(buffer, size, writing, &asked);
}

static SSL_CTX *context(const tk_client_tls *tls, const char *ca)
{
    static const unsigned char h2[] = "\002h2";
    SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
    if (!ctx) return NULL;
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER, NULL);
    SSL_CTX_set_default_passwd_cb(ctx, no_password_at_all);
    if (SSL_CTX_load_verify_locations(ctx, ca, NULL) == 1 &&
        SSL_CTX_set_alpn_protos(ctx, h2, sizeof h2 - 1) == 0 &&
        (!tls->cert || (SSL_CTX_use_certificate_chain_file(ctx, tls->cert) == 1 &&
                        SSL_CTX_use_PrivateKey_file(ctx, tls->key, SSL_FILETYPE_PEM) == 1)))
        return ctx;
    SSL_CTX_free(ctx);
    return NULL;
}

/* OpenSSL writes to sockets as to files: one that was closed at the other end would raise SIGPIPE.
 */
static bool without_sigpipe(SSL *ssl, const tk_client_tls *tls, const char *ca, char *text,
                            size_t size)
{
    sigset_t pipe_only, before, waiting;
    sigemptyset(&pipe_only);
    sigaddset(&pipe_only, SIGPIPE);
    sigpending(&waiting);
    pthread_sigmask(SIG_BLOCK, &pipe_only, &before);
    const bool told = try_handshake(ssl, tls, ca, text, size);
    if (!sigismember(&waiting, SIGPIPE)) /* then what waits now is ours */
        while (sigtimedwait(&pipe_only, NULL, &(struct timespec){0}) > 0) {
        }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return told;
}

bool tk__client_tls_explain(const char *address, const tk_client_tls *tls, char *text, size_t size)
{
    const char *ca = tls->ca ? tls->ca : system_roots();
    SSL_CTX *ctx = ca ? context(tls, ca) : NULL;
    SSL *ssl = ctx ? SSL_new(ctx) : NULL;
    const int fd = ssl ? connect_address(address) : -1;
    const bool told =
        fd >= 0 && SSL_set_fd(ssl, fd) == 1 && without_sigpipe(ssl, tls, ca, text, size);
    SSL_free(ssl);
    SSL_CTX_free(ctx);
    if (fd >= 0) close(fd);
    ERR_clear_error();
    return told;
}
