/* See subspace.h. A task projects one panel of columns of one matrix, both products at once. */
#include "engine/subspace.h"

#include <assert.h>
#include <string.h>

#include "engine/mem.h"
#include "kernels/kernels.h"
#include "kernels/sizes.h"
#include "net/eigen.h"

/* The smallest rank that holds the share; values rise. */
static size_t rank_of(size_t n, const float *values, double share)
{
    double all = 0, sum = 0;
    size_t outside = 0;
    for (size_t i = 0; i < n; i++)
        if (values[i] > 0) all += (double)values[i];
    /* in the order of `all`: with share 0 the sums meet exactly */
    for (size_t i = 0; i < n; i++) {
        if (values[i] > 0) sum += (double)values[i];
        if (sum <= (1 - share) * all) outside = i + 1;
    }
    return n - outside;
}

tk_err tk_subspace_init(tk_subspace *out, size_t n, const float *triangle, double share,
                        tk_diag *diag)
{
    *out = (tk_subspace){.n = n};
    float *a = tk_aligned_calloc(n * n, sizeof *a), *values = tk_calloc(n, sizeof *values);
    tk_err err = a && values ? TK_OK : TK_NOMEM;
    for (size_t i = 0; err == TK_OK && i < n; triangle += ++i)
        memcpy(a + i * n, triangle, (i + 1) * sizeof *a);
    if (err == TK_OK) err = tk__eigen(n, a, values);
    if (err == TK_OK) {
        out->rank = rank_of(n, values, share);
        out->complement = out->rank > n - out->rank;
        out->columns = out->complement ? n - out->rank : out->rank;
        out->basis = tk_aligned_calloc(out->columns * n + 1, sizeof *out->basis);
        if (!out->basis) err = TK_NOMEM;
    }
    if (err == TK_OK)
        memcpy(out->basis, a + (out->complement ? 0 : n - out->rank) * n,
               out->columns * n * sizeof *a);
    tk_free(a);
    tk_free(values);
    return err == TK_OK ? err : tk_fail(diag, err, "subspace: %s", tk_err_text(err));
}

void tk_subspace_fini(tk_subspace *subspace)
{
    tk_free(subspace->basis);
    *subspace = (tk_subspace){0};
}

typedef struct state {
    const tk__kernels *kn;
    const tk_projected *list;
    float *scratch;
    size_t scratch_each;
} state;

static size_t scratch_of_one(size_t count, const tk_projected *list)
{
    size_t rows = 0;
    for (size_t i = 0; i < count; i++)
        rows = tk__max_size(rows, list[i].off->n + list[i].off->columns);
    return rows * TK__NR_MAX;
}

size_t tk_subspace_scratch(size_t count, const tk_projected *list, const tk_pool *pool)
{
    return scratch_of_one(count, list) * tk_pool_threads(pool);
}

/* Columns j0.. of one matrix: t = U^T g (or minus that), g <- g + U t (or U t). */
static void project_panel(const state *s, const tk_projected *p, size_t j0, float *scratch)
{
    const size_t n = p->off->n, r = p->off->columns, cols = tk__min_size(s->kn->nr, p->cols - j0);
    float *panel = scratch, *t = scratch + n * cols;
    for (size_t i = 0; i < n; i++)
        memcpy(panel + i * cols, p->g + i * p->cols + j0, cols * sizeof *panel);
    s->kn->gemm(&(tk__gemm){.m = r,
                            .n = cols,
                            .k = n,
                            .a = p->off->basis,
                            .rs = n,
                            .cs = 1,
                            .b = panel,
                            .ldb = cols,
                            .c = t,
                            .ldc = cols});
    if (!p->off->complement) s->kn->scale(r * cols, t, -1);
    s->kn->gemm(&(tk__gemm){.m = n,
                            .n = cols,
                            .k = r,
                            .a = p->off->basis,
                            .rs = 1,
                            .cs = n,
                            .b = t,
                            .ldb = cols,
                            .c = p->g + j0,
                            .ldc = p->cols,
                            .accumulate = !p->off->complement});
}

static size_t panels_of(const state *s, const tk_projected *p)
{
    return tk__div_up(p->cols, s->kn->nr);
}

static void project_task(void *ctx, size_t task, size_t thread)
{
    const state *s = ctx;
    const tk_projected *p = s->list;
    for (; task >= panels_of(s, p); p++)
        task -= panels_of(s, p);
    project_panel(s, p, task * s->kn->nr, s->scratch + thread * s->scratch_each);
}

void tk_subspace_project(size_t count, const tk_projected *list, float *scratch, tk_pool *pool)
{
    state s = {.kn = tk__kernels_get(),
               .list = list,
               .scratch = scratch,
               .scratch_each = scratch_of_one(count, list)};
    size_t tasks = 0;
    for (size_t i = 0; i < count; i++) {
        assert(list[i].cols % TK__LANES == 0);
        tasks += panels_of(&s, &list[i]);
    }
    tk_pool_run(pool, tasks, project_task, &s);
}
