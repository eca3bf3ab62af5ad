/* Labels of versions: names that an admin gives to numbers, and which of them gets a share of the
 * requests that name no version. */
#include <stdio.h>
#include <string.h>

#include "store/store_internal.h"

tk_err tk_version_label_check(const char *name, tk_diag *diag)
{
    const size_t n = strnlen(name, TK_VERSION_LABEL_SIZE);
    bool good = n >= 1 && n <= TK_VERSION_LABEL_MAX && name[0] >= 'a' && name[0] <= 'z';
    for (size_t i = 0; i < n && good; i++) {
        const char c = name[i];
        good = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-';
    }
    if (!good)
        return tk_fail(diag, TK_BADARG,
                       "label: 1 to %d characters of a-z, 0-9, '-', the first a letter",
                       (int)TK_VERSION_LABEL_MAX);
    if (strcmp(name, TK_VERSION_LATEST) == 0)
        return tk_fail(diag, TK_BADARG,
                       "label: \"" TK_VERSION_LATEST
                       "\" is always the current version, and cannot be set");
    return TK_OK;
}

static tk_err check_version_locked(tk_store *store, uint64_t number, tk_diag *diag)
{
    int64_t there = 0;
    const tk_err err =
        number > INT64_MAX
            ? TK_OK
            : tk__db_int(store->db, &there, 0, diag,
                         "SELECT count(*) FROM versions WHERE number = ?", "i", (int64_t)number);
    if (err != TK_OK || there) return err;
    return tk_fail(diag, TK_NOTFOUND, "version %llu: there is none", (unsigned long long)number);
}

/* Only one label may have a share, and there may be so many of them. */
static tk_err check_others_locked(tk_store *store, const tk_version_label *label, tk_diag *diag)
{
    size_t others = 0;
    tk_rows rows;
    tk_err err =
        tk__rows_open(&rows, store->db, diag, "SELECT name, percent FROM labels WHERE name <> ?",
                      "t", label->name);
    while (err == TK_OK && tk__rows_next(&rows)) {
        others++;
        if (label->percent > 0 && tk__col_int(&rows, 1) > 0)
            err = tk_fail(
                diag, TK_PRECONDITION,
                "label \"%.32s\" has %d percent of the requests already, and only one label "
                "may have any: set that to 0 first",
                tk__col_text(&rows, 0), (int)tk__col_int(&rows, 1));
    }
    err = tk__rows_close(&rows, err, diag);
    if (err == TK_OK && others >= TK_VERSION_LABELS_MAX)
        err = tk_fail(diag, TK_LIMIT, "there are %zu labels, the limit is %d: delete one first",
                      others, (int)TK_VERSION_LABELS_MAX);
    return err;
}

tk_err tk_store_version_label_set(tk_store *store, const tk_version_label *label, tk_diag *diag)
{
    tk_err err = tk_version_label_check(label->name, diag);
    if (err == TK_OK && label->percent > 100)
        err = tk_fail(diag, TK_BADARG, "percent is %u, the limit is 100", label->percent);
    if (err != TK_OK) return err;
    err = tk__store_begin(store, diag);
    if (err != TK_OK) return err;
    err = check_version_locked(store, label->version, diag);
    if (err == TK_OK) err = check_others_locked(store, label, diag);
    if (err == TK_OK)
        err = tk__db_run(
            store->db, diag,
            "INSERT INTO labels(name, version, percent) VALUES(?, ?, ?) ON CONFLICT(name)"
            " DO UPDATE SET version = excluded.version, percent = excluded.percent",
            "tii", label->name, (int64_t)label->version, (int64_t)label->percent);
    return tk__store_end(store, err, diag);
}

tk_err tk_store_version_label_delete(tk_store *store, const char *name, tk_diag *diag)
{
    tk_err err = tk__store_begin(store, diag);
    if (err != TK_OK) return err;
    err = tk__db_run(store->db, diag, "DELETE FROM labels WHERE name = ?", "t", name);
    if (err == TK_OK && tk__db_changes(store->db) == 0)
        err = tk_fail(diag, TK_NOTFOUND, "label \"%.32s\": there is none", name);
    return tk__store_end(store, err, diag);
}

tk_err tk_store_version_label_list(tk_store *store, tk_version_labels *out, tk_diag *diag)
{
    tk_version_labels list = {0};
    *out = list;
    (void)pthread_mutex_lock(&store->lock);
    tk_rows rows;
    tk_err err = tk__rows_open(&rows, store->db, diag,
                               "SELECT name, version, percent FROM labels ORDER BY name", "");
    while (err == TK_OK && list.n < TK_VERSION_LABELS_MAX && tk__rows_next(&rows)) {
        tk_version_label *label = &list.items[list.n++];
        (void)snprintf(label->name, sizeof label->name, "%s", tk__col_text(&rows, 0));
        label->version = (uint64_t)tk__col_int(&rows, 1);
        label->percent = (unsigned)tk__col_int(&rows, 2);
    }
    err = tk__rows_close(&rows, err, diag);
    (void)pthread_mutex_unlock(&store->lock);
    if (err == TK_OK) *out = list;
    return err;
}

tk_err tk_store_version_file(tk_store *store, int64_t tenant, uint64_t number, tk_object *out,
                             tk_diag *diag)
{
    *out = (tk_object){0};
    tk_object found = {0};
    (void)pthread_mutex_lock(&store->lock);
    tk_rows rows;
    tk_err err = tk__rows_open(
        &rows, store->db, diag,
        "SELECT sha, bytes FROM versions WHERE number = ?1 AND (?2 = 0 OR EXISTS(SELECT 1 FROM"
        " version_heads v JOIN heads h ON h.id = v.head WHERE v.version = ?1 AND h.tenant = ?2))",
        "ii", number <= INT64_MAX ? (int64_t)number : (int64_t)0, tenant);
    if (err == TK_OK && tk__rows_next(&rows)) {
        (void)snprintf(found.sha, sizeof found.sha, "%s", tk__col_text(&rows, 0));
        found.bytes = (uint64_t)tk__col_int(&rows, 1);
    }
    err = tk__rows_close(&rows, err, diag);
    (void)pthread_mutex_unlock(&store->lock);
    if (err == TK_OK && !found.sha[0])
        err = tk_fail(diag, TK_NOTFOUND, "version %llu: there is none", (unsigned long long)number);
    if (err == TK_OK) *out = found;
    return err;
}
