/* The gate: may this candidate replace the version that is served? */
#ifndef HEADS_GATE_H
#define HEADS_GATE_H

#include "heads/eval.h"

/* How one existing head fares. Accuracies are fractions; tolerance, drop and se are points. */
typedef struct tk_gate_record {
    const char *head; /* borrowed */
    double best, before, after, tolerance;
    double floor;       /* `after` must reach it */
    double drop, se;    /* before - after on the same images, and its standard error */
    size_t n, n01, n10; /* images; right before and wrong now; wrong before and right now */
    bool agreement;     /* judged by agreement with the base: the weaker promise */
    bool resolved;      /* are the images enough to tell a drop of `tolerance` from chance? */
    bool admitted;
} tk_gate_record;

typedef struct tk_gate_rule {
    double best;      /* best committed accuracy; NaN: never measured */
    double tolerance; /* points */
    double sigma;     /* admit on drop + sigma * se; 0: on the point estimate */
} tk_gate_rule;

/* Judges one head by its validations before and after on the same images. Without images it admits
 * nothing but a trunk that answers alike, which the caller knows better: n = 0 is not admitted. */
tk_gate_record tk_gate_judge(const tk_validation *before, const tk_validation *after,
                             const tk_gate_rule *rule);
/* All admitted? Writes one sentence that says why; heads stand in it as their id in double quotes.
 */
bool tk_gate_decide(const tk_gate_record *records, size_t n, char *reason, size_t size);

#endif
