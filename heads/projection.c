/* See projection.h. */
#include "heads/projection.h"

#include <math.h>
#include <string.h>

#include "engine/mem.h"
#include "engine/subspace.h"

/* ---- what is kept of a task ---- */

static tk_err check_finite(const tk_covariance *c, const tk_params *params, tk_diag *diag)
{
    for (size_t l = 0; l < c->layers; l++)
        for (size_t i = 0; i < c->layer[l].n * (c->layer[l].n + 1) / 2; i++)
            if (!isfinite(c->layer[l].c[i]))
                return tk_fail(diag, TK_DIVERGED, "the input of %s is not finite",
                               params->table[c->layer[l].param].name);
    return TK_OK;
}

tk_err tk_inputs_add(tk_covariance *to, tk_graph *graph, tk_params *params,
                     const tk_preproc *preproc, const tk_inputs_opts *opts, tk_pool *pool,
                     tk_diag *diag)
{
    float *x = tk_aligned_calloc(opts->max_batch * preproc->crop * preproc->crop * 3, sizeof *x);
    tk_err err = x ? TK_OK : TK_NOMEM;
    for (size_t first = 0; first < opts->n && err == TK_OK; first += opts->max_batch) {
        const size_t left = opts->n - first, n = left < opts->max_batch ? left : opts->max_batch;
        const tk_cut cut = {.images = opts->images + first};
        tk_canvases_render(opts->canvases, &cut, n, x, pool);
        err = tk_covariance_add(to, graph, params, n, x, opts->seed);
        tk_watch_progress(opts->watch, first + n, opts->n);
        if (err == TK_OK && tk_watch_cancelled(opts->watch)) err = TK_CANCELLED;
    }
    tk_free(x);
    if (err == TK_NOMEM) tk_fail(diag, err, "covariances: out of memory");
    return err == TK_OK ? check_finite(to, params, diag) : err;
}

/* ---- what a later job makes of it ---- */

struct tk_projection {
    tk_pool *pool;
    size_t layers;
    tk_subspace *off; /* [layers] */
    size_t count;
    tk_projected *list; /* [count]; g is set by every call */
    size_t *offset;     /* [count], of g in the trunk */
    float *scratch;
    double freedom;
};

/* The matrices of layer l: its weights, or each tap's slice of them. */
static void list_layer(tk_projection *p, size_t l, const tk_covariance_layer *layer,
                       const tk_param *param)
{
    for (size_t t = 0; t < layer->taps; t++, p->count++) {
        p->list[p->count] = (tk_projected){.off = &p->off[l], .cols = param->oc};
        p->offset[p->count] = param->offset + t * layer->n * param->oc;
    }
}

static tk_err find_subspaces(tk_projection *p, const tk_covariance *inputs, const tk_params *params,
                             double share, const tk_watch *watch, tk_diag *diag)
{
    double free = 0, all = 0;
    for (size_t l = 0; l < inputs->layers; l++) {
        const tk_covariance_layer *layer = &inputs->layer[l];
        if (tk_watch_cancelled(watch)) return TK_CANCELLED;
        const tk_err err = tk_subspace_init(&p->off[l], layer->n, layer->c, share, diag);
        if (err != TK_OK) return err;
        const double outputs = (double)(layer->taps * params->table[layer->param].oc);
        all += outputs * (double)layer->n;
        free += outputs * (double)(layer->n - p->off[l].rank);
        list_layer(p, l, layer, &params->table[layer->param]);
        tk_watch_progress(watch, l + 1, inputs->layers);
    }
    p->freedom = free / all;
    return TK_OK;
}

static size_t matrices(const tk_covariance *inputs)
{
    size_t n = 0;
    for (size_t l = 0; l < inputs->layers; l++)
        n += inputs->layer[l].taps;
    return n;
}

tk_err tk_projection_create(tk_projection **out, const tk_covariance *inputs,
                            const tk_params *params, double share, tk_pool *pool,
                            const tk_watch *watch, tk_diag *diag)
{
    *out = NULL;
    tk_projection *p = tk_calloc(1, sizeof *p);
    if (!p) return tk_fail(diag, TK_NOMEM, "projection: out of memory");
    p->pool = pool;
    p->layers = inputs->layers;
    p->off = tk_calloc(p->layers, sizeof *p->off);
    p->list = tk_calloc(matrices(inputs), sizeof *p->list);
    p->offset = tk_calloc(matrices(inputs), sizeof *p->offset);
    tk_err err = p->off && p->list && p->offset
                     ? TK_OK
                     : tk_fail(diag, TK_NOMEM, "projection: out of memory");
    if (err == TK_OK) err = find_subspaces(p, inputs, params, share, watch, diag);
    if (err == TK_OK) {
        p->scratch =
            tk_aligned_calloc(tk_subspace_scratch(p->count, p->list, pool), sizeof *p->scratch);
        if (!p->scratch) err = tk_fail(diag, TK_NOMEM, "projection: out of memory");
    }
    if (err != TK_OK) {
        tk_projection_destroy(p);
        return err;
    }
    *out = p;
    return TK_OK;
}

void tk_projection_destroy(tk_projection *projection)
{
    if (!projection) return;
    for (size_t l = 0; projection->off && l < projection->layers; l++)
        tk_subspace_fini(&projection->off[l]);
    tk_free(projection->off);
    tk_free(projection->list);
    tk_free(projection->offset);
    tk_free(projection->scratch);
    tk_free(projection);
}

double tk_projection_freedom(const tk_projection *projection)
{
    return projection->freedom;
}

void tk_projection_apply(tk_projection *projection, const tk_params *params, float *change)
{
    tk_projection *p = projection;
    for (size_t i = 0; i < p->count; i++)
        p->list[i].g = change + p->offset[i];
    tk_subspace_project(p->count, p->list, p->scratch, p->pool);
    for (size_t t = 0; t < params->tensors && params->table[t].offset < params->trained; t++)
        if (params->table[t].kind != TK_PARAM_CONV)
            memset(change + params->table[t].offset, 0, params->table[t].count * sizeof *change);
}
