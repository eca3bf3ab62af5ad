/* The learning part of a job: pseudo-labels, the probe, joint training, the line search. */
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "engine/mem.h"
#include "heads/line_search.h"
#include "heads/warmup.h"
#include "job_internal.h"

/* ---- pseudo-labels and warm-up ---- */

static tk_err open_views(tk__job *j, const char *file, const tk_model *teacher, size_t n_heads,
                         size_t views, tk_pseudo_labels **out)
{
    char path[TK__PATH];
    const tk_err err = tk__job_path(j, file, path, sizeof path);
    if (err != TK_OK) return err;
    const tk_pseudo_labels_opts opts = {.teacher = teacher,
                                        .n_heads = n_heads,
                                        .heads = j->others,
                                        .canvases = j->canvases,
                                        .n_images = j->split.n_train,
                                        .images = j->split.train,
                                        .views = views,
                                        .augment = j->augment,
                                        .seed = j->o->seed,
                                        .path = path,
                                        .pool = j->o->pool,
                                        .watch = &j->watch};
    return tk_pseudo_labels_open(out, &opts, j->diag);
}

static tk_err fit_head(tk__job *j, const tk_pseudo_labels *cache, float *head)
{
    const tk_recipe *r = &j->r->recipe;
    const tk_warm_up_opts opts = {.cache = cache,
                                  .n = j->split.n_train,
                                  .classes = j->r->classes,
                                  .features = j->head->features,
                                  .labels = j->labels,
                                  .passes = r->warm_up > 0 ? r->warm_up : 60,
                                  .smoothing = r->smoothing,
                                  .seed = j->o->seed,
                                  .watch = &j->watch};
    return tk_warm_up(&opts, head, j->diag);
}

/* Also for a recipe that does not start from it: the probe is what a job falls back to. */
tk_err tk__job_probe(tk__job *j)
{
    tk_verdict verdict;
    tk__job_enter(j, TK_STAGE_PSEUDO_LABELS);
    tk_err err = open_views(j, "pseudo-labels.views", j->base, j->n_others,
                            (size_t)j->r->recipe.views, &j->pseudo);
    if (err != TK_OK) return err;
    tk__job_leave(j);
    tk__job_enter(j, TK_STAGE_WARM_UP);
    if (j->was)
        tk__job_start_refresh(j);
    else
        err = fit_head(j, j->pseudo, j->warm.head);
    if (err == TK_OK) err = tk__job_validate(j, &j->warm, 0, 0, &verdict, j->r->after);
    if (err != TK_OK) return err;
    if (!j->was) j->r->probe_accuracy = tk_validation_accuracy(&j->r->after[j->n_others]);
    tk__job_leave(j);
    return TK_OK;
}

/* ---- joint training ---- */

static tk_err validate_point(void *job, const tk_student *student, size_t step, size_t epoch,
                             tk_verdict *verdict, tk_diag *diag)
{
    (void)diag; /* the job's own */
    return tk__job_validate(job, student, step, epoch, verdict, NULL);
}

static bool is_cancelled(void *job)
{
    const tk__job *j = job;
    return j->o->cancelled(j->o->ctx);
}

static void warn(void *job, const char *message)
{
    tk__job_say(job, true, "%s", message);
}

static void inform(void *job, const char *message)
{
    tk__job_say(job, false, "%s", message);
}

/* The subspaces, which belong to joint training's time. */
static tk_err find_subspaces(tk__job *j)
{
    const tk_recipe *r = &j->r->recipe;
    if (r->projection == 0 || !r->train_trunk || j->n_others == 0) return TK_OK;
    if (!j->base->inputs) {
        tk__job_say(j, true, "this trunk has no covariances of its inputs: projection is off");
        return TK_OK;
    }
    for (size_t h = 0; h < j->n_others; h++)
        if (!j->others[h]->covered)
            tk__job_say(j, true,
                        "projection knows nothing of head \"%s\", whose images are not in "
                        "the covariances",
                        j->others[h]->id);
    tk__job_enter(j, TK_STAGE_TRAIN);
    const tk_err err = tk_projection_create(&j->projection, j->base->inputs, j->base->trunk,
                                            r->projection, j->o->pool, &j->watch, j->diag);
    if (err != TK_OK) return err;
    tk__job_leave(j);
    tk__job_say(j, false, "projection leaves %.1f %% of the convolutions' dimensions free",
                100 * tk_projection_freedom(j->projection));
    return TK_OK;
}

tk_err tk__job_objective(tk__job *j)
{
    const tk_recipe *r = &j->r->recipe;
    const tk_err err = find_subspaces(j);
    if (err != TK_OK) return err;
    const bool distil = r->kappa > 0 && j->n_others > 0;
    const bool hold = r->lambda > 0 && j->base->fisher;
    if (r->lambda > 0 && j->n_others > 0 && !j->base->fisher)
        tk__job_say(j, true, "this trunk has no Fisher information: consolidation is off");
    const tk_objective_opts opts = {.recipe = r,
                                    .preproc = &j->base->preproc,
                                    .canvases = j->canvases,
                                    .n_items = j->split.n_train,
                                    .images = j->split.train,
                                    .labels = j->labels,
                                    .teacher = distil ? j->pseudo : NULL,
                                    .n_old = j->n_others,
                                    .old = j->others,
                                    .refreshed = j->was ? j->others[j->refreshed] : NULL,
                                    .fisher = hold ? j->base->fisher : NULL,
                                    .anchor = hold ? j->base->anchor : NULL,
                                    .projection = j->projection,
                                    .augment = j->augment,
                                    .seed = j->o->seed,
                                    .max_batch = j->r->batch,
                                    .classes = j->r->classes,
                                    .rank = j->now.rank,
                                    .arch = j->r->arch,
                                    .pool = j->o->pool};
    return tk_objective_create(&j->objective, &opts, j->diag);
}

/* Which point leaves the stage: the best admissible one, if there is one. */
static void take_point(tk__job *j, tk_train_result *t, bool diverged, tk__point *point)
{
    j->r->restarts = t->restarts;
    j->r->epochs = t->epochs;
    j->r->n_trials = t->n_trials;
    memcpy(j->r->trials, t->trials, sizeof t->trials);
    j->r->best_epoch = 0;
    tk_free(j->r->curve);
    j->r->curve = t->curve, t->curve = NULL;
    point->last_admissible =
        !diverged && t->epochs > 0 && j->r->curve[t->epochs - 1].verdict.admissible;
    point->found = t->has_best;
    point->verdict = t->best_verdict;
    if (!j->o->gate &&
        !diverged) { /* the last point is what the method gives; contrast wants it raw */
        point->found = point->last_admissible = true;
        return;
    }
    if (!t->has_best) return;
    j->r->best_epoch = t->best_epoch;
    j->best = t->best, t->best = (tk_student){0};
}

tk_err tk__job_train(tk__job *j, tk__point *point)
{
    const tk_recipe *r = &j->r->recipe;
    char checkpoint[TK__PATH];
    tk_err err = tk__job_path(j, r->adapter ? "checkpoint.adapter" : "checkpoint.train", checkpoint,
                              sizeof checkpoint);
    if (err != TK_OK) return err;
    if (r->adapter)
        err = tk__job_start_adapter(j);
    else
        tk_student_copy_weights(&j->now, &j->warm);
    if (err != TK_OK) return err;
    if (r->warm_up == 0 && !r->adapter && !j->was) tk_student_random_head(&j->now, j->o->seed);
    const bool distil = r->kappa > 0 && j->n_others > 0;
    /* without the gate there is no floor to search under */
    const bool searches = j->o->gate && j->n_others > 0 && (r->kappa > 0 || r->lambda > 0);
    const tk_train_opts opts = {.objective = j->objective,
                                .recipe = r,
                                .n_items = j->split.n_train,
                                .batch = j->r->batch,
                                .trials = searches ? (size_t)r->trials : 0,
                                .views = distil ? (size_t)r->views : 0,
                                .seed = j->o->seed,
                                .checkpoint = checkpoint,
                                .checkpoint_seconds = j->o->checkpoint_seconds,
                                .ctx = j,
                                .cancelled = is_cancelled,
                                .tick = tk__job_tick,
                                .validate = validate_point,
                                .warn = warn,
                                .log = inform};
    tk_train_result t;
    err = tk_train(&opts, &j->now, &t, j->diag);
    if (err == TK_OK || err == TK_DIVERGED) take_point(j, &t, err == TK_DIVERGED, point);
    tk_train_result_fini(&t);
    return err;
}

static tk_err validate_line(void *job, const tk_student *student, size_t point, tk_verdict *verdict,
                            tk_diag *diag)
{
    (void)diag;
    return tk__job_validate(job, student, point, 0, verdict, NULL);
}

/* Fits the new head again where the trunk has come to rest, and keeps it if it is the better one.
 */
static tk_err refit(tk__job *j, tk_verdict *verdict)
{
    enum { REFIT_VIEWS = 4 };
    const char *file = "pseudo-labels.refit";
    char path[TK__PATH];
    tk_student again;
    tk_pseudo_labels *cache = NULL;
    const tk_model teacher = {.preproc = j->base->preproc, .trunk = j->now.trunk};
    tk_verdict v;
    tk_err err = tk__job_path(j, file, path, sizeof path);
    if (err != TK_OK) return err;
    unlink(path); /* of an earlier run */
    err = tk_student_init(&again, j->now.trunk, j->r->classes, 0);
    if (err != TK_OK) return tk_fail(j->diag, err, "job: %s", tk_err_text(err));
    err = open_views(j, file, &teacher, 0, REFIT_VIEWS, &cache);
    if (err == TK_OK) err = fit_head(j, cache, again.head);
    if (err == TK_OK) err = tk__job_validate(j, &again, 0, 0, &v, NULL);
    if (err == TK_OK && v.worth > verdict->worth) {
        tk_student_copy_weights(&j->now, &again);
        *verdict = v;
    }
    tk_pseudo_labels_close(cache);
    tk_student_fini(&again);
    return err;
}

tk_err tk__job_line_search(tk__job *j, tk__point *point)
{
    tk_student tuned;
    tk_line_search_result result;
    tk_err err = tk_student_init(&tuned, j->now.trunk, j->r->classes, 0);
    if (err != TK_OK) return tk_fail(j->diag, err, "job: %s", tk_err_text(err));
    tk_student_copy_weights(&tuned, &j->now);
    tk__job_enter(j, TK_STAGE_LINE_SEARCH);
    const tk_line_search_opts opts = {.old = &j->warm,
                                      .tuned = &tuned,
                                      .points = (size_t)j->r->recipe.line_search,
                                      .ctx = j,
                                      .validate = validate_line,
                                      .watch = &j->watch};
    err = tk_line_search(&opts, &j->now, &result, j->diag);
    if (err == TK_OK && result.found && !j->was) err = refit(j, &result.verdict);
    if (err == TK_OK && result.found &&
        (!point->found || result.verdict.worth > point->verdict.worth)) {
        *point = (tk__point){.found = true, .verdict = result.verdict};
        j->r->alpha = result.alpha;
        j->r->best_epoch = 0;
        tk_student_fini(&j->best); /* j->now is the better one */
    }
    if (err == TK_OK && !result.found) tk_student_copy_weights(&j->now, &tuned);
    tk_student_fini(&tuned);
    if (err == TK_OK) tk__job_leave(j);
    return err;
}
