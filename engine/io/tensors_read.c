/* The safetensors reader.
 *
 *     offset  size  what
 *     0       8     n, little endian
 *     8       n     JSON object: name -> {"dtype", "shape", "data_offsets": [begin, end]}, and
 *                   "__metadata__" -> {key: string}; may be padded with spaces
 *     8 + n         the data; offsets count from here
 *
 * The tensors must tile the data exactly: sorted by offset, each begins where the one before ended.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "engine/file.h"
#include "engine/half.h"
#include "engine/mem.h"
#include "engine/tensors.h"

static const size_t MAX_HEADER = 100000000; /* as the format's reference reader has it */
enum { MAX_NAME = 255, MAX_RANK = 8 };

typedef struct entry {
    tk_tensor tensor;
    size_t begin, end; /* bytes, in the data part */
} entry;

struct tk_tensors {
    tk_map map;     /* zero when the buffer is the caller's */
    json_t *header; /* owns names and metadata */
    size_t n;
    entry *entries; /* sorted by name */
};

static bool parse_dtype(const char *name, tk_dtype *dtype, size_t *size)
{
    static const struct {
        const char *name;
        tk_dtype dtype;
        size_t size;
    } known[] = {
        {"F32", TK_F32, 4},    {"F16", TK_F16, 2},       {"BF16", TK_BF16, 2},
        {"I64", TK_I64, 8},    {"F64", TK_OTHER, 8},     {"U64", TK_OTHER, 8},
        {"I32", TK_OTHER, 4},  {"U32", TK_OTHER, 4},     {"I16", TK_OTHER, 2},
        {"U16", TK_OTHER, 2},  {"I8", TK_OTHER, 1},      {"U8", TK_U8, 1},
        {"BOOL", TK_OTHER, 1}, {"F8_E4M3", TK_OTHER, 1}, {"F8_E5M2", TK_OTHER, 1},
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (strcmp(name, known[i].name) == 0) {
            *dtype = known[i].dtype;
            *size = known[i].size;
            return true;
        }
    }
    return false;
}

/* A JSON integer >= 0; booleans, reals and negatives are not sizes. */
static bool parse_size(const json_t *json, size_t *out)
{
    json_int_t value = json_is_integer(json) ? json_integer_value(json) : -1;
    *out = value < 0 ? 0 : (size_t)value;
    return value >= 0;
}

static tk_err parse_shape(tk_tensor *t, const json_t *shape, tk_diag *diag)
{
    if (!json_is_array(shape) || json_array_size(shape) > MAX_RANK)
        return tk_fail(diag, TK_BADDATA,
                       "tensor %s: \"shape\" must be an array of at most %d sizes", t->name,
                       MAX_RANK);
    t->rank = (unsigned)json_array_size(shape);
    t->count = 1;
    for (unsigned i = 0; i < t->rank; i++) {
        if (!parse_size(json_array_get(shape, i), &t->shape[i]))
            return tk_fail(diag, TK_BADDATA, "tensor %s: dimension %u of \"shape\" is not a size",
                           t->name, i);
        if (!tk_mul_size(t->count, t->shape[i], &t->count))
            return tk_fail(diag, TK_BADDATA, "tensor %s: the shape's product overflows", t->name);
    }
    return TK_OK;
}

/* `data` and `size` are the file's data part. */
static tk_err parse_entry(entry *e, const char *name, const json_t *json, const uint8_t *data,
                          size_t size, tk_diag *diag)
{
    tk_tensor *t = &e->tensor;
    t->name = name;
    size_t length = strlen(name);
    if (length == 0 || length > MAX_NAME)
        return tk_fail(diag, TK_BADDATA, "tensor \"%.64s\": a name has 1 to %d bytes, not %zu",
                       name, MAX_NAME, length);
    const char *dtype = json_string_value(json_object_get(json, "dtype"));
    size_t item = 0;
    if (!dtype || !parse_dtype(dtype, &t->dtype, &item))
        return tk_fail(diag, TK_BADDATA, "tensor %s: unknown dtype \"%.32s\"", name,
                       dtype ? dtype : "");
    tk_err err = parse_shape(t, json_object_get(json, "shape"), diag);
    if (err != TK_OK) return err;

    const json_t *offsets = json_object_get(json, "data_offsets");
    if (json_array_size(offsets) != 2 || !parse_size(json_array_get(offsets, 0), &e->begin) ||
        !parse_size(json_array_get(offsets, 1), &e->end) || e->begin > e->end || e->end > size)
        return tk_fail(diag, TK_BADDATA,
                       "tensor %s: \"data_offsets\" must be two offsets into the %zu data bytes",
                       name, size);
    size_t bytes;
    if (!tk_mul_size(t->count, item, &bytes) || bytes != e->end - e->begin)
        return tk_fail(diag, TK_BADDATA, "tensor %s: %zu values of %s do not fill %zu bytes", name,
                       t->count, dtype, e->end - e->begin);
    t->data = data + e->begin;
    return TK_OK;
}

static tk_err check_metadata(json_t *metadata, tk_diag *diag)
{
    const char *key;
    json_t *value;
    if (!json_is_object(metadata))
        return tk_fail(diag, TK_BADDATA, "safetensors: __metadata__ is not an object");
    json_object_foreach (metadata, key, value) {
        if (!json_is_string(value))
            return tk_fail(diag, TK_BADDATA, "safetensors: __metadata__ \"%.64s\" is not a string",
                           key);
    }
    return TK_OK;
}

static int by_offset(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return (x->end > y->end) - (x->end < y->end);
}

static int by_name(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    return strcmp(x->tensor.name, y->tensor.name);
}

/* The entries are in the order of their offsets. */
static tk_err check_tiling(const tk_tensors *ts, size_t size, tk_diag *diag)
{
    size_t end = 0;
    for (size_t i = 0; i < ts->n; i++) {
        const entry *e = &ts->entries[i];
        if (e->begin < end)
            return tk_fail(diag, TK_BADDATA, "tensor %s: overlaps tensor %s", e->tensor.name,
                           ts->entries[i - 1].tensor.name);
        if (e->begin > end)
            return tk_fail(diag, TK_BADDATA, "tensor %s: a hole of %zu bytes before it",
                           e->tensor.name, e->begin - end);
        end = e->end;
    }
    if (end != size)
        return tk_fail(diag, TK_BADDATA, "safetensors: %zu bytes after the last tensor",
                       size - end);
    return TK_OK;
}

static tk_err parse_header(tk_tensors *ts, const uint8_t *data, size_t size, tk_diag *diag)
{
    size_t n = json_object_size(ts->header);
    ts->entries = tk_calloc(n, sizeof *ts->entries);
    if (!ts->entries) return tk_fail(diag, TK_NOMEM, "safetensors: out of memory");

    const char *name;
    json_t *json;
    json_object_foreach (ts->header, name, json) {
        bool metadata = strcmp(name, "__metadata__") == 0;
        tk_err err = metadata ? check_metadata(json, diag)
                              : parse_entry(&ts->entries[ts->n++], name, json, data, size, diag);
        if (err != TK_OK) return err;
    }
    qsort(ts->entries, ts->n, sizeof *ts->entries, by_offset);
    tk_err err = check_tiling(ts, size, diag);
    qsort(ts->entries, ts->n, sizeof *ts->entries, by_name);
    return err;
}

static tk_err parse_file(tk_tensors *ts, const uint8_t *data, size_t size, tk_diag *diag)
{
    if (size < 8)
        return tk_fail(diag, TK_BADDATA, "safetensors: %zu bytes are too few for a header", size);
    uint64_t length = 0;
    for (int i = 0; i < 8; i++)
        length |= (uint64_t)data[i] << (8 * i);
    if (length > MAX_HEADER || length > size - 8)
        return tk_fail(diag, TK_BADDATA,
                       "safetensors: a header of %" PRIu64
                       " bytes does not fit a file of %zu bytes "
                       "and the limit of %zu",
                       length, size, MAX_HEADER);
    if (length == 0 || data[8] != '{')
        return tk_fail(diag, TK_BADDATA, "safetensors: the header is not a JSON object");
    json_error_t error;
    ts->header = json_loadb((const char *)data + 8, (size_t)length, JSON_REJECT_DUPLICATES, &error);
    /* Out of memory leaves no text (or, inside a token, that of a syntax error). */
    if (!ts->header && error.text[0] == '\0')
        return tk_fail(diag, TK_NOMEM, "safetensors: out of memory");
    if (!ts->header)
        return tk_fail(diag, TK_BADDATA, "safetensors: the header is not valid JSON: %s",
                       error.text);
    return parse_header(ts, data + 8 + length, size - 8 - (size_t)length, diag);
}

tk_err tk_tensors_parse(tk_tensors **out, const void *data, size_t size, tk_diag *diag)
{
    *out = NULL;
    tk_tensors *ts = tk_calloc(1, sizeof *ts);
    if (!ts) return tk_fail(diag, TK_NOMEM, "safetensors: out of memory");
    tk_err err = parse_file(ts, data, size, diag);
    if (err != TK_OK) {
        tk_tensors_close(ts);
        return err;
    }
    *out = ts;
    return TK_OK;
}

tk_err tk_tensors_open(tk_tensors **out, const char *path, tk_diag *diag)
{
    *out = NULL;
    tk_map map;
    tk_err err = tk_map_open(&map, path, diag);
    if (err != TK_OK) return err;
    err = tk_tensors_parse(out, map.data, map.size, diag);
    if (*out)
        (*out)->map = map;
    else
        tk_map_close(&map);
    return err;
}

void tk_tensors_close(tk_tensors *tensors)
{
    if (!tensors) return;
    json_decref(tensors->header);
    tk_map_close(&tensors->map);
    tk_free(tensors->entries);
    tk_free(tensors);
}

size_t tk_tensors_count(const tk_tensors *tensors)
{
    return tensors->n;
}

const tk_tensor *tk_tensors_at(const tk_tensors *tensors, size_t i)
{
    return &tensors->entries[i].tensor;
}

const tk_tensor *tk_tensors_find(const tk_tensors *tensors, const char *name)
{
    const entry key = {.tensor.name = name};
    const entry *found = bsearch(&key, tensors->entries, tensors->n, sizeof key, by_name);
    return found ? &found->tensor : NULL;
}

const char *tk_tensors_meta(const tk_tensors *tensors, const char *key)
{
    return json_string_value(
        json_object_get(json_object_get(tensors->header, "__metadata__"), key));
}

tk_err tk_tensor_to_f32(const tk_tensor *tensor, float *out, tk_diag *diag)
{
    const uint8_t *data = tensor->data; /* not aligned */
    switch (tensor->dtype) {
    case TK_F32:
        memcpy(out, data, tensor->count * sizeof *out);
        return TK_OK;
    case TK_F16:
        for (size_t i = 0; i < tensor->count; i++) {
            uint16_t half;
            memcpy(&half, data + 2 * i, sizeof half);
            tk_f16_to_f32(1, &half, &out[i]);
        }
        return TK_OK;
    case TK_BF16: /* the upper half of a float */
        for (size_t i = 0; i < tensor->count; i++) {
            uint32_t bits = (uint32_t)data[2 * i] << 16 | (uint32_t)data[2 * i + 1] << 24;
            memcpy(&out[i], &bits, sizeof bits);
        }
        return TK_OK;
    case TK_I64:
    case TK_U8:
    case TK_OTHER:
        break;
    }
    return tk_fail(diag, TK_BADDATA, "tensor %s: expected F32, F16 or BF16 values", tensor->name);
}
