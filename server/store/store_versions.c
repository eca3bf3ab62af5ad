/* Reading versions and their heads. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "engine/mem.h"
#include "heads/model.h"
#include "store/codec.h"
#include "store/store_internal.h"

static tk_err no_memory(tk_diag *diag)
{
    return tk_fail(diag, TK_NOMEM, "store: out of memory");
}

/* Columns that read_head() expects, from version_heads v, heads h, tenants t. */
#define HEAD_COLUMNS                                                                               \
    "v.version, t.name, h.tenant, h.name, h.born, h.created, v.tolerance, v.best, v.accuracy,"     \
    " v.change, v.top5, v.n, v.agreement, v.pack, v.pack_bytes, v.classes, v.labels, v.confusion"  \
    " FROM version_heads v JOIN heads h ON h.id = v.head JOIN tenants t ON t.id = h.tenant"

static tk_err read_confusion(const tk_rows *rows, tk_version_head *head, tk_diag *diag)
{
    size_t size;
    const unsigned char *bytes = tk__col_blob(rows, 17, &size);
    if (!bytes) return TK_OK;
    const size_t n = head->n_labels;
    if (size != n * n * 4)
        return tk_fail(diag, TK_BADDATA, "data base: damaged record of a confusion matrix");
    head->confusion = tk_calloc(n * n, sizeof *head->confusion);
    if (!head->confusion) return no_memory(diag);
    for (size_t i = 0; i < n * n; i++, bytes += 4)
        head->confusion[i] = (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 |
                             (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
    return TK_OK;
}

static void head_fini(tk_version_head *head)
{
    if (head->labels) tk__labels_free(head->labels, head->n_labels);
    tk_free(head->confusion);
    *head = (tk_version_head){0};
}

static tk_err read_head(const tk_rows *rows, unsigned with, tk_version_head *head, tk_diag *diag)
{
    *head = (tk_version_head){.tenant = tk__col_int(rows, 2),
                              .born = (uint64_t)tk__col_int(rows, 4),
                              .created_ms = tk__col_int(rows, 5),
                              .tolerance = tk__col_real(rows, 6),
                              .best = tk__col_real(rows, 7),
                              .accuracy = tk__col_real(rows, 8),
                              .change = tk__col_real(rows, 9),
                              .top5 = tk__col_real(rows, 10),
                              .n = (uint64_t)tk__col_int(rows, 11),
                              .agreement = tk__col_int(rows, 12) != 0,
                              .pack_bytes = (uint64_t)tk__col_int(rows, 14)};
    (void)snprintf(head->name, sizeof head->name, "%s", tk__col_text(rows, 3));
    (void)snprintf(head->id, sizeof head->id, "%.63s/%s", tk__col_text(rows, 1), head->name);
    (void)snprintf(head->pack, sizeof head->pack, "%s", tk__col_text(rows, 13));
    const int64_t classes = tk__col_int(rows, 15);
    if (classes < 0 || classes > TK_HEAD_MAX_CLASSES)
        return tk_fail(diag, TK_BADDATA, "data base: damaged record of head %s", head->id);
    head->n_labels = (size_t)classes;
    tk_err err = TK_OK;
    if (with & TK_WITH_LABELS) {
        size_t n;
        err = tk__decode_labels(tk__col_text(rows, 16), &head->labels, &n, diag);
        if (err == TK_OK && n != head->n_labels) {
            tk__labels_free(head->labels, n);
            head->labels = NULL;
            err = tk_fail(diag, TK_BADDATA, "data base: damaged record of head %s", head->id);
        }
    }
    if (err == TK_OK && with & TK_WITH_CONFUSION) err = read_confusion(rows, head, diag);
    if (err != TK_OK) head_fini(head);
    return err;
}

static tk_err read_heads_locked(tk_store *store, int64_t tenant, unsigned with, tk_version *version,
                                tk_diag *diag)
{
    tk_rows rows;
    size_t cap = 0;
    tk_err err =
        tk__rows_open(&rows, store->db, diag,
                      "SELECT " HEAD_COLUMNS
                      " WHERE v.version = ?1 AND (?2 = 0 OR h.tenant = ?2) ORDER BY t.name, h.name",
                      "ii", (int64_t)version->number, tenant);
    while (err == TK_OK && tk__rows_next(&rows)) {
        void *items = version->heads;
        if (!tk__list_grow(&items, version->n_heads, &cap, sizeof *version->heads)) {
            err = no_memory(diag);
            break;
        }
        version->heads = items;
        err = read_head(&rows, with, &version->heads[version->n_heads], diag);
        if (err == TK_OK) version->n_heads++;
    }
    return tk__rows_close(&rows, err, diag);
}

static tk_err read_version(const tk_rows *rows, tk_version *out, tk_diag *diag)
{
    *out = (tk_version){.number = (uint64_t)tk__col_int(rows, 0),
                        .job = (uint64_t)tk__col_int(rows, 1),
                        .bytes = (uint64_t)tk__col_int(rows, 4),
                        .created_ms = tk__col_int(rows, 5),
                        .current = tk__col_int(rows, 6) != 0};
    (void)snprintf(out->sha, sizeof out->sha, "%s", tk__col_text(rows, 3));
    out->reason = tk_strdup(tk__col_text(rows, 2));
    return out->reason ? TK_OK : no_memory(diag);
}

/* `number` 0: all; `limit` 0: no limit. Newest first. */
static tk_err read_versions_locked(tk_store *store, int64_t tenant, uint64_t number, unsigned with,
                                   size_t limit, tk_versions *out, tk_diag *diag)
{
    tk_rows rows;
    size_t cap = 0;
    tk_err err = tk__rows_open(
        &rows, store->db, diag,
        "SELECT number, job, reason, sha, bytes, created, number = ifnull((SELECT version"
        " FROM current), 0) FROM versions WHERE ?1 = 0 OR number = ?1"
        " ORDER BY number DESC LIMIT ?2",
        "ii", (int64_t)number, limit ? (int64_t)limit : (int64_t)-1);
    while (err == TK_OK && tk__rows_next(&rows)) {
        void *items = out->items;
        if (!tk__list_grow(&items, out->n, &cap, sizeof *out->items)) {
            err = no_memory(diag);
            break;
        }
        out->items = items;
        err = read_version(&rows, &out->items[out->n], diag);
        if (err == TK_OK) out->n++;
    }
    err = tk__rows_close(&rows, err, diag);
    for (size_t i = 0; i < out->n && err == TK_OK; i++)
        err = read_heads_locked(store, tenant, with, &out->items[i], diag);
    return err;
}

tk_err tk_store_version_list(tk_store *store, int64_t tenant, unsigned with, size_t limit,
                             tk_versions *out, tk_diag *diag)
{
    *out = (tk_versions){0};
    (void)pthread_mutex_lock(&store->lock);
    const tk_err err = read_versions_locked(store, tenant, 0, with, limit, out, diag);
    (void)pthread_mutex_unlock(&store->lock);
    if (err != TK_OK) tk_versions_fini(out);
    return err;
}

tk_err tk_store_version_get(tk_store *store, int64_t tenant, uint64_t number, unsigned with,
                            tk_version *out, tk_diag *diag)
{
    *out = (tk_version){0};
    tk_versions list = {0};
    uint64_t wanted = number;
    (void)pthread_mutex_lock(&store->lock);
    tk_err err = number ? TK_OK : tk__store_current_locked(store, &wanted, diag);
    if (err == TK_OK && !wanted)
        err = tk_fail(diag, TK_PRECONDITION,
                      "there is no version yet: train a first head or import a trunk");
    if (err == TK_OK && wanted <= INT64_MAX)
        err = read_versions_locked(store, tenant, wanted, with, 1, &list, diag);
    (void)pthread_mutex_unlock(&store->lock);
    if (err == TK_OK && list.n == 0)
        err = tk_fail(diag, TK_NOTFOUND, "version %llu: there is none", (unsigned long long)number);
    if (err != TK_OK) {
        tk_versions_fini(&list);
        return err;
    }
    *out = list.items[0];
    tk_free(list.items);
    return TK_OK;
}

tk_err tk_store_version_next(tk_store *store, uint64_t *number, tk_diag *diag)
{
    int64_t last;
    (void)pthread_mutex_lock(&store->lock);
    const tk_err err =
        tk__db_int(store->db, &last, 0, diag, "SELECT max(number) FROM versions", "");
    (void)pthread_mutex_unlock(&store->lock);
    *number = err == TK_OK ? (uint64_t)last + 1 : 0;
    return err;
}

static tk_err read_history_locked(tk_store *store, int64_t tenant, const char *head, bool history,
                                  unsigned with, tk_head_history *out, tk_diag *diag)
{
    tk_rows rows;
    size_t cap = 0;
    tk_err err = tk__rows_open(
        &rows, store->db, diag,
        "SELECT " HEAD_COLUMNS " WHERE ((?1 = 0 AND t.name || '/' || h.name = ?2)"
        " OR (?1 <> 0 AND h.tenant = ?1 AND h.name = ?2)) AND (?3 OR v.version = (SELECT version "
        "FROM current))"
        " AND EXISTS(SELECT 1 FROM version_heads w JOIN current USING(version) WHERE w.head = h.id)"
        " ORDER BY v.version",
        "iti", tenant, head ? head : "", (int64_t)history);
    while (err == TK_OK && tk__rows_next(&rows)) {
        void *items = out->items;
        if (!tk__list_grow(&items, out->n, &cap, sizeof *out->items)) {
            err = no_memory(diag);
            break;
        }
        out->items = items;
        out->items[out->n].version = (uint64_t)tk__col_int(&rows, 0);
        err = read_head(&rows, with, &out->items[out->n].head, diag);
        if (err == TK_OK) out->n++;
    }
    return tk__rows_close(&rows, err, diag);
}

tk_err tk_store_head_get(tk_store *store, int64_t tenant, const char *head, bool history,
                         unsigned with, tk_head_history *out, tk_diag *diag)
{
    *out = (tk_head_history){0};
    (void)pthread_mutex_lock(&store->lock);
    tk_err err = read_history_locked(store, tenant, head, history, with, out, diag);
    (void)pthread_mutex_unlock(&store->lock);
    if (err == TK_OK && out->n == 0)
        err = tk_fail(diag, TK_NOTFOUND, "head \"%.127s\": there is none", head ? head : "");
    if (err != TK_OK) tk_head_history_fini(out);
    return err;
}

void tk_head_history_fini(tk_head_history *list)
{
    for (size_t i = 0; i < list->n; i++)
        head_fini(&list->items[i].head);
    tk_free(list->items);
    *list = (tk_head_history){0};
}

static tk_err read_places_locked(tk_store *store, int64_t tenant, const char *head, size_t limit,
                                 tk_head_places *out, tk_diag *diag)
{
    tk_rows rows;
    size_t cap = 0;
    tk_err err = tk__rows_open(
        &rows, store->db, diag,
        "SELECT version, tenant, head FROM (SELECT v.version, t.name tenant, h.name head"
        " FROM version_heads v JOIN heads h ON h.id = v.head"
        " JOIN tenants t ON t.id = h.tenant"
        " WHERE (?1 = 0 OR h.tenant = ?1) AND (?2 = '' OR ?2 ="
        " CASE WHEN ?1 = 0 THEN t.name || '/' || h.name ELSE h.name END)"
        " ORDER BY v.version DESC LIMIT ?3) ORDER BY tenant, head, version",
        "iti", tenant, head, (int64_t)limit);
    while (err == TK_OK && tk__rows_next(&rows)) {
        void *items = out->items;
        if (!tk__list_grow(&items, out->n, &cap, sizeof *out->items)) {
            err = no_memory(diag);
            break;
        }
        out->items = items;
        struct tk_head_place *place = &out->items[out->n++];
        place->version = (uint64_t)tk__col_int(&rows, 0);
        (void)snprintf(place->head, sizeof place->head, "%.63s/%.63s", tk__col_text(&rows, 1),
                       tk__col_text(&rows, 2));
    }
    return tk__rows_close(&rows, err, diag);
}

tk_err tk_store_head_places(tk_store *store, int64_t tenant, const char *head, size_t limit,
                            tk_head_places *out, tk_diag *diag)
{
    *out = (tk_head_places){0};
    (void)pthread_mutex_lock(&store->lock);
    const tk_err err = read_places_locked(store, tenant, head, limit, out, diag);
    (void)pthread_mutex_unlock(&store->lock);
    if (err != TK_OK) tk_head_places_fini(out);
    return err;
}

void tk_head_places_fini(tk_head_places *list)
{
    tk_free(list->items);
    *list = (tk_head_places){0};
}

void tk_version_fini(tk_version *version)
{
    for (size_t i = 0; i < version->n_heads; i++)
        head_fini(&version->heads[i]);
    tk_free(version->heads);
    tk_free(version->reason);
    *version = (tk_version){0};
}

void tk_versions_fini(tk_versions *list)
{
    for (size_t i = 0; i < list->n; i++)
        tk_version_fini(&list->items[i]);
    tk_free(list->items);
    *list = (tk_versions){0};
}

/* -- the trunk of a fresh store -- */

tk_err tk_store_trunk_get(tk_store *store, tk_trunk *out, tk_diag *diag)
{
    tk_trunk trunk = {0};
    bool found = false;
    *out = trunk;
    (void)pthread_mutex_lock(&store->lock);
    tk_rows rows;
    tk_err err = tk__rows_open(&rows, store->db, diag, "SELECT arch, preproc FROM trunk", "");
    if (err == TK_OK && tk__rows_next(&rows)) {
        found = true;
        (void)snprintf(trunk.arch, sizeof trunk.arch, "%s", tk__col_text(&rows, 0));
        err = tk__decode_preproc(tk__col_text(&rows, 1), &trunk.preproc, diag);
    }
    err = tk__rows_close(&rows, err, diag);
    (void)pthread_mutex_unlock(&store->lock);
    if (err == TK_OK && !found)
        err = tk_fail(diag, TK_NOTFOUND, "the store has no trunk settings yet");
    if (err == TK_OK) *out = trunk;
    return err;
}
