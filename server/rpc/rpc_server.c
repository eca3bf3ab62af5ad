/* The server: the table of methods, the core's settings, the completion-queue threads, and a stop
 * that loses nothing. What the settings guard against was each tried on version 1.51 of the core.
 */
#include <assert.h>
#include <limits.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <grpc/slice.h>
#include <grpc/support/time.h>

#include "engine/mem.h"
#include "process.h"
#include "rpc/accept_guard.h"
#include "rpc/rpc_internal.h"

/* -- the table of methods -- */

static int by_path(const void *a, const void *b)
{
    const tk_rpc_method *const *x = a, *const *y = b;
    return strcmp((*x)->path, (*y)->path);
}

static int compare(grpc_slice path, const char *with)
{
    const size_t n = GRPC_SLICE_LENGTH(path), m = strlen(with);
    const int order = memcmp(GRPC_SLICE_START_PTR(path), with, n < m ? n : m);
    return order != 0 ? order : (n > m) - (n < m);
}

const tk_rpc_method *tk__rpc_find(const tk_rpc_server *server, grpc_slice path)
{
    for (size_t low = 0, high = server->n_methods; low < high;) {
        const size_t middle = low + (high - low) / 2;
        const int order = compare(path, server->methods[middle]->path);
        if (order == 0) return server->methods[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

static tk_err make_table(tk_rpc_server *server, const tk_rpc_opts *opts)
{
    const size_t n_health = sizeof tk__rpc_health_methods / sizeof *tk__rpc_health_methods;
    const size_t n_reflect = sizeof tk__rpc_reflect_methods / sizeof *tk__rpc_reflect_methods;
    const size_t n_own = n_health + n_reflect;
    server->n_methods = opts->n_methods + n_own;
    server->methods = tk_calloc(server->n_methods, sizeof *server->methods);
    if (!server->methods) return TK_NOMEM;
    for (size_t i = 0; i < server->n_methods; i++) {
        const tk_rpc_method *m = i < n_health ? &tk__rpc_health_methods[i]
                                 : i < n_own  ? &tk__rpc_reflect_methods[i - n_health]
                                              : &opts->methods[i - n_own];
        assert(m->path[0] == '/' && m->in && m->out && m->on_msg && m->max_request > 0);
        assert((m->kind != TK_RPC_CLIENT_STREAM && m->kind != TK_RPC_BIDI_STREAM) || m->on_end);
        server->methods[i] = m;
    }
    qsort(server->methods, server->n_methods, sizeof *server->methods, by_path);
    return TK_OK;
}

/* -- counting -- */

bool tk__rpc_count_in(tk_rpc_server *server)
{
    pthread_mutex_lock(&server->lock);
    const bool room = server->calls++ < TK__RPC_MAX_CALLS;
    pthread_mutex_unlock(&server->lock);
    return room;
}

void tk__rpc_count_out(tk_rpc_server *server)
{
    pthread_mutex_lock(&server->lock);
    if (--server->calls == 0) pthread_cond_broadcast(&server->changed);
    pthread_mutex_unlock(&server->lock);
}

/* -- completion queues -- */

static _Thread_local tk__rpc_cq *this_queue;

tk__rpc_cq *tk__rpc_this_queue(void)
{
    return this_queue;
}

static void arm(tk__rpc_slot *slot)
{
    slot->grpc = NULL;
    grpc_call_details_init(&slot->details);
    grpc_metadata_array_init(&slot->metadata);
    grpc_server_request_call(slot->cq->server->grpc, &slot->grpc, &slot->details, &slot->metadata,
                             slot->cq->queue, slot->cq->queue, &slot->tag);
}

static void on_new_call(void *self, bool ok)
{
    tk__rpc_slot *slot = self;
    grpc_call *call = slot->grpc;
    grpc_call_details details = slot->details;
    grpc_metadata_array metadata = slot->metadata;
    if (ok) {      /* else the server stops */
        arm(slot); /* first: calls that find no slot pile up in the core without limit */
        tk__rpc_call_begin(slot->cq, call, &details, &metadata);
    } else {
        grpc_call_details_destroy(&details);
        grpc_metadata_array_destroy(&metadata);
    }
}

/* The next event. When none came for a while after a busy time, the memory of its peak goes back to
 * the system: glibc keeps it otherwise (203 MB after one refused message of 200 MB). */
static grpc_event next_event(const tk__rpc_cq *cq)
{
    const gpr_timespec quiet = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                                            gpr_time_from_seconds(TK__RPC_QUIET_S, GPR_TIMESPAN));
    const grpc_event event = grpc_completion_queue_next(cq->queue, quiet, NULL);
    if (event.type != GRPC_QUEUE_TIMEOUT) return event;
    if (cq == cq->server->queues) malloc_trim(0);
    return grpc_completion_queue_next(cq->queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
}

/* Until the queue is shut down and empty. */
static void handle_events(tk__rpc_cq *cq)
{
    for (;;) {
        const grpc_event event = next_event(cq);
        if (event.type == GRPC_QUEUE_SHUTDOWN) break;
        tk__rpc_tag *tag = event.tag;
        tag->fn(tag->self, event.success != 0);
        while (cq->to_free) {
            tk_rpc_call *call = cq->to_free;
            cq->to_free = call->next;
            tk__rpc_call_free(call);
        }
    }
}

static void *serve(void *arg)
{
    tk__rpc_cq *cq = this_queue = arg;
    tk_process_thread("rpc", TK_THREAD_GIVES_WAY);
    for (unsigned i = 0; i < TK__RPC_SLOTS; i++) {
        cq->slots[i].cq = cq;
        cq->slots[i].tag = (tk__rpc_tag){on_new_call, &cq->slots[i]};
        arm(&cq->slots[i]);
    }
    handle_events(cq);
    tk_free(cq->scratch.data);
    return NULL;
}

/* -- start -- */

static grpc_arg int_arg(const char *key, size_t value)
{
    grpc_arg arg = {.type = GRPC_ARG_INTEGER};
    memcpy(&arg.key, &key, sizeof key); /* the core's struct wants char *, and only reads */
    arg.value.integer = value < INT_MAX ? (int)value : INT_MAX;
    return arg;
}

static void create_core(tk_rpc_server *server)
{
    server->quota = grpc_resource_quota_create("trunkd");
    grpc_resource_quota_resize(server->quota, server->opts.memory_quota);
    grpc_arg quota = int_arg(GRPC_ARG_RESOURCE_QUOTA, 0);
    quota.type = GRPC_ARG_POINTER;
    quota.value.pointer.p = server->quota;
    quota.value.pointer.vtable = grpc_resource_quota_arg_vtable();
    grpc_arg args[] = {
        quota,
        /* With it on, a second server on the same port starts well and takes half the connections.
         */
        int_arg(GRPC_ARG_ALLOW_REUSEPORT, 0),
        /* Nothing but "identity": a compressed request is inflated without bound before its size
           counts. */
        int_arg(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1),
        int_arg(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, server->opts.max_message),
        int_arg(GRPC_ARG_MAX_CONCURRENT_STREAMS, 100),
        int_arg(GRPC_ARG_MAX_METADATA_SIZE, TK__RPC_MAX_METADATA),
        int_arg(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, 10000), /* also for those who send nothing */
        int_arg(GRPC_ARG_KEEPALIVE_TIME_MS, 60000),
        int_arg(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20000),
        int_arg(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1),
        int_arg(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10000),
    };
    const grpc_channel_args list = {.num_args = sizeof args / sizeof *args, .args = args};
    server->grpc = grpc_server_create(&list, NULL);
}

static tk_err create_queues(tk_rpc_server *server)
{
    server->queues = tk_calloc(server->opts.cq_threads, sizeof *server->queues);
    if (!server->queues) return TK_NOMEM;
    for (unsigned i = 0; i < server->opts.cq_threads; i++) {
        tk__rpc_cq *cq = &server->queues[i];
        cq->server = server;
        cq->queue = grpc_completion_queue_create_for_next(NULL);
        grpc_server_register_completion_queue(server->grpc, cq->queue, NULL);
        cq->slots = tk_calloc(TK__RPC_SLOTS, sizeof *cq->slots);
        if (!cq->slots) return TK_NOMEM;
    }
    return TK_OK;
}

static tk_err run(tk_rpc_server *server, tk_diag *diag)
{
    grpc_server_start(server->grpc);
    for (unsigned i = 0; i < server->opts.cq_threads; i++) {
        tk__rpc_cq *cq = &server->queues[i];
        cq->started = pthread_create(&cq->thread, NULL, serve, cq) == 0;
        if (!cq->started) return tk_fail(diag, TK_NOMEM, "cannot start RPC thread %u", i + 1);
    }
    return TK_OK;
}

static tk_rpc_opts with_defaults(const tk_rpc_opts *opts)
{
    tk_rpc_opts o = *opts;
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    if (o.cq_threads == 0) o.cq_threads = cores >= 8 ? (unsigned)(cores / 4) : 1;
    if (o.workers == 0) o.workers = 4;
    if (o.max_message == 0) o.max_message = (size_t)64 << 20;
    if (o.memory_quota == 0) o.memory_quota = (size_t)256 << 20;
    if (o.max_connections == 0) o.max_connections = 4096;
    o.address = NULL;
    o.tls = (tk_rpc_tls){0};
    return o;
}

static void on_drained(void *self, bool ok)
{
    tk_rpc_server *server = self;
    (void)ok;
    pthread_mutex_lock(&server->lock);
    server->is_drained = true;
    pthread_cond_broadcast(&server->changed);
    pthread_mutex_unlock(&server->lock);
}

static tk_rpc_server *create(const tk_rpc_opts *opts)
{
    tk_rpc_server *server = tk_calloc(1, sizeof *server);
    if (!server) return NULL;
    server->opts = with_defaults(opts);
    server->meter.limit = 2 * server->opts.memory_quota;
    atomic_init(&server->meter.used, 0);
    server->drained = (tk__rpc_tag){on_drained, server};
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&server->changed, &clock);
    pthread_condattr_destroy(&clock);
    pthread_mutex_init(&server->lock, NULL);
    pthread_mutex_init(&server->idle.lock, NULL);
    grpc_init();
    return server;
}

tk_err tk_rpc_server_start(tk_rpc_server **out, const tk_rpc_opts *opts, tk_diag *diag)
{
    *out = NULL;
    tk_rpc_server *server = create(opts);
    if (!server) return tk_fail(diag, TK_NOMEM, "no memory for the RPC server");
    tk__rpc_log_install(opts->log);
    tk__accept_guard_init(server->opts.max_connections);
    create_core(server);
    tk_err err = make_table(server, opts);
    if (err == TK_OK) err = tk__rpc_health_create(&server->health, server);
    if (err == TK_OK) err = tk__rpc_reflect_create(&server->reflect);
    if (err == TK_OK) err = create_queues(server);
    if (err != TK_OK) tk_fail(diag, err, "no memory for the RPC server");
    if (err == TK_OK) err = tk__rpc_workers_start(&server->workers, server->opts.workers, diag);
    if (err == TK_OK && opts->tls.cert) err = tk__rpc_tls_create(&server->tls, &opts->tls, diag);
    if (err == TK_OK)
        err = tk__rpc_bind(server->grpc, opts->address, server->tls, &server->port, diag);
    if (err == TK_OK) err = run(server, diag);
    if (err == TK_OK)
        *out = server;
    else
        tk_rpc_server_stop(server, 0);
    return err;
}

int tk_rpc_server_port(const tk_rpc_server *server)
{
    return server->port;
}

void tk_rpc_server_set_serving(tk_rpc_server *server, bool serving)
{
    tk__rpc_health_set(server->health, serving);
}

/* -- stop -- */

static struct timespec in_ms(unsigned ms)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_sec += ms / 1000;
    t.tv_nsec += (long)(ms % 1000) * 1000000;
    if (t.tv_nsec >= 1000000000) {
        t.tv_sec++;
        t.tv_nsec -= 1000000000;
    }
    return t;
}

/* Waits until the last call is over, `grace_ms` at most. A call whose headers came in the very
 * moment of the stop may wait in the core for a request that will not be asked for any more (1.51
 * looks at its shutdown flag before it queues the call, not after): when only such are left, a
 * moment is enough. */
static void wait_for_calls(tk_rpc_server *server, unsigned grace_ms)
{
    enum { MOMENT_MS = 500 };
    const struct timespec until = in_ms(grace_ms);
    pthread_mutex_lock(&server->lock);
    int late = 0;
    while (late == 0 && server->calls > 0)
        late = pthread_cond_timedwait(&server->changed, &server->lock, &until);
    const struct timespec moment = in_ms(grace_ms < MOMENT_MS ? grace_ms : MOMENT_MS);
    while (late == 0 && !server->is_drained)
        late = pthread_cond_timedwait(&server->changed, &server->lock, &moment);
    pthread_mutex_unlock(&server->lock);
}

/* GOAWAY to everybody; running calls go on until the grace is over. */
static void drain(tk_rpc_server *server, unsigned grace_ms)
{
    grpc_server_shutdown_and_notify(server->grpc, server->queues[0].queue, &server->drained);
    if (server->queues[0].started) {
        wait_for_calls(server, grace_ms);
        grpc_server_cancel_all_calls(server->grpc);
        pthread_mutex_lock(&server->lock);
        while (server->calls > 0 || !server->is_drained)
            pthread_cond_wait(&server->changed, &server->lock);
        pthread_mutex_unlock(&server->lock);
    }
}

static void shut_queue(tk__rpc_cq *cq)
{
    if (!cq->queue) return;
    grpc_completion_queue_shutdown(cq->queue);
    if (cq->started)
        pthread_join(cq->thread, NULL);
    else
        handle_events(cq); /* of a server that failed to start */
    grpc_completion_queue_destroy(cq->queue);
}

void tk_rpc_server_stop(tk_rpc_server *server, unsigned grace_ms)
{
    if (!server) return;
    if (server->health) tk__rpc_health_stop(server->health);
    tk__rpc_idle_stop(&server->idle);
    if (server->queues && server->queues[0].queue) drain(server, grace_ms);
    for (unsigned i = 0; server->queues && i < server->opts.cq_threads; i++) {
        shut_queue(&server->queues[i]);
        tk_free(server->queues[i].slots);
    }
    tk__rpc_workers_stop(&server->workers);
    grpc_server_destroy(server->grpc);
    tk__rpc_tls_destroy(server->tls);
    grpc_resource_quota_unref(server->quota);
    tk__rpc_health_destroy(server->health);
    tk__rpc_reflect_destroy(server->reflect);
    tk_free(server->queues);
    tk_free(server->methods);
    pthread_cond_destroy(&server->changed);
    pthread_mutex_destroy(&server->lock);
    pthread_mutex_destroy(&server->idle.lock);
    tk_free(server);
    grpc_shutdown();
}
