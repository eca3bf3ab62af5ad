/* See quantile.h. */
#include "quantile.h"

#include <math.h>

double tk__quantile(size_t n, const double *bounds, const uint64_t *counts, double q)
{
    double total = 0, below = 0;
    for (size_t i = 0; i <= n; i++)
        total += (double)counts[i];
    if (n == 0 || total <= 0) return (double)NAN;
    const double rank = q * total;
    for (size_t i = 0; i < n; i++) {
        const double here = (double)counts[i], from = i ? bounds[i - 1] : 0;
        if (here > 0 && below + here >= rank)
            return from + (bounds[i] - from) * (rank > below ? (rank - below) / here : 0);
        below += here;
    }
    return bounds[n - 1];
}
