/* The kernels that are plain loops over channels, included once by each instruction set's file so
 * that the compiler vectorises them for it. No sum is reordered: each channel (or each of 16 fixed
 * lanes) has its own accumulator, so every table gives the same bits. */
#ifndef KERNELS_ELEMENTWISE_H
#define KERNELS_ELEMENTWISE_H

#include <string.h>

#include "kernels/im2col.h"
#include "kernels/kernels.h"

static inline float relu_or_nan(float v)
{
    return v < 0.0f ? 0.0f : v;
}

static void bn_apply(size_t rows, size_t c, const float *u, const float *restrict scale,
                     const float *restrict shift, const float *residual, bool relu,
                     float *restrict y)
{
    for (size_t r = 0; r < rows; r++, u += c, y += c) {
        if (residual != NULL) {
            const float *res = residual + r * c;
            if (relu)
                for (size_t j = 0; j < c; j++)
                    y[j] = relu_or_nan(u[j] * scale[j] + shift[j] + res[j]);
            else
                for (size_t j = 0; j < c; j++)
                    y[j] = u[j] * scale[j] + shift[j] + res[j];
        } else if (relu) {
            for (size_t j = 0; j < c; j++)
                y[j] = relu_or_nan(u[j] * scale[j] + shift[j]);
        } else {
            for (size_t j = 0; j < c; j++)
                y[j] = u[j] * scale[j] + shift[j];
        }
    }
}

static void moments(size_t rows, size_t c, const float *u, float *restrict mean, float *restrict m2)
{
    memset(mean, 0, c * sizeof *mean);
    memset(m2, 0, c * sizeof *m2);
    for (size_t r = 0; r < rows; r++)
        for (size_t j = 0; j < c; j++)
            mean[j] += u[r * c + j];
    const float inv = 1.0f / (float)rows;
    for (size_t j = 0; j < c; j++)
        mean[j] *= inv;
    for (size_t r = 0; r < rows; r++)
        for (size_t j = 0; j < c; j++) {
            const float d = u[r * c + j] - mean[j];
            m2[j] += d * d;
        }
}

/* The ReLU mask of one row into `out`: PyTorch's threshold_backward, so a NaN activation passes. */
static inline void mask_row(size_t c, const float *dy, const float *act, float *out)
{
    for (size_t j = 0; j < c; j++)
        out[j] = act[j] <= 0.0f ? 0.0f : dy[j];
}

static void bn_reduce(size_t rows, size_t c, const float *dy, const float *act, const float *u,
                      const float *restrict mean, float *g_out, float *restrict sum_g,
                      float *restrict sum_gu)
{
    for (size_t r = 0; r < rows; r++, dy += c, u += c) {
        const float *g = dy;
        if (act != NULL && g_out != NULL) {
            mask_row(c, dy, act + r * c, g_out + r * c);
            g = g_out + r * c;
        } else if (act != NULL) {
            const float *a = act + r * c;
            for (size_t j = 0; j < c; j++) {
                const float v = a[j] <= 0.0f ? 0.0f : dy[j];
                sum_g[j] += v;
                sum_gu[j] += v * (u[j] - mean[j]);
            }
            continue;
        } else if (g_out != NULL && g_out != dy - r * c) {
            memcpy(g_out + r * c, dy, c * sizeof *dy);
        }
        for (size_t j = 0; j < c; j++) {
            sum_g[j] += g[j];
            sum_gu[j] += g[j] * (u[j] - mean[j]);
        }
    }
}

static void bn_dx(size_t rows, size_t c, const float *dy, const float *act, const float *u,
                  const float *restrict ka, const float *restrict kb, const float *restrict kc,
                  float *du)
{
    for (size_t r = 0; r < rows; r++, dy += c, u += c, du += c) {
        if (act != NULL) {
            const float *a = act + r * c;
            for (size_t j = 0; j < c; j++)
                du[j] = (a[j] <= 0.0f ? 0.0f : dy[j]) * ka[j] + u[j] * kb[j] + kc[j];
        } else {
            for (size_t j = 0; j < c; j++)
                du[j] = dy[j] * ka[j] + u[j] * kb[j] + kc[j];
        }
    }
}

static void bn_frozen(size_t rows, size_t c, const float *dy, const float *act, const float *u,
                      const float *restrict mean, const float *restrict ka, float *g_out, float *du,
                      float *restrict sum_g, float *restrict sum_gu)
{
    for (size_t r = 0; r < rows; r++, dy += c, u += c, du += c) {
        if (act != NULL && g_out == NULL) {
            const float *a = act + r * c;
            for (size_t j = 0; j < c; j++) {
                const float v = a[j] <= 0.0f ? 0.0f : dy[j];
                sum_g[j] += v;
                sum_gu[j] += v * (u[j] - mean[j]);
                du[j] = v * ka[j];
            }
            continue;
        }
        const float *g = dy;
        if (g_out != NULL) {
            float *out = g_out + r * c;
            if (act != NULL)
                mask_row(c, dy, act + r * c, out);
            else if (out != dy)
                memcpy(out, dy, c * sizeof *dy);
            g = out;
        }
        for (size_t j = 0; j < c; j++) {
            const float v = g[j];
            sum_g[j] += v;
            sum_gu[j] += v * (u[j] - mean[j]);
            du[j] = v * ka[j];
        }
    }
}

/* One output pixel: the maximum over the taps that lie inside the image. */
static void max_pool_pixel(const tk__pool_shape *s, const float *x, size_t oy, size_t ox,
                           float *restrict y, int32_t *restrict arg)
{
    bool first = true;
    for (size_t ky = 0; ky < 3; ky++) {
        const size_t iy = 2 * oy + ky; /* one more than the row, for the padding */
        if (iy < 1 || iy > s->ih) continue;
        for (size_t kx = 0; kx < 3; kx++) {
            const size_t ix = 2 * ox + kx;
            if (ix < 1 || ix > s->iw) continue;
            const float *v = x + ((iy - 1) * s->iw + ix - 1) * s->c;
            const int32_t tap = (int32_t)(ky * 3 + kx);
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

static void max_pool(const tk__pool_shape *s, size_t y0, size_t y1, const float *x, float *y,
                     int32_t *argmax)
{
    for (size_t oy = y0; oy < y1; oy++)
        for (size_t ox = 0; ox < s->ow; ox++) {
            const size_t at = (oy * s->ow + ox) * s->c;
            max_pool_pixel(s, x, oy, ox, y + at, argmax != NULL ? argmax + at : NULL);
        }
}

static void max_pool_dx(const tk__pool_shape *s, const float *dy, const int32_t *argmax, float *dx)
{
    memset(dx, 0, s->ih * s->iw * s->c * sizeof *dx);
    for (size_t oy = 0; oy < s->oh; oy++)
        for (size_t ox = 0; ox < s->ow; ox++) {
            const float *d = dy + (oy * s->ow + ox) * s->c;
            const int32_t *arg = argmax + (oy * s->ow + ox) * s->c;
            for (size_t tap = 0; tap < 9; tap++) {
                const size_t iy = 2 * oy + tap / 3, ix = 2 * ox + tap % 3;
                if (iy < 1 || iy > s->ih || ix < 1 || ix > s->iw) continue;
                float *restrict out = dx + ((iy - 1) * s->iw + ix - 1) * s->c;
                for (size_t j = 0; j < s->c; j++)
                    out[j] += arg[j] == (int32_t)tap ? d[j] : 0.0f;
            }
        }
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

static void sgd(size_t n, float *restrict w, float *restrict g, float *restrict v, float lr,
                float momentum, float decay, bool nesterov)
{
    for (size_t i = 0; i < n; i++) {
        const float grad = g[i] + decay * w[i];
        const float vel = momentum * v[i] + grad;
        const float step = nesterov ? grad + momentum * vel : vel;
        g[i] = grad;
        v[i] = vel;
        w[i] -= lr * step;
    }
}

/* The members that every table shares; the matrix product comes before them. */
#define TK__ELEMENTWISE                                                                            \
    .im2col = im2col, .bn_apply = bn_apply, .moments = moments, .bn_reduce = bn_reduce,            \
    .bn_dx = bn_dx, .bn_frozen = bn_frozen, .max_pool = max_pool, .max_pool_dx = max_pool_dx,      \
    .avg_pool = avg_pool, .avg_pool_dx = avg_pool_dx, .add = add, .add_squares = add_squares,      \
    .scale = scale, .sum_squares = sum_squares, .matvec = matvec, .sgd = sgd

#endif
