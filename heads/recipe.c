/* The recipes and the table of their hyper-parameters. */
#include "heads/recipe.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "engine/optim.h"
#include "heads/model.h"
#include "heads/search.h"

#define FIELD(name, min, max, whole, help)                                                         \
    {                                                                                              \
#name, offsetof(tk_recipe, name), min, max, whole, help                                    \
    }

static const tk_recipe_field fields[] = {
    FIELD(epochs, 0, 10000, true, "passes over the training images; 0: as many as steps asks for"),
    FIELD(steps, 1, 1e7, true, "training steps, within 12..60 epochs; only while epochs is 0"),
    FIELD(batch, 1, 1024, true, "images per step; small data sets take fewer"),
    FIELD(rate, 0, 1e4, false, "peak learning rate of the trunk"),
    FIELD(head_rate, 0, 1e4, false, "the new head's rate, as a multiple of the trunk's"),
    FIELD(momentum, 0, 0.999, false, "Nesterov momentum"),
    FIELD(decay, 0, 1, false, "weight decay of convolutions and head"),
    FIELD(clip, 0, 1e6, false, "largest norm of the whole gradient; 0: no clipping"),
    FIELD(schedule, 0, 2, true, "0 constant, 1 cosine to zero, 2 one-cycle"),
    FIELD(rise, 0, 1, false, "part of the steps in which the rate rises linearly"),
    FIELD(smoothing, 0, 0.9, false, "label smoothing of the new head"),
    FIELD(batch_norm, 0, 2, true,
          "statistics: 0 frozen, 1 of the batch, 2 frozen with scale and shift"),
    FIELD(compute, 0, 1, true, "0 fp32, 1 bf16 products (fast with AVX512_BF16)"),
    FIELD(warm_up, 0, 10000, true, "passes of the new head over cached features; 0: random head"),
    FIELD(views, 0, TK_MAX_VIEWS, true,
          "augmented views of each image; 0: a new one in each epoch, as far as 64 go"),
    FIELD(pad, 0, 0.5, false, "random crop: margin, as a part of the crop"),
    FIELD(flip, 0, 1, true, "1: mirror half of the views"),
    FIELD(scale_min, 0.05, 1, false, "smallest area of a random resized crop; 1: off"),
    FIELD(policy, 0, 3, true,
          "0 auto: the best of shared trunk, adapter and probe; 1 shared, 2 adapter, 3 probe"),
    FIELD(adapter_rank, 1, TK_ADAPTER_MAX_RANK, true,
          "rank of the adapter, in the recipe of that name"),
    FIELD(refresh, 0, 1, true, "1: the head of this name goes on learning, 0: it is replaced"),
    FIELD(kappa, 0, 1e4, false, "weight of distillation"),
    FIELD(kappa_sum, 0, 1, true, "0: kappa is shared by the other heads, 1: each has it whole"),
    FIELD(temperature, 0.1, 100, false, "T of distillation"),
    FIELD(lambda, 0, 1e9, false, "weight of elastic weight consolidation"),
    FIELD(fisher_samples, 0, 100000, true,
          "images for Fisher diagonal and covariances; 0: none is made"),
    FIELD(fisher_labels, 0, 2, true, "0 drawn from the model, 1 the true ones, 2 exact"),
    FIELD(fisher_collapse, 0, 1, true, "0: online form, 1: exact sum over the heads"),
    FIELD(fisher_gamma, 0, 1, false, "decay of the old Fisher in the online form"),
    FIELD(projection, 0, 1, false,
          "share of the old inputs' energy that steps must not touch; 0: off"),
    FIELD(covariance, 0, 1024, false,
          "MiB that a layer's covariance of patches may take; 0: none is made"),
    FIELD(validation, 0.01, 0.5, false, "part of each class that is held out"),
    FIELD(validation_max, 1, 100000, true, "most images held out"),
    FIELD(validate_every, 1, 10000, true, "epochs between validations of every head"),
    FIELD(trials, 1, TK_MAX_TRIALS, true,
          "strengths of protection tried under the floors; two more if the gate refuses"),
    FIELD(minutes, 0, 1e6, false,
          "no trial is added that would make joint training longer; 0: as long as it takes"),
    FIELD(line_search, 0, 100, true, "points between new and old trunk; 0: none"),
    FIELD(agreement_slack, 1, 100, false, "tolerances that agreement may fall, without validation"),
    FIELD(gate_sigma, 0, 5, false, "standard errors added to a drop before it is judged"),
};
enum { FIELDS = sizeof fields / sizeof *fields };

/* What the recipes share: the best of the runs that are reported in the README. */
static const tk_recipe base = {
    .train_trunk = true,
    .steps = 800,
    .batch = 64,
    .rate = 3e-2,
    .head_rate = 1,
    .momentum = 0.9,
    .clip = 2,
    .schedule = TK_SCHEDULE_COSINE,
    .smoothing = 0.1,
    .warm_up = 60,
    .views = 8,
    .pad = 0.125,
    .flip = 1,
    .scale_min = 1,
    .adapter_rank = 32,
    .temperature = 2,
    .fisher_samples = 400,
    .fisher_gamma = 1,
    .covariance = 4,
    .validation = 0.15,
    .validation_max = 1000,
    .validate_every = 1,
    .policy = TK_POLICY_SHARED,
    .trials = 1,
    .line_search = 10,
    .agreement_slack = 5,
};

tk_recipe tk_recipe_apart(const tk_recipe *recipe, bool adapter)
{
    tk_recipe r = *recipe;
    r.train_trunk = false;
    r.adapter = adapter;
    if (adapter) r.rate = 0.2; /* of small new weights: measured */
    r.kappa = r.lambda = r.projection = 0;
    r.trials = 1;
    r.line_search = 0;
    return r;
}

/* The naive way, for contrast: what happens to the old heads when nothing protects them. */
static void finetune(tk_recipe *r)
{
    r->rate = 1e-2;
    r->epochs = 8;
    r->batch_norm = TK_NORM_BATCH;
    r->warm_up = 0;
    r->line_search = 0;
}

static void finetune_low_lr(tk_recipe *r)
{
    r->rate = 1e-3;
    r->head_rate = 10;
}

static void kd(tk_recipe *r)
{
    r->kappa = 3;
}

static void ewc(tk_recipe *r)
{
    r->lambda = 1;
}

static void projection(tk_recipe *r)
{
    r->projection = 0.99;
}

static void kd_ewc(tk_recipe *r)
{
    r->kappa = 3;
    r->lambda = 0.1;
}

static void probe(tk_recipe *r)
{
    *r = tk_recipe_apart(r, false);
}

/* More power than the probe at the same price for the others, which is none. A step goes forward
 * only, a third of the work, so there may be twice as many. */
static void adapter(tk_recipe *r)
{
    *r = tk_recipe_apart(r, true);
    r->steps = 1600;
}

/* Trunk and head from random weights; the first head of a fresh trunk. */
static void scratch(tk_recipe *r)
{
    r->from_scratch = true;
    r->epochs = 40;
    r->rate = 0.1;
    r->decay = 5e-4;
    r->clip = 0;
    r->schedule = TK_SCHEDULE_ONE_CYCLE;
    r->rise = 0.25;
    r->batch_norm = TK_NORM_BATCH;
    r->warm_up = 0;
    r->line_search = 0;
}

static const struct {
    const char *name;
    void (*adjust)(tk_recipe *r);
    const char *help;
} recipes[] = {
    {"kd+ewc", kd_ewc,
     "distillation of the other heads and elastic weight consolidation (default)"},
    {"kd", kd, "distillation only"},
    {"ewc", ewc, "elastic weight consolidation only"},
    {"projection", projection, "steps off what the other heads' images made each layer read"},
    {"finetune", finetune, "nothing protects the other heads but the gate"},
    {"finetune-low-lr", finetune_low_lr, "a low rate on the trunk, nothing else"},
    {"probe", probe, "only the new head learns"},
    {"adapter", adapter,
     "only the new head learns, with an adapter: low-rank paths beside the trunk"},
    {"scratch", scratch, "a fresh trunk and its first head"},
};
enum { RECIPES = sizeof recipes / sizeof *recipes };

/* The ImageNet-stem networks are larger, and there the two protections together may be weaker: cars
 * at 64 px, three seeds (tests/bench/sequential.py). */
static void adjust_for_arch(tk_recipe *r, tk_arch arch)
{
    const bool cifar_stem = arch == TK_RESNET20 || arch == TK_RESNET32 || arch == TK_RESNET56;
    if (cifar_stem || r->from_scratch || r->adapter || r->batch_norm == TK_NORM_BATCH ||
        r->rate <= 1e-2)
        return;
    r->steps = 1000;
    if (r->kappa > 0 && r->lambda > 0) {
        r->kappa = 2.5;
        r->lambda = 3e-4;
        r->views = 0; /* eight are learnt by heart */
    }
}

tk_err tk_recipe_find(tk_recipe *out, const char *name, tk_arch arch, tk_diag *diag)
{
    *out = base;
    for (size_t i = 0; i < RECIPES; i++) {
        if (strcmp(recipes[i].name, name) != 0) continue;
        out->name = recipes[i].name;
        recipes[i].adjust(out);
        adjust_for_arch(out, arch);
        return TK_OK;
    }
    char names[256] = "";
    for (size_t i = 0, at = 0; i < RECIPES && at < sizeof names; i++)
        at +=
            (size_t)snprintf(names + at, sizeof names - at, "%s%s", i ? ", " : "", recipes[i].name);
    return tk_fail(diag, TK_BADARG, "recipe \"%.64s\": unknown; there are %s", name, names);
}

/* The double behind a field. */
static double *place(tk_recipe *recipe, const tk_recipe_field *field)
{
    return (double *)(void *)((char *)recipe + field->offset);
}

tk_err tk_recipe_set(tk_recipe *recipe, const char *name, double value, tk_diag *diag)
{
    for (size_t i = 0; i < FIELDS; i++) {
        const tk_recipe_field *f = &fields[i];
        if (strcmp(f->name, name) != 0) continue;
        if (!(value >= f->min && value <= f->max)) /* NaN fails both */
            return tk_fail(diag, TK_BADARG, "%s: %g is outside %g..%g", name, value, f->min,
                           f->max);
        if (f->whole && value != floor(value))
            return tk_fail(diag, TK_BADARG, "%s: %g is not a whole number (%g..%g)", name, value,
                           f->min, f->max);
        *place(recipe, f) = value;
        return TK_OK;
    }
    return tk_fail(diag, TK_BADARG, "\"%.64s\": no such hyper-parameter", name);
}

double tk_recipe_get(const tk_recipe *recipe, const tk_recipe_field *field)
{
    double value;
    memcpy(&value, (const char *)recipe + field->offset, sizeof value);
    return value;
}

size_t tk_recipe_count(void)
{
    return RECIPES;
}

const char *tk_recipe_name(size_t i)
{
    return recipes[i].name;
}

const char *tk_recipe_help(size_t i)
{
    return recipes[i].help;
}

size_t tk_recipe_fields(void)
{
    return FIELDS;
}

const tk_recipe_field *tk_recipe_field_at(size_t i)
{
    return &fields[i];
}
