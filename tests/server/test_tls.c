/* TLS on the wire: whom a client trusts, whom the server takes, whose tenant a certificate is, and
 * certificates that change under a running server. */
#define _XOPEN_SOURCE 700 /* nftw, mkdtemp */
#include <fcntl.h>
#include <ftw.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "certs.h"
#include "engine/mem.h"
#include "rpc/accept_guard.h"
#include "rpc/rpc_tls.h"
#include "rpc_fixture.h"

#define LOCALHOST "DNS:localhost,IP:127.0.0.1"
#define TOKEN     "alices-token"

static char dir[64];
static authority *ours, *theirs;
static rpc_fixture f; /* outlives a test that fails */
static bool running;

/* A path in the folder; a few are alive at once. */
static const char *at(const char *name)
{
    static char paths[16][160];
    static unsigned next;
    char *path = paths[next++ % 16];
    snprintf(path, sizeof paths[0], "%s/%s", dir, name);
    return path;
}

static void issue(const authority *by, const cert_wish *wish, const char *name)
{
    char cert[80], key[80];
    snprintf(cert, sizeof cert, "%s.pem", name);
    snprintf(key, sizeof key, "%s.key", name);
    authority_issue(by, wish, at(cert), at(key));
}

static int make_files(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/trunkd-tls-XXXXXX");
    if (!mkdtemp(dir)) return -1;
    ours = authority_make("ours", at("ours.pem"));
    theirs = authority_make("theirs", at("theirs.pem"));
    issue(ours, &(cert_wish){.common_name = "server", .names = LOCALHOST}, "server");
    issue(ours, &(cert_wish){.names = "URI:trunkd:tenant:alice"}, "alice-uri");
    issue(ours, &(cert_wish){.common_name = "alice"}, "alice-cn");
    issue(ours, &(cert_wish){.common_name = "alice", .names = "URI:trunkd:tenant:bob"}, "bob");
    issue(ours, &(cert_wish){.names = "URI:trunkd:tenant:alice,URI:trunkd:tenant:bob"}, "both");
    issue(ours, &(cert_wish){.common_name = "alice", .names = "URI:trunkd:tenant:carol"}, "carol");
    issue(ours, &(cert_wish){.common_name = "alice", .names = "URI:trunkd:tenant:"}, "empty");
    issue(ours, &(cert_wish){.common_name = "someone", .names = "DNS:alice"}, "someone");
    issue(theirs, &(cert_wish){.names = "URI:trunkd:tenant:alice"}, "stranger");
    issue(ours, &(cert_wish){.names = "URI:trunkd:tenant:alice", .from_days = -9, .to_days = -2},
          "expired");
    return 0;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

static int remove_files(void **state)
{
    (void)state;
    authority_free(ours);
    authority_free(theirs);
    return nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* -- the server, and calls -- */

static tk_err tenant_named(void *ctx, const char *name, tk_identity *out, tk_diag *diag)
{
    (void)ctx;
    *out = (tk_identity){0};
    if (strcmp(name, "alice") == 0) *out = (tk_identity){.tenant = 1, .name = "alice"};
    if (strcmp(name, "bob") == 0) *out = (tk_identity){.tenant = 2, .name = "bob"};
    return out->tenant ? TK_OK : tk_fail(diag, TK_NOTFOUND, "no such tenant");
}

typedef enum clients { NONE, REQUIRED, OPTIONAL } clients;

static void stop(void)
{
    running = false;
    rpc_fixture_stop(&f);
}

static int clean_up(void **state)
{
    (void)state;
    if (running) stop();
    return 0;
}

static void start_with(const tk_rpc_opts *opts)
{
    rpc_fixture_start(&f, opts);
    running = true;
}

static void start(const char *server, clients who)
{
    char cert[80], key[80], ca[160], cert_path[160], key_path[160];
    snprintf(cert, sizeof cert, "%s.pem", server);
    snprintf(key, sizeof key, "%s.key", server);
    snprintf(cert_path, sizeof cert_path, "%s", at(cert));
    snprintf(key_path, sizeof key_path, "%s", at(key));
    snprintf(ca, sizeof ca, "%s", at("ours.pem"));
    const tk_rpc_opts opts = {.tls = {.cert = cert_path,
                                      .key = key_path,
                                      .client_ca = who == NONE ? NULL : ca,
                                      .client_optional = who == OPTIONAL},
                              .tenant_named = tenant_named};
    start_with(&opts);
}

/* One call on a connection of its own; `cert` is the name of a client's certificate, or NULL. The
 * code; *who is the caller's name when OK. */
static int call_as(const tk_client_tls *tls, const char *token, const char *path, char who[80],
                   tk_client_status *status)
{
    tk_client_status why;
    tk_client *client = tk_client_open_tls(f.address, token, tls, &why);
    if (!client) fail_msg("%s", why.text);
    Trunkd__V1__ClassifyRequest request;
    trunkd__v1__classify_request__init(&request);
    ProtobufCMessage *answer;
    who[0] = '\0';
    if (tk_client_unary(client, path, &request.base, &trunkd__v1__classify_response__descriptor,
                        20000, &answer, status)) {
        const Trunkd__V1__ClassifyResponse *got = (const Trunkd__V1__ClassifyResponse *)answer;
        if (got->n_images == 1 && got->images[0]->n_heads == 1)
            snprintf(who, 80, "%.*s", (int)strcspn(got->images[0]->heads[0]->head, " "),
                     got->images[0]->heads[0]->head);
        tk_client_free_message(answer);
    }
    tk_client_close(client);
    return status->code;
}

static int call(const char *cert, const char *token, char who[80], tk_client_status *status)
{
    char name[80];
    tk_client_tls tls = {.ca = at("ours.pem")};
    if (cert) {
        snprintf(name, sizeof name, "%s.pem", cert);
        tls.cert = at(name);
        snprintf(name, sizeof name, "%s.key", cert);
        tls.key = at(name);
    }
    return call_as(&tls, token, LATER, who, status);
}

static void assert_said(const tk_client_status *status, const char *text)
{
    if (!strstr(status->text, text)) fail_msg("\"%s\" instead of \"%s\"", status->text, text);
}

/* -- whom a client trusts -- */

static void a_token_goes_by_tls(void **state)
{
    (void)state;
    char who[80];
    tk_client_status status;
    start("server", NONE);
    assert_int_equal(call(NULL, TOKEN, who, &status), TK_CLIENT_OK);
    assert_string_equal(who, "alice");
    assert_int_equal(call(NULL, NULL, who, &status), TK_CLIENT_UNAUTHENTICATED);
    /* Nobody asked for it, nobody looked at it: it counts for nothing. */
    assert_int_equal(call("alice-uri", NULL, who, &status), TK_CLIENT_UNAUTHENTICATED);
    assert_int_equal(call_as(NULL, TOKEN, CLASSIFY, who, &status), TK_CLIENT_UNAVAILABLE);
    stop();
    start_with(NULL);
    assert_int_equal(call(NULL, TOKEN, who, &status), TK_CLIENT_UNAVAILABLE);
    assert_said(&status, "does not speak TLS");
    stop();
}

static void a_server_that_is_not_the_right_one_gets_no_token(void **state)
{
    (void)state;
    char who[80];
    tk_client_status status;
    start("server", NONE);
    assert_int_equal(
        call_as(&(tk_client_tls){.ca = at("theirs.pem")}, TOKEN, CLASSIFY, who, &status),
        TK_CLIENT_UNAVAILABLE);
    assert_said(&status, "not from an authority in ");
    const tk_client_tls other = {.ca = at("ours.pem"), .name = "elsewhere.example"};
    assert_int_equal(call_as(&other, TOKEN, CLASSIFY, who, &status), TK_CLIENT_UNAVAILABLE);
    assert_said(&status, "not for elsewhere.example");
    const tk_client_tls same = {.ca = at("ours.pem"), .name = "localhost"};
    assert_int_equal(call_as(&same, TOKEN, CLASSIFY, who, &status), TK_CLIENT_OK);
    stop();

    issue(ours, &(cert_wish){.names = LOCALHOST, .from_days = -9, .to_days = -2}, "old-server");
    start("old-server", NONE);
    assert_int_equal(call(NULL, TOKEN, who, &status), TK_CLIENT_UNAVAILABLE);
    assert_said(&status, "the server's certificate has expired");
    assert_int_equal(rpc_fixture_seen(&f, EV_BEGUN), 0);
    stop();
}

/* -- whom the server takes -- */

static void without_a_good_certificate_nobody_comes_in(void **state)
{
    (void)state;
    char who[80];
    tk_client_status status;
    start("server", REQUIRED);
    assert_int_equal(call(NULL, TOKEN, who, &status), TK_CLIENT_UNAVAILABLE);
    assert_said(&status, "asks for a client certificate");
    assert_int_equal(call("stranger", TOKEN, who, &status), TK_CLIENT_UNAVAILABLE);
    assert_said(&status, "does not take the client certificate");
    assert_int_equal(call("expired", TOKEN, who, &status), TK_CLIENT_UNAVAILABLE);
    assert_said(&status, "expired.pem has expired");
    assert_int_equal(rpc_fixture_seen(&f, EV_BEGUN), 0);
    assert_int_equal(call("someone", TOKEN, who, &status), TK_CLIENT_OK);
    stop();

    start("server", OPTIONAL);
    assert_int_equal(call(NULL, TOKEN, who, &status), TK_CLIENT_OK);
    assert_int_equal(call(NULL, NULL, who, &status), TK_CLIENT_UNAUTHENTICATED);
    assert_int_equal(call("stranger", TOKEN, who, &status), TK_CLIENT_UNAVAILABLE);
    assert_int_equal(call("expired", TOKEN, who, &status), TK_CLIENT_UNAVAILABLE);
    assert_int_equal(call("alice-uri", NULL, who, &status), TK_CLIENT_OK);
    assert_string_equal(who, "alice");
    stop();
}

static void a_certificate_is_its_tenants(void **state)
{
    (void)state;
    static const struct {
        const char *cert, *token, *who; /* who NULL: UNAUTHENTICATED, */
        const char *because;            /* and why */
    } cases[] = {
        {"alice-uri", NULL, "alice", NULL},
        {"alice-cn", NULL, "alice", NULL},
        {"bob", NULL, "bob", NULL}, /* the URI counts, not the common name beside it */
        {"alice-uri", TOKEN, "alice", NULL},
        {"someone", TOKEN, "alice", NULL},
        {"someone", "root-token", "root", NULL},
        {"someone", NULL, NULL, "no token"}, /* a DNS name is no tenant's */
        {"bob", TOKEN, NULL, "not one of the tenant"},
        {"bob", "root-token", NULL, "not one of the tenant"},
        {"bob", "no-such-token", NULL, "not valid here"},
        {"both", NULL, NULL, "two tenants"},
        {"both", TOKEN, NULL, "two tenants"},
        {"carol", NULL, NULL, "not known here"},
        {"carol", TOKEN, NULL, "not known here"},
        {"empty", NULL, NULL, "names no tenant"},
    };
    char who[80];
    tk_client_status status;
    start("server", REQUIRED);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const int code = call(cases[i].cert, cases[i].token, who, &status);
        if (cases[i].who) {
            assert_int_equal(code, TK_CLIENT_OK);
            assert_string_equal(who, cases[i].who);
        } else {
            assert_int_equal(code, TK_CLIENT_UNAUTHENTICATED);
            assert_said(&status, cases[i].because);
            /* Neither whose the token is, nor whose the certificate. */
            assert_null(strstr(status.text, "alice"));
            assert_null(strstr(status.text, "bob"));
        }
    }
    tk_client_tls tls = {
        .ca = at("ours.pem"), .cert = at("alice-uri.pem"), .key = at("alice-uri.key")};
    assert_int_equal(call_as(&tls, NULL, STATUS, who, &status), TK_CLIENT_PERMISSION_DENIED);
    assert_non_null(strstr(status.text, "certificate"));
    stop();
}

/* -- files -- */

static void copy_file(const char *from, const char *to)
{
    char text[8192], temp[200];
    FILE *in = fopen(from, "r");
    assert_non_null(in);
    const size_t n = fread(text, 1, sizeof text, in);
    fclose(in);
    snprintf(temp, sizeof temp, "%s.new", to);
    FILE *out = fopen(temp, "w");
    assert_non_null(out);
    assert_int_equal(fwrite(text, 1, n, out), n);
    fclose(out);
    assert_int_equal(rename(temp, to), 0);
}

static void write_text(const char *path, const char *text)
{
    FILE *out = fopen(path, "w"); /* in place, unlike the others */
    assert_non_null(out);
    fputs(text, out);
    fclose(out);
}

static int trusting(const char *ca)
{
    char who[80];
    tk_client_status status;
    return call_as(&(tk_client_tls){.ca = at(ca)}, TOKEN, CLASSIFY, who, &status);
}

static void a_new_pair_counts_from_the_next_connection_on(void **state)
{
    (void)state;
    tk_client_status status;
    issue(ours, &(cert_wish){.names = LOCALHOST}, "moving");
    start("moving", NONE);
    tk_client *early =
        tk_client_open_tls(f.address, TOKEN, &(tk_client_tls){.ca = at("ours.pem")}, &status);
    assert_non_null(early);
    assert_int_equal(rpc_fixture_classify(early, CLASSIFY, 10, "a", 20000, &status), TK_CLIENT_OK);
    assert_int_equal(trusting("theirs.pem"), TK_CLIENT_UNAVAILABLE);

    issue(theirs, &(cert_wish){.names = LOCALHOST}, "moving");
    assert_int_equal(trusting("theirs.pem"), TK_CLIENT_OK);
    assert_int_equal(trusting("ours.pem"), TK_CLIENT_UNAVAILABLE);
    assert_int_equal(rpc_fixture_classify(early, CLASSIFY, 10, "a", 20000, &status), TK_CLIENT_OK);
    tk_client_close(early);
    stop();
}

static void a_broken_pair_leaves_the_old_one(void **state)
{
    (void)state;
    issue(ours, &(cert_wish){.names = LOCALHOST}, "moving");
    issue(theirs, &(cert_wish){.names = LOCALHOST}, "next");
    start("moving", NONE);
    copy_file(at("next.pem"), at("moving.pem")); /* the key is not its own */
    assert_int_equal(trusting("ours.pem"), TK_CLIENT_OK);
    write_text(at("moving.pem"), "-----BEGIN CERTIFICATE-----\nAAAA\n");
    assert_int_equal(trusting("ours.pem"), TK_CLIENT_OK);
    write_text(at("moving.pem"), "");
    assert_int_equal(trusting("ours.pem"), TK_CLIENT_OK);
    assert_int_equal(unlink(at("moving.pem")), 0);
    assert_int_equal(trusting("ours.pem"), TK_CLIENT_OK);
    assert_int_equal(trusting("theirs.pem"), TK_CLIENT_UNAVAILABLE);
    copy_file(at("next.pem"), at("moving.pem"));
    copy_file(at("next.key"), at("moving.key")); /* whole again */
    assert_int_equal(trusting("theirs.pem"), TK_CLIENT_OK);
    stop();
}

static void clients_answer_to_a_new_authority(void **state)
{
    (void)state;
    char who[80];
    tk_client_status status;
    char ca[160];
    copy_file(at("ours.pem"), at("clients.pem"));
    snprintf(ca, sizeof ca, "%s", at("clients.pem"));
    const tk_rpc_opts opts = {
        .tls = {.cert = at("server.pem"), .key = at("server.key"), .client_ca = ca},
        .tenant_named = tenant_named};
    start_with(&opts);
    assert_int_equal(call("alice-uri", NULL, who, &status), TK_CLIENT_OK);
    assert_int_equal(call("stranger", NULL, who, &status), TK_CLIENT_UNAVAILABLE);
    copy_file(at("theirs.pem"), at("clients.pem"));
    assert_int_equal(call("alice-uri", NULL, who, &status), TK_CLIENT_UNAVAILABLE);
    assert_int_equal(call("stranger", NULL, who, &status), TK_CLIENT_OK);
    stop();
}

static void files_that_cannot_be_used_are_named(void **state)
{
    (void)state;
    write_text(at("garbage"), "no PEM at all\n");
    write_text(at("nothing"), "");
    write_text(at("locked.key"),
               "-----BEGIN ENCRYPTED PRIVATE KEY-----\n"
               "MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAiZQhyVG3jN4AICCAAw\n"
               "DAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoEEKn5r5yIVmcPu1kYcZAAAAAEgZCq\n"
               "-----END ENCRYPTED PRIVATE KEY-----\n");
    assert_int_equal(mkfifo(at("pipe"), 0600), 0);
    static const struct {
        const char *cert, *key, *ca, *named, *why;
    } cases[] = {
        {"absent", "server.key", NULL, "absent", "No such file"},
        {"server.pem", "absent", NULL, "absent", "No such file"},
        {"server.pem", "server.key", "absent", "absent", "No such file"},
        {"garbage", "server.key", NULL, "garbage", "no certificate"},
        {"nothing", "server.key", NULL, "nothing", "no certificate"},
        {"server.pem", "garbage", NULL, "garbage", "no private key"},
        {"server.pem", "server.pem", NULL, "server.pem", "no private key"},
        {"server.pem", "alice-cn.key", NULL, "alice-cn.key", "not that of the certificate"},
        {"server.pem", "server.key", "garbage", "garbage", "no certificate"},
        {"pipe", "server.key", NULL, "pipe", "not a file"},
        {".", "server.key", NULL, ".", "not a file"},
        {"server.pem", "locked.key", NULL, "locked.key", "key"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const tk_rpc_tls files = {.cert = at(cases[i].cert),
                                  .key = at(cases[i].key),
                                  .client_ca = cases[i].ca ? at(cases[i].ca) : NULL};
        tk__rpc_tls *tls;
        tk_diag diag = {{0}};
        assert_int_not_equal(tk__rpc_tls_create(&tls, &files, &diag), TK_OK);
        assert_null(tls);
        if (!strstr(diag.text, cases[i].named) || !strstr(diag.text, cases[i].why))
            fail_msg("%zu: %s", i, diag.text);
    }
    static const struct {
        const char *ca, *cert, *key, *why;
    } of_client[] = {
        {"absent", NULL, NULL, "absent: No such file"},
        {"garbage", NULL, NULL, "garbage: no certificate"},
        {"ours.pem", "bob.pem", NULL, "go together"},
        {"ours.pem", NULL, "bob.key", "go together"},
        {"ours.pem", "bob.pem", "alice-cn.key", "not that of the certificate"},
        {"ours.pem", "bob.pem", "garbage", "no private key"},
        {"ours.pem", "garbage", "bob.key", "no certificate"},
    };
    for (size_t i = 0; i < sizeof of_client / sizeof *of_client; i++) {
        const tk_client_tls files = {.ca = at(of_client[i].ca),
                                     .cert = of_client[i].cert ? at(of_client[i].cert) : NULL,
                                     .key = of_client[i].key ? at(of_client[i].key) : NULL};
        tk_client_status why;
        assert_null(tk_client_open_tls("localhost:1", NULL, &files, &why));
        if (!strstr(why.text, of_client[i].why)) fail_msg("%zu: %s", i, why.text);
    }
}

static void want_of_memory_leaves_nothing(void **state)
{
    (void)state;
    const tk_rpc_tls files = {
        .cert = at("server.pem"), .key = at("server.key"), .client_ca = at("ours.pem")};
    const long before = tk_test_alloc_live();
    for (long n = 0;; n++) {
        tk__rpc_tls *tls;
        tk_test_alloc_fail_after(n);
        const tk_err err = tk__rpc_tls_create(&tls, &files, NULL);
        tk_test_alloc_fail_after(-1);
        if (err == TK_OK) {
            tk__rpc_tls_destroy(tls);
            break;
        }
        assert_int_equal(err, TK_NOMEM);
        assert_null(tls);
        assert_int_equal(tk_test_alloc_live(), before);
    }
    assert_int_equal(tk_test_alloc_live(), before);
}

/* -- want of descriptors -- */

static int raw_connect(void)
{
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    struct sockaddr_in to = {.sin_family = AF_INET};
    to.sin_port = htons((uint16_t)tk_rpc_server_port(f.server));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(fd, (const struct sockaddr *)&to, sizeof to) == 0) return fd;
    close(fd);
    return -1;
}

static void the_listener_outlives_want_of_descriptors(void **state)
{
    (void)state;
    start("server", NONE);
    assert_int_equal(trusting("ours.pem"), TK_CLIENT_OK);
    struct rlimit old, few;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
    few = old;
    few.rlim_cur = 100;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
    int taken[100], held[100], n = 0, n_held = 0;
    const uint64_t shed = tk__accept_guard_shed();
    /* One for our end, none for the server's; again, as other threads give some back meanwhile.
     * Our ends stay open, so that the server's give none back. */
    while (n_held < 100 && tk__accept_guard_shed() == shed) {
        for (int fd; n < 100 && (fd = open("/dev/null", O_RDONLY | O_CLOEXEC)) >= 0;)
            taken[n++] = fd;
        assert_true(n > 0);
        close(taken[--n]);
        const int fd = raw_connect();
        if (fd < 0) continue;
        held[n_held++] = fd;
        char byte;
        const struct timeval patience = {.tv_usec = 200000};
        assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience), 0);
        (void)recv(fd, &byte, 1, 0);
    }
    const bool seen = tk__accept_guard_shed() > shed;
    while (n > 0)
        close(taken[--n]);
    while (n_held > 0)
        close(held[--n_held]);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
    assert_true(seen);
    assert_int_equal(trusting("ours.pem"), TK_CLIENT_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(a_token_goes_by_tls, clean_up),
        cmocka_unit_test_teardown(a_server_that_is_not_the_right_one_gets_no_token, clean_up),
        cmocka_unit_test_teardown(without_a_good_certificate_nobody_comes_in, clean_up),
        cmocka_unit_test_teardown(a_certificate_is_its_tenants, clean_up),
        cmocka_unit_test_teardown(a_new_pair_counts_from_the_next_connection_on, clean_up),
        cmocka_unit_test_teardown(a_broken_pair_leaves_the_old_one, clean_up),
        cmocka_unit_test_teardown(clients_answer_to_a_new_authority, clean_up),
        cmocka_unit_test_teardown(files_that_cannot_be_used_are_named, clean_up),
        cmocka_unit_test_teardown(want_of_memory_leaves_nothing, clean_up),
        cmocka_unit_test_teardown(the_listener_outlives_want_of_descriptors, clean_up),
    };
    return cmocka_run_group_tests(tests, make_files, remove_files);
}
