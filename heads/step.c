/* The training step, on one screen: tk_step(). */
#include "heads/step.h"

#include <math.h>
#include <string.h>

#include "engine/linear.h"
#include "engine/mem.h"
#include "engine/optim.h"
#include "heads/ewc.h"
#include "heads/loss.h"
#include "heads/stack.h"

struct tk_objective {
    tk_objective_opts o;
    tk_graph *graph;
    size_t features;
    size_t own_past;           /* the refreshed head's place among the old ones; n_old: none */
    tk_stack stack;            /* the old heads' adapters, then the new head's */
    float *x;                  /* [batch][crop][crop][3] */
    float *logits, *dlogits;   /* [batch][widest head] */
    float *pseudo;             /* [batch][widest head] */
    float *row;                /* [widest head] */
    float *dfeatures, *dz;     /* [batch][features], [batch][stack's width] */
    float *input, *dinput;     /* [batch][stack's widest] */
    float *side_gradient;      /* as tk_stack.data */
    float *gradient;           /* [trained] */
    float *head_gradient;      /* as tk_student.head */
    uint32_t *images, *labels; /* [batch] */
};

/* Old heads count only where their answers do. */
static size_t distilled(const tk_objective *s)
{
    const tk_recipe *r = s->o.recipe;
    return s->o.teacher && r->kappa != 0 && r->train_trunk ? s->o.n_old : 0;
}

static tk_err make_stack(tk_objective *s)
{
    const size_t n = distilled(s), b = s->o.max_batch;
    size_t *ranks = tk_calloc(n + 1, sizeof *ranks);
    if (!ranks) return TK_NOMEM;
    for (size_t h = 0; h < n; h++)
        ranks[h] = s->o.old[h]->rank;
    ranks[n] = s->o.rank;
    const tk_err err = tk_stack_init(&s->stack, s->o.arch, n + 1, ranks);
    tk_free(ranks);
    if (err != TK_OK) return err;
    for (size_t h = 0; h < n; h++)
        if (s->o.old[h]->rank > 0) tk_stack_put(&s->stack, h, s->o.old[h]->adapter);
    s->dz = tk_aligned_calloc(b * tk_stack_width(&s->stack) + 1, sizeof(float));
    s->input = tk_aligned_calloc(b * tk_stack_widest(&s->stack), sizeof(float));
    s->dinput = tk_aligned_calloc(b * tk_stack_widest(&s->stack), sizeof(float));
    s->side_gradient =
        tk_aligned_calloc(tk_side_size(s->o.arch, tk_stack_rank(&s->stack)) + 1, sizeof(float));
    return s->dz && s->input && s->dinput && s->side_gradient ? TK_OK : TK_NOMEM;
}

tk_err tk_objective_create(tk_objective **out, const tk_objective_opts *opts, tk_diag *diag)
{
    *out = NULL;
    tk_objective *s = tk_calloc(1, sizeof *s);
    if (!s) return tk_fail(diag, TK_NOMEM, "training: out of memory");
    s->o = *opts;
    s->features = tk_arch_features(opts->arch);
    while (s->own_past < opts->n_old && opts->old[s->own_past] != opts->refreshed)
        s->own_past++;
    const size_t b = opts->max_batch, crop = opts->preproc->crop;
    size_t widest = opts->classes;
    for (size_t h = 0; h < opts->n_old; h++)
        if (opts->old[h]->classes > widest) widest = opts->old[h]->classes;
    tk_params *shape;
    tk_err err = make_stack(s);
    if (err == TK_OK) err = tk_params_create(&shape, opts->arch);
    if (err == TK_OK) s->gradient = tk_aligned_calloc(shape->trained, sizeof(float));
    if (err == TK_OK) tk_params_destroy(shape);
    s->x = tk_aligned_calloc(b * crop * crop * 3, sizeof(float));
    s->logits = tk_aligned_calloc(b * widest, sizeof(float));
    s->dlogits = tk_aligned_calloc(b * widest, sizeof(float));
    s->pseudo = tk_aligned_calloc(b * widest, sizeof(float));
    s->row = tk_aligned_calloc(widest, sizeof(float));
    s->dfeatures = tk_aligned_calloc(b * s->features, sizeof(float));
    s->head_gradient =
        tk_aligned_calloc(opts->classes * (s->features + s->stack.stages * opts->rank + 1) +
                              tk_side_size(opts->arch, opts->rank),
                          sizeof(float));
    s->images = tk_calloc(b, sizeof *s->images);
    s->labels = tk_calloc(b, sizeof *s->labels);
    if (err != TK_OK || !s->gradient || !s->x || !s->logits || !s->dlogits || !s->pseudo ||
        !s->row || !s->dfeatures || !s->head_gradient || !s->images || !s->labels)
        err = tk_fail(diag, TK_NOMEM, "training: out of memory");
    const tk_precision compute = opts->recipe->compute != 0 ? TK_PRECISION_BF16 : TK_PRECISION_FP32;
    if (err == TK_OK)
        err = tk_graph_create_as(&s->graph, opts->arch, opts->preproc->crop, b, compute, opts->pool,
                                 diag);
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
    tk_stack_fini(&objective->stack);
    tk_free(objective->dz);
    tk_free(objective->input);
    tk_free(objective->dinput);
    tk_free(objective->side_gradient);
    tk_free(objective->x);
    tk_free(objective->logits);
    tk_free(objective->dlogits);
    tk_free(objective->pseudo);
    tk_free(objective->row);
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

/* The linear layer of head h of the stack: logits, and the way back, which adds to dfeatures and
 * dz. */
static void head_forward(tk_objective *s, size_t h, size_t n, size_t width, size_t c,
                         const float *features, const float *w, const float *bias)
{
    const float *in = tk_stack_input(&s->stack, h, n, features, tk_graph_side(s->graph), s->input);
    tk_linear_forward(n, width, c, in, w, bias, s->logits);
}

static void head_backward(tk_objective *s, size_t h, size_t n, size_t width, size_t c,
                          const float *features, const float *w, float *dw, float *db)
{
    if (width == s->features) {
        tk_linear_backward(n, width, c, features, w, s->dlogits, s->dfeatures, 1, dw, db);
        return;
    }
    tk_linear_backward(n, width, c, s->input, w, s->dlogits, s->dinput, 0, dw, db);
    tk_stack_spread(&s->stack, h, n, s->dinput, s->dfeatures, s->dz);
}

/* What one old head's distillation is multiplied by. */
static double kd_weight(const tk_objective *s, double strength)
{
    const tk_recipe *r = s->o.recipe;
    return strength * r->kappa / (r->kappa_sum != 0 ? 1 : (double)s->o.n_old);
}

/* What the refreshed head answered before, distilled into the same classes of the new head, whose
 * logits are at hand: its first ones. Adds to dlogits. */
static double add_own_past(tk_objective *s, size_t n, size_t c, const uint32_t *items,
                           const uint32_t *views, double strength)
{
    if (s->own_past >= distilled(s)) return 0;
    const size_t had = s->o.old[s->own_past]->classes;
    const double weight = kd_weight(s, strength) / (double)n;
    double kd = 0, entropy;
    for (size_t i = 0; i < n; i++) {
        tk_pseudo_labels_logits(s->o.teacher, views[i], items[i], s->own_past, s->pseudo);
        kd += tk_loss_kd(1, had, s->pseudo, s->logits + i * c, (float)s->o.recipe->temperature,
                         (float)weight, s->row, &entropy);
        kd -= entropy;
        for (size_t k = 0; k < had; k++)
            s->dlogits[i * c + k] += s->row[k];
    }
    return weight * kd;
}

/* The new head's terms; makes the gradient of its linear layer. */
static void add_new_head(tk_objective *s, const tk_student *student, size_t n,
                         const float *features, const uint32_t *items, const uint32_t *views,
                         double strength, tk_losses *losses)
{
    const size_t f = student->width, c = student->classes, own = s->stack.n - 1;
    head_forward(s, own, n, f, c, features, student->head, student->head + c * f);
    losses->ce = tk_loss_ce(n, c, s->logits, s->labels, (float)s->o.recipe->smoothing, s->dlogits);
    losses->kd = add_own_past(s, n, c, items, views, strength);
    head_backward(s, own, n, f, c, features, student->head, s->head_gradient,
                  s->head_gradient + c * f);
}

/* The other heads' term. The heads and their adapters stay as their owners have them. */
static double add_distillation(tk_objective *s, size_t n, const float *features,
                               const uint32_t *items, const uint32_t *views, double strength)
{
    const tk_recipe *r = s->o.recipe;
    const double weight = kd_weight(s, strength);
    double kd = 0;
    for (size_t h = 0; h < distilled(s); h++) {
        if (h == s->own_past) continue; /* add_own_past() */
        const tk_head *head = s->o.old[h];
        const size_t c = head->classes;
        double entropy;
        for (size_t i = 0; i < n; i++)
            tk_pseudo_labels_logits(s->o.teacher, views[i], items[i], h, s->pseudo + i * c);
        head_forward(s, h, n, head->width, c, features, head->weight, head->bias);
        kd += weight * tk_loss_kd(n, c, s->pseudo, s->logits, (float)r->temperature, (float)weight,
                                  s->dlogits, &entropy);
        kd -= weight * entropy;
        head_backward(s, h, n, head->width, c, features, head->weight, NULL, NULL);
    }
    return kd;
}

/* The student's adapter, as it is now, on the graph. */
static tk_err set_side(tk_objective *s, const tk_student *student, tk_diag *diag)
{
    const tk_side side = tk_stack_side(&s->stack);
    if (student->rank > 0) tk_stack_put(&s->stack, s->stack.n - 1, tk_student_adapter(student));
    return tk_graph_set_side(s->graph, &side, diag);
}

/* From dfeatures and dz to the gradients of trunk and adapter. */
static void backward(tk_objective *s, const tk_student *student)
{
    const bool tapped = tk_stack_rank(&s->stack) > 0;
    if (student->rank > 0) {
        tk_graph_side_backward(s->graph, s->dz, s->side_gradient);
        const tk_stack gradients = {.arch = s->stack.arch,
                                    .stages = s->stack.stages,
                                    .n = s->stack.n,
                                    .first = s->stack.first,
                                    .data = s->side_gradient};
        tk_stack_take(&gradients, s->stack.n - 1,
                      s->head_gradient + student->classes * (student->width + 1));
    }
    if (s->o.recipe->train_trunk)
        tk_graph_backward_through(s->graph, student->trunk, s->dfeatures, tapped ? s->dz : NULL,
                                  s->gradient);
}

/* Clips the gradient of trunk and head together; its norm before. */
static double clip(tk_objective *s, const tk_student *student)
{
    const bool trunk = s->o.recipe->train_trunk;
    const double norm = hypot(trunk ? tk_norm(student->trunk->trained, s->gradient) : 0,
                              tk_norm(student->head_size, s->head_gradient));
    const double most = s->o.recipe->clip;
    if (most > 0 && norm > most) {
        if (trunk) tk_scale(student->trunk->trained, s->gradient, (float)(most / norm));
        tk_scale(student->head_size, s->head_gradient, (float)(most / norm));
    }
    return norm;
}

/* Is there a part of the trunk that must not move? */
static bool confined(const tk_objective *s)
{
    return s->o.projection || s->o.recipe->batch_norm == TK_NORM_HELD;
}

/* Takes that part out of a change of the trunk, [trained]. */
static void confine(tk_objective *s, const tk_params *trunk, float *change)
{
    if (s->o.projection) { /* which holds scale and shift, too */
        tk_projection_apply(s->o.projection, trunk, change);
        return;
    }
    for (size_t t = 0; t < trunk->tensors && trunk->table[t].offset < trunk->trained; t++)
        if (trunk->table[t].kind != TK_PARAM_CONV)
            memset(change + trunk->table[t].offset, 0, trunk->table[t].count * sizeof *change);
}

/* EWC's step, of which only the part goes through that may. */
static double consolidate(tk_objective *s, tk_params *trunk, double lambda, double rate)
{
    const size_t n = trunk->trained;
    float *moved = s->gradient; /* which the step has used up */
    if (!confined(s))
        return tk_ewc_proximal(n, trunk->data, s->o.anchor, s->o.fisher, lambda, rate);
    memcpy(moved, trunk->data, n * sizeof *moved);
    const double penalty = tk_ewc_proximal(n, moved, s->o.anchor, s->o.fisher, lambda, rate);
    for (size_t j = 0; j < n; j++)
        moved[j] -= trunk->data[j];
    confine(s, trunk, moved);
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
    const tk_err err = set_side(s, student, diag);
    if (err != TK_OK) return err;
    tk_graph_forward(s->graph, trunk, n, s->x,
                     r->batch_norm == TK_NORM_BATCH ? TK_BN_BATCH : TK_BN_FROZEN, &features);
    memset(s->dfeatures, 0, n * s->features * sizeof *s->dfeatures);
    memset(s->dz, 0, n * tk_stack_width(&s->stack) * sizeof *s->dz);
    add_new_head(s, student, n, features, items, views, strength, losses);
    losses->kd += add_distillation(s, n, features, items, views, strength);
    backward(s, student);
    if (confined(s) && r->train_trunk) confine(s, trunk, s->gradient);

    losses->ewc = 0;
    losses->norm = clip(s, student);
    if (!isfinite(losses->ce) || !isfinite(losses->kd) || !isfinite(losses->norm))
        return diverged(s, trunk, diag);

    tk_sgd_step(student->head_size, student->head, s->head_gradient, student->head_velocity,
                (float)(rate * r->head_rate), (float)r->momentum, (float)r->decay, 1);
    if (!r->train_trunk) return TK_OK;
    tk_sgd_step_params(trunk, s->gradient, student->velocity, (float)rate, (float)r->momentum,
                       (float)r->decay, 1, s->o.pool);
    if (s->o.fisher && r->lambda > 0)
        losses->ewc = consolidate(s, trunk, strength * r->lambda, rate);
    if (isfinite(losses->ewc)) return TK_OK;
    return tk_fail(diag, TK_DIVERGED, "the distance from the protected weights is not finite");
}
