/* One training step of the one objective. A recipe that leaves the trunk alone has its first term
 * only, by the head and its adapter:
 *
 *     L = CE(new head)
 *       + kappa/H * sum over H other heads h of  T^2 * KD_T(pseudo-labels of h, logits of h)
 *       + lambda/2 * sum over trunk parameters j of  F_j (theta_j - anchor_j)^2
 *
 * A head that is refreshed stands in both: its earlier self is among the other heads, and answers
 * with those logits of the new head that belong to the classes it had (Li & Hoiem's old task on a
 * head that grows). And, with a projection, only such changes of the trunk as leave the old tasks'
 * answers alone. */
#ifndef HEADS_STEP_H
#define HEADS_STEP_H

#include "engine/graph.h"
#include "heads/projection.h"
#include "heads/pseudo_labels.h"
#include "heads/recipe.h"
#include "heads/student.h"

typedef struct tk_losses {
    double ce;
    double kd;   /* kappa * T^2 * KL: without the teacher's entropy, which nothing can remove */
    double ewc;  /* before the step */
    double norm; /* of the projected gradient, before clipping */
} tk_losses;

static inline double tk_losses_total(const tk_losses *l)
{
    return l->ce + l->kd + l->ewc;
}

typedef struct tk_objective_opts {
    const tk_recipe *recipe;
    const tk_preproc *preproc;
    const tk_canvases *canvases;
    size_t n_items;
    const uint32_t *images, *labels; /* [n_items] */
    const tk_pseudo_labels *teacher; /* NULL: no distillation */
    size_t n_old;
    tk_head *const *old;          /* the teacher's heads, in its order */
    const tk_head *refreshed;     /* of them: the new head as it was; NULL: none */
    const float *fisher, *anchor; /* NULL: no consolidation */
    tk_projection *projection;    /* NULL: every direction is free */
    tk_augment augment;
    uint64_t seed;
    size_t max_batch, classes, rank; /* the student's */
    tk_arch arch;
    tk_pool *pool;
} tk_objective_opts;

typedef struct tk_objective tk_objective;

/* Everything in `opts` is borrowed. One thread at a time; the work is spread over the pool. */
TK_MUST tk_err tk_objective_create(tk_objective **out, const tk_objective_opts *opts,
                                   tk_diag *diag);
void tk_objective_destroy(tk_objective *objective);
/* The graph that it trains with, for the Fisher pass. */
tk_graph *tk_objective_graph(tk_objective *objective);

/* One step on `n` items and their views, with kappa and lambda times `strength`. TK_DIVERGED (the
 * student is then not usable) when the loss or its gradient is not finite; the message says in
 * which layer. */
TK_MUST tk_err tk_step(tk_objective *objective, tk_student *student, size_t n,
                       const uint32_t *items, const uint32_t *views, double rate, double strength,
                       tk_losses *losses, tk_diag *diag);

#endif
