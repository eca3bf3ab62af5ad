/* The kernels that are plain loops over channels, included once by each instruction set's file so
 * that the compiler vectorises them for it. No sum is reordered: each channel (or each of 16 fixed
 * lanes) has its own accumulator, so every table gives the same bits. */
#ifndef KERNELS_ELEMENTWISE_H
#define KERNELS_ELEMENTWISE_H

#include <string.h>

#include "kernels/im2col.h"
#include "kernels/kernels.h"

/* One output pixel: the maximum over the taps that lie inside the image. */
static void max_pool_pixel(const tk__pool_shape *s, const tk__input *in, size_t oy, size_t ox,
                           float *restrict y, uint8_t *restrict arg)
{
    float normalised[TK__MAX_C];
    bool first = true;
    for (size_t ky = 0; ky < 3; ky++) {
        const size_t iy = 2 * oy + ky; /* one more than the row, for the padding */
        if (iy < 1 || iy > s->ih) continue;
        for (size_t kx = 0; kx < 3; kx++) {
            const size_t ix = 2 * ox + kx;
            if (ix < 1 || ix > s->iw) continue;
            const float *v = in->x + ((iy - 1) * s->iw + ix - 1) * s->c;
            if (in->scale != NULL) {
                memcpy(normalised, v, s->c * sizeof *v);
                activate(in, s->c, 0, s->c, normalised);
                v = normalised;
            }
            const uint8_t tap = (uint8_t)(ky * 3 + kx);
            if (first) {
                memcpy(y, v, s->c * sizeof *y);
                if (arg != NULL)
                    for (size_t j = 0; j < s->c; j++)
                        arg[j] = tap;
                first = false;
            } else if (arg != NULL) {
                for (size_t j = 0; j < s->c; j++) {
                    const bool take = (v[j] > y[j]) | (v[j] != v[j]);
                    y[j] = take ? v[j] : y[j];
                    arg[j] = take ? tap : arg[j];
                }
            } else {
                for (size_t j = 0; j < s->c; j++)
                    y[j] = ((v[j] > y[j]) | (v[j] != v[j])) ? v[j] : y[j];
            }
        }
    }
}

static void max_pool(const tk__pool_shape *s, size_t y0, size_t y1, const tk__input *in, float *y,
                     uint8_t *argmax)
{
    for (size_t oy = y0; oy < y1; oy++)
        for (size_t ox = 0; ox < s->ow; ox++) {
            const size_t at = (oy * s->ow + ox) * s->c;
            max_pool_pixel(s, in, oy, ox, y + at, argmax != NULL ? argmax + at : NULL);
        }
}

static void max_pool_dx(const tk__pool_shape *s, const float *dy, const uint8_t *argmax, float *dx)
{
    memset(dx, 0, s->ih * s->iw * s->c * sizeof *dx);
    for (size_t oy = 0; oy < s->oh; oy++)
        for (size_t ox = 0; ox < s->ow; ox++) {
            const float *d = dy + (oy * s->ow + ox) * s->c;
            const uint8_t *arg = argmax + (oy * s->ow + ox) * s->c;
            for (size_t tap = 0; tap < 9; tap++) {
                const size_t iy = 2 * oy + tap / 3, ix = 2 * ox + tap % 3;
                if (iy < 1 || iy > s->ih || ix < 1 || ix > s->iw) continue;
                float *restrict out = dx + ((iy - 1) * s->iw + ix - 1) * s->c;
                for (size_t j = 0; j < s->c; j++)
                    out[j] += arg[j] == tap ? d[j] : 0.0f;
            }
        }
}

/* For tables without a transposition of their own. */
static inline void transpose_plainly(const float *from, size_t ld, float *to, size_t to_ld)
{
    for (size_t i = 0; i < TK__LANES; i++)
        for (size_t j = 0; j < TK__LANES; j++)
            to[j * to_ld + i] = from[i * ld + j];
}

static void avg_pool(size_t rows, size_t c, const float *x, float *restrict y)
{
    memset(y, 0, c * sizeof *y);
    for (size_t r = 0; r < rows; r++)
        for (size_t j = 0; j < c; j++)
            y[j] += x[r * c + j];
    for (size_t j = 0; j < c; j++)
        y[j] /= (float)rows;
}

static void avg_pool_dx(size_t rows, size_t c, const float *restrict dy, float *restrict dx)
{
    for (size_t r = 0; r < rows; r++)
        for (size_t j = 0; j < c; j++)
            dx[r * c + j] = dy[j] / (float)rows;
}

static void add(size_t n, float *restrict y, const float *restrict x)
{
    for (size_t i = 0; i < n; i++)
        y[i] += x[i];
}

static void add_squares(size_t n, float *restrict y, const float *restrict x)
{
    for (size_t i = 0; i < n; i++)
        y[i] += x[i] * x[i];
}

static void scale(size_t n, float *y, float factor)
{
    for (size_t i = 0; i < n; i++)
        y[i] *= factor;
}

static double sum_squares(size_t n, const float *x)
{
    enum { LANES = 16 };
    double lane[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (size_t j = 0; j < LANES; j++)
            lane[j] += (double)x[i + j] * (double)x[i + j];
    double sum = 0;
    for (; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    for (size_t j = 0; j < LANES; j++)
        sum += lane[j];
    return sum;
}

/* Each row in 64 partial sums, then these in halves: the same order for every table. */
static void matvec(size_t rows, size_t k, const float *restrict w, const float *restrict x,
                   const float *bias, float *restrict y)
{
    enum { LANES = 64 };
    for (size_t r = 0; r < rows; r++, w += k) {
        float lane[LANES] = {0};
        size_t i = 0;
        for (; i + LANES <= k; i += LANES)
            for (size_t j = 0; j < LANES; j++)
                lane[j] += w[i + j] * x[i + j];
        for (; i < k; i++)
            lane[i % LANES] += w[i] * x[i];
        for (size_t half = LANES / 2; half > 0; half /= 2)
            for (size_t j = 0; j < half; j++)
                lane[j] += lane[j + half];
        y[r] = lane[0] + (bias != NULL ? bias[r] : 0.0f);
    }
}

static void sgd(size_t n, float *restrict w, const float *restrict g, float *restrict v, float lr,
                float momentum, float decay, bool nesterov)
{
    for (size_t i = 0; i < n; i++) {
        const float grad = g[i] + decay * w[i];
        const float vel = momentum * v[i] + grad;
        const float step = nesterov ? grad + momentum * vel : vel;
        v[i] = vel;
        w[i] -= lr * step;
    }
}

#define TK__ELEMENTWISE                                                                            \
    .im2col = im2col, .max_pool = max_pool, .max_pool_dx = max_pool_dx, .avg_pool = avg_pool,      \
    .avg_pool_dx = avg_pool_dx, .add = add, .add_squares = add_squares, .scale = scale,            \
    .sum_squares = sum_squares, .matvec = matvec, .sgd = sgd

#endif
