/* Which precisions a version admits: the gate's rule against fp32, what wrong ranges do to a head,
 * and how the verdict lies in the version's file. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "close.h"
#include "engine/mem.h"
#include "engine/plan.h"
#include "fixture.h"
#include "heads/precision_gate.h"
#include "heads/validator.h"

enum { IMAGES = 60, FEATURES = 64, ANSWERS = 100 };
static const char *const ids[] = {"alice/colour"};

/* ---- the rule, by hand ---- */

static uint32_t fp32_answers[ANSWERS], now_answers[ANSWERS];
static bool fp32_right[ANSWERS], now_right[ANSWERS];

/* In fp32 class 1 is answered to every image and is right for the first 80. `lost` of these get
 * class 0 now, and `moved` of those that were wrong, too. */
static void answer(size_t lost, size_t moved, tk_validation *fp32, tk_validation *now)
{
    for (size_t i = 0; i < ANSWERS; i++) {
        fp32_answers[i] = 1;
        fp32_right[i] = i < 80;
        now_answers[i] = i < lost || (i >= 80 && i < 80 + moved) ? 0 : 1;
        now_right[i] = i >= lost && i < 80;
    }
    *fp32 = (tk_validation){.head = "a",
                            .n = ANSWERS,
                            .correct = 80,
                            .classes = 2000, /* too many for a confusion matrix */
                            .answers = fp32_answers,
                            .right = fp32_right};
    *now = *fp32;
    now->correct = 80 - lost;
    now->answers = now_answers;
    now->right = now_right;
}

static void a_precision_is_judged_as_a_candidate_is(void **state)
{
    (void)state;
    static const struct {
        size_t lost, moved;
        double tolerance;
        bool agreement, admitted;
        double accuracy, fp32, alike;
    } cases[] = {
        {0, 0, 0, false, true, 0.80, 0.80, 1},     {1, 0, 0, false, false, 0.79, 0.80, 0.99},
        {0, 5, 0, false, true, 0.80, 0.80, 0.95},  {2, 0, 2, false, true, 0.78, 0.80, 0.98},
        {3, 0, 2, false, false, 0.77, 0.80, 0.97}, {0, 2, 1, true, false, 0.98, 1, 0.98},
        {1, 1, 2, true, true, 0.98, 1, 0.98},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tk_validation fp32, now;
        tk_gate_record record;
        tk_precision_check c;
        answer(cases[i].lost, cases[i].moved, &fp32, &now);
        fp32.agreement = now.agreement = cases[i].agreement;
        /* A better best of old is the candidate's affair, not the precision's. */
        const tk_gate_rule rule = {.best = 0.95, .tolerance = cases[i].tolerance};
        assert_int_equal(tk_precision_judge(&fp32, &now, &rule, &record, &c, NULL), TK_OK);
        if (c.admitted != cases[i].admitted) fail_msg("case %zu: admitted %d", i, c.admitted);
        assert_int_equal(c.n, ANSWERS);
        assert_int_equal(c.agreement, cases[i].agreement);
        assert_close(c.accuracy, cases[i].accuracy, 1e-12);
        assert_close(c.fp32, cases[i].fp32, 1e-12);
        assert_close(c.alike, cases[i].alike, 1e-12);
        assert_close(c.tolerance, cases[i].tolerance, 0);
        assert_int_equal(fp32.correct, 80); /* the gate's own validation stays as it is */
    }
}

/* ---- a trunk in every precision ---- */

typedef struct setup {
    tk_model *model;
    tk_validator *validator;
    tk_calibration ranges;
} setup;

/* The head answers with the class whose mean feature is nearest: w_c = mean_c,
 * b_c = -|mean_c|^2 / 2. */
static void teach(tk_model *model, const char *pack)
{
    static float x[IMAGES * 32 * 32 * 3], features[IMAGES * FEATURES];
    uint32_t images[IMAGES];
    tk_head *head = model->heads[0];
    tk_pack *from;
    tk_canvases *canvases;
    tk_plan *plan;
    for (uint32_t i = 0; i < IMAGES; i++)
        images[i] = i;
    assert_int_equal(tk_pack_open(&from, pack, NULL), TK_OK);
    assert_int_equal(tk_canvases_open(&canvases, fixture_path("canvases.teach"), from,
                                      &model->preproc, 32, fixture_pool(), NULL, NULL),
                     TK_OK);
    assert_int_equal(tk_plan_create(&plan, model->trunk, 32, IMAGES, fixture_pool(), NULL), TK_OK);
    tk_canvases_render(canvases, &(tk_cut){.images = images}, IMAGES, x, fixture_pool());
    tk_plan_run(plan, IMAGES, x, features);
    memset(head->weight, 0, head->classes * FEATURES * sizeof(float));
    for (size_t i = 0; i < IMAGES; i++)
        for (size_t k = 0; k < FEATURES; k++)
            head->weight[tk_pack_get(from, i).label * FEATURES + k] +=
                features[i * FEATURES + k] * FIXTURE_CLASSES / IMAGES;
    for (size_t c = 0; c < head->classes; c++)
        for (size_t k = 0; k < FEATURES; k++)
            head->bias[c] -= 0.5f * head->weight[c * FEATURES + k] * head->weight[c * FEATURES + k];
    tk_plan_destroy(plan);
    tk_canvases_close(canvases);
    tk_pack_close(from);
}

static int make(void **state)
{
    static setup s;
    const char *train = fixture_path("train.pack");
    const tk_validator_pack held = {"alice/colour", fixture_path("held.pack")};
    fixture_pack(train, FIXTURE_COLOUR, IMAGES, 1);
    fixture_pack(held.path, FIXTURE_COLOUR, IMAGES, 2);
    s.model = fixture_model(5, 1, ids);
    teach(s.model, train);
    const tk_validator_opts opts = {.base = s.model,
                                    .new_head = "",
                                    .n_packs = 1,
                                    .packs = &held,
                                    .dir = fixture_folder("validator"),
                                    .pool = fixture_pool()};
    assert_int_equal(tk_validator_create(&s.validator, &opts, NULL), TK_OK);
    assert_int_equal(
        tk_validator_calibrate(s.validator, s.model->trunk, IMAGES / 2, &s.ranges, NULL), TK_OK);
    *state = &s;
    return 0;
}

static int drop(void **state)
{
    setup *s = *state;
    tk_validator_destroy(s->validator);
    tk_model_destroy(s->model);
    tk_pool_destroy(fixture_pool());
    fixture_clean();
    return 0;
}

/* The head in the precision with these ranges; `tolerance` in points. */
static tk_precision_check check(const setup *s, tk_precision precision,
                                const tk_calibration *ranges, double tolerance)
{
    tk_validation now[2];
    tk_gate_record record;
    tk_precision_check c;
    tk_diag diag;
    if (tk_validator_run_as(s->validator, s->model->trunk, s->model->heads[0], precision, ranges,
                            now, &diag) != TK_OK)
        fail_msg("%s", diag.text);
    const tk_gate_rule rule = {.tolerance = tolerance};
    assert_int_equal(
        tk_precision_judge(tk_validator_before(s->validator), now, &rule, &record, &c, NULL),
        TK_OK);
    tk_validation_fini(&now[0]);
    tk_validation_fini(&now[1]);
    return c;
}

static void a_sound_trunk_is_admitted_in_every_precision(void **state)
{
    const setup *s = *state;
    assert_true(tk_validation_accuracy(tk_validator_before(s->validator)) > 0.9);
    assert_true(s->ranges.maps > 0);
    for (tk_precision p = TK_PRECISION_FP32; p < TK_PRECISION_COUNT; p++) {
        const tk_precision_check c = check(s, p, &s->ranges, 5);
        assert_int_equal(c.n, IMAGES);
        assert_true(c.alike > 0.9);
        assert_true(c.admitted);
        if (p != TK_PRECISION_FP32) continue;
        assert_close(c.alike, 1, 0);
        assert_close(c.accuracy, c.fp32, 0);
    }
}

/* A hundredth of each range: nearly everything is clipped. */
static void wrong_ranges_are_refused_whatever_they_cost_beyond_the_tolerance(void **state)
{
    const setup *s = *state;
    tk_calibration wrong = s->ranges;
    for (uint32_t m = 0; m < wrong.maps; m++)
        wrong.limit[m] *= 0.01f;
    const tk_precision_check c = check(s, TK_PRECISION_INT8, &wrong, 1);
    const double lost = 100 * (c.fp32 - c.accuracy);
    assert_true(lost > 1);
    assert_true(c.alike < 1);
    assert_false(c.admitted);
    assert_false(check(s, TK_PRECISION_INT8, &wrong, 0).admitted);
    assert_false(check(s, TK_PRECISION_INT8, &wrong, lost - 0.5).admitted);
    assert_true(check(s, TK_PRECISION_INT8, &wrong, lost + 0.5).admitted);
}

static void without_images_there_are_no_ranges(void **state)
{
    const setup *s = *state;
    const tk_validator_opts opts = {
        .base = s->model, .new_head = "", .dir = fixture_dir(), .pool = fixture_pool()};
    tk_validator *v;
    tk_calibration ranges = s->ranges;
    assert_int_equal(tk_validator_create(&v, &opts, NULL), TK_OK);
    assert_int_equal(tk_validator_calibrate(v, s->model->trunk, 10, &ranges, NULL), TK_OK);
    assert_int_equal(ranges.maps, 0);
    tk_validator_destroy(v);
}

/* ---- the version's file ---- */

static const tk_precision_check good = {
    .n = 60, .accuracy = 0.95, .fp32 = 0.96875, .alike = 0.9, .tolerance = 2, .admitted = true};

/* Two heads, both admitted in bf16, the second refused in int8. */
static tk_model *judged(const setup *s)
{
    tk_model *m = fixture_model(5, 2, (const char *const[]){"alice/colour", "bob/type"});
    m->ranges = s->ranges;
    for (size_t h = 0; h < 2; h++) {
        m->heads[h]->checks[TK_PRECISION_BF16] = good;
        m->heads[h]->checks[TK_PRECISION_INT8] = good;
    }
    m->heads[1]->checks[TK_PRECISION_INT8].admitted = false;
    m->heads[1]->checks[TK_PRECISION_INT8].agreement = true;
    return m;
}

static void assert_same_checks(const tk_model *a, const tk_model *b)
{
    assert_int_equal(a->n_heads, b->n_heads);
    assert_int_equal(a->ranges.maps, b->ranges.maps);
    assert_memory_equal(a->ranges.limit, b->ranges.limit, sizeof a->ranges.limit);
    for (size_t h = 0; h < a->n_heads; h++) {
        assert_string_equal(a->heads[h]->id, b->heads[h]->id);
        for (tk_precision p = TK_PRECISION_FP32; p < TK_PRECISION_COUNT; p++) {
            const tk_precision_check *x = &a->heads[h]->checks[p], *y = &b->heads[h]->checks[p];
            assert_true(x->n == y->n && x->accuracy == y->accuracy && x->fp32 == y->fp32 &&
                        x->alike == y->alike && x->tolerance == y->tolerance &&
                        x->agreement == y->agreement && x->admitted == y->admitted);
        }
    }
}

static void the_verdict_survives_the_file(void **state)
{
    const char *path = fixture_path("judged.safetensors");
    const tk_head *refused;
    tk_model *m = judged(*state), *back, *copy, *outline;
    assert_int_equal(tk_model_save(m, path, NULL), TK_OK);
    assert_int_equal(tk_model_load(&back, path, false, NULL), TK_OK);
    assert_int_equal(tk_model_clone(&copy, back), TK_OK);
    assert_int_equal(tk_model_outline(&outline, path, NULL), TK_OK);
    assert_same_checks(back, m);
    assert_same_checks(copy, m);
    assert_same_checks(outline, m);
    assert_true(tk_model_admits(outline, TK_PRECISION_FP32, &refused));
    assert_true(tk_model_admits(outline, TK_PRECISION_BF16, &refused));
    assert_false(tk_model_admits(outline, TK_PRECISION_INT8, &refused));
    assert_string_equal(refused->id, "bob/type");
    assert_true(tk_model_drop_head(back, "bob/type")); /* its refusal goes with it */
    assert_true(tk_model_admits(back, TK_PRECISION_INT8, &refused));
    tk_model_forget_precisions(copy);
    assert_false(tk_model_admits(copy, TK_PRECISION_BF16, &refused));
    assert_null(refused);
    tk_model_destroy(outline);
    tk_model_destroy(copy);
    tk_model_destroy(back);
    tk_model_destroy(m);
}

static void a_version_from_before_is_offered_in_fp32_only(void **state)
{
    (void)state;
    const char *path = fixture_path("before.safetensors");
    const tk_head *refused;
    tk_model *m = fixture_model(5, 1, ids), *back;
    size_t size;
    assert_int_equal(tk_model_save(m, path, NULL), TK_OK);
    char *bytes = (char *)fixture_read(path, &size);
    for (size_t i = 0; i + 10 < size; i++) /* the very file that was written before */
        assert_true(memcmp(bytes + i, "precisions", 10) != 0 &&
                    memcmp(bytes + i, "ranges", 6) != 0);
    tk_free(bytes);
    assert_int_equal(tk_model_load(&back, path, true, NULL), TK_OK);
    assert_true(tk_model_admits(back, TK_PRECISION_FP32, &refused));
    assert_false(tk_model_admits(back, TK_PRECISION_BF16, &refused));
    assert_false(tk_model_admits(back, TK_PRECISION_INT8, &refused));
    assert_null(refused);
    tk_model_destroy(back);
    tk_model_destroy(m);
}

static void numbers_that_cannot_be_are_refused(void **state)
{
    const char *path = fixture_path("wrong.safetensors");
    for (size_t i = 0; i < 6; i++) {
        tk_model *m = judged(*state), *back;
        tk_diag diag;
        tk_precision_check *c = &m->heads[0]->checks[TK_PRECISION_BF16];
        if (i == 0) c->accuracy = 1.5;
        if (i == 1) c->fp32 = -0.1;
        if (i == 2) c->alike = 2;
        if (i == 3) c->tolerance = -1;
        if (i == 4) m->ranges.limit[1] = 0;
        if (i == 5) m->ranges.limit[0] = -3;
        assert_int_equal(tk_model_save(m, path, NULL), TK_OK);
        assert_int_equal(tk_model_load(&back, path, false, &diag), TK_BADDATA);
        assert_non_null(strstr(diag.text, i < 4 ? "precision" : "range"));
        assert_int_equal(tk_model_outline(&back, path, &diag), TK_BADDATA);
        assert_null(back);
        tk_model_destroy(m);
    }
}

static void ranges_of_another_trunk_are_refused(void **state)
{
    const char *path = fixture_path("misfit.safetensors");
    tk_model *m = judged(*state), *back;
    tk_diag diag;
    m->ranges.maps--;
    assert_int_equal(tk_model_save(m, path, NULL), TK_OK);
    assert_int_equal(tk_model_load(&back, path, false, &diag), TK_BADDATA);
    assert_null(back);
    assert_non_null(strstr(diag.text, "ranges of"));
    tk_model_destroy(m);
}

/* Every architecture: as many ranges as its plan asks for, all of which survive the file. */
static void every_architecture_has_a_range_for_each_map(void **state)
{
    (void)state;
    const char *path = fixture_path("ranges.safetensors");
    for (tk_arch arch = 0; arch < TK_ARCH_COUNT; arch++) {
        const unsigned px = tk_arch_check_px(arch, 64, NULL) == TK_OK ? 64 : 32;
        const tk_preproc preproc = tk_preproc_default(px);
        tk_model *m, *back;
        tk_plan *plan;
        assert_int_equal(tk_model_create(&m, arch, &preproc, NULL), TK_OK);
        assert_int_equal(tk_plan_create(&plan, m->trunk, px, 1, fixture_pool(), NULL), TK_OK);
        float *x = tk_aligned_calloc((size_t)px * px * 3, sizeof *x);
        assert_non_null(x);
        assert_int_equal(tk_plan_calibrate(plan, 1, x, &m->ranges, NULL), TK_OK);
        assert_int_equal(m->ranges.maps, tk_arch_maps(arch));
        assert_int_equal(tk_model_save(m, path, NULL), TK_OK);
        assert_int_equal(tk_model_load(&back, path, false, NULL), TK_OK);
        assert_memory_equal(back->ranges.limit, m->ranges.limit, sizeof m->ranges.limit);
        tk_free(x);
        tk_plan_destroy(plan);
        tk_model_destroy(back);
        tk_model_destroy(m);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_precision_is_judged_as_a_candidate_is),
        cmocka_unit_test(a_sound_trunk_is_admitted_in_every_precision),
        cmocka_unit_test(wrong_ranges_are_refused_whatever_they_cost_beyond_the_tolerance),
        cmocka_unit_test(without_images_there_are_no_ranges),
        cmocka_unit_test(the_verdict_survives_the_file),
        cmocka_unit_test(a_version_from_before_is_offered_in_fp32_only),
        cmocka_unit_test(numbers_that_cannot_be_are_refused),
        cmocka_unit_test(ranges_of_another_trunk_are_refused),
        cmocka_unit_test(every_architecture_has_a_range_for_each_map),
    };
    return cmocka_run_group_tests(tests, make, drop);
}
