/* Automatic strength: how strongly the other heads are protected is found under their floors.
 *
 * Joint training is a row of trials. The first is the recipe as it stands. Each further one goes on
 * from the best admissible point so far (from where training stands, while there is none) with the
 * rate raised again (warm restarts: Loshchilov & Hutter 2017, 1608.03983, section 3) and kappa and
 * lambda multiplied by a new strength: less while the gate admits what comes out, more when it does
 * not, halfway between when both are known. That is the continual hyper-parameter selection of De
 * Lange et al. 2019, 1909.08383, section 4, with the gate's floors in the place of a threshold on
 * the old tasks' loss. Nothing starts over: a trial costs a part of the first. */
#ifndef HEADS_SEARCH_H
#define HEADS_SEARCH_H

#include <stdbool.h>
#include <stddef.h>

enum { TK_MAX_TRIALS = 16 };

/* One trial and its best admissible point. */
typedef struct tk_trial {
    double strength; /* kappa and lambda of the recipe are multiplied by it */
    size_t epochs;
    bool admissible; /* was there an admissible point? */
    bool improved;   /* and was it the best of all so far? */
    double worth;    /* of the point; see tk_verdict */
} tk_trial;

/* The strength of trial n >= 1, from trials 0..n-1; 0: no further trial is worth its time. */
double tk_search_next(const tk_trial *trials, size_t n);

#endif
