/* Heads with an adapter: their gradients, a job that makes one, and a later job that has to keep
 * it. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "close.h"
#include "engine/mem.h"
#include "engine/plan.h"
#include "engine/rng.h"
#include "fixture.h"
#include "heads/fisher.h"
#include "heads/job.h"
#include "heads/stack.h"

/* --- the stack --- */

/* z's columns are told apart by their values: image, stage, row. */
static void a_stack_deals_each_head_its_own_rows(void **state)
{
    (void)state;
    enum { N = 2, F = 64, RANK = 5, WIDE = F + 3 * 3 };
    static const size_t ranks[] = {2, 0, 3};
    tk_stack s;
    static float z[N * 3 * RANK], features[N * F], x[N * WIDE], back[N * F], dz[N * 3 * RANK];
    assert_int_equal(tk_stack_init(&s, TK_RESNET20, 3, ranks), TK_OK);
    assert_int_equal(tk_stack_rank(&s), RANK);
    assert_int_equal(tk_stack_width(&s), 3 * RANK);
    assert_int_equal(tk_stack_widest(&s), WIDE);
    for (size_t i = 0; i < N * 3 * RANK; i++)
        z[i] = (float)i;
    assert_ptr_equal(tk_stack_input(&s, 1, N, features, z, x), features);
    for (size_t h = 0; h < 3; h += 2) {
        const size_t first = h == 0 ? 0 : 2, width = F + 3 * ranks[h];
        assert_ptr_equal(tk_stack_input(&s, h, N, features, z, x), x);
        for (size_t i = 0; i < N * 3; i++)
            for (size_t j = 0; j < ranks[h]; j++)
                assert_true(x[i / 3 * width + F + i % 3 * ranks[h] + j] ==
                            (float)(i * RANK + first + j));
        tk_stack_spread(&s, h, N, x, back, dz);
    }
    assert_memory_equal(dz, z, sizeof z); /* the two heads' rows are all there are */
    const size_t size = tk_side_size(TK_RESNET20, 3);
    float *adapter = tk_aligned_calloc(size, sizeof(float));
    float *again = tk_aligned_calloc(size, sizeof(float));
    for (size_t i = 0; i < size; i++)
        adapter[i] = tk_rng_normal(1, 0, i);
    tk_stack_put(&s, 2, adapter);
    tk_stack_take(&s, 2, again);
    assert_memory_equal(adapter, again, size * sizeof(float));
    tk_stack_take(&s, 0, again); /* nobody else's */
    for (size_t i = 0; i < tk_side_size(TK_RESNET20, 2); i++)
        assert_true(again[i] == 0);
    tk_free(adapter), tk_free(again);
    tk_stack_fini(&s);
}

/* --- the start --- */

static double rms(size_t n, size_t c, const float *x, size_t pitch)
{
    double sum = 0;
    for (size_t i = 0; i < n * c; i++)
        sum += (double)x[i / c * pitch + i % c] * (double)x[i / c * pitch + i % c];
    return sqrt(sum / (double)(n * c));
}

/* An adapter begins without a say, and with outputs of the features' size in every stage. */
static void an_adapter_starts_level_with_the_features(void **state)
{
    (void)state;
    enum { N = 4, RANK = 7, C = FIXTURE_CLASSES, WIDTH = 64 + 3 * RANK };
    tk_model *m = fixture_model(5, 0, NULL);
    tk_student plain, s;
    tk_plan *plan;
    static float x[N * 32 * 32 * 3], features[N * 64], z[N * 3 * RANK];
    for (size_t i = 0; i < sizeof x / sizeof *x; i++)
        x[i] = tk_rng_normal(2, 0, i);
    assert_int_equal(tk_student_init(&plain, m->trunk, C, 0), TK_OK);
    assert_int_equal(tk_student_init(&s, m->trunk, C, RANK), TK_OK);
    tk_student_random_head(&plain, 3);
    tk_student_start_adapter(&s, &plain, 4);
    for (size_t c = 0; c < C; c++) {
        assert_memory_equal(s.head + c * WIDTH, plain.head + c * 64, 64 * sizeof(float));
        assert_true(rms(1, 3 * RANK, s.head + c * WIDTH + 64, 0) == 0);
    }
    assert_memory_equal(s.head + C * WIDTH, plain.head + C * 64, C * sizeof(float));
    const tk_side side = {TK_RESNET20, RANK, tk_student_adapter(&s)};
    assert_int_equal(tk_plan_create(&plan, m->trunk, 32, N, fixture_pool(), NULL), TK_OK);
    for (int pass = 0; pass < 2; pass++) {
        assert_int_equal(tk_plan_set_side(plan, &side, NULL), TK_OK);
        tk_plan_run_side(plan, N, x, features, z, NULL);
        if (pass == 0) tk_student_level_adapter(&s, N, features, z);
    }
    for (size_t k = 0; k < 3; k++)
        assert_close(rms(N, RANK, z + k * RANK, 3 * RANK) / rms(N, 64, features, 64), 1, 1e-4);
    tk_plan_destroy(plan);
    tk_student_fini(&plain);
    tk_student_fini(&s);
    tk_model_destroy(m);
}

/* --- gradients of a step --- */

enum { ITEMS = 6 };

typedef struct setup {
    tk_model *model; /* an old head with an adapter */
    tk_pack *pack;
    tk_canvases *canvases;
    tk_preproc preproc;
    uint32_t images[ITEMS], labels[ITEMS], views[ITEMS];
    tk_pseudo_labels *teacher;
    tk_recipe recipe;
    tk_objective *objective;
    tk_student student, at;
} setup;

static void random_adapter(tk_head *head, size_t rank)
{
    assert_int_equal(tk_head_add_adapter(head, TK_RESNET20, rank, NULL), TK_OK);
    for (size_t i = 0; i < tk_side_size(TK_RESNET20, rank); i++)
        head->adapter[i] = 0.3f * tk_rng_normal(8, 0, i);
    for (size_t i = 0; i < head->classes * head->width; i++)
        head->weight[i] = 0.5f * tk_rng_normal(8, 1, i);
}

/* The teacher answers as the old head does on another trunk, so that there is something to distil.
 */
static void open_teacher(setup *s)
{
    tk_model *other = fixture_model(6, 1, (const char *const[]){"old"});
    random_adapter(other->heads[0], 3);
    const tk_pseudo_labels_opts opts = {.teacher = other,
                                        .n_heads = 1,
                                        .heads = other->heads,
                                        .canvases = s->canvases,
                                        .n_images = ITEMS,
                                        .images = s->images,
                                        .views = 1,
                                        .augment = {.scale_min = 1},
                                        .seed = 1,
                                        .path = fixture_path("step.labels"),
                                        .pool = fixture_pool()};
    assert_int_equal(tk_pseudo_labels_open(&s->teacher, &opts, NULL), TK_OK);
    tk_model_destroy(other);
}

static void setup_init(setup *s, const char *recipe, size_t rank)
{
    *s = (setup){.preproc = fixture_preproc()};
    s->model = fixture_model(5, 1, (const char *const[]){"old"});
    random_adapter(s->model->heads[0], 3);
    fixture_pack(fixture_path("step.pack"), FIXTURE_COLOUR, ITEMS, 3);
    assert_int_equal(tk_pack_open(&s->pack, fixture_path("step.pack"), NULL), TK_OK);
    assert_int_equal(tk_canvases_open(&s->canvases, fixture_path("step.canvas"), s->pack,
                                      &s->preproc, 32, fixture_pool(), NULL, NULL),
                     TK_OK);
    for (uint32_t i = 0; i < ITEMS; i++) {
        s->images[i] = i;
        s->labels[i] = tk_pack_get(s->pack, i).label;
    }
    open_teacher(s);
    assert_int_equal(tk_recipe_find(&s->recipe, recipe, TK_RESNET20, NULL), TK_OK);
    s->recipe.clip = s->recipe.momentum = s->recipe.decay = 0;
    const tk_objective_opts opts = {.recipe = &s->recipe,
                                    .preproc = &s->preproc,
                                    .canvases = s->canvases,
                                    .n_items = ITEMS,
                                    .images = s->images,
                                    .labels = s->labels,
                                    .teacher = s->teacher,
                                    .n_old = 1,
                                    .old = s->model->heads,
                                    .augment = {.scale_min = 1},
                                    .seed = 1,
                                    .max_batch = ITEMS,
                                    .classes = FIXTURE_CLASSES,
                                    .rank = rank,
                                    .arch = TK_RESNET20,
                                    .pool = fixture_pool()};
    assert_int_equal(tk_objective_create(&s->objective, &opts, NULL), TK_OK);
    assert_int_equal(tk_student_init(&s->student, s->model->trunk, FIXTURE_CLASSES, rank), TK_OK);
    assert_int_equal(tk_student_init(&s->at, s->model->trunk, FIXTURE_CLASSES, rank), TK_OK);
    for (size_t i = 0; i < s->at.head_size; i++)
        s->at.head[i] = 0.3f * tk_rng_normal(9, 0, i);
}

static void setup_fini(setup *s)
{
    tk_student_fini(&s->student);
    tk_student_fini(&s->at);
    tk_objective_destroy(s->objective);
    tk_pseudo_labels_close(s->teacher);
    tk_canvases_close(s->canvases);
    tk_pack_close(s->pack);
    tk_model_destroy(s->model);
}

/* One step from s->at at this rate; the student is then where it led. */
static tk_losses step(setup *s, double rate)
{
    static const uint32_t items[ITEMS] = {0, 1, 2, 3, 4, 5};
    tk_losses losses = {0};
    tk_student_copy_weights(&s->student, &s->at);
    tk_student_stop(&s->student);
    assert_int_equal(
        tk_step(s->objective, &s->student, ITEMS, items, s->views, rate, 1, &losses, NULL), TK_OK);
    return losses;
}

/* Without momentum a step is -rate times the gradient g; along g the loss rises by |g|. `theta` and
 * `moved` are the same weights, n of them, of s->at and of the student. */
static void assert_gradient(setup *s, size_t n, float *theta, const float *moved)
{
    const double rate = 1e-2, h = 2e-3;
    float *g = tk_aligned_calloc(n, sizeof *g), *kept = tk_aligned_calloc(n, sizeof *g);
    double norm = 0, side[2];
    (void)step(s, rate);
    for (size_t i = 0; i < n; i++) {
        g[i] = (float)(((double)theta[i] - (double)moved[i]) / rate);
        kept[i] = theta[i];
        norm += (double)g[i] * (double)g[i];
    }
    norm = sqrt(norm);
    assert_true(norm > 1e-3);
    for (int k = 0; k < 2; k++) {
        for (size_t i = 0; i < n; i++)
            theta[i] = kept[i] + (float)((k == 0 ? h : -h) / norm) * g[i];
        const tk_losses losses = step(s, 0);
        side[k] = tk_losses_total(&losses);
    }
    memcpy(theta, kept, n * sizeof *kept);
    const double slope = (side[0] - side[1]) / (2 * h);
    if (fabs(slope - norm) > 0.02 * norm) fail_msg("%g, not %g", slope, norm);
    tk_free(g), tk_free(kept);
}

static void a_step_follows_the_gradient_of_head_and_adapter(void **state)
{
    (void)state;
    setup s;
    setup_init(&s, "adapter", 4);
    s.recipe.head_rate = 1;
    const size_t linear = FIXTURE_CLASSES * (s.at.width + 1);
    assert_int_equal(s.at.width, 64 + 3 * 4);
    assert_gradient(&s, linear, s.at.head, s.student.head);
    assert_gradient(&s, s.at.head_size - linear, tk_student_adapter(&s.at),
                    tk_student_adapter(&s.student));
    (void)step(&s, 1e-2);
    assert_memory_equal(s.student.trunk->data, s.model->trunk->data,
                        s.model->trunk->count * sizeof(float));
    setup_fini(&s);
}

/* The old head's adapter is not among what learns; the trunk's gradient comes through its taps. */
static void distillation_of_an_adapter_head_reaches_the_trunk_through_the_taps(void **state)
{
    (void)state;
    setup s;
    setup_init(&s, "kd", 0);
    tk_head *old = s.model->heads[0];
    s.recipe.kappa = 5;
    for (size_t c = 0; c < old->classes; c++) /* by nothing but the taps */
        memset(old->weight + c * old->width, 0, old->features * sizeof(float));
    memset(s.at.head, 0, s.at.head_size * sizeof(float));
    const tk_losses losses = step(&s, 0);
    assert_true(losses.kd > 0.01);
    assert_gradient(&s, s.at.trunk->trained, s.at.trunk->data, s.student.trunk->data);
    setup_fini(&s);
}

/* Both at once: a new adapter beside an old one, on a trunk that learns. */
static void old_and_new_adapters_learn_side_by_side(void **state)
{
    (void)state;
    setup s;
    setup_init(&s, "kd", 2);
    const size_t linear = FIXTURE_CLASSES * (s.at.width + 1);
    assert_gradient(&s, s.at.trunk->trained, s.at.trunk->data, s.student.trunk->data);
    assert_gradient(&s, s.at.head_size - linear, tk_student_adapter(&s.at),
                    tk_student_adapter(&s.student));
    setup_fini(&s);
}

/* The Fisher of a head that reads nothing but its taps, against single images. */
static void fisher_of_an_adapter_head_goes_through_the_taps(void **state)
{
    (void)state;
    setup s;
    setup_init(&s, "kd", 0);
    tk_head *head = s.model->heads[0];
    for (size_t c = 0; c < head->classes; c++)
        memset(head->weight + c * head->width, 0, head->features * sizeof(float));
    const size_t count = s.model->trunk->trained;
    float *together = tk_aligned_calloc(count, sizeof(float));
    float *alone = tk_aligned_calloc(count, sizeof(float));
    float *sum = tk_aligned_calloc(count, sizeof(float));
    tk_graph *graph = tk_objective_graph(s.objective);
    double scale, one, total = 0, error = 0, norm = 0;
    tk_fisher_opts opts = {.head = head,
                           .canvases = s.canvases,
                           .n = ITEMS,
                           .images = s.images,
                           .labels = s.labels,
                           .rule = TK_FISHER_EMPIRICAL,
                           .max_batch = 4};
    assert_int_equal(tk_fisher_compute(graph, s.model->trunk, &s.preproc, &opts, fixture_pool(),
                                       together, &scale, NULL),
                     TK_OK);
    for (size_t i = 0; i < ITEMS; i++) {
        opts.n = 1, opts.images = s.images + i, opts.labels = s.labels + i;
        assert_int_equal(tk_fisher_compute(graph, s.model->trunk, &s.preproc, &opts, fixture_pool(),
                                           alone, &one, NULL),
                         TK_OK);
        for (size_t j = 0; j < count; j++)
            sum[j] += (float)((double)alone[j] * one / ITEMS);
        total += one / ITEMS;
    }
    assert_true(scale > 0);
    assert_close(scale / total, 1, 1e-4);
    for (size_t j = 0; j < count; j++) {
        const double d = (double)together[j] * scale - (double)sum[j];
        error += d * d, norm += (double)sum[j] * (double)sum[j];
    }
    assert_true(sqrt(error / norm) < 1e-4);
    tk_free(together), tk_free(alone), tk_free(sum);
    setup_fini(&s);
}

/* --- jobs --- */

static const tk_setting quick[] = {
    {"batch", 8},       {"views", 2},   {"warm_up", 8},      {"fisher_samples", 4},
    {"line_search", 2}, {"epochs", 12}, {"adapter_rank", 6},
};

static char base[512], with_adapter[512], alice_held[512], bob_held[512], packs[3][512];

static bool never(void *ctx)
{
    return ctx && (*(long *)ctx)-- == 0;
}

static tk_job_opts job(const char *folder, const char *recipe, const char *from, const char *data,
                       const char *head)
{
    tk_job_opts o = tk_job_defaults();
    o.dir = fixture_folder(folder);
    o.base = from;
    o.data = data;
    o.head = head;
    o.recipe = recipe;
    o.tolerance = 20;
    o.set = quick;
    o.n_set = sizeof quick / sizeof *quick;
    o.pool = fixture_pool();
    o.cancelled = never;
    return o;
}

static tk_job_result run(const tk_job_opts *o)
{
    tk_job_result r;
    tk_diag diag = {{0}};
    const tk_err err = tk_job_run(o, &r, &diag);
    if (err != TK_OK) fail_msg("%s: %s", tk_err_text(err), diag.text);
    return r;
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

/* Alice's version, from scratch. */
static int prepare(void **state)
{
    (void)state;
    for (size_t i = 0; i < 3; i++) {
        char name[16];
        snprintf(name, sizeof name, "%zu.pack", i);
        snprintf(packs[i], sizeof packs[i], "%s", fixture_path(name));
        fixture_pack(packs[i], i == 1 ? FIXTURE_STRIPES : FIXTURE_COLOUR, i == 1 ? 96 : 48, i + 1);
    }
    tk_job_opts o = job("alice", "scratch", NULL, packs[0], "alice/colour");
    o.arch = TK_RESNET20;
    o.preproc = fixture_preproc();
    tk_job_result r = run(&o);
    tk_job_result_fini(&r);
    snprintf(base, sizeof base, "%s", file_in("alice", "candidate.safetensors"));
    snprintf(alice_held, sizeof alice_held, "%s", file_in("alice", "validation.pack"));
    snprintf(with_adapter, sizeof with_adapter, "%s", file_in("bob", "candidate.safetensors"));
    snprintf(bob_held, sizeof bob_held, "%s", file_in("bob", "validation.pack"));
    return 0;
}

static int clean(void **state)
{
    (void)state;
    tk_pool_destroy(fixture_pool());
    fixture_clean();
    return 0;
}

static void assert_same_weights(const tk_head *a, const tk_head *b)
{
    assert_int_equal(a->rank, b->rank);
    assert_memory_equal(a->weight, b->weight, a->classes * a->width * sizeof(float));
    assert_memory_equal(a->bias, b->bias, a->classes * sizeof(float));
    if (a->rank > 0)
        assert_memory_equal(a->adapter, b->adapter, tk_side_size(a->arch, a->rank) * sizeof(float));
}

static tk_job_opts bob_job(const char *folder)
{
    static tk_validator_pack held[1];
    tk_job_opts o = job(folder, "adapter", base, packs[1], "bob/stripes");
    held[0] = (tk_validator_pack){"alice/colour", alice_held};
    o.validations = held;
    o.n_validations = 1;
    return o;
}

/* Zero forgetting, to the bit: the trunk, the other head's weights, and its every answer. */
static void an_adapter_is_worth_more_than_the_probe_and_costs_nobody_a_bit(void **state)
{
    (void)state;
    const tk_job_opts o = bob_job("bob");
    tk_job_result r = run(&o);
    assert_int_equal(r.outcome, TK_OUTCOME_COMMIT);
    assert_non_null(strstr(r.reason, "adapter of rank 6"));
    assert_true(r.adapter_accuracy > r.probe_accuracy);
    assert_int_equal(r.gate[0].n01 + r.gate[0].n10, 0);
    assert_true(r.gate[0].admitted);
    assert_memory_equal(r.after[0].answers, r.before[0].answers, r.before[0].n * sizeof(uint32_t));
    tk_model *was = load(base), *now = load(with_adapter);
    assert_memory_equal(now->trunk->data, was->trunk->data, was->trunk->count * sizeof(float));
    assert_int_equal(now->n_heads, 2);
    assert_same_weights(now->heads[0], was->heads[0]);
    assert_int_equal(now->heads[1]->rank, 6);
    assert_close(now->heads[1]->best, r.adapter_accuracy, 1e-12);
    assert_true(now->heads[1]->checks[TK_PRECISION_BF16].n > 0);
    tk_model_destroy(was);
    tk_model_destroy(now);
    tk_job_result_fini(&r);
}

/* What the job measured is what the file's head answers, by itself or beside the others. */
static void the_candidates_answers_are_those_of_the_validation(void **state)
{
    (void)state;
    tk_model *m = load(with_adapter);
    const tk_validator_pack held[] = {{"alice/colour", alice_held}, {"bob/stripes", bob_held}};
    const tk_validator_opts opts = {.base = m,
                                    .new_head = "",
                                    .n_packs = 2,
                                    .packs = held,
                                    .dir = fixture_folder("again"),
                                    .pool = fixture_pool()};
    tk_validator *v;
    assert_int_equal(tk_validator_create(&v, &opts, NULL), TK_OK);
    assert_true(tk_validation_accuracy(&tk_validator_before(v)[1]) == m->heads[1]->best);
    tk_validator_destroy(v);
    tk_model_destroy(m);
}

static void a_cancelled_job_resumes_with_the_same_bits(void **state)
{
    (void)state;
    size_t size_a, size_b, stops = 0;
    tk_job_opts o = bob_job("broken-off");
    o.checkpoint_seconds = 1e9; /* only those that cancelling writes */
    for (long patience = 9;; patience += 40, stops++) {
        long left = patience;
        tk_job_result r;
        o.ctx = &left;
        const tk_err err = tk_job_run(&o, &r, NULL);
        tk_job_result_fini(&r);
        if (err == TK_OK) break;
        assert_int_equal(err, TK_CANCELLED);
    }
    assert_true(stops >= 2);
    uint8_t *a = fixture_read(with_adapter, &size_a);
    uint8_t *b = fixture_read(file_in("broken-off", "candidate.safetensors"), &size_b);
    assert_int_equal(size_a, size_b);
    assert_memory_equal(a, b, size_a);
    tk_free(a), tk_free(b);
}

/* A rate that cannot end well: the probe, without an adapter. */
static void a_job_that_diverges_keeps_the_plain_probe(void **state)
{
    (void)state;
    tk_setting set[sizeof quick / sizeof *quick + 1];
    tk_job_opts o = bob_job("diverged");
    memcpy(set, quick, sizeof quick);
    set[o.n_set] = (tk_setting){"rate", 1e4};
    o.set = set;
    o.n_set++;
    tk_job_result r = run(&o);
    assert_int_equal(r.outcome, TK_OUTCOME_PROBE);
    assert_non_null(strstr(r.reason, "probe"));
    tk_model *m = load(file_in("diverged", "candidate.safetensors"));
    assert_int_equal(m->heads[1]->rank, 0);
    assert_close(m->heads[1]->best, r.probe_accuracy, 1e-12);
    tk_model_destroy(m);
    tk_job_result_fini(&r);
}

/* Carol's job moves the trunk: Bob's adapter stays as it is, and his head within its tolerance. */
static void a_later_shared_job_keeps_an_adapter_head(void **state)
{
    (void)state;
    const tk_validator_pack held[] = {{"alice/colour", alice_held}, {"bob/stripes", bob_held}};
    tk_job_opts o = job("carol", "kd+ewc", with_adapter, packs[2], "carol/colour");
    o.validations = held;
    o.n_validations = 2;
    o.fallback_probe = false; /* a joint point, or nothing */
    tk_job_result r = run(&o);
    assert_int_equal(r.outcome, TK_OUTCOME_COMMIT);
    assert_string_equal(r.gate[1].head, "bob/stripes");
    assert_true(r.gate[1].admitted && r.gate[1].n > 0);
    assert_true(100 * (r.gate[1].before - r.gate[1].after) <= r.gate[1].tolerance);
    tk_model *was = load(with_adapter), *now = load(file_in("carol", "candidate.safetensors"));
    assert_memory_not_equal(now->trunk->data, was->trunk->data, was->trunk->count * sizeof(float));
    assert_same_weights(now->heads[1], was->heads[1]);
    assert_int_equal(now->heads[2]->rank, 0);
    tk_model_destroy(was);
    tk_model_destroy(now);
    tk_job_result_fini(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_stack_deals_each_head_its_own_rows),
        cmocka_unit_test(an_adapter_starts_level_with_the_features),
        cmocka_unit_test(a_step_follows_the_gradient_of_head_and_adapter),
        cmocka_unit_test(distillation_of_an_adapter_head_reaches_the_trunk_through_the_taps),
        cmocka_unit_test(old_and_new_adapters_learn_side_by_side),
        cmocka_unit_test(fisher_of_an_adapter_head_goes_through_the_taps),
        cmocka_unit_test(an_adapter_is_worth_more_than_the_probe_and_costs_nobody_a_bit),
        cmocka_unit_test(the_candidates_answers_are_those_of_the_validation),
        cmocka_unit_test(a_cancelled_job_resumes_with_the_same_bits),
        cmocka_unit_test(a_job_that_diverges_keeps_the_plain_probe),
        cmocka_unit_test(a_later_shared_job_keeps_an_adapter_head),
    };
    return cmocka_run_group_tests(tests, prepare, clean);
}
