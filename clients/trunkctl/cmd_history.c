/* validation --history: every head's accuracy after every version, as a matrix, as CSV or as JSON,
 * and the metrics of learning over time with their definitions. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "csv.h"
#include "ctl.h"
#include "term.h"
#include "trunkd/v1/heads.pb-c.h"

static void matrix_cell(tk__table *table, const Trunkd__V1__HistoryCell *c)
{
    char buf[32];
    const char *mark = c->trained ? "* " : "";
    if (!c->present)
        tk__table_cell(table, "%s", "");
    else if (c->images == 0)
        tk__table_cell(table, "%s-", mark);
    else
        tk__table_cell(table, "%s%s%s", mark, c->agreement ? "~" : "",
                       tk__percent(c->accuracy, buf, sizeof(buf)));
}

static void print_matrix(const Trunkd__V1__History *h)
{
    tk__table table;
    char *align = tk__alloc(h->n_heads + 4, 1), when[32];
    memcpy(align, "lll", 3);
    memset(align + 3, 'r', h->n_heads);
    tk__table_init(&table, align);
    tk__table_cell(&table, "VERSION");
    tk__table_cell(&table, "MADE");
    tk__table_cell(&table, "LEARNED");
    for (size_t j = 0; j < h->n_heads; j++)
        tk__table_cell(&table, "%s", h->heads[j]->head);
    for (size_t i = 0; i < h->n_versions; i++) {
        const Trunkd__V1__HistoryVersion *v = h->versions[i];
        tk__table_cell(&table, "%llu", (unsigned long long)v->number);
        tk__table_cell(&table, "%s", tk__when(v->created_ms, when, sizeof(when)));
        tk__table_cell(&table, "%s", v->trained[0] ? v->trained : "-");
        for (size_t j = 0; j < v->n_cells; j++)
            matrix_cell(&table, v->cells[j]);
    }
    puts("Accuracy on held-out images after each version (* trained by it, ~ agreement with the "
         "head's"
         " own\nearlier answers, - not measured)\n");
    tk__table_print(&table, stdout, 0);
    free(align);
}

static void number_cell(tk__table *table, const Trunkd__V1__Number *number, bool points)
{
    char buf[32];
    if (!number)
        tk__table_cell(table, "-");
    else if (points)
        tk__table_cell(table, "%s", tk__points(number->value, buf, sizeof(buf)));
    else
        tk__table_cell(table, "%s", tk__percent(number->value, buf, sizeof(buf)));
}

static void print_heads(const Trunkd__V1__History *h)
{
    tk__table table;
    tk__table_init(&table, "lrrrr");
    static const char *const titles[] = {"HEAD", "SINCE", "CHANGE", "FORGETTING", "LOWEST"};
    for (size_t i = 0; i < 5; i++)
        tk__table_cell(&table, "%s", titles[i]);
    for (size_t j = 0; j < h->n_heads; j++) {
        const Trunkd__V1__HistoryHead *head = h->heads[j];
        tk__table_cell(&table, "%s", head->head);
        if (head->since)
            tk__table_cell(&table, "%llu", (unsigned long long)head->since);
        else
            tk__table_cell(&table, "gone");
        number_cell(&table, head->change, true);
        number_cell(&table, head->forgetting, true);
        number_cell(&table, head->lowest, false);
    }
    putchar('\n');
    tk__table_print(&table, stdout, 0);
}

static void mean_row(tk__table *table, const char *name, const Trunkd__V1__Mean *mean, bool points,
                     const char *definition)
{
    const Trunkd__V1__Number number = {.value = mean ? mean->value : 0};
    tk__table_cell(table, "%s", name);
    number_cell(table, mean ? &number : NULL, points);
    if (mean)
        tk__table_cell(table, "%llu", (unsigned long long)mean->heads);
    else
        tk__table_cell(table, "-");
    tk__table_cell(table, "%s", definition);
}

static void print_means(const Trunkd__V1__History *h)
{
    tk__table table;
    tk__table_init(&table, "lrrl");
    static const char *const titles[] = {"MEAN", "VALUE", "HEADS", "OF"};
    for (size_t i = 0; i < 4; i++)
        tk__table_cell(&table, "%s", titles[i]);
    mean_row(&table, "ACC", h->acc, false, "accuracy at the last version");
    mean_row(&table, "BWT", h->bwt, true,
             "CHANGE, in points: accuracy at the last version less that at SINCE");
    mean_row(&table, "forgetting", h->forgetting, true,
             "FORGETTING, in points: the highest accuracy from SINCE on less the last");
    mean_row(&table, "Min-ACC", h->min_acc, false,
             "LOWEST: the lowest accuracy at the evaluations while later jobs trained");
    mean_row(
        &table, "intransigence", NULL, true,
        "accuracy of a head trained alone less that at SINCE: not known without such a training");
    putchar('\n');
    tk__table_print(&table, stdout, 0);
    puts("\nSINCE is the version that trained the head as it is now. What dipped while a job "
         "trained "
         "was "
         "never\nserved: only committed versions are.");
}

static void print_csv(const Trunkd__V1__History *h)
{
    puts("version,made_ms,learned,head,accuracy,images,measured_as,trained,lowest");
    for (size_t i = 0; i < h->n_versions; i++)
        for (size_t j = 0; j < h->versions[i]->n_cells; j++) {
            const Trunkd__V1__HistoryVersion *v = h->versions[i];
            const Trunkd__V1__HistoryCell *c = v->cells[j];
            if (!c->present) continue;
            printf("%llu,%lld,", (unsigned long long)v->number, (long long)v->created_ms);
            tk__csv_put(stdout, v->trained);
            putchar(',');
            tk__csv_put(stdout, h->heads[j]->head);
            putchar(',');
            if (c->images) printf("%.6f", c->accuracy);
            printf(",%llu,%s,%d,", (unsigned long long)c->images,
                   !c->images     ? ""
                   : c->agreement ? "agreement"
                                  : "accuracy",
                   c->trained);
            if (c->lowest) printf("%.6f", c->lowest->value);
            putchar('\n');
        }
}

int tk__history(tk__ctl *ctl, const tk__list *heads, bool csv)
{
    Trunkd__V1__GetHistoryRequest request;
    trunkd__v1__get_history_request__init(&request);
    request.n_heads = heads->n;
    request.heads = heads->items;
    Trunkd__V1__History *h = tk__call(ctl, "/trunkd.v1.Heads/GetHistory", &request.base,
                                      &trunkd__v1__history__descriptor);
    if (!h) return TK__FAILED;
    if (csv) {
        print_csv(h);
    } else if (ctl->json) {
        tk__print_json(&h->base);
    } else if (ctl->quiet) {
        if (h->acc) printf("%.2f\n", 100 * h->acc->value);
    } else if (h->n_heads == 0) {
        puts("No head yet. Teach one: trunkctl finetune --head NAME --data ID --watch");
    } else {
        print_matrix(h);
        print_heads(h);
        print_means(h);
    }
    tk_client_free_message(&h->base);
    return TK__DONE;
}
