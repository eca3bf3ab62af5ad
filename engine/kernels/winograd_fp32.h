/* Winograd's transforms (winograd.h) in fp32: entries of tk__kernels, included once by each
 * instruction set's file. */
#ifndef KERNELS_WINOGRAD_FP32_H
#define KERNELS_WINOGRAD_FP32_H

#include "kernels/winograd.h"

TK__INLINE void wino_put(wino_form form, void *v, size_t at, vec x)
{
    (void)form;
    vec_store((float *)v + at, x);
}

static void wino_input(const tk__wino *w, const tk__input *in, float *v, size_t pitch, size_t point)
{
    if (w->m == 2)
        wino_input_m(w, 2, WINO_FLOATS, in, v, pitch, point);
    else
        wino_input_m(w, 4, WINO_FLOATS, in, v, pitch, point);
}

static void wino_dy(const tk__wino *w, const float *dy, float *v, size_t pitch, size_t point)
{
    if (w->m == 2)
        wino_dy_m(w, 2, WINO_FLOATS, dy, v, pitch, point);
    else
        wino_dy_m(w, 4, WINO_FLOATS, dy, v, pitch, point);
}

static void wino_output(const tk__wino *w, const float *u, size_t pitch, size_t point,
                        const tk__wino_out *out)
{
    if (w->m == 2)
        wino_output_m(w, 2, u, pitch, point, out);
    else
        wino_output_m(w, 4, u, pitch, point, out);
}

static void wino_weights(size_t m, const float *taps, size_t rows, float *u, size_t ld,
                         size_t point)
{
    const size_t tap = (size_t)TK__LANES * TK__LANES;
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < TK__LANES; c += VL) {
            const float *from = taps + r * TK__LANES + c;
            if (m == 2)
                wino_weights_row(2, WINO_FLOATS, from, tap, u, r * ld + c, point);
            else
                wino_weights_row(4, WINO_FLOATS, from, tap, u, r * ld + c, point);
        }
}

static void wino_dw(size_t m, size_t count, const float *du, size_t point, float *dw, size_t tap)
{
    if (m == 2)
        wino_dw_m(2, count, du, point, dw, tap);
    else
        wino_dw_m(4, count, du, point, dw, tap);
}

#define TK__WINOGRAD                                                                               \
    .wino_input = wino_input, .wino_dy = wino_dy, .wino_output = wino_output,                      \
    .wino_weights = wino_weights, .wino_dw = wino_dw

#endif
