/* gate explain: what the gate decided about a job, a sentence about each head, and whether it
 * decides the same again. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ctl.h"
#include "term.h"
#include "trunkd/v1/jobs.pb-c.h"

static void print_top(const Trunkd__V1__Decision *d)
{
    char when[32];
    char *outcome = tk__clean(d->outcome), *reason = tk__clean(d->reason);
    char *base = tk__clean(d->base_sha256), *candidate = tk__clean(d->sha256);
    printf("job        %llu\noutcome    %s\nreason     %s\n", (unsigned long long)d->job, outcome,
           reason);
    if (d->base_version)
        printf("base       version %llu, sha256 %s\n", (unsigned long long)d->base_version, base);
    else
        puts("base       none: a fresh trunk");
    if (d->version)
        printf("candidate  version %llu, sha256 %s\n", (unsigned long long)d->version, candidate);
    else
        puts("candidate  refused; no file was kept");
    printf("decided    %s\n", tk__when(d->decided_ms, when, sizeof(when)));
    free(outcome);
    free(reason);
    free(base);
    free(candidate);
}

static void head_row(tk__table *table, const Trunkd__V1__JudgedHead *h)
{
    char buf[32];
    const bool measured = h->images > 0;
    tk__table_cell(table, "%s", h->head);
    tk__table_cell(table, "%llu", (unsigned long long)h->images);
    tk__table_cell(table, "%s", measured ? tk__percent(h->before, buf, sizeof(buf)) : "-");
    tk__table_cell(table, "%s", measured ? tk__percent(h->after, buf, sizeof(buf)) : "-");
    tk__table_cell(table, "%llu", (unsigned long long)h->lost);
    tk__table_cell(table, "%llu", (unsigned long long)h->won);
    tk__table_cell(table, "%+.1f", 0 - h->drop);
    tk__table_cell(table, "%.1f", h->se);
    tk__table_cell(table, "%s", measured ? tk__percent(h->best, buf, sizeof(buf)) : "-");
    tk__table_cell(table, "%.1f", h->tolerance);
    tk__table_cell(table, "%.1f", h->sigma);
    tk__table_cell(table, "%s", measured ? tk__percent(h->floor, buf, sizeof(buf)) : "-");
    tk__table_cell(table, "%s%s", h->admitted ? "admitted" : "refused",
                   h->agreement ? " (agreement)" : "");
}

static void print_heads(const Trunkd__V1__Decision *d)
{
    tk__table table;
    tk__table_init(&table, "lrrrrrrrrrrrl");
    static const char *const titles[] = {"HEAD",  "IMAGES", "BEFORE", "AFTER", "LOST",
                                         "WON",   "CHANGE", "+-",     "BEST",  "MAY FALL",
                                         "SIGMA", "FLOOR",  "VERDICT"};
    for (size_t i = 0; i < sizeof(titles) / sizeof(*titles); i++)
        tk__table_cell(&table, "%s", titles[i]);
    for (size_t i = 0; i < d->n_heads; i++)
        head_row(&table, d->heads[i]);
    putchar('\n');
    tk__table_print(&table, stdout, 0);
}

/* One head in words. */
static void print_sentence(const Trunkd__V1__JudgedHead *h)
{
    char before[32], after[32], floor[32];
    const double above = 100 * (h->after - h->floor);
    tk__put(stdout, h->head);
    if (h->images == 0) {
        printf(": there was no held-out image to measure it on, so nothing can be told.\n");
        return;
    }
    printf(
        ": %s before, %s after on %llu held-out images (%llu lost, %llu won), %.1f points %s its "
        "floor of %s: %s.",
        tk__percent(h->before, before, sizeof(before)), tk__percent(h->after, after, sizeof(after)),
        (unsigned long long)h->images, (unsigned long long)h->lost, (unsigned long long)h->won,
        above < 0 ? 0 - above : above, above < 0 ? "below" : "above",
        tk__percent(h->floor, floor, sizeof(floor)), h->admitted ? "admitted" : "refused");
    if (h->sigma > 0)
        printf(
            " The job asked for a margin of %g times the standard error, %.1f points (gate_sigma).",
            h->sigma, h->sigma * h->se);
    const bool plain = !h->admitted && h->drop - h->tolerance > 2 * h->se; /* beyond chance */
    if (!h->resolved && !plain)
        printf(" Not enough held-out images to tell a drop of %.1f points from chance.",
               h->tolerance);
    if (h->agreement)
        printf(
            " Its owner keeps no labelled images: this is agreement with its own earlier answers, "
            "the weaker promise.");
    putchar('\n');
}

static void print_precisions(const Trunkd__V1__Decision *d)
{
    tk__table table;
    tk__table_init(&table, "llrrrrrl");
    static const char *const titles[] = {"PRECISION", "HEAD",     "ACCURACY", "CHANGE",
                                         "ALIKE",     "MAY FALL", "IMAGES",   "VERDICT"};
    for (size_t i = 0; i < sizeof(titles) / sizeof(*titles); i++)
        tk__table_cell(&table, "%s", titles[i]);
    for (size_t i = 0; i < d->n_precisions; i++)
        for (size_t k = 0; k < d->precisions[i]->n_heads; k++) {
            const Trunkd__V1__HeadPrecision *h = d->precisions[i]->heads[k];
            char buf[32];
            tk__table_cell(&table, "%s", d->precisions[i]->name);
            tk__table_cell(&table, "%s", h->head);
            tk__table_cell(&table, "%s", tk__percent(h->accuracy, buf, sizeof(buf)));
            tk__table_cell(&table, "%s", tk__points(h->change, buf, sizeof(buf)));
            tk__table_cell(&table, "%s", tk__percent(h->alike, buf, sizeof(buf)));
            tk__table_cell(&table, "%.1f", h->tolerance);
            tk__table_cell(&table, "%llu", (unsigned long long)h->images);
            tk__table_cell(&table, "%s%s", h->admitted ? "admitted" : "refused",
                           h->agreement ? " (agreement)" : "");
        }
    puts("\nThe candidate in other precisions, against itself in fp32:");
    tk__table_print(&table, stdout, 0);
}

/* What there was to choose from, and how the strength of protection was found. */
static void print_training(const Trunkd__V1__Decision *d)
{
    char buf[32];
    for (size_t i = 0; i < d->n_alternatives; i++) {
        printf("%s", i == 0 ? "new head   " : ", ");
        tk__put(stdout, d->alternatives[i]->name);
        printf(" %s", tk__percent(d->alternatives[i]->accuracy, buf, sizeof(buf)));
    }
    if (d->n_alternatives > 0) puts(" on its own held-out images");
    for (size_t i = 0; i < d->n_trials; i++) {
        const Trunkd__V1__Trial *t = d->trials[i];
        printf("trial %-4zu protection times %.3g, %u epochs: %s", i + 1, t->strength, t->epochs,
               t->admitted ? "admitted" : "refused");
        if (t->worth > 0)
            printf(", worth %s%s", tk__percent(t->worth, buf, sizeof(buf)),
                   t->improved ? " (the best so far)" : "");
        putchar('\n');
    }
    for (size_t i = 0; i < d->n_remarks; i++) {
        printf("remark     ");
        tk__put(stdout, d->remarks[i]);
        putchar('\n');
    }
}

static void print_decision(const Trunkd__V1__Decision *d)
{
    print_top(d);
    print_training(d);
    if (d->n_heads > 0) print_heads(d);
    if (d->n_heads > 0) putchar('\n');
    for (size_t i = 0; i < d->n_heads; i++)
        print_sentence(d->heads[i]);
    if (d->n_precisions > 0) print_precisions(d);
    if (d->same)
        puts("\nJudged again now, from rule and counts: every head and the outcome come out the "
             "same.");
}

/* The record does not hold together: says where. */
static int complain(const Trunkd__V1__Decision *d)
{
    for (size_t i = 0; i < d->n_heads; i++)
        if (!d->heads[i]->same)
            return tk__fail("job %llu: judged again from its counts, head %s does not come out as "
                            "recorded; the record is damaged",
                            (unsigned long long)d->job, d->heads[i]->head);
    return tk__fail(
        "job %llu: the outcome \"%s\" does not follow from the judgements; judged again: %s",
        (unsigned long long)d->job, d->outcome, d->again);
}

int tk__cmd_gate_explain(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv)
{
    Trunkd__V1__ExplainGateRequest request;
    trunkd__v1__explain_gate_request__init(&request);
    int code = tk__args_parse_id(ctl, cmd, NULL, 0, argc, argv, &request.id);
    if (code != TK__GO) return code;
    Trunkd__V1__Decision *d = tk__call(ctl, "/trunkd.v1.Jobs/ExplainGate", &request.base,
                                       &trunkd__v1__decision__descriptor);
    if (!d) return TK__FAILED;
    if (ctl->json)
        tk__print_json(&d->base);
    else if (ctl->quiet)
        tk__put(stdout, d->outcome), putchar('\n');
    else
        print_decision(d);
    fflush(stdout);
    code = d->same ? TK__DONE : complain(d);
    tk_client_free_message(&d->base);
    return code;
}
