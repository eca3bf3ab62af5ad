/* The input tensor of a ModelInfer request: shape, datatype, and where its bytes lie. Everything in
 * it is a client's, and checked before it sizes or addresses anything. */
#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "api/api_oip.h"
#include "engine/mem.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "raw contents are little-endian");

enum { MAX_SIDE = 16384 }; /* pixels */

typedef tk__oip_query query;
typedef Inference__ModelInferRequest request;
typedef Inference__ModelInferRequest__InferInputTensor input_tensor;

/* -- shape -- */

static tk_err check_dim(const input_tensor *t, size_t i, int64_t least, int64_t most, tk_diag *diag)
{
    if (t->shape[i] >= least && t->shape[i] <= most) return TK_OK;
    if (least == most)
        return tk_fail(diag, TK_BADARG, "inputs[0].shape[%zu] is %" PRId64 ", it must be %" PRId64,
                       i, t->shape[i], most);
    return tk_fail(diag, TK_BADARG,
                   "inputs[0].shape[%zu] is %" PRId64 ", the limits are %" PRId64 " and %" PRId64,
                   i, t->shape[i], least, most);
}

static tk_err check_dims(const input_tensor *t, size_t n, const char *form, tk_diag *diag)
{
    if (t->n_shape == n) return TK_OK;
    return tk_fail(diag, TK_BADARG, "inputs[0].shape has %zu dimensions: %s has the shape %s",
                   t->n_shape, t->datatype, form);
}

/* Bytes of one image of pixels or planes. */
static tk_err find_size(query *q, size_t channels, size_t element, tk_diag *diag)
{
    size_t all;
    if (!tk_mul_size(q->w, q->h, &q->image_size) ||
        !tk_mul_size(q->image_size, channels * element, &q->image_size) ||
        !tk_mul_size(q->image_size, q->n, &all) || q->image_size > TK_API_IMAGE_MAX)
        return tk_fail(diag, TK_BADARG,
                       "inputs[0].shape makes %zu bytes of one image, the limit is %d",
                       q->image_size, TK_API_IMAGE_MAX);
    return TK_OK;
}

static tk_err check_pixels(query *q, const input_tensor *t, tk_diag *diag)
{
    tk_err err = check_dims(t, 4, "[n, height, width, 3]", diag);
    for (size_t i = 1; err == TK_OK && i < 3; i++)
        err = check_dim(t, i, 1, MAX_SIDE, diag);
    if (err == TK_OK) err = check_dim(t, 3, 3, 3, diag);
    if (err != TK_OK) return err;
    q->form = TK_IMAGE_PIXELS;
    q->h = (size_t)t->shape[1];
    q->w = (size_t)t->shape[2];
    return find_size(q, 3, 1, diag);
}

static tk_err check_planes(query *q, const input_tensor *t, size_t crop, tk_diag *diag)
{
    char form[64];
    snprintf(form, sizeof form, "[n, 3, %zu, %zu]", crop, crop);
    tk_err err = check_dims(t, 4, form, diag);
    if (err == TK_OK) err = check_dim(t, 1, 3, 3, diag);
    for (size_t i = 2; err == TK_OK && i < 4; i++)
        err = check_dim(t, i, (int64_t)crop, (int64_t)crop, diag);
    if (err != TK_OK) return err;
    q->form = TK_IMAGE_PLANES;
    q->h = q->w = crop;
    return find_size(q, 3, sizeof(float), diag);
}

static tk_err check_files(query *q, const input_tensor *t, tk_diag *diag)
{
    q->form = TK_IMAGE_ENCODED;
    if (t->n_shape == 2) return check_dim(t, 1, 1, 1, diag);
    return check_dims(t, 1, "[n] or [n, 1]", diag);
}

static tk_err check_shape(query *q, const input_tensor *t, const tk_snapshot *snapshot,
                          tk_diag *diag)
{
    if (t->n_shape == 0)
        return tk_fail(diag, TK_BADARG,
                       "inputs[0].shape is empty: its first dimension counts images");
    tk_err err = check_dim(t, 0, 1, TK_OIP_IMAGES_MAX, diag);
    if (err != TK_OK) return err;
    q->n = (size_t)t->shape[0];
    if (strcmp(t->datatype, "BYTES") == 0) return check_files(q, t, diag);
    if (strcmp(t->datatype, "UINT8") == 0) return check_pixels(q, t, diag);
    if (strcmp(t->datatype, "FP32") == 0)
        return check_planes(q, t, tk_snapshot_preproc(snapshot)->crop, diag);
    return tk_fail(diag, TK_BADARG, "inputs[0].datatype is \"%s\": it must be BYTES, UINT8 or FP32",
                   tk__oip_quoted(t->datatype).text);
}

/* -- contents -- */

/* Gives one file of a BYTES tensor to the batcher. */
static tk_err take_file(tk_infer *infer, size_t i, const uint8_t *data, size_t size, tk_diag *diag)
{
    if (size > TK_API_IMAGE_MAX)
        return tk_fail(diag, TK_BADARG, "inputs[0]: element %zu has %zu bytes, the limit is %d", i,
                       size, TK_API_IMAGE_MAX);
    infer->images[i].data = data;
    infer->images[i].size = size;
    return TK_OK;
}

/* Each element after its length in four bytes, and nothing else. */
static tk_err take_raw_files(const query *q, tk_infer *infer, const ProtobufCBinaryData *raw,
                             tk_diag *diag)
{
    size_t at = 0;
    for (size_t i = 0; i < q->n; i++) {
        uint32_t size;
        if (raw->len - at < sizeof size)
            return tk_fail(
                diag, TK_BADARG,
                "raw_input_contents[0] ends at byte %zu, where the length of element %zu of "
                "%zu should be",
                raw->len, i, q->n);
        memcpy(&size, raw->data + at, sizeof size);
        at += sizeof size;
        if (size > raw->len - at)
            return tk_fail(diag, TK_BADARG,
                           "raw_input_contents[0]: element %zu says that it has %" PRIu32
                           " bytes, but %zu follow",
                           i, size, raw->len - at);
        const tk_err err = take_file(infer, i, raw->data + at, size, diag);
        if (err != TK_OK) return err;
        at += size;
    }
    if (at == raw->len) return TK_OK;
    return tk_fail(diag, TK_BADARG, "raw_input_contents[0] has %zu bytes after its %zu elements",
                   raw->len - at, q->n);
}

static tk_err take_typed_files(const query *q, tk_infer *infer,
                               const Inference__InferTensorContents *c, tk_diag *diag)
{
    tk_err err = TK_OK;
    for (size_t i = 0; err == TK_OK && i < q->n; i++)
        err = take_file(infer, i, c->bytes_contents[i].data, c->bytes_contents[i].len, diag);
    return err;
}

/* UINT8 comes as numbers of four bytes. */
static tk_err narrow(query *q, const uint32_t *from, size_t n, tk_diag *diag)
{
    q->own = tk_calloc(n, 1);
    if (!q->own) return tk_fail(diag, TK_NOMEM, "no memory for %zu pixels", n);
    for (size_t i = 0; i < n; i++) {
        if (from[i] > 255)
            return tk_fail(diag, TK_BADARG,
                           "inputs[0].contents.uint_contents[%zu] is %" PRIu32
                           ", the limit of UINT8 is 255",
                           i, from[i]);
        q->own[i] = (uint8_t)from[i];
    }
    q->data = q->own;
    return TK_OK;
}

/* Which field of the contents holds the datatype, and that the others are empty. */
static tk_err check_field(const query *q, const Inference__InferTensorContents *c, size_t *n,
                          tk_diag *diag)
{
    const struct {
        const char *name;
        size_t n;
        bool right;
    } fields[] = {
        {"bytes_contents", c->n_bytes_contents, q->form == TK_IMAGE_ENCODED},
        {"uint_contents", c->n_uint_contents, q->form == TK_IMAGE_PIXELS},
        {"fp32_contents", c->n_fp32_contents, q->form == TK_IMAGE_PLANES},
        {"bool_contents", c->n_bool_contents, false},
        {"int_contents", c->n_int_contents, false},
        {"int64_contents", c->n_int64_contents, false},
        {"uint64_contents", c->n_uint64_contents, false},
        {"fp64_contents", c->n_fp64_contents, false},
    };
    const char *right = "";
    *n = 0;
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (fields[i].right) {
            right = fields[i].name;
            *n = fields[i].n;
        }
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (!fields[i].right && fields[i].n > 0)
            return tk_fail(diag, TK_BADARG, "inputs[0].contents has %s: %s goes into %s",
                           fields[i].name, q->in->inputs[0]->datatype, right);
    const size_t want = q->form == TK_IMAGE_ENCODED  ? q->n
                        : q->form == TK_IMAGE_PLANES ? q->n * q->image_size / sizeof(float)
                                                     : q->n * q->image_size;
    if (*n == want) return TK_OK;
    return tk_fail(diag, TK_BADARG,
                   "inputs[0].contents.%s has %zu elements, the shape asks for %zu", right, *n,
                   want);
}

static tk_err take_typed(query *q, tk_infer *infer, tk_diag *diag)
{
    const Inference__InferTensorContents *c = q->in->inputs[0]->contents;
    if (!c)
        return tk_fail(diag, TK_BADARG,
                       "inputs[0] has no contents, and raw_input_contents is empty, too");
    size_t n;
    tk_err err = check_field(q, c, &n, diag);
    if (err != TK_OK) return err;
    if (q->form == TK_IMAGE_ENCODED) return take_typed_files(q, infer, c, diag);
    if (q->form == TK_IMAGE_PIXELS) return narrow(q, c->uint_contents, n, diag);
    q->data = (const uint8_t *)c->fp32_contents;
    return TK_OK;
}

static bool is_empty(const Inference__InferTensorContents *c)
{
    return !c || c->n_bool_contents + c->n_int_contents + c->n_int64_contents + c->n_uint_contents +
                         c->n_uint64_contents + c->n_fp32_contents + c->n_fp64_contents +
                         c->n_bytes_contents ==
                     0;
}

static tk_err take_raw(query *q, tk_infer *infer, tk_diag *diag)
{
    const request *in = q->in;
    if (in->n_raw_input_contents != in->n_inputs)
        return tk_fail(diag, TK_BADARG, "raw_input_contents has %zu entries, inputs has %zu",
                       in->n_raw_input_contents, in->n_inputs);
    if (!is_empty(in->inputs[0]->contents))
        return tk_fail(diag, TK_BADARG,
                       "inputs[0].contents must be empty when raw_input_contents is used");
    const ProtobufCBinaryData *raw = &in->raw_input_contents[0];
    if (q->form == TK_IMAGE_ENCODED) return take_raw_files(q, infer, raw, diag);
    if (raw->len != q->n * q->image_size)
        return tk_fail(diag, TK_BADARG,
                       "raw_input_contents[0] has %zu bytes, the shape asks for %zu", raw->len,
                       q->n * q->image_size);
    q->data = raw->data;
    return TK_OK;
}

tk_err tk__oip_take_contents(query *q, tk_infer *infer, tk_diag *diag)
{
    const tk_err err = q->raw ? take_raw(q, infer, diag) : take_typed(q, infer, diag);
    if (err != TK_OK) return err;
    for (size_t i = 0; i < q->n; i++) {
        tk_infer_image *image = &infer->images[i];
        image->form = q->form;
        if (q->form == TK_IMAGE_ENCODED) continue;
        image->data = q->data + i * q->image_size;
        image->size = q->image_size;
        image->w = (unsigned)q->w;
        image->h = (unsigned)q->h;
    }
    return TK_OK;
}

tk_err tk__oip_check_input(query *q, const tk_snapshot *snapshot, tk_diag *diag)
{
    const request *in = q->in;
    if (in->n_inputs != 1)
        return tk_fail(diag, TK_BADARG, "inputs has %zu tensors: the model takes one, \"image\"",
                       in->n_inputs);
    const input_tensor *t = in->inputs[0];
    if (strcmp(t->name, "image") != 0)
        return tk_fail(diag, TK_BADARG, "inputs[0].name is \"%s\": the model's input is \"image\"",
                       tk__oip_quoted(t->name).text);
    for (size_t i = 0; i < t->n_parameters; i++)
        if (strncmp(t->parameters[i]->key, "shared_memory_", 14) == 0)
            return tk_fail(diag, TK_BADARG,
                           "inputs[0].parameters has %s: there is no shared memory",
                           tk__oip_quoted(t->parameters[i]->key).text);
    q->raw = in->n_raw_input_contents > 0;
    return check_shape(q, t, snapshot, diag);
}
