/* Jobs as records: what was asked, how far it is, how it ended. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/mem.h"
#include "store/codec.h"
#include "store/store_internal.h"

static tk_err no_memory(tk_diag *diag)
{
    return tk_fail(diag, TK_NOMEM, "store: out of memory");
}

static tk_err not_found(tk_diag *diag, uint64_t id)
{
    return tk_fail(diag, TK_NOTFOUND, "job %llu: there is none", (unsigned long long)id);
}

bool tk_job_state_ended(tk_job_state state)
{
    return state != TK_JOB_QUEUED && state != TK_JOB_RUNNING;
}

void tk_job_fini(tk_job *job)
{
    tk_free(job->set);
    tk_free(job->heads);
    tk_free(job->reason);
    *job = (tk_job){0};
}

void tk_job_list_fini(tk_job_list *list)
{
    for (size_t i = 0; i < list->n; i++)
        tk_job_fini(&list->items[i]);
    tk_free(list->items);
    *list = (tk_job_list){0};
}

#define JOB_COLUMNS                                                                                \
    "SELECT j.id, state, tenant, t.name, head, data_set, recipe, settings, fallback, retention,"   \
    " tolerance, seed, outcome, reason, base, version, submitted, started, ended, heads, "         \
    "attempts,"                                                                                    \
    " failures, cancel FROM jobs j JOIN tenants t ON t.id = tenant"

static tk_err read_job(const tk_rows *rows, tk_job *job, tk_diag *diag)
{
    *job = (tk_job){.id = (uint64_t)tk__col_int(rows, 0),
                    .state = (tk_job_state)tk__col_int(rows, 1),
                    .tenant = tk__col_int(rows, 2),
                    .data_set = (uint64_t)tk__col_int(rows, 5),
                    .fallback = (tk_fallback)tk__col_int(rows, 8),
                    .retention = (tk_retention)tk__col_int(rows, 9),
                    .tolerance = tk__col_real(rows, 10),
                    .seed = (uint64_t)tk__col_int(rows, 11),
                    .base_version = (uint64_t)tk__col_int(rows, 14),
                    .version = (uint64_t)tk__col_int(rows, 15),
                    .submitted_ms = tk__col_int(rows, 16),
                    .started_ms = tk__col_int(rows, 17),
                    .ended_ms = tk__col_int(rows, 18),
                    .attempts = (uint32_t)tk__col_int(rows, 20),
                    .failures = (uint32_t)tk__col_int(rows, 21),
                    .cancel = tk__col_int(rows, 22) != 0};
    (void)snprintf(job->tenant_name, sizeof job->tenant_name, "%s", tk__col_text(rows, 3));
    (void)snprintf(job->head, sizeof job->head, "%s", tk__col_text(rows, 4));
    (void)snprintf(job->recipe, sizeof job->recipe, "%s", tk__col_text(rows, 6));
    (void)snprintf(job->outcome, sizeof job->outcome, "%s", tk__col_text(rows, 12));
    job->reason = tk_strdup(tk__col_text(rows, 13));
    tk_err err = job->reason ? TK_OK : no_memory(diag);
    if (err == TK_OK)
        err = tk__decode_settings(tk__col_text(rows, 7), &job->set, &job->n_set, diag);
    if (err == TK_OK)
        err = tk__decode_measures(tk__col_text(rows, 19), &job->heads, &job->n_heads, diag);
    if (err != TK_OK) tk_job_fini(job);
    return err;
}

/* Jobs of a query that begins with JOB_COLUMNS and takes a tenant and a number. */
static tk_err read_jobs_locked(tk_store *store, const char *sql, int64_t tenant, int64_t number,
                               tk_job_list *out, tk_diag *diag)
{
    tk_rows rows;
    size_t cap = 0;
    tk_err err = tk__rows_open(&rows, store->db, diag, sql, "ii", tenant, number);
    while (err == TK_OK && tk__rows_next(&rows)) {
        if (out->n == cap) {
            cap = cap ? 2 * cap : 8;
            tk_job *items = tk_realloc(out->items, cap * sizeof *items);
            if (!items) {
                err = no_memory(diag);
                break;
            }
            out->items = items;
        }
        err = read_job(&rows, &out->items[out->n], diag);
        if (err == TK_OK) out->n++;
    }
    err = tk__rows_close(&rows, err, diag);
    if (err != TK_OK) tk_job_list_fini(out);
    return err;
}

static tk_err read_jobs(tk_store *store, const char *sql, int64_t tenant, int64_t number,
                        tk_job_list *out, tk_diag *diag)
{
    *out = (tk_job_list){0};
    (void)pthread_mutex_lock(&store->lock);
    const tk_err err = read_jobs_locked(store, sql, tenant, number, out, diag);
    (void)pthread_mutex_unlock(&store->lock);
    return err;
}

static tk_err take_one(tk_job_list *list, tk_job *out)
{
    if (list->n != 1) {
        tk_job_list_fini(list);
        return TK_NOTFOUND;
    }
    *out = list->items[0];
    tk_free(list->items);
    return TK_OK;
}

tk_err tk_store_job_get(tk_store *store, int64_t tenant, uint64_t id, tk_job *out, tk_diag *diag)
{
    *out = (tk_job){0};
    tk_job_list list;
    if (id == 0 || id > INT64_MAX) return not_found(diag, id);
    const tk_err err = read_jobs(store, JOB_COLUMNS " WHERE (?1 = 0 OR tenant = ?1) AND j.id = ?2",
                                 tenant, (int64_t)id, &list, diag);
    if (err != TK_OK) return err;
    return take_one(&list, out) == TK_OK ? TK_OK : not_found(diag, id);
}

tk_err tk_store_job_list(tk_store *store, int64_t tenant, size_t limit, tk_job_list *out,
                         tk_diag *diag)
{
    return read_jobs(store, JOB_COLUMNS " WHERE ?1 = 0 OR tenant = ?1 ORDER BY j.id DESC LIMIT ?2",
                     tenant, limit ? (int64_t)limit : 50, out, diag);
}

tk_err tk_store_job_next(tk_store *store, tk_job *out, tk_diag *diag)
{
    *out = (tk_job){0};
    tk_job_list list;
    const tk_err err = read_jobs(
        store,
        JOB_COLUMNS " WHERE ?1 = 0 AND state < 2 ORDER BY state DESC,"
                    " (SELECT max(k.started) FROM jobs k WHERE k.tenant = j.tenant), j.id LIMIT ?2",
        TK_ALL, 1, &list, diag);
    if (err != TK_OK) return err;
    return take_one(&list, out) == TK_OK ? TK_OK : tk_fail(diag, TK_NOTFOUND, "no job waits");
}

/* -- submission -- */

static tk_err check_data_set_locked(tk_store *store, const tk_job *job, tk_diag *diag)
{
    int64_t labels;
    const tk_err err = tk__db_int(
        store->db, &labels, -1, diag,
        "SELECT (SELECT count(*) FROM json_each(labels) WHERE json_extract(value, '$[1]') > 0)"
        " FROM data_sets WHERE id = ? AND tenant = ?",
        "ii", (int64_t)job->data_set, job->tenant);
    if (err != TK_OK) return err;
    if (labels < 0)
        return tk_fail(diag, TK_NOTFOUND, "data set %llu: there is none",
                       (unsigned long long)job->data_set);
    if (labels < 2)
        return tk_fail(diag, TK_BADDATA,
                       "data set %llu: a head needs images of at least 2 labels, it has %lld",
                       (unsigned long long)job->data_set, (long long)labels);
    return TK_OK;
}

static tk_err check_limits_locked(tk_store *store, const tk_job *job, tk_diag *diag)
{
    int64_t jobs, heads;
    tk_err err =
        tk__db_int(store->db, &jobs, 0, diag,
                   "SELECT count(*) FROM jobs WHERE tenant = ? AND state < 2", "i", job->tenant);
    if (err == TK_OK && jobs >= (int64_t)store->opts.max_tenant_jobs)
        err = tk_fail(diag, TK_LIMIT, "jobs queued: limit %u, value %lld",
                      store->opts.max_tenant_jobs, (long long)jobs + 1);
    if (err == TK_OK)
        err = tk__db_int(
            store->db, &heads, 0, diag,
            "SELECT count(*) FROM (SELECT h.name FROM heads h JOIN version_heads v"
            " ON v.head = h.id JOIN current USING(version) WHERE h.tenant = ?1"
            " UNION SELECT head FROM jobs WHERE tenant = ?1 AND state < 2 UNION SELECT ?2)",
            "it", job->tenant, job->head);
    if (err == TK_OK && heads > (int64_t)store->opts.max_tenant_heads)
        err = tk_fail(diag, TK_LIMIT, "heads: limit %u, value %lld", store->opts.max_tenant_heads,
                      (long long)heads);
    return err;
}

static tk_err insert_job_locked(tk_store *store, tk_job *job, tk_diag *diag)
{
    char *settings = tk__encode_settings(job->set, job->n_set);
    if (!settings) return tk_fail(diag, TK_BADARG, "set: a name or a value that cannot be written");
    const tk_err err = tk__db_run(
        store->db, diag,
        "INSERT INTO jobs(state, tenant, head, data_set, recipe, settings, fallback,"
        " retention, tolerance, seed, submitted) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        "iitittiidii", (int64_t)TK_JOB_QUEUED, job->tenant, job->head, (int64_t)job->data_set,
        job->recipe, settings, (int64_t)job->fallback, (int64_t)job->retention, job->tolerance,
        (int64_t)job->seed, job->submitted_ms);
    free(settings);
    if (err == TK_OK) job->id = (uint64_t)tk__db_last_id(store->db);
    return err;
}

tk_err tk_store_job_add(tk_store *store, tk_job *job, tk_diag *diag)
{
    job->state = TK_JOB_QUEUED;
    job->submitted_ms = tk__now_ms();
    tk_err err = tk__store_begin(store, diag);
    if (err != TK_OK) return err;
    tk_job_list list = {0};
    err = check_data_set_locked(store, job, diag);
    if (err == TK_OK) err = check_limits_locked(store, job, diag);
    if (err == TK_OK) err = insert_job_locked(store, job, diag);
    if (err == TK_OK)
        err = read_jobs_locked(store, JOB_COLUMNS " WHERE ?1 = 0 AND j.id = ?2", TK_ALL,
                               (int64_t)job->id, &list, diag);
    err = tk__store_end(store, err, diag);
    if (err != TK_OK) {
        tk_job_list_fini(&list);
        return err;
    }
    tk_job_fini(job);
    return take_one(&list, job);
}

/* -- progress -- */

static tk_err decide_locked(tk_store *store, const tk_job *job, const char *judged, tk_diag *diag)
{
    const tk__decision_row row = {.job = job->id,
                                  .base = job->base_version,
                                  .sha = "",
                                  .outcome = job->outcome,
                                  .reason = job->reason ? job->reason : "",
                                  .judged = judged,
                                  .decided_ms = job->ended_ms};
    return tk__decision_add_locked(store, &row, diag);
}

static tk_err update_locked(tk_store *store, const tk_job *job, const char *heads,
                            const char *record, tk_diag *diag)
{
    const tk_err err = tk__db_run(
        store->db, diag,
        "UPDATE jobs SET state = ?, recipe = ?, outcome = ?, reason = ?, base = ?, started = ?, "
        "ended = ?,"
        " heads = ?, attempts = ?, failures = ?, record = ifnull(?, record)"
        " WHERE id = ? AND state < 2",
        "itttiiitiiti", (int64_t)job->state, job->recipe, job->outcome,
        job->reason ? job->reason : "", (int64_t)job->base_version, job->started_ms, job->ended_ms,
        heads, (int64_t)job->attempts, (int64_t)job->failures, record, (int64_t)job->id);
    if (err == TK_OK && tk__db_changes(store->db) == 0)
        return tk_fail(diag, TK_PRECONDITION, "job %llu: has ended already",
                       (unsigned long long)job->id);
    return err;
}

tk_err tk_store_job_update(tk_store *store, const tk_job *job, const tk_job_event *event,
                           const char *record, const char *judged, tk_diag *diag)
{
    char *heads = tk__encode_measures(job->heads, job->n_heads);
    if (!heads) return no_memory(diag);
    tk_err err = tk__store_begin(store, diag);
    if (err == TK_OK) {
        err = update_locked(store, job, heads, record, diag);
        if (err == TK_OK && event) err = tk__event_add_locked(store, job->id, event, diag);
        if (err == TK_OK && event && event->n_heads > 0)
            err = tk__curve_add_locked(store, job->id, event, diag);
        if (err == TK_OK && judged) err = decide_locked(store, job, judged, diag);
        err = tk__store_end(store, err, diag);
    }
    free(heads);
    return err;
}

tk_err tk_store_job_cancel(tk_store *store, uint64_t id, tk_diag *diag)
{
    (void)pthread_mutex_lock(&store->lock);
    const tk_err err = tk__db_run(
        store->db, diag, "UPDATE jobs SET cancel = 1 WHERE id = ? AND state < 2", "i", (int64_t)id);
    (void)pthread_mutex_unlock(&store->lock);
    return err;
}

tk_err tk_store_job_record(tk_store *store, int64_t tenant, uint64_t id, char **out, tk_diag *diag)
{
    *out = NULL;
    (void)pthread_mutex_lock(&store->lock);
    tk_rows rows;
    tk_err err = tk__rows_open(&rows, store->db, diag,
                               "SELECT record FROM jobs WHERE id = ?1 AND (?2 = 0 OR tenant = ?2)"
                               " AND record IS NOT NULL",
                               "ii", (int64_t)id, tenant);
    if (err == TK_OK && tk__rows_next(&rows)) {
        *out = tk_strdup(tk__col_text(&rows, 0));
        if (!*out) err = no_memory(diag);
    } else if (err == TK_OK && !rows.failed) {
        err = tk_fail(diag, TK_NOTFOUND, "job %llu: there is no record", (unsigned long long)id);
    }
    err = tk__rows_close(&rows, err, diag);
    (void)pthread_mutex_unlock(&store->lock);
    return err;
}
