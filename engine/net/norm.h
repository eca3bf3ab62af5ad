/* Batch norm over [rows][c], spread over a pool. Sums are taken in chunks of rows that depend on
 * the shape only, and merged in order in double. */
#ifndef NET_NORM_H
#define NET_NORM_H

#include "net/conv.h"

#define TK__BN_EPS      1e-5f
#define TK__BN_MOMENTUM 0.1f

/* Merges `blocks` pairs (mean[c], m2[c]), each over `block_rows` rows but the last, into the mean
 * and biased variance of all rows (Chan, Golub, LeVeque 1979), and moves the running statistics. */
void tk__bn_merge(size_t blocks, size_t block_rows, size_t rows, size_t c, const float *pairs,
                  float *mean, float *invstd, float *running_mean, float *running_var);
/* scale = gamma * invstd, shift = beta - mean * scale */
void tk__bn_coefficients(size_t c, const float *gamma, const float *beta, const float *mean,
                         const float *invstd, float *scale, float *shift);
void tk__bn_apply(const tk__exec *ex, size_t rows, size_t c, const float *u, const float *scale,
                  const float *shift, const float *residual, bool relu, float *y);

/* Backward of y = relu?(norm(u) (+ residual)). */
typedef struct tk__bn_backward {
    size_t rows, c;
    const float *dy;
    tk__mask mask; /* the ReLU's */
    const float *u, *mean, *invstd, *gamma;
    float *g_out; /* dy after the ReLU's mask (for the residual); NULL: not wanted; may be dy */
    float *du;    /* may be dy when g_out is NULL */
    float *dgamma, *dbeta; /* overwritten */
    bool batch;            /* the statistics depended on u */
    size_t sample_rows;    /* not 0: dgamma and dbeta are added the squares of each sample's own */
    float *sums;           /* scratch: tk__bn_sums() floats */
    float *coef;           /* scratch: 3 * c floats */
} tk__bn_backward;

size_t tk__bn_sums(size_t rows, size_t c, size_t samples);
void tk__bn_backward_run(const tk__exec *ex, const tk__bn_backward *b);

#endif
