/* softmax(z / T)_i = exp(z_i / T) / sum_j exp(z_j / T), and the logarithm of that sum. The largest
 * logit is taken out first: no exponential overflows. Sums run in double, in order. */
#include <math.h>

#include "heads/loss.h"

static float largest(size_t c, const float *z)
{
    float top = z[0];
    for (size_t k = 1; k < c; k++)
        if (z[k] > top) top = z[k];
    return top;
}

void tk_softmax(size_t c, const float *logits, float temperature, float *out)
{
    const float top = largest(c, logits);
    double sum = 0;
    for (size_t k = 0; k < c; k++) {
        out[k] = expf((logits[k] - top) / temperature);
        sum += (double)out[k];
    }
    const float scale = (float)(1 / sum);
    for (size_t k = 0; k < c; k++)
        out[k] *= scale;
}

double tk_log_sum_exp(size_t c, const float *logits, double temperature)
{
    const double top = (double)largest(c, logits);
    double sum = 0;
    for (size_t k = 0; k < c; k++)
        sum += exp(((double)logits[k] - top) / temperature);
    return top / temperature + log(sum);
}
