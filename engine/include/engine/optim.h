/* SGD with Nesterov momentum and weight decay as PyTorch defines it, gradient clipping by global
 * norm, and learning-rate schedules. */
#ifndef ENGINE_OPTIM_H
#define ENGINE_OPTIM_H

#include <stddef.h>

#include "engine/net.h"
#include "engine/pool.h"

/* One step over n floats:  d = g + decay * w;  v = momentum * v + d;  d' = d + momentum * v
 * (Nesterov) or v;  w -= lr * d'.  (torch.optim.SGD; first step v = d, which v = 0 gives.) */
void tk_sgd_step(size_t n, float *w, const float *g, float *v, float lr, float momentum,
                 float decay, int nesterov);

/* tk_sgd_step over every trained tensor of a trunk; decay only on convolutions. */
void tk_sgd_step_params(tk_params *params, const float *grads, float *velocity, float lr,
                        float momentum, float decay, int nesterov, tk_pool *pool);

/* Euclidean norm in double, fixed order (bit-identical for a given n). NaN if any entry is. */
double tk_norm(size_t n, const float *g);
void tk_scale(size_t n, float *g, float factor);

typedef enum tk_schedule_kind {
    TK_SCHEDULE_CONSTANT,
    TK_SCHEDULE_COSINE,    /* base -> 0 over the steps, Loshchilov & Hutter 1608.03983 eq 5 */
    TK_SCHEDULE_ONE_CYCLE, /* linear up for the warm-up, linear down to 0 (Smith 1708.07120) */
} tk_schedule_kind;

typedef struct tk_schedule {
    tk_schedule_kind kind;
    float base;    /* the peak rate */
    size_t steps;  /* total */
    size_t warmup; /* steps of linear rise from base/warmup to base; part of `steps` */
} tk_schedule;

/* Rate of step `step`, 0 <= step < steps. */
float tk_schedule_rate(const tk_schedule *schedule, size_t step);
TK_MUST tk_err tk_schedule_parse(const char *name, tk_schedule_kind *out, tk_diag *diag);

#endif
