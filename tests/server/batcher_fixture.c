/* See batcher_fixture.h. */
#include "batcher_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

fixture_bytes pictures[PICTURES];

void pictures_make(void)
{
    for (unsigned i = 0; i < PICTURES; i++)
        pictures[i] = i % 2 ? fixture_jpeg(40 + 3 * i, 50, i) : fixture_png(33 + i, 64, i);
}

void pictures_free(void)
{
    for (unsigned i = 0; i < PICTURES; i++)
        free(pictures[i].data);
}

tk_batcher *start(tk_batcher_opts opts)
{
    tk_batcher *b;
    opts.max_batch = BATCH;
    assert_int_equal(tk_batcher_create(&b, &opts, NULL), TK_OK);
    return b;
}

/* -- a request that can be waited for -- */

static pthread_mutex_t counter_lock = PTHREAD_MUTEX_INITIALIZER;

static void on_done(tk_infer *infer, tk_err err, const char *reason)
{
    asked *a = infer->user;
    pthread_mutex_lock(&counter_lock);
    if (a->counter) a->order = ++*a->counter;
    pthread_mutex_unlock(&counter_lock);
    pthread_mutex_lock(&a->lock);
    a->done = true;
    a->err = err;
    snprintf(a->reason, sizeof a->reason, "%s", reason);
    pthread_cond_signal(&a->changed);
    pthread_mutex_unlock(&a->lock);
}

void set_gone(asked *a)
{
    pthread_mutex_lock(&a->lock);
    a->gone = true;
    pthread_mutex_unlock(&a->lock);
}

static bool is_gone(void *user)
{
    asked *a = user;
    pthread_mutex_lock(&a->lock);
    const bool gone = a->gone;
    pthread_mutex_unlock(&a->lock);
    return gone;
}

asked *ask(tk_snapshot *snapshot, size_t first, size_t n)
{
    asked *a = calloc(1, sizeof *a);
    pthread_mutex_init(&a->lock, NULL);
    pthread_cond_init(&a->changed, NULL);
    const tk_head *heads[] = {tk_snapshot_find(snapshot, "alice", "type"),
                              tk_snapshot_find(snapshot, "bob", "colour")};
    assert_int_equal(tk_infer_create(&a->infer, snapshot, n, 2, heads, 99), TK_OK);
    for (size_t i = 0; i < n; i++) {
        a->infer->images[i].data = pictures[(first + i) % PICTURES].data;
        a->infer->images[i].size = pictures[(first + i) % PICTURES].size;
    }
    a->infer->user = a;
    a->infer->done = on_done;
    a->infer->cancelled = is_gone;
    return a;
}

asked *ask_as(int64_t tenant, tk_snapshot *snapshot, size_t n)
{
    asked *a = ask(snapshot, 0, n);
    a->infer->tenant = tenant;
    for (size_t i = 1; i < n; i++) {
        a->infer->images[i].data = pictures[0].data;
        a->infer->images[i].size = pictures[0].size;
    }
    return a;
}

tk_err wait_for(asked *a)
{
    pthread_mutex_lock(&a->lock);
    while (!a->done)
        pthread_cond_wait(&a->changed, &a->lock);
    pthread_mutex_unlock(&a->lock);
    return a->err;
}

void forget(asked *a)
{
    tk_infer_destroy(a->infer);
    pthread_mutex_destroy(&a->lock);
    pthread_cond_destroy(&a->changed);
    free(a);
}

/* -- decode threads held up -- */

static void stall_one(void *ctx, size_t i)
{
    stall *s = ctx;
    (void)i;
    pthread_barrier_wait(&s->in);
    pthread_barrier_wait(&s->out);
}

static void *stall_main(void *arg)
{
    stall *s = arg;
    tk_batcher_spread(s->batcher, s->n, stall_one, s);
    return NULL;
}

void stall_begin(stall *s, tk_batcher *batcher, size_t decoders)
{
    s->batcher = batcher;
    s->n = decoders + 1;
    pthread_barrier_init(&s->in, NULL, (unsigned)s->n + 1);
    pthread_barrier_init(&s->out, NULL, (unsigned)s->n + 1);
    pthread_create(&s->thread, NULL, stall_main, s);
    pthread_barrier_wait(&s->in);
}

void stall_end(stall *s)
{
    pthread_barrier_wait(&s->out);
    pthread_join(s->thread, NULL);
    pthread_barrier_destroy(&s->in);
    pthread_barrier_destroy(&s->out);
}

/* -- the executor held up -- */

static void plug_done(tk_infer *infer, tk_err err, const char *reason)
{
    plug *p = infer->user;
    (void)err, (void)reason;
    pthread_barrier_wait(&p->in);
    pthread_barrier_wait(&p->out);
}

void plug_begin(plug *p, tk_batcher *batcher, tk_snapshot *snapshot, int64_t tenant)
{
    const tk_head *head = tk_snapshot_find(snapshot, "alice", "type");
    pthread_barrier_init(&p->in, NULL, 2);
    pthread_barrier_init(&p->out, NULL, 2);
    assert_int_equal(tk_infer_create(&p->infer, snapshot, 1, 1, &head, 1), TK_OK);
    p->infer->tenant = tenant;
    p->infer->images[0].data = pictures[0].data;
    p->infer->images[0].size = pictures[0].size;
    p->infer->user = p;
    p->infer->done = plug_done;
    assert_int_equal(tk_batcher_submit(batcher, p->infer, NULL), TK_OK);
    pthread_barrier_wait(&p->in);
}

void plug_end(plug *p)
{
    pthread_barrier_wait(&p->out);
    pthread_barrier_destroy(&p->in);
    pthread_barrier_destroy(&p->out);
}

void wait_ready(tk_batcher *batcher, size_t n)
{
    while (tk_batcher_get_stats(batcher).ready != n)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
}
