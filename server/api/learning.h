/* What learning one head after another did to each of them: the metrics of continual learning, over
 * the accuracies R[i][j] of head j after version i. Pure arithmetic.
 *
 * With T the last row, and s(j) the row that trained head j as it is at T (a head may be trained
 * again later, and then begins anew):
 *
 *     ACC           = mean over j of R[T][j]
 *     BWT           = mean over j with s(j) < T of R[T][j] - R[s(j)][j]
 *     forgetting(j) = max over s(j) <= l < T of R[l][j], less R[T][j]
 *     Min-ACC       = mean over j of the lowest accuracy of head j while later jobs trained
 *
 * ACC and BWT: Lopez-Paz & Ranzato 1706.08840; forgetting: Chaudhry et al. 1801.10112; Min-ACC: De
 * Lange et al. 2205.13452. A task is a row here, since each job teaches one head. Intransigence,
 * the accuracy of a head trained alone less R[s(j)][j], needs such a training and is not known. */
#ifndef SERVER_API_LEARNING_H
#define SERVER_API_LEARNING_H

#include <stddef.h>

/* All matrices are [rows][heads]; NaN: not measured, or no such head. Accuracies are fractions. */
typedef struct tk_learning {
    size_t rows, heads;
    const double *accuracy; /* R */
    const size_t *since; /* the row that trained the head as it is in this row; not above the row's
                            own index; SIZE_MAX: the head is not there */
    const double *low;   /* lowest accuracy during the job that made the row */
} tk_learning;

/* NaN where nothing is known. */
typedef struct tk_head_learning {
    size_t since;      /* s(j); SIZE_MAX: not at T */
    double change;     /* R[T][j] - R[s(j)][j] */
    double forgetting; /* below 0: better than ever before */
    double lowest;
} tk_head_learning;

typedef struct tk_mean {
    double value; /* NaN: of no head */
    size_t heads; /* behind it */
} tk_mean;

typedef struct tk_learning_metrics {
    tk_mean acc, bwt, forgetting, min_acc;
} tk_learning_metrics;

/* Writes heads[0..l->heads-1] and returns the means. Any thread. */
tk_learning_metrics tk_learning_measure(const tk_learning *l, tk_head_learning *heads);

#endif
