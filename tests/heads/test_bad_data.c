/* Jobs on data and settings that nobody should send, and somebody will: each ends with a clear
 * error, or with a sound candidate and a remark on what was seen. Whatever the data, the other head
 * on the trunk does not fall below its floor. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/mem.h"
#include "engine/rng.h"
#include "fixture.h"
#include "heads/job.h"

enum { PATH = 512, REMARKS = 8 };

static char base[PATH], held[PATH]; /* Alice's version and her held-out images */

static const tk_setting quick[] = {
    {"batch", 8},          {"views", 2},       {"warm_up", 8}, {"rate", 0.1},
    {"fisher_samples", 4}, {"line_search", 2}, {"trials", 1},  {"epochs", 2},
};
enum { QUICK = sizeof quick / sizeof *quick };

static const char *file_in(const char *folder, const char *file)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, file);
    return fixture_path(path);
}

static tk_job_opts job(const char *folder, const char *data)
{
    static const tk_validator_pack alice[] = {{"alice/colour", held}};
    tk_job_opts o = tk_job_defaults();
    o.dir = fixture_folder(folder);
    o.base = base;
    o.data = data;
    o.head = "bob/new";
    o.set = quick;
    o.n_set = QUICK;
    o.n_validations = 1;
    o.validations = alice;
    o.pool = fixture_pool();
    return o;
}

static int prepare(void **state)
{
    (void)state;
    tk_job_result r;
    tk_diag diag = {0};
    snprintf(base, sizeof base, "%s", fixture_path("alice/candidate.safetensors"));
    snprintf(held, sizeof held, "%s", fixture_path("alice/validation.pack"));
    const char *data = fixture_path("alice.pack");
    fixture_pack(data, FIXTURE_COLOUR, 60, 1);
    tk_job_opts o = job("alice", data);
    o.base = NULL, o.n_validations = 0;
    o.arch = TK_RESNET20;
    o.preproc = fixture_preproc();
    o.head = "alice/colour";
    o.recipe = "scratch";
    o.tolerance = 5;
    const tk_err err = tk_job_run(&o, &r, &diag);
    if (err != TK_OK) print_error("%s: %s\n", tk_err_text(err), diag.text);
    tk_job_result_fini(&r);
    return err == TK_OK ? 0 : -1;
}

static int clean(void **state)
{
    (void)state;
    tk_pool_destroy(fixture_pool());
    fixture_clean();
    return 0;
}

/* A job that is expected to end: a candidate whose every number is finite (the reader insists), and
 * Alice's head where it was promised to be. The caller frees the result. */
static tk_job_result sound(const tk_job_opts *o)
{
    char path[PATH];
    tk_job_result r;
    tk_model *m;
    tk_diag diag = {0};
    const tk_err err = tk_job_run(o, &r, &diag);
    if (err != TK_OK) fail_msg("%s: %s", tk_err_text(err), diag.text);
    assert_int_not_equal(r.outcome, TK_OUTCOME_REJECT);
    assert_int_equal(r.n_others, 1);
    assert_false(r.after[0].agreement);
    const double now = tk_validation_accuracy(&r.after[0]);
    snprintf(path, sizeof path, "%s/candidate.safetensors", o->dir);
    if (tk_model_load(&m, path, true, &diag) != TK_OK) fail_msg("%s", diag.text);
    assert_int_equal(m->n_heads, 2);
    const tk_head *alice = tk_model_head(m, "alice/colour");
    assert_true(now >= alice->best - alice->tolerance / 100 - 1e-9);
    assert_int_equal(tk_model_head(m, "bob/new")->classes, r.classes);
    tk_model_destroy(m);
    return r;
}

static bool remarked(const tk_job_result *r, const char *what)
{
    char text[256];
    for (size_t k = 0; tk_job_remark(r, k, text, sizeof text); k++)
        if (strstr(text, what)) return true;
    return false;
}

static void assert_remarked(const tk_job_result *r, const char *what)
{
    char text[256];
    if (remarked(r, what)) return;
    for (size_t k = 0; tk_job_remark(r, k, text, sizeof text); k++)
        print_error("remark: %s\n", text);
    fail_msg("no remark says \"%s\"", what);
}

/* ---- data ---- */

/* Image i of a data set: what it shows and how it is labelled. */
typedef struct picture {
    unsigned class, index;
    char label[64];
} picture;

static const char *write_pack(const char *name, size_t n, picture (*show)(size_t i))
{
    static char path[PATH];
    static uint8_t png[FIXTURE_PNG_MAX];
    tk_pack_writer *w;
    uint32_t label;
    snprintf(path, sizeof path, "%s", fixture_path(name));
    assert_int_equal(tk_pack_create(&w, path, NULL), TK_OK);
    for (size_t i = 0; i < n; i++) {
        const picture p = show(i);
        const size_t size = fixture_png(png, FIXTURE_STRIPES, p.class, 9, p.index);
        assert_int_equal(tk_pack_label(w, p.label, &label, NULL), TK_OK);
        assert_int_equal(tk_pack_add(w, label, "", png, size, NULL), TK_OK);
    }
    assert_int_equal(tk_pack_commit(w, NULL), TK_OK);
    return path;
}

static picture labelled(unsigned class, unsigned index, unsigned label)
{
    picture p = {.class = class, .index = index};
    snprintf(p.label, sizeof p.label, "label %u", label);
    return p;
}

static picture clean_one(size_t i)
{
    return labelled((unsigned)i % 3, (unsigned)i, (unsigned)i % 3);
}

static void good_data_is_not_remarked_on(void **state)
{
    (void)state;
    tk_data_check check;
    tk_canvases *canvases;
    tk_pack *pack;
    char text[256];
    const tk_preproc preproc = fixture_preproc();
    assert_int_equal(tk_pack_open(&pack, write_pack("good.pack", 30, clean_one), NULL), TK_OK);
    assert_int_equal(tk_canvases_open(&canvases, fixture_path("good.canvases"), pack, &preproc, 32,
                                      fixture_pool(), NULL, NULL),
                     TK_OK);
    assert_int_equal(tk_data_check_run(&check, pack, canvases, NULL), TK_OK);
    assert_int_equal(check.images, 30);
    assert_int_equal(check.different, 30);
    assert_int_equal(check.smallest, 10);
    assert_int_equal(check.largest, 10);
    assert_false(tk_data_check_remark(&check, 0, text, sizeof text));
    tk_canvases_close(canvases);
    tk_pack_close(pack);
}

static void one_image_per_class_makes_a_head_that_is_not_validated(void **state)
{
    (void)state;
    const tk_job_opts o = job("single", write_pack("single.pack", 3, clean_one));
    tk_job_result r = sound(&o);
    assert_int_equal(r.n_held, 0);
    assert_remarked(&r, "3 of 3 labels have one image only");
    assert_int_equal(access(file_in("single", "validation.pack"), F_OK), -1);
    tk_job_result_fini(&r);
}

/* Twelve images, each with both labels. */
static picture contradictory_one(size_t i)
{
    return labelled((unsigned)(i / 2) % 3, (unsigned)(i / 2), (unsigned)i % 2);
}

static void contradictory_labels_are_counted(void **state)
{
    (void)state;
    const tk_job_opts o =
        job("contradictory", write_pack("contradictory.pack", 24, contradictory_one));
    tk_job_result r = sound(&o);
    assert_remarked(&r, "12 images occur with more than one label");
    assert_remarked(&r, "12 of 24 images are copies");
    tk_job_result_fini(&r);
}

static picture same_one(size_t i)
{
    return labelled(0, 0, (unsigned)i % 3);
}

static void images_that_are_all_the_same_teach_nothing_and_harm_nobody(void **state)
{
    (void)state;
    static const char *const recipes[] = {"kd+ewc", "finetune", "probe"};
    const char *data = write_pack("same.pack", 24, same_one);
    for (size_t i = 0; i < 3; i++) {
        char folder[32];
        snprintf(folder, sizeof folder, "same-%zu", i);
        tk_job_opts o = job(folder, data);
        o.recipe = recipes[i];
        tk_job_result r = sound(&o);
        assert_remarked(&r, "every image is the same");
        assert_remarked(&r, "1 image occurs with more than one label");
        assert_remarked(&r, "most frequent label");
        tk_job_result_fini(&r);
    }
}

static picture rare_one(size_t i)
{
    const unsigned class = i < 62 ? 0 : (unsigned)i - 61;
    return labelled(class, (unsigned)i, class);
}

static void wildly_unbalanced_labels_are_remarked_on(void **state)
{
    (void)state;
    const tk_job_opts o = job("unbalanced", write_pack("unbalanced.pack", 64, rare_one));
    tk_job_result r = sound(&o);
    assert_remarked(&r, "2 of 3 labels have one image only");
    assert_remarked(&r, "unbalanced: 62 images of one, 1 of another");
    assert_remarked(&r, "most frequent label"); /* no better than always giving it */
    tk_job_result_fini(&r);
}

static picture poisoned_one(size_t i)
{
    return labelled((unsigned)i % 3, (unsigned)i, tk_rng_below(5, 5, i, 3));
}

/* The new head may be poor; the owner hears of it, and Alice loses nothing (see sound()). */
static void random_labels_make_a_poor_head_and_no_other_worse(void **state)
{
    (void)state;
    static const char *const recipes[] = {"kd+ewc", "kd", "ewc", "finetune", "probe"};
    const char *data = write_pack("poison.pack", 60, poisoned_one);
    for (size_t i = 0; i < sizeof recipes / sizeof *recipes; i++) {
        char folder[32];
        snprintf(folder, sizeof folder, "poison-%zu", i);
        tk_job_opts o = job(folder, data);
        o.recipe = recipes[i];
        tk_job_result r = sound(&o);
        const double accuracy = tk_validation_accuracy(&r.after[1]);
        assert_true(r.n_held >= 9 && accuracy < 0.9);
        assert_int_equal(remarked(&r, "most frequent label"), accuracy <= r.majority);
        tk_job_result_fini(&r);
    }
}

/* One poisoned job on another, each from what the one before left: losses do not add up. */
static void a_flood_of_poisoned_jobs_costs_the_other_head_no_more_than_one(void **state)
{
    (void)state;
    static const char *const recipes[] = {"finetune", "kd",       "finetune-low-lr",
                                          "ewc",      "finetune", "kd+ewc"};
    char version[PATH], data[PATH];
    tk_model *m;
    assert_int_equal(tk_model_load(&m, base, false, NULL), TK_OK);
    const tk_head *alice = tk_model_head(m, "alice/colour");
    const double floor = alice->best - alice->tolerance / 100;
    tk_model_destroy(m);
    snprintf(version, sizeof version, "%s", base);
    snprintf(data, sizeof data, "%s", write_pack("flood.pack", 60, poisoned_one));
    size_t moved = 0;
    for (size_t i = 0; i < sizeof recipes / sizeof *recipes; i++) {
        char folder[32];
        snprintf(folder, sizeof folder, "flood-%zu", i);
        tk_job_opts o = job(folder, data);
        o.base = version;
        o.recipe = recipes[i];
        o.seed = i + 1;
        tk_job_result r = sound(&o);
        assert_true(tk_validation_accuracy(&r.after[0]) >= floor - 1e-9);
        assert_string_equal(r.after[0].head, "alice/colour");
        moved += r.outcome == TK_OUTCOME_COMMIT;
        tk_job_result_fini(&r);
        snprintf(version, sizeof version, "%s/candidate.safetensors", o.dir);
    }
    print_message("%zu of the flood's jobs moved the trunk\n", moved);
}

static picture many_labels(size_t i)
{
    return labelled((unsigned)i % 3, (unsigned)i, (unsigned)i % 1000);
}

static void a_thousand_classes_are_a_job_like_any_other(void **state)
{
    (void)state;
    tk_setting once[QUICK];
    tk_job_opts o = job("thousand", write_pack("thousand.pack", 1200, many_labels));
    memcpy(once, quick, sizeof quick);
    once[QUICK - 1].value = 1;
    once[0].value = 64;
    o.set = once;
    tk_job_result r = sound(&o);
    assert_int_equal(r.classes, 1000);
    assert_int_equal(r.n_held, 200);
    assert_non_null(r.after[1].confusion);
    tk_job_result_fini(&r);
}

static picture in_scripts(size_t i)
{
    static const char *const labels[] = {
        "\xd0\xba\xd1\x80\xd0\xb0\xd1\x81\xd0\xbd\xd1\x8b\xd0\xb9", /* Cyrillic */
        "\xe7\xba\xa2\xe8\x89\xb2",                                 /* Chinese */
        "\xd8\xa3\xd8\xad\xd9\x85\xd8\xb1",                         /* Arabic */
        "\xf0\x9f\x9f\xa5 a:b, \"c\" \\ {d} %s",                    /* what formats trip over */
        "caf\xc3\xa9",                                              /* composed, and ... */
        "cafe\xcc\x81",                                             /* ... decomposed: another */
    };
    picture p = {.class = (unsigned)i % 3, .index = (unsigned)i};
    snprintf(p.label, sizeof p.label, "%s", labels[i % 6]);
    return p;
}

static void labels_come_back_byte_by_byte_in_any_script(void **state)
{
    (void)state;
    const tk_job_opts o = job("scripts", write_pack("scripts.pack", 36, in_scripts));
    tk_job_result r = sound(&o);
    tk_model *m;
    tk_pack *pack;
    assert_int_equal(r.classes, 6);
    assert_int_equal(tk_model_load(&m, file_in("scripts", "candidate.safetensors"), false, NULL),
                     TK_OK);
    assert_int_equal(tk_pack_open(&pack, file_in("scripts", "validation.pack"), NULL), TK_OK);
    for (uint32_t l = 0; l < 6; l++) {
        assert_string_equal(tk_model_head(m, "bob/new")->labels[l], in_scripts(l).label);
        assert_string_equal(tk_pack_label_name(pack, l), in_scripts(l).label);
    }
    tk_pack_close(pack);
    tk_model_destroy(m);
    tk_job_result_fini(&r);
}

static void a_label_with_a_newline_is_refused_at_the_door(void **state)
{
    (void)state;
    static const char *const bad[] = {"red\nroot: x", "a\tb", "\x1b[2J", "a\x7f", "\xc2\x85", ""};
    tk_pack_writer *w;
    tk_diag diag;
    uint32_t label;
    assert_int_equal(tk_pack_create(&w, fixture_path("newline.pack"), NULL), TK_OK);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(tk_pack_label(w, bad[i], &label, &diag), TK_BADARG);
        assert_non_null(strstr(diag.text, "label: "));
    }
    assert_int_equal(tk_pack_label(w, "a:b", &label, &diag), TK_OK);
    tk_pack_abort(w);
}

/* ---- settings ---- */

static void refused(tk_job_opts *o, const char *says)
{
    tk_job_result r;
    tk_diag diag = {0};
    assert_int_equal(tk_job_run(o, &r, &diag), TK_BADARG);
    if (!strstr(diag.text, says)) fail_msg("\"%s\" does not say \"%s\"", diag.text, says);
    tk_job_result_fini(&r);
}

static void what_is_no_setting_is_refused_by_its_name(void **state)
{
    (void)state;
    tk_job_opts o = job("refused", write_pack("refused.pack", 6, clean_one));
    for (size_t f = 0; f < tk_recipe_fields(); f++) {
        const tk_recipe_field *field = tk_recipe_field_at(f);
        const double wrong[] = {(double)NAN, (double)INFINITY, -1, -1e300, field->max * 2 + 1};
        for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
            o.set = &(tk_setting){field->name, wrong[i]};
            o.n_set = 1;
            refused(&o, field->name);
        }
    }
    o.set = &(tk_setting){"kappa\n", 1};
    refused(&o, "no such hyper-parameter");
    o.n_set = 0;
    o.recipe = "magic";
    refused(&o, "kd+ewc, kd, ewc");
    assert_int_equal(access(file_in("refused", "canvases.train"), F_OK), -1); /* no work was done */
}

/* Cost is what these buy, and nothing else that could break. */
static bool is_costly(const char *name)
{
    static const char *const costly[] = {"epochs", "steps", "warm_up", "views", "line_search"};
    for (size_t i = 0; i < sizeof costly / sizeof *costly; i++)
        if (strcmp(costly[i], name) == 0) return true;
    return false;
}

static void every_setting_at_either_limit_is_a_sound_job(void **state)
{
    (void)state;
    const char *data = write_pack("limits.pack", 18, clean_one);
    tk_setting set[QUICK + 1];
    memcpy(set, quick, sizeof quick);
    for (size_t f = 0; f < tk_recipe_fields(); f++) {
        const tk_recipe_field *field = tk_recipe_field_at(f);
        const double limits[] = {field->min, field->max};
        for (size_t i = 0; i < 2; i++) {
            char folder[64];
            if (is_costly(field->name) && (i == 1 || limits[i] == 0)) continue;
            if (strcmp(field->name, "refresh") == 0 && i == 1) continue; /* there is no such head */
            snprintf(folder, sizeof folder, "%s-%zu", field->name, i);
            tk_job_opts o = job(folder, data);
            set[QUICK] = (tk_setting){field->name, limits[i]};
            o.set = set;
            o.n_set = QUICK + 1;
            tk_job_result r = sound(&o);
            tk_job_result_fini(&r);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_data_is_not_remarked_on),
        cmocka_unit_test(one_image_per_class_makes_a_head_that_is_not_validated),
        cmocka_unit_test(contradictory_labels_are_counted),
        cmocka_unit_test(images_that_are_all_the_same_teach_nothing_and_harm_nobody),
        cmocka_unit_test(wildly_unbalanced_labels_are_remarked_on),
        cmocka_unit_test(random_labels_make_a_poor_head_and_no_other_worse),
        cmocka_unit_test(a_flood_of_poisoned_jobs_costs_the_other_head_no_more_than_one),
        cmocka_unit_test(a_thousand_classes_are_a_job_like_any_other),
        cmocka_unit_test(labels_come_back_byte_by_byte_in_any_script),
        cmocka_unit_test(a_label_with_a_newline_is_refused_at_the_door),
        cmocka_unit_test(what_is_no_setting_is_refused_by_its_name),
        cmocka_unit_test(every_setting_at_either_limit_is_a_sound_job),
    };
    return cmocka_run_group_tests(tests, prepare, clean);
}
