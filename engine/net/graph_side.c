/* The side of the training graph. Forward keeps what the ReLUs let through; backward masks the
 * gradient with it,
 *
 *     g_s[p] = (A_s x_s[p] + b_s > 0) dz_s / pixels,
 *     dA_s = sum over pixels of g_s x_s^T,   db_s = sum of g_s,   dx_s += A_s^T g_s */
#include <assert.h>
#include <string.h>

#include "engine/mem.h"
#include "net/graph_internal.h"

struct tk__graph_side {
    tk__exec ex;
    size_t rank;
    float *block; /* everything below lies in it */
    size_t floats;
    float *w[TK_MAX_STAGES]; /* [c][rank] */
    float *packed[TK_MAX_STAGES], *bias[TK_MAX_STAGES];
    float *y[TK_MAX_STAGES]; /* [max_batch][h][w][rank], after ReLU */
    float *z;                /* [max_batch][S][rank] */
    float *g;                /* as the largest y: of the stage at work */
    float *dw;               /* [c][rank], the same */
    float *shared;           /* packed weights of the data gradient, or the weight gradient's
                                partials */
};

static float *place(float *base, size_t *used, size_t floats)
{
    float *at = base != NULL ? base + *used : NULL;
    *used += tk__div_up(floats, 16) * 16;
    return at;
}

/* Places everything from `base` on (NULL: only counts) and returns the floats used. */
static size_t lay_out(tk__graph_side *p, const tk_graph *graph, float *base)
{
    const tk__layout *l = &graph->layout;
    size_t used = 0, g = 0, dw = 0, shared = 0, scratch = 0;
    for (size_t s = 0; s < l->stages; s++) {
        const tk__conv geo = tk__side_geo(l, s, p->rank, graph->max_batch);
        const size_t y = geo.n * geo.oh * geo.ow * p->rank;
        p->w[s] = place(base, &used, geo.ic * p->rank);
        p->packed[s] = place(base, &used, tk__conv_pack_size(&geo));
        p->bias[s] = place(base, &used, p->rank);
        p->y[s] = place(base, &used, y);
        g = tk__max_size(g, y);
        dw = tk__max_size(dw, geo.ic * p->rank);
        shared = tk__max_size(shared, tk__conv_dx_pack_size(&geo));
        shared = tk__max_size(shared, tk__conv_partials(&p->ex, &geo));
        scratch = tk__max_size(scratch, tk__conv_scratch(&geo));
    }
    p->z = place(base, &used, graph->max_batch * l->stages * p->rank);
    p->g = place(base, &used, g);
    p->dw = place(base, &used, dw);
    p->shared = place(base, &used, shared);
    p->ex.scratch_each = tk__div_up(scratch, 16) * 16;
    p->ex.scratch = place(base, &used, p->ex.scratch_each * tk_pool_threads(p->ex.pool));
    return used;
}

void tk__graph_side_destroy(tk__graph_side *side)
{
    if (side == NULL) return;
    tk_free(side->block);
    tk_free(side);
}

size_t tk__graph_side_bytes(const tk__graph_side *side)
{
    return sizeof *side + side->floats * sizeof *side->block;
}

static tk_err make(tk__graph_side **out, const tk_graph *graph, size_t rank)
{
    tk__graph_side *p = tk_calloc(1, sizeof *p);
    if (p == NULL) return TK_NOMEM;
    p->ex = (tk__exec){.kn = graph->ex.kn, .pool = graph->ex.pool};
    p->rank = rank;
    p->floats = lay_out(p, graph, NULL);
    p->block = tk_aligned_calloc(p->floats, sizeof *p->block);
    if (p->block == NULL) {
        tk__graph_side_destroy(p);
        return TK_NOMEM;
    }
    (void)lay_out(p, graph, p->block);
    *out = p;
    return TK_OK;
}

tk_err tk_graph_set_side(tk_graph *graph, const tk_side *side, tk_diag *diag)
{
    const bool fits = graph->side != NULL && graph->side->rank == side->rank;
    if (!fits) {
        tk__graph_side_destroy(graph->side);
        graph->side = NULL;
    }
    if (side->rank == 0) return TK_OK;
    if (side->arch != graph->arch)
        return tk_fail(diag, TK_BADARG, "a side of %s does not fit a graph of %s",
                       tk_arch_name(side->arch), tk_arch_name(graph->arch));
    const tk_err err = fits ? TK_OK : make(&graph->side, graph, side->rank);
    if (err != TK_OK) return tk_fail(diag, err, "no memory for a side of rank %zu", side->rank);
    const tk__graph_side *p = graph->side;
    for (size_t s = 0; s < graph->layout.stages; s++) {
        const tk__conv geo = tk__side_geo(&graph->layout, s, p->rank, 1);
        const float *a = side->data + tk_side_at(side->arch, p->rank, s);
        tk__side_weights(side, s, p->w[s]);
        tk__conv_pack(&p->ex, &geo, p->w[s], NULL, p->packed[s]);
        memcpy(p->bias[s], a + p->rank * geo.ic, p->rank * sizeof *a);
    }
    return TK_OK;
}

const float *tk_graph_side(const tk_graph *graph)
{
    return graph->side != NULL ? graph->side->z : NULL;
}

/* --- forward --- */

typedef struct stage_state {
    const tk__graph_side *side;
    size_t stage, stages, pixels;
    const float *dz; /* [n][S][rank] */
} stage_state;

static void mean_task(void *ctx, size_t image, size_t thread)
{
    const stage_state *s = ctx;
    const tk__graph_side *p = s->side;
    (void)thread;
    p->ex.kn->avg_pool(s->pixels, p->rank, p->y[s->stage] + image * s->pixels * p->rank,
                       p->z + (image * s->stages + s->stage) * p->rank);
}

void tk__graph_side_forward(const tk_graph *graph, size_t stage)
{
    const tk__graph_side *p = graph->side;
    const tk__conv geo = tk__side_geo(&graph->layout, stage, p->rank, graph->n);
    tk__conv_run(&p->ex, &(tk__conv_job){.geo = geo,
                                         .in = {.x = graph->act[graph->layout.tap[stage]]},
                                         .packed = p->packed[stage],
                                         .y = p->y[stage],
                                         .relu = true,
                                         .bias = p->bias[stage]});
    stage_state s = {p, stage, graph->layout.stages, geo.oh * geo.ow, NULL};
    tk_pool_run(p->ex.pool, graph->n, mean_task, &s);
}

/* --- backward --- */

/* A NaN lets through, as everywhere. */
static void mask_task(void *ctx, size_t image, size_t thread)
{
    const stage_state *s = ctx;
    const tk__graph_side *p = s->side;
    const size_t r = p->rank, first = image * s->pixels * r;
    const float *dz = s->dz + (image * s->stages + s->stage) * r;
    const float *y = p->y[s->stage] + first;
    float *g = p->g + first;
    (void)thread;
    for (size_t i = 0; i < s->pixels; i++)
        for (size_t j = 0; j < r; j++)
            g[i * r + j] = y[i * r + j] <= 0.0f ? 0.0f : dz[j] / (float)s->pixels;
}

static tk__conv mask(const tk_graph *graph, size_t stage, const float *dz)
{
    const tk__graph_side *p = graph->side;
    const tk__conv geo = tk__side_geo(&graph->layout, stage, p->rank, graph->n);
    stage_state s = {p, stage, graph->layout.stages, geo.oh * geo.ow, dz};
    tk_pool_run(p->ex.pool, graph->n, mask_task, &s);
    return geo;
}

void tk__graph_side_dx(const tk_graph *graph, size_t stage, const float *dz, float *dx)
{
    const tk__graph_side *p = graph->side;
    const tk__conv geo = mask(graph, stage, dz);
    tk__conv_dx(&p->ex, &geo, p->w[stage], p->g, dx, true, p->shared);
}

void tk_graph_side_backward(tk_graph *graph, const float *dz, float *grads)
{
    const tk__graph_side *p = graph->side;
    const size_t r = p->rank;
    assert(graph->n > 0);
    for (size_t s = 0; s < graph->layout.stages; s++) {
        const int tap = graph->layout.tap[s];
        const tk__conv geo = mask(graph, s, dz);
        float *da = grads + tk_side_at(graph->arch, r, s), *db = da + r * geo.ic;
        tk__graph_need_map(graph, tap);
        tk__conv_dw(&p->ex, &geo, &(tk__input){.x = graph->act[tap]}, p->g, p->dw, p->shared);
        for (size_t i = 0; i < r; i++)
            for (size_t j = 0; j < geo.ic; j++)
                da[i * geo.ic + j] = p->dw[j * r + i];
        memset(db, 0, r * sizeof *db);
        for (size_t i = 0; i < geo.n * geo.oh * geo.ow; i++)
            p->ex.kn->add(r, db, p->g + i * r);
    }
}
