/* The file of pseudo-labels. Numbers in the machine's order; it never leaves the job's directory.
 *
 *     0     64    header: magic, items, views, halfs per row, seed, rows done
 *     64    ...   rows, view after view, item after item within a view. A row:
 *                 [features][logits of head 0][logits of head 1]...  in half precision
 *
 * Rows are written in order; `rows done` is raised only after the rows before it were synced, so
 * that a job which died goes on where it was, also after a power cut. */
#include "heads/pseudo_labels.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "engine/half.h"
#include "engine/linear.h"
#include "engine/mem.h"
#include "engine/plan.h"
#include "heads/stack.h"

enum { HEADER = 64, BATCH = 64, SYNC_SECONDS = 10 };

typedef struct header {
    char magic[8];
    uint64_t items, views, row, seed, done;
} header;

struct tk_pseudo_labels {
    uint8_t *base;
    size_t size, items, views, row, features;
    size_t n_heads;
    size_t *offsets; /* [n_heads + 1], halfs into a row */
    uint16_t *rows;  /* into base */
};

static tk_err map_file(tk_pseudo_labels *p, const tk_pseudo_labels_opts *opts, tk_diag *diag)
{
    size_t rows, halfs;
    if (!tk_mul_size(p->items, p->views, &rows) || !tk_mul_size(rows, p->row, &halfs) ||
        halfs > SIZE_MAX / 4)
        return tk_fail(diag, TK_LIMIT, "pseudo-labels: too many images, views or classes");
    p->size = HEADER + halfs * sizeof(uint16_t);
    const int fd = open(opts->path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) return tk_fail_errno(diag, "pseudo-labels %s", opts->path);
    struct stat st;
    int failed = fstat(fd, &st) != 0;
    if (!failed && (size_t)st.st_size != p->size) failed = ftruncate(fd, 0) != 0;
    if (!failed) {
        errno = posix_fallocate(fd, 0, (off_t)p->size);
        failed = errno != 0;
    }
    if (!failed) {
        void *base = mmap(NULL, p->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        failed = base == MAP_FAILED;
        if (!failed) p->base = base;
    }
    const tk_err err = failed ? tk_fail_errno(diag, "pseudo-labels %s", opts->path) : TK_OK;
    close(fd);
    if (err != TK_OK) return err;
    p->rows = (uint16_t *)(void *)(p->base + HEADER);
    header *h = (header *)(void *)p->base;
    const header want = {.items = p->items, .views = p->views, .row = p->row, .seed = opts->seed};
    if (memcmp(h->magic, "TKPSLB1", 8) != 0 || h->items != want.items || h->views != want.views ||
        h->row != want.row || h->seed != want.seed || h->done > p->items * p->views) {
        *h = want;
        memcpy(h->magic, "TKPSLB1", 8);
    }
    return TK_OK;
}

/* What one batch of the pass needs. */
typedef struct pass {
    const tk_pseudo_labels_opts *opts;
    tk_plan *plan;
    tk_stack stack;
    float *x, *features, *z, *inputs, *logits;
    uint32_t images[BATCH], views[BATCH];
} pass;

static void pass_fini(pass *s)
{
    tk_plan_destroy(s->plan);
    tk_stack_fini(&s->stack);
    tk_free(s->x);
    tk_free(s->features);
    tk_free(s->z);
    tk_free(s->inputs);
    tk_free(s->logits);
}

static tk_err pass_init(pass *s, const tk_pseudo_labels *p, const tk_pseudo_labels_opts *opts,
                        tk_diag *diag)
{
    const unsigned crop = opts->teacher->preproc.crop;
    size_t widest = 1;
    for (size_t h = 0; h < opts->n_heads; h++)
        if (opts->heads[h]->classes > widest) widest = opts->heads[h]->classes;
    *s = (pass){.opts = opts};
    s->x = tk_aligned_calloc((size_t)BATCH * crop * crop * 3, sizeof(float));
    s->features = tk_aligned_calloc(BATCH * p->features, sizeof(float));
    s->logits = tk_aligned_calloc(BATCH * widest, sizeof(float));
    tk_err err = tk_stack_of_heads(&s->stack, opts->teacher->trunk->arch, opts->n_heads,
                                   (const tk_head *const *)opts->heads);
    if (err == TK_OK) {
        s->z = tk_aligned_calloc(BATCH * tk_stack_width(&s->stack) + 1, sizeof(float));
        s->inputs = tk_aligned_calloc(BATCH * tk_stack_widest(&s->stack), sizeof(float));
    }
    if (!s->x || !s->features || !s->z || !s->inputs || !s->logits)
        err = tk_fail(diag, TK_NOMEM, "pseudo-labels: out of memory");
    if (err == TK_OK)
        err = tk_plan_create(&s->plan, opts->teacher->trunk, crop, BATCH, opts->pool, diag);
    if (err == TK_OK) {
        const tk_side side = tk_stack_side(&s->stack);
        err = tk_plan_set_side(s->plan, &side, diag);
    }
    if (err != TK_OK) pass_fini(s);
    return err;
}

static void put_row_part(tk_pseudo_labels *p, size_t first, size_t n, size_t offset, size_t width,
                         float *from)
{
    /* A logit beyond the range of a half is as certain as infinity, which would poison a softmax.
     */
    for (size_t k = 0; k < n * width; k++)
        from[k] = fminf(fmaxf(from[k], -65504), 65504);
    for (size_t i = 0; i < n; i++)
        tk_f32_to_f16(width, from + i * width, p->rows + (first + i) * p->row + offset);
}

/* Rows first..first+n-1. */
static void run_batch(tk_pseudo_labels *p, pass *s, size_t first, size_t n)
{
    const tk_pseudo_labels_opts *opts = s->opts;
    for (size_t i = 0; i < n; i++) {
        s->images[i] = opts->images[(first + i) % p->items];
        s->views[i] = (uint32_t)((first + i) / p->items);
    }
    const tk_cut cut = {&opts->augment, opts->seed, s->images, s->views};
    tk_canvases_render(opts->canvases, &cut, n, s->x, opts->pool);
    tk_plan_run_side(s->plan, n, s->x, s->features, tk_stack_rank(&s->stack) > 0 ? s->z : NULL,
                     NULL);
    for (size_t h = 0; h < p->n_heads; h++) {
        const tk_head *head = opts->heads[h];
        const float *in = tk_stack_input(&s->stack, h, n, s->features, s->z, s->inputs);
        tk_linear_forward(n, head->width, head->classes, in, head->weight, head->bias, s->logits);
        put_row_part(p, first, n, p->offsets[h], head->classes, s->logits);
    }
    put_row_part(p, first, n, 0, p->features, s->features);
}

static tk_err mark_done(tk_pseudo_labels *p, size_t done, tk_diag *diag)
{
    header *h = (header *)(void *)p->base;
    if (msync(p->base, p->size, MS_SYNC) != 0) return tk_fail_errno(diag, "pseudo-labels");
    h->done = done;
    if (msync(p->base, HEADER, MS_SYNC) != 0) return tk_fail_errno(diag, "pseudo-labels");
    return TK_OK;
}

static time_t seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec;
}

static tk_err compute(tk_pseudo_labels *p, const tk_pseudo_labels_opts *opts, tk_diag *diag)
{
    const size_t total = p->items * p->views;
    size_t done = (size_t)((const header *)(const void *)p->base)->done;
    if (done == total) return TK_OK;
    pass s;
    tk_err err = pass_init(&s, p, opts, diag);
    if (err != TK_OK) return err;
    time_t synced = seconds_now();
    while (done < total && err == TK_OK && !tk_watch_cancelled(opts->watch)) {
        const size_t n = total - done < BATCH ? total - done : BATCH;
        run_batch(p, &s, done, n);
        done += n;
        tk_watch_progress(opts->watch, done, total);
        if (seconds_now() - synced < SYNC_SECONDS) continue;
        err = mark_done(p, done, diag);
        synced = seconds_now();
    }
    pass_fini(&s);
    if (err == TK_OK) err = mark_done(p, done, diag);
    return err == TK_OK && done < total ? TK_CANCELLED : err;
}

tk_err tk_pseudo_labels_open(tk_pseudo_labels **out, const tk_pseudo_labels_opts *opts,
                             tk_diag *diag)
{
    *out = NULL;
    assert(opts->views > 0 && opts->n_images > 0);
    tk_pseudo_labels *p = tk_calloc(1, sizeof *p);
    if (!p) return tk_fail(diag, TK_NOMEM, "pseudo-labels: out of memory");
    p->items = opts->n_images;
    p->views = opts->views;
    p->n_heads = opts->n_heads;
    p->features = tk_arch_features(opts->teacher->trunk->arch);
    p->row = p->features;
    p->offsets = tk_calloc(opts->n_heads + 1, sizeof *p->offsets);
    tk_err err = p->offsets ? TK_OK : tk_fail(diag, TK_NOMEM, "pseudo-labels: out of memory");
    for (size_t h = 0; h < opts->n_heads && err == TK_OK; h++) {
        p->offsets[h] = p->row;
        p->row += opts->heads[h]->classes;
        p->offsets[h + 1] = p->row;
    }
    if (err == TK_OK) err = map_file(p, opts, diag);
    if (err == TK_OK) err = compute(p, opts, diag);
    if (err != TK_OK) {
        tk_pseudo_labels_close(p);
        return err;
    }
    *out = p;
    return TK_OK;
}

void tk_pseudo_labels_close(tk_pseudo_labels *labels)
{
    if (!labels) return;
    if (labels->base) munmap(labels->base, labels->size);
    tk_free(labels->offsets);
    tk_free(labels);
}

size_t tk_pseudo_labels_views(const tk_pseudo_labels *labels)
{
    return labels->views;
}

static const uint16_t *row_of(const tk_pseudo_labels *labels, size_t view, size_t item)
{
    assert(view < labels->views && item < labels->items);
    return labels->rows + (view * labels->items + item) * labels->row;
}

void tk_pseudo_labels_logits(const tk_pseudo_labels *labels, size_t view, size_t item, size_t head,
                             float *logits)
{
    assert(head < labels->n_heads);
    const uint16_t *row = row_of(labels, view, item) + labels->offsets[head];
    const size_t n = labels->offsets[head + 1] - labels->offsets[head];
    tk_f16_to_f32(n, row, logits);
}

void tk_pseudo_labels_features(const tk_pseudo_labels *labels, size_t view, size_t item,
                               float *features)
{
    tk_f16_to_f32(labels->features, row_of(labels, view, item), features);
}
