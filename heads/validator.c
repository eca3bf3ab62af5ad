/* See validator.h. Each pack is one set of images; the new head's held-out images are one more,
 * which the heads without a pack share: one trunk pass per set and validation. */
#include "heads/validator.h"

#include <stdio.h>
#include <string.h>

#include "engine/mem.h"

enum { PATH_SIZE = 4096 };

/* One head's validation pack. */
typedef struct set {
    tk_pack *pack;
    tk_canvases *canvases;
    size_t n;
    uint32_t *images, *labels; /* [n] */
} set;

struct tk_validator {
    tk_validator_opts o;
    size_t n; /* other heads */
    tk_head **heads;
    size_t refreshed;      /* of them; n: none */
    tk_head *earlier;      /* the refreshed head as it was, by its other id; NULL: none */
    set *sets;             /* [n]; without a pack: agreement */
    tk_validation *before; /* [n] */
    size_t skipped;
};

static void set_fini(set *s)
{
    tk_canvases_close(s->canvases);
    tk_pack_close(s->pack);
    tk_free(s->images);
    tk_free(s->labels);
}

void tk_validator_destroy(tk_validator *validator)
{
    if (!validator) return;
    for (size_t h = 0; h < validator->n; h++) {
        if (validator->sets) set_fini(&validator->sets[h]);
        if (validator->before) tk_validation_fini(&validator->before[h]);
    }
    tk_head_destroy(validator->earlier);
    tk_free(validator->sets);
    tk_free(validator->before);
    tk_free(validator->heads);
    tk_free(validator);
}

/* Class of `head` for each label of the pack, which may have been written in another order. */
static tk_err map_labels(const tk_head *head, const tk_pack *pack, uint32_t *map, tk_diag *diag)
{
    for (uint32_t l = 0; l < tk_pack_classes(pack); l++) {
        const char *name = tk_pack_label_name(pack, l);
        size_t c = 0;
        while (c < head->classes && strcmp(head->labels[c], name) != 0)
            c++;
        if (c == head->classes)
            return tk_fail(diag, TK_BADDATA, "validation of head \"%s\": it has no class \"%s\"",
                           head->id, name);
        map[l] = (uint32_t)c;
    }
    return TK_OK;
}

static tk_err read_labels(tk_validator *v, set *s, const tk_head *head, tk_diag *diag)
{
    const size_t n = tk_pack_count(s->pack);
    uint32_t *map = tk_calloc(tk_pack_classes(s->pack) + 1, sizeof *map);
    s->images = tk_calloc(n + 1, sizeof *s->images);
    s->labels = tk_calloc(n + 1, sizeof *s->labels);
    tk_err err = map && s->images && s->labels ? map_labels(head, s->pack, map, diag) : TK_NOMEM;
    for (size_t i = 0; i < n && err == TK_OK; i++) {
        if (!tk_canvases_ok(s->canvases, i)) {
            v->skipped++;
            continue;
        }
        s->images[s->n] = (uint32_t)i;
        s->labels[s->n++] = map[tk_pack_get(s->pack, i).label];
    }
    tk_free(map);
    return err;
}

/* Leaves `most` images of a set, evenly chosen. */
static void thin(set *s, size_t most)
{
    if (s->n <= most) return;
    for (size_t i = 0; i < most; i++) {
        s->images[i] = s->images[i * s->n / most];
        s->labels[i] = s->labels[i * s->n / most];
    }
    s->n = most;
}

static tk_err open_set(tk_validator *v, size_t h, const char *path, tk_diag *diag)
{
    char file[PATH_SIZE];
    set *s = &v->sets[h];
    const tk_preproc *preproc = &v->o.base->preproc;
    const int n = snprintf(file, sizeof file, "%s/canvases.%zu", v->o.dir, h);
    if (n < 0 || (size_t)n >= sizeof file) return tk_fail(diag, TK_BADARG, "path too long");
    tk_err err = tk_pack_open(&s->pack, path, diag);
    if (err == TK_OK)
        err = tk_canvases_open(&s->canvases, file, s->pack, preproc, preproc->crop, v->o.pool,
                               v->o.watch, diag);
    if (err == TK_OK) err = read_labels(v, s, v->heads[h], diag);
    if (err == TK_OK && h == v->refreshed) thin(s, v->o.max_earlier);
    return err;
}

static const char *pack_of(const tk_validator *v, const char *head)
{
    for (size_t i = 0; i < v->o.n_packs; i++)
        if (strcmp(v->o.packs[i].head, head) == 0) return v->o.packs[i].path;
    return NULL;
}

/* What is validated: this trunk as a plan of this precision. */
typedef struct subject {
    const tk_params *trunk;
    const tk_head *new_head; /* NULL: it is the base */
    tk_precision precision;
    const tk_calibration *ranges;
} subject;

/* One set's task: the head with its own images, or the head on the new images. */
static tk_err run_one(const tk_validator *v, const subject *what, size_t h,
                      const uint32_t *truth_if_new, tk_validation *out, tk_diag *diag)
{
    const set *s = &v->sets[h];
    const tk_head *head = h == v->refreshed && what->new_head ? what->new_head : v->heads[h];
    const bool own = s->pack != NULL;
    const uint32_t *truth = own ? s->labels : truth_if_new;
    const tk_eval_task task = {.canvases = own ? s->canvases : v->o.canvases,
                               .n = own ? s->n : v->o.n_held,
                               .images = own ? s->images : v->o.held,
                               .n_heads = 1,
                               .heads = &head,
                               .truth = &truth,
                               .precision = what->precision,
                               .ranges = what->ranges};
    const tk_err err = tk_eval_run(what->trunk, &v->o.base->preproc, &task, out, v->o.pool, diag);
    if (err == TK_OK) out->head = v->heads[h]->id;
    return err;
}

/* A head without images agrees with itself on every one of the new head's. */
static tk_err measure_base(tk_validator *v, tk_diag *diag)
{
    const subject base = {.trunk = v->o.base->trunk};
    for (size_t h = 0; h < v->n; h++) {
        const tk_err err = run_one(v, &base, h, NULL, &v->before[h], diag);
        if (err != TK_OK) return err;
        if (!v->sets[h].pack) tk_validation_agree(&v->before[h], v->before[h].answers);
    }
    return TK_OK;
}

/* The head to be refreshed takes its place among the others under an id that no head can have. */
static tk_err add_earlier(tk_validator *v, const tk_head *head, tk_diag *diag)
{
    char id[PATH_SIZE];
    if (!pack_of(v, head->id))
        return tk_fail(
            diag, TK_PRECONDITION,
            "refresh: head \"%s\" has no held-out images that could tell what it forgets",
            head->id);
    if (head->rank > 0)
        return tk_fail(diag, TK_PRECONDITION,
                       "refresh: head \"%s\" has an adapter; it can only be trained anew",
                       head->id);
    tk_err err = tk_head_clone(&v->earlier, head);
    snprintf(id, sizeof id, "%s%s", head->id, TK_EARLIER);
    char *renamed = err == TK_OK ? tk_strdup(id) : NULL;
    if (!renamed) return tk_fail(diag, TK_NOMEM, "validation: out of memory");
    tk_free(v->earlier->id);
    v->earlier->id = renamed;
    v->refreshed = v->n;
    v->heads[v->n++] = v->earlier;
    return TK_OK;
}

static tk_err list_heads(tk_validator *v, tk_diag *diag)
{
    const tk_model *base = v->o.base;
    v->refreshed = SIZE_MAX;
    for (size_t h = 0; h < base->n_heads; h++) {
        const bool own = strcmp(base->heads[h]->id, v->o.new_head) == 0;
        if (!own) v->heads[v->n++] = base->heads[h];
        if (!own || !v->o.refresh) continue;
        const tk_err err = add_earlier(v, base->heads[h], diag);
        if (err != TK_OK) return err;
    }
    if (v->refreshed == SIZE_MAX) v->refreshed = v->n;
    return TK_OK;
}

static tk_err build(tk_validator *v, tk_diag *diag)
{
    const tk_model *base = v->o.base;
    v->heads = tk_calloc(base->n_heads + 1, sizeof(tk_head *));
    v->sets = tk_calloc(base->n_heads + 1, sizeof *v->sets);
    v->before = tk_calloc(base->n_heads + 1, sizeof *v->before);
    if (!v->heads || !v->sets || !v->before)
        return tk_fail(diag, TK_NOMEM, "validation: out of memory");
    tk_err err = list_heads(v, diag);
    if (err != TK_OK) return err;
    for (size_t i = 0; i < v->o.n_packs; i++)
        if (!tk_model_head(base, v->o.packs[i].head))
            return tk_fail(diag, TK_BADARG, "validation of head \"%s\": the base has no such head",
                           v->o.packs[i].head);
    for (size_t h = 0; h < v->n; h++) {
        const char *path = pack_of(v, h == v->refreshed ? v->o.new_head : v->heads[h]->id);
        err = path ? open_set(v, h, path, diag) : TK_OK;
        if (err != TK_OK) return err;
    }
    return measure_base(v, diag);
}

tk_err tk_validator_create(tk_validator **out, const tk_validator_opts *opts, tk_diag *diag)
{
    *out = NULL;
    tk_validator *v = tk_calloc(1, sizeof *v);
    if (!v) return tk_fail(diag, TK_NOMEM, "validation: out of memory");
    v->o = *opts;
    const tk_err err = build(v, diag);
    if (err != TK_OK) {
        tk_validator_destroy(v);
        return err;
    }
    *out = v;
    return TK_OK;
}

size_t tk_validator_others(const tk_validator *validator)
{
    return validator->n;
}

tk_head *const *tk_validator_heads(const tk_validator *validator)
{
    return validator->heads;
}

const tk_validation *tk_validator_before(const tk_validator *validator)
{
    return validator->before;
}

size_t tk_validator_refreshed(const tk_validator *validator)
{
    return validator->refreshed;
}

const uint32_t *tk_validator_earlier(const tk_validator *validator, const tk_pack **pack, size_t *n)
{
    const set *s = &validator->sets[validator->refreshed];
    *pack = s->pack;
    *n = s->n;
    return s->images;
}

size_t tk_validator_skipped(const tk_validator *validator)
{
    return validator->skipped;
}

/* The new head's images: the new head and every head judged by agreement, in one pass. */
static tk_err run_held(tk_validator *v, const subject *what, const tk_head *new_head,
                       tk_validation *out, tk_diag *diag)
{
    const tk_head **heads = tk_calloc(v->n + 1, sizeof(tk_head *));
    const uint32_t **truth = tk_calloc(v->n + 1, sizeof(uint32_t *));
    bool *agreement = tk_calloc(v->n + 1, sizeof *agreement);
    size_t *place = tk_calloc(v->n + 1, sizeof *place), n = 0;
    tk_validation *found = tk_calloc(v->n + 1, sizeof *found);
    tk_err err = heads && truth && agreement && place && found ? TK_OK : TK_NOMEM;
    for (size_t h = 0; err == TK_OK && h <= v->n; h++) {
        if (h < v->n && v->sets[h].pack) continue;
        heads[n] = h < v->n ? v->heads[h] : new_head;
        truth[n] = h < v->n ? v->before[h].answers : v->o.labels;
        agreement[n] = h < v->n;
        place[n++] = h;
    }
    const tk_eval_task task = {.canvases = v->o.canvases,
                               .n = v->o.n_held,
                               .images = v->o.held,
                               .n_heads = n,
                               .heads = heads,
                               .truth = truth,
                               .agreement = agreement,
                               .precision = what->precision,
                               .ranges = what->ranges};
    if (err == TK_OK)
        err = tk_eval_run(what->trunk, &v->o.base->preproc, &task, found, v->o.pool, diag);
    for (size_t i = 0; err == TK_OK && i < n; i++)
        out[place[i]] = found[i];
    tk_free(heads);
    tk_free(truth);
    tk_free(agreement);
    tk_free(place);
    tk_free(found);
    return err;
}

tk_err tk_validator_run_as(tk_validator *validator, const tk_params *trunk, const tk_head *new_head,
                           tk_precision precision, const tk_calibration *ranges, tk_validation *out,
                           tk_diag *diag)
{
    const subject what = {trunk, new_head, precision, ranges};
    memset(out, 0, (validator->n + 1) * sizeof *out);
    tk_err err = run_held(validator, &what, new_head, out, diag);
    for (size_t h = 0; h < validator->n && err == TK_OK; h++)
        if (validator->sets[h].pack) err = run_one(validator, &what, h, NULL, &out[h], diag);
    if (err != TK_OK)
        for (size_t h = 0; h <= validator->n; h++)
            tk_validation_fini(&out[h]);
    return err;
}

tk_err tk_validator_run(tk_validator *validator, const tk_params *trunk, const tk_head *new_head,
                        tk_validation *out, tk_diag *diag)
{
    return tk_validator_run_as(validator, trunk, new_head, TK_PRECISION_FP32, NULL, out, diag);
}

/* Every `stride`-th image of a set. */
static tk_err calibrate_on(const tk_validator *v, const tk_params *trunk,
                           const tk_canvases *canvases, size_t n, const uint32_t *images,
                           size_t stride, tk_calibration *ranges, tk_diag *diag)
{
    uint32_t *chosen = tk_calloc(n / stride + 1, sizeof *chosen);
    if (!chosen) return tk_fail(diag, TK_NOMEM, "calibration: out of memory");
    size_t count = 0;
    for (size_t i = 0; i < n; i += stride)
        chosen[count++] = images[i];
    const tk_err err = tk_eval_calibrate(trunk, &v->o.base->preproc, canvases, count, chosen,
                                         ranges, v->o.pool, diag);
    tk_free(chosen);
    return err;
}

tk_err tk_validator_calibrate(tk_validator *validator, const tk_params *trunk, size_t images,
                              tk_calibration *ranges, tk_diag *diag)
{
    const tk_validator *v = validator;
    size_t all = v->o.n_held;
    for (size_t h = 0; h < v->n; h++)
        all += v->sets[h].n;
    const size_t stride = all > images ? (all + images - 1) / images : 1;
    *ranges = (tk_calibration){0};
    tk_err err =
        calibrate_on(v, trunk, v->o.canvases, v->o.n_held, v->o.held, stride, ranges, diag);
    for (size_t h = 0; h < v->n && err == TK_OK; h++) {
        const set *s = &v->sets[h];
        err = calibrate_on(v, trunk, s->canvases, s->n, s->images, stride, ranges, diag);
    }
    return err;
}

tk_err tk_validator_run_new(tk_validator *validator, const tk_params *trunk,
                            const tk_head *new_head, tk_validation *out, tk_diag *diag)
{
    const uint32_t *truth = validator->o.labels;
    const tk_eval_task task = {.canvases = validator->o.canvases,
                               .n = validator->o.n_held,
                               .images = validator->o.held,
                               .n_heads = 1,
                               .heads = &new_head,
                               .truth = &truth};
    return tk_eval_run(trunk, &validator->o.base->preproc, &task, out, validator->o.pool, diag);
}
