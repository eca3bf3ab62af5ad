/* Elastic weight consolidation: a quadratic pull of the trunk towards an anchor, each weight by how
 * much the old heads depend on it. All vectors have `n` = trunk->trained floats, F of mean 1 for
 * one head; penalties are in nats, as cross-entropy is. Nothing is kept: any thread. The formulas
 * and their sources stand in ewc.c. */
#ifndef HEADS_EWC_H
#define HEADS_EWC_H

#include <stddef.h>

/* lambda/2 * sum_j F_j (theta_j - anchor_j)^2 */
double tk_ewc_penalty(size_t n, const float *theta, const float *anchor, const float *fisher,
                      double lambda);

/* The proximal step, after the step on the other losses; stable for every lambda. Returns the
 * penalty of the weights it was given. */
double tk_ewc_proximal(size_t n, float *theta, const float *anchor, const float *fisher,
                       double lambda, double rate);

typedef enum tk_ewc_form {
    TK_EWC_ONLINE,   /* F <- gamma F + F_new, anchor <- theta: pulls to the newest weights */
    TK_EWC_COLLAPSE, /* the exact sum of all heads' penalties: pulls to their weighted mean */
} tk_ewc_form;

/* Merges the Fisher of a newly committed head, taken at `theta`, into `fisher` and `anchor`. Zeroed
 * vectors are the state before the first head. `gamma` is used by the online form only. */
void tk_ewc_merge(size_t n, float *fisher, float *anchor, const float *fisher_new,
                  const float *theta, tk_ewc_form form, double gamma);

#endif
