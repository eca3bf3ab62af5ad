/* Winograd's minimal filtering F(m x m, 3x3) for m = 2 and 4 (Lavin & Gray, 1509.09308): the
 * transforms, included once by each instruction set's file, which defines `vec` and its VL lanes.
 *
 * An m x m output tile reads an n x n input tile, n = m + 2. With the matrices of section 4.1 (m =
 * 2) and of the points 0, 1, -1, 2, -2 (m = 4),
 *     y = At [ (G w Gt) . (Bt d B) ] A                                                  (eq. 9)
 * where . is the product element by element. Summed over input channels it is n * n independent
 * matrix products. The weight gradient is the adjoint, Gt [ (A dy At) . (Bt d B) ] G.
 *
 * Every lane is a channel: no transform mixes lanes, and all bits of a tile depend on it alone. */
#ifndef KERNELS_WINOGRAD_H
#define KERNELS_WINOGRAD_H

#include "kernels/kernels.h"
#include "kernels/norm.h"
#include "kernels/tile.h"

enum { WINO_N_MAX = 6, WINO_POINTS_MAX = 36 };

/* --- one dimension, element i at [i * s] --- */

/* Bt d */
TK__INLINE void wino_bt(size_t m, const vec *d, vec *o, size_t os)
{
    if (m == 2) {
        o[0] = d[0] - d[2];
        o[os] = d[1] + d[2];
        o[2 * os] = d[2] - d[1];
        o[3 * os] = d[1] - d[3];
        return;
    }
    const vec four = vec_set(4.0f), five = vec_set(5.0f), two = vec_set(2.0f);
    const vec a = vec_fnma(four, d[2], d[4]), b = vec_fnma(four, d[1], d[3]);
    const vec c = d[4] - d[2], e = d[3] - d[1];
    o[0] = vec_fnma(five, d[2], vec_fma(four, d[0], d[4]));
    o[os] = a + b;
    o[2 * os] = a - b;
    o[3 * os] = vec_fma(two, e, c);
    o[4 * os] = vec_fnma(two, e, c);
    o[5 * os] = vec_fnma(five, d[3], vec_fma(four, d[1], d[5]));
}

/* At v */
TK__INLINE void wino_at(size_t m, const vec *v, vec *o, size_t os)
{
    if (m == 2) {
        o[0] = v[0] + v[1] + v[2];
        o[os] = v[1] - v[2] - v[3];
        return;
    }
    const vec s1 = v[1] + v[2], d1 = v[1] - v[2], s2 = v[3] + v[4], d2 = v[3] - v[4];
    o[0] = v[0] + s1 + s2;
    o[os] = vec_fma(vec_set(2.0f), d2, d1);
    o[2 * os] = vec_fma(vec_set(4.0f), s2, s1);
    o[3 * os] = vec_fma(vec_set(8.0f), d2, d1) + v[5];
}

/* A v: m elements to n */
TK__INLINE void wino_a(size_t m, const vec *v, vec *o, size_t os)
{
    if (m == 2) {
        o[0] = v[0];
        o[os] = v[0] + v[1];
        o[2 * os] = v[0] - v[1];
        o[3 * os] = vec_set(0.0f) - v[1];
        return;
    }
    const vec four = vec_set(4.0f);
    const vec even = v[0] + v[2], odd = v[1] + v[3];
    const vec even2 = vec_fma(four, v[2], v[0]), odd2 = vec_fma(four, v[3], v[1]);
    o[0] = v[0];
    o[os] = even + odd;
    o[2 * os] = even - odd;
    o[3 * os] = vec_fma(vec_set(2.0f), odd2, even2);
    o[4 * os] = vec_fnma(vec_set(2.0f), odd2, even2);
    o[5 * os] = v[3];
}

/* G w: 3 elements to n */
TK__INLINE void wino_g(size_t m, const vec *w, vec *o, size_t os)
{
    if (m == 2) {
        const vec half = vec_set(0.5f), ends = half * (w[0] + w[2]), mid = half * w[1];
        o[0] = w[0];
        o[os] = ends + mid;
        o[2 * os] = ends - mid;
        o[3 * os] = w[2];
        return;
    }
    const vec sixth = vec_set(1.0f / 6), ends = sixth * (w[0] + w[2]), mid = sixth * w[1];
    const vec far = vec_fma(vec_set(1.0f / 24), w[0], sixth * w[2]);
    const vec twelfth = vec_set(1.0f / 12);
    o[0] = vec_set(0.25f) * w[0];
    o[os] = vec_set(0.0f) - ends - mid;
    o[2 * os] = mid - ends;
    o[3 * os] = vec_fma(twelfth, w[1], far);
    o[4 * os] = vec_fnma(twelfth, w[1], far);
    o[5 * os] = w[2];
}

/* Gt v: n elements to 3 */
TK__INLINE void wino_gt(size_t m, const vec *v, vec *o, size_t os)
{
    if (m == 2) {
        const vec half = vec_set(0.5f), s = half * (v[1] + v[2]);
        o[0] = v[0] + s;
        o[os] = half * (v[1] - v[2]);
        o[2 * os] = s + v[3];
        return;
    }
    const vec sixth = vec_set(1.0f / 6), near = sixth * (v[1] + v[2]), far = v[3] + v[4];
    o[0] = vec_fma(vec_set(1.0f / 24), far, vec_fma(vec_set(0.25f), v[0], vec_set(0.0f) - near));
    o[os] = vec_fma(sixth, v[2] - v[1], vec_set(1.0f / 12) * (v[3] - v[4]));
    o[2 * os] = vec_fma(sixth, far, v[5] - near);
}

/* --- tiles --- */

/* Where a tile lies. */
typedef struct wino_place {
    size_t image, ty, tx;
} wino_place;

TK__INLINE wino_place wino_first(const tk__wino *w, size_t t)
{
    return (wino_place){t / (w->th * w->tw), t / w->tw % w->th, t % w->tw};
}

TK__INLINE void wino_next(const tk__wino *w, wino_place *at)
{
    if (++at->tx < w->tw) return;
    at->tx = 0;
    if (++at->ty < w->th) return;
    at->ty = 0;
    at->image++;
}

static const float wino_zeros[TK__MAX_C];

/* The rows x rows pixels whose first is (y0, x0) of an image [h][w][c], zeros outside. */
TK__INLINE void wino_pixels(size_t rows, const float *image, size_t h, size_t w, size_t c,
                            ptrdiff_t y0, ptrdiff_t x0, const float **src)
{
    const ptrdiff_t y1 = y0 + (ptrdiff_t)rows, x1 = x0 + (ptrdiff_t)rows;
    if (y0 >= 0 && x0 >= 0 && y1 <= (ptrdiff_t)h && x1 <= (ptrdiff_t)w) {
        const float *first = image + ((size_t)y0 * w + (size_t)x0) * c;
        for (size_t y = 0; y < rows; y++, first += w * c)
            TK__UNROLL
        for (size_t x = 0; x < rows; x++)
            src[y * rows + x] = first + x * c;
        return;
    }
    for (size_t y = 0; y < rows; y++) {
        const ptrdiff_t iy = y0 + (ptrdiff_t)y;
        const bool in_y = iy >= 0 && iy < (ptrdiff_t)h;
        for (size_t x = 0; x < rows; x++) {
            const ptrdiff_t ix = x0 + (ptrdiff_t)x;
            const bool in = in_y && ix >= 0 && ix < (ptrdiff_t)w;
            src[y * rows + x] = in ? image + ((size_t)iy * w + (size_t)ix) * c : wino_zeros;
        }
    }
}

/* One input tile; `norm`: normalised as it is read, but for the zeros outside the image. */
TK__INLINE void wino_input_tile(size_t m, bool norm, const float *const *src, const tk__input *in,
                                size_t channels, float *v, size_t point)
{
    const size_t n = m + 2;
    for (size_t c = 0; c < channels; c += VL) {
        vec tmp[WINO_POINTS_MAX], d[WINO_N_MAX], o[WINO_N_MAX], scale, shift;
        if (norm) {
            scale = vec_load(in->scale + c);
            shift = vec_load(in->shift + c);
        }
        TK__UNROLL
        for (size_t i = 0; i < n; i++) { /* columns */
            TK__UNROLL
            for (size_t k = 0; k < n; k++) {
                d[k] = vec_load(src[k * n + i] + c);
                if (norm && src[k * n + i] != wino_zeros)
                    d[k] = norm_input(&scale, &shift, 0, d[k]);
            }
            wino_bt(m, d, tmp + i, n);
        }
        TK__UNROLL
        for (size_t i = 0; i < n; i++) { /* rows */
            wino_bt(m, tmp + i * n, o, 1);
            TK__UNROLL
            for (size_t k = 0; k < n; k++)
                vec_store(v + (i * n + k) * point + c, o[k]);
        }
    }
}

/* Rows of Bt d, m = 4, that share their differences: 1 and 2 (far 4, gain 1), 3 and 4 (far 1, gain
 * 2). Column i of the tile is src[6 * k + i]. */
TK__INLINE void wino_two_rows(const float *const *src, size_t c, float far, float gain, float *v,
                              size_t point)
{
    vec plus[WINO_N_MAX], minus[WINO_N_MAX], o[WINO_N_MAX];
    TK__UNROLL
    for (size_t i = 0; i < 6; i++) {
        const vec d1 = vec_load(src[6 + i] + c), d2 = vec_load(src[12 + i] + c);
        const vec d3 = vec_load(src[18 + i] + c), d4 = vec_load(src[24 + i] + c);
        const vec even = vec_fnma(vec_set(far), d2, d4), odd = vec_fnma(vec_set(far), d1, d3);
        plus[i] = vec_fma(vec_set(gain), odd, even);
        minus[i] = vec_fnma(vec_set(gain), odd, even);
    }
    wino_bt(4, plus, o, 1);
    TK__UNROLL
    for (size_t k = 0; k < 6; k++)
        vec_store(v + k * point + c, o[k]);
    wino_bt(4, minus, o, 1);
    TK__UNROLL
    for (size_t k = 0; k < 6; k++)
        vec_store(v + (6 + k) * point + c, o[k]);
}

/* Row 0 (first = 0) or 5 (first = 1). */
TK__INLINE void wino_end_row(const float *const *src, size_t first, size_t c, float *v,
                             size_t point)
{
    vec row[WINO_N_MAX], o[WINO_N_MAX];
    TK__UNROLL
    for (size_t i = 0; i < 6; i++) {
        const vec near = vec_load(src[6 * first + i] + c);
        const vec mid = vec_load(src[6 * (first + 2) + i] + c);
        const vec far = vec_load(src[6 * (first + 4) + i] + c);
        row[i] = vec_fnma(vec_set(5.0f), mid, vec_fma(vec_set(4.0f), near, far));
    }
    wino_bt(4, row, o, 1);
    TK__UNROLL
    for (size_t k = 0; k < 6; k++)
        vec_store(v + k * point + c, o[k]);
}

/* As wino_input_tile() for m = 4, two rows at a time: what is between fits the registers. */
TK__INLINE void wino_input_tile4(const float *const *src, size_t channels, float *v, size_t point)
{
    for (size_t c = 0; c < channels; c += VL) {
        wino_end_row(src, 0, c, v, point);
        wino_two_rows(src, c, 4.0f, 1.0f, v + 6 * point, point);
        wino_two_rows(src, c, 1.0f, 2.0f, v + 18 * point, point);
        wino_end_row(src, 1, c, v + 30 * point, point);
    }
}

TK__INLINE void wino_input_m(const tk__wino *w, size_t m, const tk__input *in, float *v,
                             size_t pitch, size_t point)
{
    const tk__conv *g = &w->geo;
    wino_place at = wino_first(w, w->t0);
    for (size_t t = 0; t < w->tiles; t++, v += pitch, wino_next(w, &at)) {
        const float *src[WINO_POINTS_MAX];
        wino_pixels(m + 2, in->x + at.image * g->ih * g->iw * g->ic, g->ih, g->iw, g->ic,
                    (ptrdiff_t)(at.ty * m) - g->pad_y, (ptrdiff_t)(at.tx * m) - g->pad_x, src);
        if (in->scale != NULL)
            wino_input_tile(m, true, src, in, g->ic, v, point);
        else if (m == 4)
            wino_input_tile4(src, g->ic, v, point);
        else
            wino_input_tile(m, false, src, in, g->ic, v, point);
    }
}

static void wino_input(const tk__wino *w, const tk__input *in, float *v, size_t pitch, size_t point)
{
    if (w->m == 2)
        wino_input_m(w, 2, in, v, pitch, point);
    else
        wino_input_m(w, 4, in, v, pitch, point);
}

TK__INLINE void wino_dy_m(const tk__wino *w, size_t m, const float *dy, float *v, size_t pitch,
                          size_t point)
{
    const tk__conv *g = &w->geo;
    const size_t n = m + 2;
    wino_place at = wino_first(w, w->t0);
    for (size_t t = 0; t < w->tiles; t++, v += pitch, wino_next(w, &at)) {
        const float *src[16];
        wino_pixels(m, dy + at.image * g->oh * g->ow * g->oc, g->oh, g->ow, g->oc,
                    (ptrdiff_t)(at.ty * m), (ptrdiff_t)(at.tx * m), src);
        for (size_t c = 0; c < g->oc; c += VL) {
            vec tmp[WINO_N_MAX * 4], d[4], o[WINO_N_MAX];
            TK__UNROLL
            for (size_t i = 0; i < m; i++) { /* columns */
                TK__UNROLL
                for (size_t k = 0; k < m; k++)
                    d[k] = vec_load(src[k * m + i] + c);
                wino_a(m, d, tmp + i, m);
            }
            TK__UNROLL
            for (size_t i = 0; i < n; i++) { /* rows */
                wino_a(m, tmp + i * m, o, 1);
                TK__UNROLL
                for (size_t k = 0; k < n; k++)
                    vec_store(v + (i * n + k) * point + c, o[k]);
            }
        }
    }
}

static void wino_dy(const tk__wino *w, const float *dy, float *v, size_t pitch, size_t point)
{
    if (w->m == 2)
        wino_dy_m(w, 2, dy, v, pitch, point);
    else
        wino_dy_m(w, 4, dy, v, pitch, point);
}

/* One output vector on its way to y. */
TK__INLINE vec wino_finish(const tk__wino_out *o, vec v, size_t at, size_t c)
{
    if (o->accumulate) v = v + vec_load(o->y + at);
    if (o->bias != NULL) v = v + vec_load(o->bias + c);
    if (o->residual != NULL) v = v + vec_load(o->residual + at);
    return o->relu ? vec_relu(v) : v;
}

TK__INLINE void wino_output_m(const tk__wino *w, size_t m, const float *u, size_t pitch,
                              size_t point, const tk__wino_out *out)
{
    const tk__conv *g = &w->geo;
    const size_t n = m + 2;
    wino_place at = wino_first(w, w->t0);
    for (size_t t = 0; t < w->tiles; t++, u += pitch, wino_next(w, &at)) {
        const size_t y0 = at.ty * m, x0 = at.tx * m;
        const size_t vy = g->oh - y0 < m ? g->oh - y0 : m, vx = g->ow - x0 < m ? g->ow - x0 : m;
        const size_t to = ((at.image * g->oh + y0) * g->ow + x0) * g->oc + out->c0;
        for (size_t c = 0; c < out->cols; c += VL) {
            vec tmp[WINO_N_MAX * 4], d[WINO_N_MAX], y[4];
            TK__UNROLL
            for (size_t i = 0; i < n; i++) { /* columns */
                TK__UNROLL
                for (size_t k = 0; k < n; k++)
                    d[k] = vec_load(u + (k * n + i) * point + c);
                wino_at(m, d, tmp + i, n);
            }
            TK__UNROLL
            for (size_t i = 0; i < m; i++) { /* rows */
                if (i >= vy) break;
                wino_at(m, tmp + i * n, y, 1);
                TK__UNROLL
                for (size_t k = 0; k < m; k++) {
                    if (k >= vx) break;
                    const size_t a = to + (i * g->ow + k) * g->oc + c;
                    vec_store(out->y + a, wino_finish(out, y[k], a, out->c0 + c));
                }
            }
        }
    }
}

static void wino_output(const tk__wino *w, const float *u, size_t pitch, size_t point,
                        const tk__wino_out *out)
{
    if (w->m == 2)
        wino_output_m(w, 2, u, pitch, point, out);
    else
        wino_output_m(w, 4, u, pitch, point, out);
}

/* --- weights --- */

TK__INLINE void wino_weights_m(size_t m, const float *taps, size_t rows, float *u, size_t ld,
                               size_t point)
{
    const size_t n = m + 2, tap = (size_t)TK__LANES * TK__LANES;
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < TK__LANES; c += VL) {
            vec tmp[WINO_N_MAX * 3], d[3], o[WINO_N_MAX];
            TK__UNROLL
            for (size_t i = 0; i < 3; i++) {
                TK__UNROLL
                for (size_t k = 0; k < 3; k++)
                    d[k] = vec_load(taps + (k * 3 + i) * tap + r * TK__LANES + c);
                wino_g(m, d, tmp + i, 3);
            }
            TK__UNROLL
            for (size_t i = 0; i < n; i++) {
                wino_g(m, tmp + i * 3, o, 1);
                TK__UNROLL
                for (size_t k = 0; k < n; k++)
                    vec_store(u + (i * n + k) * point + r * ld + c, o[k]);
            }
        }
}

static void wino_weights(size_t m, const float *taps, size_t rows, float *u, size_t ld,
                         size_t point)
{
    if (m == 2)
        wino_weights_m(2, taps, rows, u, ld, point);
    else
        wino_weights_m(4, taps, rows, u, ld, point);
}

TK__INLINE void wino_dw_m(size_t m, size_t count, const float *du, size_t point, float *dw,
                          size_t tap)
{
    const size_t n = m + 2;
    for (size_t c = 0; c < count; c += VL) {
        vec tmp[3 * WINO_N_MAX], d[WINO_N_MAX], o[3];
        TK__UNROLL
        for (size_t i = 0; i < n; i++) {
            TK__UNROLL
            for (size_t k = 0; k < n; k++)
                d[k] = vec_load(du + (k * n + i) * point + c);
            wino_gt(m, d, tmp + i, n);
        }
        TK__UNROLL
        for (size_t i = 0; i < 3; i++) {
            wino_gt(m, tmp + i * n, o, 1);
            TK__UNROLL
            for (size_t k = 0; k < 3; k++)
                vec_store(dw + (i * 3 + k) * tap + c, o[k]);
        }
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
