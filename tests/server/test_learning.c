/* The metrics of learning over time against values worked out by hand. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "api/learning.h"

#define GONE    SIZE_MAX
#define UNKNOWN ((double)NAN)

static void assert_near(double got, double want)
{
    if (isnan(want) ? !isnan(got) : !(fabs(got - want) < 1e-12))
        fail_msg("got %.15g, expected %.15g", got, want);
}

static void assert_mean(tk_mean got, double value, size_t heads)
{
    assert_near(got.value, value);
    assert_int_equal(got.heads, heads);
}

/* Three heads, born at rows 0, 1 and 3; row 2 trained none of them. */
static void heads_born_at_different_versions(void **state)
{
    (void)state;
    const double accuracy[] = {
        0.80, UNKNOWN, UNKNOWN, /* */
        0.78, 0.60,    UNKNOWN, /* */
        0.82, 0.59,    UNKNOWN, /* */
        0.79, 0.61,    0.90,    /* */
    };
    const size_t since[] = {
        0, GONE, GONE, /* */
        0, 1,    GONE, /* */
        0, 1,    GONE, /* */
        0, 1,    3,    /* */
    };
    const double low[] = {
        0.10, UNKNOWN, UNKNOWN, /* its own first training: no forgetting of anything */
        0.70, 0.20,    UNKNOWN, /* */
        0.75, 0.50,    UNKNOWN, /* */
        0.65, 0.55,    0.40,    /* */
    };
    const tk_learning l = {4, 3, accuracy, since, low};
    tk_head_learning h[3];
    const tk_learning_metrics m = tk_learning_measure(&l, h);
    assert_near(h[0].change, -0.01);
    assert_near(h[0].forgetting, 0.03); /* from its best, 0.82 */
    assert_near(h[0].lowest, 0.65);
    assert_near(h[1].change, 0.01);
    assert_near(h[1].forgetting, -0.01);
    assert_near(h[1].lowest, 0.50);
    assert_int_equal(h[2].since, 3);
    assert_near(h[2].change, UNKNOWN);
    assert_near(h[2].forgetting, UNKNOWN);
    assert_near(h[2].lowest, UNKNOWN);
    assert_mean(m.acc, (0.79 + 0.61 + 0.90) / 3, 3);
    assert_mean(m.bwt, 0, 2);
    assert_mean(m.forgetting, 0.01, 2);
    assert_mean(m.min_acc, (0.65 + 0.50) / 2, 2);
}

/* Head 0 is not at the last version any more: no metric knows it. */
static void a_head_that_went_counts_nowhere(void **state)
{
    (void)state;
    const double accuracy[] = {0.80, UNKNOWN, 0.70, 0.60, UNKNOWN, 0.55};
    const size_t since[] = {0, GONE, 0, 1, GONE, 1};
    const double low[] = {UNKNOWN, UNKNOWN, 0.3, UNKNOWN, UNKNOWN, UNKNOWN};
    const tk_learning l = {3, 2, accuracy, since, low};
    tk_head_learning h[2];
    const tk_learning_metrics m = tk_learning_measure(&l, h);
    assert_true(h[0].since == GONE);
    assert_near(h[0].change, UNKNOWN);
    assert_near(h[0].lowest, UNKNOWN);
    assert_mean(m.acc, 0.55, 1);
    assert_mean(m.bwt, -0.05, 1);
    assert_mean(m.forgetting, 0.05, 1);
    assert_mean(m.min_acc, UNKNOWN, 0);
}

/* Trained again at row 2, a head begins anew: its better past on other images does not count. */
static void a_refreshed_head_begins_anew(void **state)
{
    (void)state;
    const double accuracy[] = {0.90, 0.85, 0.70, 0.72, 0.71};
    const size_t since[] = {0, 0, 2, 2, 2};
    const double low[] = {UNKNOWN, 0.1, 0.2, 0.69, UNKNOWN};
    const tk_learning l = {5, 1, accuracy, since, low};
    tk_head_learning h;
    const tk_learning_metrics m = tk_learning_measure(&l, &h);
    assert_int_equal(h.since, 2);
    assert_near(h.change, 0.01);
    assert_near(h.forgetting, 0.01); /* 0.72 - 0.71 */
    assert_near(h.lowest, 0.69);     /* neither 0.1 nor 0.2 */
    assert_mean(m.bwt, 0.01, 1);
}

/* Row 3 rolls back to row 1: the head is that of row 0 again, and row 2 is no part of its story. */
static void a_rollback_brings_the_older_head_back(void **state)
{
    (void)state;
    const double accuracy[] = {0.80, 0.79, 0.95, 0.79};
    const size_t since[] = {0, 0, 2, 0};
    const double low[] = {UNKNOWN, 0.6, 0.1, UNKNOWN};
    const tk_learning l = {4, 1, accuracy, since, low};
    tk_head_learning h;
    (void)tk_learning_measure(&l, &h);
    assert_near(h.change, -0.01);
    assert_near(h.forgetting, 0.01);
    assert_near(h.lowest, 0.6);
}

/* NaN: validated by agreement, or not at all. */
static void what_was_not_measured_is_left_out(void **state)
{
    (void)state;
    const double accuracy[] = {UNKNOWN, 0.70, 0.80, UNKNOWN, 0.75, 0.71};
    const size_t since[] = {0, 0, 0, 0, 0, 0};
    const double low[] = {UNKNOWN, UNKNOWN, UNKNOWN, 0.5, 0.6, UNKNOWN};
    const tk_learning l = {3, 2, accuracy, since, low};
    tk_head_learning h[2];
    const tk_learning_metrics m = tk_learning_measure(&l, h);
    assert_near(h[0].change, UNKNOWN); /* nothing to compare with */
    assert_near(h[0].forgetting, 0.05);
    assert_near(h[0].lowest, 0.6);
    assert_near(h[1].change, 0.01);
    assert_near(h[1].forgetting, -0.01);
    assert_near(h[1].lowest, 0.5);
    assert_mean(m.acc, 0.73, 2);
    assert_mean(m.bwt, 0.01, 1);
    assert_mean(m.forgetting, 0.02, 2);
}

static void nothing_learned_has_no_metrics(void **state)
{
    (void)state;
    const tk_learning none = {0, 0, NULL, NULL, NULL};
    const tk_learning_metrics m = tk_learning_measure(&none, NULL);
    assert_mean(m.acc, UNKNOWN, 0);
    assert_mean(m.min_acc, UNKNOWN, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(heads_born_at_different_versions),
        cmocka_unit_test(a_head_that_went_counts_nowhere),
        cmocka_unit_test(a_refreshed_head_begins_anew),
        cmocka_unit_test(a_rollback_brings_the_older_head_back),
        cmocka_unit_test(what_was_not_measured_is_left_out),
        cmocka_unit_test(nothing_learned_has_no_metrics),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
