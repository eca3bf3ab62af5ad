/* The search for the strength of protection against gates that are known: which strengths it tries,
 * that it closes in on the threshold from above, and that it ends. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "heads/search.h"

/* Runs the search against a gate that admits strengths from `threshold` on, where a weaker
 * protection is always worth more. Returns the number of trials. */
static size_t search(double threshold, tk_trial trials[TK_MAX_TRIALS])
{
    double kept = INFINITY;
    size_t n = 0;
    for (double strength = 1; strength > 0 && n < TK_MAX_TRIALS;
         strength = tk_search_next(trials, n, TK_MAX_TRIALS)) {
        const bool admissible = strength >= threshold;
        trials[n++] = (tk_trial){.strength = strength,
                                 .epochs = 1,
                                 .admissible = admissible,
                                 .found = admissible,
                                 .improved = admissible && strength < kept,
                                 .worth = 1 / strength};
        if (trials[n - 1].improved) kept = strength;
    }
    return n;
}

static double lowest_admitted(const tk_trial *trials, size_t n)
{
    double lowest = INFINITY;
    for (size_t i = 0; i < n; i++)
        if (trials[i].admissible) lowest = fmin(lowest, trials[i].strength);
    return lowest;
}

static void it_closes_in_on_the_threshold(void **state)
{
    (void)state;
    const double thresholds[] = {0.02, 0.3, 0.5, 0.9, 1.0, 1.1, 4, 40, 200};
    for (size_t i = 0; i < sizeof thresholds / sizeof *thresholds; i++) {
        tk_trial trials[TK_MAX_TRIALS];
        const size_t n = search(thresholds[i], trials);
        const double found = lowest_admitted(trials, n);
        assert_true(found >= thresholds[i]);
        assert_true(found <= 1.1 * thresholds[i]);
        for (size_t k = 0; k < n; k++)
            assert_true(trials[k].strength >= 1.0 / 64 && trials[k].strength <= 256);
    }
}

static void it_weakens_what_is_admitted_and_strengthens_what_is_not(void **state)
{
    (void)state;
    tk_trial trials[3] = {{.strength = 1, .admissible = true, .improved = true}};
    assert_true(tk_search_next(trials, 1, TK_MAX_TRIALS) == 0.5);
    trials[1] = (tk_trial){.strength = 0.5};
    const double between = tk_search_next(trials, 2, TK_MAX_TRIALS);
    assert_true(between > 0.5 && between < 1);
    trials[0] = (tk_trial){.strength = 1};
    assert_true(tk_search_next(trials, 1, TK_MAX_TRIALS) > 1);
}

static void it_ends_where_nothing_is_admitted_or_nothing_gets_better(void **state)
{
    (void)state;
    tk_trial trials[TK_MAX_TRIALS];
    assert_true(search(INFINITY, trials) < TK_MAX_TRIALS);
    assert_true(search(0, trials) < TK_MAX_TRIALS);
    const tk_trial stale[3] = {{.strength = 1, .admissible = true, .improved = true},
                               {.strength = 0.5, .admissible = true},
                               {.strength = 0.25, .admissible = true}};
    assert_true(tk_search_next(stale, 2, TK_MAX_TRIALS) > 0);
    assert_true(tk_search_next(stale, 3, TK_MAX_TRIALS) == 0);
}

static void a_refused_trial_is_followed_by_rescues_beyond_the_limit(void **state)
{
    (void)state;
    tk_trial trials[1 + TK_RESCUES] = {{.strength = 1, .admissible = true, .improved = true}};
    assert_true(tk_search_next(trials, 1, 1) == 0);
    trials[0] = (tk_trial){.strength = 1, .found = true, .improved = true};
    assert_true(tk_search_next(trials, 1, 1) > 1);
    trials[1] = (tk_trial){.strength = 3};
    assert_true(tk_search_next(trials, 2, 1) > 3);
    trials[2] = (tk_trial){.strength = 9};
    assert_true(tk_search_next(trials, 3, 1) == 0);
    trials[1].admissible = true;
    assert_true(tk_search_next(trials, 2, 1) == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_closes_in_on_the_threshold),
        cmocka_unit_test(it_weakens_what_is_admitted_and_strengthens_what_is_not),
        cmocka_unit_test(a_refused_trial_is_followed_by_rescues_beyond_the_limit),
        cmocka_unit_test(it_ends_where_nothing_is_admitted_or_nothing_gets_better),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
