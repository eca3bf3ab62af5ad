/* What the gate said of a candidate, as the trainer writes it into result.json
 * (trainer/protocol.md) and the store keeps it: the members "gate", "precisions", "training" and
 * "remarks". Read at both ends, so every shape and number is checked. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <jansson.h>

#include "engine/mem.h"
#include "store/store.h"

static tk_err bad(tk_diag *diag, const char *what)
{
    return tk_fail(diag, TK_BADDATA, "the gate's record: %s", what);
}

/* Members of an object, read one after another; `failed` names the first that is none. */
typedef struct reader {
    const json_t *o;
    const char *failed;
} reader;

static double real(reader *r, const char *key)
{
    const json_t *v = json_object_get(r->o, key);
    const double x = json_is_number(v) ? json_number_value(v) : (double)NAN;
    if (!isfinite(x)) r->failed = key;
    return x;
}

static size_t count(reader *r, const char *key)
{
    const json_t *v = json_object_get(r->o, key);
    if (!json_is_integer(v) || json_integer_value(v) < 0) r->failed = key;
    return json_is_integer(v) ? (size_t)json_integer_value(v) : 0;
}

static bool flag(reader *r, const char *key)
{
    const json_t *v = json_object_get(r->o, key);
    if (!json_is_boolean(v)) r->failed = key;
    return json_is_true(v);
}

static void head_id(reader *r, char id[TK_HEAD_ID_SIZE])
{
    const char *text = json_string_value(json_object_get(r->o, "head"));
    if (!text || strlen(text) >= TK_HEAD_ID_SIZE)
        r->failed = "head";
    else
        (void)snprintf(id, TK_HEAD_ID_SIZE, "%s", text);
}

static bool by_agreement(reader *r)
{
    const char *source = json_string_value(json_object_get(r->o, "source"));
    const bool agreement = source && strcmp(source, "agreement") == 0;
    if (!agreement && (!source || strcmp(source, "validation") != 0)) r->failed = "source";
    return agreement;
}

static tk_err read_head(const json_t *o, tk_judged_head *out, tk_diag *diag)
{
    reader r = {.o = o};
    head_id(&r, out->id);
    out->gate = (tk_gate_record){.best = real(&r, "best"),
                                 .tolerance = real(&r, "tolerance"),
                                 .sigma = real(&r, "sigma"),
                                 .n = count(&r, "n"),
                                 .right_before = count(&r, "right_before"),
                                 .n01 = count(&r, "n01"),
                                 .n10 = count(&r, "n10"),
                                 .agreement = by_agreement(&r),
                                 .before = real(&r, "before"),
                                 .after = real(&r, "after"),
                                 .floor = real(&r, "floor"),
                                 .drop = real(&r, "drop"),
                                 .se = real(&r, "se"),
                                 .resolved = flag(&r, "resolved"),
                                 .admitted = flag(&r, "admitted")};
    const tk_gate_record *g = &out->gate;
    if (r.failed)
        return tk_fail(diag, TK_BADDATA, "the gate's record: a head without a valid %s", r.failed);
    if (g->right_before > g->n || g->n01 > g->right_before || g->n10 > g->n - g->right_before)
        return bad(diag, "a head whose counts contradict each other");
    return TK_OK;
}

static tk_err read_heads(const json_t *list, tk_judgement *out, tk_diag *diag)
{
    if (!json_is_array(list)) return bad(diag, "no list of heads");
    const size_t n = json_array_size(list);
    out->heads = tk_calloc(n + 1, sizeof *out->heads);
    if (!out->heads) return tk_fail(diag, TK_NOMEM, "the gate's record: out of memory");
    out->n_heads = n;
    tk_err err = TK_OK;
    for (size_t i = 0; i < n && err == TK_OK; i++)
        err = read_head(json_array_get(list, i), &out->heads[i], diag);
    return err;
}

static tk_err read_check(const json_t *o, const char *precision, tk_judged_precision *out,
                         tk_diag *diag)
{
    reader r = {.o = o};
    head_id(&r, out->id);
    out->check = (tk_precision_check){.n = count(&r, "n"),
                                      .accuracy = real(&r, "accuracy"),
                                      .fp32 = real(&r, "fp32"),
                                      .alike = real(&r, "alike"),
                                      .tolerance = real(&r, "tolerance"),
                                      .agreement = by_agreement(&r),
                                      .admitted = flag(&r, "admitted")};
    if (r.failed)
        return tk_fail(diag, TK_BADDATA, "the gate's record: a precision without a valid %s",
                       r.failed);
    return tk_precision_parse(precision, &out->precision, diag);
}

static tk_err read_checks(json_t *precisions, tk_judgement *out, tk_diag *diag)
{
    const char *name;
    json_t *one;
    size_t n = 0;
    json_object_foreach (precisions, name, one)
        n += json_array_size(json_object_get(one, "heads"));
    out->checks = tk_calloc(n + 1, sizeof *out->checks);
    if (!out->checks) return tk_fail(diag, TK_NOMEM, "the gate's record: out of memory");
    tk_err err = TK_OK;
    json_object_foreach (precisions, name, one) {
        const json_t *heads = json_object_get(one, "heads");
        for (size_t i = 0; i < json_array_size(heads) && err == TK_OK; i++)
            err = read_check(json_array_get(heads, i), name, &out->checks[out->n_checks++], diag);
    }
    return err;
}

/* A fraction, or NaN where there is none. */
static double fraction(reader *r, const char *key)
{
    const json_t *v = json_object_get(r->o, key);
    if (!v || json_is_null(v)) return (double)NAN;
    const double x = real(r, key);
    if (!(x >= 0 && x <= 1)) r->failed = key;
    return x;
}

static tk_trial read_trial(reader *r)
{
    return (tk_trial){.strength = real(r, "strength"),
                      .epochs = count(r, "epochs"),
                      .admissible = flag(r, "admissible"),
                      .improved = flag(r, "improved"),
                      .found = !json_is_null(json_object_get(r->o, "worth")),
                      .worth = json_is_null(json_object_get(r->o, "worth")) ? 0 : real(r, "worth")};
}

static tk_err read_training(const json_t *o, tk_judgement *out, tk_diag *diag)
{
    reader r = {.o = o};
    const json_t *trials = json_object_get(o, "trials");
    out->probe = fraction(&r, "probe_accuracy");
    out->adapter = fraction(&r, "adapter_accuracy");
    out->joint = fraction(&r, "joint_accuracy");
    if (json_array_size(trials) > TK_MAX_TRIALS) return bad(diag, "too many trials");
    for (; out->n_trials < json_array_size(trials) && !r.failed; out->n_trials++) {
        r.o = json_array_get(trials, out->n_trials);
        out->trials[out->n_trials] = read_trial(&r);
    }
    if (!r.failed) return TK_OK;
    return tk_fail(diag, TK_BADDATA, "the gate's record: training without a valid %s", r.failed);
}

static tk_err read_remarks(const json_t *list, tk_judgement *out, tk_diag *diag)
{
    out->remarks = tk_calloc(json_array_size(list) + 1, sizeof *out->remarks);
    for (size_t i = 0; out->remarks && i < json_array_size(list); i++) {
        const char *text = json_string_value(json_array_get(list, i));
        if (!text) return bad(diag, "a remark that is no text");
        out->remarks[i] = tk_strdup(text);
        if (!out->remarks[i]) break;
        out->n_remarks++;
    }
    if (out->remarks && out->n_remarks == json_array_size(list)) return TK_OK;
    return tk_fail(diag, TK_NOMEM, "the gate's record: out of memory");
}

tk_err tk_judgement_parse(const char *text, tk_judgement *out, tk_diag *diag)
{
    *out = (tk_judgement){0};
    json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    tk_err err = read_heads(json_object_get(root, "gate"), out, diag);
    if (err == TK_OK) err = read_checks(json_object_get(root, "precisions"), out, diag);
    if (err == TK_OK) err = read_training(json_object_get(root, "training"), out, diag);
    if (err == TK_OK) err = read_remarks(json_object_get(root, "remarks"), out, diag);
    json_decref(root);
    if (err != TK_OK) tk_judgement_fini(out);
    return err;
}

void tk_judgement_fini(tk_judgement *judgement)
{
    tk_free(judgement->heads);
    tk_free(judgement->checks);
    for (size_t i = 0; i < judgement->n_remarks; i++)
        tk_free(judgement->remarks[i]);
    tk_free(judgement->remarks);
    *judgement = (tk_judgement){0};
}
