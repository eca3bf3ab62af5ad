/* See batcher.h. One lock guards everything shared; it is never held while an image is decoded, the
 * trunk runs, or `done` is called. Three conditions: `work` wakes decode threads, `ready` the
 * executor, `answer` the thread that calls `done` while the executor has another pass to run.
 *
 * An image is in one of these places: not started (its request is in its tenant's list), being
 * decoded, ready (has a canvas, is in its tenant's list of ready ones and in that of all), in the
 * executor's batch, done with. A request that failed stays until the images that are under way come
 * back; whoever brings the last one calls `done`. */
#include <time.h>
#include <unistd.h>

#include "clock.h"
#include "engine/mem.h"
#include "process.h"
#include "serving/batcher_internal.h"

enum {
    DEFAULT_BATCH = 16,
    DEFAULT_IMAGES = 1024,
    DECODE_BASE = 32 << 10, /* bytes that an image costs besides its own when turns are taken */
};

/* -- under the lock -- */

/* Counts `n` images as done with; true when they were the request's last: the caller must then call
 * `done` once the lock is released. */
static bool images_done_locked(tk_batcher *b, tk_infer *r, size_t n)
{
    r->left -= n;
    if (r->left > 0) return false;
    b->images -= r->n_images;
    b->bytes -= r->bytes;
    r->of->images -= r->n_images;
    r->of->bytes -= r->bytes;
    if (r->of->images == 0) {
        b->active--;
        b->weight = b->active ? b->weight - r->of->weight : 0; /* no rounding adds up */
    }
    return true;
}

/* When a pass that begins now ends at the soonest. Known while the queue is long; a quarter less
 * than the estimate, as what is given up by it may have been in time. */
static int64_t soonest_locked(const tk_batcher *b, int64_t now)
{
    const size_t n = b->images < b->opts.max_batch ? b->images : b->opts.max_batch;
    const int64_t pass = b->pace.busy ? tk__pace_of(&b->pace, n) : 0;
    return pass > 0 ? now + pass - pass / 4 : now;
}

/* Marks a request that nobody waits for, or will wait for when it could be answered. */
static void check_alive_locked(tk_batcher *b, tk_infer *r, int64_t answered)
{
    if (r->err != TK_OK) return;
    if (b->stop) {
        r->err = TK_CANCELLED;
        r->reason = "the server is shutting down";
    } else if (r->cancelled && r->cancelled(r->user)) {
        r->err = TK_CANCELLED;
        r->reason = "the request was cancelled";
        b->stats.cancelled++;
    } else if (answered >= r->deadline_ns) {
        r->err = TK_DEADLINE;
        r->reason = "the images waited until the deadline could not be met any more";
        b->stats.late++;
    }
}

/* What is not started of a dead request, which is in no list, is done with. */
static void drop_rest_locked(tk_batcher *b, tk_infer *r, tk_infer **finished)
{
    const size_t dropped = r->n_images - r->started;
    b->not_started -= dropped;
    if (images_done_locked(b, r, dropped)) {
        r->next = *finished;
        *finished = r;
    }
}

void tk__batcher_sweep(tk_batcher *b, tk__tenant *t, int64_t now, tk_infer **finished)
{
    for (size_t lane = 0; lane < TK_PRIORITY_LAST; lane++) {
        for (size_t n = t->lanes[lane].requests; n > 0; n--) {
            tk_infer *r = tk__tenant_pop_lane(t, lane);
            check_alive_locked(b, r, now);
            if (r->err == TK_OK)
                tk__tenant_push(t, r);
            else
                drop_rest_locked(b, r, finished);
        }
    }
}

/* Tenants that have nothing left to decode stay in the order until their turn comes. */
void tk__batcher_sweep_all(tk_batcher *b, int64_t now, tk_infer **finished)
{
    const tk__fair *order = &b->tenants.decode;
    for (size_t i = 0; i < order->n; i++)
        tk__batcher_sweep(b, tk__tenant_of_decode(order->heap[i]), now, finished);
}

static void finish_all(tk_infer *finished)
{
    while (finished) {
        tk_infer *next = finished->next;
        finished->done(finished, finished->err, finished->reason);
        finished = next;
    }
}

/* The tenant whose image is decoded next; NULL: there is none, or no room for its canvas. Canvases
 * are made only so far ahead of the executor: that bounds their memory. */
static tk__tenant *next_to_decode_locked(tk_batcher *b)
{
    tk__fair *order = &b->tenants.decode;
    tk__tenant *t;
    while ((t = tk__tenant_of_decode(tk__fair_first(order))) && t->requests == 0)
        tk__fair_remove(order, &t->decode);
    if (!t || b->stop) return t;
    const size_t passes = TK__AHEAD + (t->ahead == 0);
    return b->n_ready + b->decoding < passes * b->opts.max_batch ? t : NULL;
}

/* The tenant's next image to decode, or NULL when its request turned out dead; then *finished may
 * be set. */
static tk_infer_image *take_image_locked(tk_batcher *b, tk__tenant *t, tk_infer **finished)
{
    tk_infer *r = tk__tenant_pop(t);
    check_alive_locked(b, r, soonest_locked(b, b->opts.clock()));
    if (r->err != TK_OK) {
        drop_rest_locked(b, r, finished);
        return NULL;
    }
    tk_infer_image *image = &r->images[r->started++];
    b->not_started--;
    b->decoding++;
    b->stats.decoded++;
    t->ahead++;
    if (r->started < r->n_images) tk__tenant_push(t, r);
    tk__fair_charge(&b->tenants.decode, &t->decode,
                    ((double)DECODE_BASE + (double)image->size) / t->weight);
    return image;
}

/* -- images that are ready, under the lock -- */

static void ready_push_locked(tk_batcher *b, tk_infer_image *image)
{
    tk__tenant *t = image->infer->of;
    image->ready_ns = b->opts.clock();
    tk__tenant_ready_push(t, image);
    image->newer = NULL;
    image->older = b->newest;
    if (b->newest)
        b->newest->newer = image;
    else
        b->oldest = image;
    b->newest = image;
    b->n_ready++;
    tk__fair_add(&b->tenants.pass, &t->pass);
}

/* The tenant's first. */
static tk_infer_image *ready_pop_locked(tk_batcher *b, tk__tenant *t)
{
    tk_infer_image *image = tk__tenant_ready_pop(t);
    if (image->older)
        image->older->newer = image->newer;
    else
        b->oldest = image->newer;
    if (image->newer)
        image->newer->older = image->older;
    else
        b->newest = image->older;
    b->n_ready--;
    t->ahead--;
    return image;
}

/* -- decode threads -- */

/* Decodes one image of the tenant, with the lock released meanwhile. */
static void decode_step_locked(tk_batcher *b, tk__tenant *t)
{
    tk_infer *finished = NULL;
    tk_infer_image *image = take_image_locked(b, t, &finished);
    if (image) {
        pthread_mutex_unlock(&b->lock);
        const int64_t begun = tk_now_ns();
        image->waited_ns = begun - image->infer->submitted_ns;
        const tk_err err = tk__infer_decode(image, &b->opts.image_limits);
        image->decode_ns = tk_now_ns() - begun;
        tk_metrics_observe(b->opts.metrics, TK_STAGE_DECODE, image->decode_ns);
        pthread_mutex_lock(&b->lock);
        b->decoding--;
        tk_infer *r = image->infer;
        if (err != TK_OK && r->err == TK_OK) {
            r->err = err;
            r->reason = "no memory to decode an image";
        }
        if (image->canvas) {
            ready_push_locked(b, image);
        } else {
            t->ahead--;
            if (images_done_locked(b, r, 1)) {
                r->next = NULL;
                finished = r;
            }
        }
    }
    pthread_cond_signal(&b->ready); /* also when none is ready: fewer may be on their way now */
    if (finished) {
        pthread_mutex_unlock(&b->lock);
        finish_all(finished);
        pthread_mutex_lock(&b->lock);
    }
}

/* One item of a spread, with the lock released meanwhile. */
static void spread_step_locked(tk_batcher *b, tk__spread *s)
{
    const size_t i = s->next++;
    if (s->next == s->n) { /* the last item is taken: off the list */
        tk__spread **at = &b->spreads;
        while (*at != s)
            at = &(*at)->after;
        *at = s->after;
    }
    pthread_mutex_unlock(&b->lock);
    s->fn(s->ctx, i);
    pthread_mutex_lock(&b->lock);
    if (--s->left == 0) pthread_cond_signal(&s->done);
}

static void *decoder_main(void *arg)
{
    tk_batcher *b = arg;
    tk_process_thread("decode", TK_THREAD_GIVES_WAY);
    pthread_mutex_lock(&b->lock);
    for (;;) {
        tk__tenant *t = next_to_decode_locked(b);
        if (t)
            decode_step_locked(b, t);
        else if (b->spreads)
            spread_step_locked(b, b->spreads);
        else if (b->stop)
            break;
        else
            pthread_cond_wait(&b->work, &b->lock);
    }
    pthread_mutex_unlock(&b->lock);
    return NULL;
}

void tk_batcher_spread(tk_batcher *b, size_t n, void (*fn)(void *ctx, size_t i), void *ctx)
{
    if (n == 0) return;
    tk__spread s = {.n = n, .left = n, .fn = fn, .ctx = ctx};
    pthread_cond_init(&s.done, NULL);
    pthread_mutex_lock(&b->lock);
    s.after = b->spreads;
    b->spreads = &s;
    pthread_cond_broadcast(&b->work);
    /* The caller works too: requests come first on the decode threads, yet this never starves. */
    while (s.next < s.n)
        spread_step_locked(b, &s);
    while (s.left > 0)
        pthread_cond_wait(&s.done, &b->lock);
    pthread_mutex_unlock(&b->lock);
    pthread_cond_destroy(&s.done);
}

/* -- the executor -- */

/* Is it time to run what is ready? If not, *until is when to look again (0: when woken). */
static bool batch_due_locked(const tk_batcher *b, int64_t *until)
{
    *until = 0;
    if (b->n_ready == 0) return false;
    if (b->n_ready >= b->opts.max_batch || b->stop) return true;
    if (b->not_started + b->decoding == 0) return true; /* nothing to wait for */
    *until = b->oldest->ready_ns + (int64_t)b->opts.max_delay_us * 1000;
    return b->opts.clock() >= *until;
}

/* Moves up to max_batch ready images of one version into b->batch, from each tenant in its turn,
 * and returns how many. Images of dead requests are dropped; requests that end by it are put on
 * *finished. */
static size_t take_batch_locked(tk_batcher *b, tk_infer **finished)
{
    tk__fair *order = &b->tenants.pass;
    size_t n = 0;
    const int64_t soonest = soonest_locked(b, b->opts.clock());
    tk__tenant *aside = NULL, *t; /* aside: their next image has another version */
    while (n < b->opts.max_batch && (t = tk__tenant_of_pass(tk__fair_first(order)))) {
        tk_infer *r = tk__tenant_ready(t)->infer;
        check_alive_locked(b, r, soonest);
        if (r->err == TK_OK && n > 0 && b->batch[0]->infer->snapshot != r->snapshot) {
            tk__fair_remove(order, &t->pass);
            t->aside = aside;
            aside = t;
            continue;
        }
        tk_infer_image *image = ready_pop_locked(b, t);
        if (r->err == TK_OK) {
            b->batch[n++] = image;
            tk__fair_charge(order, &t->pass, 1 / t->weight);
        } else {
            tk_free(image->canvas);
            image->canvas = NULL;
            if (images_done_locked(b, r, 1)) {
                r->next = *finished;
                *finished = r;
            }
        }
        if (!tk__tenant_ready(t)) tk__fair_remove(order, &t->pass);
    }
    for (; aside; aside = aside->aside)
        tk__fair_restore(order, &aside->pass);
    return n;
}

static void run_batch(tk_batcher *b, size_t n)
{
    const int64_t begun = tk_now_ns();
    for (size_t i = 0; i < n; i++) {
        tk_infer_image *image = b->batch[i];
        image->queue_ns = image->waited_ns + begun - image->ready_ns;
        tk_metrics_observe(b->opts.metrics, TK_STAGE_QUEUE, image->queue_ns);
        const tk_infer *r = image->infer;
        const size_t index = (size_t)(image - r->images);
        size_t per_image = 0;
        for (size_t h = 0; h < r->n_heads; h++)
            per_image += r->k[h];
        b->passes[i] = (tk_pass){.canvas = image->canvas,
                                 .rendered = image->form == TK_IMAGE_PLANES
                                                 ? (const float *)(const void *)image->canvas
                                                 : NULL,
                                 .logits = image->logits,
                                 .probabilities = image->probabilities,
                                 .features = image->features,
                                 .n_heads = r->n_heads,
                                 .heads = r->heads,
                                 .k = r->k,
                                 .top = r->tops + index * per_image};
    }
    tk_snapshot *snapshot = b->batch[0]->infer->snapshot;
    tk_snapshot_run(snapshot, n, b->passes);
    tk_metrics_pass(b->opts.metrics, n, tk_snapshot_trunk_ns(snapshot),
                    tk_snapshot_heads_ns(snapshot));
    for (size_t i = 0; i < n; i++) {
        b->batch[i]->trunk_ns = tk_snapshot_trunk_ns(snapshot);
        b->batch[i]->heads_ns = tk_snapshot_heads_ns(snapshot);
        tk_free(b->batch[i]->canvas);
        b->batch[i]->canvas = NULL;
    }
}

/* -- answers -- */

static void *answerer_main(void *arg)
{
    tk_batcher *b = arg;
    tk_process_thread("answer", TK_THREAD_GIVES_WAY);
    pthread_mutex_lock(&b->lock);
    while (!b->stop || b->answered) {
        tk_infer *finished = b->answered;
        b->answered = NULL;
        b->answering = finished != NULL;
        if (!finished) {
            pthread_cond_wait(&b->answer, &b->lock);
            continue;
        }
        pthread_mutex_unlock(&b->lock);
        finish_all(finished);
        pthread_mutex_lock(&b->lock);
    }
    b->answering = false;
    pthread_mutex_unlock(&b->lock);
    return NULL;
}

/* Writing answers, and whatever else the connections have to do just then, is no work for the
 * executor when images wait for it; when none do, the way by another thread is the longer one. No
 * pass overtakes the one before. */
static void answer_locked(tk_batcher *b, tk_infer *finished)
{
    if (b->answering || b->answered || (b->n_ready > 0 && !b->stop)) {
        tk_infer **end = &b->answered;
        while (*end)
            end = &(*end)->next;
        *end = finished;
        pthread_cond_signal(&b->answer);
        return;
    }
    pthread_mutex_unlock(&b->lock);
    finish_all(finished);
    pthread_mutex_lock(&b->lock);
}

static void *executor_main(void *arg)
{
    tk_batcher *b = arg;
    tk_process_thread("infer", TK_THREAD_FIRST);
    pthread_mutex_lock(&b->lock);
    for (;;) {
        int64_t until;
        while (!batch_due_locked(b, &until)) {
            if (b->stop && b->not_started + b->decoding + b->n_ready == 0) {
                pthread_mutex_unlock(&b->lock);
                return NULL;
            }
            if (until == 0) {
                pthread_cond_wait(&b->ready, &b->lock);
            } else {
                const struct timespec t = {until / 1000000000, until % 1000000000};
                pthread_cond_timedwait(&b->ready, &b->lock, &t);
            }
        }
        tk_infer *finished = NULL;
        const size_t n = take_batch_locked(b, &finished);
        pthread_cond_broadcast(&b->work); /* there is room for canvases again */
        pthread_mutex_unlock(&b->lock);
        if (n > 0) run_batch(b, n);
        pthread_mutex_lock(&b->lock);
        b->stats.images += n;
        b->stats.batches += n > 0;
        for (size_t i = 0; i < n; i++) {
            tk_infer *r = b->batch[i]->infer;
            if (images_done_locked(b, r, 1)) {
                r->next = finished;
                finished = r;
            }
        }
        tk__pace_pass(&b->pace, b->opts.clock(), n, b->came, b->images >= b->opts.max_batch);
        b->came = 0;
        if (finished) answer_locked(b, finished);
    }
}

static void take_in_locked(tk_batcher *b, tk__tenant *t, tk_infer *r)
{
    if (t->images == 0) {
        b->active++;
        b->weight += t->weight;
    }
    t->images += r->n_images;
    t->bytes += r->bytes;
    b->images += r->n_images;
    b->bytes += r->bytes;
    b->not_started += r->n_images;
    b->came += r->n_images;
    r->of = t;
    tk__tenant_push(t, r);
    tk__fair_add(&b->tenants.decode, &t->decode);
    if (r->n_images == 1)
        pthread_cond_signal(&b->work);
    else
        pthread_cond_broadcast(&b->work);
}

/* -- from outside -- */

tk_err tk_batcher_submit(tk_batcher *b, tk_infer *r, tk_diag *diag)
{
    r->bytes = 0;
    for (size_t i = 0; i < r->n_images; i++)
        r->bytes += r->images[i].size;
    r->submitted_ns = tk_now_ns();
    r->left = r->n_images;
    r->started = 0;
    r->err = TK_OK;
    r->reason = "";
    r->retry_ms = 0;
    tk_infer *finished = NULL;
    const int64_t now = b->opts.clock();
    pthread_mutex_lock(&b->lock);
    tk__tenant *t = tk__tenants_get(&b->tenants, r->tenant, now);
    tk_err err = t ? tk__batcher_admit(b, t, r, now, &finished, diag)
                   : tk_fail(diag, TK_NOMEM, "no memory for the queue of images");
    if (err == TK_OK) take_in_locked(b, t, r);
    pthread_mutex_unlock(&b->lock);
    finish_all(finished);
    return err;
}

size_t tk_batcher_ahead(const tk_batcher *b)
{
    return TK__AHEAD * b->opts.max_batch;
}

void tk_batcher_set_limits(tk_batcher *b, const tk_batcher_limits *limits)
{
    pthread_mutex_lock(&b->lock);
    b->opts.max_images = limits->max_images;
    b->opts.max_tenant_images = limits->max_tenant_images;
    b->opts.max_tenant_rate = limits->max_tenant_rate;
    b->opts.max_delay_us = limits->max_delay_us;
    tk__tenants_set_rate(&b->tenants, limits->max_tenant_rate, b->opts.clock());
    pthread_cond_signal(&b->ready); /* its time of waiting may be another */
    pthread_mutex_unlock(&b->lock);
}

tk_err tk_batcher_set_tenant(tk_batcher *b, int64_t tenant, const tk_tenant_limits *limits)
{
    const int64_t now = b->opts.clock();
    pthread_mutex_lock(&b->lock);
    tk__tenant *t = tk__tenants_get(&b->tenants, tenant, now);
    if (t) {
        const double before = t->weight;
        tk__tenant_set(&b->tenants, t, limits, now);
        if (t->images > 0) b->weight += t->weight - before;
    }
    pthread_mutex_unlock(&b->lock);
    return t ? TK_OK : TK_NOMEM;
}

tk_batcher_stats tk_batcher_get_stats(tk_batcher *b)
{
    pthread_mutex_lock(&b->lock);
    tk_batcher_stats stats = b->stats;
    stats.queue = b->images;
    stats.ready = b->n_ready;
    stats.tenants = b->active;
    pthread_mutex_unlock(&b->lock);
    return stats;
}

static tk_batcher_opts filled(const tk_batcher_opts *given)
{
    tk_batcher_opts o = *given;
    if (o.max_batch == 0) o.max_batch = DEFAULT_BATCH;
    if (o.max_images == 0) o.max_images = DEFAULT_IMAGES;
    if (o.max_bytes == 0) o.max_bytes = (size_t)512 << 20;
    if (!o.clock) o.clock = tk_now_ns;
    if (o.decode_threads == 0) {
        const long cores = sysconf(_SC_NPROCESSORS_ONLN);
        o.decode_threads = cores > 0 ? (unsigned)cores : 1;
    }
    if (o.decode_threads > TK__MAX_DECODERS) o.decode_threads = TK__MAX_DECODERS;
    return o;
}

tk_err tk_batcher_create(tk_batcher **out, const tk_batcher_opts *opts, tk_diag *diag)
{
    *out = NULL;
    tk_batcher *b = tk_calloc(1, sizeof *b);
    if (!b) return tk_fail(diag, TK_NOMEM, "no memory for the queue of images");
    b->opts = filled(opts);
    b->tenants.rate = b->opts.max_tenant_rate;
    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->work, NULL);
    pthread_cond_init(&b->answer, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&b->ready, &attr);
    pthread_condattr_destroy(&attr);
    b->batch = tk_calloc(b->opts.max_batch, sizeof(tk_infer_image *));
    b->passes = tk_calloc(b->opts.max_batch, sizeof *b->passes);
    bool ok = b->batch && b->passes;
    ok = ok && pthread_create(&b->executor, NULL, executor_main, b) == 0;
    b->executor_runs = ok;
    ok = ok && pthread_create(&b->answerer, NULL, answerer_main, b) == 0;
    b->answerer_runs = ok;
    while (ok && b->n_decoders < b->opts.decode_threads) {
        ok = pthread_create(&b->decoders[b->n_decoders], NULL, decoder_main, b) == 0;
        b->n_decoders += ok;
    }
    if (!ok) {
        tk_batcher_destroy(b);
        return tk_fail(diag, TK_NOMEM, "no memory or threads for the queue of images");
    }
    *out = b;
    return TK_OK;
}

void tk_batcher_destroy(tk_batcher *b)
{
    if (!b) return;
    pthread_mutex_lock(&b->lock);
    b->stop = true;
    pthread_cond_broadcast(&b->work);
    pthread_cond_broadcast(&b->ready);
    pthread_cond_broadcast(&b->answer);
    pthread_mutex_unlock(&b->lock);
    for (size_t i = 0; i < b->n_decoders; i++)
        pthread_join(b->decoders[i], NULL);
    if (b->executor_runs) pthread_join(b->executor, NULL);
    if (b->answerer_runs) pthread_join(b->answerer, NULL);
    pthread_cond_destroy(&b->work);
    pthread_cond_destroy(&b->ready);
    pthread_cond_destroy(&b->answer);
    pthread_mutex_destroy(&b->lock);
    tk__tenants_fini(&b->tenants);
    tk_free(b->batch);
    tk_free(b->passes);
    tk_free(b);
}
