/* Low-precision inference: kernels against their definition and the portable oracle, whole plans
 * against the fp32 plan, and what must not change a bit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "each_isa.h"
#include "engine/graph.h"
#include "engine/plan.h"
#include "kernels/lowp.h"
#include "net/plan_lowp.h"
#include "numbers.h"
#include "with_pool.h"

static const tk_precision low[] = {TK_PRECISION_BF16, TK_PRECISION_INT8};

static const tk__lowp_kernels *portable(tk_precision precision)
{
    return precision == TK_PRECISION_BF16 ? &tk__bf16_portable : &tk__int8_portable;
}

/* --- numbers --- */

static void bfloat16_rounds_to_nearest_even(void **state)
{
    (void)state;
    static const struct {
        float value;
        uint16_t half;
    } cases[] = {
        {1.0f, 0x3f80},        {-2.0f, 0xc000},   {1.00390625f, 0x3f80}, {1.01171875f, 0x3f82},
        {1.00390637f, 0x3f81}, {3.4e38f, 0x7f80}, {INFINITY, 0x7f80},    {0.0f, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(tk__to_bf16(cases[i].value), cases[i].half);
    assert_true(isnan(tk__from_bf16(tk__to_bf16(NAN))));
    assert_true(isnan(tk__from_bf16(tk__to_bf16(-NAN))));
}

static void bytes_round_to_nearest_even_and_saturate(void **state)
{
    (void)state;
    static const struct {
        float value;
        uint8_t byte;
    } cases[] = {{0, 0}, {-3, 0}, {0.5f, 0}, {1.5f, 2}, {2.5f, 2}, {254.6f, 255}, {1e30f, 255}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(tk__to_u8(cases[i].value), cases[i].byte);
    assert_int_equal(tk__to_u8(NAN), 0);
}

static void precisions_have_names(void **state)
{
    (void)state;
    tk_precision got;
    tk_diag diag;
    for (unsigned i = 0; i < TK_PRECISION_COUNT; i++) {
        assert_int_equal(tk_precision_parse(tk_precision_name((tk_precision)i), &got, NULL), TK_OK);
        assert_int_equal(got, i);
    }
    assert_int_equal(tk_precision_parse("fp8", &got, &diag), TK_BADARG);
    assert_non_null(strstr(diag.text, "fp8"));
}

/* --- matrix product --- */

enum { MAX_M = 31, MAX_SEGMENTS = 3, MAX_STEPS = 131, LDO = 40 };

/* One product with everything random; outputs start as garbage that must stay beyond n. */
typedef struct product {
    size_t m, n, segments, steps;
    size_t pitch, segment_pitch; /* rows and segments may overlap */
    unsigned char a[(MAX_M + MAX_SEGMENTS) * (MAX_STEPS + 1) * 4];
    unsigned char b[MAX_SEGMENTS * MAX_STEPS * TK__LOWP_NR * 4];
    float scale[TK__LOWP_NR], bias[TK__LOWP_NR];
    uint16_t residual[MAX_M * LDO];
    bool int8;
    tk__lowp_kind residual_kind, out_kind;
    bool with_residual, relu;
} product;

static float value_of_a(const product *p, size_t i, size_t k)
{
    const size_t run = p->steps * (p->int8 ? 4 : 2);
    const unsigned char *at = p->a + i * p->pitch + k / run * p->segment_pitch;
    uint16_t half;
    memcpy(&half, at + 2 * (p->int8 ? 0 : k % run), sizeof half);
    return p->int8 ? (float)at[k % run] : tk__from_bf16(half);
}

static float value_of_b(const product *p, size_t k, size_t j)
{
    const size_t group = p->int8 ? 4 : 2;
    const unsigned char *at = p->b + (k / group * p->n + j) * 4 + k % group * (p->int8 ? 1 : 2);
    uint16_t half;
    memcpy(&half, at, p->int8 ? 1 : 2);
    return p->int8 ? (float)(int8_t)*at : tk__from_bf16(half);
}

static void fill(product *p, unsigned flags)
{
    p->int8 = flags & 1;
    p->relu = flags & 2;
    p->with_residual = flags & 4;
    p->residual_kind = p->int8 && flags & 8 ? TK__MAP_U8 : TK__MAP_BF16;
    p->out_kind = p->int8 && flags & 16 ? TK__MAP_U8 : TK__MAP_BF16;
    for (size_t i = 0; i < sizeof p->a / 2; i++) {
        const uint16_t half = tk__to_bf16(tk_rng_normal(1, flags, i));
        memcpy(p->a + 2 * i, &half, 2); /* as bytes: as good as any */
    }
    for (size_t i = 0; i < sizeof p->b / 2; i++) {
        const uint16_t half = tk__to_bf16(tk_rng_normal(2, flags, i));
        memcpy(p->b + 2 * i, &half, 2);
    }
    for (size_t j = 0; j < TK__LOWP_NR; j++) {
        p->scale[j] = 1e-4f * (1 + tk_rng_uniform(3, 0, j));
        p->bias[j] = tk_rng_normal(4, 0, j);
    }
    for (size_t i = 0; i < MAX_M * LDO; i++)
        p->residual[i] = tk__to_bf16(tk_rng_normal(5, 0, i));
}

static void multiply(const product *p, const tk__lowp_kernels *kn, uint16_t *out)
{
    memset(out, 0x55, MAX_M * LDO * sizeof *out);
    kn->gemm(&(tk__lowp_gemm){.m = p->m,
                              .n = p->n,
                              .segments = p->segments,
                              .steps = p->steps,
                              .a = p->a,
                              .pitch = p->pitch,
                              .segment_pitch = p->segment_pitch,
                              .b = p->b,
                              .scale = p->int8 ? p->scale : NULL,
                              .bias = p->bias,
                              .residual_kind = p->residual_kind,
                              .out_kind = p->out_kind,
                              .residual = p->with_residual ? p->residual : NULL,
                              .residual_scale = 0.01f,
                              .inverse = 30.0f,
                              .relu = p->relu,
                              .out = out,
                              .ldo = LDO});
}

static double defined_value(const product *p, size_t i, size_t j, double *magnitude)
{
    double sum = 0, most = 0;
    for (size_t k = 0; k < p->segments * p->steps * (p->int8 ? 4 : 2); k++) {
        const double term = (double)value_of_a(p, i, k) * (double)value_of_b(p, k, j);
        sum += term;
        most += fabs(term);
    }
    if (p->int8) sum *= (double)p->scale[j], most *= (double)p->scale[j];
    sum += (double)p->bias[j];
    if (p->with_residual)
        sum += p->residual_kind == TK__MAP_U8
                   ? (double)((const uint8_t *)p->residual)[i * LDO + j] * (double)0.01f
                   : (double)tk__from_bf16(p->residual[i * LDO + j]);
    *magnitude = most + fabs(sum);
    return p->relu && sum < 0 ? 0 : sum;
}

/* Within the rounding of an fp32 sum and of the output format. */
static void check_defined(const product *p, const uint16_t *out)
{
    for (size_t i = 0; i < p->m; i++)
        for (size_t j = 0; j < p->n; j++) {
            double magnitude;
            double want = defined_value(p, i, j, &magnitude);
            if (p->out_kind == TK__MAP_U8) {
                want = fmin(fmax(want * 30, 0), 255);
                const double got = ((const uint8_t *)out)[i * LDO + j];
                assert_true(fabs(got - want) < 0.501);
            } else {
                const double got = (double)tk__from_bf16(out[i * LDO + j]);
                assert_true(fabs(got - want) <= fabs(want) / 250 + magnitude * 1e-5);
            }
        }
}

static void check_untouched(const product *p, const uint16_t *out)
{
    const size_t element = p->out_kind == TK__MAP_U8 ? 1 : 2;
    for (size_t i = 0; i < p->m; i++)
        for (size_t b = p->n * element; b < LDO * element; b++)
            assert_int_equal(((const unsigned char *)out)[i * LDO * element + b], 0x55);
}

static void check_product(const product *p, const tk__lowp_kernels *kn)
{
    static uint16_t out[MAX_M * LDO], oracle[MAX_M * LDO];
    multiply(p, kn, out);
    check_defined(p, out);
    check_untouched(p, out);
    if (!p->int8) return;
    multiply(p, &tk__int8_portable, oracle);
    assert_memory_equal(out, oracle, sizeof out);
}

static void check_products(void)
{
    static product p;
    static const size_t heights[] = {1, 2, 7, 13, 14, 15, 27, 28, MAX_M};
    static const size_t steps[] = {1, 2, 37, MAX_STEPS};
    for (unsigned flags = 0; flags < 32; flags++) {
        fill(&p, flags);
        const tk__lowp_kernels *kn = tk__lowp_get(p.int8 ? TK_PRECISION_INT8 : TK_PRECISION_BF16);
        for (size_t i = 0; i < sizeof heights / sizeof *heights; i++) {
            p.m = heights[i];
            p.steps = steps[(i + flags / 2) % (sizeof steps / sizeof *steps)];
            p.segments = 1 + (i + flags) % MAX_SEGMENTS;
            p.pitch = flags % 2 ? 12 : (MAX_STEPS + 1) * 4;
            p.segment_pitch = p.steps * 4 + (flags & 4);
            p.n = (i + flags / 4) % 2 ? 16 : 32;
            check_product(&p, kn);
        }
    }
}

static void product_equals_its_definition_and_the_oracle(void **state)
{
    (void)state;
    each_isa(check_products);
}

/* Rows alone or among others, in whatever tile: the same bits. */
static void check_rows_alone(void)
{
    static product p;
    static uint16_t all[MAX_M * LDO], one[MAX_M * LDO];
    for (unsigned flags = 0; flags < 2; flags++) {
        fill(&p, flags);
        const tk__lowp_kernels *kn = tk__lowp_get(low[flags]);
        p.m = MAX_M, p.n = 32, p.steps = MAX_STEPS, p.segments = 1;
        p.pitch = p.steps * 4;
        multiply(&p, kn, all);
        for (p.m = 1; p.m < MAX_M; p.m++) {
            multiply(&p, kn, one);
            assert_memory_equal(one, all, p.m * LDO * sizeof *one);
        }
    }
}

static void rows_do_not_depend_on_their_neighbours(void **state)
{
    (void)state;
    each_isa(check_rows_alone);
}

/* --- patches, loading, pooling --- */

static void check_patch_size(const tk__lowp_kernels *kn, const tk__conv *g)
{
    const size_t bytes = g->ky * g->kx * g->ic, pitch = bytes + 8;
    const size_t in = g->n * g->ih * g->iw * g->ic, m = g->n * g->oh * g->ow;
    unsigned char *x = tk_calloc(in + TK__LOWP_SLACK, 1);
    unsigned char *out = tk_calloc(m * pitch + TK__LOWP_SLACK, 1);
    for (size_t i = 0; i < in + TK__LOWP_SLACK; i++)
        x[i] = (unsigned char)(1 + i % 255);
    memset(out, 0xee, m * pitch);
    for (size_t m0 = 0; m0 < m; m0 += 5)
        kn->patches(g, x, m0, m - m0 < 5 ? m - m0 : 5, out + m0 * pitch, pitch);
    for (size_t r = 0; r < m; r++)
        for (size_t b = 0; b < bytes; b++) {
            const size_t tap = b / g->ic, ox = r % g->ow, oy = r / g->ow % g->oh;
            const ptrdiff_t iy = (ptrdiff_t)(oy * g->stride + tap / g->kx) - g->pad_y;
            const ptrdiff_t ix = (ptrdiff_t)(ox * g->stride + tap % g->kx) - g->pad_x;
            const bool inside =
                b < bytes && iy >= 0 && iy < (ptrdiff_t)g->ih && ix >= 0 && ix < (ptrdiff_t)g->iw;
            const size_t image = r / (g->oh * g->ow);
            const size_t at =
                inside ? ((image * g->ih + (size_t)iy) * g->iw + (size_t)ix) * g->ic + b % g->ic
                       : 0;
            assert_int_equal(out[r * pitch + b], inside ? x[at] : 0);
        }
    tk_free(x), tk_free(out);
}

static void check_patches(void)
{
    static const struct {
        size_t k, stride, pad, ic;
    } kinds[] = {{3, 1, 1, 16}, {3, 2, 1, 128}, {1, 2, 0, 64}, {7, 2, 0, 3},
                 {7, 2, 0, 6},  {3, 1, 0, 3},   {3, 1, 0, 6}};
    static const size_t sizes[][2] = {{7, 7}, {8, 11}, {13, 9}};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
            const size_t k = kinds[i].k, pad = kinds[i].pad, h = sizes[s][0], w = sizes[s][1];
            const tk__conv g = {.n = 2,
                                .ih = h,
                                .iw = w,
                                .ic = kinds[i].ic,
                                .oh = (h + 2 * pad - k) / kinds[i].stride + 1,
                                .ow = (w + 2 * pad - k) / kinds[i].stride + 1,
                                .oc = 16,
                                .ky = k,
                                .kx = k,
                                .stride = kinds[i].stride,
                                .pad_y = (ptrdiff_t)pad,
                                .pad_x = (ptrdiff_t)pad};
            for (size_t t = 0; t < 2; t++)
                check_patch_size(tk__lowp_get(low[t]), &g);
        }
}

static void patches_equal_their_definition(void **state)
{
    (void)state;
    each_isa(check_patches);
}

static void check_maps(void)
{
    enum { IH = 5, IW = 6, OH = 3, OW = 3, C = 48, N = IH * IW * C };
    const tk__pool_shape shape = {IH, IW, OH, OW, C};
    float *x = normals(N, 1), mean[C], want[C];
    uint16_t in[N], out[OH * OW * C], expected[OH * OW * C];
    for (size_t t = 0; t < 2; t++) {
        const tk__lowp_kernels *kn = tk__lowp_get(low[t]);
        kn->load(N, x, 40.0f, in);
        memset(out, 0x55, sizeof out);
        for (size_t i = 0; i < N && t == 0; i++)
            assert_int_equal(in[i], tk__to_bf16(x[i]));
        for (size_t i = 0; i < N && t == 1; i++)
            assert_int_equal(((const uint8_t *)in)[i],
                             (int)fmin(fmax(nearbyint((double)(x[i] * 40.0f + 128.0f)), 0), 255));
        for (size_t i = 0; i < N && t == 0; i++)
            in[i] = in[i] & 0x8000 ? 0 : in[i]; /* as after a ReLU */
        kn->max_pool(&shape, 0, 1, in, out);
        kn->max_pool(&shape, 1, OH, in, out);
        portable(low[t])->max_pool(&shape, 0, OH, in, expected);
        assert_memory_equal(out, expected, OH * OW * C * kn->element);
    }
    for (size_t i = 0; i < N; i++)
        in[i] = tk__to_bf16(x[i]);
    tk__lowp_get(low[0])->avg_pool(IH * IW, C, in, mean);
    for (size_t j = 0; j < C; j++) {
        double sum = 0;
        for (size_t r = 0; r < IH * IW; r++)
            sum += (double)tk__from_bf16(in[r * C + j]);
        want[j] = (float)(sum / (IH * IW));
    }
    assert_true(distance(C, mean, want) < 1e-6);
    tk_free(x);
}

static void loading_and_pooling_equal_their_definitions(void **state)
{
    (void)state;
    each_isa(check_maps);
    const tk__pool_shape shape = {3, 4, 2, 2, 1}; /* windows cut at the border */
    const uint8_t x[] = {1, 9, 2, 3, 4, 5, 8, 6, 7, 1, 2, 3};
    uint8_t y[4];
    tk__int8_portable.max_pool(&shape, 0, 2, x, y);
    assert_memory_equal(y, ((const uint8_t[]){9, 9, 7, 8}), 4);
    const uint16_t h[] = {0x3f80, 0x7fc0, 0, 0x4000, 0, 0, 0x3f00, 0, 0, 0, 0, 0x4080};
    uint16_t z[4];
    tk__bf16_portable.max_pool(&shape, 0, 2, h, z);
    assert_int_equal(z[0], 0x7fc0); /* NaN */
    assert_int_equal(z[1], 0x7fc0);
    assert_int_equal(z[2], 0);
    assert_int_equal(z[3], 0x4080);
}

/* --- Winograd --- */

enum { WINO_IC = 32, WINO_OC = 16, WINO_MAX = 9, WINO_N = 2, WINO_TILES = 5 * 5 * WINO_N };

typedef struct wino {
    tk__winograd job;
    uint16_t x[WINO_N * WINO_MAX * WINO_MAX * WINO_IC];
    uint16_t residual[WINO_N * WINO_MAX * WINO_MAX * WINO_OC];
    float g[3][3][WINO_IC][WINO_OC], bias[WINO_OC];
    float u[16][WINO_IC][WINO_OC];
} wino;

/* G g G', in double */
static void wino_weights(wino *w)
{
    static const double G[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
    for (size_t i = 0; i < sizeof w->u / sizeof(float); i++) {
        const size_t j = i % WINO_OC, c = i / WINO_OC % WINO_IC, at = i / WINO_OC / WINO_IC;
        double sum = 0;
        for (size_t t = 0; t < 9; t++)
            sum += G[at / 4][t / 3] * G[at % 4][t % 3] * (double)w->g[t / 3][t % 3][c][j];
        w->u[at][c][j] = (float)sum;
    }
}

static void make_wino(wino *w, size_t h, size_t width, unsigned flags)
{
    for (size_t i = 0; i < sizeof w->x / 2; i++)
        w->x[i] = tk__to_bf16(tk_rng_normal(1, 0, i));
    for (size_t i = 0; i < sizeof w->residual / 2; i++)
        w->residual[i] = tk__to_bf16(tk_rng_normal(2, 0, i));
    for (size_t i = 0; i < sizeof w->g / sizeof(float); i++)
        ((float *)w->g)[i] = 0.1f * tk_rng_normal(3, 0, i);
    for (size_t j = 0; j < WINO_OC; j++)
        w->bias[j] = tk_rng_normal(4, 0, j);
    wino_weights(w);
    w->job = (tk__winograd){.h = h,
                            .w = width,
                            .ic = WINO_IC,
                            .oc = WINO_OC,
                            .tiles_y = (h + 1) / 2,
                            .tiles_x = (width + 1) / 2,
                            .x = w->x,
                            .bias = w->bias,
                            .residual = flags & 1 ? w->residual : NULL,
                            .relu = flags & 2};
}

/* In two calls each, so that tiles begin in the middle. */
static void run_wino(wino *w, const tk__lowp_kernels *kn, uint16_t *y)
{
    static uint16_t v[16 * WINO_TILES * WINO_IC];
    static float m[16 * WINO_TILES * TK__LOWP_NR];
    const size_t all = WINO_N * w->job.tiles_y * w->job.tiles_x;
    w->job.y = y;
    for (size_t part = 0; part < 2; part++) {
        const size_t tile0 = part == 0 ? 0 : all / 2, tiles = part == 0 ? all / 2 : all - all / 2;
        kn->winograd_in(&w->job, tile0, tiles, v);
        for (size_t at = 0; at < 16; at++)
            for (size_t t = 0; t < tiles; t++)
                for (size_t j = 0; j < WINO_OC; j++) {
                    float sum = 0;
                    for (size_t c = 0; c < WINO_IC; c++)
                        sum += tk__from_bf16(v[(at * tiles + t) * WINO_IC + c]) * w->u[at][c][j];
                    m[(at * tiles + t) * TK__LOWP_NR + j] = sum;
                }
        kn->winograd_out(&w->job, tile0, tiles, 0, WINO_OC, m);
    }
}

static double convolved(const wino *w, size_t image, size_t oy, size_t ox, size_t j)
{
    const tk__winograd *g = &w->job;
    double sum = (double)w->bias[j];
    for (size_t t = 0; t < 9; t++) {
        const size_t y = oy + t / 3, x = ox + t % 3; /* one more than the pixel's */
        if (y < 1 || y > g->h || x < 1 || x > g->w) continue;
        const uint16_t *pixel = w->x + ((image * g->h + y - 1) * g->w + x - 1) * WINO_IC;
        for (size_t c = 0; c < WINO_IC; c++)
            sum += (double)tk__from_bf16(pixel[c]) * (double)w->g[t / 3][t % 3][c][j];
    }
    if (g->residual != NULL)
        sum += (double)tk__from_bf16(w->residual[((image * g->h + oy) * g->w + ox) * WINO_OC + j]);
    return g->relu && sum < 0 ? 0 : sum;
}

static void check_wino(wino *w)
{
    static uint16_t y[WINO_N * WINO_MAX * WINO_MAX * WINO_OC], oracle[sizeof y / 2];
    memset(y, 0x55, sizeof y);
    memset(oracle, 0x55, sizeof oracle);
    run_wino(w, tk__lowp_get(TK_PRECISION_BF16), y);
    run_wino(w, &tk__bf16_portable, oracle);
    assert_memory_equal(y, oracle, sizeof y);
    const size_t count = WINO_N * w->job.h * w->job.w * WINO_OC;
    for (size_t i = 0; i < count; i++) {
        const size_t j = i % WINO_OC, ox = i / WINO_OC % w->job.w;
        const size_t oy = i / WINO_OC / w->job.w % w->job.h;
        const double want = convolved(w, i / WINO_OC / w->job.w / w->job.h, oy, ox, j);
        /* sums of some hundred products of size 0.1, each input rounded to eight bits twice */
        assert_true(fabs((double)tk__from_bf16(y[i]) - want) < 0.03 + fabs(want) / 200);
    }
    for (size_t i = count; i < sizeof y / 2; i++)
        assert_int_equal(y[i], 0x5555);
}

static void check_winos(void)
{
    static wino w;
    static const size_t sizes[][2] = {{1, 1}, {2, 3}, {4, 4}, {7, 8}, {9, 9}};
    for (unsigned flags = 0; flags < 4; flags++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
            make_wino(&w, sizes[s][0], sizes[s][1], flags);
            check_wino(&w);
        }
}

static void winograd_equals_the_convolution(void **state)
{
    (void)state;
    each_isa(check_winos);
}

/* --- plans --- */

/* A seeded trunk whose running statistics are those of its inputs, and smooth images for it. */
typedef struct subject {
    tk_arch arch;
    unsigned px;
    size_t n, pixels, features;
    tk_params *params;
    float *x, *want;
    tk_calibration ranges;
} subject;

/* Coarse noise, each value over 4x4 pixels, and some fine noise on it. */
static void fill_images(const subject *s, float *x)
{
    for (size_t i = 0; i < s->n * s->pixels; i++) {
        const size_t c = i % 3, px = s->px, col = i / 3 % px, row = i / 3 / px;
        x[i] = tk_rng_normal(1, c, row / 4 * px + col / 4) + 0.2f * tk_rng_normal(2, 0, i);
    }
}

/* The norms that end a branch start small, as in trained trunks, where errors then do not grow from
 * block to block; and running statistics are those of the images. */
static void settle(const subject *s)
{
    for (size_t t = 0; t < s->params->tensors; t++) {
        const tk_param *p = &s->params->table[t];
        const char *last = tk_arch_features(s->arch) == 2048 ? "bn3.weight" : "bn2.weight";
        if (strstr(p->name, "layer") == NULL || strstr(p->name, last) == NULL) continue;
        for (size_t j = 0; j < p->count; j++)
            s->params->data[p->offset + j] = 0.3f;
    }
    tk_graph *graph;
    const float *features;
    assert_int_equal(tk_graph_create(&graph, s->arch, s->px, s->n, pool, NULL), TK_OK);
    for (int i = 0; i < 8; i++)
        tk_graph_forward(graph, s->params, s->n, s->x, TK_BN_BATCH, &features);
    tk_graph_destroy(graph);
}

static subject make_subject(tk_arch arch, unsigned px, size_t n)
{
    subject s = {.arch = arch,
                 .px = px,
                 .n = n,
                 .pixels = (size_t)px * px * 3,
                 .features = tk_arch_features(arch)};
    tk_plan *plan;
    assert_int_equal(tk_params_create(&s.params, arch), TK_OK);
    tk_params_init(s.params, 3);
    s.x = zeros(n * s.pixels);
    s.want = zeros(n * s.features);
    fill_images(&s, s.x);
    settle(&s);
    assert_int_equal(tk_plan_create(&plan, s.params, px, n, pool, NULL), TK_OK);
    tk_plan_run(plan, n, s.x, s.want);
    assert_int_equal(tk_plan_calibrate(plan, n, s.x, &s.ranges, NULL), TK_OK);
    tk_plan_destroy(plan);
    return s;
}

static void drop_subject(subject *s)
{
    tk_params_destroy(s->params);
    tk_free(s->x), tk_free(s->want);
}

static tk_plan *make_plan(const subject *s, tk_precision precision, tk_pool *on)
{
    tk_plan *plan;
    tk_diag diag = {""};
    if (tk_plan_create_as(&plan, s->params, s->px, s->n, precision, &s->ranges, on, &diag) != TK_OK)
        fail_msg("%s", diag.text);
    return plan;
}

/* |got - want| / |want| over all features */
static double relative_error(size_t n, const float *got, const float *want)
{
    double error = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        error += ((double)got[i] - (double)want[i]) * ((double)got[i] - (double)want[i]);
        size += (double)want[i] * (double)want[i];
    }
    return sqrt(error / size);
}

static void check_subject(const subject *s, const double most[2])
{
    float *got = zeros(s->n * s->features), *alone = zeros(s->features);
    for (size_t t = 0; t < 2; t++) {
        tk_plan *plan = make_plan(s, low[t], pool);
        tk_plan_run(plan, s->n, s->x, got);
        const double error = relative_error(s->n * s->features, got, s->want);
        print_message("%s, %u px, %s, %s: relative error %.4f\n", tk_arch_name(s->arch), s->px,
                      tk_isa_name(), tk_precision_name(low[t]), error);
        assert_true(error < most[t]);
        for (size_t i = 0; i < s->n; i++) {
            tk_plan_run(plan, 1, s->x + i * s->pixels, alone);
            assert_memory_equal(alone, got + i * s->features, s->features * sizeof *alone);
        }
        tk_plan_destroy(plan);
    }
    tk_free(got), tk_free(alone);
}

static void check_small_plan(void)
{
    subject s = make_subject(TK_RESNET20, 32, 3);
    check_subject(&s, (const double[]){0.006, 0.02});
    drop_subject(&s);
}

static void plans_are_near_fp32_and_ignore_the_rest_of_the_batch(void **state)
{
    (void)state;
    each_isa(check_small_plan);
    static const struct {
        tk_arch arch;
        unsigned px;
        double most[2];
    } cases[] = {{TK_RESNET18, 64, {0.012, 0.035}},
                 {TK_RESNET18, 75, {0.012, 0.035}}, /* an odd size */
                 {TK_RESNET50, 64, {0.012, 0.035}}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        subject s = make_subject(cases[i].arch, cases[i].px, 4);
        check_subject(&s, cases[i].most);
        drop_subject(&s);
    }
}

/* Integers are exact: the CPU's instructions and the portable kernels agree in every bit. */
static void int8_features_are_the_same_without_the_instructions(void **state)
{
    (void)state;
    subject s = make_subject(TK_RESNET18, 64, 1);
    float *want = zeros(s.features), *got = zeros(s.features);
    tk_plan *plan = make_plan(&s, TK_PRECISION_INT8, pool);
    tk_plan_run(plan, 1, s.x, want);
    tk_plan_destroy(plan);
    assert_int_equal(tk_isa_select("scalar", NULL), TK_OK);
    assert_false(tk_precision_native(TK_PRECISION_INT8));
    plan = make_plan(&s, TK_PRECISION_INT8, pool);
    tk_plan_run(plan, 1, s.x, got);
    tk_plan_destroy(plan);
    assert_int_equal(tk_isa_select(NULL, NULL), TK_OK);
    assert_memory_equal(got, want, s.features * sizeof *got);
    tk_free(want), tk_free(got);
    drop_subject(&s);
}

static void plans_do_not_depend_on_the_number_of_threads(void **state)
{
    (void)state;
    subject s = make_subject(TK_RESNET18, 64, 3);
    float *want = zeros(3 * s.features), *got = zeros(3 * s.features);
    for (size_t t = 0; t < 2; t++)
        for (unsigned threads = 1; threads <= 4; threads++) {
            tk_pool *other;
            assert_int_equal(tk_pool_create(&other, threads), TK_OK);
            tk_plan *plan = make_plan(&s, low[t], other);
            tk_plan_run(plan, 3, s.x, threads == 1 ? want : got);
            if (threads > 1) assert_memory_equal(got, want, 3 * s.features * sizeof *got);
            tk_plan_destroy(plan);
            tk_pool_destroy(other);
        }
    tk_free(want), tk_free(got);
    drop_subject(&s);
}

static void nan_reaches_the_bfloat16_features_of_its_image_only(void **state)
{
    (void)state;
    subject s = make_subject(TK_RESNET20, 32, 2);
    float *want = zeros(2 * s.features), *got = zeros(2 * s.features);
    tk_plan *plan = make_plan(&s, TK_PRECISION_BF16, pool);
    tk_plan_run(plan, 2, s.x, want);
    s.x[100] = NAN;
    tk_plan_run(plan, 2, s.x, got);
    assert_true(isnan(got[0]));
    assert_memory_equal(got + s.features, want + s.features, s.features * sizeof *got);
    tk_plan_destroy(plan);
    tk_free(want), tk_free(got);
    drop_subject(&s);
}

static void plan_keeps_no_reference_to_the_parameters(void **state)
{
    (void)state;
    subject s = make_subject(TK_RESNET20, 32, 1);
    float *want = zeros(s.features), *got = zeros(s.features);
    for (size_t t = 0; t < 2; t++) {
        tk_plan *plan = make_plan(&s, low[t], pool), *other = make_plan(&s, low[t], pool);
        tk_plan_run(plan, 1, s.x, want);
        tk_params *kept;
        assert_int_equal(tk_params_clone(&kept, s.params), TK_OK);
        memset(s.params->data, 0, s.params->count * sizeof *s.params->data);
        tk_plan_run(other, 1, s.x, got);
        assert_memory_equal(got, want, s.features * sizeof *got);
        tk_params_copy(s.params, kept);
        tk_params_destroy(kept);
        tk_plan_destroy(plan), tk_plan_destroy(other);
    }
    tk_free(want), tk_free(got);
    drop_subject(&s);
}

static void plans_are_smaller(void **state)
{
    (void)state;
    subject s = make_subject(TK_RESNET18, 64, 1);
    tk_plan *fp32 = make_plan(&s, TK_PRECISION_FP32, pool);
    for (size_t t = 0; t < 2; t++) {
        tk_plan *plan = make_plan(&s, low[t], pool);
        assert_true(tk_plan_bytes(plan) * (t + 1) < tk_plan_bytes(fp32));
        tk_plan_destroy(plan);
    }
    tk_plan_destroy(fp32);
    drop_subject(&s);
}

/* --- calibration --- */

static void calibration_finds_the_largest_finite_magnitude(void **state)
{
    (void)state;
    const float x[] = {0.5f, -3.0f, NAN, 1.0f, INFINITY}, smaller[] = {2.0f, -1.0f}, none[] = {0};
    tk_calibration ranges = {.maps = 2};
    tk__calibrate_map(&ranges, 1, 5, x);
    assert_true(near(ranges.limit[1], 3, 0));
    tk__calibrate_map(&ranges, 1, 2, smaller);
    assert_true(near(ranges.limit[1], 3, 0));
    tk__calibrate_map(&ranges, 0, 1, none);
    assert_true(ranges.limit[0] > 0);
}

static void calibration_covers_all_its_images(void **state)
{
    (void)state;
    subject s = make_subject(TK_RESNET20, 32, 3);
    tk_plan *fp32 = make_plan(&s, TK_PRECISION_FP32, pool);
    tk_calibration a = {0}, b = {0}, both = {0};
    assert_int_equal(tk_plan_calibrate(fp32, 2, s.x, &a, NULL), TK_OK);
    assert_int_equal(tk_plan_calibrate(fp32, 1, s.x + 2 * s.pixels, &b, NULL), TK_OK);
    assert_int_equal(tk_plan_calibrate(fp32, 2, s.x, &both, NULL), TK_OK);
    assert_int_equal(tk_plan_calibrate(fp32, 1, s.x + 2 * s.pixels, &both, NULL), TK_OK);
    for (size_t m = 0; m < a.maps; m++)
        assert_true(near(both.limit[m], (double)fmaxf(a.limit[m], b.limit[m]), 0));
    assert_memory_equal(&both, &s.ranges, sizeof both);
    tk_plan_destroy(fp32);
    drop_subject(&s);
}

/* Stored as its count and that many floats, and read back: the same plan. */
static void calibration_survives_storage(void **state)
{
    (void)state;
    subject s = make_subject(TK_RESNET20, 32, 1);
    float *want = zeros(s.features), *got = zeros(s.features);
    tk_plan *plan = make_plan(&s, TK_PRECISION_INT8, pool);
    tk_plan_run(plan, 1, s.x, want);
    tk_plan_destroy(plan);
    float stored[TK_CALIBRATION_MAPS];
    const uint32_t maps = s.ranges.maps;
    memcpy(stored, s.ranges.limit, maps * sizeof *stored);
    memset(&s.ranges, 0, sizeof s.ranges);
    s.ranges.maps = maps;
    memcpy(s.ranges.limit, stored, maps * sizeof *stored);
    plan = make_plan(&s, TK_PRECISION_INT8, pool);
    tk_plan_run(plan, 1, s.x, got);
    tk_plan_destroy(plan);
    assert_memory_equal(got, want, s.features * sizeof *got);
    tk_free(want), tk_free(got);
    drop_subject(&s);
}

/* --- what is refused --- */

static tk_err try_create(const subject *s, size_t batch, tk_precision precision,
                         const tk_calibration *ranges, tk_diag *diag)
{
    tk_plan *plan = (void *)&pool;
    const tk_err err =
        tk_plan_create_as(&plan, s->params, s->px, batch, precision, ranges, pool, diag);
    if (err != TK_OK) assert_null(plan);
    tk_plan_destroy(plan);
    return err;
}

static void bad_arguments_are_refused(void **state)
{
    (void)state;
    subject s = make_subject(TK_RESNET20, 32, 1);
    tk_diag diag;
    tk_calibration bad = s.ranges;
    assert_int_equal(try_create(&s, 0, TK_PRECISION_BF16, NULL, NULL), TK_BADARG);
    assert_int_equal(try_create(&s, 1, TK_PRECISION_COUNT, NULL, NULL), TK_BADARG);
    assert_int_equal(try_create(&s, 1, TK_PRECISION_BF16, NULL, NULL), TK_OK);
    assert_int_equal(try_create(&s, 1, TK_PRECISION_INT8, NULL, &diag), TK_BADARG);
    assert_non_null(strstr(diag.text, "ranges"));
    bad.maps--;
    assert_int_equal(try_create(&s, 1, TK_PRECISION_INT8, &bad, NULL), TK_BADARG);
    static const float wrong[] = {0.0f, -1.0f, NAN, INFINITY};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        bad = s.ranges;
        bad.limit[5] = wrong[i];
        assert_int_equal(try_create(&s, 1, TK_PRECISION_INT8, &bad, NULL), TK_BADARG);
    }
    s.px = 33;
    assert_int_equal(try_create(&s, 1, TK_PRECISION_BF16, NULL, NULL), TK_BADARG);
    drop_subject(&s);
}

static void calibration_wants_an_fp32_plan_of_its_architecture(void **state)
{
    (void)state;
    subject s = make_subject(TK_RESNET20, 32, 1);
    tk_calibration ranges = {0}, other = {.maps = 3};
    tk_plan *plan = make_plan(&s, TK_PRECISION_BF16, pool);
    assert_int_equal(tk_plan_calibrate(plan, 1, s.x, &ranges, NULL), TK_BADARG);
    tk_plan_destroy(plan);
    plan = make_plan(&s, TK_PRECISION_FP32, pool);
    assert_int_equal(tk_plan_calibrate(plan, 1, s.x, &other, NULL), TK_BADARG);
    assert_int_equal(tk_plan_calibrate(plan, 0, s.x, &ranges, NULL), TK_BADARG);
    assert_int_equal(tk_plan_calibrate(plan, 2, s.x, &ranges, NULL), TK_BADARG);
    assert_int_equal(ranges.maps, 0);
    tk_plan_destroy(plan);
    drop_subject(&s);
}

static void failed_allocations_leave_nothing(void **state)
{
    (void)state;
    subject s = make_subject(TK_RESNET20, 32, 1);
    for (size_t t = 0; t < 2; t++) {
        tk_err err = TK_NOMEM;
        for (long n = 0; err == TK_NOMEM; n++) {
            assert_true(n < 20);
            const long live = tk_test_alloc_live();
            tk_test_alloc_fail_after(n);
            err = try_create(&s, 1, low[t], &s.ranges, NULL);
            tk_test_alloc_fail_after(-1);
            assert_int_equal(tk_test_alloc_live(), live);
        }
        assert_int_equal(err, TK_OK);
    }
    drop_subject(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bfloat16_rounds_to_nearest_even),
        cmocka_unit_test(bytes_round_to_nearest_even_and_saturate),
        cmocka_unit_test(precisions_have_names),
        cmocka_unit_test(product_equals_its_definition_and_the_oracle),
        cmocka_unit_test(rows_do_not_depend_on_their_neighbours),
        cmocka_unit_test(patches_equal_their_definition),
        cmocka_unit_test(loading_and_pooling_equal_their_definitions),
        cmocka_unit_test(winograd_equals_the_convolution),
        cmocka_unit_test(plans_are_near_fp32_and_ignore_the_rest_of_the_batch),
        cmocka_unit_test(int8_features_are_the_same_without_the_instructions),
        cmocka_unit_test(plans_do_not_depend_on_the_number_of_threads),
        cmocka_unit_test(nan_reaches_the_bfloat16_features_of_its_image_only),
        cmocka_unit_test(plan_keeps_no_reference_to_the_parameters),
        cmocka_unit_test(plans_are_smaller),
        cmocka_unit_test(calibration_finds_the_largest_finite_magnitude),
        cmocka_unit_test(calibration_covers_all_its_images),
        cmocka_unit_test(calibration_survives_storage),
        cmocka_unit_test(bad_arguments_are_refused),
        cmocka_unit_test(calibration_wants_an_fp32_plan_of_its_architecture),
        cmocka_unit_test(failed_allocations_leave_nothing),
    };
    return cmocka_run_group_tests(tests, make_pool, drop_pool);
}
