/* Validation of every head of a job: the other heads on their owners' held-out images, the new head
 * on those of its own data set. A head whose owner keeps no images is judged by how often it agrees
 * with the base on the new head's held-out images.
 *
 * A head that is refreshed is both: the new head, and one of the others, by the id "ID@earlier": as
 * the base has it before, and the new head in its place after, on the held-out images that it had
 * already. */
#ifndef HEADS_VALIDATOR_H
#define HEADS_VALIDATOR_H

#include "heads/eval.h"

/* Follows a refreshed head's id where its earlier self is meant; no id holds this character. */
#define TK_EARLIER "@earlier"

typedef struct tk_validator_pack {
    const char *head, *path; /* the head's validation pack */
} tk_validator_pack;

typedef struct tk_validator_opts {
    const tk_model *base;        /* borrowed; its trunk and heads are the state before */
    const char *new_head;        /* id; a head of base by this name is left out, */
    bool refresh;                /* unless it is refreshed: it has a pack then, and no adapter */
    size_t max_earlier;          /* of the refreshed head's own images at most, evenly chosen */
    const tk_canvases *canvases; /* of the new data set; borrowed */
    size_t n_held;
    const uint32_t *held;   /* [n_held] images */
    const uint32_t *labels; /* [n_held] */
    size_t n_packs;
    const tk_validator_pack *packs;
    const char *dir; /* for canvas files */
    tk_pool *pool;
    const tk_watch *watch;
} tk_validator_opts;

/* One thread at a time; the work is spread over the pool. */
typedef struct tk_validator tk_validator;

/* Decodes the packs and takes the base's answers. */
TK_MUST tk_err tk_validator_create(tk_validator **out, const tk_validator_opts *opts,
                                   tk_diag *diag);
void tk_validator_destroy(tk_validator *validator);

/* The other heads, in the base's order. */
size_t tk_validator_others(const tk_validator *validator);
/* Which of them is the new head as it was; tk_validator_others(): none. */
size_t tk_validator_refreshed(const tk_validator *validator);
/* The held-out images that it had already: those of its pack that can be read; *n is how many. */
const uint32_t *tk_validator_earlier(const tk_validator *validator, const tk_pack **pack,
                                     size_t *n);
tk_head *const *tk_validator_heads(const tk_validator *validator);
/* The base's validations of the others. */
const tk_validation *tk_validator_before(const tk_validator *validator);
/* Unreadable images of the packs, all together. */
size_t tk_validator_skipped(const tk_validator *validator);

/* Validates all on `trunk`: out[0..others-1], then the new head at out[others]. Free each. */
TK_MUST tk_err tk_validator_run(tk_validator *validator, const tk_params *trunk,
                                const tk_head *new_head, tk_validation *out, tk_diag *diag);
/* The same in a precision; `ranges` are for int8. The heads that are judged by agreement still
 * agree, or not, with the base in fp32. */
TK_MUST tk_err tk_validator_run_as(tk_validator *validator, const tk_params *trunk,
                                   const tk_head *new_head, tk_precision precision,
                                   const tk_calibration *ranges, tk_validation *out, tk_diag *diag);
/* The ranges of the trunk's maps over about `images` of all the held-out images (evenly chosen;
 * all, when there are fewer). Without any image there are no ranges: ranges->maps is 0. */
TK_MUST tk_err tk_validator_calibrate(tk_validator *validator, const tk_params *trunk,
                                      size_t images, tk_calibration *ranges, tk_diag *diag);
/* The new head only. */
TK_MUST tk_err tk_validator_run_new(tk_validator *validator, const tk_params *trunk,
                                    const tk_head *new_head, tk_validation *out, tk_diag *diag);

#endif
