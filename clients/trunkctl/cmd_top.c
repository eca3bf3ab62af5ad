/* top: what the server does, now. Asks GetStatus again and again; each view is the difference of
 * two answers, so that the figures are of the time between them. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "ctl.h"
#include "json.h"
#include "quantile.h"
#include "stop.h"
#include "term.h"
#include "trunkd/v1/admin.pb-c.h"

enum { STAGES = 16, BUCKETS = 64 }; /* more than any server sends; what is above is left out */

typedef Trunkd__V1__GetStatusResponse status;

typedef struct stage {
    const char *name;             /* the later answer's */
    double per_s, p50_ms, p99_ms; /* NaN: nothing in this time */
} stage;

/* What happened between two answers. */
typedef struct view {
    const status *now;
    double seconds, requests, failures, refused, images, batch; /* a second; images of a pass */
    size_t n_stages;
    stage stages[STAGES];
} view;

/* -- the figures -- */

static double grown(uint64_t before, uint64_t now)
{
    return now > before ? (double)(now - before) : 0;
}

static const Trunkd__V1__StageTimes *find_stage(const status *s, const char *name)
{
    for (size_t i = 0; i < s->n_stages; i++)
        if (strcmp(s->stages[i]->stage, name) == 0) return s->stages[i];
    return NULL;
}

static stage compare_stage(const view *v, const status *before, const Trunkd__V1__StageTimes *now)
{
    const Trunkd__V1__StageTimes *then = find_stage(before, now->stage);
    const size_t n = v->now->n_stage_bounds;
    uint64_t counts[BUCKETS + 1] = {0};
    double total = 0;
    for (size_t i = 0; i <= n; i++) {
        const uint64_t was = then && then->n_counts == now->n_counts ? then->counts[i] : 0;
        counts[i] = now->counts[i] > was ? now->counts[i] - was : 0;
        total += (double)counts[i];
    }
    return (stage){.name = now->stage,
                   .per_s = total / v->seconds,
                   .p50_ms = 1e3 * tk__quantile(n, v->now->stage_bounds, counts, 0.50),
                   .p99_ms = 1e3 * tk__quantile(n, v->now->stage_bounds, counts, 0.99)};
}

/* `before` and `now` of one run of the server, some time apart. */
static view compare(const status *before, const status *now)
{
    view v = {.now = now, .seconds = (double)(now->uptime_ms - before->uptime_ms) * 1e-3};
    v.requests = grown(before->requests, now->requests) / v.seconds;
    v.failures = grown(before->failures, now->failures) / v.seconds;
    v.refused = grown(before->refused, now->refused) / v.seconds;
    const double images = grown(before->images, now->images);
    const double batches = grown(before->batches, now->batches);
    v.images = images / v.seconds;
    v.batch = batches > 0 ? images / batches : (double)NAN;
    for (size_t i = 0; i < now->n_stages && v.n_stages < STAGES; i++)
        if (now->n_stage_bounds <= BUCKETS && now->stages[i]->n_counts == now->n_stage_bounds + 1)
            v.stages[v.n_stages++] = compare_stage(&v, before, now->stages[i]);
    return v;
}

/* -- JSON -- */

static json_t *real_or_null(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

static json_t *count(uint64_t n)
{
    return json_integer(n <= INT64_MAX ? (json_int_t)n : INT64_MAX);
}

static int print_json(const view *v)
{
    const status *s = v->now;
    json_t *stages = json_object(), *o = json_object();
    for (size_t i = 0; i < v->n_stages; i++) {
        const stage *at = &v->stages[i];
        json_object_set_new(stages, at->name,
                            json_pack("{s:o,s:o,s:o}", "per_s", real_or_null(at->per_s), "p50_ms",
                                      real_or_null(at->p50_ms), "p99_ms",
                                      real_or_null(at->p99_ms)));
    }
    json_object_set_new(o, "seconds", real_or_null(v->seconds));
    json_object_set_new(o, "requests_per_s", real_or_null(v->requests));
    json_object_set_new(o, "failures_per_s", real_or_null(v->failures));
    json_object_set_new(o, "refused_per_s", real_or_null(v->refused));
    json_object_set_new(o, "images_per_s", real_or_null(v->images));
    json_object_set_new(o, "batch_images", real_or_null(v->batch));
    json_object_set_new(o, "queue_images", count(s->queue));
    json_object_set_new(o, "in_flight", count(s->in_flight));
    json_object_set_new(o, "version", count(s->version));
    json_object_set_new(o, "running_job", count(s->running_job));
    json_object_set_new(o, "queued_jobs", count(s->queued_jobs));
    json_object_set_new(o, "resident_bytes", count(s->resident_bytes));
    json_object_set_new(o, "stages", stages);
    const int code = tk__json_print(o, true);
    return fflush(stdout) == 0 ? code : TK__FAILED;
}

/* -- for people -- */

static void cell_ms(tk__table *table, double ms)
{
    if (isfinite(ms))
        tk__table_cell(table, ms < 10 ? "%.2f" : "%.0f", ms);
    else
        tk__table_cell(table, "-");
}

static size_t print_stages(const view *v)
{
    static const char *const titles[] = {"STAGE", "PER S", "P50 MS", "P99 MS"};
    if (v->n_stages == 0) return 0; /* an older server */
    tk__table table;
    tk__table_init(&table, "lrrr");
    for (size_t i = 0; i < 4; i++)
        tk__table_cell(&table, "%s", titles[i]);
    for (size_t i = 0; i < v->n_stages; i++) {
        tk__table_cell(&table, "%s", v->stages[i].name);
        tk__table_cell(&table, "%.1f", v->stages[i].per_s);
        cell_ms(&table, v->stages[i].p50_ms);
        cell_ms(&table, v->stages[i].p99_ms);
    }
    return tk__table_print(&table, stdout, 2);
}

/* Returns the lines printed. */
static size_t print_view(const view *v)
{
    const status *s = v->now;
    char up[64], memory[64];
    fputs("trunkd ", stdout);
    tk__put(stdout, s->server_version);
    printf(", up %s", tk__seconds((double)s->uptime_ms * 1e-3, up, sizeof(up)));
    if (s->version)
        printf(", version %llu", (unsigned long long)s->version);
    else
        fputs(", no version yet", stdout);
    if (s->precision[0]) fputs(" in ", stdout);
    tk__put(stdout, s->precision);
    printf(", %s\n", tk__bytes(s->resident_bytes, memory, sizeof(memory)));
    printf("requests  %.1f/s answered, %.1f/s failed, %.1f/s refused, %llu in flight\n",
           v->requests, v->failures, v->refused, (unsigned long long)s->in_flight);
    printf("images    %.1f/s, ", v->images);
    if (isfinite(v->batch)) printf("%.1f a pass, ", v->batch);
    printf("%llu in the queue\n", (unsigned long long)s->queue);
    if (s->running_job)
        printf("jobs      %llu runs, %llu wait\n", (unsigned long long)s->running_job,
               (unsigned long long)s->queued_jobs);
    else
        printf("jobs      none runs, %llu wait\n", (unsigned long long)s->queued_jobs);
    return 4 + print_stages(v);
}

/* On a terminal over the `*lines` of the view before, with long lines cut so that the count holds;
 * elsewhere below it. */
static int show(const view *v, bool tty, size_t *lines)
{
    for (; tty && *lines > 0; --*lines)
        fputs("\033[A\033[2K", stdout);
    if (*lines > 0) putchar('\n');
    if (tty) fputs("\033[?7l", stdout);
    *lines = print_view(v);
    if (tty) fputs("\033[?7h", stdout);
    return fflush(stdout) == 0 ? TK__DONE : TK__FAILED;
}

/* -- the loop -- */

static void rest(double seconds)
{
    const int64_t until = tk__now_ns() + (int64_t)(seconds * 1e9);
    for (int64_t left = (int64_t)(seconds * 1e9); left > 0 && !tk__stop_asked();
         left = until - tk__now_ns()) {
        const int64_t ns = left < 50000000 ? left : 50000000;
        nanosleep(&(struct timespec){.tv_nsec = (long)ns}, NULL);
    }
}

static status *ask(tk__ctl *ctl)
{
    Trunkd__V1__Empty request;
    trunkd__v1__empty__init(&request);
    return tk__call(ctl, "/trunkd.v1.Admin/GetStatus", &request.base,
                    &trunkd__v1__get_status_response__descriptor);
}

static int watch(tk__ctl *ctl, double interval, bool once)
{
    const bool tty = isatty(STDOUT_FILENO) && !once;
    size_t lines = 0;
    int code = TK__DONE;
    status *before = ask(ctl);
    if (!before) return TK__FAILED;
    for (bool shown = false; code == TK__DONE && !(once && shown);) {
        rest(interval);
        if (tk__stop_asked()) break;
        status *now = ask(ctl);
        if (!now) {
            code = TK__FAILED;
            break;
        }
        shown = now->uptime_ms > before->uptime_ms; /* else the server began anew */
        if (shown) {
            const view v = compare(before, now);
            code = ctl->json ? print_json(&v) : show(&v, tty, &lines);
        }
        tk_client_free_message(&before->base);
        before = now;
    }
    tk_client_free_message(&before->base);
    return code;
}

int tk__cmd_top(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv)
{
    double interval = 1;
    bool once = false;
    const tk__opt opts[] = {
        {"interval", 'i', TK__REAL, &interval, "SECONDS", "of one view (0.1 to 3600; default 1)"},
        {"once", '1', TK__FLAG, &once, NULL, "one view, then end"},
    };
    tk__list rest_of;
    const int code = tk__args_parse(ctl, cmd, opts, 2, argc, argv, &rest_of, 0, 0);
    if (code != TK__GO) return code;
    if (!(interval >= 0.1 && interval <= 3600))
        return tk__usage(cmd, "--interval is %g, but must be 0.1 to 3600 seconds", interval);
    tk__stop_begin();
    return watch(ctl, interval, once);
}
