/* A histogram of times with bounded memory: log-linear buckets, 128 to each power of two, so that a
 * quantile is at most 1 % too long. From 1 ns to an hour, in 38 KiB. */
#ifndef TRUNKCTL_HISTOGRAM_H
#define TRUNKCTL_HISTOGRAM_H

#include <stdint.h>

enum {
    TK__HISTOGRAM_BITS = 7, /* 128 buckets to a power of two */
    TK__HISTOGRAM_TOP = 42, /* 2^42 ns are 73 minutes; longer times share the last bucket */
    TK__HISTOGRAM_BUCKETS = (TK__HISTOGRAM_TOP - TK__HISTOGRAM_BITS + 1) << TK__HISTOGRAM_BITS,
};

/* All zero: empty. */
typedef struct tk__histogram {
    uint64_t n;
    int64_t longest_ns; /* exact */
    double sum_ns;
    uint64_t counts[TK__HISTOGRAM_BUCKETS];
} tk__histogram;

void tk__histogram_add(tk__histogram *h, int64_t ns); /* below 0 counts as 0 */
/* The time within which the share `q` (0..1) of those counted lies, rounded up by at most 1 % and
 * never beyond the longest. NaN when there is none. */
double tk__histogram_quantile(const tk__histogram *h, double q);
double tk__histogram_mean(const tk__histogram *h); /* ns; NaN when there is none */

#endif
