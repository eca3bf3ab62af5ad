/* A linear layer: y = x w^T + b, torchvision's `fc`. Small; runs on the caller's thread. */
#ifndef ENGINE_LINEAR_H
#define ENGINE_LINEAR_H

#include <stddef.h>

/* x [n][f], w [c][f], b [c] -> y [n][c] */
void tk_linear_forward(size_t n, size_t f, size_t c, const float *x, const float *w, const float *b,
                       float *y);
/* dy [n][c] -> dx [n][f] (NULL: not wanted; added to when `accumulate_dx`), dw [c][f], db [c]
 * (overwritten; both NULL: not wanted). */
void tk_linear_backward(size_t n, size_t f, size_t c, const float *x, const float *w, const float *dy,
                        float *dx, int accumulate_dx, float *dw, float *db);

#endif
