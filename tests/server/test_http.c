/* The HTTP port by itself: what it answers, and to whom it does not bend. */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/mem.h"
#include "http.h"
#include "scrape.h"

typedef struct fixture {
    tk_metrics *metrics;
    tk_http *http;
    int port;
    long live_before;
} fixture;

static int setup(void **state)
{
    static fixture f;
    tk_diag diag;
    f = (fixture){.live_before = tk_test_alloc_live()};
    assert_int_equal(tk_metrics_create(&f.metrics), TK_OK);
    if (tk_http_start(&f.http, "127.0.0.1:0", f.metrics, &diag) != TK_OK) fail_msg("%s", diag.text);
    f.port = tk_http_port(f.http);
    assert_true(f.port > 0);
    *state = &f;
    return 0;
}

/* Every test ends with an honest question: the port is still well. */
static int teardown(void **state)
{
    fixture *f = *state;
    int status;
    free(scrape_get(f->port, "/livez", &status));
    tk_http_stop(f->http);
    tk_metrics_destroy(f->metrics);
    return status == 200 && tk_test_alloc_live() == f->live_before ? 0 : -1;
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

static void expect(int port, const char *path, int code, const char *words)
{
    int status;
    char *text = scrape_get(port, path, &status);
    if (status != code || !strstr(text, words)) fail_msg("%s: %s", path, text);
    free(text);
}

static void ready_tells_why_not(void **state)
{
    const fixture *f = *state;
    expect(f->port, "/readyz", 503, "loading");
    expect(f->port, "/livez", 200, "alive");
    tk_http_set(f->http, TK_HTTP_READY);
    expect(f->port, "/readyz", 200, "ready");
    tk_http_set(f->http, TK_HTTP_DRAINING);
    expect(f->port, "/readyz", 503, "draining");
    expect(f->port, "/livez", 200, "alive");
}

static void metrics_are_prometheus_text(void **state)
{
    const fixture *f = *state;
    tk_metrics_classified(f->metrics, "alice", "type", 0, 5);
    int status;
    char *text = scrape_get(f->port, "/metrics", &status);
    assert_int_equal(status, 200);
    assert_non_null(strstr(text, "Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"));
    scrape_check(scrape_body(text));
    assert_float_equal(
        scrape_value(scrape_body(text), "trunkd_images_total{tenant=\"alice\",head=\"type\"}"), 5,
        0);
    free(text);
    expect(f->port, "/metrics?name[]=x", 200, "trunkd_build_info");
}

/* As large as it gets: far more than the memory of a connection. */
static void a_full_registry_comes_whole(void **state)
{
    const fixture *f = *state;
    for (int i = 0; i < 300; i++)
        for (int code = 0; code < TK_METRICS_CODES; code++) {
            char head[64];
            snprintf(head, sizeof head, "%060d", i);
            tk_metrics_classified(f->metrics, "alice", head, code, 1);
        }
    int status;
    char *text = scrape_get(f->port, "/metrics", &status);
    assert_int_equal(status, 200);
    assert_true(strlen(text) > 256 * 1024);
    scrape_check(scrape_body(text));
    free(text);
}

static void other_paths_are_not_found(void **state)
{
    const fixture *f = *state;
    static const char *const paths[] = {"/",          "/metrics/", "/metricsx",       "/Metrics",
                                        "/../livez",  "//livez",   "/metrics%00.txt", "/readyz/x",
                                        "/etc/passwd"};
    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++)
        expect(f->port, paths[i], 404, "");
}

static void other_methods_are_refused(void **state)
{
    const fixture *f = *state;
    static const char *const methods[] = {"POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"};
    for (size_t i = 0; i < sizeof methods / sizeof methods[0]; i++) {
        char request[128];
        snprintf(request, sizeof request, "%s /metrics HTTP/1.1\r\nHost: x\r\n\r\n", methods[i]);
        char *text = scrape_exchange(f->port, request);
        if (strncmp(text, "HTTP/1.1 405 ", 13) != 0 || !strstr(text, "Allow: GET, HEAD\r\n"))
            fail_msg("%s: %s", methods[i], text);
        free(text);
    }
    char *text = scrape_exchange(f->port, "POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: "
                                          "1000000000\r\n\r\n");
    assert_int_equal(strncmp(text, "HTTP/1.1 405 ", 13), 0);
    free(text);
    text = scrape_exchange(f->port, "HEAD /livez HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_int_equal(strncmp(text, "HTTP/1.1 200 ", 13), 0);
    assert_string_equal(scrape_body(text), "");
    free(text);
}

/* Whatever comes of it, it is no answer of ours, and the port lives. */
static void what_is_too_long_or_no_request_is_refused(void **state)
{
    const fixture *f = *state;
    enum { LONG = 100000 };
    char *request = malloc(LONG + 100);
    assert_non_null(request);
    const int n = sprintf(request, "GET /livez?");
    memset(request + n, 'a', LONG);
    strcpy(request + n + LONG, " HTTP/1.1\r\nHost: x\r\n\r\n");
    char *text = scrape_exchange(f->port, request);
    if (text[0] && strncmp(text, "HTTP/1.1 4", 10) != 0) fail_msg("%.100s", text);
    free(text);
    const int m = sprintf(request, "GET /livez HTTP/1.1\r\nHost: x\r\nX-Long: ");
    memset(request + m, 'a', LONG);
    strcpy(request + m + LONG, "\r\n\r\n");
    text = scrape_exchange(f->port, request);
    if (text[0] && strncmp(text, "HTTP/1.1 4", 10) != 0) fail_msg("%.100s", text);
    free(text);
    free(request);
    text = scrape_exchange(f->port, "\x16\x03\x01\x02 this is no HTTP\r\n\r\n\r\n");
    assert_null(strstr(text, "200"));
    free(text);
}

static double seconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* More connections than there is room for, each in the middle of its request, and each sending on
 * so that none is ever idle: who comes then is answered all the same. */
static void slow_clients_keep_nobody_out(void **state)
{
    const fixture *f = *state;
    enum { SLOW = 100 };
    static const char half[] = "GET /metrics HTTP/1.1\r\nHost: x\r\nX-Slow: ";
    int fds[SLOW];
    for (int i = 0; i < SLOW; i++) {
        fds[i] = scrape_dial(f->port);
        (void)send(fds[i], half, sizeof half - 1, MSG_NOSIGNAL);
    }
    for (int round = 0; round < 5; round++) {
        for (int i = 0; i < SLOW; i++)
            (void)send(fds[i], "a", 1, MSG_NOSIGNAL);
        const double begun = seconds_now();
        expect(f->port, "/metrics", 200, "trunkd_build_info");
        assert_true(seconds_now() - begun < 5); /* the limit for idle ones is 10 */
    }
    size_t gone = 0;
    for (int i = 0; i < SLOW; i++) {
        char byte;
        const ssize_t got = recv(fds[i], &byte, 1, MSG_DONTWAIT);
        gone += got >= 0;
        close(fds[i]);
    }
    assert_true(gone > SLOW / 2); /* the oldest were closed */
}

static void stopping_does_not_wait_for_clients(void **state)
{
    (void)state;
    tk_metrics *metrics;
    tk_http *http;
    tk_diag diag;
    assert_int_equal(tk_metrics_create(&metrics), TK_OK);
    assert_int_equal(tk_http_start(&http, "localhost:0", metrics, &diag), TK_OK);
    assert_true(tk_http_is_local(http));
    const int fd = scrape_dial(tk_http_port(http));
    (void)send(fd, "GET /", 5, MSG_NOSIGNAL);
    const double begun = seconds_now();
    tk_http_stop(http);
    assert_true(seconds_now() - begun < 5);
    close(fd);
    tk_metrics_destroy(metrics);
}

static void addresses_are_checked(void **state)
{
    const fixture *f = *state;
    static const char *const bad[] = {"",
                                      "7701",
                                      ":7701",
                                      "127.0.0.1",
                                      "127.0.0.1:",
                                      "127.0.0.1:x",
                                      "127.0.0.1:65536",
                                      "127.0.0.1:-1",
                                      "127.0.0.1: 80",
                                      "127.0.0.1:123456",
                                      "[::1",
                                      "[]:0",
                                      "::1:7701",
                                      "example.com:7701",
                                      "1.2.3:80",
                                      "unix:/tmp/x"};
    tk_http *http;
    tk_diag diag;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        if (tk_http_start(&http, bad[i], f->metrics, &diag) != TK_BADARG || http)
            fail_msg("\"%s\" was taken", bad[i]);
        if (!strstr(diag.text, bad[i])) fail_msg("%s does not quote %s", diag.text, bad[i]);
    }
    char same[32];
    snprintf(same, sizeof same, "127.0.0.1:%d", f->port);
    assert_int_equal(tk_http_start(&http, same, f->metrics, &diag), TK_IO);
    assert_null(http);
    assert_non_null(strstr(diag.text, "in use"));
    assert_int_equal(tk_http_start(&http, "0.0.0.0:0", f->metrics, &diag), TK_OK);
    assert_false(tk_http_is_local(http));
    tk_http_stop(http);
    const tk_err err = tk_http_start(&http, "[::1]:0", f->metrics, &diag);
    if (err == TK_OK) assert_true(tk_http_is_local(http)); /* else there is no IPv6 here */
    tk_http_stop(http);
}

int main(void)
{
    sigset_t pipe;
    sigemptyset(&pipe);
    sigaddset(&pipe, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe, NULL);
    const struct CMUnitTest tests[] = {
        CASE(ready_tells_why_not),          CASE(metrics_are_prometheus_text),
        CASE(a_full_registry_comes_whole),  CASE(other_paths_are_not_found),
        CASE(other_methods_are_refused),    CASE(what_is_too_long_or_no_request_is_refused),
        CASE(slow_clients_keep_nobody_out), CASE(stopping_does_not_wait_for_clients),
        CASE(addresses_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
