/* Jobs: the queue, the supervisor of `trunkd-trainer`, and every change of the current version.
 *
 * One thread owns the queue and runs one job at a time: tenants take turns, each in its order of
 * submission. It writes
 * DIR/jobs/ID/job.json (trainer/protocol.md), starts the trainer with posix_spawn (which lowers its
 * own priority), reads its events from a pipe, and at its end commits the candidate, or records why
 * not. A trainer that dies is started again and resumes from its checkpoint, `max_failures` times
 * at most; a failure that would only repeat itself (bad data, divergence, bad argument) ends the
 * job at once. When the current version changed while a job ran (a rollback, a deleted head), the
 * job starts over on the new one.
 *
 * A job that was running when the server stopped or was killed goes on at the next start; a trainer
 * that outlived its server is found by the lock in its job directory and stopped first.
 *
 * Versions change in one place: prepare (the hook loads the new version, and may refuse), one
 * transaction in the store, publish (the hook swaps the pointer, and cannot fail). A lock makes
 * these sequences one after another.
 *
 * Threads. All functions may be called from any thread; they may wait for the disk, so not from a
 * completion queue. Hooks, wake-ups and log lines come from the supervisor's thread or from the
 * thread that called rollback, delete or import, with no lock held but the version lock (hooks): a
 * hook must not call this module. The process must not ignore SIGCHLD nor reap children it did not
 * start. */
#ifndef SERVER_JOBS_JOBS_H
#define SERVER_JOBS_JOBS_H

#include "heads/model.h"
#include "store/store.h"

typedef struct tk_jobs tk_jobs;

typedef struct tk_version_hooks {
    void *ctx;
    /* Loads version `number` from `path` (heads/model.h) ready to serve, without serving it. A
     * failure refuses the commit with its sentence. */
    tk_err (*prepare)(void *ctx, uint64_t number, const char *path, void **snapshot, tk_diag *diag);
    /* The commit is on the disk: serve it. Takes the snapshot. */
    void (*publish)(void *ctx, uint64_t number, void *snapshot);
    /* The commit failed: free it. */
    void (*discard)(void *ctx, void *snapshot);
    /* A head or a tenant is gone, and with it the files of older versions that held it: nothing
     * that was loaded from those may be used any more. After publish, if there was any. */
    void (*rewritten)(void *ctx);
} tk_version_hooks;

typedef enum tk_job_log { TK_JOB_INFO, TK_JOB_WARN } tk_job_log;

typedef struct tk_jobs_opts {
    const char *trainer;    /* path; NULL: trunkd-trainer beside the running executable */
    unsigned threads;       /* of the trainer; 0: one per core */
    uint64_t memory_limit;  /* of the trainer, bytes; 0: none */
    unsigned max_failures;  /* 0: 3 */
    unsigned retry_ms;      /* wait before the n-th retry is n times this; 0: 1000 */
    unsigned cancel_ms;     /* between SIGTERM and SIGKILL; 0: 10000 */
    tk_version_hooks hooks; /* functions may be NULL: nothing serves (tests) */
    void (*log)(void *ctx, tk_job_log level, uint64_t job, const char *text); /* may be NULL */
    void *log_ctx;
    /* A job was queued, began, or ended in `state`, or jobs were deleted (TK_JOB_QUEUED); also at
     * the start, for what is there. Any thread of this module's, with no lock held; it may ask the
     * store, not this module. May be NULL. */
    void (*moved)(void *ctx, tk_job_state state);
    void *moved_ctx;
} tk_jobs_opts;

/* `store` is borrowed. Takes up what was running or queued. */
TK_MUST tk_err tk_jobs_start(tk_jobs **out, tk_store *store, const tk_jobs_opts *opts,
                             tk_diag *diag);
/* SIGTERM to the trainer, SIGKILL after `cancel_ms`; the job stays RUNNING and is resumed at the
 * next start. Joins. Watchers must be gone. NULL is fine. */
void tk_jobs_stop(tk_jobs *jobs);

/* What a tenant asks for. */
typedef struct tk_job_request {
    int64_t tenant;
    const char *head;
    uint64_t data_set;
    const char *recipe; /* NULL or "": kd+ewc, or scratch on a fresh trunk */
    const tk_setting *set;
    size_t n_set;
    tk_fallback fallback;
    tk_retention retention;
    double tolerance; /* points, 0: 1.0 */
    uint64_t seed;    /* 0: 1 */
} tk_job_request;

/* TK_OK: the job is durable and queued; *out is filled in (tk_job_fini). TK_BADARG: a field;
 * TK_NOTFOUND: the data set; TK_BADDATA: a data set of fewer than two labels; TK_LIMIT. */
TK_MUST tk_err tk_jobs_submit(tk_jobs *jobs, const tk_job_request *request, tk_job *out,
                              tk_diag *diag);
/* A queued job is CANCELLED on return; a running one ends soon after (watch it), unless its
 * candidate is being committed already. TK_PRECONDITION when it has ended. Asking twice is fine. */
TK_MUST tk_err tk_jobs_cancel(tk_jobs *jobs, int64_t tenant, uint64_t id, tk_job *out,
                              tk_diag *diag);
/* A job that is shown as COMMITTED is served already. */
TK_MUST tk_err tk_jobs_get(tk_jobs *jobs, int64_t tenant, uint64_t id, tk_job *out, tk_diag *diag);
TK_MUST tk_err tk_jobs_list(tk_jobs *jobs, int64_t tenant, size_t limit, tk_job_list *out,
                            tk_diag *diag);

/* -- watching --
 *
 *     tk_jobs_subscribe(jobs, tenant, id, wake, ctx, &watch, &diag);
 *     pump (from subscribe on, at each wake, and when the stream can take more):
 *         while (tk_jobs_next(jobs, id, after, &event, &ended, &diag) == TK_OK && event.sequence !=
 * 0) { send; after = event.sequence; tk_job_event_fini(&event); } if (ended) finish;
 *     tk_jobs_unsubscribe(jobs, watch);
 */
typedef struct tk_job_watch tk_job_watch;
typedef void tk_wake_fn(void *ctx);

/* `wake` is called after each new event of the job; it may call tk_jobs_next, not un-/subscribe.
 * TK_NOTFOUND. */
TK_MUST tk_err tk_jobs_subscribe(tk_jobs *jobs, int64_t tenant, uint64_t id, tk_wake_fn *wake,
                                 void *ctx, tk_job_watch **out, tk_diag *diag);
/* No wake runs or comes after it returned. NULL is fine. Not from inside a wake. */
void tk_jobs_unsubscribe(tk_jobs *jobs, tk_job_watch *watch);
/* Asks nobody's leave: subscribe does. The first kept event after `after` (a copy;
 * tk_job_event_fini), or sequence 0: none yet. Progress is thinned out (a few a second at most);
 * validations, messages and changes of state are all kept. *ended: this event carries the job's
 * final state, or there is none after `after` and the job has ended. */
TK_MUST tk_err tk_jobs_next(tk_jobs *jobs, uint64_t id, uint64_t after, tk_job_event *out,
                            bool *ended, tk_diag *diag);

/* -- versions (admin, and a tenant's own head) -- */

/* A new version with the trunk and heads of version `number`, less the heads deleted since. */
TK_MUST tk_err tk_jobs_rollback(tk_jobs *jobs, uint64_t number, tk_version *out, tk_diag *diag);
/* A new version without the head; the head's weights, validations and validation pack are gone from
 * every older version and from the disk, too. TK_PRECONDITION while a job of that head is queued or
 * running. `head` as in tk_store_head_get(). */
TK_MUST tk_err tk_jobs_delete_head(tk_jobs *jobs, int64_t tenant, const char *head, tk_diag *diag);
/* A tenant leaves: its tokens, data sets, jobs, heads and held-out images are gone from the disk
 * when this returns, and so is its name from the records of others. Every older version that held
 * its heads is written anew without them: a rollback does not bring them back. Jobs of others that
 * are under way begin again. What stays is what the trunk has learnt, the
 * server's log, and, until its stream ends in an error, the file of an upload that is under way.
 * Its tokens are refused at once; the rest is one transaction, so a crash leaves the tenant with
 * everything or with nothing, and the next start removes what a crash after it left lying about.
 * Called again after a failure it goes on. TK_NOTFOUND: there is no tenant of that name; TK_BUSY: a
 * job does not stop. */
TK_MUST tk_err tk_jobs_delete_tenant(tk_jobs *jobs, const char *tenant, tk_diag *diag);
/* A version from outside: a trunk without heads. TK_PRECONDITION while the current version has
 * heads. */
TK_MUST tk_err tk_jobs_import(tk_jobs *jobs, const tk_model *model, const char *reason,
                              tk_version *out, tk_diag *diag);

#endif
