/* Each layer's forward against its definition and its backward against central differences, for
 * every instruction set. Inputs stay away from the kinks of ReLU and max pooling. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "each_isa.h"
#include "engine/linear.h"
#include "geometry.h"
#include "net/norm.h"
#include "net/positions.h"
#include "numbers.h"
#include "with_pool.h"

static tk__exec make_exec(const tk__conv *geo)
{
    tk__exec ex = {.kn = tk__kernels_get(), .pool = pool, .scratch_each = tk__conv_scratch(geo)};
    ex.scratch = zeros(ex.scratch_each * tk_pool_threads(pool));
    return ex;
}

/* --- convolution --- */

/* The definition: visits every (output pixel, tap) inside the image and either sums y, or spreads
 * dy to dx and dw. Sums are in double. */
static void naive(const tk__conv *g, const float *x, const float *w, const float *dy, double *y,
                  double *dx, double *dw)
{
    for (size_t m = 0; m < g->n * g->oh * g->ow; m++)
        for (size_t t = 0; t < g->ky * g->kx; t++) {
            const size_t iy = m / g->ow % g->oh * g->stride + t / g->kx - (size_t)g->pad_y;
            const size_t ix = m % g->ow * g->stride + t % g->kx - (size_t)g->pad_x;
            if (iy >= g->ih || ix >= g->iw) continue; /* negative ones have wrapped */
            const size_t at = ((m / (g->oh * g->ow) * g->ih + iy) * g->iw + ix) * g->ic;
            for (size_t i = 0; i < g->ic; i++)
                for (size_t o = 0; o < g->oc; o++) {
                    const size_t wi = (t * g->ic + i) * g->oc + o;
                    y[m * g->oc + o] += (double)x[at + i] * (double)w[wi];
                    dx[at + i] += (double)dy[m * g->oc + o] * (double)w[wi];
                    dw[wi] += (double)dy[m * g->oc + o] * (double)x[at + i];
                }
        }
}

static void assert_close(size_t n, const float *got, const double *want, double tolerance,
                         const char *what)
{
    double most = 0, scale = 1e-30;
    for (size_t i = 0; i < n; i++) {
        const double d = fabs((double)got[i] - want[i]);
        if (!(d <= most)) most = d;
        if (fabs(want[i]) > scale) scale = fabs(want[i]);
    }
    if (!(most <= tolerance * scale)) fail_msg("%s: off by %g of %g", what, most, scale);
}

static void check_conv(const tk__conv *g)
{
    const size_t nx = g->n * g->ih * g->iw * g->ic, ny = g->n * g->oh * g->ow * g->oc;
    const size_t k = g->ky * g->kx, nw = k * g->ic * g->oc;
    float *x = normals(nx, 1), *w = normals(nw, 2), *dy = normals(ny, 3);
    float *y = zeros(ny), *dx = normals(nx, 4), *dw = zeros(nw);
    double *want_y = tk_calloc(ny, sizeof *want_y), *want_dx = tk_calloc(nx, sizeof *want_dx);
    double *want_dw = tk_calloc(nw, sizeof *want_dw);
    tk__exec ex = make_exec(g);
    const double tolerance = g->way == TK__WINOGRAD_4 ? 1e-4 : 1e-5;
    float *packed = zeros(tk__conv_pack_size(g) + tk__conv_dx_pack_size(g));
    float *partials = zeros(tk__conv_partials(&ex, g));
    naive(g, x, w, dy, want_y, want_dx, want_dw);

    tk__conv_pack(&ex, g, w, NULL, packed);
    tk__conv_run(&ex, &(tk__conv_job){.geo = *g, .in = {.x = x}, .packed = packed, .y = y});
    assert_close(ny, y, want_y, tolerance, "forward");
    tk__conv_dx(&ex, g, w, dy, dx, false, packed);
    assert_close(nx, dx, want_dx, tolerance, "data gradient");
    tk__conv_dx(&ex, g, w, dy, dx, true, packed);
    for (size_t i = 0; i < nx; i++)
        want_dx[i] *= 2;
    assert_close(nx, dx, want_dx, tolerance, "data gradient, added");
    tk__conv_dw(&ex, g, &(tk__input){.x = x}, dy, dw, partials);
    assert_close(nw, dw, want_dw, tolerance, "weight gradient");
    if (g->way == TK__BY_POSITION) { /* which tk__conv_dw() does not use for every geometry */
        memset(dw, 1, nw * sizeof *dw);
        tk__positions_dw(&ex, g, &(tk__input){.x = x}, dy, dw);
        assert_close(nw, dw, want_dw, tolerance, "weight gradient by position");
    }
    tk_free(x), tk_free(w), tk_free(dy), tk_free(y), tk_free(dx), tk_free(dw), tk_free(want_y);
    tk_free(want_dx), tk_free(want_dw), tk_free(ex.scratch), tk_free(packed), tk_free(partials);
}

static void check_conv_size(size_t n, size_t h, size_t w, size_t ic, size_t oc, size_t k,
                            size_t stride)
{
    tk__conv geo = make_geo(n, h, w, ic, oc, k, stride);
    check_conv(&geo);
    geo.way = TK__BY_POSITION;
    check_conv(&geo);
    if (k != 3 || stride != 1 || ic % TK__LANES != 0 || oc % TK__LANES != 0) return;
    geo.way = TK__WINOGRAD_2;
    check_conv(&geo);
    geo.way = TK__WINOGRAD_4;
    check_conv(&geo);
}

static void check_convs(void)
{
    static const struct {
        size_t k, stride;
    } kinds[] = {{1, 1}, {1, 2}, {3, 1}, {3, 2}, {7, 2}};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        const size_t k = kinds[i].k, s = kinds[i].stride;
        check_conv_size(2, 7, 7, 3, 16, k, s);
        check_conv_size(3, 6, 9, 16, 48, k, s);
        check_conv_size(1, 2, 1, 33, 17, k, s);
        check_conv_size(2, 13, 11, 5, 1, k, s);
    }
    check_conv_size(5, 18, 18, 16, 16, 3, 1); /* several blocks and chunks */
    check_conv_size(1, 4, 4, 160, 32, 3, 1);  /* several blocks of K */
    check_conv_size(2, 1, 1, 16, 16, 3, 1);
    check_conv_size(3, 7, 15, 80, 48, 3, 1); /* cut tiles, shared weight gradient, odd panels */
    for (size_t px = 1; px <= 4; px++)
        for (size_t s = 1; s <= 2; s++) {
            check_conv_size(5, px, px, 32, 16, 3, s);
            check_conv_size(7, px, px, 20, 35, 3, s);
        }
    check_conv_size(69, 2, 2, 512, 3, 3, 1); /* several blocks of images */
    check_conv_size(11, 8, 8, 128, 2, 3, 2); /* and of the weight gradient */
}

static void convolution_and_its_gradients_equal_the_definition(void **state)
{
    (void)state;
    each_isa(check_convs);
}

/* --- what else a convolution may be asked for --- */

static void mark_rows(void *ctx, size_t block, size_t m0, size_t m1)
{
    size_t *seen = ctx;
    for (size_t m = m0; m < m1; m++)
        seen[m] += 1 + block;
}

/* y = relu(conv(relu(x * scale + shift)) + bias + residual), and each row given to `post` once. */
static void check_job(tk__conv_way way, size_t n, size_t px, size_t stride)
{
    tk__conv g = make_geo(n, px, px, 32, 48, 3, stride);
    g.way = way;
    const size_t nx = g.n * g.ih * g.iw * g.ic, rows = g.n * g.oh * g.ow, ny = rows * g.oc;
    const size_t nw = 9 * g.ic * g.oc, block = tk__conv_block_rows(&g);
    float *x = normals(nx, 1), *act = zeros(nx), *w = normals(nw, 2), *residual = normals(ny, 3);
    float *scale = normals(g.ic, 4), *shift = normals(g.ic, 5), *bias = normals(g.oc, 6);
    float *y = zeros(ny), *once = zeros(ny), *packed = zeros(tk__conv_pack_size(&g));
    double *want = tk_calloc(ny, sizeof *want), *dx = tk_calloc(nx, sizeof *dx);
    double *dw = tk_calloc(nw, sizeof *dw);
    size_t *seen = tk_calloc(rows, sizeof *seen);
    tk__exec ex = make_exec(&g);
    for (size_t i = 0; i < nx; i++)
        act[i] = fmaxf(0.0f, x[i] * scale[i % g.ic] + shift[i % g.ic]);
    naive(&g, act, w, y, want, dx, dw);
    for (size_t i = 0; i < ny; i++)
        want[i] = fmax(0, want[i] + (double)bias[i % g.oc] + (double)residual[i]);
    tk__conv_job job = {.geo = g,
                        .in = {x, scale, shift},
                        .packed = packed,
                        .y = y,
                        .relu = true,
                        .bias = bias,
                        .residual = residual,
                        .post = mark_rows,
                        .post_ctx = seen};
    tk__conv_pack(&ex, &g, w, NULL, packed);
    tk__conv_run(&ex, &job);
    assert_close(ny, y, want, way == TK__WINOGRAD_4 ? 1e-4 : 1e-5, "all of a job");
    for (size_t m = 0; m < rows; m++)
        assert_int_equal(seen[m], 1 + m / block);
    job.y = once;
    tk__conv_run_once(&ex, &job, w, packed);
    assert_memory_equal(once, y, ny * sizeof *y);
    tk_free(x), tk_free(act), tk_free(w), tk_free(residual), tk_free(scale), tk_free(shift);
    tk_free(bias), tk_free(y), tk_free(once), tk_free(packed), tk_free(want), tk_free(dx);
    tk_free(dw), tk_free(seen), tk_free(ex.scratch);
}

static void check_jobs(void)
{
    static const struct {
        size_t n, px;
    } sizes[] = {{1, 2}, {18, 2}, {35, 2}, {1, 9}, {3, 9}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const size_t n = sizes[i].n, px = sizes[i].px;
        check_job(TK__DIRECT, n, px, 1);
        check_job(TK__DIRECT, n, px, 2);
        check_job(TK__BY_POSITION, n, px, 1);
        check_job(TK__BY_POSITION, n, px, 2);
        check_job(TK__WINOGRAD_2, n, px, 1);
        check_job(TK__WINOGRAD_4, n, px, 1);
    }
}

static void every_way_activates_its_input_and_finishes_its_output(void **state)
{
    (void)state;
    each_isa(check_jobs);
}

/* An image's output does not depend on the batch around it, nor on the number of threads. */
static void check_batches(void)
{
    tk__conv g = make_geo(69, 4, 4, 160, 48, 3, 2);
    g.way = TK__BY_POSITION;
    const size_t nx = g.ih * g.iw * g.ic, ny = g.oh * g.ow * g.oc, nw = 9 * g.ic * g.oc;
    float *x = normals(g.n * nx, 1), *w = normals(nw, 2), *y = zeros(g.n * ny), *one = zeros(ny);
    float *packed = zeros(tk__conv_pack_size(&g)), *dw = zeros(nw), *dw_alone = zeros(nw);
    tk__exec ex = make_exec(&g), alone = ex;
    assert_int_equal(tk_pool_create(&alone.pool, 1), TK_OK);
    tk__conv_pack(&ex, &g, w, NULL, packed);
    tk__conv_job job = {.geo = g, .in = {.x = x}, .packed = packed, .y = y};
    tk__conv_run(&ex, &job);
    tk__positions_dw(&ex, &g, &job.in, y, dw);
    tk__positions_dw(&alone, &g, &job.in, y, dw_alone);
    assert_memory_equal(dw_alone, dw, nw * sizeof *dw);
    job.geo.n = 1;
    job.y = one;
    for (size_t i = 0; i < g.n; i += 17) {
        job.in.x = x + i * nx;
        tk__conv_run(i % 2 ? &ex : &alone, &job);
        assert_memory_equal(one, y + i * ny, ny * sizeof *y);
    }
    tk_pool_destroy(alone.pool);
    tk_free(x), tk_free(w), tk_free(y), tk_free(one), tk_free(packed), tk_free(dw);
    tk_free(dw_alone), tk_free(ex.scratch);
}

static void sums_by_position_do_not_depend_on_batch_or_threads(void **state)
{
    (void)state;
    each_isa(check_batches);
}

/* The convolution is linear, so a central difference with any step is exact but for rounding. */
static void check_conv_differences(void)
{
    const tk__conv g = make_geo(2, 5, 6, 4, 16, 3, 2);
    const size_t nx = g.n * g.ih * g.iw * g.ic, ny = g.n * g.oh * g.ow * g.oc, nw = 9 * g.ic * g.oc;
    float *x = normals(nx, 1), *w = normals(nw, 2), *r = normals(ny, 3);
    float *y = zeros(2 * ny), *dx = zeros(nx), *dw = zeros(nw);
    tk__exec ex = make_exec(&g);
    float *packed = zeros(2 * nw + 9 * 16 * 16), *partials = zeros(tk__conv_partials(&ex, &g));
    tk__conv_dx(&ex, &g, w, r, dx, false, packed);
    tk__conv_dw(&ex, &g, &(tk__input){.x = x}, r, dw, partials);
    for (size_t i = 0; i < 2 * 40; i++) {
        float *at = i % 2 ? x + i * 37 % nx : w + i * 37 % nw;
        const float saved = *at, grad = i % 2 ? dx[i * 37 % nx] : dw[i * 37 % nw];
        for (size_t side = 0; side < 2; side++) {
            *at = saved + (side == 0 ? 0.5f : -0.5f);
            tk__conv_pack(&ex, &g, w, NULL, packed);
            tk__conv_run(&ex, &(tk__conv_job){
                                  .geo = g, .in = {.x = x}, .packed = packed, .y = y + side * ny});
        }
        *at = saved;
        assert_true(fabs(dot(ny, y, r) - dot(ny, y + ny, r) - (double)grad) < 1e-4);
    }
    tk_free(x), tk_free(w), tk_free(r), tk_free(y), tk_free(dx), tk_free(dw);
    tk_free(ex.scratch), tk_free(packed), tk_free(partials);
}

static void convolution_gradients_equal_central_differences(void **state)
{
    (void)state;
    each_isa(check_conv_differences);
}

/* --- batch norm --- */

typedef struct norm_layer {
    size_t rows, c;
    bool batch, relu, residual;
    float *u, *res, *gamma, *beta, *y;
    float mean[48], invstd[48];
} norm_layer;

static void norm_forward(norm_layer *l)
{
    const tk__exec ex = {.kn = tk__kernels_get(), .pool = pool};
    float pairs[2 * 2 * 48], scale[48], shift[48], running[2 * 48] = {0};
    const size_t half = (l->rows + 1) / 2;
    if (l->batch) {
        ex.kn->moments(half, l->c, l->u, pairs, pairs + l->c);
        ex.kn->moments(l->rows - half, l->c, l->u + half * l->c, pairs + 2 * l->c,
                       pairs + 3 * l->c);
        tk__bn_merge(2, half, l->rows, l->c, pairs, l->mean, l->invstd, running, running + l->c);
    }
    tk__bn_coefficients(l->c, l->gamma, l->beta, l->mean, l->invstd, scale, shift);
    tk__bn_apply(&ex, l->rows, l->c, l->u, scale, shift, l->residual ? l->res : NULL, l->relu,
                 l->y);
}

/* The derivative of dot(y, r) by *at, with a step that float rounding leaves four digits of. */
static double norm_difference(norm_layer *l, float *at, const float *r)
{
    const float saved = *at, step = 0.03125f;
    double side[2];
    for (int i = 0; i < 2; i++) {
        *at = saved + (i == 0 ? step : -step);
        norm_forward(l);
        side[i] = dot(l->rows * l->c, l->y, r);
    }
    *at = saved;
    return (side[0] - side[1]) / (2 * (double)step);
}

static norm_layer make_norm(unsigned flags)
{
    norm_layer l = {
        .rows = 23, .c = 48, .batch = flags & 1, .relu = flags & 2, .residual = flags & 4};
    const size_t n = l.rows * l.c;
    l.u = normals(n, 1), l.res = normals(n, 2), l.gamma = normals(l.c, 3);
    l.beta = normals(l.c, 4), l.y = zeros(n);
    for (size_t j = 0; j < l.c; j++) {
        l.gamma[j] = 0.3f + 0.05f * (float)(j % 19);
        l.mean[j] = 0.1f * (float)(j % 19) - 1;
        l.invstd[j] = 0.5f + 0.03f * (float)(j % 19);
    }
    /* off the kink: the residual decides the sign; without one, beta does */
    for (size_t i = 0; l.residual && i < n; i++)
        l.res[i] = i * 7 % 3 == 0 ? -12.0f : 12.0f;
    for (size_t j = 0; !l.residual && l.relu && j < l.c; j++)
        l.beta[j] = j % 3 == 0 ? -12.0f : 12.0f;
    return l;
}

static void check_norm(unsigned flags)
{
    norm_layer l = make_norm(flags);
    const size_t n = l.rows * l.c;
    float *r = normals(n, 5), *g = zeros(n), *du = zeros(n), dgamma[48], dbeta[48], coef[3 * 48];
    float *sums = zeros(tk__bn_sums(l.rows, l.c, l.rows)), *y = zeros(n);
    norm_forward(&l);
    memcpy(y, l.y, n * sizeof *y);
    const tk__exec ex = {.kn = tk__kernels_get(), .pool = pool};
    tk__bn_backward_run(&ex, &(tk__bn_backward){.rows = l.rows,
                                                .c = l.c,
                                                .dy = r,
                                                .mask = {.act = l.relu ? y : NULL},
                                                .u = l.u,
                                                .mean = l.mean,
                                                .invstd = l.invstd,
                                                .gamma = l.gamma,
                                                .g_out = l.residual ? g : NULL,
                                                .du = du,
                                                .dgamma = dgamma,
                                                .dbeta = dbeta,
                                                .batch = l.batch,
                                                .sums = sums,
                                                .coef = coef});
    const double tolerance = 4e-3;
    for (size_t j = 0; j < l.c; j++) {
        assert_true(fabs(norm_difference(&l, l.gamma + j, r) - (double)dgamma[j]) < tolerance);
        assert_true(fabs(norm_difference(&l, l.beta + j, r) - (double)dbeta[j]) < tolerance);
    }
    for (size_t i = 0; i < n; i += 3) {
        assert_true(fabs(norm_difference(&l, l.u + i, r) - (double)du[i]) < tolerance);
        if (l.residual)
            assert_true(fabs(norm_difference(&l, l.res + i, r) - (double)g[i]) < tolerance);
    }
    tk_free(l.u), tk_free(l.res), tk_free(l.gamma), tk_free(l.beta), tk_free(l.y), tk_free(y);
    tk_free(r), tk_free(g), tk_free(du), tk_free(sums);
}

static void check_norms(void)
{
    for (unsigned flags = 0; flags < 8; flags++)
        check_norm(flags);
}

static void batch_norm_relu_residual_gradients_equal_central_differences(void **state)
{
    (void)state;
    each_isa(check_norms);
}

/* 1, 3, 4, 4 in blocks of 3 and 1: mean 3, biased variance 6/4. */
static void statistics_merge_over_blocks_of_unequal_size(void **state)
{
    (void)state;
    const float pairs[] = {8.0f / 3, 14.0f / 3, 4, 0};
    float mean, invstd, running_mean = 1, running_var = 2;
    tk__bn_merge(2, 3, 4, 1, pairs, &mean, &invstd, &running_mean, &running_var);
    assert_true(near(mean, 3, 1e-6));
    assert_true(near(invstd, 1 / sqrt(1.5 + 1e-5), 1e-6));
    assert_true(near(running_mean, 0.9 * 1 + 0.1 * 3, 1e-6));
    assert_true(near(running_var, 0.9 * 2 + 0.1 * 2, 1e-6)); /* unbiased: 6 / 3 */
}

/* --- pooling and linear --- */

static void check_pools(void)
{
    const tk__kernels *kn = tk__kernels_get();
    const tk__pool_shape s = {5, 6, 3, 3, 17};
    const size_t nx = s.ih * s.iw * s.c, ny = s.oh * s.ow * s.c;
    float *x = zeros(nx), *y = zeros(2 * ny), *r = normals(ny, 2), *dx = zeros(nx);
    uint8_t *arg = tk_calloc(ny, sizeof *arg);
    for (size_t i = 0; i < nx; i++) /* all differ by at least 1 within a window */
        x[i] = (float)(i * 7919 % 1009);
    kn->max_pool(&s, 0, s.oh, &(tk__input){.x = x}, y, arg);
    kn->max_pool_dx(&s, r, arg, dx);
    for (size_t i = 0; i < nx; i++) {
        const float saved = x[i];
        x[i] = saved + 0.25f;
        kn->max_pool(&s, 0, s.oh, &(tk__input){.x = x}, y, arg);
        x[i] = saved - 0.25f;
        kn->max_pool(&s, 0, s.oh, &(tk__input){.x = x}, y + ny, arg);
        x[i] = saved;
        assert_true(fabs((dot(ny, y, r) - dot(ny, y + ny, r)) / 0.5 - (double)dx[i]) < 1e-3);
    }
    float mean[17], back[3 * 17];
    kn->avg_pool(3, 17, x, mean);
    kn->avg_pool_dx(3, 17, r, back);
    for (size_t j = 0; j < 17; j++) {
        assert_true(near(mean[j], (double)(x[j] + x[17 + j] + x[34 + j]) / 3, 1e-4));
        assert_true(near(back[17 + j], (double)r[j] / 3, 1e-6));
    }
    tk_free(x), tk_free(y), tk_free(r), tk_free(dx), tk_free(arg);
}

static void pooling_gradients_equal_central_differences(void **state)
{
    (void)state;
    each_isa(check_pools);
}

static void check_linear_size(size_t n, size_t f, size_t c)
{
    float *x = normals(n * f, 1), *w = normals(c * f, 2), *b = normals(c, 3),
          *dy = normals(n * c, 4);
    float *y = zeros(n * c), *dx = normals(n * f, 5), *dx0 = normals(n * f, 5);
    float *dw = normals(c * f, 6), *db = normals(c, 7);
    const double tolerance = 1e-5 * (1 + (double)(n + f + c));
    tk_linear_forward(n, f, c, x, w, b, y);
    tk_linear_backward(n, f, c, x, w, dy, dx, 1, dw, db);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < c; j++)
            assert_true(fabs(dot(f, x + i * f, w + j * f) + (double)b[j] - (double)y[i * c + j]) <
                        tolerance);
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < f; k++) {
            double want = (double)dx0[i * f + k];
            for (size_t j = 0; j < c; j++)
                want += (double)dy[i * c + j] * (double)w[j * f + k];
            assert_true(fabs(want - (double)dx[i * f + k]) < tolerance);
        }
    for (size_t j = 0; j < c; j++) {
        double bias = 0;
        for (size_t i = 0; i < n; i++)
            bias += (double)dy[i * c + j];
        assert_true(fabs(bias - (double)db[j]) < tolerance);
        for (size_t k = 0; k < f; k++) {
            double want = 0;
            for (size_t i = 0; i < n; i++)
                want += (double)dy[i * c + j] * (double)x[i * f + k];
            assert_true(fabs(want - (double)dw[j * f + k]) < tolerance);
        }
    }
    tk_linear_backward(n, f, c, x, w, dy, NULL, 0, dw, db);
    tk_linear_backward(n, f, c, x, w, dy, dx, 0, NULL, NULL);
    for (size_t i = 0; i < n * f; i++)
        dx[i] += dx0[i];
    tk_linear_backward(n, f, c, x, w, dy, dx0, 1, NULL, NULL);
    assert_true(distance(n * f, dx, dx0) < 1e-5);
    tk_free(x), tk_free(w), tk_free(b), tk_free(dy), tk_free(y), tk_free(dx), tk_free(dx0);
    tk_free(dw), tk_free(db);
}

static void check_linear(void)
{
    check_linear_size(1, 1, 1);
    check_linear_size(3, 64, 2);
    check_linear_size(17, 200, 33);
    check_linear_size(200, 5, 70); /* more rows than a block */
    check_linear_size(2, 512, 101);
}

static void linear_and_its_gradients_equal_the_definition(void **state)
{
    (void)state;
    each_isa(check_linear);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(convolution_and_its_gradients_equal_the_definition),
        cmocka_unit_test(every_way_activates_its_input_and_finishes_its_output),
        cmocka_unit_test(sums_by_position_do_not_depend_on_batch_or_threads),
        cmocka_unit_test(convolution_gradients_equal_central_differences),
        cmocka_unit_test(batch_norm_relu_residual_gradients_equal_central_differences),
        cmocka_unit_test(statistics_merge_over_blocks_of_unequal_size),
        cmocka_unit_test(pooling_gradients_equal_central_differences),
        cmocka_unit_test(linear_and_its_gradients_equal_the_definition),
    };
    return cmocka_run_group_tests(tests, make_pool, drop_pool);
}
