/* Events of jobs: rows of JSON, numbered, bounded. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/mem.h"
#include "store/codec.h"
#include "store/store_internal.h"

enum { EVENTS_KEPT = 2000, TRIM_EVERY = 64 };

tk_err tk__event_add_locked(tk_store *store, uint64_t job, const tk_job_event *event, tk_diag *diag)
{
    char *body = tk__encode_event(event);
    if (!body)
        return tk_fail(diag, TK_BADDATA, "job %llu: an event is not UTF-8",
                       (unsigned long long)job);
    tk_err err =
        tk__db_run(store->db, diag, "INSERT INTO events(job, sequence, body) VALUES(?, ?, ?)",
                   "iit", (int64_t)job, (int64_t)event->sequence, body);
    free(body);
    if (err == TK_OK && event->sequence % TRIM_EVERY == 0)
        err = tk__db_run(
            store->db, diag,
            "DELETE FROM events WHERE job = ?1 AND sequence <= (SELECT sequence FROM events"
            " WHERE job = ?1 ORDER BY sequence DESC LIMIT 1 OFFSET ?2)",
            "ii", (int64_t)job, (int64_t)EVENTS_KEPT);
    return err;
}

tk_err tk_store_event_add(tk_store *store, uint64_t job, const tk_job_event *event, tk_diag *diag)
{
    tk_err err = tk__store_begin(store, diag);
    if (err != TK_OK) return err;
    err = tk__event_add_locked(store, job, event, diag);
    return tk__store_end(store, err, diag);
}

/* Bodies of a query that takes a job, a sequence number and a limit. */
static tk_err read_events(tk_store *store, const char *sql, uint64_t job, int64_t after,
                          int64_t max, tk_job_events *out, tk_diag *diag)
{
    *out = (tk_job_events){0};
    tk_rows rows;
    size_t cap = 0;
    (void)pthread_mutex_lock(&store->lock);
    tk_err err = tk__rows_open(&rows, store->db, diag, sql, "iii", (int64_t)job, after, max);
    while (err == TK_OK && tk__rows_next(&rows)) {
        void *items = out->items;
        if (!tk__list_grow(&items, out->n, &cap, sizeof *out->items)) {
            err = tk_fail(diag, TK_NOMEM, "store: out of memory");
            break;
        }
        out->items = items;
        err = tk__decode_event(tk__col_text(&rows, 0), &out->items[out->n], diag);
        if (err == TK_OK) out->n++;
    }
    err = tk__rows_close(&rows, err, diag);
    (void)pthread_mutex_unlock(&store->lock);
    if (err != TK_OK) tk_job_events_fini(out);
    return err;
}

tk_err tk_store_event_list(tk_store *store, uint64_t job, uint64_t after, size_t max,
                           tk_job_events *out, tk_diag *diag)
{
    return read_events(
        store, "SELECT body FROM events WHERE job = ? AND sequence > ? ORDER BY sequence LIMIT ?",
        job, after > INT64_MAX ? INT64_MAX : (int64_t)after, (int64_t)max, out, diag);
}

/* -- curves -- */

tk_err tk__curve_add_locked(tk_store *store, uint64_t job, const tk_job_event *event, tk_diag *diag)
{
    tk_err err = TK_OK;
    if (strcmp(event->stage, "train") == 0)
        err = tk__db_run(store->db, diag,
                         "DELETE FROM curves WHERE job = ? AND stage = 'train' AND step >= ?", "ii",
                         (int64_t)job, (int64_t)event->step);
    if (err != TK_OK) return err;
    char *body = tk__encode_event(event);
    if (!body)
        return tk_fail(diag, TK_BADDATA, "job %llu: a validation is not UTF-8",
                       (unsigned long long)job);
    err = tk__db_run(store->db, diag,
                     "INSERT INTO curves(job, sequence, stage, step, body) VALUES(?, ?, ?, ?, ?)",
                     "iitit", (int64_t)job, (int64_t)event->sequence, event->stage,
                     (int64_t)event->step, body);
    free(body);
    return err;
}

tk_err tk_store_curve_rewind(tk_store *store, uint64_t job, bool resumed, tk_diag *diag)
{
    (void)pthread_mutex_lock(&store->lock);
    const tk_err err = tk__db_run(
        store->db, diag, "DELETE FROM curves WHERE job = ? AND (stage <> 'train' OR NOT ?)", "ii",
        (int64_t)job, (int64_t)resumed);
    (void)pthread_mutex_unlock(&store->lock);
    return err;
}

tk_err tk_store_curve_list(tk_store *store, uint64_t job, tk_job_events *out, tk_diag *diag)
{
    return read_events(store,
                       "SELECT body FROM curves WHERE job = ? AND sequence > ? ORDER BY"
                       " CASE stage WHEN 'warm-up' THEN 1 WHEN 'adapter' THEN 2 WHEN 'train' THEN 3"
                       " WHEN 'line-search' THEN 4 ELSE 5 END, sequence LIMIT ?",
                       job, 0, -1, out, diag);
}

tk_err tk_store_event_reserve(tk_store *store, uint64_t job, uint64_t count, uint64_t *first,
                              tk_diag *diag)
{
    int64_t next = 0;
    *first = 0;
    tk_err err = tk__store_begin(store, diag);
    if (err != TK_OK) return err;
    err = tk__db_int(store->db, &next, 1, diag, "SELECT next_event FROM jobs WHERE id = ?", "i",
                     (int64_t)job);
    if (err == TK_OK)
        err = tk__db_run(store->db, diag, "UPDATE jobs SET next_event = ? WHERE id = ?", "ii",
                         next + (int64_t)count, (int64_t)job);
    err = tk__store_end(store, err, diag);
    if (err == TK_OK) *first = (uint64_t)next;
    return err;
}

tk_err tk_job_event_copy(tk_job_event *to, const tk_job_event *from)
{
    *to = *from;
    to->heads = NULL;
    if (from->n_heads == 0) return TK_OK;
    to->heads = tk_calloc(from->n_heads, sizeof *to->heads);
    if (!to->heads) {
        *to = (tk_job_event){0};
        return TK_NOMEM;
    }
    memcpy(to->heads, from->heads, from->n_heads * sizeof *to->heads);
    return TK_OK;
}

void tk_job_event_fini(tk_job_event *event)
{
    tk_free(event->heads);
    *event = (tk_job_event){0};
}

void tk_job_events_fini(tk_job_events *list)
{
    for (size_t i = 0; i < list->n; i++)
        tk_job_event_fini(&list->items[i]);
    tk_free(list->items);
    *list = (tk_job_events){0};
}
