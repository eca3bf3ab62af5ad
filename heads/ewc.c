/* Elastic weight consolidation (Kirkpatrick et al. 2016, 1612.00796, eq 3):
 *
 *     P(theta) = lambda/2 * sum_j F_j (theta_j - a_j)^2
 *
 * Its plain gradient step is stable only while rate * lambda * F_j < 2. The proximal step instead
 * minimises P + |theta - theta'|^2 / (2 rate) exactly, which has a closed form and never
 * overshoots:
 *
 *     theta_j <- (theta'_j + s_j a_j) / (1 + s_j) = theta'_j + s_j / (1 + s_j) (a_j - theta'_j),
 *     s_j = rate * lambda * F_j
 *
 * Many heads collapse into two vectors, since a sum of parabolas is a parabola: with F = sum_t F_t
 * and a = sum_t F_t theta_t / F, the penalties of all heads t equal one penalty up to a constant.
 * The other form is online EWC (Huszar 2017, 1712.03847; Schwarz et al. 2018, 1805.06370, section
 * 3): decay the old Fisher and anchor at the latest weights. Neither grows with the number of
 * heads. */
#include "heads/ewc.h"

#include <string.h>

double tk_ewc_penalty(size_t n, const float *theta, const float *anchor, const float *fisher,
                      double lambda)
{
    double sum = 0;
    for (size_t j = 0; j < n; j++) {
        const double d = (double)(theta[j] - anchor[j]);
        sum += (double)fisher[j] * d * d;
    }
    return lambda / 2 * sum;
}

double tk_ewc_proximal(size_t n, float *theta, const float *anchor, const float *fisher,
                       double lambda, double rate)
{
    const double scale = rate * lambda;
    double sum = 0;
    for (size_t j = 0; j < n; j++) {
        const double d = (double)anchor[j] - (double)theta[j];
        const double s = scale * (double)fisher[j];
        sum += (double)fisher[j] * d * d;
        theta[j] = s > 1e12 ? anchor[j] : (float)((double)theta[j] + s / (1 + s) * d);
    }
    return lambda / 2 * sum;
}

static void collapse(size_t n, float *fisher, float *anchor, const float *fisher_new,
                     const float *theta)
{
    for (size_t j = 0; j < n; j++) {
        const double old = (double)fisher[j], add = (double)fisher_new[j], sum = old + add;
        /* Where no head cares, the anchor is of no consequence; the newest weight is as good as
         * any. */
        anchor[j] =
            sum > 0 ? (float)((old * (double)anchor[j] + add * (double)theta[j]) / sum) : theta[j];
        fisher[j] = (float)sum;
    }
}

void tk_ewc_merge(size_t n, float *fisher, float *anchor, const float *fisher_new,
                  const float *theta, tk_ewc_form form, double gamma)
{
    if (form == TK_EWC_COLLAPSE) {
        collapse(n, fisher, anchor, fisher_new, theta);
        return;
    }
    for (size_t j = 0; j < n; j++)
        fisher[j] = (float)(gamma * (double)fisher[j] + (double)fisher_new[j]);
    memcpy(anchor, theta, n * sizeof *anchor);
}
