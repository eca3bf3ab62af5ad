/* Forward through the training graph. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "net/graph_internal.h"

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

void tk__graph_need_map(tk_graph *g, int m)
{
    if (!g->remade[m] || g->spare_holds == m) return;
    tk__graph_apply(g, g->maker[m]);
    g->spare_holds = m;
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
    after_conv after = {g->ex.kn, c, g->pre[i], g->scale[i], g->shift[i],
                        residual, y, g->sums,   u->relu};
    const bool batch = g->mode == TK_BN_BATCH;
    if (g->remade[u->out]) g->spare_holds = u->out;
    if (!batch) {
        use_running(params, u, c, g->mean[i], g->invstd[i]);
        tk__bn_coefficients(c, gamma, beta, g->mean[i], g->invstd[i], g->scale[i], g->shift[i]);
    }
    tk__conv_run_once(&g->ex,
                      &(tk__conv_job){.geo = geo,
                                      .in = tk__graph_input(g, u->in),
                                      .y = g->pre[i],
                                      .post = batch       ? after_batch
                                              : y != NULL ? after_frozen
                                                          : NULL,
                                      .post_ctx = &after},
                      tk__param_at(params, u->conv), g->packed);
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
    s->g->ex.kn->max_pool(&s->shape, 0, s->shape.oh, &from, s->g->act[s->out] + image * out,
                          s->g->argmax + image * out);
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
        const int stage = graph->side != NULL ? tk__tap_of(l, l->unit[i].out) : -1;
        if (stage >= 0) tk__graph_side_forward(graph, (size_t)stage);
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

const char *tk_graph_nonfinite(const tk_graph *graph, const tk_params *params)
{
    for (size_t i = 0; i < graph->layout.units; i++) {
        const tk__unit *u = &graph->layout.unit[i];
        const size_t n = graph->n * tk__map_floats(&graph->layout.map[u->out]);
        for (size_t k = 0; k < n; k++)
            if (!isfinite(graph->pre[i][k])) return params->table[u->conv].name;
    }
    return NULL;
}
