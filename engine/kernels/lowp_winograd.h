/* Transforms of the Winograd convolution F(2x2, 3x3) (Lavin, Gray 2015, 1509.09308) between maps in
 * bfloat16 and matrices, in fp32; included by a file that defines
 *
 *     wino_lane, WINO_LANES            one or several floats; + and - work on it
 *     wino_load(const uint16_t *)      of bfloat16
 *     wino_store(uint16_t *, lane)     as bfloat16
 *     wino_sums(const float *), wino_relu(lane)
 *
 * A tile is 2x2 output pixels, from 4x4 input pixels d:  Y = A' [(G g G') (.) (B' d B)] A  with
 *
 *     B' = 1  0 -1  0     G =  1    0    0     A' = 1  1  1  0
 *          0  1  1  0         1/2  1/2  1/2         0  1 -1 -1
 *          0 -1  1  0         1/2 -1/2  1/2
 *          0  1  0 -1          0    0    1
 *
 * The product (.) over all channels is one matrix product for each of the 16 positions. */
#ifndef KERNELS_LOWP_WINOGRAD_H
#define KERNELS_LOWP_WINOGRAD_H

#include <assert.h>

#include "kernels/lowp.h"
#include "kernels/tile.h"

/* B' d of one column, or d B of one row. */
TK__INLINE void wino_in(wino_lane *d0, wino_lane *d1, wino_lane *d2, wino_lane *d3)
{
    const wino_lane a = *d0 - *d2, b = *d1 + *d2, c = *d2 - *d1, e = *d1 - *d3;
    *d0 = a, *d1 = b, *d2 = c, *d3 = e;
}

/* Where the 4x4 input pixels of a tile begin; `zeros` for those outside. */
static void wino_pixels(const tk__winograd *w, size_t tile, const uint16_t *zeros,
                        const uint16_t *at[16])
{
    const size_t tx = tile % w->tiles_x, ty = tile / w->tiles_x % w->tiles_y;
    const size_t image = tile / (w->tiles_x * w->tiles_y);
    for (size_t i = 0; i < 16; i++) {
        const size_t y = 2 * ty + i / 4, x = 2 * tx + i % 4; /* one more than the pixel's */
        const bool inside = y >= 1 && y <= w->h && x >= 1 && x <= w->w;
        at[i] = inside ? w->x + ((image * w->h + y - 1) * w->w + x - 1) * w->ic : zeros;
    }
}

static void winograd_in(const tk__winograd *w, size_t tile0, size_t tiles, uint16_t *v)
{
    static const uint16_t zeros[TK__WINOGRAD_CHANNELS] = {0};
    assert(w->ic <= TK__WINOGRAD_CHANNELS && w->ic % WINO_LANES == 0);
    for (size_t t = 0; t < tiles; t++, v += w->ic) {
        const uint16_t *at[16];
        wino_pixels(w, tile0 + t, zeros, at);
        for (size_t c = 0; c < w->ic; c += WINO_LANES) {
            wino_lane d[16];
            TK__UNROLL
            for (size_t i = 0; i < 16; i++)
                d[i] = wino_load(at[i] + c);
            TK__UNROLL
            for (size_t i = 0; i < 4; i++)
                wino_in(&d[i], &d[4 + i], &d[8 + i], &d[12 + i]);
            TK__UNROLL
            for (size_t i = 0; i < 16; i += 4)
                wino_in(&d[i], &d[i + 1], &d[i + 2], &d[i + 3]);
            TK__UNROLL
            for (size_t i = 0; i < 16; i++)
                wino_store(v + i * tiles * w->ic + c, d[i]);
        }
    }
}

/* The 2x2 sums of one tile, 16 matrices of `plane` floats. */
TK__INLINE void wino_out(const float *m, size_t plane, wino_lane y[4])
{
    wino_lane rows[2][4];
    TK__UNROLL
    for (size_t i = 0; i < 4; i++) {
        const wino_lane a = wino_sums(m + i * plane), b = wino_sums(m + (4 + i) * plane);
        const wino_lane c = wino_sums(m + (8 + i) * plane), e = wino_sums(m + (12 + i) * plane);
        rows[0][i] = a + b + c;
        rows[1][i] = b - c - e;
    }
    TK__UNROLL
    for (size_t r = 0; r < 2; r++) {
        y[2 * r] = rows[r][0] + rows[r][1] + rows[r][2];
        y[2 * r + 1] = rows[r][1] - rows[r][2] - rows[r][3];
    }
}

static void winograd_out(const tk__winograd *w, size_t tile0, size_t tiles, size_t j, size_t n,
                         const float *m)
{
    for (size_t t = 0; t < tiles; t++, m += TK__LOWP_NR) {
        const size_t tile = tile0 + t, tx = tile % w->tiles_x, ty = tile / w->tiles_x % w->tiles_y;
        const size_t image = tile / (w->tiles_x * w->tiles_y);
        const size_t first = ((image * w->h + 2 * ty) * w->w + 2 * tx) * w->oc + j;
        const size_t rows = 2 * ty + 1 < w->h ? 2 : 1, columns = 2 * tx + 1 < w->w ? 2 : 1;
        for (size_t c = 0; c < n; c += WINO_LANES) {
            wino_lane y[4];
            wino_out(m + c, tiles * TK__LOWP_NR, y);
            for (size_t i = 0; i < 4; i++) {
                if (i / 2 >= rows || i % 2 >= columns) continue;
                const size_t at = first + (i / 2 * w->w + i % 2) * w->oc + c;
                wino_lane v = y[i] + wino_sums(w->bias + j + c);
                if (w->residual != NULL) v = v + wino_load(w->residual + at);
                wino_store(w->y + at, w->relu ? wino_relu(v) : v);
            }
        }
    }
}

#define TK__LOWP_WINOGRAD .winograd_in = winograd_in, .winograd_out = winograd_out

#endif
