/* `vec`, a float: what norm.h and winograd.h are written in. */
#ifndef KERNELS_VEC_SCALAR_H
#define KERNELS_VEC_SCALAR_H

#include "kernels/tile.h"

enum { VL = 1 };

typedef float vec;

TK__INLINE vec vec_set(float v)
{
    return v;
}

TK__INLINE vec vec_load(const float *p)
{
    return *p;
}

TK__INLINE void vec_store(float *p, vec v)
{
    *p = v;
}

TK__INLINE vec vec_fma(vec a, vec b, vec c)
{
    return a * b + c;
}

TK__INLINE vec vec_fnma(vec a, vec b, vec c)
{
    return c - a * b;
}

TK__INLINE vec vec_relu(vec v)
{
    return v < 0.0f ? 0.0f : v;
}

/* dy, or 0 where act <= 0 */
TK__INLINE vec vec_mask(vec dy, vec act)
{
    return act <= 0.0f ? 0.0f : dy;
}

#endif
