/* Events of jobs on their way to watchers. What must last is in the store; the ring holds the
 * newest of the running job, also the progress that is never written. A watcher is only woken: it
 * fetches at its own speed. */
#include <string.h>

#include "engine/mem.h"
#include "jobs/jobs_internal.h"

enum { RESERVE = 256 };

struct tk_job_watch {
    uint64_t job;
    tk_wake_fn *wake;
    void *ctx;
    tk_job_watch *next;
};

void tk__hub_init(tk_hub *hub, tk_store *store)
{
    *hub = (tk_hub){.store = store};
    (void)pthread_mutex_init(&hub->watch_lock, NULL);
    (void)pthread_mutex_init(&hub->lock, NULL);
}

static void clear_locked(tk_hub *hub)
{
    for (size_t i = 0; i < TK_RING; i++)
        tk_job_event_fini(&hub->ring[i]);
    hub->first = hub->used = 0;
    hub->dropped = false;
    hub->next = hub->reserved_to = 0;
}

void tk__hub_fini(tk_hub *hub)
{
    clear_locked(hub);
    (void)pthread_mutex_destroy(&hub->lock);
    (void)pthread_mutex_destroy(&hub->watch_lock);
}

void tk__hub_run(tk_hub *hub, uint64_t job)
{
    (void)pthread_mutex_lock(&hub->lock);
    clear_locked(hub);
    hub->job = job;
    /* What an earlier run wrote is in the store only. */
    hub->dropped = true;
    (void)pthread_mutex_unlock(&hub->lock);
}

uint64_t tk__hub_number(tk_hub *hub)
{
    (void)pthread_mutex_lock(&hub->lock);
    const bool empty = hub->next == hub->reserved_to;
    const uint64_t job = hub->job;
    (void)pthread_mutex_unlock(&hub->lock);
    uint64_t first = 0;
    /* Only the supervisor's thread takes numbers, so nothing changes in between. Without a
     * reservation (a full disk) counting goes on: a number might come twice after a crash, which
     * only costs a watcher some progress. */
    const bool reserved =
        empty && tk_store_event_reserve(hub->store, job, RESERVE, &first, NULL) == TK_OK;
    (void)pthread_mutex_lock(&hub->lock);
    if (reserved) {
        hub->next = first;
        hub->reserved_to = first + RESERVE;
    } else if (empty) {
        hub->reserved_to++;
        if (hub->next == 0) hub->next = hub->reserved_to++;
    }
    const uint64_t number = hub->next++;
    (void)pthread_mutex_unlock(&hub->lock);
    return number;
}

void tk__hub_push(tk_hub *hub, const tk_job_event *event)
{
    tk_job_event copy;
    (void)pthread_mutex_lock(&hub->lock);
    const uint64_t job = hub->job;
    if (tk_job_event_copy(&copy, event) == TK_OK) {
        if (hub->used == TK_RING) {
            tk_job_event_fini(&hub->ring[hub->first]);
            hub->first = (hub->first + 1) % TK_RING;
            hub->used--;
            hub->dropped = true;
        }
        hub->ring[(hub->first + hub->used++) % TK_RING] = copy;
    }
    (void)pthread_mutex_unlock(&hub->lock);
    tk__hub_wake(hub, job);
}

void tk__hub_wake(tk_hub *hub, uint64_t job)
{
    (void)pthread_mutex_lock(&hub->watch_lock);
    for (const tk_job_watch *w = hub->watches; w; w = w->next)
        if (w->job == job) w->wake(w->ctx);
    (void)pthread_mutex_unlock(&hub->watch_lock);
}

void tk__hub_wake_all(tk_hub *hub)
{
    (void)pthread_mutex_lock(&hub->watch_lock);
    for (const tk_job_watch *w = hub->watches; w; w = w->next)
        w->wake(w->ctx);
    (void)pthread_mutex_unlock(&hub->watch_lock);
}

tk_err tk_jobs_subscribe(tk_jobs *jobs, int64_t tenant, uint64_t id, tk_wake_fn *wake, void *ctx,
                         tk_job_watch **out, tk_diag *diag)
{
    *out = NULL;
    tk_job job;
    const tk_err err = tk_store_job_get(jobs->store, tenant, id, &job, diag);
    if (err != TK_OK) return err;
    tk_job_fini(&job);
    tk_job_watch *watch = tk_calloc(1, sizeof *watch);
    if (!watch) return tk_fail(diag, TK_NOMEM, "watch: out of memory");
    (void)pthread_mutex_lock(&jobs->hub.watch_lock);
    *watch = (tk_job_watch){.job = id, .wake = wake, .ctx = ctx, .next = jobs->hub.watches};
    jobs->hub.watches = watch;
    (void)pthread_mutex_unlock(&jobs->hub.watch_lock);
    *out = watch;
    return TK_OK;
}

void tk_jobs_unsubscribe(tk_jobs *jobs, tk_job_watch *watch)
{
    if (!watch) return;
    (void)pthread_mutex_lock(&jobs->hub.watch_lock);
    for (tk_job_watch **at = &jobs->hub.watches; *at; at = &(*at)->next)
        if (*at == watch) {
            *at = watch->next;
            break;
        }
    (void)pthread_mutex_unlock(&jobs->hub.watch_lock);
    tk_free(watch);
}

/* From the ring: *found, and *certain when nothing older than it can be in the store alone. *live:
 * the job is in the supervisor's hands. */
static tk_err next_in_ring(tk_hub *hub, uint64_t id, uint64_t after, tk_job_event *out,
                           bool *certain, bool *live)
{
    tk_err err = TK_OK;
    *certain = false;
    (void)pthread_mutex_lock(&hub->lock);
    *live = hub->job == id;
    for (size_t i = 0; *live && i < hub->used; i++) {
        const tk_job_event *event = &hub->ring[(hub->first + i) % TK_RING];
        if (event->sequence <= after) {
            *certain = true; /* the ring reaches back to where the watcher is */
            continue;
        }
        *certain = *certain || !hub->dropped;
        err = tk_job_event_copy(out, event);
        break;
    }
    (void)pthread_mutex_unlock(&hub->lock);
    return err;
}

static tk_err next_in_store(tk_store *store, uint64_t id, uint64_t after, tk_job_event *out,
                            tk_diag *diag)
{
    tk_job_events list;
    const tk_err err = tk_store_event_list(store, id, after, 1, &list, diag);
    if (err != TK_OK || list.n == 0) return err;
    *out = list.items[0];
    tk_free(list.items);
    return TK_OK;
}

tk_err tk_jobs_next(tk_jobs *jobs, uint64_t id, uint64_t after, tk_job_event *out, bool *ended,
                    tk_diag *diag)
{
    *out = (tk_job_event){0};
    *ended = false;
    bool certain, live;
    tk_job_event ring = {0}, kept = {0};
    tk_job job = {0};
    tk_err err = next_in_ring(&jobs->hub, id, after, &ring, &certain, &live);
    if (err != TK_OK) return tk_fail(diag, err, "watch: out of memory");
    if (certain) {
        *out = ring;
        *ended = tk_job_state_ended(ring.state);
        return TK_OK;
    }
    /* The state is read before the events: what ends a job writes both at once. */
    if (!live) err = tk_store_job_get(jobs->store, TK_ALL, id, &job, diag);
    const bool over = !live && err == TK_OK && tk_job_state_ended(job.state);
    tk_job_fini(&job);
    if (err == TK_OK) err = next_in_store(jobs->store, id, after, &kept, diag);
    if (err != TK_OK) {
        tk_job_event_fini(&ring);
        return err;
    }
    if (kept.sequence && (!ring.sequence || kept.sequence <= ring.sequence)) {
        *out = kept;
        tk_job_event_fini(&ring);
    } else {
        *out = ring;
        tk_job_event_fini(&kept);
    }
    *ended = out->sequence ? tk_job_state_ended(out->state) : over;
    tk__jobs_await_publish(jobs, id, out->sequence ? out->state : TK_JOB_QUEUED);
    return TK_OK;
}
