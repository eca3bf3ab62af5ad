/* The inference plan in fp32: folded weights packed once, and a run that is one convolution job per
 * unit with bias, residual and ReLU in its epilogue. Other precisions: plan_lowp.c. */
#include "engine/plan.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "engine/isa.h"
#include "engine/mem.h"
#include "net/graph_internal.h"
#include "net/plan_lowp.h"
#include "net/route.h"
#include "net/side.h"
#include "net/winograd.h"

struct tk_plan {
    tk_arch arch;
    tk__lowp_plan *lowp;  /* not NULL: it does everything, and the rest is empty */
    tk_calibration *seen; /* while tk_plan_calibrate() runs, else NULL */
    tk__side *side;       /* or NULL */
    tk__layout layout;
    tk__route route;
    tk__exec ex;
    size_t max_batch;
    float *block; /* everything below lies in it */
    size_t floats;
    float *packed[TK__MAX_UNITS], *bias[TK__MAX_UNITS];
    unsigned char *maps; /* as the route says */
};

/* --- memory --- */

static size_t padded(size_t floats)
{
    return (floats + 15) / 16 * 16;
}

/* Places `floats` from `base` on (NULL: only counts). */
static float *place(float *base, size_t *used, size_t floats)
{
    float *at = base != NULL ? base + *used : NULL;
    *used += padded(floats);
    return at;
}

/* Places everything from `base` on (NULL: only counts) and returns the floats used. */
static size_t lay_out(tk_plan *p, float *base)
{
    const tk__layout *l = &p->layout;
    size_t used = 0, scratch = 0;
    for (size_t i = 0; i < l->units; i++) {
        const tk__conv geo = tk__unit_geo(l, &l->unit[i], p->max_batch);
        p->packed[i] = place(base, &used, tk__conv_pack_size(&geo));
        p->bias[i] = place(base, &used, geo.oc);
        if (scratch < tk__conv_scratch(&geo)) scratch = tk__conv_scratch(&geo);
    }
    p->maps = (unsigned char *)place(base, &used, p->route.bytes / sizeof(float));
    p->ex.scratch_each = padded(scratch);
    p->ex.scratch = place(base, &used, p->ex.scratch_each * tk_pool_threads(p->ex.pool));
    return used;
}

static void plan_route(tk_plan *p)
{
    size_t bytes[TK__MAX_MAPS];
    for (size_t m = 0; m < p->layout.maps; m++)
        bytes[m] = tk__map_floats(&p->layout.map[m]) * sizeof(float);
    tk__route_plan(&p->route, &p->layout, p->max_batch, bytes);
}

/* Batch norm into the convolution: W' = W * s, b' = beta - mean * s, s = gamma / sqrt(var + eps).
 * The scratch serves for s. */
static void fold(tk_plan *p, const tk_params *params, size_t i)
{
    const tk__unit *u = &p->layout.unit[i];
    const tk__conv geo = tk__unit_geo(&p->layout, u, 1);
    const float *gamma = tk__param_at(params, u->gamma), *beta = tk__param_at(params, u->beta);
    const float *mean = tk__param_at(params, u->mean), *var = tk__param_at(params, u->var);
    float *scale = p->ex.scratch;
    for (size_t j = 0; j < geo.oc; j++) {
        scale[j] = gamma[j] / sqrtf(var[j] + TK__BN_EPS);
        p->bias[i][j] = beta[j] - mean[j] * scale[j];
    }
    tk__conv_pack(&p->ex, &geo, tk__param_at(params, u->conv), scale, p->packed[i]);
}

static tk_err check_args(tk_arch arch, unsigned px, size_t max_batch, tk_diag *diag)
{
    if (max_batch == 0 || max_batch > UINT16_MAX)
        return tk_fail(diag, TK_BADARG, "batch size %zu is not in 1..%d", max_batch, UINT16_MAX);
    return tk_arch_check_px(arch, px, diag);
}

/* `images` as in tk__layout. */
static tk_err create(tk_plan **out, const tk_params *params, unsigned px, size_t max_batch,
                     size_t images, tk_pool *pool, tk_diag *diag)
{
    *out = NULL;
    const tk_err err = check_args(params->arch, px, max_batch, diag);
    if (err != TK_OK) return err;
    tk_plan *p = tk_calloc(1, sizeof *p);
    if (p == NULL) return tk_fail(diag, TK_NOMEM, "no memory for an inference plan");
    p->arch = params->arch;
    p->max_batch = max_batch;
    p->ex = (tk__exec){.kn = tk__kernels_get(), .pool = pool};
    tk__layout_init(&p->layout, params->arch, px, images);
    plan_route(p);
    p->floats = lay_out(p, NULL);
    p->block = tk_aligned_calloc(p->floats, sizeof *p->block);
    if (p->block == NULL) {
        tk_plan_destroy(p);
        return tk_fail(diag, TK_NOMEM, "no memory for an inference plan of %s, %u px, batch %zu",
                       tk_arch_name(params->arch), px, max_batch);
    }
    (void)lay_out(p, p->block);
    for (size_t i = 0; i < p->layout.units; i++)
        fold(p, params, i);
    *out = p;
    return TK_OK;
}

tk_err tk_plan_create(tk_plan **out, const tk_params *params, unsigned px, size_t max_batch,
                      tk_pool *pool, tk_diag *diag)
{
    return create(out, params, px, max_batch, TK__PLAN_IMAGES, pool, diag);
}

tk_err tk_plan_create_direct(tk_plan **out, const tk_params *params, unsigned px, size_t max_batch,
                             tk_pool *pool, tk_diag *diag)
{
    return create(out, params, px, max_batch, TK__ALL_DIRECT, pool, diag);
}

tk_err tk_plan_create_as(tk_plan **out, const tk_params *params, unsigned px, size_t max_batch,
                         tk_precision precision, const tk_calibration *ranges, tk_pool *pool,
                         tk_diag *diag)
{
    if (precision == TK_PRECISION_FP32)
        return tk_plan_create(out, params, px, max_batch, pool, diag);
    *out = NULL;
    if ((unsigned)precision >= TK_PRECISION_COUNT)
        return tk_fail(diag, TK_BADARG, "unknown precision %u", (unsigned)precision);
    tk_err err = check_args(params->arch, px, max_batch, diag);
    if (err != TK_OK) return err;
    tk_plan *p = tk_calloc(1, sizeof *p);
    if (p == NULL) return tk_fail(diag, TK_NOMEM, "no memory for an inference plan");
    p->arch = params->arch;
    p->max_batch = max_batch;
    err = tk__lowp_create(&p->lowp, params, px, max_batch, precision, ranges, pool, diag);
    if (err != TK_OK) {
        tk_plan_destroy(p);
        return err;
    }
    *out = p;
    return TK_OK;
}

void tk_plan_destroy(tk_plan *plan)
{
    if (plan == NULL) return;
    tk__side_destroy(plan->side);
    tk__lowp_destroy(plan->lowp);
    tk_free(plan->block);
    tk_free(plan);
}

size_t tk_plan_bytes(const tk_plan *plan)
{
    const size_t side = plan->side != NULL ? tk__side_bytes(plan->side) : 0;
    if (plan->lowp != NULL) return sizeof *plan + tk__lowp_bytes(plan->lowp) + side;
    return sizeof *plan + plan->floats * sizeof *plan->block + side;
}

tk_err tk_plan_set_side(tk_plan *plan, const tk_side *side, tk_diag *diag)
{
    const tk__route *route = plan->lowp != NULL ? tk__lowp_route(plan->lowp) : &plan->route;
    tk_pool *pool = plan->lowp != NULL ? tk__lowp_pool(plan->lowp) : plan->ex.pool;
    tk__side_destroy(plan->side);
    plan->side = NULL;
    if (side->rank == 0) return TK_OK;
    if (side->arch != plan->arch)
        return tk_fail(diag, TK_BADARG, "a side of %s does not fit a plan of %s",
                       tk_arch_name(side->arch), tk_arch_name(plan->arch));
    const tk_err err = tk__side_create(&plan->side, side, route, plan->lowp != NULL, pool);
    return err == TK_OK ? err : tk_fail(diag, err, "no memory for a side of rank %zu", side->rank);
}

void tk_plan_describe(const tk_plan *plan, char *text, size_t size)
{
    const tk__layout *l = plan->lowp != NULL ? tk__lowp_layout(plan->lowp) : &plan->layout;
    const tk_precision precision =
        plan->lowp != NULL ? tk__lowp_precision(plan->lowp) : TK_PRECISION_FP32;
    size_t all = plan->lowp != NULL ? tk__lowp_winograd(plan->lowp) : 0, large = 0;
    for (size_t i = 0; plan->lowp == NULL && i < l->units; i++) {
        const tk__conv_way way = tk__unit_geo(l, &l->unit[i], 1).way;
        all += tk__is_winograd(way);
        large += way == TK__WINOGRAD_4;
    }
    (void)snprintf(text, size,
                   "%s, %s: %zu of %zu convolutions by Winograd, %zu of them F(4x4), %zu MiB",
                   tk_precision_name(precision), tk_isa_name(), all, l->units, large,
                   tk_plan_bytes(plan) >> 20);
}

/* --- run --- */

typedef struct pool_state {
    const tk__kernels *kn;
    tk__pool_shape shape;
    size_t strips; /* row ranges per image */
    const float *x;
    float *y;
} pool_state;

static void max_pool_task(void *ctx, size_t task, size_t thread)
{
    const pool_state *s = ctx;
    const tk__pool_shape *p = &s->shape;
    (void)thread;
    const size_t image = task / s->strips, strip = task % s->strips;
    s->kn->max_pool(p, strip * p->oh / s->strips, (strip + 1) * p->oh / s->strips,
                    &(tk__input){.x = s->x + image * p->ih * p->iw * p->c},
                    s->y + image * p->oh * p->ow * p->c, NULL);
}

static void avg_pool_task(void *ctx, size_t image, size_t thread)
{
    const pool_state *s = ctx;
    const size_t rows = s->shape.ih * s->shape.iw, c = s->shape.c;
    (void)thread;
    s->kn->avg_pool(rows, c, s->x + image * rows * c, s->y + image * c);
}

/* The range of `map` from the values of map `seen`. */
static void see_map(const tk_plan *plan, int map, size_t n, int seen, const float *values)
{
    if (plan->seen != NULL)
        tk__calibrate_map(plan->seen, map, n * tk__map_floats(&plan->layout.map[seen]), values);
}

static float *map_at(const tk_plan *p, int m, size_t i0)
{
    return (float *)(void *)(p->maps + tk__route_at(&p->route, m, i0));
}

typedef struct run_state {
    const tk_plan *plan;
    const float *x; /* of the whole batch */
    float *z;       /* the same; NULL: not wanted */
    const bool *rows;
} run_state;

static void run_pool(const tk_plan *p, const tk__unit *u, size_t i0, size_t n)
{
    const tk__map *a = &p->layout.map[u->out], *b = a + 1;
    pool_state s = {.kn = p->ex.kn,
                    .shape = {a->h, a->w, b->h, b->w, a->c},
                    .strips = 4,
                    .x = map_at(p, u->out, i0),
                    .y = map_at(p, u->out + 1, i0)};
    tk_pool_run(p->ex.pool, n * s.strips, max_pool_task, &s);
}

static void run_unit(void *ctx, size_t i, size_t i0, size_t n)
{
    const run_state *s = ctx;
    const tk_plan *p = s->plan;
    const tk__unit *u = &p->layout.unit[i];
    const tk__conv geo = tk__unit_geo(&p->layout, u, n);
    tk__conv_run(
        &p->ex,
        &(tk__conv_job){.geo = geo,
                        .in = {.x = u->in == TK__INPUT_MAP ? s->x + i0 * geo.ih * geo.iw * geo.ic
                                                           : map_at(p, u->in, i0)},
                        .packed = p->packed[i],
                        .y = map_at(p, u->out, i0),
                        .relu = u->relu,
                        .bias = p->bias[i],
                        .residual = u->residual == TK__NO_MAP ? NULL : map_at(p, u->residual, i0)});
    if (u->pool_after) run_pool(p, u, i0, n);
    const int last = u->pool_after ? u->out + 1 : u->out;
    /* the max pool chooses among the values of the map before: one range serves both */
    for (int m = u->out; m <= last; m++)
        see_map(p, m, n, last, map_at(p, last, i0));
    const int stage = s->z != NULL ? tk__tap_of(&p->layout, u->out) : -1;
    if (stage >= 0)
        tk__side_run(p->side, (size_t)stage, n, map_at(p, u->out, i0),
                     s->z + i0 * tk__side_width(p->side), s->rows);
}

void tk_plan_run(tk_plan *plan, size_t n, const float *x, float *features)
{
    tk_plan_run_side(plan, n, x, features, NULL, NULL);
}

void tk_plan_run_side(tk_plan *plan, size_t n, const float *x, float *features, float *z,
                      const bool *rows)
{
    assert(n >= 1 && n <= plan->max_batch && (z == NULL || plan->side != NULL));
    if (plan->lowp != NULL) {
        tk__lowp_run(plan->lowp, n, x, features, plan->side, z, rows);
        return;
    }
    see_map(plan, TK__INPUT_MAP, n, TK__INPUT_MAP, x);
    tk__route_run(&plan->route, n, run_unit, &(run_state){plan, x, z, rows});
    if (plan->seen != NULL) return;
    const int last = (int)plan->layout.maps - 1;
    const tk__map *m = &plan->layout.map[last];
    pool_state s = {.kn = plan->ex.kn,
                    .shape = {.ih = m->h, .iw = m->w, .c = m->c},
                    .x = map_at(plan, last, 0),
                    .y = features};
    tk_pool_run(plan->ex.pool, n, avg_pool_task, &s);
}

tk_err tk_plan_calibrate(tk_plan *plan, size_t n, const float *x, tk_calibration *ranges,
                         tk_diag *diag)
{
    if (plan->lowp != NULL) return tk_fail(diag, TK_BADARG, "only an fp32 plan can calibrate");
    if (n == 0 || n > plan->max_batch)
        return tk_fail(diag, TK_BADARG, "batch of %zu is not in 1..%zu", n, plan->max_batch);
    if (ranges->maps != 0 && ranges->maps != plan->layout.maps)
        return tk_fail(diag, TK_BADARG, "ranges of %u maps, not %zu", ranges->maps,
                       plan->layout.maps);
    ranges->maps = (uint32_t)plan->layout.maps;
    plan->seen = ranges;
    tk_plan_run(plan, n, x, NULL);
    plan->seen = NULL;
    return TK_OK;
}
