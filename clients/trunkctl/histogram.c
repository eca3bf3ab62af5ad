/* See histogram.h. Below 2^8 ns a bucket is one nanosecond wide; from there on each power of two is
 * cut into 128 of equal width, so that a bucket's width is below 1/128 of its times. */
#include "histogram.h"

#include <math.h>
#include <stddef.h>

enum { LINEAR = 1 << TK__HISTOGRAM_BITS };

static size_t bucket_of(uint64_t ns)
{
    if (ns < LINEAR) return (size_t)ns;
    if (ns >> TK__HISTOGRAM_TOP) return TK__HISTOGRAM_BUCKETS - 1;
    const unsigned log2 = 63 - (unsigned)__builtin_clzll(ns), shift = log2 - TK__HISTOGRAM_BITS;
    return ((size_t)(shift + 1) << TK__HISTOGRAM_BITS) + (size_t)(ns >> shift) - LINEAR;
}

/* The longest time of a bucket. */
static double upper(size_t bucket)
{
    if (bucket < LINEAR) return (double)bucket;
    const unsigned shift = (unsigned)(bucket >> TK__HISTOGRAM_BITS) - 1;
    const uint64_t at = bucket % LINEAR + LINEAR;
    return (double)(((at + 1) << shift) - 1);
}

void tk__histogram_add(tk__histogram *h, int64_t ns)
{
    if (ns < 0) ns = 0;
    h->counts[bucket_of((uint64_t)ns)]++;
    h->n++;
    h->sum_ns += (double)ns;
    if (ns > h->longest_ns) h->longest_ns = ns;
}

double tk__histogram_quantile(const tk__histogram *h, double q)
{
    const double longest = (double)h->longest_ns, rank = q * (double)h->n;
    uint64_t seen = 0;
    if (h->n == 0) return (double)NAN;
    for (size_t i = 0; i < TK__HISTOGRAM_BUCKETS - 1; i++) {
        seen += h->counts[i];
        if (seen > 0 && (double)seen >= rank) return upper(i) < longest ? upper(i) : longest;
    }
    return longest; /* in the last bucket, which has no bound */
}

double tk__histogram_mean(const tk__histogram *h)
{
    return h->n ? h->sum_ns / (double)h->n : (double)NAN;
}
