/* Quantiles of a histogram. */
#ifndef TRUNKCTL_QUANTILE_H
#define TRUNKCTL_QUANTILE_H

#include <stddef.h>
#include <stdint.h>

/* The q-quantile (0..1) of counts [n + 1] in buckets with the rising upper `bounds` [n], the last
 * bucket without one: linear within its bucket, from 0 in the first. What lies beyond the last
 * bound is given as that bound. NaN when nothing was counted. */
double tk__quantile(size_t n, const double *bounds, const uint64_t *counts, double q);

#endif
