/* A trunk out of a safetensors file: which architecture it is, whether it is whole, and its values.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "engine/mem.h"
#include "engine/tensors.h"
#include "net/arch_internal.h"

enum { MAX_NAME = 256 };

/* "[64, 64, 3, 3]" */
static const char *shape_text(char *text, size_t size, unsigned rank, const size_t *shape)
{
    size_t used = (size_t)snprintf(text, size, "[");
    for (unsigned i = 0; i < rank && used < size; i++)
        used += (size_t)snprintf(text + used, size - used, "%s%zu", i ? ", " : "", shape[i]);
    if (used < size) (void)snprintf(text + used, size - used, "]");
    return text;
}

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

/* The tensor of `p`, with its shape checked; NULL with *err set. */
static const tk_tensor *take(const tk_tensors *tensors, const char *prefix, const tk_param *p,
                             tk_err *err, tk_diag *diag)
{
    char name[MAX_NAME], expected[128], found[256];
    (void)snprintf(name, sizeof name, "%s%s", prefix, p->name);
    const size_t shape[4] = {p->oc, p->ic, p->k, p->k};
    unsigned rank = p->kind == TK_PARAM_CONV ? 4 : 1;
    const tk_tensor *t = tk_tensors_find(tensors, name);
    *err = TK_OK;
    if (!t)
        *err = tk_fail(diag, TK_BADDATA, "tensor %s: missing", name);
    else if (t->rank != rank || memcmp(t->shape, shape, rank * sizeof *shape) != 0)
        *err = tk_fail(diag, TK_BADDATA, "tensor %s: expected %s, found %s", name,
                       shape_text(expected, sizeof expected, rank, shape),
                       shape_text(found, sizeof found, t->rank, t->shape));
    return *err == TK_OK ? t : NULL;
}

static tk_err check_values(const tk_param *p, const float *values, const char *prefix,
                           tk_diag *diag)
{
    for (size_t i = 0; i < p->count; i++) {
        if (!isfinite(values[i]))
            return tk_fail(diag, TK_BADDATA, "tensor %s%s: value %zu is not finite", prefix,
                           p->name, i);
        if (p->kind == TK_PARAM_BN_VAR && values[i] < 0)
            return tk_fail(diag, TK_BADDATA,
                           "tensor %s%s: value %zu is negative, a variance is not", prefix, p->name,
                           i);
    }
    return TK_OK;
}

/* Names under `prefix` that the trunk does not have. */
static tk_err check_extra(const tk_params *params, const tk_tensors *tensors, const char *prefix,
                          tk_diag *diag)
{
    size_t skip = strlen(prefix);
    for (size_t i = 0; i < tk_tensors_count(tensors); i++) {
        const char *full = tk_tensors_at(tensors, i)->name, *name = full + skip;
        if (strncmp(full, prefix, skip) != 0 || ends_with(name, ".num_batches_tracked")) continue;
        if (skip == 0 && (strcmp(name, "fc.weight") == 0 || strcmp(name, "fc.bias") == 0)) continue;
        if (tk_params_find(params, name) < 0)
            return tk_fail(diag, TK_BADDATA, "tensor %s: not part of a %s", full,
                           tk_arch_name(params->arch));
    }
    return TK_OK;
}

tk_err tk_params_load(tk_params *params, const tk_tensors *tensors, const char *prefix,
                      tk_diag *diag)
{
    tk_err err;
    size_t largest = 0;
    for (size_t i = 0; i < params->tensors; i++) {
        const tk_param *p = &params->table[i];
        if (!take(tensors, prefix, p, &err, diag)) return err;
        if (p->count > largest) largest = p->count;
    }
    err = check_extra(params, tensors, prefix, diag);
    if (err != TK_OK) return err;

    float *disk = tk_calloc(largest, sizeof *disk);
    if (!disk) return tk_fail(diag, TK_NOMEM, "weights: out of memory");
    for (size_t i = 0; i < params->tensors && err == TK_OK; i++) {
        const tk_param *p = &params->table[i];
        const tk_tensor *t = take(tensors, prefix, p, &err, diag);
        if (t) err = tk_tensor_to_f32(t, disk, diag);
        if (err == TK_OK) err = check_values(p, disk, prefix, diag);
        if (err == TK_OK) tk_param_from_disk(p, disk, params->data + p->offset);
    }
    tk_free(disk);
    return err;
}

static bool has(const tk_tensors *tensors, const char *prefix, unsigned stage, unsigned block,
                const char *conv)
{
    char name[MAX_NAME];
    (void)snprintf(name, sizeof name, "%slayer%u.%u.%s.weight", prefix, stage, block, conv);
    return tk_tensors_find(tensors, name) != NULL;
}

/* Stages and blocks are counted by their first convolutions. Shapes
 * are left to tk_params_load(), whose message then names the tensor that is wrong. */
tk_err tk_arch_guess(const tk_tensors *tensors, const char *prefix, tk_arch *out, tk_diag *diag)
{
    *out = TK_RESNET18;
    unsigned blocks[TK_MAX_STAGES] = {0};
    for (unsigned s = 0; s < TK_MAX_STAGES; s++) {
        while (blocks[s] < 64 && has(tensors, prefix, s + 1, blocks[s], "conv1"))
            blocks[s]++;
    }
    bool bottleneck = has(tensors, prefix, 1, 0, "conv3");
    for (unsigned a = 0; a < TK_ARCH_COUNT; a++) {
        const tk__arch_desc *desc = tk__arch_describe((tk_arch)a);
        if (desc->bottleneck == bottleneck && memcmp(desc->blocks, blocks, sizeof blocks) == 0) {
            *out = (tk_arch)a;
            return TK_OK;
        }
    }
    return tk_fail(diag, TK_BADDATA,
                   "weights of no known architecture: %u, %u, %u and %u %s blocks under the names "
                   "%slayer1 to %slayer4",
                   blocks[0], blocks[1], blocks[2], blocks[3], bottleneck ? "bottleneck" : "basic",
                   prefix, prefix);
}
