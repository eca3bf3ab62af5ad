/* The inference plan: a trunk made ready to serve. Batch norm is folded into the convolutions, ReLU
 * and residual additions are fused, weights are packed once, memory is planned for the largest
 * batch: a run allocates nothing. The plan copies what it needs, so the parameters may go. */
#ifndef ENGINE_PLAN_H
#define ENGINE_PLAN_H

#include "engine/net.h"
#include "engine/pool.h"
#include "engine/precision.h"
#include "engine/side.h"

typedef struct tk_plan tk_plan;

TK_MUST tk_err tk_plan_create(tk_plan **out, const tk_params *params, unsigned px, size_t max_batch,
                              tk_pool *pool, tk_diag *diag);
/* The reference: every convolution a product of its patches, none by Winograd. Slower, and the same
 * to within rounding. */
TK_MUST tk_err tk_plan_create_direct(tk_plan **out, const tk_params *params, unsigned px,
                                     size_t max_batch, tk_pool *pool, tk_diag *diag);
/* The same in another precision: run, destroy and bytes serve all. `ranges` (copied) is needed for
 * int8 and else ignored; TK_BADARG if it does not belong to this architecture. A NaN in an image
 * reaches its features in fp32 and bf16, not in int8. */
TK_MUST tk_err tk_plan_create_as(tk_plan **out, const tk_params *params, unsigned px,
                                 size_t max_batch, tk_precision precision,
                                 const tk_calibration *ranges, tk_pool *pool, tk_diag *diag);
void tk_plan_destroy(tk_plan *plan); /* NULL is fine */

/* x: [n][px][px][3] normalised NHWC -> features [n][features]. 1 <= n <= max_batch. The result for
 * one image does not depend on the rest of the batch (bit-identical). One thread at a time per
 * plan. */
void tk_plan_run(tk_plan *plan, size_t n, const float *x, float *features);

/* Gives the plan a side (copied), or another one, or none (rank 0): fp32 whatever the plan's
 * precision, which then decides about the maps that it reads. TK_BADARG: it is another
 * architecture's. On failure the plan has no side. */
TK_MUST tk_err tk_plan_set_side(tk_plan *plan, const tk_side *side, tk_diag *diag);
/* tk_plan_run() that also gives the side outputs z [n][S][rank]; NULL: they are not computed.
 * `rows` [rank] says which are wanted (NULL: all); what stands in z of the others is not specified.
 */
void tk_plan_run_side(tk_plan *plan, size_t n, const float *x, float *features, float *z,
                      const bool *rows);

size_t tk_plan_bytes(const tk_plan *plan);
/* For a log: precision, instruction set, and how many convolutions go which way ("fp32, avx512: 13
 * of 20 convolutions by Winograd, 13 of them F(4x4), 64 MiB"). The choice depends on the
 * architecture, the input size and the precision only. At most `size` bytes, with the NUL. */
void tk_plan_describe(const tk_plan *plan, char *text, size_t size);

/* Runs an fp32 plan on x as tk_plan_run() does, and widens *ranges, which is zeroed before the
 * first call, to the largest magnitude in each map. Some hundred images that look like those to
 * come, over any number of calls, are enough. TK_BADARG if the plan is not fp32 or *ranges belongs
 * to another architecture. */
TK_MUST tk_err tk_plan_calibrate(tk_plan *plan, size_t n, const float *x, tk_calibration *ranges,
                                 tk_diag *diag);

#endif
