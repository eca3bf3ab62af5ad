/* heads, head delete, validation. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ctl.h"
#include "term.h"
#include "trunkd/v1/heads.pb-c.h"

static void head_row(tk__table *table, const Trunkd__V1__Head *head)
{
    char buf[32];
    const bool measured = head->validation_images > 0;
    tk__table_cell(table, "%s", head->name); /* "tenant/name" for an admin */
    tk__table_cell(table, "%zu", head->n_labels);
    tk__table_cell(table, "%s", measured ? tk__percent(head->accuracy, buf, sizeof(buf)) : "-");
    tk__table_cell(table, "%s", measured ? tk__percent(head->best, buf, sizeof(buf)) : "-");
    tk__table_cell(table, "%.1f", head->tolerance);
    tk__table_cell(table, "%llu", (unsigned long long)head->validation_images);
    tk__table_cell(table, "%llu", (unsigned long long)head->born_version);
}

int tk__cmd_heads(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv)
{
    tk__list rest;
    const int code = tk__args_parse(ctl, cmd, NULL, 0, argc, argv, &rest, 0, 0);
    if (code != TK__GO) return code;
    Trunkd__V1__Empty request;
    trunkd__v1__empty__init(&request);
    Trunkd__V1__ListHeadsResponse *answer = tk__call(ctl, "/trunkd.v1.Heads/List", &request.base,
                                                     &trunkd__v1__list_heads_response__descriptor);
    if (!answer) return TK__FAILED;
    if (ctl->json) {
        tk__print_json(&answer->base);
    } else if (answer->n_heads == 0) {
        puts("No head yet. Teach one: trunkctl finetune --head NAME --data ID --watch");
    } else {
        tk__table table;
        tk__table_init(&table, "lrrrrrr");
        static const char *const titles[] = {"HEAD",     "CLASSES",  "ACCURACY", "BEST",
                                             "MAY FALL", "HELD OUT", "SINCE"};
        for (size_t i = 0; i < 7; i++)
            tk__table_cell(&table, "%s", titles[i]);
        for (size_t i = 0; i < answer->n_heads; i++)
            head_row(&table, answer->heads[i]);
        if (!ctl->quiet) printf("version %llu\n", (unsigned long long)answer->version);
        tk__table_print(&table, stdout, 0);
    }
    tk_client_free_message(&answer->base);
    return TK__DONE;
}

int tk__cmd_head_delete(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv)
{
    tk__list rest;
    const int code = tk__args_parse(ctl, cmd, NULL, 0, argc, argv, &rest, 1, 1);
    if (code != TK__GO) return code;
    Trunkd__V1__DeleteHeadRequest request;
    trunkd__v1__delete_head_request__init(&request);
    request.name = rest.items[0];
    ProtobufCMessage *answer =
        tk__call(ctl, "/trunkd.v1.Heads/Delete", &request.base, &trunkd__v1__empty__descriptor);
    if (answer && !ctl->quiet) puts("deleted");
    tk__list_free(&rest);
    tk_client_free_message(answer);
    return answer ? TK__DONE : TK__FAILED;
}

static void print_classes(const Trunkd__V1__Validation *v)
{
    tk__table table;
    tk__table_init(&table, "lrr");
    for (size_t i = 0; i < v->n_classes; i++) {
        const Trunkd__V1__ClassValidation *class = v->classes[i];
        char buf[32];
        tk__table_cell(&table, "%s", class->label);
        tk__table_cell(&table, "%llu of %llu", (unsigned long long)class->correct,
                       (unsigned long long)class->images);
        tk__table_cell(&table, "%s",
                       class->images ? tk__percent((double)class->correct / (double)class->images,
                                                   buf, sizeof(buf))
                                     : "-");
    }
    tk__table_print(&table, stdout, 4);
}

static void print_validations(const Trunkd__V1__GetValidationResponse *answer, bool classes)
{
    tk__table table;
    tk__table_init(&table, "lrrrrl");
    static const char *const titles[] = {"HEAD", "VERSION", "ACCURACY", "TOP 5", "IMAGES", ""};
    for (size_t i = 0; i < 6 && !classes; i++)
        tk__table_cell(&table, "%s", titles[i]);
    for (size_t i = 0; i < answer->n_validations; i++) {
        const Trunkd__V1__Validation *v = answer->validations[i];
        char buf[32];
        tk__table_cell(&table, "%s", v->head);
        tk__table_cell(&table, classes ? "version %llu" : "%llu", (unsigned long long)v->version);
        tk__table_cell(&table, "%s", tk__percent(v->accuracy, buf, sizeof(buf)));
        tk__table_cell(&table, "%s", tk__percent(v->top5, buf, sizeof(buf)));
        tk__table_cell(&table, "%llu", (unsigned long long)v->images);
        tk__table_cell(&table, "%s", v->agreement ? "agreement with its old answers" : "");
        if (!classes) continue;
        tk__table_print(&table, stdout, 0);
        print_classes(v);
        tk__table_init(&table, "lrrrrl");
    }
    tk__table_print(&table, stdout, 0);
}

int tk__cmd_validation(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv)
{
    bool history = false, classes = false, csv = false;
    const tk__opt opts[] = {
        {"history", 0, TK__FLAG, &history, NULL,
         "after every version, with what it says about forgetting"},
        {"csv", 0, TK__FLAG, &csv, NULL, "with --history: a line per version and head"},
        {"classes", 0, TK__FLAG, &classes, NULL, "by class"},
    };
    tk__list rest;
    int code = tk__args_parse(ctl, cmd, opts, 3, argc, argv, &rest, 0, SIZE_MAX);
    if (code != TK__GO) return code;
    if (csv && (!history || classes || ctl->json))
        code = tk__usage(cmd, "--csv goes with --history, and without --classes and --json");
    else if (history && !classes)
        code = tk__history(ctl, &rest, csv);
    if (code != TK__GO) {
        tk__list_free(&rest);
        return code;
    }
    Trunkd__V1__GetValidationRequest request;
    trunkd__v1__get_validation_request__init(&request);
    request.n_heads = rest.n;
    request.heads = rest.items;
    request.history = history;
    Trunkd__V1__GetValidationResponse *answer =
        tk__call(ctl, "/trunkd.v1.Heads/GetValidation", &request.base,
                 &trunkd__v1__get_validation_response__descriptor);
    tk__list_free(&rest);
    if (!answer) return TK__FAILED;
    if (ctl->json)
        tk__print_json(&answer->base);
    else if (ctl->quiet)
        for (size_t i = 0; i < answer->n_validations; i++)
            printf("%.2f\n", 100 * answer->validations[i]->accuracy);
    else if (answer->n_validations == 0)
        puts("Nothing is measured: no head, or no held-out images.");
    else
        print_validations(answer, classes);
    tk_client_free_message(&answer->base);
    return TK__DONE;
}
