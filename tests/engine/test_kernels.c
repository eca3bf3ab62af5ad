/* Every table of kernels against the definition, at sizes around each vector width. The matrix
 * product is compared with a sum in double; the elementwise kernels must give the scalar table's
 * bits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "each_isa.h"
#include "kernels/kernels.h"
#include "numbers.h"

enum { GUARD = 3 }; /* columns of c beyond n that must stay as they are */

typedef struct product {
    size_t m, n, k;
    bool transposed, accumulate, relu, bias, residual;
} product;

static double expected(const tk__gemm *g, const float *c0, size_t i, size_t j)
{
    double v = 0;
    for (size_t p = 0; p < g->k; p++)
        v += (double)g->a[i * g->rs + p * g->cs] * (double)g->b[p * g->ldb + j];
    if (g->accumulate) v += (double)c0[i * g->ldc + j];
    if (g->bias != NULL) v += (double)g->bias[j];
    if (g->residual != NULL) v += (double)g->residual[i * g->ldc + j];
    return g->relu && v < 0 ? 0 : v;
}

static void check_product(const product *q)
{
    const tk__kernels *kn = tk__kernels_get();
    const size_t width = q->n == 0 ? TK__LANES : tk__panel_width(kn, q->n), ldc = q->n + GUARD;
    const size_t rs = q->transposed ? 1 : q->k + 5, cs = q->transposed ? q->m + 3 : 1;
    float *a = normals(q->m * rs + q->k * cs + 1, 1), *b = normals(q->k * width, 2);
    float *c = normals(q->m * ldc, 3), *c0 = normals(q->m * ldc, 3);
    float *bias = normals(q->n, 4), *residual = normals(q->m * ldc, 5);
    const tk__gemm g = {.m = q->m,
                        .n = q->n,
                        .k = q->k,
                        .a = a,
                        .rs = rs,
                        .cs = cs,
                        .b = b,
                        .ldb = width,
                        .c = c,
                        .ldc = ldc,
                        .accumulate = q->accumulate,
                        .bias = q->bias ? bias : NULL,
                        .residual = q->residual ? residual : NULL,
                        .relu = q->relu};
    kn->gemm(&g);
    const double tolerance = 1e-6 * (8 + (double)q->k);
    for (size_t i = 0; i < q->m; i++)
        for (size_t j = 0; j < ldc; j++) {
            const double want = j < q->n ? expected(&g, c0, i, j) : (double)c0[i * ldc + j];
            if (fabs((double)c[i * ldc + j] - want) > (j < q->n ? tolerance : 0.0))
                fail_msg("%s m %zu n %zu k %zu: c[%zu][%zu] is %g, not %g", kn->name, q->m, q->n,
                         q->k, i, j, (double)c[i * ldc + j], want);
        }
    tk_free(a), tk_free(b), tk_free(c), tk_free(c0), tk_free(bias), tk_free(residual);
}

static void check_products(void)
{
    static const size_t ms[] = {0, 1, 2, 5, 6, 7, 13, 14, 15, 28, 31}, ks[] = {0, 1, 2, 17, 64};
    const size_t nr = tk__kernels_get()->nr;
    const size_t ns[] = {0, 1, 7, 8, 9, 15, 16, nr - 1, nr};
    unsigned flags = 0;
    for (size_t i = 0; i < sizeof ms / sizeof *ms; i++)
        for (size_t j = 0; j < sizeof ns / sizeof *ns; j++)
            for (size_t p = 0; p < sizeof ks / sizeof *ks; p++, flags += 7)
                check_product(&(product){ms[i], ns[j], ks[p], flags & 1, flags & 2, flags & 4,
                                         flags & 8, flags & 16});
    for (size_t m = 1; m <= 30; m++) /* every height of a tile, both layouts */
        for (unsigned f = 0; f < 32; f++)
            check_product(&(product){m, nr, 3, f & 1, f & 2, f & 4, f & 8, f & 16});
}

static void matrix_product_equals_the_sum(void **state)
{
    (void)state;
    each_isa(check_products);
}

/* A row's result must have the same bits whatever tile it falls into. */
static void check_tiles(void)
{
    const tk__kernels *kn = tk__kernels_get();
    enum { M = 29, K = 70 };
    const size_t n = kn->nr;
    float *a = normals(M * K, 1), *b = normals(K * n, 2), *all = zeros(M * n), *one = zeros(n);
    tk__gemm g = {
        .m = M, .n = n, .k = K, .a = a, .rs = K, .cs = 1, .b = b, .ldb = n, .c = all, .ldc = n};
    kn->gemm(&g);
    for (size_t i = 0; i < M; i++) {
        tk__gemm row = g;
        row.m = 1;
        row.a = a + i * K;
        row.c = one;
        kn->gemm(&row);
        assert_memory_equal(one, all + i * n, n * sizeof *one);
    }
    tk_free(a), tk_free(b), tk_free(all), tk_free(one);
}

static void a_row_does_not_depend_on_its_neighbours(void **state)
{
    (void)state;
    each_isa(check_tiles);
}

static void check_nan(void)
{
    const tk__kernels *kn = tk__kernels_get();
    float *b = normals(2 * kn->nr, 2), *c = zeros(kn->nr);
    const float a[2] = {1.0f, NAN};
    kn->gemm(&(tk__gemm){.m = 1,
                         .n = kn->nr,
                         .k = 2,
                         .a = a,
                         .rs = 2,
                         .cs = 1,
                         .b = b,
                         .ldb = kn->nr,
                         .c = c,
                         .ldc = kn->nr,
                         .relu = true});
    for (size_t j = 0; j < kn->nr; j++)
        assert_true(isnan(c[j]));
    tk_free(b), tk_free(c);
}

static void nan_passes_the_relu_of_the_epilogue(void **state)
{
    (void)state;
    each_isa(check_nan);
}

/* --- elementwise: bits of the scalar table --- */

static const size_t widths[] = {1, 3, 8, 15, 16, 17, 33, 64};
static const size_t norm_widths[] = {16, 32, 48, 64, 80, 112};
enum { ROWS = 5, OUTPUTS = 5 };

/* Runs every channel kernel on rows x c and leaves what they wrote in out[0..5]. */
static void run_channels(const tk__kernels *kn, size_t rows, size_t c, float *out[OUTPUTS])
{
    const size_t n = rows * c;
    float *u = normals(n, 1), *dy = normals(n, 2), *act = normals(n, 3), *res = normals(n, 4);
    float *p = normals(3 * c, 5);
    const float *p1 = p + c, *p2 = p + 2 * c;
    for (size_t i = 0; i < OUTPUTS; i++)
        out[i] = zeros(12 * n + 12 * c);
    kn->bn_apply(rows, c, u, p, p1, NULL, false, out[0]);
    kn->bn_apply(rows, c, u, p, p1, NULL, true, out[0] + n);
    kn->bn_apply(rows, c, u, p, p1, res, false, out[0] + 2 * n);
    kn->bn_apply(rows, c, u, p, p1, res, true, out[0] + 3 * n);
    if (rows > 0) kn->moments(rows, c, u, out[1], out[1] + c);
    for (size_t i = 0; i < 6; i++) { /* with each mask, with and without its copy */
        const tk__mask mask = i % 3 == 0   ? (tk__mask){0}
                              : i % 3 == 1 ? (tk__mask){.act = act}
                                           : (tk__mask){.scale = p, .shift = p1};
        float *g = i / 3 ? out[2] + i * n : NULL, *sums = out[2] + 6 * n + 2 * i * c;
        kn->bn_reduce(rows, c, dy, &mask, u, p, g, sums, sums + c);
        g = i / 3 ? out[3] + 6 * n + i * n : NULL;
        sums = out[3] + 12 * n + 2 * i * c;
        kn->bn_frozen(rows, c, dy, &mask, u, p, p1, g, out[3] + i * n, sums, sums + c);
        kn->bn_dx(rows, c, dy, &mask, u, p, p1, p2, out[4] + i * n);
    }
    tk_free(u), tk_free(dy), tk_free(act), tk_free(res), tk_free(p);
}

static void check_channels(void)
{
    for (size_t w = 0; w < sizeof norm_widths / sizeof *norm_widths; w++)
        for (size_t rows = 0; rows <= ROWS; rows++) {
            const size_t c = norm_widths[w], size = 12 * rows * c + 12 * c;
            float *want[OUTPUTS], *got[OUTPUTS];
            run_channels(&tk__kernels_scalar, rows, c, want);
            run_channels(tk__kernels_get(), rows, c, got);
            for (size_t i = 0; i < OUTPUTS; i++) {
                assert_memory_equal(got[i], want[i], size * sizeof(float));
                tk_free(got[i]), tk_free(want[i]);
            }
        }
}

static void channel_kernels_give_the_scalar_bits(void **state)
{
    (void)state;
    each_isa(check_channels);
}

static void check_avg_pools(void)
{
    const tk__kernels *kn = tk__kernels_get(), *oracle = &tk__kernels_scalar;
    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++)
        for (size_t rows = 1; rows <= ROWS; rows++) {
            const size_t c = widths[w], n = rows * c;
            float *x = normals(n, 1), *got = zeros(n + c), *want = zeros(n + c);
            oracle->avg_pool(rows, c, x, want);
            oracle->avg_pool_dx(rows, c, x, want + c);
            kn->avg_pool(rows, c, x, got);
            kn->avg_pool_dx(rows, c, x, got + c);
            assert_memory_equal(got, want, (n + c) * sizeof *want);
            tk_free(x), tk_free(got), tk_free(want);
        }
}

static void average_pool_gives_the_scalar_bits(void **state)
{
    (void)state;
    each_isa(check_avg_pools);
}

static void check_transpose(void)
{
    enum { LD = 19, TO_LD = 33 };
    float *from = normals(16 * LD, 1), *to = zeros(16 * TO_LD);
    tk__kernels_get()->transpose(from, LD, to, TO_LD);
    for (size_t i = 0; i < 16; i++)
        for (size_t j = 0; j < TO_LD; j++)
            assert_true(to[i * TO_LD + j] == (j < 16 ? from[j * LD + i] : 0.0f));
    tk_free(from), tk_free(to);
}

static void transposition_swaps_rows_and_columns(void **state)
{
    (void)state;
    each_isa(check_transpose);
}

/* Reading u with scale and shift must be as reading the map that bn_apply makes of it. */
static void check_inputs(void)
{
    enum {
        N = 2,
        SIDE = 7,
        C = 48,
        NX = N * SIDE * SIDE * C,
        KC = 9 * C,
        PIXELS = N * SIDE * SIDE
    };
    const tk__kernels *kn = tk__kernels_get();
    const tk__conv geo = {N, SIDE, SIDE, C, SIDE, SIDE, 16, 3, 3, 1, 1, 1, 0, 0};
    const tk__pool_shape pool = {SIDE, SIDE, 4, 4, C};
    float *u = normals(NX, 1), *p = normals(2 * C, 2), *act = zeros(NX);
    float *got = zeros(PIXELS * KC), *want = zeros(PIXELS * KC);
    kn->bn_apply(PIXELS, C, u, p, p + C, NULL, true, act);
    const tk__input fused = {u, p, p + C}, plain = {.x = act};
    for (size_t k0 = 0; k0 <= 40; k0 += 40) { /* whole patches, and a part of each */
        kn->im2col(&geo, &plain, 0, PIXELS, k0, KC - 2 * k0, want, KC);
        kn->im2col(&geo, &fused, 0, PIXELS, k0, KC - 2 * k0, got, KC);
        assert_memory_equal(got, want, PIXELS * KC * sizeof *got);
    }
    for (size_t m = 2; m <= 4; m += 2) {
        const size_t side = (SIDE + m - 1) / m, tiles = N * side * side, point = tiles * C;
        const tk__wino w = {geo, m, side, side, 0, tiles};
        kn->wino_input(&w, &plain, want, C, point);
        kn->wino_input(&w, &fused, got, C, point);
        assert_memory_equal(got, want, (m + 2) * (m + 2) * point * sizeof *got);
    }
    kn->max_pool(&pool, 0, 4, &plain, want, NULL);
    kn->max_pool(&pool, 0, 4, &fused, got, NULL);
    assert_memory_equal(got, want, 16 * C * sizeof *got);
    tk_free(u), tk_free(p), tk_free(act), tk_free(got), tk_free(want);
}

static void normalising_inputs_gives_the_bits_of_a_normalised_map(void **state)
{
    (void)state;
    each_isa(check_inputs);
}

static void run_pool(const tk__kernels *kn, const tk__pool_shape *s, float *y, uint8_t *arg,
                     float *dx)
{
    float *x = normals(s->ih * s->iw * s->c, 7), *dy = normals(s->oh * s->ow * s->c, 8);
    const size_t half = s->oh / 2;
    kn->max_pool(s, 0, half, &(tk__input){.x = x}, y, arg);
    kn->max_pool(s, half, s->oh, &(tk__input){.x = x}, y, arg);
    kn->max_pool_dx(s, dy, arg, dx);
    float *again = zeros(s->oh * s->ow * s->c);
    kn->max_pool(s, 0, s->oh, &(tk__input){.x = x}, again, NULL);
    assert_memory_equal(again, y, s->oh * s->ow * s->c * sizeof *y);
    tk_free(x), tk_free(dy), tk_free(again);
}

static void check_pools(void)
{
    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++)
        for (size_t side = 1; side <= 6; side++) {
            const tk__pool_shape s = {side, side + 1, (side + 1) / 2, (side + 2) / 2, widths[w]};
            const size_t in = s.ih * s.iw * s.c, out = s.oh * s.ow * s.c;
            float *y = zeros(out), *want_y = zeros(out), *dx = zeros(in), *want_dx = zeros(in);
            uint8_t *arg = tk_calloc(out, sizeof *arg), *want_arg = tk_calloc(out, sizeof *arg);
            run_pool(&tk__kernels_scalar, &s, want_y, want_arg, want_dx);
            run_pool(tk__kernels_get(), &s, y, arg, dx);
            assert_memory_equal(y, want_y, out * sizeof *y);
            assert_memory_equal(arg, want_arg, out * sizeof *arg);
            assert_memory_equal(dx, want_dx, in * sizeof *dx);
            tk_free(y), tk_free(want_y), tk_free(dx), tk_free(want_dx), tk_free(arg);
            tk_free(want_arg);
        }
}

static void pooling_gives_the_scalar_bits(void **state)
{
    (void)state;
    each_isa(check_pools);
}

static void max_pool_takes_the_first_of_equals_and_nan(void **state)
{
    (void)state;
    const tk__pool_shape s = {2, 2, 1, 1, 2}; /* taps 4, 5, 7, 8 lie inside */
    const float x[] = {1, 1, 3, NAN, 3, 9, 2, 9};
    float y[2];
    uint8_t arg[2];
    tk__kernels_scalar.max_pool(&s, 0, 1, &(tk__input){.x = x}, y, arg);
    assert_true(near(y[0], 3, 0));
    assert_int_equal(arg[0], 5);
    assert_true(isnan(y[1]));
    assert_int_equal(arg[1], 5);
}

/* --- vectors --- */

static void run_vectors(const tk__kernels *kn, size_t n, float *out, double *sum)
{
    float *x = normals(n, 1), *y = normals(n, 2), *v = normals(n, 3), *w = normals(n, 4);
    kn->add(n, y, x);
    kn->add_squares(n, y, x);
    kn->scale(n, y, 1.7f);
    *sum = kn->sum_squares(n, x);
    kn->sgd(n, w, x, v, 0.1f, 0.9f, 0.01f, true);
    kn->sgd(n, w, x, v, 0.1f, 0.9f, 0.01f, false);
    for (size_t i = 0; i < n; i++) {
        out[i] = y[i];
        out[n + i] = v[i];
        out[2 * n + i] = w[i];
    }
    tk_free(x), tk_free(y), tk_free(v), tk_free(w);
}

static void check_vectors(void)
{
    static const size_t sizes[] = {0, 1, 7, 8, 15, 16, 17, 31, 32, 33, 100};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        const size_t n = sizes[s];
        float *want = zeros(3 * n), *got = zeros(3 * n);
        double want_sum, got_sum;
        run_vectors(&tk__kernels_scalar, n, want, &want_sum);
        run_vectors(tk__kernels_get(), n, got, &got_sum);
        assert_memory_equal(got, want, 3 * n * sizeof *got);
        assert_memory_equal(&got_sum, &want_sum, sizeof got_sum);
        tk_free(want), tk_free(got);
    }
}

static void vector_kernels_give_the_scalar_bits(void **state)
{
    (void)state;
    each_isa(check_vectors);
}

static void unknown_instruction_sets_are_refused_by_name(void **state)
{
    (void)state;
    tk_diag diag;
    assert_int_equal(tk_isa_select("mmx", &diag), TK_BADARG);
    assert_non_null(strstr(diag.text, "mmx"));
    assert_int_equal(tk_isa_select("scalar", &diag), TK_OK);
    assert_string_equal(tk_isa_name(), "scalar");
    assert_int_equal(tk_isa_select("auto", &diag), TK_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(matrix_product_equals_the_sum),
        cmocka_unit_test(a_row_does_not_depend_on_its_neighbours),
        cmocka_unit_test(nan_passes_the_relu_of_the_epilogue),
        cmocka_unit_test(channel_kernels_give_the_scalar_bits),
        cmocka_unit_test(average_pool_gives_the_scalar_bits),
        cmocka_unit_test(transposition_swaps_rows_and_columns),
        cmocka_unit_test(normalising_inputs_gives_the_bits_of_a_normalised_map),
        cmocka_unit_test(pooling_gives_the_scalar_bits),
        cmocka_unit_test(max_pool_takes_the_first_of_equals_and_nan),
        cmocka_unit_test(vector_kernels_give_the_scalar_bits),
        cmocka_unit_test(unknown_instruction_sets_are_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
