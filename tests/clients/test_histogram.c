/* trunkctl's histogram of times against a sorted list of the same times. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "histogram.h"

enum { N = 20000 };

static uint64_t next(uint64_t *state) /* splitmix64 */
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

static int rising(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void test_empty(void **state)
{
    (void)state;
    static const tk__histogram h;
    assert_true(isnan(tk__histogram_quantile(&h, 0.5)));
    assert_true(isnan(tk__histogram_mean(&h)));
}

static void test_short_times_are_exact(void **state)
{
    (void)state;
    static tk__histogram h;
    for (int64_t ns = 1; ns <= 200; ns++)
        tk__histogram_add(&h, ns);
    assert_true(tk__histogram_quantile(&h, 0) == 1);
    assert_true(tk__histogram_quantile(&h, 0.25) == 50);
    assert_true(tk__histogram_quantile(&h, 0.5) == 100);
    assert_true(tk__histogram_quantile(&h, 1) == 200);
    assert_true(tk__histogram_mean(&h) == 100.5);
}

/* From 1 ns to an hour, evenly in the logarithm. */
static void test_against_sorted(void **state)
{
    (void)state;
    static tk__histogram h;
    static int64_t sorted[N];
    uint64_t seed = 1;
    for (size_t i = 0; i < N; i++) {
        const double unit = (double)(next(&seed) >> 11) * 0x1p-53;
        sorted[i] = (int64_t)exp(unit * log(3600e9));
        tk__histogram_add(&h, sorted[i]);
    }
    qsort(sorted, N, sizeof(*sorted), rising);
    assert_int_equal(h.n, N);
    assert_int_equal(h.longest_ns, sorted[N - 1]);
    double before = 0;
    for (size_t rank = 1; rank <= N; rank++) {
        const double exact = (double)sorted[rank - 1];
        const double got = tk__histogram_quantile(&h, ((double)rank - 0.5) / N);
        assert_true(got >= exact && got <= 1.01 * exact);
        assert_true(got >= before);
        before = got;
    }
    assert_true(tk__histogram_quantile(&h, 1) == (double)sorted[N - 1]);
}

static void test_edges_of_buckets(void **state)
{
    (void)state;
    for (unsigned log2 = 0; log2 < TK__HISTOGRAM_TOP; log2++) {
        for (int64_t step = -1; step <= 1; step++) {
            const int64_t ns = ((int64_t)1 << log2) + step;
            static tk__histogram h;
            h = (tk__histogram){0};
            tk__histogram_add(&h, ns);
            tk__histogram_add(&h, INT64_MAX); /* so that the longest does not hide the bucket */
            const double got = tk__histogram_quantile(&h, 0.5);
            assert_true(got >= (double)ns && got <= 1.01 * (double)ns);
        }
    }
}

static void test_out_of_range(void **state)
{
    (void)state;
    static tk__histogram h;
    tk__histogram_add(&h, INT64_MIN);
    assert_true(tk__histogram_quantile(&h, 1) == 0);
    tk__histogram_add(&h, INT64_MAX);
    tk__histogram_add(&h, (int64_t)1 << TK__HISTOGRAM_TOP);
    assert_int_equal(h.n, 3);
    assert_int_equal(h.longest_ns, INT64_MAX);
    assert_true(tk__histogram_quantile(&h, 0.3) == 0);
    assert_true(tk__histogram_quantile(&h, 1) == (double)INT64_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_empty),          cmocka_unit_test(test_short_times_are_exact),
        cmocka_unit_test(test_against_sorted), cmocka_unit_test(test_edges_of_buckets),
        cmocka_unit_test(test_out_of_range),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
