/* See shelf.h: which version answers, the labels, and the life of it all. */
#include "serving/shelf.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/mem.h"
#include "serving/shelf_internal.h"

enum { RETRY_MS = 200 }; /* for who finds too many waiting */

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

tk__label *tk__shelf_find_label(tk_shelf *s, const char *name)
{
    for (size_t i = 0; i < s->n_labels; i++)
        if (strcmp(s->labels[i].is.name, name) == 0) return &s->labels[i];
    return NULL;
}

/* A reference to the version if it is in memory. `current` may be NULL. */
static tk_snapshot *find_number_locked(tk_shelf *s, uint64_t number, tk_snapshot *current)
{
    if (tk__is_number(current, number)) return tk_snapshot_ref(current);
    for (size_t i = 0; i < s->n_labels; i++)
        if (tk__is_number(s->labels[i].snapshot, number))
            return tk_snapshot_ref(s->labels[i].snapshot);
    for (size_t i = 0; i < s->opts.pinned; i++) {
        if (!tk__is_number(s->slots[i].snapshot, number)) continue;
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
        const tk__label *l = &s->labels[i];
        if (l->is.percent == 0) continue;
        if (!l->snapshot || tk__is_number(current, l->is.version)) return NULL;
        if (!pick->fits(pick->user, current, l->snapshot)) return NULL;
        return takes_share_locked(s, pick->tenant, l->is.percent) ? tk_snapshot_ref(l->snapshot)
                                                                  : NULL;
    }
    return NULL;
}

tk_err tk__shelf_look(tk_shelf *s, const tk_pick *pick, tk_snapshot *current, uint64_t *number,
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
        const tk__label *l = tk__shelf_find_label(s, pick->want.label);
        if (!l) return TK_NOTFOUND;
        *number = l->is.version;
    }
    *out = find_number_locked(s, *number, current);
    return TK_OK;
}

tk_snapshot *tk__shelf_empty(tk__slot *at)
{
    tk_snapshot *was = at->snapshot;
    *at = (tk__slot){0};
    return was;
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

tk_err tk_shelf_pick(tk_shelf *s, tk_pick *pick, tk_snapshot **out, tk_diag *diag)
{
    uint64_t number;
    pick->retry_ms = 0;
    pthread_mutex_lock(&s->lock);
    tk_snapshot *current = tk_current_get(s->opts.current);
    tk_err err = tk__shelf_look(s, pick, current, &number, out);
    if (err == TK_OK && !*out)
        err = s->stop ? tk_fail(diag, TK_BUSY, "the server is shutting down")
                      : enqueue_locked(s, pick, diag);
    pthread_mutex_unlock(&s->lock);
    tk_snapshot_unref(current);
    return err;
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
    tk__label *l = &s->labels[at];
    tk_snapshot *was = NULL;
    if (tk__shelf_find_label(s, is->name)) {
        was = l->snapshot;
    } else {
        assert(s->n_labels < TK_VERSION_LABELS_MAX);
        memmove(l + 1, l, (s->n_labels++ - at) * sizeof *l);
    }
    *l = (tk__label){.is = *is, .snapshot = snapshot};
    return was;
}

static tk_snapshot *loaded_already(tk_shelf *s, uint64_t number, uint64_t *generation)
{
    tk_snapshot *found = NULL;
    pthread_mutex_lock(&s->lock);
    tk_snapshot *current = tk_current_get(s->opts.current);
    *generation = s->generation;
    if (tk__is_number(current, number)) found = tk_snapshot_ref(current);
    for (size_t i = 0; !found && i < s->n_labels; i++)
        if (tk__is_number(s->labels[i].snapshot, number))
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
        if (tk__is_number(s->slots[i].snapshot, is->version))
            pinned = tk__shelf_empty(&s->slots[i]);
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
    tk__label *l = err == TK_OK ? tk__shelf_find_label(s, is->name) : NULL;
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
    pthread_mutex_lock(&s->lock);
    tk_snapshot *current = tk_current_get(s->opts.current);
    s->generation++;
    for (size_t i = 0; i < s->n_labels; i++) {
        tk__label *l = &s->labels[i];
        if (l->snapshot && l->snapshot != current) old[n++] = l->snapshot;
        if (l->snapshot != current) l->snapshot = NULL;
        l->failed = false;
    }
    for (size_t i = 0; i < s->opts.pinned; i++) {
        tk_snapshot *was = tk__shelf_empty(&s->slots[i]);
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
    pthread_mutex_lock(&s->lock);
    tk_snapshot *current = tk_current_get(s->opts.current);
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
    if (pthread_create(&s->loader, NULL, tk__shelf_main, s) != 0) {
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
