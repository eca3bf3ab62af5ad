/* Integer kernels for AVX512_VNNI: vpdpbusd adds four products u8 x s8 to each of 16 int32 sums. */
#include <immintrin.h>

#include "kernels/tile.h"

typedef __m512i lowp_acc;

TK__INLINE lowp_acc lowp_zero(void)
{
    return _mm512_setzero_si512();
}

TK__INLINE lowp_acc lowp_dot(lowp_acc acc, __m512i a, __m512i b)
{
    return _mm512_dpbusd_epi32(acc, a, b);
}

TK__INLINE __m512 lowp_value(lowp_acc acc)
{
    return _mm512_cvtepi32_ps(acc);
}

/* tk__to_bf16() of each */
TK__INLINE __m256i lowp_round(__m512 v)
{
    const __m512i u = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
    const __m512i quiet = _mm512_or_si512(u, _mm512_set1_epi32(0x400000));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(up, nan, quiet), 16));
}

#include "kernels/lowp_tile.h"

const tk__lowp_kernels tk__int8_avx512 = {.name = "int8 avx512", .gemm = gemm, TK__LOWP_INT8};
