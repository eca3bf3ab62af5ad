/* See side.h. The convolution goes a panel of columns at a time, so that its output stays in the
 * cache until its mean is taken, however many adapters there are, and panels that nobody asks for
 * are left out. */
#include "net/side.h"

#include <string.h>

#include "engine/mem.h"
#include "net/arch_internal.h"

size_t tk_arch_stages(tk_arch arch)
{
    return tk__arch_describe(arch)->stages;
}

size_t tk_arch_channels(tk_arch arch, size_t stage)
{
    const tk__arch_desc *desc = tk__arch_describe(arch);
    return desc->width[stage] * (desc->bottleneck ? 4 : 1);
}

size_t tk_side_at(tk_arch arch, size_t rank, size_t stage)
{
    size_t at = 0;
    for (size_t s = 0; s < stage; s++)
        at += rank * (tk_arch_channels(arch, s) + 1);
    return at;
}

size_t tk_side_size(tk_arch arch, size_t rank)
{
    return tk_side_at(arch, rank, tk_arch_stages(arch));
}

int tk__tap_of(const tk__layout *layout, int m)
{
    for (size_t s = 0; s < layout->stages; s++)
        if (layout->tap[s] == m) return (int)s;
    return -1;
}

tk__conv tk__side_geo(const tk__layout *layout, size_t stage, size_t rank, size_t n)
{
    const tk__map *m = &layout->map[layout->tap[stage]];
    return (tk__conv){.n = n,
                      .ih = m->h,
                      .iw = m->w,
                      .ic = m->c,
                      .oh = m->h,
                      .ow = m->w,
                      .oc = rank,
                      .ky = 1,
                      .kx = 1,
                      .stride = 1};
}

void tk__side_weights(const tk_side *side, size_t stage, float *w)
{
    const size_t c = tk_arch_channels(side->arch, stage), r = side->rank;
    const float *a = side->data + tk_side_at(side->arch, r, stage);
    for (size_t i = 0; i < r; i++)
        for (size_t j = 0; j < c; j++)
            w[j * r + i] = a[i * c + j];
}

struct tk__side {
    const tk__layout *layout;
    tk__exec ex;
    size_t rank, slice; /* columns at a time */
    float *block;       /* everything below lies in it */
    size_t floats;
    float *packed[TK_MAX_STAGES], *bias[TK_MAX_STAGES];
    float *y;   /* [images of a group][h][w][slice] of the stage at work */
    float *map; /* [images of a group][h][w][c], or NULL */
};

/* Images that pass through the stage's last unit at a time. */
static size_t group_of(const tk__route *route, size_t stage)
{
    const tk__layout *l = route->layout;
    for (size_t s = 0; s < route->segments; s++)
        for (size_t i = route->segment[s].first; i <= route->segment[s].last; i++)
            if (l->unit[i].out == l->tap[stage]) return route->segment[s].images;
    return route->max_batch;
}

/* Places `floats` from `base` on (NULL: only counts). */
static float *place(float *base, size_t *used, size_t floats)
{
    float *at = base != NULL ? base + *used : NULL;
    *used += tk__div_up(floats, 16) * 16;
    return at;
}

/* Places everything from `base` on (NULL: only counts) and returns the floats used. */
static size_t lay_out(tk__side *p, const tk__route *route, bool convert, float *base)
{
    size_t used = 0, y = 0, map = 0, scratch = 0;
    for (size_t s = 0; s < p->layout->stages; s++) {
        const tk__conv geo = tk__side_geo(p->layout, s, p->rank, group_of(route, s));
        const size_t pixels = geo.n * geo.oh * geo.ow;
        p->packed[s] = place(base, &used, tk__conv_pack_size(&geo));
        p->bias[s] = place(base, &used, p->rank);
        y = tk__max_size(y, pixels * tk__min_size(p->slice, p->rank));
        map = tk__max_size(map, pixels * geo.ic);
        scratch = tk__max_size(scratch, tk__conv_scratch(&geo));
    }
    p->y = place(base, &used, y);
    p->map = convert ? place(base, &used, map) : NULL;
    p->ex.scratch_each = tk__div_up(scratch, 16) * 16;
    p->ex.scratch = place(base, &used, p->ex.scratch_each * tk_pool_threads(p->ex.pool));
    return used;
}

static tk_err pack(tk__side *p, const tk_side *weights)
{
    for (size_t s = 0; s < p->layout->stages; s++) {
        const tk__conv geo = tk__side_geo(p->layout, s, p->rank, 1);
        float *w = tk_aligned_calloc(geo.ic * p->rank, sizeof *w);
        if (w == NULL) return TK_NOMEM;
        tk__side_weights(weights, s, w);
        tk__conv_pack(&p->ex, &geo, w, NULL, p->packed[s]);
        tk_free(w);
        memcpy(p->bias[s], weights->data + tk_side_at(weights->arch, p->rank, s) + p->rank * geo.ic,
               p->rank * sizeof(float));
    }
    return TK_OK;
}

tk_err tk__side_create(tk__side **out, const tk_side *weights, const tk__route *route, bool convert,
                       tk_pool *pool)
{
    *out = NULL;
    tk__side *p = tk_calloc(1, sizeof *p);
    if (p == NULL) return TK_NOMEM;
    p->layout = route->layout;
    p->ex = (tk__exec){.kn = tk__kernels_get(), .pool = pool};
    p->rank = weights->rank;
    p->slice = p->ex.kn->nr;
    p->floats = lay_out(p, route, convert, NULL);
    p->block = tk_aligned_calloc(p->floats, sizeof *p->block);
    tk_err err = p->block != NULL ? TK_OK : TK_NOMEM;
    if (err == TK_OK) {
        (void)lay_out(p, route, convert, p->block);
        err = pack(p, weights);
    }
    if (err != TK_OK) {
        tk__side_destroy(p);
        return err;
    }
    *out = p;
    return TK_OK;
}

void tk__side_destroy(tk__side *side)
{
    if (side == NULL) return;
    tk_free(side->block);
    tk_free(side);
}

size_t tk__side_bytes(const tk__side *side)
{
    return sizeof *side + side->floats * sizeof *side->block;
}

float *tk__side_map(const tk__side *side)
{
    return side->map;
}

size_t tk__side_width(const tk__side *side)
{
    return side->layout->stages * side->rank;
}

typedef struct mean_state {
    const tk__side *side;
    size_t pixels, columns;
    float *z; /* of image 0, at the stage's first column of this slice */
} mean_state;

static void mean_task(void *ctx, size_t image, size_t thread)
{
    const mean_state *m = ctx;
    (void)thread;
    m->side->ex.kn->avg_pool(m->pixels, m->columns, m->side->y + image * m->pixels * m->columns,
                             m->z + image * tk__side_width(m->side));
}

static bool any(const bool *rows, size_t first, size_t n)
{
    for (size_t i = first; rows != NULL && i < first + n; i++)
        if (rows[i]) return true;
    return rows == NULL;
}

void tk__side_run(const tk__side *side, size_t stage, size_t n, const float *x, float *z,
                  const bool *rows)
{
    for (size_t j = 0; j < side->rank; j += side->slice) {
        const size_t columns = tk__min_size(side->slice, side->rank - j);
        if (!any(rows, j, columns)) continue;
        const tk__conv geo = tk__side_geo(side->layout, stage, columns, n);
        tk__conv_run(&side->ex, &(tk__conv_job){.geo = geo,
                                                .in = {.x = x},
                                                .packed = side->packed[stage] + j * geo.ic,
                                                .y = side->y,
                                                .relu = true,
                                                .bias = side->bias[stage] + j});
        mean_state m = {side, geo.oh * geo.ow, columns, z + stage * side->rank + j};
        tk_pool_run(side->ex.pool, n, mean_task, &m);
    }
}
