/* Certificates for tests: an authority, and what it signs. Everything aborts on failure. */
#ifndef TESTS_SERVER_CERTS_H
#define TESTS_SERVER_CERTS_H

typedef struct authority authority;

typedef struct cert_wish {
    const char *common_name; /* NULL: none */
    const char *names;       /* "DNS:localhost,IP:127.0.0.1,URI:trunkd:tenant:alice"; NULL: none */
    int from_days, to_days;  /* validity, counted from now; both 0: from -1 to 30 */
} cert_wish;

/* Makes an authority; its certificate goes to `path`. */
authority *authority_make(const char *name, const char *path);
void authority_free(authority *a);
/* A certificate with a key of its own. The files are replaced, each in one step. */
void authority_issue(const authority *a, const cert_wish *wish, const char *cert, const char *key);

#endif
