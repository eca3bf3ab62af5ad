/* A small gRPC client on the C core, for trunkctl and the tests: synchronous calls of any kind, and
 * many unary ones at a time by a queue. Messages are protobuf-c messages; nobody else in clients/
 * sees a grpc.h type.
 *
 *     tk_client *client = tk_client_open("127.0.0.1:7600", token);
 *     tk_client_status status;
 *     ProtobufCMessage *answer;
 *     if (tk_client_unary(client, "/trunkd.v1.Heads/List", &request.base,
 *                         &trunkd__v1__list_heads_response__descriptor, 5000, &answer, &status)) {
 *         const Trunkd__V1__ListHeadsResponse *list = (const Trunkd__V1__ListHeadsResponse
 * *)answer;
 *         ...
 *         tk_client_free_message(answer);
 *     } else fprintf(stderr, "%s: %s\n", tk_client_code_text(status.code), status.text);
 *     tk_client_close(client);
 *
 * A stream, either way: start, send..., send_end, receive until NULL, finish.
 *
 * Threads: a client may be shared by many; a call belongs to one thread, except tk_client_cancel.
 * Of a queue any thread may start calls while one takes the answers.
 */
#ifndef CLIENTS_RPC_CLIENT_H
#define CLIENTS_RPC_CLIENT_H

#include <stdbool.h>
#include <stddef.h>

#include <protobuf-c/protobuf-c.h>

typedef struct tk_client tk_client;
typedef struct tk_client_call tk_client_call;

/* The status codes of gRPC, by its numbers. */
typedef enum tk_client_code {
    TK_CLIENT_OK = 0,
    TK_CLIENT_CANCELLED = 1,
    TK_CLIENT_UNKNOWN = 2,
    TK_CLIENT_INVALID_ARGUMENT = 3,
    TK_CLIENT_DEADLINE_EXCEEDED = 4,
    TK_CLIENT_NOT_FOUND = 5,
    TK_CLIENT_ALREADY_EXISTS = 6,
    TK_CLIENT_PERMISSION_DENIED = 7,
    TK_CLIENT_RESOURCE_EXHAUSTED = 8,
    TK_CLIENT_FAILED_PRECONDITION = 9,
    TK_CLIENT_ABORTED = 10,
    TK_CLIENT_OUT_OF_RANGE = 11,
    TK_CLIENT_UNIMPLEMENTED = 12,
    TK_CLIENT_INTERNAL = 13,
    TK_CLIENT_UNAVAILABLE = 14,
    TK_CLIENT_DATA_LOSS = 15,
    TK_CLIENT_UNAUTHENTICATED = 16,
} tk_client_code;

typedef struct tk_client_status {
    int code;          /* a tk_client_code */
    char text[1024];   /* the server's sentence; empty when OK */
    unsigned retry_ms; /* the server asks to try again after so long; 0: it does not say */
} tk_client_status;

/* "NOT_FOUND" and so on; "UNKNOWN" for a number that is none. */
const char *tk_client_code_text(int code);

/* A channel to `address` ("host:port", "unix:/path"). `token` may be NULL; otherwise every call
 * carries "authorization: Bearer TOKEN". Nothing is connected yet: a server that is not there shows
 * as UNAVAILABLE on the first call. Both strings are copied. NULL: out of memory, or a token with
 * bytes that no header may carry. */
tk_client *tk_client_open(const char *address, const char *token);

/* How to reach a server by TLS. Files are PEM, and are read once. */
typedef struct tk_client_tls {
    const char *ca;         /* whom to trust; NULL: the system's certificates */
    const char *cert, *key; /* the client's own certificate; NULL: none */
    const char *name; /* expected in the server's certificate; NULL: the host of the address */
} tk_client_tls;

/* tk_client_open() by TLS (NULL: without). NULL: *why says which file cannot be used, and why. A
 * handshake that fails shows as UNAVAILABLE on a call, whose text says what was wrong with the
 * server's certificate. */
tk_client *tk_client_open_tls(const char *address, const char *token, const tk_client_tls *tls,
                              tk_client_status *why);
/* From now on the core's own lines go nowhere instead of to standard error. Process wide; not where
 * a server runs, too. */
void tk_client_silence(void);

/* All calls must be finished. NULL is fine. */
void tk_client_close(tk_client *client);
/* Connects, trying again until it works or `timeout_ms` have passed. */
bool tk_client_wait_ready(tk_client *client, unsigned timeout_ms);

/* One message there, one back. True: OK, and *out (of type `out_type`) is the caller's, for
 * tk_client_free_message. False: *out is NULL and *status says why. `timeout_ms` 0: no deadline. */
bool tk_client_unary(tk_client *client, const char *path, const ProtobufCMessage *in,
                     const ProtobufCMessageDescriptor *out_type, unsigned timeout_ms,
                     ProtobufCMessage **out, tk_client_status *status);
void tk_client_free_message(ProtobufCMessage *message); /* NULL is fine */

/* Begins a call of any kind; `out_type` must live as long as it. NULL: out of memory. Every call
 * ends in tk_client_finish. */
tk_client_call *tk_client_start(tk_client *client, const char *path,
                                const ProtobufCMessageDescriptor *out_type, unsigned timeout_ms);
/* Sends one message; blocks while the server does not take it (back-pressure). False: the call is
 * over, and tk_client_finish says why. */
bool tk_client_send(tk_client_call *call, const ProtobufCMessage *in);
/* The same for bytes that are packed already, or are no message at all. */
bool tk_client_send_bytes(tk_client_call *call, const void *data, size_t len);
/* No more messages from here. */
bool tk_client_send_end(tk_client_call *call);
/* The next message, for tk_client_free_message; blocks. NULL: none will follow. */
ProtobufCMessage *tk_client_receive(tk_client_call *call);
/* Asks for the call's end; it still has to be finished. Any thread, while the call is not finished.
 */
void tk_client_cancel(tk_client_call *call);
/* Waits for the status, writes it, frees the call. Messages not received are dropped. Returns
 * status->code. NULL is an UNKNOWN "out of memory". */
int tk_client_finish(tk_client_call *call, tk_client_status *status);

/* -- many unary calls in flight -- */

/* A message packed once, to be sent any number of times without a copy. */
typedef struct tk_client_packed tk_client_packed;
tk_client_packed *tk_client_pack(const ProtobufCMessage *message); /* NULL: out of memory */
size_t tk_client_packed_size(const tk_client_packed *packed);
void tk_client_packed_free(tk_client_packed *packed); /* also while in flight; NULL is fine */

/* Where the answers of calls arrive, in the order of their ends. */
typedef struct tk_client_queue tk_client_queue;
tk_client_queue *tk_client_queue_create(void); /* NULL: out of memory */
/* Every call that was started must have come back. NULL is fine. */
void tk_client_queue_destroy(tk_client_queue *queue);

/* One call. `path` and `out_type` must live as long as it; the rest is copied or counted. */
typedef struct tk_client_ask {
    const char *path;
    const tk_client_packed *in;
    const ProtobufCMessageDescriptor *out_type;
    const char *token;   /* in place of the client's own; NULL: that */
    unsigned timeout_ms; /* 0: no deadline */
    void *tag;           /* comes back */
} tk_client_ask;

typedef struct tk_client_done {
    void *tag;
    ProtobufCMessage *answer; /* OK: the caller's, for tk_client_free_message; else NULL */
    tk_client_status status;
} tk_client_done;

/* Starts a call and does not wait. False: out of memory, or a token with bytes that no header may
 * carry; nothing was started. */
bool tk_client_queue_start(tk_client_queue *queue, tk_client *client, const tk_client_ask *ask);
/* The next call that has ended, waiting up to `wait_ms` for it. False: none has. */
bool tk_client_queue_next(tk_client_queue *queue, unsigned wait_ms, tk_client_done *done);
/* Asks for the end of every call in flight; they still come back. */
void tk_client_queue_cancel(tk_client_queue *queue);

#endif
