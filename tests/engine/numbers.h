/* Arrays of seeded numbers and comparisons, for tests of numerical code. */
#ifndef TESTS_NUMBERS_H
#define TESTS_NUMBERS_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/mem.h"
#include "engine/rng.h"

/* n normal numbers; free with tk_free(). */
static inline float *normals(size_t n, uint64_t seed)
{
    float *a = tk_aligned_calloc(n + 1, sizeof *a);
    for (size_t i = 0; a != NULL && i < n; i++)
        a[i] = tk_rng_normal(seed, 0, i);
    return a;
}

static inline float *zeros(size_t n)
{
    return tk_aligned_calloc(n + 1, sizeof(float));
}

static inline bool near(float got, double want, double tolerance)
{
    return fabs((double)got - want) <= tolerance;
}

/* Largest difference, relative to the largest magnitude of `want`; NaN anywhere is infinite. */
static inline double distance(size_t n, const float *got, const float *want)
{
    double most = 0, scale = 1e-30;
    for (size_t i = 0; i < n; i++) {
        const double d = fabs((double)got[i] - (double)want[i]);
        if (!(d <= most)) most = isnan(d) ? (double)INFINITY : d;
        if (fabs((double)want[i]) > scale) scale = fabs((double)want[i]);
    }
    return most / scale;
}

static inline double dot(size_t n, const float *a, const float *b)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)a[i] * (double)b[i];
    return sum;
}

#endif
