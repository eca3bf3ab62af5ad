/* Classifier.ClassifyStream. Each message becomes an item: checked on the completion-queue thread
 * (memory only), handed to the batcher, and done with in any order; the answers leave in the order
 * of the messages. An item lasts until its answer is in the call's queue of eight, so what is held
 * for a stream is bounded: when its items have as many images as the engine works ahead, or many
 * bytes, no further message is read until one has gone. A client that does not read its answers
 * thereby stops its own messages.
 *
 * A version that the settings name is found with the first message. From then on it is asked for by
 * its number, message by message, so that an idle stream keeps no version in memory, and one that
 * was loaded anew because a head was deleted is not answered from the old one. While it is loaded
 * the stream stands still: one message waits, and no further one is read.
 *
 * Whoever finds something to do calls move_on(). One thread at a time is inside; the others only
 * leave word. So answers keep their order with no lock held while they are sent. */
#include <inttypes.h>
#include <string.h>

#include "api/api_internal.h"
#include "engine/mem.h"

enum {
    MAX_ID = 256,
    MAX_AHEAD = 128,        /* images of a stream's items, however far the engine works ahead */
    AHEAD_BYTES = 16 << 20, /* the same for their bytes */
};

typedef Trunkd__V1__ClassifyStreamRequest request;
typedef Trunkd__V1__ClassifyStreamResponse response;

typedef struct stream stream;

/* One message, until its answer is on the way. */
typedef struct item {
    struct item *next;
    stream *of;
    tk_rpc_message *message; /* what `in`, and the images' bytes, are in */
    const request *in;
    size_t images, bytes;
    int64_t begun_ns;
    bool done;       /* stream.lock; what follows does not change any more */
    tk_infer *infer; /* the answer, when err is TK_OK */
    tk_err err;
    tk_diag why;
    uint32_t retry_ms;
} item;

struct stream {
    tk_rpc_call *call;
    Trunkd__V1__ClassifyRequest settings; /* first message's, then fixed; without images */
    tk_want want;                         /* the message's that is being looked at; which version */
    const request *in;                    /* the same: the message itself */
    bool settled;                         /* the same: the first one was good */
    size_t max_images;
    pthread_mutex_t lock; /* a leaf */
    /* lock: */
    item *first, *last;   /* in the order of the messages */
    size_t images, bytes; /* of these */
    bool moving, again;   /* a thread is inside move_on(); there is more for it */
    bool paused;          /* the next message is not asked for */
    bool ended, draining; /* no further message: the client's wish, the server's; or */
    tk_err refused;       /* one was no good, why the stream ends; else TK_OK */
    tk_diag why;
};

static void item_free(item *it)
{
    tk_infer_destroy(it->infer);
    tk_rpc_message_free(it->message);
    tk_free(it);
}

static bool has_room_locked(const stream *s)
{
    return s->images < s->max_images && s->bytes < AHEAD_BYTES && !s->draining;
}

/* -- the answers -- */

static response *put_answer(tk__region *region, item *it)
{
    response *m = tk__new(region, &trunkd__v1__classify_stream_response__descriptor);
    if (!m) return NULL;
    m->id = it->in->id;
    if (it->err == TK_OK) {
        m->version = tk_snapshot_number(it->infer->snapshot);
        m->images = tk__classify_put(region, it->of->call, it->infer);
        m->n_images = m->images ? it->infer->n_images : 0;
    } else {
        m->code = (uint32_t)tk_rpc_code(it->err);
        m->error = it->why.text;
        m->retry_after_ms = it->retry_ms;
    }
    return m;
}

/* False: there is no room now (on_writable tells when), or the call is over. */
static bool send_answer(item *it)
{
    tk__region region = {NULL, false};
    tk_rpc_call *call = it->of->call;
    const response *m = put_answer(&region, it);
    bool sent = false;
    if (m && !region.failed)
        sent = tk_rpc_send(call, &m->base);
    else
        tk_rpc_fail(call, TK_NOMEM, "no memory for the answer");
    tk__region_fini(&region);
    if (sent && it->err == TK_OK) {
        atomic_fetch_add_explicit(&tk__api(call)->requests, 1, memory_order_relaxed);
        tk_metrics_observe(tk__api(call)->o.metrics, TK_STAGE_TOTAL, tk_now_ns() - it->begun_ns);
    }
    return sent;
}

/* Sends what is done at the head of the list; the lock is released meanwhile. */
static void send_done_locked(stream *s)
{
    while (s->first && s->first->done) {
        item *it = s->first; /* stays the first: only this thread takes items off */
        pthread_mutex_unlock(&s->lock);
        const bool sent = send_answer(it);
        pthread_mutex_lock(&s->lock);
        if (!sent) return;
        s->first = it->next;
        if (!s->first) s->last = NULL;
        s->images -= it->images;
        s->bytes -= it->bytes;
        pthread_mutex_unlock(&s->lock); /* it may hold the last of a version */
        item_free(it);
        pthread_mutex_lock(&s->lock);
    }
}

/* The caller holds the call. */
static void move_on(stream *s)
{
    pthread_mutex_lock(&s->lock);
    s->again = true;
    if (s->moving) {
        pthread_mutex_unlock(&s->lock);
        return;
    }
    s->moving = true;
    while (s->again) {
        s->again = false;
        send_done_locked(s);
    }
    s->moving = false;
    const bool next = s->paused && has_room_locked(s);
    if (next) s->paused = false;
    const bool over = !s->first, refused = over && s->refused != TK_OK;
    const bool ended = over && s->ended, drained = over && s->draining;
    pthread_mutex_unlock(&s->lock);
    if (refused)
        tk__fail(s->call, s->refused, &s->why); /* does not change any more */
    else if (ended)
        tk_rpc_finish(s->call);
    else if (drained)
        tk_rpc_fail(s->call, TK_BUSY,
                    "the server is shutting down: what has no answer here was not classified");
    else if (next)
        tk_rpc_next(s->call);
}

static void item_done(item *it, tk_err err, const char *reason)
{
    stream *s = it->of;
    it->err = err;
    if (err != TK_OK) tk_fail(&it->why, err, "%s", reason[0] ? reason : tk_err_text(err));
    pthread_mutex_lock(&s->lock);
    it->done = true;
    pthread_mutex_unlock(&s->lock);
    move_on(s);
}

/* -- the messages -- */

static void done(tk_infer *infer, tk_err err, const char *reason)
{
    item *it = infer->user;
    tk_rpc_call *call = it->of->call;
    const bool bad = err == TK_OK && tk__classify_all_bad(infer);
    tk__count_infer(call, infer, bad ? TK_BADDATA : err);
    item_done(it, err, reason);
    tk_rpc_unref(call);
}

static bool cancelled(void *user)
{
    return tk_rpc_cancelled(((const item *)user)->of->call);
}

/* Hands the item, which is in the list, to the batcher. `snapshot` as tk__classify_prepare() takes
 * it. */
static tk_err submit(item *it, tk_snapshot *snapshot, tk_diag *diag)
{
    tk_rpc_call *call = it->of->call;
    Trunkd__V1__ClassifyRequest wish = it->of->settings;
    wish.n_images = it->in->n_images;
    wish.images = it->in->images;
    if (strlen(it->in->id) > MAX_ID)
        return tk_fail(diag, TK_BADARG, "id has %zu bytes, the limit is %d", strlen(it->in->id),
                       MAX_ID);
    tk_err err = tk__classify_prepare(call, &wish, snapshot, &it->infer, diag);
    if (err != TK_OK) return err;
    it->infer->user = it;
    it->infer->cancelled = cancelled;
    it->infer->done = done;
    tk_rpc_note(call, it->in->n_images, tk_snapshot_number(snapshot));
    tk_rpc_ref(call);
    err = tk_batcher_submit(tk__api(call)->o.batcher, it->infer, diag);
    if (err == TK_OK) return TK_OK; /* `it` may be gone */
    it->retry_ms = it->infer->retry_ms;
    tk_rpc_unref(call);
    return err;
}

/* Into the list; true: the next message may be read at once. */
static bool append(stream *s, item *it)
{
    pthread_mutex_lock(&s->lock);
    if (s->last)
        s->last->next = it;
    else
        s->first = it;
    s->last = it;
    s->images += it->images;
    s->bytes += it->bytes;
    s->paused = !has_room_locked(s);
    const bool more = !s->paused;
    pthread_mutex_unlock(&s->lock);
    return more;
}

static item *make_item(stream *s)
{
    const request *in = s->in;
    item *it = tk_calloc(1, sizeof *it);
    if (!it) return NULL;
    it->of = s;
    it->in = in;
    it->images = in->n_images ? in->n_images : 1; /* its answer takes room, too */
    it->begun_ns = tk_rpc_received_ns(s->call);
    for (size_t i = 0; i < in->n_images; i++)
        it->bytes += in->images[i].len;
    it->message = tk_rpc_take(s->call);
    if (it->message) return it;
    tk_free(it);
    return NULL;
}

/* What came of the search for the version that is to answer: `err` may be TK_NOTFOUND, with no
 * snapshot. */
static void take_images(stream *s, tk_err err, tk_snapshot *snapshot, uint32_t retry_ms,
                        tk_diag *diag)
{
    item *it = make_item(s);
    if (!it) {
        tk_rpc_fail(s->call, TK_NOMEM, "no memory for %zu images", s->in->n_images);
        return;
    }
    it->retry_ms = retry_ms;
    const bool more = append(s, it);
    if (err == TK_OK || err == TK_NOTFOUND) err = submit(it, snapshot, diag);
    if (err != TK_OK) {
        tk__count_infer(s->call, NULL, err);
        item_done(it, err, diag->text);
    }
    if (more) tk_rpc_next(s->call);
}

/* A copy that lives as long as the call. */
static tk_err keep_text(stream *s, char **copy, const char *text, tk_diag *diag)
{
    const size_t size = strlen(text) + 1;
    *copy = tk_rpc_alloc(s->call, size);
    if (!*copy) return tk_fail(diag, TK_NOMEM, "no memory for the settings");
    memcpy(*copy, text, size);
    return TK_OK;
}

static tk_err keep_heads(stream *s, const Trunkd__V1__ClassifySettings *in, tk_diag *diag)
{
    enum { MAX_NAME = 128 }; /* longer ones are no head's */
    if (in->n_heads > TK_API_HEADS_MAX)
        return tk_fail(diag, TK_BADARG, "settings.heads has %zu entries, the limit is %d",
                       in->n_heads, TK_API_HEADS_MAX);
    s->settings.heads = tk_rpc_alloc(s->call, (in->n_heads + 1) * sizeof *s->settings.heads);
    if (!s->settings.heads) return tk_fail(diag, TK_NOMEM, "no memory for the settings");
    tk_err err = TK_OK;
    for (size_t i = 0; err == TK_OK && i < in->n_heads; i++) {
        const size_t n = strlen(in->heads[i]);
        if (n > MAX_NAME)
            return tk_fail(diag, TK_NOTFOUND, "settings.heads[%zu] has %zu bytes: no head's name",
                           i, n);
        err = keep_text(s, &s->settings.heads[i], in->heads[i], diag);
        s->settings.n_heads += err == TK_OK;
    }
    return err;
}

static tk_err keep_settings(stream *s, const Trunkd__V1__ClassifySettings *in, tk_diag *diag)
{
    s->settings.top_k = in->top_k;
    s->settings.priority = in->priority;
    tk_err err = keep_heads(s, in, diag);
    if (err == TK_OK) err = tk__version_parse(&s->want, in->version, diag);
    if (err == TK_OK) err = keep_text(s, &s->settings.version, in->version, diag);
    return err;
}

/* -- the version -- */

/* The first message's: what is wrong with the settings is wrong with the stream. The version that
 * they name is that one from now on, whatever becomes of the label. */
static tk_err settle(stream *s, tk_err err, const tk_snapshot *snapshot, tk_diag *diag)
{
    if (err == TK_PRECONDITION) return tk__nothing_learned(diag);
    if (err == TK_OK || err == TK_NOTFOUND)
        err = tk__classify_check(s->call, &s->settings, snapshot, diag);
    if (err != TK_OK) return err;
    if (s->settings.version[0])
        s->want = (tk_want){.kind = TK_WANT_NUMBER, .number = tk_snapshot_number(snapshot)};
    s->settled = true;
    return TK_OK;
}

/* Goes on with the message: its version was found, or was not (tk_shelf_pick). */
static void go_on(stream *s, tk_err err, tk_snapshot *snapshot, uint32_t retry_ms, tk_diag *diag)
{
    const bool first = !s->settled;
    if (first) err = settle(s, err, snapshot, diag);
    if (first && err != TK_OK) {
        tk_rpc_retry_after(s->call, retry_ms);
        tk__fail(s->call, err, diag);
    } else if (first && s->in->settings && s->in->n_images == 0) {
        tk_rpc_next(s->call); /* settings by themselves */
    } else {
        take_images(s, err, snapshot, retry_ms, diag);
    }
}

static void loaded(void *user, tk_err err, tk_snapshot *snapshot, const tk_diag *why)
{
    stream *s = user;
    tk_rpc_call *call = s->call;
    tk_diag diag = *why;
    go_on(s, err, snapshot, 0, &diag);
    tk_rpc_unref(call);
}

static bool gone(void *user)
{
    return tk_rpc_cancelled(((const stream *)user)->call);
}

/* Finds the version for the message; go_on() follows, at once or when it is loaded. */
static void find_version(stream *s)
{
    tk_rpc_call *call = s->call;
    tk_diag diag = {{0}};
    tk_snapshot *snapshot;
    tk_pick pick = {.want = s->want,
                    .tenant = tk_rpc_identity(call)->tenant,
                    .bytes = protobuf_c_message_get_packed_size(&s->in->base),
                    .deadline_ns = tk_rpc_deadline_ns(call),
                    .user = s,
                    .cancelled = gone,
                    .done = loaded};
    tk_rpc_ref(call);
    const tk_err err = tk_shelf_pick(tk__api(call)->o.shelf, &pick, &snapshot, &diag);
    if (err == TK_OK && !snapshot) return; /* loaded() has it */
    go_on(s, err, snapshot, pick.retry_ms, &diag);
    tk_snapshot_unref(snapshot);
    tk_rpc_unref(call);
}

/* -- callbacks -- */

void tk__classify_stream_start(tk_rpc_call *call)
{
    stream *s = tk_calloc(1, sizeof *s);
    if (!s) {
        tk_rpc_fail(call, TK_NOMEM, "no memory for the stream");
        return;
    }
    const size_t ahead = tk_batcher_ahead(tk__api(call)->o.batcher);
    s->call = call;
    s->want.kind = TK_WANT_CURRENT;
    s->max_images = ahead < MAX_AHEAD ? ahead : MAX_AHEAD;
    trunkd__v1__classify_request__init(&s->settings);
    pthread_mutex_init(&s->lock, NULL);
    tk_rpc_set_user(call, s);
}

/* What came before is answered first. */
void tk__classify_stream_refused(tk_rpc_call *call, tk_err err, const tk_diag *why)
{
    stream *s = tk_rpc_user(call);
    pthread_mutex_lock(&s->lock);
    s->refused = err;
    s->why = *why;
    pthread_mutex_unlock(&s->lock);
    move_on(s);
}

void tk__classify_stream_message(tk_rpc_call *call, const ProtobufCMessage *message)
{
    stream *s = tk_rpc_user(call);
    tk_diag diag = {{0}};
    tk_err err = TK_OK;
    s->in = (const request *)message;
    if (s->in->settings && s->settled)
        err = tk_fail(&diag, TK_BADARG,
                      "message %" PRIu64
                      ": settings came again: they hold from the first message to the last",
                      tk_rpc_message_number(call));
    else if (s->in->settings)
        err = keep_settings(s, s->in->settings, &diag);
    if (err == TK_OK)
        find_version(s);
    else
        tk__classify_stream_refused(call, err, &diag);
}

void tk__classify_stream_end(tk_rpc_call *call)
{
    stream *s = tk_rpc_user(call);
    pthread_mutex_lock(&s->lock);
    s->ended = true;
    pthread_mutex_unlock(&s->lock);
    move_on(s);
}

void tk__classify_stream_writable(tk_rpc_call *call)
{
    move_on(tk_rpc_user(call));
}

void tk__classify_stream_drain(tk_rpc_call *call)
{
    stream *s = tk_rpc_user(call);
    pthread_mutex_lock(&s->lock);
    s->draining = true;
    pthread_mutex_unlock(&s->lock);
    move_on(s);
}

void tk__classify_stream_free(tk_rpc_call *call)
{
    stream *s = tk_rpc_user(call);
    if (!s) return;
    for (item *next, *it = s->first; it; it = next) {
        next = it->next;
        item_free(it);
    }
    pthread_mutex_destroy(&s->lock);
    tk_free(s);
}
