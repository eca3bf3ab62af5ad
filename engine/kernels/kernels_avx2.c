/* AVX2 + FMA kernels: the matrix product in register tiles of up to 6 rows x 16 columns: 12 of the
 * 16 vector registers hold the tile, two the row of B, one the broadcast element of A. */
#include <immintrin.h>

#include "kernels/elementwise.h"
#include "kernels/prefetch.h"

enum { MR = 6, NR = 16, VL = 8 };

typedef __m256 vec;

TK__INLINE vec vec_set(float v)
{
    return _mm256_set1_ps(v);
}

TK__INLINE vec vec_load(const float *p)
{
    return _mm256_loadu_ps(p);
}

TK__INLINE void vec_store(float *p, vec v)
{
    _mm256_storeu_ps(p, v);
}

TK__INLINE vec vec_fma(vec a, vec b, vec c)
{
    return _mm256_fmadd_ps(a, b, c);
}

TK__INLINE vec vec_fnma(vec a, vec b, vec c)
{
    return _mm256_fnmadd_ps(a, b, c);
}

/* max returns its second operand when one is NaN */
TK__INLINE vec vec_relu(vec v)
{
    return _mm256_max_ps(_mm256_setzero_ps(), v);
}

/* dy, or 0 where act <= 0 */
TK__INLINE vec vec_mask(vec dy, vec act)
{
    return _mm256_andnot_ps(_mm256_cmp_ps(act, _mm256_setzero_ps(), _CMP_LE_OQ), dy);
}

#include "kernels/norm.h"
#include "kernels/winograd_fp32.h"

/* Lanes below n of a vector of 8: all ones. */
TK__INLINE __m256i lane_mask(size_t n)
{
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(n < VL ? n : VL)), lanes);
}

TK__INLINE __m256 finish(const tk__gemm *g, __m256 v, size_t at, size_t col, __m256i mask)
{
    if (g->accumulate) v = _mm256_add_ps(v, _mm256_maskload_ps(g->c + at, mask));
    if (g->bias != NULL) v = _mm256_add_ps(v, _mm256_maskload_ps(g->bias + col, mask));
    if (g->residual != NULL) v = _mm256_add_ps(v, _mm256_maskload_ps(g->residual + at, mask));
    return g->relu ? vec_relu(v) : v;
}

/* acc += a column of A times a row of B. */
TK__INLINE void step(__m256 acc[MR][2], const float *p[2], const float *b, size_t mr, size_t rs,
                     size_t cs, bool unit_rows)
{
    const __m256 b0 = _mm256_loadu_ps(b), b1 = _mm256_loadu_ps(b + VL);
    TK__UNROLL
    for (size_t i = 0; i < mr; i++) {
        const __m256 v = _mm256_set1_ps(unit_rows ? p[0][i] : p[i / 3][i % 3 * rs]);
        acc[i][0] = _mm256_fmadd_ps(v, b0, acc[i][0]);
        acc[i][1] = _mm256_fmadd_ps(v, b1, acc[i][1]);
    }
    p[0] += cs, p[1] += cs;
}

/* Rows i0 .. i0+mr-1. mr and unit_rows are constants at every call: the loops unroll. */
TK__INLINE void tile(const tk__gemm *g, size_t i0, size_t mr, bool unit_rows)
{
    const size_t rs = g->rs, cs = unit_rows ? g->cs : 1, ldb = g->ldb;
    const float *a = g->a + i0 * rs, *b = g->b;
    const float *p[2] = {a, a + 3 * rs};
    prefetch_rows next = prefetch_begin(g, i0, mr);
    __m256 acc[MR][2];
    TK__UNROLL
    for (size_t i = 0; i < mr; i++)
        acc[i][0] = acc[i][1] = _mm256_setzero_ps();
    size_t k = 0;
    if (prefetches(g))
        for (; k < g->k; k++, b += ldb) {
            prefetch_step(g, i0, k, mr, &next);
            step(acc, p, b, mr, rs, cs, unit_rows);
        }
    for (; k < g->k; k++, b += ldb)
        step(acc, p, b, mr, rs, cs, unit_rows);
    const __m256i m0 = lane_mask(g->n), m1 = lane_mask(g->n > VL ? g->n - VL : 0);
    TK__UNROLL
    for (size_t i = 0; i < mr; i++) {
        const size_t at = (i0 + i) * g->ldc;
        _mm256_maskstore_ps(g->c + at, m0, finish(g, acc[i][0], at, 0, m0));
        if (g->n > VL)
            _mm256_maskstore_ps(g->c + at + VL, m1, finish(g, acc[i][1], at + VL, VL, m1));
    }
}

TK__INLINE void tile_of(const tk__gemm *g, size_t i0, size_t mr, bool unit_rows)
{
    switch (mr) {
    case 1:
        tile(g, i0, 1, unit_rows);
        break;
    case 2:
        tile(g, i0, 2, unit_rows);
        break;
    case 3:
        tile(g, i0, 3, unit_rows);
        break;
    case 4:
        tile(g, i0, 4, unit_rows);
        break;
    case 5:
        tile(g, i0, 5, unit_rows);
        break;
    default:
        tile(g, i0, 6, unit_rows);
        break;
    }
}

static void gemm(const tk__gemm *g)
{
    if (g->m == 0 || g->n == 0) return;
    const size_t tiles = (g->m + MR - 1) / MR;
    for (size_t t = 0, i0 = 0; t < tiles; t++) {
        const size_t mr = g->m / tiles + (t < g->m % tiles);
        if (g->cs == 1)
            tile_of(g, i0, mr, false);
        else
            tile_of(g, i0, mr, true);
        i0 += mr;
    }
}

const tk__kernels tk__kernels_avx2 = {.name = "avx2",
                                      .nr = NR,
                                      .mr = MR,
                                      .gemm = gemm,
                                      .transpose = transpose_plainly,
                                      TK__NORM,
                                      TK__WINOGRAD,
                                      TK__ELEMENTWISE};
