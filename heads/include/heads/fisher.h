/* The diagonal of the trunk's Fisher information for one head: which weights its answers depend on.
 * The formula and its sources stand in fisher.c. */
#ifndef HEADS_FISHER_H
#define HEADS_FISHER_H

#include "engine/graph.h"
#include "heads/canvases.h"
#include "heads/model.h"

typedef enum tk_fisher_labels {
    TK_FISHER_SAMPLE,    /* y drawn from the model's own answer; seeded */
    TK_FISHER_EMPIRICAL, /* the true label */
    TK_FISHER_EXACT, /* all classes, weighted by their probability: one backward pass for each */
} tk_fisher_labels;

typedef struct tk_fisher_opts {
    const tk_head *head;
    const tk_canvases *canvases;
    size_t n;               /* samples */
    const uint32_t *images; /* [n] */
    const uint32_t *labels; /* [n]; for TK_FISHER_EMPIRICAL */
    tk_fisher_labels rule;
    uint64_t seed;
    size_t max_batch; /* of the graph */
    const tk_watch *watch;
} tk_fisher_opts;

/* Writes `fisher` [params->trained], with mean 1 over the parameters, and the mean it had before in
 * *scale (0, and `fisher` all zero, when the head depends on nothing). Batch norm is frozen, views
 * are centred, `params` is not changed. The graph's side is the head's adapter
 * afterwards. TK_DIVERGED when a gradient is not finite; TK_CANCELLED, TK_NOMEM. On the caller's
 * thread and the pool. */
TK_MUST tk_err tk_fisher_compute(tk_graph *graph, tk_params *params, const tk_preproc *preproc,
                                 const tk_fisher_opts *opts, tk_pool *pool, float *fisher,
                                 double *scale, tk_diag *diag);

#endif
