/* The order of work of a job, on one screen: work(). What each step does is in job_prepare.c,
 * job_learn.c and job_commit.c. */
#include "heads/job.h"

#include <dirent.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "engine/mem.h"
#include "job_internal.h"

static tk_err work(tk__job *j)
{
    const tk_recipe *r = &j->r->recipe;
    tk__point point = {0};

    tk_err err = tk__job_prepare(j);
    if (err == TK_OK && !r->from_scratch) err = tk__job_probe(j);
    if (err == TK_OK && tk__job_wants_adapter(j)) err = tk__job_adapter(j);
    if (err == TK_OK) err = tk__job_objective(j);
    if (err != TK_OK) return err;

    if (!r->train_trunk) {
        tk__job_enter(j, TK_STAGE_GATE);
        err = tk__job_keep_apart(j, "the recipe leaves the trunk alone");
        tk__job_leave(j);
        return err == TK_OK ? tk__job_finish(j) : err;
    }
    tk__job_enter(j, TK_STAGE_TRAIN);
    err = tk__job_train(j, &point);
    const bool diverged = err == TK_DIVERGED;
    if (diverged && (point.found || !r->from_scratch)) err = TK_OK;
    if (err != TK_OK) return err;
    tk__job_leave(j);

    if (!diverged && !point.last_admissible && r->line_search > 1)
        err = tk__job_line_search(j, &point);
    if (err == TK_OK && j->best.trunk) tk_student_copy_weights(&j->now, &j->best);
    if (err == TK_OK) err = tk__job_decide(j, &point, diverged);
    return err == TK_OK ? tk__job_finish(j) : err;
}

/* The result's names are the base's, which it owns, but for the job's own head. */
static void outlive(tk__job *j)
{
    tk_job_result *r = j->r;
    r->after[r->n_others].head = r->head;
    if (!j->was) return;
    r->before[j->refreshed].head = r->after[j->refreshed].head = r->earlier;
    r->gate[j->refreshed].head = r->earlier;
}

tk_err tk_job_run(const tk_job_opts *opts, tk_job_result *result, tk_diag *diag)
{
    tk_diag own = {0};
    *result = (tk_job_result){.probe_accuracy = (double)NAN,
                              .adapter_accuracy = (double)NAN,
                              .joint_accuracy = (double)NAN,
                              .alpha = 1};
    tk__job j = {.o = opts, .r = result, .diag = diag ? diag : &own};
    const tk_err err = work(&j);
    if (err == TK_OK) outlive(&j);
    tk__job_fini(&j);
    return err;
}

static bool ignore_cancel(void *ctx)
{
    (void)ctx;
    return false;
}

static void ignore_progress(void *ctx, const tk_job_progress *progress)
{
    (void)ctx, (void)progress;
}

static void ignore_validation(void *ctx, const tk_job_validation *validation)
{
    (void)ctx, (void)validation;
}

static void ignore_log(void *ctx, bool is_warning, const char *message)
{
    (void)ctx, (void)is_warning, (void)message;
}

tk_job_opts tk_job_defaults(void)
{
    return (tk_job_opts){.tolerance = 1,
                         .keep_validation = true,
                         .recipe = "kd+ewc",
                         .fallback_probe = true,
                         .gate = true,
                         .seed = 1,
                         .checkpoint_seconds = 10,
                         .cancelled = ignore_cancel,
                         .progress = ignore_progress,
                         .validation = ignore_validation,
                         .log = ignore_log};
}

void tk_job_result_fini(tk_job_result *result)
{
    for (size_t h = 0; h <= result->n_others; h++) {
        if (result->before) tk_validation_fini(&result->before[h]);
        if (result->after) tk_validation_fini(&result->after[h]);
    }
    tk_free(result->before);
    tk_free(result->after);
    tk_free(result->gate);
    tk_free(result->checks);
    tk_free(result->curve);
    tk_free(result->head);
    tk_free(result->earlier);
    tk_model_destroy(result->base);
    *result = (tk_job_result){0};
}

void tk_job_clean(const char *dir)
{
    static const char *const prefixes[] = {"canvases.", "pseudo-labels.", "checkpoint."};
    DIR *d = opendir(dir);
    if (!d) return;
    for (const struct dirent *e; (e = readdir(d));)
        for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++)
            if (strncmp(e->d_name, prefixes[i], strlen(prefixes[i])) == 0)
                (void)unlinkat(dirfd(d), e->d_name, 0);
    closedir(d);
}
