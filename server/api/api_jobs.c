/* trunkd.v1.Jobs. Submit checks what can be checked before anything is queued; Watch is moved on by
 * the pump: every new event and every free place in the stream wakes it, and its state is touched
 * by the pump's thread alone. A client that reads slowly misses progress, never a validation, a
 * message or a change of state. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "api/api_internal.h"
#include "engine/mem.h"
#include "heads/recipe.h"
#include "log.h"

enum { MAX_SETTINGS = 64 };

/* Answers with a job; frees it. */
static void reply_job(tk_rpc_call *call, tk_job *job)
{
    tk_diag diag = {{0}};
    tk__names names;
    const tk_err err = tk__names_init(&names, call, &diag);
    if (err == TK_OK) {
        tk__region region = {NULL, false};
        tk__reply(call, &region, tk__put_job(&region, &names, job));
        tk__names_fini(&names);
    } else {
        tk__fail(call, err, &diag);
    }
    tk_job_fini(job);
}

static void log_job(const tk_rpc_call *call, const char *event, const tk_job *job)
{
    tk_log(TK_LOG_INFO, event,
           (tk_log_field[]){tk_log_str("tenant", job->tenant_name),
                            tk_log_int("job", (int64_t)job->id), tk_log_str("head", job->head),
                            tk_log_int("data_set", (int64_t)job->data_set),
                            tk_log_str("recipe", job->recipe[0] ? job->recipe : "default"),
                            tk_log_str("by", tk_rpc_identity(call)->admin ? "admin" : "tenant"),
                            tk__log_trace(call), tk_log_end()});
}

/* -- submit -- */

/* Which network will the job see? The current version's, or the one a fresh store will train. */
static tk_err find_arch(tk_api *api, tk_arch *arch, bool *fresh, tk_diag *diag)
{
    tk_snapshot *snapshot = tk_current_get(api->o.current);
    *fresh = !snapshot;
    if (snapshot) {
        *arch = tk_snapshot_arch(snapshot);
        tk_snapshot_unref(snapshot);
        return TK_OK;
    }
    tk_trunk trunk;
    const tk_err err = tk_store_trunk_get(api->o.store, &trunk, diag);
    return err == TK_OK ? tk_arch_parse(trunk.arch, arch, diag) : err;
}

/* On a fresh trunk there is nothing to start from but `scratch`, unless a job that makes the first
 * version is already waiting; on a trunk with heads `scratch` would destroy them. */
static tk_err check_start(tk_api *api, const tk_recipe *recipe, bool fresh, tk_diag *diag)
{
    if (!fresh && recipe->from_scratch) {
        return tk_fail(
            diag, TK_PRECONDITION,
            "the recipe \"%s\" trains a fresh trunk, but this server's has been trained: use "
            "another recipe, such as kd+ewc",
            recipe->name);
    }
    if (!fresh || recipe->from_scratch) return TK_OK;
    tk_store_stats stats;
    const tk_err err = tk_store_stat(api->o.store, &stats, diag);
    if (err != TK_OK) return err;
    if (stats.queued_jobs > 0 || stats.running_job != 0) return TK_OK;
    return tk_fail(
        diag, TK_PRECONDITION,
        "the recipe \"%s\" starts from a trained trunk, but this server has none yet: the first "
        "head takes the recipe scratch (or leave the recipe empty), or an admin imports a trunk",
        recipe->name);
}

static tk_err check_recipe(tk_api *api, const Trunkd__V1__SubmitJobRequest *in, tk_diag *diag)
{
    tk_arch arch = TK_RESNET20;
    bool fresh;
    tk_err err = find_arch(api, &arch, &fresh, diag);
    if (err != TK_OK) return err;
    const char *name = in->recipe[0] ? in->recipe : fresh ? "scratch" : "kd+ewc";
    tk_recipe recipe;
    err = tk_recipe_find(&recipe, name, arch, diag);
    for (size_t i = 0; err == TK_OK && i < in->n_set; i++) {
        const Trunkd__V1__Setting *s = in->set[i];
        if (strlen(s->name) >= TK_SETTING_NAME_SIZE || !isfinite(s->value)) {
            return tk_fail(diag, TK_BADARG,
                           "set[%zu]: \"%.40s\" is not a setting with a finite value", i, s->name);
        }
        err = tk_recipe_set(&recipe, s->name, s->value, diag);
    }
    return err == TK_OK && in->recipe[0] ? check_start(api, &recipe, fresh, diag) : err;
}

static tk_err check_submit(tk_api *api, const Trunkd__V1__SubmitJobRequest *in, tk_diag *diag)
{
    tk_err err = tk_name_check(in->head, "head", diag);
    if (err != TK_OK) return err;
    if (in->data_set == 0) return tk_fail(diag, TK_BADARG, "data_set is missing");
    if (!(in->tolerance >= 0 && in->tolerance <= 100)) {
        return tk_fail(diag, TK_BADARG,
                       "tolerance is %g, but must be 0 (the default, 1.0) to 100 points",
                       in->tolerance);
    }
    if (in->fallback != TRUNKD__V1__FALLBACK__PROBE &&
        in->fallback != TRUNKD__V1__FALLBACK__REJECT) {
        return tk_fail(diag, TK_BADARG, "fallback is %d, but must be PROBE (0) or REJECT (1)",
                       (int)in->fallback);
    }
    if (in->retention != TRUNKD__V1__RETENTION__VALIDATION &&
        in->retention != TRUNKD__V1__RETENTION__NOTHING) {
        return tk_fail(diag, TK_BADARG,
                       "retention is %d, but must be VALIDATION (0) or NOTHING (1)",
                       (int)in->retention);
    }
    if (in->n_set > MAX_SETTINGS) {
        return tk_fail(diag, TK_BADARG, "set has %zu entries, the limit is %d", in->n_set,
                       MAX_SETTINGS);
    }
    return check_recipe(api, in, diag);
}

void tk__jobs_submit(tk_rpc_call *call, const ProtobufCMessage *message)
{
    const Trunkd__V1__SubmitJobRequest *in = (const Trunkd__V1__SubmitJobRequest *)message;
    tk_api *api = tk__api(call);
    tk_diag diag = {{0}};
    tk_err err = check_submit(api, in, &diag);
    if (err != TK_OK) {
        tk__fail(call, err, &diag);
        return;
    }
    tk_setting set[MAX_SETTINGS];
    for (size_t i = 0; i < in->n_set; i++) {
        snprintf(set[i].name, sizeof set[i].name, "%s", in->set[i]->name);
        set[i].value = in->set[i]->value;
    }
    const tk_job_request request = {
        .tenant = tk__tenant(call),
        .head = in->head,
        .data_set = in->data_set,
        .recipe = in->recipe,
        .set = set,
        .n_set = in->n_set,
        .fallback =
            in->fallback == TRUNKD__V1__FALLBACK__REJECT ? TK_FALLBACK_REJECT : TK_FALLBACK_PROBE,
        .retention = in->retention == TRUNKD__V1__RETENTION__NOTHING ? TK_RETAIN_NOTHING
                                                                     : TK_RETAIN_VALIDATION,
        .tolerance = in->tolerance,
        .seed = in->seed,
    };
    tk_job job;
    err = tk_jobs_submit(api->o.jobs, &request, &job, &diag);
    if (err != TK_OK) {
        tk__fail(call, err, &diag);
        return;
    }
    log_job(call, "job submitted", &job);
    reply_job(call, &job);
}

/* -- get, list, cancel -- */

void tk__jobs_get(tk_rpc_call *call, const ProtobufCMessage *message)
{
    const Trunkd__V1__GetJobRequest *in = (const Trunkd__V1__GetJobRequest *)message;
    tk_diag diag = {{0}};
    tk_job job;
    const tk_err err = tk_jobs_get(tk__api(call)->o.jobs, tk__tenant(call), in->id, &job, &diag);
    if (err != TK_OK)
        tk__fail(call, err, &diag);
    else
        reply_job(call, &job);
}

void tk__jobs_cancel(tk_rpc_call *call, const ProtobufCMessage *message)
{
    const Trunkd__V1__CancelJobRequest *in = (const Trunkd__V1__CancelJobRequest *)message;
    tk_diag diag = {{0}};
    tk_job job;
    const tk_err err = tk_jobs_cancel(tk__api(call)->o.jobs, tk__tenant(call), in->id, &job, &diag);
    if (err != TK_OK) {
        tk__fail(call, err, &diag);
        return;
    }
    log_job(call, "job cancelled", &job);
    reply_job(call, &job);
}

void tk__jobs_list(tk_rpc_call *call, const ProtobufCMessage *message)
{
    const Trunkd__V1__ListJobsRequest *in = (const Trunkd__V1__ListJobsRequest *)message;
    tk_diag diag = {{0}};
    tk_job_list list;
    tk__names names;
    tk_err err = in->limit > 1000 ? tk_fail(&diag, TK_BADARG,
                                            "limit is %" PRIu32 ", but at most 1000", in->limit)
                                  : tk__names_init(&names, call, &diag);
    if (err != TK_OK) {
        tk__fail(call, err, &diag);
        return;
    }
    err = tk_jobs_list(tk__api(call)->o.jobs, tk__tenant(call), in->limit, &list, &diag);
    if (err == TK_OK) {
        tk__region region = {NULL, false};
        Trunkd__V1__ListJobsResponse *m =
            tk__new(&region, &trunkd__v1__list_jobs_response__descriptor);
        if (m) m->jobs = tk__alloc(&region, list.n, sizeof *m->jobs);
        for (size_t i = 0; m && m->jobs && i < list.n; i++) {
            m->jobs[m->n_jobs++] = tk__put_job(&region, &names, &list.items[i]);
        }
        tk__reply(call, &region, m);
        tk_job_list_fini(&list);
    } else {
        tk__fail(call, err, &diag);
    }
    tk__names_fini(&names);
}

/* -- watch -- */

typedef struct watcher {
    tk_pump_item item; /* first */
    tk_rpc_call *call; /* referenced until the stream is over */
    tk_api *api;
    int64_t tenant;
    uint64_t job, after;
    bool started, names_made, lagging;
    tk__names names;
    tk_job_watch *watch;
} watcher;

static void wake_watcher(void *ctx)
{
    tk_pump_wake(ctx);
}

/* Sends one event; with the last goes the whole job. False: not now (the queue is full), or never.
 */
static bool send_event(watcher *w, tk_job_event *event, bool last)
{
    tk__region region = {NULL, false};
    tk_diag diag = {{0}};
    tk_job job = {.id = 0};
    Trunkd__V1__JobEvent *m = tk__put_event(&region, &w->names, event);
    tk_err err = m && last ? tk_jobs_get(w->api->o.jobs, w->tenant, w->job, &job, &diag) : TK_OK;
    const bool have_job = m && last && err == TK_OK;
    if (have_job) m->job = tk__put_job(&region, &w->names, &job);
    if (!m || region.failed) err = tk_fail(&diag, TK_NOMEM, "no memory for an event");
    bool sent = false;
    if (err != TK_OK)
        tk__fail(w->call, err, &diag);
    else
        sent = tk_rpc_send(w->call, &m->base);
    if (have_job) tk_job_fini(&job);
    tk__region_fini(&region);
    return sent;
}

static bool only_progress(const tk_job_event *event)
{
    return event->n_heads == 0 && event->message[0] == '\0' && event->state == TK_JOB_RUNNING;
}

/* Behind a slow reader: `event` may be left out when the next one says the same, only newer.
 * Replaces it. */
static void skip_forward(watcher *w, tk_job_event *event, bool *ended)
{
    while (w->lagging && !*ended && only_progress(event)) {
        tk_job_event next;
        bool next_ended = false;
        if (tk_jobs_next(w->api->o.jobs, w->job, event->sequence, &next, &next_ended, NULL) !=
            TK_OK)
            return;
        if (next.sequence == 0 || !only_progress(&next) || strcmp(next.stage, event->stage) != 0) {
            tk_job_event_fini(&next);
            return;
        }
        tk_job_event_fini(event);
        *event = next;
        *ended = next_ended;
    }
}

static tk_err start_watching(watcher *w, tk_diag *diag)
{
    w->started = true;
    tk_err err = tk_jobs_subscribe(w->api->o.jobs, w->tenant, w->job, wake_watcher, &w->item,
                                   &w->watch, diag);
    if (err != TK_OK) return err;
    err = tk__names_init(&w->names, w->call, diag);
    w->names_made = err == TK_OK;
    return err;
}

/* Sends what there is. False: the stream is over, one way or the other. */
static bool send_events(watcher *w, tk_diag *diag, tk_err *err)
{
    for (;;) {
        tk_job_event event;
        bool ended = false;
        *err = tk_jobs_next(w->api->o.jobs, w->job, w->after, &event, &ended, diag);
        if (*err != TK_OK) return false;
        if (event.sequence == 0 && !ended) {
            w->lagging = false;
            return true;
        }
        if (event.sequence ==
            0) { /* resumed behind the last event: it is said again, with the job */
            tk_job job;
            *err = tk_jobs_get(w->api->o.jobs, w->tenant, w->job, &job, diag);
            if (*err != TK_OK) return false;
            event = (tk_job_event){.sequence = w->after, .state = job.state};
            tk_job_fini(&job);
        }
        skip_forward(w, &event, &ended);
        const uint64_t sequence = event.sequence;
        const bool sent = send_event(w, &event, ended);
        tk_job_event_fini(&event);
        if (!sent) {
            w->lagging = true;
            return true; /* on_writable or on_cancel wakes us */
        }
        w->after = sequence;
        if (ended) return false;
    }
}

static bool step_watcher(tk_pump_item *item)
{
    watcher *w = (watcher *)item;
    tk_diag diag = {{0}};
    tk_err err = TK_OK;
    bool more = true;
    if (tk_rpc_cancelled(w->call)) {
        more = false;
    } else if (atomic_load_explicit(&w->api->stopping, memory_order_relaxed)) {
        err = tk_fail(
            &diag, TK_BUSY,
            "the server is stopping; the job goes on when it is back: watch it again after event "
            "%" PRIu64,
            w->after);
    } else {
        if (!w->started) err = start_watching(w, &diag);
        if (err == TK_OK) more = send_events(w, &diag, &err);
    }
    if (err == TK_OK && more) return true;
    if (err != TK_OK)
        tk__fail(w->call, err, &diag);
    else
        tk_rpc_finish(w->call);
    tk_jobs_unsubscribe(w->api->o.jobs, w->watch);
    if (w->names_made) tk__names_fini(&w->names);
    tk_rpc_unref(w->call); /* the call may be gone from here on */
    return false;
}

static void destroy_watcher(tk_pump_item *item)
{
    tk_free(item);
}

void tk__jobs_watch(tk_rpc_call *call, const ProtobufCMessage *message)
{
    const Trunkd__V1__WatchJobRequest *in = (const Trunkd__V1__WatchJobRequest *)message;
    watcher *w = tk_calloc(1, sizeof *w);
    if (!w) {
        tk_rpc_fail(call, TK_NOMEM, "no memory to watch a job");
        return;
    }
    *w = (watcher){.item = {.step = step_watcher, .destroy = destroy_watcher},
                   .call = call,
                   .api = tk__api(call),
                   .tenant = tk__tenant(call),
                   .job = in->id,
                   .after = in->after};
    tk_rpc_ref(call);
    tk__stream_attach(call, &w->item);
}
