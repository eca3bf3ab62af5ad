/* Versions in memory: what a head answers, who owns it, and who frees it. */
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/linear.h"
#include "engine/mem.h"
#include "fixture.h"
#include "serving/snapshot.h"

static tk_snapshot *make(tk_model *model, uint64_t number, size_t batch)
{
    tk_snapshot *s;
    assert_int_equal(tk_snapshot_create(&s, model, number, batch, 2, NULL), TK_OK);
    return s;
}

static void heads_are_found_by_owner_and_name(void **state)
{
    (void)state;
    tk_model *model = fixture_model(1);
    /* Neighbours in the alphabet that a sloppy prefix comparison would mix up. */
    fixture_add_head(model, "alice-2/type", 2, "x", 1);
    fixture_add_head(model, "alice.b/type", 2, "x", 1);
    fixture_add_head(model, "alic/type", 2, "x", 1);
    fixture_add_head(model, "alice/age", 2, "x", 1);
    tk_snapshot *s = make(model, 7, 1);
    assert_int_equal(tk_snapshot_number(s), 7);
    assert_int_equal(tk_snapshot_heads(s), 6);
    size_t first;
    assert_int_equal(tk_snapshot_of_tenant(s, "alice", &first), 2);
    assert_string_equal(tk_snapshot_head(s, first)->id, "alice/age");
    assert_string_equal(tk_snapshot_head(s, first + 1)->id, "alice/type");
    assert_int_equal(tk_snapshot_of_tenant(s, "al", &first), 0);
    assert_int_equal(tk_snapshot_of_tenant(s, "zoe", &first), 0);
    assert_string_equal(tk_snapshot_find(s, "bob", "colour")->id, "bob/colour");
    assert_null(tk_snapshot_find(s, "alice", "colour"));
    assert_null(tk_snapshot_find(s, "alice", ""));
    tk_snapshot_unref(s);
}

static void a_version_is_warm_before_its_first_request(void **state)
{
    (void)state;
    tk_snapshot *s = make(fixture_model(1), 1, 4);
    assert_true(tk_snapshot_trunk_ns(s) > 0); /* it has made a pass */
    assert_int_equal(tk_snapshot_heads_ns(s), 0);
    tk_head_tallies tallies;
    tk_pass_tally passes[4];
    tk_snapshot_read_tallies(s, tk_snapshot_head(s, 0), &tallies, passes);
    assert_int_equal(tallies.passes, 0); /* which is nobody's */
    tk_snapshot_unref(s);
}

/* Scores of head h for one canvas, computed with the engine's public functions and nothing of
 * serving/. */
static void direct(const tk_model *model, const tk_head *head, const uint8_t *canvas, float *scores)
{
    const unsigned px = model->preproc.crop;
    tk_pool *pool;
    tk_plan *plan;
    assert_int_equal(tk_pool_create(&pool, 1), TK_OK);
    assert_int_equal(tk_plan_create(&plan, model->trunk, px, 1, pool, NULL), TK_OK);
    float *x = tk_aligned_calloc((size_t)px * px * 3, sizeof *x);
    float features[64], logits[FIXTURE_TYPES];
    const tk_view view = tk_view_centre(&model->preproc, px);
    tk_view_render(&model->preproc, canvas, px, &view, x);
    tk_plan_run(plan, 1, x, features);
    tk_linear_forward(1, 64, head->classes, features, head->weight, head->bias, logits);
    double sum = 0;
    for (size_t i = 0; i < head->classes; i++)
        sum += exp((double)logits[i]);
    for (size_t i = 0; i < head->classes; i++)
        scores[i] = (float)(exp((double)logits[i]) / sum);
    tk_free(x);
    tk_plan_destroy(plan);
    tk_pool_destroy(pool);
}

static void answers_are_the_softmax_of_the_head_best_first(void **state)
{
    (void)state;
    tk_model *model = fixture_model(3), *copy;
    assert_int_equal(tk_model_clone(&copy, model), TK_OK);
    uint8_t canvas[32 * 32 * 3];
    for (size_t i = 0; i < sizeof canvas; i++)
        canvas[i] = (uint8_t)(i * 37 % 251);
    float want[FIXTURE_TYPES];
    direct(copy, tk_model_head(copy, "alice/type"), canvas, want);

    tk_snapshot *s = make(model, 1, 4);
    const tk_head *heads[] = {tk_snapshot_find(s, "bob", "colour"),
                              tk_snapshot_find(s, "alice", "type")};
    const size_t k[] = {1, FIXTURE_TYPES};
    tk_top top[1 + FIXTURE_TYPES];
    const tk_pass pass = {.canvas = canvas, .n_heads = 2, .heads = heads, .k = k, .top = top};
    tk_snapshot_run(s, 1, &pass);
    assert_true(top[0].label < FIXTURE_COLOURS);
    double sum = 0;
    for (size_t i = 1; i <= FIXTURE_TYPES; i++) {
        assert_float_equal(top[i].score, want[top[i].label], 1e-6);
        if (i > 1) assert_true(top[i].score <= top[i - 1].score);
        sum += (double)top[i].score;
    }
    assert_float_equal(sum, 1, 1e-5);
    tk_snapshot_unref(s);
    tk_model_destroy(copy);
}

/* Both ways to find the k best (insertion for a small k, sorting for a large one) give one order.
 */
static void few_and_many_answers_agree_on_the_order(void **state)
{
    (void)state;
    tk_model *model = fixture_model(5);
    fixture_add_head(model, "carol/many", 60, "c", 9);
    tk_head *head = tk_model_head(model, "carol/many");
    for (size_t f = 0; f < 64; f++)
        head->weight[40 * 64 + f] = head->weight[7 * 64 + f]; /* a tie */
    tk_snapshot *s = make(model, 1, 1);
    const tk_head *heads[] = {tk_snapshot_find(s, "carol", "many"),
                              tk_snapshot_find(s, "carol", "many")};
    const size_t k[] = {16, 60};
    static uint8_t canvas[32 * 32 * 3];
    memset(canvas, 90, sizeof canvas);
    tk_top top[76];
    const tk_pass pass = {.canvas = canvas, .n_heads = 2, .heads = heads, .k = k, .top = top};
    tk_snapshot_run(s, 1, &pass);
    assert_memory_equal(top, top + 16, 16 * sizeof *top);
    size_t at7 = 0, at40 = 0;
    for (size_t i = 16; i < 76; i++) {
        if (top[i].label == 7) at7 = i;
        if (top[i].label == 40) at40 = i;
    }
    assert_int_equal(at40, at7 + 1); /* equal scores: by label index */
    tk_snapshot_unref(s);
}

static void a_replaced_version_lives_as_long_as_its_readers(void **state)
{
    (void)state;
    const long live = tk_test_alloc_live();
    tk_current *current;
    assert_int_equal(tk_current_create(&current), TK_OK);
    assert_null(tk_current_get(current));
    tk_current_set(current, make(fixture_model(1), 1, 1));
    tk_snapshot *old = tk_current_get(current);
    tk_current_set(current, make(fixture_model(2), 2, 1));
    assert_int_equal(tk_snapshot_number(old), 1);
    assert_non_null(tk_snapshot_find(old, "alice", "type"));
    tk_snapshot_unref(old);
    tk_current_destroy(current);
    assert_int_equal(tk_test_alloc_live(), live);
}

typedef struct reader {
    tk_current *current;
    size_t wrong;
} reader;

static void *read_many(void *arg)
{
    reader *r = arg;
    for (int i = 0; i < 2000; i++) {
        tk_snapshot *s = tk_current_get(r->current);
        /* Version n has n heads: a half-published one would not fit. */
        if (tk_snapshot_heads(s) != tk_snapshot_number(s)) r->wrong++;
        tk_snapshot_unref(s);
    }
    return NULL;
}

static tk_snapshot *version_with_heads(uint64_t n)
{
    tk_model *model = fixture_model(n);
    if (n == 3) fixture_add_head(model, "carol/use", 2, "u", 1);
    return make(model, n, 1);
}

static void readers_never_see_a_version_half_published(void **state)
{
    (void)state;
    tk_snapshot *two = version_with_heads(2), *three = version_with_heads(3);
    tk_current *current;
    assert_int_equal(tk_current_create(&current), TK_OK);
    tk_current_set(current, tk_snapshot_ref(two));
    pthread_t threads[4];
    reader readers[4];
    for (int i = 0; i < 4; i++) {
        readers[i] = (reader){current, 0};
        assert_int_equal(pthread_create(&threads[i], NULL, read_many, &readers[i]), 0);
    }
    for (int i = 0; i < 500; i++)
        tk_current_set(current, tk_snapshot_ref(i % 2 ? two : three));
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(readers[i].wrong, 0);
    }
    tk_current_destroy(current);
    tk_snapshot_unref(two);
    tk_snapshot_unref(three);
}

/* As if its heads had been measured, with every precision admitted or none. */
static tk_model *judged(bool admitted)
{
    static const float zeros[32 * 32 * 3];
    tk_model *model = fixture_model(1);
    tk_pool *pool;
    tk_plan *plan;
    assert_int_equal(tk_pool_create(&pool, 1), TK_OK);
    assert_int_equal(tk_plan_create(&plan, model->trunk, 32, 1, pool, NULL), TK_OK);
    assert_int_equal(tk_plan_calibrate(plan, 1, zeros, &model->ranges, NULL), TK_OK);
    tk_plan_destroy(plan);
    tk_pool_destroy(pool);
    for (size_t h = 0; h < model->n_heads; h++)
        for (tk_precision p = TK_PRECISION_BF16; p < TK_PRECISION_COUNT; p++)
            model->heads[h]->checks[p] =
                (tk_precision_check){.n = 9, .alike = 1, .admitted = admitted || h == 0};
    return model;
}

static void a_version_is_served_in_what_it_admits(void **state)
{
    (void)state;
    for (unsigned asked = TK_PRECISION_FP32; asked <= TK_PRECISION_AUTO; asked++) {
        tk_snapshot *s;
        assert_int_equal(tk_snapshot_create_as(&s, judged(true), 1, 2, 2, asked, NULL), TK_OK);
        const tk_precision_choice *c = tk_snapshot_choice(s);
        assert_int_equal(c->asked, asked);
        if (asked != TK_PRECISION_AUTO) assert_int_equal(c->served, asked);
        for (tk_precision p = TK_PRECISION_FP32; p < TK_PRECISION_COUNT; p++) {
            assert_true(c->admitted[p]);
            assert_int_equal(c->ms[p] > 0, asked == TK_PRECISION_AUTO && tk_precision_native(p));
            if (asked == TK_PRECISION_AUTO && c->ms[p] > 0)
                assert_true(c->ms[c->served] <= c->ms[p]);
        }
        tk_snapshot_unref(s);
        assert_int_equal(tk_snapshot_create_as(&s, judged(false), 1, 2, 2, asked, NULL), TK_OK);
        c = tk_snapshot_choice(s);
        assert_int_equal(c->served, TK_PRECISION_FP32);
        assert_string_equal(c->refused[TK_PRECISION_INT8]->id, "bob/colour");
        tk_snapshot_unref(s);
        assert_int_equal(tk_snapshot_create_as(&s, fixture_model(1), 1, 2, 2, asked, NULL), TK_OK);
        assert_int_equal(tk_snapshot_choice(s)->served, TK_PRECISION_FP32);
        assert_null(tk_snapshot_choice(s)->refused[TK_PRECISION_BF16]);
        tk_snapshot_unref(s);
    }
}

/* Ranges of another trunk: the file is bad, whatever it says about its heads. */
static void ranges_of_another_trunk_are_refused(void **state)
{
    (void)state;
    tk_model *model = judged(true);
    tk_snapshot *s;
    tk_diag diag;
    model->ranges.maps--;
    assert_int_equal(tk_snapshot_create_as(&s, model, 1, 2, 2, TK_PRECISION_INT8, &diag),
                     TK_BADARG);
    assert_null(s);
    assert_non_null(strstr(diag.text, "ranges"));
}

static void no_memory_leaves_nothing_behind(void **state)
{
    (void)state;
    const long live = tk_test_alloc_live();
    for (long n = 0;; n += n < 20 ? 1 : 7) {
        tk_model *model = judged(true);
        tk_snapshot *s;
        tk_test_alloc_fail_after(n);
        const tk_err err = tk_snapshot_create_as(&s, model, 1, 2, 2, TK_PRECISION_AUTO, NULL);
        tk_test_alloc_fail_after(-1);
        if (err == TK_OK) {
            tk_snapshot_unref(s);
            break;
        }
        assert_int_equal(err, TK_NOMEM);
        assert_null(s);
        assert_int_equal(tk_test_alloc_live(), live);
    }
    assert_int_equal(tk_test_alloc_live(), live);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(heads_are_found_by_owner_and_name),
        cmocka_unit_test(a_version_is_warm_before_its_first_request),
        cmocka_unit_test(answers_are_the_softmax_of_the_head_best_first),
        cmocka_unit_test(few_and_many_answers_agree_on_the_order),
        cmocka_unit_test(a_replaced_version_lives_as_long_as_its_readers),
        cmocka_unit_test(readers_never_see_a_version_half_published),
        cmocka_unit_test(a_version_is_served_in_what_it_admits),
        cmocka_unit_test(ranges_of_another_trunk_are_refused),
        cmocka_unit_test(no_memory_leaves_nothing_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
