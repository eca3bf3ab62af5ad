/* The store: everything that outlives the daemon, in one directory.
 *
 *     DIR/lock            held by the server that owns the store; a second one is refused
 *     DIR/trunkd.sqlite   records (WAL, synchronous=FULL); an older schema is brought up to date
 *     DIR/admin.token     the first admin token, mode 0600; made once
 *     DIR/objects/ab/...  content-addressed files: versions, data sets, validation packs
 *     DIR/tmp/            files in progress; emptied at start
 *     DIR/jobs/ID/        the directory of a job that has not ended
 *
 * Promises. A function that returned TK_OK is on the disk. A crash at any moment loses nothing of
 * that and leaves nothing half visible; what it leaves unreferenced is removed at the next start.
 * What is deleted is gone from the disk when the function returns. A full disk is TK_NOSPACE with
 * nothing kept, and the store goes on.
 *
 * Tenancy. Functions on tenants' things take the caller's tenant id; TK_ALL (an admin) sees
 * everything. What belongs to another tenant is TK_NOTFOUND with the very sentence of a thing that
 * does not exist.
 *
 * Threads. Every function may be called from any thread. One SQLite connection stands behind one
 * mutex, so all but tk_store_authenticate and tk_store_tenant_live may wait for the disk: not on a
 * completion-queue thread. Hashing and copying of big files happens outside that mutex. Lists are
 * copies; free them with their _fini. On failure an out parameter is zero and needs no _fini. */
#ifndef SERVER_STORE_STORE_H
#define SERVER_STORE_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/err.h"
#include "engine/image.h"
#include "heads/gate.h"
#include "heads/search.h"
#include "tenant_limits.h"

typedef struct tk_store tk_store;

enum {
    TK_ALL = 0, /* in place of a tenant id: the admin's eyes */
    TK_NAME_MAX = 63,
    TK_NAME_SIZE = 64,     /* a tenant's, head's or data set's name, with its NUL */
    TK_HEAD_ID_SIZE = 136, /* "tenant/name", a head's id in model files, or that and "@earlier"
                              (heads/validator.h), with its NUL */
    TK_SHA_SIZE = 65,      /* 64 lower-case hex digits, with the NUL */
    TK_TOKEN_SIZE = 48,    /* "tk_" + 43 characters, with the NUL */
    TK_TOKEN_ID_SIZE = 24,
    TK_SETTING_NAME_SIZE = 32,
};

/* Limits of every tenant. */
typedef struct tk_store_opts {
    uint64_t max_tenant_bytes;     /* data sets and validation packs; 0: 16 GiB */
    uint32_t max_tenant_data_sets; /* 0: 1000 */
    uint32_t max_tenant_heads;     /* in the current version and in waiting jobs; 0: 64 */
    uint32_t max_tenant_jobs;      /* queued or running; 0: 16 */
} tk_store_opts;

/* Opens `dir`, making it (mode 0700) and the store when they are not there, takes the lock (TK_BUSY
 * when another server holds it), empties tmp/, removes unreferenced objects and the directories of
 * ended jobs, loads the tokens. `opts` may be NULL. */
TK_MUST tk_err tk_store_open(tk_store **out, const char *dir, const tk_store_opts *opts,
                             tk_diag *diag);
/* No other thread may be inside. NULL is fine. */
void tk_store_close(tk_store *store);
const char *tk_store_dir(const tk_store *store);
/* Other limits from now on; what is over them stays. Any thread. */
void tk_store_set_limits(tk_store *store, const tk_store_opts *opts);

/* 1..63 characters of [a-z0-9._-], the first a letter or digit. `what` ("tenant", "head", ...)
 * names the field in the sentence. */
TK_MUST tk_err tk_name_check(const char *name, const char *what, tk_diag *diag);

typedef struct tk_store_stats {
    uint64_t tenants, heads; /* heads of the current version */
    uint64_t current;        /* version, 0: none yet */
    uint64_t queued_jobs, running_job;
    uint64_t bytes; /* of referenced objects, each counted once */
} tk_store_stats;
TK_MUST tk_err tk_store_stat(tk_store *store, tk_store_stats *out, tk_diag *diag);

/* -- files -- */

/* A fresh path in DIR/tmp for a file in progress; nothing is created. Free with tk_free(). NULL: no
 * memory. */
char *tk_store_temp_path(tk_store *store);
/* Path of an object; free with tk_free(). NULL: no memory. The file may be unlinked as soon as its
 * last record goes; who has it open or mapped keeps it. */
char *tk_store_object_path(const tk_store *store, const char *sha);
/* DIR/jobs/ID; free with tk_free(). NULL: no memory. */
char *tk_store_job_dir(const tk_store *store, uint64_t job);

/* A file that lies in objects/ and is kept from the collector until unstaged, though no record may
 * name it yet. */
typedef struct tk_object {
    char sha[TK_SHA_SIZE]; /* "": none */
    uint64_t bytes;
} tk_object;

/* Hashes `path`, makes it durable and brings it into objects/: by rename, or, with `keep`, by a
 * hard link (a copy where links are not possible) so that `path` stays. `path` must lie on the
 * store's file system unless kept. On failure `path` is untouched. */
TK_MUST tk_err tk_store_stage(tk_store *store, const char *path, bool keep, tk_object *out,
                              tk_diag *diag);
/* Lets go; the object is removed if no record names it. Zeroes *object; "" is fine. */
void tk_store_unstage(tk_store *store, tk_object *object);

/* -- tenants and tokens -- */

typedef struct tk_tenant {
    int64_t id;
    char name[TK_NAME_SIZE];
    uint64_t heads; /* in the current version */
    uint64_t data_sets, bytes;
    int64_t created_ms;
    tk_tenant_limits limits;
} tk_tenant;

typedef struct tk_tenants {
    tk_tenant *items;
    size_t n;
} tk_tenants;

typedef struct tk_token {
    char secret[TK_TOKEN_SIZE]; /* shown once; the store keeps its SHA-256 only */
    char id[TK_TOKEN_ID_SIZE];
} tk_token;

/* A tenant and its first token, in one transaction. TK_BADARG: the name; TK_EXISTS. */
TK_MUST tk_err tk_store_tenant_create(tk_store *store, const char *name, int64_t *id,
                                      tk_token *token, tk_diag *diag);
TK_MUST tk_err tk_store_tenant_find(tk_store *store, const char *name, tk_tenant *out,
                                    tk_diag *diag);
TK_MUST tk_err tk_store_tenant_list(tk_store *store, tk_tenants *out, tk_diag *diag); /* by name */
void tk_tenants_fini(tk_tenants *list);

/* Replaces the tenant's limits, which are checked already, and fills in limits->change and *id.
 * TK_NOTFOUND. */
TK_MUST tk_err tk_store_tenant_limits_set(tk_store *store, const char *name,
                                          tk_tenant_limits *limits, int64_t *id, tk_diag *diag);

/* A token for `tenant` (its name), or an admin's when NULL or "". */
TK_MUST tk_err tk_store_token_issue(tk_store *store, const char *tenant, tk_token *out,
                                    tk_diag *diag);
/* Takes effect for the next call. TK_NOTFOUND also when revoked before; TK_PRECONDITION for the
 * last admin token. */
TK_MUST tk_err tk_store_token_revoke(tk_store *store, const char *id, tk_diag *diag);

/* Who a token belongs to. */
typedef struct tk_principal {
    int64_t tenant; /* TK_ALL for an admin */
    bool admin;
    char name[TK_NAME_SIZE]; /* "" for an admin */
    char token_id[TK_TOKEN_ID_SIZE];
} tk_principal;

/* Memory only: quick, never touches the disk, compares in constant time. TK_UNAUTHENTICATED for a
 * token that is unknown, malformed or revoked, all with one sentence. */
TK_MUST tk_err tk_store_authenticate(tk_store *store, const char *token, size_t len,
                                     tk_principal *out, tk_diag *diag);

/* The tenant of this name, if it has a live token: one without is shut out (revoked, or about to
 * leave). Memory only, like tk_store_authenticate. TK_NOTFOUND, *tenant 0. */
TK_MUST tk_err tk_store_tenant_live(tk_store *store, const char *name, int64_t *tenant,
                                    tk_diag *diag);

/* -- the trunk that a fresh store will train -- */

typedef struct tk_trunk {
    char arch[16]; /* tk_arch_name() */
    tk_preproc preproc;
} tk_trunk;

/* TK_NOTFOUND: never set. */
TK_MUST tk_err tk_store_trunk_get(tk_store *store, tk_trunk *out, tk_diag *diag);
/* TK_PRECONDITION as soon as there is a version: the trunk is then what the version says. */
TK_MUST tk_err tk_store_trunk_set(tk_store *store, const tk_trunk *trunk, tk_diag *diag);

/* -- data sets -- */

typedef struct tk_label_count {
    char *label;
    uint64_t images;
} tk_label_count;

typedef struct tk_data_set {
    uint64_t id;
    int64_t tenant;
    char name[TK_NAME_SIZE]; /* need not be unique: the id is the identity */
    uint64_t images, bytes;
    size_t n_labels;
    tk_label_count *labels; /* in the pack's order */
    int64_t created_ms;
    char sha[TK_SHA_SIZE];
} tk_data_set;

typedef struct tk_data_sets {
    tk_data_set *items;
    size_t n;
} tk_data_sets;

/* Would `bytes` more pass the tenant's limit? TK_LIMIT names field, limit and value. For refusing
 * an upload before it is all there. */
TK_MUST tk_err tk_store_room_check(tk_store *store, int64_t tenant, uint64_t bytes, tk_diag *diag);
/* Takes the finished pack at `path` (in tmp/, from tk_store_temp_path) into the store and writes
 * its record. On failure the file at `path` is removed. `images`, `labels` are what the pack holds.
 */
TK_MUST tk_err tk_store_data_set_add(tk_store *store, int64_t tenant, const char *name,
                                     const char *path, uint64_t images,
                                     const tk_label_count *labels, size_t n_labels,
                                     tk_data_set *out, tk_diag *diag);
TK_MUST tk_err tk_store_data_set_get(tk_store *store, int64_t tenant, uint64_t id, tk_data_set *out,
                                     tk_diag *diag);
TK_MUST tk_err tk_store_data_set_list(tk_store *store, int64_t tenant, tk_data_sets *out,
                                      tk_diag *diag); /* newest first */
/* TK_PRECONDITION, naming the job, while one that uses it is queued or running. A data set stays
 * until its owner deletes it: also after a commit. */
TK_MUST tk_err tk_store_data_set_delete(tk_store *store, int64_t tenant, uint64_t id,
                                        tk_diag *diag);
void tk_data_set_fini(tk_data_set *set);
void tk_data_sets_fini(tk_data_sets *list);

/* -- versions, their heads and validations -- */

/* One head at one version. */
typedef struct tk_version_head {
    char id[TK_HEAD_ID_SIZE]; /* "tenant/name" */
    int64_t tenant;
    char name[TK_NAME_SIZE];
    uint64_t born;      /* version that first had it */
    int64_t created_ms; /* of the head */
    size_t n_labels;
    char **labels;    /* NULL unless asked for */
    double tolerance; /* points */
    double best;      /* best committed accuracy up to this version; NaN: none */
    double accuracy;  /* NaN: never measured */
    double change;    /* of accuracy against the version before; NaN: nothing to compare with */
    double top5;
    uint64_t n;             /* held-out images behind the numbers */
    bool agreement;         /* measured as agreement with pseudo-labels */
    uint32_t *confusion;    /* [n_labels][n_labels], rows: truth; NULL: not kept or not asked for */
    char pack[TK_SHA_SIZE]; /* the validation pack kept for it; "": none */
    uint64_t pack_bytes;
} tk_version_head;

typedef struct tk_version {
    uint64_t number;
    bool current;
    uint64_t job; /* 0: imported, rolled back, or a head was deleted */
    char *reason;
    uint64_t bytes;
    char sha[TK_SHA_SIZE];
    int64_t created_ms;
    size_t n_heads;
    tk_version_head *heads; /* by tenant, then name */
} tk_version;

typedef struct tk_versions {
    tk_version *items;
    size_t n;
} tk_versions;

/* What to read of each head beyond its numbers (n_labels is always there): these can be large. */
enum { TK_WITH_LABELS = 1, TK_WITH_CONFUSION = 2 };

/* `number` 0: the current one. TK_NOTFOUND; TK_PRECONDITION for 0 while there is none. Heads of
 * `tenant` only. */
TK_MUST tk_err tk_store_version_get(tk_store *store, int64_t tenant, uint64_t number, unsigned with,
                                    tk_version *out, tk_diag *diag);
/* Newest first; limit 0: all. */
TK_MUST tk_err tk_store_version_list(tk_store *store, int64_t tenant, unsigned with, size_t limit,
                                     tk_versions *out, tk_diag *diag);
void tk_version_fini(tk_version *version);
void tk_versions_fini(tk_versions *list);

/* The file of version `number`, not staged: it may be unlinked when a head of it is deleted.
 * TK_NOTFOUND alike when there is no such version and when `tenant` has no head in it. */
TK_MUST tk_err tk_store_version_file(tk_store *store, int64_t tenant, uint64_t number,
                                     tk_object *out, tk_diag *diag);

/* One head at the current version, or at every version that has it (oldest first) with `history`.
 * `head` is a name of the tenant's, "tenant/name" for TK_ALL. TK_NOTFOUND when the current version
 * has no such head. */
typedef struct tk_head_history {
    struct tk_head_at {
        uint64_t version;
        tk_version_head head;
    } * items;
    size_t n;
} tk_head_history;
TK_MUST tk_err tk_store_head_get(tk_store *store, int64_t tenant, const char *head, bool history,
                                 unsigned with, tk_head_history *out, tk_diag *diag);
void tk_head_history_fini(tk_head_history *list);

/* Where heads are: a line for each version and head of `tenant` in it, by tenant, name and version;
 * of more than `limit` those of the newest versions. `head` as above, but the current version need
 * not have it; "" is all. */
typedef struct tk_head_places {
    struct tk_head_place {
        uint64_t version;
        char head[TK_HEAD_ID_SIZE]; /* "tenant/name" */
    } * items;
    size_t n;
} tk_head_places;
TK_MUST tk_err tk_store_head_places(tk_store *store, int64_t tenant, const char *head, size_t limit,
                                    tk_head_places *out, tk_diag *diag);
void tk_head_places_fini(tk_head_places *list);

/* The number that the next version will have. Stable while the caller holds off other commits
 * (jobs.h). */
TK_MUST tk_err tk_store_version_next(tk_store *store, uint64_t *number, tk_diag *diag);

/* A head of a version to be: fields of tk_version_head, with borrowed pointers. `born`,
 * `created_ms`, `change` and `pack_bytes` are the store's to fill in. `pack` must name a staged
 * object, or one that the head has already. */
typedef struct tk_commit {
    uint64_t expect_current; /* TK_PRECONDITION when the current version is another by now */
    uint64_t number;         /* from tk_store_version_next() */
    const tk_object *model;  /* staged, or the object of an earlier version (rollback) */
    const char *reason;
    const tk_version_head *heads;
    size_t n_heads;
    uint64_t job;                     /* that ends COMMITTED with this transaction; 0: none */
    const char *outcome;              /* of the job: "commit" or "probe" */
    const char *record;               /* of the job: its result.json; may be NULL */
    const char *judged;               /* of the job: what the gate said, for tk_judgement_parse();
                                         may be NULL */
    const struct tk_job_event *event; /* of the job, its last; may be NULL */
    const char *forget_packs_of;      /* id of a head whose older validation packs go (retention
                                         nothing); may be NULL */
    const tk_trunk *trunk;            /* new trunk settings (first version, import); may be NULL */
} tk_commit;

/* The new version, its heads and validations, the job's end and the current pointer: one
 * transaction. */
TK_MUST tk_err tk_store_version_commit(tk_store *store, const tk_commit *commit, tk_diag *diag);

/* May this head be deleted? TK_NOTFOUND; TK_PRECONDITION while a job that trains it is queued or
 * running. tk_store_head_delete() asks again. */
TK_MUST tk_err tk_store_head_deletable(tk_store *store, int64_t tenant, const char *head,
                                       tk_diag *diag);
/* Deletes a head: every trace of it in every version's records, its validation packs, and, with a
 * new current version (`commit`, without that head), its weights: `scrubbed` gives the staged
 * objects that replace older versions' files. One transaction; then the unreferenced files are
 * unlinked. */
typedef struct tk_scrub {
    uint64_t version;
    tk_object model; /* staged */
} tk_scrub;
TK_MUST tk_err tk_store_head_delete(tk_store *store, int64_t tenant, const char *head,
                                    const tk_commit *commit, const tk_scrub *scrubbed,
                                    size_t n_scrubbed, tk_diag *diag);

/* -- labels of versions -- */

#define TK_VERSION_LATEST "latest" /* not to be set: the current version */
enum { TK_VERSION_LABEL_MAX = 32, TK_VERSION_LABEL_SIZE = 33, TK_VERSION_LABELS_MAX = 8 };

/* A name for a version; it stays where it was set, whatever becomes current. */
typedef struct tk_version_label {
    char name[TK_VERSION_LABEL_SIZE]; /* [a-z][a-z0-9-]{0,31} */
    uint64_t version;
    unsigned percent; /* of the requests that name no version; above 0 for one label at most */
} tk_version_label;

typedef struct tk_version_labels {
    size_t n;
    tk_version_label items[TK_VERSION_LABELS_MAX]; /* by name */
} tk_version_labels;

/* TK_BADARG: no name that a label can have. */
TK_MUST tk_err tk_version_label_check(const char *name, tk_diag *diag);
/* Makes or moves a label. TK_BADARG: name or percent; TK_NOTFOUND: no such version;
 * TK_PRECONDITION: another label has a share; TK_LIMIT. */
TK_MUST tk_err tk_store_version_label_set(tk_store *store, const tk_version_label *label,
                                          tk_diag *diag);
TK_MUST tk_err tk_store_version_label_delete(tk_store *store, const char *name, tk_diag *diag);
TK_MUST tk_err tk_store_version_label_list(tk_store *store, tk_version_labels *out, tk_diag *diag);

/* -- a tenant leaves (tk_jobs_delete_tenant() says in which order) -- */

/* Its tokens are refused from now on. */
TK_MUST tk_err tk_store_tenant_shut_out(tk_store *store, int64_t tenant, tk_diag *diag);
/* Removes the directory of every job. No job may be under way. */
TK_MUST tk_err tk_store_jobs_empty(tk_store *store, tk_diag *diag);
/* Deletes every record of the tenant, and its name from those of others. `scrubbed` gives the
 * staged objects that replace versions' files; `commit`, when it had a head in the current version,
 * the next one without. One transaction. What it leaves on the disk is tk_store_purge()'s; until
 * that has run, a start does it. */
TK_MUST tk_err tk_store_tenant_delete(tk_store *store, int64_t tenant, const tk_commit *commit,
                                      const tk_scrub *scrubbed, size_t n, tk_diag *diag);
/* Removes unreferenced files and writes the data base anew, so that nothing deleted stays in it. */
TK_MUST tk_err tk_store_purge(tk_store *store, tk_diag *diag);

/* -- jobs -- */

typedef enum tk_job_state { /* proto's numbers */
                            TK_JOB_QUEUED,
                            TK_JOB_RUNNING,
                            TK_JOB_COMMITTED,
                            TK_JOB_REJECTED,
                            TK_JOB_FAILED,
                            TK_JOB_CANCELLED,
} tk_job_state;
bool tk_job_state_ended(tk_job_state state);

typedef enum tk_fallback { TK_FALLBACK_PROBE, TK_FALLBACK_REJECT } tk_fallback;
typedef enum tk_retention { TK_RETAIN_VALIDATION, TK_RETAIN_NOTHING } tk_retention;

typedef struct tk_setting {
    char name[TK_SETTING_NAME_SIZE];
    double value;
} tk_setting;

/* A head as measured during a job. */
typedef struct tk_measure {
    char head[TK_HEAD_ID_SIZE];
    double accuracy, change; /* change: against the version that the job started from */
    double tolerance;
    double floor; /* what the gate asks for; NaN: nothing, or not known */
    uint64_t n;
    bool agreement;
} tk_measure;

typedef struct tk_job {
    uint64_t id;
    tk_job_state state;
    int64_t tenant;
    char tenant_name[TK_NAME_SIZE];
    char head[TK_NAME_SIZE]; /* name, without the tenant */
    uint64_t data_set;
    char recipe[32]; /* "" until it starts, when the default was asked for */
    size_t n_set;
    tk_setting *set;
    tk_fallback fallback;
    tk_retention retention;
    double tolerance;
    uint64_t seed;
    char outcome[16]; /* "", "commit", "probe", "reject" */
    char *reason;     /* never NULL */
    uint64_t base_version, version;
    int64_t submitted_ms, started_ms, ended_ms; /* 0: not yet */
    size_t n_heads;
    tk_measure *heads; /* as last measured */
    uint32_t attempts; /* times a trainer was started */
    uint32_t failures; /* times one died */
    bool cancel;       /* asked for */
} tk_job;

typedef struct tk_job_list {
    tk_job *items;
    size_t n;
} tk_job_list;

TK_MUST tk_err tk_store_job_get(tk_store *store, int64_t tenant, uint64_t id, tk_job *out,
                                tk_diag *diag);
/* Newest first. limit 0: 50. */
TK_MUST tk_err tk_store_job_list(tk_store *store, int64_t tenant, size_t limit, tk_job_list *out,
                                 tk_diag *diag);
void tk_job_fini(tk_job *job);
void tk_job_list_fini(tk_job_list *list);

/* The supervisor's own (jobs.c); handlers use jobs.h. */

/* Checks data set, limits and head, and writes a QUEUED job. Reads tenant, head, data_set, recipe,
 * set, fallback, retention, tolerance, seed of *job; fills in the rest. */
TK_MUST tk_err tk_store_job_add(tk_store *store, tk_job *job, tk_diag *diag);
/* The running job, else the oldest queued one of the tenant whose last job started longest ago: a
 * flood of one tenant's jobs holds up another's by one. TK_NOTFOUND: nothing to do. */
TK_MUST tk_err tk_store_job_next(tk_store *store, tk_job *out, tk_diag *diag);
/* Marks a job that has not ended as to be cancelled. */
TK_MUST tk_err tk_store_job_cancel(tk_store *store, uint64_t id, tk_diag *diag);
/* Writes state, recipe, outcome, reason, base_version, started_ms, ended_ms, heads, attempts,
 * failures, and with them `event` (one with heads also goes into the job's curve), `record`
 * (result.json) and `judged` (for tk_judgement_parse(); makes the gate's decision about a job that
 * ends without a version), which may be NULL. A job that has ended stays as it is: TK_PRECONDITION.
 */
TK_MUST tk_err tk_store_job_update(tk_store *store, const tk_job *job,
                                   const struct tk_job_event *event, const char *record,
                                   const char *judged, tk_diag *diag);
/* result.json of an ended job; tk_free(). TK_NOTFOUND: none kept. */
TK_MUST tk_err tk_store_job_record(tk_store *store, int64_t tenant, uint64_t id, char **out,
                                   tk_diag *diag);

/* -- decisions of the gate -- */

/* How one existing head was judged. */
typedef struct tk_judged_head {
    char id[TK_HEAD_ID_SIZE];
    tk_gate_record gate; /* its `head` is NULL */
} tk_judged_head;

/* How one head, also the new one, fares in a precision other than fp32. */
typedef struct tk_judged_precision {
    char id[TK_HEAD_ID_SIZE];
    tk_precision precision;
    tk_precision_check check;
} tk_judged_precision;

typedef struct tk_judgement {
    size_t n_heads, n_checks;
    tk_judged_head *heads;
    tk_judged_precision *checks;  /* by precision; none when nothing was measured, or kept */
    double probe, adapter, joint; /* accuracy of the new head by each; NaN: not tried */
    size_t n_trials, n_remarks;
    tk_trial trials[TK_MAX_TRIALS];
    char **remarks; /* what was odd about the data */
} tk_judgement;

/* Reads {"gate": [...], "precisions": {...}, "training": {...}, "remarks": [...]} as in result.json
 * (trainer/protocol.md); all but "gate" may be missing. TK_BADDATA: something in them is, or counts
 * that cannot be. */
TK_MUST tk_err tk_judgement_parse(const char *text, tk_judgement *out, tk_diag *diag);
void tk_judgement_fini(tk_judgement *judgement);

/* Written in the transaction that ends its job, and never changed: it goes on naming a head that
 * was deleted since. */
typedef struct tk_decision {
    uint64_t job;
    uint64_t base_version, version;               /* base 0: a fresh trunk; version 0: rejected */
    char base_sha[TK_SHA_SIZE], sha[TK_SHA_SIZE]; /* of the versions' files then; "": no file */
    char outcome[16];                             /* "commit", "probe", "reject" */
    char *reason;
    int64_t decided_ms;
    tk_judgement judged;
} tk_decision;

/* TK_NOTFOUND: no such job. TK_PRECONDITION: the gate has not judged it, and why. */
TK_MUST tk_err tk_store_decision_get(tk_store *store, int64_t tenant, uint64_t job,
                                     tk_decision *out, tk_diag *diag);
void tk_decision_fini(tk_decision *decision);

/* Which version learned what, and what it cost on the way, of all tenants. Oldest first. */
typedef struct tk_lesson {
    uint64_t version, job;
    char head[TK_HEAD_ID_SIZE]; /* that the job trained; it may be gone by now */
} tk_lesson;

/* The lowest accuracy of a head over the evaluations of stage train of the job that made a version;
 * measured on labelled images. */
typedef struct tk_low {
    uint64_t version;
    char head[TK_HEAD_ID_SIZE];
    double accuracy;
} tk_low;

typedef struct tk_lessons {
    size_t n, n_lows;
    tk_lesson *items;
    tk_low *lows; /* by version, then head */
} tk_lessons;

TK_MUST tk_err tk_store_lessons(tk_store *store, tk_lessons *out, tk_diag *diag);
void tk_lessons_fini(tk_lessons *list);

/* -- events of jobs -- */

typedef struct tk_job_event {
    uint64_t sequence; /* 1, 2, ... ; may have gaps */
    tk_job_state state;
    char stage[24];
    uint64_t step, steps;
    uint32_t epoch, epochs;
    double loss_total, loss_ce, loss_kd, loss_ewc;
    double eta_seconds;
    char message[256];
    size_t n_heads;
    tk_measure *heads; /* set on a validation */
} tk_job_event;

typedef struct tk_job_events {
    tk_job_event *items;
    size_t n;
} tk_job_events;

/* Appends; the oldest of a job beyond 2000 go. */
TK_MUST tk_err tk_store_event_add(tk_store *store, uint64_t job, const tk_job_event *event,
                                  tk_diag *diag);
/* At most `max` events with a sequence above `after`, in order. */
TK_MUST tk_err tk_store_event_list(tk_store *store, uint64_t job, uint64_t after, size_t max,
                                   tk_job_events *out, tk_diag *diag);
/* Reserves `count` sequence numbers and writes the first to *first: numbers stay unique across a
 * crash. */
TK_MUST tk_err tk_store_event_reserve(tk_store *store, uint64_t job, uint64_t count,
                                      uint64_t *first, tk_diag *diag);
/* The curve of a job: each of its validations once, however often it was resumed, by stage and
 * step. They stay with the job. */
TK_MUST tk_err tk_store_curve_list(tk_store *store, uint64_t job, tk_job_events *out,
                                   tk_diag *diag);
/* An attempt begins: what it will measure again goes. `resumed`: training goes on from a
 * checkpoint, and its points stay. */
TK_MUST tk_err tk_store_curve_rewind(tk_store *store, uint64_t job, bool resumed, tk_diag *diag);

TK_MUST tk_err tk_job_event_copy(tk_job_event *to, const tk_job_event *from);
void tk_job_event_fini(tk_job_event *event);
void tk_job_events_fini(tk_job_events *list);

#endif
