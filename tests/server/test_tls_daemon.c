/* trunkd and trunkctl over TLS: tenants by certificate, new certificates without a restart, what
 * the log says and does not say, and what is refused at the start. */
#include <netinet/in.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "certs.h"
#include "trunkd_process.h"

#define PB(name)                                                                                   \
    &trunkd__v1__##name##__descriptor /* generated names: only the preprocessor can join them */

enum { STRANGERS = 200 };

static trunkd server;
static authority *ca;
static char ca_pem[300], cert[300], key[300], alice[300], alice_key[300], bob[300], bob_key[300];

static void path(char out[300], const char *name)
{
    snprintf(out, 300, "%s/%s", server.dir, name);
}

static int prepare(void **state)
{
    (void)state;
    trunkd_prepare(&server, 1);
    path(ca_pem, "ca.pem");
    path(cert, "server.pem");
    path(key, "server.key");
    path(alice, "alice.pem");
    path(alice_key, "alice.key");
    path(bob, "bob.pem");
    path(bob_key, "bob.key");
    ca = authority_make("the authority", ca_pem);
    const char here[] = "DNS:localhost,IP:127.0.0.1";
    authority_issue(ca, &(cert_wish){.common_name = "server", .names = here}, cert, key);
    authority_issue(ca, &(cert_wish){.names = "URI:trunkd:tenant:alice"}, alice, alice_key);
    authority_issue(ca, &(cert_wish){.common_name = "bob"}, bob, bob_key);
    return 0;
}

static int clean_up(void **state)
{
    (void)state;
    authority_free(ca);
    trunkd_remove(&server);
    return 0;
}

/* -- calls -- */

/* Lists the heads; the code, and how many there are. */
static int heads(const char *token, const char *own, const char *own_key, size_t *n)
{
    char address[64];
    snprintf(address, sizeof address, "localhost:%d", server.port);
    const tk_client_tls tls = {.ca = ca_pem, .cert = own, .key = own_key};
    tk_client_status why;
    tk_client *client = tk_client_open_tls(address, token, &tls, &why);
    if (!client) fail_msg("%s", why.text);
    Trunkd__V1__Empty in;
    trunkd__v1__empty__init(&in);
    const answer a = ask(client, "/trunkd.v1.Heads/List", &in, PB(list_heads_response));
    *n = a.message ? ((const Trunkd__V1__ListHeadsResponse *)a.message)->n_heads : 0;
    tk_client_free_message(a.message);
    tk_client_close(client);
    return a.status.code;
}

/* Runs trunkctl, which lies beside this test, with what `settings` sets: it ends with `code`, and
 * `out` has all that it printed. */
static void ctl(int code, const char *settings, const char *arguments, char out[8192])
{
    char program[512], command[2048];
    const ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    assert_true(n > 0);
    program[n] = '\0';
    *strrchr(program, '/') = '\0';
    snprintf(command, sizeof command,
             "env XDG_CONFIG_HOME=%s TRUNKD_SERVER=localhost:%d %s '%s/trunkctl' %s 2>&1",
             server.dir, server.port, settings, program, arguments);
    FILE *f = popen(command, "r");
    assert_non_null(f);
    const size_t got = fread(out, 1, 8191, f);
    out[got] = '\0';
    const int status = pclose(f);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != code)
        fail_msg("trunkctl %s: status %d: %s", arguments, status, out);
}

static void start(const char *how)
{
    const char *const flags[] = {"--tls-cert", cert,           "--tls-key", key, "--tls-client-ca",
                                 ca_pem,       "--tls-client", how,         NULL};
    unlink(server.log);
    trunkd_start(&server, flags);
}

/* -- tests -- */

static void a_tenant_needs_no_token_but_a_certificate(void **state)
{
    (void)state;
    size_t n;
    start("required");
    assert_int_equal(heads(NULL, alice, alice_key, &n), TK_CLIENT_OK);
    assert_int_equal(n, 1);
    assert_int_equal(heads(NULL, bob, bob_key, &n), TK_CLIENT_OK);
    assert_int_equal(n, 1);
    assert_int_equal(heads(server.alice_token, alice, alice_key, &n), TK_CLIENT_OK);
    assert_int_equal(heads(server.bob_token, alice, alice_key, &n), TK_CLIENT_UNAUTHENTICATED);
    assert_int_equal(heads(server.alice_token, bob, bob_key, &n), TK_CLIENT_UNAUTHENTICATED);
    assert_int_equal(heads(server.admin_token, bob, bob_key, &n), TK_CLIENT_UNAUTHENTICATED);
    assert_int_equal(heads(server.alice_token, NULL, NULL, &n), TK_CLIENT_UNAVAILABLE);
    assert_int_equal(trunkd_end(&server, SIGTERM), 0);
    assert_true(trunkd_logged(&server, "tls=mutual"));

    start("optional");
    assert_int_equal(heads(server.admin_token, NULL, NULL, &n), TK_CLIENT_OK);
    assert_int_equal(n, 2);
    assert_int_equal(heads(NULL, NULL, NULL, &n), TK_CLIENT_UNAUTHENTICATED);
    assert_int_equal(heads(NULL, alice, alice_key, &n), TK_CLIENT_OK);
    assert_int_equal(n, 1);
    assert_int_equal(trunkd_end(&server, SIGTERM), 0);
}

static void trunkctl_speaks_tls(void **state)
{
    (void)state;
    char settings[1400], out[8192];
    start("required");
    snprintf(settings, sizeof settings,
             "TRUNKD_TLS_CA=%s TRUNKD_TLS_CLIENT_CERT=%s TRUNKD_TLS_CLIENT_KEY=%s", ca_pem, alice,
             alice_key);
    ctl(0, settings, "heads", out);
    assert_non_null(strstr(out, "type"));
    ctl(0, settings, "health --quiet", out);
    ctl(1, settings, "heads --tls-name elsewhere", out);
    assert_non_null(strstr(out, "not for elsewhere"));
    char arguments[1400];
    snprintf(arguments, sizeof arguments,
             "heads --tls-ca %s --tls-client-cert %s --tls-client-key %s", ca_pem, alice,
             alice_key);
    ctl(0, "", arguments, out);
    assert_null(strstr(out, "chmod"));
    assert_int_equal(chmod(alice_key, 0644), 0);
    ctl(0, "", arguments, out);
    assert_non_null(strstr(out, "chmod 600"));
    assert_int_equal(chmod(alice_key, 0600), 0);

    snprintf(settings, sizeof settings, "TRUNKD_TLS_CA=%s", ca_pem);
    ctl(1, settings, "heads", out);
    assert_non_null(strstr(out, "asks for a client certificate"));
    ctl(1, settings, "heads --tls-client-key x", out);
    assert_non_null(strstr(out, "go together"));
    ctl(1, "TRUNKD_TLS=perhaps", "heads", out);
    assert_non_null(strstr(out, "must be yes or no"));
    ctl(1, "TRUNKD_TLS=no", "heads", out);
    assert_non_null(strstr(out, "may expect TLS"));
    snprintf(arguments, sizeof arguments, "heads --tls-ca %s", alice);
    ctl(1, "", arguments, out);
    assert_non_null(strstr(out, "not from an authority in"));
    assert_int_equal(trunkd_end(&server, SIGTERM), 0);
}

static void a_new_certificate_needs_no_restart_and_a_broken_one_one_line(void **state)
{
    (void)state;
    size_t n;
    char spare[300];
    path(spare, "spare.key");
    const cert_wish wish = {.common_name = "server", .names = "DNS:localhost"};
    assert_int_equal(chmod(key, 0644), 0);
    start("required");
    assert_int_equal(heads(NULL, alice, alice_key, &n), TK_CLIENT_OK);
    authority_issue(ca, &wish, cert, key);
    assert_int_equal(heads(NULL, alice, alice_key, &n), TK_CLIENT_OK);
    assert_int_equal(trunkd_log_lines(&server, "certificate loaded"), 2);
    authority_issue(ca, &wish, cert, spare); /* not the key that is in use */
    for (int i = 0; i < 3; i++)
        assert_int_equal(heads(NULL, alice, alice_key, &n), TK_CLIENT_OK);
    assert_int_equal(trunkd_log_lines(&server, "certificate not taken"), 1);
    assert_int_equal(trunkd_log_lines(&server, "certificate loaded"), 2);
    assert_int_equal(rename(spare, key), 0);
    assert_int_equal(heads(NULL, alice, alice_key, &n), TK_CLIENT_OK);
    assert_int_equal(trunkd_log_lines(&server, "certificate loaded"), 3);
    assert_int_equal(trunkd_log_lines(&server, "may reach the TLS key"), 1);
    assert_int_equal(trunkd_end(&server, SIGTERM), 0);
}

/* The second line of a PEM file: enough of a key to be known by. */
static void assert_not_logged(const char *file)
{
    char line[128];
    FILE *f = fopen(file, "r");
    assert_non_null(f);
    for (int i = 0; i < 2; i++)
        assert_non_null(fgets(line, sizeof line, f));
    fclose(f);
    line[strcspn(line, "\n")] = '\0';
    assert_int_equal(trunkd_log_lines(&server, line), 0);
}

/* Something that is no TLS, until the server hangs up. */
static void no_handshake(void)
{
    struct sockaddr_in to = {.sin_family = AF_INET};
    to.sin_port = htons((uint16_t)server.port);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (const struct sockaddr *)&to, sizeof to), 0);
    char byte;
    assert_int_equal(send(fd, "GET / HTTP/1.1\r\n\r\n", 18, MSG_NOSIGNAL), 18);
    while (recv(fd, &byte, 1, 0) > 0) {
    }
    close(fd);
}

static void handshakes_cannot_fill_the_log_nor_secrets_get_there(void **state)
{
    (void)state;
    size_t n;
    start("required");
    assert_int_equal(heads(server.alice_token, NULL, NULL, &n), TK_CLIENT_UNAVAILABLE);
    for (int i = 0; i < STRANGERS; i++)
        no_handshake();
    assert_int_equal(heads("tk_no_such_token", alice, alice_key, &n), TK_CLIENT_UNAUTHENTICATED);
    assert_int_equal(heads(server.alice_token, alice, alice_key, &n), TK_CLIENT_OK);
    assert_int_equal(trunkd_end(&server, SIGTERM), 0);
    assert_true(trunkd_log_lines(&server, "peer did not return a certificate") > 0);
    assert_in_range(trunkd_log_lines(&server, "event=grpc"), 1,
                    STRANGERS / 2); /* a few in ten seconds */
    assert_int_equal(trunkd_log_lines(&server, server.alice_token), 0);
    assert_int_equal(trunkd_log_lines(&server, "tk_no_such_token"), 0);
    assert_not_logged(key);
    assert_not_logged(alice_key);
}

static void a_tenant_that_left_has_no_certificate(void **state)
{
    (void)state;
    char address[64], name[] = "bob";
    size_t n;
    start("optional");
    snprintf(address, sizeof address, "localhost:%d", server.port);
    tk_client_status why;
    tk_client *admin =
        tk_client_open_tls(address, server.admin_token, &(tk_client_tls){.ca = ca_pem}, &why);
    assert_non_null(admin);
    Trunkd__V1__DeleteTenantRequest in;
    trunkd__v1__delete_tenant_request__init(&in);
    in.name = name;
    const answer a = ask(admin, "/trunkd.v1.Admin/DeleteTenant", &in, PB(empty));
    assert_int_equal(a.status.code, TK_CLIENT_OK);
    tk_client_free_message(a.message);
    tk_client_close(admin);
    assert_int_equal(heads(NULL, bob, bob_key, &n), TK_CLIENT_UNAUTHENTICATED);
    assert_int_equal(heads(server.bob_token, bob, bob_key, &n), TK_CLIENT_UNAUTHENTICATED);
    assert_int_equal(heads(NULL, alice, alice_key, &n), TK_CLIENT_OK);
    assert_int_equal(trunkd_end(&server, SIGTERM), 0);
}

static void what_is_not_safe_does_not_start(void **state)
{
    (void)state;
    char store[300];
    path(store, "store");
    unlink(server.log);
    const char *const open[] = {"--store", store, "--listen", "0.0.0.0:0", NULL};
    assert_int_equal(trunkd_run(&server, open), 2);
    assert_true(trunkd_logged(&server, "--tls-cert and --tls-key, or --allow-plaintext yes"));
    const char *const mixed[] = {"--store", store,       "--listen", "0.0.0.0:0", "--tls-cert",
                                 cert,      "--tls-key", alice_key,  NULL};
    assert_int_equal(trunkd_run(&server, mixed), 1);
    assert_true(trunkd_logged(&server, "alice.key: the key is not that of the certificate"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_tenant_needs_no_token_but_a_certificate),
        cmocka_unit_test(trunkctl_speaks_tls),
        cmocka_unit_test(a_new_certificate_needs_no_restart_and_a_broken_one_one_line),
        cmocka_unit_test(handshakes_cannot_fill_the_log_nor_secrets_get_there),
        cmocka_unit_test(what_is_not_safe_does_not_start),
        cmocka_unit_test(a_tenant_that_left_has_no_certificate),
    };
    return cmocka_run_group_tests(tests, prepare, clean_up);
}
