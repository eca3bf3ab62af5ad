/* The recipe that leaves the trunk alone and gives the new head an adapter: trained from the probe
 * on, by the loop of joint training, and kept where it is worth more than the probe. */
#include <stdio.h>

#include "job_internal.h"

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
