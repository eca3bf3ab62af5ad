/* A head that goes on learning from new images, with a class more: what it knew is held to its
 * floor, what it answers to, is measured by and is protected by is of both lots of images. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "close.h"
#include "engine/mem.h"
#include "fixture.h"
#include "heads/job.h"

enum { PATH = 512, ALICE = 30, NEWS = 24 };

static char base[PATH], held[PATH], news[PATH]; /* Alice's version, her held-out images; new ones */
static const tk_validator_pack packs[] = {{"alice/colour", held}};

static const tk_setting quick[] = {
    {"batch", 8},       {"views", 2},  {"warm_up", 8}, {"fisher_samples", 4},
    {"line_search", 2}, {"epochs", 3}, {"refresh", 1},
};
enum { QUICK = sizeof quick / sizeof *quick };

/* n images of the colours first, first + 1, in turn. */
static const char *write_pack(const char *name, size_t n, unsigned first, uint64_t look)
{
    static const char *const labels[] = {"red", "green", "blue"};
    static uint8_t png[FIXTURE_PNG_MAX];
    static char path[PATH];
    tk_pack_writer *w;
    uint32_t label;
    snprintf(path, sizeof path, "%s", fixture_path(name));
    assert_int_equal(tk_pack_create(&w, path, NULL), TK_OK);
    for (size_t i = 0; i < n; i++) {
        const unsigned class = first + (unsigned)i % 2;
        const size_t size = fixture_png(png, FIXTURE_COLOUR, class, look, i);
        assert_int_equal(tk_pack_label(w, labels[class], &label, NULL), TK_OK);
        assert_int_equal(tk_pack_add(w, label, "", png, size, NULL), TK_OK);
    }
    assert_int_equal(tk_pack_commit(w, NULL), TK_OK);
    return path;
}

static tk_job_opts job(const char *folder, const char *data, const char *recipe)
{
    tk_job_opts o = tk_job_defaults();
    o.dir = fixture_folder(folder);
    o.base = base;
    o.data = data;
    o.head = "alice/colour";
    o.recipe = recipe;
    o.tolerance = 30;
    o.set = quick;
    o.n_set = QUICK;
    o.n_validations = 1;
    o.validations = packs;
    o.pool = fixture_pool();
    return o;
}

static tk_job_result run(const tk_job_opts *o)
{
    tk_job_result r;
    tk_diag diag = {0};
    const tk_err err = tk_job_run(o, &r, &diag);
    if (err != TK_OK) fail_msg("%s: %s", tk_err_text(err), diag.text);
    return r;
}

static int prepare(void **state)
{
    (void)state;
    snprintf(base, sizeof base, "%s", fixture_path("alice/candidate.safetensors"));
    snprintf(held, sizeof held, "%s", fixture_path("alice/validation.pack"));
    tk_job_opts o = job("alice", write_pack("alice.pack", ALICE, 0, 1), "scratch");
    o.base = NULL, o.n_validations = 0;
    o.arch = TK_RESNET20;
    o.preproc = fixture_preproc();
    o.n_set = QUICK - 1; /* without refresh */
    tk_job_result r = run(&o);
    tk_job_result_fini(&r);
    snprintf(news, sizeof news, "%s", write_pack("news.pack", NEWS, 1, 2)); /* green and blue */
    return 0;
}

static int clean(void **state)
{
    (void)state;
    tk_pool_destroy(fixture_pool());
    fixture_clean();
    return 0;
}

static tk_model *load(const char *folder)
{
    char path[PATH];
    tk_model *m;
    tk_diag diag;
    snprintf(path, sizeof path, "%s/candidate.safetensors", folder);
    if (tk_model_load(&m, path, true, &diag) != TK_OK) fail_msg("%s", diag.text);
    return m;
}

/* The head's accuracy on a pack, by a validation of its own. */
static double accuracy(const tk_model *m, const char *pack, const char *folder, size_t *n)
{
    const tk_validator_pack one[] = {{"alice/colour", pack}};
    const tk_validator_opts opts = {.base = m,
                                    .new_head = "",
                                    .n_packs = 1,
                                    .packs = one,
                                    .dir = fixture_folder(folder),
                                    .pool = fixture_pool()};
    tk_validator *v;
    tk_diag diag;
    if (tk_validator_create(&v, &opts, &diag) != TK_OK) fail_msg("%s", diag.text);
    const double got = tk_validation_accuracy(&tk_validator_before(v)[0]);
    *n = tk_validator_before(v)[0].n;
    tk_validator_destroy(v);
    return got;
}

static void it_keeps_its_classes_and_gains_those_of_the_new_images(void **state)
{
    (void)state;
    char path[PATH];
    size_t n, n_earlier;
    const tk_job_opts o = job("refreshed", news, "kd+ewc");
    tk_job_result r = run(&o);
    assert_int_equal(r.outcome, TK_OUTCOME_COMMIT);
    tk_model *m = load(o.dir);
    const tk_head *head = tk_model_head(m, "alice/colour");
    static const char *const labels[] = {"red", "green", "blue"};
    assert_int_equal(m->n_heads, 1);
    assert_int_equal(head->classes, 3);
    for (size_t c = 0; c < 3; c++)
        assert_string_equal(head->labels[c], labels[c]);

    /* The gate's record is of the images it had; the result and the pack are of all. */
    assert_int_equal(r.n_others, 1);
    assert_string_equal(r.gate[0].head, "alice/colour" TK_EARLIER);
    const double earlier = accuracy(m, held, "again-held", &n_earlier);
    assert_int_equal(r.gate[0].n, n_earlier);
    assert_close(r.gate[0].after, earlier, 1e-12);
    assert_true(earlier >= r.gate[0].floor - 1e-9);
    snprintf(path, sizeof path, "%s/validation.pack", o.dir);
    const double all = accuracy(m, path, "again-all", &n);
    assert_int_equal(n, n_earlier + r.n_held);
    assert_int_equal(r.after[1].n, n);
    assert_close(tk_validation_accuracy(&r.after[1]), all, 1e-12);
    assert_close(head->best, all, 1e-12);
    for (tk_precision p = TK_PRECISION_BF16; p < TK_PRECISION_COUNT; p++)
        assert_int_equal(head->checks[p].n, n);
    tk_model_destroy(m);
    tk_job_result_fini(&r);
}

/* Its share of the Fisher goes on: what it was, and what the new images add. */
static void its_earlier_share_of_the_fisher_stays(void **state)
{
    (void)state;
    tk_model *before = load(fixture_path("alice")), *after = load(fixture_path("refreshed"));
    const size_t n = after->trunk->trained;
    float *was = tk_aligned_calloc(n, sizeof *was), *is = tk_aligned_calloc(n, sizeof *is);
    double grown = 0;
    assert_true(was && is);
    tk_ewc_share_add(&before->heads[0]->share, 1, was);
    tk_ewc_share_add(&after->heads[0]->share, 1, is);
    for (size_t j = 0; j < n; j++) {
        if (is[j] < 0.95f * was[j] - 1e-5f) /* what is far below the largest is rounded to 0 */
            fail_msg("weight %zu: %g after %g", j, (double)is[j], (double)was[j]);
        grown += (double)(is[j] - was[j]);
    }
    assert_true(grown > 0.5 * (double)n); /* the new part has mean 1 */
    assert_memory_equal(after->fisher, is, n * sizeof *is);
    tk_free(was);
    tk_free(is);
    tk_model_destroy(before);
    tk_model_destroy(after);
}

/* Images of the new class only, and nothing that protects the old ones. */
static void one_that_forgets_is_refused_and_the_head_stays(void **state)
{
    (void)state;
    tk_setting set[QUICK + 2];
    tk_job_opts o = job("forgetful", news, "finetune");
    memcpy(set, quick, sizeof quick);
    set[QUICK] = (tk_setting){"rate", 0.3};
    set[QUICK + 1] = (tk_setting){"gate_sigma", 5};
    o.set = set, o.n_set = QUICK + 2;
    tk_job_result r = run(&o);
    assert_int_equal(r.outcome,
                     TK_OUTCOME_REJECT); /* never the probe, which knows the new images only */
    assert_non_null(strstr(r.reason, "alice/colour" TK_EARLIER));
    char path[PATH];
    snprintf(path, sizeof path, "%s/candidate.safetensors", o.dir);
    assert_int_equal(access(path, F_OK), -1);
    tk_job_result_fini(&r);
}

static void earlier_images_are_bounded(void **state)
{
    (void)state;
    tk_setting set[QUICK + 1];
    tk_job_opts o = job("thinned", news, "kd+ewc");
    memcpy(set, quick, sizeof quick);
    set[QUICK] = (tk_setting){"validation_max", 3};
    o.set = set, o.n_set = QUICK + 1;
    tk_job_result r = run(&o);
    assert_int_equal(r.gate[0].n, 3);
    tk_job_result_fini(&r);
}

static void refused(const tk_job_opts *o, tk_err want, const char *says)
{
    tk_job_result r;
    tk_diag diag = {0};
    assert_int_equal(tk_job_run(o, &r, &diag), want);
    if (!strstr(diag.text, says)) fail_msg("\"%s\" does not say \"%s\"", diag.text, says);
    tk_job_result_fini(&r);
}

static void what_cannot_be_refreshed_is_said(void **state)
{
    (void)state;
    static char adapted[PATH];
    tk_model *m = load(fixture_path("alice"));
    snprintf(adapted, sizeof adapted, "%s", fixture_path("adapted.safetensors"));
    assert_int_equal(tk_head_add_adapter(m->heads[0], TK_RESNET20, 2, NULL), TK_OK);
    assert_int_equal(tk_model_save(m, adapted, NULL), TK_OK);
    tk_model_destroy(m);

    tk_job_opts o = job("refused", news, "probe");
    refused(&o, TK_BADARG, "refresh: 1 needs a recipe");
    o.recipe = "kd+ewc";
    o.n_validations = 0;
    refused(&o, TK_PRECONDITION, "\"alice/colour\" has no held-out images");
    o.n_validations = 1;
    o.base = adapted;
    refused(&o, TK_PRECONDITION, "has an adapter");
    o.base = base;
    o.head = "alice/shape";
    refused(&o, TK_PRECONDITION, "there is no head \"alice/shape\"");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_keeps_its_classes_and_gains_those_of_the_new_images),
        cmocka_unit_test(its_earlier_share_of_the_fisher_stays),
        cmocka_unit_test(one_that_forgets_is_refused_and_the_head_stays),
        cmocka_unit_test(earlier_images_are_bounded),
        cmocka_unit_test(what_cannot_be_refreshed_is_said),
    };
    return cmocka_run_group_tests(tests, prepare, clean);
}
