/* The losses on logits. Each returns its value and writes its gradient; none knows the network, and
 * none keeps anything: any thread. Logits are rows of c floats, [n][c] where there are n rows. The
 * formulas and their sources stand in loss_ce.c, loss_kd.c and softmax.c. */
#ifndef HEADS_LOSS_H
#define HEADS_LOSS_H

#include <stddef.h>
#include <stdint.h>

/* softmax(logits / temperature) of one row of c logits; `out` may be `logits`. */
void tk_softmax(size_t c, const float *logits, float temperature, float *out);
/* log(sum exp(logits / temperature)) of one row. */
double tk_log_sum_exp(size_t c, const float *logits, double temperature);

/* Cross-entropy with label smoothing, mean over n rows. labels[i] < c. dlogits [n][c] is
 * overwritten with the gradient; NULL: not wanted. */
double tk_loss_ce(size_t n, size_t c, const float *logits, const uint32_t *labels, float smoothing,
                  float *dlogits);

/* Knowledge distillation, T^2 * KD_T(teacher, student), mean over n rows. dlogits [n][c] is
 * overwritten with `weight` times the gradient by the student's logits; NULL: not wanted. *entropy
 * (NULL: not wanted) gets the part that no student can remove, so that value - entropy = T^2 * KL.
 * The value is not weighted. */
double tk_loss_kd(size_t n, size_t c, const float *teacher, const float *student, float temperature,
                  float weight, float *dlogits, double *entropy);

#endif
