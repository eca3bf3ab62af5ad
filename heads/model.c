/* Heads and models in memory: making, copying, finding. Files are model_file.c's. */
#include "heads/model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/mem.h"
#include "text.h"

enum { ID_MAX = 255, FEATURES_MAX = 1 << 16 };

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Unique labels? Sorts a copy of the pointers. */
static tk_err check_unique(const tk_head *head, tk_diag *diag)
{
    char **sorted = tk_calloc(head->classes, sizeof *sorted);
    if (!sorted) return tk_fail(diag, TK_NOMEM, "head: out of memory");
    memcpy(sorted, head->labels, head->classes * sizeof *sorted);
    qsort(sorted, head->classes, sizeof *sorted, by_text);
    tk_err err = TK_OK;
    for (size_t i = 1; i < head->classes && err == TK_OK; i++)
        if (strcmp(sorted[i - 1], sorted[i]) == 0)
            err = tk_fail(diag, TK_BADARG, "label \"%s\" appears twice", sorted[i]);
    tk_free(sorted);
    return err;
}

static tk_err fill(tk_head *head, const char *id, const char *const *labels, tk_diag *diag)
{
    const size_t c = head->classes, f = head->features;
    head->id = tk_strdup(id);
    head->labels = tk_calloc(c, sizeof *head->labels);
    head->weight = tk_aligned_calloc(c * f, sizeof(float));
    head->bias = tk_aligned_calloc(c, sizeof(float));
    if (!head->id || !head->labels || !head->weight || !head->bias)
        return tk_fail(diag, TK_NOMEM, "head: out of memory");
    for (size_t i = 0; i < c; i++) {
        const tk_err err = tk__text_check("label", labels[i], TK_LABEL_MAX, diag);
        if (err != TK_OK) return err;
        head->labels[i] = tk_strdup(labels[i]);
        if (!head->labels[i]) return tk_fail(diag, TK_NOMEM, "head: out of memory");
    }
    return check_unique(head, diag);
}

tk_err tk_head_create(tk_head **out, const char *id, size_t classes, size_t features,
                      const char *const *labels, tk_diag *diag)
{
    *out = NULL;
    tk_err err = tk__text_check("head id", id, ID_MAX, diag);
    if (err != TK_OK) return err;
    if (classes < 1 || classes > TK_HEAD_MAX_CLASSES)
        return tk_fail(diag, TK_BADARG, "head \"%s\": %zu classes, 1..%d are allowed", id, classes,
                       TK_HEAD_MAX_CLASSES);
    if (features < 1 || features > FEATURES_MAX)
        return tk_fail(diag, TK_BADARG, "head \"%s\": %zu features, 1..%d are allowed", id,
                       features, FEATURES_MAX);
    tk_head *head = tk_calloc(1, sizeof *head);
    if (!head) return tk_fail(diag, TK_NOMEM, "head: out of memory");
    *head = (tk_head){.classes = classes,
                      .features = features,
                      .width = features,
                      .tolerance = 1.0,
                      .best = (double)NAN};
    err = fill(head, id, labels, diag);
    if (err != TK_OK) {
        tk_head_destroy(head);
        return err;
    }
    *out = head;
    return TK_OK;
}

tk_err tk_head_add_adapter(tk_head *head, tk_arch arch, size_t rank, tk_diag *diag)
{
    if (head->rank != 0 || rank < 1 || rank > TK_ADAPTER_MAX_RANK ||
        head->features != tk_arch_features(arch))
        return tk_fail(diag, TK_BADARG,
                       "head \"%s\": an adapter of rank %zu on %s; it has none yet, 1..%d are "
                       "allowed, and its features are the trunk's",
                       head->id, rank, tk_arch_name(arch), TK_ADAPTER_MAX_RANK);
    const size_t f = head->features, width = f + tk_arch_stages(arch) * rank;
    float *adapter = tk_aligned_calloc(tk_side_size(arch, rank), sizeof *adapter);
    float *weight = tk_aligned_calloc(head->classes * width, sizeof *weight);
    if (!adapter || !weight) {
        tk_free(adapter);
        tk_free(weight);
        return tk_fail(diag, TK_NOMEM, "head: out of memory");
    }
    for (size_t c = 0; c < head->classes; c++)
        memcpy(weight + c * width, head->weight + c * f, f * sizeof *weight);
    tk_free(head->weight);
    head->weight = weight;
    head->adapter = adapter;
    head->width = width;
    head->rank = rank;
    head->arch = arch;
    return TK_OK;
}

tk_err tk_head_clone(tk_head **out, const tk_head *from)
{
    tk_err err = tk_head_create(out, from->id, from->classes, from->features,
                                (const char *const *)from->labels, NULL);
    if (err == TK_OK && from->rank > 0) {
        err = tk_head_add_adapter(*out, from->arch, from->rank, NULL);
        if (err != TK_OK) {
            tk_head_destroy(*out);
            *out = NULL;
        }
    }
    if (err != TK_OK) return err;
    if (from->rank > 0)
        memcpy((*out)->adapter, from->adapter,
               tk_side_size(from->arch, from->rank) * sizeof(float));
    memcpy((*out)->weight, from->weight, from->classes * from->width * sizeof(float));
    memcpy((*out)->bias, from->bias, from->classes * sizeof(float));
    (*out)->tolerance = from->tolerance;
    (*out)->best = from->best;
    (*out)->covered = from->covered;
    memcpy((*out)->checks, from->checks, sizeof from->checks);
    if (tk_ewc_share_clone(&(*out)->share, &from->share) == TK_OK) return TK_OK;
    tk_head_destroy(*out);
    *out = NULL;
    return TK_NOMEM;
}

void tk_head_destroy(tk_head *head)
{
    if (!head) return;
    for (size_t i = 0; head->labels && i < head->classes; i++)
        tk_free(head->labels[i]);
    tk_free(head->labels);
    tk_ewc_share_fini(&head->share);
    tk_free(head->weight);
    tk_free(head->bias);
    tk_free(head->adapter);
    tk_free(head->id);
    tk_free(head);
}

tk_err tk_model_create(tk_model **out, tk_arch arch, const tk_preproc *preproc, tk_diag *diag)
{
    *out = NULL;
    tk_err err = tk_preproc_check(preproc, diag);
    if (err == TK_OK) err = tk_arch_check_px(arch, preproc->crop, diag);
    if (err != TK_OK) return err;
    tk_model *model = tk_calloc(1, sizeof *model);
    if (!model) return tk_fail(diag, TK_NOMEM, "model: out of memory");
    model->preproc = *preproc;
    err = tk_params_create(&model->trunk, arch);
    if (err != TK_OK) {
        tk_model_destroy(model);
        return tk_fail(diag, err, "model: %s", tk_err_text(err));
    }
    *out = model;
    return TK_OK;
}

static tk_err copy_vector(float **out, const float *from, size_t n)
{
    if (!from) return TK_OK;
    *out = tk_aligned_calloc(n, sizeof **out);
    if (!*out) return TK_NOMEM;
    memcpy(*out, from, n * sizeof **out);
    return TK_OK;
}

tk_err tk_model_clone(tk_model **out, const tk_model *from)
{
    *out = NULL;
    tk_model *model = tk_calloc(1, sizeof *model);
    if (!model) return TK_NOMEM;
    model->preproc = from->preproc;
    model->fisher_scale = from->fisher_scale;
    model->ranges = from->ranges;
    tk_err err = tk_params_clone(&model->trunk, from->trunk);
    if (err == TK_OK) err = copy_vector(&model->fisher, from->fisher, from->trunk->trained);
    if (err == TK_OK) err = copy_vector(&model->anchor, from->anchor, from->trunk->trained);
    if (err == TK_OK && from->inputs) err = tk_covariance_clone(&model->inputs, from->inputs);
    for (size_t i = 0; i < from->n_heads && err == TK_OK; i++) {
        tk_head *head;
        err = tk_head_clone(&head, from->heads[i]);
        if (err != TK_OK) break;
        err = tk_model_add_head(model, head);
        if (err != TK_OK) tk_head_destroy(head);
    }
    if (err != TK_OK) {
        tk_model_destroy(model);
        return err;
    }
    *out = model;
    return TK_OK;
}

void tk_model_destroy(tk_model *model)
{
    if (!model) return;
    for (size_t i = 0; i < model->n_heads; i++)
        tk_head_destroy(model->heads[i]);
    tk_free(model->heads);
    tk_params_destroy(model->trunk);
    tk_free(model->fisher);
    tk_free(model->anchor);
    tk_covariance_destroy(model->inputs);
    tk_free(model);
}

tk_head *tk_model_head(const tk_model *model, const char *id)
{
    for (size_t i = 0; i < model->n_heads; i++)
        if (strcmp(model->heads[i]->id, id) == 0) return model->heads[i];
    return NULL;
}

tk_err tk_model_add_head(tk_model *model, tk_head *head)
{
    if (tk_model_head(model, head->id)) return TK_EXISTS;
    if (head->features != tk_arch_features(model->trunk->arch)) return TK_BADARG;
    if (head->rank > 0 && head->arch != model->trunk->arch) return TK_BADARG;
    tk_head **heads = tk_realloc(model->heads, (model->n_heads + 1) * sizeof(tk_head *));
    if (!heads) return TK_NOMEM;
    model->heads = heads;
    heads[model->n_heads++] = head;
    return TK_OK;
}

void tk_model_unprotect_head(tk_model *model, tk_head *head)
{
    if (model->fisher) tk_ewc_share_add(&head->share, -1, model->fisher);
    tk_ewc_share_fini(&head->share);
}

static void forget_fisher(tk_model *model)
{
    tk_free(model->fisher);
    tk_free(model->anchor);
    model->fisher = model->anchor = NULL;
    model->fisher_scale = 0;
}

static void forget_inputs(tk_model *model)
{
    tk_covariance_destroy(model->inputs);
    model->inputs = NULL;
    for (size_t i = 0; i < model->n_heads; i++)
        model->heads[i]->covered = false;
}

bool tk_model_drop_head(tk_model *model, const char *id)
{
    for (size_t i = 0; i < model->n_heads; i++) {
        if (strcmp(model->heads[i]->id, id) != 0) continue;
        tk_model_unprotect_head(model, model->heads[i]);
        if (model->heads[i]->covered || model->n_heads == 1) forget_inputs(model);
        tk_head_destroy(model->heads[i]);
        model->n_heads--;
        if (model->n_heads == 0) forget_fisher(model);
        memmove(model->heads + i, model->heads + i + 1, (model->n_heads - i) * sizeof(tk_head *));
        return true;
    }
    return false;
}
