/* Writing versions: one transaction each, in which a version, its heads and validations, the end of
 * the job that made it and the current pointer become true together. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "engine/mem.h"
#include "store/codec.h"
#include "store/store_internal.h"

static tk_err no_memory(tk_diag *diag)
{
    return tk_fail(diag, TK_NOMEM, "store: out of memory");
}

static tk_err object_bytes(const tk_store *store, const char *sha, uint64_t *out, tk_diag *diag)
{
    *out = 0;
    if (!sha[0]) return TK_OK;
    char *path = tk_store_object_path(store, sha);
    struct stat st;
    tk_err err = TK_OK;
    if (!path)
        err = no_memory(diag);
    else if (stat(path, &st) != 0)
        err = tk_fail_errno(diag, "object %s", sha);
    else
        *out = (uint64_t)st.st_size;
    tk_free(path);
    return err;
}

static tk_err write_trunk_locked(tk_store *store, const tk_trunk *trunk, tk_diag *diag)
{
    char *preproc = tk__encode_preproc(&trunk->preproc);
    if (!preproc) return tk_fail(diag, TK_BADARG, "the trunk's preprocessing cannot be written");
    const tk_err err = tk__db_run(
        store->db, diag, "INSERT OR REPLACE INTO trunk(one, arch, preproc) VALUES(1, ?, ?)", "tt",
        trunk->arch, preproc);
    free(preproc);
    return err;
}

tk_err tk_store_trunk_set(tk_store *store, const tk_trunk *trunk, tk_diag *diag)
{
    uint64_t current = 0;
    tk_err err = tk__store_begin(store, diag);
    if (err != TK_OK) return err;
    err = tk__store_current_locked(store, &current, diag);
    if (err == TK_OK && current)
        err = tk_fail(diag, TK_PRECONDITION, "there is a trunk already (version %llu)",
                      (unsigned long long)current);
    if (err == TK_OK) err = write_trunk_locked(store, trunk, diag);
    return tk__store_end(store, err, diag);
}

/* Row id of the head, made when it is not there. */
static tk_err head_row_locked(tk_store *store, const tk_version_head *head, uint64_t number,
                              int64_t *id, tk_diag *diag)
{
    tk_err err = tk__db_run(store->db, diag,
                            "INSERT INTO heads(tenant, name, born, created) VALUES(?, ?, ?, ?)"
                            " ON CONFLICT(tenant, name) DO NOTHING",
                            "itii", head->tenant, head->name, (int64_t)number, tk__now_ms());
    if (err == TK_OK)
        err =
            tk__db_int(store->db, id, 0, diag, "SELECT id FROM heads WHERE tenant = ? AND name = ?",
                       "it", head->tenant, head->name);
    return err;
}

/* Accuracy of the head's row at a version; NaN: none, or measured in another way. */
static tk_err accuracy_before_locked(tk_store *store, int64_t head, uint64_t version,
                                     bool agreement, double *out, tk_diag *diag)
{
    *out = (double)NAN;
    tk_rows rows;
    tk_err err = tk__rows_open(&rows, store->db, diag,
                               "SELECT accuracy FROM version_heads WHERE head = ? AND version = ?"
                               " AND agreement = ?",
                               "iii", head, (int64_t)version, (int64_t)agreement);
    if (err == TK_OK && tk__rows_next(&rows)) *out = tk__col_real(&rows, 0);
    return tk__rows_close(&rows, err, diag);
}

static unsigned char *pack_confusion(const tk_version_head *head, size_t *size)
{
    const size_t n = head->n_labels * head->n_labels;
    unsigned char *bytes = tk_calloc(n ? n : 1, 4);
    for (size_t i = 0; bytes && i < n; i++)
        for (size_t k = 0; k < 4; k++)
            bytes[4 * i + k] = (unsigned char)(head->confusion[i] >> 8 * k);
    *size = 4 * n;
    return bytes;
}

/* `change` receives the head's change against the version before. */
static tk_err write_head_locked(tk_store *store, const tk_commit *commit,
                                const tk_version_head *head, double *change, tk_diag *diag)
{
    int64_t id;
    double before;
    uint64_t pack_bytes;
    size_t size = 0;
    unsigned char *confusion = NULL;
    tk_err err = head_row_locked(store, head, commit->number, &id, diag);
    if (err == TK_OK && commit->forget_packs_of && strcmp(commit->forget_packs_of, head->id) == 0)
        err = tk__db_run(store->db, diag,
                         "UPDATE version_heads SET pack = '', pack_bytes = 0 WHERE head = ?", "i",
                         id);
    if (err == TK_OK)
        err = accuracy_before_locked(store, id, commit->expect_current, head->agreement, &before,
                                     diag);
    if (err == TK_OK) err = object_bytes(store, head->pack, &pack_bytes, diag);
    if (err != TK_OK) return err;
    if (head->confusion && !(confusion = pack_confusion(head, &size))) return no_memory(diag);
    char *labels = tk__encode_labels(head->labels, head->n_labels);
    if (!labels) err = tk_fail(diag, TK_BADDATA, "head %s: a label is not UTF-8", head->id);
    *change = head->accuracy - before;
    if (err == TK_OK)
        err = tk__db_run(
            store->db, diag,
            "INSERT INTO version_heads(version, head, tolerance, best, accuracy, change, top5, n,"
            " agreement, pack, pack_bytes, classes, labels, confusion)"
            " VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            "iidddddiitiitb", (int64_t)commit->number, id, head->tolerance, head->best,
            head->accuracy, *change, head->top5, (int64_t)head->n, (int64_t)head->agreement,
            head->pack, (int64_t)pack_bytes, (int64_t)head->n_labels, labels,
            (const void *)confusion, size);
    free(labels);
    tk_free(confusion);
    return err;
}

static tk_err end_job_locked(tk_store *store, const tk_commit *commit, const tk_measure *measures,
                             tk_diag *diag)
{
    const int64_t now = tk__now_ms();
    char *heads = tk__encode_measures(measures, commit->n_heads);
    if (!heads) return no_memory(diag);
    const tk__decision_row decision = {.job = commit->job,
                                       .base = commit->expect_current,
                                       .version = commit->number,
                                       .sha = commit->model->sha,
                                       .outcome = commit->outcome ? commit->outcome : "commit",
                                       .reason = commit->reason,
                                       .judged = commit->judged,
                                       .decided_ms = now};
    tk_err err =
        tk__db_run(store->db, diag,
                   "UPDATE jobs SET state = ?, outcome = ?, reason = ?, version = ?, ended = ?,"
                   " record = ?, heads = ? WHERE id = ? AND state < 2",
                   "ittiitti", (int64_t)TK_JOB_COMMITTED, decision.outcome, commit->reason,
                   (int64_t)commit->number, now, commit->record, heads, (int64_t)commit->job);
    free(heads);
    if (err == TK_OK && tk__db_changes(store->db) != 1)
        err = tk_fail(diag, TK_PRECONDITION, "job %llu: has ended already",
                      (unsigned long long)commit->job);
    if (err == TK_OK && commit->event)
        err = tk__event_add_locked(store, commit->job, commit->event, diag);
    if (err == TK_OK && commit->judged) err = tk__decision_add_locked(store, &decision, diag);
    return err;
}

static tk_err check_base_locked(tk_store *store, const tk_commit *commit, tk_diag *diag)
{
    uint64_t current;
    int64_t last;
    tk_err err = tk__store_current_locked(store, &current, diag);
    if (err == TK_OK)
        err = tk__db_int(store->db, &last, 0, diag, "SELECT max(number) FROM versions", "");
    if (err != TK_OK) return err;
    if (current != commit->expect_current)
        return tk_fail(diag, TK_PRECONDITION, "the current version is %llu by now, not %llu",
                       (unsigned long long)current, (unsigned long long)commit->expect_current);
    if (commit->number != (uint64_t)last + 1)
        return tk_fail(diag, TK_PRECONDITION, "version %llu cannot follow %lld",
                       (unsigned long long)commit->number, (long long)last);
    return TK_OK;
}

tk_err tk__version_commit_locked(tk_store *store, const tk_commit *commit, tk_diag *diag)
{
    tk_measure *measures = tk_calloc(commit->n_heads ? commit->n_heads : 1, sizeof *measures);
    if (!measures) return no_memory(diag);
    tk_err err = check_base_locked(store, commit, diag);
    if (err == TK_OK)
        err = tk__db_run(store->db, diag,
                         "INSERT INTO versions(number, job, reason, sha, bytes, created)"
                         " VALUES(?, ?, ?, ?, ?, ?)",
                         "iittii", (int64_t)commit->number, (int64_t)commit->job, commit->reason,
                         commit->model->sha, (int64_t)commit->model->bytes, tk__now_ms());
    for (size_t i = 0; i < commit->n_heads && err == TK_OK; i++) {
        const tk_version_head *head = &commit->heads[i];
        measures[i] = (tk_measure){.accuracy = head->accuracy,
                                   .floor = (double)NAN,
                                   .tolerance = head->tolerance,
                                   .n = head->n,
                                   .agreement = head->agreement};
        memcpy(measures[i].head, head->id, sizeof measures[i].head);
        err = write_head_locked(store, commit, head, &measures[i].change, diag);
    }
    if (err == TK_OK && commit->trunk) err = write_trunk_locked(store, commit->trunk, diag);
    if (err == TK_OK && commit->job) err = end_job_locked(store, commit, measures, diag);
    if (err == TK_OK)
        err =
            tk__db_run(store->db, diag, "INSERT OR REPLACE INTO current(one, version) VALUES(1, ?)",
                       "i", (int64_t)commit->number);
    tk_free(measures);
    return err;
}

/* After a transaction that took names away: nothing of what they named stays. */
static void forget_locked(tk_store *store)
{
    const tk_err err = tk__objects_sweep_locked(store, NULL);
    (void)err; /* the records are gone; what could not be unlinked goes at the next start */
    tk__db_checkpoint(store->db);
}

tk_err tk_store_version_commit(tk_store *store, const tk_commit *commit, tk_diag *diag)
{
    (void)pthread_mutex_lock(&store->lock);
    tk_err err = tk__db_begin(store->db, diag);
    if (err == TK_OK)
        err = tk__db_end(store->db, tk__version_commit_locked(store, commit, diag), diag);
    if (err == TK_OK && commit->forget_packs_of) forget_locked(store);
    (void)pthread_mutex_unlock(&store->lock);
    return err;
}

/* Row id of a live head as tk_store_head_get() finds it. */
static tk_err find_head_locked(tk_store *store, int64_t tenant, const char *head, int64_t *id,
                               tk_diag *diag)
{
    tk_err err = tk__db_int(store->db, id, 0, diag,
                            "SELECT h.id FROM heads h JOIN tenants t ON t.id = h.tenant"
                            " WHERE ((?1 = 0 AND t.name || '/' || h.name = ?2)"
                            " OR (?1 <> 0 AND h.tenant = ?1 AND h.name = ?2))"
                            " AND EXISTS(SELECT 1 FROM version_heads w JOIN current USING(version)"
                            " WHERE w.head = h.id)",
                            "it", tenant, head);
    if (err == TK_OK && !*id)
        err = tk_fail(diag, TK_NOTFOUND, "head \"%.127s\": there is none", head);
    return err;
}

static tk_err check_not_trained_locked(tk_store *store, int64_t id, tk_diag *diag)
{
    int64_t job;
    const tk_err err =
        tk__db_int(store->db, &job, 0, diag,
                   "SELECT jobs.id FROM jobs JOIN heads ON heads.tenant = jobs.tenant"
                   " AND heads.name = jobs.head WHERE heads.id = ? AND state < 2 LIMIT 1",
                   "i", id);
    if (err != TK_OK || !job) return err;
    return tk_fail(diag, TK_PRECONDITION, "job %lld trains this head; wait or cancel the job",
                   (long long)job);
}

tk_err tk_store_head_deletable(tk_store *store, int64_t tenant, const char *head, tk_diag *diag)
{
    int64_t id = 0;
    (void)pthread_mutex_lock(&store->lock);
    tk_err err = find_head_locked(store, tenant, head, &id, diag);
    if (err == TK_OK) err = check_not_trained_locked(store, id, diag);
    (void)pthread_mutex_unlock(&store->lock);
    return err;
}

tk_err tk__versions_replace_locked(tk_store *store, const tk_scrub *scrubbed, size_t n,
                                   tk_diag *diag)
{
    tk_err err = TK_OK;
    for (size_t i = 0; i < n && err == TK_OK; i++)
        err = tk__db_run(store->db, diag, "UPDATE versions SET sha = ?, bytes = ? WHERE number = ?",
                         "tii", scrubbed[i].model.sha, (int64_t)scrubbed[i].model.bytes,
                         (int64_t)scrubbed[i].version);
    return err;
}

static tk_err delete_head_locked(tk_store *store, int64_t id, const tk_commit *commit,
                                 const tk_scrub *scrubbed, size_t n, tk_diag *diag)
{
    tk_err err = check_not_trained_locked(store, id, diag);
    if (err == TK_OK) err = tk__versions_replace_locked(store, scrubbed, n, diag);
    if (err == TK_OK)
        err =
            tk__db_run(store->db, diag,
                       "DELETE FROM lows WHERE head = (SELECT t.name || '/' || h.name FROM heads h"
                       " JOIN tenants t ON t.id = h.tenant WHERE h.id = ?)",
                       "i", id);
    if (err == TK_OK)
        err = tk__db_run(store->db, diag, "DELETE FROM version_heads WHERE head = ?", "i", id);
    if (err == TK_OK) err = tk__db_run(store->db, diag, "DELETE FROM heads WHERE id = ?", "i", id);
    return err == TK_OK ? tk__version_commit_locked(store, commit, diag) : err;
}

tk_err tk_store_head_delete(tk_store *store, int64_t tenant, const char *head,
                            const tk_commit *commit, const tk_scrub *scrubbed, size_t n_scrubbed,
                            tk_diag *diag)
{
    int64_t id = 0;
    (void)pthread_mutex_lock(&store->lock);
    tk_err err = tk__db_begin(store->db, diag);
    if (err == TK_OK) {
        err = find_head_locked(store, tenant, head, &id, diag);
        if (err == TK_OK) err = delete_head_locked(store, id, commit, scrubbed, n_scrubbed, diag);
        err = tk__db_end(store->db, err, diag);
    }
    if (err == TK_OK) forget_locked(store);
    (void)pthread_mutex_unlock(&store->lock);
    return err;
}
