/* `vec`, 16 floats: what norm.h and winograd.h are written in. */
#ifndef KERNELS_VEC_AVX512_H
#define KERNELS_VEC_AVX512_H

#include <immintrin.h>

#include "kernels/tile.h"

enum { VL = 16 };

typedef __m512 vec;

TK__INLINE vec vec_set(float v)
{
    return _mm512_set1_ps(v);
}

TK__INLINE vec vec_load(const float *p)
{
    return _mm512_loadu_ps(p);
}

TK__INLINE void vec_store(float *p, vec v)
{
    _mm512_storeu_ps(p, v);
}

TK__INLINE vec vec_fma(vec a, vec b, vec c)
{
    return _mm512_fmadd_ps(a, b, c);
}

TK__INLINE vec vec_fnma(vec a, vec b, vec c)
{
    return _mm512_fnmadd_ps(a, b, c);
}

/* max returns its second operand when one is NaN */
TK__INLINE vec vec_relu(vec v)
{
    return _mm512_max_ps(_mm512_setzero_ps(), v);
}

/* dy, or 0 where act <= 0 */
TK__INLINE vec vec_mask(vec dy, vec act)
{
    const __mmask16 dead = _mm512_cmp_ps_mask(act, _mm512_setzero_ps(), _CMP_LE_OQ);
    return _mm512_mask_mov_ps(dy, dead, _mm512_setzero_ps());
}

#endif
