/* Which version answers a request: the current one, one that the request names by number or by
 * label, or, for a share of the requests that name none, the version of one label. The shelf holds
 * the versions beside the current one.
 *
 *     pick -> in memory: at once
 *          -> else [waiting] -> the shelf's thread loads it -> done
 *
 * Labelled versions stay in memory. Of the others at most `pinned` are there, those included that
 * have left the shelf and still answer requests: the one that was picked longest ago makes room,
 * and the next load waits until its last request is answered. One version is loaded at a time,
 * tenants in turn, and after one that was asked for the thread rests for as long as it took, so
 * that pins of ever other versions take at most half a thread. What waits is bounded, too, of all
 * tenants and of one. Requests of versions in memory never wait for any of this.
 *
 * Locks: `admin` (a change of a label at a time; held across load and write) > `lock` >
 * tk_current's, which is asked under `lock`, so that what is current cannot be older than the last
 * rewrite. Snapshots are let go of with no lock held. */
#ifndef SERVER_SERVING_SHELF_H
#define SERVER_SERVING_SHELF_H

#include <stdbool.h>

#include "serving/snapshot.h"
#include "store/store.h"

typedef struct tk_shelf tk_shelf;

enum {
    TK_SHELF_PINNED_MAX = 64,
    TK_SHELF_WAITING = 256, /* requests that wait, of all tenants */
    TK_SHELF_TENANT_WAITING = 32,
    TK_SHELF_BYTES = 128 << 20, /* that they hold meanwhile; */
    TK_SHELF_TENANT_BYTES = 64 << 20,
};

typedef struct tk_shelf_opts {
    tk_current *current; /* borrowed */
    size_t pinned;       /* 1..TK_SHELF_PINNED_MAX */
    /* Loads version `number` ready to serve. TK_NOTFOUND: there is none, or `tenant` (0: anybody)
     * has no head in it. May take its time; from the shelf's thread and from tk_shelf_label(). */
    tk_err (*load)(void *ctx, uint64_t number, int64_t tenant, tk_snapshot **out, tk_diag *diag);
    void *ctx;
} tk_shelf_opts;

/* `labels` are those that there are already; their versions are loaded by and by. */
TK_MUST tk_err tk_shelf_create(tk_shelf **out, const tk_shelf_opts *opts,
                               const tk_version_labels *labels);
/* What waits ends with TK_BUSY. After the last request that holds a version was answered. NULL is
 * fine. */
void tk_shelf_destroy(tk_shelf *shelf);

/* -- picking -- */

/* What a request says about its version. */
typedef struct tk_want {
    enum tk_want_kind {
        TK_WANT_ANY,     /* the current one, or its share of a label's */
        TK_WANT_CURRENT, /* "latest" */
        TK_WANT_NUMBER,
        TK_WANT_LABEL,
    } kind;
    uint64_t number;
    char label[TK_VERSION_LABEL_SIZE];
} tk_want;
/* TK_BADARG: no number from 1, "latest", name of a label, or "". */
TK_MUST tk_err tk_want_parse(tk_want *out, const char *text);

/* A request for a version. */
typedef struct tk_pick {
    tk_want want;
    int64_t tenant; /* who asks; 0: an admin */
    size_t bytes;   /* that are held while it waits */
    int64_t deadline_ns;
    void *user;
    /* Could `other` answer the request just as `current` would? Asked before it gets the share of
     * a label. Under the shelf's lock: must only look. NULL: it never could. */
    bool (*fits)(void *user, const tk_snapshot *current, const tk_snapshot *other);
    /* Has the asker gone? As in tk_infer. */
    bool (*cancelled)(void *user);
    /* The end of a wait, once, on the shelf's thread with no lock held: a reference, or NULL and
     * why. Must not block. */
    void (*done)(void *user, tk_err err, tk_snapshot *snapshot, const tk_diag *diag);
    uint32_t retry_ms; /* out, with TK_LIMIT */
} tk_pick;

/* TK_OK with a reference in *out; or with NULL: `done` will be called, and the pick was copied.
 * TK_PRECONDITION: there is no version yet; TK_NOTFOUND: no such label; TK_LIMIT: too many wait.
 * `done` may tell besides: TK_NOTFOUND, as tk_shelf_opts.load; TK_CANCELLED; TK_DEADLINE; TK_BUSY;
 * TK_NOMEM; TK_INTERNAL: it cannot be loaded. That the tenant has a head in what is found in memory
 * is the caller's to check. Does not block. Any thread. */
TK_MUST tk_err tk_shelf_pick(tk_shelf *shelf, tk_pick *pick, tk_snapshot **out, tk_diag *diag);

/* -- labels -- */

/* Makes a change durable: the store's. */
typedef tk_err tk_label_write(void *ctx, const tk_version_label *label, tk_diag *diag);
/* Loads the version, writes, and then the label is there. A version that cannot be loaded gets
 * none: `load`'s error. May take its time. Any thread. */
TK_MUST tk_err tk_shelf_label(tk_shelf *shelf, const tk_version_label *label, tk_label_write *write,
                              void *ctx, tk_diag *diag);
/* Of `label` only the name counts. */
TK_MUST tk_err tk_shelf_unlabel(tk_shelf *shelf, const tk_version_label *label,
                                tk_label_write *write, void *ctx, tk_diag *diag);
/* By name. loaded[i]: its version is in memory. */
void tk_shelf_labels(tk_shelf *shelf, tk_version_labels *out, bool loaded[TK_VERSION_LABELS_MAX]);

/* Files of older versions are others now (a head or a tenant is gone): what was loaded from them is
 * not given out any more, when this returns. Call it once the new current version is served. */
void tk_shelf_rewritten(tk_shelf *shelf);

/* -- looking -- */

typedef struct tk_shelf_stats {
    size_t labelled; /* labels whose version is in memory */
    size_t pinned;   /* versions in memory, also those that only answer what was asked already */
    size_t waiting;
    uint64_t loads, failures; /* since start; not of tk_shelf_label() */
} tk_shelf_stats;
tk_shelf_stats tk_shelf_get_stats(tk_shelf *shelf);

enum { TK_SHELF_ALL = 1 + TK_VERSION_LABELS_MAX + TK_SHELF_PINNED_MAX };
/* References to all versions that are given out now, each once, the current one first. */
size_t tk_shelf_all(tk_shelf *shelf, tk_snapshot *out[TK_SHELF_ALL]);

#endif
