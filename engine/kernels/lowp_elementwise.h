/* The low-precision kernels that are plain loops, included once by each table's file so that the
 * compiler vectorises them for it. BF16 and U8 versions stand side by side; a file uses its own. */
#ifndef KERNELS_LOWP_ELEMENTWISE_H
#define KERNELS_LOWP_ELEMENTWISE_H

#include "kernels/lowp.h"
#include "kernels/tile.h"

static __attribute__((unused)) void load_bf16(size_t n, const float *x, float inverse, void *y)
{
    uint16_t *restrict to = y;
    (void)inverse;
    for (size_t i = 0; i < n; i++)
        to[i] = tk__to_bf16(x[i]);
}

static __attribute__((unused)) void load_u8(size_t n, const float *x, float inverse, void *y)
{
    uint8_t *restrict to = y;
    for (size_t i = 0; i < n; i++)
        to[i] = tk__to_u8(x[i] * inverse + (float)TK__U8_ZERO);
}

/* --- patches --- */

/* Whole blocks of 64 bytes: what runs over is overwritten by what follows. */
TK__INLINE void copy_blocks(unsigned char *restrict to, const unsigned char *restrict from,
                            size_t bytes)
{
    for (size_t i = 0; i < bytes; i += TK__LOWP_SLACK)
        memcpy(to + i, from + i, TK__LOWP_SLACK);
}

TK__INLINE void zero_blocks(unsigned char *to, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += TK__LOWP_SLACK)
        memset(to + i, 0, TK__LOWP_SLACK);
}

/* A run of kx taps that starts at input column ix, partly outside of the pixel row `line`. */
static void copy_cut(const tk__conv *g, const unsigned char *line, ptrdiff_t ix, unsigned char *to)
{
    const ptrdiff_t kx = (ptrdiff_t)g->kx, iw = (ptrdiff_t)g->iw;
    const ptrdiff_t lo = ix < -kx ? kx : ix < 0 ? -ix : 0;
    const ptrdiff_t end = iw - ix < kx ? iw - ix : kx, hi = end < lo ? lo : end;
    zero_blocks(to, (size_t)lo * g->ic);
    to += (size_t)lo * g->ic;
    if (hi > lo) copy_blocks(to, line + (ix + lo) * (ptrdiff_t)g->ic, (size_t)(hi - lo) * g->ic);
    zero_blocks(to + (size_t)(hi - lo) * g->ic, (size_t)(kx - hi) * g->ic);
}

TK__INLINE void copy_patch(const tk__conv *g, const unsigned char *image, ptrdiff_t iy,
                           ptrdiff_t ix, unsigned char *to)
{
    const size_t run = g->kx * g->ic, line = g->iw * g->ic;
    const bool inside = ix >= 0 && ix + (ptrdiff_t)g->kx <= (ptrdiff_t)g->iw;
    for (size_t ty = 0; ty < g->ky; ty++, iy++, to += run) {
        if (iy < 0 || iy >= (ptrdiff_t)g->ih)
            zero_blocks(to, run);
        else if (inside)
            copy_blocks(to, image + (size_t)iy * line + (size_t)ix * g->ic, run);
        else
            copy_cut(g, image + (size_t)iy * line, ix, to);
    }
}

static void patches(const tk__conv *g, const unsigned char *x, size_t m0, size_t rows,
                    unsigned char *out, size_t pitch)
{
    const size_t image_bytes = g->ih * g->iw * g->ic;
    size_t img = m0 / (g->oh * g->ow), oy = m0 / g->ow % g->oh, ox = m0 % g->ow;
    for (size_t r = 0; r < rows; r++, out += pitch) {
        copy_patch(g, x + img * image_bytes, (ptrdiff_t)(oy * g->stride) - g->pad_y,
                   (ptrdiff_t)(ox * g->stride) - g->pad_x, out);
        if (++ox < g->ow) continue;
        ox = 0;
        if (++oy < g->oh) continue;
        oy = 0;
        img++;
    }
}

/* --- pooling --- */

/* Without a sign, values are in the order of their bits, and NaN is above all. */
static __attribute__((unused)) void pool_rows_bf16(size_t c, const uint16_t *x,
                                                   uint16_t *restrict y)
{
    for (size_t j = 0; j < c; j++)
        y[j] = x[j] > y[j] ? x[j] : y[j];
}

static __attribute__((unused)) void pool_rows_u8(size_t c, const uint8_t *x, uint8_t *restrict y)
{
    for (size_t j = 0; j < c; j++)
        y[j] = x[j] > y[j] ? x[j] : y[j];
}

/* Zero is the least value, so the border needs no case of its own: y starts there. */
TK__INLINE void pool_pixel(const tk__pool_shape *s, size_t oy, size_t ox, bool bytes,
                           const unsigned char *x, unsigned char *y)
{
    const size_t element = bytes ? 1 : 2;
    memset(y, 0, s->c * element);
    for (size_t ky = 0; ky < 3; ky++) {
        const size_t iy = 2 * oy + ky; /* one more than the row, for the padding */
        if (iy < 1 || iy > s->ih) continue;
        for (size_t kx = 0; kx < 3; kx++) {
            const size_t ix = 2 * ox + kx;
            if (ix < 1 || ix > s->iw) continue;
            const void *pixel = x + ((iy - 1) * s->iw + ix - 1) * s->c * element;
            if (bytes)
                pool_rows_u8(s->c, pixel, y);
            else
                pool_rows_bf16(s->c, pixel, (void *)y);
        }
    }
}

static __attribute__((unused)) void max_pool_bf16(const tk__pool_shape *s, size_t y0, size_t y1,
                                                  const void *x, void *y)
{
    for (size_t oy = y0; oy < y1; oy++)
        for (size_t ox = 0; ox < s->ow; ox++)
            pool_pixel(s, oy, ox, false, x, (unsigned char *)y + (oy * s->ow + ox) * s->c * 2);
}

static __attribute__((unused)) void max_pool_u8(const tk__pool_shape *s, size_t y0, size_t y1,
                                                const void *x, void *y)
{
    for (size_t oy = y0; oy < y1; oy++)
        for (size_t ox = 0; ox < s->ow; ox++)
            pool_pixel(s, oy, ox, true, x, (unsigned char *)y + (oy * s->ow + ox) * s->c);
}

static void avg_pool(size_t rows, size_t c, const uint16_t *x, float *y)
{
    memset(y, 0, c * sizeof *y);
    for (size_t r = 0; r < rows; r++, x += c)
        for (size_t j = 0; j < c; j++)
            y[j] += tk__from_bf16(x[j]);
    const float inv = 1.0f / (float)rows;
    for (size_t j = 0; j < c; j++)
        y[j] *= inv;
}

#define TK__LOWP_BF16                                                                              \
    .element = 2, .load = load_bf16, .patches = patches, .max_pool = max_pool_bf16,                \
    .avg_pool = avg_pool
#define TK__LOWP_INT8                                                                              \
    .element = 1, .load = load_u8, .patches = patches, .max_pool = max_pool_u8, .avg_pool = avg_pool

#endif
