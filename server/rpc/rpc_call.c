/* One call, from its headers to its end: refusals that need no body, then messages one by one into
 * the method's callbacks, then on_free. See rpc_internal.h for threads, references and locks. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include <grpc/slice.h>
#include <grpc/support/alloc.h>
#include <grpc/support/time.h>

#include "engine/mem.h"
#include "rpc/rpc_internal.h"
#include "rpc/status.h"

enum { DEADLINE_SLACK_NS = 20000000 }; /* at least */

/* Why the core closed a call that had no status yet. The client's clock runs from before its
 * headers came, so that its cancel at the deadline may be here before the deadline is. */
static grpc_status_code code_of_close(const tk_rpc_call *call)
{
    const int64_t tenth =
        call->deadline_ns == INT64_MAX ? 0 : (call->deadline_ns - call->begun_ns) / 10;
    const int64_t slack = tenth > DEADLINE_SLACK_NS ? tenth : DEADLINE_SLACK_NS;
    return call->over_ns < call->deadline_ns - slack ? GRPC_STATUS_CANCELLED
                                                     : GRPC_STATUS_DEADLINE_EXCEEDED;
}

static void on_closed(void *self, bool ok);
static void on_received(void *self, bool ok);

/* -- references -- */

void tk_rpc_ref(tk_rpc_call *call)
{
    atomic_fetch_add_explicit(&call->refs, 1, memory_order_relaxed);
}

/* Posted by another thread's tk_rpc_unref. */
static void on_unused(void *self, bool ok)
{
    tk_rpc_call *call = self;
    (void)ok;
    /* Acquires what that thread did before it let go. */
    if (atomic_load_explicit(&call->refs, memory_order_acquire) == 0) tk__rpc_call_free(call);
}

void tk_rpc_unref(tk_rpc_call *call)
{
    if (atomic_fetch_sub_explicit(&call->refs, 1, memory_order_acq_rel) != 1) return;
    if (call->begun && (call->method->flags & TK_RPC_BLOCKING)) {
        tk__rpc_workers_push(&call->server->workers, call, TK__DO_FREE);
    } else if (tk__rpc_this_queue() == call->cq) {
        call->next = call->cq->to_free;
        call->cq->to_free = call;
    } else {
        /* An empty batch comes back at once, on the call's own thread. */
        grpc_call_start_batch(call->grpc, NULL, 0, &call->unused, NULL);
    }
}

static void tell_end(const tk_rpc_call *call)
{
    const tk_rpc_opts *opts = &call->server->opts;
    if (!opts->ended) return;
    const tk_rpc_ended ended = {.path = call->method ? call->method->path : NULL,
                                .stream = call->method && call->method->kind != TK_RPC_UNARY,
                                .who = &call->identity,
                                .trace = call->trace,
                                .code = (int)call->code,
                                .duration_ns = call->over_ns - call->begun_ns,
                                .bytes = call->bytes,
                                .images = call->images,
                                .version = call->version};
    opts->ended(opts->ctx, &ended);
}

void tk__rpc_call_free(tk_rpc_call *call)
{
    tell_end(call);
    if (call->begun && call->method->on_free) call->method->on_free(call);
    tk__rpc_drop_queue_locked(call); /* nobody else has the call any more */
    if (call->in) grpc_byte_buffer_destroy(call->in);
    tk__rpc_arena_fini(&call->message);
    tk__rpc_arena_fini(&call->memory);
    gpr_free(call->peer);
    grpc_call_unref(call->grpc);
    pthread_mutex_destroy(&call->lock);
    tk_rpc_server *server = call->server;
    tk_free(call);
    tk__rpc_count_out(server);
}

/* -- callbacks -- */

/* Whether callbacks may still run; from now on on_free is owed. */
static bool enter(tk_rpc_call *call)
{
    pthread_mutex_lock(&call->lock);
    const bool open = !call->over;
    call->begun |= open;
    pthread_mutex_unlock(&call->lock);
    return open;
}

static bool is_over(tk_rpc_call *call)
{
    pthread_mutex_lock(&call->lock);
    const bool over = call->over;
    pthread_mutex_unlock(&call->lock);
    return over;
}

static bool streams_in(const tk_rpc_call *call)
{
    return call->method->kind == TK_RPC_CLIENT_STREAM || call->method->kind == TK_RPC_BIDI_STREAM;
}

void tk__rpc_drain(tk_rpc_call *call)
{
    if (!call->method->on_drain)
        tk__rpc_end(call, GRPC_STATUS_UNAVAILABLE, "the server is shutting down");
    else if (enter(call))
        call->method->on_drain(call);
}

void tk__rpc_receive(tk_rpc_call *call)
{
    if (is_over(call)) return;
    const grpc_op op = {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &call->in};
    const bool bidi = call->method->kind == TK_RPC_BIDI_STREAM;
    tk_rpc_ref(call);
    if (bidi && !tk__rpc_idle_add(call)) {
        tk__rpc_drain(call);
        tk_rpc_unref(call);
    } else if (grpc_call_start_batch(call->grpc, &op, 1, &call->received, NULL) != GRPC_CALL_OK) {
        if (bidi) tk__rpc_idle_remove(call);
        tk_rpc_unref(call);
    }
}

void tk_rpc_next(tk_rpc_call *call)
{
    tk__rpc_arena_fini(&call->message);
    pthread_mutex_lock(&call->lock);
    const bool room = call->queued + call->sending < TK__RPC_QUEUE;
    call->wants_next = !room; /* tk__rpc_on_sent goes on */
    pthread_mutex_unlock(&call->lock);
    if (room) tk__rpc_receive(call);
}

struct tk_rpc_message {
    tk__rpc_arena arena;
};

tk_rpc_message *tk_rpc_take(tk_rpc_call *call)
{
    tk_rpc_message *message = tk_calloc(1, sizeof *message);
    if (!message) return NULL;
    message->arena = call->message;
    tk__rpc_arena_init(&call->message, &call->server->meter, 0);
    return message;
}

void tk_rpc_message_free(tk_rpc_message *message)
{
    if (!message) return;
    tk__rpc_arena_fini(&message->arena);
    tk_free(message);
}

/* To a method that does not ask, a message that cannot be taken is the same as a cancel. */
static void refuse_message(tk_rpc_call *call, tk_err err, const tk_diag *why)
{
    tk_diag text = *why;
    if (streams_in(call))
        err = tk_fail(&text, err, "message %" PRIu64 ": %s", call->messages, why->text);
    if (call->method->on_refused) {
        if (enter(call)) call->method->on_refused(call, err, &text);
        return;
    }
    if (!tk__rpc_end(call, tk__status_code(err), text.text)) return;
    atomic_store_explicit(&call->cancelled, true, memory_order_relaxed);
    if (call->begun && call->method->on_cancel) call->method->on_cancel(call);
}

static void do_message(tk_rpc_call *call, tk__rpc_scratch *scratch)
{
    const ProtobufCMessage *message;
    tk_diag diag;
    call->bytes += grpc_byte_buffer_length(call->in);
    call->messages++;
    call->received_ns = tk_now_ns();
    tk_err err = is_over(call) ? TK_CANCELLED
                               : tk__rpc_decode(call->method, call->in, &call->message, scratch,
                                                &message, &diag);
    grpc_byte_buffer_destroy(call->in);
    call->in = NULL;
    if (err == TK_CANCELLED) return;
    if (err == TK_BUSY) { /* to the client it is a limit, of the kind that goes away */
        tk_rpc_retry_after(call, TK__RPC_RETRY_MS);
        err = TK_LIMIT;
    }
    if (err != TK_OK) {
        refuse_message(call, err, &diag);
        return;
    }
    if (enter(call)) call->method->on_msg(call, message);
    if (call->method->kind != TK_RPC_CLIENT_STREAM) return;
    tk__rpc_arena_fini(&call->message);
    /* Only now: a client that sends faster than on_msg takes is held back by HTTP/2's flow control.
     */
    tk__rpc_receive(call);
}

void tk__rpc_call_do(tk_rpc_call *call, unsigned what, tk__rpc_scratch *scratch)
{
    switch (what) {
    case TK__DO_START:
        if (call->method->on_start && enter(call)) call->method->on_start(call);
        tk__rpc_receive(call);
        break;
    case TK__DO_MSG:
        do_message(call, scratch);
        break;
    case TK__DO_END:
        if (enter(call)) call->method->on_end(call);
        break;
    case TK__DO_WRITABLE:
        if (enter(call)) call->method->on_writable(call);
        break;
    default:
        break;
    }
}

void tk__rpc_call_schedule(tk_rpc_call *call, unsigned what)
{
    if (call->method->flags & TK_RPC_BLOCKING)
        tk__rpc_workers_push(&call->server->workers, call, what);
    else
        tk__rpc_call_do(call, what, &call->cq->scratch);
}

/* -- events -- */

/* The call's end for any reason; with close_cancelled it is the only notice of a cancel, a deadline
 * or a peer that is gone. */
static void on_closed(void *self, bool ok)
{
    tk_rpc_call *call = self;
    (void)ok;
    if (call->close_cancelled) {
        atomic_store_explicit(&call->cancelled, true, memory_order_relaxed);
        pthread_mutex_lock(&call->lock);
        const bool tell = !call->over && call->begun && call->method->on_cancel;
        if (!call->over) {
            call->over_ns = tk_now_ns();
            call->code = code_of_close(call);
        }
        call->over = true;
        call->done = true;
        tk__rpc_drop_queue_locked(call);
        pthread_mutex_unlock(&call->lock);
        if (tell) call->method->on_cancel(call);
    }
    tk_rpc_unref(call);
}

static void on_received(void *self, bool ok)
{
    tk_rpc_call *call = self;
    (void)ok;
    pthread_mutex_lock(&call->lock); /* after the thread that asked for the message */
    const bool got = call->in != NULL;
    pthread_mutex_unlock(&call->lock);
    if (call->method->kind == TK_RPC_BIDI_STREAM) tk__rpc_idle_remove(call);
    if (got) {
        tk__rpc_call_schedule(call, TK__DO_MSG);
    } else if (!grpc_call_failed_before_recv_message(call->grpc)) { /* else `closed` tells */
        if (streams_in(call))
            tk__rpc_call_schedule(call, TK__DO_END);
        else
            tk__rpc_end(call, GRPC_STATUS_INVALID_ARGUMENT, "the request has no message");
    }
    tk_rpc_unref(call);
}

/* -- the beginning -- */

/* The value of the authorization header without "Bearer ", or NULL. Borrowed from `metadata`. */
static const char *find_token(const grpc_metadata_array *metadata, size_t *len)
{
    static const char scheme[] = "bearer ";
    const size_t skip = sizeof scheme - 1;
    for (size_t i = 0; i < metadata->count; i++) {
        const grpc_slice value = metadata->metadata[i].value;
        if (grpc_slice_str_cmp(metadata->metadata[i].key, "authorization") != 0) continue;
        if (GRPC_SLICE_LENGTH(value) <= skip) return NULL;
        /* The element, not a copy: a short slice holds its bytes within itself. */
        const char *text = (const char *)GRPC_SLICE_START_PTR(metadata->metadata[i].value);
        for (size_t k = 0; k < skip; k++)
            if ((text[k] | ' ') != scheme[k]) return NULL;
        *len = GRPC_SLICE_LENGTH(value) - skip;
        return text + skip;
    }
    return NULL;
}

/* The tenant of the connection's certificate; *owner stays zero where there is none. */
static tk_err find_owner(const tk_rpc_call *call, tk_identity *owner, tk_diag *diag)
{
    const tk_rpc_opts *opts = &call->server->opts;
    if (!tk__rpc_tls_verifies(call->server->tls) || !opts->tenant_named) return TK_OK;
    tk__rpc_named named;
    tk_err err = tk__rpc_tls_named(call->grpc, &named, diag);
    if (err != TK_OK || !named.name[0]) return err;
    err = opts->tenant_named(opts->ctx, named.name, owner, diag);
    if (err != TK_NOTFOUND) return err;
    *owner = (tk_identity){0};
    if (!named.by_uri) return TK_OK; /* a common name that is nobody's here */
    return tk_fail(diag, TK_UNAUTHENTICATED, "the client certificate's tenant is not known here");
}

static bool is_there(const grpc_metadata_array *metadata, const char *key)
{
    for (size_t i = 0; i < metadata->count; i++)
        if (grpc_slice_str_cmp(metadata->metadata[i].key, key) == 0) return true;
    return false;
}

/* Who calls: by token, by certificate, or by both, which must agree. */
static tk_err identify(tk_rpc_call *call, const grpc_metadata_array *metadata, tk_diag *diag)
{
    const tk_rpc_opts *opts = &call->server->opts;
    tk_identity owner = {0};
    tk_err err = find_owner(call, &owner, diag);
    if (err != TK_OK) return err;
    if (owner.tenant && !is_there(metadata, "authorization")) {
        call->identity = owner;
        call->by_certificate = true;
        return TK_OK;
    }
    size_t len = 0;
    const char *token = find_token(metadata, &len);
    if (!token)
        return tk_fail(
            diag, TK_UNAUTHENTICATED,
            "no token: the call needs the header \"authorization: Bearer TOKEN\"%s",
            tk__rpc_tls_verifies(call->server->tls) ? ", or a client certificate of a tenant" : "");
    tk_fail(diag, TK_UNAUTHENTICATED,
            "the token is not valid here (expected \"authorization: Bearer TOKEN\")");
    if (!opts->authenticate) return TK_UNAUTHENTICATED;
    err = opts->authenticate(opts->ctx, token, len, &call->identity, diag);
    if (err != TK_OK || !owner.tenant) return err;
    if (!call->identity.admin && call->identity.tenant == owner.tenant) return TK_OK;
    call->identity = (tk_identity){0};
    return tk_fail(diag, TK_UNAUTHENTICATED,
                   "the token is not one of the tenant that the client certificate names");
}

/* Fills in call->trace; two headers are as bad as none. */
static void find_trace(tk_rpc_call *call, const grpc_metadata_array *metadata)
{
    size_t seen = 0;
    for (size_t i = 0; i < metadata->count; i++) {
        if (grpc_slice_str_cmp(metadata->metadata[i].key, "traceparent") != 0) continue;
        const grpc_slice *value = &metadata->metadata[i].value;
        tk__rpc_trace_parse(GRPC_SLICE_START_PTR(*value), GRPC_SLICE_LENGTH(*value), call->trace);
        if (++seen > 1) call->trace[0] = '\0';
    }
}

/* The core holds only those clients to its limit that have acknowledged its settings. Counted as
 * HTTP/2 counts them (RFC 9113, 6.5.2). */
static tk_err check_headers(const grpc_metadata_array *metadata, tk_diag *diag)
{
    enum { ENTRY = 32 };
    size_t n = 0;
    for (size_t i = 0; i < metadata->count; i++)
        n += GRPC_SLICE_LENGTH(metadata->metadata[i].key) +
             GRPC_SLICE_LENGTH(metadata->metadata[i].value) + ENTRY;
    if (n <= TK__RPC_MAX_METADATA) return TK_OK;
    return tk_fail(diag, TK_LIMIT, "the call's headers have %zu bytes, the limit is %d", n,
                   (int)TK__RPC_MAX_METADATA);
}

/* Who calls, and whether this method is for them. */
static tk_err admit(tk_rpc_call *call, const grpc_metadata_array *metadata, tk_diag *diag)
{
    const tk_rpc_method *method = call->method;
    if (method->flags & TK_RPC_PUBLIC) return TK_OK;
    const tk_err err = identify(call, metadata, diag);
    if (err != TK_OK) return err;
    if ((method->flags & TK_RPC_ADMIN) && !call->identity.admin)
        return tk_fail(diag, TK_DENIED, "%s is for admins, and this is a tenant's %s (%s)",
                       method->path, call->by_certificate ? "certificate" : "token",
                       call->identity.name);
    if ((method->flags & TK_RPC_TENANT) && call->identity.admin)
        return tk_fail(diag, TK_DENIED, "%s is for tenants, and this is an admin's token",
                       method->path);
    return TK_OK;
}

static void refuse_unknown(tk_rpc_call *call, grpc_slice path)
{
    tk_diag text;
    const int n = GRPC_SLICE_LENGTH(path) < 200 ? (int)GRPC_SLICE_LENGTH(path) : 200;
    snprintf(text.text, sizeof text.text, "there is no method %.*s", n,
             (const char *)GRPC_SLICE_START_PTR(path));
    tk__rpc_end(call, GRPC_STATUS_UNIMPLEMENTED, text.text);
}

static void refuse_crowd(tk_rpc_call *call)
{
    tk_diag text;
    snprintf(text.text, sizeof text.text,
             "too many calls at once, the server's limit is %d; try again in %d ms",
             TK__RPC_MAX_CALLS, TK__RPC_RETRY_MS);
    tk_rpc_retry_after(call, TK__RPC_RETRY_MS);
    tk__rpc_end(call, GRPC_STATUS_RESOURCE_EXHAUSTED, text.text);
}

/* Path, token, role; then asks for the first message. */
static void begin(tk_rpc_call *call, const grpc_call_details *details,
                  const grpc_metadata_array *metadata)
{
    tk_diag diag = {0};
    call->method = tk__rpc_find(call->server, details->method);
    if (!call->method) {
        refuse_unknown(call, details->method);
        return;
    }
    tk_err err = check_headers(metadata, &diag);
    if (err == TK_OK) err = admit(call, metadata, &diag);
    if (err != TK_OK)
        tk__rpc_end(call, tk__status_code(err), diag.text);
    else if (call->method->on_start)
        tk__rpc_call_schedule(call, TK__DO_START);
    else
        tk__rpc_receive(call);
}

static int64_t deadline_of(const grpc_call_details *details)
{
    const gpr_timespec t = gpr_convert_clock_type(details->deadline, GPR_CLOCK_MONOTONIC);
    if (t.tv_sec >= INT64_MAX / 1000000000) return INT64_MAX;
    return t.tv_sec * 1000000000 + t.tv_nsec;
}

static tk_rpc_call *create(tk__rpc_cq *cq, grpc_call *grpc, const grpc_call_details *details)
{
    tk_rpc_call *call = tk_calloc(1, sizeof *call);
    if (!call) return NULL;
    call->server = cq->server;
    call->cq = cq;
    call->grpc = grpc;
    call->peer = grpc_call_get_peer(grpc);
    call->deadline_ns = deadline_of(details);
    call->begun_ns = tk_now_ns();
    atomic_init(&call->refs, 1);
    atomic_init(&call->cancelled, false);
    call->closed = (tk__rpc_tag){on_closed, call};
    call->received = (tk__rpc_tag){on_received, call};
    call->unused = (tk__rpc_tag){on_unused, call};
    call->sent = (tk__rpc_tag){tk__rpc_on_sent, call};
    pthread_mutex_init(&call->lock, NULL);
    tk__rpc_arena_init(&call->message, &cq->server->meter, 0);
    tk__rpc_arena_init(&call->memory, &cq->server->meter, TK__RPC_CALL_MEMORY);
    return call;
}

void tk__rpc_call_begin(tk__rpc_cq *cq, grpc_call *grpc, grpc_call_details *details,
                        grpc_metadata_array *metadata)
{
    const bool room = tk__rpc_count_in(cq->server);
    tk_rpc_call *call = create(cq, grpc, details);
    if (!call) {
        tk__rpc_count_out(cq->server);
        grpc_call_cancel_with_status(grpc, GRPC_STATUS_RESOURCE_EXHAUSTED, "out of memory", NULL);
        grpc_call_unref(grpc);
    } else {
        const grpc_op op = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER,
                            .data.recv_close_on_server.cancelled = &call->close_cancelled};
        tk_rpc_ref(call);
        if (grpc_call_start_batch(grpc, &op, 1, &call->closed, NULL) != GRPC_CALL_OK)
            tk_rpc_unref(call);
        find_trace(call, metadata);
        if (cq->server->opts.began) cq->server->opts.began(cq->server->opts.ctx);
        if (room)
            begin(call, details, metadata);
        else
            refuse_crowd(call);
        tk_rpc_unref(call);
    }
    grpc_call_details_destroy(details);
    grpc_metadata_array_destroy(metadata);
}

/* -- for callbacks -- */

void *tk_rpc_ctx(const tk_rpc_call *call)
{
    return call->server->opts.ctx;
}

const tk_identity *tk_rpc_identity(const tk_rpc_call *call)
{
    return &call->identity;
}

const char *tk_rpc_peer(const tk_rpc_call *call)
{
    return call->peer;
}

int64_t tk_rpc_deadline_ns(const tk_rpc_call *call)
{
    return call->deadline_ns;
}

bool tk_rpc_cancelled(const tk_rpc_call *call)
{
    return atomic_load_explicit(&call->cancelled, memory_order_relaxed);
}

const char *tk_rpc_trace(const tk_rpc_call *call)
{
    return call->trace;
}

void tk_rpc_note(tk_rpc_call *call, uint64_t images, uint64_t version)
{
    pthread_mutex_lock(&call->lock);
    call->images += images;
    call->version = version;
    pthread_mutex_unlock(&call->lock);
}

uint64_t tk_rpc_message_number(const tk_rpc_call *call)
{
    return call->messages;
}

int64_t tk_rpc_received_ns(const tk_rpc_call *call)
{
    return call->received_ns;
}

int tk_rpc_code(tk_err err)
{
    return (int)tk__status_code(err);
}

void tk_rpc_set_user(tk_rpc_call *call, void *user)
{
    call->user = user;
}

void *tk_rpc_user(const tk_rpc_call *call)
{
    return call->user;
}

void *tk_rpc_alloc(tk_rpc_call *call, size_t size)
{
    pthread_mutex_lock(&call->lock);
    void *p = tk__rpc_arena_alloc(&call->memory, size);
    pthread_mutex_unlock(&call->lock);
    return p;
}
