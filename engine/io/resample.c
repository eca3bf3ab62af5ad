/* Antialiased bilinear resampling with the rounding of PIL, whose result is the reference for
 * torchvision's transforms: a separable triangle filter whose support grows with the reduction,
 * weights in fixed point with 22 fractional bits, and a result rounded to 8 bits after each of the
 * two passes, horizontal first. Only what the wanted window needs is computed. */
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "engine/mem.h"
#include "resample_internal.h"

enum { FRACTION_BITS = 22 };
static const int32_t HALF = 1 << (FRACTION_BITS - 1);

/* The weights of one axis: pixel i of the window is the sum of taps source pixels from first[i] on.
 * Unused taps at the end of a row are zero and stay inside the source. */
typedef struct filter {
    size_t n, taps;
    size_t *first;    /* [n] */
    size_t *used;     /* [n], <= taps */
    int32_t *weights; /* [n][taps] */
} filter;

static void filter_fini(filter *f)
{
    tk_free(f->first);
    tk_free(f->used);
    tk_free(f->weights);
    *f = (filter){0};
}

/* The weights of pixel i of the resized axis, whose centre lies at (i + 1/2) * scale in the source.
 */
static void weigh(const tk__span *span, size_t i, double *w, size_t *first, size_t *used)
{
    const double scale = (double)span->in / span->out;
    const double reach = scale > 1.0 ? scale : 1.0; /* enlarging interpolates between neighbours */
    const double centre = ((double)i + 0.5) * scale;
    const double low = centre - reach + 0.5, high = centre + reach + 0.5;
    const size_t begin = low > 0 ? (size_t)low : 0;
    const size_t end = high < span->in ? (size_t)high : span->in;
    double sum = 0;
    for (size_t j = begin; j < end; j++) {
        double distance = fabs(((double)j - centre + 0.5) * (1.0 / reach));
        w[j - begin] = distance < 1.0 ? 1.0 - distance : 0.0;
        sum += w[j - begin];
    }
    for (size_t j = 0; j < end - begin; j++)
        w[j] /= sum;
    *first = begin;
    *used = end - begin;
}

static bool filter_init(filter *f, const tk__span *span)
{
    const double scale = (double)span->in / span->out;
    const size_t taps = (size_t)ceil(scale > 1.0 ? scale : 1.0) * 2 + 1;
    *f = (filter){
        .n = span->n,
        .taps = taps,
        .first = tk_calloc(span->n, sizeof *f->first),
        .used = tk_calloc(span->n, sizeof *f->used),
        .weights = tk_calloc(span->n, taps * sizeof *f->weights),
    };
    double *w = tk_calloc(taps, sizeof *w);
    const bool good = f->first && f->used && f->weights && w;
    for (size_t i = 0; good && i < span->n; i++) {
        weigh(span, span->from + i, w, &f->first[i], &f->used[i]);
        for (size_t t = 0; t < f->used[i]; t++)
            f->weights[i * taps + t] = (int32_t)(0.5 + w[t] * (1 << FRACTION_BITS));
    }
    tk_free(w);
    if (!good) filter_fini(f);
    return good;
}

/* Weights are not negative and sum to 1 up to rounding, so only the upper end can overflow. */
static uint8_t to_byte(int32_t sum)
{
    int32_t value = sum >> FRACTION_BITS;
    return (uint8_t)(value > 255 ? 255 : value);
}

static void resample_row(const filter *f, const uint8_t *from, uint8_t *to)
{
    for (size_t i = 0; i < f->n; i++, to += 3) {
        const int32_t *w = f->weights + i * f->taps;
        const uint8_t *p = from + f->first[i] * 3;
        int32_t r = HALF, g = HALF, b = HALF;
        for (size_t t = 0; t < f->used[i]; t++, p += 3) {
            r += p[0] * w[t];
            g += p[1] * w[t];
            b += p[2] * w[t];
        }
        to[0] = to_byte(r);
        to[1] = to_byte(g);
        to[2] = to_byte(b);
    }
}

/* One line of the result from `used` lines of `from`; sums is scratch of `stride` values. */
static void resample_column(size_t stride, size_t used, const int32_t *weights, const uint8_t *from,
                            int32_t *restrict sums, uint8_t *restrict to)
{
    for (size_t x = 0; x < stride; x++)
        sums[x] = HALF;
    for (size_t t = 0; t < used; t++, from += stride) {
        const int32_t w = weights[t];
        for (size_t x = 0; x < stride; x++)
            sums[x] += from[x] * w;
    }
    for (size_t x = 0; x < stride; x++)
        to[x] = to_byte(sums[x]);
}

static tk_err resample(const uint8_t *rgb, size_t line, const filter *fx, const filter *fy,
                       uint8_t *to)
{
    /* Lines of the source that the window needs. */
    const size_t top = fy->first[0];
    const size_t bottom = fy->first[fy->n - 1] + fy->used[fy->n - 1];
    const size_t stride = fx->n * 3;
    uint8_t *narrow = tk_calloc(bottom - top, stride);
    int32_t *sums = tk_calloc(stride, sizeof *sums);
    const bool good = narrow && sums;
    if (good) {
        for (size_t y = top; y < bottom; y++)
            resample_row(fx, rgb + y * line, narrow + (y - top) * stride);
        for (size_t y = 0; y < fy->n; y++)
            resample_column(stride, fy->used[y], fy->weights + y * fy->taps,
                            narrow + (fy->first[y] - top) * stride, sums, to + y * stride);
    }
    tk_free(narrow);
    tk_free(sums);
    return good ? TK_OK : TK_NOMEM;
}

tk_err tk__resample(const uint8_t *rgb, const tk__span *x, const tk__span *y, uint8_t *to)
{
    if (x->in == x->out && y->in == y->out) {
        const size_t n = (size_t)x->n * 3;
        for (size_t row = 0; row < y->n; row++)
            memcpy(to + row * n, rgb + ((y->from + row) * x->in + x->from) * 3, n);
        return TK_OK;
    }
    filter fx = {0}, fy = {0};
    tk_err err = TK_NOMEM;
    if (filter_init(&fx, x) && filter_init(&fy, y))
        err = resample(rgb, (size_t)x->in * 3, &fx, &fy, to);
    filter_fini(&fx);
    filter_fini(&fy);
    return err;
}
