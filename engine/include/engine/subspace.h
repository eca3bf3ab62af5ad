/* The subspace in which vectors have most of their energy, and the projection of matrices off it.
 *
 * For the covariance C = sum x x^T with eigenvalues l_1 >= l_2 >= ... the subspace is spanned by
 * the first r eigenvectors U, r the smallest for which (Saha et al. 2021, 2103.09762, eq. 5)
 *
 *     l_1 + ... + l_r >= share * (l_1 + ... + l_n)
 *
 * and projection off it (there eq. 7; Wang et al. 2021, 2103.07113, eq. 10) is
 *
 *     G <- G - U U^T G,    so that x^T G is then near 0 for every x
 *
 * Eigenvalues that rounding made negative count as 0. */
#ifndef ENGINE_SUBSPACE_H
#define ENGINE_SUBSPACE_H

#include <stdbool.h>
#include <stddef.h>

#include "engine/err.h"
#include "engine/pool.h"

typedef struct tk_subspace {
    size_t n, rank;  /* of the space, and r */
    size_t columns;  /* of `basis`: the smaller of r and n - r */
    bool complement; /* `basis` is that of all that is left, instead of U */
    float *basis;    /* [columns][n], orthonormal rows */
} tk_subspace;

/* From C's lower triangle by rows (engine/covariance.h); share 0..1. TK_BADDATA: C is not finite.
 * One caller in the process at a time. Free with tk_subspace_fini(), also a zeroed one. */
TK_MUST tk_err tk_subspace_init(tk_subspace *out, size_t n, const float *triangle, double share,
                                tk_diag *diag);
void tk_subspace_fini(tk_subspace *subspace);

/* A matrix to project, in place. */
typedef struct tk_projected {
    const tk_subspace *off;
    float *g;    /* [off->n][cols] */
    size_t cols; /* a multiple of 16 */
} tk_projected;

/* Floats of scratch that projecting `count` matrices takes on this pool. */
size_t tk_subspace_scratch(size_t count, const tk_projected *list, const tk_pool *pool);
/* Projects them all. The same bits for any number of threads. */
void tk_subspace_project(size_t count, const tk_projected *list, float *scratch, tk_pool *pool);

#endif
