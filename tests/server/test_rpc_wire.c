/* The RPC layer against HTTP/2 written by hand: what no honest client sends. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cmocka.h>

#include "rpc_fixture.h"

enum { DATA = 0, HEADERS = 1, SETTINGS = 4, END_STREAM = 1, END_HEADERS = 4 };

typedef struct bytes {
    unsigned char data[4096];
    size_t len;
} bytes;

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

static void put(bytes *to, const void *data, size_t len)
{
    assert_true(to->len + len <= sizeof to->data);
    memcpy(to->data + to->len, data, len);
    to->len += len;
}

static void put_frame(bytes *to, int type, int flags, uint32_t stream, const bytes *payload)
{
    const size_t n = payload ? payload->len : 0;
    const unsigned char head[9] = {(unsigned char)(n >> 16),
                                   (unsigned char)(n >> 8),
                                   (unsigned char)n,
                                   (unsigned char)type,
                                   (unsigned char)flags,
                                   0,
                                   0,
                                   0,
                                   (unsigned char)stream};
    put(to, head, sizeof head);
    if (n > 0) put(to, payload->data, n);
}

/* A header as HPACK's literal without indexing (RFC 7541, 6.2.2). */
static void put_header(bytes *to, const char *name, const char *value)
{
    const unsigned char sizes[2] = {(unsigned char)strlen(name), (unsigned char)strlen(value)};
    put(to, "", 1);
    put(to, &sizes[0], 1);
    put(to, name, sizes[0]);
    put(to, &sizes[1], 1);
    put(to, value, sizes[1]);
}

/* Preface, settings and the headers of a call on stream 1. */
static bytes begin_call(const char *path, const char *encoding)
{
    bytes out = {.len = 0}, headers = {.len = 0};
    put(&out, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24);
    put_frame(&out, SETTINGS, 0, 0, NULL);
    put_header(&headers, ":method", "POST");
    put_header(&headers, ":scheme", "http");
    put_header(&headers, ":path", path);
    put_header(&headers, ":authority", "localhost");
    put_header(&headers, "te", "trailers");
    put_header(&headers, "content-type", "application/grpc");
    put_header(&headers, "authorization", "Bearer alices-token");
    if (encoding) put_header(&headers, "grpc-encoding", encoding);
    put_frame(&out, HEADERS, END_HEADERS, 1, &headers);
    return out;
}

static int dial(const rpc_fixture *f)
{
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    const struct timeval limit = {.tv_sec = 30};
    struct sockaddr_in to = {.sin_family = AF_INET};
    to.sin_port = htons((uint16_t)tk_rpc_server_port(f->server));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_true(fd >= 0);
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit), 0);
    assert_int_equal(connect(fd, (const struct sockaddr *)&to, sizeof to), 0);
    return fd;
}

static void write_all(int fd, const bytes *out)
{
    assert_int_equal(send(fd, out->data, out->len, MSG_NOSIGNAL), (ssize_t)out->len);
}

static bool contains(const bytes *in, const void *what, size_t len)
{
    for (size_t i = 0; i + len <= in->len; i++)
        if (memcmp(in->data + i, what, len) == 0) return true;
    return false;
}

/* Reads until "grpc-status" came (the core writes it plainly), or the connection ended. */
static bool read_status(int fd, int code)
{
    bytes in = {.len = 0};
    char expected[32];
    const int n = snprintf(expected, sizeof expected, "grpc-status%c%d", code < 10 ? 1 : 2, code);
    while (in.len < sizeof in.data) {
        const ssize_t got = recv(fd, in.data + in.len, sizeof in.data - in.len, 0);
        if (got <= 0) return false;
        in.len += (size_t)got;
        if (contains(&in, expected, (size_t)n)) return true;
    }
    return false;
}

static void compressed_message_is_refused_before_it_is_inflated(void **state)
{
    const int fd = dial(*state);
    bytes out = begin_call(CLASSIFY, "gzip"), message = {.len = 0};
    /* gzip of nothing; what it holds never matters. */
    static const unsigned char gzip[] = {1, 0, 0, 0, 20, 0x1f, 0x8b, 8, 0, 0, 0, 0, 0,
                                         0, 3, 3, 0, 0,  0,    0,    0, 0, 0, 0, 0};
    put(&message, gzip, sizeof gzip);
    put_frame(&out, DATA, END_STREAM, 1, &message);
    write_all(fd, &out);
    assert_true(read_status(fd, TK_CLIENT_UNIMPLEMENTED));
    close(fd);
    assert_int_equal(rpc_fixture_seen(*state, EV_BEGUN), 0);
}

static void peer_that_drops_in_the_middle_of_an_upload_cancels_it(void **state)
{
    rpc_fixture *f = *state;
    const int fd = dial(f);
    bytes out = begin_call(UPLOAD, NULL), message = {.len = 0};
    put(&message, "\0\0\0\0\2\x12\0", 7); /* a manifest */
    put(&message, "\0\0\0\1\0half", 9);   /* 256 bytes promised, 4 sent */
    put_frame(&out, DATA, 0, 1, &message);
    write_all(fd, &out);
    assert_true(rpc_fixture_wait(f, EV_MESSAGE, 1));
    close(fd);
    assert_true(rpc_fixture_wait(f, EV_CANCELLED, 1));
    assert_true(rpc_fixture_wait(f, EV_FREED, 1));
}

static void second_message_of_a_unary_call_is_not_delivered(void **state)
{
    rpc_fixture *f = *state;
    const int fd = dial(f);
    bytes out = begin_call(CLASSIFY, NULL), message = {.len = 0};
    for (int i = 0; i < 5; i++)
        put(&message, "\0\0\0\0\3\x12\1x", 8);
    put_frame(&out, DATA, END_STREAM, 1, &message);
    write_all(fd, &out);
    assert_true(read_status(fd, TK_CLIENT_OK));
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
        bytes out = {.len = 0};
        put(&out, noise[i], strlen(noise[i]));
        write_all(fd, &out);
        shutdown(fd, SHUT_WR);
        char sink[512];
        while (recv(fd, sink, sizeof sink, 0) > 0) {
        }
        close(fd);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(compressed_message_is_refused_before_it_is_inflated),
        CASE(peer_that_drops_in_the_middle_of_an_upload_cancels_it),
        CASE(second_message_of_a_unary_call_is_not_delivered),
        CASE(noise_instead_of_http2_is_hung_up_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
