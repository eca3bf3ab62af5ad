/* The RPC layer against HTTP/2 written by hand: what no honest client sends. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "raw_http2.h"
#include "rpc_fixture.h"
#include "scrape.h"

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
