/* Errors, memory, files and random numbers. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/err.h"
#include "engine/file.h"
#include "engine/mem.h"
#include "engine/rng.h"
#include "scratch.h"

static void every_error_has_its_own_text(void **state)
{
    (void)state;
    for (int a = TK_OK; a <= TK_INTERNAL; a++) {
        assert_true(strlen(tk_err_text((tk_err)a)) > 1);
        for (int b = TK_OK; b < a; b++)
            assert_string_not_equal(tk_err_text((tk_err)a), tk_err_text((tk_err)b));
    }
    assert_string_equal(tk_err_text((tk_err)1000), "unknown error");
}

static void a_failure_carries_its_sentence(void **state)
{
    (void)state;
    tk_diag diag;
    assert_int_equal(tk_fail(&diag, TK_BADDATA, "tensor %s: %d", "a", 3), TK_BADDATA);
    assert_string_equal(diag.text, "tensor a: 3");
    assert_int_equal(tk_fail(NULL, TK_BADARG, "nobody reads this"), TK_BADARG);
    errno = ENOSPC;
    assert_int_equal(tk_fail_errno(&diag, "x"), TK_NOSPACE);
    assert_string_equal(diag.text, "x: No space left on device");
    errno = ENOENT;
    assert_int_equal(tk_fail_errno(NULL, "x"), TK_NOTFOUND);
}

static void an_endless_sentence_is_cut(void **state)
{
    (void)state;
    tk_diag diag;
    char text[2000];
    memset(text, 'a', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    tk_err err = tk_fail(&diag, TK_BADARG, "%s", text);
    assert_int_equal(err, TK_BADARG);
    assert_int_equal(strlen(diag.text), sizeof diag.text - 1);
    errno = EIO;
    err = tk_fail_errno(&diag, "%s", text);
    assert_int_equal(err, TK_IO);
    assert_int_equal(strlen(diag.text), sizeof diag.text - 1);
}

static void products_that_overflow_are_refused(void **state)
{
    (void)state;
    size_t out;
    assert_true(tk_mul_size(SIZE_MAX, 1, &out) && out == SIZE_MAX);
    assert_true(tk_mul_size(SIZE_MAX, 0, &out) && out == 0);
    assert_false(tk_mul_size(SIZE_MAX / 2 + 1, 2, &out));
    assert_null(tk_calloc(SIZE_MAX / 2 + 1, 2));
    assert_null(tk_aligned_calloc(SIZE_MAX, 1));
}

static void memory_is_zeroed_aligned_and_counted(void **state)
{
    (void)state;
    long live = tk_test_alloc_live();
    unsigned char *p = tk_calloc(100, 1);
    unsigned char *q = tk_aligned_calloc(100, 1);
    assert_non_null(p);
    assert_non_null(q);
    assert_int_equal((uintptr_t)q % 64, 0);
    for (int i = 0; i < 100; i++)
        assert_int_equal(p[i] | q[i], 0);
    assert_int_equal(tk_test_alloc_live(), live + 2);
    p[99] = 7;
    p = tk_realloc(p, 200);
    assert_int_equal(p[99], 7);
    assert_int_equal(tk_test_alloc_live(), live + 2);
    tk_free(p);
    tk_free(q);
    tk_free(NULL);
    assert_int_equal(tk_test_alloc_live(), live);
}

static void allocation_fails_on_demand(void **state)
{
    (void)state;
    tk_test_alloc_fail_after(1);
    void *p = tk_calloc(1, 1);
    assert_non_null(p);
    assert_null(tk_calloc(1, 1));
    assert_null(tk_aligned_calloc(1, 1));
    assert_null(tk_strdup("a"));
    assert_null(tk_realloc(p, 10)); /* p stays valid */
    tk_test_alloc_fail_after(-1);
    tk_free(p);
}

static void an_arena_is_full_and_never_grows(void **state)
{
    (void)state;
    tk_arena a;
    assert_true(tk_arena_init(&a, 256));
    unsigned char *p = tk_arena_alloc(&a, 10, 10);
    unsigned char *q = tk_arena_alloc(&a, 1, 128);
    assert_int_equal((uintptr_t)q % 64, 0);
    assert_int_equal(q - p, 128);
    assert_null(tk_arena_alloc(&a, 1, 1));
    assert_null(tk_arena_alloc(&a, SIZE_MAX, 2));
    tk_arena_reset(&a);
    assert_ptr_equal(tk_arena_alloc(&a, 1, 256), p);
    assert_int_equal(a.peak, 256);
    tk_arena_fini(&a);
}

static void a_file_appears_only_when_committed(void **state)
{
    const char *path = scratch_path(*state, "file");
    tk_file file;
    tk_diag diag;
    assert_int_equal(tk_file_create(&file, path, &diag), TK_OK);
    fputs("hello", file.stream);
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(tk_file_commit(&file, &diag), TK_OK);
    assert_int_equal(scratch_count(*state), 1);

    assert_int_equal(tk_file_create(&file, path, &diag), TK_OK);
    fputs("other", file.stream);
    tk_file_abort(&file);
    assert_int_equal(scratch_count(*state), 1);

    tk_map map;
    assert_int_equal(tk_map_open(&map, path, &diag), TK_OK);
    assert_int_equal(map.size, 5);
    assert_memory_equal(map.data, "hello", 5);
    tk_map_close(&map);
    tk_map_close(&map);
    tk_map_close(NULL);
}

static void files_that_cannot_be_say_so(void **state)
{
    tk_diag diag;
    tk_map map;
    tk_file file;
    assert_int_equal(tk_map_open(&map, scratch_path(*state, "absent"), &diag), TK_NOTFOUND);
    assert_non_null(strstr(diag.text, "absent: No such file"));
    assert_int_equal(tk_map_open(&map, (const char *)*state, &diag), TK_BADARG);
    assert_int_equal(tk_file_create(&file, scratch_path(*state, "no/such"), &diag), TK_NOTFOUND);
    assert_null(file.stream);
}

/* A full disk is noticed at the commit, and the old file stays. */
static void a_failed_write_keeps_the_old_file(void **state)
{
    tk_diag diag;
    tk_map map;
    tk_file file;
    assert_int_equal(tk_file_write(scratch_path(*state, "f"), "old", 3, &diag), TK_OK);
    for (int full = 0; full < 2; full++) {
        assert_int_equal(tk_file_create(&file, scratch_path(*state, "f"), &diag), TK_OK);
        fclose(file.stream);
        /* A stream that is only for reading fails at once and leaves nothing to flush. */
        file.stream = full ? fopen("/dev/full", "wb") : fopen(file.temp, "rb");
        assert_non_null(file.stream);
        fputs("new", file.stream);
        assert_int_equal(tk_file_commit(&file, &diag), full ? TK_NOSPACE : TK_IO);
    }
    assert_int_equal(tk_map_open(&map, scratch_path(*state, "f"), &diag), TK_OK);
    assert_memory_equal(map.data, "old", 3);
    tk_map_close(&map);
    assert_int_equal(scratch_count(*state), 1);
}

static void an_empty_file_maps_to_nothing(void **state)
{
    tk_diag diag;
    tk_map map;
    assert_int_equal(tk_file_write(scratch_path(*state, "empty"), NULL, 0, &diag), TK_OK);
    assert_int_equal(tk_map_open(&map, scratch_path(*state, "empty"), &diag), TK_OK);
    assert_null(map.data);
    assert_int_equal(map.size, 0);
    tk_map_close(&map);
}

static void writing_a_file_survives_no_memory(void **state)
{
    long live = tk_test_alloc_live();
    for (long n = 0;; n++) {
        tk_test_alloc_fail_after(n);
        tk_err err = tk_file_write(scratch_path(*state, "f"), "x", 1, NULL);
        tk_test_alloc_fail_after(-1);
        assert_int_equal(tk_test_alloc_live(), live);
        if (err == TK_OK) break;
        assert_int_equal(err, TK_NOMEM);
        assert_true(n < 10);
    }
    assert_int_equal(scratch_count(*state), 1);
}

/* The numbers are printed by tests/golden/rng.py. */
static void random_numbers_equal_those_of_python(void **state)
{
    (void)state;
    assert_true(tk_rng_u64(7, 3, 0) == 0xaec971331f50717c);
    assert_true(tk_rng_u64(7, 3, 1) == 0x3b43325c33913dc4);
    assert_true(tk_rng_u64(7, 3, 1ull << 40) == 0x324998eda10b377f);
    assert_true(tk_rng_u64(UINT64_MAX, UINT64_MAX, UINT64_MAX) == 0x4bffd802ebfb15e4);
    assert_true(tk_rng_stream("layer1.0.conv1.weight") == 0x721d90ca2264c0ea);

    static const float uniform[] = {0x1.5d92e2p-1f, 0x1.da199p-3f, 0x1.b85b24p-2f, 0x1.bb195ap-1f};
    for (uint64_t i = 0; i < 4; i++)
        assert_true(tk_rng_uniform(7, 3, i) == uniform[i]);
    static const float normal[] = {0x1.41907ap-1f, 0x1.0722cp-1f,  -0x1.4617ecp+0f,
                                   0x1.7bb5fap-3f, 0x1.438a5ep-1f, 0x1.d7765cp-3f};
    for (uint64_t i = 0; i < 6; i++)
        assert_true(fabsf(tk_rng_normal(7, 3, i) - normal[i]) <= 0x1p-24f);
    static const uint32_t below[] = {6, 2, 4, 8, 3, 8, 1, 1, 1, 9, 3, 2};
    for (uint64_t i = 0; i < 12; i++)
        assert_int_equal(tk_rng_below(7, 3, i, 10), below[i]);
    static const uint32_t permutation[] = {2, 6, 10, 11, 7, 5, 0, 8, 1, 9, 4, 3};
    uint32_t drawn[12];
    tk_rng_permutation(7, 3, 12, drawn);
    assert_memory_equal(drawn, permutation, sizeof drawn);
}

static void normal_numbers_have_the_normal_moments(void **state)
{
    (void)state;
    enum { N = 200000 };
    double sum[5] = {0};
    for (uint64_t i = 0; i < N; i++) {
        double x = (double)tk_rng_normal(1, 2, i), power = 1;
        for (int k = 1; k <= 4; k++)
            sum[k] += power *= x;
    }
    assert_true(fabs(sum[1] / N) < 0.01);
    assert_true(fabs(sum[2] / N - 1) < 0.02);
    assert_true(fabs(sum[3] / N) < 0.05);
    assert_true(fabs(sum[4] / N - 3) < 0.1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_error_has_its_own_text),
        cmocka_unit_test(a_failure_carries_its_sentence),
        cmocka_unit_test(an_endless_sentence_is_cut),
        cmocka_unit_test(products_that_overflow_are_refused),
        cmocka_unit_test(memory_is_zeroed_aligned_and_counted),
        cmocka_unit_test(allocation_fails_on_demand),
        cmocka_unit_test(an_arena_is_full_and_never_grows),
        cmocka_unit_test_setup_teardown(a_file_appears_only_when_committed, scratch_make,
                                        scratch_remove),
        cmocka_unit_test_setup_teardown(files_that_cannot_be_say_so, scratch_make, scratch_remove),
        cmocka_unit_test_setup_teardown(a_failed_write_keeps_the_old_file, scratch_make,
                                        scratch_remove),
        cmocka_unit_test_setup_teardown(an_empty_file_maps_to_nothing, scratch_make,
                                        scratch_remove),
        cmocka_unit_test_setup_teardown(writing_a_file_survives_no_memory, scratch_make,
                                        scratch_remove),
        cmocka_unit_test(random_numbers_equal_those_of_python),
        cmocka_unit_test(normal_numbers_have_the_normal_moments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
