/* See certs.h. */
#include "certs.h"

#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

struct authority {
    EVP_PKEY *key;
    X509 *cert;
};

static void must(bool ok, const char *what)
{
    if (ok) return;
    fprintf(stderr, "certs: %s failed\n", what);
    abort();
}

static void add_extension(X509 *cert, X509 *issuer, int nid, const char *value)
{
    X509V3_CTX ctx;
    X509V3_set_ctx_nodb(&ctx);
    X509V3_set_ctx(&ctx, issuer, cert, NULL, NULL, 0);
    X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
    must(extension && X509_add_ext(cert, extension, -1), "an extension");
    X509_EXTENSION_free(extension);
}

static X509 *blank(EVP_PKEY *key, const cert_wish *wish)
{
    static long serial = 1;
    const bool usual = wish->from_days == 0 && wish->to_days == 0;
    const long day = 86400;
    X509 *cert = X509_new();
    must(cert && X509_set_version(cert, 2), "a certificate");
    must(ASN1_INTEGER_set(X509_get_serialNumber(cert), serial++), "a serial number");
    must(X509_gmtime_adj(X509_getm_notBefore(cert), (usual ? -1 : wish->from_days) * day) &&
             X509_gmtime_adj(X509_getm_notAfter(cert), (usual ? 30 : wish->to_days) * day),
         "a date");
    must(X509_set_pubkey(cert, key), "a key");
    X509_NAME *name = X509_get_subject_name(cert);
    if (wish->common_name)
        must(X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_UTF8,
                                        (const unsigned char *)wish->common_name, -1, -1, 0),
             "a name");
    return cert;
}

/* In one step, so that a reader never sees half of it. */
static void write_pem(const char *path, X509 *cert, EVP_PKEY *key)
{
    char temp[512];
    snprintf(temp, sizeof temp, "%s.new", path);
    const int fd = open(temp, O_WRONLY | O_CREAT | O_TRUNC, cert ? 0644 : 0600);
    FILE *f = fd < 0 ? NULL : fdopen(fd, "w");
    must(f != NULL, temp);
    must(cert ? PEM_write_X509(f, cert) : PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL),
         path);
    must(fclose(f) == 0 && rename(temp, path) == 0, path);
}

authority *authority_make(const char *name, const char *path)
{
    authority *a = calloc(1, sizeof *a);
    must(a != NULL, "memory");
    const cert_wish wish = {.common_name = name};
    a->key = EVP_EC_gen("P-256");
    must(a->key != NULL, "a key");
    a->cert = blank(a->key, &wish);
    must(X509_set_issuer_name(a->cert, X509_get_subject_name(a->cert)), "a name");
    add_extension(a->cert, a->cert, NID_basic_constraints, "critical,CA:TRUE");
    must(X509_sign(a->cert, a->key, EVP_sha256()), "signing");
    write_pem(path, a->cert, NULL);
    return a;
}

void authority_free(authority *a)
{
    if (!a) return;
    EVP_PKEY_free(a->key);
    X509_free(a->cert);
    free(a);
}

void authority_issue(const authority *a, const cert_wish *wish, const char *cert, const char *key)
{
    EVP_PKEY *own = EVP_EC_gen("P-256");
    must(own != NULL, "a key");
    X509 *made = blank(own, wish);
    must(X509_set_issuer_name(made, X509_get_subject_name(a->cert)), "a name");
    if (wish->names) add_extension(made, a->cert, NID_subject_alt_name, wish->names);
    must(X509_sign(made, a->key, EVP_sha256()), "signing");
    write_pem(cert, made, NULL);
    write_pem(key, NULL, own);
    X509_free(made);
    EVP_PKEY_free(own);
}
