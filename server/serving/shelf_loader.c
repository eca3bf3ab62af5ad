/* The shelf's thread (shelf.h): loads versions for labels and for those who wait, tenants in turn,
 * makes room for them, and ends the waits. */
#include <assert.h>
#include <string.h>
#include <time.h>

#include "clock.h"
#include "process.h"
#include "serving/shelf_internal.h"

enum { LOOK_MS = 50 }; /* so often those that wait are looked at, though nothing was loaded */

/* -- those that wait -- */

static tk_pick take_waiting_locked(tk_shelf *s, size_t i)
{
    const tk_pick pick = s->waiting[i];
    s->n_waiting--;
    memmove(s->waiting + i, s->waiting + i + 1, (s->n_waiting - i) * sizeof pick);
    s->bytes -= pick.bytes;
    return pick;
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
        if (err == TK_OK) err = tk__shelf_look(s, &s->waiting[i], current, &number, &found);
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
        const tk__label *l =
            w->want.kind == TK_WANT_LABEL ? tk__shelf_find_label(s, w->want.label) : NULL;
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

/* A label of that version, whether or not it is loaded. */
static tk__label *label_of_locked(tk_shelf *s, uint64_t number)
{
    for (size_t i = 0; i < s->n_labels; i++)
        if (s->labels[i].is.version == number) return &s->labels[i];
    return NULL;
}

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
        const tk__label *l = &s->labels[i];
        if (l->snapshot || l->failed) continue;
        *out = (task){.number = l->is.version, .labelled = true};
        return true;
    }
    const tk_pick *w = whose_turn_locked(s);
    if (!w) return false;
    const tk__label *l =
        w->want.kind == TK_WANT_LABEL ? tk__shelf_find_label(s, w->want.label) : NULL;
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

/* Takes the version that was picked longest ago off the shelf; NULL: one that was taken off is
 * still answering, and makes room soon. */
static tk_snapshot *retire_locked(tk_shelf *s)
{
    tk__slot *oldest = NULL;
    size_t n = 0;
    for (size_t i = 0; i < s->opts.pinned; i++) {
        tk__slot *at = &s->slots[i];
        n += at->snapshot != NULL;
        if (at->snapshot && (!oldest || at->used < oldest->used)) oldest = at;
    }
    return n == s->pinned ? tk__shelf_empty(oldest) : NULL;
}

/* Until something happened, until then, or until it is time to look at those who wait. */
static void wait_locked(tk_shelf *s, int64_t until_ns)
{
    const int64_t look = tk_now_ns() + (int64_t)LOOK_MS * 1000000;
    if (until_ns > look) until_ns = look;
    const struct timespec t = {until_ns / 1000000000, until_ns % 1000000000};
    pthread_cond_timedwait(&s->wake, &s->lock, &t);
}

/* Has the loader rested from the last version that was asked for? If not, waits for a while. */
static bool rested_locked(tk_shelf *s)
{
    if (tk_now_ns() >= s->rest_until_ns) return true;
    wait_locked(s, s->rest_until_ns);
    return false;
}

/* Is there room for one more pinned version? If not, lets one go or waits for a while. */
static bool room_locked(tk_shelf *s)
{
    if (s->pinned < s->opts.pinned) return true;
    tk_snapshot *old = retire_locked(s);
    if (!old) {
        wait_locked(s, INT64_MAX);
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
            tk__label *l = &s->labels[i];
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
        s->slots[i] = (tk__slot){.snapshot = snapshot, .used = ++s->picks};
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
    if (t->asked) s->rest_until_ns = ended + (ended - begun);
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
        tk__label *l = &s->labels[i];
        if (l->snapshot || !tk__is_number(current, l->is.version)) continue;
        l->snapshot = tk_snapshot_ref(current);
        l->failed = false;
    }
}

static void step_locked(tk_shelf *s)
{
    tk_snapshot *current = tk_current_get(s->opts.current);
    adopt_locked(s, current);
    const bool finished = finish_one_locked(s, current);
    pthread_mutex_unlock(&s->lock);
    tk_snapshot_unref(current);
    pthread_mutex_lock(&s->lock);
    task t;
    if (finished || s->stop) return;
    if (!next_task_locked(s, &t))
        pthread_cond_wait(&s->wake, &s->lock);
    else if (!t.asked || (rested_locked(s) && (t.labelled || room_locked(s))))
        load_locked(s, &t);
}

void *tk__shelf_main(void *arg)
{
    tk_shelf *s = arg;
    tk_process_thread("versions", TK_THREAD_GIVES_WAY);
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
