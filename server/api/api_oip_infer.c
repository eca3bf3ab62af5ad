/* ModelInfer and ModelStreamInfer. A request is checked here, on the completion-queue thread
 * (memory only), handed to the batcher, and answered from the batcher's executor. The call is held
 * meanwhile, and with it the request, whose bytes the batcher reads: pixels and files lie where
 * protobuf-c put them, but for UINT8 in typed contents, whose elements are numbers of four bytes
 * there.
 *
 * Of a stream one request at a time is under way (tk_rpc_next); its errors are answers, too. */
#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "api/api_oip.h"
#include "engine/mem.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "raw contents are little-endian");

enum {
    MAX_SIDE = 16384,          /* pixels */
    MAX_VALUES = 1 << 22,      /* of one answer: bounds its memory */
    MAX_PREDICTIONS = 1 << 18, /* the same, of classifications */
};

typedef Inference__ModelInferRequest request;
typedef Inference__ModelInferRequest__InferInputTensor input_tensor;
typedef Inference__ModelInferRequest__InferRequestedOutputTensor wanted_tensor;
typedef Inference__ModelInferResponse__InferOutputTensor output_tensor;

/* One request under way. */
typedef struct query {
    tk_rpc_call *call;
    bool stream;
    const request *in;
    const tk_head *head; /* of the snapshot that the tk_infer holds */
    uint64_t version;
    bool raw; /* contents, there and back */
    size_t n; /* images */
    tk_image_form form;
    size_t w, h;         /* of pixels */
    size_t image_size;   /* bytes, of pixels and planes */
    const uint8_t *data; /* of pixels and planes; NULL: files */
    uint8_t *own;        /* `data`, when it was made here */
    size_t n_outputs;
    struct {
        tk_oip_output what;
        size_t k; /* of a classification; 0: all values */
    } outputs[TK_OIP_OUTPUTS];
    size_t top_k;
    float *values[TK_OIP_OUTPUTS]; /* [n][width], those that are wanted */
} query;

static void destroy(query *q)
{
    if (!q) return;
    for (size_t o = 0; o < TK_OIP_OUTPUTS; o++)
        tk_free(q->values[o]);
    tk_free(q->own);
    tk_free(q);
}

/* Text of the client's, for an error. */
typedef struct quote {
    char text[80];
} quote;

static quote quoted(const char *text)
{
    quote q;
    tk__api_text_copy(q.text, sizeof q.text, text);
    return q;
}

/* -- the input: shape -- */

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
                   quoted(t->datatype).text);
}

/* -- the input: contents -- */

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

/* Points the images of `infer` at their bytes. */
static tk_err take_contents(query *q, tk_infer *infer, tk_diag *diag)
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

static tk_err check_input(query *q, const tk_snapshot *snapshot, tk_diag *diag)
{
    const request *in = q->in;
    if (in->n_inputs != 1)
        return tk_fail(diag, TK_BADARG, "inputs has %zu tensors: the model takes one, \"image\"",
                       in->n_inputs);
    const input_tensor *t = in->inputs[0];
    if (strcmp(t->name, "image") != 0)
        return tk_fail(diag, TK_BADARG, "inputs[0].name is \"%s\": the model's input is \"image\"",
                       quoted(t->name).text);
    for (size_t i = 0; i < t->n_parameters; i++)
        if (strncmp(t->parameters[i]->key, "shared_memory_", 14) == 0)
            return tk_fail(diag, TK_BADARG,
                           "inputs[0].parameters has %s: there is no shared memory",
                           quoted(t->parameters[i]->key).text);
    q->raw = in->n_raw_input_contents > 0;
    return check_shape(q, t, snapshot, diag);
}

/* -- the outputs -- */

static tk_err read_parameters(query *q, size_t index, const wanted_tensor *t, tk_diag *diag)
{
    size_t *k = &q->outputs[index].k;
    for (size_t i = 0; i < t->n_parameters; i++) {
        const char *key = t->parameters[i]->key;
        const Inference__InferParameter *value = t->parameters[i]->value;
        if (strncmp(key, "shared_memory_", 14) == 0)
            return tk_fail(diag, TK_BADARG,
                           "outputs[%zu].parameters has %s: there is no shared memory", index,
                           quoted(key).text);
        if (strcmp(key, "classification") != 0) continue;
        if (!value || value->parameter_choice_case !=
                          INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_INT64_PARAM)
            return tk_fail(diag, TK_BADARG,
                           "outputs[%zu].parameters: classification is no int64_param", index);
        if (value->int64_param < 1)
            return tk_fail(diag, TK_BADARG,
                           "outputs[%zu].parameters: classification is %" PRId64
                           ", it must be at least 1",
                           index, value->int64_param);
        if (q->outputs[index].what == TK_OIP_FEATURES)
            return tk_fail(
                diag, TK_BADARG,
                "outputs[%zu].parameters: features have no classes, so no classification", index);
        const uint64_t wanted = (uint64_t)value->int64_param;
        *k = wanted < q->head->classes ? (size_t)wanted : q->head->classes;
    }
    if (*k > q->top_k) q->top_k = *k;
    return TK_OK;
}

static tk_err read_output(query *q, size_t index, const wanted_tensor *t, tk_diag *diag)
{
    tk_oip_output what = 0;
    while (what < TK_OIP_OUTPUTS && strcmp(t->name, tk__oip_output_names[what]) != 0)
        what++;
    if (what == TK_OIP_OUTPUTS)
        return tk_fail(
            diag, TK_BADARG,
            "outputs[%zu].name is \"%s\": the model gives probabilities, logits and features",
            index, quoted(t->name).text);
    for (size_t i = 0; i < index; i++)
        if (q->outputs[i].what == what)
            return tk_fail(diag, TK_BADARG, "outputs[%zu] asks for %s, as outputs[%zu] does", index,
                           t->name, i);
    q->outputs[index].what = what;
    return read_parameters(q, index, t, diag);
}

static tk_err check_outputs(query *q, tk_diag *diag)
{
    const request *in = q->in;
    if (in->n_outputs > TK_OIP_OUTPUTS)
        return tk_fail(diag, TK_BADARG, "outputs has %zu entries, the limit is %d", in->n_outputs,
                       (int)TK_OIP_OUTPUTS);
    q->n_outputs = in->n_outputs > 0 ? in->n_outputs : TK_OIP_OUTPUTS;
    for (size_t i = 0; in->n_outputs == 0 && i < TK_OIP_OUTPUTS; i++)
        q->outputs[i].what = (tk_oip_output)i;
    for (size_t i = 0; i < in->n_outputs; i++) {
        const tk_err err = read_output(q, i, in->outputs[i], diag);
        if (err != TK_OK) return err;
    }
    size_t values = 0, predictions = 0;
    for (size_t i = 0; i < q->n_outputs; i++) {
        values += q->n * tk__oip_output_width(q->head, q->outputs[i].what);
        predictions += q->n * q->outputs[i].k;
    }
    if (values > MAX_VALUES)
        return tk_fail(
            diag, TK_BADARG,
            "the outputs of %zu images have %zu values, the limit is %d: send fewer images, "
            "or name fewer outputs",
            q->n, values, MAX_VALUES);
    if (predictions > MAX_PREDICTIONS)
        return tk_fail(diag, TK_BADARG,
                       "classification of %zu images makes %zu predictions, the limit is %d", q->n,
                       predictions, MAX_PREDICTIONS);
    return TK_OK;
}

/* Room for what is wanted, and the images' pointers into it. */
static tk_err make_values(query *q, tk_infer *infer, tk_diag *diag)
{
    for (size_t i = 0; i < q->n_outputs; i++) {
        const tk_oip_output o = q->outputs[i].what;
        if (o == TK_OIP_PROBABILITIES && q->outputs[i].k > 0) continue; /* tk_top has them */
        q->values[o] = tk_calloc(q->n * tk__oip_output_width(q->head, o), sizeof(float));
        if (!q->values[o]) return tk_fail(diag, TK_NOMEM, "no memory for the outputs");
    }
    for (size_t i = 0; i < q->n; i++) {
        float *at[TK_OIP_OUTPUTS] = {NULL};
        for (tk_oip_output o = 0; o < TK_OIP_OUTPUTS; o++)
            if (q->values[o]) at[o] = q->values[o] + i * tk__oip_output_width(q->head, o);
        infer->images[i].probabilities = at[TK_OIP_PROBABILITIES];
        infer->images[i].logits = at[TK_OIP_LOGITS];
        infer->images[i].features = at[TK_OIP_FEATURES];
    }
    return TK_OK;
}

/* -- the answer -- */

static void put_raw(tk__region *region, Inference__ModelInferResponse *m, size_t i, size_t bytes)
{
    m->raw_output_contents[i].data = tk__alloc(region, bytes, 1);
    m->raw_output_contents[i].len = m->raw_output_contents[i].data ? bytes : 0;
}

/* The i-th output's values, borrowed from the query. */
static void put_values(const query *q, size_t i, Inference__ModelInferResponse *m, output_tensor *t)
{
    float *values = q->values[q->outputs[i].what];
    const size_t n = q->n * tk__oip_output_width(q->head, q->outputs[i].what);
    if (q->raw) {
        m->raw_output_contents[i] =
            (ProtobufCBinaryData){.data = (uint8_t *)values, .len = n * sizeof *values};
    } else {
        t->contents->n_fp32_contents = n;
        t->contents->fp32_contents = values;
    }
}

/* "value:index:label" of the k best of each image. */
static void put_classes(tk__region *region, const query *q, const tk_infer *infer, size_t i,
                        Inference__ModelInferResponse *m, output_tensor *t)
{
    const size_t k = q->outputs[i].k, n = q->n * k;
    const float *logits = q->outputs[i].what == TK_OIP_LOGITS ? q->values[TK_OIP_LOGITS] : NULL;
    ProtobufCBinaryData *list = tk__alloc(region, n, sizeof *list);
    if (!list) return;
    size_t bytes = 0;
    for (size_t e = 0; e < n; e++) {
        const tk_top *top = &infer->images[e / k].top[e % k];
        const double value =
            (double)(logits ? logits[e / k * q->head->classes + top->label] : top->score);
        char *text =
            tk__print(region, "%f:%" PRIu32 ":%s", value, top->label, q->head->labels[top->label]);
        list[e] = (ProtobufCBinaryData){.data = (uint8_t *)text, .len = strlen(text)};
        bytes += sizeof(uint32_t) + list[e].len;
    }
    if (!q->raw) {
        t->contents->n_bytes_contents = n;
        t->contents->bytes_contents = list;
        return;
    }
    put_raw(region, m, i, bytes);
    uint8_t *at = m->raw_output_contents[i].data;
    for (size_t e = 0; at && e < n; e++) {
        const uint32_t len = (uint32_t)list[e].len;
        memcpy(at, &len, sizeof len);
        memcpy(at + sizeof len, list[e].data, len);
        at += sizeof len + len;
    }
}

static output_tensor *put_output(tk__region *region, const query *q, const tk_infer *infer,
                                 size_t i, Inference__ModelInferResponse *m)
{
    output_tensor *t =
        tk__new(region, &inference__model_infer_response__infer_output_tensor__descriptor);
    if (!t) return NULL;
    const size_t k = q->outputs[i].k;
    t->name = tk__print(region, "%s", tk__oip_output_names[q->outputs[i].what]);
    t->datatype = tk__print(region, "%s", k > 0 ? "BYTES" : "FP32");
    t->shape = tk__alloc(region, 2, sizeof *t->shape);
    if (!q->raw) t->contents = tk__new(region, &inference__infer_tensor_contents__descriptor);
    if (!t->shape || (!q->raw && !t->contents)) return NULL;
    t->n_shape = 2;
    t->shape[0] = (int64_t)q->n;
    t->shape[1] = (int64_t)(k > 0 ? k : tk__oip_output_width(q->head, q->outputs[i].what));
    if (k > 0)
        put_classes(region, q, infer, i, m, t);
    else
        put_values(q, i, m, t);
    return t;
}

/* Names and id; `version` 0 is none. */
static Inference__ModelInferResponse *put_response(tk__region *region, const request *in,
                                                   uint64_t version)
{
    Inference__ModelInferResponse *m =
        tk__new(region, &inference__model_infer_response__descriptor);
    if (!m) return NULL;
    m->model_name = in->model_name;
    m->id = in->id;
    m->model_version = version ? tk__print(region, "%" PRIu64, version) : in->model_version;
    return m;
}

static Inference__ModelInferResponse *put_answer(tk__region *region, const query *q,
                                                 const tk_infer *infer)
{
    Inference__ModelInferResponse *m = put_response(region, q->in, q->version);
    if (!m) return NULL;
    m->outputs = tk__alloc(region, q->n_outputs, sizeof(output_tensor *));
    m->raw_output_contents = tk__alloc(region, q->n_outputs, sizeof *m->raw_output_contents);
    if (!m->outputs || !m->raw_output_contents) return NULL;
    for (size_t i = 0; i < q->n_outputs; i++) {
        m->outputs[i] = put_output(region, q, infer, i, m);
        m->n_outputs++;
    }
    if (q->raw) m->n_raw_output_contents = q->n_outputs;
    return m;
}

/* Packs and sends one message of a stream, and asks for the next request. */
static void send_answer(tk_rpc_call *call, tk__region *region, Inference__ModelInferResponse *m,
                        const char *error)
{
    Inference__ModelStreamInferResponse *out =
        tk__new(region, &inference__model_stream_infer_response__descriptor);
    if (out && m && !region->failed) {
        out->error_message = error ? tk__print(region, "%s", error) : out->error_message;
        out->infer_response = m;
        tk_rpc_send(call, &out->base); /* there is room: see tk_rpc_next */
        tk__region_fini(region);
        tk_rpc_next(call);
    } else {
        tk_rpc_fail(call, TK_NOMEM, "no memory for the answer");
        tk__region_fini(region);
    }
}

static void refuse(tk_rpc_call *call, bool stream, const request *in, tk_err err,
                   const tk_diag *diag)
{
    if (err == TK_BUSY || err == TK_INTERNAL || err == TK_IO)
        atomic_fetch_add_explicit(&tk__api(call)->failures, 1, memory_order_relaxed);
    if (!stream) {
        tk__fail(call, err, diag);
        return;
    }
    tk__region region = {NULL, false};
    Inference__ModelInferResponse *m = put_response(&region, in, 0);
    send_answer(call, &region, m, diag->text[0] ? diag->text : tk_err_text(err));
}

static void answer(const query *q, const tk_infer *infer)
{
    tk__region region = {NULL, false};
    Inference__ModelInferResponse *m = put_answer(&region, q, infer);
    if (m && !region.failed)
        atomic_fetch_add_explicit(&tk__api(q->call)->requests, 1, memory_order_relaxed);
    if (q->stream)
        send_answer(q->call, &region, m, NULL);
    else
        tk__reply(q->call, &region, m);
}

/* The first image that could not be read. */
static tk_err find_bad(const query *q, const tk_infer *infer, tk_diag *diag)
{
    for (size_t i = 0; i < q->n; i++)
        if (infer->images[i].error)
            return tk_fail(diag, TK_BADDATA, "inputs[0]: image %zu of %zu cannot be read: %s", i,
                           q->n, infer->images[i].error);
    return TK_OK;
}

static void done(tk_infer *infer, tk_err err, const char *reason)
{
    query *q = infer->user;
    tk_rpc_call *call = q->call;
    tk_diag diag = {{0}};
    err = err == TK_OK ? find_bad(q, infer, &diag) : tk_fail(&diag, err, "%s", reason);
    if (err == TK_OK)
        answer(q, infer);
    else
        refuse(call, q->stream, q->in, err, &diag);
    tk_infer_destroy(infer);
    destroy(q);
    tk_rpc_unref(call);
}

static bool cancelled(void *user)
{
    return tk_rpc_cancelled(((const query *)user)->call);
}

/* -- the question -- */

static tk_err submit(query *q, tk_snapshot *snapshot, tk_diag *diag)
{
    tk_err err = check_input(q, snapshot, diag);
    if (err == TK_OK) err = check_outputs(q, diag);
    if (err != TK_OK) return err;
    tk_infer *infer;
    err = tk_infer_create(&infer, snapshot, q->n, 1, &q->head, q->top_k);
    if (err != TK_OK) return tk_fail(diag, err, "no memory for %zu images", q->n);
    err = take_contents(q, infer, diag);
    if (err == TK_OK) err = make_values(q, infer, diag);
    if (err == TK_OK) {
        infer->deadline_ns = tk_rpc_deadline_ns(q->call);
        infer->user = q;
        infer->cancelled = cancelled;
        infer->done = done;
        tk_rpc_call *call = q->call; /* `q` may be gone when the submit comes back */
        tk_rpc_ref(call);
        err = tk_batcher_submit(tk__api(call)->o.batcher, infer, diag);
        if (err != TK_OK) tk_rpc_unref(call);
    }
    if (err != TK_OK) tk_infer_destroy(infer);
    return err;
}

static void infer_request(tk_rpc_call *call, const request *in, bool stream)
{
    tk_diag diag = {{0}};
    tk_snapshot *snapshot;
    const tk_head *head;
    tk_err err = tk__oip_find(call, in->model_name, in->model_version, &snapshot, &head, &diag);
    query *q = NULL;
    if (err == TK_OK) {
        q = tk_calloc(1, sizeof *q);
        err = q ? TK_OK : tk_fail(&diag, TK_NOMEM, "no memory for the request");
    }
    if (err == TK_OK) {
        q->call = call;
        q->stream = stream;
        q->in = in;
        q->head = head;
        q->version = tk_snapshot_number(snapshot);
        err = submit(q, snapshot, &diag);
    }
    tk_snapshot_unref(snapshot);
    if (err == TK_OK) return;
    destroy(q);
    refuse(call, stream, in, err, &diag);
}

void tk__oip_model_infer(tk_rpc_call *call, const ProtobufCMessage *message)
{
    infer_request(call, (const request *)message, false);
}

void tk__oip_model_stream_infer(tk_rpc_call *call, const ProtobufCMessage *message)
{
    infer_request(call, (const request *)message, true);
}
