/* classify: once through the images, or again and again (--repeat), answers printed or tallied.
 * More images than one request has go through a stream. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "ask.h"
#include "ctl.h"
#include "json.h"
#include "load.h"
#include "stop.h"
#include "stream.h"
#include "tally.h"
#include "term.h"

typedef struct classify {
    tk__ctl *ctl;
    tk__question question;
    uint64_t batch, interval_ms;
    double for_seconds;
    const char *summary;
    bool tally, repeat;
    /* what comes of it */
    size_t n_tallies;
    tk__tally *tallies;
    size_t unreadable;
    size_t drawn; /* lines of the tally on the terminal */
    int64_t drawn_ns;
    tk__load load;
    tk__batch work;
} classify;

static tk__tally *tally_of(classify *c, const char *head)
{
    for (size_t i = 0; i < c->n_tallies; i++)
        if (strcmp(c->tallies[i].head, head) == 0) return &c->tallies[i];
    c->tallies = tk__grow(c->tallies, c->n_tallies + 1, sizeof(*c->tallies));
    c->tallies[c->n_tallies] = (tk__tally){.head = tk__copy(head)};
    return &c->tallies[c->n_tallies++];
}

static void erase_tallies(classify *c)
{
    for (; c->drawn; c->drawn--)
        fputs("\033[A\033[2K", stdout);
}

/* Redraws the tallies on a terminal, a few times per second. */
static void draw_tallies(classify *c, bool last)
{
    if (c->ctl->json || !(last || isatty(STDOUT_FILENO))) return;
    if (!last && tk__now_ns() - c->drawn_ns < 250000000) return;
    erase_tallies(c);
    for (size_t i = 0; i < c->n_tallies; i++)
        c->drawn += tk__tally_print(&c->tallies[i], stdout);
    fflush(stdout);
    c->drawn_ns = tk__now_ns();
}

static void print_json_line(const char *name, uint64_t version,
                            const Trunkd__V1__ImageAnswer *image)
{
    json_t *line = json_object();
    json_object_set_new(line, "file", tk__json_text(name));
    json_object_set_new(line, "version", json_integer((json_int_t)version));
    if (image->error[0]) {
        json_object_set_new(line, "error", tk__json_text(image->error));
    } else {
        json_t *heads = json_object();
        for (size_t h = 0; h < image->n_heads; h++) {
            json_t *top = json_array();
            for (size_t k = 0; k < image->heads[h]->n_top; k++)
                json_array_append_new(top, tk__json_of(&image->heads[h]->top[k]->base));
            json_object_set_new(heads, image->heads[h]->head, top);
        }
        json_object_set_new(line, "heads", heads);
    }
    tk__json_print(line, true);
}

static void print_answer(const char *name, const Trunkd__V1__ImageAnswer *image, bool quiet)
{
    for (size_t h = 0; h < image->n_heads; h++) {
        const Trunkd__V1__HeadAnswer *head = image->heads[h];
        if (!quiet) {
            tk__put(stdout, name);
            fputs("  ", stdout);
            tk__put(stdout, head->head);
            fputs(": ", stdout);
        }
        for (size_t k = 0; k < head->n_top; k++) {
            fputs(k ? ", " : "", stdout);
            tk__put(stdout, head->top[k]->label);
            if (!quiet) printf(" %.1f %%", 100 * (double)head->top[k]->score);
        }
        putchar('\n');
    }
}

/* Prints or tallies the answer for one image. */
static void take_answer(classify *c, const char *name, uint64_t version,
                        const Trunkd__V1__ImageAnswer *image)
{
    const bool bad = image->error[0] != '\0';
    c->unreadable += bad;
    if (bad && !c->repeat && !c->ctl->json) {
        if (c->tally && isatty(STDOUT_FILENO)) erase_tallies(c);
        char *safe = tk__clean(image->error);
        tk__fail("%s: %s", name, safe);
        free(safe);
    }
    for (size_t h = 0; c->tally && h < image->n_heads; h++)
        if (image->heads[h]->n_top)
            tk__tally_add(tally_of(c, image->heads[h]->head), image->heads[h]->top[0]->label,
                          (double)image->heads[h]->top[0]->score);
    if (c->tally || c->repeat) return;
    if (c->ctl->json)
        print_json_line(name, version, image);
    else
        print_answer(name, image, c->ctl->quiet);
}

static void take_batch(void *ctx, const tk__batch *batch, uint64_t version,
                       Trunkd__V1__ImageAnswer *const *images)
{
    classify *c = ctx;
    for (size_t i = 0; i < batch->n; i++)
        take_answer(c, batch->names[i], version, images[i]);
    if (c->tally) draw_tallies(c, false);
}

/* Sends c->work, takes the answers, clears it. False: the request failed, *status says why. */
static bool ask_batch(classify *c, tk_client_status *status)
{
    const int64_t began = tk__now_ns();
    Trunkd__V1__ClassifyResponse *answer = tk__ask(c->ctl, &c->work, &c->question, status);
    const bool answered = answer != NULL;
    tk__load_count(&c->load, answered, tk__now_ns() - began, answered ? answer->version : 0,
                   c->work.n);
    if (answered) take_batch(c, &c->work, answer->version, answer->images);
    if (answer) tk_client_free_message(&answer->base);
    tk__batch_clear(&c->work);
    return answered;
}

/* Once through list and stream. */
static int run_once(classify *c, const tk__images *list, tk__frames *frames)
{
    tk_client_status status = {0};
    const bool many = list->n > c->batch;
    const int code =
        many ? tk__stream_ask(c->ctl, list, c->batch, &c->question, take_batch, c) : TK__DONE;
    if (code != TK__DONE) return code;
    for (size_t next = 0; !many && next < list->n && !tk__stop_asked();) {
        if (!tk__batch_fill(&c->work, list, &next, c->batch)) return TK__FAILED;
        if (!ask_batch(c, &status)) return tk__rpc_failed(c->ctl, &status);
    }
    while (frames->file && !tk__stop_asked()) {
        tk__batch_frames(&c->work, frames, 1); /* each frame as it comes */
        if (c->work.n == 0) break;
        if (!ask_batch(c, &status)) return tk__rpc_failed(c->ctl, &status);
    }
    if (frames->dropped)
        fprintf(stderr, "%llu bytes of the stream belong to no JPEG frame\n",
                (unsigned long long)frames->dropped);
    return TK__DONE;
}

static void pause_ms(uint64_t ms)
{
    const struct timespec t = {.tv_sec = (time_t)(ms / 1000),
                               .tv_nsec = (long)(ms % 1000) * 1000000};
    if (ms) nanosleep(&t, NULL);
}

/* Round and round through the list until stopped or the time is over; failures are counted, the
 * first few shown. */
static int run_repeat(classify *c, const tk__images *list)
{
    enum { SHOWN = 5, AFTER_FAILURE_MS = 100 };
    const int64_t end =
        c->for_seconds > 0 ? c->load.started_ns + (int64_t)(c->for_seconds * 1e9) : INT64_MAX;
    int64_t written_ns = 0;
    size_t next = 0;
    while (!tk__stop_asked() && tk__now_ns() < end) {
        tk_client_status status = {0};
        if (next == list->n) next = 0;
        if (!tk__batch_fill(&c->work, list, &next, c->batch)) return TK__FAILED;
        const bool answered = ask_batch(c, &status);
        if (!answered && c->load.failed <= SHOWN)
            tk__fail("%s: %s", tk_client_code_text(status.code), status.text);
        if (c->summary && tk__now_ns() - written_ns > 1000000000) {
            tk__load_write(&c->load, c->summary);
            written_ns = tk__now_ns();
        }
        pause_ms(answered ? c->interval_ms : AFTER_FAILURE_MS);
    }
    c->load.unreadable = c->unreadable;
    if (c->summary && !tk__load_write(&c->load, c->summary))
        return tk__fail("%s: %s", c->summary, strerror(errno));
    return c->load.failed ? TK__FAILED : TK__DONE;
}

/* What is said when all is asked. */
static void print_results(classify *c)
{
    if (c->ctl->json && (c->tally || c->repeat)) {
        json_t *result = c->repeat ? tk__load_json(&c->load) : json_object();
        json_t *tallies = json_array();
        for (size_t i = 0; i < c->n_tallies; i++)
            json_array_append_new(tallies, tk__tally_json(&c->tallies[i]));
        json_object_set_new(result, "heads", tallies);
        tk__json_print(result, false);
        return;
    }
    if (c->tally) draw_tallies(c, true);
    if (c->repeat && !c->ctl->quiet) tk__load_print(&c->load);
    if (c->unreadable && !c->ctl->json)
        fprintf(stderr, "%zu image%s could not be read by the server\n", c->unreadable,
                c->unreadable == 1 ? "" : "s");
}

static int run(classify *c, const tk__cmd *cmd, const tk__list *paths)
{
    tk__images list = {0};
    tk__frames frames = {0};
    int code = TK__DONE;
    for (size_t i = 0; i < paths->n && code == TK__DONE; i++) {
        if (strcmp(paths->items[i], "-") == 0)
            frames.file = stdin;
        else if (!tk__images_plain(&list, paths->items[i]))
            code = tk__fail("%s", list.why);
    }
    if (code == TK__DONE && c->repeat && frames.file)
        code = tk__usage(cmd, "--repeat cannot repeat a stream");
    if (code == TK__DONE) {
        if (c->repeat || c->tally) tk__stop_begin();
        tk__load_begin(&c->load);
        code = !tk__connect(c->ctl) ? TK__FAILED
               : c->repeat          ? run_repeat(c, &list)
                                    : run_once(c, &list, &frames);
        print_results(c);
        if (code == TK__DONE && c->unreadable && !c->repeat) code = TK__FAILED;
    }
    tk__batch_clear(&c->work);
    tk__images_free(&list);
    tk__frames_free(&frames);
    return code;
}

int tk__cmd_classify(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv)
{
    classify *c = tk__alloc(1, sizeof(*c));
    const char *heads = NULL;
    uint64_t top = 1, priority = 0;
    tk__list rest;
    *c = (classify){.ctl = ctl, .question = {.version = ""}, .batch = 16};
    const tk__opt opts[] = {
        {"head", 0, TK__TEXT, &heads, "A,B", "only these heads (default: all of yours)"},
        {"top", 'k', TK__NUMBER, &top, "N", "the N best answers of each head (default 1)"},
        {"model-version", 0, TK__TEXT, &c->question.version, "V",
         "answered by this version: a number, a label, or latest"},
        {"priority", 0, TK__NUMBER, &priority, "N",
         "among your own requests: 1 comes first, 5 last (default 3)"},
        {"tally", 't', TK__FLAG, &c->tally, NULL, "count the answers by class"},
        {"batch", 0, TK__NUMBER, &c->batch, "N",
         "images in one message (default 16, at most 256); more go through a stream"},
        {"repeat", 0, TK__FLAG, &c->repeat, NULL,
         "begin again until Ctrl-C; print what was served and how fast"},
        {"for", 0, TK__REAL, &c->for_seconds, "SECONDS", "with --repeat: end after so long"},
        {"interval", 0, TK__NUMBER, &c->interval_ms, "MS", "with --repeat: pause between requests"},
        {"summary", 0, TK__TEXT, &c->summary, "FILE",
         "with --repeat: keep its numbers in FILE, as name=value lines"},
    };
    int code = tk__args_parse(ctl, cmd, opts, sizeof(opts) / sizeof(opts[0]), argc, argv, &rest, 1,
                              SIZE_MAX);
    if (code == TK__GO && (c->batch < 1 || c->batch > TK__BATCH_MAX))
        code = tk__usage(cmd, "--batch is 1 to 256");
    if (code == TK__GO && (top < 1 || top > 10000)) code = tk__usage(cmd, "--top is 1 to 10000");
    if (code == TK__GO && priority > UINT32_MAX) code = tk__usage(cmd, "--priority is 1 to 5");
    if (code == TK__GO && !c->repeat && (c->summary || c->interval_ms || c->for_seconds > 0))
        code = tk__usage(cmd, "--for, --interval and --summary go with --repeat");
    if (code == TK__GO) {
        c->question.heads = tk__list_split(heads);
        c->question.top = (unsigned)top;
        c->question.priority = (unsigned)priority; /* its limits are the server's matter */
        code = run(c, cmd, &rest);
    }
    tk__list_free(&rest);
    for (size_t i = 0; i < c->n_tallies; i++)
        tk__tally_free(&c->tallies[i]);
    free(c->tallies);
    tk__list_free_deep(&c->question.heads);
    free(c);
    return code;
}
