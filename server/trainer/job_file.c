/* Every field of job.json is checked for type and range; a field that is not known is refused, so
 * that a misspelt one is not silently ignored. */
#include "job_file.h"

#include <math.h>
#include <string.h>

#include <jansson.h>

#include "engine/mem.h"

enum { MAX_THREADS = 256, MAX_ENTRIES = 100000 };

static const char *const known[] = {
    "job",         "base",   "arch", "preproc",  "data", "head",    "tolerance",    "retention",
    "validations", "recipe", "set",  "fallback", "seed", "threads", "memory_limit", "gate",
};

static tk_err bad(tk_diag *diag, const char *field, const char *what)
{
    return tk_fail(diag, TK_BADDATA, "job.json: %s: %s", field, what);
}

static tk_err check_known(json_t *root, tk_diag *diag)
{
    const char *key;
    json_t *value;
    json_object_foreach (root, key, value) {
        size_t i = 0;
        while (i < sizeof known / sizeof *known && strcmp(known[i], key) != 0)
            i++;
        if (i == sizeof known / sizeof *known)
            return tk_fail(diag, TK_BADDATA, "job.json: \"%.64s\": no such field", key);
    }
    return TK_OK;
}

/* A non-empty string. Absent or null: the default, which may be NULL for a required one. */
static tk_err get_string(const json_t *root, const char *field, const char *fallback, bool required,
                         const char **out, tk_diag *diag)
{
    const json_t *v = json_object_get(root, field);
    *out = fallback;
    if (!v || json_is_null(v)) return required ? bad(diag, field, "missing") : TK_OK;
    if (!json_is_string(v) || json_string_length(v) == 0)
        return bad(diag, field, "not a string, or empty");
    *out = json_string_value(v);
    return TK_OK;
}

static tk_err get_integer(const json_t *root, const char *field, json_int_t min, json_int_t max,
                          json_int_t *inout, tk_diag *diag)
{
    const json_t *v = json_object_get(root, field);
    if (!v || json_is_null(v)) return TK_OK;
    if (!json_is_integer(v)) return bad(diag, field, "not an integer");
    const json_int_t x = json_integer_value(v);
    if (x < min || x > max)
        return tk_fail(diag, TK_BADDATA, "job.json: %s: %lld is outside %lld..%lld", field,
                       (long long)x, (long long)min, (long long)max);
    *inout = x;
    return TK_OK;
}

/* Two words, the first of which is the default. */
static tk_err get_choice(const json_t *root, const char *field, const char *yes, const char *no,
                         bool *out, tk_diag *diag)
{
    const char *word;
    const tk_err err = get_string(root, field, yes, false, &word, diag);
    if (err != TK_OK) return err;
    *out = strcmp(word, yes) == 0;
    if (*out || strcmp(word, no) == 0) return TK_OK;
    return tk_fail(diag, TK_BADDATA, "job.json: %s: \"%.64s\" is neither %s nor %s", field, word,
                   yes, no);
}

static tk_err get_preproc(const json_t *root, tk_arch arch, tk_preproc *out, tk_diag *diag)
{
    const json_t *o = json_object_get(root, "preproc");
    const bool cifar_stem = arch == TK_RESNET20 || arch == TK_RESNET32 || arch == TK_RESNET56;
    json_int_t crop = cifar_stem ? 32 : 224, resize = 0;
    bool keep_aspect = true;
    if (o && !json_is_object(o) && !json_is_null(o)) return bad(diag, "preproc", "not an object");
    tk_err err = get_integer(o, "crop", 1, 4096, &crop, diag);
    if (err == TK_OK) err = get_integer(o, "resize", 1, 8192, &resize, diag);
    if (err == TK_OK) err = get_choice(o, "mode", "short", "squash", &keep_aspect, diag);
    if (err != TK_OK) return err;
    *out = tk_preproc_default((unsigned)crop);
    if (resize) out->resize = (unsigned)resize;
    out->mode = keep_aspect ? TK_RESIZE_SHORT : TK_RESIZE_SQUASH;
    return tk_preproc_check(out, diag);
}

static tk_err get_trunk(job_file *f, const json_t *root, tk_diag *diag)
{
    const char *arch;
    tk_err err = get_string(root, "base", NULL, false, &f->opts.base, diag);
    if (err != TK_OK || f->opts.base) return err;
    err = get_string(root, "arch", NULL, true, &arch, diag);
    if (err == TK_OK) err = tk_arch_parse(arch, &f->opts.arch, diag);
    return err == TK_OK ? get_preproc(root, f->opts.arch, &f->opts.preproc, diag) : err;
}

static tk_err get_validations(job_file *f, const json_t *root, tk_diag *diag)
{
    const json_t *list = json_object_get(root, "validations");
    const size_t n = json_array_size(list);
    if (list && !json_is_null(list) && !json_is_array(list))
        return bad(diag, "validations", "not an array");
    if (n > MAX_ENTRIES) return bad(diag, "validations", "too many");
    f->validations = tk_calloc(n + 1, sizeof *f->validations);
    if (!f->validations) return tk_fail(diag, TK_NOMEM, "job.json: out of memory");
    for (size_t i = 0; i < n; i++) {
        const json_t *o = json_array_get(list, i);
        tk_err err = get_string(o, "head", NULL, true, &f->validations[i].head, diag);
        if (err == TK_OK) err = get_string(o, "pack", NULL, true, &f->validations[i].path, diag);
        if (err != TK_OK) return err;
    }
    f->opts.n_validations = n;
    f->opts.validations = f->validations;
    return TK_OK;
}

static tk_err get_set(job_file *f, json_t *root, tk_diag *diag)
{
    json_t *o = json_object_get(root, "set"), *value;
    const char *key;
    if (o && !json_is_null(o) && !json_is_object(o)) return bad(diag, "set", "not an object");
    f->set = tk_calloc(json_object_size(o) + 1, sizeof *f->set);
    if (!f->set) return tk_fail(diag, TK_NOMEM, "job.json: out of memory");
    json_object_foreach (o, key, value) {
        if (!json_is_number(value))
            return tk_fail(diag, TK_BADDATA, "job.json: set: \"%.64s\" is not a number", key);
        f->set[f->opts.n_set++] = (tk_setting){key, json_number_value(value)};
    }
    f->opts.set = f->set;
    return TK_OK;
}

static tk_err get_numbers(job_file *f, const json_t *root, tk_diag *diag)
{
    json_int_t seed = 1, threads = 0, memory = 0;
    const json_t *tolerance = json_object_get(root, "tolerance");
    const json_t *gate = json_object_get(root, "gate");
    tk_err err = get_integer(root, "seed", 0, INT64_MAX, &seed, diag);
    if (err == TK_OK) err = get_integer(root, "threads", 0, MAX_THREADS, &threads, diag);
    if (err == TK_OK) err = get_integer(root, "memory_limit", 0, INT64_MAX, &memory, diag);
    if (err != TK_OK) return err;
    if (tolerance && !json_is_null(tolerance)) {
        const double points = json_number_value(tolerance);
        if (!json_is_number(tolerance) || !(points >= 0 && points <= 100))
            return bad(diag, "tolerance", "not a number of points, 0..100");
        f->opts.tolerance = points;
    }
    if (gate && !json_is_boolean(gate)) return bad(diag, "gate", "neither true nor false");
    f->opts.gate = !gate || json_is_true(gate);
    f->opts.seed = (uint64_t)seed;
    f->threads = (unsigned)threads;
    f->memory_limit = (unsigned long long)memory;
    return TK_OK;
}

static tk_err read_fields(job_file *f, json_t *root, tk_diag *diag)
{
    tk_job_opts *o = &f->opts;
    tk_err err = check_known(root, diag);
    if (err == TK_OK) err = get_string(root, "job", "", false, &f->job, diag);
    if (err == TK_OK) err = get_trunk(f, root, diag);
    if (err == TK_OK) err = get_string(root, "data", NULL, true, &o->data, diag);
    if (err == TK_OK) err = get_string(root, "head", NULL, true, &o->head, diag);
    if (err == TK_OK)
        err = get_string(root, "recipe", o->base ? "kd+ewc" : "scratch", false, &o->recipe, diag);
    if (err == TK_OK)
        err = get_choice(root, "retention", "validation", "nothing", &o->keep_validation, diag);
    if (err == TK_OK)
        err = get_choice(root, "fallback", "probe", "reject", &o->fallback_probe, diag);
    if (err == TK_OK) err = get_validations(f, root, diag);
    if (err == TK_OK) err = get_set(f, root, diag);
    if (err == TK_OK) err = get_numbers(f, root, diag);
    return err;
}

tk_err job_file_read(job_file *out, const char *path, tk_diag *diag)
{
    json_error_t where;
    *out = (job_file){.opts = tk_job_defaults()};
    json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &where);
    if (!root) return tk_fail(diag, TK_BADDATA, "%s: line %d: %s", path, where.line, where.text);
    out->root = root;
    const tk_err err = json_is_object(root) ? read_fields(out, root, diag)
                                            : tk_fail(diag, TK_BADDATA, "%s: not an object", path);
    if (err != TK_OK) job_file_fini(out);
    return err == TK_BADARG ? TK_BADDATA : err;
}

void job_file_fini(job_file *file)
{
    tk_free(file->validations);
    tk_free(file->set);
    json_decref(file->root);
    *file = (job_file){0};
}
