/* Covariances of the inputs of convolutions. The patches of a chunk of pixels are copied into
 * panels as wide as the matrix product's, so that a panel serves as either of its operands; a task
 * makes one panel's rows of the lower triangle. */
#include "engine/covariance.h"

#include <string.h>

#include "engine/mem.h"
#include "engine/rng.h"
#include "net/graph_internal.h"

enum {
    PIXELS = 64, /* of an image, at most */
    CHUNK = 512, /* rows of patches that are held at a time */
    ROWS = 32,   /* of them, that a task copies */
};

/* ---- the triangles ---- */

static size_t triangle(size_t n)
{
    return n * (n + 1) / 2;
}

static tk_covariance_layer layer_of(const tk_params *params, size_t t, size_t limit)
{
    const tk_param *p = &params->table[t];
    const size_t taps = p->k * p->k, n = taps * p->ic;
    const bool fits = triangle(n) * sizeof(float) <= limit;
    return fits ? (tk_covariance_layer){.param = t, .n = n, .taps = 1}
                : (tk_covariance_layer){.param = t, .n = p->ic, .taps = taps};
}

static size_t convolutions(const tk_params *params)
{
    size_t n = 0;
    for (size_t t = 0; t < params->tensors; t++)
        n += params->table[t].kind == TK_PARAM_CONV;
    return n;
}

tk_err tk_covariance_create(tk_covariance **out, const tk_params *params, size_t limit)
{
    *out = NULL;
    tk_covariance *c = tk_calloc(1, sizeof *c);
    if (!c) return TK_NOMEM;
    c->limit = limit;
    c->layer = tk_calloc(convolutions(params), sizeof *c->layer);
    for (size_t t = 0; c->layer && t < params->tensors; t++) {
        if (params->table[t].kind != TK_PARAM_CONV) continue;
        const tk_covariance_layer layer = layer_of(params, t, limit);
        c->layer[c->layers++] = layer;
        c->floats += triangle(layer.n);
    }
    c->data = c->layer ? tk_aligned_calloc(c->floats, sizeof *c->data) : NULL;
    if (!c->data) {
        tk_covariance_destroy(c);
        return TK_NOMEM;
    }
    float *at = c->data;
    for (size_t l = 0; l < c->layers; at += triangle(c->layer[l].n), l++)
        c->layer[l].c = at;
    *out = c;
    return TK_OK;
}

tk_err tk_covariance_clone(tk_covariance **out, const tk_covariance *from)
{
    *out = NULL;
    tk_covariance *c = tk_calloc(1, sizeof *c);
    if (!c) return TK_NOMEM;
    *c = *from;
    c->layer = tk_calloc(c->layers, sizeof *c->layer);
    c->data = tk_aligned_calloc(c->floats, sizeof *c->data);
    if (!c->layer || !c->data) {
        tk_covariance_destroy(c);
        return TK_NOMEM;
    }
    memcpy(c->data, from->data, c->floats * sizeof *c->data);
    for (size_t l = 0; l < c->layers; l++) {
        c->layer[l] = from->layer[l];
        c->layer[l].c = c->data + (from->layer[l].c - from->data);
    }
    *out = c;
    return TK_OK;
}

void tk_covariance_destroy(tk_covariance *covariance)
{
    if (!covariance) return;
    tk_free(covariance->layer);
    tk_free(covariance->data);
    tk_free(covariance);
}

/* ---- the pass ---- */

typedef struct gather {
    tk_graph *graph;
    tk_covariance *to;
    const tk_params *params;
    uint64_t seed, stream;
    float *panels; /* [panels of the columns][CHUNK][nr], zero beyond the last column */
    float *full;   /* [n][n], its lower triangle */
    /* of the layer at work */
    tk__conv geo;
    tk__input in;
    size_t n, pixels, taken; /* pixels of an image, and how many of them */
    size_t first, rows;      /* of the chunk */
} gather;

/* Row r of the layer's samples as a row of the batch's patches. */
static size_t pixel_of(const gather *g, size_t r)
{
    const size_t image = r / g->taken, i = r % g->taken;
    const uint64_t index = ((uint64_t)g->to->images + image) * PIXELS + i;
    const size_t pixel =
        g->taken == g->pixels ? i : tk_rng_below(g->seed, g->stream, index, (uint32_t)g->pixels);
    return image * g->pixels + pixel;
}

static void copy_task(void *ctx, size_t task, size_t thread)
{
    const gather *g = ctx;
    const tk__kernels *kn = g->graph->ex.kn;
    (void)thread;
    for (size_t r = task * ROWS; r < tk__min_size((task + 1) * ROWS, g->rows); r++) {
        const size_t pixel = pixel_of(g, g->first + r);
        for (size_t j = 0; j < g->n; j += kn->nr)
            kn->im2col(&g->geo, &g->in, pixel, 1, j, tk__min_size(kn->nr, g->n - j),
                       g->panels + j * CHUNK + r * kn->nr, kn->nr);
    }
}

/* Rows i0.. of the triangle; the longest first. */
static void multiply_task(void *ctx, size_t task, size_t thread)
{
    const gather *g = ctx;
    const tk__kernels *kn = g->graph->ex.kn;
    const size_t i0 = (tk__div_up(g->n, kn->nr) - 1 - task) * kn->nr;
    (void)thread;
    for (size_t j = 0; j <= i0; j += kn->nr)
        kn->gemm(&(tk__gemm){.m = tk__min_size(kn->nr, g->n - i0),
                             .n = tk__min_size(kn->nr, g->n - j),
                             .k = g->rows,
                             .a = g->panels + i0 * CHUNK,
                             .rs = 1,
                             .cs = kn->nr,
                             .b = g->panels + j * CHUNK,
                             .ldb = kn->nr,
                             .c = g->full + i0 * g->n + j,
                             .ldc = g->n,
                             .accumulate = g->first > 0});
}

static void add_triangle(const gather *g, float *to)
{
    const float by = 1 / (float)g->taken;
    for (size_t i = 0; i < g->n; to += ++i)
        for (size_t j = 0; j <= i; j++)
            to[j] += by * g->full[i * g->n + j];
}

/* What unit u of the graph is about to read. */
static void read_input(void *ctx, size_t u)
{
    gather *g = ctx;
    const tk__unit *unit = &g->graph->layout.unit[u];
    size_t l = 0;
    while (g->to->layer[l].param != unit->conv)
        l++;
    const tk_covariance_layer *layer = &g->to->layer[l];
    const size_t nr = g->graph->ex.kn->nr;
    g->geo = tk__unit_geo(&g->graph->layout, unit, g->graph->n);
    if (layer->taps > 1) { /* every pixel of the input, as a 1x1 convolution reads it */
        g->geo.oh = g->geo.ih, g->geo.ow = g->geo.iw;
        g->geo.ky = g->geo.kx = g->geo.stride = 1;
        g->geo.pad_y = g->geo.pad_x = 0;
    }
    g->in = tk__graph_input(g->graph, unit->in);
    g->stream = tk_rng_stream(g->params->table[layer->param].name);
    g->n = layer->n;
    g->pixels = g->geo.oh * g->geo.ow;
    g->taken = tk__min_size(g->pixels, PIXELS);
    memset(g->panels, 0, tk__div_up(g->n, nr) * nr * CHUNK * sizeof *g->panels);
    const size_t rows = g->taken * g->graph->n;
    for (g->first = 0; g->first < rows; g->first += CHUNK) {
        g->rows = tk__min_size(CHUNK, rows - g->first);
        tk_pool_run(g->graph->ex.pool, tk__div_up(g->rows, ROWS), copy_task, g);
        tk_pool_run(g->graph->ex.pool, tk__div_up(g->n, nr), multiply_task, g);
    }
    add_triangle(g, layer->c);
}

tk_err tk_covariance_add(tk_covariance *to, tk_graph *graph, tk_params *params, size_t n,
                         const float *x, uint64_t seed)
{
    const float *features;
    size_t widest = 0;
    for (size_t l = 0; l < to->layers; l++)
        widest = tk__max_size(widest, to->layer[l].n);
    const size_t columns = tk__div_up(widest, graph->ex.kn->nr) * graph->ex.kn->nr;
    gather g = {.graph = graph, .to = to, .params = params, .seed = seed};
    g.panels = tk_aligned_calloc(columns * CHUNK, sizeof *g.panels);
    g.full = tk_aligned_calloc(widest * widest, sizeof *g.full);
    const tk_err err = g.panels && g.full ? TK_OK : TK_NOMEM;
    if (err == TK_OK) {
        graph->before_unit = read_input;
        graph->before_ctx = &g;
        tk_graph_forward(graph, params, n, x, TK_BN_FROZEN, &features);
        graph->before_unit = NULL;
        to->images += (double)n;
    }
    tk_free(g.panels);
    tk_free(g.full);
    return err;
}
