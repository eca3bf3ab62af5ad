/* The training step, on one screen: tk_step(). */
#include "heads/step.h"

#include <math.h>
#include <string.h>

#include "engine/linear.h"
#include "engine/mem.h"
#include "engine/optim.h"
#include "heads/ewc.h"
#include "heads/loss.h"

struct tk_objective {
    tk_objective_opts o;
    tk_graph *graph;
    size_t features;
    float *x;                  /* [batch][crop][crop][3] */
    float *logits, *dlogits;   /* [batch][widest head] */
    float *pseudo;             /* [batch][widest head] */
    float *dfeatures;          /* [batch][features] */
    float *gradient;           /* [trained] */
    float *head_gradient;      /* as tk_student.head */
    uint32_t *images, *labels; /* [batch] */
};

tk_err tk_objective_create(tk_objective **out, const tk_objective_opts *opts, tk_diag *diag)
{
    *out = NULL;
    tk_objective *s = tk_calloc(1, sizeof *s);
    if (!s) return tk_fail(diag, TK_NOMEM, "training: out of memory");
    s->o = *opts;
    s->features = tk_arch_features(opts->arch);
    const size_t b = opts->max_batch, crop = opts->preproc->crop;
    size_t widest = opts->classes;
    for (size_t h = 0; h < opts->n_old; h++)
        if (opts->old[h]->classes > widest) widest = opts->old[h]->classes;
    tk_params *shape;
    tk_err err = tk_params_create(&shape, opts->arch);
    if (err == TK_OK) s->gradient = tk_aligned_calloc(shape->trained, sizeof(float));
    if (err == TK_OK) tk_params_destroy(shape);
    s->x = tk_aligned_calloc(b * crop * crop * 3, sizeof(float));
    s->logits = tk_aligned_calloc(b * widest, sizeof(float));
    s->dlogits = tk_aligned_calloc(b * widest, sizeof(float));
    s->pseudo = tk_aligned_calloc(b * widest, sizeof(float));
    s->dfeatures = tk_aligned_calloc(b * s->features, sizeof(float));
    s->head_gradient = tk_aligned_calloc(opts->classes * (s->features + 1), sizeof(float));
    s->images = tk_calloc(b, sizeof *s->images);
    s->labels = tk_calloc(b, sizeof *s->labels);
    if (!s->gradient || !s->x || !s->logits || !s->dlogits || !s->pseudo || !s->dfeatures ||
        !s->head_gradient || !s->images || !s->labels)
        err = tk_fail(diag, TK_NOMEM, "training: out of memory");
    if (err == TK_OK)
        err = tk_graph_create(&s->graph, opts->arch, opts->preproc->crop, b, opts->pool, diag);
    if (err != TK_OK) {
        tk_objective_destroy(s);
        return err;
    }
    *out = s;
    return TK_OK;
}

void tk_objective_destroy(tk_objective *objective)
{
    if (!objective) return;
    tk_graph_destroy(objective->graph);
    tk_free(objective->x);
    tk_free(objective->logits);
    tk_free(objective->dlogits);
    tk_free(objective->pseudo);
    tk_free(objective->dfeatures);
    tk_free(objective->gradient);
    tk_free(objective->head_gradient);
    tk_free(objective->images);
    tk_free(objective->labels);
    tk_free(objective);
}

tk_graph *tk_objective_graph(tk_objective *objective)
{
    return objective->graph;
}

static void take_batch(tk_objective *s, size_t n, const uint32_t *items, const uint32_t *views)
{
    for (size_t i = 0; i < n; i++) {
        s->images[i] = s->o.images[items[i]];
        s->labels[i] = s->o.labels[items[i]];
    }
    const tk_cut cut = {&s->o.augment, s->o.seed, s->images, views};
    tk_canvases_render(s->o.canvases, &cut, n, s->x, s->o.pool);
}

/* The new head's term: starts dfeatures, makes the head's gradient. */
static double add_cross_entropy(tk_objective *s, const tk_student *student, size_t n,
                                const float *features)
{
    const size_t f = s->features, c = student->classes;
    tk_linear_forward(n, f, c, features, student->head, student->head + c * f, s->logits);
    const double ce =
        tk_loss_ce(n, c, s->logits, s->labels, (float)s->o.recipe->smoothing, s->dlogits);
    tk_linear_backward(n, f, c, features, student->head, s->dlogits, s->dfeatures, 0,
                       s->head_gradient, s->head_gradient + c * f);
    return ce;
}

/* The other heads' term: adds to dfeatures. The heads themselves stay as their owners have them. */
static double add_distillation(tk_objective *s, size_t n, const float *features,
                               const uint32_t *items, const uint32_t *views, double strength)
{
    const tk_recipe *r = s->o.recipe;
    if (!s->o.teacher || r->kappa == 0) return 0;
    const double weight = strength * r->kappa / (r->kappa_sum != 0 ? 1 : (double)s->o.n_old);
    double kd = 0;
    for (size_t h = 0; h < s->o.n_old; h++) {
        const tk_head *head = s->o.old[h];
        const size_t c = head->classes;
        double entropy;
        for (size_t i = 0; i < n; i++)
            tk_pseudo_labels_logits(s->o.teacher, views[i], items[i], h, s->pseudo + i * c);
        tk_linear_forward(n, s->features, c, features, head->weight, head->bias, s->logits);
        kd += weight * tk_loss_kd(n, c, s->pseudo, s->logits, (float)r->temperature, (float)weight,
                                  s->dlogits, &entropy);
        kd -= weight * entropy;
        tk_linear_backward(n, s->features, c, features, head->weight, s->dlogits, s->dfeatures, 1,
                           NULL, NULL);
    }
    return kd;
}

/* Clips the gradient of trunk and head together; its norm before. */
static double clip(tk_objective *s, const tk_student *student)
{
    const double norm = hypot(tk_norm(student->trunk->trained, s->gradient),
                              tk_norm(student->head_size, s->head_gradient));
    const double most = s->o.recipe->clip;
    if (most > 0 && norm > most) {
        tk_scale(student->trunk->trained, s->gradient, (float)(most / norm));
        tk_scale(student->head_size, s->head_gradient, (float)(most / norm));
    }
    return norm;
}

/* EWC's step, of which projection lets only its own part through. */
static double consolidate(tk_objective *s, tk_params *trunk, double lambda, double rate)
{
    const size_t n = trunk->trained;
    float *moved = s->gradient; /* which the step has used up */
    if (!s->o.projection)
        return tk_ewc_proximal(n, trunk->data, s->o.anchor, s->o.fisher, lambda, rate);
    memcpy(moved, trunk->data, n * sizeof *moved);
    const double penalty = tk_ewc_proximal(n, moved, s->o.anchor, s->o.fisher, lambda, rate);
    for (size_t j = 0; j < n; j++)
        moved[j] -= trunk->data[j];
    tk_projection_apply(s->o.projection, trunk, moved);
    for (size_t j = 0; j < n; j++)
        trunk->data[j] += moved[j];
    return penalty;
}

/* Where in the trunk's passes the first value that is not finite appeared. */
static tk_err diverged(const tk_objective *s, const tk_params *trunk, tk_diag *diag)
{
    const char *layer = tk_graph_nonfinite(s->graph, trunk);
    if (layer) return tk_fail(diag, TK_DIVERGED, "the output of %s is not finite", layer);
    for (size_t t = trunk->tensors; t-- > 0;) { /* backward comes to the last layer first */
        const tk_param *p = &trunk->table[t];
        for (size_t i = 0; p->offset < trunk->trained && i < p->count; i++)
            if (!isfinite(s->gradient[p->offset + i]))
                return tk_fail(diag, TK_DIVERGED, "the gradient of %s is not finite", p->name);
    }
    return tk_fail(diag, TK_DIVERGED, "the loss of a head is not finite");
}

tk_err tk_step(tk_objective *s, tk_student *student, size_t n, const uint32_t *items,
               const uint32_t *views, double rate, double strength, tk_losses *losses,
               tk_diag *diag)
{
    const tk_recipe *r = s->o.recipe;
    tk_params *trunk = student->trunk;
    const float *features;

    take_batch(s, n, items, views);
    tk_graph_forward(s->graph, trunk, n, s->x, r->batch_norm != 0 ? TK_BN_BATCH : TK_BN_FROZEN,
                     &features);
    losses->ce = add_cross_entropy(s, student, n, features);
    losses->kd = add_distillation(s, n, features, items, views, strength);
    tk_graph_backward(s->graph, trunk, s->dfeatures, s->gradient);
    if (s->o.projection) tk_projection_apply(s->o.projection, trunk, s->gradient);

    losses->ewc = 0;
    losses->norm = clip(s, student);
    if (!isfinite(losses->ce) || !isfinite(losses->kd) || !isfinite(losses->norm))
        return diverged(s, trunk, diag);

    tk_sgd_step_params(trunk, s->gradient, student->velocity, (float)rate, (float)r->momentum,
                       (float)r->decay, 1, s->o.pool);
    tk_sgd_step(student->head_size, student->head, s->head_gradient, student->head_velocity,
                (float)(rate * r->head_rate), (float)r->momentum, (float)r->decay, 1);
    if (s->o.fisher && r->lambda > 0)
        losses->ewc = consolidate(s, trunk, strength * r->lambda, rate);
    if (isfinite(losses->ewc)) return TK_OK;
    return tk_fail(diag, TK_DIVERGED, "the distance from the protected weights is not finite");
}
