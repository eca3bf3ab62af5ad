/* Automatic strength: how strongly the other heads are protected is found under their floors.
 *
 * Joint training is a row of trials. The first is the recipe as it stands. Each further one goes on
 * from the best admissible point so far when the gate admits where the last one came to rest, and
 * from there when it does not, with the rate raised again (warm restarts: Loshchilov & Hutter 2017,
 * 1608.03983, section 3) and kappa and lambda multiplied by a new strength: less after what is
 * admitted, more after what is not, halfway between when both are known. That is the continual
 * hyper-parameter selection of De Lange et al. 2019, 1909.08383, section 4, with the gate's floors
 * in the place of a threshold on the old tasks' loss. Nothing starts over: a trial costs a part of
 * the first.
 *
 * There are as many trials as the recipe allows, and up to TK_RESCUES more after one that is
 * refused: distilled again from where it stands, harder, it keeps more of the new head than a point
 * between it and the old trunk. */
#ifndef HEADS_SEARCH_H
#define HEADS_SEARCH_H

#include <stdbool.h>
#include <stddef.h>

enum { TK_RESCUES = 2, TK_MAX_TRIALS = 16 };

/* One trial: where it came to rest, and its best admissible point. */
typedef struct tk_trial {
    double strength; /* kappa and lambda of the recipe are multiplied by it */
    size_t epochs;
    bool admissible; /* is its last point? */
    bool found;      /* was there an admissible point? */
    bool improved;   /* and was it the best of all so far? */
    double worth;    /* of the point; see tk_verdict */
} tk_trial;

/* The strength of trial n >= 1, from trials 0..n-1, where `most` are allowed; 0: no further trial
 * is worth its time. */
double tk_search_next(const tk_trial *trials, size_t n, size_t most);

#endif
