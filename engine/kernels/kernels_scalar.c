/* The scalar kernels: the oracle that the others are tested against, built without fused
 * multiply-add. */
#include "kernels/elementwise.h"
#include "kernels/vec_scalar.h"

enum { NR = 16 };

#include "kernels/norm.h"
#include "kernels/winograd_fp32.h"

/* One row of one panel; the sum of each element runs over k in rising order. */
static void gemm_row(const tk__gemm *g, size_t i)
{
    float acc[NR] = {0};
    const float *a = g->a + i * g->rs;
    for (size_t p = 0; p < g->k; p++) {
        const float *b = g->b + p * g->ldb;
        const float v = a[p * g->cs];
        for (size_t j = 0; j < NR; j++)
            acc[j] += v * b[j];
    }
    float *c = g->c + i * g->ldc;
    for (size_t j = 0; j < g->n; j++) {
        float v = acc[j];
        if (g->accumulate) v += c[j];
        if (g->bias != NULL) v += g->bias[j];
        if (g->residual != NULL) v += g->residual[i * g->ldc + j];
        c[j] = g->relu ? relu_or_nan(v) : v;
    }
}

static void gemm(const tk__gemm *g)
{
    for (size_t i = 0; i < g->m; i++)
        gemm_row(g, i);
}

const tk__kernels tk__kernels_scalar = {.name = "scalar",
                                        .nr = NR,
                                        .mr = 1,
                                        .gemm = gemm,
                                        .transpose = transpose_plainly,
                                        TK__NORM,
                                        TK__WINOGRAD,
                                        TK__ELEMENTWISE};
