/* One training step against the objective written out: the losses, and what becomes of trunk and
 * head, from logits in double precision and the plain backward pass. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "close.h"
#include "engine/linear.h"
#include "engine/mem.h"
#include "engine/optim.h"
#include "engine/rng.h"
#include "fixture.h"
#include "heads/step.h"

enum { PX = 32, FLOATS = PX * PX * 3, IMAGES = 6, N = 4, F = 64, OLD = 2, C = FIXTURE_CLASSES };
enum { MOST = C + 1 }; /* classes of the new head: one more than the refreshed head had */

static const uint32_t items[N] = {5, 0, 3, 2}, views[N] = {0, 1, 1, 0};
static const tk_augment augment = {.pad = 4, .scale_min = 1, .flip = 1};
static const uint64_t seed = 9;

typedef struct setup {
    tk_model *teacher;
    tk_pack *pack;
    tk_canvases *canvases;
    tk_pseudo_labels *pseudo;
    uint32_t images[IMAGES], labels[IMAGES];
    tk_graph *graph;
    float *fisher, *anchor;
} setup;

static setup s;

static int open_all(void **state)
{
    (void)state;
    const tk_preproc preproc = fixture_preproc();
    const char *path = fixture_path("step.pack");
    s.teacher = fixture_model(11, OLD, (const char *const[]){"a", "b"});
    fixture_pack(path, FIXTURE_COLOUR, IMAGES, 1);
    assert_int_equal(tk_pack_open(&s.pack, path, NULL), TK_OK);
    assert_int_equal(tk_canvases_open(&s.canvases, fixture_path("step.canvas"), s.pack, &preproc,
                                      PX, fixture_pool(), NULL, NULL),
                     TK_OK);
    for (uint32_t i = 0; i < IMAGES; i++) {
        s.images[i] = i;
        s.labels[i] = tk_pack_get(s.pack, i).label;
    }
    const tk_pseudo_labels_opts opts = {.teacher = s.teacher,
                                        .n_heads = OLD,
                                        .heads = s.teacher->heads,
                                        .canvases = s.canvases,
                                        .n_images = IMAGES,
                                        .images = s.images,
                                        .views = 2,
                                        .augment = augment,
                                        .seed = seed,
                                        .path = fixture_path("step.pseudo"),
                                        .pool = fixture_pool()};
    assert_int_equal(tk_pseudo_labels_open(&s.pseudo, &opts, NULL), TK_OK);
    assert_int_equal(tk_graph_create(&s.graph, TK_RESNET20, PX, N, fixture_pool(), NULL), TK_OK);
    const size_t trained = s.teacher->trunk->trained;
    s.fisher = tk_aligned_calloc(trained, sizeof(float));
    s.anchor = tk_aligned_calloc(trained, sizeof(float));
    assert_true(s.fisher && s.anchor);
    for (size_t j = 0; j < trained; j++) {
        s.fisher[j] = fabsf(tk_rng_normal(2, 1, j));
        s.anchor[j] = s.teacher->trunk->data[j] + 0.01f * tk_rng_normal(2, 2, j);
    }
    return 0;
}

static int close_all(void **state)
{
    (void)state;
    tk_free(s.fisher);
    tk_free(s.anchor);
    tk_graph_destroy(s.graph);
    tk_pseudo_labels_close(s.pseudo);
    tk_canvases_close(s.canvases);
    tk_pack_close(s.pack);
    tk_model_destroy(s.teacher);
    tk_pool_destroy(fixture_pool());
    fixture_clean();
    return 0;
}

/* A student that has left its teacher. */
static tk_student make_student(void)
{
    tk_student student;
    assert_int_equal(tk_student_init(&student, s.teacher->trunk, MOST, 0), TK_OK);
    for (size_t j = 0; j < student.trunk->trained; j++)
        student.trunk->data[j] *= 1 + 0.1f * tk_rng_normal(4, 1, j);
    for (size_t i = 0; i < student.head_size; i++)
        student.head[i] = 0.3f * tk_rng_normal(4, 2, i);
    return student;
}

/* ---- the same by hand ---- */

typedef struct wanted {
    tk_losses losses;
    float *trunk, head[MOST * (F + 1)]; /* after the step */
} wanted;

static void soften(size_t c, const float *z, double t, double *p)
{
    double sum = 0;
    for (size_t k = 0; k < c; k++)
        sum += p[k] = exp((double)z[k] / t);
    for (size_t k = 0; k < c; k++)
        p[k] /= sum;
}

/* One image and one head w, b of c classes: adds weight * T^2 KL(target, softmax) to the loss, and
 * its gradient to those of the features and, if wanted, of the head. */
static double add_term(size_t c, const float *f, const float *w, const float *b,
                       const double *target, double t, double weight, double *df, double *dw,
                       double *db)
{
    float z[MOST];
    double q[MOST], loss = 0;
    tk_linear_forward(1, F, c, f, w, b, z);
    soften(c, z, t, q);
    for (size_t k = 0; k < c; k++) {
        const double dz = weight * t * (q[k] - target[k]);
        if (target[k] > 0) loss += weight * t * t * target[k] * log(target[k] / q[k]);
        for (size_t i = 0; i < F; i++) {
            df[i] += dz * (double)w[k * F + i];
            if (dw) dw[k * F + i] += dz * (double)f[i];
        }
        if (db) db[k] += dz;
    }
    return loss;
}

/* Cross-entropy is the divergence from the smoothed label, plus that one's entropy. */
static double add_ce(const tk_recipe *r, const float *f, const tk_student *student, uint32_t label,
                     double *df, double *dhead)
{
    double target[MOST], entropy = 0;
    for (uint32_t k = 0; k < MOST; k++) {
        target[k] = r->smoothing / MOST + (k == label ? 1 - r->smoothing : 0);
        entropy -= target[k] * log(target[k]);
    }
    return entropy / N + add_term(MOST, f, student->head, student->head + MOST * F, target, 1,
                                  1.0 / N, df, dhead, dhead + MOST * F);
}

static double add_kd(const tk_recipe *r, double strength, const float *f, const tk_student *student,
                     size_t image, size_t refreshed, double *df, double *dhead)
{
    double loss = 0, target[C];
    float z[C];
    for (size_t h = 0; h < OLD; h++) {
        const tk_head *head = s.teacher->heads[h];
        const bool own = h == refreshed;
        const double weight = strength * r->kappa / (r->kappa_sum != 0 ? 1 : OLD) / N;
        tk_pseudo_labels_logits(s.pseudo, views[image], items[image], h, z);
        soften(C, z, r->temperature, target);
        loss += add_term(C, f, own ? student->head : head->weight,
                         own ? student->head + MOST * F : head->bias, target, r->temperature,
                         weight, df, own ? dhead : NULL, own ? dhead + MOST * F : NULL);
    }
    return loss;
}

/* Scale and shift of batch norm: their gradient is 0, and nothing else moves them. */
static void hold_norms(const tk_params *trunk, float *gradient)
{
    for (size_t t = 0; t < trunk->tensors && trunk->table[t].offset < trunk->trained; t++)
        for (size_t i = 0; trunk->table[t].kind != TK_PARAM_CONV && i < trunk->table[t].count; i++)
            gradient[trunk->table[t].offset + i] = 0;
}

static void copy_norms(const tk_params *trunk, float *to)
{
    for (size_t t = 0; t < trunk->tensors && trunk->table[t].offset < trunk->trained; t++)
        if (trunk->table[t].kind != TK_PARAM_CONV)
            memcpy(to + trunk->table[t].offset, trunk->data + trunk->table[t].offset,
                   trunk->table[t].count * sizeof *to);
}

static wanted by_hand(const tk_recipe *r, const tk_student *student, size_t refreshed, double rate,
                      double strength)
{
    static float x[N * FLOATS], dfeatures[N * F];
    const size_t trained = student->trunk->trained;
    uint32_t images[N];
    wanted out = {0};
    double dhead[MOST * (F + 1)] = {0}, norm = 0;
    const float *features;
    for (size_t i = 0; i < N; i++)
        images[i] = s.images[items[i]];
    tk_canvases_render(s.canvases, &(tk_cut){&augment, seed, images, views}, N, x, fixture_pool());
    tk_graph_forward(s.graph, student->trunk, N, x, TK_BN_FROZEN, &features);
    for (size_t i = 0; i < N; i++) {
        double df[F] = {0};
        const float *f = features + i * F;
        out.losses.ce += add_ce(r, f, student, s.labels[items[i]], df, dhead);
        out.losses.kd += add_kd(r, strength, f, student, i, refreshed, df, dhead);
        for (size_t k = 0; k < F; k++)
            dfeatures[i * F + k] = (float)df[k];
    }
    out.trunk = tk_aligned_calloc(trained, sizeof(float));
    assert_non_null(out.trunk);
    tk_graph_backward(s.graph, student->trunk, dfeatures, out.trunk); /* the gradient, for now */
    if (r->batch_norm == TK_NORM_HELD) hold_norms(student->trunk, out.trunk);
    for (size_t i = 0; i < MOST * (F + 1); i++)
        norm += dhead[i] * dhead[i];
    out.losses.norm = sqrt(norm + pow(tk_norm(trained, out.trunk), 2));
    const double factor = fmin(1, r->clip / out.losses.norm);
    for (size_t i = 0; i < MOST * (F + 1); i++)
        out.head[i] = (float)((double)student->head[i] - rate * r->head_rate * factor * dhead[i]);
    for (size_t j = 0; j < trained; j++) {
        const double at = (double)student->trunk->data[j] - rate * factor * (double)out.trunk[j];
        const double d = (double)s.anchor[j] - at, lambda = strength * r->lambda;
        const double pull = rate * lambda * (double)s.fisher[j];
        out.losses.ewc += lambda / 2 * (double)s.fisher[j] * d * d;
        out.trunk[j] = (float)(at + pull / (1 + pull) * d);
    }
    if (r->batch_norm == TK_NORM_HELD) copy_norms(student->trunk, out.trunk);
    return out;
}

/* ---- the comparison ---- */

/* The distance of `got` from `want`, as a part of how far the step went. */
static double error_of(size_t n, const float *from, const float *got, const float *want)
{
    double error = 0, way = 0;
    for (size_t i = 0; i < n; i++) {
        error += pow((double)got[i] - (double)want[i], 2);
        way += pow((double)want[i] - (double)from[i], 2);
    }
    assert_true(way > 0);
    return sqrt(error / way);
}

static tk_recipe recipe(double kappa_sum, double clip)
{
    tk_recipe r;
    assert_int_equal(tk_recipe_find(&r, "kd+ewc", TK_RESNET20, NULL), TK_OK);
    r.kappa = 1.7, r.temperature = 3, r.kappa_sum = kappa_sum;
    r.lambda = 0.4, r.head_rate = 4, r.clip = clip, r.momentum = 0, r.decay = 0;
    return r;
}

static void check(const tk_recipe *r, size_t refreshed, double strength)
{
    enum { RATE_INV = 50 };
    const tk_preproc preproc = fixture_preproc();
    const tk_objective_opts opts = {.recipe = r,
                                    .preproc = &preproc,
                                    .canvases = s.canvases,
                                    .n_items = IMAGES,
                                    .images = s.images,
                                    .labels = s.labels,
                                    .teacher = s.pseudo,
                                    .n_old = OLD,
                                    .old = s.teacher->heads,
                                    .refreshed =
                                        refreshed < OLD ? s.teacher->heads[refreshed] : NULL,
                                    .fisher = s.fisher,
                                    .anchor = s.anchor,
                                    .augment = augment,
                                    .seed = seed,
                                    .max_batch = N,
                                    .classes = MOST,
                                    .arch = TK_RESNET20,
                                    .pool = fixture_pool()};
    tk_student before = make_student(), student = make_student();
    tk_objective *objective;
    tk_losses got;
    wanted want = by_hand(r, &before, refreshed, 1.0 / RATE_INV, strength);
    assert_int_equal(tk_objective_create(&objective, &opts, NULL), TK_OK);
    assert_int_equal(
        tk_step(objective, &student, N, items, views, 1.0 / RATE_INV, strength, &got, NULL), TK_OK);
    assert_close(got.ce, want.losses.ce, 1e-4);
    assert_close(got.kd, want.losses.kd, 1e-4 * want.losses.kd);
    assert_close(got.ewc, want.losses.ewc, 1e-4 * want.losses.ewc);
    assert_close(got.norm, want.losses.norm, 1e-3 * want.losses.norm);
    assert_true(want.losses.kd > 0.01 && want.losses.ewc > 0.01);
    assert_true(error_of(before.head_size, before.head, student.head, want.head) < 1e-3);
    assert_true(error_of(before.trunk->trained, before.trunk->data, student.trunk->data,
                         want.trunk) < 1e-3);
    tk_objective_destroy(objective);
    tk_free(want.trunk);
    tk_student_fini(&before);
    tk_student_fini(&student);
}

static void a_step_descends_the_objective_as_written(void **state)
{
    (void)state;
    const tk_recipe r = recipe(0, 1e6);
    check(&r, OLD, 1);
}

static void strength_multiplies_kappa_and_lambda(void **state)
{
    (void)state;
    const tk_recipe r = recipe(0, 1e6);
    check(&r, OLD, 3);
}

static void kappa_may_be_each_heads_own(void **state)
{
    (void)state;
    const tk_recipe r = recipe(1, 1e6);
    check(&r, OLD, 1);
}

static void trunk_and_head_are_clipped_together(void **state)
{
    (void)state;
    const tk_recipe r = recipe(0, 0.5);
    check(&r, OLD, 1);
}

static void scale_and_shift_may_be_held(void **state)
{
    (void)state;
    tk_recipe r = recipe(0, 1e6);
    r.batch_norm = TK_NORM_HELD;
    check(&r, OLD, 1);
}

/* The second old head is the new one as it was: its pseudo-labels pull at the new head's own first
 * classes, and at nothing of the old weights. */
static void a_refreshed_heads_past_pulls_at_the_new_head_itself(void **state)
{
    (void)state;
    const tk_recipe r = recipe(0, 1e6);
    check(&r, 1, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_step_descends_the_objective_as_written),
        cmocka_unit_test(strength_multiplies_kappa_and_lambda),
        cmocka_unit_test(kappa_may_be_each_heads_own),
        cmocka_unit_test(trunk_and_head_are_clipped_together),
        cmocka_unit_test(scale_and_shift_may_be_held),
        cmocka_unit_test(a_refreshed_heads_past_pulls_at_the_new_head_itself),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
