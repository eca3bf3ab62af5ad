/* Pairs of rows, and Winograd's transforms (winograd.h) to bfloat16; included by each file of a
 * table after its `vec` and
 *
 *     vec_store_half(uint16_t *, v)    as numbers side by side
 *     vec_store_low(uint32_t *, v)     as low halves of words, zeros above
 *     vec_store_high(uint32_t *, v)    as high halves of words beside the low ones that are there
 */
#ifndef KERNELS_MIXED_WINOGRAD_H
#define KERNELS_MIXED_WINOGRAD_H

#include "kernels/winograd.h"

TK__INLINE void wino_put(wino_form form, void *v, size_t at, vec x)
{
    if (form == WINO_HALVES)
        vec_store_half((uint16_t *)v + at, x);
    else if (form == WINO_LOW)
        vec_store_low((uint32_t *)v + at, x);
    else
        vec_store_high((uint32_t *)v + at, x);
}

static void pair(size_t n, const float *low, const float *high, uint32_t *to)
{
    size_t i = 0;
    for (; i + VL <= n; i += VL) {
        vec_store_low(to + i, vec_load(low + i));
        if (high != NULL) vec_store_high(to + i, vec_load(high + i));
    }
    for (; i < n; i++)
        to[i] = tk__to_bf16(low[i]) | (high != NULL ? (uint32_t)tk__to_bf16(high[i]) << 16 : 0);
}

static void wino_input(const tk__wino *w, const tk__input *in, uint16_t *v, size_t pitch,
                       size_t point)
{
    if (w->m == 2)
        wino_input_m(w, 2, WINO_HALVES, in, v, pitch, point);
    else
        wino_input_m(w, 4, WINO_HALVES, in, v, pitch, point);
}

static void wino_input_pairs(const tk__wino *w, const tk__input *in, uint32_t *v, size_t pitch,
                             size_t point)
{
    if (w->m == 2)
        wino_input_m(w, 2, WINO_LOW, in, v, pitch, point);
    else
        wino_input_m(w, 4, WINO_LOW, in, v, pitch, point);
}

static void wino_dy_pairs(const tk__wino *w, const float *dy, uint32_t *v, size_t pitch,
                          size_t point)
{
    if (w->m == 2)
        wino_dy_m(w, 2, WINO_LOW, dy, v, pitch, point);
    else
        wino_dy_m(w, 4, WINO_LOW, dy, v, pitch, point);
}

TK__INLINE void wino_weights_m(size_t m, const float *taps, uint32_t *u, size_t ld, size_t point)
{
    const size_t tap = (size_t)TK__LANES * TK__LANES;
    for (size_t r = 0; r < TK__LANES; r += 2, taps += 2 * TK__LANES, u += ld)
        for (size_t c = 0; c < TK__LANES; c += VL) {
            wino_weights_row(m, WINO_LOW, taps + c, tap, u, c, point);
            wino_weights_row(m, WINO_HIGH, taps + TK__LANES + c, tap, u, c, point);
        }
}

static void wino_weights(size_t m, const float *taps, uint32_t *u, size_t ld, size_t point)
{
    if (m == 2)
        wino_weights_m(2, taps, u, ld, point);
    else
        wino_weights_m(4, taps, u, ld, point);
}

#define TK__MIXED_WINOGRAD                                                                         \
    .wino_input = wino_input, .wino_input_pairs = wino_input_pairs,                                \
    .wino_dy_pairs = wino_dy_pairs, .wino_weights = wino_weights

#endif
