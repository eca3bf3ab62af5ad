/* Following a job until it ends. On a terminal: a block that is redrawn (stage, bar, losses, every
 * head). Elsewhere: a line per validation, stage and message, and one now and then in between. When
 * the connection breaks, the watch goes on after the last event it saw, so that a restart of the
 * server is only a pause. */
#include "watch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "json.h"
#include "stop.h"
#include "term.h"

enum { RECONNECT_MS = 60000, PLAIN_PAUSE_S = 10, REDRAW_MS = 80 };

typedef struct watch {
    const tk__ctl *ctl;
    uint64_t job, last; /* the last event seen */
    bool tty;
    size_t lines; /* of the block on the terminal */
    int64_t shown_ns;
    char *stage;
    double fraction; /* of the stage; a validation comes without, and keeps the last one */
    uint32_t epoch, epochs;
    Trunkd__V1__JobEvent *measured; /* the last event that came with heads */
    Trunkd__V1__Job *end;
    Trunkd__V1__JobEvent *final; /* owns `end` */
} watch;

const char *tk__job_state(int state)
{
    static const char *const names[] = {"queued",   "running", "committed",
                                        "rejected", "failed",  "cancelled"};
    return state >= 0 && state < 6 ? names[state] : "?";
}

size_t tk__print_job_heads(size_t n, Trunkd__V1__HeadAccuracy *const *heads, const char *fresh,
                           FILE *out)
{
    if (n == 0) return 0;
    tk__table table;
    tk__table_init(&table, "lrrrrl");
    static const char *const titles[] = {"HEAD", "ACCURACY", "CHANGE", "MAY FALL", "IMAGES", ""};
    for (size_t i = 0; i < 6; i++)
        tk__table_cell(&table, "%s", titles[i]);
    for (size_t i = 0; i < n; i++) {
        const Trunkd__V1__HeadAccuracy *h = heads[i];
        char buf[32];
        tk__table_cell(&table, "%s", h->head);
        tk__table_cell(&table, "%s", tk__percent(h->accuracy, buf, sizeof(buf)));
        const bool new = h->own &&fresh &&strcmp(h->head, fresh) == 0 && h->change == 0;
        tk__table_cell(&table, "%s", new ? "new" : tk__points(h->change, buf, sizeof(buf)));
        tk__table_cell(&table, "%.1f", h->tolerance);
        tk__table_cell(&table, "%llu", (unsigned long long)h->images);
        tk__table_cell(&table, "%s", h->agreement ? "agreement with its old answers" : "");
    }
    return tk__table_print(&table, out, 2);
}

/* Keeps what the event says about the stage's progress. */
static void note_progress(watch *w, const Trunkd__V1__JobEvent *event, bool new_stage)
{
    if (new_stage) {
        free(w->stage);
        w->stage = tk__copy(event->stage);
        w->fraction = 0;
        w->epoch = w->epochs = 0;
    }
    if (event->steps) w->fraction = (double)event->step / (double)event->steps;
    if (event->epoch) w->epoch = event->epoch;
    if (event->epochs) w->epochs = event->epochs;
}

static void print_losses(const Trunkd__V1__Losses *losses)
{
    if (!losses || (losses->total <= 0 && losses->ce <= 0)) return;
    printf("  loss %.3f (ce %.3f", losses->total, losses->ce);
    if (losses->kd > 0) printf(", kd %.3f", losses->kd);
    if (losses->ewc > 0) printf(", ewc %.4f", losses->ewc);
    putchar(')');
}

static void erase_block(watch *w)
{
    for (; w->lines; w->lines--)
        fputs("\033[A\033[2K", stdout);
}

/* The terminal's block: one line of progress, then the heads. Lines that are too long are cut, not
 * wrapped, since erase_block() counts them. */
static void draw_block(watch *w, const Trunkd__V1__JobEvent *event)
{
    char eta[32];
    erase_block(w);
    fputs("\033[?7l  ", stdout);
    tk__put(stdout, event->stage[0] ? event->stage : tk__job_state((int)event->state));
    putchar(' ');
    tk__bar(stdout, w->fraction, 24);
    printf(" %3.0f %%", 100 * w->fraction);
    if (w->epochs) printf("  epoch %u/%u", w->epoch, w->epochs);
    if (event->eta_seconds > 0)
        printf("  %s left", tk__seconds(event->eta_seconds, eta, sizeof(eta)));
    print_losses(event->losses);
    putchar('\n');
    w->lines = 1;
    if (w->measured)
        w->lines += tk__print_job_heads(w->measured->n_heads, w->measured->heads, NULL, stdout);
    fputs("\033[?7h", stdout);
    fflush(stdout);
}

/* One plain line: stage, share done, and the heads when they were just measured. */
static void plain_line(const watch *w, const Trunkd__V1__JobEvent *event)
{
    char eta[32], buf[32];
    fputs("  ", stdout);
    tk__put(stdout, event->stage[0] ? event->stage : tk__job_state((int)event->state));
    if (w->fraction > 0) printf(" %.0f %%", 100 * w->fraction);
    if (w->epochs) printf(", epoch %u/%u", w->epoch, w->epochs);
    for (size_t i = 0; i < event->n_heads; i++) {
        const Trunkd__V1__HeadAccuracy *h = event->heads[i];
        fputs(i ? ", " : ": ", stdout);
        tk__put(stdout, h->head);
        printf(" %s", tk__percent(h->accuracy, buf, sizeof(buf)));
        if (h->change < 0 || h->change > 0)
            printf(" (%s)", tk__points(h->change, buf, sizeof(buf)));
    }
    if (!event->n_heads) print_losses(event->losses);
    if (event->eta_seconds > 0)
        printf(", %s left", tk__seconds(event->eta_seconds, eta, sizeof(eta)));
    putchar('\n');
    fflush(stdout);
}

static void print_message(watch *w, const char *message)
{
    if (w->tty) erase_block(w);
    fputs("  ", stdout);
    tk__put(stdout, message);
    putchar('\n');
}

/* Shows one event; takes it. */
static void show(watch *w, Trunkd__V1__JobEvent *event)
{
    const int64_t now = tk__now_ns();
    const bool new_stage = event->stage[0] && (!w->stage || strcmp(w->stage, event->stage) != 0);
    const bool due =
        now - w->shown_ns >= (w->tty ? REDRAW_MS * 1000000LL : PLAIN_PAUSE_S * 1000000000LL);
    const bool measured = event->n_heads > 0;
    w->last = event->sequence;
    note_progress(w, event, new_stage);
    Trunkd__V1__JobEvent *old = event; /* to release */
    if (measured) {
        old = w->measured;
        w->measured = event;
    }
    const bool silent = w->ctl->quiet || w->ctl->json;
    if (!silent && event->message[0]) print_message(w, event->message);
    const bool progress = event->stage[0] && (new_stage || due || measured) && !event->job;
    if (!silent && (progress || (w->tty && event->message[0] && event->stage[0]))) {
        w->shown_ns = now;
        if (w->tty)
            draw_block(w, event);
        else
            plain_line(w, event);
    }
    if (old) tk_client_free_message(&old->base);
}

/* One stream of events. Returns its status code; the job's end is in w->final. */
static int follow(watch *w, tk_client *client, tk_client_status *status)
{
    tk_client_call *call =
        tk_client_start(client, "/trunkd.v1.Jobs/Watch", &trunkd__v1__job_event__descriptor, 0);
    Trunkd__V1__WatchJobRequest request;
    trunkd__v1__watch_job_request__init(&request);
    request.id = w->job;
    request.after = w->last;
    tk__stop_call(call);
    if (call && tk_client_send(call, &request.base)) tk_client_send_end(call);
    for (ProtobufCMessage *message; call && (message = tk_client_receive(call));) {
        Trunkd__V1__JobEvent *event = (Trunkd__V1__JobEvent *)message;
        if (event->job && !w->final) {
            w->final = event;
            w->end = event->job;
        } else {
            show(w, event);
        }
    }
    tk__stop_call(NULL);
    return tk_client_finish(call, status);
}

/* The last words about a job. */
static int print_end(watch *w)
{
    const Trunkd__V1__Job *job = w->end;
    const bool done = job->state == TRUNKD__V1__JOB_STATE__COMMITTED;
    if (w->ctl->json) {
        tk__print_json(&job->base);
    } else if (w->ctl->quiet) {
        puts(tk__job_state((int)job->state));
    } else {
        char took[32];
        if (w->tty) erase_block(w);
        tk__print_job_heads(job->n_heads, job->heads, job->head, stdout);
        printf("job %llu: %s", (unsigned long long)job->id, tk__job_state((int)job->state));
        if (done) printf(" as version %llu", (unsigned long long)job->version);
        if (job->ended_ms > job->started_ms && job->started_ms)
            printf(" after %s", tk__seconds((double)(job->ended_ms - job->started_ms) * 1e-3, took,
                                            sizeof(took)));
        if (strcmp(job->outcome, "probe") == 0)
            fputs(" (the linear probe: the trunk is untouched)", stdout);
        putchar('\n');
        if (job->reason[0]) {
            tk__put(stdout, job->reason);
            putchar('\n');
        }
        if (job->state == TRUNKD__V1__JOB_STATE__REJECTED)
            printf("Nothing has changed. Why: trunkctl gate explain %llu\n",
                   (unsigned long long)job->id);
    }
    return done ? TK__DONE : TK__FAILED;
}

int tk__watch(tk__ctl *ctl, uint64_t job)
{
    tk_client *client = tk__connect(ctl);
    if (!client) return TK__FAILED;
    watch w = {.ctl = ctl, .job = job, .tty = isatty(STDOUT_FILENO) != 0};
    tk_client_status status = {0};
    for (;;) {
        const int code = follow(&w, client, &status);
        const bool broken = code == TK_CLIENT_UNAVAILABLE && !w.final && !tk__stop_asked();
        if (!broken) break;
        if (!ctl->quiet) fputs("the connection is gone; trying again for a minute\n", stderr);
        w.lines = 0;
        if (!tk_client_wait_ready(client, RECONNECT_MS)) break;
    }
    int result = TK__FAILED;
    if (w.final) {
        result = print_end(&w);
    } else if (tk__stop_asked()) {
        fprintf(stderr,
                "\nThe job goes on. Watch it: trunkctl job watch %llu   Stop it: trunkctl job "
                "cancel %llu\n",
                (unsigned long long)job, (unsigned long long)job);
    } else if (status.code == TK_CLIENT_OK) {
        result = tk__fail(
            "the server ended the watch before the job's end; again: trunkctl job watch %llu",
            (unsigned long long)job);
    } else {
        result = tk__rpc_failed(ctl, &status);
    }
    if (w.final) tk_client_free_message(&w.final->base);
    if (w.measured) tk_client_free_message(&w.measured->base);
    free(w.stage);
    return result;
}
