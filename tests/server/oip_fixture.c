/* See oip_fixture.h. */
#include "oip_fixture.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/mem.h"

trunkd oip_server;
fixture_bytes oip_good[OIP_IMAGES];
tk_image oip_pixels[OIP_IMAGES];
float oip_planes[OIP_IMAGES][3 * OIP_PX * OIP_PX];
oip_expected oip_wanted[OIP_IMAGES];

void oip_assert_status(const tk_client_status *status, int code, const char *words)
{
    if (status->code != code || !strstr(status->text, words)) {
        fail_msg("expected %s with \"%s\", got %s: %s", tk_client_code_text(code), words,
                 tk_client_code_text(status->code), status->text);
    }
}

void *oip_answered(tk_client *client, const char *path, const void *in,
                   const ProtobufCMessageDescriptor *type)
{
    const answer a = ask(client, path, in, type);
    if (!a.message) fail_msg("%s: %s: %s", path, tk_client_code_text(a.status.code), a.status.text);
    return a.message;
}

void oip_assert_refused(tk_client *client, const char *path, const void *in,
                        const ProtobufCMessageDescriptor *type, int code, const char *words)
{
    const answer a = ask(client, path, in, type);
    if (a.message) fail_msg("%s was answered, expected \"%s\"", path, words);
    oip_assert_status(&a.status, code, words);
}

/* What serving/ itself answers in this process: alice's head of version 2. */
static void compute(const uint8_t *canvas, const float *rendered, oip_expected *out)
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
static void prepare(void)
{
    const tk_preproc p = tk_preproc_default(OIP_PX);
    const tk_view view = tk_view_centre(&p, OIP_PX);
    for (size_t i = 0; i < OIP_IMAGES; i++) {
        static uint8_t canvas[OIP_PX * OIP_PX * 3];
        static float rendered[OIP_PX * OIP_PX * 3];
        assert_int_equal(tk_image_decode(&oip_pixels[i], oip_good[i].data, oip_good[i].size, NULL,
                                         p.resize, NULL),
                         TK_OK);
        assert_int_equal(tk_preproc_canvas(&p, &oip_pixels[i], OIP_PX, canvas, NULL), TK_OK);
        tk_view_render(&p, canvas, OIP_PX, &view, rendered);
        for (size_t c = 0; c < 3; c++)
            for (size_t k = 0; k < OIP_PX * OIP_PX; k++)
                oip_planes[i][c * OIP_PX * OIP_PX + k] = rendered[k * 3 + c];
        compute(canvas, NULL, &oip_wanted[i]);
        oip_expected again; /* the other way in */
        compute(NULL, rendered, &again);
        assert_memory_equal(again.logits, oip_wanted[i].logits, sizeof again.logits);
    }
}

void oip_ask_about(oip_question *q, const char *datatype, size_t n_shape, const int64_t *shape)
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

void oip_finish(oip_question *q)
{
    free(q->bytes);
    free(q->numbers);
}

void oip_put_raw(oip_question *q, const void *data, size_t size)
{
    q->bytes = malloc(size + 1);
    assert_non_null(q->bytes);
    if (size > 0) memcpy(q->bytes, data, size);
    q->raw[0] = (ProtobufCBinaryData){.data = q->bytes, .len = size};
    q->in.raw_input_contents = q->raw;
    q->in.n_raw_input_contents = 1;
}

void oip_want(oip_question *q, const char *name, int64_t classification)
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

void oip_files_typed(oip_question *q)
{
    oip_ask_about(q, "BYTES", 1, (int64_t[]){OIP_IMAGES});
    for (size_t i = 0; i < OIP_IMAGES; i++)
        q->files[i] = (ProtobufCBinaryData){.data = oip_good[i].data, .len = oip_good[i].size};
    q->contents.bytes_contents = q->files;
    q->contents.n_bytes_contents = OIP_IMAGES;
    q->input.contents = &q->contents;
}

void oip_files_raw(oip_question *q)
{
    static uint8_t buffer[1 << 20];
    size_t at = 0;
    oip_ask_about(q, "BYTES", 2, (int64_t[]){OIP_IMAGES, 1});
    for (size_t i = 0; i < OIP_IMAGES; i++) {
        const uint32_t len = (uint32_t)oip_good[i].size;
        for (unsigned b = 0; b < 4; b++)
            buffer[at++] = (uint8_t)(len >> (8 * b));
        memcpy(buffer + at, oip_good[i].data, len);
        at += len;
    }
    oip_put_raw(q, buffer, at);
}

/* One image, since all of a tensor have one size. */
static size_t pixels_of(oip_question *q, size_t i)
{
    oip_ask_about(q, "UINT8", 4, (int64_t[]){1, oip_pixels[i].h, oip_pixels[i].w, 3});
    return (size_t)oip_pixels[i].h * oip_pixels[i].w * 3;
}

void oip_pixels_raw(oip_question *q, size_t i)
{
    const size_t n = pixels_of(q, i);
    oip_put_raw(q, oip_pixels[i].rgb, n);
}

void oip_pixels_typed(oip_question *q, size_t i)
{
    const size_t n = pixels_of(q, i);
    q->numbers = calloc(n, sizeof *q->numbers);
    assert_non_null(q->numbers);
    for (size_t k = 0; k < n; k++)
        q->numbers[k] = oip_pixels[i].rgb[k];
    q->contents.uint_contents = q->numbers;
    q->contents.n_uint_contents = n;
    q->input.contents = &q->contents;
}

void oip_planes_raw(oip_question *q)
{
    oip_ask_about(q, "FP32", 4, (int64_t[]){OIP_IMAGES, 3, OIP_PX, OIP_PX});
    oip_put_raw(q, oip_planes, sizeof oip_planes);
}

void oip_planes_typed(oip_question *q)
{
    oip_ask_about(q, "FP32", 4, (int64_t[]){OIP_IMAGES, 3, OIP_PX, OIP_PX});
    q->contents.fp32_contents = oip_planes[0];
    q->contents.n_fp32_contents = sizeof oip_planes / sizeof(float);
    q->input.contents = &q->contents;
}

Inference__ModelInferResponse *oip_infer(oip_question *q)
{
    return oip_answered(oip_server.alice, METHOD("ModelInfer"), &q->in, OIP(model_infer_response));
}

void oip_refused(oip_question *q, int code, const char *words)
{
    oip_assert_refused(oip_server.alice, METHOD("ModelInfer"), &q->in, OIP(model_infer_response),
                       code, words);
    oip_finish(q);
}

void oip_assert_floats(const Inference__ModelInferResponse *out, size_t i, const char *name,
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

void oip_assert_all(const Inference__ModelInferResponse *out, size_t first, size_t n, bool raw)
{
    float p[OIP_IMAGES * FIXTURE_TYPES], l[OIP_IMAGES * FIXTURE_TYPES],
        f[OIP_IMAGES * OIP_FEATURES];
    for (size_t i = 0; i < n; i++) {
        memcpy(p + i * FIXTURE_TYPES, oip_wanted[first + i].probabilities,
               sizeof oip_wanted->probabilities);
        memcpy(l + i * FIXTURE_TYPES, oip_wanted[first + i].logits, sizeof oip_wanted->logits);
        memcpy(f + i * OIP_FEATURES, oip_wanted[first + i].features, sizeof oip_wanted->features);
    }
    assert_string_equal(out->model_name, "type");
    assert_string_equal(out->model_version, "2");
    assert_string_equal(out->id, "request-7");
    assert_int_equal(out->n_outputs, 3);
    if (raw) assert_int_equal(out->n_raw_output_contents, 3);
    oip_assert_floats(out, 0, "probabilities", n, FIXTURE_TYPES, raw, p);
    oip_assert_floats(out, 1, "logits", n, FIXTURE_TYPES, raw, l);
    oip_assert_floats(out, 2, "features", n, OIP_FEATURES, raw, f);
}

void oip_assert_answers(oip_question *q, size_t first, size_t n, bool raw)
{
    Inference__ModelInferResponse *out = oip_infer(q);
    oip_assert_all(out, first, n, raw);
    tk_client_free_message(&out->base);
    oip_finish(q);
}

int oip_set_up(void **state)
{
    (void)state;
    oip_good[0] = fixture_png(48, 40, 1);
    oip_good[1] = fixture_jpeg(64, 32, 2);
    oip_good[2] = fixture_png(32, 32, 3);
    prepare();
    trunkd_prepare(&oip_server, 2);
    trunkd_start(&oip_server, NULL);
    return 0;
}

int oip_tear_down(void **state)
{
    (void)state;
    const int status = trunkd_end(&oip_server, SIGTERM);
    trunkd_remove(&oip_server);
    for (size_t i = 0; i < OIP_IMAGES; i++) {
        free(oip_good[i].data);
        tk_image_fini(&oip_pixels[i]);
    }
    return status;
}
