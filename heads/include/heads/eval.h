/* Validation: accuracy of heads on held-out images, as inference sees them (centre view, folded
 * plan). What runs does so on the caller's thread and the pool, one caller of a pool at a time. */
#ifndef HEADS_EVAL_H
#define HEADS_EVAL_H

#include "engine/precision.h"
#include "heads/canvases.h"
#include "heads/model.h"

enum { TK_CONFUSION_MAX_CLASSES = 1000 }; /* above, the matrix is left out */

/* One head's result on n images. */
typedef struct tk_validation {
    const char *head; /* id; borrowed from the caller of tk_eval_run() */
    size_t n, correct, top5, classes;
    bool agreement;      /* the truth is another model's answer: the weaker promise */
    uint32_t *answers;   /* [n] argmax */
    bool *right;         /* [n] */
    uint32_t *confusion; /* [truth][answer], or NULL with too many classes */
} tk_validation;

void tk_validation_fini(tk_validation *validation);
/* correct / n; 0 when n is 0. */
double tk_validation_accuracy(const tk_validation *validation);
TK_MUST tk_err tk_validation_clone(tk_validation *out, const tk_validation *from);
/* Judges the answers anew by agreement with `truth` [n], another model's answers. `top5` is then
 * the answers that agree. */
void tk_validation_agree(tk_validation *validation, const uint32_t *truth);

/* The images, and each head that answers on them with its truth: they share the trunk's passes. */
typedef struct tk_eval_task {
    const tk_canvases *canvases;
    size_t n;
    const uint32_t *images; /* [n] */
    size_t n_heads;
    const tk_head *const *heads;
    const uint32_t *const
        *truth;            /* [n_heads][n], < classes; a NULL entry: answers only, all wrong */
    const bool *agreement; /* [n_heads], NULL: all false */
    tk_precision precision;
    const tk_calibration *ranges; /* for int8 */
} tk_eval_task;

/* Writes out[0..n_heads-1]; free each with tk_validation_fini(). On failure all are zero. */
TK_MUST tk_err tk_eval_run(const tk_params *trunk, const tk_preproc *preproc,
                           const tk_eval_task *task, tk_validation *out, tk_pool *pool,
                           tk_diag *diag);
/* Widens *ranges (see tk_plan_calibrate) by the trunk's maps of n images. */
TK_MUST tk_err tk_eval_calibrate(const tk_params *trunk, const tk_preproc *preproc,
                                 const tk_canvases *canvases, size_t n, const uint32_t *images,
                                 tk_calibration *ranges, tk_pool *pool, tk_diag *diag);

#endif
