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

void tk_softmax(size_t c, const float *logits, float temperature, float *out)
{
    float top = logits[0];
    for (size_t k = 1; k < c; k++)
        if (logits[k] > top) top = logits[k];
    double sum = 0;
    for (size_t k = 0; k < c; k++) {
        out[k] = expf((logits[k] - top) / temperature);
        sum += (double)out[k];
    }
    const float scale = (float)(1 / sum);
    for (size_t k = 0; k < c; k++)
        out[k] *= scale;
}

/* log(sum exp z) of one row. */
static double log_sum_exp(size_t c, const float *z)
{
    double top = (double)z[0], sum = 0;
    for (size_t k = 1; k < c; k++)
        if ((double)z[k] > top) top = (double)z[k];
    for (size_t k = 0; k < c; k++)
        sum += exp((double)z[k] - top);
    return top + log(sum);
}

double tk_loss_ce(size_t n, size_t c, const float *logits, const uint32_t *labels, float smoothing,
                  float *dlogits)
{
    const double even = (double)smoothing / (double)c, inv_n = 1 / (double)n;
    double total = 0;
    for (size_t i = 0; i < n; i++) {
        const float *z = logits + i * c;
        const uint32_t y = labels[i];
        assert(y < c);
        const double lse = log_sum_exp(c, z);
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
