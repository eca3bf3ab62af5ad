/* See shelf.h. */
#include "serving/shelf.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "clock.h"
#include "engine/mem.h"

enum {
    COUNTERS = 64,  /* of shares; tenants are spread over them */
    LOOK_MS = 50,   /* so often those that wait are looked at, though nothing was loaded */
    RETRY_MS = 200, /* for who finds too many waiting */
};

typedef struct label {
    tk_version_label is;
    tk_snapshot *snapshot; /* NULL: not loaded */
    bool failed;           /* to load; tried again when somebody asks */
} label;

typedef struct slot {
    tk_snapshot *snapshot; /* NULL: free */
    uint64_t used;         /* picks, when it was picked last */
} slot;

struct tk_shelf {
    tk_shelf_opts opts;
    pthread_mutex_t admin, lock;
    pthread_cond_t wake; /* lock; of the loader; on CLOCK_MONOTONIC */
    /* lock: */
    bool stop;
    uint64_t generation; /* of files: tk_shelf_rewritten() */
    uint64_t picks;
    size_t n_labels;
    label labels[TK_VERSION_LABELS_MAX]; /* by name */
    slot slots[TK_SHELF_PINNED_MAX];
    size_t pinned; /* in memory, in a slot or not any more */
    size_t n_waiting, bytes;
    tk_pick waiting[TK_SHELF_WAITING]; /* oldest first */
    int64_t turn;                      /* tenant for whom a version was loaded last */
    int64_t rest_until_ns;
    uint64_t counters[COUNTERS], loads, failures;
    /* create and destroy: */
    pthread_t loader;
};

/* -- what a request says -- */

tk_err tk_want_parse(tk_want *out, const char *text)
{
    *out = (tk_want){.kind = TK_WANT_ANY};
    const size_t len = strlen(text), digits = strspn(text, "0123456789");
    if (len == 0) return TK_OK;
    if (strcmp(text, TK_VERSION_LATEST) == 0) {
        out->kind = TK_WANT_CURRENT;
    } else if (digits == len && len <= 18) {
        out->kind = TK_WANT_NUMBER;
        out->number = strtoull(text, NULL, 10);
        if (out->number == 0) return TK_BADARG;
    } else {
        if (tk_version_label_check(text, NULL) != TK_OK) return TK_BADARG;
        out->kind = TK_WANT_LABEL;
        memcpy(out->label, text, len);
    }
    return TK_OK;
}

/* -- under the lock -- */

static label *find_label_locked(tk_shelf *s, const char *name)
{
    for (size_t i = 0; i < s->n_labels; i++)
        if (strcmp(s->labels[i].is.name, name) == 0) return &s->labels[i];
    return NULL;
}

/* A label of that version, whether or not it is loaded. */
static label *label_of_locked(tk_shelf *s, uint64_t number)
{
    for (size_t i = 0; i < s->n_labels; i++)
        if (s->labels[i].is.version == number) return &s->labels[i];
    return NULL;
}

static bool is_number(const tk_snapshot *snapshot, uint64_t number)
{
    return snapshot && tk_snapshot_number(snapshot) == number;
}

/* A reference to the version if it is in memory. `current` may be NULL. */
static tk_snapshot *find_number_locked(tk_shelf *s, uint64_t number, tk_snapshot *current)
{
    if (is_number(current, number)) return tk_snapshot_ref(current);
    for (size_t i = 0; i < s->n_labels; i++)
        if (is_number(s->labels[i].snapshot, number)) return tk_snapshot_ref(s->labels[i].snapshot);
    for (size_t i = 0; i < s->opts.pinned; i++) {
        if (!is_number(s->slots[i].snapshot, number)) continue;
        s->slots[i].used = ++s->picks;
        return tk_snapshot_ref(s->slots[i].snapshot);
    }
    return NULL;
}

/* Is it this request's turn to get the label's share? Each tenant's requests are counted by
 * themselves, as far as there are counters, and from a place of its own: of any 100 in a row it is
 * `percent`, and not all tenants' at once. */
static bool takes_share_locked(tk_shelf *s, int64_t tenant, unsigned percent)
{
    const uint64_t at = (uint64_t)tenant * UINT64_C(0x9E3779B97F4A7C15) >> 58;
    const uint64_t n = s->counters[at]++ + at * 61 % 100;
    return (n + 1) * percent / 100 != n * percent / 100;
}

/* For a request that names no version: the label's that has a share, if it is loaded, if the
 * request could be answered by it, and if it is its turn. */
static tk_snapshot *share_locked(tk_shelf *s, const tk_pick *pick, tk_snapshot *current)
{
    for (size_t i = 0; pick->fits && i < s->n_labels; i++) {
        const label *l = &s->labels[i];
        if (l->is.percent == 0) continue;
        if (!l->snapshot || is_number(current, l->is.version)) return NULL;
        if (!pick->fits(pick->user, current, l->snapshot)) return NULL;
        return takes_share_locked(s, pick->tenant, l->is.percent) ? tk_snapshot_ref(l->snapshot)
                                                                  : NULL;
    }
    return NULL;
}

/* TK_OK with NULL: it must be loaded. *number is which, once it is known. */
static tk_err look_locked(tk_shelf *s, const tk_pick *pick, tk_snapshot *current, uint64_t *number,
                          tk_snapshot **out)
{
    *out = NULL;
    *number = pick->want.number;
    if (pick->want.kind == TK_WANT_ANY || pick->want.kind == TK_WANT_CURRENT) {
        if (!current) return TK_PRECONDITION;
        if (pick->want.kind == TK_WANT_ANY) *out = share_locked(s, pick, current);
        if (!*out) *out = tk_snapshot_ref(current);
        return TK_OK;
    }
    if (pick->want.kind == TK_WANT_LABEL) {
        const label *l = find_label_locked(s, pick->want.label);
        if (!l) return TK_NOTFOUND;
        *number = l->is.version;
    }
    *out = find_number_locked(s, *number, current);
    return TK_OK;
}

/* -- those that wait -- */

static tk_err enqueue_locked(tk_shelf *s, tk_pick *pick, tk_diag *diag)
{
    size_t n = 0, bytes = 0;
    for (size_t i = 0; i < s->n_waiting; i++) {
        if (s->waiting[i].tenant != pick->tenant) continue;
        n++;
        bytes += s->waiting[i].bytes;
    }
    pick->retry_ms = RETRY_MS;
    if (n >= TK_SHELF_TENANT_WAITING || (n > 0 && bytes + pick->bytes > TK_SHELF_TENANT_BYTES))
        return tk_fail(diag, TK_LIMIT,
                       "%zu requests of yours with %zu bytes wait for versions to be loaded, the "
                       "limits are %d and %d; try again in %d ms",
                       n, bytes, (int)TK_SHELF_TENANT_WAITING, (int)TK_SHELF_TENANT_BYTES,
                       (int)RETRY_MS);
    if (s->n_waiting >= TK_SHELF_WAITING ||
        (s->n_waiting > 0 && s->bytes + pick->bytes > TK_SHELF_BYTES))
        return tk_fail(diag, TK_LIMIT,
                       "%zu requests with %zu bytes wait for versions to be loaded, the limits are "
                       "%d and %d; try again in %d ms",
                       s->n_waiting, s->bytes, (int)TK_SHELF_WAITING, (int)TK_SHELF_BYTES,
                       (int)RETRY_MS);
    pick->retry_ms = 0;
    s->waiting[s->n_waiting++] = *pick;
    s->bytes += pick->bytes;
    pthread_cond_signal(&s->wake);
    return TK_OK;
}

static tk_pick take_waiting_locked(tk_shelf *s, size_t i)
{
    const tk_pick pick = s->waiting[i];
    s->n_waiting--;
    memmove(s->waiting + i, s->waiting + i + 1, (s->n_waiting - i) * sizeof pick);
    s->bytes -= pick.bytes;
    return pick;
}

tk_err tk_shelf_pick(tk_shelf *s, tk_pick *pick, tk_snapshot **out, tk_diag *diag)
{
    uint64_t number;
    pick->retry_ms = 0;
    tk_snapshot *current = tk_current_get(s->opts.current);
    pthread_mutex_lock(&s->lock);
    tk_err err = look_locked(s, pick, current, &number, out);
    if (err == TK_OK && !*out)
        err = s->stop ? tk_fail(diag, TK_BUSY, "the server is shutting down")
                      : enqueue_locked(s, pick, diag);
    pthread_mutex_unlock(&s->lock);
    tk_snapshot_unref(current);
    return err;
}

/* Calls `done` with the lock released; takes the snapshot. */
static void finish_locked(tk_shelf *s, const tk_pick *pick, tk_err err, tk_snapshot *snapshot,
                          const tk_diag *diag)
{
    pthread_mutex_unlock(&s->lock);
    pick->done(pick->user, err, snapshot, diag);
    tk_snapshot_unref(snapshot);
    pthread_mutex_lock(&s->lock);
}

/* Why nobody waits for the answer to this one any more. */
static tk_err check_alive(const tk_pick *pick, tk_diag *diag)
{
    if (pick->cancelled && pick->cancelled(pick->user))
        return tk_fail(diag, TK_CANCELLED, "the request was cancelled");
    if (tk_now_ns() >= pick->deadline_ns)
        return tk_fail(diag, TK_DEADLINE, "the deadline passed while the version was loaded");
    return TK_OK;
}

/* Ends one wait that has come to its end; false: there is none. */
static bool finish_one_locked(tk_shelf *s, tk_snapshot *current)
{
    for (size_t i = 0; i < s->n_waiting; i++) {
        uint64_t number;
        tk_snapshot *found = NULL;
        tk_diag diag = {{0}};
        tk_err err = check_alive(&s->waiting[i], &diag);
        if (err == TK_OK) err = look_locked(s, &s->waiting[i], current, &number, &found);
        if (err == TK_OK && !found) continue;
        const tk_pick pick = take_waiting_locked(s, i);
        finish_locked(s, &pick, err, found, &diag);
        return true;
    }
    return false;
}

/* Ends all waits of the tenant for the version. */
static void fail_waiting_locked(tk_shelf *s, uint64_t number, int64_t tenant, tk_err err)
{
    tk_diag diag = {{0}};
    if (err != TK_NOTFOUND && err != TK_NOMEM)
        err =
            tk_fail(&diag, TK_INTERNAL, "version %llu cannot be loaded; the server's log says why",
                    (unsigned long long)number);
    for (size_t i = 0; i < s->n_waiting;) {
        const tk_pick *w = &s->waiting[i];
        const label *l = w->want.kind == TK_WANT_LABEL ? find_label_locked(s, w->want.label) : NULL;
        if (w->tenant != tenant || number != (l ? l->is.version : w->want.number)) {
            i++;
            continue;
        }
        const tk_pick pick = take_waiting_locked(s, i);
        finish_locked(s, &pick, err, NULL, &diag);
        i = 0; /* others may have come and gone */
    }
}

/* -- loading -- */

/* What is to be loaded next. */
typedef struct task {
    uint64_t number;
    int64_t tenant;
    bool asked;    /* somebody waits for it; else a label is to be ready */
    bool labelled; /* it has a label: it needs no slot */
} task;

/* The oldest request of the tenant whose turn it is: the next id above the last one. */
static const tk_pick *whose_turn_locked(const tk_shelf *s)
{
    const tk_pick *next = NULL, *least = NULL;
    for (size_t i = 0; i < s->n_waiting; i++) {
        const tk_pick *w = &s->waiting[i];
        if (!least || w->tenant < least->tenant) least = w;
        if (w->tenant > s->turn && (!next || w->tenant < next->tenant)) next = w;
    }
    return next ? next : least;
}

static bool next_task_locked(tk_shelf *s, task *out)
{
    for (size_t i = 0; i < s->n_labels; i++) {
        const label *l = &s->labels[i];
        if (l->snapshot || l->failed) continue;
        *out = (task){.number = l->is.version, .labelled = true};
        return true;
    }
    const tk_pick *w = whose_turn_locked(s);
    if (!w) return false;
    const label *l = w->want.kind == TK_WANT_LABEL ? find_label_locked(s, w->want.label) : NULL;
    *out = (task){.number = l ? l->is.version : w->want.number, .tenant = w->tenant, .asked = true};
    out->labelled = label_of_locked(s, out->number) != NULL;
    return true;
}

/* A pinned version has left memory. */
static void pinned_ended(void *ctx)
{
    tk_shelf *s = ctx;
    pthread_mutex_lock(&s->lock);
    s->pinned--;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
}

/* Takes the slot's version off the shelf, if there is one. */
static tk_snapshot *empty_slot_locked(slot *at)
{
    tk_snapshot *was = at->snapshot;
    *at = (slot){0};
    return was;
}

/* Takes the version that was picked longest ago off the shelf; NULL: one that was taken off is
 * still answering, and makes room soon. */
static tk_snapshot *retire_locked(tk_shelf *s)
{
    slot *oldest = NULL;
    size_t n = 0;
    for (size_t i = 0; i < s->opts.pinned; i++) {
        slot *at = &s->slots[i];
        n += at->snapshot != NULL;
        if (at->snapshot && (!oldest || at->used < oldest->used)) oldest = at;
    }
    return n == s->pinned ? empty_slot_locked(oldest) : NULL;
}

static void wait_locked(tk_shelf *s, int64_t until_ns)
{
    const struct timespec t = {until_ns / 1000000000, until_ns % 1000000000};
    pthread_cond_timedwait(&s->wake, &s->lock, &t);
}

/* Is there room for one more pinned version, and has the loader rested? If not, lets one go or
 * waits for a while. */
static bool room_locked(tk_shelf *s)
{
    const int64_t look = tk_now_ns() + (int64_t)LOOK_MS * 1000000;
    if (tk_now_ns() < s->rest_until_ns) {
        wait_locked(s, s->rest_until_ns < look ? s->rest_until_ns : look);
        return false;
    }
    if (s->pinned < s->opts.pinned) return true;
    tk_snapshot *old = retire_locked(s);
    if (!old) {
        wait_locked(s, look);
        return false;
    }
    pthread_mutex_unlock(&s->lock);
    tk_snapshot_unref(old);
    pthread_mutex_lock(&s->lock);
    return false;
}

/* Puts the version where it belongs; takes the reference. */
static void put_locked(tk_shelf *s, const task *t, tk_snapshot *snapshot)
{
    if (t->labelled) {
        for (size_t i = 0; i < s->n_labels; i++) {
            label *l = &s->labels[i];
            if (l->is.version != t->number || l->snapshot) continue;
            l->snapshot = tk_snapshot_ref(snapshot);
            l->failed = false;
        }
        pthread_mutex_unlock(&s->lock);
        tk_snapshot_unref(snapshot);
        pthread_mutex_lock(&s->lock);
        return;
    }
    tk_snapshot_on_end(snapshot, pinned_ended, s);
    s->pinned++;
    for (size_t i = 0; i < s->opts.pinned; i++) {
        if (s->slots[i].snapshot) continue;
        s->slots[i] = (slot){.snapshot = snapshot, .used = ++s->picks};
        return;
    }
    assert(false); /* no more slots are taken than versions are in memory */
}

static void failed_locked(tk_shelf *s, const task *t, tk_err err)
{
    s->failures += err != TK_NOTFOUND;
    for (size_t i = 0; i < s->n_labels; i++)
        if (s->labels[i].is.version == t->number && !s->labels[i].snapshot)
            s->labels[i].failed = true;
    if (t->asked) fail_waiting_locked(s, t->number, t->tenant, err);
}

/* One load, with the lock released meanwhile. */
static void load_locked(tk_shelf *s, const task *t)
{
    const uint64_t generation = s->generation;
    tk_snapshot *snapshot = NULL;
    tk_diag diag = {{0}};
    if (t->asked) s->turn = t->tenant;
    pthread_mutex_unlock(&s->lock);
    const int64_t begun = tk_now_ns();
    const tk_err err = s->opts.load(s->opts.ctx, t->number, t->tenant, &snapshot, &diag);
    const int64_t ended = tk_now_ns();
    pthread_mutex_lock(&s->lock);
    if (!t->labelled) s->rest_until_ns = ended + (ended - begun);
    s->loads += err == TK_OK;
    if (generation != s->generation) { /* from a file that may be another by now */
        pthread_mutex_unlock(&s->lock);
        tk_snapshot_unref(snapshot);
        pthread_mutex_lock(&s->lock);
    } else if (err == TK_OK) {
        put_locked(s, t, snapshot);
    } else {
        failed_locked(s, t, err);
    }
}

/* Labels of the current version need no load. */
static void adopt_locked(tk_shelf *s, tk_snapshot *current)
{
    for (size_t i = 0; i < s->n_labels; i++) {
        label *l = &s->labels[i];
        if (l->snapshot || !is_number(current, l->is.version)) continue;
        l->snapshot = tk_snapshot_ref(current);
        l->failed = false;
    }
}

static void step_locked(tk_shelf *s)
{
    pthread_mutex_unlock(&s->lock);
    tk_snapshot *current = tk_current_get(s->opts.current);
    pthread_mutex_lock(&s->lock);
    adopt_locked(s, current);
    const bool finished = finish_one_locked(s, current);
    pthread_mutex_unlock(&s->lock);
    tk_snapshot_unref(current);
    pthread_mutex_lock(&s->lock);
    task t;
    if (finished || s->stop) return;
    if (!next_task_locked(s, &t))
        pthread_cond_wait(&s->wake, &s->lock);
    else if (t.labelled || room_locked(s))
        load_locked(s, &t);
}

static void *loader_main(void *arg)
{
    tk_shelf *s = arg;
    const tk_diag diag = {"the server is shutting down"};
    pthread_mutex_lock(&s->lock);
    while (!s->stop)
        step_locked(s);
    while (s->n_waiting > 0) {
        const tk_pick pick = take_waiting_locked(s, 0);
        finish_locked(s, &pick, TK_BUSY, NULL, &diag);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

/* -- labels -- */

/* Reads the name's place: where it is, or where it would be. */
static size_t place_locked(const tk_shelf *s, const char *name)
{
    size_t at = 0;
    while (at < s->n_labels && strcmp(s->labels[at].is.name, name) < 0)
        at++;
    return at;
}

/* Sets the label; gives what it held before. Takes `snapshot`, which may be NULL. */
static tk_snapshot *set_locked(tk_shelf *s, const tk_version_label *is, tk_snapshot *snapshot)
{
    const size_t at = place_locked(s, is->name);
    label *l = &s->labels[at];
    tk_snapshot *was = NULL;
    if (find_label_locked(s, is->name)) {
        was = l->snapshot;
    } else {
        assert(s->n_labels < TK_VERSION_LABELS_MAX);
        memmove(l + 1, l, (s->n_labels++ - at) * sizeof *l);
    }
    *l = (label){.is = *is, .snapshot = snapshot};
    return was;
}

static tk_snapshot *loaded_already(tk_shelf *s, uint64_t number, uint64_t *generation)
{
    tk_snapshot *current = tk_current_get(s->opts.current), *found = NULL;
    pthread_mutex_lock(&s->lock);
    *generation = s->generation;
    if (is_number(current, number)) found = tk_snapshot_ref(current);
    for (size_t i = 0; !found && i < s->n_labels; i++)
        if (is_number(s->labels[i].snapshot, number))
            found = tk_snapshot_ref(s->labels[i].snapshot);
    pthread_mutex_unlock(&s->lock);
    tk_snapshot_unref(current);
    return found;
}

/* The label is written: now it holds. Takes `snapshot`. */
static void publish(tk_shelf *s, const tk_version_label *is, tk_snapshot *snapshot,
                    uint64_t generation)
{
    tk_snapshot *pinned = NULL, *stale = NULL;
    pthread_mutex_lock(&s->lock);
    if (generation != s->generation) { /* the loader loads it anew */
        stale = snapshot;
        snapshot = NULL;
    }
    tk_snapshot *was = set_locked(s, is, snapshot);
    for (size_t i = 0; i < s->opts.pinned; i++) /* it is in memory once */
        if (is_number(s->slots[i].snapshot, is->version)) pinned = empty_slot_locked(&s->slots[i]);
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
    tk_snapshot_unref(was);
    tk_snapshot_unref(pinned);
    tk_snapshot_unref(stale);
}

tk_err tk_shelf_label(tk_shelf *s, const tk_version_label *is, tk_label_write *write, void *ctx,
                      tk_diag *diag)
{
    uint64_t generation;
    pthread_mutex_lock(&s->admin);
    tk_snapshot *snapshot = loaded_already(s, is->version, &generation);
    tk_err err = snapshot ? TK_OK : s->opts.load(s->opts.ctx, is->version, TK_ALL, &snapshot, diag);
    if (err == TK_OK) err = write(ctx, is, diag);
    if (err == TK_OK)
        publish(s, is, snapshot, generation);
    else
        tk_snapshot_unref(snapshot);
    pthread_mutex_unlock(&s->admin);
    return err;
}

tk_err tk_shelf_unlabel(tk_shelf *s, const tk_version_label *is, tk_label_write *write, void *ctx,
                        tk_diag *diag)
{
    tk_snapshot *was = NULL;
    pthread_mutex_lock(&s->admin);
    const tk_err err = write(ctx, is, diag);
    pthread_mutex_lock(&s->lock);
    label *l = err == TK_OK ? find_label_locked(s, is->name) : NULL;
    if (l) {
        was = l->snapshot;
        memmove(l, l + 1, (size_t)(s->labels + --s->n_labels - l) * sizeof *l);
    }
    pthread_cond_signal(&s->wake); /* who waits for it is told that it is gone */
    pthread_mutex_unlock(&s->lock);
    pthread_mutex_unlock(&s->admin);
    tk_snapshot_unref(was);
    return err;
}

void tk_shelf_labels(tk_shelf *s, tk_version_labels *out, bool loaded[TK_VERSION_LABELS_MAX])
{
    *out = (tk_version_labels){0};
    pthread_mutex_lock(&s->lock);
    for (size_t i = 0; i < s->n_labels; i++) {
        loaded[i] = s->labels[i].snapshot != NULL;
        out->items[out->n++] = s->labels[i].is;
    }
    pthread_mutex_unlock(&s->lock);
}

void tk_shelf_rewritten(tk_shelf *s)
{
    tk_snapshot *old[TK_SHELF_ALL];
    size_t n = 0;
    tk_snapshot *current = tk_current_get(s->opts.current);
    pthread_mutex_lock(&s->lock);
    s->generation++;
    for (size_t i = 0; i < s->n_labels; i++) {
        label *l = &s->labels[i];
        if (l->snapshot && l->snapshot != current) old[n++] = l->snapshot;
        if (l->snapshot != current) l->snapshot = NULL;
        l->failed = false;
    }
    for (size_t i = 0; i < s->opts.pinned; i++) {
        tk_snapshot *was = empty_slot_locked(&s->slots[i]);
        if (was) old[n++] = was;
    }
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
    tk_snapshot_unref(current);
    for (size_t i = 0; i < n; i++)
        tk_snapshot_unref(old[i]);
}

/* -- looking -- */

tk_shelf_stats tk_shelf_get_stats(tk_shelf *s)
{
    pthread_mutex_lock(&s->lock);
    tk_shelf_stats stats = {
        .pinned = s->pinned, .waiting = s->n_waiting, .loads = s->loads, .failures = s->failures};
    for (size_t i = 0; i < s->n_labels; i++)
        stats.labelled += s->labels[i].snapshot != NULL;
    pthread_mutex_unlock(&s->lock);
    return stats;
}

static size_t add_once(tk_snapshot *out[TK_SHELF_ALL], size_t n, tk_snapshot *snapshot)
{
    for (size_t i = 0; i < n; i++)
        if (out[i] == snapshot) return n;
    if (snapshot) out[n++] = tk_snapshot_ref(snapshot);
    return n;
}

size_t tk_shelf_all(tk_shelf *s, tk_snapshot *out[TK_SHELF_ALL])
{
    tk_snapshot *current = tk_current_get(s->opts.current);
    pthread_mutex_lock(&s->lock);
    size_t n = add_once(out, 0, current);
    for (size_t i = 0; i < s->n_labels; i++)
        n = add_once(out, n, s->labels[i].snapshot);
    for (size_t i = 0; i < s->opts.pinned; i++)
        n = add_once(out, n, s->slots[i].snapshot);
    pthread_mutex_unlock(&s->lock);
    tk_snapshot_unref(current);
    return n;
}

/* -- life -- */

tk_err tk_shelf_create(tk_shelf **out, const tk_shelf_opts *opts, const tk_version_labels *labels)
{
    *out = NULL;
    assert(opts->pinned >= 1 && opts->pinned <= TK_SHELF_PINNED_MAX);
    tk_shelf *s = tk_calloc(1, sizeof *s);
    if (!s) return TK_NOMEM;
    s->opts = *opts;
    for (size_t i = 0; i < labels->n; i++)
        s->labels[s->n_labels++].is = labels->items[i];
    pthread_mutex_init(&s->admin, NULL);
    pthread_mutex_init(&s->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&s->wake, &attr);
    pthread_condattr_destroy(&attr);
    if (pthread_create(&s->loader, NULL, loader_main, s) != 0) {
        pthread_cond_destroy(&s->wake);
        pthread_mutex_destroy(&s->lock);
        pthread_mutex_destroy(&s->admin);
        tk_free(s);
        return TK_NOMEM;
    }
    *out = s;
    return TK_OK;
}

void tk_shelf_destroy(tk_shelf *s)
{
    if (!s) return;
    pthread_mutex_lock(&s->lock);
    s->stop = true;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->loader, NULL);
    for (size_t i = 0; i < s->n_labels; i++)
        tk_snapshot_unref(s->labels[i].snapshot);
    for (size_t i = 0; i < s->opts.pinned; i++)
        tk_snapshot_unref(s->slots[i].snapshot);
    assert(s->pinned == 0);
    pthread_cond_destroy(&s->wake);
    pthread_mutex_destroy(&s->lock);
    pthread_mutex_destroy(&s->admin);
    tk_free(s);
}
