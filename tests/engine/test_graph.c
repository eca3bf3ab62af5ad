/* The training graph and the inference plan as wholes. Numbers of another framework are held in the
 * parity tests; here is what must hold by itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "each_isa.h"
#include "engine/graph.h"
#include "engine/optim.h"
#include "engine/plan.h"
#include "numbers.h"
#include "with_pool.h"

/* A network whose batch norm does something, and inputs for it. */
typedef struct subject {
    tk_arch arch;
    unsigned px;
    size_t n, pixels, features;
    tk_params *params;
    tk_graph *graph;
    float *x, *dfeatures, *grads;
} subject;

/* Cheap numbers in -0.5..0.5: the large networks have 25 million parameters (Knuth's MMIX
 * generator). */
static void fill_uniform(size_t n, float *a, uint64_t state)
{
    for (size_t i = 0; i < n; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        a[i] = (float)(state >> 40) / 16777216.0f - 0.5f;
    }
}

static void scramble(tk_params *params)
{
    for (size_t t = 0; t < params->tensors; t++) {
        const tk_param *p = &params->table[t];
        float *w = params->data + p->offset;
        const bool positive = p->kind == TK_PARAM_BN_GAMMA || p->kind == TK_PARAM_BN_VAR;
        fill_uniform(p->count, w, t);
        for (size_t i = 0; i < p->count; i++)
            if (p->kind == TK_PARAM_CONV) /* He: variance 2 / fan-out */
                w[i] *= sqrtf(24.0f / (float)(p->k * p->k * p->oc));
            else
                w[i] = positive ? 1 + w[i] : 0.4f * w[i];
    }
}

static subject make_subject(tk_arch arch, unsigned px, size_t n)
{
    subject s = {.arch = arch,
                 .px = px,
                 .n = n,
                 .pixels = (size_t)px * px * 3,
                 .features = tk_arch_features(arch)};
    assert_int_equal(tk_params_create(&s.params, arch), TK_OK);
    scramble(s.params);
    assert_int_equal(tk_graph_create(&s.graph, arch, px, n, pool, NULL), TK_OK);
    s.x = normals(n * s.pixels, 1);
    s.dfeatures = normals(n * s.features, 2);
    s.grads = zeros(s.params->trained);
    fill_uniform(s.params->trained, s.grads, 9); /* must be overwritten */
    return s;
}

static void drop_subject(subject *s)
{
    tk_graph_destroy(s->graph);
    tk_params_destroy(s->params);
    tk_free(s->x), tk_free(s->dfeatures), tk_free(s->grads);
}

static double loss(const subject *s, tk_params *params, tk_bn_mode mode)
{
    const float *features;
    tk_graph_forward(s->graph, params, s->n, s->x, mode, &features);
    return dot(s->n * s->features, features, s->dfeatures);
}

/* --- plan --- */

static void check_plan(tk_arch arch, unsigned px)
{
    subject s = make_subject(arch, px, 2);
    tk_plan *plan, *direct;
    assert_int_equal(tk_plan_create(&plan, s.params, px, 2, pool, NULL), TK_OK);
    assert_int_equal(tk_plan_create_direct(&direct, s.params, px, 2, pool, NULL), TK_OK);
    const float *want;
    float *got = zeros(2 * s.features), *alone = zeros(s.features);
    tk_graph_forward(s.graph, s.params, 2, s.x, TK_BN_FROZEN, &want);
    memset(s.params->data, 0, s.params->count * sizeof *s.params->data); /* the plan has its own */
    tk_plan_run(plan, 2, s.x, got);
    assert_true(distance(2 * s.features, got, want) < 1e-4);
    tk_plan_run(plan, 1, s.x + s.pixels, alone);
    assert_memory_equal(alone, got + s.features, s.features * sizeof *alone);
    tk_plan_run(direct, 1, s.x + s.pixels, alone);
    assert_true(distance(s.features, got + s.features, alone) < 1e-4);
    tk_plan_destroy(plan), tk_plan_destroy(direct);
    tk_free(got), tk_free(alone);
    drop_subject(&s);
}

static void check_small_plan(void)
{
    check_plan(TK_RESNET20, 32);
}

static void plan_equals_frozen_graph_and_ignores_the_rest_of_the_batch(void **state)
{
    (void)state;
    each_isa(check_small_plan);
    for (unsigned arch = 0; arch < TK_ARCH_COUNT; arch++)
        check_plan((tk_arch)arch, tk_arch_check_px((tk_arch)arch, 32, NULL) == TK_OK ? 32 : 64);
}

static void plan_takes_odd_input_sizes(void **state)
{
    (void)state;
    check_plan(TK_RESNET18, 75);
}

/* 13 3x3 convolutions of stride 1 on maps of 56 to 7 pixels; the other 7 have a stride or one tap.
 */
static void plan_tells_how_it_computes(void **state)
{
    (void)state;
    char text[200];
    subject s = make_subject(TK_RESNET18, 224, 1);
    tk_plan *plan;
    assert_int_equal(tk_plan_create(&plan, s.params, 224, 1, pool, NULL), TK_OK);
    tk_plan_describe(plan, text, sizeof text);
    assert_non_null(strstr(text, "fp32"));
    assert_non_null(strstr(text, "13 of 20 convolutions by Winograd, 13 of them F(4x4)"));
    tk_plan_describe(plan, text, 5);
    assert_string_equal(text, "fp32");
    tk_plan_destroy(plan);
    assert_int_equal(tk_plan_create_direct(&plan, s.params, 224, 1, pool, NULL), TK_OK);
    tk_plan_describe(plan, text, sizeof text);
    assert_non_null(strstr(text, "0 of 20 convolutions by Winograd"));
    tk_plan_destroy(plan);
    drop_subject(&s);
}

/* Splitting a batch over other numbers of threads must not change a bit either. */
static void plan_does_not_depend_on_the_number_of_threads(void **state)
{
    (void)state;
    subject s = make_subject(TK_RESNET20, 32, 3);
    float *want = zeros(3 * s.features), *got = zeros(3 * s.features);
    for (unsigned threads = 1; threads <= 4; threads++) {
        tk_pool *other;
        tk_plan *plan;
        assert_int_equal(tk_pool_create(&other, threads), TK_OK);
        assert_int_equal(tk_plan_create(&plan, s.params, 32, 3, other, NULL), TK_OK);
        tk_plan_run(plan, 3, s.x, threads == 1 ? want : got);
        if (threads > 1) assert_memory_equal(got, want, 3 * s.features * sizeof *got);
        tk_plan_destroy(plan);
        tk_pool_destroy(other);
    }
    tk_free(want), tk_free(got);
    drop_subject(&s);
}

/* --- graph --- */

/* Along the gradient, where the signal stands far above rounding. ReLU kinks between the two points
 * cost some accuracy; each layer alone is held tightly in test_layers. */
static void check_direction(tk_bn_mode mode)
{
    subject s = make_subject(TK_RESNET20, 32, 2);
    (void)loss(&s, s.params, mode);
    tk_graph_backward(s.graph, s.params, s.dfeatures, s.grads);
    const double norm = tk_norm(s.params->trained, s.grads), step = 1e-3;
    double side[2];
    for (int i = 0; i < 2; i++) {
        tk_params *moved;
        assert_int_equal(tk_params_clone(&moved, s.params), TK_OK);
        const float by = (float)((i == 0 ? step : -step) / norm);
        for (size_t j = 0; j < s.params->trained; j++)
            moved->data[j] += by * s.grads[j];
        side[i] = loss(&s, moved, mode);
        tk_params_destroy(moved);
    }
    const double slope = (side[0] - side[1]) / (2 * step);
    if (fabs(slope - norm) > 0.01 * norm) fail_msg("mode %d: %g, not %g", (int)mode, slope, norm);
    drop_subject(&s);
}

static void check_directions(void)
{
    check_direction(TK_BN_FROZEN);
    check_direction(TK_BN_BATCH);
}

static void gradient_of_a_whole_network_equals_a_central_difference(void **state)
{
    (void)state;
    each_isa(check_directions);
}

static void gradients_overwrite_and_padding_is_zero(void **state)
{
    (void)state;
    subject s = make_subject(TK_RESNET18, 64, 1);
    float *again = zeros(s.params->trained);
    (void)loss(&s, s.params, TK_BN_FROZEN);
    tk_graph_backward(s.graph, s.params, s.dfeatures, s.grads);
    tk_graph_backward(s.graph, s.params, s.dfeatures, again);
    assert_memory_equal(again, s.grads, s.params->trained * sizeof *again);
    size_t end = 0;
    for (size_t t = 0; t < s.params->tensors && s.params->table[t].offset < s.params->trained;
         t++) {
        for (; end < s.params->table[t].offset; end++)
            assert_true(s.grads[end] == 0.0f);
        end += s.params->table[t].count;
    }
    tk_free(again);
    drop_subject(&s);
}

static void frozen_forward_leaves_the_parameters_alone(void **state)
{
    (void)state;
    subject s = make_subject(TK_RESNET20, 32, 2);
    tk_params *before;
    assert_int_equal(tk_params_clone(&before, s.params), TK_OK);
    const size_t bytes = s.params->count * sizeof(float);
    (void)loss(&s, s.params, TK_BN_FROZEN);
    assert_memory_equal(s.params->data, before->data, bytes);
    (void)loss(&s, s.params, TK_BN_BATCH);
    assert_memory_equal(s.params->data, before->data, s.params->trained * sizeof(float));
    assert_memory_not_equal(s.params->data, before->data, bytes);
    tk_params_destroy(before);
    drop_subject(&s);
}

/* The input may change after the forward, and a graph that served a larger batch gives the same
 * bits. */
static void graph_keeps_nothing_of_the_last_batch_and_copies_its_input(void **state)
{
    (void)state;
    subject s = make_subject(TK_RESNET20, 32, 5);
    float *fresh = zeros(s.params->trained);
    const size_t bytes = s.params->trained * sizeof(float);
    s.n = 2;
    for (int mode = 0; mode < 2; mode++) {
        const float *f;
        tk_graph *other;
        assert_int_equal(tk_graph_create(&other, s.arch, 32, 5, pool, NULL), TK_OK);
        tk_graph_forward(other, s.params, 2, s.x, TK_BN_FROZEN, &f);
        tk_graph_backward(other, s.params, s.dfeatures, fresh);
        tk_graph_destroy(other);
        tk_graph_forward(s.graph, s.params, 5, s.x, (tk_bn_mode)mode, &f);
        tk_graph_backward(s.graph, s.params, s.dfeatures, s.grads);
        if (mode == TK_BN_BATCH) continue; /* which has moved the running statistics */
        float *x = normals(2 * s.pixels, 1);
        tk_graph_forward(s.graph, s.params, 2, x, TK_BN_FROZEN, &f);
        tk_free(x);
        tk_graph_backward(s.graph, s.params, s.dfeatures, s.grads);
        assert_memory_equal(s.grads, fresh, bytes);
    }
    tk_free(fresh);
    drop_subject(&s);
}

static void train_a_little(subject *s, tk_bn_mode mode)
{
    for (int step = 0; step < 2; step++) {
        (void)loss(s, s->params, mode);
        tk_graph_backward(s->graph, s->params, s->dfeatures, s->grads);
        for (size_t i = 0; i < s->params->trained; i++)
            s->params->data[i] -= 1e-4f * s->grads[i];
    }
}

static void check_determinism(void)
{
    for (int mode = 0; mode < 2; mode++) {
        subject a = make_subject(TK_RESNET20, 32, 3), b = make_subject(TK_RESNET20, 32, 3);
        train_a_little(&a, (tk_bn_mode)mode);
        train_a_little(&b, (tk_bn_mode)mode);
        assert_memory_equal(a.params->data, b.params->data, a.params->count * sizeof(float));
        drop_subject(&a);
        drop_subject(&b);
    }
}

static void training_is_bit_identical(void **state)
{
    (void)state;
    each_isa(check_determinism);
}

/* squares[j] of one call = sum over images of the square of that image's own gradient. */
static void check_squares_of(tk_arch arch, unsigned px)
{
    enum { N = 3 };
    subject s = make_subject(arch, px, N);
    const size_t count = s.params->trained;
    float *got = zeros(count), *want = zeros(count);
    for (size_t j = 0; j < count; j++) /* they are added to */
        got[j] = want[j] = 0.5f;
    (void)loss(&s, s.params, TK_BN_FROZEN);
    tk_graph_backward_squares(s.graph, s.params, s.dfeatures, NULL, got);
    for (size_t i = 0; i < N; i++) {
        const float *f;
        tk_graph_forward(s.graph, s.params, 1, s.x + i * s.pixels, TK_BN_FROZEN, &f);
        tk_graph_backward(s.graph, s.params, s.dfeatures + i * s.features, s.grads);
        for (size_t j = 0; j < count; j++)
            want[j] += s.grads[j] * s.grads[j];
    }
    for (size_t t = 0; t < s.params->tensors && s.params->table[t].offset < count; t++) {
        const tk_param *p = &s.params->table[t];
        assert_true(distance(p->count, got + p->offset, want + p->offset) < 1e-4);
    }
    tk_free(got), tk_free(want);
    drop_subject(&s);
}

static void check_squares(void)
{
    check_squares_of(TK_RESNET20, 32);
}

static void squares_equal_a_loop_over_single_images(void **state)
{
    (void)state;
    each_isa(check_squares);
    check_squares_of(TK_RESNET18, 64);
}

static void nan_reaches_features_and_gradients(void **state)
{
    (void)state;
    subject s = make_subject(TK_RESNET18, 64, 2);
    const float *f;
    s.x[5] = NAN;
    tk_graph_forward(s.graph, s.params, 2, s.x, TK_BN_FROZEN, &f);
    assert_true(isnan(f[0]));
    assert_true(isfinite(f[s.features])); /* the other image */
    assert_string_equal(tk_graph_nonfinite(s.graph, s.params), "conv1.weight");
    tk_graph_backward(s.graph, s.params, s.dfeatures, s.grads);
    assert_true(isnan(tk_norm(s.params->trained, s.grads)));
    drop_subject(&s);
}

static void the_first_layer_that_is_not_finite_is_named(void **state)
{
    (void)state;
    subject s = make_subject(TK_RESNET20, 32, 2);
    const float *f;
    tk_graph_forward(s.graph, s.params, 2, s.x, TK_BN_FROZEN, &f);
    assert_null(tk_graph_nonfinite(s.graph, s.params));
    const char *name = "layer2.1.conv2.weight";
    const long at = tk_params_find(s.params, name);
    assert_true(at >= 0);
    s.params->data[s.params->table[at].offset] = INFINITY;
    tk_graph_forward(s.graph, s.params, 2, s.x, TK_BN_FROZEN, &f);
    assert_string_equal(tk_graph_nonfinite(s.graph, s.params), name);
    drop_subject(&s);
}

/* --- creation --- */

static void bad_sizes_are_refused_with_a_sentence(void **state)
{
    (void)state;
    tk_diag diag = {.text = ""};
    tk_graph *graph;
    assert_int_equal(tk_graph_create(&graph, TK_RESNET18, 64, 0, pool, &diag), TK_BADARG);
    assert_null(graph);
    assert_true(diag.text[0] != 0);
    assert_int_equal(tk_graph_create(&graph, TK_RESNET18, 32, 1, pool, &diag), TK_BADARG);
    assert_int_equal(tk_graph_create(&graph, TK_RESNET20, 64, 1, pool, &diag), TK_BADARG);
    assert_int_equal(tk_graph_create(&graph, TK_RESNET18, 64, SIZE_MAX, pool, &diag), TK_BADARG);
}

static void creation_survives_running_out_of_memory(void **state)
{
    (void)state;
    tk_params *params;
    assert_int_equal(tk_params_create(&params, TK_RESNET20), TK_OK);
    const long live = tk_test_alloc_live();
    for (int kind = 0; kind < 2; kind++)
        for (long n = 0;; n++) {
            tk_graph *graph = NULL;
            tk_plan *plan = NULL;
            tk_test_alloc_fail_after(n);
            const tk_err err = kind == 0 ? tk_graph_create(&graph, TK_RESNET20, 32, 2, pool, NULL)
                                         : tk_plan_create(&plan, params, 32, 2, pool, NULL);
            tk_test_alloc_fail_after(-1);
            if (err == TK_OK) {
                assert_true((kind == 0 ? tk_graph_bytes(graph) : tk_plan_bytes(plan)) > 100000);
                tk_graph_destroy(graph);
                tk_plan_destroy(plan);
                assert_int_equal(tk_test_alloc_live(), live);
                assert_true(n >= 2);
                break;
            }
            assert_int_equal(err, TK_NOMEM);
            assert_null(graph);
            assert_null(plan);
            assert_int_equal(tk_test_alloc_live(), live);
        }
    tk_params_destroy(params);
}

/* The promise that a run allocates nothing, held by making every allocation fail. */
static void forward_backward_and_run_allocate_nothing(void **state)
{
    (void)state;
    subject s = make_subject(TK_RESNET20, 32, 2);
    tk_plan *plan;
    float *out = zeros(2 * s.features);
    assert_int_equal(tk_plan_create(&plan, s.params, 32, 2, pool, NULL), TK_OK);
    const long live = tk_test_alloc_live();
    tk_test_alloc_fail_after(0);
    (void)loss(&s, s.params, TK_BN_FROZEN);
    tk_graph_backward(s.graph, s.params, s.dfeatures, s.grads);
    tk_graph_backward_squares(s.graph, s.params, s.dfeatures, NULL, s.grads);
    tk_plan_run(plan, 2, s.x, out);
    tk_test_alloc_fail_after(-1);
    assert_int_equal(tk_test_alloc_live(), live);
    assert_true(out[0] == out[0]);
    tk_plan_destroy(plan);
    tk_free(out);
    drop_subject(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plan_equals_frozen_graph_and_ignores_the_rest_of_the_batch),
        cmocka_unit_test(plan_takes_odd_input_sizes),
        cmocka_unit_test(plan_tells_how_it_computes),
        cmocka_unit_test(plan_does_not_depend_on_the_number_of_threads),
        cmocka_unit_test(gradient_of_a_whole_network_equals_a_central_difference),
        cmocka_unit_test(gradients_overwrite_and_padding_is_zero),
        cmocka_unit_test(frozen_forward_leaves_the_parameters_alone),
        cmocka_unit_test(graph_keeps_nothing_of_the_last_batch_and_copies_its_input),
        cmocka_unit_test(training_is_bit_identical),
        cmocka_unit_test(squares_equal_a_loop_over_single_images),
        cmocka_unit_test(nan_reaches_features_and_gradients),
        cmocka_unit_test(the_first_layer_that_is_not_finite_is_named),
        cmocka_unit_test(bad_sizes_are_refused_with_a_sentence),
        cmocka_unit_test(creation_survives_running_out_of_memory),
        cmocka_unit_test(forward_backward_and_run_allocate_nothing),
    };
    return cmocka_run_group_tests(tests, make_pool, drop_pool);
}
