/* Winograd's minimal filtering F(m x m, 3x3) for m = 2 and 4 (Lavin & Gray, 1509.09308): the
 * transforms, in terms of an including file's `vec` of VL lanes and its wino_put().
 *
 * An m x m output tile reads an n x n input tile, n = m + 2. With the matrices of section 4.1 (m =
 * 2) and of the points 0, a, -a, b, -b with a = 3/4, b = 3/2 (m = 4),
 *     y = At [ (G w Gt) . (Bt d B) ] A                                                  (eq. 9)
 * where . is the product element by element. Summed over input channels it is n * n independent
 * matrix products. The weight gradient is the adjoint, Gt [ (A dy At) . (Bt d B) ] G. With the
 * paper's a = 1, b = 2 rounding errors are twice as large (operands in bfloat16: 2.5 % against 1.2
 * % of a result's norm; F(2x2): 0.4 %).
 *
 * Every lane is a channel: no transform mixes lanes, and all bits of a tile depend on it alone. */
#ifndef KERNELS_WINOGRAD_H
#define KERNELS_WINOGRAD_H

#include "kernels/kernels.h"
#include "kernels/tile.h"

enum { WINO_N_MAX = 6, WINO_POINTS_MAX = 36 };

/* What a transform stores: floats, bfloat16 numbers, or one half of words that hold two of them.
 * A low half is stored with zeros above, a high half beside the low one that is there. */
typedef enum wino_form { WINO_FLOATS, WINO_HALVES, WINO_LOW, WINO_HIGH } wino_form;

/* Element `at` (a float, a bfloat16 number, a word) and the VL - 1 that follow; the including file
 * defines it for the forms that it uses. */
TK__INLINE void wino_put(wino_form form, void *v, size_t at, vec x);

/* The points P = a and Q = b of m = 4 and their powers, which are exact; the inverse product of a
 * point's distances from the other points: of 0, of a and -a, of b and -b. */
static const float P1 = 0.75f, Q1 = 1.5f, P2 = 0.5625f, Q2 = 2.25f, P3 = 0.421875f, Q3 = 3.375f;
static const float N0 = 64.0f / 81, NP = -128.0f / 243, NQ = 32.0f / 243;

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
    const vec p2 = vec_set(P2), q2 = vec_set(Q2), both = vec_set(P2 * Q2), sum = vec_set(P2 + Q2);
    const vec p = vec_set(P1), q = vec_set(Q1);
    const vec a = vec_fnma(q2, d[2], d[4]), b = vec_fnma(q2, d[1], d[3]);
    const vec c = vec_fnma(p2, d[2], d[4]), e = vec_fnma(p2, d[1], d[3]);
    o[0] = vec_fnma(sum, d[2], vec_fma(both, d[0], d[4]));
    o[os] = vec_fma(p, b, a);
    o[2 * os] = vec_fnma(p, b, a);
    o[3 * os] = vec_fma(q, e, c);
    o[4 * os] = vec_fnma(q, e, c);
    o[5 * os] = vec_fnma(sum, d[3], vec_fma(both, d[1], d[5]));
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
    o[os] = vec_fma(vec_set(Q1), d2, vec_set(P1) * d1);
    o[2 * os] = vec_fma(vec_set(Q2), s2, vec_set(P2) * s1);
    o[3 * os] = vec_fma(vec_set(Q3), d2, vec_fma(vec_set(P3), d1, v[5]));
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
    const vec even = vec_fma(vec_set(P2), v[2], v[0]), even2 = vec_fma(vec_set(Q2), v[2], v[0]);
    const vec odd = vec_fma(vec_set(P3), v[3], vec_set(P1) * v[1]);
    const vec odd2 = vec_fma(vec_set(Q3), v[3], vec_set(Q1) * v[1]);
    o[0] = v[0];
    o[os] = even + odd;
    o[2 * os] = even - odd;
    o[3 * os] = even2 + odd2;
    o[4 * os] = even2 - odd2;
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
    const vec near = vec_fma(vec_set(NP * P2), w[2], vec_set(NP) * w[0]),
              nmid = vec_set(NP * P1) * w[1];
    const vec far = vec_fma(vec_set(NQ * Q2), w[2], vec_set(NQ) * w[0]),
              fmid = vec_set(NQ * Q1) * w[1];
    o[0] = vec_set(N0) * w[0];
    o[os] = near + nmid;
    o[2 * os] = near - nmid;
    o[3 * os] = far + fmid;
    o[4 * os] = far - fmid;
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
    const vec near = vec_set(NP) * (v[1] + v[2]), far = vec_set(NQ) * (v[3] + v[4]);
    const vec near1 = vec_set(NP * P1) * (v[1] - v[2]);
    o[0] = vec_fma(vec_set(N0), v[0], near + far);
    o[os] = vec_fma(vec_set(NQ * Q1), v[3] - v[4], near1);
    o[2 * os] = vec_fma(vec_set(P2), near, vec_fma(vec_set(Q2), far, v[5]));
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

/* An input as tk__input says. */
TK__INLINE vec norm_input(vec scale, vec shift, vec v)
{
    return vec_relu(v * scale + shift);
}

/* One input tile's channels c..c+VL-1; `norm`: normalised as they are read, but for the zeros
 * outside the image. */
TK__INLINE void wino_input_tile(size_t m, bool norm, wino_form form, const float *const *src,
                                const tk__input *in, size_t c, void *v, size_t at, size_t point)
{
    const size_t n = m + 2;
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
            if (norm && src[k * n + i] != wino_zeros) d[k] = norm_input(scale, shift, d[k]);
        }
        wino_bt(m, d, tmp + i, n);
    }
    TK__UNROLL
    for (size_t i = 0; i < n; i++) { /* rows */
        wino_bt(m, tmp + i * n, o, 1);
        TK__UNROLL
        for (size_t k = 0; k < n; k++)
            wino_put(form, v, at + (i * n + k) * point, o[k]);
    }
}

/* One row of the tile from its column sums. */
TK__INLINE void wino_row(wino_form form, const vec *sums, void *v, size_t at, size_t point)
{
    vec o[WINO_N_MAX];
    wino_bt(4, sums, o, 1);
    TK__UNROLL
    for (size_t k = 0; k < 6; k++)
        wino_put(form, v, at + k * point, o[k]);
}

/* Rows of Bt d, m = 4, that share their differences: those of the points p and -p. `other`: the
 * square of the other point. Column i of the tile is src[6 * k + i]. */
TK__INLINE void wino_two_rows(wino_form form, const float *const *src, size_t c, float other,
                              float p, void *v, size_t at, size_t point)
{
    vec plus[WINO_N_MAX], minus[WINO_N_MAX];
    TK__UNROLL
    for (size_t i = 0; i < 6; i++) {
        const vec d1 = vec_load(src[6 + i] + c), d2 = vec_load(src[12 + i] + c);
        const vec d3 = vec_load(src[18 + i] + c), d4 = vec_load(src[24 + i] + c);
        const vec even = vec_fnma(vec_set(other), d2, d4), odd = vec_fnma(vec_set(other), d1, d3);
        plus[i] = vec_fma(vec_set(p), odd, even);
        minus[i] = vec_fnma(vec_set(p), odd, even);
    }
    wino_row(form, plus, v, at, point);
    wino_row(form, minus, v, at + 6 * point, point);
}

/* Row 0 (first = 0) or 5 (first = 1). */
TK__INLINE void wino_end_row(wino_form form, const float *const *src, size_t first, size_t c,
                             void *v, size_t at, size_t point)
{
    vec row[WINO_N_MAX];
    TK__UNROLL
    for (size_t i = 0; i < 6; i++) {
        const vec near = vec_load(src[6 * first + i] + c);
        const vec mid = vec_load(src[6 * (first + 2) + i] + c);
        const vec far = vec_load(src[6 * (first + 4) + i] + c);
        row[i] = vec_fnma(vec_set(P2 + Q2), mid, vec_fma(vec_set(P2 * Q2), near, far));
    }
    wino_row(form, row, v, at, point);
}

/* As wino_input_tile() for m = 4, two rows at a time: what is between fits the registers. */
TK__INLINE void wino_input_tile4(wino_form form, const float *const *src, size_t c, void *v,
                                 size_t at, size_t point)
{
    wino_end_row(form, src, 0, c, v, at, point);
    wino_two_rows(form, src, c, Q2, P1, v, at + 6 * point, point);
    wino_two_rows(form, src, c, P2, Q1, v, at + 18 * point, point);
    wino_end_row(form, src, 1, c, v, at + 30 * point, point);
}

/* The pixels that a tile of the input reads, and its transform. */
TK__INLINE void wino_input_pixels(const tk__wino *w, size_t m, const tk__input *in, wino_place at,
                                  const float **src)
{
    const tk__conv *g = &w->geo;
    wino_pixels(m + 2, in->x + at.image * g->ih * g->iw * g->ic, g->ih, g->iw, g->ic,
                (ptrdiff_t)(at.ty * m) - g->pad_y, (ptrdiff_t)(at.tx * m) - g->pad_x, src);
}

TK__INLINE void wino_input_any(size_t m, wino_form form, const float *const *src,
                               const tk__input *in, size_t c, void *v, size_t at, size_t point)
{
    if (in->scale != NULL)
        wino_input_tile(m, true, form, src, in, c, v, at, point);
    else if (m == 4)
        wino_input_tile4(form, src, c, v, at, point);
    else
        wino_input_tile(m, false, form, src, in, c, v, at, point);
}

/* Every tile; of pairs (form WINO_LOW) the second is stored in the high halves. */
TK__INLINE void wino_input_m(const tk__wino *w, size_t m, wino_form form, const tk__input *in,
                             void *v, size_t pitch, size_t point)
{
    wino_place place = wino_first(w, w->t0);
    for (size_t t = 0; t < w->tiles; t++, wino_next(w, &place)) {
        const float *src[WINO_POINTS_MAX];
        const size_t at = (form == WINO_LOW ? t / 2 : t) * pitch;
        wino_input_pixels(w, m, in, place, src);
        for (size_t c = 0; c < w->geo.ic; c += VL)
            if (form == WINO_LOW && t % 2 == 1)
                wino_input_any(m, WINO_HIGH, src, in, c, v, at + c, point);
            else
                wino_input_any(m, form, src, in, c, v, at + c, point);
    }
}

/* The pixels of a tile of dy, and its transform. */
TK__INLINE void wino_dy_pixels(const tk__wino *w, size_t m, const float *dy, wino_place at,
                               const float **src)
{
    const tk__conv *g = &w->geo;
    wino_pixels(m, dy + at.image * g->oh * g->ow * g->oc, g->oh, g->ow, g->oc,
                (ptrdiff_t)(at.ty * m), (ptrdiff_t)(at.tx * m), src);
}

TK__INLINE void wino_dy_tile(size_t m, wino_form form, const float *const *src, size_t c, void *v,
                             size_t at, size_t point)
{
    const size_t n = m + 2;
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
            wino_put(form, v, at + (i * n + k) * point, o[k]);
    }
}

/* As wino_input_m(). */
TK__INLINE void wino_dy_m(const tk__wino *w, size_t m, wino_form form, const float *dy, void *v,
                          size_t pitch, size_t point)
{
    wino_place place = wino_first(w, w->t0);
    for (size_t t = 0; t < w->tiles; t++, wino_next(w, &place)) {
        const float *src[16];
        const size_t at = (form == WINO_LOW ? t / 2 : t) * pitch;
        wino_dy_pixels(w, m, dy, place, src);
        for (size_t c = 0; c < w->geo.oc; c += VL)
            if (form == WINO_LOW && t % 2 == 1)
                wino_dy_tile(m, WINO_HIGH, src, c, v, at + c, point);
            else
                wino_dy_tile(m, form, src, c, v, at + c, point);
    }
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

/* --- weights --- */

/* VL weights, tap t of which are at taps + t * tap. */
TK__INLINE void wino_weights_row(size_t m, wino_form form, const float *taps, size_t tap, void *u,
                                 size_t at, size_t point)
{
    const size_t n = m + 2;
    vec tmp[WINO_N_MAX * 3], d[3], o[WINO_N_MAX];
    TK__UNROLL
    for (size_t i = 0; i < 3; i++) {
        TK__UNROLL
        for (size_t k = 0; k < 3; k++)
            d[k] = vec_load(taps + (k * 3 + i) * tap);
        wino_g(m, d, tmp + i, 3);
    }
    TK__UNROLL
    for (size_t i = 0; i < n; i++) {
        wino_g(m, tmp + i * 3, o, 1);
        TK__UNROLL
        for (size_t k = 0; k < n; k++)
            wino_put(form, u, at + (i * n + k) * point, o[k]);
    }
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

#endif
