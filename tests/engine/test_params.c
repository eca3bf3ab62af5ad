/* Architectures and parameter tables. Fingerprints and counts are printed by tests/golden/params.py
 * from torchvision's models. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/mem.h"
#include "engine/net.h"
#include "engine/rng.h"

static tk_params *create(tk_arch arch)
{
    tk_params *params;
    assert_int_equal(tk_params_create(&params, arch), TK_OK);
    return params;
}

/* "name 64x64x3x3\n" per tensor, hashed. */
static uint64_t fingerprint(const tk_params *params)
{
    size_t size = params->tensors * 80, used = 0;
    char *text = calloc(size, 1);
    assert_non_null(text);
    for (size_t t = 0; t < params->tensors; t++) {
        const tk_param *p = &params->table[t];
        int n;
        if (p->kind == TK_PARAM_CONV)
            n = snprintf(text + used, size - used, "%s %zux%zux%zux%zu\n", p->name, p->oc, p->ic,
                         p->k, p->k);
        else
            n = snprintf(text + used, size - used, "%s %zu\n", p->name, p->oc);
        used += (size_t)n;
    }
    uint64_t hash = tk_rng_stream(text);
    free(text);
    return hash;
}

static void tables_equal_torchvisions(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint64_t fingerprint;
        size_t trained, features;
    } golden[] = {
        {"resnet18", 0xdfde402cfb2ec3a1, 11176512, 512},
        {"resnet34", 0x2f2b53a2a4cdef33, 21284672, 512},
        {"resnet50", 0x519f7aa68acf5fa6, 23508032, 2048},
        {"resnet20", 0x81f25787f6e162cf, 271824, 64},
        {"resnet32", 0x607ce9509448fb7f, 466256, 64},
        {"resnet56", 0x7327010be767132f, 855120, 64},
    };
    for (size_t i = 0; i < sizeof golden / sizeof golden[0]; i++) {
        tk_arch arch;
        assert_int_equal(tk_arch_parse(golden[i].name, &arch, NULL), TK_OK);
        assert_string_equal(tk_arch_name(arch), golden[i].name);
        assert_int_equal(tk_arch_features(arch), golden[i].features);
        tk_params *params = create(arch);
        size_t trained = 0;
        for (size_t t = 0; t < params->tensors; t++) {
            const tk_param *p = &params->table[t];
            if (p->kind != TK_PARAM_BN_MEAN && p->kind != TK_PARAM_BN_VAR) trained += p->count;
        }
        assert_true(fingerprint(params) == golden[i].fingerprint);
        assert_int_equal(trained, golden[i].trained);
        tk_params_destroy(params);
    }
}

static void tensors_lie_aligned_and_apart_trained_first(void **state)
{
    (void)state;
    for (int arch = 0; arch < TK_ARCH_COUNT; arch++) {
        tk_params *params = create((tk_arch)arch);
        size_t end = 0;
        for (size_t t = 0; t < params->tensors; t++) {
            const tk_param *p = &params->table[t];
            bool running = p->kind == TK_PARAM_BN_MEAN || p->kind == TK_PARAM_BN_VAR;
            assert_true(p->offset % 16 == 0 && p->offset >= end);
            assert_int_equal(running, p->offset >= params->trained);
            assert_int_equal(tk_params_find(params, p->name), t);
            end = p->offset + p->count;
        }
        assert_true(end <= params->count && params->count - end < 16);
        assert_int_equal(params->trained % 16, 0);
        assert_int_equal((uintptr_t)params->data % 64, 0);
        assert_int_equal(tk_params_find(params, "fc.weight"), -1);
        tk_params_destroy(params);
    }
}

static void initial_values_equal_those_of_python(void **state)
{
    (void)state;
    tk_params *params = create(TK_RESNET20);
    tk_params_init(params, 42);
    const tk_param *p = &params->table[tk_params_find(params, "conv1.weight")];
    float disk[16 * 3 * 9];
    assert_int_equal(p->count, sizeof disk / sizeof disk[0]);
    tk_param_to_disk(p, params->data + p->offset, disk);
    static const size_t at[] = {0, 1, 9, 27, 431}; /* OIHW */
    static const float golden[] = {0x1.2a50aap-4f, -0x1.c6e746p-4f, -0x1.03fc26p-4f, 0x1.56c06ap-4f,
                                   0x1.cb4cc6p-6f};
    for (size_t i = 0; i < 5; i++)
        assert_true(fabsf(disk[at[i]] - golden[i]) <= 0x1p-26f);
    p = &params->table[tk_params_find(params, "layer2.0.downsample.1.running_var")];
    assert_true(params->data[p->offset] == 1.0f && params->data[p->offset + p->count - 1] == 1.0f);
    p = &params->table[tk_params_find(params, "layer2.0.downsample.1.bias")];
    assert_true(params->data[p->offset] == 0.0f);
    tk_params_destroy(params);
}

static void padding_between_tensors_stays_zero(void **state)
{
    (void)state;
    tk_params *params = create(TK_RESNET20);
    tk_params_init(params, 1);
    for (size_t t = 0; t + 1 < params->tensors; t++) {
        const tk_param *p = &params->table[t];
        for (size_t i = p->offset + p->count; i < p[1].offset; i++)
            assert_true(params->data[i] == 0.0f);
    }
    tk_params_destroy(params);
}

static void a_filter_goes_to_disk_and_back(void **state)
{
    (void)state;
    const tk_param p = {.kind = TK_PARAM_CONV, .oc = 2, .ic = 3, .k = 2, .count = 24};
    float hwio[24], oihw[24], back[24];
    for (size_t i = 0; i < 24; i++)
        hwio[i] = (float)i;
    tk_param_to_disk(&p, hwio, oihw);
    /* [o=1][i=2][y=0][x=1] of the file is [y=0][x=1][i=2][o=1] of memory. */
    assert_true(oihw[(1 * 3 + 2) * 4 + 1] == hwio[(1 * 3 + 2) * 2 + 1]);
    tk_param_from_disk(&p, oihw, back);
    assert_memory_equal(back, hwio, sizeof back);
}

static void a_nan_is_found_by_name(void **state)
{
    (void)state;
    tk_params *params = create(TK_RESNET20), *copy;
    tk_params_init(params, 1);
    assert_null(tk_params_nonfinite(params));
    assert_int_equal(tk_params_clone(&copy, params), TK_OK);
    assert_memory_equal(copy->data, params->data, params->count * sizeof(float));
    const tk_param *p = &copy->table[tk_params_find(copy, "layer3.2.bn2.running_var")];
    copy->data[p->offset + p->count - 1] = INFINITY;
    assert_string_equal(tk_params_nonfinite(copy), "layer3.2.bn2.running_var");
    tk_params_copy(copy, params);
    assert_null(tk_params_nonfinite(copy));
    tk_params_destroy(copy);
    tk_params_destroy(params);
    tk_params_destroy(NULL);
}

static void only_known_names_and_sizes_are_taken(void **state)
{
    (void)state;
    tk_arch arch;
    tk_diag diag;
    assert_int_equal(tk_arch_parse("resnet19", &arch, &diag), TK_BADARG);
    assert_non_null(strstr(diag.text, "\"resnet19\""));
    assert_int_equal(tk_arch_check_px(TK_RESNET18, 64, &diag), TK_OK);
    assert_int_equal(tk_arch_check_px(TK_RESNET50, 448, &diag), TK_OK);
    assert_int_equal(tk_arch_check_px(TK_RESNET18, 63, &diag), TK_BADARG);
    assert_string_equal(diag.text, "resnet18 takes images of 64 to 448 px, not 63");
    assert_int_equal(tk_arch_check_px(TK_RESNET32, 33, &diag), TK_BADARG);
    assert_string_equal(diag.text, "resnet32 takes images of 32 px, not 33");
    assert_int_equal(tk_arch_check_px(TK_RESNET32, 32, &diag), TK_OK);
}

static void creating_survives_no_memory(void **state)
{
    (void)state;
    long live = tk_test_alloc_live();
    tk_params *params;
    for (long n = 0;; n++) {
        tk_test_alloc_fail_after(n);
        tk_err err = tk_params_create(&params, TK_RESNET20);
        tk_test_alloc_fail_after(-1);
        if (err == TK_OK) break;
        assert_int_equal(err, TK_NOMEM);
        assert_null(params);
        assert_int_equal(tk_test_alloc_live(), live);
    }
    tk_params_destroy(params);
    assert_int_equal(tk_test_alloc_live(), live);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tables_equal_torchvisions),
        cmocka_unit_test(tensors_lie_aligned_and_apart_trained_first),
        cmocka_unit_test(initial_values_equal_those_of_python),
        cmocka_unit_test(padding_between_tensors_stays_zero),
        cmocka_unit_test(a_filter_goes_to_disk_and_back),
        cmocka_unit_test(a_nan_is_found_by_name),
        cmocka_unit_test(only_known_names_and_sizes_are_taken),
        cmocka_unit_test(creating_survives_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
