/* One step with one job: start or resume its trainer and see it through, or commit what it left, or
 * end it.
 *
 *     QUEUED  -> RUNNING: a fresh directory on the current version, an attempt
 *     RUNNING -> (trainer ends well)  result.json -> COMMITTED or REJECTED
 *             -> (trainer dies)       RUNNING again, from the checkpoint; FAILED after max_failures
 *             -> (base is not current any more)  QUEUED again
 *             -> (cancel) CANCELLED;  (server stops) RUNNING, taken up at the next start
 *
 * Everything here runs on the supervisor's thread. */
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "engine/file.h"
#include "engine/mem.h"
#include "heads/validator.h"
#include "jobs/jobs_internal.h"
#include "store/files.h"

enum { PROGRESS_MS = 250, PROGRESS_KEEP_MS = 5000, POLL_MS = 250, LOGS_MAX = 500 };

/* One attempt. */
typedef struct attempt {
    tk_jobs *jobs;
    tk_job *job;
    const char *dir;
    tk_trainer trainer;
    tk_version base;      /* for the tolerances; number 0: none */
    tk_job_event pending; /* progress not yet passed on; stage "": none */
    int64_t pushed_ms, kept_ms;
    unsigned logs, malformed;
    char error[32]; /* of the event "failed" */
    char reason[256];
    uint64_t changes; /* of the current version, at the start */
    bool term, killed, rebase;
    int64_t term_ms;
} attempt;

static int64_t now_ms(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static int64_t wall_ms(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static bool set_reason(tk_job *job, const char *reason)
{
    char *copy = tk_strdup(reason);
    if (!copy) return false;
    tk_free(job->reason);
    job->reason = copy;
    return true;
}

/* Writes the job's row with an event (and with `result` what it leaves), and tells the watchers. */
static tk_err record(tk_jobs *jobs, const tk_job *job, tk_job_event *event, const tk_result *result,
                     tk_diag *diag)
{
    event->state = job->state;
    event->sequence = tk__hub_number(&jobs->hub);
    const tk_err err = tk_store_job_update(jobs->store, job, event, result ? result->record : NULL,
                                           result ? result->judged : NULL, diag);
    if (err == TK_OK) tk__hub_push(&jobs->hub, event);
    return err;
}

static tk_err say(tk_jobs *jobs, const tk_job *job, const char *text, tk_diag *diag)
{
    tk_job_event event = {0};
    tk__copy_text(event.message, sizeof event.message, text);
    return record(jobs, job, &event, NULL, diag);
}

/* Sleeps, but not through a stop or a cancel. */
static void rest(tk_jobs *jobs, int64_t ms)
{
    const int64_t until = now_ms() + ms;
    for (int64_t left = ms; left > 0; left = until - now_ms()) {
        const tk_orders orders = tk__jobs_orders(jobs);
        if (orders.stop || orders.cancel) return;
        tk__jobs_sleep(jobs, (int)left);
    }
}

/* The job's end, other than a commit. A disk that takes nothing is waited for: an end that is not
 * on the disk has not happened. */
static void end_job(tk_jobs *jobs, tk_job *job, const char *dir, tk_job_state state,
                    const char *outcome, const char *reason, const tk_result *result)
{
    tk_diag diag = {{0}};
    tk_job_event event = {0};
    job->state = state;
    job->ended_ms = wall_ms();
    (void)snprintf(job->outcome, sizeof job->outcome, "%s", outcome);
    tk__copy_text(event.message, sizeof event.message, reason);
    for (int wait = 1000;; wait = wait < 30000 ? 2 * wait : wait) {
        const tk_err err = set_reason(job, reason) ? record(jobs, job, &event, result, &diag)
                                                   : tk_fail(&diag, TK_NOMEM, "out of memory");
        if (err == TK_OK) tk__jobs_moved(jobs, state);
        if (err == TK_OK || err == TK_PRECONDITION) break; /* the latter: it has ended already */
        tk__jobs_log(jobs, TK_JOB_WARN, job->id, "its end cannot be recorded yet: %s", diag.text);
        tk__jobs_sleep(jobs, wait);
        if (tk__jobs_orders(jobs).stop)
            return; /* still RUNNING on the disk: the next start ends it again */
    }
    tk__jobs_log(jobs, state == TK_JOB_FAILED ? TK_JOB_WARN : TK_JOB_INFO, job->id, "%s", reason);
    if (tk_files_remove_tree(dir, true, &diag) != TK_OK)
        tk__jobs_log(jobs, TK_JOB_WARN, job->id, "%s", diag.text);
}

/* An attempt went wrong. `permanent`: the next one would, too. */
static void attempt_failed(tk_jobs *jobs, tk_job *job, const char *dir, bool permanent,
                           const char *reason)
{
    tk_diag diag;
    char text[512];
    job->failures++;
    if (permanent || job->failures >= jobs->opts.max_failures) {
        end_job(jobs, job, dir, TK_JOB_FAILED, "", reason, NULL);
        return;
    }
    (void)snprintf(text, sizeof text, "attempt %u failed, trying again: %.400s", job->attempts,
                   reason);
    tk__jobs_log(jobs, TK_JOB_WARN, job->id, "%s", text);
    if (say(jobs, job, text, &diag) != TK_OK)
        tk__jobs_log(jobs, TK_JOB_WARN, job->id, "%s", diag.text);
    rest(jobs, (int64_t)jobs->opts.retry_ms * job->failures);
}

/* The current version changed under the job: it goes back to the queue, with nothing of the old
 * base left. */
static void start_over(tk_jobs *jobs, tk_job *job, const char *dir)
{
    tk_diag diag;
    tk_err err = tk_files_remove_tree(dir, true, &diag);
    job->state = TK_JOB_QUEUED;
    job->base_version = 0;
    if (err == TK_OK)
        err = say(jobs, job, "the current version changed; starting over on the new one", &diag);
    tk__jobs_moved(jobs, TK_JOB_QUEUED);
    if (err != TK_OK) {
        tk__jobs_log(jobs, TK_JOB_WARN, job->id, "%s", diag.text);
        rest(jobs, 1000);
    }
}

/* -- while the trainer runs -- */

static void push_pending(attempt *a)
{
    if (!a->pending.stage[0]) return;
    const int64_t now = now_ms();
    a->pending.state = a->job->state;
    a->pending.sequence = tk__hub_number(&a->jobs->hub);
    if (now - a->kept_ms >= PROGRESS_KEEP_MS &&
        tk_store_event_add(a->jobs->store, a->job->id, &a->pending, NULL) == TK_OK)
        a->kept_ms = now;
    tk__hub_push(&a->jobs->hub, &a->pending);
    a->pushed_ms = now;
    a->pending = (tk_job_event){0};
}

/* Does `shown` stand for this head of the base: another one, or the own as it was? */
static bool is_of_base(const attempt *a, const tk_version_head *head, const char *shown)
{
    const size_t n = strlen(head->id);
    const bool own = head->tenant == a->job->tenant && strcmp(head->name, a->job->head) == 0;
    return strncmp(shown, head->id, n) == 0 && strcmp(shown + n, own ? TK_EARLIER : "") == 0;
}

/* Tolerances are not the trainer's to tell: they come from the base, the own head's from the job.
 */
static void add_tolerances(const attempt *a, tk_job_event *event)
{
    for (size_t i = 0; i < event->n_heads; i++) {
        event->heads[i].tolerance = a->job->tolerance;
        for (size_t k = 0; k < a->base.n_heads; k++)
            if (is_of_base(a, &a->base.heads[k], event->heads[i].head))
                event->heads[i].tolerance = a->base.heads[k].tolerance;
    }
}

static void on_validation(attempt *a, tk_job_event *event)
{
    tk_diag diag;
    tk_job_event copy;
    add_tolerances(a, event);
    if (tk_job_event_copy(&copy, event) == TK_OK) {
        tk_free(a->job->heads);
        a->job->heads = copy.heads;
        a->job->n_heads = copy.n_heads;
    }
    if (record(a->jobs, a->job, event, NULL, &diag) != TK_OK)
        tk__jobs_log(a->jobs, TK_JOB_WARN, a->job->id, "%s", diag.text);
}

static void on_log(attempt *a, tk_line *line)
{
    tk_diag diag;
    tk__jobs_log(a->jobs, line->warn ? TK_JOB_WARN : TK_JOB_INFO, a->job->id, "%s",
                 line->event.message);
    if (a->logs++ >= LOGS_MAX) return;
    if (record(a->jobs, a->job, &line->event, NULL, &diag) != TK_OK)
        tk__jobs_log(a->jobs, TK_JOB_WARN, a->job->id, "%s", diag.text);
}

static void on_line(void *ctx, const char *text, size_t size)
{
    attempt *a = ctx;
    tk_line line;
    if (tk__line_parse(&line, text, size) != TK_OK) {
        if (a->malformed++ == 0)
            tk__jobs_log(a->jobs, TK_JOB_WARN, a->job->id,
                         "the trainer wrote a line that is no event");
        return;
    }
    if (line.kind == TK_LINE_PROGRESS) {
        if (a->pending.stage[0] && strcmp(a->pending.stage, line.event.stage) != 0) push_pending(a);
        a->pending = line.event;
        return;
    }
    push_pending(a);
    switch (line.kind) {
    case TK_LINE_VALIDATION:
        on_validation(a, &line.event);
        break;
    case TK_LINE_LOG:
        on_log(a, &line);
        break;
    case TK_LINE_FAILED:
        (void)snprintf(a->error, sizeof a->error, "%s", line.error);
        tk__copy_text(a->reason, sizeof a->reason, line.event.message);
        break;
    case TK_LINE_DONE: /* result.json says it, durably */
    case TK_LINE_PROGRESS:
        break;
    }
    tk_job_event_fini(&line.event);
}

static void obey(attempt *a)
{
    const tk_orders orders = tk__jobs_orders(a->jobs);
    const int64_t now = now_ms();
    a->rebase = a->rebase || orders.changes != a->changes;
    if (!a->term && (orders.stop || orders.cancel || a->rebase)) {
        tk__trainer_signal(&a->trainer, SIGTERM);
        a->term = true;
        a->term_ms = now;
    } else if (a->term && !a->killed && now - a->term_ms >= a->jobs->opts.cancel_ms) {
        tk__trainer_signal(&a->trainer, SIGKILL);
        a->killed = true;
    }
}

static void wait_for_news(const attempt *a)
{
    struct pollfd fds[3] = {{.fd = a->trainer.out, .events = POLLIN},
                            {.fd = a->trainer.err, .events = POLLIN},
                            {.fd = a->jobs->wake[0], .events = POLLIN}};
    int ms = POLL_MS;
    if (a->term || a->trainer.out < 0) ms = 10; /* its end is near */
    (void)poll(fds, 3, ms);
    tk__jobs_sleep(a->jobs, 0); /* empties the wake pipe */
}

/* Sees the trainer to its end; returns waitpid's status. */
static int watch(attempt *a)
{
    int status = 0;
    for (;;) {
        wait_for_news(a);
        obey(a);
        const bool ended = tk__trainer_reap(&a->trainer, &status);
        /* After the end too: what it wrote last lies in the pipe. */
        if (tk__trainer_read(&a->trainer, on_line, a) != TK_OK)
            tk__jobs_log(a->jobs, TK_JOB_WARN, a->job->id, "out of memory for a trainer's line");
        if (ended || now_ms() - a->pushed_ms >= PROGRESS_MS) push_pending(a);
        if (ended) return status;
    }
}

/* -- start -- */

/* A trainer that an earlier server left running must be gone before another one starts in the same
 * directory. */
static bool stop_orphan(tk_jobs *jobs, const tk_job *job, const char *dir)
{
    const int64_t start = now_ms();
    bool told = false;
    for (;;) {
        const bool late = now_ms() - start >= jobs->opts.cancel_ms;
        if (!tk__trainer_orphan(dir, late ? SIGKILL : told ? 0 : SIGTERM)) return true;
        if (!told)
            tk__jobs_log(jobs, TK_JOB_WARN, job->id, "a trainer outlived its server; stopping it");
        told = true;
        if (tk__jobs_orders(jobs).stop) return false;
        tk__jobs_sleep(jobs, 20);
    }
}

static tk_err resolve_recipe(tk_jobs *jobs, tk_job *job, const tk_version *base, tk_diag *diag)
{
    bool scratch;
    if (!job->recipe[0])
        (void)snprintf(job->recipe, sizeof job->recipe, "%s", tk__default_recipe(base->number));
    const tk_err err = tk__recipe_check(jobs, job->recipe, job->set, job->n_set, &scratch, diag);
    if (err != TK_OK) return err == TK_BADARG ? TK_BADDATA : err;
    if (scratch && base->number)
        return tk_fail(diag, TK_PRECONDITION,
                       "recipe %s is for a fresh trunk; there is one by now (version %llu)",
                       job->recipe, (unsigned long long)base->number);
    if (!scratch && !base->number)
        return tk_fail(diag, TK_PRECONDITION, "recipe %s needs a trunk, and there is none yet",
                       job->recipe);
    return TK_OK;
}

/* Directory, job.json and record of an attempt, all durable. TK_PRECONDITION: this job can never
 * run. */
static tk_err prepare(tk_jobs *jobs, tk_job *job, const char *dir, tk_version *base, tk_diag *diag)
{
    char text[128];
    tk_err err = tk__version_current(jobs, 0, base, diag);
    if (err != TK_OK) return err;
    char *job_json = tk__join(dir, "job.json");
    if (!job_json) return tk_fail(diag, TK_NOMEM, "job: out of memory");
    const bool resume = job->state == TK_JOB_RUNNING && job->attempts > 0 &&
                        job->base_version == base->number && access(job_json, R_OK) == 0;
    tk_free(job_json);
    if (!resume) err = tk_files_remove_tree(dir, true, diag);
    if (err == TK_OK && !resume) err = resolve_recipe(jobs, job, base, diag);
    if (err == TK_OK) err = tk_files_make_dir(dir, diag);
    if (err == TK_OK) err = tk__job_file_write(jobs, job, base->number ? base : NULL, dir, diag);
    if (err == TK_OK) err = tk_store_curve_rewind(jobs->store, job->id, resume, diag);
    if (err != TK_OK) return err;
    job->state = TK_JOB_RUNNING;
    job->base_version = base->number;
    job->attempts++;
    if (!job->started_ms) job->started_ms = wall_ms();
    (void)snprintf(text, sizeof text,
                   resume ? "attempt %u, from the last checkpoint" : "attempt %u", job->attempts);
    err = say(jobs, job, text, diag);
    tk__jobs_moved(jobs, TK_JOB_RUNNING);
    return err;
}

/* -- after the trainer -- */

static bool repeats_itself(const char *error)
{
    static const char *const names[] = {"TK_BADARG",   "TK_BADDATA", "TK_DIVERGED",
                                        "TK_NOTFOUND", "TK_EXISTS",  "TK_PRECONDITION",
                                        "TK_LIMIT"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(error, names[i]) == 0) return true;
    return false;
}

static void trainer_died(const attempt *a, int status)
{
    char how[64], reason[1024];
    tk__trainer_describe(status, how, sizeof how);
    if (a->reason[0] || a->error[0])
        (void)snprintf(reason, sizeof reason, "%s", a->reason[0] ? a->reason : a->error);
    else if (a->trainer.tail_used)
        (void)snprintf(reason, sizeof reason, "the trainer ended with %s; it said: %s", how,
                       a->trainer.tail);
    else
        (void)snprintf(reason, sizeof reason, "the trainer ended with %s", how);
    const bool usage = WIFEXITED(status) && WEXITSTATUS(status) == 2;
    attempt_failed(a->jobs, a->job, a->dir, usage || repeats_itself(a->error), reason);
}

static void commit(tk_jobs *jobs, tk_job *job, const char *dir, const tk_result *result)
{
    tk_diag diag;
    uint64_t number;
    tk_job_event event = {.state = TK_JOB_COMMITTED, .sequence = tk__hub_number(&jobs->hub)};
    tk__copy_text(event.message, sizeof event.message, result->reason);
    const tk_err err = tk__job_commit(jobs, job, dir, result, &event, &number, &diag);
    if (err == TK_PRECONDITION) {
        start_over(jobs, job, dir);
    } else if (err != TK_OK) {
        char reason[640];
        (void)snprintf(reason, sizeof reason, "the new version cannot be committed: %s", diag.text);
        /* Of a candidate that is none nothing is worth keeping; after anything else the commit is
         * tried again. */
        if (err == TK_BADDATA && tk_files_remove_tree(dir, true, &diag) != TK_OK)
            tk__jobs_log(jobs, TK_JOB_WARN, job->id, "%s", diag.text);
        attempt_failed(jobs, job, dir, false, reason);
    } else {
        job->state = TK_JOB_COMMITTED;
        tk__hub_push(&jobs->hub, &event);
        tk__jobs_moved(jobs, TK_JOB_COMMITTED);
        tk__jobs_log(jobs, TK_JOB_INFO, job->id, "version %llu: %s", (unsigned long long)number,
                     result->reason);
        if (tk_files_remove_tree(dir, true, &diag) != TK_OK)
            tk__jobs_log(jobs, TK_JOB_WARN, job->id, "%s", diag.text);
    }
}

/* result.json is there, or should be. */
static void conclude(tk_jobs *jobs, tk_job *job, const char *dir)
{
    tk_diag diag;
    tk_result result;
    const tk_err err = tk__result_read(&result, dir, &diag);
    if (err != TK_OK) {
        char reason[640];
        (void)snprintf(reason, sizeof reason, "the trainer left no valid result: %s", diag.text);
        if (err == TK_BADDATA && tk_files_remove_tree(dir, true, &diag) != TK_OK)
            tk__jobs_log(jobs, TK_JOB_WARN, job->id, "%s", diag.text);
        attempt_failed(jobs, job, dir, false, reason);
        return;
    }
    if (strcmp(result.outcome, "reject") == 0)
        end_job(jobs, job, dir, TK_JOB_REJECTED, result.outcome, result.reason, &result);
    else
        commit(jobs, job, dir, &result);
    tk__result_fini(&result);
}

/* The trainer of this attempt has ended: what now? */
static void settle(attempt *a, int status)
{
    const tk_orders orders = tk__jobs_orders(a->jobs);
    if (orders.cancel)
        end_job(a->jobs, a->job, a->dir, TK_JOB_CANCELLED, "", "cancelled", NULL);
    else if (orders.stop)
        tk__jobs_log(a->jobs, TK_JOB_INFO, a->job->id, "interrupted; it goes on later");
    else if (a->rebase)
        start_over(a->jobs, a->job, a->dir);
    else if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        conclude(a->jobs, a->job, a->dir);
    else
        trainer_died(a, status);
}

static void run(tk_jobs *jobs, tk_job *job, const char *dir)
{
    tk_diag diag;
    attempt a = {.jobs = jobs, .job = job, .dir = dir, .changes = tk__jobs_orders(jobs).changes};
    a.kept_ms = now_ms();
    tk_err err = prepare(jobs, job, dir, &a.base, &diag);
    if (err == TK_PRECONDITION || err == TK_NOTFOUND || err == TK_BADDATA) {
        end_job(jobs, job, dir, TK_JOB_FAILED, "", diag.text, NULL);
    } else {
        if (err == TK_OK) err = tk__trainer_start(&a.trainer, jobs->trainer, dir, &diag);
        if (err != TK_OK)
            attempt_failed(jobs, job, dir, false, diag.text);
        else
            settle(&a, watch(&a));
        if (err == TK_OK) tk__trainer_fini(&a.trainer);
    }
    tk_version_fini(&a.base);
}

/* Did the last attempt finish its work? */
static bool has_result(const tk_job *job, const char *dir)
{
    char *path = job->attempts > 0 ? tk__join(dir, "result.json") : NULL;
    const bool there = path && access(path, R_OK) == 0;
    tk_free(path);
    return there;
}

void tk__job_step(tk_jobs *jobs, tk_job *job)
{
    char *dir = tk_store_job_dir(jobs->store, job->id);
    if (!dir) {
        rest(jobs, 1000);
        return;
    }
    tk__hub_run(&jobs->hub, job->id);
    if (job->state == TK_JOB_QUEUED || stop_orphan(jobs, job, dir)) {
        if (tk__jobs_orders(jobs).cancel)
            end_job(jobs, job, dir, TK_JOB_CANCELLED, "", "cancelled", NULL);
        else if (job->state == TK_JOB_RUNNING && has_result(job, dir))
            conclude(jobs, job, dir);
        else
            run(jobs, job, dir);
    }
    tk__hub_run(&jobs->hub, 0);
    tk__hub_wake(&jobs->hub, job->id); /* who looked just before saw a job that was not over yet */
    tk_free(dir);
}
