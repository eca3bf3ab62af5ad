/* job curves: every evaluation of every head during a job, as a table, CSV, JSON or a chart. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "chart.h"
#include "csv.h"
#include "ctl.h"
#include "term.h"
#include "watch.h"

static bool in_training(const Trunkd__V1__JobEvent *p)
{
    return strcmp(p->stage, "train") == 0;
}

/* -- table and CSV -- */

static void print_table(const Trunkd__V1__Curve *curve)
{
    tk__table table;
    tk__table_init(&table, "lrrrlrrrl");
    static const char *const titles[] = {"STAGE",    "EPOCH", "STEP",   "LOSS", "HEAD",
                                         "ACCURACY", "FLOOR", "IMAGES", ""};
    for (size_t i = 0; i < sizeof(titles) / sizeof(*titles); i++)
        tk__table_cell(&table, "%s", titles[i]);
    for (size_t i = 0; i < curve->n_points; i++)
        for (size_t k = 0; k < curve->points[i]->n_heads; k++) {
            const Trunkd__V1__JobEvent *p = curve->points[i];
            const Trunkd__V1__HeadAccuracy *h = p->heads[k];
            char buf[32], loss[32] = "-";
            if (in_training(p) && p->losses) snprintf(loss, sizeof(loss), "%.3f", p->losses->total);
            tk__table_cell(&table, "%s", p->stage);
            tk__table_cell(&table, "%u", p->epoch);
            tk__table_cell(&table, "%llu", (unsigned long long)p->step);
            tk__table_cell(&table, "%s", loss);
            tk__table_cell(&table, "%s", h->head);
            tk__table_cell(&table, "%s",
                           h->images ? tk__percent(h->accuracy, buf, sizeof(buf)) : "-");
            tk__table_cell(&table, "%s",
                           h->floor > 0 ? tk__percent(h->floor, buf, sizeof(buf)) : "-");
            tk__table_cell(&table, "%llu", (unsigned long long)h->images);
            tk__table_cell(&table, "%s", h->agreement ? "agreement with its old answers" : "");
        }
    tk__table_print(&table, stdout, 0);
}

static void csv_row(const Trunkd__V1__JobEvent *p, const Trunkd__V1__HeadAccuracy *h)
{
    printf("%llu,%u,%s,", (unsigned long long)p->step, p->epoch, p->stage);
    tk__csv_put(stdout, h->head);
    printf(",%llu,%s,", (unsigned long long)h->images, h->agreement ? "agreement" : "accuracy");
    if (h->images) printf("%.6f", h->accuracy);
    putchar(',');
    if (h->floor > 0) printf("%.6f", h->floor);
    if (in_training(p) && p->losses)
        printf(",%.6g,%.6g,%.6g,%.6g\n", p->losses->total, p->losses->ce, p->losses->kd,
               p->losses->ewc);
    else
        puts(",,,,");
}

static void print_csv(const Trunkd__V1__Curve *curve)
{
    puts("step,epoch,stage,head,images,measured_as,value,floor,loss,ce,kd,ewc");
    for (size_t i = 0; i < curve->n_points; i++)
        for (size_t k = 0; k < curve->points[i]->n_heads; k++)
            csv_row(curve->points[i], curve->points[i]->heads[k]);
}

/* -- the chart: x is the epoch in training, and one more for every evaluation after it -- */

static tk__series *find_series(tk__series *series, size_t n, const char *name)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(series[i].name, name) == 0) return &series[i];
    return NULL;
}

/* One evaluation at x into the series; *n grows by heads not met before. */
static void add_point(tk__series *series, size_t *n, const Trunkd__V1__JobEvent *p, double x,
                      size_t n_points)
{
    for (size_t k = 0; k < p->n_heads; k++) {
        const Trunkd__V1__HeadAccuracy *h = p->heads[k];
        if (h->images == 0) continue;
        tk__series *s = find_series(series, *n, h->head);
        if (!s) {
            s = &series[(*n)++];
            *s = (tk__series){
                .name = h->head, .floor = (double)NAN, .note = h->agreement ? " (agreement)" : ""};
            s->x = tk__alloc(n_points, sizeof(*s->x));
            s->y = tk__alloc(n_points, sizeof(*s->y));
        }
        s->x[s->n] = x;
        s->y[s->n++] = h->accuracy;
        if (h->floor > 0) s->floor = h->floor;
    }
}

static char *make_title(const Trunkd__V1__Job *job)
{
    const unsigned long long id = job->id, version = job->version;
    if (!version)
        return tk__format("Job %llu: %s, %s", id, job->head, tk__job_state((int)job->state));
    return tk__format("Job %llu: %s, committed as version %llu%s", id, job->head, version,
                      strcmp(job->outcome, "probe") == 0 ? " (the linear probe)" : "");
}

static bool write_chart(const Trunkd__V1__Curve *curve, const Trunkd__V1__Job *job, FILE *out)
{
    size_t most = 0, n = 0;
    double until = 1, x = 0;
    for (size_t i = 0; i < curve->n_points; i++) {
        most += curve->points[i]->n_heads;
        if (in_training(curve->points[i])) until = fmax(until, curve->points[i]->epoch);
    }
    tk__series *series = tk__alloc(most, sizeof(*series));
    for (size_t i = 0; i < curve->n_points; i++) {
        const Trunkd__V1__JobEvent *p = curve->points[i];
        x = in_training(p) ? p->epoch : strcmp(p->stage, "warm-up") == 0 ? 0 : fmax(x, until) + 1;
        add_point(series, &n, p, x, curve->n_points);
    }
    char *title = make_title(job);
    const tk__chart chart = {.title = title,
                             .x_label = "epoch (0: the new head fitted on the old trunk)",
                             .y_label = "accuracy, %",
                             .x_max = fmax(x, until),
                             .until = until,
                             .rest = "line search, gate",
                             .n = n,
                             .series = series};
    const bool written = tk__chart_write(&chart, out);
    for (size_t i = 0; i < n; i++) {
        free(series[i].x);
        free(series[i].y);
    }
    free(series);
    free(title);
    return written;
}

static int save_chart(const Trunkd__V1__Curve *curve, const Trunkd__V1__Job *job, const char *path)
{
    if (strcmp(path, "-") == 0) return write_chart(curve, job, stdout) ? TK__DONE : TK__FAILED;
    FILE *out = fopen(path, "we");
    if (!out) return tk__fail("%s: %s", path, strerror(errno));
    const bool written = write_chart(curve, job, out);
    if (fclose(out) == 0 && written) return TK__DONE;
    const int why = errno;
    unlink(path);
    return tk__fail("%s: %s", path, strerror(why));
}

/* -- the command -- */

static int show(tk__ctl *ctl, const Trunkd__V1__Curve *curve, bool csv)
{
    if (csv)
        print_csv(curve);
    else if (ctl->json)
        tk__print_json(&curve->base);
    else if (curve->n_points == 0)
        puts("Nothing was measured yet.");
    else
        print_table(curve);
    return TK__DONE;
}

static int draw(tk__ctl *ctl, const Trunkd__V1__Curve *curve, uint64_t id, const char *path)
{
    Trunkd__V1__GetJobRequest request;
    trunkd__v1__get_job_request__init(&request);
    request.id = id;
    if (curve->n_points == 0)
        return tk__fail("job %llu: nothing was measured, so there is nothing to draw",
                        (unsigned long long)id);
    Trunkd__V1__Job *job =
        tk__call(ctl, "/trunkd.v1.Jobs/Get", &request.base, &trunkd__v1__job__descriptor);
    if (!job) return TK__FAILED;
    const int code = save_chart(curve, job, path);
    tk_client_free_message(&job->base);
    return code;
}

int tk__cmd_job_curves(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv)
{
    bool csv = false;
    const char *svg = NULL;
    const tk__opt opts[] = {
        {"csv", 0, TK__FLAG, &csv, NULL, "a line per evaluation and head"},
        {"svg", 0, TK__TEXT, &svg, "FILE", "draw them; - is standard output"},
    };
    Trunkd__V1__GetCurveRequest request;
    trunkd__v1__get_curve_request__init(&request);
    int code = tk__args_parse_id(ctl, cmd, opts, 2, argc, argv, &request.id);
    if (code != TK__GO) return code;
    if (svg && (csv || ctl->json)) return tk__usage(cmd, "--svg goes without --csv and --json");
    Trunkd__V1__Curve *curve =
        tk__call(ctl, "/trunkd.v1.Jobs/GetCurve", &request.base, &trunkd__v1__curve__descriptor);
    if (!curve) return TK__FAILED;
    code = svg ? draw(ctl, curve, request.id, svg) : show(ctl, curve, csv);
    tk_client_free_message(&curve->base);
    return code;
}
