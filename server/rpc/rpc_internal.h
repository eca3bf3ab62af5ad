/* What the files of server/rpc share; nobody else includes this.
 *
 * Life of a call. A completion-queue thread (rpc_server.c) takes a new call, rpc_call.c checks path
 * and token and asks for messages, decodes them (rpc_codec.c) and runs the method's callbacks, on
 * that thread or, for TK_RPC_BLOCKING, on a worker (rpc_workers.c). rpc_send.c owns what goes out.
 * References: one for each tag that is under way in the core, one while a worker has the call to
 * do, and those of tk_rpc_ref. At zero the call is freed, by its completion-queue thread or by a
 * worker, never by whoever let go last.
 *
 * Locks: tk_rpc_call.lock and the workers' and the server's lock are leaves; none is held across a
 * callback or a call into the core. The health list's lock is taken before a call's, and is held
 * while its watchers are told; so is that of idle streams while they are ended. What the core hands
 * over from thread to thread is ordered by the core's own locks; where a sanitizer cannot see that,
 * the call's lock is taken once more, and the place says so. */
#ifndef SERVER_RPC_INTERNAL_H
#define SERVER_RPC_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include <grpc/byte_buffer.h>
#include <grpc/grpc.h>

#include "clock.h"
#include "rpc/rpc.h"
#include "rpc/rpc_arena.h"
#include "rpc/rpc_tls.h"

enum {
    TK__RPC_QUEUE = 8,             /* messages of a stream that wait or are under way */
    TK__RPC_SLOTS = 16,            /* new calls armed on each completion queue */
    TK__RPC_MAX_CALLS = 10000,     /* alive at once */
    TK__RPC_MAX_METADATA = 8192,   /* bytes of a call's headers */
    TK__RPC_CALL_MEMORY = 1 << 20, /* budget of tk_rpc_alloc */
    TK__RPC_SCRATCH_KEPT = 1 << 20,
    TK__RPC_RETRY_MS = 100, /* for who meets a limit of the server's */
    TK__RPC_QUIET_S = 5,    /* without events before memory is given back */
};

/* What comes out of a completion queue. */
typedef struct tk__rpc_tag {
    void (*fn)(void *self, bool ok);
    void *self;
} tk__rpc_tag;

/* Where a thread puts the wire bytes of a message that came in several slices. */
typedef struct tk__rpc_scratch {
    uint8_t *data;
    size_t size;
} tk__rpc_scratch;

typedef struct tk__rpc_cq {
    grpc_completion_queue *queue;
    tk_rpc_server *server;
    pthread_t thread;
    bool started;
    tk__rpc_scratch scratch; /* its thread */
    tk_rpc_call *to_free;    /* its thread: freed when the current event is done */
    struct tk__rpc_slot *slots;
} tk__rpc_cq;

/* A request for a new call. */
typedef struct tk__rpc_slot {
    tk__rpc_tag tag;
    tk__rpc_cq *cq;
    grpc_call *grpc;
    grpc_call_details details;
    grpc_metadata_array metadata;
} tk__rpc_slot;

/* Callbacks that a call has to do, in the order in which they are done. */
enum {
    TK__DO_START = 1,
    TK__DO_MSG = 2,
    TK__DO_END = 4,
    TK__DO_WRITABLE = 8,
    TK__DO_FREE = 16,
};

struct tk_rpc_call {
    tk_rpc_server *server;
    tk__rpc_cq *cq;
    grpc_call *grpc;
    const tk_rpc_method *method; /* NULL until the path is known to be one */
    tk_identity identity;
    bool by_certificate; /* `identity` is a certificate's, and there is no token */
    char *peer;          /* gpr's */
    int64_t deadline_ns, begun_ns;
    int64_t over_ns;          /* lock until over, then fixed */
    char trace[33];           /* "" or 32 hex digits */
    uint64_t messages, bytes; /* the callbacks'; received */
    int64_t received_ns;      /* the callbacks'; when the last of them came */
    atomic_uint refs;
    atomic_bool cancelled;
    tk__rpc_tag closed, received, sent, unused;
    int close_cancelled; /* written by the core for `closed` */

    void *user; /* the callbacks' */

    /* Receiving: touched by the callbacks' thread, or the queue's when none runs. */
    grpc_byte_buffer *in;
    tk__rpc_arena message;

    pthread_mutex_t lock;
    tk__rpc_arena memory;              /* lock */
    bool begun;                        /* lock; a callback has run, so on_free is owed */
    bool over;                         /* lock; the status is decided, or the call cancelled */
    bool metadata_sent, sending, done; /* lock; done: the status is under way, or never will be */
    bool wants_next;                   /* lock; tk_rpc_next waits for room */
    grpc_byte_buffer *queue[TK__RPC_QUEUE]; /* lock; a ring */
    unsigned first, queued;                 /* lock */
    grpc_status_code code;                  /* lock until over, then fixed */
    tk_diag why;                            /* the same */
    uint32_t retry_ms;                      /* the same; 0: none */
    uint64_t images, version;               /* lock; tk_rpc_note() */

    unsigned todo;                      /* workers' lock: TK__DO_ bits */
    bool scheduled;                     /* workers' lock */
    tk_rpc_call *idle_prev, *idle_next; /* idle streams' lock; NULL: not on the list */
    tk_rpc_call *next;                  /* workers' lock, or the queue's thread when on to_free */
};

typedef struct tk__rpc_workers {
    bool made; /* the lock and the condition */
    pthread_mutex_t lock;
    pthread_cond_t wake;
    tk_rpc_call *first, *last; /* lock */
    bool stop;                 /* lock */
    pthread_t *threads;
    unsigned n;
} tk__rpc_workers;

typedef struct tk__rpc_health tk__rpc_health;
typedef struct tk__rpc_reflect tk__rpc_reflect;

/* Bidirectional streams that wait for a message of their client: a stop ends them at once. */
typedef struct tk__rpc_idle {
    pthread_mutex_t lock;
    tk_rpc_call *first; /* lock */
    bool stopping;      /* lock */
} tk__rpc_idle;

struct tk_rpc_server {
    tk_rpc_opts opts;              /* with defaults filled in; `address`, `tls` are not kept */
    const tk_rpc_method **methods; /* all, sorted by path */
    size_t n_methods;
    grpc_server *grpc;
    grpc_resource_quota *quota;
    tk__rpc_tls *tls; /* NULL: plain text */
    int port;
    tk__rpc_cq *queues;
    tk__rpc_workers workers;
    tk__rpc_meter meter; /* decoded messages */
    tk__rpc_health *health;
    tk__rpc_reflect *reflect;
    tk__rpc_idle idle;
    tk__rpc_tag drained;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    size_t calls;    /* lock; alive */
    bool is_drained; /* lock; the core has closed every connection */
};

/* -- rpc_server.c -- */
const tk_rpc_method *tk__rpc_find(const tk_rpc_server *server, grpc_slice path);
/* Counts a call in; false when there are too many (it is counted all the same). */
bool tk__rpc_count_in(tk_rpc_server *server);
void tk__rpc_count_out(tk_rpc_server *server);
/* The completion queue whose thread this is, or NULL. */
tk__rpc_cq *tk__rpc_this_queue(void);

/* -- rpc_call.c -- */
/* Takes over the call, the details and the metadata of `slot`, which is armed again already. */
void tk__rpc_call_begin(tk__rpc_cq *cq, grpc_call *grpc, grpc_call_details *details,
                        grpc_metadata_array *metadata);
/* Runs one callback (a TK__DO_ bit) on this thread. */
void tk__rpc_call_do(tk_rpc_call *call, unsigned what, tk__rpc_scratch *scratch);
/* The same on the thread that the method's kind asks for: at once, or a worker. Completion-queue
 * thread. */
void tk__rpc_call_schedule(tk_rpc_call *call, unsigned what);
/* on_free, and everything is gone. */
void tk__rpc_call_free(tk_rpc_call *call);

/* Asks for the next message. */
void tk__rpc_receive(tk_rpc_call *call);
/* The server stops: the method finishes the stream, or it ends now. */
void tk__rpc_drain(tk_rpc_call *call);

/* -- rpc_idle.c -- */
/* A bidirectional stream begins to wait for a message; false: the server stops. It holds a
 * reference meanwhile. */
bool tk__rpc_idle_add(tk_rpc_call *call);
void tk__rpc_idle_remove(tk_rpc_call *call);
/* Ends those that wait, and from now on those that would. */
void tk__rpc_idle_stop(tk__rpc_idle *idle);

/* -- rpc_trace.c -- */
/* The trace id of a `traceparent` header (W3C Trace Context, 55 characters) into out[33]; "" and
 * false when it is malformed. */
bool tk__rpc_trace_parse(const uint8_t *text, size_t len, char *out);

/* -- rpc_send.c -- */
void tk__rpc_on_sent(void *self, bool ok);
/* Decides the status, once; what is queued goes first. `text` may be NULL. False: it was decided
 * before. */
bool tk__rpc_end(tk_rpc_call *call, grpc_status_code code, const char *text);
/* Drops what waits to be sent. Caller holds call->lock. */
void tk__rpc_drop_queue_locked(tk_rpc_call *call);

/* -- rpc_codec.c -- */
/* Decodes `buffer` as the method's request into `arena`, which is emptied first; the message lives
 * there. TK_BUSY: there is no memory for it now. */
TK_MUST tk_err tk__rpc_decode(const tk_rpc_method *method, grpc_byte_buffer *buffer,
                              tk__rpc_arena *arena, tk__rpc_scratch *scratch,
                              const ProtobufCMessage **out, tk_diag *diag);
grpc_byte_buffer *tk__rpc_encode(const ProtobufCMessage *message);

/* -- rpc_workers.c -- */
TK_MUST tk_err tk__rpc_workers_start(tk__rpc_workers *w, unsigned n, tk_diag *diag);
/* Nothing may be left to do. Also after a failed start, or none (a zeroed struct). */
void tk__rpc_workers_stop(tk__rpc_workers *w);
void tk__rpc_workers_push(tk__rpc_workers *w, tk_rpc_call *call, unsigned what);

/* -- rpc_health.c -- */
extern const tk_rpc_method tk__rpc_health_methods[2];
TK_MUST tk_err tk__rpc_health_create(tk__rpc_health **out, const tk_rpc_server *server);
void tk__rpc_health_destroy(tk__rpc_health *health);
void tk__rpc_health_set(tk__rpc_health *health, bool serving);
/* NOT_SERVING to all who watch, and their calls end. */
void tk__rpc_health_stop(tk__rpc_health *health);

/* -- rpc_reflect.c -- */
extern const tk_rpc_method tk__rpc_reflect_methods[2];
TK_MUST tk_err tk__rpc_reflect_create(tk__rpc_reflect **out);
void tk__rpc_reflect_destroy(tk__rpc_reflect *reflect); /* NULL is fine */

/* -- rpc_address.c -- */
/* Binds and listens; `tls` may be NULL; *port is 1 for a unix socket. */
TK_MUST tk_err tk__rpc_bind(grpc_server *server, const char *address, tk__rpc_tls *tls, int *port,
                            tk_diag *diag);

/* -- rpc_log.c -- */
/* From now on the core's error lines go to `sink` (NULL: nowhere), at most a few in ten seconds.
 * Process wide. */
void tk__rpc_log_install(void (*sink)(const char *line));
/* The core's lines of this thread are written here too (the last one wins), until called with NULL.
 */
void tk__rpc_log_capture(tk_diag *into);

#endif
