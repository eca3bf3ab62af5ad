/* The recipe that leaves the trunk alone and gives the new head an adapter: trained from the probe
 * on, by the loop of joint training, and kept where it is worth more than the probe. */
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

static tk_err keep_probe(tk__job *j, const char *why)
{
    const tk_err err = reshape(j, 0);
    return err == TK_OK ? tk__job_keep_probe(j, why) : err;
}

static tk_err keep_adapter(tk__job *j)
{
    tk_job_result *r = j->r;
    tk_verdict verdict;
    for (size_t h = 0; h <= j->n_others; h++)
        tk_validation_fini(&r->after[h]);
    const tk_err err = tk__job_validate(j, &j->now, 0, 0, &verdict, r->gate, r->after);
    if (err != TK_OK) return err;
    r->outcome = TK_OUTCOME_COMMIT;
    r->joint_accuracy = tk_validation_accuracy(&r->after[j->n_others]);
    snprintf(r->reason, sizeof r->reason,
             "an adapter of rank %zu on the untouched trunk, which changes no other head: %.1f %%, "
             "the linear probe %.1f %%",
             j->now.rank, 100 * r->joint_accuracy, 100 * r->probe_accuracy);
    return TK_OK;
}

tk_err tk__job_adapter(tk__job *j)
{
    tk__point point = {0};
    char why[900];
    tk_err err = reshape(j, tk__job_adapter_rank(j));
    if (err != TK_OK) return err;
    tk__job_enter(j, TK_STAGE_TRAIN);
    err = tk__job_train(j, &point);
    if (err != TK_OK && err != TK_DIVERGED) return err;
    tk__job_leave(j);
    tk__job_enter(j, TK_STAGE_GATE);
    if (!point.found) {
        snprintf(why, sizeof why, "%s", j->diag->text);
        err = keep_probe(j, why);
    } else if (j->o->gate && point.verdict.worth <= j->r->probe_accuracy) {
        err = keep_probe(j, "the adapter is worth no more than the linear probe");
    } else {
        if (j->best.trunk) tk_student_copy_weights(&j->now, &j->best);
        err = keep_adapter(j);
    }
    if (err == TK_OK) tk__job_leave(j);
    return err;
}
