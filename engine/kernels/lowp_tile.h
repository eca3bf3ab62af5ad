/* The low-precision matrix product in register tiles of up to 14 rows x 32 columns; included by a
 * file that defines what a step is:
 *
 *     lowp_acc              the register of 16 sums, and lowp_zero()
 *     lowp_dot(acc, a, b)   acc + one step's products
 *     lowp_value(acc)       the sums as floats
 *     lowp_round(v)         16 floats as bfloat16
 *
 * A tile's sums go through a small buffer to the epilogue, which is compiled once for each kind of
 * residual and output. 28 of the 32 vector registers hold the tile, two the row of B, one the
 * broadcast step of A. */
#ifndef KERNELS_LOWP_TILE_H
#define KERNELS_LOWP_TILE_H

#include <immintrin.h>

#include "kernels/lowp_elementwise.h"

enum { MR = TK__LOWP_MR, VL = 16, WORD = 4 };

/* The step of A in tile row `i`: five base pointers, three rows apart, and two strides that an
 * address can hold reach all 14 rows without a multiplication. */
TK__INLINE __m512i load_step(const unsigned char *const p[5], size_t i, size_t pitch)
{
    int word;
    memcpy(&word, p[i / 3] + i % 3 * pitch, sizeof word);
    return _mm512_set1_epi32(word);
}

enum { NO_RESIDUAL = -1 };

TK__INLINE __m512 load_bf16_lanes(const uint16_t *p)
{
    const __m512i v = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
}

/* max returns its second operand, the NaN; adding 0 turns -0 into 0 */
TK__INLINE __m512 relu(__m512 v)
{
    return _mm512_add_ps(_mm512_max_ps(_mm512_setzero_ps(), v), _mm512_setzero_ps());
}

TK__INLINE __m512 load_residual(const tk__lowp_gemm *g, int kind, size_t at)
{
    if (kind == TK__MAP_U8) {
        const uint8_t *q = (const uint8_t *)g->residual + at;
        const __m512i v = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)q));
        return _mm512_mul_ps(_mm512_cvtepi32_ps(v), _mm512_set1_ps(g->residual_scale));
    }
    return load_bf16_lanes((const uint16_t *)g->residual + at);
}

TK__INLINE void store_u8(const tk__lowp_gemm *g, __m512 v, size_t at)
{
    /* max returns its second operand when one is NaN */
    const __m512 q =
        _mm512_max_ps(_mm512_mul_ps(v, _mm512_set1_ps(g->inverse)), _mm512_setzero_ps());
    const __m512i n = _mm512_cvtps_epi32(_mm512_min_ps(q, _mm512_set1_ps(255.0f)));
    _mm_storeu_si128((void *)((uint8_t *)g->out + at), _mm512_cvtepi32_epi8(n));
}

/* Rows i0.. from their sums. The kinds (residual: or NO_RESIDUAL) are constants at every call. */
TK__INLINE void finish_as(const tk__lowp_gemm *g, size_t i0, size_t mr,
                          lowp_acc sums[TK__LOWP_MR][2], int residual, tk__lowp_kind out)
{
    for (size_t col = 0; col < g->n; col += VL) {
        const __m512 scale =
            g->scale != NULL ? _mm512_loadu_ps(g->scale + col) : _mm512_set1_ps(1.0f);
        const __m512 bias = _mm512_loadu_ps(g->bias + col);
        for (size_t i = 0; i < mr; i++) {
            const size_t at = (i0 + i) * g->ldo + col;
            __m512 v = _mm512_add_ps(_mm512_mul_ps(lowp_value(sums[i][col / VL]), scale), bias);
            if (residual != NO_RESIDUAL) v = _mm512_add_ps(v, load_residual(g, residual, at));
            if (g->relu) v = relu(v);
            if (out == TK__MAP_U8)
                store_u8(g, v, at);
            else
                _mm256_storeu_si256((void *)((uint16_t *)g->out + at), lowp_round(v));
        }
    }
}

static void finish(const tk__lowp_gemm *g, size_t i0, size_t mr, lowp_acc sums[TK__LOWP_MR][2])
{
    if (g->out_kind == TK__MAP_U8) {
        if (g->residual == NULL)
            finish_as(g, i0, mr, sums, NO_RESIDUAL, TK__MAP_U8);
        else if (g->residual_kind == TK__MAP_U8)
            finish_as(g, i0, mr, sums, TK__MAP_U8, TK__MAP_U8);
        else
            finish_as(g, i0, mr, sums, TK__MAP_BF16, TK__MAP_U8);
    } else {
        if (g->residual == NULL)
            finish_as(g, i0, mr, sums, NO_RESIDUAL, TK__MAP_BF16);
        else if (g->residual_kind == TK__MAP_U8)
            finish_as(g, i0, mr, sums, TK__MAP_U8, TK__MAP_BF16);
        else
            finish_as(g, i0, mr, sums, TK__MAP_BF16, TK__MAP_BF16);
    }
}

TK__INLINE void store_sums(const tk__lowp_gemm *g, float *out, __m512 v)
{
    _mm512_storeu_ps(out, g->accumulate ? _mm512_add_ps(_mm512_loadu_ps(out), v) : v);
}

/* Rows i0 .. i0+mr-1. mr and nv are constants at every call: the loops unroll. */
TK__INLINE void tile(const tk__lowp_gemm *g, size_t i0, size_t mr, size_t nv)
{
    const size_t pitch = g->pitch, row = g->b_pitch != 0 ? g->b_pitch : nv * VL * WORD;
    const unsigned char *a = g->a + i0 * pitch, *b = g->b;
    lowp_acc acc[MR][2];
    TK__UNROLL
    for (size_t i = 0; i < mr; i++)
        acc[i][0] = acc[i][1] = lowp_zero();
    for (size_t r = 0; r < g->segments; r++, a += g->segment_pitch) {
        const unsigned char *p[5] = {a, a + 3 * pitch, a + 6 * pitch, a + 9 * pitch,
                                     a + 12 * pitch};
        for (size_t s = 0; s < g->steps; s++, b += row) {
            const __m512i b0 = _mm512_loadu_si512(b);
            const __m512i b1 = nv > 1 ? _mm512_loadu_si512(b + VL * WORD) : b0;
            TK__UNROLL
            for (size_t i = 0; i < mr; i++) {
                const __m512i v = load_step(p, i, pitch);
                acc[i][0] = lowp_dot(acc[i][0], v, b0);
                if (nv > 1) acc[i][1] = lowp_dot(acc[i][1], v, b1);
            }
            p[0] += WORD, p[1] += WORD, p[2] += WORD, p[3] += WORD, p[4] += WORD;
        }
    }
    if (g->out_kind == TK__SUMS) {
        TK__UNROLL
        for (size_t i = 0; i < mr; i++) {
            float *out = (float *)g->out + (i0 + i) * g->ldo;
            store_sums(g, out, lowp_value(acc[i][0]));
            if (nv > 1) store_sums(g, out + VL, lowp_value(acc[i][1]));
        }
        return;
    }
    lowp_acc sums[MR][2];
    TK__UNROLL
    for (size_t i = 0; i < mr; i++) {
        sums[i][0] = acc[i][0];
        sums[i][1] = acc[i][1];
    }
    finish(g, i0, mr, sums);
}

TK__INLINE void tile_of(const tk__lowp_gemm *g, size_t i0, size_t mr, size_t nv)
{
    switch (mr) {
    case 1:
        tile(g, i0, 1, nv);
        break;
    case 2:
        tile(g, i0, 2, nv);
        break;
    case 3:
        tile(g, i0, 3, nv);
        break;
    case 4:
        tile(g, i0, 4, nv);
        break;
    case 5:
        tile(g, i0, 5, nv);
        break;
    case 6:
        tile(g, i0, 6, nv);
        break;
    case 7:
        tile(g, i0, 7, nv);
        break;
    case 8:
        tile(g, i0, 8, nv);
        break;
    case 9:
        tile(g, i0, 9, nv);
        break;
    case 10:
        tile(g, i0, 10, nv);
        break;
    case 11:
        tile(g, i0, 11, nv);
        break;
    case 12:
        tile(g, i0, 12, nv);
        break;
    case 13:
        tile(g, i0, 13, nv);
        break;
    default:
        tile(g, i0, 14, nv);
        break;
    }
}

/* Rows in tiles of nearly equal height. */
static void gemm(const tk__lowp_gemm *g)
{
    const size_t tiles = (g->m + MR - 1) / MR;
    for (size_t t = 0, i0 = 0; t < tiles; t++) {
        const size_t mr = g->m / tiles + (t < g->m % tiles);
        if (g->n > VL)
            tile_of(g, i0, mr, 2);
        else
            tile_of(g, i0, mr, 1);
        i0 += mr;
    }
}

#endif
