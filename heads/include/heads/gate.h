/* The gate: may this candidate replace the version that is served? Everything here is a pure
 * function: any thread, no errors. The statistics and their source stand in gate.c. */
#ifndef HEADS_GATE_H
#define HEADS_GATE_H

#include "heads/eval.h"

/* How one existing head fares. Accuracies are fractions; tolerance, drop and se are points. Rule
 * and counts are what is judged, the rest follows from them. */
typedef struct tk_gate_record {
    const char *head; /* borrowed */
    /* the rule */
    double best; /* the rule's, or `before` when that is higher */
    double tolerance, sigma;
    /* the counts */
    size_t n, right_before; /* images; those that the base answers rightly */
    size_t n01, n10;        /* right before and wrong now; wrong before and right now */
    bool agreement;         /* judged by agreement with the base: the weaker promise */
    /* the judgement */
    double before, after;
    double floor;    /* `after` must reach it */
    double drop, se; /* before - after on the same images, and its standard error */
    bool resolved;   /* are the images enough to tell a drop of `tolerance` from chance? */
    bool admitted;
} tk_gate_record;

typedef struct tk_gate_rule {
    double best;      /* best committed accuracy; NaN: never measured */
    double tolerance; /* points */
    double sigma;     /* admit on drop + sigma * se; 0: on the point estimate */
} tk_gate_rule;

/* A head's answers before and after on the same images, counted; see tk_gate_record. n01 is at most
 * right_before, and n10 at most n - right_before. */
typedef struct tk_gate_counts {
    size_t n, right_before, n01, n10;
    bool agreement;
} tk_gate_counts;

/* Judges one head by its validations before and after on the same images. Without images it admits
 * nothing but a trunk that answers alike, which the caller knows better: n = 0 is not admitted. */
tk_gate_record tk_gate_judge(const tk_validation *before, const tk_validation *after,
                             const tk_gate_rule *rule);
/* The judgement itself: a pure function of counts and rule. */
tk_gate_record tk_gate_judge_counts(const char *head, const tk_gate_counts *counts,
                                    const tk_gate_rule *rule);
/* Judges a record again, from its own rule and counts: what tk_gate_judge() said, if the record is
 * whole. */
tk_gate_record tk_gate_judge_again(const tk_gate_record *record);
/* The same judgement? Numbers may differ by rounding (1e-9), verdicts may not. */
bool tk_gate_same(const tk_gate_record *a, const tk_gate_record *b);
/* All admitted? Writes one sentence that says why; heads stand in it as their id in double quotes.
 */
bool tk_gate_decide(const tk_gate_record *records, size_t n, char *reason, size_t size);

#endif
