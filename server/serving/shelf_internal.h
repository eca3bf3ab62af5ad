/* The shelf's insides, for the two files that it is made of: shelf.c says which version answers and
 * keeps the labels, shelf_loader.c loads versions and ends waits. Nobody else includes this. */
#ifndef SERVER_SERVING_SHELF_INTERNAL_H
#define SERVER_SERVING_SHELF_INTERNAL_H

#include <pthread.h>

#include "serving/shelf.h"

enum { TK__SHELF_COUNTERS = 64 }; /* of shares; tenants are spread over them */

typedef struct tk__label {
    tk_version_label is;
    tk_snapshot *snapshot; /* NULL: not loaded */
    bool failed;           /* to load; tried again when somebody asks */
} tk__label;

typedef struct tk__slot {
    tk_snapshot *snapshot; /* NULL: free */
    uint64_t used;         /* picks, when it was picked last */
} tk__slot;

struct tk_shelf {
    tk_shelf_opts opts;
    pthread_mutex_t admin, lock;
    pthread_cond_t wake; /* lock; of the loader; on CLOCK_MONOTONIC */
    /* lock: */
    bool stop;
    uint64_t generation; /* of files: tk_shelf_rewritten() */
    uint64_t picks;
    size_t n_labels;
    tk__label labels[TK_VERSION_LABELS_MAX]; /* by name */
    tk__slot slots[TK_SHELF_PINNED_MAX];
    size_t pinned; /* in memory, in a slot or not any more */
    size_t n_waiting, bytes;
    tk_pick waiting[TK_SHELF_WAITING]; /* oldest first */
    int64_t turn;                      /* tenant for whom a version was loaded last */
    int64_t rest_until_ns;
    uint64_t counters[TK__SHELF_COUNTERS], loads, failures;
    /* create and destroy: */
    pthread_t loader;
};

static inline bool tk__is_number(const tk_snapshot *snapshot, uint64_t number)
{
    return snapshot && tk_snapshot_number(snapshot) == number;
}

/* -- shelf.c; the caller holds the lock -- */
tk__label *tk__shelf_find_label(tk_shelf *s, const char *name); /* NULL: there is none */
/* What tk_shelf_pick() would give, `current` being the current version (may be NULL). TK_OK with
 * NULL: it must be loaded. *number is which, once it is known. */
TK_MUST tk_err tk__shelf_look(tk_shelf *s, const tk_pick *pick, tk_snapshot *current,
                              uint64_t *number, tk_snapshot **out);
/* Takes the slot's version off the shelf, if there is one: the reference is the caller's. */
tk_snapshot *tk__shelf_empty(tk__slot *slot);

/* -- shelf_loader.c -- */
void *tk__shelf_main(void *shelf); /* the thread */

#endif
