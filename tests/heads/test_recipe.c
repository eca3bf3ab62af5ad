/* Recipes by name and hyper-parameters by name: what is wrong is said, with field, limit and value.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "heads/recipe.h"

static void every_recipe_has_defaults_within_its_own_limits(void **state)
{
    (void)state;
    for (size_t i = 0; i < tk_recipe_count(); i++)
        for (tk_arch arch = 0; arch < TK_ARCH_COUNT; arch++) {
            tk_recipe r, copy;
            assert_int_equal(tk_recipe_find(&r, tk_recipe_name(i), arch, NULL), TK_OK);
            assert_string_equal(r.name, tk_recipe_name(i));
            copy = r;
            for (size_t f = 0; f < tk_recipe_fields(); f++) {
                const tk_recipe_field *field = tk_recipe_field_at(f);
                const double value = tk_recipe_get(&r, field);
                assert_int_equal(tk_recipe_set(&copy, field->name, value, NULL), TK_OK);
            }
            assert_memory_equal(&copy, &r, sizeof r);
        }
}

static void the_missions_recipe_is_distillation_and_consolidation(void **state)
{
    (void)state;
    tk_recipe r;
    assert_int_equal(tk_recipe_find(&r, "kd+ewc", TK_RESNET20, NULL), TK_OK);
    assert_true(r.kappa > 0 && r.lambda > 0 && r.batch_norm == 0 && r.train_trunk);
    assert_int_equal(tk_recipe_find(&r, "finetune", TK_RESNET20, NULL), TK_OK);
    assert_true(r.kappa == 0 && r.lambda == 0 && r.batch_norm == 1);
    assert_int_equal(tk_recipe_find(&r, "projection", TK_RESNET20, NULL), TK_OK);
    assert_true(r.projection > 0 && r.kappa == 0 && r.lambda == 0 && r.batch_norm == 0);
    assert_int_equal(tk_recipe_find(&r, "probe", TK_RESNET20, NULL), TK_OK);
    assert_false(r.train_trunk || r.adapter);
    assert_int_equal(tk_recipe_find(&r, "adapter", TK_RESNET20, NULL), TK_OK);
    assert_true(!r.train_trunk && r.adapter && r.kappa == 0 && r.lambda == 0);
    assert_true(r.adapter_rank >= 8 && r.adapter_rank <= 64);
}

static void an_unknown_recipe_is_answered_with_the_names(void **state)
{
    (void)state;
    tk_recipe r;
    tk_diag diag;
    assert_int_equal(tk_recipe_find(&r, "magic", TK_RESNET20, &diag), TK_BADARG);
    assert_non_null(strstr(diag.text, "magic"));
    for (size_t i = 0; i < tk_recipe_count(); i++)
        assert_non_null(strstr(diag.text, tk_recipe_name(i)));
}

static void a_bad_value_is_refused_with_field_limit_and_value(void **state)
{
    (void)state;
    static const struct {
        const char *field;
        double value;
        const char *says[3];
    } cases[] = {
        {"rate", (double)NAN, {"rate", "nan", "0..10000"}},
        {"rate", (double)INFINITY, {"rate", "inf", "0..10000"}},
        {"rate", -1e-3, {"rate", "-0.001", "0..10000"}},
        {"batch", 0, {"batch", "0 is", "1..1024"}},
        {"epochs", 1e9, {"epochs", "1e+09", "0..10000"}},
        {"epochs", 2.5, {"epochs", "2.5", "whole"}},
        {"views", 65, {"views", "65", "0..64"}},
        {"validation", 0.9, {"validation", "0.9", "0.01..0.5"}},
        {"compute", 2, {"compute", "2 is", "0..1"}},
        {"projection", (double)NAN, {"projection", "nan", "0..1"}},
        {"projection", 1.01, {"projection", "1.01", "0..1"}},
        {"covariance", -1, {"covariance", "-1", "0..1024"}},
        {"kapa", 1, {"kapa", "no such", "hyper-parameter"}},
        {"", 1, {"\"\"", "no such", "hyper-parameter"}},
    };
    tk_recipe before, r;
    tk_diag diag;
    assert_int_equal(tk_recipe_find(&before, "kd+ewc", TK_RESNET20, NULL), TK_OK);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        r = before;
        assert_int_equal(tk_recipe_set(&r, cases[i].field, cases[i].value, &diag), TK_BADARG);
        for (size_t k = 0; k < 3; k++)
            if (!strstr(diag.text, cases[i].says[k]))
                fail_msg("\"%s\" does not say \"%s\"", diag.text, cases[i].says[k]);
        assert_memory_equal(&r, &before, sizeof r);
    }
}

static void an_override_changes_its_field_only(void **state)
{
    (void)state;
    tk_recipe before, r;
    assert_int_equal(tk_recipe_find(&before, "kd+ewc", TK_RESNET20, NULL), TK_OK);
    r = before;
    assert_int_equal(tk_recipe_set(&r, "kappa", 3, NULL), TK_OK);
    assert_true(r.kappa == 3);
    r.kappa = before.kappa;
    assert_memory_equal(&r, &before, sizeof r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_recipe_has_defaults_within_its_own_limits),
        cmocka_unit_test(the_missions_recipe_is_distillation_and_consolidation),
        cmocka_unit_test(an_unknown_recipe_is_answered_with_the_names),
        cmocka_unit_test(a_bad_value_is_refused_with_field_limit_and_value),
        cmocka_unit_test(an_override_changes_its_field_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
