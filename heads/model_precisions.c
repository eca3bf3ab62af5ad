/* See model_precisions.h, and tk_model_admits() in heads/model.h. As in model_file.c the reader
 * believes nothing. */
#include "model_precisions.h"

#include <float.h>
#include <string.h>

bool tk_model_admits(const tk_model *model, tk_precision precision, const tk_head **refused)
{
    *refused = NULL;
    if (precision == TK_PRECISION_FP32) return true;
    if (model->ranges.maps == 0) return false;
    for (size_t h = 0; h < model->n_heads; h++) {
        if (model->heads[h]->checks[precision].admitted) continue;
        *refused = model->heads[h];
        return false;
    }
    return true;
}

void tk_model_forget_precisions(tk_model *model)
{
    model->ranges = (tk_calibration){0};
    for (size_t h = 0; h < model->n_heads; h++)
        memset(model->heads[h]->checks, 0, sizeof model->heads[h]->checks);
}

/* ---- writing ---- */

void tk__checks_to_json(const tk_precision_check checks[TK_PRECISION_COUNT], json_t *o)
{
    json_t *all = json_object();
    for (tk_precision p = TK_PRECISION_FP32 + 1; p < TK_PRECISION_COUNT; p++) {
        const tk_precision_check *c = &checks[p];
        if (c->n == 0) continue;
        json_object_set_new(all, tk_precision_name(p),
                            json_pack("{s:I, s:s, s:f, s:f, s:f, s:f, s:b}", "n", (json_int_t)c->n,
                                      "source", c->agreement ? "agreement" : "validation",
                                      "accuracy", c->accuracy, "fp32", c->fp32, "alike", c->alike,
                                      "tolerance", c->tolerance, "admitted", (int)c->admitted));
    }
    if (json_object_size(all) > 0) json_object_set(o, "precisions", all);
    json_decref(all);
}

json_t *tk__ranges_to_json(const tk_calibration *ranges)
{
    json_t *list = json_array();
    for (uint32_t m = 0; m < ranges->maps; m++)
        json_array_append_new(list, json_real((double)ranges->limit[m]));
    return list;
}

/* ---- reading ---- */

static tk_err bad(tk_diag *diag, const char *what)
{
    return tk_fail(diag, TK_BADDATA, "metadata \"trunkd\": %s", what);
}

static bool read_fraction(const json_t *o, const char *key, double *out)
{
    const json_t *v = json_object_get(o, key);
    *out = json_number_value(v);
    return json_is_number(v) && *out >= 0 && *out <= 1;
}

static tk_err read_check(tk_precision_check *c, const json_t *o, tk_diag *diag)
{
    const json_int_t n = json_integer_value(json_object_get(o, "n"));
    const char *source = json_string_value(json_object_get(o, "source"));
    const json_t *tolerance = json_object_get(o, "tolerance");
    const json_t *admitted = json_object_get(o, "admitted");
    if (n < 1 || !source || !json_is_number(tolerance) || !(json_number_value(tolerance) >= 0) ||
        !json_is_boolean(admitted) || !read_fraction(o, "accuracy", &c->accuracy) ||
        !read_fraction(o, "fp32", &c->fp32) || !read_fraction(o, "alike", &c->alike))
        return bad(diag, "a head's precision needs n, source, accuracy, fp32, alike, tolerance "
                         "and admitted");
    c->n = (size_t)n;
    c->tolerance = json_number_value(tolerance);
    c->agreement = strcmp(source, "agreement") == 0;
    c->admitted = json_is_true(admitted);
    return TK_OK;
}

tk_err tk__checks_from_json(tk_precision_check checks[TK_PRECISION_COUNT], const json_t *o,
                            tk_diag *diag)
{
    const json_t *all = json_object_get(o, "precisions");
    if (all && !json_is_object(all)) return bad(diag, "a head's precisions are not an object");
    for (tk_precision p = TK_PRECISION_FP32 + 1; p < TK_PRECISION_COUNT; p++) {
        const json_t *one = json_object_get(all, tk_precision_name(p));
        const tk_err err = one ? read_check(&checks[p], one, diag) : TK_OK;
        if (err != TK_OK) return err;
    }
    return TK_OK;
}

tk_err tk__ranges_from_json(tk_calibration *ranges, const json_t *root, tk_diag *diag)
{
    const json_t *list = json_object_get(root, "ranges");
    const size_t n = json_array_size(list);
    if (!list) return TK_OK;
    if (!json_is_array(list) || n < 1 || n > TK_CALIBRATION_MAPS)
        return bad(diag, "ranges are not a list of one limit per map");
    for (size_t m = 0; m < n; m++) {
        const double limit = json_number_value(json_array_get(list, m)); /* 0: not a number */
        if (!(limit >= (double)FLT_MIN && limit <= (double)FLT_MAX))
            return bad(diag, "a range is not a positive number");
        ranges->limit[m] = (float)limit;
    }
    ranges->maps = (uint32_t)n;
    return TK_OK;
}
