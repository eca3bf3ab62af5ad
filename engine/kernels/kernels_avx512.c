/* AVX-512 kernels: the matrix product in register tiles of up to 14 rows x 32 columns.
 *
 * 28 of the 32 vector registers hold the tile, two the row of B, one the broadcast element of A. A
 * panel of m rows is cut into tiles of nearly equal height, so that 16 rows are 8 + 8 and not 14
 * + 2. */
#include <immintrin.h>

#include "kernels/elementwise.h"
#include "kernels/prefetch.h"
#include "kernels/vec_avx512.h"

enum { MR = 14, NR = 32 };

#include "kernels/norm.h"
#include "kernels/winograd_fp32.h"

/* Element of A in tile row `i`: five base pointers, three rows apart, and two strides that an
 * address can hold (rs, 2 rs) reach all 14 rows without a multiplication. */
TK__INLINE __m512 load_a(const float *const p[5], size_t i, size_t rs, bool unit_rows)
{
    return _mm512_set1_ps(unit_rows ? p[0][i] : p[i / 3][i % 3 * rs]);
}

TK__INLINE __m512 finish(const tk__gemm *g, __m512 v, size_t at, size_t col, __mmask16 mask)
{
    if (g->accumulate) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, g->c + at));
    if (g->bias != NULL) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, g->bias + col));
    if (g->residual != NULL) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, g->residual + at));
    return g->relu ? vec_relu(v) : v;
}

/* acc += a column of A times a row of B. */
TK__INLINE void step(__m512 acc[MR][2], const float *p[5], const float *b, size_t mr, size_t nv,
                     size_t rs, size_t cs, bool unit_rows)
{
    const __m512 b0 = _mm512_loadu_ps(b);
    const __m512 b1 = nv > 1 ? _mm512_loadu_ps(b + VL) : b0;
    TK__UNROLL
    for (size_t i = 0; i < mr; i++) {
        const __m512 v = load_a(p, i, rs, unit_rows);
        acc[i][0] = _mm512_fmadd_ps(v, b0, acc[i][0]);
        if (nv > 1) acc[i][1] = _mm512_fmadd_ps(v, b1, acc[i][1]);
    }
    p[0] += cs, p[1] += cs, p[2] += cs, p[3] += cs, p[4] += cs;
}

/* Rows i0 .. i0+mr-1. mr, nv and unit_rows are constants at every call: the loops unroll. */
TK__INLINE void tile(const tk__gemm *g, size_t i0, size_t mr, size_t nv, bool unit_rows)
{
    const size_t rs = g->rs, cs = unit_rows ? g->cs : 1, ldb = g->ldb;
    const float *a = g->a + i0 * rs, *b = g->b;
    const float *p[5] = {a, a + 3 * rs, a + 6 * rs, a + 9 * rs, a + 12 * rs};
    prefetch_rows next = prefetch_begin(g, i0, mr);
    __m512 acc[MR][2];
    TK__UNROLL
    for (size_t i = 0; i < mr; i++)
        acc[i][0] = acc[i][1] = _mm512_setzero_ps();
    size_t k = 0;
    if (prefetches(g))
        for (; k < g->k; k++, b += ldb) {
            prefetch_step(g, i0, k, mr, &next);
            step(acc, p, b, mr, nv, rs, cs, unit_rows);
        }
    for (; k < g->k; k++, b += ldb)
        step(acc, p, b, mr, nv, rs, cs, unit_rows);
    const __mmask16 last = (__mmask16)(0xffffu >> (nv * VL - g->n));
    TK__UNROLL
    for (size_t i = 0; i < mr; i++) {
        const size_t at = (i0 + i) * g->ldc;
        const __mmask16 m0 = nv > 1 ? 0xffff : last;
        _mm512_mask_storeu_ps(g->c + at, m0, finish(g, acc[i][0], at, 0, m0));
        if (nv > 1)
            _mm512_mask_storeu_ps(g->c + at + VL, last, finish(g, acc[i][1], at + VL, VL, last));
    }
}

TK__INLINE void tile_of(const tk__gemm *g, size_t i0, size_t mr, size_t nv, bool unit_rows)
{
    switch (mr) {
    case 1:
        tile(g, i0, 1, nv, unit_rows);
        break;
    case 2:
        tile(g, i0, 2, nv, unit_rows);
        break;
    case 3:
        tile(g, i0, 3, nv, unit_rows);
        break;
    case 4:
        tile(g, i0, 4, nv, unit_rows);
        break;
    case 5:
        tile(g, i0, 5, nv, unit_rows);
        break;
    case 6:
        tile(g, i0, 6, nv, unit_rows);
        break;
    case 7:
        tile(g, i0, 7, nv, unit_rows);
        break;
    case 8:
        tile(g, i0, 8, nv, unit_rows);
        break;
    case 9:
        tile(g, i0, 9, nv, unit_rows);
        break;
    case 10:
        tile(g, i0, 10, nv, unit_rows);
        break;
    case 11:
        tile(g, i0, 11, nv, unit_rows);
        break;
    case 12:
        tile(g, i0, 12, nv, unit_rows);
        break;
    case 13:
        tile(g, i0, 13, nv, unit_rows);
        break;
    default:
        tile(g, i0, 14, nv, unit_rows);
        break;
    }
}

static void gemm(const tk__gemm *g)
{
    if (g->m == 0 || g->n == 0) return;
    const size_t tiles = (g->m + MR - 1) / MR;
    for (size_t t = 0, i0 = 0; t < tiles; t++) {
        const size_t mr = g->m / tiles + (t < g->m % tiles);
        if (g->cs == 1 && g->n > VL)
            tile_of(g, i0, mr, 2, false);
        else if (g->cs == 1)
            tile_of(g, i0, mr, 1, false);
        else if (g->n > VL)
            tile_of(g, i0, mr, 2, true);
        else
            tile_of(g, i0, mr, 1, true);
        i0 += mr;
    }
}

/* Four rounds of interleaving: pairs of lanes, of twos, of fours, of eights. */
static void transpose(const float *from, size_t ld, float *to, size_t to_ld)
{
    __m512 a[VL], b[VL];
    TK__UNROLL
    for (size_t i = 0; i < VL; i++)
        a[i] = _mm512_loadu_ps(from + i * ld);
    TK__UNROLL
    for (size_t i = 0; i < VL; i += 2) {
        b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
    TK__UNROLL
    for (size_t i = 0; i < VL; i += 4) {
        a[i] = _mm512_shuffle_ps(b[i], b[i + 2], 0x44);
        a[i + 1] = _mm512_shuffle_ps(b[i], b[i + 2], 0xee);
        a[i + 2] = _mm512_shuffle_ps(b[i + 1], b[i + 3], 0x44);
        a[i + 3] = _mm512_shuffle_ps(b[i + 1], b[i + 3], 0xee);
    }
    TK__UNROLL
    for (size_t i = 0; i < 4; i++) {
        b[i] = _mm512_shuffle_f32x4(a[i], a[i + 4], 0x88);
        b[i + 4] = _mm512_shuffle_f32x4(a[i], a[i + 4], 0xdd);
        b[i + 8] = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0x88);
        b[i + 12] = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0xdd);
    }
    TK__UNROLL
    for (size_t i = 0; i < 8; i++) {
        _mm512_storeu_ps(to + i * to_ld, _mm512_shuffle_f32x4(b[i], b[i + 8], 0x88));
        _mm512_storeu_ps(to + (i + 8) * to_ld, _mm512_shuffle_f32x4(b[i], b[i + 8], 0xdd));
    }
}

const tk__kernels tk__kernels_avx512 = {.name = "avx512",
                                        .nr = NR,
                                        .mr = MR,
                                        .gemm = gemm,
                                        .transpose = transpose,
                                        TK__NORM,
                                        TK__WINOGRAD,
                                        TK__ELEMENTWISE};
