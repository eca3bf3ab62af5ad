/* Antialiased bilinear resampling with the rounding of PIL, whose result is the reference for
 * torchvision's transforms: a separable triangle filter whose support grows with the reduction,
 * weights in fixed point with 22 fractional bits, and a result rounded to 8 bits after each of the
 * two passes, horizontal first. Only what the wanted window needs is computed. */
#include <math.h>
#include <stdbool.h>
#include <string.h>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "engine/mem.h"
#include "resample_internal.h"

enum { FRACTION_BITS = 22 };
static const int32_t HALF = 1 << (FRACTION_BITS - 1);

/* The weights of one axis: pixel i of the window is the sum of used[i] source pixels from first[i]
 * on; unused weights are zero. */
typedef struct filter {
    size_t n, taps;   /* taps is even */
    size_t *first;    /* [n] */
    size_t *used;     /* [n], <= taps */
    int32_t *weights; /* [n][taps] */
    int32_t *pairs;   /* [n][taps]: of two weights the upper halves, then the lower, as words */
} filter;

/* Two taps at once: pmaddwd multiplies signed words and adds neighbours. A weight is too wide for a
 * word, so each is upper * 2^LOWER_BITS + lower; the sums are exact, as 32 bits hold them. */
enum { LOWER_BITS = 11 };

static void split(const int32_t weights[2], int32_t pair[2])
{
    const int32_t lower = (1 << LOWER_BITS) - 1;
    pair[0] = (weights[0] >> LOWER_BITS) | (weights[1] >> LOWER_BITS) << 16;
    pair[1] = (weights[0] & lower) | (weights[1] & lower) << 16;
}

static void filter_fini(filter *f)
{
    tk_free(f->first);
    tk_free(f->used);
    tk_free(f->weights);
    tk_free(f->pairs);
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
    const size_t taps = (size_t)ceil(scale > 1.0 ? scale : 1.0) * 2 + 2;
    *f = (filter){
        .n = span->n,
        .taps = taps,
        .first = tk_calloc(span->n, sizeof *f->first),
        .used = tk_calloc(span->n, sizeof *f->used),
        .weights = tk_calloc(span->n, taps * sizeof *f->weights),
        .pairs = tk_calloc(span->n, taps * sizeof *f->pairs),
    };
    double *w = tk_calloc(taps, sizeof *w);
    const bool good = f->first && f->used && f->weights && f->pairs && w;
    for (size_t i = 0; good && i < span->n; i++) {
        weigh(span, span->from + i, w, &f->first[i], &f->used[i]);
        for (size_t t = 0; t < f->used[i]; t++)
            f->weights[i * taps + t] = (int32_t)(0.5 + w[t] * (1 << FRACTION_BITS));
        for (size_t t = 0; t < f->used[i]; t += 2)
            split(f->weights + i * taps + t, f->pairs + i * taps + t);
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

/* A value of line i of the result; `from` is in the first of the lines that it is made of. */
static uint8_t resample_one(const filter *f, size_t i, size_t stride, const uint8_t *from)
{
    int32_t sum = HALF;
    for (size_t t = 0; t < f->used[i]; t++)
        sum += from[t * stride] * f->weights[i * f->taps + t];
    return to_byte(sum);
}

#ifdef __SSE2__

typedef struct sums {
    __m128i upper, lower;
} sums;

static sums sums_begin(void)
{
    return (sums){_mm_setzero_si128(), _mm_set1_epi32(HALF)};
}

/* Both bytes of a pair lie side by side, four pairs from the lower eight bytes on. */
static void sums_add(sums *s, __m128i bytes, const int32_t pair[2])
{
    const __m128i words = _mm_unpacklo_epi8(bytes, _mm_setzero_si128());
    s->upper = _mm_add_epi32(s->upper, _mm_madd_epi16(words, _mm_set1_epi32(pair[0])));
    s->lower = _mm_add_epi32(s->lower, _mm_madd_epi16(words, _mm_set1_epi32(pair[1])));
}

/* The four sums, in words. */
static __m128i sums_end(const sums *s)
{
    const __m128i all = _mm_add_epi32(_mm_slli_epi32(s->upper, LOWER_BITS), s->lower);
    return _mm_srai_epi32(all, FRACTION_BITS);
}

/* Eight bytes, or as many as there are before `end`, and zeros. */
static __m128i load_before(const uint8_t *p, const uint8_t *end)
{
    uint8_t last[8] = {0};
    if (end - p >= 8) return _mm_loadl_epi64((const __m128i *)(const void *)p);
    memcpy(last, p, (size_t)(end - p));
    return _mm_loadl_epi64((const __m128i *)(const void *)last);
}

static void resample_row(const filter *f, const uint8_t *from, const uint8_t *end, uint8_t *to)
{
    for (size_t i = 0; i < f->n; i++, to += 3) {
        const int32_t *pairs = f->pairs + i * f->taps;
        const uint8_t *p = from + f->first[i] * 3;
        sums s = sums_begin();
        for (size_t t = 0; t < f->used[i]; t += 2, p += 6) {
            const __m128i x = load_before(p, end);
            sums_add(&s, _mm_unpacklo_epi8(x, _mm_srli_si128(x, 3)), pairs + t);
        }
        const __m128i words = _mm_packs_epi32(sums_end(&s), _mm_setzero_si128());
        const int32_t rgb = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
        memcpy(to, &rgb, 3);
    }
}

/* The same of eight values side by side. */
static void resample_eight(const filter *f, size_t i, size_t stride, const uint8_t *from,
                           uint8_t *to)
{
    const int32_t *pairs = f->pairs + i * f->taps;
    sums left = sums_begin(), right = sums_begin();
    for (size_t t = 0; t < f->used[i]; t += 2, from += 2 * stride) {
        const uint8_t *next = t + 1 < f->used[i] ? from + stride : from; /* its weight is zero */
        const __m128i a = _mm_loadl_epi64((const __m128i *)(const void *)from);
        const __m128i b = _mm_loadl_epi64((const __m128i *)(const void *)next);
        const __m128i bytes = _mm_unpacklo_epi8(a, b);
        sums_add(&left, bytes, pairs + t);
        sums_add(&right, _mm_srli_si128(bytes, 8), pairs + t);
    }
    const __m128i words = _mm_packs_epi32(sums_end(&left), sums_end(&right));
    _mm_storel_epi64((__m128i *)(void *)to, _mm_packus_epi16(words, words));
}

#else

static void resample_row(const filter *f, const uint8_t *from, const uint8_t *end, uint8_t *to)
{
    (void)end;
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

static void resample_eight(const filter *f, size_t i, size_t stride, const uint8_t *from,
                           uint8_t *to)
{
    for (size_t x = 0; x < 8; x++)
        to[x] = resample_one(f, i, stride, from + x);
}

#endif

static void resample_column(const filter *f, size_t i, size_t stride, const uint8_t *from,
                            uint8_t *to)
{
    size_t x = 0;
    for (; x + 8 <= stride; x += 8)
        resample_eight(f, i, stride, from + x, to + x);
    for (; x < stride; x++)
        to[x] = resample_one(f, i, stride, from + x);
}

static tk_err resample(const uint8_t *rgb, size_t line, const filter *fx, const filter *fy,
                       uint8_t *to)
{
    /* Lines of the source that the window needs. */
    const size_t top = fy->first[0];
    const size_t bottom = fy->first[fy->n - 1] + fy->used[fy->n - 1];
    const size_t stride = fx->n * 3;
    uint8_t *narrow = tk_calloc(bottom - top, stride);
    if (!narrow) return TK_NOMEM;
    for (size_t y = top; y < bottom; y++)
        resample_row(fx, rgb + y * line, rgb + (y + 1) * line, narrow + (y - top) * stride);
    for (size_t y = 0; y < fy->n; y++)
        resample_column(fy, y, stride, narrow + (fy->first[y] - top) * stride, to + y * stride);
    tk_free(narrow);
    return TK_OK;
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
