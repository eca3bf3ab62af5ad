/* Whole jobs on made-up images: every recipe ends as it should, an interrupted job ends with the
 * same bits, and one that diverges falls back. Numbers are as small as they can be and still say
 * something. */
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
#include "heads/projection.h"

static const char *alice, *alice_held, *bob; /* packs */
static const char *base;                     /* Alice's version */

/* Settings are applied in order: a test that needs other epochs says so in the last place. */
static const tk_setting quick[] = {
    {"batch", 8},
    {"views", 2},
    {"warm_up", 8},
    {"fisher_samples", 4},
    {"line_search", 2},
    {"trials", 2},
    {"policy", TK_POLICY_AUTO},
    {"epochs", 2},
};
enum { QUICK = sizeof quick / sizeof *quick, EPOCHS = QUICK - 1 };

typedef struct spy {
    long stop_after; /* calls of cancelled() that answer no; negative: never stops */
    size_t validations, warnings, stages[TK_STAGE_COUNT];
    char warning[4096]; /* all of them */
} spy;

static bool spy_cancelled(void *ctx)
{
    spy *s = ctx;
    return s->stop_after >= 0 && s->stop_after-- == 0;
}

static void spy_validation(void *ctx, const tk_job_validation *v)
{
    (void)v;
    ((spy *)ctx)->validations++;
}

static void spy_progress(void *ctx, const tk_job_progress *p)
{
    ((spy *)ctx)->stages[p->stage]++;
}

static void spy_log(void *ctx, bool warn, const char *message)
{
    spy *s = ctx;
    s->warnings += warn;
    const size_t used = strlen(s->warning);
    if (warn) snprintf(s->warning + used, sizeof s->warning - used, "%s\n", message);
}

static tk_job_opts job(const char *folder, const char *recipe, spy *s)
{
    tk_job_opts o = tk_job_defaults();
    o.dir = fixture_folder(folder);
    o.base = base;
    o.data = bob;
    o.head = "bob/stripes";
    o.recipe = recipe;
    o.set = quick;
    o.n_set = QUICK;
    o.pool = fixture_pool();
    o.ctx = s;
    o.cancelled = spy_cancelled;
    o.progress = spy_progress;
    o.validation = spy_validation;
    o.log = spy_log;
    return o;
}

static const char *file_in(const char *folder, const char *file)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, file);
    return fixture_path(path);
}

static tk_model *load(const char *path)
{
    tk_model *m;
    tk_diag diag;
    if (tk_model_load(&m, path, true, &diag) != TK_OK) fail_msg("%s", diag.text);
    return m;
}

/* Alice trains from scratch; the rest of the tests stand on her version. */
static int prepare(void **state)
{
    (void)state;
    static char paths[4][512];
    const char *const names[] = {"alice.pack", "bob.pack", "alice/candidate.safetensors",
                                 "alice/validation.pack"};
    for (size_t i = 0; i < 4; i++)
        snprintf(paths[i], sizeof paths[i], "%s", fixture_path(names[i]));
    alice = paths[0], bob = paths[1], base = NULL, alice_held = paths[3];
    fixture_pack(alice, FIXTURE_COLOUR, 36, 1);
    fixture_pack(bob, FIXTURE_STRIPES, 24, 2);
    spy s = {.stop_after = -1};
    tk_job_result r;
    tk_diag diag = {0};
    tk_job_opts o = job("alice", "scratch", &s);
    o.arch = TK_RESNET20;
    o.preproc = fixture_preproc();
    o.data = alice;
    o.head = "alice/colour";
    o.tolerance = 20;
    const tk_err err = tk_job_run(&o, &r, &diag);
    if (err != TK_OK) print_error("%s: %s\n", tk_err_text(err), diag.text);
    const bool ok = err == TK_OK && r.outcome == TK_OUTCOME_COMMIT && r.n_held > 0;
    tk_job_result_fini(&r);
    base = paths[2];
    return ok && access(base, R_OK) == 0 && access(alice_held, R_OK) == 0 ? 0 : -1;
}

static int clean(void **state)
{
    (void)state;
    tk_pool_destroy(fixture_pool());
    fixture_clean();
    return 0;
}

/* Runs and expects success; the caller frees the result. */
static tk_job_result run(const tk_job_opts *o)
{
    tk_job_result r;
    tk_diag diag = {0};
    const tk_err err = tk_job_run(o, &r, &diag);
    if (err != TK_OK) fail_msg("%s: %s", tk_err_text(err), diag.text);
    return r;
}

static tk_job_opts with_validation(tk_job_opts o)
{
    static tk_validator_pack packs[1];
    packs[0] = (tk_validator_pack){"alice/colour", alice_held};
    o.validations = packs;
    o.n_validations = 1;
    return o;
}

static void scratch_leaves_a_version_with_fisher_and_best(void **state)
{
    (void)state;
    tk_model *m = load(base);
    assert_int_equal(m->n_heads, 1);
    assert_string_equal(m->heads[0]->id, "alice/colour");
    assert_string_equal(m->heads[0]->labels[1], "green");
    assert_close(m->heads[0]->tolerance, 20, 0);
    assert_true(m->heads[0]->best >= 0 && m->heads[0]->best <= 1);
    assert_non_null(m->fisher);
    assert_true(m->fisher_scale > 0);
    assert_memory_equal(m->anchor, m->trunk->data, m->trunk->trained * sizeof(float));
    assert_non_null(m->inputs);
    assert_true(m->inputs->images == 4);
    tk_model_destroy(m);
}

/* Whatever the recipe, the other head's weights are its owner's and stay as they are. */
static void every_recipe_ends_with_a_sound_candidate(void **state)
{
    (void)state;
    static const char *const recipes[] = {
        "kd+ewc", "kd", "ewc", "projection", "finetune", "finetune-low-lr", "probe"};
    tk_setting once[QUICK];
    tk_model *before = load(base);
    memcpy(once, quick, sizeof quick);
    once[EPOCHS].value = 1;
    for (size_t i = 0; i < sizeof recipes / sizeof *recipes; i++) {
        spy s = {.stop_after = -1};
        tk_job_opts o = with_validation(job(recipes[i], recipes[i], &s));
        o.set = once;
        tk_job_result r = run(&o);
        assert_int_not_equal(r.outcome, TK_OUTCOME_REJECT);
        assert_int_equal(r.n_others, 1);
        assert_false(r.before[0].agreement);
        assert_string_equal(r.after[0].head, "alice/colour");
        assert_string_equal(r.after[1].head, "bob/stripes");
        assert_true(s.validations >= 2);
        tk_model *after = load(file_in(recipes[i], "candidate.safetensors"));
        assert_int_equal(after->n_heads, 2);
        assert_string_equal(after->heads[1]->id, "bob/stripes");
        assert_memory_equal(after->heads[0]->weight, before->heads[0]->weight,
                            before->heads[0]->classes * 64 * sizeof(float));
        assert_non_null(after->fisher);
        assert_true(after->inputs->images == before->inputs->images + 4);
        assert_true(after->heads[0]->covered && after->heads[1]->covered);
        assert_int_equal(access(file_in(recipes[i], "validation.pack"), R_OK), 0);
        const bool same = memcmp(after->trunk->data, before->trunk->data,
                                 before->trunk->count * sizeof(float)) == 0;
        assert_int_equal(same, r.outcome == TK_OUTCOME_PROBE);
        if (strcmp(recipes[i], "probe") == 0) assert_int_equal(r.outcome, TK_OUTCOME_PROBE);
        tk_model_destroy(after);
        tk_job_result_fini(&r);
    }
    tk_model_destroy(before);
}

/* Cancelled after 1, 2, 4, ... questions, each attempt resumed until the job is done. The candidate
 * is the same as that of a job which was left in peace. */
static void check_resume(const char *recipe, const tk_setting *set, size_t n_set, const char *whole,
                         const char *broken)
{
    spy peace = {.stop_after = -1};
    tk_job_opts o = with_validation(job(whole, recipe, &peace));
    o.set = set, o.n_set = n_set;
    o.checkpoint_seconds = 0; /* one after every step */
    tk_job_result r = run(&o);
    tk_job_result_fini(&r);
    size_t size_a, size_b, stops = 0;
    uint8_t *a = fixture_read(file_in(whole, "candidate.safetensors"), &size_a);

    o = with_validation(job(broken, recipe, &peace));
    o.set = set, o.n_set = n_set;
    o.checkpoint_seconds = 1e9; /* only those that cancelling writes */
    for (long patience = 4;; patience += 4, stops++) {
        spy s = {.stop_after = patience};
        tk_diag diag = {0};
        o.ctx = &s;
        const tk_err err = tk_job_run(&o, &r, &diag);
        tk_job_result_fini(&r);
        if (err == TK_OK) break;
        if (err != TK_CANCELLED) fail_msg("%s: %s", tk_err_text(err), diag.text);
        assert_true(stops < 200);
    }
    assert_true(stops >= 3);
    uint8_t *b = fixture_read(file_in(broken, "candidate.safetensors"), &size_b);
    assert_int_equal(size_a, size_b);
    assert_memory_equal(a, b, size_a);
    tk_free(a);
    tk_free(b);
}

static void an_interrupted_job_ends_with_the_same_bits(void **state)
{
    (void)state;
    check_resume("kd+ewc", quick, QUICK, "peace", "broken-off");
}

static void an_interrupted_job_with_projection_ends_with_the_same_bits(void **state)
{
    (void)state;
    tk_setting set[QUICK + 1];
    memcpy(set, quick, sizeof quick);
    set[EPOCHS].value = 1;
    set[QUICK] = (tk_setting){"projection", 0.8};
    check_resume("kd+ewc", set, QUICK + 1, "projected", "projected-broken-off");
}

/* A checkpoint that was damaged on the disk is noticed; the job begins again and ends the same. */
static void a_damaged_checkpoint_is_not_believed(void **state)
{
    (void)state;
    spy s;
    tk_job_opts o = with_validation(job("damaged", "kd+ewc", &s));
    o.checkpoint_seconds = 0;
    tk_job_result r;
    size_t size, size_a, size_b;
    const char *path = file_in("damaged", "checkpoint.train");
    for (long stop = 8; access(path, F_OK) != 0; stop++) { /* until joint training has begun */
        s = (spy){.stop_after = stop};
        const tk_err err = tk_job_run(&o, &r, NULL);
        tk_job_result_fini(&r);
        assert_int_equal(err, TK_CANCELLED);
    }
    uint8_t *bytes = fixture_read(path, &size);
    bytes[size / 2] ^= 0x10;
    fixture_write(path, bytes, size);
    tk_free(bytes);
    s = (spy){.stop_after = -1};
    r = run(&o);
    tk_job_result_fini(&r);
    assert_non_null(strstr(s.warning, "damaged"));
    uint8_t *a = fixture_read(file_in("peace", "candidate.safetensors"), &size_a);
    uint8_t *b = fixture_read(file_in("damaged", "candidate.safetensors"), &size_b);
    assert_int_equal(size_a, size_b);
    assert_memory_equal(a, b, size_a);
    tk_free(a);
    tk_free(b);
}

/* How far the features of Alice's first images moved, as a part of their size. */
static double features_moved(const tk_model *from, const tk_model *to)
{
    enum { N = 8, FEATURES = 64, FLOATS = 32 * 32 * 3 };
    static float x[N * FLOATS], before[N * FEATURES];
    static const uint32_t images[N] = {0, 1, 2, 3, 4, 5, 6, 7};
    const tk_preproc preproc = fixture_preproc();
    const tk_cut cut = {.images = images};
    const float *features;
    tk_pack *pack;
    tk_canvases *canvases;
    tk_graph *graph;
    double moved = 0, size = 0;
    assert_int_equal(tk_pack_open(&pack, alice, NULL), TK_OK);
    assert_int_equal(tk_canvases_open(&canvases, fixture_path("moved.canvas"), pack, &preproc, 32,
                                      fixture_pool(), NULL, NULL),
                     TK_OK);
    assert_int_equal(tk_graph_create(&graph, TK_RESNET20, 32, N, fixture_pool(), NULL), TK_OK);
    tk_canvases_render(canvases, &cut, N, x, fixture_pool());
    tk_graph_forward(graph, from->trunk, N, x, TK_BN_FROZEN, &features);
    memcpy(before, features, sizeof before);
    tk_graph_forward(graph, to->trunk, N, x, TK_BN_FROZEN, &features);
    for (size_t i = 0; i < N * FEATURES; i++) {
        moved += pow((double)(features[i] - before[i]), 2);
        size += pow((double)before[i], 2);
    }
    tk_graph_destroy(graph);
    tk_canvases_close(canvases);
    tk_pack_close(pack);
    return sqrt(moved / size);
}

/* The trunk after a job with this share and lambda, ungated. */
static tk_model *after_projection(const char *folder, double share, double lambda)
{
    spy s = {.stop_after = -1};
    tk_setting set[QUICK + 2];
    memcpy(set, quick, sizeof quick);
    set[QUICK] = (tk_setting){"projection", share};
    set[QUICK + 1] = (tk_setting){"lambda", lambda};
    tk_job_opts o = with_validation(job(folder, "projection", &s));
    o.gate = false; /* the last point, whatever it is */
    o.set = set;
    o.n_set = QUICK + 2;
    tk_job_result r = run(&o);
    assert_int_equal(r.outcome, TK_OUTCOME_COMMIT);
    tk_job_result_fini(&r);
    return load(file_in(folder, "candidate.safetensors"));
}

/* The part of a trunk's change that lies where projection lets none through. */
static double forbidden_part(const tk_model *from, const tk_model *to, double share)
{
    const size_t n = from->trunk->trained;
    float *change = tk_aligned_calloc(n, sizeof *change);
    tk_projection *p;
    double forbidden = 0, whole = 0;
    assert_non_null(change);
    for (size_t j = 0; j < n; j++)
        change[j] = to->trunk->data[j] - from->trunk->data[j];
    assert_int_equal(
        tk_projection_create(&p, from->inputs, from->trunk, share, fixture_pool(), NULL, NULL),
        TK_OK);
    tk_projection_apply(p, from->trunk, change);
    for (size_t j = 0; j < n; j++) {
        const double d = (double)(to->trunk->data[j] - from->trunk->data[j]);
        forbidden += pow(d - (double)change[j], 2);
        whole += d * d;
    }
    assert_true(whole > 0);
    tk_projection_destroy(p);
    tk_free(change);
    return sqrt(forbidden / whole);
}

static void projection_keeps_what_old_images_gave(void **state)
{
    (void)state;
    tk_model *from = load(base), *naive = after_projection("naive", 0, 0);
    tk_model *kept = after_projection("kept", 0.9999, 0);
    const double before = features_moved(from, naive), after = features_moved(from, kept);
    if (!(before > 0.1 && after < 1e-3))
        fail_msg("features moved by %g without and by %g with projection", before, after);
    tk_model_destroy(from);
    tk_model_destroy(naive);
    tk_model_destroy(kept);
}

/* Momentum, clipping, batch norm and consolidation's own step: none leads out of it. */
static void projection_bounds_every_change_of_the_trunk(void **state)
{
    (void)state;
    tk_model *from = load(base), *to = after_projection("bounded", 0.9, 100);
    const double part = forbidden_part(from, to, 0.9);
    if (part > 1e-4) fail_msg("%g of the change is forbidden", part);
    tk_model_destroy(from);
    tk_model_destroy(to);
}

static void a_version_without_covariances_turns_projection_off(void **state)
{
    (void)state;
    spy s = {.stop_after = -1};
    const char *bare = fixture_path("bare.safetensors");
    tk_model *m = load(base);
    tk_covariance_destroy(m->inputs);
    m->inputs = NULL;
    assert_int_equal(tk_model_save(m, bare, NULL), TK_OK);
    tk_model_destroy(m);
    tk_setting set[QUICK + 1];
    memcpy(set, quick, sizeof quick);
    set[QUICK] = (tk_setting){"covariance", 0};
    tk_job_opts o = with_validation(job("bare", "projection", &s));
    o.base = bare;
    o.set = set;
    o.n_set = QUICK + 1;
    tk_job_result r = run(&o);
    assert_non_null(strstr(s.warning, "projection is off"));
    m = load(file_in("bare", "candidate.safetensors"));
    assert_null(m->inputs); /* none was asked for */
    tk_model_destroy(m);
    tk_job_result_fini(&r);
}

static void a_rate_of_a_thousand_falls_back_with_a_reason(void **state)
{
    (void)state;
    spy s = {.stop_after = -1};
    tk_setting set[QUICK + 1];
    memcpy(set, quick, sizeof quick);
    set[EPOCHS].value = 6;
    set[QUICK] = (tk_setting){"rate", 1e3};
    tk_job_opts o = with_validation(job("diverged", "kd+ewc", &s));
    o.set = set;
    o.n_set = QUICK + 1;
    tk_job_result r = run(&o);
    assert_int_equal(r.outcome, TK_OUTCOME_PROBE);
    assert_non_null(strstr(r.reason, "diverged"));
    assert_non_null(strstr(r.reason, "probe"));
    assert_true(r.restarts > 0);
    assert_true(s.warnings >= r.restarts);
    assert_true(r.gate[0].admitted);
    assert_int_equal(r.gate[0].n01 + r.gate[0].n10, 0);
    tk_job_result_fini(&r);
    o.fallback_probe = false;
    o.dir = fixture_folder("diverged-rejected");
    r = run(&o);
    assert_int_equal(r.outcome, TK_OUTCOME_REJECT);
    assert_int_equal(access(file_in("diverged-rejected", "candidate.safetensors"), F_OK), -1);
    tk_job_result_fini(&r);
}

static void a_head_without_images_is_judged_by_agreement_and_flagged(void **state)
{
    (void)state;
    spy s = {.stop_after = -1};
    const tk_job_opts o = job("agreement", "probe", &s);
    tk_job_result r = run(&o);
    assert_true(r.before[0].agreement && r.gate[0].agreement);
    assert_int_equal(r.before[0].n, r.n_held);
    assert_close(r.gate[0].before, 1, 0);
    assert_close(r.gate[0].after, 1, 0);
    assert_non_null(strstr(s.warning, "weaker promise"));
    tk_model *m = load(file_in("agreement", "candidate.safetensors"));
    tk_model *was = load(base);
    assert_true(m->heads[0]->best == was->heads[0]->best); /* agreement is no accuracy */
    tk_model_destroy(m);
    tk_model_destroy(was);
    tk_job_result_fini(&r);
}

/* The numbers in the result, in the candidate's heads, and of plans made from the candidate's own
 * weights and ranges are the same. */
static void a_candidate_is_measured_in_every_precision(void **state)
{
    (void)state;
    spy s = {.stop_after = -1};
    const tk_job_opts o = with_validation(job("precisions", "kd+ewc", &s));
    tk_job_result r = run(&o);
    tk_model *m = load(file_in("precisions", "candidate.safetensors"));
    const tk_validator_opts opts = {.base = m,
                                    .new_head = "",
                                    .n_packs = 1,
                                    .packs = o.validations,
                                    .dir = fixture_folder("precisions-again"),
                                    .pool = fixture_pool()};
    tk_validator *v;
    assert_int_equal(tk_validator_create(&v, &opts, NULL), TK_OK);
    assert_true(m->ranges.maps > 0);
    for (tk_precision p = TK_PRECISION_BF16; p < TK_PRECISION_COUNT; p++) {
        const tk_head *refused;
        tk_validation now[3];
        assert_int_equal(tk_validator_run_as(v, m->trunk, m->heads[1], p, &m->ranges, now, NULL),
                         TK_OK);
        assert_true(m->heads[0]->checks[p].accuracy == tk_validation_accuracy(&now[0]));
        assert_true(m->heads[0]->checks[p].fp32 == tk_validation_accuracy(&r.after[0]));
        assert_int_equal(m->heads[0]->checks[p].n, now[0].n);
        assert_int_equal(m->heads[1]->checks[p].n, r.n_held);
        assert_close(m->heads[0]->checks[p].tolerance, 20, 0);
        for (size_t h = 0; h < 2; h++)
            assert_memory_equal(&m->heads[h]->checks[p].n, &r.checks[h][p].n, sizeof(size_t));
        assert_int_equal(tk_model_admits(m, p, &refused), r.admitted[p]);
        for (size_t h = 0; h < 3; h++)
            tk_validation_fini(&now[h]);
    }
    assert_true(r.admitted[TK_PRECISION_FP32]);
    assert_true(s.stages[TK_STAGE_PRECISIONS] > 0);
    tk_validator_destroy(v);
    tk_model_destroy(m);
    tk_job_result_fini(&r);
}

static void without_a_held_out_image_a_version_is_offered_in_fp32_only(void **state)
{
    (void)state;
    spy s = {.stop_after = -1};
    const tk_head *refused;
    tk_job_opts o = job("unmeasured", "probe", &s);
    o.data = fixture_path("few.pack");
    fixture_pack(o.data, FIXTURE_STRIPES, FIXTURE_CLASSES, 4); /* no class has one to spare */
    tk_job_result r = run(&o);
    tk_model *m = load(file_in("unmeasured", "candidate.safetensors"));
    assert_int_equal(r.n_held, 0);
    assert_null(r.checks);
    assert_non_null(strstr(s.warning, "fp32 only"));
    assert_int_equal(m->ranges.maps, 0);
    assert_false(tk_model_admits(m, TK_PRECISION_BF16, &refused));
    assert_null(refused); /* though the base had been measured */
    tk_model_destroy(m);
    tk_job_result_fini(&r);
}

static void a_head_is_replaced_by_its_own_id(void **state)
{
    (void)state;
    spy s = {.stop_after = -1};
    tk_job_opts o = job("replace", "kd+ewc", &s);
    o.head = "alice/colour";
    tk_job_result r = run(&o);
    assert_int_equal(r.n_others, 0);
    assert_int_equal(r.outcome, TK_OUTCOME_COMMIT);
    tk_model *m = load(file_in("replace", "candidate.safetensors"));
    assert_int_equal(m->n_heads, 1);
    assert_string_equal(m->heads[0]->labels[0], "vertical");
    /* Nothing protects the head that was there before. */
    float *own = tk_aligned_calloc(m->trunk->trained, sizeof *own);
    assert_non_null(own);
    tk_ewc_share_add(&m->heads[0]->share, 1, own);
    assert_memory_equal(m->fisher, own, m->trunk->trained * sizeof *own);
    tk_free(own);
    assert_true(m->inputs->images == 4); /* its own */
    tk_model_destroy(m);
    tk_job_result_fini(&r);
}

/* The setting reaches the trunk's products: other numbers, but near. */
static void a_job_computes_in_bfloat16_when_told(void **state)
{
    (void)state;
    tk_setting set[QUICK + 1];
    float *trunk[2];
    size_t n = 0;
    memcpy(set, quick, sizeof quick);
    for (unsigned i = 0; i < 2; i++) {
        const char *const folders[] = {"in-fp32", "in-bf16"};
        spy s = {.stop_after = -1};
        tk_job_opts o = job(folders[i], "scratch", &s);
        o.base = NULL;
        o.arch = TK_RESNET20;
        o.preproc = fixture_preproc();
        set[QUICK] = (tk_setting){"compute", i};
        o.set = set;
        o.n_set = QUICK + 1;
        tk_job_result r = run(&o);
        tk_model *m = load(file_in(folders[i], "candidate.safetensors"));
        n = m->trunk->trained;
        trunk[i] = tk_aligned_calloc(n, sizeof **trunk);
        memcpy(trunk[i], m->trunk->data, n * sizeof **trunk);
        tk_model_destroy(m);
        tk_job_result_fini(&r);
    }
    double off = 0, all = 0;
    for (size_t k = 0; k < n; k++) {
        off += pow((double)trunk[1][k] - (double)trunk[0][k], 2);
        all += pow((double)trunk[0][k], 2);
    }
    if (!(off > 0 && off < 0.01 * all)) fail_msg("off by %g of %g", sqrt(off), sqrt(all));
    tk_free(trunk[0]), tk_free(trunk[1]);
}

/* The first trial is done whatever the clock says, a further one only if it ends in time. */
static void a_further_trial_needs_time(void **state)
{
    (void)state;
    static const struct {
        const char *folder;
        double minutes;
        size_t trials;
    } cases[] = {{"no-limit", 0, 2}, {"time-enough", 1e6, 2}, {"no-time", 1e-9, 1}};
    tk_setting set[QUICK + 1];
    memcpy(set, quick, sizeof quick);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        spy s = {.stop_after = -1};
        tk_job_opts o = with_validation(job(cases[i].folder, "kd+ewc", &s));
        set[QUICK] = (tk_setting){"minutes", cases[i].minutes};
        o.set = set;
        o.n_set = QUICK + 1;
        tk_job_result r = run(&o);
        if (r.n_trials != cases[i].trials)
            fail_msg("%g minutes: %zu trials", cases[i].minutes, r.n_trials);
        tk_job_result_fini(&r);
    }
}

static void what_cannot_be_done_is_refused_before_work_begins(void **state)
{
    (void)state;
    spy s = {.stop_after = -1};
    tk_job_result r;
    tk_diag diag;
    tk_job_opts o = job("refused", "scratch", &s);
    assert_int_equal(tk_job_run(&o, &r, &diag), TK_PRECONDITION); /* would lose Alice's trunk */
    tk_job_result_fini(&r);
    o.recipe = "kd";
    o.base = NULL;
    o.arch = TK_RESNET20;
    o.preproc = fixture_preproc();
    assert_int_equal(tk_job_run(&o, &r, &diag), TK_PRECONDITION); /* no trunk to tune */
    tk_job_result_fini(&r);
    o.base = base;
    o.set = (const tk_setting[]){{"kappa", -1}};
    o.n_set = 1;
    assert_int_equal(tk_job_run(&o, &r, &diag), TK_BADARG);
    assert_non_null(strstr(diag.text, "kappa"));
    tk_job_result_fini(&r);
    o.set = (const tk_setting[]){{"projection", 0.9}, {"batch_norm", 1}};
    o.n_set = 2;
    o.base = base;
    assert_int_equal(tk_job_run(&o, &r, &diag), TK_BADARG);
    assert_non_null(strstr(diag.text, "batch_norm"));
    tk_job_result_fini(&r);
    o.n_set = 0;
    o.validations = (const tk_validator_pack[]){{"carol/size", alice_held}};
    o.n_validations = 1;
    assert_int_equal(tk_job_run(&o, &r, &diag), TK_BADARG);
    assert_non_null(strstr(diag.text, "carol/size"));
    tk_job_result_fini(&r);
}

static void a_finished_jobs_scratch_files_are_cleaned(void **state)
{
    (void)state;
    const char *dir = fixture_path("peace");
    assert_int_equal(access(file_in("peace", "canvases.train"), F_OK), 0);
    tk_job_clean(dir);
    assert_int_equal(access(file_in("peace", "canvases.train"), F_OK), -1);
    assert_int_equal(access(file_in("peace", "checkpoint.train"), F_OK), -1);
    assert_int_equal(access(file_in("peace", "pseudo-labels.views"), F_OK), -1);
    assert_int_equal(access(file_in("peace", "candidate.safetensors"), F_OK), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scratch_leaves_a_version_with_fisher_and_best),
        cmocka_unit_test(every_recipe_ends_with_a_sound_candidate),
        cmocka_unit_test(an_interrupted_job_ends_with_the_same_bits),
        cmocka_unit_test(a_damaged_checkpoint_is_not_believed),
        cmocka_unit_test(an_interrupted_job_with_projection_ends_with_the_same_bits),
        cmocka_unit_test(projection_keeps_what_old_images_gave),
        cmocka_unit_test(projection_bounds_every_change_of_the_trunk),
        cmocka_unit_test(a_version_without_covariances_turns_projection_off),
        cmocka_unit_test(a_rate_of_a_thousand_falls_back_with_a_reason),
        cmocka_unit_test(a_head_without_images_is_judged_by_agreement_and_flagged),
        cmocka_unit_test(a_candidate_is_measured_in_every_precision),
        cmocka_unit_test(without_a_held_out_image_a_version_is_offered_in_fp32_only),
        cmocka_unit_test(a_head_is_replaced_by_its_own_id),
        cmocka_unit_test(a_job_computes_in_bfloat16_when_told),
        cmocka_unit_test(a_further_trial_needs_time),
        cmocka_unit_test(what_cannot_be_done_is_refused_before_work_begins),
        cmocka_unit_test(a_finished_jobs_scratch_files_are_cleaned),
    };
    return cmocka_run_group_tests(tests, prepare, clean);
}
