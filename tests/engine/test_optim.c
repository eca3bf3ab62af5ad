/* SGD and schedules against values worked out by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "each_isa.h"
#include "engine/optim.h"
#include "numbers.h"

/* w = 2, g = 0.5, decay 0.1: g' = 0.7. Momentum 0.9 from v = 1: v = 1.6. */
static void check_by_hand(void)
{
    float w = 2, g = 0.5f, v = 1;
    tk_sgd_step(1, &w, &g, &v, 0.1f, 0.9f, 0.1f, 0);
    assert_true(near(v, 1.6, 1e-6));
    assert_true(near(w, 2 - 0.1 * 1.6, 1e-6));
    w = 2, g = 0.5f, v = 1;
    tk_sgd_step(1, &w, &g, &v, 0.1f, 0.9f, 0.1f, 1);
    assert_true(near(v, 1.6, 1e-6));
    assert_true(near(w, 2 - 0.1 * (0.7 + 0.9 * 1.6), 1e-6));
}

static void sgd_steps_as_worked_out_by_hand(void **state)
{
    (void)state;
    each_isa(check_by_hand);
}

/* Three Nesterov steps on the quadratic w^2 / 2 from w = 1, rate 0.1, momentum 0.9, no decay:
 * v: 1, 1.71, 2.1141; w: 0.81, 0.5751, 0.327321. */
static void three_nesterov_steps_on_a_parabola(void **state)
{
    (void)state;
    const double want[] = {0.81, 0.5751, 0.327321};
    float w = 1, v = 0;
    for (int i = 0; i < 3; i++) {
        float g = w;
        tk_sgd_step(1, &w, &g, &v, 0.1f, 0.9f, 0, 1);
        assert_true(near(w, want[i], 1e-5));
    }
}

static void decay_touches_convolutions_only(void **state)
{
    (void)state;
    tk_pool *pool;
    tk_params *params, *before;
    assert_int_equal(tk_pool_create(&pool, 2), TK_OK);
    assert_int_equal(tk_params_create(&params, TK_RESNET20), TK_OK);
    for (size_t t = 0; t < params->tensors; t++) /* everything but padding is 2 */
        for (size_t i = 0; i < params->table[t].count; i++)
            params->data[params->table[t].offset + i] = 2;
    assert_int_equal(tk_params_clone(&before, params), TK_OK);
    float *grads = zeros(params->trained), *velocity = zeros(params->trained);
    tk_sgd_step_params(params, grads, velocity, 0.5f, 0.9f, 0.1f, 0, pool);
    for (size_t t = 0; t < params->tensors; t++) {
        const tk_param *p = &params->table[t];
        for (size_t i = 0; i < p->count; i++)
            assert_true(
                near(params->data[p->offset + i], p->kind == TK_PARAM_CONV ? 1.9 : 2, 1e-6));
    }
    for (size_t i = params->trained; i < params->count; i++)
        assert_true(params->data[i] == before->data[i]);
    tk_free(grads), tk_free(velocity);
    tk_params_destroy(params), tk_params_destroy(before);
    tk_pool_destroy(pool);
}

static void check_norm(void)
{
    float *g = normals(1000, 1);
    const float pair[] = {3, -4};
    assert_true(tk_norm(2, pair) == 5.0);
    assert_true(tk_norm(0, pair) == 0.0);
    const double norm = tk_norm(1000, g);
    assert_true(fabs(norm - sqrt(dot(1000, g, g))) < 1e-9);
    tk_scale(1000, g, 0.5f);
    assert_true(fabs(tk_norm(1000, g) - norm / 2) < 1e-9);
    g[777] = NAN;
    assert_true(isnan(tk_norm(1000, g)));
    for (size_t i = 0; i < 1000; i++)
        g[i] = 3e30f; /* squares would overflow a float */
    assert_true(fabs(tk_norm(1000, g) / (3e30 * sqrt(1000)) - 1) < 1e-6);
    tk_free(g);
}

static void norm_is_exact_wide_and_keeps_nan(void **state)
{
    (void)state;
    each_isa(check_norm);
}

static void schedules_follow_their_formulas(void **state)
{
    (void)state;
    const tk_schedule constant = {TK_SCHEDULE_CONSTANT, 0.4f, 10, 4};
    assert_true(near(tk_schedule_rate(&constant, 0), 0.1, 1e-7));
    assert_true(near(tk_schedule_rate(&constant, 3), 0.4, 1e-7));
    assert_true(near(tk_schedule_rate(&constant, 9), 0.4, 1e-7));
    const tk_schedule cosine = {TK_SCHEDULE_COSINE, 1, 8, 0};
    assert_true(near(tk_schedule_rate(&cosine, 0), 1, 1e-7));
    assert_true(near(tk_schedule_rate(&cosine, 2), 0.5 + 0.5 * sqrt(0.5), 1e-6));
    assert_true(near(tk_schedule_rate(&cosine, 4), 0.5, 1e-6));
    assert_true(near(tk_schedule_rate(&cosine, 7), 0.5 - 0.5 * cos(3.14159265358979 / 8), 1e-6));
    const tk_schedule cycle = {TK_SCHEDULE_ONE_CYCLE, 1, 10, 5};
    assert_true(near(tk_schedule_rate(&cycle, 0), 0.2, 1e-7));
    assert_true(near(tk_schedule_rate(&cycle, 4), 1, 1e-7));
    assert_true(near(tk_schedule_rate(&cycle, 5), 1, 1e-7));
    assert_true(near(tk_schedule_rate(&cycle, 9), 0.2, 1e-6));
    const tk_schedule all_warm = {TK_SCHEDULE_COSINE, 1, 2, 2};
    assert_true(near(tk_schedule_rate(&all_warm, 1), 1, 1e-7));
}

static void schedules_are_known_by_name(void **state)
{
    (void)state;
    tk_schedule_kind kind;
    tk_diag diag;
    assert_int_equal(tk_schedule_parse("cosine", &kind, &diag), TK_OK);
    assert_int_equal(kind, TK_SCHEDULE_COSINE);
    assert_int_equal(tk_schedule_parse("one-cycle", &kind, &diag), TK_OK);
    assert_int_equal(kind, TK_SCHEDULE_ONE_CYCLE);
    assert_int_equal(tk_schedule_parse("constant", &kind, &diag), TK_OK);
    assert_int_equal(tk_schedule_parse("step", &kind, &diag), TK_BADARG);
    assert_non_null(strstr(diag.text, "step"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sgd_steps_as_worked_out_by_hand),
        cmocka_unit_test(three_nesterov_steps_on_a_parabola),
        cmocka_unit_test(decay_touches_convolutions_only),
        cmocka_unit_test(norm_is_exact_wide_and_keeps_nan),
        cmocka_unit_test(schedules_follow_their_formulas),
        cmocka_unit_test(schedules_are_known_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
