/* The RPC layer: a table of methods on the gRPC C core. Handlers see decoded messages and a call;
 * never a completion queue, a tag or a grpc.h type.
 *
 * Threads. Each call lives on one completion-queue thread, and its callbacks never overlap. Methods
 * marked TK_RPC_BLOCKING have on_start/on_msg/on_end/on_writable and on_free run on the RPC worker
 * threads instead (still one at a time per call), so they may touch the disk and the data base; all
 * others must not block. tk_rpc_reply, _send, _finish, _fail may be called from inside a callback,
 * or from any other thread while the caller holds a reference (tk_rpc_ref). on_cancel may arrive
 * from the completion-queue thread at any moment, also while a blocking callback runs: it only sets
 * flags or drops queued work. on_free is the last callback; user data dies there.
 *
 * After reply, finish or fail, and after on_cancel, no callback but on_free begins. A call that
 * ends before its first callback (no token, garbage, cancelled early) has no callbacks at all,
 * on_free included: on_free is owed once another callback has run, and comes exactly once, when all
 * references are gone. */
#ifndef SERVER_RPC_H
#define SERVER_RPC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <protobuf-c/protobuf-c.h>

#include "engine/err.h"

typedef struct tk_rpc_call tk_rpc_call;
typedef struct tk_rpc_message tk_rpc_message;
typedef struct tk_rpc_server tk_rpc_server;

typedef enum tk_rpc_kind {
    TK_RPC_UNARY,
    TK_RPC_CLIENT_STREAM,
    TK_RPC_SERVER_STREAM,
    TK_RPC_BIDI_STREAM, /* a message is read when the method asks for it: tk_rpc_next */
} tk_rpc_kind;

enum {
    TK_RPC_PUBLIC = 1,   /* no token asked */
    TK_RPC_ADMIN = 2,    /* the admin role only */
    TK_RPC_TENANT = 4,   /* a tenant only: an admin token is TK_DENIED, saying so */
    TK_RPC_BLOCKING = 8, /* callbacks run on a worker thread */
};

/* Who calls. */
typedef struct tk_identity {
    int64_t tenant; /* row id; 0 for an admin */
    bool admin;
    char name[64];
} tk_identity;

typedef struct tk_rpc_method {
    const char *path; /* "/trunkd.v1.Classifier/Classify" */
    tk_rpc_kind kind;
    unsigned flags;
    size_t max_request; /* bytes of one message */
    const ProtobufCMessageDescriptor *in, *out;
    /* Client or bidirectional stream: before the first message; may be NULL. */
    void (*on_start)(tk_rpc_call *call);
    /* One request message, valid until the callback returns (a unary or server-stream call's: until
     * on_free; a bidirectional one's: until tk_rpc_next). Unary and server-stream methods get
     * exactly one. */
    void (*on_msg)(tk_rpc_call *call, const ProtobufCMessage *in);
    void (*on_end)(tk_rpc_call *call); /* half-closed: reply here; bidirectional: finish */
    /* Server or bidirectional stream: messages went out since the last time, so there is room
     * again; may be NULL. */
    void (*on_writable)(tk_rpc_call *call);
    /* Cancelled, deadline passed, peer gone, or a later message of a client stream was refused; at
     * most once, and not after reply, finish or fail. May be NULL. */
    void (*on_cancel)(tk_rpc_call *call);
    /* Bidirectional stream: a message cannot be taken (it is malformed, or there is no memory), and
     * there will be no further one: the method finishes what it has and fails the call with this.
     * NULL: the call fails at once, and on_cancel tells. */
    void (*on_refused)(tk_rpc_call *call, tk_err err, const tk_diag *why);
    /* Bidirectional stream: the server stops, and there will be no further message; the method
     * finishes what it has and fails the call with TK_BUSY. Any thread, also while another callback
     * runs; must not call tk_rpc_next. NULL: a stream that waits for a message ends at once. */
    void (*on_drain)(tk_rpc_call *call);
    void (*on_free)(tk_rpc_call *call); /* last; user data dies here. May be NULL */
} tk_rpc_method;

/* Checks a bearer token; fills *out. Runs on the completion-queue thread, so it only looks into
 * memory. `diag` holds a fitting sentence already, which may be replaced. */
typedef tk_err tk_rpc_authenticate(void *ctx, const char *token, size_t len, tk_identity *out,
                                   tk_diag *diag);

/* The same for the tenant that a verified client certificate names. TK_NOTFOUND: there is none of
 * that name, or it is shut out. */
typedef tk_err tk_rpc_tenant_named(void *ctx, const char *name, tk_identity *out, tk_diag *diag);

/* PEM files; they are read again when they have changed. */
typedef struct tk_rpc_tls {
    const char *cert, *key; /* the server's, with its chain; NULL: plain text */
    const char *client_ca;  /* whose client certificates count; NULL: none are asked for */
    bool client_optional;   /* a client may come without one */
} tk_rpc_tls;

/* A call that is over. Everything is borrowed until the callback returns. */
typedef struct tk_rpc_ended {
    const char *path;         /* the method's, from the table; NULL: there is no such method */
    bool stream;              /* the method's, of any kind */
    const tk_identity *who;   /* name "" and no admin: nobody known */
    const char *trace;        /* tk_rpc_trace() */
    int code;                 /* gRPC's number */
    int64_t duration_ns;      /* since its headers came */
    uint64_t bytes;           /* of request messages, as they came */
    uint64_t images, version; /* tk_rpc_note() */
} tk_rpc_ended;

typedef struct tk_rpc_opts {
    const char *address; /* "127.0.0.1:0", "unix:/path" */
    tk_rpc_tls tls;
    unsigned cq_threads;      /* 0: cores / 4, at least 1 */
    unsigned workers;         /* for TK_RPC_BLOCKING; 0: 4 */
    size_t max_message;       /* 0: 64 MiB; a larger one is RESOURCE_EXHAUSTED */
    size_t memory_quota;      /* of the gRPC core; 0: 256 MiB. Decoded messages may take twice it */
    unsigned max_connections; /* 0: 4096 */
    tk_rpc_authenticate *authenticate;
    tk_rpc_tenant_named *tenant_named; /* NULL: certificates name nobody */
    void *ctx;                         /* for both, and tk_rpc_ctx() */
    const tk_rpc_method *methods;      /* borrowed until the server has stopped */
    size_t n_methods;
    /* Each call's beginning and, exactly once, its end: any thread of the layer, so they must not
     * wait. `ctx` as above. NULL: nobody asks. */
    void (*began)(void *ctx);
    void (*ended)(void *ctx, const tk_rpc_ended *call);
    /* Takes the gRPC core's error lines, rate limited; any thread. NULL: they are dropped. */
    void (*log)(const char *line);
} tk_rpc_opts;

/* Binds and starts; health says NOT_SERVING until tk_rpc_server_set_serving. grpc.health.v1 and
 * grpc.reflection are added by themselves. SIGPIPE and handled signals must be blocked before, and
 * RLIMIT_NOFILE raised. */
TK_MUST tk_err tk_rpc_server_start(tk_rpc_server **out, const tk_rpc_opts *opts, tk_diag *diag);
int tk_rpc_server_port(const tk_rpc_server *server);
/* What grpc.health.v1 answers for "" and every service. Any thread. */
void tk_rpc_server_set_serving(tk_rpc_server *server, bool serving);
/* Graceful: health to NOT_SERVING, no new calls, running ones go on for `grace_ms`, then are
 * cancelled. Returns when all is drained and freed. */
void tk_rpc_server_stop(tk_rpc_server *server, unsigned grace_ms);

/* -- inside callbacks -- */
void *tk_rpc_ctx(const tk_rpc_call *call);
const tk_identity *tk_rpc_identity(const tk_rpc_call *call);
const char *tk_rpc_peer(const tk_rpc_call *call);
int64_t tk_rpc_deadline_ns(const tk_rpc_call *call); /* CLOCK_MONOTONIC; INT64_MAX: none */
bool tk_rpc_cancelled(const tk_rpc_call *call);      /* any thread */
/* The caller's trace id, 32 hex digits, from a well-formed `traceparent`; else "". */
const char *tk_rpc_trace(const tk_rpc_call *call);
/* What `ended` is to be told of the call: so many images more, and the version, of which the last
 * counts. Any thread that holds the call. */
void tk_rpc_note(tk_rpc_call *call, uint64_t images, uint64_t version);
/* Which message of the stream the callbacks have, from 1, and when it came (CLOCK_MONOTONIC). */
uint64_t tk_rpc_message_number(const tk_rpc_call *call);
int64_t tk_rpc_received_ns(const tk_rpc_call *call);
void tk_rpc_set_user(tk_rpc_call *call, void *user);
void *tk_rpc_user(const tk_rpc_call *call);
/* Memory that lives as long as the call; NULL when over the call's budget. */
void *tk_rpc_alloc(tk_rpc_call *call, size_t size);

/* Keeps the call object alive across threads. */
void tk_rpc_ref(tk_rpc_call *call);
void tk_rpc_unref(tk_rpc_call *call);

/* Ends the call with a message (unary, client stream). The message is packed before the function
 * returns. */
void tk_rpc_reply(tk_rpc_call *call, const ProtobufCMessage *out);
/* Queues one message of a server or bidirectional stream; false when the queue (8) is full or the
 * call is over: try again in on_writable. */
bool tk_rpc_send(tk_rpc_call *call, const ProtobufCMessage *out);
/* Bidirectional stream: the message is dealt with and dies; asks for the next one, or on_end. Owed
 * once for each on_msg, inside it or later, unless the call is over. Waits until there is room to
 * send, so that a method with one answer to each message never finds the queue full: a client that
 * does not read is held back. */
void tk_rpc_next(tk_rpc_call *call);
/* Bidirectional stream, inside on_msg: the message outlives tk_rpc_next, so that several can be
 * under way. It still counts for the memory of decoded messages; free it before the call is let go.
 * NULL: out of memory. */
tk_rpc_message *tk_rpc_take(tk_rpc_call *call);
void tk_rpc_message_free(tk_rpc_message *message); /* any thread; NULL is fine */
/* Ends a server or bidirectional stream well, after what is queued. */
void tk_rpc_finish(tk_rpc_call *call);
/* Ends the call with a status (status.c maps tk_err to gRPC codes) and a sentence. Only the first
 * of reply, finish, fail counts. */
void tk_rpc_fail(tk_rpc_call *call, tk_err err, const char *fmt, ...) TK_PRINTF(3, 4);
/* Before tk_rpc_fail: the failure carries `grpc-retry-pushback-ms`, after which clients with a
 * retry policy try again by themselves. 0 is none. */
void tk_rpc_retry_after(tk_rpc_call *call, uint32_t ms);
/* gRPC's number for an error. Any thread. */
int tk_rpc_code(tk_err err);

#endif
