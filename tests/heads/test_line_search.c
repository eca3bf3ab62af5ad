/* The line between old and new trunk on numbers that are easily checked. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "close.h"
#include "heads/line_search.h"

enum { CLASSES = 2 };

typedef struct scene {
    tk_student old, tuned, at;
    double admit; /* points up to this alpha are admissible */
    size_t asked;
    double seen[8]; /* alphas, by the first weight of the trunk */
} scene;

/* The old end is 1 everywhere, the new one 3: a weight tells alpha. */
static double alpha_of(double weight)
{
    return (weight - 1) / 2;
}

static void fill(tk_student *s, const tk_params *trunk, float value)
{
    assert_int_equal(tk_student_init(s, trunk, CLASSES, 0), TK_OK);
    for (size_t i = 0; i < s->trunk->count; i++)
        s->trunk->data[i] = value;
    for (size_t i = 0; i < s->head_size; i++)
        s->head[i] = value;
}

static void scene_init(scene *s, double admit)
{
    tk_params *trunk;
    *s = (scene){.admit = admit};
    assert_int_equal(tk_params_create(&trunk, TK_RESNET20), TK_OK);
    fill(&s->old, trunk, 1);
    fill(&s->tuned, trunk, 3);
    fill(&s->at, trunk, 0);
    tk_params_destroy(trunk);
}

static void scene_fini(scene *s)
{
    tk_student_fini(&s->old);
    tk_student_fini(&s->tuned);
    tk_student_fini(&s->at);
}

static tk_err validate(void *ctx, const tk_student *student, size_t point, tk_verdict *verdict,
                       tk_diag *diag)
{
    scene *s = ctx;
    (void)diag;
    const double alpha = alpha_of((double)student->trunk->data[0]);
    assert_close((double)student->head[student->head_size - 1],
                 (double)student->trunk->data[student->trunk->count - 1], 0); /* all of it moves */
    s->seen[s->asked++] = alpha;
    assert_int_equal(point, s->asked);
    *verdict = (tk_verdict){.admissible = alpha <= s->admit + 1e-6, .worth = alpha};
    return TK_OK;
}

static tk_line_search_result search(scene *s, size_t points)
{
    const tk_line_search_opts opts = {
        .old = &s->old, .tuned = &s->tuned, .points = points, .ctx = s, .validate = validate};
    tk_line_search_result r;
    assert_int_equal(tk_line_search(&opts, &s->at, &r, NULL), TK_OK);
    return r;
}

static void it_finds_the_largest_admissible_step_from_the_new_end(void **state)
{
    (void)state;
    scene s;
    scene_init(&s, 0.5);
    const tk_line_search_result r = search(&s, 5);
    assert_true(r.found);
    assert_close(r.alpha, 0.4, 1e-9);
    assert_close(r.verdict.worth, 0.4, 1e-6);
    assert_int_equal(s.asked, 3); /* 0.8, 0.6, 0.4: no further */
    assert_close(s.seen[0], 0.8, 1e-6);
    assert_close(alpha_of((double)s.at.trunk->data[7]), 0.4, 1e-6); /* the point is left there */
    scene_fini(&s);
}

static void where_nothing_is_admissible_it_says_so(void **state)
{
    (void)state;
    scene s;
    scene_init(&s, 0.1);
    const tk_line_search_result r = search(&s, 5);
    assert_false(r.found);
    assert_int_equal(s.asked, 4); /* neither end is asked */
    scene_fini(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_finds_the_largest_admissible_step_from_the_new_end),
        cmocka_unit_test(where_nothing_is_admissible_it_says_so),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
