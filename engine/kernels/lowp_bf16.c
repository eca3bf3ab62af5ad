/* bfloat16 kernels for AVX512_BF16: vdpbf16ps adds two products to each of 16 fp32 sums. */
#include <immintrin.h>

#include "kernels/tile.h"

typedef __m512 lowp_acc;

TK__INLINE lowp_acc lowp_zero(void)
{
    return _mm512_setzero_ps();
}

TK__INLINE lowp_acc lowp_dot(lowp_acc acc, __m512i a, __m512i b)
{
    return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b);
}

TK__INLINE __m512 lowp_value(lowp_acc acc)
{
    return acc;
}

/* The CPU's own rounding; it takes values below 2^-126 for zero. */
TK__INLINE __m256i lowp_round(__m512 v)
{
    return (__m256i)_mm512_cvtneps_pbh(v);
}

#include "kernels/lowp_tile.h"

typedef __m512 wino_lane;
enum { WINO_LANES = VL };

TK__INLINE __m512 wino_load(const uint16_t *p)
{
    return load_bf16_lanes(p);
}

TK__INLINE void wino_store(uint16_t *p, __m512 v)
{
    _mm256_storeu_si256((void *)p, lowp_round(v));
}

TK__INLINE __m512 wino_sums(const float *p)
{
    return _mm512_loadu_ps(p);
}

TK__INLINE __m512 wino_relu(__m512 v)
{
    return relu(v);
}

#include "kernels/lowp_winograd.h"

const tk__lowp_kernels tk__bf16_avx512 = {
    .name = "bf16 avx512", .gemm = gemm, TK__LOWP_BF16, TK__LOWP_WINOGRAD};
