/* Recipes: every training method is one struct of hyper-parameters under one objective. A recipe is
 * a name for defaults; each hyper-parameter can be overridden by its name. Plain data and pure
 * functions: any thread. docs/learning.md has all of them for the reader. */
#ifndef HEADS_RECIPE_H
#define HEADS_RECIPE_H

#include <stdbool.h>
#include <stddef.h>

#include "engine/err.h"
#include "engine/net.h"

enum { TK_MAX_VIEWS = 64 };

/* Every number is a double so that all are set, checked and reported alike; recipe.c's table says
 * what each means and may be. */
typedef struct tk_recipe {
    const char *name;
    bool train_trunk; /* false: only the new head learns, */
    bool adapter;     /* with an adapter, or by itself: the probe */
    bool from_scratch;
    double epochs, steps, batch, rate, head_rate, momentum, decay, clip, schedule, rise, smoothing,
        batch_norm, compute;
    double warm_up, views, pad, flip, scale_min;
    double policy, adapter_rank, refresh;
    double kappa, kappa_sum, temperature;
    double lambda, fisher_samples, fisher_labels, fisher_collapse, fisher_gamma;
    double projection, covariance;
    double validation, validation_max, validate_every, trials, minutes, line_search,
        agreement_slack, gate_sigma;
} tk_recipe;

typedef struct tk_recipe_field {
    const char *name;
    size_t offset; /* of the double in tk_recipe */
    double min, max;
    bool whole; /* integers only */
    const char *help;
} tk_recipe_field;

/* Batch norm while the trunk trains: whose statistics, and may scale and shift learn? */
typedef enum tk_norm_mode {
    TK_NORM_FROZEN, /* the trunk's statistics */
    TK_NORM_BATCH,  /* the batch's; the trunk's follow */
    TK_NORM_HELD,   /* the trunk's; scale and shift stay as they are */
} tk_norm_mode;

/* Where the new head is to live. */
typedef enum tk_policy {
    TK_POLICY_AUTO,    /* on the shared trunk, or apart: whichever held-out images favour */
    TK_POLICY_SHARED,  /* joint training, or the probe where the gate refuses it */
    TK_POLICY_ADAPTER, /* as recipe adapter */
    TK_POLICY_PROBE,   /* as recipe probe */
} tk_policy;

/* The recipe with its trunk left alone: the probe, or with an adapter. */
tk_recipe tk_recipe_apart(const tk_recipe *recipe, bool adapter);

/* The defaults of recipe `name` for a network. TK_BADARG lists the names that exist. */
TK_MUST tk_err tk_recipe_find(tk_recipe *out, const char *name, tk_arch arch, tk_diag *diag);
/* Overrides one hyper-parameter. TK_BADARG names field, limit and value; *recipe is then unchanged.
 */
TK_MUST tk_err tk_recipe_set(tk_recipe *recipe, const char *field, double value, tk_diag *diag);
double tk_recipe_get(const tk_recipe *recipe, const tk_recipe_field *field);

/* For --help and reports. */
size_t tk_recipe_count(void);
const char *tk_recipe_name(size_t i);
const char *tk_recipe_help(size_t i);
size_t tk_recipe_fields(void);
const tk_recipe_field *tk_recipe_field_at(size_t i);

#endif
