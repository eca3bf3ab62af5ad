/* A tenant's records, deleted in one transaction, and what makes deletion thorough.
 *
 * SQLite zeroes deleted cells (secure_delete), but promises nothing about copies that the balancing
 * of its trees left; VACUUM writes the file anew. It cannot be part of the transaction, so the
 * transaction leaves a mark (`application_id`) that a purge is due, and a start after a crash does
 * it. */
#include <stdio.h>
#include <string.h>

#include "engine/mem.h"
#include "heads/validator.h"
#include "store/files.h"
#include "store/store_internal.h"

static tk_err no_memory(tk_diag *diag)
{
    return tk_fail(diag, TK_NOMEM, "store: out of memory");
}

tk_err tk_store_tenant_shut_out(tk_store *store, int64_t tenant, tk_diag *diag)
{
    tk_err err = tk__store_begin(store, diag);
    if (err != TK_OK) return err;
    err =
        tk__db_run(store->db, diag, "UPDATE tokens SET revoked = 1 WHERE tenant = ?", "i", tenant);
    return tk__store_end_with_tokens(store, err, diag);
}

tk_err tk_store_jobs_empty(tk_store *store, tk_diag *diag)
{
    char *path = tk__store_path(store, "jobs");
    const tk_err err = path ? tk_files_remove_tree(path, false, diag) : no_memory(diag);
    tk_free(path);
    return err;
}

/* -- the tenant's name in what others keep -- */

/* Gates and reports of other tenants' jobs name its heads: as a string of JSON or in a sentence
 * ("tenant/head" in double quotes), or in a sentence within JSON (the quotes escaped). A sentence
 * may have been cut in the midst of a name, which is what the last pair is for. */
typedef struct pair {
    char from[TK_HEAD_ID_SIZE + 32], to[32];
} pair;

static tk_err replace_locked(tk_store *store, const pair *p, tk_diag *diag)
{
    static const char *const statements[] = {
        "UPDATE versions SET reason = replace(reason, ?1, ?2) WHERE instr(reason, ?1)",
        "UPDATE jobs SET reason = replace(reason, ?1, ?2) WHERE instr(reason, ?1)",
        "UPDATE jobs SET heads = replace(heads, ?1, ?2) WHERE instr(heads, ?1)",
        "UPDATE jobs SET record = replace(record, ?1, ?2) WHERE instr(record, ?1)",
        "UPDATE events SET body = replace(body, ?1, ?2) WHERE instr(body, ?1)",
        "UPDATE curves SET body = replace(body, ?1, ?2) WHERE instr(body, ?1)",
        "UPDATE decisions SET reason = replace(reason, ?1, ?2) WHERE instr(reason, ?1)",
        "UPDATE decisions SET judged = replace(judged, ?1, ?2) WHERE instr(judged, ?1)",
    };
    tk_err err = TK_OK;
    for (size_t i = 0; i < sizeof statements / sizeof *statements && err == TK_OK; i++)
        err = tk__db_run(store->db, diag, statements[i], "tt", p->from, p->to);
    return err;
}

static tk_err forget_head_locked(tk_store *store, const char *id, tk_diag *diag)
{
    pair pairs[] = {{.to = "\"(gone)\""},
                    {.to = "\"(gone)\\\""},
                    {.to = "\"(gone)\""},
                    {.to = "\"(gone)\\\""},
                    {.to = "a head was deleted"}};
    (void)snprintf(pairs[0].from, sizeof pairs[0].from, "\"%s\"", id);
    (void)snprintf(pairs[1].from, sizeof pairs[1].from, "\"%s\\\"", id);
    (void)snprintf(pairs[2].from, sizeof pairs[2].from, "\"%s" TK_EARLIER "\"", id);
    (void)snprintf(pairs[3].from, sizeof pairs[3].from, "\"%s" TK_EARLIER "\\\"", id);
    (void)snprintf(pairs[4].from, sizeof pairs[4].from, "head %s was deleted", id);
    tk_err err = tk__db_run(store->db, diag, "DELETE FROM lows WHERE head IN (?1, ?1 || ?2)", "tt",
                            id, TK_EARLIER);
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs && err == TK_OK; i++)
        err = replace_locked(store, &pairs[i], diag);
    return err;
}

/* Every head that it has, had, or trained. */
static tk_err forget_name_locked(tk_store *store, int64_t tenant, tk_diag *diag)
{
    char id[TK_HEAD_ID_SIZE];
    pair rest = {.to = "\"(gone)/"};
    tk_rows rows;
    tk_err err = tk__rows_open(&rows, store->db, diag,
                               "SELECT t.name, n.name FROM tenants t JOIN"
                               " (SELECT name FROM heads WHERE tenant = ?1"
                               "  UNION SELECT head FROM jobs WHERE tenant = ?1) n"
                               " WHERE t.id = ?1",
                               "i", tenant);
    while (err == TK_OK && tk__rows_next(&rows)) {
        (void)snprintf(id, sizeof id, "%s/%s", tk__col_text(&rows, 0), tk__col_text(&rows, 1));
        (void)snprintf(rest.from, sizeof rest.from, "\"%s/", tk__col_text(&rows, 0));
        err = forget_head_locked(store, id, diag);
    }
    err = tk__rows_close(&rows, err, diag);
    return err == TK_OK && rest.from[0] ? replace_locked(store, &rest, diag) : err;
}

/* -- the transaction -- */

static tk_err delete_records_locked(tk_store *store, int64_t tenant, tk_diag *diag)
{
    static const char *const statements[] = {
        "DELETE FROM events WHERE job IN (SELECT id FROM jobs WHERE tenant = ?)",
        "DELETE FROM curves WHERE job IN (SELECT id FROM jobs WHERE tenant = ?)",
        "DELETE FROM lows WHERE job IN (SELECT id FROM jobs WHERE tenant = ?)",
        "DELETE FROM decisions WHERE job IN (SELECT id FROM jobs WHERE tenant = ?)",
        "DELETE FROM jobs WHERE tenant = ?",
        "DELETE FROM version_heads WHERE head IN (SELECT id FROM heads WHERE tenant = ?)",
        "DELETE FROM heads WHERE tenant = ?",
        "DELETE FROM data_sets WHERE tenant = ?",
        "DELETE FROM tokens WHERE tenant = ?",
        "DELETE FROM tenant_limits WHERE tenant = ?",
        "DELETE FROM tenants WHERE id = ?",
    };
    tk_err err = TK_OK;
    for (size_t i = 0; i < sizeof statements / sizeof *statements && err == TK_OK; i++)
        err = tk__db_run(store->db, diag, statements[i], "i", tenant);
    if (err == TK_OK && tk__db_changes(store->db) == 0)
        err = tk_fail(diag, TK_NOTFOUND, "tenant: there is none of that name");
    return err;
}

tk_err tk_store_tenant_delete(tk_store *store, int64_t tenant, const tk_commit *commit,
                              const tk_scrub *scrubbed, size_t n, tk_diag *diag)
{
    tk_err err = tk__store_begin(store, diag);
    if (err != TK_OK) return err;
    err = tk__versions_replace_locked(store, scrubbed, n, diag);
    if (err == TK_OK) err = tk__decisions_guard_locked(store, false, diag);
    if (err == TK_OK) err = forget_name_locked(store, tenant, diag);
    if (err == TK_OK) err = delete_records_locked(store, tenant, diag);
    if (err == TK_OK) err = tk__decisions_guard_locked(store, true, diag);
    if (err == TK_OK && commit) err = tk__version_commit_locked(store, commit, diag);
    if (err == TK_OK) err = tk__db_run(store->db, diag, "PRAGMA application_id = 1", "");
    return tk__store_end_with_tokens(store, err, diag);
}

/* -- after it -- */

tk_err tk__store_purge_locked(tk_store *store, tk_diag *diag)
{
    int64_t due;
    tk_err err = tk__db_int(store->db, &due, 0, diag, "PRAGMA application_id", "");
    if (err != TK_OK || !due) return err;
    err = tk__objects_sweep_locked(store, diag);
    if (err == TK_OK) err = tk__db_script(store->db, "VACUUM", diag);
    if (err != TK_OK) return err;
    tk__db_checkpoint(store->db); /* before the mark goes: killed in between, it is done again */
    return tk__db_script(store->db, "PRAGMA application_id = 0", diag);
}

tk_err tk_store_purge(tk_store *store, tk_diag *diag)
{
    (void)pthread_mutex_lock(&store->lock);
    const tk_err err = tk__store_purge_locked(store, diag);
    (void)pthread_mutex_unlock(&store->lock);
    return err;
}
