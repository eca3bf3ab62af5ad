/* Decisions of the gate: written once, with the end of their job; SQLite itself refuses to change
 * them (store.c). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/mem.h"
#include "store/store_internal.h"

tk_err tk__decision_add_locked(tk_store *store, const tk__decision_row *row, tk_diag *diag)
{
    tk_err err = tk__db_run(
        store->db, diag,
        "INSERT INTO decisions(job, base, base_sha, version, sha, outcome, reason, decided, judged)"
        " VALUES(?1, ?2, ifnull((SELECT sha FROM versions WHERE number = ?2), ''), ?3, ?4, ?5, ?6,"
        " ?7, ?8)",
        "iiitttit", (int64_t)row->job, (int64_t)row->base, (int64_t)row->version, row->sha,
        row->outcome, row->reason, row->decided_ms, row->judged);
    if (err != TK_OK) return err;
    return tk__db_run(store->db, diag,
                      "INSERT INTO lows(job, head, accuracy)"
                      " SELECT job, json_extract(h.value, '$.head') AS head,"
                      " min(json_extract(h.value, '$.accuracy'))"
                      " FROM curves, json_each(body, '$.heads') h"
                      " WHERE job = ? AND stage = 'train' AND json_extract(h.value, '$.n') > 0"
                      " AND NOT json_extract(h.value, '$.agreement') GROUP BY job, head",
                      "i", (int64_t)row->job);
}

static tk_err read_decision(const tk_rows *rows, tk_decision *out, tk_diag *diag)
{
    *out = (tk_decision){.job = (uint64_t)tk__col_int(rows, 0),
                         .base_version = (uint64_t)tk__col_int(rows, 1),
                         .version = (uint64_t)tk__col_int(rows, 3),
                         .decided_ms = tk__col_int(rows, 7)};
    (void)snprintf(out->base_sha, sizeof out->base_sha, "%s", tk__col_text(rows, 2));
    (void)snprintf(out->sha, sizeof out->sha, "%s", tk__col_text(rows, 4));
    (void)snprintf(out->outcome, sizeof out->outcome, "%s", tk__col_text(rows, 5));
    out->reason = tk_strdup(tk__col_text(rows, 6));
    if (!out->reason) return tk_fail(diag, TK_NOMEM, "store: out of memory");
    return tk_judgement_parse(tk__col_text(rows, 8), &out->judged, diag);
}

/* Why is there none? */
static tk_err no_decision(tk_store *store, int64_t tenant, uint64_t id, tk_diag *diag)
{
    tk_job job;
    const tk_err err = tk_store_job_get(store, tenant, id, &job, diag);
    if (err != TK_OK) return err;
    const char *why = "it ended before decisions were kept";
    if (!tk_job_state_ended(job.state))
        why = "it has not ended";
    else if (job.state == TK_JOB_FAILED)
        why = "it failed";
    else if (job.state == TK_JOB_CANCELLED)
        why = "it was cancelled";
    tk_job_fini(&job);
    return tk_fail(diag, TK_PRECONDITION, "job %llu: the gate has not judged it, as %s",
                   (unsigned long long)id, why);
}

tk_err tk_store_decision_get(tk_store *store, int64_t tenant, uint64_t job, tk_decision *out,
                             tk_diag *diag)
{
    *out = (tk_decision){0};
    tk_rows rows;
    bool found = false;
    (void)pthread_mutex_lock(&store->lock);
    tk_err err = tk__rows_open(
        &rows, store->db, diag,
        "SELECT d.job, d.base, d.base_sha, d.version, d.sha, d.outcome, d.reason, d.decided,"
        " d.judged FROM decisions d JOIN jobs j ON j.id = d.job"
        " WHERE d.job = ?1 AND (?2 = 0 OR j.tenant = ?2)",
        "ii", job > INT64_MAX ? (int64_t)0 : (int64_t)job, tenant);
    if (err == TK_OK && tk__rows_next(&rows)) {
        found = true;
        err = read_decision(&rows, out, diag);
    }
    err = tk__rows_close(&rows, err, diag);
    (void)pthread_mutex_unlock(&store->lock);
    if (err == TK_OK && !found) err = no_decision(store, tenant, job, diag);
    if (err != TK_OK) tk_decision_fini(out);
    return err;
}

void tk_decision_fini(tk_decision *decision)
{
    tk_free(decision->reason);
    tk_judgement_fini(&decision->judged);
    *decision = (tk_decision){0};
}

/* -- what the versions have learned -- */

static tk_err read_lessons_locked(tk_store *store, tk_lessons *out, tk_diag *diag)
{
    tk_rows rows;
    size_t cap = 0;
    tk_err err =
        tk__rows_open(&rows, store->db, diag,
                      "SELECT v.number, v.job, t.name, j.head FROM versions v"
                      " JOIN jobs j ON j.id = v.job JOIN tenants t ON t.id = j.tenant ORDER BY 1",
                      "");
    while (err == TK_OK && tk__rows_next(&rows)) {
        void *items = out->items;
        if (!tk__list_grow(&items, out->n, &cap, sizeof *out->items)) {
            err = tk_fail(diag, TK_NOMEM, "store: out of memory");
            break;
        }
        out->items = items;
        tk_lesson *lesson = &out->items[out->n++];
        *lesson = (tk_lesson){.version = (uint64_t)tk__col_int(&rows, 0),
                              .job = (uint64_t)tk__col_int(&rows, 1)};
        (void)snprintf(lesson->head, sizeof lesson->head, "%.63s/%.63s", tk__col_text(&rows, 2),
                       tk__col_text(&rows, 3));
    }
    return tk__rows_close(&rows, err, diag);
}

static tk_err read_lows_locked(tk_store *store, tk_lessons *out, tk_diag *diag)
{
    tk_rows rows;
    size_t cap = 0;
    tk_err err = tk__rows_open(&rows, store->db, diag,
                               "SELECT v.number, l.head, l.accuracy FROM versions v"
                               " JOIN lows l ON l.job = v.job ORDER BY 1, 2",
                               "");
    while (err == TK_OK && tk__rows_next(&rows)) {
        void *items = out->lows;
        if (!tk__list_grow(&items, out->n_lows, &cap, sizeof *out->lows)) {
            err = tk_fail(diag, TK_NOMEM, "store: out of memory");
            break;
        }
        out->lows = items;
        tk_low *low = &out->lows[out->n_lows++];
        *low = (tk_low){.version = (uint64_t)tk__col_int(&rows, 0),
                        .accuracy = tk__col_real(&rows, 2)};
        (void)snprintf(low->head, sizeof low->head, "%s", tk__col_text(&rows, 1));
    }
    return tk__rows_close(&rows, err, diag);
}

tk_err tk_store_lessons(tk_store *store, tk_lessons *out, tk_diag *diag)
{
    *out = (tk_lessons){0};
    (void)pthread_mutex_lock(&store->lock);
    tk_err err = read_lessons_locked(store, out, diag);
    if (err == TK_OK) err = read_lows_locked(store, out, diag);
    (void)pthread_mutex_unlock(&store->lock);
    if (err != TK_OK) tk_lessons_fini(out);
    return err;
}

void tk_lessons_fini(tk_lessons *list)
{
    tk_free(list->items);
    tk_free(list->lows);
    *list = (tk_lessons){0};
}
