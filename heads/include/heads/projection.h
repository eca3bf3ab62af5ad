/* Protection by projection: what a convolution learns must not change its answers to what the old
 * tasks' images made it read (Adam-NSCL, Wang et al. 2021, 2103.07113; Gradient Projection Memory,
 * Saha et al. 2021, 2103.09762). No image is kept: a version carries the covariances of its
 * convolutions' inputs (engine/covariance.h), to which every committed job adds those of its own
 * images, and a later job projects each step off the subspace U that holds most of their energy
 * (engine/subspace.h has the equations):
 *
 *     dW <- dW - U U^T dW,    for every convolution, U [inputs][rank], dW [inputs][outputs]
 *
 * Momentum and the clipped gradient are linear in the gradient, so that projecting gradients
 * projects steps. Weight decay is not, hence there is none with projection. Scale and shift of
 * batch norm act after the convolution, where no input protects them: they are frozen, as the
 * statistics are. */
#ifndef HEADS_PROJECTION_H
#define HEADS_PROJECTION_H

#include "engine/covariance.h"
#include "heads/canvases.h"

typedef struct tk_inputs_opts {
    const tk_canvases *canvases;
    size_t n;               /* images */
    const uint32_t *images; /* [n] */
    uint64_t seed;
    size_t max_batch; /* of the graph */
    const tk_watch *watch;
} tk_inputs_opts;

/* Adds to *to what the trunk's convolutions read of these images, in centred views, batch norm
 * frozen. `params` is not changed. TK_DIVERGED when a value is not finite; *to is then not usable,
 * nor after TK_CANCELLED. */
TK_MUST tk_err tk_inputs_add(tk_covariance *to, tk_graph *graph, tk_params *params,
                             const tk_preproc *preproc, const tk_inputs_opts *opts, tk_pool *pool,
                             tk_diag *diag);

typedef struct tk_projection tk_projection;

/* Off the subspaces that hold `share` (0..1) of the energy of each layer's inputs. Everything but
 * `pool` may go afterwards. One caller in the process at a time. TK_BADDATA: a covariance is not
 * finite; TK_CANCELLED. */
TK_MUST tk_err tk_projection_create(tk_projection **out, const tk_covariance *inputs,
                                    const tk_params *params, double share, tk_pool *pool,
                                    const tk_watch *watch, tk_diag *diag);
void tk_projection_destroy(tk_projection *projection); /* NULL is fine */
/* Part of the convolutions' dimensions that may still move, 0..1. */
double tk_projection_freedom(const tk_projection *projection);
/* Projects a change [trained] of the trunk `params`, in place; batch norm's part becomes zero. The
 * same bits for any number of threads. */
void tk_projection_apply(tk_projection *projection, const tk_params *params, float *change);

#endif
