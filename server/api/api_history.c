/* trunkd.v1.Heads/GetHistory: every head's accuracy after every version, and the metrics of
 * learning.h over it. A tenant's columns are its own heads. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/api_internal.h"
#include "api/learning.h"
#include "engine/mem.h"

/* One head's story. */
typedef struct column {
    const char *id, *name; /* borrowed from the versions */
    uint64_t born;
} column;

typedef struct history {
    tk_versions versions; /* oldest first; the rows are those with a head */
    tk_lessons lessons;
    column *columns;
    tk_version **rows; /* into versions */
    size_t n_rows, n_columns, cap_columns;
    /* [n_rows][n_columns] */
    tk_version_head **heads; /* NULL: not there */
    double *accuracy, *low;
    size_t *since;
    tk_head_learning *measured; /* [n_columns] */
} history;

static void history_fini(history *h)
{
    tk_free(h->columns);
    tk_free(h->rows);
    tk_free(h->heads);
    tk_free(h->accuracy);
    tk_free(h->low);
    tk_free(h->since);
    tk_free(h->measured);
    tk_lessons_fini(&h->lessons);
    tk_versions_fini(&h->versions);
}

/* -- rows and columns -- */

static size_t find_column(const history *h, const char *id)
{
    size_t j = 0;
    while (j < h->n_columns && strcmp(h->columns[j].id, id) != 0)
        j++;
    return j;
}

static int by_birth(const void *a, const void *b)
{
    const column *x = a, *y = b;
    if (x->born != y->born) return x->born < y->born ? -1 : 1;
    return strcmp(x->id, y->id);
}

static bool asked_for(const Trunkd__V1__GetHistoryRequest *in, const char *name)
{
    for (size_t i = 0; i < in->n_heads; i++)
        if (strcmp(in->heads[i], name) == 0) return true;
    return in->n_heads == 0;
}

static tk_err add_columns(history *h, const Trunkd__V1__GetHistoryRequest *in, bool admin,
                          tk_version *version)
{
    for (size_t k = 0; k < version->n_heads; k++) {
        const tk_version_head *head = &version->heads[k];
        const char *name = admin ? head->id : head->name;
        if (!asked_for(in, name) || find_column(h, head->id) < h->n_columns) continue;
        if (h->n_columns == h->cap_columns) {
            const size_t cap = h->cap_columns ? 2 * h->cap_columns : 16;
            column *more = tk_realloc(h->columns, cap * sizeof *more);
            if (!more) return TK_NOMEM;
            h->columns = more;
            h->cap_columns = cap;
        }
        h->columns[h->n_columns++] = (column){.id = head->id, .name = name, .born = head->born};
    }
    return TK_OK;
}

static bool has_column(const history *h, const tk_version *version)
{
    for (size_t k = 0; k < version->n_heads; k++)
        if (find_column(h, version->heads[k].id) < h->n_columns) return true;
    return false;
}

/* Turns the list, which is newest first. */
static void reverse(tk_versions *list)
{
    for (size_t i = 0; i < list->n / 2; i++) {
        const tk_version swap = list->items[i];
        list->items[i] = list->items[list->n - 1 - i];
        list->items[list->n - 1 - i] = swap;
    }
}

static tk_err find_rows(history *h, const Trunkd__V1__GetHistoryRequest *in, bool admin,
                        tk_diag *diag)
{
    reverse(&h->versions);
    h->rows = tk_calloc(h->versions.n + 1, sizeof *h->rows);
    if (!h->rows) return TK_NOMEM;
    for (size_t i = 0; i < h->versions.n; i++) {
        const tk_err err = add_columns(h, in, admin, &h->versions.items[i]);
        if (err != TK_OK) return err;
    }
    if (h->n_columns > 1) qsort(h->columns, h->n_columns, sizeof *h->columns, by_birth);
    for (size_t i = 0; i < in->n_heads; i++) {
        size_t j = 0;
        while (j < h->n_columns && strcmp(h->columns[j].name, in->heads[i]) != 0)
            j++;
        if (j == h->n_columns)
            return tk_fail(diag, TK_NOTFOUND, "head \"%.127s\": there is none", in->heads[i]);
    }
    for (size_t i = 0; i < h->versions.n; i++)
        if (has_column(h, &h->versions.items[i])) h->rows[h->n_rows++] = &h->versions.items[i];
    return TK_OK;
}

/* -- the cells -- */

static const tk_lesson *lesson_of(const history *h, uint64_t version)
{
    for (size_t i = 0; i < h->lessons.n; i++)
        if (h->lessons.items[i].version == version) return &h->lessons.items[i];
    return NULL;
}

/* The row whose heads row i goes on with: the one before, or the one that it is a copy of, when it
 * was rolled back. SIZE_MAX: none. */
static size_t parent_of(const history *h, size_t i)
{
    for (size_t k = i; h->rows[i]->job == 0 && k-- > 0;)
        if (strcmp(h->rows[k]->sha, h->rows[i]->sha) == 0) return k;
    return i ? i - 1 : SIZE_MAX;
}

/* The row that trained head j as it is in row i. */
static size_t since_of(const history *h, size_t i, size_t j, size_t parent, const tk_lesson *lesson)
{
    if (!h->heads[i * h->n_columns + j]) return SIZE_MAX;
    if (lesson && strcmp(lesson->head, h->columns[j].id) == 0) return i;
    const size_t was = parent == SIZE_MAX ? SIZE_MAX : h->since[parent * h->n_columns + j];
    return was == SIZE_MAX ? i : was;
}

static void fill_row(history *h, size_t i)
{
    tk_version *version = h->rows[i];
    const tk_lesson *lesson = lesson_of(h, version->number);
    const size_t parent = parent_of(h, i);
    for (size_t k = 0; k < version->n_heads; k++) {
        const size_t j = find_column(h, version->heads[k].id);
        if (j < h->n_columns) h->heads[i * h->n_columns + j] = &version->heads[k];
    }
    for (size_t j = 0; j < h->n_columns; j++) {
        const size_t at = i * h->n_columns + j;
        const tk_version_head *head = h->heads[at];
        h->since[at] = since_of(h, i, j, parent, lesson);
        h->accuracy[at] = head && head->n > 0 && !head->agreement ? head->accuracy : (double)NAN;
        h->low[at] = (double)NAN;
    }
    for (size_t k = 0; k < h->lessons.n_lows; k++) {
        const tk_low *low = &h->lessons.lows[k];
        const size_t j = low->version == version->number ? find_column(h, low->head) : h->n_columns;
        if (j < h->n_columns) h->low[i * h->n_columns + j] = low->accuracy;
    }
}

static tk_err fill(history *h)
{
    const size_t cells = h->n_rows * h->n_columns + 1;
    h->heads = tk_calloc(cells, sizeof *h->heads);
    h->accuracy = tk_calloc(cells, sizeof *h->accuracy);
    h->low = tk_calloc(cells, sizeof *h->low);
    h->since = tk_calloc(cells, sizeof *h->since);
    h->measured = tk_calloc(h->n_columns + 1, sizeof *h->measured);
    if (!h->heads || !h->accuracy || !h->low || !h->since || !h->measured) return TK_NOMEM;
    for (size_t i = 0; i < h->n_rows; i++)
        fill_row(h, i);
    return TK_OK;
}

/* -- the answer -- */

/* NULL for what is not known. */
static Trunkd__V1__Number *put_number(tk__region *region, double value)
{
    if (isnan(value)) return NULL;
    Trunkd__V1__Number *m = tk__new(region, &trunkd__v1__number__descriptor);
    if (m) m->value = value;
    return m;
}

static Trunkd__V1__Mean *put_mean(tk__region *region, tk_mean mean)
{
    if (mean.heads == 0) return NULL;
    Trunkd__V1__Mean *m = tk__new(region, &trunkd__v1__mean__descriptor);
    if (!m) return NULL;
    m->value = mean.value;
    m->heads = mean.heads;
    return m;
}

static Trunkd__V1__HistoryCell *put_cell(tk__region *region, const history *h, size_t i, size_t j,
                                         const tk_lesson *lesson)
{
    Trunkd__V1__HistoryCell *m = tk__new(region, &trunkd__v1__history_cell__descriptor);
    const size_t at = i * h->n_columns + j;
    const tk_version_head *head = h->heads[at];
    if (!m || !head) return m;
    m->present = true;
    m->accuracy = tk__number(head->accuracy);
    m->images = head->n;
    m->agreement = head->agreement;
    m->trained = lesson && strcmp(lesson->head, h->columns[j].id) == 0;
    m->lowest = put_number(region, h->low[at]);
    return m;
}

static Trunkd__V1__HistoryVersion *put_row(tk__region *region, tk__names *names, history *h,
                                           size_t i)
{
    Trunkd__V1__HistoryVersion *m = tk__new(region, &trunkd__v1__history_version__descriptor);
    if (!m) return NULL;
    const tk_lesson *lesson = lesson_of(h, h->rows[i]->number);
    m->number = h->rows[i]->number;
    m->created_ms = h->rows[i]->created_ms;
    if (lesson) {
        bool own;
        char id[TK_HEAD_ID_SIZE];
        memcpy(id, lesson->head, sizeof id);
        m->trained = tk__print(region, "%s", tk__names_show(names, id, &own));
        if (own || names->admin) m->job = lesson->job;
    }
    m->cells = tk__alloc(region, h->n_columns, sizeof *m->cells);
    for (size_t j = 0; m->cells && j < h->n_columns; j++) {
        m->cells[j] = put_cell(region, h, i, j, lesson);
        if (!m->cells[j]) return NULL;
        m->n_cells++;
    }
    return m;
}

static Trunkd__V1__HistoryHead *put_column(tk__region *region, const history *h, size_t j)
{
    Trunkd__V1__HistoryHead *m = tk__new(region, &trunkd__v1__history_head__descriptor);
    if (!m) return NULL;
    const tk_head_learning *l = &h->measured[j];
    m->head = tk__print(region, "%s", h->columns[j].name);
    m->since = l->since == SIZE_MAX ? 0 : h->rows[l->since]->number;
    m->change = put_number(region, l->change);
    m->forgetting = put_number(region, l->forgetting);
    m->lowest = put_number(region, l->lowest);
    return m;
}

static Trunkd__V1__History *put_history(tk__region *region, tk__names *names, history *h)
{
    Trunkd__V1__History *m = tk__new(region, &trunkd__v1__history__descriptor);
    if (!m) return NULL;
    const tk_learning learning = {.rows = h->n_rows,
                                  .heads = h->n_columns,
                                  .accuracy = h->accuracy,
                                  .since = h->since,
                                  .low = h->low};
    const tk_learning_metrics means = tk_learning_measure(&learning, h->measured);
    m->acc = put_mean(region, means.acc);
    m->bwt = put_mean(region, means.bwt);
    m->forgetting = put_mean(region, means.forgetting);
    m->min_acc = put_mean(region, means.min_acc);
    m->heads = tk__alloc(region, h->n_columns, sizeof *m->heads);
    for (size_t j = 0; m->heads && j < h->n_columns; j++) {
        m->heads[j] = put_column(region, h, j);
        if (!m->heads[j]) return NULL;
        m->n_heads++;
    }
    m->versions = tk__alloc(region, h->n_rows, sizeof *m->versions);
    for (size_t i = 0; m->versions && i < h->n_rows; i++) {
        m->versions[i] = put_row(region, names, h, i);
        if (!m->versions[i]) return NULL;
        m->n_versions++;
    }
    return m;
}

void tk__heads_history(tk_rpc_call *call, const ProtobufCMessage *message)
{
    const Trunkd__V1__GetHistoryRequest *in = (const Trunkd__V1__GetHistoryRequest *)message;
    tk_diag diag = {{0}};
    history h = {.n_rows = 0};
    tk__names names = {.n = 0};
    tk_store *store = tk__api(call)->o.store;
    tk_err err = in->n_heads > TK_API_HEADS_MAX
                     ? tk_fail(&diag, TK_BADARG, "heads has %zu entries, the limit is %d",
                               in->n_heads, (int)TK_API_HEADS_MAX)
                     : tk_store_version_list(store, tk__tenant(call), 0, 0, &h.versions, &diag);
    if (err == TK_OK) err = tk_store_lessons(store, &h.lessons, &diag);
    if (err == TK_OK) err = find_rows(&h, in, tk_rpc_identity(call)->admin, &diag);
    if (err == TK_OK) err = fill(&h);
    if (err == TK_OK) err = tk__names_init(&names, call, &diag);
    if (err == TK_OK) {
        tk__region region = {NULL, false};
        tk__reply(call, &region, put_history(&region, &names, &h));
    } else {
        tk__fail(call, err, &diag);
    }
    tk__names_fini(&names);
    history_fini(&h);
}
