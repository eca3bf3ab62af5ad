/* The quadratic penalty on two parameters, worked out on paper; the proximal step; many heads in
 * two vectors. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "close.h"
#include "engine/rng.h"
#include "heads/ewc.h"

/* theta (1, 2), anchor (0, 4), F (3, 1/2), lambda 2: 2/2 (3 * 1 + 1/2 * 4) = 5. */
static void penalty_of_two_parameters_is_as_on_paper(void **state)
{
    (void)state;
    const float theta[2] = {1, 2}, anchor[2] = {0, 4}, fisher[2] = {3, 0.5f};
    assert_close(tk_ewc_penalty(2, theta, anchor, fisher, 2), 5, 1e-9);
}

/* rate 0.5: s = 0.5 * 2 * F = (3, 1/2); theta = (1/(1+3), (2 + 1/2 * 4)/(1 + 1/2)) = (0.25, 8/3).
 */
static void proximal_step_is_as_on_paper(void **state)
{
    (void)state;
    float theta[2] = {1, 2};
    const float anchor[2] = {0, 4}, fisher[2] = {3, 0.5f};
    assert_close(tk_ewc_proximal(2, theta, anchor, fisher, 2, 0.5), 5, 1e-9);
    assert_close(theta[0], 0.25, 1e-7);
    assert_close(theta[1], 8.0 / 3, 1e-6);
}

/* The plain step is theta - rate * lambda * F (theta - a): for a small rate both agree. */
static void proximal_step_is_the_gradient_step_for_small_rates(void **state)
{
    (void)state;
    float theta = 2;
    const float anchor = 1, fisher = 0.5f;
    tk_ewc_proximal(1, &theta, &anchor, &fisher, 1, 1e-3);
    assert_close(theta, 2 - 1e-3 * 0.5, 1e-6);
}

/* rate * lambda * F = 1e9 and beyond any number: the plain step would overshoot a billionfold. */
static void proximal_step_is_stable_for_huge_lambda(void **state)
{
    (void)state;
    const double lambdas[] = {1e9, 1e30, 1e300};
    for (size_t i = 0; i < 3; i++) {
        float theta[2] = {5, -3};
        const float anchor[2] = {1, 1}, fisher[2] = {1, 1e8f};
        for (int step = 0; step < 100; step++)
            tk_ewc_proximal(2, theta, anchor, fisher, lambdas[i], 1);
        assert_close(theta[0], 1, 1e-6);
        assert_close(theta[1], 1, 1e-6);
    }
}

static void a_weight_that_no_head_needs_is_free(void **state)
{
    (void)state;
    float theta = 5;
    const float anchor = 1, fisher = 0;
    assert_close(tk_ewc_proximal(1, &theta, &anchor, &fisher, 1e30, 1), 0, 0);
    assert_close(theta, 5, 0);
}

/* sum of two heads' penalties - penalty of the collapsed pair is the same constant at every theta.
 */
static void collapse_equals_the_sum_of_two_penalties(void **state)
{
    (void)state;
    enum { N = 9 };
    float f1[N], f2[N], t1[N], t2[N], fisher[N] = {0}, anchor[N] = {0};
    for (size_t j = 0; j < N; j++) {
        f1[j] = fabsf(tk_rng_normal(1, 1, j));
        f2[j] = j == 0 ? 0 : fabsf(tk_rng_normal(1, 2, j));
        t1[j] = tk_rng_normal(1, 3, j);
        t2[j] = tk_rng_normal(1, 4, j);
    }
    f1[0] = 0; /* nobody cares for weight 0 */
    tk_ewc_merge(N, fisher, anchor, f1, t1, TK_EWC_COLLAPSE, 1);
    tk_ewc_merge(N, fisher, anchor, f2, t2, TK_EWC_COLLAPSE, 1);
    double constant = 0;
    for (uint64_t trial = 0; trial < 5; trial++) {
        float theta[N];
        for (size_t j = 0; j < N; j++)
            theta[j] = 2 * tk_rng_normal(9, trial, j);
        const double apart =
            tk_ewc_penalty(N, theta, t1, f1, 3) + tk_ewc_penalty(N, theta, t2, f2, 3);
        const double difference = apart - tk_ewc_penalty(N, theta, anchor, fisher, 3);
        if (trial == 0) constant = difference;
        assert_close(difference, constant, 1e-4);
    }
    assert_true(constant > 0.1); /* the heads do disagree: the check would notice a lost anchor */
}

static void online_form_decays_and_anchors_at_the_newest(void **state)
{
    (void)state;
    float fisher[2] = {4, 0}, anchor[2] = {9, 9};
    const float add[2] = {1, 3}, theta[2] = {5, 6};
    tk_ewc_merge(2, fisher, anchor, add, theta, TK_EWC_ONLINE, 0.5);
    assert_close(fisher[0], 3, 0);
    assert_close(fisher[1], 3, 0);
    assert_close(anchor[0], 5, 0);
    assert_close(anchor[1], 6, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(penalty_of_two_parameters_is_as_on_paper),
        cmocka_unit_test(proximal_step_is_as_on_paper),
        cmocka_unit_test(proximal_step_is_the_gradient_step_for_small_rates),
        cmocka_unit_test(proximal_step_is_stable_for_huge_lambda),
        cmocka_unit_test(a_weight_that_no_head_needs_is_free),
        cmocka_unit_test(collapse_equals_the_sum_of_two_penalties),
        cmocka_unit_test(online_form_decays_and_anchors_at_the_newest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
