/* evaluate: a head's accuracy on labelled images that the server has never seen. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ask.h"
#include "ctl.h"
#include "json.h"
#include "term.h"

typedef struct class_score {
    const char *label; /* borrowed from the images, which are sorted by label */
    uint64_t images, correct;
} class_score;

typedef struct evaluate {
    tk__ctl *ctl;
    char *head;
    const char *version;
    size_t images, correct, top5, unreadable;
    uint64_t first_version, last_version;
    size_t n_classes;
    class_score *classes;
} evaluate;

/* Counts one image's answer; images come sorted by label. */
static void count(evaluate *e, const tk__image *image, const Trunkd__V1__ImageAnswer *answer)
{
    if (e->n_classes == 0 || strcmp(e->classes[e->n_classes - 1].label, image->label) != 0) {
        e->classes = tk__grow(e->classes, e->n_classes + 1, sizeof(*e->classes));
        e->classes[e->n_classes++] = (class_score){.label = image->label};
    }
    class_score *class = &e->classes[e->n_classes - 1];
    const Trunkd__V1__HeadAnswer *head = tk__answer_of(answer, e->head);
    class->images++;
    e->images++;
    if (!head || answer->error[0]) {
        char *why = tk__clean(answer->error[0] ? answer->error : "the head did not answer");
        tk__fail("%s: %s", image->path, why);
        free(why);
        e->unreadable++;
        return;
    }
    for (size_t k = 0; k < head->n_top && k < 5; k++) {
        if (strcmp(head->top[k]->label, image->label) != 0) continue;
        e->top5++;
        class->correct += k == 0;
        e->correct += k == 0;
    }
}

static int ask_all(evaluate *e, const tk__images *list, size_t batch)
{
    tk__batch *work = tk__alloc(1, sizeof(*work));
    const tk__question question = {
        .heads = {.n = 1, .items = &e->head}, .version = e->version, .top = 5};
    tk__progress progress;
    tk__progress_begin(&progress, "classifying", list->n, e->ctl->quiet);
    int code = tk__connect(e->ctl) ? TK__DONE : TK__FAILED;
    for (size_t next = 0; next < list->n && code == TK__DONE;) {
        tk_client_status status = {0};
        if (!tk__batch_fill(work, list, &next, batch)) {
            code = TK__FAILED;
            break;
        }
        Trunkd__V1__ClassifyResponse *answer = tk__ask(e->ctl, work, &question, &status);
        for (size_t i = 0; answer && i < work->n; i++)
            count(e, &list->items[work->index[i]], answer->images[i]);
        if (answer) {
            if (!e->first_version) e->first_version = answer->version;
            e->last_version = answer->version;
            tk_client_free_message(&answer->base);
        }
        tk__batch_clear(work);
        tk__progress_at(&progress, next);
        if (!answer) {
            tk__progress_end(&progress);
            code = tk__rpc_failed(e->ctl, &status);
        }
    }
    tk__progress_end(&progress);
    tk__batch_clear(work);
    free(work);
    return code;
}

static double share(uint64_t part, uint64_t whole)
{
    return whole ? (double)part / (double)whole : 0;
}

static void print_json(const evaluate *e)
{
    json_t *classes = json_array();
    for (size_t i = 0; i < e->n_classes; i++)
        json_array_append_new(classes, json_pack("{s:o, s:I, s:I}", "label",
                                                 tk__json_text(e->classes[i].label), "images",
                                                 (json_int_t)e->classes[i].images, "correct",
                                                 (json_int_t)e->classes[i].correct));
    tk__json_print(json_pack("{s:o, s:f, s:f, s:I, s:I, s:I, s:I, s:o}", "head",
                             tk__json_text(e->head), "accuracy", share(e->correct, e->images),
                             "top5", share(e->top5, e->images), "images", (json_int_t)e->images,
                             "correct", (json_int_t)e->correct, "unreadable",
                             (json_int_t)e->unreadable, "version", (json_int_t)e->last_version,
                             "classes", classes),
                   false);
}

static void print_text(const evaluate *e, bool classes)
{
    char buf[32];
    char *head = tk__clean(e->head);
    printf("%s: %s (%zu of %zu), in the top five %.1f %%, version %llu\n", head,
           tk__percent(share(e->correct, e->images), buf, sizeof(buf)), e->correct, e->images,
           100 * share(e->top5, e->images), (unsigned long long)e->last_version);
    free(head);
    if (e->first_version != e->last_version)
        printf("(the version changed meanwhile: it began with %llu)\n",
               (unsigned long long)e->first_version);
    if (!classes) return;
    tk__table table;
    tk__table_init(&table, "lrr");
    for (size_t i = 0; i < e->n_classes; i++) {
        const class_score *class = &e->classes[i];
        tk__table_cell(&table, "%s", class->label);
        tk__table_cell(&table, "%llu of %llu", (unsigned long long)class->correct,
                       (unsigned long long)class->images);
        tk__table_cell(&table, "%s",
                       tk__percent(share(class->correct, class->images), buf, sizeof(buf)));
    }
    tk__table_print(&table, stdout, 2);
}

int tk__cmd_evaluate(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv)
{
    const char *head = NULL, *version = "latest"; /* no label's share: one version's accuracy */
    bool classes = false;
    uint64_t batch = 32;
    tk__list rest, where = {0};
    tk__csv_opts csv = {.where = &where};
    const tk__opt opts[] = {
        {"head", 0, TK__TEXT, &head, "NAME", "the head to measure"},
        {"classes", 0, TK__FLAG, &classes, NULL, "accuracy by class, too"},
        {"model-version", 0, TK__TEXT, &version, "V",
         "of this version: a number or a label (default: latest)"},
        {"batch", 0, TK__NUMBER, &batch, "N", "images in one request (default 32, at most 256)"},
        {"file-column", 0, TK__TEXT, &csv.file_column, "NAME",
         "the CSV's column of files (default: file)"},
        {"label-column", 0, TK__TEXT, &csv.label_column, "NAME",
         "the CSV's column of labels (default: label)"},
        {"where", 0, TK__MANY, &where, "COLUMN=VALUE",
         "only the CSV's rows that have this value (repeat for and)"},
    };
    int code =
        tk__args_parse(ctl, cmd, opts, sizeof(opts) / sizeof(opts[0]), argc, argv, &rest, 1, 1);
    if (code == TK__GO && !head) code = tk__usage(cmd, "--head NAME is missing");
    if (code == TK__GO && (batch < 1 || batch > TK__BATCH_MAX))
        code = tk__usage(cmd, "--batch is 1 to 256");
    if (code == TK__GO) {
        evaluate e = {.ctl = ctl, .head = tk__copy(head), .version = version};
        tk__images list;
        code = tk__images_labelled(&list, rest.items[0], &csv) ? ask_all(&e, &list, batch)
                                                               : tk__fail("%s", list.why);
        if (code == TK__DONE && ctl->json)
            print_json(&e);
        else if (code == TK__DONE && ctl->quiet)
            printf("%.2f\n", 100 * share(e.correct, e.images));
        else if (code == TK__DONE)
            print_text(&e, classes);
        free(e.classes);
        free(e.head);
        tk__images_free(&list);
    }
    tk__list_free(&rest);
    tk__list_free(&where);
    return code;
}
