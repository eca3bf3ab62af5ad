/* The inference plan: folded weights packed once, maps in a few slots that take turns, and a run
 * that is one convolution job per unit with bias, residual and ReLU in its epilogue. */
#include "engine/plan.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "engine/mem.h"
#include "net/graph_internal.h"
#include "net/plan_lowp.h"

enum {
    SLOTS = 4, /* maps alive at once within a segment: a block's input, shortcut, branch, next */
    MAX_SEGMENTS = 16,
    GROUP_FLOATS =
        3 << 19, /* what a unit of a segment reads and writes: a part of the last cache */
};

/* Consecutive blocks that a group of images passes through before the next group follows, so that
 * the maps between them stay in the cache. Large maps: few images; small maps, where the weights
 * are what has to be read: many. */
typedef struct segment {
    size_t first, last; /* units */
    size_t images;      /* of a group */
} segment;

struct tk_plan {
    tk__lowp_plan *lowp;  /* not NULL: it does everything, and the rest is empty */
    tk_calibration *seen; /* while tk_plan_calibrate() runs, else NULL */
    tk__layout layout;
    tk__exec ex;
    size_t max_batch;
    size_t segments;
    segment segment[MAX_SEGMENTS];
    float *block; /* everything below lies in it */
    size_t floats;
    float *packed[TK__MAX_UNITS], *bias[TK__MAX_UNITS];
    float *border[2];   /* maps between segments, of the whole batch, in turn */
    float *slot[SLOTS]; /* maps within a segment, of a group */
    int slot_of[TK__MAX_MAPS];
};

/* --- segments --- */

/* The map that later units read once unit i is done, if they read no other; else TK__NO_MAP. */
static int border_after(const tk__layout *l, size_t i)
{
    const tk__unit *u = &l->unit[i];
    if (u->pool_after) return u->out + 1;
    return i == 0 || u->residual != TK__NO_MAP ? u->out : TK__NO_MAP;
}

static size_t group_of(const tk__layout *l, size_t i, size_t max_batch)
{
    const tk__unit *u = &l->unit[i];
    size_t floats = tk__map_floats(&l->map[u->in]) + tk__map_floats(&l->map[u->out]);
    if (u->residual != TK__NO_MAP) floats += tk__map_floats(&l->map[u->residual]);
    const size_t images = GROUP_FLOATS / floats;
    return images < 1 ? 1 : images > max_batch ? max_batch : images;
}

/* Blocks with equal groups make a segment. */
static void plan_segments(tk_plan *p)
{
    const tk__layout *l = &p->layout;
    size_t first = 0, images = p->max_batch;
    for (size_t i = 0; i < l->units; i++) {
        const size_t group = group_of(l, i, p->max_batch);
        if (group < images) images = group;
        if (border_after(l, i) == TK__NO_MAP) continue;
        segment *last = p->segments > 0 ? &p->segment[p->segments - 1] : NULL;
        if (last != NULL && (last->images == images || p->segments == MAX_SEGMENTS))
            last->last = i;
        else
            p->segment[p->segments++] = (segment){first, i, images};
        first = i + 1;
        images = p->max_batch;
    }
}

static int border_of(const tk_plan *p, size_t s)
{
    return border_after(&p->layout, p->segment[s].last);
}

/* --- memory --- */

/* The unit after which map m is no longer read. */
static size_t last_use(const tk__layout *l, int m)
{
    size_t last = 0;
    for (size_t i = 0; i < l->units; i++) {
        const tk__unit *u = &l->unit[i];
        if (u->in == m || u->residual == m) last = i;
    }
    return last;
}

/* Gives every map within segment s the first slot whose map is dead, and raises the floats that
 * each slot needs. */
static void plan_slots(tk_plan *p, size_t s, size_t floats[SLOTS])
{
    const tk__layout *l = &p->layout;
    const segment *seg = &p->segment[s];
    const int border = border_of(p, s);
    size_t busy_until[SLOTS] = {0}; /* unit index + 1 */
    for (size_t i = seg->first; i <= seg->last; i++) {
        const int made = l->unit[i].out, n = l->unit[i].pool_after ? 2 : 1;
        for (int m = made; m < made + n; m++) {
            if (m == border) continue;
            int k = 0;
            while (k < SLOTS && busy_until[k] > i)
                k++;
            assert(k < SLOTS);
            const size_t need = seg->images * tk__map_floats(&l->map[m]);
            if (floats[k] < need) floats[k] = need;
            p->slot_of[m] = k;
            /* a map that only the max pool reads lives until that has run, within this unit */
            busy_until[k] = n == 2 && m == made ? i + 1 : last_use(l, m) + 1;
        }
    }
}

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
    size_t used = 0, scratch = 0, slots[SLOTS] = {0}, border[2] = {0};
    for (size_t i = 0; i < l->units; i++) {
        const tk__conv geo = tk__unit_geo(l, &l->unit[i], p->max_batch);
        p->packed[i] = place(base, &used, tk__conv_pack_size(&geo));
        p->bias[i] = place(base, &used, geo.oc);
        if (scratch < tk__conv_scratch(&geo)) scratch = tk__conv_scratch(&geo);
    }
    for (size_t s = 0; s < p->segments; s++) {
        const size_t need = p->max_batch * tk__map_floats(&l->map[border_of(p, s)]);
        if (border[s % 2] < need) border[s % 2] = need;
        plan_slots(p, s, slots);
    }
    for (int b = 0; b < 2; b++)
        p->border[b] = place(base, &used, border[b]);
    for (int k = 0; k < SLOTS; k++)
        p->slot[k] = place(base, &used, slots[k]);
    p->ex.scratch_each = padded(scratch);
    p->ex.scratch = place(base, &used, p->ex.scratch_each * tk_pool_threads(p->ex.pool));
    return used;
}

/* Batch norm into the convolution: W' = W * s, b' = beta - mean * s, s = gamma / sqrt(var + eps).
 * The first border serves as scratch for s. */
static void fold(tk_plan *p, const tk_params *params, size_t i)
{
    const tk__unit *u = &p->layout.unit[i];
    const tk__conv geo = tk__unit_geo(&p->layout, u, 1);
    const float *gamma = tk__param_at(params, u->gamma), *beta = tk__param_at(params, u->beta);
    const float *mean = tk__param_at(params, u->mean), *var = tk__param_at(params, u->var);
    float *scale = p->border[0];
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

tk_err tk_plan_create(tk_plan **out, const tk_params *params, unsigned px, size_t max_batch,
                      tk_pool *pool, tk_diag *diag)
{
    *out = NULL;
    const tk_err err = check_args(params->arch, px, max_batch, diag);
    if (err != TK_OK) return err;
    tk_plan *p = tk_calloc(1, sizeof *p);
    if (p == NULL) return tk_fail(diag, TK_NOMEM, "no memory for an inference plan");
    p->max_batch = max_batch;
    p->ex = (tk__exec){.kn = tk__kernels_get(), .pool = pool};
    tk__layout_init(&p->layout, params->arch, px, TK__PLAN_IMAGES);
    plan_segments(p);
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
    tk__lowp_destroy(plan->lowp);
    tk_free(plan->block);
    tk_free(plan);
}

size_t tk_plan_bytes(const tk_plan *plan)
{
    if (plan->lowp != NULL) return sizeof *plan + tk__lowp_bytes(plan->lowp);
    return sizeof *plan + plan->floats * sizeof *plan->block;
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

/* Every map but the one that only the max pool reads, which chooses among its values. */
static void see_map(const tk_plan *plan, int map, size_t n, const float *values)
{
    if (plan->seen != NULL)
        tk__calibrate_map(plan->seen, map, n * tk__map_floats(&plan->layout.map[map]), values);
}

/* Where map m of the group that begins with image i0 lies while segment s runs. */
static float *map_at(const tk_plan *p, size_t s, int m, size_t i0)
{
    const size_t offset = i0 * tk__map_floats(&p->layout.map[m]);
    if (m == border_of(p, s)) return p->border[s % 2] + offset;
    if (s > 0 && m == border_of(p, s - 1)) return p->border[(s - 1) % 2] + offset;
    return p->slot[p->slot_of[m]];
}

static void run_unit(const tk_plan *p, size_t s, size_t i, size_t i0, size_t n, const float *x)
{
    const tk__layout *l = &p->layout;
    const tk__unit *u = &l->unit[i];
    float *y = map_at(p, s, u->out, i0);
    tk__conv_run(&p->ex,
                 &(tk__conv_job){
                     .geo = tk__unit_geo(l, u, n),
                     .in = {.x = u->in == TK__INPUT_MAP ? x : map_at(p, s, u->in, i0)},
                     .packed = p->packed[i],
                     .y = y,
                     .relu = u->relu,
                     .bias = p->bias[i],
                     .residual = u->residual == TK__NO_MAP ? NULL : map_at(p, s, u->residual, i0)});
    if (!u->pool_after) {
        see_map(p, u->out, n, y);
        return;
    }
    const tk__map *a = &l->map[u->out], *b = a + 1;
    pool_state pool = {.kn = p->ex.kn,
                       .shape = {a->h, a->w, b->h, b->w, a->c},
                       .strips = 4,
                       .x = y,
                       .y = map_at(p, s, u->out + 1, i0)};
    tk_pool_run(p->ex.pool, n * pool.strips, max_pool_task, &pool);
    see_map(p, u->out + 1, n, pool.y);
}

void tk_plan_run(tk_plan *plan, size_t n, const float *x, float *features)
{
    const tk__layout *l = &plan->layout;
    assert(n >= 1 && n <= plan->max_batch);
    if (plan->lowp != NULL) {
        tk__lowp_run(plan->lowp, n, x, features);
        return;
    }
    see_map(plan, TK__INPUT_MAP, n, x);
    for (size_t s = 0; s < plan->segments; s++) {
        const segment *seg = &plan->segment[s];
        for (size_t i0 = 0; i0 < n; i0 += seg->images) {
            const size_t group = n - i0 < seg->images ? n - i0 : seg->images;
            for (size_t i = seg->first; i <= seg->last; i++)
                run_unit(plan, s, i, i0, group, x + i0 * tk__map_floats(&l->map[TK__INPUT_MAP]));
        }
    }
    if (plan->seen != NULL) return;
    const tk__map *m = &l->map[l->maps - 1];
    pool_state s = {.kn = plan->ex.kn,
                    .shape = {.ih = m->h, .iw = m->w, .c = m->c},
                    .x = plan->border[(plan->segments - 1) % 2],
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
