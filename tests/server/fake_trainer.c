/* A trainer without training: what it does is in the name of the head.
 *
 *     ok...        progress, a validation, a candidate with the head added, result.json
 *     probe...     the same with outcome probe
 *     reject...    result.json with outcome reject: every other head loses 3 of 8 images
 *     curve...     validations at steps 1 to 3, then killed; the next time from step 2 on, to step
 * 4 dies...      killed by a signal, always once...      killed by a signal the first time, ok when
 * it finds its checkpoint hang...      the first time: a checkpoint, then nothing until SIGTERM;
 * then ok stubborn...  hangs and ignores SIGTERM garbage...   lines and a result.json that are none
 *     baddata...   the event "failed" with TK_BADDATA, exit 1
 *     thief...     a candidate without the other heads
 *     silent...    exit 0 and no result
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <jansson.h>

#include "engine/file.h"
#include "engine/mem.h"
#include "heads/gate.h"
#include "heads/model.h"
#include "heads/pack.h"

static volatile sig_atomic_t stopped;

static void on_term(int signal_number)
{
    (void)signal_number;
    stopped = 1;
}

static void must(tk_err err, const tk_diag *diag)
{
    if (err == TK_OK) return;
    (void)fprintf(stderr, "fake trainer: %s: %s\n", tk_err_text(err), diag->text);
    exit(1);
}

static void path_in(char *out, size_t size, const char *dir, const char *name)
{
    (void)snprintf(out, size, "%s/%s", dir, name);
}

static const char *text_of(const json_t *job, const char *key)
{
    return json_string_value(json_object_get(job, key));
}

static tk_model *candidate(const json_t *job, bool thief)
{
    tk_diag diag;
    tk_model *model;
    const char *base = text_of(job, "base"), *id = text_of(job, "head");
    const char *const labels[] = {"red", "blue"};
    if (base) {
        must(tk_model_load(&model, base, true, &diag), &diag);
    } else {
        tk_arch arch;
        const json_t *p = json_object_get(job, "preproc");
        tk_preproc preproc =
            tk_preproc_default((unsigned)json_integer_value(json_object_get(p, "crop")));
        must(tk_arch_parse(text_of(job, "arch"), &arch, &diag), &diag);
        must(tk_model_create(&model, arch, &preproc, &diag), &diag);
        tk_params_init(model->trunk, 1);
    }
    (void)tk_model_drop_head(model, id);
    while (thief && model->n_heads > 0)
        (void)tk_model_drop_head(model, model->heads[0]->id);
    tk_head *head;
    must(tk_head_create(&head, id, 2, tk_arch_features(model->trunk->arch), labels, &diag), &diag);
    head->tolerance = json_number_value(json_object_get(job, "tolerance"));
    head->best = 0.75;
    must(tk_model_add_head(model, head), &diag);
    return model;
}

static void write_pack(const char *dir)
{
    tk_diag diag;
    tk_pack_writer *w;
    uint32_t label;
    char path[4096];
    path_in(path, sizeof path, dir, "validation.pack");
    must(tk_pack_create(&w, path, &diag), &diag);
    must(tk_pack_label(w, "red", &label, &diag), &diag);
    must(tk_pack_add(w, label, "a.png", dir, strlen(dir), &diag),
         &diag); /* the job's own folder: unique */
    must(tk_pack_commit(w, &diag), &diag);
}

/* 6 of 8 images are right before, and `lost` of them wrong now. */
static json_t *judged(const char *head, size_t lost)
{
    const tk_gate_counts counts = {.n = 8, .right_before = 6, .n01 = lost};
    const tk_gate_rule rule = {.best = 0.75, .tolerance = 1};
    const tk_gate_record g = tk_gate_judge_counts(head, &counts, &rule);
    return json_pack("{s:s,s:f,s:f,s:f,s:i,s:i,s:i,s:i,s:f,s:f,s:f,s:f,s:f,s:s,s:b,s:b}", "head",
                     head, "best", g.best, "tolerance", g.tolerance, "sigma", g.sigma, "n", 8,
                     "right_before", 6, "n01", (int)lost, "n10", 0, "before", g.before, "after",
                     g.after, "floor", g.floor, "drop", g.drop, "se", g.se, "source", "validation",
                     "resolved", (int)g.resolved, "admitted", (int)g.admitted);
}

/* Every head of the base but the job's own. */
static json_t *judge_others(const json_t *job, size_t lost)
{
    tk_diag diag;
    tk_model *base;
    json_t *list = json_array();
    if (!text_of(job, "base")) return list;
    must(tk_model_load(&base, text_of(job, "base"), false, &diag), &diag);
    for (size_t i = 0; i < base->n_heads; i++)
        if (strcmp(base->heads[i]->id, text_of(job, "head")) != 0)
            json_array_append_new(list, judged(base->heads[i]->id, lost));
    tk_model_destroy(base);
    return list;
}

static void write_result(const json_t *job, const char *dir, const char *outcome,
                         const tk_model *model)
{
    tk_diag diag;
    char path[4096];
    json_t *list = json_array();
    for (size_t i = 0; model && i < model->n_heads; i++)
        json_array_append_new(list,
                              json_pack("{s:s,s:i,s:f,s:f,s:s,s:[[i,i],[i,i]]}", "head",
                                        model->heads[i]->id, "n", 8, "accuracy", 0.75, "top5", 1.0,
                                        "source", "validation", "confusion", 3, 1, 1, 3));
    json_t *root =
        json_pack("{s:s,s:s,s:o,s:o}", "outcome", outcome, "reason", "because the fake says so",
                  "gate", judge_others(job, model ? 0 : 3), "validations", list);
    char *text = json_dumps(root, JSON_COMPACT | JSON_REAL_PRECISION(17));
    path_in(path, sizeof path, dir, "result.json");
    must(tk_file_write(path, text, strlen(text), &diag), &diag);
    free(text);
    json_decref(root);
}

static void finish(const json_t *job, const char *dir, const char *name)
{
    tk_diag diag;
    char path[4096];
    const bool probe = strncmp(name, "probe", 5) == 0, reject = strncmp(name, "reject", 6) == 0;
    (void)printf("{\"event\":\"validation\",\"stage\":\"train\",\"step\":3,\"epoch\":1,\"heads\":[{"
                 "\"head\":\"%s\","
                 "\"accuracy\":0.5,\"change\":-0.01,\"n\":8}]}\n",
                 text_of(job, "head"));
    (void)printf("{\"event\":\"log\",\"level\":\"info\",\"message\":\"writing\"}\n");
    (void)fflush(stdout);
    if (reject) {
        write_result(job, dir, "reject", NULL);
        return;
    }
    tk_model *model = candidate(job, strncmp(name, "thief", 5) == 0);
    path_in(path, sizeof path, dir, "candidate.safetensors");
    must(tk_model_save(model, path, &diag), &diag);
    if (strcmp(text_of(job, "retention"), "validation") == 0) write_pack(dir);
    write_result(job, dir, probe ? "probe" : "commit", model);
    tk_model_destroy(model);
}

static void hang(bool stubborn)
{
    const struct sigaction action = {.sa_handler = stubborn ? SIG_IGN : on_term};
    (void)sigaction(SIGTERM, &action, NULL);
    (void)printf("{\"event\":\"log\",\"level\":\"info\",\"message\":\"hanging\"}\n");
    (void)fflush(stdout);
    const struct timespec tick = {.tv_nsec = 5000000};
    while (!stopped)
        (void)nanosleep(&tick, NULL);
    exit(3);
}

/* Leaves a checkpoint; true: one was there. */
static bool checkpoint(const char *dir)
{
    tk_diag diag;
    char path[4096];
    path_in(path, sizeof path, dir, "checkpoint.1");
    if (access(path, F_OK) == 0) return true;
    must(tk_file_write(path, "x", 1, &diag), &diag);
    return false;
}

/* One point of a curve: accuracy a tenth of the step. */
static void validation(const json_t *job, const char *stage, int step)
{
    (void)printf("{\"event\":\"validation\",\"stage\":\"%s\",\"step\":%d,\"epoch\":%d,"
                 "\"loss\":{\"total\":1.5,\"ce\":1.0,\"kd\":0.4,\"ewc\":0.1},\"heads\":["
                 "{\"head\":\"alice/ok\",\"accuracy\":0.%d,\"change\":-0.1,\"floor\":0.25,"
                 "\"n\":8,\"source\":\"validation\"},"
                 "{\"head\":\"%s\",\"accuracy\":0.5,\"n\":8,\"source\":\"validation\"}]}\n",
                 stage, step, step, step, text_of(job, "head"));
    (void)fflush(stdout);
}

/* The curve of this attempt; true: go on to the end. */
static bool curve(const json_t *job, const char *dir)
{
    const bool resumed = checkpoint(dir);
    validation(job, "warm-up", 0);
    for (int step = resumed ? 2 : 1; step <= (resumed ? 4 : 3); step++)
        validation(job, "train", step);
    return resumed;
}

static int garbage(const char *dir)
{
    tk_diag diag;
    char path[4096];
    (void)printf("not json\n{\"event\":\"nonsense\"}\n[1,2]\n\xff\xfe\n");
    for (int i = 0; i < 3 << 20; i++)
        (void)putchar('a'); /* a line without end */
    (void)printf("\n");
    path_in(path, sizeof path, dir, "result.json");
    must(tk_file_write(path, "{\"outcome\":\"com", 15, &diag), &diag);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc != 2) return 2;
    char dir[3072];
    (void)snprintf(dir, sizeof dir, "%s", argv[1]);
    char *slash = strrchr(dir, '/');
    if (!slash) return 2;
    *slash = '\0';
    json_t *job = json_load_file(argv[1], 0, NULL);
    const char *id = text_of(job, "head");
    const char *name = id && strchr(id, '/') ? strchr(id, '/') + 1 : NULL;
    if (!name) return 2;
    for (int i = 0; i < 50; i++)
        (void)printf("{\"event\":\"progress\",\"stage\":\"train\",\"step\":%d,\"steps\":50,"
                     "\"epoch\":1,\"epochs\":1,"
                     "\"rate\":0.1,\"loss\":{\"total\":1.5,\"ce\":1.0,\"kd\":0.4,\"ewc\":0.1},"
                     "\"eta_s\":2.5}\n",
                     i);
    (void)fflush(stdout);
    int code = 0;
    if (strncmp(name, "dies", 4) == 0 || (strncmp(name, "once", 4) == 0 && !checkpoint(dir)) ||
        (strncmp(name, "curve", 5) == 0 && !curve(job, dir))) {
        (void)fprintf(stderr, "out of\ncheese\n");
        (void)kill(getpid(), SIGKILL);
    } else if (strncmp(name, "stubborn", 8) == 0 ||
               (strncmp(name, "hang", 4) == 0 && !checkpoint(dir))) {
        hang(name[0] == 's');
    } else if (strncmp(name, "garbage", 7) == 0) {
        code = garbage(dir);
    } else if (strncmp(name, "baddata", 7) == 0) {
        (void)printf(
            "{\"event\":\"failed\",\"error\":\"TK_BADDATA\",\"reason\":\"image 3 is no image\"}\n");
        code = 1;
    } else if (strncmp(name, "silent", 6) != 0) {
        finish(job, dir, name);
    }
    json_decref(job);
    return code;
}
