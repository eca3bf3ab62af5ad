/* Eigenvectors of a symmetric matrix. */
#ifndef NET_EIGEN_H
#define NET_EIGEN_H

#include <stddef.h>

#include "engine/err.h"

/* a[n][n], of which the lower triangle by rows is read, becomes its orthonormal eigenvectors, one
 * per row, by rising eigenvalue; these go to values [n]. TK_BADDATA: not finite. One caller in the
 * process at a time. The same bits for the same matrix on the same CPU. */
TK_MUST tk_err tk__eigen(size_t n, float *a, float *values);

#endif
