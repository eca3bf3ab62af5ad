/* Knowledge distillation (Hinton et al. 2015, 1503.02531; for old tasks on new images: Li & Hoiem,
 * Learning without Forgetting, 1606.09282).
 *
 *     KD_T(old, new) = - sum_i F_T(old)_i log F_T(new)_i
 *     F_T(u)_i = u_i^(1/T) / sum_j u_j^(1/T) on softmax probabilities u  =  softmax(logits / T)_i
 *     L = T^2 KD_T(teacher, student)
 *     dL/dz_i = T (softmax(z / T)_i - softmax(t / T)_i)
 *
 * with the student's logits z and the teacher's t.
 *
 * The teacher is the target. T^2 keeps the gradient's size independent of T. */
#include <math.h>

#include "heads/loss.h"

double tk_loss_kd(size_t n, size_t c, const float *teacher, const float *student, float temperature,
                  float weight, float *dlogits, double *entropy)
{
    const double t = (double)temperature, inv_n = 1 / (double)n;
    const double gradient_scale = (double)weight * t * inv_n;
    double cross = 0, own = 0;
    for (size_t i = 0; i < n; i++) {
        const float *zt = teacher + i * c, *zs = student + i * c;
        const double lt = tk_log_sum_exp(c, zt, t), ls = tk_log_sum_exp(c, zs, t);
        for (size_t k = 0; k < c; k++) {
            const double log_p = (double)zt[k] / t - lt, log_q = (double)zs[k] / t - ls;
            const double p = exp(log_p);
            cross -= p * log_q;
            own -= p * log_p;
            if (dlogits) dlogits[i * c + k] = (float)(gradient_scale * (exp(log_q) - p));
        }
    }
    if (entropy) *entropy = t * t * own * inv_n;
    return t * t * cross * inv_n;
}
