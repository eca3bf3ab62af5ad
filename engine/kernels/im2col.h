/* Patch rows, copied where the matrix product wants them; included once by each instruction set's
 * file, so that copies use its registers. For each row of taps the patch is one run of consecutive
 * floats (taps beside each other are pixels beside each other), cut at the image's border and
 * filled with zeros. */
#ifndef KERNELS_IM2COL_H
#define KERNELS_IM2COL_H

#include <string.h>

#include "kernels/kernels.h"

/* Runs are short (21 floats in the ImageNet stem), so fixed-size copies that may overlap beat
 * memcpy. */
static inline void copy(float *restrict dst, const float *restrict src, size_t n)
{
    if (n >= 256) {
        memcpy(dst, src, n * sizeof *dst);
    } else if (n >= 16) {
        size_t i = 0;
        for (; i + 16 <= n; i += 16)
            memcpy(dst + i, src + i, 16 * sizeof *dst);
        if (i < n) memcpy(dst + n - 16, src + n - 16, 16 * sizeof *dst);
    } else if (n >= 4) {
        for (size_t i = 0; i + 4 <= n; i += 4)
            memcpy(dst + i, src + i, 4 * sizeof *dst);
        memcpy(dst + n - 4, src + n - 4, 4 * sizeof *dst);
    } else {
        for (size_t i = 0; i < n; i++)
            dst[i] = src[i];
    }
}

static inline void zero(float *dst, size_t n)
{
    if (n > 0) memset(dst, 0, n * sizeof *dst);
}

static inline ptrdiff_t clamp(ptrdiff_t v, ptrdiff_t lo, ptrdiff_t hi)
{
    return v < lo ? lo : v > hi ? hi : v;
}

static inline float relu_or_nan(float v)
{
    return v < 0.0f ? 0.0f : v;
}

/* Batch norm and ReLU, in place, of n values of pixels with c channels, from channel e mod c on. */
static inline void activate(const tk__input *in, size_t c, size_t e, size_t n, float *v)
{
    for (size_t i = 0; i < n;) {
        const size_t ch = (e + i) % c, take = c - ch < n - i ? c - ch : n - i;
        const float *restrict s = in->scale + ch, *restrict t = in->shift + ch;
        float *restrict to = v + i;
        for (size_t j = 0; j < take; j++)
            to[j] = relu_or_nan(to[j] * s[j] + t[j]);
        i += take;
    }
}

/* Elements e0..e1-1 of the run of taps that starts at input column ix of the pixel row `line`. */
static void copy_run(const tk__conv *g, const tk__input *in, const float *line, ptrdiff_t ix,
                     size_t e0, size_t e1, float *out)
{
    const ptrdiff_t ic = (ptrdiff_t)g->ic, a = (ptrdiff_t)e0, b = (ptrdiff_t)e1;
    const ptrdiff_t lo = clamp(-ix * ic, a, b), hi = clamp(((ptrdiff_t)g->iw - ix) * ic, lo, b);
    zero(out, (size_t)(lo - a));
    copy(out + (lo - a), line + (ix * ic + lo), (size_t)(hi - lo));
    if (in->scale != NULL) activate(in, g->ic, (size_t)lo, (size_t)(hi - lo), out + (lo - a));
    zero(out + (hi - a), (size_t)(b - hi));
}

/* Columns k0..k0+kc-1 of the patch whose first tap is input pixel (iy0, ix), which may lie outside.
 */
static inline void copy_taps(const tk__conv *g, const tk__input *in, const float *image,
                             ptrdiff_t ix, ptrdiff_t iy0, size_t k0, size_t kc, float *out)
{
    const size_t run = g->kx * g->ic, line = g->iw * g->ic;
    const bool inside = in->scale == NULL && ix >= 0 && ix + (ptrdiff_t)g->kx <= (ptrdiff_t)g->iw;
    for (size_t ty = k0 / run; ty * run < k0 + kc; ty++) {
        const size_t e0 = ty * run < k0 ? k0 - ty * run : 0;
        const size_t e1 = (ty + 1) * run <= k0 + kc ? run : k0 + kc - ty * run;
        float *dst = out + (ty * run + e0 - k0);
        const ptrdiff_t iy = iy0 + (ptrdiff_t)ty;
        if (iy < 0 || iy >= (ptrdiff_t)g->ih)
            zero(dst, e1 - e0);
        else if (inside)
            copy(dst, image + (size_t)iy * line + (size_t)ix * g->ic + e0, e1 - e0);
        else
            copy_run(g, in, image + (size_t)iy * line, ix, e0, e1, dst);
    }
}

/* A whole patch inside the image, its runs a multiple of 16 floats (the common case by far) or 16 to
 * 32 of them (the ImageNet stem's 21): no branch but the loops'. */
static inline void copy_patch(const tk__conv *g, const float *src, float *out)
{
    const size_t run = g->kx * g->ic, line = g->iw * g->ic;
    if (run % 16 == 0) {
        for (size_t ty = 0; ty < g->ky; ty++, src += line)
            for (size_t e = 0; e < run; e += 16, out += 16)
                memcpy(out, src + e, 16 * sizeof *out);
        return;
    }
    for (size_t ty = 0; ty < g->ky; ty++, src += line, out += run) {
        memcpy(out, src, 16 * sizeof *out);
        memcpy(out + run - 16, src + run - 16, 16 * sizeof *out);
    }
}

static void im2col(const tk__conv *g, const tk__input *in, size_t m0, size_t rows, size_t k0,
                   size_t kc, float *out, size_t pitch)
{
    const size_t run = g->kx * g->ic, line = g->iw * g->ic, pixels = g->oh * g->ow;
    const bool fits = run % 16 == 0 || (run > 16 && run < 32);
    const bool whole = kc == g->ky * run && fits && in->scale == NULL;
    size_t img = m0 / pixels, oy = m0 % pixels / g->ow, ox = m0 % g->ow;
    for (size_t r = 0; r < rows; r++, out += pitch) {
        const float *image = in->x + img * g->ih * line;
        const ptrdiff_t ix = (ptrdiff_t)(ox * g->stride) - g->pad_x;
        const bool inside = ix >= 0 && ix + (ptrdiff_t)g->kx <= (ptrdiff_t)g->iw;
        const ptrdiff_t iy0 = (ptrdiff_t)(oy * g->stride) - g->pad_y;
        if (whole && inside && iy0 >= 0 && iy0 + (ptrdiff_t)g->ky <= (ptrdiff_t)g->ih)
            copy_patch(g, image + (size_t)iy0 * line + (size_t)ix * g->ic, out);
        else
            copy_taps(g, in, image, ix, iy0, k0, kc, out);
        if (++ox == g->ow) {
            ox = 0;
            if (++oy == g->oh) {
                oy = 0;
                img++;
            }
        }
    }
}

#endif
