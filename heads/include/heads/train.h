/* Joint training: trials (search.h) of some epochs of tk_step() with validation at a cadence, the
 * best admissible point kept, a divergence guard, and checkpoints from which it resumes with the
 * same bits. Everything, the callbacks included, on the caller's thread. */
#ifndef HEADS_TRAIN_H
#define HEADS_TRAIN_H

#include "heads/search.h"
#include "heads/step.h"

/* What a validation of all heads said about a point. */
typedef struct tk_verdict {
    bool admissible;
    double worth; /* orders the admissible points: higher is better */
    double se;    /* of the worth: what chance alone makes of it */
} tk_verdict;

/* One epoch of the curve. */
typedef struct tk_curve_point {
    tk_losses losses; /* means over the epoch */
    double rate;      /* at its end */
    double strength;  /* of its trial */
    tk_verdict verdict;
    double validated; /* 1 when this epoch was validated */
} tk_curve_point;

typedef struct tk_train_tick {
    size_t step, steps, epoch, epochs;
    double rate;
    tk_losses losses; /* running means over the epoch */
} tk_train_tick;

typedef struct tk_train_opts {
    tk_objective *objective;
    const tk_recipe *recipe;
    size_t n_items, batch;
    size_t trials; /* 0..TK_MAX_TRIALS; as `most` in search.h */
    size_t views;  /* views to cycle through; 0: a fresh one every epoch */
    uint64_t seed;
    const char *checkpoint; /* path */
    double checkpoint_seconds;
    void *ctx;
    bool (*cancelled)(void *ctx);
    void (*tick)(void *ctx, const tk_train_tick *tick);
    tk_err (*validate)(void *ctx, const tk_student *student, size_t step, size_t epoch,
                       tk_verdict *verdict, tk_diag *diag);
    void (*warn)(void *ctx, const char *message);
    void (*log)(void *ctx, const char *message);
} tk_train_opts;

typedef struct tk_train_result {
    bool has_best;
    tk_student best; /* weights only matter; valid when has_best */
    tk_verdict best_verdict;
    size_t best_epoch;     /* 1.. */
    size_t epochs;         /* of all trials */
    tk_curve_point *curve; /* [epochs] */
    size_t n_trials;
    tk_trial trials[TK_MAX_TRIALS];
    size_t restarts; /* by the divergence guard */
} tk_train_result;

/* Trains `student`, which holds the last point afterwards. TK_CANCELLED after a checkpoint was
 * written; TK_DIVERGED when the guard gave up. Free *result with tk_train_result_fini() in any
 * case. */
TK_MUST tk_err tk_train(const tk_train_opts *opts, tk_student *student, tk_train_result *result,
                        tk_diag *diag);
void tk_train_result_fini(tk_train_result *result);

/* Images per step: the recipe's, less for a small data set so that an epoch has about eight steps.
 */
size_t tk_train_batch(const tk_recipe *recipe, size_t n_items);
/* Of the first trial: the recipe's epochs, or what its `steps` come to, within 12..60. */
size_t tk_train_epochs(const tk_recipe *recipe, size_t n_items);

#endif
