/* The look at protobuf bytes before they are unpacked: what is hostile is refused by name, what is
 * honest passes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "engine/mem.h"
#include "rpc/pb_check.h"
#include "trunkd/v1/classifier.pb-c.h"
#include "trunkd/v1/datasets.pb-c.h"
#include "trunkd/v1/heads.pb-c.h"
#include "trunkd/v1/jobs.pb-c.h"

#define CLASSIFY &trunkd__v1__classify_request__descriptor
#define UPLOAD   &trunkd__v1__upload_request__descriptor
#define SUBMIT   &trunkd__v1__submit_job_request__descriptor
#define ANSWERS  &trunkd__v1__get_validation_response__descriptor

typedef struct bad_case {
    const ProtobufCMessageDescriptor *type;
    const char *bytes;
    size_t len;
    const char *says;
} bad_case;

#define BAD(type, bytes, says)                                                                     \
    {                                                                                              \
        type, bytes, sizeof(bytes) - 1, says                                                       \
    }

static void hostile_bytes_are_refused_by_name(void **state)
{
    (void)state;
    static const bad_case cases[] = {
        BAD(CLASSIFY, "\x08\x01", "images has wire type 0 instead of 2"),
        BAD(CLASSIFY, "\x18", "field 3 of trunkd.v1.ClassifyRequest is cut short"),
        BAD(CLASSIFY, "\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", "field 3"),
        BAD(CLASSIFY,
            "\x0a\x05"
            "abcd",
            "field 1 of trunkd.v1.ClassifyRequest is cut short"),
        BAD(CLASSIFY, "\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "cut short"),
        BAD(CLASSIFY, "\x00\x01", "bad field tag"),
        BAD(CLASSIFY, "\x80\x80\x80\x80\x80\x01", "bad field tag"),
        BAD(CLASSIFY, "\x0b\x0c", "malformed"), /* a group */
        BAD(CLASSIFY, "\x0f\x01", "malformed"), /* wire type 7 */
        BAD(CLASSIFY,
            "\x12\x03"
            "a\0b",
            "heads has a NUL at byte 1"),
        BAD(CLASSIFY,
            "\x12\x02"
            "\xC0\x80",
            "heads is not valid UTF-8 at byte 0"),
        BAD(CLASSIFY,
            "\x12\x03"
            "\xED\xA0\x80",
            "not valid UTF-8"), /* a surrogate */
        BAD(CLASSIFY,
            "\x12\x04"
            "\xF4\x90\x80\x80",
            "not valid UTF-8"),
        BAD(CLASSIFY,
            "\x12\x02"
            "a\xE2",
            "not valid UTF-8 at byte 1"),
        BAD(CLASSIFY,
            "\x12\x03"
            "\xE0\x80\x80",
            "not valid UTF-8"),
        BAD(CLASSIFY,
            "\x12\x03"
            "\xE2\x82x",
            "not valid UTF-8"),
        BAD(UPLOAD, "\x12\x00\x12\x00", "UploadRequest.manifest comes twice"),
        BAD(UPLOAD, "\x0a\x04\x0a\x02\x0a\x09", "UploadImage is cut short"),
        BAD(UPLOAD, "\x0a\x05\x0a\x03\x0a\x01\xff", "UploadImage.label is not valid UTF-8"),
        BAD(SUBMIT, "\x11\0\0\0\0\0\0\0\0", "data_set has wire type 1 instead of 0"),
        BAD(SUBMIT, "\x3d\0\0\0\0", "tolerance has wire type 5 instead of 1"),
        BAD(ANSWERS, "\x0a\x04\x42\x02\x01\x80", "confusion has wire type 2 instead of 0"),
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tk_diag diag = {0};
        const tk_err err =
            tk__pb_check(cases[i].type, (const uint8_t *)cases[i].bytes, cases[i].len, &diag);
        if (err != TK_BADDATA || !strstr(diag.text, cases[i].says))
            fail_msg("case %zu: error %d, \"%s\" instead of \"%s\"", i, (int)err, diag.text,
                     cases[i].says);
    }
}

static void honest_bytes_pass(void **state)
{
    (void)state;
    static const bad_case cases[] = {
        BAD(CLASSIFY, "", ""),
        BAD(CLASSIFY, "\x0a\x03\xff\x00\xfe\x12\x05h\xC3\xA9lo\x18\x05", ""),
        BAD(CLASSIFY, "\x12\x04\xF0\x9F\x9A\x97\x12\x00", ""),
        BAD(CLASSIFY, "\x18\x05\x18\x06", ""),     /* a repeated scalar: the last counts */
        BAD(CLASSIFY, "\xaa\x06\x02\xff\xff", ""), /* an unknown field */
        BAD(UPLOAD, "\x0a\x06\x0a\x04\x0a\x02hi", ""),
        BAD(ANSWERS, "\x0a\x04\x42\x02\x01\x02", ""), /* packed */
        BAD(ANSWERS, "\x0a\x04\x40\x01\x40\x02", ""), /* the same, not packed */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tk_diag diag = {0};
        const uint8_t *bytes = (const uint8_t *)cases[i].bytes;
        if (tk__pb_check(cases[i].type, bytes, cases[i].len, &diag) != TK_OK)
            fail_msg("case %zu: %s", i, diag.text);
        ProtobufCMessage *m = protobuf_c_message_unpack(cases[i].type, NULL, cases[i].len, bytes);
        assert_non_null(m);
        protobuf_c_message_free_unpacked(m, NULL);
    }
}

static void every_cut_of_a_message_is_refused_or_unpacks(void **state)
{
    (void)state;
    static const uint8_t whole[] = "\x0a\x14\x0a\x08\x0a\x03"
                                   "car\x1a\x01x\x0a\x08\x0a\x03"
                                   "bus\x1a\x01y";
    for (size_t len = 0; len < sizeof whole; len++) {
        /* On the heap, so that a read past the end is seen. */
        uint8_t *bytes = tk_calloc(1, len + 1);
        uint8_t *exact = tk_realloc(bytes, len ? len : 1);
        memcpy(exact, whole, len);
        if (tk__pb_check(UPLOAD, exact, len, NULL) == TK_OK) {
            ProtobufCMessage *m = protobuf_c_message_unpack(UPLOAD, NULL, len, exact);
            assert_non_null(m);
            protobuf_c_message_free_unpacked(m, NULL);
        }
        tk_free(exact);
    }
}

/* A message type that contains itself, which none of ours does. */
static const ProtobufCMessageDescriptor nested;
static const ProtobufCFieldDescriptor nested_field = {
    .name = "inner",
    .id = 1,
    .label = PROTOBUF_C_LABEL_NONE,
    .type = PROTOBUF_C_TYPE_MESSAGE,
    .descriptor = &nested,
};
static const ProtobufCIntRange nested_range[] = {{1, 0}, {0, 1}};
static const ProtobufCMessageDescriptor nested = {
    .magic = PROTOBUF_C__MESSAGE_DESCRIPTOR_MAGIC,
    .name = "test.Nested",
    .n_fields = 1,
    .fields = &nested_field,
    .n_field_ranges = 1,
    .field_ranges = nested_range,
};

static void depth_is_limited(void **state)
{
    (void)state;
    uint8_t bytes[2 * (TK_PB_MAX_DEPTH + 1)];
    const size_t size = sizeof bytes;
    for (size_t i = 0; i < size; i += 2) {
        bytes[i] = 0x0a;
        bytes[i + 1] = (uint8_t)(size - i - 2);
    }
    tk_diag diag = {0};
    const size_t allowed = 2 * (TK_PB_MAX_DEPTH - 1);
    assert_int_equal(tk__pb_check(&nested, bytes + size - allowed, allowed, &diag), TK_OK);
    assert_int_equal(tk__pb_check(&nested, bytes, size, &diag), TK_BADDATA);
    assert_non_null(strstr(diag.text, "test.Nested is nested more than 16 deep"));
}

static void number_of_fields_is_limited(void **state)
{
    (void)state;
    const size_t len = 2 * ((size_t)TK_PB_MAX_FIELDS + 1);
    uint8_t *bytes = tk_calloc(1, len);
    for (size_t i = 0; i < len; i += 2)
        bytes[i] = 0x12;
    tk_diag diag = {0};
    assert_int_equal(tk__pb_check(CLASSIFY, bytes, len, &diag), TK_LIMIT);
    assert_int_equal(tk__pb_check(CLASSIFY, bytes, len - 2, &diag), TK_OK);
    tk_free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hostile_bytes_are_refused_by_name),
        cmocka_unit_test(honest_bytes_pass),
        cmocka_unit_test(every_cut_of_a_message_is_refused_or_unpacks),
        cmocka_unit_test(depth_is_limited),
        cmocka_unit_test(number_of_fields_is_limited),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
