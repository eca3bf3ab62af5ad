/* The new head beside the trunk: an adapter, trained from the probe on by the loop of joint
 * training, on the untouched trunk. It is what its recipe ends with, and what every other job that
 * may choose measures joint training by. */
#include <stdio.h>

#include "engine/mem.h"
#include "engine/plan.h"
#include "job_internal.h"

enum { LEVEL_IMAGES = 64 }; /* from which the adapter's size at the start is found */

/* The student and the head that stands for it, with or without an adapter. */
static tk_err reshape(tk__job *j, size_t rank)
{
    tk_head *head = NULL;
    tk_student_fini(&j->now);
    tk_err err = tk_student_init(&j->now, j->base->trunk, j->r->classes, rank);
    if (err == TK_OK) err = tk__job_make_head(j, &head);
    if (err == TK_OK && rank > 0) err = tk_head_add_adapter(head, j->r->arch, rank, j->diag);
    if (err != TK_OK) {
        tk_head_destroy(head);
        return tk_fail(j->diag, err, "job: %s", tk_err_text(err));
    }
    tk_head_destroy(j->head);
    j->head = head;
    return TK_OK;
}

/* One pass over some training images, evenly chosen. x, features and z are for `n` of them. */
static tk_err level(tk__job *j, size_t n, float *x, float *features, float *z)
{
    uint32_t images[LEVEL_IMAGES];
    tk_plan *plan;
    const tk_side side = {j->r->arch, j->now.rank, tk_student_adapter(&j->now)};
    for (size_t i = 0; i < n; i++)
        images[i] = j->split.train[i * j->split.n_train / n];
    tk_err err =
        tk_plan_create(&plan, j->base->trunk, j->base->preproc.crop, n, j->o->pool, j->diag);
    if (err == TK_OK) err = tk_plan_set_side(plan, &side, j->diag);
    if (err == TK_OK) {
        tk_canvases_render(j->canvases, &(tk_cut){.images = images}, n, x, j->o->pool);
        tk_plan_run_side(plan, n, x, features, z, NULL);
        tk_student_level_adapter(&j->now, n, features, z);
    }
    tk_plan_destroy(plan);
    return err;
}

tk_err tk__job_start_adapter(tk__job *j)
{
    const size_t crop = j->base->preproc.crop, most = j->split.n_train;
    const size_t n = most < LEVEL_IMAGES ? most : LEVEL_IMAGES;
    float *x = tk_aligned_calloc(n * crop * crop * 3, sizeof *x);
    float *features = tk_aligned_calloc(n * j->now.features, sizeof *features);
    float *z = tk_aligned_calloc(n * j->now.width, sizeof *z);
    tk_student_start_adapter(&j->now, &j->warm, j->o->seed);
    const tk_err err = x && features && z ? level(j, n, x, features, z)
                                          : tk_fail(j->diag, TK_NOMEM, "adapter: out of memory");
    tk_free(x);
    tk_free(features);
    tk_free(z);
    return err;
}

bool tk__job_wants_adapter(const tk__job *j)
{
    const tk_recipe *r = &j->r->recipe;
    if (!r->train_trunk) return r->adapter;
    return r->policy == TK_POLICY_AUTO && !r->from_scratch && j->n_others > 0 && j->o->gate &&
           tk__job_may_fall_back(j);
}

/* Trains by the recipe at work, which leaves the trunk alone; what it finds becomes j->adapted. */
static tk_err train(tk__job *j)
{
    tk__point point = {0};
    tk_err err = reshape(j, (size_t)j->r->recipe.adapter_rank);
    if (err == TK_OK) err = tk__job_objective(j);
    if (err == TK_OK) err = tk__job_train(j, &point);
    if (err == TK_DIVERGED) {
        tk__job_say(j, true, "the adapter: %s", j->diag->text);
        err = TK_OK;
    }
    if (err != TK_OK || !point.found) return err;
    tk_student *from = j->best.trunk ? &j->best : &j->now;
    j->adapted = *from, *from = (tk_student){0};
    j->r->adapter_accuracy = point.verdict.worth; /* nobody loses anything */
    return TK_OK;
}

tk_err tk__job_adapter(tk__job *j)
{
    const tk_recipe recipe = j->r->recipe;
    tk__job_enter(j, TK_STAGE_ADAPTER);
    if (recipe.train_trunk) j->r->recipe = tk_recipe_apart(&recipe, true);
    tk_err err = train(j);
    j->r->recipe = recipe;
    tk_objective_destroy(j->objective);
    j->objective = NULL;
    if (err == TK_OK) err = reshape(j, 0);
    if (err == TK_OK) tk__job_leave(j);
    return err;
}

double tk__job_apart_worth(const tk__job *j)
{
    const tk_job_result *r = j->r;
    return j->adapted.trunk && r->adapter_accuracy > r->probe_accuracy ? r->adapter_accuracy
                                                                       : r->probe_accuracy;
}

static tk_err keep_adapter(tk__job *j, const char *why)
{
    tk_job_result *r = j->r;
    tk_verdict verdict;
    for (size_t h = 0; h <= j->n_others; h++)
        tk_validation_fini(&r->after[h]);
    tk_err err = reshape(j, j->adapted.rank);
    if (err != TK_OK) return err;
    tk_student_copy_weights(&j->now, &j->adapted);
    err = tk__job_validate(j, &j->now, 0, 0, &verdict, r->after);
    r->outcome = TK_OUTCOME_COMMIT;
    snprintf(r->reason, sizeof r->reason,
             "%s; an adapter of rank %zu on the untouched trunk is kept, which changes no other "
             "head: %.1f %% (the linear probe %.1f %%)",
             why, j->now.rank, 100 * tk_validation_accuracy(&r->after[j->n_others]),
             100 * r->probe_accuracy);
    return err;
}

tk_err tk__job_keep_apart(tk__job *j, const char *why)
{
    const bool better = !j->o->gate || tk__job_apart_worth(j) > j->r->probe_accuracy;
    return j->adapted.trunk && better ? keep_adapter(j, why) : tk__job_keep_probe(j, why);
}
