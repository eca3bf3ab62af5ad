/* The queue and its thread; what tenants may do with jobs. */
#include "jobs/jobs.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "engine/mem.h"
#include "heads/recipe.h"
#include "jobs/jobs_internal.h"
#include "process.h"

static tk_err no_memory(tk_diag *diag)
{
    return tk_fail(diag, TK_NOMEM, "jobs: out of memory");
}

char *tk__join(const char *dir, const char *name)
{
    const size_t size = strlen(dir) + strlen(name) + 2;
    char *path = tk_calloc(size, 1);
    if (path) (void)snprintf(path, size, "%s/%s", dir, name);
    return path;
}

void tk__jobs_log(const tk_jobs *jobs, tk_job_log level, uint64_t job, const char *fmt, ...)
{
    if (!jobs->opts.log) return;
    char text[1024];
    va_list args;
    va_start(args, fmt);
    (void)vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    jobs->opts.log(jobs->opts.log_ctx, level, job, text);
}

/* -- the thread -- */

tk_orders tk__jobs_orders(tk_jobs *jobs)
{
    (void)pthread_mutex_lock(&jobs->claim);
    const tk_orders orders = {.stop = jobs->stopping || jobs->paused,
                              .cancel = jobs->cancelled,
                              .changes = jobs->changes};
    (void)pthread_mutex_unlock(&jobs->claim);
    return orders;
}

void tk__jobs_wake(tk_jobs *jobs)
{
    const char byte = 0;
    while (write(jobs->wake[1], &byte, 1) < 0 && errno == EINTR) {
    }
    /* A full pipe is a wake, too. */
}

void tk__jobs_sleep(tk_jobs *jobs, int ms)
{
    char bytes[64];
    struct pollfd fd = {.fd = jobs->wake[0], .events = POLLIN};
    if (poll(&fd, 1, ms) > 0)
        while (read(jobs->wake[0], bytes, sizeof bytes) > 0) {
        }
}

void tk__jobs_moved(const tk_jobs *jobs, tk_job_state state)
{
    if (jobs->opts.moved) jobs->opts.moved(jobs->opts.moved_ctx, state);
}

static uint64_t in_hand(tk_jobs *jobs)
{
    (void)pthread_mutex_lock(&jobs->claim);
    const uint64_t job = jobs->claimed;
    (void)pthread_mutex_unlock(&jobs->claim);
    return job;
}

tk_err tk__jobs_pause(tk_jobs *jobs, tk_diag *diag)
{
    enum { TICK_MS = 10, GRACE_MS = 5000 };
    const struct timespec tick = {.tv_nsec = TICK_MS * 1000000};
    (void)pthread_mutex_lock(&jobs->claim);
    jobs->paused++;
    (void)pthread_mutex_unlock(&jobs->claim);
    uint64_t job = 0;
    for (int64_t left = jobs->opts.cancel_ms + GRACE_MS; left > 0; left -= TICK_MS) {
        job = in_hand(jobs);
        if (!job) return TK_OK;
        tk__jobs_wake(jobs);
        (void)nanosleep(&tick, NULL);
    }
    tk__jobs_go_on(jobs);
    return tk_fail(diag, TK_BUSY, "job %llu does not stop", (unsigned long long)job);
}

void tk__jobs_go_on(tk_jobs *jobs)
{
    (void)pthread_mutex_lock(&jobs->claim);
    jobs->paused--;
    (void)pthread_mutex_unlock(&jobs->claim);
    tk__jobs_wake(jobs);
}

/* Takes the next job in hand, so that nobody else ends it. TK_NOTFOUND: there is none, or a pause.
 */
static tk_err claim_next(tk_jobs *jobs, tk_job *job, tk_diag *diag)
{
    (void)pthread_mutex_lock(&jobs->claim);
    const tk_err err = jobs->paused ? TK_NOTFOUND : tk_store_job_next(jobs->store, job, diag);
    if (err == TK_OK) {
        jobs->claimed = job->id;
        jobs->cancelled = job->cancel;
    }
    (void)pthread_mutex_unlock(&jobs->claim);
    return err;
}

static void unclaim(tk_jobs *jobs)
{
    (void)pthread_mutex_lock(&jobs->claim);
    jobs->claimed = 0;
    jobs->cancelled = false;
    (void)pthread_mutex_unlock(&jobs->claim);
}

static bool is_stopping(tk_jobs *jobs)
{
    (void)pthread_mutex_lock(&jobs->claim);
    const bool stopping = jobs->stopping;
    (void)pthread_mutex_unlock(&jobs->claim);
    return stopping;
}

static void *thread_main(void *arg)
{
    tk_jobs *jobs = arg;
    tk_process_thread("jobs", TK_THREAD_GIVES_WAY);
    while (!is_stopping(jobs)) {
        tk_job job;
        tk_diag diag;
        const tk_err err = claim_next(jobs, &job, &diag);
        if (err == TK_OK) {
            tk__job_step(jobs, &job);
            unclaim(jobs);
            tk_job_fini(&job);
        } else if (err == TK_NOTFOUND) {
            tk__jobs_sleep(jobs, -1);
        } else {
            tk__jobs_log(jobs, TK_JOB_WARN, 0, "the queue cannot be read: %s", diag.text);
            tk__jobs_sleep(jobs, 1000);
        }
    }
    return NULL;
}

/* -- start and stop -- */

/* trunkd-trainer beside the running program. */
static char *default_trainer(void)
{
    char self[4096];
    const ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n <= 0) return tk_strdup("trunkd-trainer");
    self[n] = '\0';
    char *slash = strrchr(self, '/');
    if (slash) *slash = '\0';
    return tk__join(self, "trunkd-trainer");
}

static void set_defaults(tk_jobs_opts *opts)
{
    if (opts->threads == 0) {
        const long cores = sysconf(_SC_NPROCESSORS_ONLN);
        opts->threads = cores > 0 ? (unsigned)cores : 1;
    }
    if (opts->max_failures == 0) opts->max_failures = 3;
    if (opts->retry_ms == 0) opts->retry_ms = 1000;
    if (opts->cancel_ms == 0) opts->cancel_ms = 10000;
}

static tk_err open_wake(tk_jobs *jobs, tk_diag *diag)
{
    if (pipe(jobs->wake) != 0) return tk_fail_errno(diag, "jobs: pipe");
    for (int i = 0; i < 2; i++) {
        (void)fcntl(jobs->wake[i], F_SETFL, O_NONBLOCK);
        (void)fcntl(jobs->wake[i], F_SETFD, FD_CLOEXEC);
    }
    return TK_OK;
}

static void destroy(tk_jobs *jobs)
{
    for (int i = 0; i < 2; i++)
        if (jobs->wake[i] >= 0) (void)close(jobs->wake[i]);
    tk__hub_fini(&jobs->hub);
    (void)pthread_mutex_destroy(&jobs->claim);
    (void)pthread_mutex_destroy(&jobs->version_lock);
    tk_free(jobs->trainer);
    tk_free(jobs);
}

tk_err tk_jobs_start(tk_jobs **out, tk_store *store, const tk_jobs_opts *opts, tk_diag *diag)
{
    *out = NULL;
    tk_jobs *jobs = tk_calloc(1, sizeof *jobs);
    if (!jobs) return no_memory(diag);
    jobs->store = store;
    if (opts) jobs->opts = *opts;
    set_defaults(&jobs->opts);
    jobs->wake[0] = jobs->wake[1] = -1;
    (void)pthread_mutex_init(&jobs->version_lock, NULL);
    (void)pthread_mutex_init(&jobs->claim, NULL);
    tk__hub_init(&jobs->hub, store);
    jobs->trainer = jobs->opts.trainer ? tk_strdup(jobs->opts.trainer) : default_trainer();
    jobs->opts.trainer = jobs->trainer;
    tk_err err = jobs->trainer ? open_wake(jobs, diag) : no_memory(diag);
    if (err == TK_OK && access(jobs->trainer, X_OK) != 0)
        tk__jobs_log(jobs, TK_JOB_WARN, 0, "%s: cannot be run; jobs will fail", jobs->trainer);
    if (err == TK_OK) tk__jobs_moved(jobs, TK_JOB_QUEUED);
    if (err == TK_OK && pthread_create(&jobs->thread, NULL, thread_main, jobs) != 0)
        err = tk_fail(diag, TK_NOMEM, "jobs: no thread");
    if (err != TK_OK) {
        destroy(jobs);
        return err;
    }
    *out = jobs;
    return TK_OK;
}

void tk_jobs_stop(tk_jobs *jobs)
{
    if (!jobs) return;
    (void)pthread_mutex_lock(&jobs->claim);
    jobs->stopping = true;
    (void)pthread_mutex_unlock(&jobs->claim);
    tk__jobs_wake(jobs);
    (void)pthread_join(jobs->thread, NULL);
    destroy(jobs);
}

/* -- recipes -- */

const char *tk__default_recipe(uint64_t base_version)
{
    return base_version ? "kd+ewc" : "scratch";
}

tk_err tk__recipe_check(tk_jobs *jobs, const char *recipe, const tk_setting *set, size_t n,
                        bool *scratch, tk_diag *diag)
{
    *scratch = false;
    tk_trunk trunk;
    tk_arch arch;
    tk_recipe r;
    tk_err err = tk_store_trunk_get(jobs->store, &trunk, diag);
    if (err == TK_NOTFOUND) err = TK_PRECONDITION;
    if (err == TK_OK) err = tk_arch_parse(trunk.arch, &arch, diag);
    if (err == TK_OK) err = tk_recipe_find(&r, recipe, arch, diag);
    for (size_t i = 0; i < n && err == TK_OK; i++)
        err = tk_recipe_set(&r, set[i].name, set[i].value, diag);
    if (err == TK_OK) *scratch = r.from_scratch;
    return err;
}

/* -- what tenants do -- */

static tk_err check_request(tk_jobs *jobs, const tk_job_request *request, tk_diag *diag)
{
    tk_version base;
    bool scratch;
    tk_err err = tk_name_check(request->head, "head", diag);
    if (err == TK_OK && !(request->tolerance >= 0 && request->tolerance <= 100))
        err = tk_fail(diag, TK_BADARG, "tolerance: limit 0 to 100 points, value %g",
                      request->tolerance);
    if (err == TK_OK && request->seed > INT64_MAX)
        err = tk_fail(diag, TK_BADARG, "seed: limit %lld, value %llu", (long long)INT64_MAX,
                      (unsigned long long)request->seed);
    if (err == TK_OK && request->recipe && strlen(request->recipe) >= sizeof((tk_job *)0)->recipe)
        err = tk_fail(diag, TK_BADARG, "recipe: there is none of that name");
    for (size_t i = 0; i < request->n_set && err == TK_OK; i++)
        if (!isfinite(request->set[i].value))
            err = tk_fail(diag, TK_BADARG, "set %s: not a finite number", request->set[i].name);
    if (err == TK_OK) err = tk__version_current(jobs, 0, &base, diag);
    if (err != TK_OK) return err;
    const bool named = request->recipe && request->recipe[0];
    err = tk__recipe_check(jobs, named ? request->recipe : tk__default_recipe(base.number),
                           request->set, request->n_set, &scratch, diag);
    if (err == TK_OK && scratch && base.number)
        err = tk_fail(diag, TK_PRECONDITION,
                      "recipe %s is for a fresh trunk; there is one (version %llu)",
                      request->recipe, (unsigned long long)base.number);
    tk_version_fini(&base);
    return err;
}

tk_err tk_jobs_submit(tk_jobs *jobs, const tk_job_request *request, tk_job *out, tk_diag *diag)
{
    *out = (tk_job){0};
    tk_err err = check_request(jobs, request, diag);
    if (err != TK_OK) return err;
    tk_job job = {.tenant = request->tenant,
                  .data_set = request->data_set,
                  .n_set = request->n_set,
                  .fallback = request->fallback,
                  .retention = request->retention,
                  .tolerance = request->tolerance > 0 ? request->tolerance : 1.0,
                  .seed = request->seed ? request->seed : 1};
    (void)snprintf(job.head, sizeof job.head, "%s", request->head);
    (void)snprintf(job.recipe, sizeof job.recipe, "%s", request->recipe ? request->recipe : "");
    job.set = tk_calloc(request->n_set ? request->n_set : 1, sizeof *job.set);
    if (!job.set) return no_memory(diag);
    if (request->n_set) memcpy(job.set, request->set, request->n_set * sizeof *job.set);
    err = tk_store_job_add(jobs->store, &job, diag);
    if (err != TK_OK) {
        tk_job_fini(&job);
        return err;
    }
    *out = job;
    tk__jobs_wake(jobs);
    tk__jobs_moved(jobs, TK_JOB_QUEUED);
    return TK_OK;
}

/* A queued job that nobody has in hand: its end is one transaction. */
static tk_err cancel_queued(tk_jobs *jobs, tk_job *job, tk_diag *diag)
{
    tk_job_event event = {.state = TK_JOB_CANCELLED, .message = "cancelled before it ran"};
    tk_err err = tk_store_event_reserve(jobs->store, job->id, 1, &event.sequence, diag);
    char *reason = tk_strdup(event.message);
    if (err == TK_OK && !reason) err = no_memory(diag);
    if (err != TK_OK) {
        tk_free(reason);
        return err;
    }
    tk_free(job->reason);
    job->reason = reason;
    job->state = TK_JOB_CANCELLED;
    job->ended_ms = job->submitted_ms;
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now) == 0)
        job->ended_ms = (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
    return tk_store_job_update(jobs->store, job, &event, NULL, NULL, diag);
}

static tk_err cancel_claimed(tk_jobs *jobs, tk_job *job, tk_diag *diag)
{
    if (tk_job_state_ended(job->state))
        return tk_fail(diag, TK_PRECONDITION, "job %llu: has ended already",
                       (unsigned long long)job->id);
    if (job->state == TK_JOB_QUEUED && jobs->claimed != job->id)
        return cancel_queued(jobs, job, diag);
    const tk_err err = tk_store_job_cancel(jobs->store, job->id, diag);
    if (err == TK_OK) {
        job->cancel = true;
        if (jobs->claimed == job->id) jobs->cancelled = true;
    }
    return err;
}

tk_err tk_jobs_cancel(tk_jobs *jobs, int64_t tenant, uint64_t id, tk_job *out, tk_diag *diag)
{
    tk_job job;
    *out = (tk_job){0};
    (void)pthread_mutex_lock(&jobs->claim);
    tk_err err = tk_store_job_get(jobs->store, tenant, id, &job, diag);
    if (err == TK_OK) {
        err = cancel_claimed(jobs, &job, diag);
        if (err == TK_OK)
            *out = job;
        else
            tk_job_fini(&job);
    }
    (void)pthread_mutex_unlock(&jobs->claim);
    if (err != TK_OK) return err;
    tk__jobs_wake(jobs);
    tk__hub_wake(&jobs->hub, id);
    if (out->state == TK_JOB_CANCELLED) tk__jobs_moved(jobs, TK_JOB_CANCELLED);
    return TK_OK;
}

void tk__jobs_await_publish(tk_jobs *jobs, uint64_t id, tk_job_state state)
{
    if (state != TK_JOB_COMMITTED) return;
    (void)pthread_mutex_lock(&jobs->claim);
    const bool in_hand = jobs->claimed == id;
    (void)pthread_mutex_unlock(&jobs->claim);
    if (!in_hand) return;
    (void)pthread_mutex_lock(&jobs->version_lock);
    (void)pthread_mutex_unlock(&jobs->version_lock);
}

tk_err tk_jobs_get(tk_jobs *jobs, int64_t tenant, uint64_t id, tk_job *out, tk_diag *diag)
{
    const tk_err err = tk_store_job_get(jobs->store, tenant, id, out, diag);
    if (err == TK_OK) tk__jobs_await_publish(jobs, id, out->state);
    return err;
}

tk_err tk_jobs_list(tk_jobs *jobs, int64_t tenant, size_t limit, tk_job_list *out, tk_diag *diag)
{
    const tk_err err = tk_store_job_list(jobs->store, tenant, limit, out, diag);
    for (size_t i = 0; i < out->n; i++)
        tk__jobs_await_publish(jobs, out->items[i].id, out->items[i].state);
    return err;
}
