/* What server and trainer say to each other while a job runs (trainer/protocol.md): job.json out,
 * lines in. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "engine/file.h"
#include "engine/mem.h"
#include "jobs/jobs_internal.h"

static tk_err no_memory(tk_diag *diag)
{
    return tk_fail(diag, TK_NOMEM, "job: out of memory");
}

/* -- job.json -- */

static json_t *object_path(const tk_jobs *jobs, const char *sha)
{
    char *path = tk_store_object_path(jobs->store, sha);
    json_t *value = path ? json_string(path) : NULL;
    tk_free(path);
    return value;
}

/* The heads that have a validation pack; the job's own is for the case that it is refreshed. */
static json_t *validations(const tk_jobs *jobs, const tk_version *base)
{
    json_t *list = json_array();
    bool good = list != NULL;
    for (size_t i = 0; base && i < base->n_heads && good; i++) {
        const tk_version_head *head = &base->heads[i];
        if (!head->pack[0]) continue;
        good = json_array_append_new(list, json_pack("{s:s,s:o}", "head", head->id, "pack",
                                                     object_path(jobs, head->pack))) == 0;
    }
    if (good) return list;
    json_decref(list);
    return NULL;
}

static json_t *settings(const tk_job *job)
{
    json_t *set = json_object();
    bool good = set != NULL;
    for (size_t i = 0; i < job->n_set && good; i++)
        good = json_object_set_new(set, job->set[i].name, json_real(job->set[i].value)) == 0;
    if (good) return set;
    json_decref(set);
    return NULL;
}

static json_t *preproc(const tk_preproc *p)
{
    return json_pack("{s:s,s:i,s:i}", "mode", p->mode == TK_RESIZE_SQUASH ? "squash" : "short",
                     "resize", (int)p->resize, "crop", (int)p->crop);
}

static json_t *describe(const tk_jobs *jobs, const tk_job *job, const tk_version *base,
                        const tk_trunk *trunk, const char *data_sha)
{
    char id[TK_HEAD_ID_SIZE], number[24];
    (void)snprintf(id, sizeof id, "%s/%s", job->tenant_name, job->head);
    (void)snprintf(number, sizeof number, "%llu", (unsigned long long)job->id);
    return json_pack("{s:s,s:o,s:s,s:o,s:o,s:s,s:f,s:s,s:o,s:s,s:o,s:s,s:I,s:i,s:I}", "job", number,
                     "base", base ? object_path(jobs, base->sha) : json_null(), "arch", trunk->arch,
                     "preproc", preproc(&trunk->preproc), "data", object_path(jobs, data_sha),
                     "head", id, "tolerance", job->tolerance, "retention",
                     job->retention == TK_RETAIN_NOTHING ? "nothing" : "validation", "validations",
                     validations(jobs, base), "recipe", job->recipe, "set", settings(job),
                     "fallback", job->fallback == TK_FALLBACK_REJECT ? "reject" : "probe", "seed",
                     (json_int_t)job->seed, "threads", (int)jobs->opts.threads, "memory_limit",
                     (json_int_t)jobs->opts.memory_limit);
}

tk_err tk__job_file_write(tk_jobs *jobs, const tk_job *job, const tk_version *base, const char *dir,
                          tk_diag *diag)
{
    tk_data_set data = {0};
    tk_trunk trunk;
    tk_err err = tk_store_data_set_get(jobs->store, job->tenant, job->data_set, &data, diag);
    if (err == TK_OK) err = tk_store_trunk_get(jobs->store, &trunk, diag);
    json_t *root = err == TK_OK ? describe(jobs, job, base, &trunk, data.sha) : NULL;
    char *text = root ? json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(17)) : NULL;
    char *path = tk__join(dir, "job.json");
    if (err == TK_OK && (!text || !path)) err = no_memory(diag);
    if (err == TK_OK) err = tk_file_write(path, text, strlen(text), diag);
    tk_free(path);
    free(text);
    json_decref(root);
    tk_data_set_fini(&data);
    return err;
}

/* -- lines -- */

void tk__copy_text(char *to, size_t size, const char *from)
{
    size_t n = strlen(from);
    if (n >= size) {
        n = size - 1;
        while (n > 0 && ((unsigned char)from[n] & 0xc0) == 0x80)
            n--; /* not inside a UTF-8 sequence */
    }
    memcpy(to, from, n);
    to[n] = '\0';
}

static void copy_member(char *to, size_t size, const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    tk__copy_text(to, size, text ? text : "");
}

static uint64_t count_member(const json_t *object, const char *key)
{
    const json_int_t n = json_integer_value(json_object_get(object, key));
    return n > 0 ? (uint64_t)n : 0;
}

static double real_member(const json_t *object, const char *key)
{
    return json_number_value(json_object_get(object, key));
}

static void parse_progress(const json_t *root, tk_job_event *event)
{
    const json_t *loss = json_object_get(root, "loss");
    const uint64_t epoch = count_member(root, "epoch"), epochs = count_member(root, "epochs");
    event->step = count_member(root, "step");
    event->steps = count_member(root, "steps");
    event->epoch = epoch > UINT32_MAX ? UINT32_MAX : (uint32_t)epoch;
    event->epochs = epochs > UINT32_MAX ? UINT32_MAX : (uint32_t)epochs;
    event->loss_total = real_member(loss, "total");
    event->loss_ce = real_member(loss, "ce");
    event->loss_kd = real_member(loss, "kd");
    event->loss_ewc = real_member(loss, "ewc");
    event->eta_seconds = real_member(root, "eta_s");
}

static tk_err parse_heads(const json_t *root, tk_job_event *event)
{
    const json_t *heads = json_object_get(root, "heads");
    const size_t n = json_array_size(heads);
    if (n == 0) return TK_OK;
    event->heads = tk_calloc(n, sizeof *event->heads);
    if (!event->heads) return TK_NOMEM;
    event->n_heads = n;
    for (size_t i = 0; i < n; i++) {
        const json_t *o = json_array_get(heads, i), *change = json_object_get(o, "change"),
                     *floor = json_object_get(o, "floor");
        const char *source = json_string_value(json_object_get(o, "source"));
        tk_measure *m = &event->heads[i];
        copy_member(m->head, sizeof m->head, o, "head");
        m->accuracy = real_member(o, "accuracy");
        m->change = json_is_number(change) ? json_number_value(change) : (double)NAN;
        m->floor = json_is_number(floor) ? json_number_value(floor) : (double)NAN;
        m->n = count_member(o, "n");
        m->agreement = source && strcmp(source, "agreement") == 0;
    }
    return TK_OK;
}

static tk_err parse(tk_line *out, const json_t *root)
{
    static const char *const names[] = {[TK_LINE_PROGRESS] = "progress",
                                        [TK_LINE_VALIDATION] = "validation",
                                        [TK_LINE_LOG] = "log",
                                        [TK_LINE_DONE] = "done",
                                        [TK_LINE_FAILED] = "failed"};
    const char *name = json_string_value(json_object_get(root, "event"));
    const char *level = json_string_value(json_object_get(root, "level"));
    size_t kind = 0;
    while (kind < 5 && (!name || strcmp(name, names[kind]) != 0))
        kind++;
    if (kind == 5) return TK_BADDATA;
    out->kind = (tk_line_kind)kind;
    out->warn = level && strcmp(level, "warn") == 0;
    copy_member(out->event.stage, sizeof out->event.stage, root, "stage");
    copy_member(out->event.message, sizeof out->event.message, root,
                out->kind == TK_LINE_LOG ? "message" : "reason");
    copy_member(out->error, sizeof out->error, root, "error");
    parse_progress(root, &out->event);
    return out->kind == TK_LINE_VALIDATION ? parse_heads(root, &out->event) : TK_OK;
}

tk_err tk__line_parse(tk_line *out, const char *text, size_t size)
{
    *out = (tk_line){0};
    json_t *root = json_loadb(text, size, JSON_REJECT_DUPLICATES, NULL);
    const tk_err err = json_is_object(root) ? parse(out, root) : TK_BADDATA;
    json_decref(root);
    if (err != TK_OK) tk_job_event_fini(&out->event);
    return err;
}
