/* The Open Inference Protocol over the wire: the real trunkd, with a model of two tenants. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/mem.h"
#include "inference/open_inference_grpc.pb-c.h"
#include "serving/batcher.h"
#include "trunkd_process.h"

enum { IMAGES = 3, PX = 32, FEATURES = 64 };

static trunkd server;
static fixture_bytes good[IMAGES];
static tk_image pixels[IMAGES]; /* of good[] */
static float planes[IMAGES][3 * PX * PX];

#define OIP(name)    &inference__##name##__descriptor
#define METHOD(name) "/inference.GRPCInferenceService/" name

static void assert_status(const tk_client_status *status, int code, const char *words)
{
    if (status->code != code || !strstr(status->text, words)) {
        fail_msg("expected %s with \"%s\", got %s: %s", tk_client_code_text(code), words,
                 tk_client_code_text(status->code), status->text);
    }
}

static void *assert_answered(tk_client *client, const char *path, const void *in,
                             const ProtobufCMessageDescriptor *type)
{
    const answer a = ask(client, path, in, type);
    if (!a.message) fail_msg("%s: %s: %s", path, tk_client_code_text(a.status.code), a.status.text);
    return a.message;
}

static void assert_refused(tk_client *client, const char *path, const void *in,
                           const ProtobufCMessageDescriptor *type, int code, const char *words)
{
    const answer a = ask(client, path, in, type);
    if (a.message) fail_msg("%s was answered, expected \"%s\"", path, words);
    assert_status(&a.status, code, words);
}

/* -- what it should say -- */

typedef struct expected {
    tk_top top[FIXTURE_TYPES];
    float probabilities[FIXTURE_TYPES], logits[FIXTURE_TYPES], features[FEATURES];
} expected;

/* What serving/ itself answers in this process: alice's head of version 2. */
static void compute(const uint8_t *canvas, const float *rendered, expected *out)
{
    tk_snapshot *s;
    assert_int_equal(tk_snapshot_create(&s, fixture_model(2), 1, 1, 1, NULL), TK_OK);
    const tk_head *head = tk_snapshot_find(s, "alice", "type");
    const size_t k = FIXTURE_TYPES;
    const tk_pass pass = {.canvas = canvas,
                          .rendered = rendered,
                          .n_heads = 1,
                          .heads = &head,
                          .k = &k,
                          .top = out->top,
                          .logits = out->logits,
                          .probabilities = out->probabilities,
                          .features = out->features};
    tk_snapshot_run(s, 1, &pass);
    tk_snapshot_unref(s);
}

/* Each image as a canvas, and how the trunk reads it, in planes. */
static void prepare(expected want[IMAGES])
{
    const tk_preproc p = tk_preproc_default(PX);
    const tk_view view = tk_view_centre(&p, PX);
    for (size_t i = 0; i < IMAGES; i++) {
        static uint8_t canvas[PX * PX * 3];
        static float rendered[PX * PX * 3];
        assert_int_equal(
            tk_image_decode(&pixels[i], good[i].data, good[i].size, NULL, p.resize, NULL), TK_OK);
        assert_int_equal(tk_preproc_canvas(&p, &pixels[i], PX, canvas, NULL), TK_OK);
        tk_view_render(&p, canvas, PX, &view, rendered);
        for (size_t c = 0; c < 3; c++)
            for (size_t k = 0; k < PX * PX; k++)
                planes[i][c * PX * PX + k] = rendered[k * 3 + c];
        compute(canvas, NULL, &want[i]);
        expected again; /* the other way in */
        compute(NULL, rendered, &again);
        assert_memory_equal(again.logits, want[i].logits, sizeof again.logits);
    }
}

static expected wanted[IMAGES];

/* -- requests -- */

typedef Inference__ModelInferRequest infer_request;
typedef Inference__ModelInferRequest__InferInputTensor input_tensor;
typedef Inference__ModelInferRequest__InferRequestedOutputTensor wanted_tensor;

/* A request on the heap of the test: everything it points to lies within. */
typedef struct question {
    infer_request in;
    char model[64], version[32], id[32];
    input_tensor input, *inputs[2];
    char name[64], datatype[32];
    int64_t shape[8];
    Inference__InferTensorContents contents;
    ProtobufCBinaryData raw[2], files[IMAGES];
    uint32_t *numbers;
    uint8_t *bytes; /* of raw contents, or NULL */
    wanted_tensor outputs[4], *output_list[4];
    char output_names[4][64];
    Inference__ModelInferRequest__InferRequestedOutputTensor__ParametersEntry entries[4],
        *entry_list[4];
    Inference__InferParameter parameters[4];
    char key[32];
} question;

static void ask_about(question *q, const char *datatype, size_t n_shape, const int64_t *shape)
{
    memset(q, 0, sizeof *q);
    inference__model_infer_request__init(&q->in);
    inference__model_infer_request__infer_input_tensor__init(&q->input);
    inference__infer_tensor_contents__init(&q->contents);
    strcpy(q->model, "type");
    strcpy(q->id, "request-7");
    strcpy(q->name, "image");
    snprintf(q->datatype, sizeof q->datatype, "%s", datatype);
    memcpy(q->shape, shape, n_shape * sizeof *shape);
    q->in.model_name = q->model;
    q->in.model_version = q->version;
    q->in.id = q->id;
    q->in.inputs = q->inputs;
    q->in.n_inputs = 1;
    q->inputs[0] = q->inputs[1] = &q->input;
    q->input.name = q->name;
    q->input.datatype = q->datatype;
    q->input.n_shape = n_shape;
    q->input.shape = q->shape;
    q->in.outputs = q->output_list;
}

static void finish_question(question *q)
{
    free(q->bytes);
    free(q->numbers);
}

static void put_raw(question *q, const void *data, size_t size)
{
    q->bytes = malloc(size + 1);
    assert_non_null(q->bytes);
    if (size > 0) memcpy(q->bytes, data, size);
    q->raw[0] = (ProtobufCBinaryData){.data = q->bytes, .len = size};
    q->in.raw_input_contents = q->raw;
    q->in.n_raw_input_contents = 1;
}

static void want(question *q, const char *name, int64_t classification)
{
    const size_t i = q->in.n_outputs++;
    wanted_tensor *t = q->output_list[i] = &q->outputs[i];
    inference__model_infer_request__infer_requested_output_tensor__init(t);
    snprintf(q->output_names[i], sizeof q->output_names[i], "%s", name);
    t->name = q->output_names[i];
    if (classification == 0) return;
    inference__model_infer_request__infer_requested_output_tensor__parameters_entry__init(
        &q->entries[i]);
    inference__infer_parameter__init(&q->parameters[i]);
    strcpy(q->key, "classification");
    q->parameters[i].parameter_choice_case =
        INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_INT64_PARAM;
    q->parameters[i].int64_param = classification;
    q->entries[i].key = q->key;
    q->entries[i].value = &q->parameters[i];
    q->entry_list[i] = &q->entries[i];
    t->n_parameters = 1;
    t->parameters = &q->entry_list[i];
}

static void files_typed(question *q)
{
    ask_about(q, "BYTES", 1, (int64_t[]){IMAGES});
    for (size_t i = 0; i < IMAGES; i++)
        q->files[i] = (ProtobufCBinaryData){.data = good[i].data, .len = good[i].size};
    q->contents.bytes_contents = q->files;
    q->contents.n_bytes_contents = IMAGES;
    q->input.contents = &q->contents;
}

static void files_raw(question *q)
{
    static uint8_t buffer[1 << 20];
    size_t at = 0;
    ask_about(q, "BYTES", 2, (int64_t[]){IMAGES, 1});
    for (size_t i = 0; i < IMAGES; i++) {
        const uint32_t len = (uint32_t)good[i].size;
        for (unsigned b = 0; b < 4; b++)
            buffer[at++] = (uint8_t)(len >> (8 * b));
        memcpy(buffer + at, good[i].data, len);
        at += len;
    }
    put_raw(q, buffer, at);
}

/* One image, since all of a tensor have one size. */
static size_t pixels_of(question *q, size_t i)
{
    ask_about(q, "UINT8", 4, (int64_t[]){1, pixels[i].h, pixels[i].w, 3});
    return (size_t)pixels[i].h * pixels[i].w * 3;
}

static void pixels_raw(question *q, size_t i)
{
    const size_t n = pixels_of(q, i);
    put_raw(q, pixels[i].rgb, n);
}

static void pixels_typed(question *q, size_t i)
{
    const size_t n = pixels_of(q, i);
    q->numbers = calloc(n, sizeof *q->numbers);
    assert_non_null(q->numbers);
    for (size_t k = 0; k < n; k++)
        q->numbers[k] = pixels[i].rgb[k];
    q->contents.uint_contents = q->numbers;
    q->contents.n_uint_contents = n;
    q->input.contents = &q->contents;
}

static void planes_raw(question *q)
{
    ask_about(q, "FP32", 4, (int64_t[]){IMAGES, 3, PX, PX});
    put_raw(q, planes, sizeof planes);
}

static void planes_typed(question *q)
{
    ask_about(q, "FP32", 4, (int64_t[]){IMAGES, 3, PX, PX});
    q->contents.fp32_contents = planes[0];
    q->contents.n_fp32_contents = sizeof planes / sizeof(float);
    q->input.contents = &q->contents;
}

static Inference__ModelInferResponse *infer(question *q)
{
    return assert_answered(server.alice, METHOD("ModelInfer"), &q->in, OIP(model_infer_response));
}

static void refused(question *q, int code, const char *words)
{
    assert_refused(server.alice, METHOD("ModelInfer"), &q->in, OIP(model_infer_response), code,
                   words);
    finish_question(q);
}

#define BAD TK_CLIENT_INVALID_ARGUMENT

/* -- answers -- */

/* The i-th output is FP32 [n][width], to the bit. */
static void assert_floats(const Inference__ModelInferResponse *out, size_t i, const char *name,
                          size_t n, size_t width, bool raw, const float *values)
{
    const Inference__ModelInferResponse__InferOutputTensor *t = out->outputs[i];
    assert_string_equal(t->name, name);
    assert_string_equal(t->datatype, "FP32");
    assert_int_equal(t->n_shape, 2);
    assert_int_equal(t->shape[0], n);
    assert_int_equal(t->shape[1], width);
    if (raw) {
        assert_null(t->contents);
        assert_int_equal(out->raw_output_contents[i].len, n * width * sizeof(float));
        assert_memory_equal(out->raw_output_contents[i].data, values, n * width * sizeof(float));
    } else {
        assert_int_equal(out->n_raw_output_contents, 0);
        assert_int_equal(t->contents->n_fp32_contents, n * width);
        assert_memory_equal(t->contents->fp32_contents, values, n * width * sizeof(float));
    }
}

/* All three outputs of images first, first + 1, ... */
static void assert_all(const Inference__ModelInferResponse *out, size_t first, size_t n, bool raw)
{
    float p[IMAGES * FIXTURE_TYPES], l[IMAGES * FIXTURE_TYPES], f[IMAGES * FEATURES];
    for (size_t i = 0; i < n; i++) {
        memcpy(p + i * FIXTURE_TYPES, wanted[first + i].probabilities,
               sizeof wanted->probabilities);
        memcpy(l + i * FIXTURE_TYPES, wanted[first + i].logits, sizeof wanted->logits);
        memcpy(f + i * FEATURES, wanted[first + i].features, sizeof wanted->features);
    }
    assert_string_equal(out->model_name, "type");
    assert_string_equal(out->model_version, "2");
    assert_string_equal(out->id, "request-7");
    assert_int_equal(out->n_outputs, 3);
    if (raw) assert_int_equal(out->n_raw_output_contents, 3);
    assert_floats(out, 0, "probabilities", n, FIXTURE_TYPES, raw, p);
    assert_floats(out, 1, "logits", n, FIXTURE_TYPES, raw, l);
    assert_floats(out, 2, "features", n, FEATURES, raw, f);
}

static void assert_answers(question *q, size_t first, size_t n, bool raw)
{
    Inference__ModelInferResponse *out = infer(q);
    assert_all(out, first, n, raw);
    tk_client_free_message(&out->base);
    finish_question(q);
}

static void every_form_of_the_images_gets_the_same_answer_to_the_bit(void **state)
{
    (void)state;
    question q;
    files_typed(&q);
    assert_answers(&q, 0, IMAGES, false);
    files_raw(&q);
    assert_answers(&q, 0, IMAGES, true);
    for (size_t i = 0; i < IMAGES; i++) {
        pixels_raw(&q, i);
        assert_answers(&q, i, 1, true);
        pixels_typed(&q, i);
        assert_answers(&q, i, 1, false);
    }
    planes_raw(&q);
    assert_answers(&q, 0, IMAGES, true);
    planes_typed(&q);
    assert_answers(&q, 0, IMAGES, false);
    files_raw(&q);
    strcpy(q.version, "2");
    assert_answers(&q, 0, IMAGES, true);
}

static void outputs_come_as_asked_for(void **state)
{
    (void)state;
    question q;
    pixels_raw(&q, 1);
    want(&q, "features", 0);
    want(&q, "probabilities", 0);
    Inference__ModelInferResponse *out = infer(&q);
    assert_int_equal(out->n_outputs, 2);
    assert_floats(out, 0, "features", 1, FEATURES, true, wanted[1].features);
    assert_floats(out, 1, "probabilities", 1, FIXTURE_TYPES, true, wanted[1].probabilities);
    tk_client_free_message(&out->base);
    finish_question(&q);
}

/* "value:index:label" of the k-th best. */
static void class_text(char *text, size_t size, size_t i, size_t k, bool logit)
{
    const tk_top *top = &wanted[i].top[k];
    const double value = (double)(logit ? wanted[i].logits[top->label] : top->score);
    snprintf(text, size, "%f:%u:type-%u", value, top->label, top->label);
}

static void classification_gives_the_best_classes_with_their_labels(void **state)
{
    (void)state;
    question q;
    char text[64];
    files_typed(&q);
    want(&q, "probabilities", 2);
    want(&q, "logits", 99); /* more than there are: all */
    Inference__ModelInferResponse *out = infer(&q);
    for (size_t o = 0; o < 2; o++) {
        const Inference__ModelInferResponse__InferOutputTensor *t = out->outputs[o];
        const size_t k = o == 0 ? 2 : FIXTURE_TYPES;
        assert_string_equal(t->datatype, "BYTES");
        assert_int_equal(t->shape[0], IMAGES);
        assert_int_equal(t->shape[1], k);
        assert_int_equal(t->contents->n_bytes_contents, IMAGES * k);
        for (size_t i = 0; i < IMAGES * k; i++) {
            class_text(text, sizeof text, i / k, i % k, o == 1);
            assert_int_equal(t->contents->bytes_contents[i].len, strlen(text));
            assert_memory_equal(t->contents->bytes_contents[i].data, text, strlen(text));
        }
    }
    tk_client_free_message(&out->base);
    finish_question(&q);

    files_raw(&q);
    want(&q, "probabilities", 1);
    out = infer(&q);
    assert_int_equal(out->n_raw_output_contents, 1);
    const ProtobufCBinaryData *raw = &out->raw_output_contents[0];
    size_t at = 0;
    for (size_t i = 0; i < IMAGES; i++) {
        class_text(text, sizeof text, i, 0, false);
        assert_in_range(at + 4, 4, raw->len);
        const uint8_t *len = raw->data + at;
        assert_int_equal(len[0] | len[1] << 8 | len[2] << 16 | len[3] << 24, strlen(text));
        assert_memory_equal(raw->data + at + 4, text, strlen(text));
        at += 4 + strlen(text);
    }
    assert_int_equal(at, raw->len);
    tk_client_free_message(&out->base);
    finish_question(&q);
}

/* -- refusals -- */

static void other_tenants_models_and_unknown_versions_are_not_found(void **state)
{
    (void)state;
    question q;
    static const char *const names[] = {"colour",     "nothing", "bob/colour",
                                        "alice/type", "",        "type/"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        files_typed(&q);
        strcpy(q.model, names[i]);
        char words[64];
        snprintf(words, sizeof words, "you have no model \"%s\"", names[i]);
        refused(&q, TK_CLIENT_NOT_FOUND, words);
    }
    static const char *const unknown[] = {"3", "999999999999999999", "stable", "two"};
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        files_typed(&q);
        strcpy(q.version, unknown[i]);
        char words[64];
        snprintf(words, sizeof words, "you have no model \"type\" in version \"%s\"", unknown[i]);
        refused(&q, TK_CLIENT_NOT_FOUND, words);
    }
    static const char *const versions[] = {"0",  "Two", "-1",
                                           "2 ", "2.0", "99999999999999999999999"};
    for (size_t i = 0; i < sizeof versions / sizeof *versions; i++) {
        files_typed(&q);
        strcpy(q.version, versions[i]);
        refused(&q, BAD, versions[i]);
    }
    files_typed(&q);
    assert_refused(server.nobody, METHOD("ModelInfer"), &q.in, OIP(model_infer_response),
                   TK_CLIENT_UNAUTHENTICATED, "no token");
    assert_refused(server.admin, METHOD("ModelInfer"), &q.in, OIP(model_infer_response),
                   TK_CLIENT_PERMISSION_DENIED, "is for tenants");
}

/* A request with this shape and a few raw bytes. */
static void refused_shape(const char *datatype, size_t n, const int64_t *shape, const char *words)
{
    question q;
    ask_about(&q, datatype, n, shape);
    put_raw(&q, "abcdefgh", 8);
    refused(&q, BAD, words);
}

static void shapes_and_datatypes_are_checked(void **state)
{
    (void)state;
    const int64_t huge = INT64_C(1) << 62;
#define SHAPE(...) sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t), (int64_t[]){__VA_ARGS__}
    refused_shape("BYTES", 0, (int64_t[]){0}, "inputs[0].shape is empty");
    refused_shape("BYTES", SHAPE(0), "inputs[0].shape[0] is 0, the limits are 1 and 256");
    refused_shape("BYTES", SHAPE(-1), "inputs[0].shape[0] is -1");
    refused_shape("BYTES", SHAPE(257), "inputs[0].shape[0] is 257, the limits are 1 and 256");
    refused_shape("BYTES", SHAPE(1, 2), "inputs[0].shape[1] is 2, it must be 1");
    refused_shape("BYTES", SHAPE(1, 1, 1), "inputs[0].shape has 3 dimensions");
    refused_shape("UINT8", SHAPE(huge, huge, huge, 3), "inputs[0].shape[0] is 4611686018427387904");
    refused_shape("UINT8", SHAPE(1, huge, huge, 3), "inputs[0].shape[1] is 4611686018427387904");
    refused_shape("UINT8", SHAPE(1, 8, 0, 3), "inputs[0].shape[2] is 0");
    refused_shape("UINT8", SHAPE(1, 16384, 16384, 3), "bytes of one image, the limit is 33554432");
    refused_shape("UINT8", SHAPE(1, 3, 8, 8), "inputs[0].shape[3] is 8, it must be 3");
    refused_shape("UINT8", SHAPE(8, 8, 3), "[n, height, width, 3]");
    refused_shape("FP32", SHAPE(1, 3, 64, 64), "inputs[0].shape[2] is 64, it must be 32");
    refused_shape("FP32", SHAPE(1, 32, 32, 3), "inputs[0].shape[1] is 32, it must be 3");
    refused_shape("FP32", SHAPE(1), "[n, 3, 32, 32]");
    refused_shape("FP16", SHAPE(1, 3, 32, 32), "inputs[0].datatype is \"FP16\"");
    refused_shape("", SHAPE(1), "inputs[0].datatype is \"\"");
}

static void raw_contents_of_a_wrong_size_are_named(void **state)
{
    (void)state;
    question q;
    refused_shape("UINT8", SHAPE(1, 2, 2, 3),
                  "raw_input_contents[0] has 8 bytes, the shape asks for 12");
    refused_shape("FP32", SHAPE(1, 3, 32, 32), "has 8 bytes, the shape asks for 12288");
    refused_shape("BYTES", SHAPE(1), "element 0 says that it has 1684234849 bytes, but 4 follow");
    static const struct {
        size_t n, size;
        const char *bytes, *words;
    } cases[] = {
        {1, 3, "\1\0\0", "ends at byte 3, where the length of element 0 of 1 should be"},
        {2, 5, "\1\0\0\0x", "ends at byte 5, where the length of element 1 of 2 should be"},
        {1, 7, "\1\0\0\0xyz", "has 2 bytes after its 1 elements"},
        {1, 8, "\xff\xff\xff\xffwxyz", "says that it has 4294967295 bytes"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ask_about(&q, "BYTES", 1, (int64_t[]){(int64_t)cases[i].n});
        put_raw(&q, cases[i].bytes, cases[i].size);
        refused(&q, BAD, cases[i].words);
    }
    files_raw(&q);
    q.raw[1] = q.raw[0];
    q.in.n_raw_input_contents = 2;
    refused(&q, BAD, "raw_input_contents has 2 entries, inputs has 1");
    files_raw(&q);
    q.files[0] = (ProtobufCBinaryData){.data = good[0].data, .len = good[0].size};
    q.contents.bytes_contents = q.files;
    q.contents.n_bytes_contents = 1;
    q.input.contents = &q.contents;
    refused(&q, BAD, "inputs[0].contents must be empty when raw_input_contents is used");
}

static void typed_contents_must_fit_datatype_and_shape(void **state)
{
    (void)state;
    question q;
    files_typed(&q);
    q.input.contents = NULL;
    refused(&q, BAD, "inputs[0] has no contents");
    files_typed(&q);
    q.contents.n_bytes_contents = 2;
    refused(&q, BAD, "bytes_contents has 2 elements, the shape asks for 3");
    planes_typed(&q);
    q.contents.n_fp32_contents--;
    refused(&q, BAD, "fp32_contents has 9215 elements, the shape asks for 9216");
    planes_typed(&q);
    strcpy(q.datatype, "BYTES");
    q.input.n_shape = 1;
    refused(&q, BAD, "inputs[0].contents has fp32_contents: BYTES goes into bytes_contents");
    pixels_typed(&q, 0);
    q.numbers[5] = 256;
    refused(&q, BAD, "uint_contents[5] is 256, the limit of UINT8 is 255");
}

static void inputs_and_outputs_are_known_by_name(void **state)
{
    (void)state;
    question q;
    files_typed(&q);
    q.in.n_inputs = 0;
    refused(&q, BAD, "inputs has 0 tensors: the model takes one");
    files_typed(&q);
    q.in.n_inputs = 2;
    refused(&q, BAD, "inputs has 2 tensors");
    files_typed(&q);
    strcpy(q.name, "data");
    refused(&q, BAD, "inputs[0].name is \"data\"");
    files_typed(&q);
    want(&q, "softmax", 0);
    refused(&q, BAD, "outputs[0].name is \"softmax\"");
    files_typed(&q);
    want(&q, "logits", 0);
    want(&q, "logits", 3);
    refused(&q, BAD, "outputs[1] asks for logits, as outputs[0] does");
    files_typed(&q);
    for (size_t i = 0; i < 4; i++)
        want(&q, "logits", 0);
    refused(&q, BAD, "outputs has 4 entries, the limit is 3");
    files_typed(&q);
    want(&q, "logits", -5);
    refused(&q, BAD, "classification is -5, it must be at least 1");
    files_typed(&q);
    want(&q, "features", 1);
    refused(&q, BAD, "features have no classes");
    files_typed(&q);
    want(&q, "logits", 1);
    q.parameters[0].parameter_choice_case = INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_BOOL_PARAM;
    q.parameters[0].bool_param = true;
    refused(&q, BAD, "classification is no int64_param");
    files_typed(&q);
    want(&q, "logits", 1);
    strcpy(q.key, "shared_memory_region");
    refused(&q, BAD, "there is no shared memory");
    files_typed(&q);
    want(&q, "logits", 1);
    q.entries[0].value = NULL;
    refused(&q, BAD, "classification is no int64_param");
}

static void images_that_cannot_be_read_are_named(void **state)
{
    (void)state;
    question q;
    files_typed(&q);
    q.files[1].len /= 2;
    refused(&q, BAD, "inputs[0]: image 1 of 3 cannot be read");
    files_typed(&q);
    q.files[2].len = 0;
    refused(&q, BAD, "inputs[0]: image 2 of 3 cannot be read");
    fixture_bytes bomb = fixture_png_bomb(100000, 100000);
    files_typed(&q);
    q.files[0] = (ProtobufCBinaryData){.data = bomb.data, .len = bomb.size};
    refused(&q, BAD, "inputs[0]: image 0 of 3 cannot be read");
    free(bomb.data);
    static const float bad[] = {1001, -1001, 1.0F / 0.0F, -1.0F / 0.0F, 0.0F / 0.0F, 3e38F};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        planes_raw(&q);
        memcpy(q.bytes + sizeof planes[0] + 7 * sizeof(float), &bad[i], sizeof(float));
        refused(&q, BAD, "inputs[0]: image 1 of 3 cannot be read: value 7 is ");
    }
}

/* -- models -- */

static void models_are_described(void **state)
{
    (void)state;
    char name[] = "type", version[] = "2";
    Inference__ModelMetadataRequest ask_metadata;
    inference__model_metadata_request__init(&ask_metadata);
    ask_metadata.name = name;
    ask_metadata.version = version;
    Inference__ModelMetadataResponse *m = assert_answered(
        server.alice, METHOD("ModelMetadata"), &ask_metadata, OIP(model_metadata_response));
    assert_string_equal(m->name, "type");
    assert_string_equal(m->platform, "trunkd_resnet20");
    assert_int_equal(m->n_versions, 1);
    assert_string_equal(m->versions[0], "2");
    assert_int_equal(m->n_inputs, 1);
    assert_string_equal(m->inputs[0]->name, "image");
    assert_string_equal(m->inputs[0]->datatype, "BYTES");
    assert_int_equal(m->inputs[0]->n_shape, 1);
    assert_int_equal(m->inputs[0]->shape[0], -1);
    assert_int_equal(m->n_outputs, 3);
    assert_string_equal(m->outputs[2]->name, "features");
    assert_int_equal(m->outputs[2]->shape[0], -1);
    assert_int_equal(m->outputs[2]->shape[1], FEATURES);
    assert_int_equal(m->outputs[1]->shape[1], FIXTURE_TYPES);
    tk_client_free_message(&m->base);
    assert_refused(server.bob, METHOD("ModelMetadata"), &ask_metadata, OIP(model_metadata_response),
                   TK_CLIENT_NOT_FOUND, "you have no model \"type\"");
    char whole[] = "bob/colour"; /* as an admin sees it */
    ask_metadata.name = whole;
    m = assert_answered(server.admin, METHOD("ModelMetadata"), &ask_metadata,
                        OIP(model_metadata_response));
    assert_string_equal(m->name, "bob/colour");
    assert_int_equal(m->outputs[0]->shape[1], FIXTURE_COLOURS);
    tk_client_free_message(&m->base);

    Inference__ModelConfigRequest ask_config;
    inference__model_config_request__init(&ask_config);
    ask_config.name = name;
    Inference__ModelConfigResponse *c = assert_answered(server.alice, METHOD("ModelConfig"),
                                                        &ask_config, OIP(model_config_response));
    assert_string_equal(c->config->name, "type");
    assert_string_equal(c->config->backend, "trunkd");
    assert_int_equal(c->config->max_batch_size, 0);
    assert_int_equal(c->config->input[0]->data_type, INFERENCE__DATA_TYPE__TYPE_STRING);
    assert_int_equal(c->config->output[1]->dims[1], FIXTURE_TYPES);
    assert_int_equal(c->config->n_parameters, 7);
    assert_string_equal(c->config->parameters[1]->key, "px");
    assert_string_equal(c->config->parameters[1]->value->string_value, "32");
    tk_client_free_message(&c->base);
    assert_refused(server.bob, METHOD("ModelConfig"), &ask_config, OIP(model_config_response),
                   TK_CLIENT_NOT_FOUND, "you have no model \"type\"");
}

static void expect_ready(tk_client *client, const char *name, const char *version, bool ready)
{
    char copy[64], number[32];
    snprintf(copy, sizeof copy, "%s", name);
    snprintf(number, sizeof number, "%s", version);
    Inference__ModelReadyRequest in;
    inference__model_ready_request__init(&in);
    in.name = copy;
    in.version = number;
    Inference__ModelReadyResponse *out =
        assert_answered(client, METHOD("ModelReady"), &in, OIP(model_ready_response));
    assert_int_equal(out->ready, ready);
    tk_client_free_message(&out->base);
}

static void readiness_leaks_nothing(void **state)
{
    (void)state;
    expect_ready(server.alice, "type", "", true);
    expect_ready(server.alice, "type", "2", true);
    expect_ready(server.alice, "type", "1", true);
    expect_ready(server.alice, "type", "latest", true);
    expect_ready(server.alice, "type", "3", false);
    expect_ready(server.alice, "colour", "1", false);
    expect_ready(server.alice, "colour", "", false);
    expect_ready(server.alice, "bob/colour", "", false);
    expect_ready(server.alice, "nothing", "", false);
    expect_ready(server.bob, "colour", "", true);
    expect_ready(server.admin, "bob/colour", "", true);
    expect_ready(server.admin, "colour", "", false);
    expect_ready(server.admin, "/", "", false);
}

/* The index is `want`: lines of name, version and state. */
static void expect_index(tk_client *client, bool ready, const char *want)
{
    char have[600] = "";
    size_t n = 0;
    Inference__RepositoryIndexRequest in;
    inference__repository_index_request__init(&in);
    in.ready = ready;
    Inference__RepositoryIndexResponse *out =
        assert_answered(client, METHOD("RepositoryIndex"), &in, OIP(repository_index_response));
    for (size_t i = 0; i < out->n_models && n < sizeof have; i++)
        n += (size_t)snprintf(have + n, sizeof have - n, "%s %s %s\n", out->models[i]->name,
                              out->models[i]->version, out->models[i]->state);
    assert_string_equal(have, want);
    tk_client_free_message(&out->base);
}

/* ModelMetadata's versions are `want`, a blank after each. */
static void expect_versions(tk_client *client, const char *name, const char *version,
                            const char *want)
{
    char model[64], asked[32], have[200] = "";
    size_t n = 0;
    Inference__ModelMetadataRequest in;
    inference__model_metadata_request__init(&in);
    snprintf(model, sizeof model, "%s", name);
    snprintf(asked, sizeof asked, "%s", version);
    in.name = model;
    in.version = asked;
    Inference__ModelMetadataResponse *out =
        assert_answered(client, METHOD("ModelMetadata"), &in, OIP(model_metadata_response));
    for (size_t i = 0; i < out->n_versions && n < sizeof have; i++)
        n += (size_t)snprintf(have + n, sizeof have - n, "%s ", out->versions[i]);
    assert_string_equal(have, want);
    tk_client_free_message(&out->base);
}

/* All that can be asked for, the caller's own, and which of it is in memory; what is deleted is
 * gone from both lists. */
static void every_version_that_can_be_asked_for_is_listed(void **state)
{
    (void)state;
    trunkd t;
    char name[] = "colour";
    trunkd_prepare(&t, 3);
    trunkd_start(&t, (const char *const[]){"--trainer", "/bin/false", NULL});
    expect_index(t.alice, false, "type 1 UNAVAILABLE\ntype 2 UNAVAILABLE\ntype 3 READY\n");
    expect_index(t.alice, true, "type 3 READY\n");
    expect_versions(t.alice, "type", "", "1 2 3 ");
    expect_versions(t.alice, "type", "latest", "3 ");
    expect_versions(t.alice, "type", "1", "1 "); /* and now it is in memory */
    expect_index(t.alice, true, "type 1 READY\ntype 3 READY\n");
    expect_versions(t.admin, "bob/colour", "", "1 2 3 ");
    expect_index(t.bob, false, "colour 1 READY\ncolour 2 UNAVAILABLE\ncolour 3 READY\n");
    expect_index(t.admin, false,
                 "alice/type 1 READY\nalice/type 2 UNAVAILABLE\nalice/type 3 READY\n"
                 "bob/colour 1 READY\nbob/colour 2 UNAVAILABLE\nbob/colour 3 READY\n");
    Trunkd__V1__DeleteHeadRequest head;
    trunkd__v1__delete_head_request__init(&head);
    head.name = name;
    tk_client_free_message(
        assert_answered(t.bob, "/trunkd.v1.Heads/Delete", &head, &trunkd__v1__empty__descriptor));
    expect_index(t.bob, false, "");
    expect_versions(t.alice, "type", "", "1 2 3 4 ");
    Inference__ModelMetadataRequest gone;
    inference__model_metadata_request__init(&gone);
    gone.name = name;
    assert_refused(t.bob, METHOD("ModelMetadata"), &gone, OIP(model_metadata_response),
                   TK_CLIENT_NOT_FOUND, "you have no model \"colour\"");
    assert_int_equal(trunkd_end(&t, SIGTERM), 0);
    trunkd_remove(&t);
}

static void the_index_knows_one_repository(void **state)
{
    (void)state;
    char name[] = "elsewhere";
    Inference__RepositoryIndexRequest in;
    inference__repository_index_request__init(&in);
    in.repository_name = name;
    assert_refused(server.alice, METHOD("RepositoryIndex"), &in, OIP(repository_index_response),
                   TK_CLIENT_NOT_FOUND, "there is no repository \"elsewhere\"");
}

static void the_server_describes_itself(void **state)
{
    (void)state;
    Inference__ServerLiveRequest in; /* all three are empty messages */
    inference__server_live_request__init(&in);
    Inference__ServerLiveResponse *live =
        assert_answered(server.nobody, METHOD("ServerLive"), &in, OIP(server_live_response));
    assert_true(live->live);
    tk_client_free_message(&live->base);
    Inference__ServerReadyResponse *ready =
        assert_answered(server.nobody, METHOD("ServerReady"), &in, OIP(server_ready_response));
    assert_true(ready->ready);
    tk_client_free_message(&ready->base);
    Inference__ServerMetadataResponse *m =
        assert_answered(server.alice, METHOD("ServerMetadata"), &in, OIP(server_metadata_response));
    assert_string_equal(m->name, "trunkd");
    assert_string_equal(m->version, TRUNKD_VERSION);
    assert_int_equal(m->n_extensions, 3);
    assert_string_equal(m->extensions[2], "statistics");
    tk_client_free_message(&m->base);
    assert_refused(server.nobody, METHOD("ServerMetadata"), &in, OIP(server_metadata_response),
                   TK_CLIENT_UNAUTHENTICATED, "no token");
}

/* -- streams -- */

static void a_stream_answers_each_request_and_outlives_errors(void **state)
{
    (void)state;
    tk_client_call *call = tk_client_start(server.alice, METHOD("ModelStreamInfer"),
                                           OIP(model_stream_infer_response), 60000);
    for (int round = 0; round < 3; round++) {
        question q;
        pixels_raw(&q, 2);
        assert_true(tk_client_send(call, &q.in.base));
        finish_question(&q);
        files_typed(&q);
        q.files[0].len = 10;
        assert_true(tk_client_send(call, &q.in.base));
        files_typed(&q);
        strcpy(q.model, "colour");
        assert_true(tk_client_send(call, &q.in.base));
        static const char *const errors[] = {"", "inputs[0]: image 0 of 3 cannot be read",
                                             "you have no model \"colour\""};
        for (size_t i = 0; i < 3; i++) {
            ProtobufCMessage *message = tk_client_receive(call);
            assert_non_null(message);
            const Inference__ModelStreamInferResponse *out =
                (const Inference__ModelStreamInferResponse *)message;
            assert_string_equal(out->infer_response->id, "request-7");
            if (i == 0) {
                assert_string_equal(out->error_message, "");
                assert_all(out->infer_response, 2, 1, true);
            } else {
                assert_non_null(strstr(out->error_message, errors[i]));
                assert_int_equal(out->infer_response->n_outputs, 0);
            }
            tk_client_free_message(message);
        }
    }
    tk_client_send_end(call);
    assert_null(tk_client_receive(call));
    tk_client_status status;
    assert_int_equal(tk_client_finish(call, &status), TK_CLIENT_OK);
}

/* Each request of a stream names its own version, as ModelInfer's do. */
static void a_streams_requests_name_their_versions(void **state)
{
    (void)state;
    static const struct {
        const char *version, *answered, *error;
    } cases[] = {{"2", "2", ""},
                 {"1", "1", ""},
                 {"latest", "2", ""},
                 {"9", "9", "you have no model \"type\" in version \"9\""},
                 {"0", "0", "the version is \"0\""},
                 {"", "2", ""}};
    tk_client_call *call = tk_client_start(server.alice, METHOD("ModelStreamInfer"),
                                           OIP(model_stream_infer_response), 60000);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        question q;
        pixels_raw(&q, 2);
        strcpy(q.version, cases[i].version);
        assert_true(tk_client_send(call, &q.in.base));
        finish_question(&q);
    }
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ProtobufCMessage *message = tk_client_receive(call);
        assert_non_null(message);
        const Inference__ModelStreamInferResponse *out =
            (const Inference__ModelStreamInferResponse *)message;
        assert_string_equal(out->infer_response->model_version, cases[i].answered);
        if (cases[i].error[0])
            assert_non_null(strstr(out->error_message, cases[i].error));
        else
            assert_string_equal(out->error_message, "");
        if (strcmp(cases[i].answered, "2") == 0)
            assert_all(out->infer_response, 2, 1, true);
        else if (!cases[i].error[0])
            assert_memory_not_equal(out->infer_response->raw_output_contents[1].data,
                                    wanted[2].logits, sizeof wanted->logits);
        tk_client_free_message(message);
    }
    tk_client_send_end(call);
    assert_null(tk_client_receive(call));
    tk_client_status status;
    assert_int_equal(tk_client_finish(call, &status), TK_CLIENT_OK);
}

static void a_malformed_request_ends_a_stream_after_the_answers(void **state)
{
    (void)state;
    tk_client_call *call = tk_client_start(server.alice, METHOD("ModelStreamInfer"),
                                           OIP(model_stream_infer_response), 60000);
    question q;
    pixels_raw(&q, 2);
    for (int i = 0; i < 3; i++)
        assert_true(tk_client_send(call, &q.in.base));
    assert_true(tk_client_send_bytes(call, "\x0a\x7f", 2));
    for (int i = 0; i < 3; i++) {
        ProtobufCMessage *message = tk_client_receive(call);
        assert_non_null(message);
        assert_all(((const Inference__ModelStreamInferResponse *)message)->infer_response, 2, 1,
                   true);
        tk_client_free_message(message);
    }
    finish_question(&q);
    assert_null(tk_client_receive(call));
    tk_client_status status;
    tk_client_finish(call, &status);
    assert_status(&status, BAD, "message 4: not a valid inference.ModelInferRequest");
}

static void a_cancelled_stream_leaves_nothing_behind(void **state)
{
    (void)state;
    for (int i = 0; i < 20; i++) {
        tk_client_call *call = tk_client_start(server.alice, METHOD("ModelStreamInfer"),
                                               OIP(model_stream_infer_response), 60000);
        question q;
        files_typed(&q);
        assert_true(tk_client_send(call, &q.in.base));
        if (i % 2) tk_client_free_message(tk_client_receive(call));
        tk_client_cancel(call);
        tk_client_status status;
        assert_int_equal(tk_client_finish(call, &status), TK_CLIENT_CANCELLED);
    }
    question q;
    files_typed(&q);
    assert_answers(&q, 0, IMAGES, false);
}

/* -- before anything was learned, and at the end -- */

/* -- statistics -- */

/* `name` "" asks for all. Fails unless there is one at version 2, which is returned first. */
static Inference__ModelStatisticsResponse *statistics_of(tk_client *client, const char *name,
                                                         const char *version)
{
    char model[64], number[32];
    snprintf(model, sizeof model, "%s", name);
    snprintf(number, sizeof number, "%s", version);
    Inference__ModelStatisticsRequest in;
    inference__model_statistics_request__init(&in);
    in.name = model;
    in.version = number;
    Inference__ModelStatisticsResponse *out =
        assert_answered(client, METHOD("ModelStatistics"), &in, OIP(model_statistics_response));
    assert_true(out->n_model_stats >= 1);
    assert_string_equal(out->model_stats[0]->version, "2");
    return out;
}

static void statistics_count_the_callers_requests_and_nobody_elses(void **state)
{
    (void)state;
    question q;
    Inference__ModelStatisticsResponse *before = statistics_of(server.alice, "type", "2"), *after;
    Inference__ModelStatisticsResponse *bobs = statistics_of(server.bob, "", "");
    assert_string_equal(bobs->model_stats[0]->name, "colour");
    for (int i = 0; i < 4; i++) {
        files_typed(&q);
        assert_answers(&q, 0, IMAGES, false);
    }
    files_typed(&q);
    q.files[1].len = 10;
    refused(&q, BAD, "image 1 of 3");
    after = statistics_of(server.alice, "", "latest");
    const Inference__ModelStatistics *a = before->model_stats[0], *b = after->model_stats[0];
    const Inference__InferStatistics *x = a->inference_stats, *y = b->inference_stats;
    assert_string_equal(b->name, "type");
    assert_int_equal(y->success->count - x->success->count, 4);
    assert_int_equal(y->fail->count - x->fail->count, 1);
    assert_int_equal(b->inference_count - a->inference_count, 4 * IMAGES);
    assert_int_equal(y->queue->count, y->success->count);
    assert_int_equal(y->compute_infer->count, y->success->count);
    assert_true(y->compute_infer->ns > x->compute_infer->ns);
    assert_true(y->compute_input->ns > x->compute_input->ns);
    /* The stages of a request lie within it. */
    assert_true(y->queue->ns + y->compute_input->ns + y->compute_infer->ns +
                    y->compute_output->ns <=
                y->success->ns);
    uint64_t passes = 0, images = 0;
    for (size_t i = 0; i < b->n_batch_stats; i++) {
        passes += b->batch_stats[i]->compute_infer->count;
        images += b->batch_stats[i]->compute_infer->count * b->batch_stats[i]->batch_size;
        if (i > 0) assert_true(b->batch_stats[i]->batch_size > b->batch_stats[i - 1]->batch_size);
    }
    assert_int_equal(passes, b->execution_count);
    /* Those of requests that failed for another image went through the trunk, too. */
    assert_true(images >= b->inference_count);
    assert_true(b->last_inference > UINT64_C(1600000000000));
    assert_true(b->memory_usage[0]->byte_size >= FIXTURE_TYPES * FEATURES * sizeof(float));
    Inference__ModelStatisticsResponse *bobs_after = statistics_of(server.bob, "colour", "2");
    assert_int_equal(bobs_after->model_stats[0]->execution_count,
                     bobs->model_stats[0]->execution_count);
    assert_int_equal(bobs_after->model_stats[0]->last_inference,
                     bobs->model_stats[0]->last_inference);
    tk_client_free_message(&before->base);
    tk_client_free_message(&after->base);
    tk_client_free_message(&bobs->base);
    tk_client_free_message(&bobs_after->base);
}

static void statistics_of_what_is_not_the_callers_are_not_found(void **state)
{
    (void)state;
    static const char *const cases[][3] = {{"colour", "", "you have no model \"colour\""},
                                           {"bob/colour", "2", "\"bob/colour\" in version \"2\""},
                                           {"nothing", "", "you have no model \"nothing\""},
                                           {"type", "3", "\"type\" in version \"3\""}};
    char model[64], number[32];
    Inference__ModelStatisticsRequest in;
    inference__model_statistics_request__init(&in);
    in.name = model;
    in.version = number;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        strcpy(model, cases[i][0]);
        strcpy(number, cases[i][1]);
        assert_refused(server.alice, METHOD("ModelStatistics"), &in, OIP(model_statistics_response),
                       TK_CLIENT_NOT_FOUND, cases[i][2]);
    }
    strcpy(model, "type");
    strcpy(number, "0");
    assert_refused(server.alice, METHOD("ModelStatistics"), &in, OIP(model_statistics_response),
                   BAD, "the version is \"0\"");
    assert_refused(server.nobody, METHOD("ModelStatistics"), &in, OIP(model_statistics_response),
                   TK_CLIENT_UNAUTHENTICATED, "no token");
    model[0] = number[0] = '\0';
    Inference__ModelStatisticsResponse *all = assert_answered(
        server.admin, METHOD("ModelStatistics"), &in, OIP(model_statistics_response));
    bool alices = false, bobs = false;
    for (size_t i = 0; i < all->n_model_stats; i++) {
        alices |= strcmp(all->model_stats[i]->name, "alice/type") == 0;
        bobs |= strcmp(all->model_stats[i]->name, "bob/colour") == 0;
    }
    assert_true(alices && bobs);
    tk_client_free_message(&all->base);
}

static void an_empty_server_is_ready_and_has_no_model(void **state)
{
    (void)state;
    trunkd empty;
    trunkd_prepare(&empty, 0);
    trunkd_start(&empty, NULL);
    Inference__ServerReadyRequest in;
    inference__server_ready_request__init(&in);
    Inference__ServerReadyResponse *ready =
        assert_answered(empty.nobody, METHOD("ServerReady"), &in, OIP(server_ready_response));
    assert_true(ready->ready);
    tk_client_free_message(&ready->base);
    Inference__RepositoryIndexResponse *index = assert_answered(
        empty.alice, METHOD("RepositoryIndex"), &in, OIP(repository_index_response));
    assert_int_equal(index->n_models, 0);
    tk_client_free_message(&index->base);
    expect_ready(empty.alice, "type", "", false);
    question q;
    files_typed(&q);
    assert_refused(empty.alice, METHOD("ModelInfer"), &q.in, OIP(model_infer_response),
                   TK_CLIENT_NOT_FOUND, "you have no model \"type\"");
    /* A stream that waits does not hold up the stop. */
    tk_client_call *call = tk_client_start(empty.alice, METHOD("ModelStreamInfer"),
                                           OIP(model_stream_infer_response), 60000);
    assert_true(tk_client_send(call, &q.in.base));
    tk_client_free_message(tk_client_receive(call));
    kill(empty.pid, SIGTERM);
    assert_null(tk_client_receive(call));
    tk_client_status status;
    assert_int_equal(tk_client_finish(call, &status), TK_CLIENT_UNAVAILABLE);
    assert_int_equal(trunkd_end(&empty, SIGTERM), 0);
    trunkd_remove(&empty);
}

static int setup(void **state)
{
    (void)state;
    good[0] = fixture_png(48, 40, 1);
    good[1] = fixture_jpeg(64, 32, 2);
    good[2] = fixture_png(32, 32, 3);
    prepare(wanted);
    trunkd_prepare(&server, 2);
    trunkd_start(&server, NULL);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    const int status = trunkd_end(&server, SIGTERM);
    trunkd_remove(&server);
    for (size_t i = 0; i < IMAGES; i++) {
        free(good[i].data);
        tk_image_fini(&pixels[i]);
    }
    return status;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_form_of_the_images_gets_the_same_answer_to_the_bit),
        cmocka_unit_test(outputs_come_as_asked_for),
        cmocka_unit_test(classification_gives_the_best_classes_with_their_labels),
        cmocka_unit_test(other_tenants_models_and_unknown_versions_are_not_found),
        cmocka_unit_test(shapes_and_datatypes_are_checked),
        cmocka_unit_test(raw_contents_of_a_wrong_size_are_named),
        cmocka_unit_test(typed_contents_must_fit_datatype_and_shape),
        cmocka_unit_test(inputs_and_outputs_are_known_by_name),
        cmocka_unit_test(images_that_cannot_be_read_are_named),
        cmocka_unit_test(models_are_described),
        cmocka_unit_test(readiness_leaks_nothing),
        cmocka_unit_test(every_version_that_can_be_asked_for_is_listed),
        cmocka_unit_test(the_index_knows_one_repository),
        cmocka_unit_test(the_server_describes_itself),
        cmocka_unit_test(statistics_count_the_callers_requests_and_nobody_elses),
        cmocka_unit_test(statistics_of_what_is_not_the_callers_are_not_found),
        cmocka_unit_test(a_stream_answers_each_request_and_outlives_errors),
        cmocka_unit_test(a_streams_requests_name_their_versions),
        cmocka_unit_test(a_malformed_request_ends_a_stream_after_the_answers),
        cmocka_unit_test(a_cancelled_stream_leaves_nothing_behind),
        cmocka_unit_test(an_empty_server_is_ready_and_has_no_model),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
