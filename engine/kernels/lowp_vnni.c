/* Integer kernels for AVX512_VNNI: vpdpbusd adds four products u8 x s8 to each of 16 int32 sums. */
#include <immintrin.h>

#include "kernels/tile.h"

typedef __m512i lowp_acc;

TK__INLINE lowp_acc lowp_zero(void)
{
    return _mm512_setzero_si512();
}

TK__INLINE lowp_acc lowp_load(const void *p)
{
    return _mm512_loadu_si512(p);
}

TK__INLINE void lowp_store(void *p, lowp_acc acc)
{
    _mm512_storeu_si512(p, acc);
}

TK__INLINE lowp_acc lowp_dot(lowp_acc acc, __m512i a, __m512i b)
{
    return _mm512_dpbusd_epi32(acc, a, b);
}

TK__INLINE __m512 lowp_value(lowp_acc acc)
{
    return _mm512_cvtepi32_ps(acc);
}

#include "kernels/lowp_tile.h"

const tk__lowp_kernels tk__int8_avx512 = {.name = "int8 avx512", .gemm = gemm, TK__LOWP_INT8};
