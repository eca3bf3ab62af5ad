/* Closed forms worked out on paper and numerical gradients of the losses on logits. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "close.h"
#include "engine/rng.h"
#include "heads/loss.h"

/* Two classes, teacher (0, 0), student (ln 9, 0), T = 1: teacher (1/2, 1/2), student (0.9, 0.1).
 * KD = -1/2 ln 0.9 - 1/2 ln 0.1 = 1.2039728; entropy ln 2; gradient (0.4, -0.4). */
static void kd_of_two_classes_is_as_on_paper(void **state)
{
    (void)state;
    const float teacher[2] = {0, 0}, student[2] = {logf(9), 0};
    float gradient[2];
    double entropy;
    const double kd = tk_loss_kd(1, 2, teacher, student, 1, 1, gradient, &entropy);
    assert_close(kd, 1.2039728, 1e-6);
    assert_close(entropy, log(2), 1e-6);
    assert_close(gradient[0], 0.4, 1e-6);
    assert_close(gradient[1], -0.4, 1e-6);
}

/* The same at T = 2 with student (2 ln 9, 0): the softened student is again (0.9, 0.1); the loss is
 * T^2 = 4 times as large, its gradient T = 2 times. */
static void temperature_scales_loss_and_gradient_as_on_paper(void **state)
{
    (void)state;
    const float teacher[2] = {0, 0}, student[2] = {2 * logf(9), 0};
    float gradient[2];
    const double kd = tk_loss_kd(1, 2, teacher, student, 2, 1, gradient, NULL);
    assert_close(kd, 4 * 1.2039728, 1e-5);
    assert_close(gradient[0], 0.8, 1e-6);
}

/* The teacher is the target: with the two exchanged the value differs. */
static void teacher_is_the_target(void **state)
{
    (void)state;
    const float a[2] = {0, 0}, b[2] = {logf(9), 0};
    const double right = tk_loss_kd(1, 2, a, b, 1, 1, NULL, NULL);
    const double swapped = tk_loss_kd(1, 2, b, a, 1, 1, NULL, NULL);
    assert_close(swapped, log(2), 1e-6);
    assert_true(fabs(right - swapped) > 0.1);
}

static void equal_logits_have_no_divergence_and_no_gradient(void **state)
{
    (void)state;
    float z[5], gradient[5];
    double entropy;
    for (size_t k = 0; k < 5; k++)
        z[k] = 3 * tk_rng_normal(1, 2, k);
    const double kd = tk_loss_kd(1, 5, z, z, 2, 7, gradient, &entropy);
    assert_close(kd, entropy, 1e-9);
    for (size_t k = 0; k < 5; k++)
        assert_close(gradient[k], 0, 1e-7);
}

/* Central differences of `loss` in double would need a double loss; in float the step is 1e-2 and
 * the third derivative of log-sum-exp bounds the error well below 1e-3. */
static void kd_gradient_is_the_slope_of_its_value(void **state)
{
    (void)state;
    enum { N = 3, C = 7 };
    float teacher[N * C], student[N * C], gradient[N * C];
    for (size_t i = 0; i < N * C; i++) {
        teacher[i] = 2 * tk_rng_normal(3, 0, i);
        student[i] = 2 * tk_rng_normal(3, 1, i);
    }
    for (int t = 1; t <= 4; t++) {
        tk_loss_kd(N, C, teacher, student, (float)t, 0.7f, gradient, NULL);
        for (size_t i = 0; i < N * C; i++) {
            const float kept = student[i], h = 1e-2f;
            student[i] = kept + h;
            const double up = tk_loss_kd(N, C, teacher, student, (float)t, 1, NULL, NULL);
            student[i] = kept - h;
            const double down = tk_loss_kd(N, C, teacher, student, (float)t, 1, NULL, NULL);
            student[i] = kept;
            assert_close(gradient[i], 0.7 * (up - down) / (2 * (double)h), 2e-4);
        }
    }
}

/* Two classes, logits (ln 3, 0), p = (3/4, 1/4), label 0, smoothing 0.2: q = (0.9, 0.1);
 * L = -0.9 ln 3/4 - 0.1 ln 1/4; dL = p - q. */
static void smoothed_cross_entropy_is_as_on_paper(void **state)
{
    (void)state;
    const float z[2] = {logf(3), 0};
    const uint32_t label = 0;
    float gradient[2];
    const double ce = tk_loss_ce(1, 2, z, &label, 0.2f, gradient);
    assert_close(ce, -0.9 * log(0.75) - 0.1 * log(0.25), 1e-6);
    assert_close(gradient[0], 0.75 - 0.9, 1e-6);
    assert_close(gradient[1], 0.25 - 0.1, 1e-6);
}

static void ce_gradient_is_the_slope_of_its_value(void **state)
{
    (void)state;
    enum { N = 4, C = 6 };
    float z[N * C], gradient[N * C];
    uint32_t labels[N];
    for (size_t i = 0; i < N * C; i++)
        z[i] = 3 * tk_rng_normal(5, 0, i);
    for (size_t i = 0; i < N; i++)
        labels[i] = (uint32_t)(i % C);
    tk_loss_ce(N, C, z, labels, 0.1f, gradient);
    for (size_t i = 0; i < N * C; i++) {
        const float kept = z[i], h = 1e-2f;
        z[i] = kept + h;
        const double up = tk_loss_ce(N, C, z, labels, 0.1f, NULL);
        z[i] = kept - h;
        const double down = tk_loss_ce(N, C, z, labels, 0.1f, NULL);
        z[i] = kept;
        assert_close(gradient[i], (up - down) / (2 * (double)h), 1e-4);
    }
}

static void huge_logits_stay_finite(void **state)
{
    (void)state;
    const float z[3] = {1e30f, -1e30f, 0}, t[3] = {-65504, 65504, 0};
    const uint32_t label = 0;
    float gradient[3];
    assert_true(isfinite(tk_loss_ce(1, 3, z, &label, 0, gradient)));
    for (size_t k = 0; k < 3; k++)
        assert_true(isfinite(gradient[k]));
    assert_true(isfinite(tk_loss_kd(1, 3, t, t, 2, 1, gradient, NULL)));
    for (size_t k = 0; k < 3; k++)
        assert_true(isfinite(gradient[k]));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kd_of_two_classes_is_as_on_paper),
        cmocka_unit_test(temperature_scales_loss_and_gradient_as_on_paper),
        cmocka_unit_test(teacher_is_the_target),
        cmocka_unit_test(equal_logits_have_no_divergence_and_no_gradient),
        cmocka_unit_test(kd_gradient_is_the_slope_of_its_value),
        cmocka_unit_test(smoothed_cross_entropy_is_as_on_paper),
        cmocka_unit_test(ce_gradient_is_the_slope_of_its_value),
        cmocka_unit_test(huge_logits_stay_finite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
