/* The warm-up: the new head alone, on cached features of the frozen trunk. Its result is where
 * joint training starts, and the linear probe that a job falls back to. */
#ifndef HEADS_WARMUP_H
#define HEADS_WARMUP_H

#include "heads/pseudo_labels.h"
#include "heads/recipe.h"

typedef struct tk_warm_up_opts {
    const tk_pseudo_labels *cache; /* for its features */
    size_t n, classes, features;
    const uint32_t *labels; /* [n] of the cache's items */
    double passes, smoothing;
    uint64_t seed;
    const tk_watch *watch;
} tk_warm_up_opts;

/* Writes head [classes][features] weights, then [classes] biases. */
TK_MUST tk_err tk_warm_up(const tk_warm_up_opts *opts, float *head, tk_diag *diag);

#endif
