/* What the files of the store share. */
#ifndef SERVER_STORE_STORE_INTERNAL_H
#define SERVER_STORE_STORE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "store/db.h"
#include "store/store.h"

enum { TK_HASH_BYTES = 32 };

/* A live token, as authentication needs it. */
typedef struct tk_token_entry {
    unsigned char hash[TK_HASH_BYTES];
    tk_principal who; /* who.token_id[0] == 0: a free slot */
} tk_token_entry;

/* Live tokens by hash: open addressing, never more than half full. */
typedef struct tk_token_index {
    tk_token_entry *slots;
    size_t cap, n;                /* cap is a power of two */
    const tk_principal **by_name; /* those of tenants, into `slots` */
    size_t n_names;
} tk_token_index;

/* An object that no collection may take. */
typedef struct tk_pin {
    char sha[TK_SHA_SIZE];
    unsigned count;
} tk_pin;

struct tk_store {
    char *dir;
    int lock_fd;
    tk_store_opts opts;
    atomic_ulong serial; /* of names in tmp/ */

    /* Lock order: `lock`, then `tokens_lock`. */
    pthread_mutex_t lock;
    tk_db *db;               /* lock */
    uint64_t limit_changes;  /* lock */
    tk_pin *pins;            /* lock */
    size_t n_pins, cap_pins; /* lock */

    pthread_rwlock_t tokens_lock;
    tk_token_index tokens; /* tokens_lock */
};

/* `dir`/`a`, tk_free(); NULL: no memory. */
char *tk__store_path(const tk_store *store, const char *a);
int64_t tk__now_ms(void);
/* Room for one more element: doubles `*items` (of `size` bytes each) when it is full. False: no
 * memory. */
bool tk__list_grow(void **items, size_t n, size_t *cap, size_t size);

/* -- store.c -- */

/* Takes the lock and begins a transaction; on failure the lock is not held. */
TK_MUST tk_err tk__store_begin(tk_store *store, tk_diag *diag);
/* Commits when `err` is TK_OK, else rolls back; lets the lock go. Returns what holds. */
TK_MUST tk_err tk__store_end(tk_store *store, tk_err err, tk_diag *diag);
/* Bytes that a tenant's data sets and validation packs take. */
TK_MUST tk_err tk__store_tenant_bytes_locked(tk_store *store, int64_t tenant, uint64_t *out,
                                             tk_diag *diag);
/* The gate's decisions cannot be changed or deleted but between these two, within the transaction
 * of a tenant that leaves. */
TK_MUST tk_err tk__decisions_guard_locked(tk_store *store, bool on, tk_diag *diag);
/* Number of the current version, 0: none. */
TK_MUST tk_err tk__store_current_locked(tk_store *store, uint64_t *out, tk_diag *diag);

/* -- objects.c -- */

/* Makes objects/ and its 256 folders. */
TK_MUST tk_err tk__objects_init(tk_store *store, tk_diag *diag);
/* Removes every file in objects/ that no record names and nothing pins. */
TK_MUST tk_err tk__objects_sweep_locked(tk_store *store, tk_diag *diag);
/* Unlinks an object if nothing names or pins it. */
void tk__object_collect_locked(tk_store *store, const char *sha);
/* Does it lie in objects/? */
bool tk__object_exists(const tk_store *store, const char *sha);
void tk__objects_fini(tk_store *store);

/* -- store_events.c -- */

TK_MUST tk_err tk__event_add_locked(tk_store *store, uint64_t job, const tk_job_event *event,
                                    tk_diag *diag);
/* Adds a validation to the job's curve. One of stage train takes the place of those from its step
 * on: training went back. */
TK_MUST tk_err tk__curve_add_locked(tk_store *store, uint64_t job, const tk_job_event *event,
                                    tk_diag *diag);

/* -- store_decisions.c -- */

typedef struct tk__decision_row {
    uint64_t job, base, version;           /* version 0: rejected */
    const char *sha;                       /* of the candidate; "": none was written */
    const char *outcome, *reason, *judged; /* judged: for tk_judgement_parse() */
    int64_t decided_ms;
} tk__decision_row;
/* Writes the decision, and the lows of the job's curve. With the job's end, in its transaction. */
TK_MUST tk_err tk__decision_add_locked(tk_store *store, const tk__decision_row *row, tk_diag *diag);

/* -- store_tenants.c -- */

/* Reads the live tokens; makes the first admin token when there has never been one. At start. */
TK_MUST tk_err tk__tokens_open(tk_store *store, tk_diag *diag);
void tk__tokens_fini(tk_store *store);
/* tk__store_end() for a transaction that changed tokens or tenants. */
TK_MUST tk_err tk__store_end_with_tokens(tk_store *store, tk_err err, tk_diag *diag);

/* -- store_commit.c -- */

/* Within a transaction: a new current version; other files for older ones. */
TK_MUST tk_err tk__version_commit_locked(tk_store *store, const tk_commit *commit, tk_diag *diag);
TK_MUST tk_err tk__versions_replace_locked(tk_store *store, const tk_scrub *scrubbed, size_t n,
                                           tk_diag *diag);

/* -- store_leave.c -- */

/* tk_store_purge(), when one is due. */
TK_MUST tk_err tk__store_purge_locked(tk_store *store, tk_diag *diag);

#endif
