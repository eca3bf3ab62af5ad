/* How a job tells where it is, and how it judges a point by the validation of every head. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "job_internal.h"

static const char *const stage_names[TK_STAGE_COUNT] = {
    "decode",      "pseudo-labels", "warm-up",    "adapter", "train",
    "line-search", "gate",          "precisions", "fisher",  "write",
};

const char *tk_stage_name(tk_stage stage)
{
    return stage_names[stage];
}

const char *tk_outcome_name(tk_outcome outcome)
{
    static const char *const names[] = {"commit", "probe", "reject"};
    return names[outcome];
}

static double stage_seconds(const tk__job *j)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)(now.tv_sec - j->stage_began.tv_sec) +
           1e-9 * (double)(now.tv_nsec - j->stage_began.tv_nsec);
}

void tk__job_enter(tk__job *j, tk_stage stage)
{
    j->stage = stage;
    j->losses = (tk_losses){0};
    j->train_first_step = 0;
    clock_gettime(CLOCK_MONOTONIC, &j->stage_began);
    j->o->progress(j->o->ctx, &(tk_job_progress){.stage = stage, .eta = (double)NAN});
}

void tk__job_leave(tk__job *j)
{
    j->r->seconds[j->stage] += stage_seconds(j);
}

static double eta_of(const tk__job *j, size_t done, size_t left)
{
    return done ? stage_seconds(j) * (double)left / (double)done : (double)NAN;
}

static bool watch_cancelled(void *job)
{
    const tk__job *j = job;
    return j->o->cancelled(j->o->ctx);
}

static void watch_progress(void *job, size_t done, size_t total)
{
    tk__job *j = job;
    const tk_job_progress p = {
        .stage = j->stage, .step = done, .steps = total, .eta = eta_of(j, done, total - done)};
    j->o->progress(j->o->ctx, &p);
}

tk_watch tk__job_watch(tk__job *j)
{
    return (tk_watch){.ctx = j, .cancelled = watch_cancelled, .progress = watch_progress};
}

void tk__job_tick(void *job, const tk_train_tick *tick)
{
    tk__job *j = job;
    j->losses = tick->losses;
    if (j->train_first_step == 0) j->train_first_step = tick->step; /* resumed: not 1 */
    const size_t done = tick->step - j->train_first_step + 1;
    const tk_job_progress p = {.stage = j->stage,
                               .step = tick->step,
                               .steps = tick->steps,
                               .epoch = tick->epoch,
                               .epochs = tick->epochs,
                               .rate = tick->rate,
                               .losses = tick->losses,
                               .eta = eta_of(j, done, tick->steps - tick->step)};
    j->o->progress(j->o->ctx, &p);
}

void tk__job_say(tk__job *j, bool warn, const char *fmt, ...)
{
    char text[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    j->o->log(j->o->ctx, warn, text);
}

bool tk_job_remark(const tk_job_result *result, size_t k, char *text, size_t size)
{
    size_t n = 0;
    while (tk_data_check_remark(&result->data, n, text, size))
        if (n++ == k) return true;
    if (k > n || result->majority == 0 || !result->after) return false;
    const double accuracy = tk_validation_accuracy(&result->after[result->n_others]);
    if (accuracy > result->majority) return false;
    snprintf(text, size,
             "the new head is right on %.1f %% of its held-out images; always giving the most "
             "frequent label would be right on %.1f %%",
             100 * accuracy, 100 * result->majority);
    return true;
}

void tk__job_remark(tk__job *j)
{
    char text[256];
    for (; tk_job_remark(j->r, j->remarks, text, sizeof text); j->remarks++)
        tk__job_say(j, true, "%s", text);
}

/* A head without validation images may lose agreement on images that were a toss-up anyway, hence
 * its wider tolerance. */
tk_gate_rule tk__job_rule(const tk__job *j, size_t h)
{
    const tk_head *head = h < j->n_others ? j->others[h] : j->head;
    const bool agreement = h < j->n_others && tk_validator_before(j->validator)[h].agreement;
    return (tk_gate_rule){.best = agreement ? (double)NAN : head->best,
                          .tolerance =
                              head->tolerance * (agreement ? j->r->recipe.agreement_slack : 1),
                          .sigma = j->r->recipe.gate_sigma};
}

/* A point is worth the new head's accuracy less every loss of the others: of two points that the
 * gate admits, the one that takes from nobody wins. */
static tk_verdict judge(tk__job *j, const tk_validation *now)
{
    const tk_validation *before = tk_validator_before(j->validator);
    const tk_validation *own = &now[j->n_others];
    const double accuracy = tk_validation_accuracy(own);
    tk_verdict v = {.admissible = true, .worth = accuracy};
    if (own->n > 0) v.se = sqrt(accuracy * (1 - accuracy) / (double)own->n);
    for (size_t h = 0; h < j->n_others; h++) {
        const tk_gate_rule rule = tk__job_rule(j, h);
        tk_gate_record *r = &j->r->gate[h];
        *r = tk_gate_judge(&before[h], &now[h], &rule);
        v.admissible = v.admissible && r->admitted;
        v.worth -= fmax(0, r->drop / 100);
    }
    return v;
}

/* While the trunk stays as it is, so do the others: only the new head is measured. What is
 * committed is measured with all of them. */
static tk_err validate_new(tk__job *j, const tk_params *trunk, tk_validation *now)
{
    const tk_validation *before = tk_validator_before(j->validator);
    tk_err err = TK_OK;
    memset(now, 0, (j->n_others + 1) * sizeof *now);
    for (size_t h = 0; h < j->n_others && err == TK_OK; h++)
        err = tk_validation_clone(&now[h], &before[h]);
    if (err == TK_OK)
        err = tk_validator_run_new(j->validator, trunk, j->head, &now[j->n_others], j->diag);
    if (err != TK_OK)
        for (size_t h = 0; h <= j->n_others; h++)
            tk_validation_fini(&now[h]);
    return err;
}

tk_err tk__job_validate(tk__job *j, const tk_student *student, size_t step, size_t epoch,
                        tk_verdict *verdict, tk_validation *out)
{
    tk_validation *now = out ? out : j->scratch;
    tk_student_to_head(student, j->head);
    const bool untouched = j->stage == TK_STAGE_ADAPTER;
    const tk_err err = untouched
                           ? validate_new(j, student->trunk, now)
                           : tk_validator_run(j->validator, student->trunk, j->head, now, j->diag);
    if (err != TK_OK) return err;
    *verdict = judge(j, now);
    const tk_job_validation v = {.stage = j->stage,
                                 .step = step,
                                 .epoch = epoch,
                                 .losses = j->losses,
                                 .gate = j->r->gate,
                                 .n_others = j->n_others,
                                 .before = tk_validator_before(j->validator),
                                 .now = now};
    j->o->validation(j->o->ctx, &v);
    if (!out)
        for (size_t h = 0; h <= j->n_others; h++)
            tk_validation_fini(&now[h]);
    return TK_OK;
}
