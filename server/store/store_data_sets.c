/* Data sets: a record each, the images in a content-addressed pack; and the limits on them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/mem.h"
#include "store/codec.h"
#include "store/store_internal.h"

static tk_err no_memory(tk_diag *diag)
{
    return tk_fail(diag, TK_NOMEM, "store: out of memory");
}

static tk_err not_found(tk_diag *diag, uint64_t id)
{
    return tk_fail(diag, TK_NOTFOUND, "data set %llu: there is none", (unsigned long long)id);
}

static tk_err check_room_locked(tk_store *store, int64_t tenant, uint64_t bytes, tk_diag *diag)
{
    uint64_t have;
    const tk_err err = tk__store_tenant_bytes_locked(store, tenant, &have, diag);
    if (err != TK_OK) return err;
    const uint64_t limit = store->opts.max_tenant_bytes;
    if (have <= limit && bytes <= limit - have) return TK_OK;
    return tk_fail(diag, TK_LIMIT, "bytes stored: limit %llu, value %llu (%llu there, %llu more)",
                   (unsigned long long)limit,
                   (unsigned long long)(bytes > UINT64_MAX - have ? UINT64_MAX : have + bytes),
                   (unsigned long long)have, (unsigned long long)bytes);
}

tk_err tk_store_room_check(tk_store *store, int64_t tenant, uint64_t bytes, tk_diag *diag)
{
    (void)pthread_mutex_lock(&store->lock);
    const tk_err err = check_room_locked(store, tenant, bytes, diag);
    (void)pthread_mutex_unlock(&store->lock);
    return err;
}

static tk_err check_count_locked(tk_store *store, int64_t tenant, tk_diag *diag)
{
    int64_t n;
    const tk_err err = tk__db_int(store->db, &n, 0, diag,
                                  "SELECT count(*) FROM data_sets WHERE tenant = ?", "i", tenant);
    if (err != TK_OK || n < (int64_t)store->opts.max_tenant_data_sets) return err;
    return tk_fail(diag, TK_LIMIT, "data sets: limit %u, value %lld",
                   store->opts.max_tenant_data_sets, (long long)n + 1);
}

static tk_err insert(tk_store *store, tk_data_set *set, const char *labels, tk_diag *diag)
{
    tk_err err = tk__store_begin(store, diag);
    if (err != TK_OK) return err;
    err = check_room_locked(store, set->tenant, set->bytes, diag);
    if (err == TK_OK) err = check_count_locked(store, set->tenant, diag);
    if (err == TK_OK)
        err = tk__db_run(store->db, diag,
                         "INSERT INTO data_sets(tenant, name, images, bytes, labels, sha, created)"
                         " VALUES(?, ?, ?, ?, ?, ?, ?)",
                         "itiitti", set->tenant, set->name, (int64_t)set->images,
                         (int64_t)set->bytes, labels, set->sha, set->created_ms);
    if (err == TK_OK) set->id = (uint64_t)tk__db_last_id(store->db);
    return tk__store_end(store, err, diag);
}

static tk_err add(tk_store *store, tk_data_set *set, const char *path, const char *labels,
                  tk_diag *diag)
{
    tk_object object = {0};
    tk_err err = tk__decode_label_counts(labels, &set->labels, &set->n_labels, diag);
    if (err == TK_OK) err = tk_store_stage(store, path, false, &object, diag);
    if (err == TK_OK) {
        set->bytes = object.bytes;
        memcpy(set->sha, object.sha, sizeof set->sha);
        err = insert(store, set, labels, diag);
    }
    tk_store_unstage(store, &object);
    return err;
}

tk_err tk_store_data_set_add(tk_store *store, int64_t tenant, const char *name, const char *path,
                             uint64_t images, const tk_label_count *labels, size_t n_labels,
                             tk_data_set *out, tk_diag *diag)
{
    *out = (tk_data_set){0};
    tk_data_set set = {.tenant = tenant, .images = images, .created_ms = tk__now_ms()};
    char *text = NULL;
    tk_err err = tk_name_check(name, "data set", diag);
    if (err == TK_OK) {
        (void)snprintf(set.name, sizeof set.name, "%s", name);
        text = tk__encode_label_counts(labels, n_labels);
        if (!text) err = tk_fail(diag, TK_BADDATA, "data set: a label is not UTF-8");
    }
    if (err == TK_OK) err = add(store, &set, path, text, diag);
    free(text);
    if (err != TK_OK) {
        (void)unlink(path);
        tk_data_set_fini(&set);
        return err;
    }
    *out = set;
    return TK_OK;
}

static tk_err read_row(const tk_rows *rows, tk_data_set *set, tk_diag *diag)
{
    *set = (tk_data_set){.id = (uint64_t)tk__col_int(rows, 0),
                         .tenant = tk__col_int(rows, 1),
                         .images = (uint64_t)tk__col_int(rows, 3),
                         .bytes = (uint64_t)tk__col_int(rows, 4),
                         .created_ms = tk__col_int(rows, 7)};
    (void)snprintf(set->name, sizeof set->name, "%s", tk__col_text(rows, 2));
    (void)snprintf(set->sha, sizeof set->sha, "%s", tk__col_text(rows, 6));
    return tk__decode_label_counts(tk__col_text(rows, 5), &set->labels, &set->n_labels, diag);
}

/* `id` 0: all of the tenant's. */
static tk_err read_sets_locked(tk_store *store, int64_t tenant, uint64_t id, tk_data_sets *out,
                               tk_diag *diag)
{
    tk_rows rows;
    size_t cap = 0;
    tk_err err =
        tk__rows_open(&rows, store->db, diag,
                      "SELECT id, tenant, name, images, bytes, labels, sha, created FROM data_sets"
                      " WHERE (?1 = 0 OR tenant = ?1) AND (?2 = 0 OR id = ?2) ORDER BY id DESC",
                      "ii", tenant, (int64_t)id);
    while (err == TK_OK && tk__rows_next(&rows)) {
        if (out->n == cap) {
            cap = cap ? 2 * cap : 16;
            tk_data_set *items = tk_realloc(out->items, cap * sizeof *items);
            if (!items) {
                err = no_memory(diag);
                break;
            }
            out->items = items;
        }
        err = read_row(&rows, &out->items[out->n], diag);
        if (err == TK_OK) out->n++;
    }
    return tk__rows_close(&rows, err, diag);
}

static tk_err read_sets(tk_store *store, int64_t tenant, uint64_t id, tk_data_sets *out,
                        tk_diag *diag)
{
    *out = (tk_data_sets){0};
    (void)pthread_mutex_lock(&store->lock);
    const tk_err err = read_sets_locked(store, tenant, id, out, diag);
    (void)pthread_mutex_unlock(&store->lock);
    if (err != TK_OK) tk_data_sets_fini(out);
    return err;
}

tk_err tk_store_data_set_list(tk_store *store, int64_t tenant, tk_data_sets *out, tk_diag *diag)
{
    return read_sets(store, tenant, 0, out, diag);
}

tk_err tk_store_data_set_get(tk_store *store, int64_t tenant, uint64_t id, tk_data_set *out,
                             tk_diag *diag)
{
    *out = (tk_data_set){0};
    tk_data_sets list;
    if (id == 0 || id > INT64_MAX) return not_found(diag, id);
    const tk_err err = read_sets(store, tenant, id, &list, diag);
    if (err != TK_OK) return err;
    if (list.n == 0) {
        tk_data_sets_fini(&list);
        return not_found(diag, id);
    }
    *out = list.items[0];
    tk_free(list.items);
    return TK_OK;
}

static tk_err delete_locked(tk_store *store, uint64_t id, tk_diag *diag)
{
    int64_t job;
    tk_err err =
        tk__db_int(store->db, &job, 0, diag,
                   "SELECT id FROM jobs WHERE data_set = ? AND state < 2 ORDER BY id LIMIT 1", "i",
                   (int64_t)id);
    if (err != TK_OK) return err;
    if (job)
        return tk_fail(diag, TK_PRECONDITION,
                       "data set %llu: job %lld uses it; wait or cancel the job",
                       (unsigned long long)id, (long long)job);
    err = tk__db_run(store->db, diag, "DELETE FROM data_sets WHERE id = ?", "i", (int64_t)id);
    return err == TK_OK && tk__db_changes(store->db) == 0 ? not_found(diag, id) : err;
}

tk_err tk_store_data_set_delete(tk_store *store, int64_t tenant, uint64_t id, tk_diag *diag)
{
    tk_data_set set;
    tk_err err = tk_store_data_set_get(store, tenant, id, &set, diag);
    if (err != TK_OK) return err;
    (void)pthread_mutex_lock(&store->lock);
    err = tk__db_begin(store->db, diag);
    if (err == TK_OK) err = tk__db_end(store->db, delete_locked(store, id, diag), diag);
    if (err == TK_OK) {
        tk__object_collect_locked(store, set.sha);
        tk__db_checkpoint(store->db);
    }
    (void)pthread_mutex_unlock(&store->lock);
    tk_data_set_fini(&set);
    return err;
}

void tk_data_set_fini(tk_data_set *set)
{
    tk__label_counts_free(set->labels, set->n_labels);
    *set = (tk_data_set){0};
}

void tk_data_sets_fini(tk_data_sets *list)
{
    for (size_t i = 0; i < list->n; i++)
        tk_data_set_fini(&list->items[i]);
    tk_free(list->items);
    *list = (tk_data_sets){0};
}
