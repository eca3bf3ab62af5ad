/* The gate's arithmetic. Old and candidate answer the same held-out images, so their difference is
 * paired (McNemar 1947): with n01 images lost and n10 won,
 *
 *     drop = (n01 - n10) / n,    SE = sqrt(n01 + n10) / n
 *
 * and images on which both agree say nothing. The floor is
 *
 *     floor = best committed - tolerance,   but never above what is served now
 *
 * so that losses cannot add up over jobs, and a candidate that changes nothing always passes. */
#include "heads/gate.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>

tk_gate_record tk_gate_judge(const tk_validation *before, const tk_validation *after,
                             const tk_gate_rule *rule)
{
    assert(before->n == after->n);
    const size_t n = before->n;
    tk_gate_record r = {.head = before->head,
                        .n = n,
                        .before = tk_validation_accuracy(before),
                        .after = tk_validation_accuracy(after),
                        .tolerance = rule->tolerance,
                        .agreement = before->agreement};
    for (size_t i = 0; i < n; i++) {
        r.n01 += before->right[i] && !after->right[i];
        r.n10 += !before->right[i] && after->right[i];
    }
    r.best = isnan(rule->best) || rule->best < r.before ? r.before : rule->best;
    r.floor = fmin(r.best - rule->tolerance / 100, r.before);
    if (n == 0) return r;
    r.drop = 100 * (r.before - r.after);
    r.se = 100 * sqrt((double)(r.n01 + r.n10)) / (double)n;
    /* One image must weigh less than the tolerance, and chance no more than half of it. */
    r.resolved = 100 / (double)n <= rule->tolerance && 2 * r.se <= rule->tolerance;
    /* A hair of slack: 0.82 - 0.01 and 81/100 are the same number to a person. */
    r.admitted = r.after - rule->sigma * r.se / 100 >= r.floor - 1e-9;
    return r;
}

/* How far above its floor a head is. */
static double margin(const tk_gate_record *r)
{
    return r->after - r->floor;
}

bool tk_gate_decide(const tk_gate_record *records, size_t n, char *reason, size_t size)
{
    if (n == 0) {
        snprintf(reason, size, "no other head is on this trunk");
        return true;
    }
    const tk_gate_record *worst = &records[0];
    size_t refused = 0, unresolved = 0, weak = 0;
    for (size_t i = 0; i < n; i++) {
        const tk_gate_record *r = &records[i];
        if (r->admitted != worst->admitted ? worst->admitted : margin(r) < margin(worst)) worst = r;
        refused += !r->admitted;
        unresolved += !r->resolved;
        weak += r->agreement;
    }
    int used;
    if (refused)
        used = snprintf(
            reason, size,
            "%zu of %zu existing heads would fall below their floor; head \"%s\": %.1f %% "
            "after %.1f %%, floor %.1f %% (best %.1f less %.1f points; paired change "
            "%+.1f +- %.1f on %zu images)",
            refused, n, worst->head, 100 * worst->after, 100 * worst->before, 100 * worst->floor,
            100 * worst->best, worst->tolerance, 0 - worst->drop, worst->se, worst->n);
    else
        used =
            snprintf(reason, size,
                     "no existing head falls below its floor; nearest to it is head \"%s\": "
                     "%.1f %% after %.1f %%, floor %.1f %% (paired change %+.1f +- %.1f points on "
                     "%zu images)",
                     worst->head, 100 * worst->after, 100 * worst->before, 100 * worst->floor,
                     0 - worst->drop, worst->se, worst->n);
    if (weak && used > 0 && (size_t)used < size)
        used +=
            snprintf(reason + used, size - (size_t)used,
                     "; %zu judged by agreement on the new images only, a weaker promise", weak);
    if (unresolved && used > 0 && (size_t)used < size)
        snprintf(reason + used, size - (size_t)used,
                 "; %zu of %zu have too few held-out images to tell their tolerance from chance",
                 unresolved, n);
    return refused == 0;
}
