/* What the files of the supervisor share. */
#ifndef SERVER_JOBS_JOBS_INTERNAL_H
#define SERVER_JOBS_JOBS_INTERNAL_H

#include <pthread.h>

#include "jobs/jobs.h"
#include "jobs/trainer_process.h"

enum { TK_RING = 256 };

/* Events and those who wait for them (hub.c). */
typedef struct tk_hub {
    tk_store *store;

    pthread_mutex_t watch_lock; /* held while wakes run */
    tk_job_watch *watches;      /* watch_lock */

    pthread_mutex_t lock;
    uint64_t job;               /* lock; whose events the ring has; 0: none runs */
    tk_job_event ring[TK_RING]; /* lock; oldest first from `first` */
    size_t first, used;         /* lock */
    bool dropped;               /* lock; the ring has lost some of this run */
    uint64_t next, reserved_to; /* lock; sequence numbers at hand */
} tk_hub;

void tk__hub_init(tk_hub *hub, tk_store *store);
void tk__hub_fini(tk_hub *hub);
/* The ring is this job's from now on (0: nobody's). */
void tk__hub_run(tk_hub *hub, uint64_t job);
/* A number for an event of the running job. */
uint64_t tk__hub_number(tk_hub *hub);
/* Puts the running job's event (numbered, already kept if it is to be) into the ring, and wakes.
 * Copies. */
void tk__hub_push(tk_hub *hub, const tk_job_event *event);
void tk__hub_wake(tk_hub *hub, uint64_t job);
void tk__hub_wake_all(tk_hub *hub); /* as when jobs were deleted */

/* Where a trainer's result is understood (result.c). */
typedef struct tk_result {
    char outcome[16]; /* "commit", "probe", "reject" */
    char *reason;
    char *record; /* result.json without its confusion matrices */
    char *judged; /* its "gate" and "precisions", for tk_judgement_parse() */
    size_t n_heads;
    tk_version_head *heads; /* id, accuracy, top5, n, agreement, confusion [n_labels][n_labels] */
} tk_result;

/* TK_NOTFOUND: there is no result.json. TK_BADDATA: it is not one. */
TK_MUST tk_err tk__result_read(tk_result *out, const char *dir, tk_diag *diag);
void tk__result_fini(tk_result *result);

struct tk_jobs {
    tk_store *store;
    tk_jobs_opts opts; /* defaults filled in; opts.trainer is ours */
    char *trainer;
    tk_hub hub;
    pthread_t thread;
    int wake[2]; /* a pipe into the supervisor's poll */

    /* Lock order: hub.watch_lock, version_lock, claim, hub.lock, the store's. */
    pthread_mutex_t version_lock; /* held across prepare, transaction, publish */
    pthread_mutex_t claim;        /* who may end a queued job: supervisor or canceller */
    uint64_t claimed;             /* claim; the job that the supervisor has in hand, 0: none */
    bool cancelled;               /* claim; ask for that job */
    bool stopping;                /* claim */
    unsigned paused;              /* claim; no job may be in hand: see tk__jobs_pause() */
    uint64_t changes;             /* claim; of the current version by others than the job in hand */
};

/* Why the supervisor was woken. */
typedef struct tk_orders {
    bool stop, cancel;
    uint64_t changes;
} tk_orders;

tk_orders tk__jobs_orders(tk_jobs *jobs);
/* Waits at most `ms` (-1: for ever) for a wake, and forgets all wakes up to now. */
void tk__jobs_sleep(tk_jobs *jobs, int ms);
void tk__jobs_wake(tk_jobs *jobs);
/* Stops the job in hand as the server's end would, and keeps the supervisor from taking one until
 * tk__jobs_go_on(). Not under version_lock, which a commit wants. TK_BUSY: it does not end. */
TK_MUST tk_err tk__jobs_pause(tk_jobs *jobs, tk_diag *diag);
void tk__jobs_go_on(tk_jobs *jobs);
void tk__jobs_log(const tk_jobs *jobs, tk_job_log level, uint64_t job, const char *fmt, ...)
    TK_PRINTF(4, 5);
void tk__jobs_moved(const tk_jobs *jobs, tk_job_state state); /* tells opts.moved */
/* Who is told that a job is COMMITTED finds its version served: waits for the moment between the
 * transaction and the swap to pass. */
void tk__jobs_await_publish(tk_jobs *jobs, uint64_t id, tk_job_state state);
/* DIR/name, tk_free(). */
char *tk__join(const char *dir, const char *name);

/* Does the recipe exist, and may its settings be what they are? TK_BADARG. *scratch: it makes a
 * fresh trunk. */
TK_MUST tk_err tk__recipe_check(tk_jobs *jobs, const char *recipe, const tk_setting *set, size_t n,
                                bool *scratch, tk_diag *diag);
const char *tk__default_recipe(uint64_t base_version);

/* -- exchange.c -- */

/* Writes DIR/job.json for `job` on `base` (NULL: a fresh trunk), durably. */
TK_MUST tk_err tk__job_file_write(tk_jobs *jobs, const tk_job *job, const tk_version *base,
                                  const char *dir, tk_diag *diag);
/* Reads one line of the trainer. Unknown events, and lines that are none, are TK_BADDATA. */
typedef enum tk_line_kind {
    TK_LINE_PROGRESS,
    TK_LINE_VALIDATION,
    TK_LINE_LOG,
    TK_LINE_DONE,
    TK_LINE_FAILED
} tk_line_kind;
typedef struct tk_line {
    tk_line_kind kind;
    bool warn;
    tk_job_event event; /* of progress, validation and log; the message of the others */
    char error[32];     /* of failed: "TK_BADDATA" */
} tk_line;
TK_MUST tk_err tk__line_parse(tk_line *out, const char *text, size_t size);
/* Cuts at a character's end. */
void tk__copy_text(char *to, size_t size, const char *from);

/* -- supervise.c -- */

/* Does the next step with a job: an attempt, a commit, or its end. Returns when that is done or on
 * a stop. */
void tk__job_step(tk_jobs *jobs, tk_job *job);

/* -- commit.c -- */

/* Brings the candidate in DIR into the store and into service. TK_PRECONDITION: the current version
 * is not the job's base any more. TK_BADDATA: the candidate is none. *event is pushed by the
 * caller. */
TK_MUST tk_err tk__job_commit(tk_jobs *jobs, const tk_job *job, const char *dir,
                              const tk_result *result, tk_job_event *event, uint64_t *number,
                              tk_diag *diag);
/* prepare, `write`, publish. Under the version lock. */
typedef tk_err tk_write_fn(void *ctx, tk_store *store, const tk_commit *commit, tk_diag *diag);
TK_MUST tk_err tk__version_publish(tk_jobs *jobs, const tk_commit *commit, tk_write_fn *write,
                                   void *ctx, tk_diag *diag);
/* Tells that files of older versions are others now. Under the version lock. */
void tk__versions_rewritten(const tk_jobs *jobs);
/* Number of the current version, 0: none. */
TK_MUST tk_err tk__version_current(tk_jobs *jobs, unsigned with, tk_version *out, tk_diag *diag);

#endif
