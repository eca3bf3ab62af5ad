/* The fixture's methods; see rpc_fixture.h. A call's user data is a `session`, which also proves
 * that callbacks of one call never overlap. */
#include "rpc_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "engine/mem.h"

typedef struct session {
    rpc_fixture *f;
    bool inside; /* f->lock; a callback runs */
    uint64_t images, bytes;
    uint64_t next, last, size; /* of a stream */
} session;

typedef struct rpc_job {
    tk_rpc_call *call;
    const ProtobufCMessage *in;
    void (*answer)(tk_rpc_call *call, const ProtobufCMessage *in);
    struct rpc_job *next;
    bool parked;
} rpc_job;

static void count(rpc_fixture *f, rpc_event event)
{
    pthread_mutex_lock(&f->lock);
    f->seen[event]++;
    pthread_cond_broadcast(&f->changed);
    pthread_mutex_unlock(&f->lock);
}

/* -- sessions -- */

static session *enter(tk_rpc_call *call)
{
    session *s = tk_rpc_user(call);
    if (!s) {
        s = tk_calloc(1, sizeof *s);
        s->f = tk_rpc_ctx(call);
        tk_rpc_set_user(call, s);
        count(s->f, EV_BEGUN);
    }
    pthread_mutex_lock(&s->f->lock);
    if (s->inside) s->f->seen[EV_OVERLAP]++;
    s->inside = true;
    pthread_mutex_unlock(&s->f->lock);
    return s;
}

static void leave(session *s)
{
    pthread_mutex_lock(&s->f->lock);
    s->inside = false;
    pthread_mutex_unlock(&s->f->lock);
}

static void on_free(tk_rpc_call *call)
{
    rpc_fixture *f = tk_rpc_ctx(call);
    leave(enter(call));
    tk_free(tk_rpc_user(call));
    count(f, EV_FREED);
}

static void on_cancel(tk_rpc_call *call)
{
    rpc_fixture *f = tk_rpc_ctx(call);
    count(f, EV_CANCELLED);
    pthread_mutex_lock(&f->lock); /* jobs of this call are answered in vain, and soon */
    for (rpc_job *j = f->jobs; j; j = j->next)
        if (j->call == call) j->parked = false;
    pthread_mutex_unlock(&f->lock);
}

/* -- unary -- */

static void echo(tk_rpc_call *call, const ProtobufCMessage *in)
{
    const Trunkd__V1__ClassifyRequest *request = (const Trunkd__V1__ClassifyRequest *)in;
    Trunkd__V1__ClassifyResponse answer;
    trunkd__v1__classify_response__init(&answer);
    Trunkd__V1__ImageAnswer image, *images[] = {&image};
    trunkd__v1__image_answer__init(&image);
    Trunkd__V1__HeadAnswer head, *heads[] = {&head};
    trunkd__v1__head_answer__init(&head);
    char name[80];
    snprintf(name, sizeof name, "%s%s", tk_rpc_identity(call)->name,
             tk_rpc_deadline_ns(call) < INT64_MAX ? " deadline" : "");
    for (size_t i = 0; i < request->n_images; i++)
        answer.version += request->images[i].len;
    answer.n_images = image.n_heads = 1;
    answer.images = images;
    image.heads = heads;
    head.head = name;
    if (request->n_heads > 0) image.error = request->heads[0];
    tk_rpc_reply(call, &answer.base);
}

static void on_classify(tk_rpc_call *call, const ProtobufCMessage *in)
{
    session *s = enter(call);
    if (tk_rpc_peer(call) && tk_rpc_alloc(call, 100)) echo(call, in);
    leave(s);
}

static void on_work(tk_rpc_call *call, const ProtobufCMessage *in)
{
    session *s = enter(call);
    count(s->f, EV_PARKED);
    pthread_mutex_lock(&s->f->lock);
    while (!s->f->gate)
        pthread_cond_wait(&s->f->changed, &s->f->lock);
    pthread_mutex_unlock(&s->f->lock);
    echo(call, in);
    leave(s);
}

static void hand_over(tk_rpc_call *call, const ProtobufCMessage *in, bool parked,
                      void (*answer)(tk_rpc_call *call, const ProtobufCMessage *in))
{
    session *s = enter(call);
    rpc_job *job = tk_calloc(1, sizeof *job);
    tk_rpc_ref(call);
    pthread_mutex_lock(&s->f->lock);
    *job =
        (rpc_job){.call = call, .in = in, .answer = answer, .parked = parked, .next = s->f->jobs};
    s->f->jobs = job;
    if (parked) s->f->seen[EV_PARKED]++;
    pthread_cond_broadcast(&s->f->changed);
    pthread_mutex_unlock(&s->f->lock);
    leave(s);
}

static void on_later(tk_rpc_call *call, const ProtobufCMessage *in)
{
    hand_over(call, in, false, echo);
}

static void on_park(tk_rpc_call *call, const ProtobufCMessage *in)
{
    hand_over(call, in, true, echo);
}

static rpc_job *take_job_locked(rpc_fixture *f)
{
    for (rpc_job **at = &f->jobs; *at; at = &(*at)->next)
        if (!(*at)->parked || f->gate) {
            rpc_job *job = *at;
            *at = job->next;
            return job;
        }
    return NULL;
}

/* The thread that answers LATER, PARK and the like. */
static void *answer_later(void *arg)
{
    rpc_fixture *f = arg;
    pthread_mutex_lock(&f->lock);
    for (;;) {
        rpc_job *job = take_job_locked(f);
        if (!job && f->stop) break;
        if (!job) {
            pthread_cond_wait(&f->changed, &f->lock);
            continue;
        }
        pthread_mutex_unlock(&f->lock);
        job->answer(job->call, job->in);
        tk_rpc_unref(job->call);
        tk_free(job);
        pthread_mutex_lock(&f->lock);
    }
    pthread_mutex_unlock(&f->lock);
    return NULL;
}

static void on_status(tk_rpc_call *call, const ProtobufCMessage *in)
{
    session *s = enter(call);
    (void)in;
    Trunkd__V1__GetStatusResponse answer;
    trunkd__v1__get_status_response__init(&answer);
    answer.version = 7;
    tk_rpc_reply(call, &answer.base);
    leave(s);
}

/* -- client streams -- */

static void on_upload_start(tk_rpc_call *call)
{
    leave(enter(call));
}

static void on_upload(tk_rpc_call *call, const ProtobufCMessage *in)
{
    const Trunkd__V1__UploadRequest *request = (const Trunkd__V1__UploadRequest *)in;
    session *s = enter(call);
    rpc_fixture *f = s->f;
    pthread_mutex_lock(&f->lock);
    const unsigned long ahead = f->sent_chunks - f->seen[EV_MESSAGE];
    if (f->sent_chunks > f->seen[EV_MESSAGE] && ahead > f->most_ahead) f->most_ahead = ahead;
    f->seen[EV_MESSAGE]++;
    pthread_cond_broadcast(&f->changed);
    pthread_mutex_unlock(&f->lock);
    if (request->part_case == TRUNKD__V1__UPLOAD_REQUEST__PART_IMAGES)
        for (size_t i = 0; i < request->images->n_images; i++) {
            s->images++;
            s->bytes += request->images->images[i]->data.len;
        }
    else if (request->part_case == TRUNKD__V1__UPLOAD_REQUEST__PART_MANIFEST &&
             strcmp(request->manifest->name, "refuse") == 0)
        tk_rpc_fail(call, TK_EXISTS, "data set %s exists", request->manifest->name);
    leave(s);
}

/* Waits for the gate with the first message, on a worker. */
static void on_upload_gated(tk_rpc_call *call, const ProtobufCMessage *in)
{
    session *s = tk_rpc_user(call);
    pthread_mutex_lock(&s->f->lock);
    while (!s->f->gate && !tk_rpc_cancelled(call))
        pthread_cond_wait(&s->f->changed, &s->f->lock);
    pthread_mutex_unlock(&s->f->lock);
    on_upload(call, in);
}

static void on_upload_end(tk_rpc_call *call)
{
    session *s = enter(call);
    Trunkd__V1__UploadResponse answer;
    trunkd__v1__upload_response__init(&answer);
    Trunkd__V1__DataSet set;
    trunkd__v1__data_set__init(&set);
    set.images = s->images;
    set.bytes = s->bytes;
    answer.data_set = &set;
    tk_rpc_reply(call, &answer.base);
    leave(s);
}

/* -- server streams -- */

static void send_some(tk_rpc_call *call, session *s)
{
    char *text = tk_calloc(1, s->size + 1);
    memset(text, 'x', s->size);
    Trunkd__V1__JobEvent event;
    trunkd__v1__job_event__init(&event);
    event.message = text;
    while (s->next < s->last) {
        event.sequence = s->next;
        if (!tk_rpc_send(call, &event.base)) break;
        s->next++;
        count(s->f, EV_QUEUED);
    }
    tk_free(text);
    if (s->next == s->last)
        tk_rpc_finish(call);
    else
        count(s->f, EV_FULL);
}

static void on_watch(tk_rpc_call *call, const ProtobufCMessage *in)
{
    const Trunkd__V1__WatchJobRequest *request = (const Trunkd__V1__WatchJobRequest *)in;
    session *s = enter(call);
    s->last = request->after;
    s->size = request->id;
    send_some(call, s);
    leave(s);
}

static void on_watch_writable(tk_rpc_call *call)
{
    session *s = enter(call);
    send_some(call, s);
    leave(s);
}

/* -- bidirectional streams -- */

static void chat(tk_rpc_call *call, const ProtobufCMessage *in)
{
    const Trunkd__V1__WatchJobRequest *request = (const Trunkd__V1__WatchJobRequest *)in;
    rpc_fixture *f = tk_rpc_ctx(call);
    char *text = tk_calloc(1, request->id + 1);
    memset(text, 'x', request->id);
    Trunkd__V1__JobEvent event;
    trunkd__v1__job_event__init(&event);
    event.sequence = request->after;
    event.message = text;
    count(f, tk_rpc_send(call, &event.base) ? EV_QUEUED : EV_FULL);
    tk_free(text);
    tk_rpc_next(call);
}

static void on_chat(tk_rpc_call *call, const ProtobufCMessage *in)
{
    session *s = enter(call);
    chat(call, in);
    leave(s);
}

static void on_chat_later(tk_rpc_call *call, const ProtobufCMessage *in)
{
    hand_over(call, in, false, chat);
}

static void on_chat_park(tk_rpc_call *call, const ProtobufCMessage *in)
{
    hand_over(call, in, true, chat);
}

typedef struct ending {
    tk_rpc_call *call; /* held by the callback that waits for both */
    pthread_barrier_t *both;
    bool well;
} ending;

static void *end_chat(void *arg)
{
    const ending *e = arg;
    pthread_barrier_wait(e->both);
    if (e->well)
        tk_rpc_finish(e->call);
    else
        tk_rpc_fail(e->call, TK_BUSY, "ended the other way");
    return NULL;
}

static void on_chat_ends(tk_rpc_call *call, const ProtobufCMessage *in)
{
    session *s = enter(call);
    (void)in;
    Trunkd__V1__JobEvent event;
    trunkd__v1__job_event__init(&event);
    count(s->f, tk_rpc_send(call, &event.base) ? EV_QUEUED : EV_FULL);
    pthread_t other;
    pthread_barrier_t both;
    pthread_barrier_init(&both, NULL, 2);
    ending badly = {call, &both, false}, well = {call, &both, true};
    assert_int_equal(pthread_create(&other, NULL, end_chat, &badly), 0);
    end_chat(&well);
    pthread_join(other, NULL);
    pthread_barrier_destroy(&both);
    leave(s);
}

static void on_chat_end(tk_rpc_call *call)
{
    session *s = enter(call);
    tk_rpc_finish(call);
    leave(s);
}

/* -- the table -- */

#define UNARY(name, extra, limit, handler)                                                         \
    {                                                                                              \
        .path = (name), .kind = TK_RPC_UNARY, .flags = (extra), .max_request = (limit),            \
        .in = &trunkd__v1__classify_request__descriptor,                                           \
        .out = &trunkd__v1__classify_response__descriptor, .on_msg = (handler),                    \
        .on_cancel = on_cancel, .on_free = on_free                                                 \
    }
#define UPLOADING(name, extra, handler)                                                            \
    {                                                                                              \
        .path = (name), .kind = TK_RPC_CLIENT_STREAM, .flags = (extra),                            \
        .max_request = LARGE_LIMIT, .in = &trunkd__v1__upload_request__descriptor,                 \
        .out = &trunkd__v1__upload_response__descriptor, .on_start = on_upload_start,              \
        .on_msg = (handler), .on_end = on_upload_end, .on_cancel = on_cancel, .on_free = on_free   \
    }
#define WATCHING(name, extra)                                                                      \
    {                                                                                              \
        .path = (name), .kind = TK_RPC_SERVER_STREAM, .flags = (extra),                            \
        .max_request = SMALL_LIMIT, .in = &trunkd__v1__watch_job_request__descriptor,              \
        .out = &trunkd__v1__job_event__descriptor, .on_msg = on_watch,                             \
        .on_writable = on_watch_writable, .on_cancel = on_cancel, .on_free = on_free               \
    }
#define CHATTING(name, extra, handler)                                                             \
    {                                                                                              \
        .path = (name), .kind = TK_RPC_BIDI_STREAM, .flags = (extra), .max_request = SMALL_LIMIT,  \
        .in = &trunkd__v1__watch_job_request__descriptor,                                          \
        .out = &trunkd__v1__job_event__descriptor, .on_msg = (handler), .on_end = on_chat_end,     \
        .on_cancel = on_cancel, .on_free = on_free                                                 \
    }

static const tk_rpc_method methods[] = {
    UNARY(CLASSIFY, TK_RPC_TENANT, LARGE_LIMIT, on_classify),
    UNARY(OPEN, TK_RPC_PUBLIC, SMALL_LIMIT, on_classify),
    UNARY(LATER, 0, LARGE_LIMIT, on_later),
    UNARY(WORK, TK_RPC_BLOCKING, LARGE_LIMIT, on_work),
    UNARY(PARK, 0, LARGE_LIMIT, on_park),
    {.path = STATUS,
     .kind = TK_RPC_UNARY,
     .flags = TK_RPC_ADMIN,
     .max_request = SMALL_LIMIT,
     .in = &trunkd__v1__empty__descriptor,
     .out = &trunkd__v1__get_status_response__descriptor,
     .on_msg = on_status,
     .on_free = on_free},
    UPLOADING(UPLOAD, TK_RPC_TENANT | TK_RPC_BLOCKING, on_upload_gated),
    UPLOADING(UPLOAD_FAST, 0, on_upload),
    WATCHING(WATCH, 0),
    WATCHING(WATCH_WORK, TK_RPC_BLOCKING),
    CHATTING(CHAT, 0, on_chat),
    CHATTING(CHAT_WORK, TK_RPC_BLOCKING, on_chat),
    CHATTING(CHAT_LATER, 0, on_chat_later),
    CHATTING(CHAT_PARK, 0, on_chat_park),
    CHATTING(CHAT_ENDS, TK_RPC_BLOCKING, on_chat_ends),
};

static void on_ended(void *ctx, const tk_rpc_ended *call)
{
    (void)call;
    count(ctx, EV_ENDED);
}

static tk_err authenticate(void *ctx, const char *token, size_t len, tk_identity *out,
                           tk_diag *diag)
{
    (void)ctx;
    if (len == 12 && memcmp(token, "alices-token", len) == 0) {
        *out = (tk_identity){.tenant = 1, .name = "alice"};
        return TK_OK;
    }
    if (len == 10 && memcmp(token, "root-token", len) == 0) {
        *out = (tk_identity){.admin = true, .name = "root"};
        return TK_OK;
    }
    (void)diag; /* the layer's own sentence stays */
    return TK_UNAUTHENTICATED;
}

/* -- for the tests -- */

void rpc_fixture_start(rpc_fixture *f, const tk_rpc_opts *opts)
{
    *f = (rpc_fixture){.gate = true, .live_before = tk_test_alloc_live()};
    pthread_mutex_init(&f->lock, NULL);
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&f->changed, &clock);
    pthread_condattr_destroy(&clock);
    tk_rpc_opts o = opts ? *opts : (tk_rpc_opts){.address = NULL};
    o.address = "127.0.0.1:0";
    o.authenticate = authenticate;
    if (!o.ended) o.ended = on_ended;
    o.ctx = f;
    o.methods = methods;
    o.n_methods = sizeof methods / sizeof *methods;
    tk_diag diag = {0};
    if (tk_rpc_server_start(&f->server, &o, &diag) != TK_OK) fail_msg("%s", diag.text);
    snprintf(f->address, sizeof f->address, "127.0.0.1:%d", tk_rpc_server_port(f->server));
    assert_int_equal(pthread_create(&f->later, NULL, answer_later, f), 0);
}

void rpc_fixture_stop(rpc_fixture *f)
{
    rpc_fixture_gate(f, true);
    if (f->server) tk_rpc_server_stop(f->server, 0);
    pthread_mutex_lock(&f->lock);
    f->stop = true;
    pthread_cond_broadcast(&f->changed);
    pthread_mutex_unlock(&f->lock);
    pthread_join(f->later, NULL);
    assert_int_equal(f->seen[EV_BEGUN], f->seen[EV_FREED]);
    assert_int_equal(f->seen[EV_OVERLAP], 0);
    assert_int_equal(tk_test_alloc_live(), f->live_before);
    pthread_cond_destroy(&f->changed);
    pthread_mutex_destroy(&f->lock);
}

bool rpc_fixture_wait(rpc_fixture *f, rpc_event event, unsigned long n)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += 30;
    pthread_mutex_lock(&f->lock);
    while (f->seen[event] < n && pthread_cond_timedwait(&f->changed, &f->lock, &until) == 0) {
    }
    const bool seen = f->seen[event] >= n;
    pthread_mutex_unlock(&f->lock);
    return seen;
}

unsigned long rpc_fixture_seen(rpc_fixture *f, rpc_event event)
{
    pthread_mutex_lock(&f->lock);
    const unsigned long n = f->seen[event];
    pthread_mutex_unlock(&f->lock);
    return n;
}

void rpc_fixture_gate(rpc_fixture *f, bool open)
{
    pthread_mutex_lock(&f->lock);
    f->gate = open;
    pthread_cond_broadcast(&f->changed);
    pthread_mutex_unlock(&f->lock);
}

tk_client *rpc_fixture_tenant(const rpc_fixture *f)
{
    tk_client *client = tk_client_open(f->address, "alices-token");
    assert_non_null(client);
    return client;
}

tk_client *rpc_fixture_admin(const rpc_fixture *f)
{
    tk_client *client = tk_client_open(f->address, "root-token");
    assert_non_null(client);
    return client;
}

int rpc_fixture_classify(tk_client *client, const char *path, size_t n_bytes, const char *head,
                         unsigned timeout_ms, tk_client_status *status)
{
    Trunkd__V1__ClassifyRequest request;
    trunkd__v1__classify_request__init(&request);
    char name[64];
    snprintf(name, sizeof name, "%s", head);
    char *heads[] = {name};
    ProtobufCBinaryData image = {.len = n_bytes, .data = tk_calloc(1, n_bytes + 1)};
    request.n_images = request.n_heads = 1;
    request.images = &image;
    request.heads = heads;
    ProtobufCMessage *answer;
    if (tk_client_unary(client, path, &request.base, &trunkd__v1__classify_response__descriptor,
                        timeout_ms, &answer, status)) {
        const Trunkd__V1__ClassifyResponse *got = (const Trunkd__V1__ClassifyResponse *)answer;
        /* No assertion: this also runs on other threads than the test's. */
        if (got->version != n_bytes || got->n_images != 1 || got->images[0]->n_heads != 1 ||
            strcmp(got->images[0]->error, head) != 0)
            *status = (tk_client_status){.code = TK_CLIENT_DATA_LOSS, .text = "the echo is wrong"};
        tk_client_free_message(answer);
    }
    tk_free(image.data);
    return status->code;
}
