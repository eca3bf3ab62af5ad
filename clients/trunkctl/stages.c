/* What a server did between two answers of GetStatus: see stages.h. */
#include "stages.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "json.h"
#include "quantile.h"
#include "term.h"

enum { BUCKETS = 64 }; /* more than any server sends */

typedef Trunkd__V1__GetStatusResponse status;

double tk__grown(uint64_t before, uint64_t now)
{
    return now > before ? (double)(now - before) : 0;
}

static const Trunkd__V1__StageTimes *find_stage(const status *s, const char *name)
{
    for (size_t i = 0; i < s->n_stages; i++)
        if (strcmp(s->stages[i]->stage, name) == 0) return s->stages[i];
    return NULL;
}

static tk__stage compare_stage(const status *before, const status *s,
                               const Trunkd__V1__StageTimes *now, double seconds)
{
    const Trunkd__V1__StageTimes *then = find_stage(before, now->stage);
    const size_t n = s->n_stage_bounds;
    uint64_t counts[BUCKETS + 1] = {0};
    double total = 0;
    for (size_t i = 0; i <= n; i++) {
        const uint64_t was = then && then->n_counts == now->n_counts ? then->counts[i] : 0;
        counts[i] = now->counts[i] > was ? now->counts[i] - was : 0;
        total += (double)counts[i];
    }
    return (tk__stage){.name = now->stage,
                       .per_s = total / seconds,
                       .p50_ms = 1e3 * tk__quantile(n, s->stage_bounds, counts, 0.50),
                       .p99_ms = 1e3 * tk__quantile(n, s->stage_bounds, counts, 0.99)};
}

size_t tk__stages_compare(tk__stage stages[TK__STAGES], const status *before, const status *now,
                          double seconds)
{
    size_t n = 0;
    for (size_t i = 0; i < now->n_stages && n < TK__STAGES; i++)
        if (now->n_stage_bounds <= BUCKETS && now->stages[i]->n_counts == now->n_stage_bounds + 1)
            stages[n++] = compare_stage(before, now, now->stages[i], seconds);
    return n;
}

/* -- showing them -- */

json_t *tk__real_or_null(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

json_t *tk__stages_json(size_t n, const tk__stage *stages)
{
    json_t *o = json_object();
    for (size_t i = 0; i < n; i++) {
        const tk__stage *at = &stages[i];
        json_object_set_new(o, at->name,
                            json_pack("{s:o,s:o,s:o}", "per_s", tk__real_or_null(at->per_s),
                                      "p50_ms", tk__real_or_null(at->p50_ms), "p99_ms",
                                      tk__real_or_null(at->p99_ms)));
    }
    return o;
}

static void cell_ms(tk__table *table, double ms)
{
    if (isfinite(ms))
        tk__table_cell(table, ms < 10 ? "%.2f" : "%.0f", ms);
    else
        tk__table_cell(table, "-");
}

size_t tk__stages_print(size_t n, const tk__stage *stages)
{
    static const char *const titles[] = {"STAGE", "PER S", "P50 MS", "P99 MS"};
    if (n == 0) return 0;
    tk__table table;
    tk__table_init(&table, "lrrr");
    for (size_t i = 0; i < 4; i++)
        tk__table_cell(&table, "%s", titles[i]);
    for (size_t i = 0; i < n; i++) {
        tk__table_cell(&table, "%s", stages[i].name);
        tk__table_cell(&table, "%.1f", stages[i].per_s);
        cell_ms(&table, stages[i].p50_ms);
        cell_ms(&table, stages[i].p99_ms);
    }
    return tk__table_print(&table, stdout, 2);
}
