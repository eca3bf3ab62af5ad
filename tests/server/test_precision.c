/* --precision: a version is served in what was asked for as far as it admits it, says so, and
 * answers as its file promises. All versions here have the same weights: what differs is what was
 * measured. */
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/isa.h"
#include "engine/linear.h"
#include "engine/plan.h"
#include "trunkd_process.h"

enum { IMAGES = 24, PX = 32, FLOATS = PX * PX * 3, FEATURES = 64 };
#define TOLERANCE 25.0 /* points; the heads are random, with many a close call */

static fixture_bytes images[IMAGES];
static trunkd server;

/* ---- three versions: never measured, measured, measured with wrong ranges ---- */

static void render(const tk_preproc *p, float *x)
{
    for (size_t i = 0; i < IMAGES; i++) {
        tk_image rgb;
        uint8_t canvas[FLOATS];
        const tk_view view = tk_view_centre(p, PX);
        assert_int_equal(
            tk_image_decode(&rgb, images[i].data, images[i].size, NULL, p->resize, NULL), TK_OK);
        assert_int_equal(tk_preproc_canvas(p, &rgb, PX, canvas, NULL), TK_OK);
        tk_view_render(p, canvas, PX, &view, x + i * FLOATS);
        tk_image_fini(&rgb);
    }
}

static void answer_all(const tk_head *head, const float *features, size_t answers[IMAGES])
{
    for (size_t i = 0; i < IMAGES; i++) {
        float logits[FIXTURE_TYPES];
        tk_linear_forward(1, FEATURES, head->classes, features + i * FEATURES, head->weight,
                          head->bias, logits);
        answers[i] = 0;
        for (size_t c = 1; c < head->classes; c++)
            if (logits[c] > logits[answers[i]]) answers[i] = c;
    }
}

static tk_precision_check compare(const tk_head *head, const float *fp32, const float *features)
{
    size_t want[IMAGES], got[IMAGES], same = 0;
    answer_all(head, fp32, want);
    answer_all(head, features, got);
    for (size_t i = 0; i < IMAGES; i++)
        same += want[i] == got[i];
    const double alike = (double)same / IMAGES;
    return (tk_precision_check){.n = IMAGES,
                                .accuracy = alike,
                                .fp32 = 1,
                                .alike = alike,
                                .tolerance = TOLERANCE,
                                .agreement = true,
                                .admitted = 100 * (1 - alike) <= TOLERANCE};
}

/* Fills in ranges, times `scale`, and every head's checks: agreement with fp32 on `images`. */
static void measure(tk_model *model, float scale)
{
    static float x[IMAGES * FLOATS], fp32[IMAGES * FEATURES], features[IMAGES * FEATURES];
    tk_pool *pool;
    tk_plan *plan;
    render(&model->preproc, x);
    assert_int_equal(tk_pool_create(&pool, 1), TK_OK);
    assert_int_equal(tk_plan_create(&plan, model->trunk, PX, IMAGES, pool, NULL), TK_OK);
    tk_plan_run(plan, IMAGES, x, fp32);
    assert_int_equal(tk_plan_calibrate(plan, IMAGES, x, &model->ranges, NULL), TK_OK);
    tk_plan_destroy(plan);
    for (uint32_t m = 0; m < model->ranges.maps; m++)
        model->ranges.limit[m] *= scale;
    for (tk_precision p = TK_PRECISION_BF16; p < TK_PRECISION_COUNT; p++) {
        assert_int_equal(
            tk_plan_create_as(&plan, model->trunk, PX, IMAGES, p, &model->ranges, pool, NULL),
            TK_OK);
        tk_plan_run(plan, IMAGES, x, features);
        tk_plan_destroy(plan);
        for (size_t h = 0; h < model->n_heads; h++)
            model->heads[h]->checks[p] = compare(model->heads[h], fp32, features);
    }
    tk_pool_destroy(pool);
}

static double promised[TK_PRECISION_COUNT]; /* `alike` of alice's head in version 2 */
static tk_precision_check refused;          /* in int8, by version 3 */
static char refused_by[128];

static tk_model *make(uint64_t number)
{
    const tk_head *head;
    tk_model *model = fixture_model(1);
    if (number > 1) measure(model, number == 2 ? 1 : 0.01F);
    if (number == 2) {
        assert_true(tk_model_admits(model, TK_PRECISION_BF16, &head));
        assert_true(tk_model_admits(model, TK_PRECISION_INT8, &head));
        for (tk_precision p = TK_PRECISION_BF16; p < TK_PRECISION_COUNT; p++)
            promised[p] = tk_model_head(model, "alice/type")->checks[p].alike;
    }
    if (number == 3) {
        assert_true(tk_model_admits(model, TK_PRECISION_BF16, &head));
        assert_false(tk_model_admits(model, TK_PRECISION_INT8, &head));
        refused = head->checks[TK_PRECISION_INT8];
        snprintf(refused_by, sizeof refused_by, "%s", head->id);
    }
    return model;
}

/* ---- asking ---- */

typedef struct scores {
    char label[IMAGES][16]; /* the best */
    float value[IMAGES];    /* its probability */
} scores;

static scores ask_scores(void)
{
    scores s = {0};
    const answer a = classify(server.alice, images, IMAGES, "type", 1);
    if (!a.message) fail_msg("%s", a.status.text);
    const Trunkd__V1__ClassifyResponse *out = (const Trunkd__V1__ClassifyResponse *)a.message;
    for (size_t i = 0; i < IMAGES; i++) {
        snprintf(s.label[i], sizeof s.label[i], "%s", out->images[i]->heads[0]->top[0]->label);
        s.value[i] = out->images[i]->heads[0]->top[0]->score;
    }
    tk_client_free_message(a.message);
    return s;
}

static double agreement(const scores *a, const scores *b)
{
    size_t same = 0;
    for (size_t i = 0; i < IMAGES; i++)
        same += strcmp(a->label[i], b->label[i]) == 0;
    return (double)same / IMAGES;
}

static void *get(const char *path, const ProtobufCMessageDescriptor *type)
{
    Trunkd__V1__Empty empty;
    trunkd__v1__empty__init(&empty);
    const answer a = ask(server.admin, path, &empty, type);
    if (!a.message) fail_msg("%s", a.status.text);
    return a.message;
}

static void assert_served(uint64_t version, const char *precision, const char *asked)
{
    Trunkd__V1__GetStatusResponse *s =
        get("/trunkd.v1.Admin/GetStatus", &trunkd__v1__get_status_response__descriptor);
    assert_int_equal(s->version, version);
    assert_string_equal(s->precision, precision);
    assert_string_equal(s->precision_asked, asked);
    tk_client_free_message(&s->base);
}

static void start(const char *precision, const char *isa)
{
    trunkd_start(&server, (const char *const[]){"--precision", precision, "--isa", isa, NULL});
}

static int end(void **state)
{
    (void)state;
    return server.pid ? trunkd_end(&server, SIGTERM) : 0;
}

static void assert_close(double a, double b)
{
    assert_true(fabs(a - b) < 1e-9);
}

/* ---- tests, in this order on one store; each starts the server, its teardown ends it ---- */

static scores in_fp32, in_int8;

static void a_version_that_refuses_a_precision_is_served_in_fp32_and_says_why(void **state)
{
    (void)state;
    char why[128];
    trunkd_start(&server, NULL);
    assert_served(3, "fp32", "fp32");
    in_fp32 = ask_scores();
    assert_int_equal(end(NULL), 0);
    assert_false(trunkd_logged(&server, "not admitted"));
    start("int8", "auto");
    assert_served(3, "fp32", "int8");
    const scores s = ask_scores();
    assert_memory_equal(&s, &in_fp32, sizeof s);
    assert_true(trunkd_logged(&server, "precision not admitted, fp32 instead"));
    assert_true(trunkd_logged(&server, "version=3 asked=int8"));
    assert_true(trunkd_logged(&server, refused_by));
    snprintf(why, sizeof why,
             "agreement %.2f %%, in fp32 100.00 %%, tolerance 25.00 points, 24 images",
             100 * refused.accuracy);
    assert_true(trunkd_logged(&server, why));
}

static void a_version_from_before_is_served_in_fp32(void **state)
{
    (void)state;
    start("int8", "auto");
    (void)trunkd_roll_back(&server, 1);
    assert_served(4, "fp32", "int8");
    assert_true(trunkd_logged(&server, "never measured in it"));
    const scores s = ask_scores();
    assert_memory_equal(&s, &in_fp32, sizeof s);
}

static void an_admitted_precision_answers_as_its_file_promises(void **state)
{
    (void)state;
    start("int8", "auto");
    (void)trunkd_roll_back(&server, 2);
    assert_served(5, "int8", "int8");
    in_int8 = ask_scores();
    assert_true(memcmp(in_int8.value, in_fp32.value, sizeof in_fp32.value) != 0);
    assert_close(agreement(&in_int8, &in_fp32), promised[TK_PRECISION_INT8]);
    assert_int_equal(end(NULL), 0);
    start("int8", "auto");
    const scores again = ask_scores(); /* bit for bit the same after a restart */
    assert_memory_equal(&again, &in_int8, sizeof again);
    assert_int_equal(end(NULL), 0);
    start("bf16", "auto");
    assert_served(5, "bf16", "bf16");
    const scores in_bf16 = ask_scores();
    assert_true(memcmp(in_bf16.value, in_fp32.value, sizeof in_fp32.value) != 0);
    assert_close(agreement(&in_bf16, &in_fp32), promised[TK_PRECISION_BF16]);
}

static void assert_numbers(const Trunkd__V1__Precision *p, tk_precision precision)
{
    assert_string_equal(p->name, tk_precision_name(precision));
    assert_int_equal(p->n_heads, 2);
    const Trunkd__V1__HeadPrecision *h = p->heads[0];
    assert_string_equal(h->head, "alice/type");
    assert_close(h->alike, promised[precision]);
    assert_close(h->accuracy, promised[precision]);
    assert_close(h->change, promised[precision] - 1);
    assert_close(h->tolerance, TOLERANCE);
    assert_int_equal(h->images, IMAGES);
    assert_true(h->agreement && h->admitted);
}

static void the_list_shows_what_each_version_admits(void **state)
{
    (void)state;
    start("int8", "auto");
    Trunkd__V1__ListVersionsResponse *list =
        get("/trunkd.v1.Admin/ListVersions", &trunkd__v1__list_versions_response__descriptor);
    assert_int_equal(list->n_versions, 5); /* newest first */
    const Trunkd__V1__Version *now = list->versions[0], *wrong = list->versions[2],
                              *old = list->versions[4];
    assert_string_equal(now->served_precision, "int8");
    assert_string_equal(wrong->served_precision, "");
    assert_int_equal(now->n_precisions, TK_PRECISION_COUNT);
    assert_true(now->precisions[0]->admitted && now->precisions[1]->admitted &&
                now->precisions[2]->admitted);
    assert_numbers(now->precisions[1], TK_PRECISION_BF16);
    assert_numbers(now->precisions[2], TK_PRECISION_INT8);
    assert_true(wrong->precisions[1]->admitted);
    assert_false(wrong->precisions[2]->admitted);
    assert_true(old->precisions[0]->admitted);
    assert_false(old->precisions[1]->admitted || old->precisions[2]->admitted);
    assert_int_equal(old->precisions[1]->n_heads, 0);
    tk_client_free_message(&list->base);
}

static void auto_takes_the_fastest_that_this_cpu_has_instructions_for(void **state)
{
    (void)state;
    start("auto", "scalar"); /* which has none for bf16 and int8 */
    assert_served(5, "fp32", "auto");
    const scores s = ask_scores();
    assert_close(agreement(&s, &in_fp32), 1);
    assert_true(trunkd_logged(&server, "precisions measured"));
    assert_false(trunkd_logged(&server, "bf16=\""));
    assert_int_equal(end(NULL), 0);
    start("auto", "auto");
    Trunkd__V1__GetStatusResponse *status =
        get("/trunkd.v1.Admin/GetStatus", &trunkd__v1__get_status_response__descriptor);
    tk_precision chosen;
    char line[32];
    assert_int_equal(tk_precision_parse(status->precision, &chosen, NULL), TK_OK);
    assert_true(tk_precision_native(chosen));
    assert_int_equal(status->n_precisions_admitted, TK_PRECISION_COUNT);
    snprintf(line, sizeof line, "chosen=%s", status->precision);
    assert_true(trunkd_logged(&server, line));
    assert_int_equal(trunkd_logged(&server, "int8=\""), tk_precision_native(TK_PRECISION_INT8));
    tk_client_free_message(&status->base);
}

static void a_bad_value_names_the_flag_and_the_values(void **state)
{
    (void)state;
    assert_int_equal(trunkd_run(&server, (const char *const[]){"--precision", "fp16", NULL}), 2);
    assert_true(
        trunkd_logged(&server, "--precision is \"fp16\", but must be one of fp32|bf16|int8|auto"));
}

static int prepare(void **state)
{
    (void)state;
    for (size_t i = 0; i < IMAGES; i++)
        images[i] = i % 2 ? fixture_jpeg(60 + (unsigned)i, 48, i) : fixture_png(40, 64, i);
    trunkd_prepare_with(&server, 3, make);
    return tk_isa_select(NULL, NULL) == TK_OK ? 0 : -1;
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
        cmocka_unit_test_teardown(a_version_that_refuses_a_precision_is_served_in_fp32_and_says_why,
                                  end),
        cmocka_unit_test_teardown(a_version_from_before_is_served_in_fp32, end),
        cmocka_unit_test_teardown(an_admitted_precision_answers_as_its_file_promises, end),
        cmocka_unit_test_teardown(the_list_shows_what_each_version_admits, end),
        cmocka_unit_test_teardown(auto_takes_the_fastest_that_this_cpu_has_instructions_for, end),
        cmocka_unit_test_teardown(a_bad_value_names_the_flag_and_the_values, end),
    };
    return cmocka_run_group_tests(tests, prepare, clean);
}
