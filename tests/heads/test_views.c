/* From a pack to what training sees: canvases, split, pseudo-labels. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "close.h"
#include "engine/linear.h"
#include "engine/mem.h"
#include "engine/plan.h"
#include "engine/rng.h"
#include "fixture.h"
#include "heads/pseudo_labels.h"
#include "heads/split.h"

enum { PX = 32, FLOATS = PX * PX * 3, FEATURES = 64 };
static const tk_augment augment = {.pad = 4, .scale_min = 1, .flip = 1};

static tk_canvases *open_canvases(const tk_pack *pack, const char *name)
{
    const tk_preproc preproc = fixture_preproc();
    tk_canvases *canvases;
    assert_int_equal(tk_canvases_open(&canvases, fixture_path(name), pack, &preproc, PX,
                                      fixture_pool(), NULL, NULL),
                     TK_OK);
    return canvases;
}

static tk_pack *open_pack(const char *name, size_t n)
{
    const char *path = fixture_path(name);
    tk_pack *pack;
    fixture_pack(path, FIXTURE_COLOUR, n, 1);
    assert_int_equal(tk_pack_open(&pack, path, NULL), TK_OK);
    return pack;
}

/* A centre view on a canvas of the crop's size is the decoded image, normalised. */
static void a_centre_view_is_the_image_itself(void **state)
{
    (void)state;
    static float x[FLOATS];
    const tk_preproc preproc = fixture_preproc();
    tk_pack *pack = open_pack("centre.pack", 5);
    tk_canvases *canvases = open_canvases(pack, "centre.canvas");
    const uint32_t which = 3;
    const tk_cut cut = {.images = &which};
    tk_image image;
    tk_canvases_render(canvases, &cut, 1, x, fixture_pool());
    const tk_pack_item item = tk_pack_get(pack, which);
    assert_int_equal(tk_image_decode(&image, item.data, item.size, NULL, 0, NULL), TK_OK);
    for (size_t i = 0; i < FLOATS; i++) {
        const double want =
            ((double)image.rgb[i] / 255 - (double)preproc.mean[i % 3]) / (double)preproc.std[i % 3];
        assert_close(x[i], want, 1e-4);
    }
    tk_image_fini(&image);
    tk_canvases_close(canvases);
    tk_pack_close(pack);
}

static void a_broken_image_is_marked_and_left_out(void **state)
{
    (void)state;
    const char *path = fixture_path("broken.pack");
    tk_pack_writer *w;
    tk_pack *pack, *whole = open_pack("whole.pack", 9);
    uint32_t label;
    assert_int_equal(tk_pack_create(&w, path, NULL), TK_OK);
    for (size_t i = 0; i < 9; i++) {
        const tk_pack_item item = tk_pack_get(whole, i);
        const size_t size = i == 4 ? item.size / 2 : item.size;
        assert_int_equal(tk_pack_label(w, tk_pack_label_name(whole, item.label), &label, NULL),
                         TK_OK);
        assert_int_equal(tk_pack_add(w, label, "x", item.data, size, NULL), TK_OK);
    }
    assert_int_equal(tk_pack_commit(w, NULL), TK_OK);
    assert_int_equal(tk_pack_open(&pack, path, NULL), TK_OK);
    tk_canvases *canvases = open_canvases(pack, "broken.canvas");
    for (size_t i = 0; i < 9; i++)
        assert_int_equal(tk_canvases_ok(canvases, i), i != 4);
    tk_split split;
    assert_int_equal(tk_split_create(&split, pack, canvases, 0.2, 1000, 1, NULL), TK_OK);
    assert_int_equal(split.n_train + split.n_held, 8);
    for (size_t i = 0; i < split.n_train; i++)
        assert_int_not_equal(split.train[i], 4);
    for (size_t i = 0; i < split.n_held; i++)
        assert_int_not_equal(split.held[i], 4);
    tk_split_fini(&split);
    tk_canvases_close(canvases);
    tk_pack_close(pack);
    tk_pack_close(whole);
}

static void the_split_is_stratified_disjoint_and_seeded(void **state)
{
    (void)state;
    tk_pack *pack = open_pack("split.pack", 60);
    tk_canvases *canvases = open_canvases(pack, "split.canvas");
    tk_split a, b;
    size_t held[FIXTURE_CLASSES] = {0};
    bool seen[60] = {false};
    assert_int_equal(tk_split_create(&a, pack, canvases, 0.15, 1000, 1, NULL), TK_OK);
    assert_int_equal(a.n_held, 9);
    assert_int_equal(a.n_train, 51);
    for (size_t i = 0; i < a.n_held; i++)
        held[tk_pack_get(pack, a.held[i]).label]++;
    for (size_t c = 0; c < FIXTURE_CLASSES; c++)
        assert_int_equal(held[c], 3);
    for (size_t i = 0; i < a.n_held; i++)
        seen[a.held[i]] = true;
    for (size_t i = 0; i < a.n_train; i++) {
        assert_false(seen[a.train[i]]);
        assert_true(i == 0 || a.train[i - 1] < a.train[i]);
    }
    assert_int_equal(tk_split_create(&b, pack, canvases, 0.15, 1000, 1, NULL), TK_OK);
    assert_memory_equal(a.held, b.held, a.n_held * sizeof *a.held);
    tk_split_fini(&b);
    assert_int_equal(tk_split_create(&b, pack, canvases, 0.15, 1000, 2, NULL), TK_OK);
    assert_memory_not_equal(a.held, b.held, a.n_held * sizeof *a.held);
    tk_split_fini(&b);
    assert_int_equal(tk_split_create(&b, pack, canvases, 0.5, 6, 1, NULL), TK_OK);
    assert_int_equal(b.n_held, 6);
    tk_split_fini(&b);
    tk_split_fini(&a);
    tk_canvases_close(canvases);
    tk_pack_close(pack);
}

/* Three classes of one image: nothing can be held out. Of two: one each. */
static void a_class_never_loses_its_last_image(void **state)
{
    (void)state;
    for (size_t each = 1; each <= 2; each++) {
        char name[32];
        snprintf(name, sizeof name, "few%zu", each);
        tk_pack *pack = open_pack(name, each * FIXTURE_CLASSES);
        snprintf(name, sizeof name, "few%zu.canvas", each);
        tk_canvases *canvases = open_canvases(pack, name);
        tk_split split;
        assert_int_equal(tk_split_create(&split, pack, canvases, 0.15, 1000, 1, NULL), TK_OK);
        assert_int_equal(split.n_train, FIXTURE_CLASSES);
        assert_int_equal(split.n_held, (each - 1) * FIXTURE_CLASSES);
        tk_split_fini(&split);
        tk_canvases_close(canvases);
        tk_pack_close(pack);
    }
}

typedef struct setup {
    tk_model *teacher;
    tk_pack *pack;
    tk_canvases *canvases;
    uint32_t images[10];
    tk_pseudo_labels_opts opts;
} setup;

static void setup_init(setup *s, const char *name)
{
    char file[64];
    s->teacher = fixture_model(5, 2, (const char *const[]){"a", "b"});
    s->pack = open_pack(name, 20);
    snprintf(file, sizeof file, "%s.canvas", name);
    s->canvases = open_canvases(s->pack, file);
    for (uint32_t i = 0; i < 10; i++)
        s->images[i] = 2 * i + 1;
    snprintf(file, sizeof file, "%s.labels", name);
    s->opts = (tk_pseudo_labels_opts){.teacher = s->teacher,
                                      .n_heads = 2,
                                      .heads = s->teacher->heads,
                                      .canvases = s->canvases,
                                      .n_images = 10,
                                      .images = s->images,
                                      .views = 9,
                                      .augment = augment,
                                      .seed = 42,
                                      .path = fixture_path(file),
                                      .pool = fixture_pool()};
}

static void setup_fini(setup *s)
{
    tk_canvases_close(s->canvases);
    tk_pack_close(s->pack);
    tk_model_destroy(s->teacher);
}

/* Half precision has 11 bits: relative error 2^-11 and, near zero, 2^-25. */
static void assert_half_close(float stored, float exact)
{
    assert_true(fabsf(stored - exact) <= fabsf(exact) * 0x1p-11f + 1e-6f);
}

static void pseudo_labels_are_the_teachers_logits_on_the_same_view(void **state)
{
    (void)state;
    static float x[FLOATS], features[FEATURES], stored[FEATURES];
    setup s;
    setup_init(&s, "views.pack");
    tk_pseudo_labels *labels;
    tk_plan *plan;
    assert_int_equal(tk_pseudo_labels_open(&labels, &s.opts, NULL), TK_OK);
    assert_int_equal(tk_plan_create(&plan, s.teacher->trunk, PX, 1, fixture_pool(), NULL), TK_OK);
    for (uint32_t view = 0; view < 9; view++)
        for (size_t item = 0; item < 10; item++) {
            const tk_cut cut = {&augment, 42, &s.images[item], &view};
            float logits[FIXTURE_CLASSES], pseudo[FIXTURE_CLASSES];
            tk_canvases_render(s.canvases, &cut, 1, x, fixture_pool());
            tk_plan_run(plan, 1, x, features);
            tk_pseudo_labels_features(labels, view, item, stored);
            for (size_t k = 0; k < FEATURES; k++)
                assert_half_close(stored[k], features[k]);
            for (size_t h = 0; h < 2; h++) {
                const tk_head *head = s.teacher->heads[h];
                tk_linear_forward(1, FEATURES, FIXTURE_CLASSES, features, head->weight, head->bias,
                                  logits);
                tk_pseudo_labels_logits(labels, view, item, h, pseudo);
                for (size_t k = 0; k < FIXTURE_CLASSES; k++)
                    assert_half_close(pseudo[k], logits[k]);
            }
        }
    tk_plan_destroy(plan);
    tk_pseudo_labels_close(labels);
    setup_fini(&s);
}

static bool after_one_batch(void *ctx)
{
    return (*(int *)ctx)++ >= 1;
}

/* 90 rows are two batches; the first run stops after one. */
static void an_interrupted_pass_goes_on_where_it_was(void **state)
{
    (void)state;
    setup s;
    size_t size_a, size_b;
    int calls = 0;
    const tk_watch watch = {.ctx = &calls, .cancelled = after_one_batch};
    tk_pseudo_labels *labels;
    setup_init(&s, "resume.pack");
    assert_int_equal(tk_pseudo_labels_open(&labels, &s.opts, NULL), TK_OK);
    tk_pseudo_labels_close(labels);
    uint8_t *whole = fixture_read(s.opts.path, &size_a);
    s.opts.path = fixture_path("resume.second");
    s.opts.watch = &watch;
    assert_int_equal(tk_pseudo_labels_open(&labels, &s.opts, NULL), TK_CANCELLED);
    assert_null(labels);
    s.opts.watch = NULL;
    assert_int_equal(tk_pseudo_labels_open(&labels, &s.opts, NULL), TK_OK);
    tk_pseudo_labels_close(labels);
    uint8_t *resumed = fixture_read(s.opts.path, &size_b);
    assert_int_equal(size_a, size_b);
    assert_memory_equal(whole, resumed, size_a);
    tk_free(whole);
    tk_free(resumed);
    setup_fini(&s);
}

static int clean(void **state)
{
    (void)state;
    tk_pool_destroy(fixture_pool());
    fixture_clean();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_centre_view_is_the_image_itself),
        cmocka_unit_test(a_broken_image_is_marked_and_left_out),
        cmocka_unit_test(the_split_is_stratified_disjoint_and_seeded),
        cmocka_unit_test(a_class_never_loses_its_last_image),
        cmocka_unit_test(pseudo_labels_are_the_teachers_logits_on_the_same_view),
        cmocka_unit_test(an_interrupted_pass_goes_on_where_it_was),
    };
    return cmocka_run_group_tests(tests, NULL, clean);
}
