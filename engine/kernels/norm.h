/* Batch norm's kernels, included once by each instruction set's file after its `vec`. Channels are
 * taken up to four vectors at a time, so that their coefficients and sums stay in registers while
 * the rows go by. Each channel sums over rows in order, multiplied and added apart: every table
 * gives the same bits. */
#ifndef KERNELS_NORM_H
#define KERNELS_NORM_H

#include "kernels/kernels.h"
#include "kernels/tile.h"

enum { NORM_VECS = 4 };

/* Calls f(vectors, first channel, ...) for all of c, a multiple of TK__LANES. */
#define NORM_EACH(c, f, ...)                                                                       \
    for (size_t j0 = 0; j0 < (c);) {                                                               \
        const size_t nv = ((c)-j0) / VL;                                                           \
        if (nv >= 4) {                                                                             \
            f(4, j0, __VA_ARGS__);                                                                 \
            j0 += (size_t)4 * VL;                                                                  \
        } else if (nv >= 2) {                                                                      \
            f(2, j0, __VA_ARGS__);                                                                 \
            j0 += (size_t)2 * VL;                                                                  \
        } else {                                                                                   \
            f(1, j0, __VA_ARGS__);                                                                 \
            j0 += VL;                                                                              \
        }                                                                                          \
    }

TK__INLINE void norm_load(size_t nv, const float *from, vec *v)
{
    TK__UNROLL
    for (size_t k = 0; k < nv; k++)
        v[k] = from != NULL ? vec_load(from + k * VL) : vec_set(0.0f);
}

/* --- forward --- */

TK__INLINE void bn_apply_v(size_t nv, size_t j0, size_t rows, size_t c, const float *u,
                           const float *scale, const float *shift, const float *residual, bool relu,
                           float *y)
{
    vec s[NORM_VECS], t[NORM_VECS];
    norm_load(nv, scale + j0, s);
    norm_load(nv, shift + j0, t);
    for (size_t r = 0, at = j0; r < rows; r++, at += c)
        TK__UNROLL
    for (size_t k = 0; k < nv; k++) {
        vec v = vec_load(u + at + k * VL) * s[k] + t[k];
        if (residual != NULL) v = v + vec_load(residual + at + k * VL);
        vec_store(y + at + k * VL, relu ? vec_relu(v) : v);
    }
}

static void bn_apply(size_t rows, size_t c, const float *u, const float *scale, const float *shift,
                     const float *residual, bool relu, float *y)
{
    if (residual != NULL) {
        NORM_EACH(c, bn_apply_v, rows, c, u, scale, shift, residual, relu, y)
    } else {
        NORM_EACH(c, bn_apply_v, rows, c, u, scale, shift, NULL, relu, y)
    }
}

TK__INLINE void moments_v(size_t nv, size_t j0, size_t rows, size_t c, const float *u, float *mean,
                          float *m2)
{
    vec sum[NORM_VECS], squares[NORM_VECS];
    norm_load(nv, NULL, sum);
    norm_load(nv, NULL, squares);
    for (size_t r = 0, at = j0; r < rows; r++, at += c)
        TK__UNROLL
    for (size_t k = 0; k < nv; k++)
        sum[k] = sum[k] + vec_load(u + at + k * VL);
    TK__UNROLL
    for (size_t k = 0; k < nv; k++) {
        sum[k] = sum[k] * vec_set(1.0f / (float)rows);
        vec_store(mean + j0 + k * VL, sum[k]);
    }
    for (size_t r = 0, at = j0; r < rows; r++, at += c)
        TK__UNROLL
    for (size_t k = 0; k < nv; k++) {
        const vec d = vec_load(u + at + k * VL) - sum[k];
        squares[k] = squares[k] + d * d;
    }
    TK__UNROLL
    for (size_t k = 0; k < nv; k++)
        vec_store(m2 + j0 + k * VL, squares[k]);
}

static void moments(size_t rows, size_t c, const float *u, float *mean, float *m2)
{
    NORM_EACH(c, moments_v, rows, c, u, mean, m2)
}

/* --- backward --- */

typedef enum norm_mask { MASK_NONE, MASK_ACT, MASK_PRE } norm_mask;

static inline norm_mask mask_kind(const tk__mask *m)
{
    return m->act != NULL ? MASK_ACT : m->scale != NULL ? MASK_PRE : MASK_NONE;
}

typedef struct norm_back {
    size_t rows, c;
    const float *dy, *u;
    const tk__mask *mask;
    float *g_out;
} norm_back;

/* dy behind the ReLU's mask, at element `at`; s and t are the mask's coefficients. */
TK__INLINE vec masked(const norm_back *b, norm_mask kind, size_t at, vec u, vec s, vec t)
{
    const vec dy = vec_load(b->dy + at);
    if (kind == MASK_ACT) return vec_mask(dy, vec_load(b->mask->act + at));
    return kind == MASK_PRE ? vec_mask(dy, u * s + t) : dy;
}

/* `ka` NULL: only the sums. Else also du = g * ka, batch norm with constant statistics. */
TK__INLINE void bn_sums_v(size_t nv, size_t j0, const norm_back *b, norm_mask kind,
                          const float *mean, const float *ka, float *du, float *sum_g,
                          float *sum_gu)
{
    vec s[NORM_VECS], t[NORM_VECS], m[NORM_VECS], a[NORM_VECS], sg[NORM_VECS], sgu[NORM_VECS];
    norm_load(nv, kind == MASK_PRE ? b->mask->scale + j0 : NULL, s);
    norm_load(nv, kind == MASK_PRE ? b->mask->shift + j0 : NULL, t);
    norm_load(nv, mean + j0, m);
    norm_load(nv, ka != NULL ? ka + j0 : NULL, a);
    norm_load(nv, sum_g + j0, sg);
    norm_load(nv, sum_gu + j0, sgu);
    for (size_t r = 0, at = j0; r < b->rows; r++, at += b->c)
        TK__UNROLL
    for (size_t k = 0; k < nv; k++) {
        const vec u = vec_load(b->u + at + k * VL);
        const vec g = masked(b, kind, at + k * VL, u, s[k], t[k]);
        if (b->g_out != NULL) vec_store(b->g_out + at + k * VL, g);
        if (ka != NULL) vec_store(du + at + k * VL, g * a[k]);
        sg[k] = sg[k] + g;
        sgu[k] = sgu[k] + g * (u - m[k]);
    }
    TK__UNROLL
    for (size_t k = 0; k < nv; k++) {
        vec_store(sum_g + j0 + k * VL, sg[k]);
        vec_store(sum_gu + j0 + k * VL, sgu[k]);
    }
}

TK__INLINE void bn_sums(const norm_back *b, const float *mean, const float *ka, float *du,
                        float *sum_g, float *sum_gu)
{
    switch (mask_kind(b->mask)) {
    case MASK_ACT:
        NORM_EACH(b->c, bn_sums_v, b, MASK_ACT, mean, ka, du, sum_g, sum_gu)
        break;
    case MASK_PRE:
        NORM_EACH(b->c, bn_sums_v, b, MASK_PRE, mean, ka, du, sum_g, sum_gu)
        break;
    case MASK_NONE:
        NORM_EACH(b->c, bn_sums_v, b, MASK_NONE, mean, ka, du, sum_g, sum_gu)
        break;
    }
}

static void bn_reduce(size_t rows, size_t c, const float *dy, const tk__mask *mask, const float *u,
                      const float *mean, float *g_out, float *sum_g, float *sum_gu)
{
    const norm_back b = {rows, c, dy, u, mask, g_out};
    bn_sums(&b, mean, NULL, NULL, sum_g, sum_gu);
}

static void bn_frozen(size_t rows, size_t c, const float *dy, const tk__mask *mask, const float *u,
                      const float *mean, const float *ka, float *g_out, float *du, float *sum_g,
                      float *sum_gu)
{
    const norm_back b = {rows, c, dy, u, mask, g_out};
    bn_sums(&b, mean, ka, du, sum_g, sum_gu);
}

TK__INLINE void bn_dx_v(size_t nv, size_t j0, const norm_back *b, norm_mask kind, const float *ka,
                        const float *kb, const float *kc, float *du)
{
    vec s[NORM_VECS], t[NORM_VECS], x[NORM_VECS], y[NORM_VECS], z[NORM_VECS];
    norm_load(nv, kind == MASK_PRE ? b->mask->scale + j0 : NULL, s);
    norm_load(nv, kind == MASK_PRE ? b->mask->shift + j0 : NULL, t);
    norm_load(nv, ka + j0, x);
    norm_load(nv, kb + j0, y);
    norm_load(nv, kc + j0, z);
    for (size_t r = 0, at = j0; r < b->rows; r++, at += b->c)
        TK__UNROLL
    for (size_t k = 0; k < nv; k++) {
        const vec u = vec_load(b->u + at + k * VL);
        const vec g = masked(b, kind, at + k * VL, u, s[k], t[k]);
        vec_store(du + at + k * VL, g * x[k] + u * y[k] + z[k]);
    }
}

static void bn_dx(size_t rows, size_t c, const float *dy, const tk__mask *mask, const float *u,
                  const float *ka, const float *kb, const float *kc, float *du)
{
    const norm_back b = {rows, c, dy, u, mask, NULL};
    switch (mask_kind(mask)) {
    case MASK_ACT:
        NORM_EACH(c, bn_dx_v, &b, MASK_ACT, ka, kb, kc, du)
        break;
    case MASK_PRE:
        NORM_EACH(c, bn_dx_v, &b, MASK_PRE, ka, kb, kc, du)
        break;
    case MASK_NONE:
        NORM_EACH(c, bn_dx_v, &b, MASK_NONE, ka, kb, kc, du)
        break;
    }
}

#define TK__NORM                                                                                   \
    .bn_apply = bn_apply, .moments = moments, .bn_reduce = bn_reduce, .bn_dx = bn_dx,              \
    .bn_frozen = bn_frozen

#endif
