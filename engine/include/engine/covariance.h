/* What a trunk's convolutions read: for each one the uncentred covariance of its input vectors x,
 *
 *     C = sum over images of 1/P sum over P pixels of x x^T
 *
 * (Wang et al. 2021, 2103.07113, eq. 8; Saha et al. 2021, 2103.09762, section 5.) It is additive
 * over data sets and holds no image. A change D of the layer's weights changes what it answers to
 * these inputs by sum |x^T D|^2 = tr(D^T C D).
 *
 * x is the unfolded patch [k*k*ic], its order that of the weights' rows, while the triangle of C
 * fits the limit; above it x is a pixel of the input [ic], and each of the k*k taps' slices of the
 * weights has to be right for it: stricter, since taps that cancel each other do not count, and k^4
 * times smaller. All triangles together, in MiB, for limits (of a layer) of 4 and 12 MiB, and
 * without one:
 *
 *     resnet20   4.4   4.4   4.4        resnet18  15.5   55.5  175.6
 *     resnet32   7.7   7.7   7.7        resnet34  28.9  149.0  349.0
 *     resnet56  14.4  14.4  14.4        resnet50  49.8  109.8  229.8
 */
#ifndef ENGINE_COVARIANCE_H
#define ENGINE_COVARIANCE_H

#include "engine/graph.h"

typedef struct tk_covariance_layer {
    size_t param; /* the convolution, in tk_params.table */
    size_t n;     /* floats of x */
    size_t taps;  /* 1: x is a patch; else k*k, and x a pixel */
    float *c;     /* the lower triangle by rows: (i, j <= i) at i * (i + 1) / 2 + j */
} tk_covariance_layer;

typedef struct tk_covariance {
    size_t limit;  /* bytes of a layer's triangle of patches, at most */
    double images; /* that were added */
    size_t layers;
    tk_covariance_layer *layer; /* [layers], in the table's order */
    size_t floats;
    float *data; /* [floats], all the triangles */
} tk_covariance;

/* Zeros for the trunk's convolutions. Free with tk_covariance_destroy(). */
TK_MUST tk_err tk_covariance_create(tk_covariance **out, const tk_params *params, size_t limit);
TK_MUST tk_err tk_covariance_clone(tk_covariance **out, const tk_covariance *from);
void tk_covariance_destroy(tk_covariance *covariance); /* NULL is fine */

/* Adds what the trunk's convolutions read of n images x, as for tk_graph_forward(), batch norm
 * frozen. Of each image at most 64 pixels of a layer, drawn by `seed` with replacement, else all: P
 * above. TK_NOMEM leaves *to as it was. The same bits for any number of threads. */
TK_MUST tk_err tk_covariance_add(tk_covariance *to, tk_graph *graph, tk_params *params, size_t n,
                                 const float *x, uint64_t seed);

#endif
