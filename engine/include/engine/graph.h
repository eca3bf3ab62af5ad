/* The training graph: a trunk that keeps its activations and gives gradients.
 *
 * Memory is planned once for the largest batch; forward and backward allocate nothing. All images are
 * NHWC fp32, already normalised. One thread at a time; the work is spread over the pool. Results are
 * bit-identical for the same inputs, thread count and instruction set.
 *
 *     tk_graph_forward(g, params, n, x, TK_BN_FROZEN, &features);
 *     ... loss on features gives dfeatures ...
 *     tk_graph_backward(g, params, dfeatures, grads);
 */
#ifndef ENGINE_GRAPH_H
#define ENGINE_GRAPH_H

#include "engine/net.h"
#include "engine/pool.h"
#include "engine/precision.h"
#include "engine/side.h"

typedef enum tk_bn_mode {
    TK_BN_BATCH,  /* statistics of the batch (biased variance), running ones updated with momentum 0.1
                     and the unbiased variance, as PyTorch does */
    TK_BN_FROZEN, /* running statistics, constant; gamma and beta still get gradients */
} tk_bn_mode;

typedef struct tk_graph tk_graph;

/* `pool` is borrowed and must outlive the graph. */
TK_MUST tk_err tk_graph_create(tk_graph **out, tk_arch arch, unsigned px, size_t max_batch,
                               tk_pool *pool, tk_diag *diag);
/* The same, computing in `precision`: tk_graph_create()'s TK_PRECISION_FP32, or TK_PRECISION_BF16, which
 * rounds the operands of the convolutions' matrix products to bfloat16 (images, activations, weights and
 * gradients as they enter a product). What is kept or summed stays fp32: parameters, activations,
 * gradients, batch norm, and all of tk_graph_backward_squares()'s weight gradients. Faster than fp32 only
 * where tk_precision_native() says so; elsewhere it gives the same up to rounding, slowly. Every other
 * precision is TK_BADARG. */
TK_MUST tk_err tk_graph_create_as(tk_graph **out, tk_arch arch, unsigned px, size_t max_batch,
                                  tk_precision precision, tk_pool *pool, tk_diag *diag);
void tk_graph_destroy(tk_graph *graph); /* NULL is fine */

/* x: [n][px][px][3], copied; *features borrows [n][features] until the next forward. 1 <= n <= max_batch.
 * TK_BN_BATCH writes the running statistics in `params`; TK_BN_FROZEN only reads them. A NaN in an image
 * reaches its features and the gradients; nothing traps. */
void tk_graph_forward(tk_graph *graph, tk_params *params, size_t n, const float *x, tk_bn_mode mode,
                      const float **features);

/* Gradients of the last forward: dfeatures [n][features] -> grads [params->trained], overwritten,
 * padding zero. The parameters must be those of the forward. */
void tk_graph_backward(tk_graph *graph, const tk_params *params, const float *dfeatures,
                       float *grads);

/* Per-sample squares, for the Fisher diagonal: squares[j] += sum over i of (d L_i / d theta_j)^2,
 * where dfeatures[i] and dside[i] (NULL: nothing comes through a side) are the gradients of sample i's
 * own loss. After a TK_BN_FROZEN forward only (samples are then independent). */
void tk_graph_backward_squares(tk_graph *graph, const tk_params *params, const float *dfeatures,
                               const float *dside, float *squares);

/* Gives the graph a side, or other weights for it, or takes it away (rank 0); the weights are copied.
 * Allocates only when the rank changes. TK_BADARG: it is another architecture's. On failure the graph
 * has no side. */
TK_MUST tk_err tk_graph_set_side(tk_graph *graph, const tk_side *side, tk_diag *diag);
/* The side outputs z [n][S][rank] of the last forward; borrowed until the next, NULL without a side. */
const float *tk_graph_side(const tk_graph *graph);
/* tk_graph_backward() for a loss that also depends on z: dside [n][S][rank], NULL for none. The side's
 * weights are those of the forward. */
void tk_graph_backward_through(tk_graph *graph, const tk_params *params, const float *dfeatures,
                               const float *dside, float *grads);
/* The gradient of the side's own weights: grads [tk_side_size()], overwritten. Before the trunk's
 * backward of the same forward, or without it. */
void tk_graph_side_backward(tk_graph *graph, const float *dside, float *grads);

/* The first layer, in forward order and by its weights' name ("layer1.0.conv1.weight"), whose output in
 * the last forward holds a NaN or an infinity; NULL if there is none. */
const char *tk_graph_nonfinite(const tk_graph *graph, const tk_params *params);

/* Bytes the graph holds. */
size_t tk_graph_bytes(const tk_graph *graph);

#endif
