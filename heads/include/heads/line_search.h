/* The straight line between the old trunk and the new one. */
#ifndef HEADS_LINE_SEARCH_H
#define HEADS_LINE_SEARCH_H

#include "heads/train.h"

typedef struct tk_line_search_opts {
    const tk_student *old, *tuned; /* the old end: base trunk with the warm head */
    size_t points;                 /* steps of 1/points from the new end */
    void *ctx;
    tk_err (*validate)(void *ctx, const tk_student *student, size_t point, tk_verdict *verdict,
                       tk_diag *diag);
    const tk_watch *watch;
} tk_line_search_opts;

typedef struct tk_line_search_result {
    bool found;
    double alpha; /* theta = old + alpha (new - old) */
    tk_verdict verdict;
} tk_line_search_result;

/* Searches from the new end (at high rates the middle may be worse than both ends), the largest
 * alpha < 1 whose point is admissible, and leaves that point in `student` (any shape-compatible
 * one). */
TK_MUST tk_err tk_line_search(const tk_line_search_opts *opts, tk_student *student,
                              tk_line_search_result *result, tk_diag *diag);

#endif
