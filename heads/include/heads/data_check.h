/* What a data set shows before anything is learnt from it: nothing here makes a job fail, all of it
 * is worth knowing to the one who uploaded it. */
#ifndef HEADS_DATA_CHECK_H
#define HEADS_DATA_CHECK_H

#include "heads/canvases.h"

/* Images are those that can be read. Two are the same when their files have the same bytes. */
typedef struct tk_data_check {
    size_t images, different;      /* `different` is 1 when every image is the same */
    size_t contradictory;          /* different images that occur with two labels or more */
    size_t empty, single, classes; /* classes: without image, with one, all */
    size_t smallest, largest;      /* images in a class, empty ones aside */
} tk_data_check;

TK_MUST tk_err tk_data_check_run(tk_data_check *out, const tk_pack *pack,
                                 const tk_canvases *canvases, tk_diag *diag);
/* The k-th remark as a sentence; false when there are fewer. */
bool tk_data_check_remark(const tk_data_check *check, size_t k, char *text, size_t size);

#endif
