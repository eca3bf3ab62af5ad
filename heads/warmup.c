/* Multinomial logistic regression on cached features (LP-FT: Kumar et al. 2022, 2202.10054, fit the
 * head before the trunk may move).
 *
 * The features of a ReLU network are far from white. They are standardised, the step size is taken
 * from the curvature, and at the end the standardisation is folded into the head:
 *
 *     z = (f - mean) / std,   logits = W z + b  =  (W / std) f + (b - W mean / std)
 *
 * The Hessian of softmax cross-entropy is at most 1/2 Cov(z) per class, so L = lambda_max / 2,
 * found by power iteration. Nesterov's method with momentum m on a quadratic is stable below 2 (1 +
 * m) / L; half of 1 / L leaves room for the noise of small batches. The rate falls to zero as a
 * cosine. */
#include "heads/warmup.h"

#include <math.h>
#include <string.h>

#include "engine/linear.h"
#include "engine/mem.h"
#include "engine/optim.h"
#include "engine/rng.h"
#include "heads/loss.h"

enum { BATCH = 64, POWER_STEPS = 20, MAX_STEPS = 40000 };

typedef struct work {
    float *mean, *inverse; /* [f], of view 0; inverse is 1/std, 0 for a feature that never moves */
    float *x, *logits, *dlogits, *gradient, *velocity;
    uint32_t *order, labels[BATCH];
} work;

static void work_fini(work *w)
{
    tk_free(w->mean);
    tk_free(w->inverse);
    tk_free(w->x);
    tk_free(w->logits);
    tk_free(w->dlogits);
    tk_free(w->gradient);
    tk_free(w->velocity);
    tk_free(w->order);
}

static bool work_init(work *w, const tk_warm_up_opts *o)
{
    const size_t f = o->features, c = o->classes;
    w->mean = tk_calloc(f, sizeof(float));
    w->inverse = tk_calloc(f, sizeof(float));
    w->x = tk_aligned_calloc(BATCH * f, sizeof(float));
    w->logits = tk_aligned_calloc(BATCH * c, sizeof(float));
    w->dlogits = tk_aligned_calloc(BATCH * c, sizeof(float));
    w->gradient = tk_aligned_calloc(c * f + c, sizeof(float));
    w->velocity = tk_aligned_calloc(c * f + c, sizeof(float));
    w->order = tk_calloc(o->n, sizeof *w->order);
    return w->mean && w->inverse && w->x && w->logits && w->dlogits && w->gradient && w->velocity &&
           w->order;
}

static tk_err measure(work *w, const tk_warm_up_opts *o)
{
    const size_t f = o->features;
    double *sums = tk_calloc(2 * f, sizeof *sums), *squares = sums ? sums + f : NULL;
    if (!sums) return TK_NOMEM;
    for (size_t i = 0; i < o->n; i++) {
        tk_pseudo_labels_features(o->cache, 0, i, w->x);
        for (size_t k = 0; k < f; k++) {
            sums[k] += (double)w->x[k];
            squares[k] += (double)w->x[k] * (double)w->x[k];
        }
    }
    const double n = (double)o->n;
    for (size_t k = 0; k < f; k++) {
        const double mean = sums[k] / n, variance = squares[k] / n - mean * mean;
        w->mean[k] = (float)mean;
        w->inverse[k] = variance > 1e-8 * (1e-4 + mean * mean) ? (float)(1 / sqrt(variance)) : 0;
    }
    tk_free(sums);
    return TK_OK;
}

/* Standardised features of one item into a row. */
static void fetch(const work *w, const tk_warm_up_opts *o, size_t view, size_t item, float *row)
{
    tk_pseudo_labels_features(o->cache, view, item, row);
    for (size_t k = 0; k < o->features; k++)
        row[k] = (row[k] - w->mean[k]) * w->inverse[k];
}

/* Largest eigenvalue of the features' second moment, with the constant feature of the bias. */
static tk_err largest_eigenvalue(work *w, const tk_warm_up_opts *o, double *out)
{
    const size_t f = o->features;
    double *v = tk_calloc(2 * f, sizeof *v), *next = v ? v + f : NULL;
    if (!v) return TK_NOMEM;
    for (size_t k = 0; k < f; k++)
        v[k] = 1 / sqrt((double)f);
    double norm = 0;
    for (int step = 0; step < POWER_STEPS; step++) {
        memset(next, 0, f * sizeof *next);
        for (size_t i = 0; i < o->n; i++) {
            fetch(w, o, 0, i, w->x);
            double dot = 0;
            for (size_t k = 0; k < f; k++)
                dot += v[k] * (double)w->x[k];
            for (size_t k = 0; k < f; k++)
                next[k] += dot * (double)w->x[k] / (double)o->n;
        }
        norm = 0;
        for (size_t k = 0; k < f; k++)
            norm += next[k] * next[k];
        norm = sqrt(norm);
        if (norm == 0) break;
        for (size_t k = 0; k < f; k++)
            v[k] = next[k] / norm;
    }
    tk_free(v);
    *out = norm > 1 ? norm : 1;
    return TK_OK;
}

static void one_step(work *w, const tk_warm_up_opts *o, size_t pass, size_t first, float rate,
                     float *head)
{
    const size_t f = o->features, c = o->classes, views = tk_pseudo_labels_views(o->cache);
    const size_t n = o->n - first < BATCH ? o->n - first : BATCH;
    for (size_t i = 0; i < n; i++) {
        const uint32_t item = w->order[first + i];
        fetch(w, o, (pass + item) % views, item, w->x + i * f);
        w->labels[i] = o->labels[item];
    }
    tk_linear_forward(n, f, c, w->x, head, head + c * f, w->logits);
    tk_loss_ce(n, c, w->logits, w->labels, (float)o->smoothing, w->dlogits);
    tk_linear_backward(n, f, c, w->x, head, w->dlogits, NULL, 0, w->gradient, w->gradient + c * f);
    tk_sgd_step(c * f + c, head, w->gradient, w->velocity, rate, 0.9f, 1e-4f, 1);
}

static void fold(const work *w, size_t c, size_t f, float *head)
{
    for (size_t j = 0; j < c; j++) {
        double shift = 0;
        for (size_t k = 0; k < f; k++) {
            head[j * f + k] *= w->inverse[k];
            shift += (double)head[j * f + k] * (double)w->mean[k];
        }
        head[c * f + j] = (float)((double)head[c * f + j] - shift);
    }
}

static tk_err fit(work *w, const tk_warm_up_opts *o, float *head)
{
    double curvature;
    tk_err err = measure(w, o);
    if (err == TK_OK) err = largest_eigenvalue(w, o, &curvature);
    if (err != TK_OK) return err;
    const size_t per_pass = (o->n + BATCH - 1) / BATCH;
    const size_t most = MAX_STEPS / per_pass + 1;
    const size_t passes = o->passes < (double)most ? (size_t)o->passes : most;
    const tk_schedule schedule = {
        .kind = TK_SCHEDULE_COSINE, .base = (float)(1 / curvature), .steps = passes * per_pass};
    size_t step = 0;
    for (size_t pass = 0; pass < passes; pass++) {
        if (tk_watch_cancelled(o->watch)) return TK_CANCELLED;
        tk_rng_permutation(o->seed, tk_rng_stream("warm-up") + pass, o->n, w->order);
        for (size_t first = 0; first < o->n; first += BATCH, step++)
            one_step(w, o, pass, first, tk_schedule_rate(&schedule, step), head);
        tk_watch_progress(o->watch, pass + 1, passes);
    }
    fold(w, o->classes, o->features, head);
    return TK_OK;
}

tk_err tk_warm_up(const tk_warm_up_opts *opts, float *head, tk_diag *diag)
{
    work w = {0};
    memset(head, 0, (opts->classes * opts->features + opts->classes) * sizeof *head);
    tk_err err = work_init(&w, opts) ? fit(&w, opts, head) : TK_NOMEM;
    work_fini(&w);
    if (err == TK_NOMEM) tk_fail(diag, err, "warm-up: out of memory");
    return err;
}
