/* The training graph: creation and forward. Backward is in graph_backward.c. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "engine/mem.h"
#include "net/graph_internal.h"

tk__conv tk__unit_geo(const tk__layout *l, const tk__unit *u, size_t n)
{
    const tk__map *in = &l->map[u->in], *out = &l->map[u->out];
    tk__conv geo = {.n = n,
                      .ih = in->h,
                      .iw = in->w,
                      .ic = in->c,
                      .oh = out->h,
                      .ow = out->w,
                      .oc = out->c,
                      .ky = u->k,
                      .kx = u->k,
                      .stride = u->stride,
                      .pad_y = (ptrdiff_t)u->pad,
                      .pad_x = (ptrdiff_t)u->pad};
    geo.winograd = tk__conv_choose(&geo, l->images);
    return geo;
}

/* --- creation --- */

/* Hands out pieces of the block; a first walk with base NULL only counts. */
typedef struct carver {
    float *base;
    size_t used;
    bool overflow;
} carver;

static float *carve(carver *c, size_t a, size_t b)
{
    size_t n;
    if (!tk_mul_size(a, b, &n) || n > SIZE_MAX / 16 - c->used) {
        c->overflow = true;
        return NULL;
    }
    float *p = c->base != NULL ? c->base + c->used : NULL;
    c->used += (n + 15) / 16 * 16;
    return p;
}

static size_t max_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* What the units need at most, to size what they share. */
typedef struct needs {
    size_t channels, sums, packed, partials, scratch;
} needs;

static needs needs_of(const tk_graph *g)
{
    needs most = {0};
    for (size_t i = 0; i < g->layout.units; i++) {
        const tk__unit *u = &g->layout.unit[i];
        const tk__conv geo = tk__unit_geo(&g->layout, u, g->max_batch);
        const size_t rows = geo.n * geo.oh * geo.ow;
        const size_t block = tk__conv_block_rows(&geo);
        most.channels = max_size(most.channels, geo.oc);
        most.sums = max_size(most.sums, (rows + block - 1) / block * 2 * geo.oc);
        most.sums = max_size(most.sums, tk__bn_sums(rows, geo.oc, geo.n));
        most.packed = max_size(most.packed, tk__conv_pack_size(&geo));
        most.packed = max_size(most.packed, tk__conv_dx_pack_size(&geo));
        /* one image's weight gradient, or the chunks' of any batch */
        most.partials = max_size(most.partials, geo.ky * geo.kx * geo.ic * geo.oc);
        most.partials = max_size(most.partials, tk__conv_partials(&g->ex, &geo));
        most.scratch = max_size(most.scratch, tk__conv_scratch(&geo));
    }
    return most;
}

/* Is map m, which unit u makes, read by convolutions or the max pool only? */
static bool read_as_input(const tk__layout *l, const tk__unit *u)
{
    if (!u->relu || u->residual != TK__NO_MAP || u->out == (int)l->maps - 1) return false;
    for (size_t i = 0; i < l->units; i++)
        if (l->unit[i].residual == u->out) return false;
    return true;
}

/* Gradients of maps, and the spare map, take turns in one piece of memory. The gradient of a unit's
 * output, once masked by its ReLU, *is* the gradient that its residual map gets from there; the
 * convolutions that read the map add to it. A stay is the time that one of them needs its place, in
 * steps of a walk that goes as backward does. */
typedef struct stay {
    size_t floats, from, to, at;
} stay;

typedef struct turns {
    tk_graph *g;
    stay stays[TK__MAX_MAPS + TK__MAX_UNITS + 1];
    size_t count, step;
    size_t of_map[TK__MAX_MAPS], of_branch[TK__MAX_UNITS], spare;
} turns;

static size_t begin_stay(turns *t, size_t floats_of_image)
{
    t->stays[t->count] = (stay){.floats = t->g->max_batch * floats_of_image, .from = t->step};
    return t->count++;
}

static size_t begin_map(turns *t, int map)
{
    return begin_stay(t, tk__map_floats(&t->g->layout.map[map]));
}

static void end_stay(turns *t, size_t s)
{
    t->stays[s].to = t->step;
}

static void find_stays(turns *t, size_t spare_floats)
{
    const tk__layout *l = &t->g->layout;
    bool reached[TK__MAX_MAPS] = {0};
    t->spare = begin_stay(t, spare_floats);
    t->of_map[l->maps - 1] = begin_map(t, (int)l->maps - 1);
    for (size_t i = l->units; i-- > 0; t->step += 2) {
        const tk__unit *u = &l->unit[i];
        if (u->pool_after) { /* all that needed the spare map is done */
            end_stay(t, t->spare);
            t->step++;
            t->of_map[u->out] = begin_map(t, u->out);
            end_stay(t, t->of_map[u->out + 1]);
            t->step++;
        }
        const bool joins = u->residual != TK__NO_MAP;
        t->of_branch[i] = joins ? begin_map(t, u->out) : t->of_map[u->out];
        if (joins) {
            t->of_map[u->residual] = t->of_map[u->out];
            reached[u->residual] = true;
        }
        if (u->in != TK__INPUT_MAP && !reached[u->in]) {
            t->of_map[u->in] = begin_map(t, u->in);
            reached[u->in] = true;
        }
        end_stay(t, t->of_branch[i]);
    }
    if (!l->unit[0].pool_after) end_stay(t, t->spare);
}

/* The lowest place for stay s that no placed one of its time overlaps. */
static void place_stay(turns *t, size_t s, const bool *placed)
{
    stay *me = &t->stays[s];
    for (bool moved = true; moved;) {
        moved = false;
        for (size_t i = 0; i < t->count; i++) {
            const stay *o = &t->stays[i];
            if (!placed[i] || o->to < me->from || o->from > me->to) continue;
            if (o->at + o->floats <= me->at || me->at + me->floats <= o->at) continue;
            me->at = (o->at + o->floats + 15) / 16 * 16;
            moved = true;
        }
    }
}

/* Places the largest first; returns the floats that all need. */
static size_t plan_turns(tk_graph *g, size_t spare_floats)
{
    turns t = {.g = g};
    bool placed[sizeof t.stays / sizeof *t.stays] = {0};
    size_t floats = 0;
    find_stays(&t, spare_floats);
    for (size_t n = 0; n < t.count; n++) {
        size_t s = t.count;
        for (size_t i = 0; i < t.count; i++)
            if (!placed[i] && (s == t.count || t.stays[i].floats > t.stays[s].floats)) s = i;
        place_stay(&t, s, placed);
        placed[s] = true;
        floats = max_size(floats, t.stays[s].at + t.stays[s].floats);
    }
    for (size_t m = 0; m < g->layout.maps; m++)
        g->grad_at[m] = t.stays[t.of_map[m]].at;
    for (size_t i = 0; i < g->layout.units; i++)
        g->branch_at[i] = t.stays[t.of_branch[i]].at;
    g->spare_at = t.stays[t.spare].at;
    return floats;
}

/* Which maps are not kept, and the floats of the largest that is made anew. */
static size_t plan_maps(tk_graph *g)
{
    const tk__layout *l = &g->layout;
    size_t largest = 0;
    bool remade = false; /* the block before */
    for (size_t i = 0; i < l->units; i++) {
        const tk__unit *u = &l->unit[i];
        g->maker[u->out] = i;
        g->lazy[u->out] = read_as_input(l, u);
        if (u->residual == TK__NO_MAP || u->out == (int)l->maps - 1) continue;
        g->remade[u->out] = remade = !remade;
        if (remade) largest = max_size(largest, tk__map_floats(&l->map[u->out]));
    }
    return largest;
}

static void carve_maps(tk_graph *g, carver *c)
{
    const tk__layout *l = &g->layout;
    g->turns = carve(c, 1, plan_turns(g, plan_maps(g)));
    for (size_t m = 0; m < l->maps; m++)
        if (g->remade[m])
            g->act[m] = g->turns + g->spare_at;
        else if (!g->lazy[m])
            g->act[m] = carve(c, g->max_batch, tk__map_floats(&l->map[m]));
}

static bool lay_out(tk_graph *g, carver *c)
{
    const tk__layout *l = &g->layout;
    const needs most = needs_of(g);
    carve_maps(g, c);
    for (size_t i = 0; i < l->units; i++) {
        const tk__map *out = &l->map[l->unit[i].out];
        g->pre[i] = carve(c, g->max_batch, tk__map_floats(out));
        g->mean[i] = carve(c, 1, out->c);
        g->invstd[i] = carve(c, 1, out->c);
        g->scale[i] = carve(c, 1, out->c);
        g->shift[i] = carve(c, 1, out->c);
        if (l->unit[i].pool_after)
            g->argmax = (uint8_t *)carve(c, g->max_batch, (tk__map_floats(out + 1) + 3) / 4);
    }
    g->features = carve(c, g->max_batch, tk_arch_features(g->arch));
    g->coef = carve(c, 3, most.channels);
    g->sums = carve(c, 1, most.sums);
    g->packed = g->partials = carve(c, 1, max_size(most.packed, most.partials));
    g->ex.scratch_each = (most.scratch + 15) / 16 * 16;
    g->ex.scratch = carve(c, tk_pool_threads(g->ex.pool), g->ex.scratch_each);
    return !c->overflow;
}

tk_err tk_graph_create(tk_graph **out, tk_arch arch, unsigned px, size_t max_batch, tk_pool *pool,
                       tk_diag *diag)
{
    *out = NULL;
    if (max_batch == 0 || max_batch > UINT16_MAX)
        return tk_fail(diag, TK_BADARG, "batch size %zu is not in 1..%d", max_batch, UINT16_MAX);
    const tk_err err = tk_arch_check_px(arch, px, diag);
    if (err != TK_OK) return err;
    tk_graph *g = tk_calloc(1, sizeof *g);
    if (g == NULL) return tk_fail(diag, TK_NOMEM, "no memory for a training graph");
    g->arch = arch;
    g->max_batch = max_batch;
    g->ex = (tk__exec){.kn = tk__kernels_get(), .pool = pool};
    tk__layout_init(&g->layout, arch, px, max_batch);
    carver count = {0};
    if (lay_out(g, &count)) g->block = tk_aligned_calloc(count.used, sizeof *g->block);
    if (g->block == NULL) {
        tk_graph_destroy(g);
        return tk_fail(diag, TK_NOMEM, "no memory for a training graph of %s, %u px, batch %zu",
                       tk_arch_name(arch), px, max_batch);
    }
    g->floats = count.used;
    carver fill = {.base = g->block};
    (void)lay_out(g, &fill);
    *out = g;
    return TK_OK;
}

void tk_graph_destroy(tk_graph *graph)
{
    if (graph == NULL) return;
    tk_free(graph->block);
    tk_free(graph);
}

size_t tk_graph_bytes(const tk_graph *graph)
{
    return sizeof *graph + graph->floats * sizeof *graph->block;
}

/* --- forward --- */

tk__input tk__graph_input(const tk_graph *g, int m)
{
    if (g->act[m] != NULL) return (tk__input){.x = g->act[m]};
    const size_t i = g->maker[m];
    return (tk__input){g->pre[i], g->scale[i], g->shift[i]};
}

void tk__graph_apply(const tk_graph *g, size_t i)
{
    const tk__unit *u = &g->layout.unit[i];
    const tk__map *out = &g->layout.map[u->out];
    tk__bn_apply(&g->ex, g->n * out->h * out->w, out->c, g->pre[i], g->scale[i], g->shift[i],
                 u->residual == TK__NO_MAP ? NULL : g->act[u->residual], u->relu, g->act[u->out]);
}

/* What follows a block of a unit's convolution while it is in the cache. */
typedef struct after_conv {
    const tk__kernels *kn;
    size_t c;
    const float *u, *scale, *shift, *residual;
    float *y, *pairs;
    bool relu;
} after_conv;

static void after_frozen(void *ctx, size_t block, size_t m0, size_t m1)
{
    const after_conv *a = ctx;
    (void)block;
    const size_t at = m0 * a->c;
    a->kn->bn_apply(m1 - m0, a->c, a->u + at, a->scale, a->shift,
                    a->residual != NULL ? a->residual + at : NULL, a->relu, a->y + at);
}

static void after_batch(void *ctx, size_t block, size_t m0, size_t m1)
{
    const after_conv *a = ctx;
    float *mean = a->pairs + 2 * block * a->c;
    a->kn->moments(m1 - m0, a->c, a->u + m0 * a->c, mean, mean + a->c);
}

static void use_running(const tk_params *params, const tk__unit *u, size_t c, float *mean,
                        float *invstd)
{
    const float *var = tk__param_at(params, u->var);
    memcpy(mean, tk__param_at(params, u->mean), c * sizeof *mean);
    for (size_t j = 0; j < c; j++)
        invstd[j] = 1.0f / sqrtf(var[j] + TK__BN_EPS);
}

static void merge_statistics(tk_graph *g, tk_params *params, size_t i, const tk__conv *geo)
{
    const tk__unit *u = &g->layout.unit[i];
    const size_t rows = geo->n * geo->oh * geo->ow, block = tk__conv_block_rows(geo);
    tk__bn_merge((rows + block - 1) / block, block, rows, geo->oc, g->sums, g->mean[i],
                 g->invstd[i], params->data + params->table[u->mean].offset,
                 params->data + params->table[u->var].offset);
}

static void forward_unit(tk_graph *g, tk_params *params, size_t i)
{
    const tk__unit *u = &g->layout.unit[i];
    const tk__conv geo = tk__unit_geo(&g->layout, u, g->n);
    const size_t c = geo.oc;
    const float *gamma = tk__param_at(params, u->gamma), *beta = tk__param_at(params, u->beta);
    const float *residual = u->residual == TK__NO_MAP ? NULL : g->act[u->residual];
    float *y = g->act[u->out];
    after_conv after = {
        g->ex.kn, c, g->pre[i], g->scale[i], g->shift[i], residual, y, g->sums, u->relu};
    const bool batch = g->mode == TK_BN_BATCH;
    if (g->remade[u->out]) g->spare_holds = u->out;
    if (!batch) {
        use_running(params, u, c, g->mean[i], g->invstd[i]);
        tk__bn_coefficients(c, gamma, beta, g->mean[i], g->invstd[i], g->scale[i], g->shift[i]);
    }
    tk__conv_pack(&g->ex, &geo, tk__param_at(params, u->conv), NULL, g->packed);
    tk__conv_run(&g->ex, &(tk__conv_job){.geo = geo,
                                         .in = tk__graph_input(g, u->in),
                                         .packed = g->packed,
                                         .y = g->pre[i],
                                         .post = batch       ? after_batch
                                                 : y != NULL ? after_frozen
                                                             : NULL,
                                         .post_ctx = &after});
    if (!batch) return;
    merge_statistics(g, params, i, &geo);
    tk__bn_coefficients(c, gamma, beta, g->mean[i], g->invstd[i], g->scale[i], g->shift[i]);
    if (y != NULL) tk__graph_apply(g, i);
}

typedef struct pool_state {
    tk_graph *g;
    int in, out;
    tk__pool_shape shape;
} pool_state;

static void max_pool_task(void *ctx, size_t image, size_t thread)
{
    const pool_state *s = ctx;
    (void)thread;
    const size_t in = tk__map_floats(&s->g->layout.map[s->in]);
    const size_t out = tk__map_floats(&s->g->layout.map[s->out]);
    tk__input from = tk__graph_input(s->g, s->in);
    from.x += image * in;
    s->g->ex.kn->max_pool(&s->shape, 0, s->shape.oh, &from, s->g->act[s->out] + image * out, s->g->argmax + image * out);
}

static void avg_pool_task(void *ctx, size_t image, size_t thread)
{
    const pool_state *s = ctx;
    (void)thread;
    const tk__map *in = &s->g->layout.map[s->in];
    s->g->ex.kn->avg_pool(in->h * in->w, in->c, s->g->act[s->in] + image * tk__map_floats(in),
                          s->g->features + image * in->c);
}

void tk_graph_forward(tk_graph *graph, tk_params *params, size_t n, const float *x, tk_bn_mode mode,
                      const float **features)
{
    const tk__layout *l = &graph->layout;
    assert(n >= 1 && n <= graph->max_batch && params->arch == graph->arch);
    graph->n = n;
    graph->mode = mode;
    memcpy(graph->act[TK__INPUT_MAP], x, n * tk__map_floats(&l->map[0]) * sizeof *x);
    for (size_t i = 0; i < l->units; i++) {
        forward_unit(graph, params, i);
        if (!l->unit[i].pool_after) continue;
        const int in = l->unit[i].out;
        const tk__map *a = &l->map[in], *b = &l->map[in + 1];
        pool_state s = {
            .g = graph, .in = in, .out = in + 1, .shape = {a->h, a->w, b->h, b->w, a->c}};
        tk_pool_run(graph->ex.pool, n, max_pool_task, &s);
    }
    pool_state s = {.g = graph, .in = (int)l->maps - 1};
    tk_pool_run(graph->ex.pool, n, avg_pool_task, &s);
    *features = graph->features;
}
