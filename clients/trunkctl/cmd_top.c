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
#include "stages.h"
#include "stop.h"
#include "term.h"
#include "trunkd/v1/admin.pb-c.h"

typedef Trunkd__V1__GetStatusResponse status;

/* What happened between two answers. */
typedef struct view {
    const status *now;
    double seconds, requests, failures, refused, images, batch; /* a second; images of a pass */
    size_t n_stages;
    tk__stage stages[TK__STAGES];
} view;

/* -- the figures -- */

/* `before` and `now` of one run of the server, some time apart. */
static view compare(const status *before, const status *now)
{
    view v = {.now = now, .seconds = (double)(now->uptime_ms - before->uptime_ms) * 1e-3};
    v.requests = tk__grown(before->requests, now->requests) / v.seconds;
    v.failures = tk__grown(before->failures, now->failures) / v.seconds;
    v.refused = tk__grown(before->refused, now->refused) / v.seconds;
    const double images = tk__grown(before->images, now->images);
    const double batches = tk__grown(before->batches, now->batches);
    v.images = images / v.seconds;
    v.batch = batches > 0 ? images / batches : (double)NAN;
    v.n_stages = tk__stages_compare(v.stages, before, now, v.seconds);
    return v;
}

/* -- JSON -- */

static json_t *count(uint64_t n)
{
    return json_integer(n <= INT64_MAX ? (json_int_t)n : INT64_MAX);
}

static int print_json(const view *v)
{
    const status *s = v->now;
    json_t *o = json_object();
    json_object_set_new(o, "seconds", tk__real_or_null(v->seconds));
    json_object_set_new(o, "requests_per_s", tk__real_or_null(v->requests));
    json_object_set_new(o, "failures_per_s", tk__real_or_null(v->failures));
    json_object_set_new(o, "refused_per_s", tk__real_or_null(v->refused));
    json_object_set_new(o, "images_per_s", tk__real_or_null(v->images));
    json_object_set_new(o, "batch_images", tk__real_or_null(v->batch));
    json_object_set_new(o, "queue_images", count(s->queue));
    json_object_set_new(o, "in_flight", count(s->in_flight));
    json_object_set_new(o, "version", count(s->version));
    json_object_set_new(o, "running_job", count(s->running_job));
    json_object_set_new(o, "queued_jobs", count(s->queued_jobs));
    json_object_set_new(o, "resident_bytes", count(s->resident_bytes));
    json_object_set_new(o, "stages", tk__stages_json(v->n_stages, v->stages));
    const int code = tk__json_print(o, true);
    return fflush(stdout) == 0 ? code : TK__FAILED;
}

/* -- for people -- */

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
    return 4 + tk__stages_print(v->n_stages, v->stages);
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
