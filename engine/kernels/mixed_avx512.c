/* Kernels of mixed precision for AVX512_BF16. */
#include "kernels/mixed.h"
#include "kernels/vec_avx512.h"

/* 16 words with a number in their low halves. The CPU's own rounding takes values below 2^-126 for
 * zero. */
TK__INLINE __m512i low_halves(vec v)
{
    return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(v));
}

TK__INLINE void vec_store_half(uint16_t *p, vec v)
{
    _mm256_storeu_si256((void *)p, (__m256i)_mm512_cvtneps_pbh(v));
}

TK__INLINE void vec_store_low(uint32_t *p, vec v)
{
    _mm512_storeu_si512(p, low_halves(v));
}

TK__INLINE void vec_store_high(uint32_t *p, vec v)
{
    const __m512i high = _mm512_slli_epi32(low_halves(v), 16);
    _mm512_storeu_si512(p, _mm512_or_si512(_mm512_loadu_si512(p), high));
}

#include "kernels/mixed_winograd.h"

const tk__mixed tk__mixed_avx512 = {.lowp = &tk__bf16_avx512, .pair = pair, TK__MIXED_WINOGRAD};
