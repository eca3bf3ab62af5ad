/* The RPC layer against HTTP/2 written by hand: what no honest client sends. */
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cmocka.h>

#include "raw_http2.h"
#include "rpc_fixture.h"
#include "scrape.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SANITIZED = 1 }; /* their own bookkeeping counts as memory */
#else
enum { SANITIZED = 0 };
#endif

static int setup(void **state)
{
    static rpc_fixture fixture;
    rpc_fixture_start(&fixture, NULL);
    *state = &fixture;
    return 0;
}

/* Every test ends with an honest call: the server is still well. */
static int teardown(void **state)
{
    rpc_fixture *f = *state;
    tk_client *client = rpc_fixture_tenant(f);
    tk_client_status status;
    const int code = rpc_fixture_classify(client, CLASSIFY, 10, "a", 30000, &status);
    tk_client_close(client);
    rpc_fixture_stop(f);
    return code;
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

/* Hello, and the headers of a call on stream 1. */
static raw_bytes begin_call(const char *path, const char *encoding)
{
    raw_bytes out = {.len = 0}, headers = {.len = 0};
    raw_put_hello(&out);
    raw_put_call(&headers, path, "alices-token");
    if (encoding) raw_put_header(&headers, "grpc-encoding", encoding);
    raw_put_frame(&out, RAW_HEADERS, RAW_END_HEADERS, 1, &headers);
    return out;
}

static int dial(const rpc_fixture *f)
{
    return scrape_dial(tk_rpc_server_port(f->server));
}

static void compressed_message_is_refused_before_it_is_inflated(void **state)
{
    const int fd = dial(*state);
    raw_bytes out = begin_call(CLASSIFY, "gzip"), message = {.len = 0};
    /* gzip of nothing; what it holds never matters. */
    static const unsigned char gzip[] = {1, 0, 0, 0, 20, 0x1f, 0x8b, 8, 0, 0, 0, 0, 0,
                                         0, 3, 3, 0, 0,  0,    0,    0, 0, 0, 0, 0};
    raw_put(&message, gzip, sizeof gzip);
    raw_put_frame(&out, RAW_DATA, RAW_END_STREAM, 1, &message);
    raw_send(fd, &out);
    assert_true(raw_read_status(fd, TK_CLIENT_UNIMPLEMENTED));
    close(fd);
    assert_int_equal(rpc_fixture_seen(*state, EV_BEGUN), 0);
}

static void peer_that_drops_in_the_middle_of_an_upload_cancels_it(void **state)
{
    rpc_fixture *f = *state;
    const int fd = dial(f);
    raw_bytes out = begin_call(UPLOAD, NULL), message = {.len = 0};
    raw_put(&message, "\0\0\0\0\2\x12\0", 7); /* a manifest */
    raw_put(&message, "\0\0\0\1\0half", 9);   /* 256 bytes promised, 4 sent */
    raw_put_frame(&out, RAW_DATA, 0, 1, &message);
    raw_send(fd, &out);
    assert_true(rpc_fixture_wait(f, EV_MESSAGE, 1));
    close(fd);
    assert_true(rpc_fixture_wait(f, EV_CANCELLED, 1));
    assert_true(rpc_fixture_wait(f, EV_FREED, 1));
}

static void second_message_of_a_unary_call_is_not_delivered(void **state)
{
    rpc_fixture *f = *state;
    const int fd = dial(f);
    raw_bytes out = begin_call(CLASSIFY, NULL), message = {.len = 0};
    for (int i = 0; i < 5; i++)
        raw_put(&message, "\0\0\0\0\3\x12\1x", 8);
    raw_put_frame(&out, RAW_DATA, RAW_END_STREAM, 1, &message);
    raw_send(fd, &out);
    assert_true(raw_read_status(fd, TK_CLIENT_OK));
    close(fd);
    assert_true(rpc_fixture_wait(f, EV_FREED, 1));
    assert_int_equal(rpc_fixture_seen(f, EV_BEGUN), 1);
}

static void noise_instead_of_http2_is_hung_up_on(void **state)
{
    static const char *const noise[] = {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "\x16\x03\x01\x02",
                                        "PRI *"};
    for (size_t i = 0; i < 3; i++) {
        const int fd = dial(*state);
        raw_bytes out = {.len = 0};
        raw_put(&out, noise[i], strlen(noise[i]));
        raw_send(fd, &out);
        shutdown(fd, SHUT_WR);
        char sink[512];
        while (recv(fd, sink, sizeof sink, 0) > 0) {
        }
        close(fd);
    }
}

/* -- uploads that stop half-way -- */

enum { SENDERS = 8, UPLOADS = 8, FRAME = 16384, PART = 3 << 20 };

/* A connection with uploads on it, as much of each as the server's windows let through. */
typedef struct sender {
    int fd;
    long window, stream_window[UPLOADS]; /* bytes that may be sent */
    size_t sent[UPLOADS];
    bool broken;                 /* a frame went out in part: the core reads no further */
    unsigned char in[9 + FRAME]; /* a frame, as far as it came */
    size_t n_in;
} sender;

static uint32_t big_endian(const unsigned char *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static void take_settings(sender *s, const unsigned char *at, size_t len)
{
    enum { INITIAL_WINDOW = 4, DEFAULT_WINDOW = 65535 };
    for (; len >= 6; at += 6, len -= 6)
        for (size_t i = 0; at[1] == INITIAL_WINDOW && i < UPLOADS; i++)
            s->stream_window[i] += (long)big_endian(at + 2) - DEFAULT_WINDOW;
    raw_bytes ack = {.len = 0};
    raw_put_frame(&ack, RAW_SETTINGS, RAW_ACK, 0, NULL);
    (void)send(s->fd, ack.data, ack.len, MSG_NOSIGNAL);
}

static void take_frame(sender *s)
{
    const unsigned char *in = s->in;
    const size_t len = (size_t)in[0] << 16 | (size_t)in[1] << 8 | in[2];
    const uint32_t stream = big_endian(in + 5);
    if (in[3] == RAW_SETTINGS && !(in[4] & RAW_ACK)) take_settings(s, in + 9, len);
    if (in[3] != RAW_WINDOW_UPDATE || len != 4) return;
    if (stream == 0)
        s->window += big_endian(in + 9);
    else if (stream / 2 < UPLOADS)
        s->stream_window[stream / 2] += big_endian(in + 9);
}

/* Takes what has come; false: nothing for a while, or the connection is over. */
static bool listen_to(sender *s, int wait_ms)
{
    struct pollfd p = {.fd = s->fd, .events = POLLIN};
    if (poll(&p, 1, wait_ms) <= 0) return false;
    const size_t whole =
        s->n_in < 9 ? 9 : 9 + ((size_t)s->in[0] << 16 | (size_t)s->in[1] << 8 | s->in[2]);
    if (whole > sizeof s->in) return false;
    const ssize_t got = recv(s->fd, s->in + s->n_in, whole - s->n_in, 0);
    if (got <= 0 && whole > s->n_in) return false;
    s->n_in += got > 0 ? (size_t)got : 0;
    if (s->n_in < 9) return true;
    if (s->n_in < 9 + ((size_t)s->in[0] << 16 | (size_t)s->in[1] << 8 | s->in[2])) return true;
    take_frame(s);
    s->n_in = 0;
    return true;
}

static bool send_piece(sender *s, size_t stream)
{
    static raw_bytes out; /* zeros */
    out.len = 0;
    const raw_bytes piece = {.len = FRAME};
    if (s->broken || s->window < FRAME || s->stream_window[stream] < FRAME ||
        s->sent[stream] >= PART)
        return false;
    raw_put_frame(&out, RAW_DATA, 0, (uint32_t)(2 * stream + 1), &piece);
    for (size_t at = 0; at < out.len;) {
        const ssize_t n = send(s->fd, out.data + at, out.len - at, MSG_NOSIGNAL);
        if (n < 0) s->broken = true;
        if (n < 0) return false;
        at += (size_t)n;
    }
    s->window -= FRAME;
    s->stream_window[stream] -= FRAME;
    s->sent[stream] += FRAME;
    return true;
}

/* Begins messages of 60 MB, and sends 3 MB of each or what the server takes. */
static void begin_uploads(sender *s, const rpc_fixture *f)
{
    static const unsigned char promise[5] = {0, 3, 0x93, 0x87, 0}; /* 60,000,000 bytes follow */
    const struct timeval patience = {.tv_usec = 500000};
    raw_bytes out = {.len = 0}, head = {.len = 0};
    *s = (sender){.fd = dial(f), .window = 65535};
    raw_put(&head, promise, sizeof promise);
    raw_put_hello(&out);
    for (uint32_t i = 0; i < UPLOADS; i++) {
        raw_bytes headers = {.len = 0};
        raw_put_call(&headers, CLASSIFY, "alices-token");
        raw_put_frame(&out, RAW_HEADERS, RAW_END_HEADERS, 2 * i + 1, &headers);
        raw_put_frame(&out, RAW_DATA, 0, 2 * i + 1, &head);
        s->stream_window[i] = 65535 - (long)head.len;
        s->window -= (long)head.len;
    }
    raw_send(s->fd, &out);
    assert_int_equal(setsockopt(s->fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience), 0);
    for (bool more = true; more && !s->broken;) {
        more = listen_to(s, 300);
        while (listen_to(s, 0)) {
        }
        for (size_t i = 0; i < UPLOADS; i++)
            for (int n = 0; n < 8 && send_piece(s, i); n++)
                more = true;
    }
}

static long resident_kib(void)
{
    char line[256];
    long kib = 0;
    FILE *f = fopen("/proc/self/status", "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f))
        if (strncmp(line, "VmRSS:", 6) == 0) kib = strtol(line + 6, NULL, 10);
    fclose(f);
    return kib;
}

/* What is held of messages that do not go on is bounded by the quota, not by their number: without
 * one these hold 192 MB. */
static void stalled_uploads_are_held_to_the_quota(void **state)
{
    enum { QUOTA = 32 << 20 };
    static sender senders[SENDERS];
    rpc_fixture f;
    (void)state;
    rpc_fixture_start(&f, &(tk_rpc_opts){.memory_quota = QUOTA});
    const long before = resident_kib();
    for (size_t i = 0; i < SENDERS; i++)
        begin_uploads(&senders[i], &f);
    const long growth = resident_kib() - before;
    if (!SANITIZED && growth > 100 << 10) fail_msg("%ld KiB of stalled uploads", growth);
    for (size_t i = 0; i < SENDERS; i++)
        close(senders[i].fd);
    tk_client *client = rpc_fixture_tenant(&f);
    tk_client_status status;
    assert_int_equal(rpc_fixture_classify(client, CLASSIFY, 10, "a", 30000, &status), TK_CLIENT_OK);
    tk_client_close(client);
    rpc_fixture_stop(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(compressed_message_is_refused_before_it_is_inflated),
        CASE(peer_that_drops_in_the_middle_of_an_upload_cancels_it),
        CASE(second_message_of_a_unary_call_is_not_delivered),
        CASE(noise_instead_of_http2_is_hung_up_on),
        cmocka_unit_test(stalled_uploads_are_held_to_the_quota),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
