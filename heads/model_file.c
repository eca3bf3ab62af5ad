/* A model as one safetensors file. The layout stands in heads/model.h. The reader believes nothing:
 * every name, shape and number is checked against the metadata, and tensors that the metadata does
 * not account for make the file bad. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "engine/mem.h"
#include "engine/tensors.h"
#include "heads/model.h"
#include "model_precisions.h"

enum { FORMAT = 1, TENSOR_NAME = 384 };

static const char *const mode_names[] = {
    [TK_RESIZE_SHORT] = "short", [TK_RESIZE_SQUASH] = "squash"};

/* ---- writing ---- */

static json_t *head_to_json(const tk_head *head)
{
    json_t *labels = json_array();
    for (size_t i = 0; i < head->classes; i++)
        json_array_append_new(labels, json_string(head->labels[i]));
    json_t *o =
        json_pack("{s:s, s:o, s:f, s:o}", "id", head->id, "labels", labels, "tolerance",
                  head->tolerance, "best", isnan(head->best) ? json_null() : json_real(head->best));
    if (o && head->rank > 0)
        json_object_set_new(o, "adapter_rank", json_integer((json_int_t)head->rank));
    if (o) tk__checks_to_json(head->checks, o);
    if (o && !head->covered) json_object_set_new(o, "covered", json_false());
    if (o && head->share.n)
        json_object_set_new(o, "share",
                            json_pack("{s:f, s:f}", "largest", (double)head->share.largest,
                                      "weight", head->share.weight));
    return o;
}

static json_t *triple(const float v[3])
{
    return json_pack("[f,f,f]", (double)v[0], (double)v[1], (double)v[2]);
}

/* The metadata's JSON text; free() with free(). NULL: out of memory. */
static char *metadata(const tk_model *model)
{
    const tk_preproc *p = &model->preproc;
    json_t *heads = json_array();
    for (size_t i = 0; i < model->n_heads; i++)
        json_array_append_new(heads, head_to_json(model->heads[i]));
    json_t *root = json_pack("{s:i, s:s, s:{s:s, s:i, s:i, s:o, s:o}, s:o}", "format", (int)FORMAT,
                             "arch", tk_arch_name(model->trunk->arch), "preproc", "mode",
                             mode_names[p->mode], "resize", (int)p->resize, "crop", (int)p->crop,
                             "mean", triple(p->mean), "std", triple(p->std), "heads", heads);
    if (root && model->fisher)
        json_object_set_new(root, "fisher_scale", json_real(model->fisher_scale));
    if (root && model->inputs)
        json_object_set_new(root, "inputs",
                            json_pack("{s:I, s:f}", "limit", (json_int_t)model->inputs->limit,
                                      "images", model->inputs->images));
    if (root && model->ranges.maps)
        json_object_set_new(root, "ranges", tk__ranges_to_json(&model->ranges));
    char *text = root ? json_dumps(root, JSON_COMPACT | JSON_REAL_PRECISION(17)) : NULL;
    json_decref(root);
    return text;
}

/* Of one stage of an adapter: where it lies, under which name, and its shape. */
typedef struct stage_part {
    char weight[TENSOR_NAME], bias[TENSOR_NAME];
    size_t shape[2]; /* of the weight; the bias has the first */
    float *data;     /* the weight, then the bias */
} stage_part;

static stage_part stage_part_of(const tk_head *head, size_t stage)
{
    stage_part p = {.shape = {head->rank, tk_arch_channels(head->arch, stage)},
                    .data = head->adapter + tk_side_at(head->arch, head->rank, stage)};
    snprintf(p.weight, sizeof p.weight, "adapter.%s.%zu.weight", head->id, stage);
    snprintf(p.bias, sizeof p.bias, "adapter.%s.%zu.bias", head->id, stage);
    return p;
}

static size_t stages_of(const tk_head *head)
{
    return head->rank > 0 ? tk_arch_stages(head->arch) : 0;
}

static tk_err list_adapter(tk_tensor_list *list, const tk_head *head)
{
    tk_err err = TK_OK;
    for (size_t s = 0; s < stages_of(head) && err == TK_OK; s++) {
        const stage_part p = stage_part_of(head, s);
        err = tk_tensor_list_add(list, p.weight, 2, p.shape, p.data);
        if (err == TK_OK)
            err = tk_tensor_list_add(list, p.bias, 1, p.shape, p.data + p.shape[0] * p.shape[1]);
    }
    return err;
}

static tk_err list_heads(tk_tensor_list *list, const tk_model *model)
{
    char name[TENSOR_NAME];
    tk_err err = TK_OK;
    for (size_t i = 0; i < model->n_heads && err == TK_OK; i++) {
        const tk_head *h = model->heads[i];
        snprintf(name, sizeof name, "head.%s.weight", h->id);
        err = tk_tensor_list_add(list, name, 2, (size_t[]){h->classes, h->width}, h->weight);
        if (err != TK_OK) break;
        snprintf(name, sizeof name, "head.%s.bias", h->id);
        err = tk_tensor_list_add(list, name, 1, &h->classes, h->bias);
        if (err == TK_OK) err = list_adapter(list, h);
        if (err != TK_OK || h->share.n == 0) continue;
        snprintf(name, sizeof name, "ewc.share.%s", h->id);
        err = tk_tensor_list_add_u8(list, name, h->share.n, h->share.codes);
    }
    return err;
}

static tk_err list_inputs(tk_tensor_list *list, const tk_model *model)
{
    char name[TENSOR_NAME];
    tk_err err = TK_OK;
    for (size_t l = 0; l < model->inputs->layers && err == TK_OK; l++) {
        const tk_covariance_layer *layer = &model->inputs->layer[l];
        const size_t count = layer->n * (layer->n + 1) / 2;
        snprintf(name, sizeof name, "inputs.%s", model->trunk->table[layer->param].name);
        err = tk_tensor_list_add(list, name, 1, &count, layer->c);
    }
    return err;
}

tk_err tk_model_save(const tk_model *model, const char *path, tk_diag *diag)
{
    const tk_params *trunk = model->trunk;
    tk_tensor_list list = {0};
    tk_err err = tk_tensor_list_add_trunk(&list, trunk, trunk->data, "trunk.", false);
    if (err == TK_OK) err = list_heads(&list, model);
    if (err == TK_OK && model->fisher)
        err = tk_tensor_list_add_trunk(&list, trunk, model->fisher, "ewc.fisher.", true);
    if (err == TK_OK && model->fisher)
        err = tk_tensor_list_add_trunk(&list, trunk, model->anchor, "ewc.anchor.", true);
    if (err == TK_OK && model->inputs) err = list_inputs(&list, model);
    if (err != TK_OK) tk_fail(diag, err, "model: %s", tk_err_text(err));
    char *text = err == TK_OK ? metadata(model) : NULL;
    if (err == TK_OK && !text) err = tk_fail(diag, TK_NOMEM, "model: out of memory");
    if (err == TK_OK)
        err = tk_tensors_write(path, list.items, list.n, &(tk_meta){.key = "trunkd", .value = text},
                               1, diag);
    free(text);
    tk_tensor_list_fini(&list);
    return err;
}

/* ---- reading ---- */

static tk_err bad(tk_diag *diag, const char *what)
{
    return tk_fail(diag, TK_BADDATA, "metadata \"trunkd\": %s", what);
}

static tk_err read_triple(const json_t *v, const char *what, float out[3], tk_diag *diag)
{
    if (json_array_size(v) != 3) return bad(diag, what);
    for (size_t i = 0; i < 3; i++) {
        const json_t *x = json_array_get(v, i);
        if (!json_is_number(x)) return bad(diag, what);
        out[i] = (float)json_number_value(x);
    }
    return TK_OK;
}

static tk_err read_preproc(const json_t *o, tk_preproc *out, tk_diag *diag)
{
    const char *mode = json_string_value(json_object_get(o, "mode"));
    const json_int_t resize = json_integer_value(json_object_get(o, "resize"));
    const json_int_t crop = json_integer_value(json_object_get(o, "crop"));
    if (!mode || resize < 1 || resize > 65535 || crop < 1 || crop > 65535)
        return bad(diag, "preproc needs mode, resize and crop");
    *out = (tk_preproc){.resize = (unsigned)resize, .crop = (unsigned)crop};
    if (strcmp(mode, mode_names[TK_RESIZE_SHORT]) == 0)
        out->mode = TK_RESIZE_SHORT;
    else if (strcmp(mode, mode_names[TK_RESIZE_SQUASH]) == 0)
        out->mode = TK_RESIZE_SQUASH;
    else
        return bad(diag, "preproc.mode is neither short nor squash");
    tk_err err = read_triple(json_object_get(o, "mean"), "preproc.mean is not three numbers",
                             out->mean, diag);
    if (err == TK_OK)
        err = read_triple(json_object_get(o, "std"), "preproc.std is not three numbers", out->std,
                          diag);
    return err == TK_OK ? tk_preproc_check(out, diag) : err;
}

/* Finds a tensor of exactly this shape and copies it, in fp32, all finite. */
static tk_err read_tensor(const tk_tensors *tensors, const char *name, unsigned rank,
                          const size_t *shape, float *out, tk_diag *diag)
{
    const tk_tensor *t = tk_tensors_find(tensors, name);
    if (!t) return tk_fail(diag, TK_BADDATA, "tensor %s is missing", name);
    if (t->rank != rank || memcmp(t->shape, shape, rank * sizeof *shape) != 0)
        return tk_fail(diag, TK_BADDATA, "tensor %s has the wrong shape", name);
    const tk_err err = tk_tensor_to_f32(t, out, diag);
    if (err != TK_OK) return err;
    for (size_t i = 0; i < t->count; i++)
        if (!isfinite(out[i])) return tk_fail(diag, TK_BADDATA, "tensor %s is not finite", name);
    return TK_OK;
}

/* What a head has beside its id, labels and weights. */
static tk_err read_head_numbers(tk_head *head, const json_t *o, tk_diag *diag)
{
    const json_t *tolerance = json_object_get(o, "tolerance"), *best = json_object_get(o, "best");
    const double points = json_number_value(tolerance);
    if (!json_is_number(tolerance) || !(points >= 0 && points <= 100))
        return bad(diag, "a head's tolerance is not 0..100 points");
    if (!json_is_null(best) &&
        !(json_is_number(best) && json_number_value(best) >= 0 && json_number_value(best) <= 1))
        return bad(diag, "a head's best is neither null nor 0..1");
    head->tolerance = points;
    head->best = json_is_null(best) ? (double)NAN : json_number_value(best);
    head->covered = !json_is_false(json_object_get(o, "covered"));
    return tk__checks_from_json(head->checks, o, diag);
}

/* 0: the head has no adapter. */
static tk_err read_rank(const json_t *o, size_t *out, tk_diag *diag)
{
    const json_t *rank = json_object_get(o, "adapter_rank");
    const json_int_t value = json_integer_value(rank);
    *out = 0;
    if (!rank) return TK_OK;
    if (!json_is_integer(rank) || value < 1 || value > TK_ADAPTER_MAX_RANK)
        return bad(diag, "a head's adapter_rank is not 1..256");
    *out = (size_t)value;
    return TK_OK;
}

static tk_err make_head(tk_head **out, const json_t *o, tk_arch arch, tk_diag *diag)
{
    const char *id = json_string_value(json_object_get(o, "id"));
    const json_t *labels = json_object_get(o, "labels");
    const size_t classes = json_array_size(labels);
    if (!id || classes < 1 || classes > TK_HEAD_MAX_CLASSES)
        return bad(diag, "a head needs an id and 1..10000 labels");
    const char **names = tk_calloc(classes, sizeof *names);
    if (!names) return tk_fail(diag, TK_NOMEM, "model: out of memory");
    for (size_t i = 0; i < classes; i++)
        names[i] = json_string_value(json_array_get(labels, i)); /* NULL is refused as empty */
    size_t rank;
    tk_err err = tk_head_create(out, id, classes, tk_arch_features(arch), names, diag);
    tk_free(names);
    if (err != TK_OK) return err == TK_BADARG ? TK_BADDATA : err;
    err = read_rank(o, &rank, diag);
    if (err == TK_OK && rank > 0) err = tk_head_add_adapter(*out, arch, rank, diag);
    if (err == TK_OK) err = read_head_numbers(*out, o, diag);
    if (err == TK_OK) return TK_OK;
    tk_head_destroy(*out);
    *out = NULL;
    return err;
}

static tk_err read_adapter(const tk_head *head, const tk_tensors *tensors, tk_diag *diag)
{
    tk_err err = TK_OK;
    for (size_t s = 0; s < stages_of(head) && err == TK_OK; s++) {
        const stage_part p = stage_part_of(head, s);
        err = read_tensor(tensors, p.weight, 2, p.shape, p.data, diag);
        if (err == TK_OK)
            err = read_tensor(tensors, p.bias, 1, p.shape, p.data + p.shape[0] * p.shape[1], diag);
    }
    return err;
}

static tk_err read_head(tk_model *model, const json_t *o, const tk_tensors *tensors, tk_diag *diag)
{
    char name[TENSOR_NAME];
    tk_head *head;
    tk_err err = make_head(&head, o, model->trunk->arch, diag);
    if (err != TK_OK) return err;
    snprintf(name, sizeof name, "head.%s.weight", head->id);
    err = read_tensor(tensors, name, 2, (size_t[]){head->classes, head->width}, head->weight, diag);
    if (err == TK_OK) {
        snprintf(name, sizeof name, "head.%s.bias", head->id);
        err = read_tensor(tensors, name, 1, &head->classes, head->bias, diag);
    }
    if (err == TK_OK) err = read_adapter(head, tensors, diag);
    if (err == TK_OK) {
        err = tk_model_add_head(model, head);
        if (err == TK_EXISTS) err = TK_BADDATA;
        if (err != TK_OK) tk_fail(diag, err, "head \"%s\": %s", head->id, tk_err_text(err));
    }
    if (err != TK_OK) tk_head_destroy(head);
    return err;
}

/* One of EWC's vectors, laid out as the trained part of the trunk. */
static tk_err read_vector(const tk_params *trunk, const tk_tensors *tensors, const char *prefix,
                          float *out, tk_diag *diag)
{
    char name[TENSOR_NAME];
    float *disk = NULL;
    size_t cap = 0;
    tk_err err = TK_OK;
    for (size_t i = 0; i < trunk->tensors && err == TK_OK; i++) {
        const tk_param *p = &trunk->table[i];
        if (p->kind == TK_PARAM_BN_MEAN || p->kind == TK_PARAM_BN_VAR) continue;
        const bool conv = p->kind == TK_PARAM_CONV;
        const size_t shape[4] = {p->oc, p->ic, p->k, p->k};
        if (p->count > cap) {
            tk_free(disk);
            cap = p->count;
            disk = tk_calloc(cap, sizeof *disk);
            if (!disk) return tk_fail(diag, TK_NOMEM, "model: out of memory");
        }
        snprintf(name, sizeof name, "%s%s", prefix, p->name);
        err = read_tensor(tensors, name, conv ? 4 : 1, shape, disk, diag);
        if (err == TK_OK) tk_param_from_disk(p, disk, out + p->offset);
    }
    tk_free(disk);
    return err;
}

/* The head's share, when its metadata `o` say that it has one. */
static tk_err read_share(tk_head *head, const json_t *o, size_t n, const tk_tensors *tensors,
                         tk_diag *diag)
{
    char name[TENSOR_NAME];
    const json_t *share = json_object_get(o, "share");
    if (!share) return TK_OK;
    const double largest = json_number_value(json_object_get(share, "largest"));
    const double weight = json_number_value(json_object_get(share, "weight"));
    if (!(largest > 0 && largest < 1e30 && weight >= 0 && weight <= 1))
        return bad(diag, "a head's share is not larger than 0 or its weight not 0..1");
    snprintf(name, sizeof name, "ewc.share.%s", head->id);
    const tk_tensor *t = tk_tensors_find(tensors, name);
    if (!t || t->dtype != TK_U8 || t->rank != 1 || t->count != n)
        return tk_fail(diag, TK_BADDATA, "tensor %s: missing, or not %zu bytes", name, n);
    head->share = (tk_ewc_share){
        .n = n, .codes = tk_calloc(n, 1), .largest = (float)largest, .weight = weight};
    if (!head->share.codes) {
        head->share.n = 0;
        return tk_fail(diag, TK_NOMEM, "model: out of memory");
    }
    memcpy(head->share.codes, t->data, n);
    return TK_OK;
}

static tk_err read_ewc(tk_model *model, const json_t *root, const tk_tensors *tensors,
                       tk_diag *diag)
{
    const size_t n = model->trunk->trained;
    const json_t *scale = json_object_get(root, "fisher_scale");
    if (!json_is_number(scale) || !(json_number_value(scale) >= 0))
        return bad(diag, "fisher_scale is not a positive number");
    model->fisher_scale = json_number_value(scale);
    model->fisher = tk_aligned_calloc(n, sizeof(float));
    model->anchor = tk_aligned_calloc(n, sizeof(float));
    if (!model->fisher || !model->anchor) return tk_fail(diag, TK_NOMEM, "model: out of memory");
    tk_err err = read_vector(model->trunk, tensors, "ewc.fisher.", model->fisher, diag);
    if (err == TK_OK) err = read_vector(model->trunk, tensors, "ewc.anchor.", model->anchor, diag);
    for (size_t i = 0; i < n && err == TK_OK; i++)
        if (model->fisher[i] < 0) err = tk_fail(diag, TK_BADDATA, "ewc.fisher: a negative entry");
    for (size_t h = 0; h < model->n_heads && err == TK_OK; h++)
        err = read_share(model->heads[h], json_array_get(json_object_get(root, "heads"), h), n,
                         tensors, diag);
    return err;
}

/* The covariances of the convolutions' inputs. */
static tk_err read_inputs(tk_model *model, const json_t *o, const tk_tensors *tensors,
                          tk_diag *diag)
{
    char name[TENSOR_NAME];
    const json_int_t limit = json_integer_value(json_object_get(o, "limit"));
    const double images = json_number_value(json_object_get(o, "images"));
    if (limit < 1 || !(images >= 1 && images <= 1e12))
        return bad(diag, "inputs needs limit and images");
    const tk_err made = tk_covariance_create(&model->inputs, model->trunk, (size_t)limit);
    if (made != TK_OK) return tk_fail(diag, made, "model: out of memory");
    model->inputs->images = images;
    for (size_t l = 0; l < model->inputs->layers; l++) {
        const tk_covariance_layer *layer = &model->inputs->layer[l];
        const size_t count = layer->n * (layer->n + 1) / 2;
        snprintf(name, sizeof name, "inputs.%s", model->trunk->table[layer->param].name);
        const tk_err err = read_tensor(tensors, name, 1, &count, layer->c, diag);
        if (err != TK_OK) return err;
        for (size_t i = 0; i < layer->n; i++)
            if (layer->c[i * (i + 3) / 2] < 0)
                return tk_fail(diag, TK_BADDATA, "tensor %s: a negative square", name);
    }
    return TK_OK;
}

/* Tensors that nothing accounts for make the file bad. */
static tk_err check_count(const tk_model *model, const json_t *heads, const tk_tensors *tensors,
                          bool ewc, bool inputs, tk_diag *diag)
{
    size_t trained = 0, shares = 0, convolutions = 0;
    for (size_t h = 0; ewc && h < json_array_size(heads); h++)
        shares += json_object_get(json_array_get(heads, h), "share") != NULL;
    for (size_t i = 0; i < model->trunk->tensors; i++) {
        trained += model->trunk->table[i].offset < model->trunk->trained;
        convolutions += model->trunk->table[i].kind == TK_PARAM_CONV;
    }
    size_t want = model->trunk->tensors + 2 * model->n_heads + (ewc ? 2 * trained + shares : 0) +
                  (inputs ? convolutions : 0);
    for (size_t h = 0; h < model->n_heads; h++)
        want += 2 * stages_of(model->heads[h]);
    const size_t have = tk_tensors_count(tensors);
    if (have == want) return TK_OK;
    return tk_fail(diag, TK_BADDATA, "the file has %zu tensors, its metadata accounts for %zu",
                   have, want);
}

static tk_err read_model(tk_model **out, const json_t *root, const tk_tensors *tensors,
                         bool with_ewc, tk_diag *diag)
{
    const char *arch_name = json_string_value(json_object_get(root, "arch"));
    const json_t *heads = json_object_get(root, "heads");
    if (json_integer_value(json_object_get(root, "format")) != FORMAT)
        return bad(diag, "unknown format");
    if (!arch_name || !json_is_array(heads)) return bad(diag, "arch or heads is missing");
    tk_arch arch;
    tk_preproc preproc;
    tk_err err = tk_arch_parse(arch_name, &arch, diag);
    if (err == TK_OK) err = read_preproc(json_object_get(root, "preproc"), &preproc, diag);
    if (err == TK_OK) err = tk_model_create(out, arch, &preproc, diag);
    if (err == TK_OK) err = tk_params_load((*out)->trunk, tensors, "trunk.", diag);
    if (err != TK_OK) return err == TK_BADARG ? TK_BADDATA : err;
    const char *broken = tk_params_nonfinite((*out)->trunk);
    if (broken) return tk_fail(diag, TK_BADDATA, "tensor trunk.%s is not finite", broken);
    for (size_t i = 0; i < json_array_size(heads); i++) {
        err = read_head(*out, json_array_get(heads, i), tensors, diag);
        if (err != TK_OK) return err;
    }
    err = tk__ranges_from_json(&(*out)->ranges, root, diag);
    if (err == TK_OK && (*out)->ranges.maps != 0 && (*out)->ranges.maps != tk_arch_maps(arch))
        err = tk_fail(diag, TK_BADDATA, "metadata \"trunkd\": ranges of %u maps, but %s has %zu",
                      (*out)->ranges.maps, tk_arch_name(arch), tk_arch_maps(arch));
    if (err != TK_OK) return err;
    const bool ewc = json_object_get(root, "fisher_scale") != NULL;
    const json_t *inputs = json_object_get(root, "inputs");
    for (size_t h = 0; h < (*out)->n_heads; h++)
        (*out)->heads[h]->covered = (*out)->heads[h]->covered && inputs;
    err = check_count(*out, heads, tensors, ewc, inputs != NULL, diag);
    if (err == TK_OK && ewc && with_ewc) err = read_ewc(*out, root, tensors, diag);
    return err == TK_OK && inputs && with_ewc ? read_inputs(*out, inputs, tensors, diag) : err;
}

/* The file, and its metadata as an object. */
static tk_err open_file(tk_tensors **tensors, json_t **root, const char *path, tk_diag *diag)
{
    json_error_t where;
    *root = NULL;
    const tk_err err = tk_tensors_open(tensors, path, diag);
    if (err != TK_OK) return err;
    const char *text = tk_tensors_meta(*tensors, "trunkd");
    if (!text)
        return tk_fail(diag, TK_BADDATA, "%s: no metadata \"trunkd\"; not a version of trunkd",
                       path);
    *root = json_loads(text, JSON_REJECT_DUPLICATES, &where);
    return json_is_object(*root) ? TK_OK : bad(diag, "not a JSON object");
}

/* Closes both, and leaves no half a model. */
static tk_err close_file(tk_tensors *tensors, json_t *root, tk_err err, tk_model **out)
{
    json_decref(root);
    tk_tensors_close(tensors);
    if (err != TK_OK) {
        tk_model_destroy(*out);
        *out = NULL;
    }
    return err;
}

tk_err tk_model_load(tk_model **out, const char *path, bool with_ewc, tk_diag *diag)
{
    tk_tensors *tensors = NULL;
    json_t *root;
    *out = NULL;
    tk_err err = open_file(&tensors, &root, path, diag);
    if (err == TK_OK) err = read_model(out, root, tensors, with_ewc, diag);
    return close_file(tensors, root, err, out);
}

static tk_err outline_head(tk_model *model, const json_t *o, tk_diag *diag)
{
    const char *id = json_string_value(json_object_get(o, "id"));
    if (!id) return bad(diag, "a head without id");
    tk_head *head = model->heads[model->n_heads] = tk_calloc(1, sizeof *head);
    if (!head) return tk_fail(diag, TK_NOMEM, "model: out of memory");
    model->n_heads++;
    head->id = tk_strdup(id);
    if (!head->id) return tk_fail(diag, TK_NOMEM, "model: out of memory");
    const tk_err err = read_rank(o, &head->rank, diag);
    return err == TK_OK ? read_head_numbers(head, o, diag) : err;
}

static tk_err outline(tk_model **out, const json_t *root, tk_diag *diag)
{
    const json_t *heads = json_object_get(root, "heads");
    const size_t n = json_array_size(heads);
    if (!json_is_array(heads)) return bad(diag, "heads is missing");
    tk_model *model = *out = tk_calloc(1, sizeof *model);
    if (!model || !(model->heads = tk_calloc(n + 1, sizeof(tk_head *))))
        return tk_fail(diag, TK_NOMEM, "model: out of memory");
    tk_err err = tk__ranges_from_json(&model->ranges, root, diag);
    for (size_t i = 0; i < n && err == TK_OK; i++)
        err = outline_head(model, json_array_get(heads, i), diag);
    return err;
}

tk_err tk_model_outline(tk_model **out, const char *path, tk_diag *diag)
{
    tk_tensors *tensors = NULL;
    json_t *root;
    *out = NULL;
    tk_err err = open_file(&tensors, &root, path, diag);
    if (err == TK_OK) err = outline(out, root, diag);
    return close_file(tensors, root, err, out);
}
