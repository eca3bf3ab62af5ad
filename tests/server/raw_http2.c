/* See raw_http2.h. */
#include "raw_http2.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include <cmocka.h>

void raw_put(raw_bytes *to, const void *data, size_t len)
{
    assert_true(to->len + len <= sizeof to->data);
    memcpy(to->data + to->len, data, len);
    to->len += len;
}

void raw_put_frame(raw_bytes *to, int type, int flags, uint32_t stream, const raw_bytes *payload)
{
    const size_t n = payload ? payload->len : 0;
    const unsigned char head[9] = {
        (unsigned char)(n >> 16),      (unsigned char)(n >> 8),      (unsigned char)n,
        (unsigned char)type,           (unsigned char)flags,         (unsigned char)(stream >> 24),
        (unsigned char)(stream >> 16), (unsigned char)(stream >> 8), (unsigned char)stream};
    raw_put(to, head, sizeof head);
    if (n > 0) raw_put(to, payload->data, n);
}

void raw_put_header(raw_bytes *to, const char *name, const char *value)
{
    const unsigned char sizes[2] = {(unsigned char)strlen(name), (unsigned char)strlen(value)};
    assert_true(strlen(name) < 127 && strlen(value) < 127);
    raw_put(to, "", 1);
    raw_put(to, &sizes[0], 1);
    raw_put(to, name, sizes[0]);
    raw_put(to, &sizes[1], 1);
    raw_put(to, value, sizes[1]);
}

void raw_put_call(raw_bytes *headers, const char *path, const char *token)
{
    raw_put_header(headers, ":method", "POST");
    raw_put_header(headers, ":scheme", "http");
    raw_put_header(headers, ":path", path);
    raw_put_header(headers, ":authority", "localhost");
    raw_put_header(headers, "te", "trailers");
    raw_put_header(headers, "content-type", "application/grpc");
    if (!token) return;
    char bearer[120];
    snprintf(bearer, sizeof bearer, "Bearer %s", token);
    raw_put_header(headers, "authorization", bearer);
}

void raw_put_hello(raw_bytes *to)
{
    raw_put(to, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24);
    raw_put_frame(to, RAW_SETTINGS, 0, 0, NULL);
}

void raw_send(int fd, const raw_bytes *out)
{
    assert_int_equal(send(fd, out->data, out->len, MSG_NOSIGNAL), (ssize_t)out->len);
}

static bool contains(const raw_bytes *in, const void *what, size_t len)
{
    for (size_t i = 0; i + len <= in->len; i++)
        if (memcmp(in->data + i, what, len) == 0) return true;
    return false;
}

bool raw_read_status(int fd, int code)
{
    raw_bytes in = {.len = 0};
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
