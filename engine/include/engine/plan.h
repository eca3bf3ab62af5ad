/* The inference plan: a trunk made ready to serve. Batch norm is folded into the convolutions, ReLU and
 * residual additions are fused, weights are packed once, memory is planned for the largest batch: a run
 * allocates nothing. The plan copies what it needs, so the parameters may go. */
#ifndef ENGINE_PLAN_H
#define ENGINE_PLAN_H

#include "engine/net.h"
#include "engine/pool.h"

typedef struct tk_plan tk_plan;

TK_MUST tk_err tk_plan_create(tk_plan **out, const tk_params *params, unsigned px, size_t max_batch,
                              tk_pool *pool, tk_diag *diag);
void tk_plan_destroy(tk_plan *plan); /* NULL is fine */

/* x: [n][px][px][3] normalised NHWC -> features [n][features]. 1 <= n <= max_batch. The result for one
 * image does not depend on the rest of the batch (bit-identical). One thread at a time per plan. */
void tk_plan_run(tk_plan *plan, size_t n, const float *x, float *features);

size_t tk_plan_bytes(const tk_plan *plan);

#endif
