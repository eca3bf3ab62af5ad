/* finetune, job list, get, watch, cancel. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ctl.h"
#include "stop.h"
#include "term.h"
#include "watch.h"

/* "kappa=2" -> name and value, in place. */
static int parse_setting(const tk__cmd *cmd, char *text, Trunkd__V1__Setting *out)
{
    trunkd__v1__setting__init(out);
    char *equals = strchr(text, '=');
    if (!equals || equals == text || !tk__parse_real(equals + 1, &out->value))
        return tk__usage(cmd, "--set %s: expected NAME=NUMBER, as in kappa=2", text);
    *equals = '\0';
    out->name = text;
    return TK__GO;
}

/* Words of an option that has few, "a|b|c": sets *out to the given word's place. */
static int parse_word(const tk__cmd *cmd, const char *option, const char *given, const char *words,
                      int *out)
{
    if (!given) return TK__GO;
    const size_t size = strlen(given);
    int place = 0;
    for (const char *w = words; w; place++) {
        const char *end = strchr(w, '|');
        const size_t n = end ? (size_t)(end - w) : strlen(w);
        if (n == size && memcmp(w, given, n) == 0) {
            *out = place;
            return TK__GO;
        }
        w = end ? end + 1 : NULL;
    }
    return tk__usage(cmd, "--%s %s: expected %s", option, given, words);
}

typedef struct finetune {
    const char *head, *recipe, *policy, *fallback, *retention;
    uint64_t data, seed;
    double tolerance;
    bool refresh, watch;
    tk__list set;
} finetune;

#define POLICIES   "auto|shared|adapter|probe"
#define FALLBACKS  "probe|reject"
#define RETENTIONS "validation|nothing"

/* An option that is a setting of the recipe. `name` must live as long as *out. */
static void add_setting(Trunkd__V1__Setting *out, char *name, double value)
{
    trunkd__v1__setting__init(out);
    out->name = name;
    out->value = value;
}

/* Submits and prints or watches. `settings` has room for all of given->set and two more. */
static int submit(tk__ctl *ctl, const tk__cmd *cmd, const finetune *given,
                  Trunkd__V1__Setting *settings, Trunkd__V1__Setting **pointers)
{
    Trunkd__V1__SubmitJobRequest request;
    trunkd__v1__submit_job_request__init(&request);
    char policy_name[] = "policy", refresh_name[] = "refresh";
    int policy = 0, fallback = 0, retention = 0;
    size_t n = given->set.n;
    int code = parse_word(cmd, "fallback", given->fallback, FALLBACKS, &fallback);
    if (code == TK__GO) code = parse_word(cmd, "policy", given->policy, POLICIES, &policy);
    if (code == TK__GO)
        code = parse_word(cmd, "retention", given->retention, RETENTIONS, &retention);
    for (size_t i = 0; i < given->set.n && code == TK__GO; i++) {
        code = parse_setting(cmd, given->set.items[i], &settings[i]);
    }
    if (code != TK__GO) return code;
    if (given->policy) add_setting(&settings[n++], policy_name, policy);
    if (given->refresh) add_setting(&settings[n++], refresh_name, 1);
    for (size_t i = 0; i < n; i++)
        pointers[i] = &settings[i];
    char *head = tk__copy(given->head), *recipe = tk__copy(given->recipe ? given->recipe : "");
    request.head = head;
    request.recipe = recipe;
    request.data_set = given->data;
    request.seed = given->seed;
    request.tolerance = given->tolerance;
    request.fallback = (Trunkd__V1__Fallback)fallback;
    request.retention = (Trunkd__V1__Retention)retention;
    request.n_set = n;
    request.set = pointers;
    if (given->watch) tk__stop_begin();
    Trunkd__V1__Job *job =
        tk__call(ctl, "/trunkd.v1.Jobs/Submit", &request.base, &trunkd__v1__job__descriptor);
    free(head);
    free(recipe);
    if (!job) return TK__FAILED;
    const uint64_t id = job->id;
    if (ctl->json && !given->watch) {
        tk__print_json(&job->base);
    } else if (ctl->quiet && !given->watch) {
        printf("%llu\n", (unsigned long long)id);
    } else if (!ctl->json && !ctl->quiet) {
        char *name = tk__clean(job->head),
             *how = tk__clean(job->recipe[0] ? job->recipe : "by default");
        printf("job %llu: head %s, data set %llu, recipe %s\n", (unsigned long long)id, name,
               (unsigned long long)job->data_set, how);
        if (!given->watch) printf("Watch it: trunkctl job watch %llu\n", (unsigned long long)id);
        free(name);
        free(how);
    }
    tk_client_free_message(&job->base);
    fflush(stdout);
    return given->watch ? tk__watch(ctl, id) : TK__DONE;
}

int tk__cmd_finetune(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv)
{
    finetune given = {0};
    tk__list rest;
    const tk__opt opts[] = {
        {"head", 0, TK__TEXT, &given.head, "NAME",
         "the head to add, or one of yours to replace or refresh"},
        {"refresh", 0, TK__FLAG, &given.refresh, NULL,
         "the head keeps what it knows, and learns from the new images, new classes too"},
        {"data", 'd', TK__NUMBER, &given.data, "ID", "the data set (trunkctl dataset list)"},
        {"recipe", 'r', TK__TEXT, &given.recipe, "NAME", "the training objective"},
        {"set", 0, TK__MANY, &given.set, "NAME=NUMBER",
         "override a setting of the recipe (repeat for more)"},
        {"policy", 0, TK__TEXT, &given.policy, POLICIES,
         "where the head may live (default shared; auto: whichever held-out images favour)"},
        {"fallback", 0, TK__TEXT, &given.fallback, FALLBACKS,
         "when other heads would fall: a probe (default), or nothing is committed"},
        {"retention", 0, TK__TEXT, &given.retention, RETENTIONS,
         "what the server keeps of the images: the held-out ones (default), or none"},
        {"tolerance", 0, TK__REAL, &given.tolerance, "POINTS",
         "how far later jobs may let this head fall (default 1)"},
        {"seed", 0, TK__NUMBER, &given.seed, "N", "same seed, same result (default 1)"},
        {"watch", 'w', TK__FLAG, &given.watch, NULL, "follow the job until it ends"},
    };
    int code =
        tk__args_parse(ctl, cmd, opts, sizeof(opts) / sizeof(opts[0]), argc, argv, &rest, 0, 0);
    if (code == TK__GO && !given.head) code = tk__usage(cmd, "--head NAME is missing");
    if (code == TK__GO && !given.data)
        code = tk__usage(cmd, "--data ID is missing; see trunkctl dataset list");
    if (code == TK__GO && given.tolerance < 0)
        code = tk__usage(cmd, "--tolerance is a number of points, 0 or more");
    if (code == TK__GO) {
        Trunkd__V1__Setting *settings = tk__alloc(given.set.n + 2, sizeof(*settings));
        Trunkd__V1__Setting **pointers = tk__alloc(given.set.n + 2, sizeof(Trunkd__V1__Setting *));
        code = submit(ctl, cmd, &given, settings, pointers);
        free(settings);
        free(pointers);
    }
    tk__list_free(&given.set);
    return code;
}

static void list_row(tk__table *table, const Trunkd__V1__Job *job)
{
    char when[32], version[32] = "-";
    if (job->version) snprintf(version, sizeof(version), "%llu", (unsigned long long)job->version);
    tk__table_cell(table, "%llu", (unsigned long long)job->id);
    tk__table_cell(table, "%s%s%s", job->tenant, job->tenant[0] ? "/" : "", job->head);
    tk__table_cell(table, "%s", job->recipe[0] ? job->recipe : "by default");
    tk__table_cell(table, "%s", tk__job_state((int)job->state));
    tk__table_cell(table, "%s", job->outcome[0] ? job->outcome : "-");
    tk__table_cell(table, "%s", version);
    tk__table_cell(table, "%s", tk__when(job->submitted_ms, when, sizeof(when)));
}

int tk__cmd_job_list(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv)
{
    uint64_t limit = 0;
    const tk__opt opts[] = {{"limit", 0, TK__NUMBER, &limit, "N", "at most so many (default 50)"}};
    tk__list rest;
    const int code = tk__args_parse(ctl, cmd, opts, 1, argc, argv, &rest, 0, 0);
    if (code != TK__GO) return code;
    Trunkd__V1__ListJobsRequest request;
    trunkd__v1__list_jobs_request__init(&request);
    request.limit = limit > UINT32_MAX ? UINT32_MAX : (uint32_t)limit;
    Trunkd__V1__ListJobsResponse *answer = tk__call(ctl, "/trunkd.v1.Jobs/List", &request.base,
                                                    &trunkd__v1__list_jobs_response__descriptor);
    if (!answer) return TK__FAILED;
    if (ctl->json) {
        tk__print_json(&answer->base);
    } else if (answer->n_jobs == 0) {
        puts("No job yet. Begin one: trunkctl finetune --head NAME --data ID --watch");
    } else {
        tk__table table;
        tk__table_init(&table, "rllllrl");
        static const char *const titles[] = {"JOB",     "HEAD",    "RECIPE",   "STATE",
                                             "OUTCOME", "VERSION", "SUBMITTED"};
        for (size_t i = 0; i < 7; i++)
            tk__table_cell(&table, "%s", titles[i]);
        for (size_t i = 0; i < answer->n_jobs; i++)
            list_row(&table, answer->jobs[i]);
        tk__table_print(&table, stdout, 0);
    }
    tk_client_free_message(&answer->base);
    return TK__DONE;
}

static void print_job(const Trunkd__V1__Job *job)
{
    char buf[32];
    printf("job        %llu\n", (unsigned long long)job->id);
    char *head = tk__clean(job->head),
         *recipe = tk__clean(job->recipe[0] ? job->recipe : "by default"),
         *reason = tk__clean(job->reason);
    printf("head       %s\ndata set   %llu\nrecipe     %s", head, (unsigned long long)job->data_set,
           recipe);
    for (size_t i = 0; i < job->n_set; i++) {
        putchar(' ');
        tk__put(stdout, job->set[i]->name);
        printf("=%g", job->set[i]->value);
    }
    printf("\nstate      %s%s%s\n", tk__job_state((int)job->state), job->outcome[0] ? ", " : "",
           job->outcome);
    if (*reason) printf("reason     %s\n", reason);
    printf("version    from %llu", (unsigned long long)job->base_version);
    if (job->version) printf(" to %llu", (unsigned long long)job->version);
    printf("\nsubmitted  %s\n", tk__when(job->submitted_ms, buf, sizeof(buf)));
    printf("started    %s\n", tk__when(job->started_ms, buf, sizeof(buf)));
    printf("ended      %s\n", tk__when(job->ended_ms, buf, sizeof(buf)));
    printf("attempts   %u\n", job->attempts);
    tk__print_job_heads(job->n_heads, job->heads, job->head, stdout);
    free(head);
    free(recipe);
    free(reason);
}

/* Prints what Get and Cancel answer. */
static int job_answer(tk__ctl *ctl, Trunkd__V1__Job *job)
{
    if (!job) return TK__FAILED;
    if (ctl->json)
        tk__print_json(&job->base);
    else if (ctl->quiet)
        puts(tk__job_state((int)job->state));
    else
        print_job(job);
    tk_client_free_message(&job->base);
    return TK__DONE;
}

int tk__cmd_job_get(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv)
{
    Trunkd__V1__GetJobRequest request;
    trunkd__v1__get_job_request__init(&request);
    const int code = tk__args_parse_id(ctl, cmd, NULL, 0, argc, argv, &request.id);
    if (code != TK__GO) return code;
    return job_answer(
        ctl, tk__call(ctl, "/trunkd.v1.Jobs/Get", &request.base, &trunkd__v1__job__descriptor));
}

int tk__cmd_job_cancel(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv)
{
    Trunkd__V1__CancelJobRequest request;
    trunkd__v1__cancel_job_request__init(&request);
    const int code = tk__args_parse_id(ctl, cmd, NULL, 0, argc, argv, &request.id);
    if (code != TK__GO) return code;
    return job_answer(
        ctl, tk__call(ctl, "/trunkd.v1.Jobs/Cancel", &request.base, &trunkd__v1__job__descriptor));
}

int tk__cmd_job_watch(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv)
{
    uint64_t id = 0;
    const int code = tk__args_parse_id(ctl, cmd, NULL, 0, argc, argv, &id);
    if (code != TK__GO) return code;
    tk__stop_begin();
    return tk__watch(ctl, id);
}
