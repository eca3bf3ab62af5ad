/* grpc.health.v1: Check answers at once, Watch now and at every change. The state is one for the
 * whole server.
 *
 * A watching call is on the list from its request until it is cancelled or the server stops, and
 * the list holds a reference; a watcher that is slow gets the state as it is when there is room
 * again. */
#include <string.h>

#include "engine/mem.h"
#include "grpc/health/v1/health.pb-c.h"
#include "rpc/rpc_internal.h"

#define STATUS(name) GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__##name

typedef struct watcher {
    tk_rpc_call *call;
    bool known; /* the service */
    int told;   /* last status sent; -1: none */
    struct watcher *prev, *next;
} watcher;

struct tk__rpc_health {
    const tk_rpc_server *server;
    pthread_mutex_t lock;
    watcher head;  /* lock; a ring */
    bool serving;  /* lock */
    bool stopping; /* lock */
};

tk_err tk__rpc_health_create(tk__rpc_health **out, const tk_rpc_server *server)
{
    tk__rpc_health *health = *out = tk_calloc(1, sizeof *health);
    if (!health) return TK_NOMEM;
    health->server = server;
    health->head.next = health->head.prev = &health->head;
    pthread_mutex_init(&health->lock, NULL);
    return TK_OK;
}

void tk__rpc_health_destroy(tk__rpc_health *health)
{
    if (!health) return;
    pthread_mutex_destroy(&health->lock);
    tk_free(health);
}

/* "" is the whole server; others are the first part of a method's path. */
static bool is_known(const tk__rpc_health *health, const char *service)
{
    const size_t len = strlen(service);
    if (len == 0) return true;
    for (size_t i = 0; i < health->server->n_methods; i++) {
        const char *path = health->server->methods[i]->path;
        if (strncmp(path + 1, service, len) == 0 && path[1 + len] == '/') return true;
    }
    return false;
}

static void on_check(tk_rpc_call *call, const ProtobufCMessage *in)
{
    tk__rpc_health *health = call->server->health;
    const Grpc__Health__V1__HealthCheckRequest *request =
        (const Grpc__Health__V1__HealthCheckRequest *)in;
    if (!is_known(health, request->service)) {
        tk_rpc_fail(call, TK_NOTFOUND, "there is no service %s", request->service);
        return;
    }
    Grpc__Health__V1__HealthCheckResponse answer = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
    pthread_mutex_lock(&health->lock);
    answer.status = health->serving ? STATUS(SERVING) : STATUS(NOT_SERVING);
    pthread_mutex_unlock(&health->lock);
    tk_rpc_reply(call, &answer.base);
}

static void tell_locked(const tk__rpc_health *health, watcher *w)
{
    Grpc__Health__V1__HealthCheckResponse answer = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
    answer.status = !w->known         ? STATUS(SERVICE_UNKNOWN)
                    : health->serving ? STATUS(SERVING)
                                      : STATUS(NOT_SERVING);
    if ((int)answer.status == w->told) return;
    if (tk_rpc_send(w->call, &answer.base)) w->told = (int)answer.status;
}

static void on_watch(tk_rpc_call *call, const ProtobufCMessage *in)
{
    tk__rpc_health *health = call->server->health;
    const Grpc__Health__V1__HealthCheckRequest *request =
        (const Grpc__Health__V1__HealthCheckRequest *)in;
    watcher *w = tk_rpc_alloc(call, sizeof *w);
    if (!w) {
        tk_rpc_fail(call, TK_NOMEM, "the server is out of memory");
        return;
    }
    *w = (watcher){.call = call, .known = is_known(health, request->service), .told = -1};
    pthread_mutex_lock(&health->lock);
    const bool stopping = health->stopping;
    if (!stopping) {
        tk_rpc_ref(call);
        tk_rpc_set_user(call, w);
        w->next = &health->head;
        w->prev = health->head.prev;
        w->prev->next = w->next->prev = w;
        tell_locked(health, w);
    }
    pthread_mutex_unlock(&health->lock);
    if (stopping) tk_rpc_fail(call, TK_BUSY, "the server is shutting down");
}

static void on_watch_writable(tk_rpc_call *call)
{
    tk__rpc_health *health = call->server->health;
    pthread_mutex_lock(&health->lock);
    tell_locked(health, tk_rpc_user(call));
    pthread_mutex_unlock(&health->lock);
}

static void remove_locked(watcher *w)
{
    w->prev->next = w->next;
    w->next->prev = w->prev;
    w->next = w->prev = NULL;
}

static void on_watch_cancel(tk_rpc_call *call)
{
    tk__rpc_health *health = call->server->health;
    watcher *w = tk_rpc_user(call);
    pthread_mutex_lock(&health->lock);
    const bool listed = w && w->next;
    if (listed) remove_locked(w);
    pthread_mutex_unlock(&health->lock);
    if (listed) tk_rpc_unref(call);
}

void tk__rpc_health_set(tk__rpc_health *health, bool serving)
{
    pthread_mutex_lock(&health->lock);
    health->serving = serving && !health->stopping;
    for (watcher *w = health->head.next; w != &health->head; w = w->next)
        tell_locked(health, w);
    pthread_mutex_unlock(&health->lock);
}

void tk__rpc_health_stop(tk__rpc_health *health)
{
    tk__rpc_health_set(health, false);
    pthread_mutex_lock(&health->lock);
    health->stopping = true;
    health->serving = false;
    while (health->head.next != &health->head) {
        watcher *w = health->head.next;
        tk_rpc_call *call = w->call; /* `w` may die with the call */
        remove_locked(w);
        tk_rpc_fail(call, TK_BUSY, "the server is shutting down");
        tk_rpc_unref(call);
    }
    pthread_mutex_unlock(&health->lock);
}

#define MESSAGE_TYPES                                                                              \
    .in = &grpc__health__v1__health_check_request__descriptor,                                     \
    .out = &grpc__health__v1__health_check_response__descriptor

const tk_rpc_method tk__rpc_health_methods[2] = {
    {.path = "/grpc.health.v1.Health/Check",
     .kind = TK_RPC_UNARY,
     .flags = TK_RPC_PUBLIC,
     .max_request = 1024,
     MESSAGE_TYPES,
     .on_msg = on_check},
    {.path = "/grpc.health.v1.Health/Watch",
     .kind = TK_RPC_SERVER_STREAM,
     .flags = TK_RPC_PUBLIC,
     .max_request = 1024,
     MESSAGE_TYPES,
     .on_msg = on_watch,
     .on_writable = on_watch_writable,
     .on_cancel = on_watch_cancel},
};
