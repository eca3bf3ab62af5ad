/* Cross-entropy of the new head with label smoothing (Szegedy et al. 2015, 1512.00567, section 7).
 *
 *     q_k = (1 - s) [k = y] + s / c
 *     L   = - sum_k q_k log p_k,   p = softmax(z)
 *     dL/dz_k = p_k - q_k                                        (q sums to 1)
 *
 * The mean over the batch divides both by n. Sums run in double, in order: the same bits every
 * time. */
#include <assert.h>
#include <math.h>

#include "heads/loss.h"

double tk_loss_ce(size_t n, size_t c, const float *logits, const uint32_t *labels, float smoothing,
                  float *dlogits)
{
    const double even = (double)smoothing / (double)c, inv_n = 1 / (double)n;
    double total = 0;
    for (size_t i = 0; i < n; i++) {
        const float *z = logits + i * c;
        const uint32_t y = labels[i];
        assert(y < c);
        const double lse = tk_log_sum_exp(c, z, 1);
        double sum = 0; /* of all logits: sum_k (s/c) log p_k = (s/c) (sum z - c lse) */
        for (size_t k = 0; k < c; k++)
            sum += (double)z[k];
        total += lse - (1 - (double)smoothing) * (double)z[y] - even * sum;
        if (!dlogits) continue;
        float *dz = dlogits + i * c;
        for (size_t k = 0; k < c; k++) {
            const double q = even + (k == y ? 1 - (double)smoothing : 0);
            dz[k] = (float)((exp((double)z[k] - lse) - q) * inv_n);
        }
    }
    return total * inv_n;
}
