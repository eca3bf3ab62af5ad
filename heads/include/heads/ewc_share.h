/* One head's own part of the Fisher sum (heads/ewc.h), kept in its record so that it can be taken
 * out again: the trunk need not go on protecting a head that was deleted or replaced.
 *
 * A byte per weight on a logarithmic scale of eight steps to the octave:
 *
 *     code 0: 0      code c: largest * 2^((c - 255) / 8)
 *
 * so that an entry is right to a factor of 2^(1/16), 4.4 %, over 31.75 octaves; what lies below is
 * 0. That is finer than the diagonal itself is known: the mean of 400 squares has a standard error
 * of sqrt(2 / 400), 7 %, of its value, when gradients are normal, and more when they are not. It
 * costs one byte per trained weight and head, 11.2 MB with ResNet-18 and 0.27 MB with ResNet-20, in
 * a version's file and in the trainer; serving does not load it. What is summed is the share as it
 * is kept, so that taking it out leaves nothing but the rounding of the fp32 sum.
 *
 * The sum F = sum_t w_t F_t is exact in this sense for both forms of EWC; `weight` is w_t, gamma to
 * the number of commits since in the online form. So is the online form's anchor, which is the
 * newest trunk whoever leaves. The collapsed form's anchor, the mean of the trunks weighted by
 * their Fisher, stays where it is: to move it would take each head's trunk, four bytes a weight
 * more. */
#ifndef HEADS_EWC_SHARE_H
#define HEADS_EWC_SHARE_H

#include <stddef.h>
#include <stdint.h>

#include "engine/err.h"

typedef struct tk_ewc_share {
    size_t n;       /* trunk->trained; 0: the head has no share */
    uint8_t *codes; /* [n], in the order of the trunk's block (engine/net.h) */
    float largest;  /* > 0 */
    double weight;  /* in the sum, 0..1; 1 when made */
} tk_ewc_share;

/* Of a diagonal [n], which is rounded to what the share keeps. A diagonal of zeros has a share,
 * too: all its codes are 0. */
TK_MUST tk_err tk_ewc_share_create(tk_ewc_share *out, size_t n, float *fisher);
TK_MUST tk_err tk_ewc_share_clone(tk_ewc_share *out, const tk_ewc_share *from);
void tk_ewc_share_fini(tk_ewc_share *share); /* zeroed is fine */
/* fisher += factor * share; factor -1 takes it out, and no entry falls below 0. */
void tk_ewc_share_add(const tk_ewc_share *share, double factor, float *fisher);

#endif
