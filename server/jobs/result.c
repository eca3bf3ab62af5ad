/* Reading result.json: what came of a job. The trainer is ours, but a disk may lie and a trainer
 * may be of another build: every number is checked before it is kept. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "engine/file.h"
#include "engine/mem.h"
#include "jobs/jobs_internal.h"

enum { RESULT_MAX = 512 << 20, CONFUSION_MAX_CLASSES = 1000 };

static tk_err no_memory(tk_diag *diag)
{
    return tk_fail(diag, TK_NOMEM, "result: out of memory");
}

static tk_err bad(tk_diag *diag, const char *what)
{
    return tk_fail(diag, TK_BADDATA, "result.json: %s", what);
}

/* A fraction 0..1, or null for none. */
static tk_err fraction(const json_t *o, const char *key, double *out, tk_diag *diag)
{
    const json_t *v = json_object_get(o, key);
    *out = json_is_number(v) ? json_number_value(v) : (double)NAN;
    if (!v || json_is_null(v) || (json_is_number(v) && *out >= 0 && *out <= 1)) return TK_OK;
    return tk_fail(diag, TK_BADDATA, "result.json: %s is not between 0 and 1", key);
}

static tk_err read_confusion(const json_t *rows, tk_version_head *head, tk_diag *diag)
{
    const size_t n = json_array_size(rows);
    if (n == 0 || n > CONFUSION_MAX_CLASSES) return TK_OK;
    head->confusion = tk_calloc(n * n, sizeof *head->confusion);
    if (!head->confusion) return no_memory(diag);
    head->n_labels = n;
    for (size_t r = 0; r < n; r++) {
        const json_t *row = json_array_get(rows, r);
        if (json_array_size(row) != n) return bad(diag, "a confusion matrix is not square");
        for (size_t c = 0; c < n; c++) {
            const json_t *cell = json_array_get(row, c);
            const json_int_t count = json_integer_value(cell);
            if (!json_is_integer(cell) || count < 0 || count > UINT32_MAX)
                return bad(diag, "a confusion matrix has an entry that is no count");
            head->confusion[r * n + c] = (uint32_t)count;
        }
    }
    return TK_OK;
}

static tk_err read_head(json_t *o, tk_version_head *head, tk_diag *diag)
{
    const char *id = json_string_value(json_object_get(o, "head"));
    const char *source = json_string_value(json_object_get(o, "source"));
    const json_int_t n = json_integer_value(json_object_get(o, "n"));
    if (!id || strlen(id) >= TK_HEAD_ID_SIZE || n < 0)
        return bad(diag, "a validation without head or n");
    (void)snprintf(head->id, sizeof head->id, "%s", id);
    head->n = (uint64_t)n;
    head->agreement = source && strcmp(source, "agreement") == 0;
    tk_err err = fraction(o, "accuracy", &head->accuracy, diag);
    if (err == TK_OK) err = fraction(o, "top5", &head->top5, diag);
    if (n == 0) head->accuracy = head->top5 = (double)NAN; /* nothing was measured */
    if (err == TK_OK) err = read_confusion(json_object_get(o, "confusion"), head, diag);
    (void)json_object_del(o, "confusion"); /* the record does without */
    return err;
}

static tk_err read_heads(json_t *root, tk_result *out, tk_diag *diag)
{
    json_t *list = json_object_get(root, "validations");
    const size_t n = json_array_size(list);
    tk_err err = TK_OK;
    if (n == 0) return TK_OK;
    out->heads = tk_calloc(n, sizeof *out->heads);
    if (!out->heads) return no_memory(diag);
    out->n_heads = n;
    for (size_t i = 0; i < n && err == TK_OK; i++)
        err = read_head(json_array_get(list, i), &out->heads[i], diag);
    return err;
}

/* What the decision keeps of the training; the curve is kept elsewhere. */
static json_t *training_of(const json_t *root)
{
    static const char *const kept[] = {"probe_accuracy", "adapter_accuracy", "joint_accuracy",
                                       "trials"};
    const json_t *from = json_object_get(root, "training");
    json_t *to = json_object();
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++) {
        json_t *v = json_object_get(from, kept[i]);
        if (v) json_object_set(to, kept[i], v);
    }
    return to;
}

/* A copy of what the gate said, once it is known to make sense. */
static tk_err read_judged(json_t *root, tk_result *out, tk_diag *diag)
{
    tk_judgement judged;
    json_t *part = json_pack("{s:O?,s:O?,s:O?,s:o}", "gate", json_object_get(root, "gate"),
                             "precisions", json_object_get(root, "precisions"), "remarks",
                             json_object_get(root, "remarks"), "training", training_of(root));
    char *text = part ? json_dumps(part, JSON_COMPACT | JSON_REAL_PRECISION(17)) : NULL;
    json_decref(part);
    out->judged = text ? tk_strdup(text) : NULL;
    free(text);
    if (!out->judged) return no_memory(diag);
    const tk_err err = tk_judgement_parse(out->judged, &judged, diag);
    if (err == TK_OK) tk_judgement_fini(&judged);
    return err;
}

static tk_err read_result(json_t *root, tk_result *out, tk_diag *diag)
{
    const char *outcome = json_string_value(json_object_get(root, "outcome"));
    const char *reason = json_string_value(json_object_get(root, "reason"));
    if (!outcome || (strcmp(outcome, "commit") != 0 && strcmp(outcome, "probe") != 0 &&
                     strcmp(outcome, "reject") != 0))
        return bad(diag, "outcome is neither commit nor probe nor reject");
    (void)snprintf(out->outcome, sizeof out->outcome, "%s", outcome);
    out->reason = tk_strdup(reason ? reason : "");
    if (!out->reason) return no_memory(diag);
    tk_err err = read_heads(root, out, diag);
    if (err == TK_OK) err = read_judged(root, out, diag);
    if (err != TK_OK) return err;
    char *record = json_dumps(root, JSON_COMPACT | JSON_REAL_PRECISION(17));
    out->record = record ? tk_strdup(record) : NULL;
    free(record);
    return out->record ? TK_OK : no_memory(diag);
}

tk_err tk__result_read(tk_result *out, const char *dir, tk_diag *diag)
{
    *out = (tk_result){0};
    tk_map map = {0};
    char *path = tk__join(dir, "result.json");
    tk_err err = path ? tk_map_open(&map, path, diag) : no_memory(diag);
    tk_free(path);
    if (err != TK_OK) return err;
    json_t *root = NULL;
    if (map.size > RESULT_MAX)
        err = bad(diag, "too large");
    else if (map.size > 0)
        root = json_loadb((const char *)map.data, map.size, JSON_REJECT_DUPLICATES, NULL);
    if (err == TK_OK)
        err = json_is_object(root) ? read_result(root, out, diag) : bad(diag, "not a JSON object");
    json_decref(root);
    tk_map_close(&map);
    if (err != TK_OK) tk__result_fini(out);
    return err;
}

void tk__result_fini(tk_result *result)
{
    for (size_t i = 0; i < result->n_heads; i++)
        tk_free(result->heads[i].confusion);
    tk_free(result->heads);
    tk_free(result->reason);
    tk_free(result->record);
    tk_free(result->judged);
    *result = (tk_result){0};
}
