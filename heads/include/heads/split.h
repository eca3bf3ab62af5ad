/* Which images of a data set are held out for validation. */
#ifndef HEADS_SPLIT_H
#define HEADS_SPLIT_H

#include <stdint.h>

#include "heads/canvases.h"

typedef struct tk_split {
    uint32_t *train, *held; /* image indices, ascending */
    size_t n_train, n_held;
} tk_split;

/* Splits the decoded images of `pack`, class by class: about `fraction` of each class is held out,
 * at least one image of a class that has two, never its last one, and about `max_held` in all at
 * most. A pure function of its arguments. TK_BADDATA when nothing is left to train on. */
TK_MUST tk_err tk_split_create(tk_split *out, const tk_pack *pack, const tk_canvases *canvases,
                               double fraction, size_t max_held, uint64_t seed, tk_diag *diag);
void tk_split_fini(tk_split *split);

#endif
