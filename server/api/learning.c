/* See learning.h. */
#include "api/learning.h"

#include <math.h>
#include <stdint.h>

static void add(tk_mean *mean, double value)
{
    if (isnan(value)) return;
    mean->value += value;
    mean->heads++;
}

static void divide(tk_mean *mean)
{
    mean->value = mean->heads ? mean->value / (double)mean->heads : (double)NAN;
}

/* Head j, with the rows between s(j) and T that hold it as it is at T: a rollback may have brought
 * another one back in between. fmax() and fmin() leave a NaN out. */
static tk_head_learning measure_head(const tk_learning *l, size_t j)
{
    const size_t last = l->rows - 1;
    tk_head_learning h = {.since = l->since[last * l->heads + j],
                          .change = (double)NAN,
                          .forgetting = (double)NAN,
                          .lowest = (double)NAN};
    if (h.since >= last) return h; /* just trained, or not there */
    const double now = l->accuracy[last * l->heads + j];
    double most = (double)NAN;
    for (size_t i = h.since; i <= last; i++) {
        const size_t at = i * l->heads + j;
        if (l->since[at] != h.since) continue;
        if (i < last) most = fmax(most, l->accuracy[at]);
        if (i > h.since) h.lowest = fmin(h.lowest, l->low[at]);
    }
    h.change = now - l->accuracy[h.since * l->heads + j];
    h.forgetting = most - now;
    return h;
}

tk_learning_metrics tk_learning_measure(const tk_learning *l, tk_head_learning *heads)
{
    tk_learning_metrics m = {0};
    for (size_t j = 0; l->rows > 0 && j < l->heads; j++) {
        heads[j] = measure_head(l, j);
        add(&m.acc, l->accuracy[(l->rows - 1) * l->heads + j]);
        add(&m.bwt, heads[j].change);
        add(&m.forgetting, heads[j].forgetting);
        add(&m.min_acc, heads[j].lowest);
    }
    divide(&m.acc);
    divide(&m.bwt);
    divide(&m.forgetting);
    divide(&m.min_acc);
    return m;
}
