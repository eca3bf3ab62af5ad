/* The gate as a table of cases, each small enough to check by hand. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "close.h"
#include "heads/gate.h"

enum { N = 1000 };
static bool right_before[N], right_after[N];

/* `both` images are right twice, then n01 lost, then n10 won; the rest are wrong twice. */
static void outcome(size_t n, size_t both, size_t n01, size_t n10, tk_validation *before,
                    tk_validation *after)
{
    assert_true(both + n01 + n10 <= n && n <= N);
    for (size_t i = 0; i < n; i++) {
        right_before[i] = i < both + n01;
        right_after[i] = i < both || (i >= both + n01 && i < both + n01 + n10);
    }
    *before = (tk_validation){.head = "a", .n = n, .correct = both + n01, .right = right_before};
    *after = (tk_validation){.head = "a", .n = n, .correct = both + n10, .right = right_after};
}

static void cases_by_hand(void **state)
{
    (void)state;
    static const struct {
        const char *what;
        size_t n, both, n01, n10;
        double best, tolerance, sigma;
        bool admitted, resolved;
    } cases[] = {
        {"nothing changes", 1000, 800, 0, 0, 0.80, 1, 0, true, true},
        {"exactly the tolerance", 1000, 790, 10, 0, 0.80, 1, 0, true, true},
        {"one image more", 1000, 789, 11, 0, 0.80, 1, 0, false, true},
        {"wins make up for losses", 1000, 770, 30, 25, 0.80, 1, 0, true, false},
        {"the best was higher: a second small loss", 1000, 795, 6, 0, 0.805, 1, 0, true, true},
        {"the best was higher: half a point is too much", 1000, 791, 5, 0, 0.805, 1, 0, false,
         true},
        {"below its floor already, and left alone", 1000, 700, 0, 0, 0.90, 1, 0, true, true},
        {"below its floor already, and one less", 1000, 699, 1, 0, 0.90, 1, 0, false, true},
        {"never measured", 1000, 790, 10, 0, (double)NAN, 1, 0, true, true},
        {"zero tolerance, a gain", 1000, 800, 0, 5, 0.80, 0, 0, true, false},
        {"zero tolerance, one lost", 1000, 799, 1, 0, 0.80, 0, 0, false, false},
        {"5 lost, upper bound over the floor", 1000, 795, 5, 0, 0.80, 1, 1, true, true},
        {"9 lost: within a point, its bound is not", 1000, 791, 9, 0, 0.80, 1, 1, false, true},
        {"50 images cannot tell one point", 50, 40, 0, 0, 0.80, 1, 0, true, false},
        {"no images", 0, 0, 0, 0, (double)NAN, 1, 0, false, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tk_validation before, after;
        const tk_gate_rule rule = {cases[i].best, cases[i].tolerance, cases[i].sigma};
        outcome(cases[i].n, cases[i].both, cases[i].n01, cases[i].n10, &before, &after);
        const tk_gate_record r = tk_gate_judge(&before, &after, &rule);
        if (r.admitted != cases[i].admitted || r.resolved != cases[i].resolved)
            fail_msg("%s: admitted %d, resolved %d", cases[i].what, r.admitted, r.resolved);
        assert_int_equal(r.n01, cases[i].n01);
        assert_int_equal(r.n10, cases[i].n10);
        const tk_gate_record again = tk_gate_judge_again(&r);
        if (!tk_gate_same(&r, &again)) fail_msg("%s: judged again it differs", cases[i].what);
    }
}

/* A record that was tampered with, or damaged, does not come out the same. */
static void a_changed_record_is_judged_otherwise(void **state)
{
    (void)state;
    const tk_gate_counts counts = {.n = 1000, .right_before = 800, .n01 = 30, .n10 = 25};
    const tk_gate_rule rule = {.best = 0.805, .tolerance = 1, .sigma = 0.5};
    const tk_gate_record whole = tk_gate_judge_counts("a", &counts, &rule);
    assert_close(whole.after, 0.795, 1e-12);
    assert_close(whole.floor, 0.795, 1e-12);
    assert_false(whole.admitted); /* 0.795 less half of 0.74 points */
    tk_gate_record r[9];
    for (size_t i = 0; i < 9; i++)
        r[i] = whole;
    r[0].admitted = true;
    r[1].resolved = !r[1].resolved;
    r[2].n01++;
    r[3].n10--;
    r[4].right_before++;
    r[5].n++;
    r[6].sigma = 0;
    r[7].after += 0.001;
    r[8].best = 0.81;
    for (size_t i = 0; i < 9; i++) {
        const tk_gate_record again = tk_gate_judge_again(&r[i]);
        if (tk_gate_same(&r[i], &again)) fail_msg("change %zu is not noticed", i);
    }
}

/* 30 lost, 14 won of 1000: drop 1.6 points, SE = sqrt(44)/1000 = 0.6633 points. */
static void drop_and_standard_error_are_paired(void **state)
{
    (void)state;
    tk_validation before, after;
    outcome(1000, 700, 30, 14, &before, &after);
    const tk_gate_record r = tk_gate_judge(&before, &after, &(tk_gate_rule){(double)NAN, 1, 0});
    assert_close(r.drop, 1.6, 1e-9);
    assert_close(r.se, 0.66332, 1e-4);
}

static void the_reason_names_the_head_that_decided(void **state)
{
    (void)state;
    char reason[512];
    tk_gate_record r[2] = {
        {.head = "a/x", .after = 0.80, .floor = 0.70, .n = 500, .resolved = true, .admitted = true},
        {.head = "b/y", .after = 0.60, .floor = 0.65, .n = 500, .resolved = true}};
    assert_false(tk_gate_decide(r, 2, reason, sizeof reason));
    assert_non_null(strstr(reason, "\"b/y\""));
    assert_non_null(strstr(reason, "1 of 2"));
    const tk_gate_record turned[2] = {r[1], r[0]}; /* in any order */
    assert_false(tk_gate_decide(turned, 2, reason, sizeof reason));
    assert_non_null(strstr(reason, "\"b/y\""));
    r[1].after = 0.66, r[1].admitted = true;
    assert_true(tk_gate_decide(r, 2, reason, sizeof reason));
    assert_non_null(strstr(reason, "\"b/y\"")); /* nearest to its floor */
    r[0].agreement = true, r[0].resolved = false;
    assert_true(tk_gate_decide(r, 2, reason, sizeof reason));
    assert_non_null(strstr(reason, "weaker promise"));
    assert_non_null(strstr(reason, "too few held-out images"));
    assert_true(tk_gate_decide(r, 0, reason, sizeof reason));
    assert_true(tk_gate_decide(r, 2, reason, 20)); /* cut, not overrun */
    assert_true(strlen(reason) < 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cases_by_hand),
        cmocka_unit_test(a_changed_record_is_judged_otherwise),
        cmocka_unit_test(drop_and_standard_error_are_paired),
        cmocka_unit_test(the_reason_names_the_head_that_decided),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
