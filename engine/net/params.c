/* A trunk's parameters: the table of named tensors that follows from the architecture, and the
 * block of floats they lie in. */
#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "arch_internal.h"
#include "engine/mem.h"
#include "engine/rng.h"

/* A table under construction. The first walk only counts (table is NULL), the second fills. */
typedef struct builder {
    tk_param *table;
    size_t n;      /* tensors so far */
    size_t floats; /* offset of the next tensor */
    bool running;  /* false: collect the trained tensors; true: the running statistics */
} builder;

static void add(builder *b, tk_param param, const char *prefix, const char *name, const char *field)
{
    bool running = param.kind == TK_PARAM_BN_MEAN || param.kind == TK_PARAM_BN_VAR;
    if (running != b->running) return;
    param.offset = b->floats;
    b->floats += (param.count + 15) / 16 * 16;
    if (b->table) {
        tk_param *slot = &b->table[b->n];
        *slot = param;
        int length = snprintf(slot->name, sizeof slot->name, "%s%s%s.%s", prefix,
                              *prefix ? "." : "", name, field);
        assert(length > 0 && (size_t)length < sizeof slot->name);
        (void)length;
    }
    b->n++;
}

static void add_unit(builder *b, const char *prefix, const char *conv, const char *bn, size_t ic,
                     size_t oc, size_t k)
{
    add(b, (tk_param){.kind = TK_PARAM_CONV, .oc = oc, .ic = ic, .k = k, .count = k * k * ic * oc},
        prefix, conv, "weight");
    add(b, (tk_param){.kind = TK_PARAM_BN_GAMMA, .oc = oc, .count = oc}, prefix, bn, "weight");
    add(b, (tk_param){.kind = TK_PARAM_BN_BETA, .oc = oc, .count = oc}, prefix, bn, "bias");
    add(b, (tk_param){.kind = TK_PARAM_BN_MEAN, .oc = oc, .count = oc}, prefix, bn, "running_mean");
    add(b, (tk_param){.kind = TK_PARAM_BN_VAR, .oc = oc, .count = oc}, prefix, bn, "running_var");
}

static void add_block(builder *b, const tk__block *block)
{
    if (block->bottleneck) {
        add_unit(b, block->prefix, "conv1", "bn1", block->in, block->mid, 1);
        add_unit(b, block->prefix, "conv2", "bn2", block->mid, block->mid, 3);
        add_unit(b, block->prefix, "conv3", "bn3", block->mid, block->out, 1);
    } else {
        add_unit(b, block->prefix, "conv1", "bn1", block->in, block->mid, 3);
        add_unit(b, block->prefix, "conv2", "bn2", block->mid, block->out, 3);
    }
    if (block->downsample)
        add_unit(b, block->prefix, "downsample.0", "downsample.1", block->in, block->out, 1);
}

static void walk(builder *b, tk_arch arch, bool running)
{
    const tk__arch_desc *desc = tk__arch_describe(arch);
    b->running = running;
    add_unit(b, "", "conv1", "bn1", 3, desc->width[0], desc->stem == TK__STEM_IMAGENET ? 7 : 3);
    unsigned blocks = tk__arch_blocks(arch);
    for (unsigned i = 0; i < blocks; i++) {
        tk__block block = tk__arch_block(arch, i);
        add_block(b, &block);
    }
}

static tk_err create_empty(tk_params **out, tk_arch arch)
{
    *out = NULL;
    builder counter = {0};
    walk(&counter, arch, false);
    size_t trained = counter.floats;
    walk(&counter, arch, true);

    tk_params *params = tk_calloc(1, sizeof *params);
    tk_param *table = tk_calloc(counter.n, sizeof *table);
    float *data = tk_aligned_calloc(counter.floats, sizeof *data);
    if (!params || !table || !data) {
        tk_free(data);
        tk_free(table);
        tk_free(params);
        return TK_NOMEM;
    }
    builder filler = {.table = table};
    walk(&filler, arch, false);
    walk(&filler, arch, true);
    *params = (tk_params){
        .arch = arch,
        .tensors = counter.n,
        .table = table,
        .trained = trained,
        .count = counter.floats,
        .data = data,
    };
    *out = params;
    return TK_OK;
}

static void fill(float *data, size_t n, float value)
{
    for (size_t i = 0; i < n; i++)
        data[i] = value;
}

tk_err tk_params_create(tk_params **out, tk_arch arch)
{
    tk_err err = create_empty(out, arch);
    if (err != TK_OK) return err;
    for (size_t t = 0; t < (*out)->tensors; t++) {
        const tk_param *param = &(*out)->table[t];
        if (param->kind == TK_PARAM_BN_GAMMA || param->kind == TK_PARAM_BN_VAR)
            fill((*out)->data + param->offset, param->count, 1.0f);
    }
    return TK_OK;
}

tk_err tk_params_clone(tk_params **out, const tk_params *from)
{
    tk_err err = create_empty(out, from->arch);
    if (err != TK_OK) return err;
    tk_params_copy(*out, from);
    return TK_OK;
}

void tk_params_copy(tk_params *to, const tk_params *from)
{
    assert(to->arch == from->arch && to->count == from->count);
    memcpy(to->data, from->data, from->count * sizeof *from->data);
}

void tk_params_destroy(tk_params *params)
{
    if (!params) return;
    tk_free(params->table);
    tk_free(params->data);
    tk_free(params);
}

long tk_params_find(const tk_params *params, const char *name)
{
    for (size_t t = 0; t < params->tensors; t++) {
        if (strcmp(params->table[t].name, name) == 0) return (long)t;
    }
    return -1;
}

/* Index in memory (HWIO) of element (o, i, p) of the file (OIHW), p = y * k + x. */
static size_t hwio(const tk_param *param, size_t o, size_t i, size_t p)
{
    return (p * param->ic + i) * param->oc + o;
}

void tk_params_init(tk_params *params, uint64_t seed)
{
    for (size_t t = 0; t < params->tensors; t++) {
        const tk_param *param = &params->table[t];
        float *data = params->data + param->offset;
        if (param->kind != TK_PARAM_CONV) {
            bool one = param->kind == TK_PARAM_BN_GAMMA || param->kind == TK_PARAM_BN_VAR;
            fill(data, param->count, one ? 1.0f : 0.0f);
            continue;
        }
        size_t taps = param->k * param->k;
        float std = (float)sqrt(2.0 / (double)(taps * param->oc));
        uint64_t stream = tk_rng_stream(param->name);
        uint64_t index = 0;
        for (size_t o = 0; o < param->oc; o++) {
            for (size_t i = 0; i < param->ic; i++) {
                for (size_t p = 0; p < taps; p++)
                    data[hwio(param, o, i, p)] = std * tk_rng_normal(seed, stream, index++);
            }
        }
    }
}

void tk_param_to_disk(const tk_param *param, const float *data, float *disk)
{
    if (param->kind != TK_PARAM_CONV) {
        memcpy(disk, data, param->count * sizeof *disk);
        return;
    }
    size_t taps = param->k * param->k;
    for (size_t o = 0; o < param->oc; o++) {
        for (size_t i = 0; i < param->ic; i++) {
            for (size_t p = 0; p < taps; p++)
                *disk++ = data[hwio(param, o, i, p)];
        }
    }
}

void tk_param_from_disk(const tk_param *param, const float *disk, float *data)
{
    if (param->kind != TK_PARAM_CONV) {
        memcpy(data, disk, param->count * sizeof *data);
        return;
    }
    size_t taps = param->k * param->k;
    for (size_t o = 0; o < param->oc; o++) {
        for (size_t i = 0; i < param->ic; i++) {
            for (size_t p = 0; p < taps; p++)
                data[hwio(param, o, i, p)] = *disk++;
        }
    }
}

const char *tk_params_nonfinite(const tk_params *params)
{
    for (size_t t = 0; t < params->tensors; t++) {
        const tk_param *param = &params->table[t];
        const float *data = params->data + param->offset;
        for (size_t i = 0; i < param->count; i++) {
            if (!isfinite(data[i])) return param->name;
        }
    }
    return NULL;
}
