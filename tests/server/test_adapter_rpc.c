/* Heads with an adapter, served: over the wire they answer what the formula says, and nobody else's
 * answer feels them. Three versions of the same weights: all heads plain, Bob's with an adapter,
 * and Alice's too. */
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/linear.h"
#include "engine/mem.h"
#include "engine/plan.h"
#include "engine/rng.h"
#include "heads/stack.h"
#include "serving/snapshot.h"
#include "trunkd_process.h"

enum { IMAGES = 12, PX = 32, FLOATS = PX * PX * 3, FEATURES = 64, STAGES = 3 };

static fixture_bytes images[IMAGES];
static trunkd server;

static void give_adapter(tk_head *head, size_t rank)
{
    assert_int_equal(tk_head_add_adapter(head, TK_RESNET20, rank, NULL), TK_OK);
    for (size_t i = 0; i < tk_side_size(TK_RESNET20, rank); i++)
        head->adapter[i] = 0.3F * tk_rng_normal(rank, 0, i);
    for (size_t c = 0; c < head->classes; c++)
        for (size_t k = FEATURES; k < head->width; k++)
            head->weight[c * head->width + k] = 0.5F * tk_rng_normal(rank, 1 + c, k);
}

static tk_model *make(uint64_t number)
{
    tk_model *model = fixture_model(1);
    if (number >= 2) give_adapter(tk_model_head(model, "bob/colour"), 9);
    if (number >= 3) give_adapter(tk_model_head(model, "alice/type"), 40);
    return model;
}

/* --- in this process --- */

static void canvas_of(const tk_preproc *p, size_t i, uint8_t canvas[FLOATS])
{
    tk_image rgb;
    assert_int_equal(tk_image_decode(&rgb, images[i].data, images[i].size, NULL, p->resize, NULL),
                     TK_OK);
    assert_int_equal(tk_preproc_canvas(p, &rgb, PX, canvas, NULL), TK_OK);
    tk_image_fini(&rgb);
}

/* Probabilities of one head for one image, from the engine's functions and the head alone. */
static void direct(const tk_model *model, const tk_head *head, const uint8_t *canvas, float *scores)
{
    tk_pool *pool;
    tk_plan *plan;
    static float x[FLOATS], in[FEATURES + STAGES * 64], z[STAGES * 64];
    const tk_view view = tk_view_centre(&model->preproc, PX);
    tk_view_render(&model->preproc, canvas, PX, &view, x);
    assert_int_equal(tk_pool_create(&pool, 1), TK_OK);
    assert_int_equal(tk_plan_create(&plan, model->trunk, PX, 1, pool, NULL), TK_OK);
    assert_int_equal(
        tk_plan_set_side(plan, &(tk_side){TK_RESNET20, head->rank, head->adapter}, NULL), TK_OK);
    tk_plan_run_side(plan, 1, x, in, z, NULL);
    memcpy(in + FEATURES, z, STAGES * head->rank * sizeof *z);
    tk_linear_forward(1, head->width, head->classes, in, head->weight, head->bias, scores);
    double sum = 0;
    for (size_t i = 0; i < head->classes; i++)
        sum += exp((double)scores[i]);
    for (size_t i = 0; i < head->classes; i++)
        scores[i] = (float)(exp((double)scores[i]) / sum);
    tk_plan_destroy(plan);
    tk_pool_destroy(pool);
}

/* All images in one batch, and each by itself, in this process. */
static void a_batch_answers_each_image_as_if_it_were_alone(void **state)
{
    (void)state;
    tk_snapshot *s;
    static uint8_t canvas[IMAGES][FLOATS];
    tk_pass passes[IMAGES];
    tk_top top[IMAGES][FIXTURE_TYPES + FIXTURE_COLOURS], alone[FIXTURE_TYPES + FIXTURE_COLOURS];
    assert_int_equal(tk_snapshot_create(&s, make(3), 1, IMAGES, 2, NULL), TK_OK);
    const tk_head *heads[] = {tk_snapshot_find(s, "bob", "colour"),
                              tk_snapshot_find(s, "alice", "type")};
    const size_t k[] = {FIXTURE_COLOURS, FIXTURE_TYPES};
    for (size_t i = 0; i < IMAGES; i++) {
        canvas_of(tk_snapshot_preproc(s), i, canvas[i]);
        passes[i] =
            (tk_pass){.canvas = canvas[i], .n_heads = 2, .heads = heads, .k = k, .top = top[i]};
    }
    tk_snapshot_run(s, IMAGES, passes);
    for (size_t i = 0; i < IMAGES; i++) {
        passes[i].top = alone;
        tk_snapshot_run(s, 1, &passes[i]);
        assert_memory_equal(alone, top[i], sizeof alone);
    }
    tk_snapshot_unref(s);
}

static void an_adapter_is_counted_in_a_versions_bytes(void **state)
{
    (void)state;
    tk_snapshot *plain, *with;
    assert_int_equal(tk_snapshot_create(&plain, make(1), 1, 1, 1, NULL), TK_OK);
    assert_int_equal(tk_snapshot_create(&with, make(2), 2, 1, 1, NULL), TK_OK);
    const size_t more = tk_snapshot_bytes(with) - tk_snapshot_bytes(plain);
    assert_true(more >= 2 * tk_side_size(TK_RESNET20, 9) * sizeof(float)); /* head's and plan's */
    tk_snapshot_unref(plain);
    tk_snapshot_unref(with);
}

static void no_memory_leaves_nothing_behind(void **state)
{
    (void)state;
    const long live = tk_test_alloc_live();
    for (long n = 0;; n += n < 30 ? 1 : 3) {
        tk_model *model = make(2);
        tk_snapshot *s;
        tk_test_alloc_fail_after(n);
        const tk_err err = tk_snapshot_create(&s, model, 1, 2, 2, NULL);
        tk_test_alloc_fail_after(-1);
        if (err == TK_OK) tk_snapshot_unref(s);
        assert_int_equal(tk_test_alloc_live(), live);
        if (err == TK_OK) break;
        assert_int_equal(err, TK_NOMEM);
    }
}

/* --- over the wire --- */

typedef struct scores {
    char label[IMAGES][16]; /* the best */
    float value[IMAGES];    /* its probability */
} scores;

static scores ask_scores(tk_client *who, const char *head)
{
    scores s = {0};
    const answer a = classify(who, images, IMAGES, head, 1);
    if (!a.message) fail_msg("%s", a.status.text);
    const Trunkd__V1__ClassifyResponse *out = (const Trunkd__V1__ClassifyResponse *)a.message;
    for (size_t i = 0; i < IMAGES; i++) {
        snprintf(s.label[i], sizeof s.label[i], "%s", out->images[i]->heads[0]->top[0]->label);
        s.value[i] = out->images[i]->heads[0]->top[0]->score;
    }
    tk_client_free_message(a.message);
    return s;
}

static void assert_answers(const scores *got, uint64_t version, const char *id, const char *stem)
{
    tk_model *model = make(version);
    const tk_head *head = tk_model_head(model, id);
    for (size_t i = 0; i < IMAGES; i++) {
        uint8_t canvas[FLOATS];
        float want[FIXTURE_TYPES];
        char label[16];
        size_t best = 0;
        canvas_of(&model->preproc, i, canvas);
        direct(model, head, canvas, want);
        for (size_t c = 1; c < head->classes; c++)
            if (want[c] > want[best]) best = c;
        snprintf(label, sizeof label, "%s-%zu", stem, best);
        assert_string_equal(got->label[i], label);
        assert_float_equal(got->value[i], want[best], 1e-6);
    }
    tk_model_destroy(model);
}

static void adapter_heads_answer_over_the_wire_and_nobody_else_changes(void **state)
{
    (void)state;
    trunkd_start(&server, NULL); /* version 3 */
    const scores alice3 = ask_scores(server.alice, "type");
    const scores bob3 = ask_scores(server.bob, "colour");
    assert_answers(&alice3, 3, "alice/type", "type");
    assert_answers(&bob3, 3, "bob/colour", "colour");
    (void)trunkd_roll_back(&server, 2);
    const scores alice2 = ask_scores(server.alice, "type");
    const scores bob2 = ask_scores(server.bob, "colour");
    assert_memory_equal(&bob2, &bob3, sizeof bob2); /* though Alice's adapter is gone */
    assert_memory_not_equal(&alice2, &alice3, sizeof alice2);
    (void)trunkd_roll_back(&server, 1);
    const scores alice1 = ask_scores(server.alice, "type");
    const scores bob1 = ask_scores(server.bob, "colour");
    assert_memory_equal(&alice1, &alice2, sizeof alice1);
    assert_memory_not_equal(&bob1, &bob2, sizeof bob1);
    assert_int_equal(trunkd_end(&server, SIGTERM), 0);
}

static int prepare(void **state)
{
    (void)state;
    for (size_t i = 0; i < IMAGES; i++)
        images[i] = i % 2 ? fixture_jpeg(60 + (unsigned)i, 48, i) : fixture_png(40, 64, i);
    trunkd_prepare_with(&server, 3, make);
    return 0;
}

static int clean(void **state)
{
    (void)state;
    for (size_t i = 0; i < IMAGES; i++)
        free(images[i].data);
    trunkd_remove(&server);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_batch_answers_each_image_as_if_it_were_alone),
        cmocka_unit_test(an_adapter_is_counted_in_a_versions_bytes),
        cmocka_unit_test(no_memory_leaves_nothing_behind),
        cmocka_unit_test(adapter_heads_answer_over_the_wire_and_nobody_else_changes),
    };
    return cmocka_run_group_tests(tests, prepare, clean);
}
