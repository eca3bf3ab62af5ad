/* The door to LAPACK: divide and conquer on the tridiagonal form (ssyevd). Debian's OpenBLAS,
 * serial build, is not safe for concurrent callers, hence the rule in eigen.h. */
#include "net/eigen.h"

#include <assert.h>
#include <limits.h>
#include <math.h>

#include "engine/mem.h"

/* Fortran's; the last two are the lengths of the two strings, as gfortran passes them. */
void ssyevd_(const char *jobz, const char *uplo, const int *n, float *a, const int *lda, float *w,
             float *work, const int *lwork, int *iwork, const int *liwork, int *info, size_t,
             size_t);

tk_err tk__eigen(size_t n, float *a, float *values)
{
    const size_t floats = 1 + 6 * n + 2 * n * n, ints = 3 + 5 * n;
    assert(n >= 1 && floats <= INT_MAX);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j <= i; j++)
            if (!isfinite(a[i * n + j])) return TK_BADDATA;
    const int order = (int)n, lwork = (int)floats, liwork = (int)ints;
    float *work = tk_aligned_calloc(floats, sizeof *work);
    int *iwork = tk_calloc(ints, sizeof *iwork), info = 0;
    tk_err err = work && iwork ? TK_OK : TK_NOMEM;
    /* Fortran's columns are our rows: its upper triangle is our lower one. */
    if (err == TK_OK)
        ssyevd_("V", "U", &order, a, &order, values, work, &lwork, iwork, &liwork, &info, 1, 1);
    assert(info >= 0);
    if (info > 0) err = TK_BADDATA; /* it did not converge */
    tk_free(work);
    tk_free(iwork);
    return err;
}
