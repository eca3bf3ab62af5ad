/* The covariance of what convolutions read, against a loop over single patches, and projection off
 * the subspace it spans. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "each_isa.h"
#include "engine/covariance.h"
#include "engine/mem.h"
#include "engine/rng.h"
#include "engine/subspace.h"
#include "net/graph_internal.h"
#include "with_pool.h"

/* ---- covariance ---- */

enum { SEED = 5, TAKEN = 64, WIDEST = 1152 };

typedef struct brute {
    const tk_graph *graph;
    const tk_params *params;
    const tk_covariance *got;
    size_t layers, sampled; /* that were compared, and of which not all pixels were taken */
} brute;

/* One value of the map that a convolution reads; zero outside. */
static float value_at(const tk__input *in, const tk__map *map, size_t image, long y, long x,
                      size_t c)
{
    if (y < 0 || x < 0 || y >= (long)map->h || x >= (long)map->w) return 0;
    const float v = in->x[((image * map->h + (size_t)y) * map->w + (size_t)x) * map->c + c];
    return in->scale == NULL ? v : fmaxf(0, v * in->scale[c] + in->shift[c]);
}

static void add_outer(size_t n, const float *x, double by, double *sum)
{
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j <= i && x[i] != 0; j++)
            sum[i * (i + 1) / 2 + j] += by * (double)x[i] * (double)x[j];
}

/* The sum over the layer's pixels, patch by patch. */
static void sum_patches(const brute *b, const tk__unit *u, const tk_covariance_layer *layer,
                        double *sum)
{
    static float patch[WIDEST];
    const tk__map *in = &b->graph->layout.map[u->in], *out = &b->graph->layout.map[u->out];
    const tk__input input = tk__graph_input(b->graph, u->in);
    const bool pixels = layer->taps > 1;
    const size_t k = pixels ? 1 : u->k, stride = pixels ? 1 : u->stride;
    const long pad = pixels ? 0 : (long)u->pad;
    const size_t w = pixels ? in->w : out->w, all = w * (pixels ? in->h : out->h);
    const size_t taken = all < TAKEN ? all : TAKEN;
    const uint64_t stream = tk_rng_stream(b->params->table[u->conv].name);
    for (size_t image = 0; image < b->graph->n; image++)
        for (size_t i = 0; i < taken; i++) {
            const size_t at =
                taken == all ? i : tk_rng_below(SEED, stream, image * TAKEN + i, (uint32_t)all);
            const long y = (long)(at / w * stride) - pad, x = (long)(at % w * stride) - pad;
            for (size_t e = 0; e < layer->n; e++)
                patch[e] = value_at(&input, in, image, y + (long)(e / in->c / k),
                                    x + (long)(e / in->c % k), e % in->c);
            add_outer(layer->n, patch, 1 / (double)taken, sum);
        }
}

static void compare_unit(void *ctx, size_t i)
{
    static double sum[WIDEST * (WIDEST + 1) / 2];
    brute *b = ctx;
    const tk__unit *u = &b->graph->layout.unit[i];
    const tk__map *out = &b->graph->layout.map[u->out];
    const tk_covariance_layer *layer = b->got->layer;
    while (layer->param != u->conv)
        layer++;
    const size_t count = layer->n * (layer->n + 1) / 2;
    double error = 0, norm = 0;
    assert_true(layer->n <= WIDEST);
    memset(sum, 0, count * sizeof *sum);
    sum_patches(b, u, layer, sum);
    for (size_t e = 0; e < count; e++) {
        error += pow((double)layer->c[e] - sum[e], 2);
        norm += sum[e] * sum[e];
    }
    assert_true(norm > 0);
    if (sqrt(error / norm) > 1e-5)
        fail_msg("%s is %g off", b->params->table[u->conv].name, sqrt(error / norm));
    b->layers++;
    b->sampled += out->h * out->w > TAKEN;
}

static float *random_floats(size_t n, uint64_t stream)
{
    float *x = tk_aligned_calloc(n, sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < n; i++)
        x[i] = tk_rng_normal(SEED, stream, i);
    return x;
}

typedef struct subject {
    tk_params *params;
    tk_graph *graph;
    float *x;
} subject;

static subject make_subject(tk_arch arch, unsigned px, size_t n)
{
    subject s = {.x = random_floats(n * px * px * 3, 1)};
    assert_int_equal(tk_params_create(&s.params, arch), TK_OK);
    tk_params_init(s.params, SEED);
    for (size_t t = 0; t < s.params->tensors; t++) /* so that ReLU halves are not halves */
        for (size_t i = 0; i < s.params->table[t].oc; i++)
            if (s.params->table[t].kind == TK_PARAM_BN_BETA)
                s.params->data[s.params->table[t].offset + i] = 0.3f * tk_rng_normal(SEED, t, i);
    assert_int_equal(tk_graph_create(&s.graph, arch, px, n, pool, NULL), TK_OK);
    return s;
}

static void drop_subject(subject *s)
{
    tk_params_destroy(s->params);
    tk_graph_destroy(s->graph);
    tk_free(s->x);
}

/* Compares every layer, and says how many there were, and how many of them were sampled. */
static brute compare(tk_arch arch, unsigned px, size_t n, size_t limit)
{
    subject s = make_subject(arch, px, n);
    tk_covariance *got;
    const float *features;
    assert_int_equal(tk_covariance_create(&got, s.params, limit), TK_OK);
    assert_int_equal(tk_covariance_add(got, s.graph, s.params, n, s.x, SEED), TK_OK);
    assert_true(got->images == (double)n);
    brute b = {.graph = s.graph, .params = s.params, .got = got};
    s.graph->before_unit = compare_unit;
    s.graph->before_ctx = &b;
    tk_graph_forward(s.graph, s.params, n, s.x, TK_BN_FROZEN, &features);
    assert_int_equal(b.layers, got->layers);
    tk_covariance_destroy(got);
    drop_subject(&s);
    return b;
}

static void patches_of_resnet20(void)
{
    const brute b = compare(TK_RESNET20, 32, 2, (size_t)4 << 20);
    assert_int_equal(b.layers, 21);
    assert_in_range(b.sampled, 1, 20); /* the last stage's 8 x 8 pixels are all taken */
}

static void patches_of_small_trunks_are_summed(void **state)
{
    (void)state;
    each_isa(patches_of_resnet20);
}

/* 7x7 of stride 2, and above 4 MiB the pixels' channels. */
static void patches_of_the_imagenet_stem_are_summed(void **state)
{
    (void)state;
    const brute b = compare(TK_RESNET18, 64, 1, (size_t)4 << 20);
    assert_int_equal(b.layers, 20);
}

static void pixels_above_the_limit(void)
{
    compare(TK_RESNET20, 32, 2, 1);
}

static void above_the_limit_pixels_are_summed(void **state)
{
    (void)state;
    each_isa(pixels_above_the_limit);
}

static void the_limit_decides_each_layers_form(void **state)
{
    (void)state;
    tk_params *params;
    tk_covariance *c;
    assert_int_equal(tk_params_create(&params, TK_RESNET18), TK_OK);
    assert_int_equal(tk_covariance_create(&c, params, (size_t)4 << 20), TK_OK);
    size_t floats = 0;
    for (size_t l = 0; l < c->layers; l++) {
        const tk_covariance_layer *layer = &c->layer[l];
        const tk_param *p = &params->table[layer->param];
        const size_t patch = p->k * p->k * p->ic;
        assert_int_equal(layer->n * layer->taps, patch);
        assert_int_equal(layer->taps == 1, p->k == 1 || patch <= 1152);
        assert_ptr_equal(layer->c, c->data + floats);
        floats += layer->n * (layer->n + 1) / 2;
    }
    assert_int_equal(floats, c->floats);
    assert_true(c->floats * sizeof(float) < (size_t)16 << 20); /* the header's 15.5 MiB */
    tk_covariance_destroy(c);
    tk_params_destroy(params);
}

/* Of a layer whose pixels are all taken, the sum over two data sets is the sum of theirs. */
static void covariances_of_two_data_sets_add_up(void **state)
{
    (void)state;
    enum { N = 3, FLOATS = 32 * 32 * 3 };
    subject s = make_subject(TK_RESNET20, 32, N);
    tk_covariance *one, *two, *both;
    double error = 0, norm = 0;
    assert_int_equal(tk_covariance_create(&one, s.params, (size_t)4 << 20), TK_OK);
    assert_int_equal(tk_covariance_create(&two, s.params, (size_t)4 << 20), TK_OK);
    assert_int_equal(tk_covariance_add(one, s.graph, s.params, 1, s.x, SEED), TK_OK);
    assert_int_equal(tk_covariance_clone(&both, one), TK_OK);
    assert_int_equal(tk_covariance_add(two, s.graph, s.params, N - 1, s.x + FLOATS, SEED), TK_OK);
    assert_int_equal(tk_covariance_add(both, s.graph, s.params, N - 1, s.x + FLOATS, SEED), TK_OK);
    assert_true(both->images == N);
    const tk_covariance_layer *last = &both->layer[both->layers - 1];
    const size_t from = (size_t)(last->c - both->data);
    for (size_t i = from; i < both->floats; i++) {
        error += pow((double)both->data[i] - (double)one->data[i] - (double)two->data[i], 2);
        norm += pow((double)both->data[i], 2);
    }
    assert_true(norm > 0 && error < 1e-12 * norm);
    tk_covariance_destroy(one);
    tk_covariance_destroy(two);
    tk_covariance_destroy(both);
    drop_subject(&s);
}

/* ---- subspace ---- */

/* Inputs are sums of `span` random vectors of n numbers: their triangle, and the vectors. */
static float *spanned(size_t n, size_t span, float **vectors)
{
    float *triangle = tk_aligned_calloc(n * (n + 1) / 2, sizeof *triangle);
    *vectors = random_floats(span * n, 2);
    assert_non_null(triangle);
    for (size_t v = 0; v < span; v++)
        for (size_t i = 0; i < n; i++)
            for (size_t j = 0; j <= i; j++)
                triangle[i * (i + 1) / 2 + j] += (*vectors)[v * n + i] * (*vectors)[v * n + j];
    return triangle;
}

/* |x^T g| for x [n] and g [n][cols] */
static double answer(size_t n, size_t cols, const float *x, const float *g)
{
    double square = 0;
    for (size_t j = 0; j < cols; j++) {
        double sum = 0;
        for (size_t i = 0; i < n; i++)
            sum += (double)x[i] * (double)g[i * cols + j];
        square += sum * sum;
    }
    return sqrt(square);
}

/* What of y lies outside the vectors, by Gram-Schmidt in double, twice. */
static void leave_span(size_t n, size_t span, const float *vectors, float *y)
{
    static double basis[64][64], rest[64];
    for (size_t v = 0; v <= span; v++) {
        for (size_t i = 0; i < n; i++)
            rest[i] = (double)(v < span ? vectors[v * n + i] : y[i]);
        for (size_t k = 0; k < 2 * v; k++) {
            double dot = 0, *b = basis[k % v];
            for (size_t i = 0; i < n; i++)
                dot += b[i] * rest[i];
            for (size_t i = 0; i < n; i++)
                rest[i] -= dot * b[i];
        }
        double norm = 0;
        for (size_t i = 0; i < n; i++)
            norm += rest[i] * rest[i];
        for (size_t i = 0; i < n; i++)
            if (v < span)
                basis[v][i] = rest[i] / sqrt(norm);
            else
                y[i] = (float)rest[i];
    }
}

/* The answers to what spans the subspace stay; those to what is orthogonal to it learn in full. */
static void check_span(size_t n, size_t span, size_t cols)
{
    float *vectors, *triangle = spanned(n, span, &vectors);
    float *before = random_floats(n * cols, 3), *g = random_floats(n * cols, 3);
    float *y = random_floats(n, 4);
    tk_subspace s;
    assert_int_equal(tk_subspace_init(&s, n, triangle, 1 - 1e-5, NULL), TK_OK);
    assert_int_equal(s.rank, span);
    assert_int_equal(s.columns, span < n - span ? span : n - span);
    const tk_projected list[] = {{.off = &s, .g = g, .cols = cols}};
    float *scratch = tk_aligned_calloc(tk_subspace_scratch(1, list, pool), sizeof *scratch);
    tk_subspace_project(1, list, scratch, pool);
    for (size_t v = 0; v < span; v++)
        assert_true(answer(n, cols, vectors + v * n, g) <
                    1e-5 * answer(n, cols, vectors + v * n, before));
    leave_span(n, span, vectors, y);
    for (size_t i = 0; i < n * cols; i++)
        before[i] -= g[i];
    assert_true(answer(n, cols, y, g) > 0.1);
    assert_true(answer(n, cols, y, before) < 1e-4 * answer(n, cols, y, g));
    tk_subspace_fini(&s);
    tk_free(scratch);
    tk_free(triangle);
    tk_free(vectors);
    tk_free(before);
    tk_free(g);
    tk_free(y);
}

static void check_spans(void)
{
    check_span(48, 5, 32);
    check_span(48, 40, 80); /* its complement is the smaller one */
    check_span(27, 13, 16);
}

static void what_spans_the_subspace_is_kept_and_the_rest_learns(void **state)
{
    (void)state;
    each_isa(check_spans);
}

/* Eigenvalues 8, 4, 2, 1, 1, 0, 0, 0 of sum 16. */
static void the_rank_is_the_smallest_that_holds_the_share(void **state)
{
    (void)state;
    static const struct {
        double share;
        size_t rank;
    } cases[] = {{0, 0},    {0.4, 1},   {0.5, 1},  {0.51, 2}, {0.75, 2},
                 {0.76, 3}, {0.875, 3}, {0.88, 4}, {0.95, 5}, {1, 5}};
    static const float values[8] = {1, 0, 8, 0, 2, 4, 0, 1};
    float triangle[36] = {0};
    for (size_t i = 0; i < 8; i++)
        triangle[i * (i + 3) / 2] = values[i];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tk_subspace s;
        assert_int_equal(tk_subspace_init(&s, 8, triangle, cases[i].share, NULL), TK_OK);
        assert_int_equal(s.rank, cases[i].rank);
        tk_subspace_fini(&s);
    }
}

static void a_subspace_that_is_everything_leaves_nothing(void **state)
{
    (void)state;
    float *vectors, *triangle = spanned(16, 40, &vectors), *g = random_floats(16 * 16, 3);
    tk_subspace s;
    assert_int_equal(tk_subspace_init(&s, 16, triangle, 1, NULL), TK_OK);
    assert_int_equal(s.rank, 16);
    const tk_projected list[] = {{.off = &s, .g = g, .cols = 16}};
    float *scratch = tk_aligned_calloc(tk_subspace_scratch(1, list, pool), sizeof *scratch);
    tk_subspace_project(1, list, scratch, pool);
    for (size_t i = 0; i < 16 * 16; i++)
        assert_true(g[i] == 0);
    tk_subspace_fini(&s);
    tk_free(scratch);
    tk_free(triangle);
    tk_free(vectors);
    tk_free(g);
}

static void a_covariance_that_is_not_finite_is_refused(void **state)
{
    (void)state;
    const float bad[] = {NAN, INFINITY};
    for (size_t i = 0; i < 2; i++) {
        const float triangle[] = {1, bad[i], 2};
        tk_subspace s;
        assert_int_equal(tk_subspace_init(&s, 2, triangle, 0.9, NULL), TK_BADDATA);
        tk_subspace_fini(&s);
    }
}

/* ---- both ---- */

static tk_err make_all(const subject *s)
{
    tk_covariance *c = NULL, *copy = NULL;
    tk_subspace sub = {0};
    tk_err err = tk_covariance_create(&c, s->params, 1);
    if (err == TK_OK) err = tk_covariance_add(c, s->graph, s->params, 1, s->x, SEED);
    if (err == TK_OK) err = tk_covariance_clone(&copy, c);
    if (err == TK_OK) err = tk_subspace_init(&sub, copy->layer[1].n, copy->layer[1].c, 0.9, NULL);
    tk_covariance_destroy(c);
    tk_covariance_destroy(copy);
    tk_subspace_fini(&sub);
    return err;
}

static void running_out_of_memory_anywhere_leaves_nothing(void **state)
{
    (void)state;
    subject s = make_subject(TK_RESNET20, 32, 1);
    const long live = tk_test_alloc_live();
    for (long n = 0;; n++) {
        tk_test_alloc_fail_after(n);
        const tk_err err = make_all(&s);
        tk_test_alloc_fail_after(-1);
        assert_int_equal(tk_test_alloc_live(), live);
        if (err == TK_OK) break;
        assert_int_equal(err, TK_NOMEM);
        assert_true(n < 1000);
    }
    drop_subject(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(patches_of_small_trunks_are_summed),
        cmocka_unit_test(patches_of_the_imagenet_stem_are_summed),
        cmocka_unit_test(above_the_limit_pixels_are_summed),
        cmocka_unit_test(the_limit_decides_each_layers_form),
        cmocka_unit_test(covariances_of_two_data_sets_add_up),
        cmocka_unit_test(what_spans_the_subspace_is_kept_and_the_rest_learns),
        cmocka_unit_test(the_rank_is_the_smallest_that_holds_the_share),
        cmocka_unit_test(a_subspace_that_is_everything_leaves_nothing),
        cmocka_unit_test(a_covariance_that_is_not_finite_is_refused),
        cmocka_unit_test(running_out_of_memory_anywhere_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, make_pool, drop_pool);
}
