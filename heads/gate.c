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
    tk_gate_counts counts = {
        .n = before->n, .right_before = before->correct, .agreement = before->agreement};
    for (size_t i = 0; i < before->n; i++) {
        counts.n01 += before->right[i] && !after->right[i];
        counts.n10 += !before->right[i] && after->right[i];
    }
    return tk_gate_judge_counts(before->head, &counts, rule);
}

tk_gate_record tk_gate_judge_counts(const char *head, const tk_gate_counts *counts,
                                    const tk_gate_rule *rule)
{
    const size_t n = counts->n;
    assert(counts->right_before <= n && counts->n01 <= counts->right_before &&
           counts->n10 <= n - counts->right_before);
    tk_gate_record r = {.head = head,
                        .tolerance = rule->tolerance,
                        .sigma = rule->sigma,
                        .n = n,
                        .right_before = counts->right_before,
                        .n01 = counts->n01,
                        .n10 = counts->n10,
                        .agreement = counts->agreement};
    if (n > 0) {
        r.before = (double)r.right_before / (double)n;
        r.after = (double)(r.right_before - r.n01 + r.n10) / (double)n;
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

tk_gate_record tk_gate_judge_again(const tk_gate_record *r)
{
    const tk_gate_counts counts = {.n = r->n,
                                   .right_before = r->right_before,
                                   .n01 = r->n01,
                                   .n10 = r->n10,
                                   .agreement = r->agreement};
    const tk_gate_rule rule = {.best = r->best, .tolerance = r->tolerance, .sigma = r->sigma};
    return tk_gate_judge_counts(r->head, &counts, &rule);
}

bool tk_gate_same(const tk_gate_record *a, const tk_gate_record *b)
{
    const double x[] = {a->best,  a->tolerance, a->sigma, a->before,
                        a->after, a->floor,     a->drop,  a->se};
    const double y[] = {b->best,  b->tolerance, b->sigma, b->before,
                        b->after, b->floor,     b->drop,  b->se};
    for (size_t i = 0; i < sizeof x / sizeof *x; i++)
        if (!(fabs(x[i] - y[i]) <= 1e-9)) return false;
    return a->n == b->n && a->right_before == b->right_before && a->n01 == b->n01 &&
           a->n10 == b->n10 && a->agreement == b->agreement && a->resolved == b->resolved &&
           a->admitted == b->admitted;
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
            "before, %.1f %% after, floor %.1f %% (best %.1f less %.1f points; paired change "
            "%+.1f +- %.1f on %zu images)",
            refused, n, worst->head, 100 * worst->before, 100 * worst->after, 100 * worst->floor,
            100 * worst->best, worst->tolerance, 0 - worst->drop, worst->se, worst->n);
    else
        used = snprintf(
            reason, size,
            "no existing head falls below its floor; nearest to it is head \"%s\": "
            "%.1f %% before, %.1f %% after, floor %.1f %% (paired change %+.1f +- %.1f points on "
            "%zu images)",
            worst->head, 100 * worst->before, 100 * worst->after, 100 * worst->floor,
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
