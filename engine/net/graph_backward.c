/* Backward through the training graph, unit by unit in reverse. Where the gradients of maps lie was
 * planned with the graph. */
#include <assert.h>
#include <string.h>

#include "net/graph_internal.h"

typedef struct backward {
    tk_graph *g;
    const tk_params *params;
    float *out;         /* grads, or squares */
    const float *dside; /* or NULL */
    bool squares;
    bool reached[TK__MAX_MAPS]; /* has a gradient */
} backward;

static float *gradient(const backward *b, int map)
{
    return b->g->turns + b->g->grad_at[map];
}

static float *param_out(const backward *b, size_t index)
{
    return b->out + b->params->table[index].offset;
}

/* The ReLU's mask as the map was kept. */
static tk__mask mask_of(const tk_graph *g, size_t i)
{
    const tk__unit *u = &g->layout.unit[i];
    if (!u->relu) return (tk__mask){0};
    if (g->act[u->out] != NULL) return (tk__mask){.act = g->act[u->out]};
    return (tk__mask){.scale = g->scale[i], .shift = g->shift[i]};
}

/* Gradient of the unit's output to that of its convolution's output, `du`. */
static void backward_norm(backward *b, size_t i, float *du)
{
    const tk_graph *g = b->g;
    const tk__unit *u = &g->layout.unit[i];
    const tk__map *out = &g->layout.map[u->out];
    float *dy = gradient(b, u->out);
    tk__bn_backward_run(&g->ex, &(tk__bn_backward){.rows = g->n * out->h * out->w,
                                                   .c = out->c,
                                                   .dy = dy,
                                                   .mask = mask_of(g, i),
                                                   .u = g->pre[i],
                                                   .mean = g->mean[i],
                                                   .invstd = g->invstd[i],
                                                   .gamma = tk__param_at(b->params, u->gamma),
                                                   .g_out = du != dy ? dy : NULL,
                                                   .du = du,
                                                   .dgamma = param_out(b, u->gamma),
                                                   .dbeta = param_out(b, u->beta),
                                                   .batch = g->mode == TK_BN_BATCH,
                                                   .sample_rows = b->squares ? out->h * out->w : 0,
                                                   .sums = g->sums,
                                                   .coef = g->coef});
}

static void backward_conv(backward *b, size_t i, const float *du)
{
    const tk_graph *g = b->g;
    const tk__unit *u = &g->layout.unit[i];
    const tk__conv geo = tk__unit_geo(&g->layout, u, g->n);
    const tk__input in = tk__graph_input(g, u->in);
    if (b->squares)
        tk__conv_dw_squares(&g->ex, &geo, &in, du, g->partials, param_out(b, u->conv));
    else
        tk__conv_dw(&g->ex, &geo, &in, du, param_out(b, u->conv), g->partials);
    if (u->in == TK__INPUT_MAP) return;
    tk__conv_dx(&g->ex, &geo, tk__param_at(b->params, u->conv), du, gradient(b, u->in),
                b->reached[u->in], g->packed);
    b->reached[u->in] = true;
}

static void backward_unit(backward *b, size_t i)
{
    const tk__unit *u = &b->g->layout.unit[i];
    const int stage = b->dside != NULL ? tk__tap_of(&b->g->layout, u->out) : -1;
    if (stage >= 0) tk__graph_side_dx(b->g, (size_t)stage, b->dside, gradient(b, u->out));
    tk__graph_need_map(b->g, u->in);
    tk__graph_need_map(b->g, u->out);
    float *du = b->g->turns + b->g->branch_at[i];
    backward_norm(b, i, du);
    if (u->residual != TK__NO_MAP) b->reached[u->residual] = true;
    backward_conv(b, i, du);
}

typedef struct pool_state {
    const backward *b;
    tk__pool_shape shape;
    const float *dy;
    float *dx;
} pool_state;

static void max_pool_task(void *ctx, size_t image, size_t thread)
{
    const pool_state *s = ctx;
    const tk__pool_shape *p = &s->shape;
    (void)thread;
    const size_t in = p->ih * p->iw * p->c, out = p->oh * p->ow * p->c;
    s->b->g->ex.kn->max_pool_dx(p, s->dy + image * out, s->b->g->argmax + image * out,
                                s->dx + image * in);
}

static void backward_max_pool(backward *b, int in)
{
    b->g->spare_holds = TK__NO_MAP; /* the stem's gradient takes its place */
    const tk__map *x = &b->g->layout.map[in], *y = x + 1;
    pool_state s = {.b = b,
                    .shape = {x->h, x->w, y->h, y->w, x->c},
                    .dy = gradient(b, in + 1),
                    .dx = gradient(b, in)};
    tk_pool_run(b->g->ex.pool, b->g->n, max_pool_task, &s);
}

static void avg_pool_task(void *ctx, size_t image, size_t thread)
{
    const pool_state *s = ctx;
    const size_t rows = s->shape.ih * s->shape.iw, c = s->shape.c;
    (void)thread;
    s->b->g->ex.kn->avg_pool_dx(rows, c, s->dy + image * c, s->dx + image * rows * c);
}

static void backward_avg_pool(backward *b, const float *dfeatures)
{
    const int last = (int)b->g->layout.maps - 1;
    const tk__map *m = &b->g->layout.map[last];
    pool_state s = {.b = b,
                    .shape = {.ih = m->h, .iw = m->w, .c = m->c},
                    .dy = dfeatures,
                    .dx = gradient(b, last)};
    tk_pool_run(b->g->ex.pool, b->g->n, avg_pool_task, &s);
}

static void run(backward *b, const float *dfeatures)
{
    assert(b->g->n > 0 && b->params->arch == b->g->arch);
    assert(b->dside == NULL || b->g->side != NULL);
    backward_avg_pool(b, dfeatures);
    for (size_t i = b->g->layout.units; i-- > 0;) {
        const tk__unit *u = &b->g->layout.unit[i];
        if (u->pool_after) backward_max_pool(b, u->out);
        backward_unit(b, i);
    }
}

void tk_graph_backward(tk_graph *graph, const tk_params *params, const float *dfeatures,
                       float *grads)
{
    tk_graph_backward_through(graph, params, dfeatures, NULL, grads);
}

void tk_graph_backward_through(tk_graph *graph, const tk_params *params, const float *dfeatures,
                               const float *dside, float *grads)
{
    backward b = {.g = graph, .params = params, .out = grads, .dside = dside};
    run(&b, dfeatures);
    for (size_t t = 0; t < params->tensors; t++) {
        const tk_param *p = &params->table[t];
        const size_t end = p->offset + p->count;
        if (end < params->trained)
            memset(grads + end, 0, (size_t)(-(ptrdiff_t)end & 15) * sizeof *grads);
    }
}

void tk_graph_backward_squares(tk_graph *graph, const tk_params *params, const float *dfeatures,
                               const float *dside, float *squares)
{
    assert(graph->mode == TK_BN_FROZEN);
    backward b = {.g = graph, .params = params, .out = squares, .dside = dside, .squares = true};
    run(&b, dfeatures);
}
