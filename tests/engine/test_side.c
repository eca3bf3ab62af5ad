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
    tk_plan_run_side(plan, N, s.x, g, got);
    assert_memory_equal(f, g, N * s.features * sizeof *f); /* the trunk does not feel it */
    const double off = distance(N * width, got, want);
    if (!(off < tolerance[precision]))
        fail_msg("%s, %s: off by %g", tk_arch_name(arch), tk_precision_name(precision), off);
    for (size_t i = 0; i < N; i++) { /* nor an image its neighbours */
        tk_plan_run_side(plan, 1, s.x + i * s.pixels, f, want);
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
    for (tk_precision p = TK_PRECISION_FP32; p < TK_PRECISION_COUNT; p++) {
        check_plan(TK_RESNET18, 96, 16, p);
        check_plan(TK_RESNET50, 64, 3, p);
    }
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
    tk_plan_run_side(plan, 2, a.x, f, together);
    const subject *const each[] = {&a, &b};
    for (size_t k = 0, first = 0; k < 2; first += each[k++]->side.rank) {
        const size_t rank = each[k]->side.rank;
        assert_int_equal(tk_plan_set_side(plan, &each[k]->side, NULL), TK_OK);
        tk_plan_run_side(plan, 2, a.x, f, alone);
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
    tk_plan_run_side(plan, 1, s.x, f, z);
    tk_test_alloc_fail_after(-1);
    tk_plan_destroy(plan);
    drop_subject(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(channels_of_the_stages_are_the_architectures),
        cmocka_unit_test(the_plans_side_is_the_formula),
        cmocka_unit_test(a_row_does_not_feel_its_neighbours),
        cmocka_unit_test(a_side_of_another_architecture_is_refused),
        cmocka_unit_test(running_out_of_memory_leaves_no_side),
    };
    return cmocka_run_group_tests(tests, make_pool, drop_pool);
}
