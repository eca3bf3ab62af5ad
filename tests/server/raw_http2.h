/* HTTP/2 by hand, for what no honest client sends. What cannot be done fails the test. */
#ifndef TESTS_SERVER_RAW_HTTP2_H
#define TESTS_SERVER_RAW_HTTP2_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Types of frames, and their flags. */
enum {
    RAW_DATA = 0,
    RAW_HEADERS = 1,
    RAW_RST_STREAM = 3,
    RAW_SETTINGS = 4,
    RAW_WINDOW_UPDATE = 8,
    RAW_CONTINUATION = 9,
    RAW_END_STREAM = 1,
    RAW_ACK = 1,
    RAW_END_HEADERS = 4,
};

typedef struct raw_bytes {
    unsigned char data[32768];
    size_t len;
} raw_bytes;

void raw_put(raw_bytes *to, const void *data, size_t len);
/* `payload` may be NULL: none. */
void raw_put_frame(raw_bytes *to, int type, int flags, uint32_t stream, const raw_bytes *payload);
/* As HPACK's literal without indexing (RFC 7541, 6.2.2); each at most 126 bytes. */
void raw_put_header(raw_bytes *to, const char *name, const char *value);
/* The headers that every call has; `token` may be NULL. */
void raw_put_call(raw_bytes *headers, const char *path, const char *token);
/* What a connection begins with: the preface and settings. */
void raw_put_hello(raw_bytes *to);

/* On a connection of scrape_dial()'s. */
void raw_send(int fd, const raw_bytes *out);
/* Reads until "grpc-status" came with this code (the core writes it plainly); false: the connection
 * ended, or much else came. */
bool raw_read_status(int fd, int code);

#endif
