/* A head's share of the Fisher sum: precise enough, and gone when it is taken out. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "close.h"
#include "engine/rng.h"
#include "heads/ewc.h"
#include "heads/ewc_share.h"

enum { N = 4000 };

/* Squares of normal numbers over 24 octaves, with zeros among them. */
static void draw(uint64_t seed, float *fisher)
{
    for (size_t j = 0; j < N; j++) {
        const float g = tk_rng_normal(seed, 1, j);
        fisher[j] = j % 7 == 0 ? 0 : ldexpf(g * g, -(int)tk_rng_below(seed, 2, j, 24));
    }
}

static void an_entry_is_right_to_a_sixteenth_of_an_octave(void **state)
{
    (void)state;
    float exact[N], kept[N], again[N];
    tk_ewc_share share, same;
    draw(1, exact);
    memcpy(kept, exact, sizeof kept);
    assert_int_equal(tk_ewc_share_create(&share, N, kept), TK_OK);
    for (size_t j = 0; j < N; j++) {
        if (exact[j] == 0 || (double)exact[j] < (double)share.largest * exp2(-31.75))
            assert_true(kept[j] == 0);
        else
            assert_close(log2((double)kept[j] / (double)exact[j]), 0, 1.0 / 16 + 1e-6);
    }
    /* What is kept is kept again as it is. */
    memcpy(again, kept, sizeof again);
    assert_int_equal(tk_ewc_share_create(&same, N, again), TK_OK);
    assert_memory_equal(again, kept, sizeof kept);
    tk_ewc_share_fini(&same);
    tk_ewc_share_fini(&share);
}

static void a_diagonal_of_zeros_adds_nothing(void **state)
{
    (void)state;
    float zeros[4] = {0}, sum[4] = {1, 2, 3, 4};
    tk_ewc_share share;
    assert_int_equal(tk_ewc_share_create(&share, 4, zeros), TK_OK);
    assert_true(share.largest > 0);
    tk_ewc_share_add(&share, 1, sum);
    assert_memory_equal(sum, ((const float[]){1, 2, 3, 4}), sizeof sum);
    tk_ewc_share_fini(&share);
}

/* Three heads are merged, one leaves: the running sum is that of the other two alone, to the
 * rounding of a float's sum, and nowhere below 0. */
static void leaves_the_others_sum(tk_ewc_form form, double gamma)
{
    enum { HEADS = 3, GONE = 1 };
    static float sum[N], anchor[N], theta[N], others[N], fisher[N];
    tk_ewc_share shares[HEADS];
    memset(sum, 0, sizeof sum);
    memset(anchor, 0, sizeof anchor);
    memset(others, 0, sizeof others);
    for (size_t h = 0; h < HEADS; h++) {
        draw(10 + h, fisher);
        for (size_t j = 0; j < N; j++)
            theta[j] = tk_rng_normal(20 + h, 3, j);
        assert_int_equal(tk_ewc_share_create(&shares[h], N, fisher), TK_OK);
        tk_ewc_merge(N, sum, anchor, fisher, theta, form, gamma);
        for (size_t k = 0; k < h && form == TK_EWC_ONLINE; k++)
            shares[k].weight *= gamma;
    }
    static float before[N];
    memcpy(before, sum, sizeof before);
    tk_ewc_share_add(&shares[GONE], -1, sum);
    for (size_t h = 0; h < HEADS; h++)
        if (h != GONE) tk_ewc_share_add(&shares[h], 1, others);
    for (size_t j = 0; j < N; j++) {
        assert_true(sum[j] >= 0);
        assert_close(sum[j], others[j], 4e-7 * (double)before[j]);
    }
    if (form == TK_EWC_ONLINE) assert_memory_equal(anchor, theta, sizeof anchor);
    for (size_t h = 0; h < HEADS; h++)
        tk_ewc_share_fini(&shares[h]);
}

static void who_leaves_takes_its_share_of_the_sum(void **state)
{
    (void)state;
    leaves_the_others_sum(TK_EWC_ONLINE, 1);
    leaves_the_others_sum(TK_EWC_ONLINE, 0.7);
    leaves_the_others_sum(TK_EWC_COLLAPSE, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_entry_is_right_to_a_sixteenth_of_an_octave),
        cmocka_unit_test(a_diagonal_of_zeros_adds_nothing),
        cmocka_unit_test(who_leaves_takes_its_share_of_the_sum),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
