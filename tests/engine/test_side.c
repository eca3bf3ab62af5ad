/* Sides of the plan and of the training graph, against their formula. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "each_isa.h"
#include "engine/graph.h"
#include "engine/plan.h"
#include "net/graph_internal.h"
#include "numbers.h"
#include "with_pool.h"

/* A trunk with a training graph, whose maps are what the formula reads, and a side. */
typedef struct subject {
    tk_arch arch;
    unsigned px;
    size_t n, pixels, features, stages;
    tk_params *params;
    tk_graph *graph;
    tk_side side;
    float *data, *x;
} subject;

/* Weights of a size that keeps the maps' size, batch norm that does something. */
static void scramble(tk_params *params)
{
    tk_params_init(params, 3);
    for (size_t t = 0; t < params->tensors; t++) {
        const tk_param *p = &params->table[t];
        for (size_t i = 0; i < p->count && p->kind != TK_PARAM_CONV; i++)
            params->data[p->offset + i] += 0.2f * tk_rng_uniform(4, t, i);
    }
}

static subject make_subject(tk_arch arch, unsigned px, size_t n, size_t rank)
{
    subject s = {.arch = arch,
                 .px = px,
                 .n = n,
                 .pixels = (size_t)px * px * 3,
                 .features = tk_arch_features(arch),
                 .stages = tk_arch_stages(arch)};
    assert_int_equal(tk_params_create(&s.params, arch), TK_OK);
    scramble(s.params);
    assert_int_equal(tk_graph_create(&s.graph, arch, px, n, pool, NULL), TK_OK);
    s.x = normals(n * s.pixels, 1);
    s.data = normals(tk_side_size(arch, rank), 2);
    for (size_t i = 0; i < tk_side_size(arch, rank); i++)
        s.data[i] *= 0.2f;
    s.side = (tk_side){arch, rank, s.data};
    return s;
}

static void drop_subject(subject *s)
{
    tk_graph_destroy(s->graph);
    tk_params_destroy(s->params);
    tk_free(s->x), tk_free(s->data);
}

static double row_at(const subject *s, size_t stage, size_t row, const float *pixel, size_t c)
{
    const float *a = s->data + tk_side_at(s->arch, s->side.rank, stage);
    return dot(c, a + row * c, pixel) + (double)a[s->side.rank * c + row];
}

/* z by the formula, in double, from the maps of the graph's last forward. Every other block's
 * output is made anew when it is asked for. */
static float *formula(const subject *s)
{
    const tk__layout *l = &s->graph->layout;
    const size_t r = s->side.rank;
    float *z = zeros(s->n * s->stages * r);
    for (size_t k = 0; k < s->stages; k++) {
        const tk__map *m = &l->map[l->tap[k]];
        if (s->graph->remade[l->tap[k]]) tk__graph_apply(s->graph, s->graph->maker[l->tap[k]]);
        for (size_t i = 0; i < s->n; i++)
            for (size_t j = 0; j < r; j++) {
                const float *x = s->graph->act[l->tap[k]] + i * tk__map_floats(m);
                double sum = 0;
                for (size_t p = 0; p < m->h * m->w; p++)
                    sum += fmax(0, row_at(s, k, j, x + p * m->c, m->c));
                z[(i * s->stages + k) * r + j] = (float)(sum / (double)(m->h * m->w));
            }
    }
    return z;
}

/* --- shape --- */

static void channels_of_the_stages_are_the_architectures(void **state)
{
    (void)state;
    assert_int_equal(tk_arch_stages(TK_RESNET18), 4);
    assert_int_equal(tk_arch_stages(TK_RESNET32), 3);
    assert_int_equal(tk_arch_channels(TK_RESNET18, 3), 512);
    assert_int_equal(tk_arch_channels(TK_RESNET50, 0), 256);
    assert_int_equal(tk_arch_channels(TK_RESNET20, 1), 32);
    assert_int_equal(tk_side_size(TK_RESNET20, 5), 5 * (16 + 32 + 64 + 3));
    assert_int_equal(tk_side_at(TK_RESNET20, 5, 1), 5 * 17);
    for (unsigned arch = 0; arch < TK_ARCH_COUNT; arch++) {
        const unsigned px = tk_arch_check_px((tk_arch)arch, 32, NULL) == TK_OK ? 32 : 64;
        tk_graph *graph;
        assert_int_equal(tk_graph_create(&graph, (tk_arch)arch, px, 1, pool, NULL), TK_OK);
        const tk__layout *l = &graph->layout;
        assert_int_equal(l->stages, tk_arch_stages((tk_arch)arch));
        assert_int_equal(l->tap[l->stages - 1], l->maps - 1);
        for (size_t s = 0; s < l->stages; s++) {
            assert_int_equal(l->map[l->tap[s]].c, tk_arch_channels((tk_arch)arch, s));
            assert_true(s == 0 || l->map[l->tap[s]].h < l->map[l->tap[s - 1]].h);
        }
        tk_graph_destroy(graph);
    }
}

/* --- plan --- */

/* int8's ranges, from the images themselves. */
static tk_calibration ranges_of(const subject *s)
{
    tk_calibration ranges = {0};
    tk_plan *plan;
    assert_int_equal(tk_plan_create(&plan, s->params, s->px, s->n, pool, NULL), TK_OK);
    assert_int_equal(tk_plan_calibrate(plan, s->n, s->x, &ranges, NULL), TK_OK);
    tk_plan_destroy(plan);
    return ranges;
}

/* Rounded maps cost bf16 and int8 so much; an error of layout costs all. */
static const double tolerance[TK_PRECISION_COUNT] = {1e-4, 0.03, 0.1};

static void check_plan(tk_arch arch, unsigned px, size_t rank, tk_precision precision)
{
    enum { N = 3 };
    subject s = make_subject(arch, px, N, rank);
    const tk_calibration ranges = ranges_of(&s);
    const size_t width = s.stages * rank;
    const float *features;
    tk_plan *plan;
    float *got = zeros(N * width), *f = zeros(N * s.features), *g = zeros(N * s.features);
    tk_graph_forward(s.graph, s.params, N, s.x, TK_BN_FROZEN, &features);
    float *want = formula(&s);
    assert_int_equal(tk_plan_create_as(&plan, s.params, px, N, precision, &ranges, pool, NULL),
                     TK_OK);
    tk_plan_run(plan, N, s.x, f);
    const size_t bytes = tk_plan_bytes(plan);
    assert_int_equal(tk_plan_set_side(plan, &s.side, NULL), TK_OK);
    assert_true(tk_plan_bytes(plan) > bytes + tk_side_size(arch, rank) * sizeof(float));
    tk_plan_run_side(plan, N, s.x, g, got, NULL);
    assert_memory_equal(f, g, N * s.features * sizeof *f); /* the trunk does not feel it */
    const double off = distance(N * width, got, want);
    if (!(off < tolerance[precision]))
        fail_msg("%s, %s: off by %g", tk_arch_name(arch), tk_precision_name(precision), off);
    for (size_t i = 0; i < N; i++) { /* nor an image its neighbours */
        tk_plan_run_side(plan, 1, s.x + i * s.pixels, f, want, NULL);
        assert_memory_equal(want, got + i * width, width * sizeof *want);
    }
    tk_plan_destroy(plan);
    tk_free(got), tk_free(want), tk_free(f), tk_free(g);
    drop_subject(&s);
}

static void check_small_plans(void)
{
    for (tk_precision p = TK_PRECISION_FP32; p < TK_PRECISION_COUNT; p++)
        check_plan(TK_RESNET20, 32, 7, p);
}

static void the_plans_side_is_the_formula(void **state)
{
    (void)state;
    each_isa(check_small_plans);
    for (tk_precision p = TK_PRECISION_FP32; p < TK_PRECISION_COUNT; p++)
        check_plan(TK_RESNET18, 96, 5, p);
    check_plan(TK_RESNET50, 64, 3, TK_PRECISION_INT8);
    check_plan(TK_RESNET20, 32, 300, TK_PRECISION_FP32); /* several slices */
}

/* The rows of two sides as one: the first's, then the second's, in every stage. */
static void stack(const subject *a, const subject *b, float *data)
{
    const size_t ra = a->side.rank, rb = b->side.rank, r = ra + rb;
    for (size_t s = 0; s < a->stages; s++) {
        const size_t c = tk_arch_channels(a->arch, s);
        float *to = data + tk_side_at(a->arch, r, s);
        const float *from_a = a->data + tk_side_at(a->arch, ra, s);
        const float *from_b = b->data + tk_side_at(a->arch, rb, s);
        memcpy(to, from_a, ra * c * sizeof *to);
        memcpy(to + ra * c, from_b, rb * c * sizeof *to);
        memcpy(to + r * c, from_a + ra * c, ra * sizeof *to);
        memcpy(to + r * c + ra, from_b + rb * c, rb * sizeof *to);
    }
}

static void check_neighbours(void)
{
    subject a = make_subject(TK_RESNET20, 32, 2, 5), b = make_subject(TK_RESNET20, 32, 2, 150);
    float *both = zeros(tk_side_size(TK_RESNET20, 155)), *f = zeros(2 * a.features);
    float *alone = zeros(2 * 3 * 150), *together = zeros(2 * 3 * 155);
    tk_plan *plan;
    stack(&a, &b, both);
    assert_int_equal(tk_plan_create(&plan, a.params, 32, 2, pool, NULL), TK_OK);
    assert_int_equal(tk_plan_set_side(plan, &(tk_side){TK_RESNET20, 155, both}, NULL), TK_OK);
    tk_plan_run_side(plan, 2, a.x, f, together, NULL);
    const subject *const each[] = {&a, &b};
    for (size_t k = 0, first = 0; k < 2; first += each[k++]->side.rank) {
        const size_t rank = each[k]->side.rank;
        assert_int_equal(tk_plan_set_side(plan, &each[k]->side, NULL), TK_OK);
        tk_plan_run_side(plan, 2, a.x, f, alone, NULL);
        for (size_t row = 0; row < 6; row++) /* image, stage */
            assert_memory_equal(alone + row * rank, together + row * 155 + first,
                                rank * sizeof *alone);
    }
    assert_int_equal(tk_plan_set_side(plan, &(tk_side){.rank = 0}, NULL), TK_OK);
    tk_plan_destroy(plan);
    tk_free(both), tk_free(f), tk_free(alone), tk_free(together);
    drop_subject(&a), drop_subject(&b);
}

static void a_row_does_not_feel_its_neighbours(void **state)
{
    (void)state;
    each_isa(check_neighbours);
}

/* Rows that nobody asks for cost nothing where a slice has none that is wanted. */
static void only_the_rows_that_are_asked_for_are_computed(void **state)
{
    (void)state;
    enum { RANK = 700, LAST = RANK - 1 };
    subject s = make_subject(TK_RESNET20, 32, 1, RANK);
    bool rows[RANK] = {[LAST] = true};
    float *f = zeros(s.features), *all = zeros(3 * RANK), *some = zeros(3 * RANK);
    tk_plan *plan;
    assert_int_equal(tk_plan_create(&plan, s.params, 32, 1, pool, NULL), TK_OK);
    assert_int_equal(tk_plan_set_side(plan, &s.side, NULL), TK_OK);
    tk_plan_run_side(plan, 1, s.x, f, all, NULL);
    tk_plan_run_side(plan, 1, s.x, f, some, rows);
    for (size_t k = 0; k < 3; k++) {
        assert_true(all[k * RANK] != 0);
        assert_true(some[k * RANK] == 0); /* not touched */
        assert_memory_equal(some + k * RANK + LAST, all + k * RANK + LAST, sizeof *all);
    }
    tk_plan_destroy(plan);
    tk_free(f), tk_free(all), tk_free(some);
    drop_subject(&s);
}

static void a_side_of_another_architecture_is_refused(void **state)
{
    (void)state;
    subject s = make_subject(TK_RESNET20, 32, 1, 4);
    tk_diag diag = {{0}};
    tk_plan *plan;
    s.side.arch = TK_RESNET32;
    assert_int_equal(tk_plan_create(&plan, s.params, 32, 1, pool, NULL), TK_OK);
    assert_int_equal(tk_plan_set_side(plan, &s.side, &diag), TK_BADARG);
    assert_non_null(strstr(diag.text, "resnet32"));
    tk_plan_destroy(plan);
    drop_subject(&s);
}

static void running_out_of_memory_leaves_no_side(void **state)
{
    (void)state;
    subject s = make_subject(TK_RESNET20, 32, 1, 4);
    tk_plan *plan;
    assert_int_equal(tk_plan_create(&plan, s.params, 32, 1, pool, NULL), TK_OK);
    const long live = tk_test_alloc_live();
    for (long n = 0;; n++) {
        tk_test_alloc_fail_after(n);
        const tk_err err = tk_plan_set_side(plan, &s.side, NULL);
        tk_test_alloc_fail_after(-1);
        if (err == TK_OK) break;
        assert_int_equal(err, TK_NOMEM);
        assert_int_equal(tk_test_alloc_live(), live);
    }
    tk_test_alloc_fail_after(0);
    float f[64], z[12];
    tk_plan_run_side(plan, 1, s.x, f, z, NULL);
    tk_test_alloc_fail_after(-1);
    tk_plan_destroy(plan);
    drop_subject(&s);
}

/* --- training graph --- */

/* z of the graph is the formula on its own maps; dA and db are its derivatives, in double. */
static void check_gradient(tk_arch arch, unsigned px, size_t rank, tk_bn_mode mode)
{
    enum { N = 2 };
    subject s = make_subject(arch, px, N, rank);
    const size_t size = tk_side_size(arch, rank), width = s.stages * rank;
    const tk__layout *l = &s.graph->layout;
    const float *features;
    float *dz = normals(N * width, 5), *got = zeros(size), *want = zeros(size);
    got[0] = 5; /* must be overwritten */
    assert_int_equal(tk_graph_set_side(s.graph, &s.side, NULL), TK_OK);
    tk_graph_forward(s.graph, s.params, N, s.x, mode, &features);
    float *z = formula(&s);
    assert_true(distance(N * width, tk_graph_side(s.graph), z) < 1e-5);
    for (size_t k = 0; k < s.stages; k++) {
        const tk__map *m = &l->map[l->tap[k]];
        const size_t pixels = m->h * m->w;
        float *da = want + tk_side_at(arch, rank, k), *db = da + rank * m->c;
        if (s.graph->remade[l->tap[k]]) tk__graph_apply(s.graph, s.graph->maker[l->tap[k]]);
        for (size_t j = 0; j < rank; j++)
            for (size_t p = 0; p < N * pixels; p++) {
                const float *x = s.graph->act[l->tap[k]] + p * m->c;
                const float g = dz[(p / pixels * s.stages + k) * rank + j] / (float)pixels;
                if (row_at(&s, k, j, x, m->c) <= 0) continue;
                for (size_t c = 0; c < m->c; c++)
                    da[j * m->c + c] += g * x[c];
                db[j] += g;
            }
    }
    s.graph->spare_holds = TK__NO_MAP; /* whatever this test has left there */
    tk_graph_side_backward(s.graph, dz, got);
    assert_true(distance(size, got, want) < 1e-4);
    tk_free(dz), tk_free(got), tk_free(want), tk_free(z);
    drop_subject(&s);
}

static void check_small_gradients(void)
{
    check_gradient(TK_RESNET20, 32, 7, TK_BN_FROZEN);
    check_gradient(TK_RESNET20, 32, 16, TK_BN_BATCH);
}

static void the_graphs_side_and_its_gradient_are_the_formula(void **state)
{
    (void)state;
    each_isa(check_small_gradients);
    check_gradient(TK_RESNET18, 64, 5, TK_BN_FROZEN);
    check_gradient(TK_RESNET50, 64, 3, TK_BN_FROZEN);
}

static double loss(const subject *s, tk_params *params, tk_bn_mode mode, const float *df,
                   const float *dz)
{
    const float *features;
    tk_graph_forward(s->graph, params, s->n, s->x, mode, &features);
    return dot(s->n * s->features, features, df) +
           dot(s->n * s->stages * s->side.rank, tk_graph_side(s->graph), dz);
}

/* Along the gradient of the trunk, as in test_graph; nearly all of the loss comes by the side. */
static void check_direction(tk_arch arch, unsigned px, tk_bn_mode mode, double step)
{
    subject s = make_subject(arch, px, 2, 6);
    float *df = normals(2 * s.features, 6), *dz = normals(2 * s.stages * 6, 7);
    float *grads = zeros(s.params->trained);
    for (size_t i = 0; i < 2 * s.features; i++)
        df[i] *= 0.01f;
    assert_int_equal(tk_graph_set_side(s.graph, &s.side, NULL), TK_OK);
    (void)loss(&s, s.params, mode, df, dz);
    tk_graph_backward_through(s.graph, s.params, df, dz, grads);
    const double norm = sqrt(dot(s.params->trained, grads, grads));
    double side[2];
    for (int i = 0; i < 2; i++) {
        tk_params *moved;
        assert_int_equal(tk_params_clone(&moved, s.params), TK_OK);
        for (size_t j = 0; j < s.params->trained; j++)
            moved->data[j] += (float)((i == 0 ? step : -step) / norm) * grads[j];
        side[i] = loss(&s, moved, mode, df, dz);
        tk_params_destroy(moved);
    }
    const double slope = (side[0] - side[1]) / (2 * step);
    if (fabs(slope - norm) > 0.02 * norm) fail_msg("mode %d: %g, not %g", (int)mode, slope, norm);
    tk_free(df), tk_free(dz), tk_free(grads);
    drop_subject(&s);
}

static void check_directions(void)
{
    check_direction(TK_RESNET20, 32, TK_BN_FROZEN, 1e-3);
    check_direction(TK_RESNET20, 32, TK_BN_BATCH, 1e-3);
}

static void the_trunks_gradient_through_the_side_equals_a_central_difference(void **state)
{
    (void)state;
    each_isa(check_directions);
    check_direction(TK_RESNET18, 64, TK_BN_FROZEN, 3e-5); /* many kinks */
}

/* What comes by the side is added: linear in the two, to rounding. Both orders of the backward
 * passes give the same. */
static void the_two_ways_back_add_up(void **state)
{
    (void)state;
    subject s = make_subject(TK_RESNET18, 64, 2, 6);
    const size_t count = s.params->trained, size = tk_side_size(TK_RESNET18, 6);
    float *df = normals(2 * s.features, 6), *dz = normals(2 * s.stages * 6, 7);
    float *none = zeros(2 * s.features);
    float *both = zeros(count), *trunk = zeros(count), *side = zeros(count);
    float *before = zeros(size), *after = zeros(size);
    assert_int_equal(tk_graph_set_side(s.graph, &s.side, NULL), TK_OK);
    (void)loss(&s, s.params, TK_BN_FROZEN, df, dz);
    tk_graph_side_backward(s.graph, dz, before);
    tk_graph_backward_through(s.graph, s.params, df, dz, both);
    tk_graph_backward(s.graph, s.params, df, trunk);
    tk_graph_backward_through(s.graph, s.params, none, dz, side);
    (void)loss(&s, s.params, TK_BN_FROZEN, df, dz);
    tk_graph_side_backward(s.graph, dz, after);
    assert_memory_equal(before, after, size * sizeof *after);
    for (size_t i = 0; i < count; i++)
        trunk[i] += side[i];
    assert_true(distance(count, both, trunk) < 1e-4);
    tk_free(df), tk_free(dz), tk_free(none), tk_free(both), tk_free(trunk), tk_free(side);
    tk_free(before), tk_free(after);
    drop_subject(&s);
}

static void squares_through_the_side_equal_a_loop_over_single_images(void **state)
{
    (void)state;
    enum { N = 3 };
    subject s = make_subject(TK_RESNET20, 32, N, 6);
    const size_t count = s.params->trained, width = s.stages * 6;
    float *df = normals(N * s.features, 6), *dz = normals(N * width, 7);
    float *got = zeros(count), *want = zeros(count), *grads = zeros(count);
    const float *features;
    assert_int_equal(tk_graph_set_side(s.graph, &s.side, NULL), TK_OK);
    (void)loss(&s, s.params, TK_BN_FROZEN, df, dz);
    tk_graph_backward_squares(s.graph, s.params, df, dz, got);
    for (size_t i = 0; i < N; i++) {
        tk_graph_forward(s.graph, s.params, 1, s.x + i * s.pixels, TK_BN_FROZEN, &features);
        tk_graph_backward_through(s.graph, s.params, df + i * s.features, dz + i * width, grads);
        for (size_t j = 0; j < count; j++)
            want[j] += grads[j] * grads[j];
    }
    assert_true(distance(count, got, want) < 1e-4);
    tk_free(df), tk_free(dz), tk_free(got), tk_free(want), tk_free(grads);
    drop_subject(&s);
}

/* A side on the graph changes nothing of what was there without it. */
static void a_graph_without_its_side_has_the_same_bits(void **state)
{
    (void)state;
    subject s = make_subject(TK_RESNET20, 32, 2, 6);
    const size_t count = s.params->trained;
    float *df = normals(2 * s.features, 6), *plain = zeros(count), *with = zeros(count);
    const float *features;
    tk_graph_forward(s.graph, s.params, 2, s.x, TK_BN_FROZEN, &features);
    assert_null(tk_graph_side(s.graph));
    tk_graph_backward(s.graph, s.params, df, plain);
    const size_t bytes = tk_graph_bytes(s.graph);
    assert_int_equal(tk_graph_set_side(s.graph, &s.side, NULL), TK_OK);
    assert_true(tk_graph_bytes(s.graph) > bytes);
    tk_test_alloc_fail_after(0); /* new weights of the same rank need no memory */
    assert_int_equal(tk_graph_set_side(s.graph, &s.side, NULL), TK_OK);
    tk_graph_forward(s.graph, s.params, 2, s.x, TK_BN_FROZEN, &features);
    tk_graph_backward(s.graph, s.params, df, with);
    tk_test_alloc_fail_after(-1);
    assert_memory_equal(plain, with, count * sizeof *with);
    assert_int_equal(tk_graph_set_side(s.graph, &(tk_side){.rank = 0}, NULL), TK_OK);
    assert_int_equal(tk_graph_bytes(s.graph), bytes);
    s.side.arch = TK_RESNET56;
    assert_int_equal(tk_graph_set_side(s.graph, &s.side, NULL), TK_BADARG);
    tk_free(df), tk_free(plain), tk_free(with);
    drop_subject(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(channels_of_the_stages_are_the_architectures),
        cmocka_unit_test(the_plans_side_is_the_formula),
        cmocka_unit_test(a_row_does_not_feel_its_neighbours),
        cmocka_unit_test(only_the_rows_that_are_asked_for_are_computed),
        cmocka_unit_test(a_side_of_another_architecture_is_refused),
        cmocka_unit_test(running_out_of_memory_leaves_no_side),
        cmocka_unit_test(the_graphs_side_and_its_gradient_are_the_formula),
        cmocka_unit_test(the_trunks_gradient_through_the_side_equals_a_central_difference),
        cmocka_unit_test(the_two_ways_back_add_up),
        cmocka_unit_test(squares_through_the_side_equal_a_loop_over_single_images),
        cmocka_unit_test(a_graph_without_its_side_has_the_same_bits),
    };
    return cmocka_run_group_tests(tests, make_pool, drop_pool);
}
