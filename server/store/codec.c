/* JSON columns. What is read back was written here, but a damaged file must not take the server
 * down: every shape is checked. */
#include "store/codec.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "engine/mem.h"

static tk_err damaged(tk_diag *diag, const char *what)
{
    return tk_fail(diag, TK_BADDATA, "data base: damaged record of %s", what);
}

static tk_err no_memory(tk_diag *diag)
{
    return tk_fail(diag, TK_NOMEM, "store: out of memory");
}

/* Dumps and frees `value`; NULL stays NULL. `good` false: something could not be put in. */
static char *dump(json_t *value, bool good)
{
    char *text = value && good ? json_dumps(value, JSON_COMPACT | JSON_REAL_PRECISION(17)) : NULL;
    json_decref(value);
    return text;
}

static json_t *number(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}

static double number_of(const json_t *v)
{
    return json_is_number(v) ? json_number_value(v) : (double)NAN;
}

static uint64_t count_of(const json_t *v)
{
    return json_is_integer(v) && json_integer_value(v) > 0 ? (uint64_t)json_integer_value(v) : 0;
}

/* Parses an array and makes room for its elements. *items is never NULL on success. */
static tk_err open_array(const char *text, json_t **root, size_t item_size, void **items, size_t *n,
                         const char *what, tk_diag *diag)
{
    *items = NULL;
    *n = 0;
    *root = json_loads(text, 0, NULL);
    if (!json_is_array(*root)) {
        json_decref(*root);
        return damaged(diag, what);
    }
    const size_t count = json_array_size(*root);
    *items = tk_calloc(count ? count : 1, item_size);
    if (!*items) {
        json_decref(*root);
        return no_memory(diag);
    }
    *n = count;
    return TK_OK;
}

/* -- labels -- */

char *tk__encode_label_counts(const tk_label_count *labels, size_t n)
{
    json_t *root = json_array();
    bool good = root != NULL;
    for (size_t i = 0; i < n && good; i++)
        good = json_array_append_new(
                   root, json_pack("[s,I]", labels[i].label, (json_int_t)labels[i].images)) == 0;
    return dump(root, good);
}

tk_err tk__decode_label_counts(const char *text, tk_label_count **out, size_t *n, tk_diag *diag)
{
    json_t *root;
    void *items;
    size_t count;
    *out = NULL;
    *n = 0;
    tk_err err = open_array(text, &root, sizeof **out, &items, &count, "labels", diag);
    if (err != TK_OK) return err;
    tk_label_count *labels = items;
    for (size_t i = 0; i < count && err == TK_OK; i++) {
        const json_t *pair = json_array_get(root, i);
        const char *label = json_string_value(json_array_get(pair, 0));
        if (!label)
            err = damaged(diag, "labels");
        else if (!(labels[i].label = tk_strdup(label)))
            err = no_memory(diag);
        labels[i].images = count_of(json_array_get(pair, 1));
    }
    json_decref(root);
    if (err != TK_OK) {
        tk__label_counts_free(labels, count);
        return err;
    }
    *out = labels;
    *n = count;
    return TK_OK;
}

void tk__label_counts_free(tk_label_count *labels, size_t n)
{
    for (size_t i = 0; labels && i < n; i++)
        tk_free(labels[i].label);
    tk_free(labels);
}

char *tk__encode_labels(char *const *labels, size_t n)
{
    json_t *root = json_array();
    bool good = root != NULL;
    for (size_t i = 0; i < n && good; i++)
        good = json_array_append_new(root, json_string(labels[i])) == 0;
    return dump(root, good);
}

tk_err tk__decode_labels(const char *text, char ***out, size_t *n, tk_diag *diag)
{
    json_t *root;
    void *items;
    size_t count;
    *out = NULL;
    *n = 0;
    tk_err err = open_array(text, &root, sizeof **out, &items, &count, "labels", diag);
    if (err != TK_OK) return err;
    char **labels = items;
    for (size_t i = 0; i < count && err == TK_OK; i++) {
        const char *label = json_string_value(json_array_get(root, i));
        if (!label)
            err = damaged(diag, "labels");
        else if (!(labels[i] = tk_strdup(label)))
            err = no_memory(diag);
    }
    json_decref(root);
    if (err != TK_OK) {
        tk__labels_free(labels, count);
        return err;
    }
    *out = labels;
    *n = count;
    return TK_OK;
}

void tk__labels_free(char **labels, size_t n)
{
    for (size_t i = 0; labels && i < n; i++)
        tk_free(labels[i]);
    tk_free(labels);
}

/* -- settings -- */

char *tk__encode_settings(const tk_setting *set, size_t n)
{
    json_t *root = json_array();
    bool good = root != NULL;
    for (size_t i = 0; i < n && good; i++)
        good = json_array_append_new(root, json_pack("[s,f]", set[i].name, set[i].value)) == 0;
    return dump(root, good);
}

tk_err tk__decode_settings(const char *text, tk_setting **out, size_t *n, tk_diag *diag)
{
    json_t *root;
    void *items;
    *out = NULL;
    tk_err err = open_array(text, &root, sizeof **out, &items, n, "settings", diag);
    if (err != TK_OK) return err;
    tk_setting *set = items;
    for (size_t i = 0; i < *n; i++) {
        const json_t *pair = json_array_get(root, i);
        const char *name = json_string_value(json_array_get(pair, 0));
        (void)snprintf(set[i].name, sizeof set[i].name, "%s", name ? name : "");
        set[i].value = number_of(json_array_get(pair, 1));
    }
    json_decref(root);
    *out = set;
    return TK_OK;
}

/* -- measures: {"head", "accuracy", "change", "tolerance", "floor", "n", "agreement"} -- */

static json_t *measures_to_json(const tk_measure *heads, size_t n)
{
    json_t *root = json_array();
    bool good = root != NULL;
    for (size_t i = 0; i < n && good; i++) {
        const tk_measure *m = &heads[i];
        good = json_array_append_new(
                   root, json_pack("{s:s,s:o,s:o,s:o,s:o,s:I,s:b}", "head", m->head, "accuracy",
                                   number(m->accuracy), "change", number(m->change), "tolerance",
                                   number(m->tolerance), "floor", number(m->floor), "n",
                                   (json_int_t)m->n, "agreement", (int)m->agreement)) == 0;
    }
    if (good) return root;
    json_decref(root);
    return NULL;
}

static void measures_of_json(const json_t *root, tk_measure *heads, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const json_t *o = json_array_get(root, i);
        const char *head = json_string_value(json_object_get(o, "head"));
        (void)snprintf(heads[i].head, sizeof heads[i].head, "%s", head ? head : "");
        heads[i].accuracy = number_of(json_object_get(o, "accuracy"));
        heads[i].change = number_of(json_object_get(o, "change"));
        heads[i].tolerance = number_of(json_object_get(o, "tolerance"));
        heads[i].floor = number_of(json_object_get(o, "floor"));
        heads[i].n = count_of(json_object_get(o, "n"));
        heads[i].agreement = json_is_true(json_object_get(o, "agreement"));
    }
}

char *tk__encode_measures(const tk_measure *heads, size_t n)
{
    return dump(measures_to_json(heads, n), true);
}

tk_err tk__decode_measures(const char *text, tk_measure **out, size_t *n, tk_diag *diag)
{
    json_t *root;
    void *items;
    *out = NULL;
    const tk_err err = open_array(text, &root, sizeof **out, &items, n, "measures", diag);
    if (err != TK_OK) return err;
    measures_of_json(root, items, *n);
    json_decref(root);
    *out = items;
    return TK_OK;
}

/* -- events -- */

char *tk__encode_event(const tk_job_event *e)
{
    json_t *root = json_pack("{s:I,s:i,s:s,s:I,s:I,s:I,s:I,s:[o,o,o,o],s:o,s:s,s:o}", "sequence",
                             (json_int_t)e->sequence, "state", (int)e->state, "stage", e->stage,
                             "step", (json_int_t)e->step, "steps", (json_int_t)e->steps, "epoch",
                             (json_int_t)e->epoch, "epochs", (json_int_t)e->epochs, "loss",
                             number(e->loss_total), number(e->loss_ce), number(e->loss_kd),
                             number(e->loss_ewc), "eta", number(e->eta_seconds), "message",
                             e->message, "heads", measures_to_json(e->heads, e->n_heads));
    return dump(root, true);
}

/* Numbers that an event lacks are 0, as on the wire. */
static double plain(const json_t *v)
{
    return json_is_number(v) ? json_number_value(v) : 0;
}

static uint32_t small(const json_t *v)
{
    const uint64_t n = count_of(v);
    return n > UINT32_MAX ? UINT32_MAX : (uint32_t)n;
}

tk_err tk__decode_event(const char *text, tk_job_event *out, tk_diag *diag)
{
    *out = (tk_job_event){0};
    json_t *root = json_loads(text, 0, NULL);
    const char *stage = json_string_value(json_object_get(root, "stage"));
    const char *message = json_string_value(json_object_get(root, "message"));
    const json_t *loss = json_object_get(root, "loss"), *heads = json_object_get(root, "heads");
    const uint64_t state = count_of(json_object_get(root, "state"));
    tk_err err = TK_OK;
    if (!stage || !message || state > TK_JOB_CANCELLED) err = damaged(diag, "an event");
    const size_t n = json_array_size(heads);
    if (err == TK_OK && n && !(out->heads = tk_calloc(n, sizeof *out->heads)))
        err = no_memory(diag);
    if (err == TK_OK) {
        out->sequence = count_of(json_object_get(root, "sequence"));
        out->state = (tk_job_state)state;
        (void)snprintf(out->stage, sizeof out->stage, "%s", stage);
        out->step = count_of(json_object_get(root, "step"));
        out->steps = count_of(json_object_get(root, "steps"));
        out->epoch = small(json_object_get(root, "epoch"));
        out->epochs = small(json_object_get(root, "epochs"));
        out->loss_total = plain(json_array_get(loss, 0));
        out->loss_ce = plain(json_array_get(loss, 1));
        out->loss_kd = plain(json_array_get(loss, 2));
        out->loss_ewc = plain(json_array_get(loss, 3));
        out->eta_seconds = plain(json_object_get(root, "eta"));
        (void)snprintf(out->message, sizeof out->message, "%s", message);
        out->n_heads = n;
        measures_of_json(heads, out->heads, n);
    }
    json_decref(root);
    return err;
}

/* -- preprocessing -- */

char *tk__encode_preproc(const tk_preproc *p)
{
    return dump(json_pack("{s:i,s:i,s:i,s:[f,f,f],s:[f,f,f]}", "mode", (int)p->mode, "resize",
                          (int)p->resize, "crop", (int)p->crop, "mean", (double)p->mean[0],
                          (double)p->mean[1], (double)p->mean[2], "std", (double)p->std[0],
                          (double)p->std[1], (double)p->std[2]),
                true);
}

tk_err tk__decode_preproc(const char *text, tk_preproc *out, tk_diag *diag)
{
    *out = (tk_preproc){0};
    int mode, resize, crop;
    double m[3], s[3];
    json_t *root = json_loads(text, 0, NULL);
    const int code = root ? json_unpack(root, "{s:i,s:i,s:i,s:[F,F,F],s:[F,F,F]}", "mode", &mode,
                                        "resize", &resize, "crop", &crop, "mean", &m[0], &m[1],
                                        &m[2], "std", &s[0], &s[1], &s[2])
                          : -1;
    json_decref(root);
    if (code != 0 || resize < 1 || crop < 1 ||
        (mode != TK_RESIZE_SHORT && mode != TK_RESIZE_SQUASH))
        return damaged(diag, "the trunk's preprocessing");
    *out = (tk_preproc){.mode = (tk_resize_mode)mode,
                        .resize = (unsigned)resize,
                        .crop = (unsigned)crop,
                        .mean = {(float)m[0], (float)m[1], (float)m[2]},
                        .std = {(float)s[0], (float)s[1], (float)s[2]}};
    return TK_OK;
}
