/* The Open Inference Protocol over the wire: inference, one by one and in streams. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "oip_fixture.h"

/* -- answers -- */

static void every_form_of_the_images_gets_the_same_answer_to_the_bit(void **state)
{
    (void)state;
    oip_question q;
    oip_files_typed(&q);
    oip_assert_answers(&q, 0, OIP_IMAGES, false);
    oip_files_raw(&q);
    oip_assert_answers(&q, 0, OIP_IMAGES, true);
    for (size_t i = 0; i < OIP_IMAGES; i++) {
        oip_pixels_raw(&q, i);
        oip_assert_answers(&q, i, 1, true);
        oip_pixels_typed(&q, i);
        oip_assert_answers(&q, i, 1, false);
    }
    oip_planes_raw(&q);
    oip_assert_answers(&q, 0, OIP_IMAGES, true);
    oip_planes_typed(&q);
    oip_assert_answers(&q, 0, OIP_IMAGES, false);
    oip_files_raw(&q);
    strcpy(q.version, "2");
    oip_assert_answers(&q, 0, OIP_IMAGES, true);
}

static void outputs_come_as_asked_for(void **state)
{
    (void)state;
    oip_question q;
    oip_pixels_raw(&q, 1);
    oip_want(&q, "features", 0);
    oip_want(&q, "probabilities", 0);
    Inference__ModelInferResponse *out = oip_infer(&q);
    assert_int_equal(out->n_outputs, 2);
    oip_assert_floats(out, 0, "features", 1, OIP_FEATURES, true, oip_wanted[1].features);
    oip_assert_floats(out, 1, "probabilities", 1, FIXTURE_TYPES, true, oip_wanted[1].probabilities);
    tk_client_free_message(&out->base);
    oip_finish(&q);
}

/* "value:index:label" of the k-th best. */
static void class_text(char *text, size_t size, size_t i, size_t k, bool logit)
{
    const tk_top *top = &oip_wanted[i].top[k];
    const double value = (double)(logit ? oip_wanted[i].logits[top->label] : top->score);
    snprintf(text, size, "%f:%u:type-%u", value, top->label, top->label);
}

static void classification_gives_the_best_classes_with_their_labels(void **state)
{
    (void)state;
    oip_question q;
    char text[64];
    oip_files_typed(&q);
    oip_want(&q, "probabilities", 2);
    oip_want(&q, "logits", 99); /* more than there are: all */
    Inference__ModelInferResponse *out = oip_infer(&q);
    for (size_t o = 0; o < 2; o++) {
        const Inference__ModelInferResponse__InferOutputTensor *t = out->outputs[o];
        const size_t k = o == 0 ? 2 : FIXTURE_TYPES;
        assert_string_equal(t->datatype, "BYTES");
        assert_int_equal(t->shape[0], OIP_IMAGES);
        assert_int_equal(t->shape[1], k);
        assert_int_equal(t->contents->n_bytes_contents, OIP_IMAGES * k);
        for (size_t i = 0; i < OIP_IMAGES * k; i++) {
            class_text(text, sizeof text, i / k, i % k, o == 1);
            assert_int_equal(t->contents->bytes_contents[i].len, strlen(text));
            assert_memory_equal(t->contents->bytes_contents[i].data, text, strlen(text));
        }
    }
    tk_client_free_message(&out->base);
    oip_finish(&q);

    oip_files_raw(&q);
    oip_want(&q, "probabilities", 1);
    out = oip_infer(&q);
    assert_int_equal(out->n_raw_output_contents, 1);
    const ProtobufCBinaryData *raw = &out->raw_output_contents[0];
    size_t at = 0;
    for (size_t i = 0; i < OIP_IMAGES; i++) {
        class_text(text, sizeof text, i, 0, false);
        assert_in_range(at + 4, 4, raw->len);
        const uint8_t *len = raw->data + at;
        assert_int_equal(len[0] | len[1] << 8 | len[2] << 16 | len[3] << 24, strlen(text));
        assert_memory_equal(raw->data + at + 4, text, strlen(text));
        at += 4 + strlen(text);
    }
    assert_int_equal(at, raw->len);
    tk_client_free_message(&out->base);
    oip_finish(&q);
}

/* -- refusals -- */

static void other_tenants_models_and_unknown_versions_are_not_found(void **state)
{
    (void)state;
    oip_question q;
    static const char *const names[] = {"colour",     "nothing", "bob/colour",
                                        "alice/type", "",        "type/"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        oip_files_typed(&q);
        strcpy(q.model, names[i]);
        char words[64];
        snprintf(words, sizeof words, "you have no model \"%s\"", names[i]);
        oip_refused(&q, TK_CLIENT_NOT_FOUND, words);
    }
    static const char *const unknown[] = {"3", "999999999999999999", "stable", "two"};
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        oip_files_typed(&q);
        strcpy(q.version, unknown[i]);
        char words[64];
        snprintf(words, sizeof words, "you have no model \"type\" in version \"%s\"", unknown[i]);
        oip_refused(&q, TK_CLIENT_NOT_FOUND, words);
    }
    static const char *const versions[] = {"0",  "Two", "-1",
                                           "2 ", "2.0", "99999999999999999999999"};
    for (size_t i = 0; i < sizeof versions / sizeof *versions; i++) {
        oip_files_typed(&q);
        strcpy(q.version, versions[i]);
        oip_refused(&q, BAD, versions[i]);
    }
    oip_files_typed(&q);
    oip_assert_refused(oip_server.nobody, METHOD("ModelInfer"), &q.in, OIP(model_infer_response),
                       TK_CLIENT_UNAUTHENTICATED, "no token");
    oip_assert_refused(oip_server.admin, METHOD("ModelInfer"), &q.in, OIP(model_infer_response),
                       TK_CLIENT_PERMISSION_DENIED, "is for tenants");
}

/* A request with this shape and a few raw bytes. */
static void refused_shape(const char *datatype, size_t n, const int64_t *shape, const char *words)
{
    oip_question q;
    oip_ask_about(&q, datatype, n, shape);
    oip_put_raw(&q, "abcdefgh", 8);
    oip_refused(&q, BAD, words);
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
    oip_question q;
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
        oip_ask_about(&q, "BYTES", 1, (int64_t[]){(int64_t)cases[i].n});
        oip_put_raw(&q, cases[i].bytes, cases[i].size);
        oip_refused(&q, BAD, cases[i].words);
    }
    oip_files_raw(&q);
    q.raw[1] = q.raw[0];
    q.in.n_raw_input_contents = 2;
    oip_refused(&q, BAD, "raw_input_contents has 2 entries, inputs has 1");
    oip_files_raw(&q);
    q.files[0] = (ProtobufCBinaryData){.data = oip_good[0].data, .len = oip_good[0].size};
    q.contents.bytes_contents = q.files;
    q.contents.n_bytes_contents = 1;
    q.input.contents = &q.contents;
    oip_refused(&q, BAD, "inputs[0].contents must be empty when raw_input_contents is used");
}

static void typed_contents_must_fit_datatype_and_shape(void **state)
{
    (void)state;
    oip_question q;
    oip_files_typed(&q);
    q.input.contents = NULL;
    oip_refused(&q, BAD, "inputs[0] has no contents");
    oip_files_typed(&q);
    q.contents.n_bytes_contents = 2;
    oip_refused(&q, BAD, "bytes_contents has 2 elements, the shape asks for 3");
    oip_planes_typed(&q);
    q.contents.n_fp32_contents--;
    oip_refused(&q, BAD, "fp32_contents has 9215 elements, the shape asks for 9216");
    oip_planes_typed(&q);
    strcpy(q.datatype, "BYTES");
    q.input.n_shape = 1;
    oip_refused(&q, BAD, "inputs[0].contents has fp32_contents: BYTES goes into bytes_contents");
    oip_pixels_typed(&q, 0);
    q.numbers[5] = 256;
    oip_refused(&q, BAD, "uint_contents[5] is 256, the limit of UINT8 is 255");
}

static void inputs_and_outputs_are_known_by_name(void **state)
{
    (void)state;
    oip_question q;
    oip_files_typed(&q);
    q.in.n_inputs = 0;
    oip_refused(&q, BAD, "inputs has 0 tensors: the model takes one");
    oip_files_typed(&q);
    q.in.n_inputs = 2;
    oip_refused(&q, BAD, "inputs has 2 tensors");
    oip_files_typed(&q);
    strcpy(q.name, "data");
    oip_refused(&q, BAD, "inputs[0].name is \"data\"");
    oip_files_typed(&q);
    oip_want(&q, "softmax", 0);
    oip_refused(&q, BAD, "outputs[0].name is \"softmax\"");
    oip_files_typed(&q);
    oip_want(&q, "logits", 0);
    oip_want(&q, "logits", 3);
    oip_refused(&q, BAD, "outputs[1] asks for logits, as outputs[0] does");
    oip_files_typed(&q);
    for (size_t i = 0; i < 4; i++)
        oip_want(&q, "logits", 0);
    oip_refused(&q, BAD, "outputs has 4 entries, the limit is 3");
    oip_files_typed(&q);
    oip_want(&q, "logits", -5);
    oip_refused(&q, BAD, "classification is -5, it must be at least 1");
    oip_files_typed(&q);
    oip_want(&q, "features", 1);
    oip_refused(&q, BAD, "features have no classes");
    oip_files_typed(&q);
    oip_want(&q, "logits", 1);
    q.parameters[0].parameter_choice_case = INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_BOOL_PARAM;
    q.parameters[0].bool_param = true;
    oip_refused(&q, BAD, "classification is no int64_param");
    oip_files_typed(&q);
    oip_want(&q, "logits", 1);
    strcpy(q.key, "shared_memory_region");
    oip_refused(&q, BAD, "there is no shared memory");
    oip_files_typed(&q);
    oip_want(&q, "logits", 1);
    q.entries[0].value = NULL;
    oip_refused(&q, BAD, "classification is no int64_param");
}

static void images_that_cannot_be_read_are_named(void **state)
{
    (void)state;
    oip_question q;
    oip_files_typed(&q);
    q.files[1].len /= 2;
    oip_refused(&q, BAD, "inputs[0]: image 1 of 3 cannot be read");
    oip_files_typed(&q);
    q.files[2].len = 0;
    oip_refused(&q, BAD, "inputs[0]: image 2 of 3 cannot be read");
    fixture_bytes bomb = fixture_png_bomb(100000, 100000);
    oip_files_typed(&q);
    q.files[0] = (ProtobufCBinaryData){.data = bomb.data, .len = bomb.size};
    oip_refused(&q, BAD, "inputs[0]: image 0 of 3 cannot be read");
    free(bomb.data);
    static const float bad[] = {1001, -1001, 1.0F / 0.0F, -1.0F / 0.0F, 0.0F / 0.0F, 3e38F};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        oip_planes_raw(&q);
        memcpy(q.bytes + sizeof oip_planes[0] + 7 * sizeof(float), &bad[i], sizeof(float));
        oip_refused(&q, BAD, "inputs[0]: image 1 of 3 cannot be read: value 7 is ");
    }
}

/* -- streams -- */

static void a_stream_answers_each_request_and_outlives_errors(void **state)
{
    (void)state;
    tk_client_call *call = tk_client_start(oip_server.alice, METHOD("ModelStreamInfer"),
                                           OIP(model_stream_infer_response), 60000);
    for (int round = 0; round < 3; round++) {
        oip_question q;
        oip_pixels_raw(&q, 2);
        assert_true(tk_client_send(call, &q.in.base));
        oip_finish(&q);
        oip_files_typed(&q);
        q.files[0].len = 10;
        assert_true(tk_client_send(call, &q.in.base));
        oip_files_typed(&q);
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
                oip_assert_all(out->infer_response, 2, 1, true);
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
    tk_client_call *call = tk_client_start(oip_server.alice, METHOD("ModelStreamInfer"),
                                           OIP(model_stream_infer_response), 60000);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        oip_question q;
        oip_pixels_raw(&q, 2);
        strcpy(q.version, cases[i].version);
        assert_true(tk_client_send(call, &q.in.base));
        oip_finish(&q);
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
            oip_assert_all(out->infer_response, 2, 1, true);
        else if (!cases[i].error[0])
            assert_memory_not_equal(out->infer_response->raw_output_contents[1].data,
                                    oip_wanted[2].logits, sizeof oip_wanted->logits);
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
    tk_client_call *call = tk_client_start(oip_server.alice, METHOD("ModelStreamInfer"),
                                           OIP(model_stream_infer_response), 60000);
    oip_question q;
    oip_pixels_raw(&q, 2);
    for (int i = 0; i < 3; i++)
        assert_true(tk_client_send(call, &q.in.base));
    assert_true(tk_client_send_bytes(call, "\x0a\x7f", 2));
    for (int i = 0; i < 3; i++) {
        ProtobufCMessage *message = tk_client_receive(call);
        assert_non_null(message);
        oip_assert_all(((const Inference__ModelStreamInferResponse *)message)->infer_response, 2, 1,
                       true);
        tk_client_free_message(message);
    }
    oip_finish(&q);
    assert_null(tk_client_receive(call));
    tk_client_status status;
    tk_client_finish(call, &status);
    oip_assert_status(&status, BAD, "message 4: not a valid inference.ModelInferRequest");
}

static void a_cancelled_stream_leaves_nothing_behind(void **state)
{
    (void)state;
    for (int i = 0; i < 20; i++) {
        tk_client_call *call = tk_client_start(oip_server.alice, METHOD("ModelStreamInfer"),
                                               OIP(model_stream_infer_response), 60000);
        oip_question q;
        oip_files_typed(&q);
        assert_true(tk_client_send(call, &q.in.base));
        if (i % 2) tk_client_free_message(tk_client_receive(call));
        tk_client_cancel(call);
        tk_client_status status;
        assert_int_equal(tk_client_finish(call, &status), TK_CLIENT_CANCELLED);
    }
    oip_question q;
    oip_files_typed(&q);
    oip_assert_answers(&q, 0, OIP_IMAGES, false);
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
        cmocka_unit_test(a_stream_answers_each_request_and_outlives_errors),
        cmocka_unit_test(a_streams_requests_name_their_versions),
        cmocka_unit_test(a_malformed_request_ends_a_stream_after_the_answers),
        cmocka_unit_test(a_cancelled_stream_leaves_nothing_behind),
    };
    return cmocka_run_group_tests(tests, oip_set_up, oip_tear_down);
}
