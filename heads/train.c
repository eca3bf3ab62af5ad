/* Joint training. All of it is a pure function of seed and data: which images, which views, in
 * which order, is drawn by (seed, epoch), so that a resumed run continues with the same bits. */
#include "heads/train.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "engine/mem.h"
#include "engine/optim.h"
#include "engine/rng.h"
#include "train_internal.h"

/* The guard: a running mean over about 20 steps, compared with the first loss. One that is three
 * times the first (and three times that of guessing) does not come back: frozen batch norm gives
 * the weights nothing to hold on to. */
enum { MAX_RESTARTS = 5 };
static const double guard_smoothing = 0.05, guard_factor = 3;

size_t tk_train_batch(const tk_recipe *recipe, size_t n_items)
{
    const size_t wanted = (size_t)recipe->batch, eighth = n_items / 8;
    size_t batch = eighth < 16 ? 16 : eighth;
    if (batch > wanted) batch = wanted;
    return batch > n_items ? n_items : batch;
}

size_t tk_train_epochs(const tk_recipe *recipe, size_t n_items)
{
    if (recipe->epochs > 0) return (size_t)recipe->epochs;
    const size_t per_epoch = n_items / tk_train_batch(recipe, n_items);
    const size_t epochs = ((size_t)recipe->steps + per_epoch - 1) / per_epoch;
    return epochs < 12 ? 12 : epochs > 60 ? 60 : epochs;
}

void tk_train_result_fini(tk_train_result *result)
{
    tk_student_fini(&result->best);
    tk_free(result->curve);
    *result = (tk_train_result){0};
}

typedef struct loop {
    const tk_train_opts *o;
    tk__training t;
    size_t per_epoch;
    uint32_t *order; /* [n_items], of epoch `order_epoch` */
    uint64_t order_epoch;
    uint32_t *views;                /* [batch] */
    double guess;                   /* the loss of guessing, log(classes) */
    struct timespec saved, counted; /* the last checkpoint; state.seconds stands at `counted` */
} loop;

static double seconds_since(const struct timespec *then)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)(now.tv_sec - then->tv_sec) + 1e-9 * (double)(now.tv_nsec - then->tv_nsec);
}

static void count_seconds(loop *l)
{
    l->t.state.seconds += seconds_since(&l->counted);
    clock_gettime(CLOCK_MONOTONIC, &l->counted);
}

static tk_err save(loop *l, tk_diag *diag)
{
    count_seconds(l);
    const tk_err err = tk__checkpoint_save(&l->t, l->o->checkpoint, diag);
    clock_gettime(CLOCK_MONOTONIC, &l->saved);
    return err;
}

/* The batch of the state's step: its items, in l->order, and their views. */
static const uint32_t *draw_batch(loop *l)
{
    const tk_train_opts *o = l->o;
    const uint64_t epoch = l->t.state.step / l->per_epoch;
    if (l->order_epoch != epoch) {
        tk_rng_permutation(o->seed, tk_rng_stream("order") + epoch, o->n_items, l->order);
        l->order_epoch = epoch;
    }
    const uint32_t *items = l->order + (l->t.state.step % l->per_epoch) * o->batch;
    for (size_t i = 0; i < o->batch; i++) {
        /* Each image begins its cycle elsewhere, so that a batch mixes the views. */
        const uint64_t turn =
            epoch +
            (o->views ? tk_rng_u64(o->seed, tk_rng_stream("turn"), items[i]) % o->views : 0);
        l->views[i] = (uint32_t)(o->views ? turn % o->views : turn);
    }
    return items;
}

/* Has the loss exploded? Updates the running mean. */
static bool exploded(loop *l, double loss)
{
    tk__train_state *s = &l->t.state;
    if (!isfinite(loss)) return true;
    s->smooth_loss = s->smooth_loss == 0
                         ? loss
                         : (1 - guard_smoothing) * s->smooth_loss + guard_smoothing * loss;
    if (s->start_loss == 0) s->start_loss = loss;
    return s->smooth_loss > guard_factor * fmax(s->start_loss, l->guess);
}

/* Back to the end of the last sound epoch, at half the rate. `cause`: what was not finite, or "".
 */
static tk_err restart(loop *l, const char *cause, tk_diag *diag)
{
    tk__train_state *s = &l->t.state;
    char message[sizeof diag->text];
    const char *colon = cause[0] ? ": " : "";
    tk_student_copy_weights(l->t.now, &l->t.good);
    tk_student_stop(l->t.now);
    if (s->restarts == MAX_RESTARTS)
        return tk_fail(
            diag, TK_DIVERGED,
            "the loss diverged at step %llu and %d restarts at halved rates did not help%s%.150s",
            (unsigned long long)s->step, MAX_RESTARTS, colon, cause);
    s->restarts++;
    s->rate_factor /= 2;
    snprintf(message, sizeof message,
             "the loss diverged at step %llu; back to step %llu at %g times the rate%s%.150s",
             (unsigned long long)s->step, (unsigned long long)s->good_step, s->rate_factor, colon,
             cause);
    l->o->warn(l->o->ctx, message);
    s->step = s->good_step;
    s->smooth_loss = s->start_loss;
    s->sums = (tk_losses){0};
    return TK_OK;
}

/* Means over the `n` steps of the epoch so far. */
static tk_losses means(const tk__train_state *s, size_t n)
{
    const double by = n ? 1 / (double)n : 0;
    return (tk_losses){s->sums.ce * by, s->sums.kd * by, s->sums.ewc * by, s->sums.norm * by};
}

/* ---- trials ---- */

static tk_trial *trial_of(loop *l)
{
    return &l->t.state.trials[l->t.state.n_trials - 1];
}

/* A trial that goes on from a trained point needs fewer epochs than one that starts. */
static size_t trial_epochs(const tk_train_opts *o, size_t trial)
{
    const size_t first = tk_train_epochs(o->recipe, o->n_items);
    return trial == 0 ? first : (first + 1) / 2;
}

static double rate_of(loop *l)
{
    const tk__train_state *s = &l->t.state;
    const tk_recipe *r = l->o->recipe;
    const size_t steps = trial_of(l)->epochs * l->per_epoch;
    const tk_schedule schedule = {.kind = (tk_schedule_kind)r->schedule,
                                  .base = (float)r->rate,
                                  .steps = steps,
                                  .warmup = (size_t)(r->rise * (double)steps)};
    const size_t step = (size_t)(s->step - s->trial_begin * l->per_epoch);
    return s->rate_factor * (double)tk_schedule_rate(&schedule, step);
}

static bool ends_trial(loop *l, size_t epoch)
{
    return epoch == l->t.state.trial_begin + trial_of(l)->epochs;
}

/* Epochs of all trials, as far as is known: those to come may not be needed. */
static size_t epochs_planned(const loop *l)
{
    const tk__train_state *s = &l->t.state;
    size_t epochs = (size_t)s->trial_begin + s->trials[s->n_trials - 1].epochs;
    for (size_t t = (size_t)s->n_trials; t < l->o->trials; t++)
        epochs += trial_epochs(l->o, t);
    return epochs;
}

/* Would one more trial, at the pace so far, end within the recipe's time? */
static bool in_time(loop *l, size_t epoch)
{
    const tk__train_state *s = &l->t.state;
    const double most = 60 * l->o->recipe->minutes;
    const size_t more = trial_epochs(l->o, (size_t)s->n_trials);
    count_seconds(l);
    if (most == 0 || s->seconds * (double)(epoch + more) / (double)epoch <= most) return true;
    l->o->log(l->o->ctx, "no further trial: it would not end within the recipe's minutes");
    return false;
}

/* Begins the next trial, if there is to be one. */
static void end_trial(loop *l, size_t epoch)
{
    tk__train_state *s = &l->t.state;
    const size_t n = (size_t)s->n_trials;
    const bool admissible = s->trials[n - 1].admissible;
    const double strength = tk_search_next(s->trials, n, l->o->trials);
    char message[160];
    s->finished = strength == 0 || !in_time(l, epoch);
    if (s->finished) return;
    snprintf(message, sizeof message, "trial %zu: protection times %.3g, from %s", n + 1, strength,
             admissible ? "the best admissible point" : "the last point, which is not admissible");
    l->o->log(l->o->ctx, message);
    s->trials[s->n_trials++] = (tk_trial){.strength = strength, .epochs = trial_epochs(l->o, n)};
    s->trial_begin = epoch;
    s->smooth_loss = s->start_loss = 0;
    if (admissible) tk_student_copy_weights(l->t.now, &l->t.best);
    tk_student_stop(l->t.now);
}

/* The one-standard-error rule (Breiman et al. 1984, section 3.4.3): of a trial's points that chance
 * cannot tell from its highest, the latest, since the rate falls and a high value in the noisy
 * beginning flatters. A later trial must first be worth more than what is kept already. */
static bool is_best(tk__train_state *s, const tk_trial *t, const tk_verdict *v)
{
    if (!v->admissible) return false;
    if (!t->improved) {
        s->top_worth = v->worth;
        return !s->has_best || v->worth > s->best_verdict.worth;
    }
    if (v->worth > s->top_worth) s->top_worth = v->worth;
    return v->worth >= s->top_worth - v->se;
}

/* The trial's own best, and the best of all. */
static void keep_point(loop *l, size_t epoch, const tk_verdict *v)
{
    tk__train_state *s = &l->t.state;
    tk_trial *t = trial_of(l);
    t->admissible = v->admissible;
    if (v->admissible && (!t->found || v->worth > t->worth)) {
        t->found = true;
        t->worth = v->worth;
    }
    if (!is_best(s, t, v)) return;
    t->improved = true;
    s->has_best = 1;
    s->best_epoch = epoch;
    s->best_verdict = *v;
    tk_student_copy_weights(&l->t.best, l->t.now);
}

static tk_err end_epoch(loop *l, double rate, tk_diag *diag)
{
    tk__train_state *s = &l->t.state;
    const size_t epoch = (size_t)(s->step / l->per_epoch); /* 1.. */
    tk_curve_point *point = &l->t.curve[epoch - 1];
    *point = (tk_curve_point){
        .losses = means(s, l->per_epoch), .rate = rate, .strength = trial_of(l)->strength};
    s->sums = (tk_losses){0};
    if (epoch % (size_t)l->o->recipe->validate_every == 0 || ends_trial(l, epoch)) {
        const tk_err err =
            l->o->validate(l->o->ctx, l->t.now, (size_t)s->step, epoch, &point->verdict, diag);
        if (err != TK_OK) return err;
        point->validated = 1;
        keep_point(l, epoch, &point->verdict);
    }
    if (ends_trial(l, epoch)) end_trial(l, epoch);
    tk_student_copy_weights(&l->t.good, l->t.now);
    s->good_step = s->step;
    return TK_OK;
}

static void tell(const loop *l, size_t in_epoch, double rate)
{
    const tk__train_state *s = &l->t.state;
    const size_t epochs = epochs_planned(l);
    const tk_train_tick tick = {.step = (size_t)s->step,
                                .steps = l->per_epoch * epochs,
                                .epoch = (size_t)((s->step - 1) / l->per_epoch) + 1,
                                .epochs = epochs,
                                .rate = rate,
                                .losses = means(s, in_epoch)};
    l->o->tick(l->o->ctx, &tick);
}

static tk_err run(loop *l, tk_diag *diag)
{
    tk__train_state *s = &l->t.state;
    while (!s->finished) {
        if (l->o->cancelled(l->o->ctx)) {
            const tk_err err = save(l, diag);
            return err == TK_OK ? TK_CANCELLED : err;
        }
        const double rate = rate_of(l);
        const uint32_t *items = draw_batch(l);
        tk_losses losses = {0};
        tk_diag cause = {0};
        tk_err err = tk_step(l->o->objective, l->t.now, l->o->batch, items, l->views, rate,
                             trial_of(l)->strength, &losses, &cause);
        if (err == TK_DIVERGED || (err == TK_OK && exploded(l, tk_losses_total(&losses)))) {
            err = restart(l, cause.text, diag);
            if (err != TK_OK) return err;
            continue;
        }
        if (err != TK_OK) return err;
        s->step++;
        s->sums.ce += losses.ce, s->sums.kd += losses.kd;
        s->sums.ewc += losses.ewc, s->sums.norm += losses.norm;
        const size_t in_epoch = (size_t)(s->step % l->per_epoch);
        tell(l, in_epoch ? in_epoch : l->per_epoch, rate);
        if (in_epoch == 0) err = end_epoch(l, rate, diag);
        if (err == TK_OK && (s->finished || seconds_since(&l->saved) >= l->o->checkpoint_seconds))
            err = save(l, diag);
        if (err != TK_OK) return err;
    }
    return TK_OK;
}

static void loop_fini(loop *l)
{
    tk_student_fini(&l->t.good);
    tk_student_fini(&l->t.best);
    tk_free(l->t.curve);
    tk_free(l->order);
    tk_free(l->views);
}

static tk_err loop_init(loop *l, const tk_train_opts *o, tk_student *student)
{
    *l = (loop){.o = o, .t.now = student, .t.epochs = trial_epochs(o, 0)};
    const size_t trials = o->trials ? o->trials + TK_RESCUES : 1;
    for (size_t t = 1; t < trials && t < TK_MAX_TRIALS; t++)
        l->t.epochs += trial_epochs(o, t);
    l->per_epoch = o->n_items / o->batch;
    l->order_epoch = UINT64_MAX;
    l->guess = log((double)student->classes);
    l->order = tk_calloc(o->n_items, sizeof *l->order);
    l->views = tk_calloc(o->batch, sizeof *l->views);
    l->t.curve = tk_calloc(l->t.epochs, sizeof *l->t.curve);
    if (!l->order || !l->views || !l->t.curve) return TK_NOMEM;
    tk_err err = tk_student_init(&l->t.good, student->trunk, student->classes, student->rank);
    if (err == TK_OK)
        err = tk_student_init(&l->t.best, student->trunk, student->classes, student->rank);
    return err;
}

/* From the checkpoint, or from the beginning. The beginning is put aside first, since a damaged
 * checkpoint may leave anything in the state. */
static tk_err begin(loop *l, tk_diag *diag)
{
    tk_diag why = {0};
    tk_student start;
    tk_err err = tk_student_init(&start, l->t.now->trunk, l->t.now->classes, l->t.now->rank);
    if (err != TK_OK) return tk_fail(diag, err, "training: %s", tk_err_text(err));
    tk_student_copy_weights(&start, l->t.now);
    err = tk__checkpoint_load(&l->t, l->o->checkpoint, &why);
    if (err == TK_NOTFOUND || err == TK_BADDATA) {
        if (err == TK_BADDATA) l->o->warn(l->o->ctx, why.text);
        l->t.state =
            (tk__train_state){.rate_factor = 1,
                              .n_trials = 1,
                              .trials = {{.strength = 1, .epochs = trial_epochs(l->o, 0)}}};
        memset(l->t.curve, 0, l->t.epochs * sizeof *l->t.curve);
        tk_student_copy_weights(l->t.now, &start);
        tk_student_stop(l->t.now);
        tk_student_copy_weights(&l->t.good, &start);
        err = TK_OK;
    } else if (err != TK_OK) {
        tk_fail(diag, err, "%s", why.text);
    }
    clock_gettime(CLOCK_MONOTONIC, &l->saved);
    l->counted = l->saved;
    tk_student_fini(&start);
    return err;
}

tk_err tk_train(const tk_train_opts *opts, tk_student *student, tk_train_result *result,
                tk_diag *diag)
{
    *result = (tk_train_result){0};
    loop l;
    tk_err err = loop_init(&l, opts, student);
    if (err != TK_OK)
        tk_fail(diag, err, "training: %s", tk_err_text(err));
    else
        err = begin(&l, diag);
    if (err == TK_OK) err = run(&l, diag);
    if (err == TK_OK || err == TK_DIVERGED) {
        result->has_best = l.t.state.has_best != 0;
        result->best_verdict = l.t.state.best_verdict;
        result->best_epoch = (size_t)l.t.state.best_epoch;
        result->restarts = (size_t)l.t.state.restarts;
        result->epochs = (size_t)(l.t.state.step / l.per_epoch);
        result->n_trials = (size_t)l.t.state.n_trials;
        memcpy(result->trials, l.t.state.trials, sizeof result->trials);
        result->curve = l.t.curve, l.t.curve = NULL;
        result->best = l.t.best, l.t.best = (tk_student){0};
    }
    loop_fini(&l);
    return err;
}
