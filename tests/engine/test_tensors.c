/* safetensors in and out, half precision, and a trunk's weights in a file. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "engine/file.h"
#include "engine/half.h"
#include "engine/mem.h"
#include "engine/rng.h"
#include "engine/tensors.h"
#include "scratch.h"

/* A file of this header and `data_size` bytes of data, which count 0, 1, 2, ...; free() it. */
static uint8_t *build(const char *header, size_t data_size, size_t *size)
{
    const size_t length = strlen(header);
    *size = 8 + length + data_size;
    uint8_t *file = malloc(*size);
    assert_non_null(file);
    for (int i = 0; i < 8; i++)
        file[i] = (uint8_t)(length >> (8 * i));
    memcpy(file + 8, header, length);
    for (size_t i = 0; i < data_size; i++)
        file[8 + length + i] = (uint8_t)i;
    return file;
}

static tk_err parse(const char *header, size_t data_size, tk_diag *diag)
{
    size_t size;
    tk_tensors *ts;
    const long live = tk_test_alloc_live();
    uint8_t *file = build(header, data_size, &size);
    tk_err err = tk_tensors_parse(&ts, file, size, diag);
    if (err != TK_OK) assert_null(ts);
    tk_tensors_close(ts);
    free(file);
    assert_int_equal(tk_test_alloc_live(), live);
    return err;
}

static void a_file_is_read_as_it_says(void **state)
{
    (void)state;
    size_t size;
    uint8_t *file =
        build("{\"__metadata__\":{\"format\":\"pt\",\"k\":\"v\"},"
              "\"late\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[16,17]},"
              "\"none\":{\"dtype\":\"F64\",\"shape\":[5,0],\"data_offsets\":[16,16]},"
              "\"\\u00e9\":{\"dtype\":\"F32\",\"shape\":[2,1,2],\"data_offsets\":[0,16]}}   ",
              17, &size);
    tk_tensors *ts;
    assert_int_equal(tk_tensors_parse(&ts, file, size, NULL), TK_OK);
    assert_int_equal(tk_tensors_count(ts), 3);
    assert_string_equal(tk_tensors_at(ts, 2)->name, "\xc3\xa9");
    const tk_tensor *t = tk_tensors_find(ts, "\xc3\xa9");
    assert_non_null(t);
    assert_int_equal(t->dtype, TK_F32);
    assert_int_equal(t->rank, 3);
    assert_int_equal(t->shape[0] * 100 + t->shape[1] * 10 + t->shape[2], 212);
    assert_int_equal(t->count, 4);
    assert_memory_equal(t->data, "\0\1\2\3", 4);
    assert_int_equal(tk_tensors_find(ts, "late")->count, 1);
    assert_int_equal(tk_tensors_find(ts, "none")->count, 0);
    assert_null(tk_tensors_find(ts, "lat"));
    assert_null(tk_tensors_find(ts, "__metadata__"));
    assert_string_equal(tk_tensors_meta(ts, "k"), "v");
    assert_null(tk_tensors_meta(ts, "absent"));
    tk_tensors_close(ts);
    free(file);
    assert_int_equal(parse("{}", 0, NULL), TK_OK);
}

static void a_hostile_header_is_refused_with_a_reason(void **state)
{
    (void)state;
    static const struct {
        const char *header;
        size_t data;
        const char *reason;
    } cases[] = {
        {"", 0, "not a JSON object"},
        {"[]", 0, "not a JSON object"},
        {" {}", 0, "not a JSON object"},
        {"{", 0, "not valid JSON"},
        {"{} x", 0, "not valid JSON"},
        {"{\"a\":1}", 0, "tensor a: unknown dtype \"\""},
        {"{\"__metadata__\":[]}", 0, "__metadata__ is not an object"},
        {"{\"__metadata__\":{\"k\":1}}", 0, "\"k\" is not a string"},
        {"{\"\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "1 to 255 bytes"},
        {"{\"a\":{\"dtype\":\"F31\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
         "unknown dtype \"F31\""},
        {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "\"shape\" must be an array"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4,
         "at most 8"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4, "dimension 0"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1.0],\"data_offsets\":[0,4]}}", 4, "dimension 1"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0,
         "product overflows"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}", 0,
         "do not fill"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[99999999999999999999],\"data_offsets\":[0,0]}}", 0,
         "not valid JSON"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,3]}}", 4,
         "do not fill 3 bytes"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4, "\"data_offsets\""},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,4]}}", 4,
         "\"data_offsets\""},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[-4,0]}}", 4,
         "\"data_offsets\""},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 4,
         "offsets into the 4 data bytes"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8,
         "tensor a: a hole of 4 bytes before it"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 8,
         "4 bytes after the last tensor"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
         "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[2,6]}}",
         6, "tensor b: overlaps tensor a"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
         "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
         4, "duplicate"},
        {"{\"a\\u0000b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
         "not valid JSON"},
        {"{\"\xff\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
         "not valid JSON"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        tk_diag diag = {.text = ""};
        assert_int_equal(parse(cases[i].header, cases[i].data, &diag), TK_BADDATA);
        if (!strstr(diag.text, cases[i].reason)) fail_msg("case %zu: %s", i, diag.text);
    }
}

static void a_hostile_header_size_is_refused(void **state)
{
    (void)state;
    tk_tensors *ts;
    tk_diag diag;
    static const uint8_t sizes[][10] = {
        {3, 0, 0, 0, 0, 0, 0, 0, '{', '}'},
        {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, '{', '}'},
        {0xf8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, '{', '}'},
    };
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(tk_tensors_parse(&ts, sizes[i], 10, &diag), TK_BADDATA);
        assert_non_null(strstr(diag.text, "does not fit a file of 10 bytes"));
    }
    for (size_t n = 0; n < 8; n++)
        assert_int_equal(tk_tensors_parse(&ts, sizes[0], n, &diag), TK_BADDATA);
}

/* {"a": 2 x 3 counting, "b": scalar 7} and two entries of metadata, written to `path`. */
static tk_err write_sample(const char *path, tk_diag *diag)
{
    static const float a[6] = {0, 1, 2, 3, 4, 5}, b = 7;
    static const tk_meta meta[] = {{"trunkd", "{\"x\":1}"}, {"who", "Zo\xc3\xab \"q\"\n"}};
    tk_tensor_list list = {0};
    tk_err err = tk_tensor_list_add(&list, "a", 2, (size_t[]){2, 3}, a);
    if (err == TK_OK) err = tk_tensor_list_add(&list, "b", 0, NULL, &b);
    if (err == TK_OK) err = tk_tensors_write(path, list.items, list.n, meta, 2, diag);
    tk_tensor_list_fini(&list);
    return err;
}

static void what_is_written_is_read_back(void **state)
{
    const char *path = scratch_path(*state, "f.safetensors");
    tk_tensors *ts;
    assert_int_equal(write_sample(path, NULL), TK_OK);
    assert_int_equal(tk_tensors_open(&ts, path, NULL), TK_OK);
    const tk_tensor *a = tk_tensors_find(ts, "a");
    float values[6];
    assert_int_equal(a->rank, 2);
    assert_int_equal(a->shape[1], 3);
    assert_int_equal((uintptr_t)a->data % 8, 0);
    assert_int_equal(tk_tensor_to_f32(a, values, NULL), TK_OK);
    for (int i = 0; i < 6; i++)
        assert_true(values[i] == (float)i);
    assert_int_equal(tk_tensor_to_f32(tk_tensors_find(ts, "b"), values, NULL), TK_OK);
    assert_true(values[0] == 7.0f);
    assert_string_equal(tk_tensors_meta(ts, "trunkd"), "{\"x\":1}");
    assert_string_equal(tk_tensors_meta(ts, "who"), "Zo\xc3\xab \"q\"\n");
    tk_tensors_close(ts);
    assert_int_equal(scratch_count(*state), 1);
    tk_diag diag;
    assert_int_equal(tk_tensors_open(&ts, scratch_path(*state, "absent"), &diag), TK_NOTFOUND);
    assert_null(ts);
}

static void truncated_and_damaged_files_do_no_harm(void **state)
{
    const char *path = scratch_path(*state, "f.safetensors");
    tk_map map;
    tk_tensors *ts;
    assert_int_equal(write_sample(path, NULL), TK_OK);
    assert_int_equal(tk_map_open(&map, path, NULL), TK_OK);
    for (size_t n = 0; n < map.size; n++) {
        uint8_t *part = malloc(n ? n : 1);
        memcpy(part, map.data, n);
        assert_int_equal(tk_tensors_parse(&ts, part, n, NULL), TK_BADDATA);
        free(part);
    }
    uint8_t *copy = malloc(map.size);
    for (uint64_t round = 0; round < 5000; round++) {
        memcpy(copy, map.data, map.size);
        copy[tk_rng_below(1, 1, 2 * round, 200)] = (uint8_t)tk_rng_below(1, 1, 2 * round + 1, 256);
        tk_err err = tk_tensors_parse(&ts, copy, map.size, NULL);
        assert_true(err == TK_OK || err == TK_BADDATA);
        for (size_t i = 0; ts && i < tk_tensors_count(ts); i++) {
            float values[16];
            if (tk_tensors_at(ts, i)->count <= 16)
                (void)!tk_tensor_to_f32(tk_tensors_at(ts, i), values, NULL);
        }
        tk_tensors_close(ts);
    }
    free(copy);
    tk_map_close(&map);
}

/* The JSON library's allocations fail together with ours. */
static void *json_malloc(size_t size)
{
    void *toll = tk_calloc(1, 1);
    tk_free(toll);
    return toll ? malloc(size) : NULL;
}

static void reading_and_writing_survive_no_memory(void **state)
{
    json_set_alloc_funcs(json_malloc, free);
    char path[512];
    snprintf(path, sizeof path, "%s", scratch_path(*state, "f.safetensors"));
    const long live = tk_test_alloc_live();
    for (int step = 0; step < 2; step++) {
        for (long n = 0;; n++) {
            tk_tensors *ts = NULL;
            tk_test_alloc_fail_after(n);
            tk_err err = step == 0 ? write_sample(path, NULL) : tk_tensors_open(&ts, path, NULL);
            tk_test_alloc_fail_after(-1);
            tk_tensors_close(ts);
            assert_int_equal(tk_test_alloc_live(), live);
            if (err == TK_OK) break;
            /* A token that could not be stored looks like a syntax error to the JSON library. */
            assert_true(err == TK_NOMEM || (step == 1 && err == TK_BADDATA));
            assert_true(n < 1000);
        }
    }
    json_set_alloc_funcs(malloc, free);
    assert_int_equal(scratch_count(*state), 1);
}

static float half_by_definition(uint16_t h)
{
    const int exponent = h >> 10 & 31, mantissa = h & 1023;
    double v = exponent == 0 ? ldexp(mantissa, -24) : ldexp(1024 + mantissa, exponent - 25);
    return (float)(h & 0x8000 ? -v : v);
}

static void every_half_is_read_by_its_definition(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 65536; i++) {
        const uint16_t half = (uint16_t)i;
        uint16_t back;
        float f;
        tk_f16_to_f32(1, &half, &f);
        tk_f32_to_f16(1, &f, &back);
        if ((i >> 10 & 31) < 31) {
            assert_true(f == half_by_definition(half) && back == half);
        } else if ((i & 1023) == 0) {
            assert_true(isinf(f) && back == half);
        } else {
            assert_true(isnan(f) && (back >> 10 & 31) == 31 && (back & 1023) != 0);
        }
    }
}

static void floats_round_to_the_nearest_half_ties_to_even(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 0x7bff; i++) { /* every gap between neighbours */
        const float low = half_by_definition((uint16_t)i),
                    high = half_by_definition((uint16_t)(i + 1));
        const float middle = low + (high - low) / 2; /* exact */
        const float in[] = {nextafterf(middle, 0), middle, nextafterf(middle, INFINITY), -middle};
        uint16_t out[4];
        tk_f32_to_f16(4, in, out);
        const uint16_t even = (uint16_t)(i + (i & 1));
        assert_int_equal(out[0], i);
        assert_int_equal(out[1], even);
        assert_int_equal(out[2], i + 1);
        assert_int_equal(out[3], even | 0x8000);
    }
    const float in[] = {65519.996f, 65520.0f, 1e30f, -INFINITY, 1e-30f};
    static const uint16_t want[] = {0x7bff, 0x7c00, 0x7c00, 0xfc00, 0};
    uint16_t out[5];
    tk_f32_to_f16(5, in, out);
    assert_memory_equal(out, want, sizeof want);
}

static void small_types_become_floats(void **state)
{
    (void)state;
    static const uint16_t f16[] = {0x3c00, 0xc000, 0x0001}, bf16[] = {0x3f80, 0xc000, 0x7f80};
    uint8_t shifted[7]; /* unaligned, as in a file */
    float out[3];
    memcpy(shifted + 1, f16, 6);
    tk_tensor t = {.name = "t", .dtype = TK_F16, .count = 3, .data = shifted + 1};
    assert_int_equal(tk_tensor_to_f32(&t, out, NULL), TK_OK);
    assert_true(out[0] == 1.0f && out[1] == -2.0f && out[2] == 0x1p-24f);
    memcpy(shifted + 1, bf16, 6);
    t.dtype = TK_BF16;
    assert_int_equal(tk_tensor_to_f32(&t, out, NULL), TK_OK);
    assert_true(out[0] == 1.0f && out[1] == -2.0f && isinf(out[2]));
    t.dtype = TK_I64;
    tk_diag diag;
    assert_int_equal(tk_tensor_to_f32(&t, out, &diag), TK_BADDATA);
    assert_string_equal(diag.text, "tensor t: expected F32, F16 or BF16 values");
}

typedef struct trunk_file {
    tk_params *params;   /* what was written */
    tk_tensor_list list; /* to spoil before the writing */
    const char *folder;
} trunk_file;

static trunk_file trunk_begin(const char *folder, tk_arch arch, const char *prefix)
{
    trunk_file f = {.folder = folder};
    assert_int_equal(tk_params_create(&f.params, arch), TK_OK);
    tk_params_init(f.params, 5);
    assert_int_equal(tk_tensor_list_add_trunk(&f.list, f.params, f.params->data, prefix, false),
                     TK_OK);
    return f;
}

static tk_tensor *trunk_tensor(trunk_file *f, const char *name)
{
    for (size_t i = 0; i < f->list.n; i++) {
        if (strcmp(f->list.items[i].name, name) == 0) return &f->list.items[i];
    }
    fail_msg("no tensor %s", name);
    return NULL;
}

static float *values_of(const tk_tensor *t)
{
    return (float *)(uintptr_t)t->data; /* the list's own copy */
}

/* Writes, loads into *loaded (may be NULL) and frees the rest. */
static tk_err trunk_end(trunk_file *f, const char *prefix, tk_params **loaded, tk_diag *diag)
{
    const char *path = scratch_path(f->folder, "trunk.safetensors");
    assert_int_equal(tk_tensors_write(path, f->list.items, f->list.n, NULL, 0, NULL), TK_OK);
    tk_tensors *ts;
    tk_params *params;
    assert_int_equal(tk_tensors_open(&ts, path, NULL), TK_OK);
    assert_int_equal(tk_params_create(&params, f->params->arch), TK_OK);
    tk_err err = tk_params_load(params, ts, prefix, diag);
    tk_tensors_close(ts);
    tk_tensor_list_fini(&f->list);
    tk_params_destroy(f->params);
    if (loaded)
        *loaded = params;
    else
        tk_params_destroy(params);
    return err;
}

static void a_trunk_survives_the_disk(void **state)
{
    tk_params *want, *got;
    trunk_file f = trunk_begin(*state, TK_RESNET20, "trunk.");
    assert_int_equal(tk_params_clone(&want, f.params), TK_OK);
    assert_int_equal(trunk_tensor(&f, "trunk.conv1.weight")->shape[1], 3); /* OIHW */
    /* Other tensors of the file, outside of the prefix, are not the trunk's business. */
    assert_int_equal(tk_tensor_list_add(&f.list, "head.1.bias", 1, (size_t[]){1}, (float[]){1}),
                     TK_OK);
    assert_int_equal(trunk_end(&f, "trunk.", &got, NULL), TK_OK);
    assert_memory_equal(got->data, want->data, want->count * sizeof(float));
    tk_params_destroy(want);
    tk_params_destroy(got);
}

static void torchvisions_own_extras_are_tolerated(void **state)
{
    static const size_t one[] = {1};
    static const float value[] = {1};
    trunk_file f = trunk_begin(*state, TK_RESNET20, "");
    assert_int_equal(tk_tensor_list_add(&f.list, "fc.weight", 1, one, value), TK_OK);
    assert_int_equal(tk_tensor_list_add(&f.list, "fc.bias", 1, one, value), TK_OK);
    assert_int_equal(tk_tensor_list_add(&f.list, "bn1.num_batches_tracked", 1, one, value), TK_OK);
    assert_int_equal(trunk_end(&f, "", NULL, NULL), TK_OK);
}

static void a_wrong_trunk_is_named_to_the_tensor(void **state)
{
    tk_diag diag;
    trunk_file f = trunk_begin(*state, TK_RESNET20, "");
    tk_tensor *t = trunk_tensor(&f, "layer1.0.conv1.weight");
    t->shape[2] = t->shape[3] = 1;
    t->count = 16 * 16;
    assert_int_equal(trunk_end(&f, "", NULL, &diag), TK_BADDATA);
    assert_string_equal(
        diag.text, "tensor layer1.0.conv1.weight: expected [16, 16, 3, 3], found [16, 16, 1, 1]");

    f = trunk_begin(*state, TK_RESNET20, "t.");
    t = trunk_tensor(&f, "t.bn1.bias");
    tk_free(t->name);
    t->name = tk_strdup("t.bn1.bios");
    assert_int_equal(trunk_end(&f, "t.", NULL, &diag), TK_BADDATA);
    assert_string_equal(diag.text, "tensor t.bn1.bias: missing");

    f = trunk_begin(*state, TK_RESNET20, "t.");
    assert_int_equal(tk_tensor_list_add(&f.list, "t.fc.bias", 1, (size_t[]){1}, (float[]){1}),
                     TK_OK);
    assert_int_equal(trunk_end(&f, "t.", NULL, &diag), TK_BADDATA);
    assert_string_equal(diag.text, "tensor t.fc.bias: not part of a resnet20");

    f = trunk_begin(*state, TK_RESNET20, "");
    values_of(trunk_tensor(&f, "layer3.0.downsample.0.weight"))[33] = NAN;
    assert_int_equal(trunk_end(&f, "", NULL, &diag), TK_BADDATA);
    assert_string_equal(diag.text, "tensor layer3.0.downsample.0.weight: value 33 is not finite");

    f = trunk_begin(*state, TK_RESNET20, "");
    values_of(trunk_tensor(&f, "bn1.running_var"))[2] = -1e-3f;
    assert_int_equal(trunk_end(&f, "", NULL, &diag), TK_BADDATA);
    assert_string_equal(diag.text,
                        "tensor bn1.running_var: value 2 is negative, a variance is not");
}

static void a_gradient_shaped_block_leaves_statistics_out(void **state)
{
    (void)state;
    tk_params *params;
    tk_tensor_list list = {0};
    assert_int_equal(tk_params_create(&params, TK_RESNET20), TK_OK);
    assert_int_equal(tk_tensor_list_add_trunk(&list, params, params->data, "ewc.", true), TK_OK);
    size_t floats = 0;
    for (size_t i = 0; i < list.n; i++) {
        assert_null(strstr(list.items[i].name, "running"));
        floats += list.items[i].count;
    }
    assert_int_equal(floats, 271824);
    tk_tensor_list_fini(&list);
    tk_params_destroy(params);
}

/* The smallest file with the names of an architecture: every tensor is empty. */
static tk_err guess(tk_arch arch, const char *without, tk_arch *out, tk_diag *diag)
{
    tk_params *params;
    assert_int_equal(tk_params_create(&params, arch), TK_OK);
    char *header = calloc(params->tensors + 1, 160);
    size_t used = (size_t)sprintf(header, "{");
    for (size_t i = 0; i < params->tensors; i++) {
        const char *name = params->table[i].name;
        if (without && strstr(name, without)) continue;
        used += (size_t)sprintf(
            header + used, "%s\"p.%s\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}",
            used > 1 ? "," : "", name);
    }
    sprintf(header + used, "}");
    size_t size;
    uint8_t *file = build(header, 0, &size);
    tk_tensors *ts;
    assert_int_equal(tk_tensors_parse(&ts, file, size, NULL), TK_OK);
    tk_err err = tk_arch_guess(ts, "p.", out, diag);
    tk_tensors_close(ts);
    free(file);
    free(header);
    tk_params_destroy(params);
    return err;
}

static void the_architecture_is_guessed_from_the_names(void **state)
{
    (void)state;
    tk_arch got;
    for (int arch = 0; arch < TK_ARCH_COUNT; arch++) {
        assert_int_equal(guess((tk_arch)arch, NULL, &got, NULL), TK_OK);
        assert_int_equal(got, arch);
    }
    tk_diag diag;
    assert_int_equal(guess(TK_RESNET18, "layer3.1", &got, &diag), TK_BADDATA);
    assert_string_equal(diag.text,
                        "weights of no known architecture: 2, 2, 1 and 2 basic blocks under "
                        "the names p.layer1 to p.layer4");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_file_is_read_as_it_says),
        cmocka_unit_test(a_hostile_header_is_refused_with_a_reason),
        cmocka_unit_test(a_hostile_header_size_is_refused),
        cmocka_unit_test_setup_teardown(what_is_written_is_read_back, scratch_make, scratch_remove),
        cmocka_unit_test_setup_teardown(truncated_and_damaged_files_do_no_harm, scratch_make,
                                        scratch_remove),
        cmocka_unit_test_setup_teardown(reading_and_writing_survive_no_memory, scratch_make,
                                        scratch_remove),
        cmocka_unit_test(every_half_is_read_by_its_definition),
        cmocka_unit_test(floats_round_to_the_nearest_half_ties_to_even),
        cmocka_unit_test(small_types_become_floats),
        cmocka_unit_test_setup_teardown(a_trunk_survives_the_disk, scratch_make, scratch_remove),
        cmocka_unit_test_setup_teardown(torchvisions_own_extras_are_tolerated, scratch_make,
                                        scratch_remove),
        cmocka_unit_test_setup_teardown(a_wrong_trunk_is_named_to_the_tensor, scratch_make,
                                        scratch_remove),
        cmocka_unit_test(a_gradient_shaped_block_leaves_statistics_out),
        cmocka_unit_test(the_architecture_is_guessed_from_the_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
