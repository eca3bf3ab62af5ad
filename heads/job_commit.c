/* The last part of a job: the gate's decision, precisions, Fisher and covariances of the new head,
 * and the files. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "engine/mem.h"
#include "engine/rng.h"
#include "heads/ewc.h"
#include "heads/fisher.h"
#include "heads/projection.h"
#include "job_internal.h"

/* ---- the decision ---- */

/* The gate on the chosen point, whose validation and record the result keeps. */
static tk_err judge(tk__job *j, const tk_student *student, char *reason, size_t size,
                    bool *admitted)
{
    tk_verdict verdict;
    for (size_t h = 0; h <= j->n_others; h++)
        tk_validation_fini(&j->r->after[h]);
    const tk_err err = tk__job_validate(j, student, 0, 0, &verdict, j->r->after);
    if (err != TK_OK) return err;
    *admitted = tk_gate_decide(j->r->gate, j->n_others, reason, size);
    return TK_OK;
}

tk_err tk__job_keep_probe(tk__job *j, const char *why)
{
    tk_job_result *r = j->r;
    char gate[512];
    bool admitted = false;
    tk_student_copy_weights(&j->now, &j->warm);
    r->outcome = TK_OUTCOME_PROBE;
    snprintf(r->reason, sizeof r->reason,
             "%s; the linear probe on the untouched trunk is kept, which changes no other head",
             why);
    return judge(j, &j->now, gate, sizeof gate, &admitted);
}

/* Joint training is the outcome, and what it was measured by. */
static void say_committed(tk_job_result *r, bool admitted, const char *gate)
{
    char apart[128] = "";
    if (isfinite(r->adapter_accuracy))
        snprintf(apart, sizeof apart,
                 "; the new head has %.1f %%, with an adapter on the untouched trunk %.1f %%, as a "
                 "probe %.1f %%",
                 100 * r->joint_accuracy, 100 * r->adapter_accuracy, 100 * r->probe_accuracy);
    snprintf(r->reason, sizeof r->reason, "%s%s%s",
             admitted ? "" : "the gate is switched off and would refuse: ", gate, apart);
}

/* Joint training did not bring an admissible point: as the job says. */
static tk_err fall_back(tk__job *j, const char *why)
{
    if (tk__job_may_fall_back(j)) return tk__job_keep_apart(j, why);
    j->r->outcome = TK_OUTCOME_REJECT;
    snprintf(j->r->reason, sizeof j->r->reason, "%s", why);
    return TK_OK; /* the result holds the validation of what is refused */
}

tk_err tk__job_decide(tk__job *j, const tk__point *point, bool diverged)
{
    tk_job_result *r = j->r;
    char gate[512], why[900];
    bool admitted = false;
    tk__job_enter(j, TK_STAGE_GATE);
    tk_err err = TK_OK;
    if (!point->found) {
        const char *cause = diverged ? j->diag->text : "no point of joint training is admissible";
        err = judge(j, &j->now, gate, sizeof gate, &admitted);
        if (err == TK_OK && diverged)
            snprintf(why, sizeof why, "%s", cause);
        else if (err == TK_OK)
            snprintf(why, sizeof why, "%.80s: %s", cause, gate);
        if (err == TK_OK) err = fall_back(j, why);
    } else if (!r->recipe.from_scratch && j->o->gate && tk__job_may_fall_back(j) &&
               j->n_others > 0 && point->verdict.worth <= tk__job_apart_worth(j)) {
        r->joint_accuracy = point->verdict.worth;
        snprintf(
            why, sizeof why,
            "joint training is worth %.1f %%, no more than the %.1f %% that cost no other head "
            "anything",
            100 * r->joint_accuracy, 100 * tk__job_apart_worth(j));
        err = tk__job_keep_apart(j, why);
    } else {
        err = judge(j, &j->now, gate, sizeof gate, &admitted);
        if (err == TK_OK && j->o->gate && !admitted) {
            err = fall_back(j, gate); /* the last word is the gate's, whatever the search found */
        } else if (err == TK_OK) {
            r->outcome = TK_OUTCOME_COMMIT;
            r->joint_accuracy = tk_validation_accuracy(&r->after[j->n_others]);
            say_committed(r, admitted, gate);
        }
    }
    if (err == TK_OK) tk__job_leave(j);
    return err;
}

/* ---- Fisher and files ---- */

/* Which training images: a seeded sample, evenly over the shuffled set. */
static tk_err sample_images(tk__job *j, size_t n, uint32_t **images, uint32_t **labels)
{
    uint32_t *order = tk_calloc(j->split.n_train, sizeof *order);
    *images = tk_calloc(n + 1, sizeof **images);
    *labels = tk_calloc(n + 1, sizeof **labels);
    if (!order || !*images || !*labels) {
        tk_free(order);
        return tk_fail(j->diag, TK_NOMEM, "Fisher: out of memory");
    }
    tk_rng_permutation(j->o->seed, tk_rng_stream("fisher-images"), j->split.n_train, order);
    for (size_t i = 0; i < n; i++) {
        (*images)[i] = j->split.train[order[i]];
        (*labels)[i] = j->labels[order[i]];
    }
    tk_free(order);
    return TK_OK;
}

/* Merges the new head's Fisher into the candidate's, as its share keeps it. */
static tk_err merge(const tk_recipe *r, tk_model *candidate, tk_head *head, float *fisher)
{
    const size_t n = candidate->trunk->trained;
    const tk_ewc_form form = r->fisher_collapse != 0 ? TK_EWC_COLLAPSE : TK_EWC_ONLINE;
    const tk_err err = tk_ewc_share_create(&head->share, n, fisher);
    if (err != TK_OK) return err;
    tk_ewc_merge(n, candidate->fisher, candidate->anchor, fisher, candidate->trunk->data, form,
                 r->fisher_gamma);
    for (size_t h = 0; h < candidate->n_heads && form == TK_EWC_ONLINE; h++)
        if (candidate->heads[h] != head) candidate->heads[h]->share.weight *= r->fisher_gamma;
    return TK_OK;
}

/* The new head's Fisher. */
static tk_err add_fisher(tk__job *j, tk_model *candidate)
{
    const tk_recipe *r = &j->r->recipe;
    const size_t trained = candidate->trunk->trained;
    const size_t wanted = (size_t)r->fisher_samples;
    const size_t n = wanted < j->split.n_train ? wanted : j->split.n_train;
    if (n == 0 && !j->was) return TK_OK;
    uint32_t *images = NULL, *labels = NULL;
    float *fisher = tk_aligned_calloc(trained, sizeof *fisher);
    tk_err err = fisher ? sample_images(j, n, &images, &labels) : TK_NOMEM;
    if (err == TK_OK && !candidate->fisher) {
        candidate->fisher = tk_aligned_calloc(trained, sizeof(float));
        candidate->anchor = tk_aligned_calloc(trained, sizeof(float));
        if (!candidate->fisher || !candidate->anchor) err = TK_NOMEM;
    }
    const tk_fisher_opts opts = {.head = tk_model_head(candidate, j->o->head),
                                 .canvases = j->canvases,
                                 .n = n,
                                 .images = images,
                                 .labels = labels,
                                 .rule = (tk_fisher_labels)r->fisher_labels,
                                 .seed = j->o->seed,
                                 .max_batch = j->r->batch,
                                 .watch = &j->watch};
    if (err == TK_OK)
        err =
            tk_fisher_compute(tk_objective_graph(j->objective), candidate->trunk, &j->base->preproc,
                              &opts, j->o->pool, fisher, &candidate->fisher_scale, j->diag);
    if (err == TK_OK && j->was) tk_ewc_share_add(&j->was->share, 1, fisher); /* go on with it */
    if (err == TK_OK) err = merge(r, candidate, tk_model_head(candidate, j->o->head), fisher);
    if (err == TK_NOMEM) tk_fail(j->diag, err, "Fisher: out of memory");
    j->r->fisher_scale = candidate->fisher_scale;
    tk_free(images);
    tk_free(labels);
    tk_free(fisher);
    return err;
}

/* Adds what the trunk reads of the Fisher's images to the candidate's covariances. Which form a
 * layer has is decided by the first job that makes them. */
static tk_err add_inputs(tk__job *j, tk_model *candidate)
{
    const tk_recipe *r = &j->r->recipe;
    const size_t wanted = (size_t)r->fisher_samples;
    const size_t n = wanted < j->split.n_train ? wanted : j->split.n_train;
    if (n == 0 || r->covariance == 0) return TK_OK;
    uint32_t *images = NULL, *labels = NULL;
    tk_err err = sample_images(j, n, &images, &labels);
    if (err == TK_OK && !candidate->inputs) {
        err = tk_covariance_create(&candidate->inputs, candidate->trunk,
                                   (size_t)ceil(r->covariance * 1024 * 1024));
        if (err != TK_OK) tk_fail(j->diag, err, "covariances: out of memory");
    }
    const tk_inputs_opts opts = {.canvases = j->canvases,
                                 .n = n,
                                 .images = images,
                                 .seed = j->o->seed,
                                 .max_batch = j->r->batch,
                                 .watch = &j->watch};
    if (err == TK_OK)
        err = tk_inputs_add(candidate->inputs, tk_objective_graph(j->objective), candidate->trunk,
                            &j->base->preproc, &opts, j->o->pool, j->diag);
    if (err == TK_OK) tk_model_head(candidate, j->o->head)->covered = true;
    tk_free(images);
    tk_free(labels);
    return err;
}

/* Drops the head that the new one, of the same owner, takes the place of. The covariances stay for
 * the other heads' sake: do they hold images of that head? */
static bool drop_earlier(tk_model *model, const char *id)
{
    tk_head *earlier = tk_model_head(model, id);
    const bool covered = earlier && earlier->covered;
    if (earlier) earlier->covered = false;
    tk_model_drop_head(model, id);
    return covered && model->inputs;
}

/* The base's model with the chosen trunk, the new head, and each head's best. */
static tk_err make_candidate(tk__job *j, tk_model **out)
{
    tk_err err = tk_model_clone(out, j->base);
    if (err != TK_OK) return err;
    tk_model *m = *out;
    tk_head *head = NULL;
    tk_params_copy(m->trunk, j->now.trunk);
    tk_model_forget_precisions(m);
    const bool covered = drop_earlier(m, j->o->head);
    for (size_t h = 0; h < j->n_others; h++) {
        const tk_gate_record *g = &j->r->gate[h];
        tk_head *other = tk_model_head(m, j->others[h]->id);
        if (h != j->refreshed && !g->agreement && g->n > 0) other->best = fmax(g->best, g->after);
    }
    tk_student_to_head(&j->now, j->head);
    err = tk_head_clone(&head, j->head);
    if (err == TK_OK) head->covered = covered;
    if (err == TK_OK && j->split.n_held > 0)
        head->best = tk_validation_accuracy(&j->r->after[j->n_others]);
    if (err == TK_OK) err = tk_model_add_head(m, head);
    if (err != TK_OK) tk_head_destroy(head);
    return err;
}

static tk_err write_validation(tk__job *j)
{
    char path[TK__PATH];
    tk_pack_writer *w;
    uint32_t index;
    tk_err err = tk__job_path(j, "validation.pack", path, sizeof path);
    if (err == TK_OK) err = tk_pack_create(&w, path, j->diag);
    if (err != TK_OK) return err;
    for (size_t l = 0; l < j->r->classes && err == TK_OK; l++)
        err = tk_pack_label(w, j->names[l], &index, j->diag);
    for (size_t i = 0; i < j->split.n_held && err == TK_OK; i++) {
        const tk_pack_item item = tk_pack_get(j->pack, j->split.held[i]);
        err = tk_pack_add(w, j->class_of[item.label], item.name, item.data, item.size, j->diag);
    }
    if (err == TK_OK && j->was) err = tk__job_keep_earlier(j, w);
    if (err == TK_OK) return tk_pack_commit(w, j->diag);
    tk_pack_abort(w);
    return err;
}

tk_err tk__job_finish(tk__job *j)
{
    char path[TK__PATH];
    tk_model *candidate = NULL;
    tk__job_remark(j);
    tk_err err = tk__job_path(j, "candidate.safetensors", path, sizeof path);
    if (err != TK_OK || j->r->outcome == TK_OUTCOME_REJECT) return err;
    err = make_candidate(j, &candidate);
    if (err != TK_OK) tk_fail(j->diag, err, "candidate: %s", tk_err_text(err));
    if (err == TK_OK) {
        tk__job_enter(j, TK_STAGE_PRECISIONS);
        err = tk__job_precisions(j, candidate);
        if (err == TK_OK && j->was) tk__job_merge_earlier(j, candidate);
        tk__job_leave(j);
    }
    if (err == TK_OK) {
        tk__job_enter(j, TK_STAGE_FISHER);
        err = add_fisher(j, candidate);
        if (err == TK_OK) err = add_inputs(j, candidate);
        tk__job_leave(j);
    }
    if (err == TK_OK) {
        tk__job_enter(j, TK_STAGE_WRITE);
        err = tk_model_save(candidate, path, j->diag);
        if (err == TK_OK && j->o->keep_validation && j->r->after[j->n_others].n > 0)
            err = write_validation(j);
        tk__job_leave(j);
    }
    tk_model_destroy(candidate);
    return err;
}
