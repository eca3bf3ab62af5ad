/* See search.h. */
#include "heads/search.h"

#include <math.h>

static const double weaker = 0.5, stronger = 3, weakest = 1.0 / 64, strongest = 256;

/* The lowest strength that was admitted, and the highest that was not; 0: none. */
static void bracket(const tk_trial *trials, size_t n, double *admitted, double *refused)
{
    *admitted = *refused = 0;
    for (size_t i = 0; i < n; i++) {
        const tk_trial *t = &trials[i];
        if (t->admissible && (*admitted == 0 || t->strength < *admitted)) *admitted = t->strength;
        if (!t->admissible && t->strength > *refused) *refused = t->strength;
    }
}

double tk_search_next(const tk_trial *trials, size_t n, size_t most)
{
    double admitted, refused, next;
    const size_t allowed = most + (trials[n - 1].admissible ? 0 : TK_RESCUES);
    if (most == 0 || n >= allowed || n >= TK_MAX_TRIALS) return 0;
    /* twice in a row nothing better: there is nothing left to find */
    if (n >= 3 && !trials[n - 1].improved && !trials[n - 2].improved && trials[n - 1].admissible)
        return 0;
    bracket(trials, n, &admitted, &refused);
    if (admitted == 0)
        next = refused * stronger;
    else if (refused == 0 || refused >= admitted)
        next = admitted * weaker;
    else
        next = sqrt(admitted * refused);
    return next < weakest || next > strongest ? 0 : next;
}
