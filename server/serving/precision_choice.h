/* Which precision a version is served in: the one that was asked for, if every head of the version
 * admits it (heads/precision_gate.h); fp32 otherwise. */
#ifndef SERVER_SERVING_PRECISION_CHOICE_H
#define SERVER_SERVING_PRECISION_CHOICE_H

#include "engine/plan.h"
#include "heads/model.h"

/* In place of a tk_precision: the fastest that is admitted, as measured when the version is loaded.
 * A precision for which the CPU lacks instructions is not tried. */
enum { TK_PRECISION_AUTO = TK_PRECISION_COUNT };

const char *tk_precision_wish_name(unsigned wish); /* "auto", or tk_precision_name() */
TK_MUST tk_err tk_precision_wish_parse(const char *name, unsigned *out, tk_diag *diag);

typedef struct tk_precision_choice {
    unsigned asked; /* a tk_precision, or TK_PRECISION_AUTO */
    tk_precision served;
    bool admitted[TK_PRECISION_COUNT];
    const tk_head
        *refused[TK_PRECISION_COUNT]; /* the first head that does not admit it; borrowed from
                                         the model. NULL: admitted, or never measured */
    size_t images;                    /* of a measured run; 0: nothing was measured */
    double ms[TK_PRECISION_COUNT];    /* the shortest of a few runs; 0: not measured */
    char plan[160];                   /* how it computes: tk_plan_describe() */
} tk_precision_choice;

/* Makes the plan of `model` and says in *choice why it is this one. */
TK_MUST tk_err tk_precision_choose(tk_plan **out, const tk_model *model, unsigned asked,
                                   size_t max_batch, tk_pool *pool, tk_precision_choice *choice,
                                   tk_diag *diag);

#endif
