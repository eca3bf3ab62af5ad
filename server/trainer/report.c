/* See report.h. A number that is not finite has no form in JSON and is written as null. */
#include "report.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "engine/file.h"

static const char *error_name(tk_err err)
{
    static const char *const names[] = {
#define NAME(code, text) #code,
        TK_ERRORS(NAME)
#undef NAME
    };
    return names[err];
}

static json_t *number(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

static json_t *count(size_t n)
{
    return json_integer((json_int_t)n);
}

/* Text from outside may hold anything; what is not UTF-8 is replaced. */
static json_t *text(const char *s)
{
    json_t *t = json_string(s);
    return t ? t : json_string("(not UTF-8)");
}

static void put(json_t *o, const char *key, json_t *value)
{
    json_object_set_new(o, key, value ? value : json_null());
}

/* Takes the object. */
static bool emit(json_t *o)
{
    const int failed = json_dumpf(o, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
    json_decref(o);
    return putc('\n', stdout) != EOF && fflush(stdout) == 0 && failed == 0;
}

static json_t *event(const char *name)
{
    json_t *o = json_object();
    put(o, "event", json_string(name));
    return o;
}

static json_t *losses_to_json(const tk_losses *l)
{
    json_t *o = json_object();
    put(o, "total", number(tk_losses_total(l)));
    put(o, "ce", number(l->ce));
    put(o, "kd", number(l->kd));
    put(o, "ewc", number(l->ewc));
    return o;
}

bool report_progress(const tk_job_progress *p)
{
    json_t *o = event("progress");
    put(o, "stage", json_string(tk_stage_name(p->stage)));
    put(o, "step", count(p->step));
    put(o, "steps", count(p->steps));
    if (p->epochs) {
        put(o, "epoch", count(p->epoch));
        put(o, "epochs", count(p->epochs));
        put(o, "rate", number(p->rate));
        put(o, "loss", losses_to_json(&p->losses));
    }
    if (isfinite(p->eta)) put(o, "eta_s", number(p->eta));
    return emit(o);
}

bool report_validation(const tk_job_validation *v)
{
    json_t *o = event("validation"), *heads = json_array();
    put(o, "stage", json_string(tk_stage_name(v->stage)));
    put(o, "step", count(v->step));
    put(o, "epoch", count(v->epoch));
    if (v->stage == TK_STAGE_TRAIN) put(o, "loss", losses_to_json(&v->losses));
    for (size_t h = 0; h <= v->n_others; h++) {
        const tk_validation *now = &v->now[h];
        json_t *e = json_object();
        put(e, "head", text(now->head));
        put(e, "accuracy", number(tk_validation_accuracy(now)));
        if (h < v->n_others) {
            put(e, "change",
                number(tk_validation_accuracy(now) - tk_validation_accuracy(&v->before[h])));
            put(e, "floor", number(v->gate[h].floor));
        }
        put(e, "n", count(now->n));
        put(e, "source", json_string(now->agreement ? "agreement" : "validation"));
        json_array_append_new(heads, e);
    }
    put(o, "heads", heads);
    return emit(o);
}

bool report_log(bool warn, const char *message)
{
    json_t *o = event("log");
    put(o, "level", json_string(warn ? "warn" : "info"));
    put(o, "message", text(message));
    return emit(o);
}

bool report_failed(tk_err err, const char *reason)
{
    json_t *o = event("failed");
    put(o, "error", json_string(error_name(err)));
    put(o, "reason", text(reason[0] ? reason : tk_err_text(err)));
    return emit(o);
}

tk_err report_done(const char *dir, tk_diag *diag)
{
    char path[4096];
    json_error_t where;
    snprintf(path, sizeof path, "%s/result.json", dir);
    json_t *result = json_load_file(path, 0, &where);
    if (!result) return tk_fail(diag, TK_BADDATA, "%s: %s", path, where.text);
    json_t *o = event("done");
    static const char *const keys[] = {"outcome", "reason", "files"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        json_object_set(o, keys[i], json_object_get(result, keys[i]));
    json_decref(result);
    emit(o);
    return TK_OK;
}

static json_t *confusion_to_json(const tk_validation *v)
{
    json_t *rows = json_array();
    for (size_t r = 0; r < v->classes; r++) {
        json_t *row = json_array();
        for (size_t c = 0; c < v->classes; c++)
            json_array_append_new(row, count(v->confusion[r * v->classes + c]));
        json_array_append_new(rows, row);
    }
    return rows;
}

static json_t *validation_to_json(const tk_validation *v)
{
    json_t *o = json_object();
    put(o, "head", text(v->head));
    put(o, "n", count(v->n));
    put(o, "correct", count(v->correct));
    put(o, "accuracy", number(tk_validation_accuracy(v)));
    put(o, "top5", number(v->n ? (double)v->top5 / (double)v->n : 0));
    put(o, "source", json_string(v->agreement ? "agreement" : "validation"));
    if (v->confusion) put(o, "confusion", confusion_to_json(v));
    return o;
}

bool report_eval(const tk_validation *validation, tk_precision precision,
                 const tk_precision_check *check)
{
    json_t *o = validation_to_json(validation);
    json_object_del(o, "confusion");
    put(o, "precision", json_string(tk_precision_name(precision)));
    if (check) {
        put(o, "fp32", number(check->fp32));
        put(o, "alike", number(check->alike));
        put(o, "tolerance", number(check->tolerance));
        put(o, "admitted", json_boolean(check->admitted));
    }
    return emit(o);
}

static json_t *gate_to_json(const tk_gate_record *g)
{
    json_t *o = json_object();
    put(o, "head", text(g->head));
    put(o, "best", number(g->best));
    put(o, "before", number(g->before));
    put(o, "after", number(g->after));
    put(o, "tolerance", number(g->tolerance));
    put(o, "sigma", number(g->sigma));
    put(o, "floor", number(g->floor));
    put(o, "drop", number(g->drop));
    put(o, "se", number(g->se));
    put(o, "n", count(g->n));
    put(o, "right_before", count(g->right_before));
    put(o, "n01", count(g->n01));
    put(o, "n10", count(g->n10));
    put(o, "source", json_string(g->agreement ? "agreement" : "validation"));
    put(o, "resolved", json_boolean(g->resolved));
    put(o, "admitted", json_boolean(g->admitted));
    return o;
}

static json_t *recipe_to_json(const tk_recipe *recipe)
{
    json_t *o = json_object(), *set = json_object();
    put(o, "name", json_string(recipe->name));
    for (size_t i = 0; i < tk_recipe_fields(); i++) {
        const tk_recipe_field *f = tk_recipe_field_at(i);
        put(set, f->name, number(tk_recipe_get(recipe, f)));
    }
    put(o, "set", set);
    return o;
}

static json_t *curve_to_json(const tk_job_result *r)
{
    json_t *curve = json_array();
    for (size_t e = 0; r->curve && e < r->epochs; e++) {
        const tk_curve_point *p = &r->curve[e];
        json_t *o = json_object();
        put(o, "epoch", count(e + 1));
        put(o, "rate", number(p->rate));
        put(o, "strength", number(p->strength));
        put(o, "loss", losses_to_json(&p->losses));
        put(o, "norm", number(p->losses.norm));
        if (p->validated != 0) {
            put(o, "admissible", json_boolean(p->verdict.admissible));
            put(o, "worth", number(p->verdict.worth));
        }
        json_array_append_new(curve, o);
    }
    return curve;
}

static json_t *trials_to_json(const tk_job_result *r)
{
    json_t *trials = json_array();
    for (size_t i = 0; i < r->n_trials; i++) {
        const tk_trial *t = &r->trials[i];
        json_t *o = json_object();
        put(o, "strength", number(t->strength));
        put(o, "epochs", count(t->epochs));
        put(o, "admissible", json_boolean(t->admissible));
        put(o, "improved", json_boolean(t->improved));
        put(o, "worth", t->found ? number(t->worth) : json_null());
        json_array_append_new(trials, o);
    }
    return trials;
}

static json_t *check_to_json(const char *head, const tk_precision_check *c)
{
    json_t *o = json_object();
    put(o, "head", text(head));
    put(o, "n", count(c->n));
    put(o, "accuracy", number(c->accuracy));
    put(o, "fp32", number(c->fp32));
    put(o, "alike", number(c->alike));
    put(o, "tolerance", number(c->tolerance));
    put(o, "source", json_string(c->agreement ? "agreement" : "validation"));
    put(o, "admitted", json_boolean(c->admitted));
    return o;
}

/* Of what is committed; nothing when it was not measured. */
static json_t *precisions_to_json(const tk_job_result *r)
{
    json_t *o = json_object();
    for (tk_precision p = TK_PRECISION_FP32 + 1; r->checks && p < TK_PRECISION_COUNT; p++) {
        json_t *one = json_object(), *heads = json_array();
        for (size_t h = 0; h <= r->n_others; h++)
            json_array_append_new(heads, check_to_json(r->after[h].head, &r->checks[h][p]));
        put(one, "admitted", json_boolean(r->admitted[p]));
        put(one, "heads", heads);
        put(o, tk_precision_name(p), one);
    }
    return o;
}

static json_t *validations_to_json(const tk_validation *v, size_t n)
{
    json_t *list = json_array();
    for (size_t h = 0; h < n; h++)
        json_array_append_new(list, validation_to_json(&v[h]));
    return list;
}

static json_t *files_to_json(const char *dir, const tk_job_result *r)
{
    char path[4096];
    json_t *files = json_object();
    put(files, "result", json_string("result.json"));
    if (r->outcome != TK_OUTCOME_REJECT)
        put(files, "candidate", json_string("candidate.safetensors"));
    snprintf(path, sizeof path, "%s/validation.pack", dir);
    if (r->outcome != TK_OUTCOME_REJECT && access(path, R_OK) == 0)
        put(files, "validation", json_string("validation.pack"));
    return files;
}

static json_t *training_to_json(const tk_job_result *r)
{
    json_t *o = json_object();
    put(o, "batch", count(r->batch));
    put(o, "restarts", count(r->restarts));
    put(o, "best_epoch", count(r->best_epoch));
    put(o, "alpha", number(r->alpha));
    put(o, "probe_accuracy", number(r->probe_accuracy));
    put(o, "adapter_accuracy", number(r->adapter_accuracy));
    put(o, "joint_accuracy", number(r->joint_accuracy));
    put(o, "fisher_scale", number(r->fisher_scale));
    put(o, "trials", trials_to_json(r));
    put(o, "curve", curve_to_json(r));
    return o;
}

static json_t *remarks_to_json(const tk_job_result *r)
{
    char sentence[256];
    json_t *list = json_array();
    for (size_t k = 0; tk_job_remark(r, k, sentence, sizeof sentence); k++)
        json_array_append_new(list, text(sentence));
    return list;
}

static json_t *result_to_json(const char *dir, const char *job, const tk_job_opts *opts,
                              const tk_job_result *r)
{
    json_t *o = json_object(), *images = json_object(), *seconds = json_object();
    json_t *gate = json_array();
    put(o, "job", text(job));
    put(o, "outcome", json_string(tk_outcome_name(r->outcome)));
    put(o, "reason", text(r->reason));
    put(o, "files", files_to_json(dir, r));
    put(o, "head", text(r->head));
    put(o, "arch", json_string(tk_arch_name(r->arch)));
    put(o, "seed", json_integer((json_int_t)opts->seed));
    put(images, "total", count(r->n_images));
    put(images, "unreadable", count(r->n_unreadable));
    put(images, "train", count(r->n_train));
    put(images, "held_out", count(r->n_held));
    put(o, "images", images);
    put(o, "remarks", remarks_to_json(r));
    put(o, "recipe", recipe_to_json(&r->recipe));
    for (size_t h = 0; h < r->n_others; h++)
        json_array_append_new(gate, gate_to_json(&r->gate[h]));
    put(o, "gate", gate);
    put(o, "before", validations_to_json(r->before, r->n_others));
    put(o, "validations", validations_to_json(r->after, r->n_others + 1));
    put(o, "precisions", precisions_to_json(r));
    put(o, "training", training_to_json(r));
    for (tk_stage s = 0; s < TK_STAGE_COUNT; s++)
        put(seconds, tk_stage_name(s), number(r->seconds[s]));
    put(o, "seconds", seconds);
    return o;
}

tk_err report_result(const char *dir, const char *job, const tk_job_opts *opts,
                     const tk_job_result *result, tk_diag *diag)
{
    char path[4096];
    json_t *o = result_to_json(dir, job, opts, result);
    /* 17 digits: the gate's decision can be made again, to the bit. */
    char *dump = json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(17));
    json_decref(o);
    if (!dump) return tk_fail(diag, TK_NOMEM, "result.json: out of memory");
    snprintf(path, sizeof path, "%s/result.json", dir);
    const tk_err err = tk_file_write(path, dump, strlen(dump), diag);
    free(dump);
    return err;
}
