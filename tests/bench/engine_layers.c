/* The engine's convolutions one by one: where a network's time goes, and how near each comes to the
 * machine's peaks (engine.py --layers measures those and prints the table).
 *
 *     engine_layers KIND ARCH PX BATCH THREADS PRECISION SECONDS
 *
 * KIND is infer (fp32 only), or train for the gradients too. Prints a line of comma-separated
 * values, below a line of their names, for each distinct geometry and pass. Everything that knows
 * how the engine runs a convolution is in the section "passes". */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "engine/isa.h"
#include "engine/mem.h"
#include "net/graph_internal.h"

/* A convolution with its tensors: x [n][ih][iw][ic], w [ky][kx][ic][oc], y [n][oh][ow][oc]. */
typedef struct layer {
    tk__conv geo;
    size_t units; /* of the network that have this geometry */
    bool first;   /* reads the image, which needs no gradient */
    float *x, *w, *y, *bias;
    tk__exec ex;
    float *packed, *packed_dx, *partials;
} layer;

static size_t size_x(const tk__conv *g)
{
    return g->n * g->ih * g->iw * g->ic;
}

static size_t size_w(const tk__conv *g)
{
    return g->ky * g->kx * g->ic * g->oc;
}

static size_t size_y(const tk__conv *g)
{
    return g->n * g->oh * g->ow * g->oc;
}

/* --- passes --- */

static void prepare(layer *l, tk_pool *pool)
{
    const tk__conv *g = &l->geo;
    l->x = bench_normals(size_x(g), 1);
    l->w = bench_normals(size_w(g), 2);
    l->y = bench_normals(size_y(g), 3);
    l->bias = bench_normals(g->oc, 4);
    l->ex = (tk__exec){.kn = tk__kernels_get(),
                       .mixed = tk__mixed_get(),
                       .pool = pool,
                       .scratch_each = tk__conv_scratch(g)};
    l->ex.scratch = bench_floats(l->ex.scratch_each * tk_pool_threads(pool));
    l->packed = bench_floats(tk__conv_pack_size(g));
    l->packed_dx = bench_floats(tk__conv_dx_pack_size(g));
    l->partials = bench_floats(tk__conv_partials(&l->ex, g));
    tk__conv_pack(&l->ex, g, l->w, NULL, l->packed);
}

/* As the inference plan runs it, but for the residual. */
static void run_infer(void *ctx)
{
    layer *l = ctx;
    tk__conv_run(&l->ex, &(tk__conv_job){.geo = l->geo,
                                         .in = {.x = l->x},
                                         .packed = l->packed,
                                         .y = l->y,
                                         .bias = l->bias,
                                         .relu = true});
}

static void run_forward(void *ctx)
{
    layer *l = ctx;
    tk__conv_run_once(&l->ex, &(tk__conv_job){.geo = l->geo, .in = {.x = l->x}, .y = l->y}, l->w,
                      l->packed);
}

/* y serves as dy, and x is overwritten with its gradient. */
static void run_dx(void *ctx)
{
    layer *l = ctx;
    tk__conv_dx(&l->ex, &l->geo, l->w, l->y, l->x, false, l->packed_dx);
}

static void run_dw(void *ctx)
{
    layer *l = ctx;
    tk__conv_dw(&l->ex, &l->geo, &(tk__input){.x = l->x}, l->y, l->w, l->partials);
}

static void release(layer *l)
{
    tk_free(l->x), tk_free(l->w), tk_free(l->y), tk_free(l->bias), tk_free(l->ex.scratch);
    tk_free(l->packed), tk_free(l->packed_dx), tk_free(l->partials);
}

/* --- measuring --- */

/* Each value of x, w and y is moved once: the least that any method can do. Of x the forward pass
 * and the weight gradient read only the rows and columns that a tap falls on. */
static double compulsory_bytes(const tk__conv *g, bool all_of_x)
{
    const size_t reach = g->ky < g->stride ? g->ky : g->stride;
    const size_t h = all_of_x || g->oh * reach > g->ih ? g->ih : g->oh * reach;
    const size_t w = all_of_x || g->ow * reach > g->iw ? g->iw : g->ow * reach;
    return (double)((g->n * h * w * g->ic + size_w(g) + size_y(g)) * sizeof(float));
}

static void measure(layer *l, const char *pass, bench_fn *run, bool all_of_x, double seconds)
{
    static const char *const ways[] = {[TK__DIRECT] = "",
                                       [TK__BY_POSITION] = "by position",
                                       [TK__WINOGRAD_2] = "F(2x2)",
                                       [TK__WINOGRAD_4] = "F(4x4)"};
    const tk__conv *g = &l->geo;
    const double ms = bench_median_ms(run, l, seconds, NULL);
    /* of the direct method, which multiplies padding too */
    const double flops = 2.0 * (double)size_y(g) * (double)(g->ky * g->kx * g->ic);
    printf("%zu,%zu,%zu,%zu,%zu,%zu,%s,%s,%.5f,%.6g,%.6g\n", l->units, g->ih, g->ic, g->oc, g->ky,
           g->stride, ways[g->way], pass, ms, flops / 1e9, compulsory_bytes(g, all_of_x) / 1e9);
    fflush(stdout);
}

/* The distinct geometries of a network, in order of appearance; returns their number. */
static size_t list_layers(tk_arch arch, size_t px, size_t batch, size_t images, bool bf16,
                          layer layers[TK__MAX_UNITS])
{
    tk__layout layout;
    size_t n = 0;
    tk__layout_init(&layout, arch, px, images);
    layout.bf16 = bf16;
    for (size_t i = 0; i < layout.units; i++) {
        const tk__conv geo = tk__unit_geo(&layout, &layout.unit[i], batch);
        size_t at = 0;
        while (at < n && memcmp(&layers[at].geo, &geo, sizeof geo) != 0)
            at++;
        if (at == n) layers[n++] = (layer){.geo = geo, .first = layout.unit[i].in == TK__INPUT_MAP};
        layers[at].units++;
    }
    return n;
}

int main(int argc, char **argv)
{
    tk_diag diag;
    tk_arch arch;
    tk_pool *pool;
    layer layers[TK__MAX_UNITS];
    if (argc != 8) bench_die("usage: engine_layers KIND ARCH PX BATCH THREADS PRECISION SECONDS");
    const bool train = strcmp(argv[1], "train") == 0;
    const unsigned px = (unsigned)strtoul(argv[3], NULL, 10);
    const size_t batch = strtoul(argv[4], NULL, 10);
    const unsigned threads = (unsigned)strtoul(argv[5], NULL, 10);
    const double seconds = strtod(argv[7], NULL);
    tk_precision precision;
    if (batch == 0) bench_die("BATCH is not a positive number");
    if (tk_isa_select(getenv("TRUNKD_ISA"), &diag) != TK_OK) bench_die(diag.text);
    if (tk_precision_parse(argv[6], &precision, &diag) != TK_OK) bench_die(diag.text);
    if (precision != TK_PRECISION_FP32 && !(train && precision == TK_PRECISION_BF16))
        bench_die("the layers of this precision are not measured");
    if (tk_arch_parse(argv[2], &arch, &diag) != TK_OK) bench_die(diag.text);
    if (tk_arch_check_px(arch, px, &diag) != TK_OK) bench_die(diag.text);
    if (tk_pool_create(&pool, threads) != TK_OK) bench_die("no thread pool");

    printf("units,px,ic,oc,k,stride,way,pass,ms,gflop,gbyte\n");
    const size_t n = list_layers(arch, px, batch, train ? batch : TK__PLAN_IMAGES,
                                 precision == TK_PRECISION_BF16, layers);
    for (size_t i = 0; i < n; i++) {
        layer *l = &layers[i];
        prepare(l, pool);
        measure(l, "forward", train ? run_forward : run_infer, false, seconds);
        if (train && !l->first) measure(l, "dx", run_dx, true, seconds);
        if (train) measure(l, "dw", run_dw, false, seconds);
        release(l);
    }
    tk_pool_destroy(pool);
    return 0;
}
