/* The Fisher diagonal (Kirkpatrick et al. 2016, 1612.00796; which labels, and why squares of
 * *per-sample* gradients: Kunstner et al. 2019, 1905.12558; van de Ven 2025, 2502.11756):
 *
 *     F_j = 1/N sum_x E_{y ~ p(y|x)} [ (d log p(y|x) / d theta_j)^2 ]
 *
 * With z = W f + b and p = softmax(z): d(-log p_y)/dz = p - e_y, and d/df = W^T (p - e_y). The
 * engine turns each sample's df into its own squared gradient of the trunk; what an adapter reads
 * at the taps comes the same way. For the exact expectation, one pass per class y with df scaled by
 * sqrt(p_y), since squares are summed.
 *
 * The raw diagonal's size depends on how sure the head is; divided by its mean, lambda means the
 * same for every head. */
#include "heads/fisher.h"

#include <math.h>
#include <string.h>

#include "engine/linear.h"
#include "engine/mem.h"
#include "engine/rng.h"
#include "heads/loss.h"
#include "heads/stack.h"

typedef struct work {
    tk_stack stack; /* the head's adapter, or none */
    float *x, *probabilities, *dlogits, *dfeatures;
    float *dz, *input, *dinput; /* of the stack, and of the linear layer */
    uint32_t *labels;
} work;

static void work_fini(work *w)
{
    tk_stack_fini(&w->stack);
    tk_free(w->dz);
    tk_free(w->input);
    tk_free(w->dinput);
    tk_free(w->x);
    tk_free(w->probabilities);
    tk_free(w->dlogits);
    tk_free(w->dfeatures);
    tk_free(w->labels);
}

static bool work_init(work *w, tk_arch arch, const tk_preproc *preproc, const tk_fisher_opts *o)
{
    const size_t b = o->max_batch, c = o->head->classes;
    if (tk_stack_of_heads(&w->stack, arch, 1, &o->head) != TK_OK) return false;
    w->dz = tk_aligned_calloc(b * tk_stack_width(&w->stack) + 1, sizeof(float));
    w->input = tk_aligned_calloc(b * o->head->width, sizeof(float));
    w->dinput = tk_aligned_calloc(b * o->head->width, sizeof(float));
    w->x = tk_aligned_calloc(b * preproc->crop * preproc->crop * 3, sizeof(float));
    w->probabilities = tk_aligned_calloc(b * c, sizeof(float));
    w->dlogits = tk_aligned_calloc(b * c, sizeof(float));
    w->dfeatures = tk_aligned_calloc(b * o->head->features, sizeof(float));
    w->labels = tk_calloc(b, sizeof *w->labels);
    return w->x && w->probabilities && w->dlogits && w->dfeatures && w->labels && w->dz &&
           w->input && w->dinput;
}

/* y ~ p by inversion: the first class whose cumulated probability exceeds a uniform number. */
static uint32_t draw(size_t c, const float *p, float uniform)
{
    double sum = 0;
    for (size_t k = 0; k + 1 < c; k++) {
        sum += (double)p[k];
        if ((double)uniform < sum) return (uint32_t)k;
    }
    return (uint32_t)(c - 1);
}

/* Adds the squares of the samples' gradients of -log p(labels[i] | x_i), each scaled by
 * sqrt(weight): the class' own probability when `weighted`, else 1. */
static void add_squares(tk_graph *graph, const tk_params *params, const tk_fisher_opts *o, work *w,
                        size_t n, bool weighted, float *squares)
{
    const size_t c = o->head->classes, f = o->head->features;
    const bool tapped = o->head->rank > 0;
    for (size_t i = 0; i < n; i++) {
        const float *p = w->probabilities + i * c;
        const float scale = weighted ? sqrtf(p[w->labels[i]]) : 1;
        for (size_t k = 0; k < c; k++)
            w->dlogits[i * c + k] = scale * (p[k] - (k == w->labels[i] ? 1.0f : 0.0f));
    }
    tk_linear_backward(n, o->head->width, c, NULL, o->head->weight, w->dlogits,
                       tapped ? w->dinput : w->dfeatures, 0, NULL, NULL);
    if (tapped) {
        memset(w->dfeatures, 0, n * f * sizeof *w->dfeatures);
        memset(w->dz, 0, n * tk_stack_width(&w->stack) * sizeof *w->dz);
        tk_stack_spread(&w->stack, 0, n, w->dinput, w->dfeatures, w->dz);
    }
    tk_graph_backward_squares(graph, params, w->dfeatures, tapped ? w->dz : NULL, squares);
}

static void add_batch(tk_graph *graph, tk_params *params, const tk_fisher_opts *o, work *w,
                      size_t first, size_t n, float *squares)
{
    const size_t c = o->head->classes;
    const float *features;
    tk_graph_forward(graph, params, n, w->x, TK_BN_FROZEN, &features);
    const float *in = tk_stack_input(&w->stack, 0, n, features, tk_graph_side(graph), w->input);
    tk_linear_forward(n, o->head->width, c, in, o->head->weight, o->head->bias, w->probabilities);
    for (size_t i = 0; i < n; i++)
        tk_softmax(c, w->probabilities + i * c, 1, w->probabilities + i * c);
    if (o->rule == TK_FISHER_EXACT) {
        for (size_t y = 0; y < c; y++) {
            for (size_t i = 0; i < n; i++)
                w->labels[i] = (uint32_t)y;
            add_squares(graph, params, o, w, n, true, squares);
        }
        return;
    }
    const uint64_t stream = tk_rng_stream("fisher");
    for (size_t i = 0; i < n; i++)
        w->labels[i] =
            o->rule == TK_FISHER_EMPIRICAL
                ? o->labels[first + i]
                : draw(c, w->probabilities + i * c, tk_rng_uniform(o->seed, stream, first + i));
    add_squares(graph, params, o, w, n, false, squares);
}

/* Divides by the samples, then by the mean. Padding between tensors is zero and not counted. */
static tk_err normalise(const tk_params *params, size_t samples, float *fisher, double *scale,
                        tk_diag *diag)
{
    size_t weights = 0;
    double sum = 0;
    for (size_t t = 0; t < params->tensors; t++)
        if (params->table[t].offset < params->trained) weights += params->table[t].count;
    for (size_t j = 0; j < params->trained; j++)
        sum += (double)fisher[j];
    if (!isfinite(sum)) return tk_fail(diag, TK_DIVERGED, "Fisher: a gradient is not finite");
    *scale = sum / (double)samples / (double)weights;
    const double factor = sum > 0 ? (double)weights / sum : 0;
    for (size_t j = 0; j < params->trained; j++)
        fisher[j] = (float)((double)fisher[j] * factor);
    return TK_OK;
}

tk_err tk_fisher_compute(tk_graph *graph, tk_params *params, const tk_preproc *preproc,
                         const tk_fisher_opts *opts, tk_pool *pool, float *fisher, double *scale,
                         tk_diag *diag)
{
    *scale = 0;
    memset(fisher, 0, params->trained * sizeof *fisher);
    if (opts->n == 0) return TK_OK;
    work w = {0};
    tk_err err = work_init(&w, params->arch, preproc, opts)
                     ? TK_OK
                     : tk_fail(diag, TK_NOMEM, "Fisher: out of memory");
    if (err == TK_OK) {
        const tk_side side = tk_stack_side(&w.stack);
        err = tk_graph_set_side(graph, &side, diag);
    }
    for (size_t first = 0; first < opts->n && err == TK_OK; first += opts->max_batch) {
        const size_t left = opts->n - first, n = left < opts->max_batch ? left : opts->max_batch;
        const tk_cut cut = {.images = opts->images + first};
        tk_canvases_render(opts->canvases, &cut, n, w.x, pool);
        add_batch(graph, params, opts, &w, first, n, fisher);
        tk_watch_progress(opts->watch, first + n, opts->n);
        if (tk_watch_cancelled(opts->watch)) err = TK_CANCELLED;
    }
    work_fini(&w);
    return err == TK_OK ? normalise(params, opts->n, fisher, scale, diag) : err;
}
