/* The safetensors writer, and the list of tensors that is made for it. Layout: see tensors_read.c.
 * The header is padded with spaces to a multiple of 8 bytes, so that the data lie aligned. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "engine/file.h"
#include "engine/mem.h"
#include "engine/tensors.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
              "tensors are written as they lie in memory");

static size_t item_size(const tk_tensor *t)
{
    return t->dtype == TK_U8 ? 1 : sizeof(float);
}

static json_t *describe(const tk_tensor *t, size_t *offset)
{
    json_t *shape = json_array();
    for (unsigned i = 0; i < t->rank; i++)
        (void)json_array_append_new(shape, json_integer((json_int_t)t->shape[i]));
    size_t begin = *offset;
    *offset += t->count * item_size(t);
    return json_pack("{s:s, s:o, s:[I, I]}", "dtype", t->dtype == TK_U8 ? "U8" : "F32", "shape",
                     shape, "data_offsets", (json_int_t)begin, (json_int_t)*offset);
}

/* The header's text, free() it; NULL when out of memory or when a name is not UTF-8. */
static char *make_header(const tk_tensor *tensors, size_t n, const tk_meta *meta, size_t n_meta)
{
    json_t *header = json_object();
    bool good = header != NULL;
    if (n_meta > 0) {
        json_t *metadata = json_object();
        good = good && json_object_set_new(header, "__metadata__", metadata) == 0;
        for (size_t i = 0; i < n_meta && good; i++)
            good = json_object_set_new(metadata, meta[i].key, json_string(meta[i].value)) == 0;
    }
    size_t offset = 0;
    for (size_t i = 0; i < n && good; i++)
        good = json_object_set_new(header, tensors[i].name, describe(&tensors[i], &offset)) == 0;
    char *text = good ? json_dumps(header, JSON_COMPACT) : NULL;
    json_decref(header);
    return text;
}

static void write_all(FILE *stream, const char *header, const tk_tensor *tensors, size_t n)
{
    size_t length = strlen(header);
    size_t padded = (length + 7) / 8 * 8;
    uint64_t prefix = padded;
    /* Errors stay in the stream and are reported by the commit. */
    (void)fwrite(&prefix, sizeof prefix, 1, stream);
    (void)fprintf(stream, "%-*s", (int)padded, header);
    for (size_t i = 0; i < n; i++) {
        if (tensors[i].count > 0)
            (void)fwrite(tensors[i].data, item_size(&tensors[i]), tensors[i].count, stream);
    }
}

tk_err tk_tensors_write(const char *path, const tk_tensor *tensors, size_t n, const tk_meta *meta,
                        size_t n_meta, tk_diag *diag)
{
    for (size_t i = 0; i < n; i++)
        assert(tensors[i].dtype == TK_F32 || tensors[i].dtype == TK_U8);
    char *header = make_header(tensors, n, meta, n_meta);
    if (!header)
        return tk_fail(diag, TK_NOMEM, "%s: no memory for the header, or a name is not UTF-8",
                       path);
    tk_file file;
    tk_err err = tk_file_create(&file, path, diag);
    if (err == TK_OK) {
        write_all(file.stream, header, tensors, n);
        err = tk_file_commit(&file, diag);
    }
    free(header);
    return err;
}

/* Grows the list by one tensor of `count` zeros, whose values the caller fills through *values. */
static tk_tensor *append_as(tk_tensor_list *list, tk_dtype dtype, const char *prefix,
                            const char *name, size_t count, void **values)
{
    if (list->n == list->cap) {
        size_t cap = list->cap ? 2 * list->cap : 64;
        tk_tensor *items = tk_realloc(list->items, cap * sizeof *items);
        if (!items) return NULL;
        list->items = items;
        list->cap = cap;
    }
    tk_tensor t = {.dtype = dtype, .count = count};
    size_t size = strlen(prefix) + strlen(name) + 1;
    char *full = tk_calloc(size, 1);
    *values = tk_aligned_calloc(count, item_size(&t));
    if (!full || !*values) {
        tk_free(full);
        tk_free(*values);
        return NULL;
    }
    (void)snprintf(full, size, "%s%s", prefix, name);
    t.name = full;
    t.data = *values;
    list->items[list->n] = t;
    return &list->items[list->n++];
}

static tk_tensor *append(tk_tensor_list *list, const char *prefix, const char *name, size_t count,
                         float **values)
{
    void *data;
    tk_tensor *t = append_as(list, TK_F32, prefix, name, count, &data);
    *values = data;
    return t;
}

tk_err tk_tensor_list_add_u8(tk_tensor_list *list, const char *name, size_t n, const uint8_t *data)
{
    void *bytes;
    tk_tensor *t = append_as(list, TK_U8, "", name, n, &bytes);
    if (!t) return TK_NOMEM;
    t->rank = 1;
    t->shape[0] = n;
    memcpy(bytes, data, n);
    return TK_OK;
}

tk_err tk_tensor_list_add(tk_tensor_list *list, const char *name, unsigned rank,
                          const size_t *shape, const float *data)
{
    assert(rank <= 8);
    size_t count = 1;
    for (unsigned i = 0; i < rank; i++) {
        if (!tk_mul_size(count, shape[i], &count)) return TK_BADARG;
    }
    float *values;
    tk_tensor *t = append(list, "", name, count, &values);
    if (!t) return TK_NOMEM;
    t->rank = rank;
    if (rank > 0) memcpy(t->shape, shape, rank * sizeof *shape);
    memcpy(values, data, count * sizeof *data);
    return TK_OK;
}

tk_err tk_tensor_list_add_trunk(tk_tensor_list *list, const tk_params *params, const float *data,
                                const char *prefix, bool trained_only)
{
    for (size_t i = 0; i < params->tensors; i++) {
        const tk_param *p = &params->table[i];
        if (trained_only && p->offset >= params->trained) continue;
        float *values;
        tk_tensor *t = append(list, prefix, p->name, p->count, &values);
        if (!t) return TK_NOMEM;
        t->rank = p->kind == TK_PARAM_CONV ? 4 : 1;
        memcpy(t->shape, (size_t[]){p->oc, p->ic, p->k, p->k}, t->rank * sizeof *t->shape);
        tk_param_to_disk(p, data + p->offset, values);
    }
    return TK_OK;
}

void tk_tensor_list_fini(tk_tensor_list *list)
{
    for (size_t i = 0; i < list->n; i++) {
        tk_free(list->items[i].name);
        tk_free(list->items[i].data);
    }
    tk_free(list->items);
    *list = (tk_tensor_list){0};
}
