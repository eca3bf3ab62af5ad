/* Creation of the training graph: which maps are kept, and where everything lies. */
#include <assert.h>
#include <string.h>

#include "engine/mem.h"
#include "net/graph_internal.h"

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
        most.channels = tk__max_size(most.channels, geo.oc);
        most.sums = tk__max_size(most.sums, (rows + block - 1) / block * 2 * geo.oc);
        most.sums = tk__max_size(most.sums, tk__bn_sums(rows, geo.oc, geo.n));
        most.packed = tk__max_size(most.packed, tk__conv_pack_size(&geo));
        most.packed = tk__max_size(most.packed, tk__conv_dx_pack_size(&geo));
        /* one image's weight gradient, or the chunks' of any batch */
        most.partials = tk__max_size(most.partials, geo.ky * geo.kx * geo.ic * geo.oc);
        most.partials = tk__max_size(most.partials, tk__conv_partials(&g->ex, &geo));
        most.scratch = tk__max_size(most.scratch, tk__conv_scratch(&geo));
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
        floats = tk__max_size(floats, t.stays[s].at + t.stays[s].floats);
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
        if (remade) largest = tk__max_size(largest, tk__map_floats(&l->map[u->out]));
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
    g->packed = g->partials = carve(c, 1, tk__max_size(most.packed, most.partials));
    g->ex.scratch_each = (most.scratch + 15) / 16 * 16;
    g->ex.scratch = carve(c, tk_pool_threads(g->ex.pool), g->ex.scratch_each);
    return !c->overflow;
}

tk_err tk_graph_create(tk_graph **out, tk_arch arch, unsigned px, size_t max_batch, tk_pool *pool,
                       tk_diag *diag)
{
    return tk_graph_create_as(out, arch, px, max_batch, TK_PRECISION_FP32, pool, diag);
}

tk_err tk_graph_create_as(tk_graph **out, tk_arch arch, unsigned px, size_t max_batch,
                          tk_precision precision, tk_pool *pool, tk_diag *diag)
{
    *out = NULL;
    if (precision != TK_PRECISION_FP32 && precision != TK_PRECISION_BF16)
        return tk_fail(diag, TK_BADARG, "a graph trains in fp32 or bf16");
    if (max_batch == 0 || max_batch > UINT16_MAX)
        return tk_fail(diag, TK_BADARG, "batch size %zu is not in 1..%d", max_batch, UINT16_MAX);
    const tk_err err = tk_arch_check_px(arch, px, diag);
    if (err != TK_OK) return err;
    tk_graph *g = tk_calloc(1, sizeof *g);
    if (g == NULL) return tk_fail(diag, TK_NOMEM, "no memory for a training graph");
    g->arch = arch;
    g->max_batch = max_batch;
    g->ex = (tk__exec){.kn = tk__kernels_get(), .mixed = tk__mixed_get(), .pool = pool};
    tk__layout_init(&g->layout, arch, px, max_batch);
    g->layout.bf16 = precision == TK_PRECISION_BF16;
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
    tk__graph_side_destroy(graph->side);
    tk_free(graph->block);
    tk_free(graph);
}

size_t tk_graph_bytes(const tk_graph *graph)
{
    const size_t side = graph->side != NULL ? tk__graph_side_bytes(graph->side) : 0;
    return sizeof *graph + graph->floats * sizeof *graph->block + side;
}
