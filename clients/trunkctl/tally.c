/* Counts of answers by label: see tally.h. A few hundred labels at most are ever answered, so rows
 * are searched from front to back, and the row found moves one place forward: frequent labels end
 * up in front. */
#include "tally.h"

#include <stdlib.h>
#include <string.h>

#include "ctl.h"
#include "json.h"
#include "term.h"

void tk__tally_add(tk__tally *tally, const char *label, double score)
{
    size_t i = 0;
    while (i < tally->n && strcmp(tally->rows[i].label, label) != 0)
        i++;
    if (i == tally->n) {
        tally->rows = tk__grow(tally->rows, tally->n + 1, sizeof(*tally->rows));
        tally->rows[tally->n++] = (tk__tally_row){.label = tk__copy(label)};
    }
    tally->rows[i].count++;
    tally->rows[i].score += score;
    tally->total++;
    if (i) {
        const tk__tally_row row = tally->rows[i];
        tally->rows[i] = tally->rows[i - 1];
        tally->rows[i - 1] = row;
    }
}

static int by_count(const void *a, const void *b)
{
    const tk__tally_row *x = a, *y = b;
    return x->count != y->count ? (x->count < y->count ? 1 : -1) : strcmp(x->label, y->label);
}

void tk__tally_sort(tk__tally *tally)
{
    if (tally->n) qsort(tally->rows, tally->n, sizeof(*tally->rows), by_count);
}

size_t tk__tally_print(tk__tally *tally, FILE *out)
{
    tk__tally_sort(tally);
    char *head = tk__clean(tally->head ? tally->head : "");
    fprintf(out, "%s: %llu image%s\n", head, (unsigned long long)tally->total,
            tally->total == 1 ? "" : "s");
    free(head);
    tk__table table;
    tk__table_init(&table, "lrrl");
    for (size_t i = 0; i < tally->n; i++) {
        const tk__tally_row *row = &tally->rows[i];
        const double share = (double)row->count / (double)tally->total;
        char percent[32], bar[33] = "";
        for (size_t k = 0; k < (size_t)(share * 32 + 0.5); k++)
            bar[k] = '#';
        tk__table_cell(&table, "%s", row->label);
        tk__table_cell(&table, "%llu", (unsigned long long)row->count);
        tk__table_cell(&table, "%s", tk__percent(share, percent, sizeof(percent)));
        tk__table_cell(&table, "%s", bar);
    }
    return 1 + tk__table_print(&table, out, 2);
}

json_t *tk__tally_json(tk__tally *tally)
{
    tk__tally_sort(tally);
    json_t *rows = json_array();
    for (size_t i = 0; i < tally->n; i++) {
        const tk__tally_row *row = &tally->rows[i];
        json_array_append_new(rows,
                              json_pack("{s:o, s:I, s:f, s:f}", "label", tk__json_text(row->label),
                                        "images", (json_int_t)row->count, "share",
                                        (double)row->count / (double)tally->total, "mean_score",
                                        row->score / (double)row->count));
    }
    return json_pack("{s:o, s:I, s:o}", "head", tk__json_text(tally->head ? tally->head : ""),
                     "images", (json_int_t)tally->total, "tally", rows);
}

void tk__tally_free(tk__tally *tally)
{
    for (size_t i = 0; i < tally->n; i++)
        free(tally->rows[i].label);
    free(tally->rows);
    free(tally->head);
    *tally = (tk__tally){0};
}
