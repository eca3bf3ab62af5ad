/* See snapshot.h. The reference count is the one atomic of this folder. A reference is only ever
 * taken from one that is held (or under tk_current's lock, which holds one), so taking needs no
 * ordering; the last release must see every other thread's use of the snapshot, hence
 * acquire-release there. */
#include "serving/snapshot.h"

#include <malloc.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "clock.h"
#include "engine/linear.h"
#include "engine/mem.h"
#include "heads/stack.h"

struct tk_snapshot {
    atomic_size_t refs;
    void (*on_end)(void *ctx); /* NULL: nobody asks */
    void *on_end_ctx;
    uint64_t number;
    tk_arch arch;
    tk_preproc preproc;
    tk_pool *pool; /* the plan's, while it is made; then the executor's */
    tk_plan *plan;
    tk_precision_choice choice;
    size_t n_heads;
    tk_head **heads; /* sorted by id */
    tk_stack stack;  /* of their adapters, in that order */
    size_t max_batch;
    pthread_mutex_t tally_lock; /* a leaf */
    bool lock_made;
    tk_head_tallies *tallies; /* tally_lock; [n_heads] */
    tk_pass_tally *passes;    /* tally_lock; [n_heads][max_batch] */
    /* executor thread: */
    size_t *in_pass; /* [n_heads], images of the pass */
    size_t features, max_classes;
    float *input;    /* [max_batch][crop][crop][3] */
    float *vectors;  /* [max_batch][features] */
    float *z;        /* [max_batch][stack's width] */
    bool *rows;      /* [stack's rank], which the batch asks for */
    float *inputs;   /* [threads][stack's widest] */
    float *logits;   /* [threads][max_classes] */
    tk_top *ranking; /* [threads][max_classes] */
    int64_t trunk_ns, heads_ns;
};

static void destroy(tk_snapshot *s)
{
    if (!s) return;
    tk_plan_destroy(s->plan);
    tk_pool_destroy(s->pool);
    for (size_t i = 0; i < s->n_heads; i++)
        tk_head_destroy(s->heads[i]);
    tk_free(s->heads);
    tk_stack_fini(&s->stack);
    tk_free(s->input);
    tk_free(s->vectors);
    tk_free(s->z);
    tk_free(s->rows);
    tk_free(s->inputs);
    tk_free(s->logits);
    tk_free(s->ranking);
    tk_free(s->in_pass);
    tk_free(s->tallies);
    tk_free(s->passes);
    if (s->lock_made) pthread_mutex_destroy(&s->tally_lock);
    void (*on_end)(void *ctx) = s->on_end;
    void *ctx = s->on_end_ctx;
    tk_free(s);
    /* Requests have filled the gaps between one version's blocks and the next's: under a load that
     * never pauses, the holes that it leaves would add up. */
    malloc_trim(0);
    if (on_end) on_end(ctx);
}

static int by_id(const void *a, const void *b)
{
    return strcmp((*(tk_head *const *)a)->id, (*(tk_head *const *)b)->id);
}

/* The executor's buffers: allocated here, so that a pass allocates nothing. */
static tk_err make_buffers(tk_snapshot *s)
{
    const size_t threads = tk_pool_threads(s->pool);
    s->max_classes = 1;
    for (size_t i = 0; i < s->n_heads; i++) {
        if (s->heads[i]->classes > s->max_classes) s->max_classes = s->heads[i]->classes;
    }
    const size_t pixels = (size_t)s->preproc.crop * s->preproc.crop * 3;
    s->input = tk_aligned_calloc(s->max_batch * pixels, sizeof *s->input);
    s->vectors = tk_aligned_calloc(s->max_batch * s->features, sizeof *s->vectors);
    s->z = tk_aligned_calloc(s->max_batch * tk_stack_width(&s->stack) + 1, sizeof *s->z);
    s->rows = tk_calloc(tk_stack_rank(&s->stack) + 1, sizeof *s->rows);
    s->inputs = tk_aligned_calloc(threads * tk_stack_widest(&s->stack), sizeof *s->inputs);
    s->logits = tk_aligned_calloc(threads * s->max_classes, sizeof *s->logits);
    s->ranking = tk_calloc(threads * s->max_classes, sizeof *s->ranking);
    return s->input && s->vectors && s->z && s->rows && s->inputs && s->logits && s->ranking
               ? TK_OK
               : TK_NOMEM;
}

static tk_err make_tallies(tk_snapshot *s)
{
    s->in_pass = tk_calloc(s->n_heads + 1, sizeof *s->in_pass);
    s->tallies = tk_calloc(s->n_heads + 1, sizeof *s->tallies);
    s->passes = tk_calloc(s->n_heads * s->max_batch + 1, sizeof *s->passes);
    s->lock_made = pthread_mutex_init(&s->tally_lock, NULL) == 0;
    return s->in_pass && s->tallies && s->passes && s->lock_made ? TK_OK : TK_NOMEM;
}

static tk_err no_memory(const tk_snapshot *s, tk_diag *diag)
{
    return tk_fail(diag, TK_NOMEM, "no memory for version %llu", (unsigned long long)s->number);
}

/* All adapters as one side of the plan. */
static tk_err stack_adapters(tk_snapshot *s, tk_diag *diag)
{
    tk_err err =
        tk_stack_of_heads(&s->stack, s->arch, s->n_heads, (const tk_head *const *)s->heads);
    if (err != TK_OK) return no_memory(s, diag);
    const tk_side side = tk_stack_side(&s->stack);
    err = tk_plan_set_side(s->plan, &side, diag);
    tk_stack_drop_data(&s->stack);
    return err;
}

/* One image through the trunk, so that the first request does not wait for the pool's threads and
 * for pages that nobody has touched yet. One is enough, and costs a busy server little. */
static void warm_up(tk_snapshot *s)
{
    const int64_t begun = tk_now_ns();
    tk_plan_run_side(s->plan, 1, s->input, s->vectors, NULL, s->rows);
    s->trunk_ns = tk_now_ns() - begun;
}

static tk_err build(tk_snapshot *s, tk_model *model, unsigned threads, unsigned asked,
                    tk_diag *diag)
{
    s->arch = model->trunk->arch;
    s->preproc = model->preproc;
    s->features = tk_arch_features(s->arch);
    if (tk_pool_create(&s->pool, threads) != TK_OK) return no_memory(s, diag);
    tk_err err =
        tk_precision_choose(&s->plan, model, asked, s->max_batch, s->pool, &s->choice, diag);
    if (err != TK_OK) return err;
    tk_plan_describe(s->plan, s->choice.plan, sizeof s->choice.plan);
    s->heads = model->heads; /* moved */
    s->n_heads = model->n_heads;
    model->heads = NULL;
    model->n_heads = 0;
    if (s->n_heads > 1) qsort(s->heads, s->n_heads, sizeof *s->heads, by_id);
    err = stack_adapters(s, diag);
    if (err != TK_OK) return err;
    if (make_buffers(s) != TK_OK || make_tallies(s) != TK_OK) return no_memory(s, diag);
    warm_up(s);
    return TK_OK;
}

tk_err tk_snapshot_create(tk_snapshot **out, tk_model *model, uint64_t number, size_t max_batch,
                          unsigned threads, tk_diag *diag)
{
    return tk_snapshot_create_as(out, model, number, max_batch, threads, TK_PRECISION_FP32, diag);
}

tk_err tk_snapshot_create_as(tk_snapshot **out, tk_model *model, uint64_t number, size_t max_batch,
                             unsigned threads, unsigned asked, tk_diag *diag)
{
    *out = NULL;
    tk_snapshot *s = tk_calloc(1, sizeof *s);
    tk_err err = TK_NOMEM;
    if (s) {
        atomic_init(&s->refs, 1);
        s->number = number;
        s->max_batch = max_batch;
        err = build(s, model, threads, asked, diag);
    }
    tk_model_destroy(model);
    if (err != TK_OK) {
        destroy(s);
        return err;
    }
    *out = s;
    return TK_OK;
}

tk_snapshot *tk_snapshot_ref(tk_snapshot *s)
{
    atomic_fetch_add_explicit(&s->refs, 1, memory_order_relaxed);
    return s;
}

void tk_snapshot_unref(tk_snapshot *s)
{
    if (s && atomic_fetch_sub_explicit(&s->refs, 1, memory_order_acq_rel) == 1) destroy(s);
}

void tk_snapshot_on_end(tk_snapshot *s, void (*fn)(void *ctx), void *ctx)
{
    s->on_end = fn;
    s->on_end_ctx = ctx;
}

uint64_t tk_snapshot_number(const tk_snapshot *s)
{
    return s->number;
}

tk_arch tk_snapshot_arch(const tk_snapshot *s)
{
    return s->arch;
}

const tk_preproc *tk_snapshot_preproc(const tk_snapshot *s)
{
    return &s->preproc;
}

const tk_precision_choice *tk_snapshot_choice(const tk_snapshot *s)
{
    return &s->choice;
}

size_t tk_snapshot_head_bytes(const tk_snapshot *s, const tk_head *head)
{
    const size_t bytes = head->classes * (head->width + 1) * sizeof(float);
    return head->rank > 0 ? bytes + tk_side_size(s->arch, head->rank) * sizeof(float) : bytes;
}

size_t tk_snapshot_bytes(const tk_snapshot *s)
{
    size_t bytes = tk_plan_bytes(s->plan);
    for (size_t i = 0; i < s->n_heads; i++)
        bytes += tk_snapshot_head_bytes(s, s->heads[i]);
    return bytes;
}

size_t tk_snapshot_heads(const tk_snapshot *s)
{
    return s->n_heads;
}

const tk_head *tk_snapshot_head(const tk_snapshot *s, size_t i)
{
    return s->heads[i];
}

/* Compares the tenant's part of a head's id with `tenant`: the prefix up to and with the slash. */
static int compare_tenant(const char *id, const char *tenant, size_t len)
{
    const int order = strncmp(id, tenant, len);
    return order != 0 ? order : (id[len] > '/') - (id[len] < '/');
}

size_t tk_snapshot_of_tenant(const tk_snapshot *s, const char *tenant, size_t *first)
{
    const size_t len = strlen(tenant);
    size_t lo = 0, hi = s->n_heads;
    while (lo < hi) {
        const size_t mid = lo + (hi - lo) / 2;
        if (compare_tenant(s->heads[mid]->id, tenant, len) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    *first = lo;
    size_t end = lo;
    while (end < s->n_heads && compare_tenant(s->heads[end]->id, tenant, len) == 0)
        end++;
    return end - lo;
}

const tk_head *tk_snapshot_find(const tk_snapshot *s, const char *tenant, const char *name)
{
    size_t first;
    const size_t n = tk_snapshot_of_tenant(s, tenant, &first);
    const size_t skip = strlen(tenant) + 1;
    for (size_t i = first; i < first + n; i++) {
        if (strcmp(s->heads[i]->id + skip, name) == 0) return s->heads[i];
    }
    return NULL;
}

static int by_score(const void *a, const void *b)
{
    const tk_top *x = a, *y = b;
    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    return (x->label > y->label) - (x->label < y->label);
}

/* The k best of `from` in by_score's order, for a small k: qsort would sort all of them, and
 * allocate. */
static void insert_best(size_t c, const tk_top *from, size_t k, tk_top *top)
{
    size_t n = 0;
    for (size_t i = 0; i < c; i++) {
        if (n == k && !(from[i].score > top[k - 1].score)) continue;
        size_t at = n < k ? n++ : k - 1;
        for (; at > 0 && from[i].score > top[at - 1].score; at--)
            top[at] = top[at - 1];
        top[at] = from[i];
    }
}

/* Softmax of logits [c], to `all` unless that is NULL, and the k largest to `top`; `ranking` is
 * scratch of c entries. */
static void softmax_top(size_t c, const float *logits, size_t k, tk_top *ranking, tk_top *top,
                        float *all)
{
    float max = logits[0];
    for (size_t i = 1; i < c; i++)
        max = logits[i] > max ? logits[i] : max;
    double sum = 0;
    for (size_t i = 0; i < c; i++) {
        const float e = expf(logits[i] - max);
        ranking[i] = (tk_top){.label = (uint32_t)i, .score = e};
        sum += (double)e;
    }
    for (size_t i = 0; i < c; i++)
        ranking[i].score = (float)((double)ranking[i].score / sum);
    for (size_t i = 0; all && i < c; i++)
        all[i] = ranking[i].score;
    if (k <= 16) {
        insert_best(c, ranking, k, top);
        return;
    }
    qsort(ranking, c, sizeof *ranking, by_score);
    memcpy(top, ranking, k * sizeof *top);
}

typedef struct run_ctx {
    tk_snapshot *s;
    const tk_pass *passes;
} run_ctx;

static void render_one(void *arg, size_t task, size_t thread)
{
    (void)thread;
    const run_ctx *ctx = arg;
    const tk_preproc *p = &ctx->s->preproc;
    const size_t n = (size_t)p->crop * p->crop * 3;
    float *x = ctx->s->input + task * n;
    if (ctx->passes[task].rendered) {
        memcpy(x, ctx->passes[task].rendered, n * sizeof *x);
        return;
    }
    const tk_view view = tk_view_centre(p, p->crop);
    tk_view_render(p, ctx->passes[task].canvas, p->crop, &view, x);
}

/* Place of one of the snapshot's own heads. */
static size_t index_of(const tk_snapshot *s, const tk_head *head)
{
    tk_head *const *at = bsearch(&head, s->heads, s->n_heads, sizeof *s->heads, by_id);
    return (size_t)(at - s->heads);
}

/* What the head's linear layer reads of image `task`. */
static const float *input_of(const tk_snapshot *s, const tk_head *head, size_t task, float *x)
{
    const float *features = s->vectors + task * s->features;
    if (head->rank == 0) return features;
    return tk_stack_input(&s->stack, index_of(s, head), 1, features,
                          s->z + task * tk_stack_width(&s->stack), x);
}

/* Each image by itself (n = 1), so that the bits cannot depend on its neighbours. */
static void answer_one(void *arg, size_t task, size_t thread)
{
    const run_ctx *ctx = arg;
    tk_snapshot *s = ctx->s;
    const tk_pass *pass = &ctx->passes[task];
    float *logits = s->logits + thread * s->max_classes;
    float *x = s->inputs + thread * tk_stack_widest(&s->stack);
    tk_top *ranking = s->ranking + thread * s->max_classes;
    tk_top *top = pass->top;
    size_t at = 0;
    if (pass->features)
        memcpy(pass->features, s->vectors + task * s->features, s->features * sizeof(float));
    for (size_t h = 0; h < pass->n_heads; h++) {
        const tk_head *head = pass->heads[h];
        tk_linear_forward(1, head->width, head->classes, input_of(s, head, task, x), head->weight,
                          head->bias, logits);
        softmax_top(head->classes, logits, pass->k[h], ranking, top,
                    pass->probabilities ? pass->probabilities + at : NULL);
        if (pass->logits) memcpy(pass->logits + at, logits, head->classes * sizeof *logits);
        top += pass->k[h];
        at += head->classes;
    }
}

/* Marks the rows of the adapters that the batch goes through; false: there is none. */
static bool mark_rows(tk_snapshot *s, size_t n, const tk_pass *passes)
{
    bool any = false;
    memset(s->rows, 0, tk_stack_rank(&s->stack) * sizeof *s->rows);
    for (size_t i = 0; i < n; i++)
        for (size_t h = 0; h < passes[i].n_heads; h++) {
            const tk_head *head = passes[i].heads[h];
            if (head->rank == 0) continue;
            tk_stack_mark(&s->stack, index_of(s, head), s->rows);
            any = true;
        }
    return any;
}

static void tally_pass(tk_snapshot *s, size_t n, const tk_pass *passes)
{
    for (size_t i = 0; i < n; i++)
        for (size_t h = 0; h < passes[i].n_heads; h++)
            s->in_pass[index_of(s, passes[i].heads[h])]++;
    pthread_mutex_lock(&s->tally_lock);
    for (size_t h = 0; h < s->n_heads; h++) {
        if (s->in_pass[h] == 0) continue;
        const size_t images = s->in_pass[h] < s->max_batch ? s->in_pass[h] : s->max_batch;
        tk_pass_tally *of = &s->passes[h * s->max_batch + images - 1];
        of->count++;
        of->trunk_ns += s->trunk_ns;
        of->heads_ns += s->heads_ns;
        s->tallies[h].passes++;
        s->in_pass[h] = 0;
    }
    pthread_mutex_unlock(&s->tally_lock);
}

void tk_snapshot_run(tk_snapshot *s, size_t n, const tk_pass *passes)
{
    run_ctx ctx = {s, passes};
    const int64_t begun = tk_now_ns();
    tk_pool_run(s->pool, n, render_one, &ctx);
    tk_plan_run_side(s->plan, n, s->input, s->vectors, mark_rows(s, n, passes) ? s->z : NULL,
                     s->rows);
    const int64_t middle = tk_now_ns();
    tk_pool_run(s->pool, n, answer_one, &ctx);
    s->trunk_ns = middle - begun;
    s->heads_ns = tk_now_ns() - middle;
    tally_pass(s, n, passes);
}

int64_t tk_snapshot_trunk_ns(const tk_snapshot *s)
{
    return s->trunk_ns;
}

int64_t tk_snapshot_heads_ns(const tk_snapshot *s)
{
    return s->heads_ns;
}

/* -- tallies -- */

static void add(tk_tally *tally, int64_t ns)
{
    tally->count++;
    tally->ns += ns;
}

void tk_snapshot_tally(tk_snapshot *s, const tk_head *head, bool ok, size_t images,
                       const tk_request_times *times)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    tk_head_tallies *t = &s->tallies[index_of(s, head)];
    pthread_mutex_lock(&s->tally_lock);
    t->last_ms = (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
    add(ok ? &t->success : &t->fail, times->total_ns);
    if (ok) {
        t->images += images;
        add(&t->queue, times->queue_ns);
        add(&t->decode, times->decode_ns);
        add(&t->trunk, times->trunk_ns);
        add(&t->heads, times->heads_ns);
    }
    pthread_mutex_unlock(&s->tally_lock);
}

void tk_snapshot_read_tallies(tk_snapshot *s, const tk_head *head, tk_head_tallies *out,
                              tk_pass_tally *passes)
{
    const size_t h = index_of(s, head);
    pthread_mutex_lock(&s->tally_lock);
    *out = s->tallies[h];
    memcpy(passes, s->passes + h * s->max_batch, s->max_batch * sizeof *passes);
    pthread_mutex_unlock(&s->tally_lock);
}

size_t tk_snapshot_max_batch(const tk_snapshot *s)
{
    return s->max_batch;
}

struct tk_current {
    pthread_mutex_t lock;
    tk_snapshot *snapshot; /* lock */
};

tk_err tk_current_create(tk_current **out)
{
    *out = NULL;
    tk_current *c = tk_calloc(1, sizeof *c);
    if (!c) return TK_NOMEM;
    if (pthread_mutex_init(&c->lock, NULL) != 0) {
        tk_free(c);
        return TK_NOMEM;
    }
    *out = c;
    return TK_OK;
}

void tk_current_destroy(tk_current *c)
{
    if (!c) return;
    tk_snapshot_unref(c->snapshot);
    pthread_mutex_destroy(&c->lock);
    tk_free(c);
}

tk_snapshot *tk_current_get(tk_current *c)
{
    pthread_mutex_lock(&c->lock);
    tk_snapshot *s = c->snapshot ? tk_snapshot_ref(c->snapshot) : NULL;
    pthread_mutex_unlock(&c->lock);
    return s;
}

void tk_current_set(tk_current *c, tk_snapshot *s)
{
    pthread_mutex_lock(&c->lock);
    tk_snapshot *old = c->snapshot;
    c->snapshot = s;
    pthread_mutex_unlock(&c->lock);
    tk_snapshot_unref(old); /* outside the lock: it may be the last and free a plan */
}
