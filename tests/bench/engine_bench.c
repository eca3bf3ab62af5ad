/* trunkd's side of the engine benchmark: a request per line on standard input, an answer per line
 * on standard output, until end of file. engine.py asks the peers in the same words.
 *
 *     version                              ->  ok 0.1.0 avx512
 *     infer resnet18 224 8 2 fp32 2.0      ->  ok 43.1 46    a case, and for how many seconds
 *     train resnet20 32 128 2 fp32 2.0     ->  ok 61.0 32    median milliseconds per call, calls
 *     memory train resnet18 64 64 2 fp32   ->  ok 310.2      MiB
 *     peak 2 1.0                           ->  ok 236 41 0.3 GFLOP/s, GB/s and % lost, as in peak.h
 *
 * A case is KIND ARCH PX BATCH THREADS PRECISION; a call of `train` is forward, cross-entropy,
 * backward and SGD. Memory is what building the case and a few calls add to the peak of the
 * process: the first request of a process only. What cannot be done is answered `error: ...`.
 *
 * Environment: TRUNKD_ISA (the best). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "engine/graph.h"
#include "engine/isa.h"
#include "engine/linear.h"
#include "engine/mem.h"
#include "engine/optim.h"
#include "engine/plan.h"
#include "engine/rng.h"
#include "peak.h"

enum { CLASSES = 100, MAX_CASES = 64, MAX_THREADS = 256, MEMORY_CALLS = 3 };

/* One case, built at its first request and kept. */
typedef struct bench_case {
    char kind[16], arch_name[16], precision[16];
    unsigned px, threads;
    size_t batch;
    tk_arch arch;
    tk_pool *pool;
    tk_params *params;
    float *x, *features;
    tk_plan *plan;         /* infer */
    tk_graph *graph;       /* train, with all that follows */
    float *fc, *dfc, *vfc; /* [CLASSES][features], then [CLASSES] of bias */
    float *logits, *dlogits, *dfeatures, *grads, *velocity;
} bench_case;

/* The pool of so many threads, made when first asked for; idle ones sleep. */
static tk_pool *pool_of(unsigned threads)
{
    static tk_pool *pools[MAX_THREADS + 1];
    if (pools[threads] == NULL && tk_pool_create(&pools[threads], threads) != TK_OK)
        bench_die("no thread pool");
    return pools[threads];
}

/* --- cases --- */

/* The ranges of int8, from the images that will be run. */
static tk_err calibrate(const bench_case *c, tk_calibration *ranges, tk_diag *diag)
{
    tk_plan *plan;
    tk_err err = tk_plan_create(&plan, c->params, c->px, c->batch, c->pool, diag);
    if (err == TK_OK) err = tk_plan_calibrate(plan, c->batch, c->x, ranges, diag);
    tk_plan_destroy(plan);
    return err;
}

/* The plan or graph. The one place that knows in which precisions the engine can compute. */
static tk_err create_engine(bench_case *c, tk_diag *diag)
{
    tk_precision precision;
    tk_calibration ranges = {0};
    tk_err err = tk_precision_parse(c->precision, &precision, diag);
    if (err == TK_OK && strcmp(c->kind, "train") == 0)
        return tk_graph_create_as(&c->graph, c->arch, c->px, c->batch, precision, c->pool, diag);
    if (err == TK_OK && strcmp(c->kind, "infer") != 0)
        err = tk_fail(diag, TK_BADARG, "'%s' is neither infer nor train", c->kind);
    if (err == TK_OK && precision == TK_PRECISION_INT8) err = calibrate(c, &ranges, diag);
    if (err != TK_OK) return err;
    return tk_plan_create_as(&c->plan, c->params, c->px, c->batch, precision, &ranges, c->pool,
                             diag);
}

/* The head on the features, and what a step needs beside the graph. */
static void build_head(bench_case *c)
{
    const size_t features = tk_arch_features(c->arch), head = CLASSES * (features + 1);
    c->fc = bench_normals(head, 3);
    for (size_t i = 0; i < head; i++)
        c->fc[i] *= 0.02f;
    c->dfc = bench_floats(head);
    c->vfc = bench_floats(head);
    c->logits = bench_floats(c->batch * CLASSES);
    c->dlogits = bench_floats(c->batch * CLASSES);
    c->dfeatures = bench_floats(c->batch * features);
    c->grads = bench_floats(c->params->trained);
    c->velocity = bench_floats(c->params->trained);
}

static tk_err build(bench_case *c, tk_diag *diag)
{
    tk_err err = tk_arch_parse(c->arch_name, &c->arch, diag);
    if (err != TK_OK) return err;
    if (tk_params_create(&c->params, c->arch) != TK_OK) bench_die("out of memory");
    tk_params_init(c->params, 1);
    c->pool = pool_of(c->threads);
    c->x = bench_normals(c->batch * c->px * c->px * 3, 2);
    err = create_engine(c, diag);
    if (err != TK_OK) {
        tk_free(c->x);
        tk_params_destroy(c->params);
        return err;
    }
    c->features = bench_floats(c->batch * tk_arch_features(c->arch));
    if (c->graph != NULL) build_head(c);
    return TK_OK;
}

static bool same_case(const bench_case *a, const bench_case *b)
{
    return strcmp(a->kind, b->kind) == 0 && strcmp(a->arch_name, b->arch_name) == 0 &&
           a->px == b->px && a->batch == b->batch && a->threads == b->threads &&
           strcmp(a->precision, b->precision) == 0;
}

/* The case of these words, built if it is new; NULL if it cannot be built. */
static bench_case *find_case(const bench_case *asked, tk_diag *diag)
{
    static bench_case cases[MAX_CASES];
    static size_t n;
    for (size_t i = 0; i < n; i++)
        if (same_case(&cases[i], asked)) return &cases[i];
    if (n == MAX_CASES) bench_die("too many cases");
    cases[n] = *asked;
    return build(&cases[n], diag) == TK_OK ? &cases[n++] : NULL;
}

/* --- what is timed --- */

/* Gradient of the mean cross-entropy; image i has label i mod CLASSES. */
static void cross_entropy(size_t n, const float *logits, float *dlogits)
{
    for (size_t i = 0; i < n; i++) {
        const float *z = logits + i * CLASSES;
        float *d = dlogits + i * CLASSES, top = z[0], sum = 0;
        for (size_t k = 1; k < CLASSES; k++)
            top = fmaxf(top, z[k]);
        for (size_t k = 0; k < CLASSES; k++)
            sum += d[k] = expf(z[k] - top);
        for (size_t k = 0; k < CLASSES; k++)
            d[k] = (d[k] / sum - (k == i % CLASSES ? 1.0f : 0.0f)) / (float)n;
    }
}

static void train_step(bench_case *c)
{
    const size_t n = c->batch, f = tk_arch_features(c->arch), weights = CLASSES * f;
    const float lr = 0.001f, momentum = 0.9f, decay = 5e-4f;
    const float *features;
    tk_graph_forward(c->graph, c->params, n, c->x, TK_BN_BATCH, &features);
    tk_linear_forward(n, f, CLASSES, features, c->fc, c->fc + weights, c->logits);
    cross_entropy(n, c->logits, c->dlogits);
    tk_linear_backward(n, f, CLASSES, features, c->fc, c->dlogits, c->dfeatures, 0, c->dfc,
                       c->dfc + weights);
    tk_graph_backward(c->graph, c->params, c->dfeatures, c->grads);
    tk_sgd_step_params(c->params, c->grads, c->velocity, lr, momentum, decay, 1, c->pool);
    tk_sgd_step(weights, c->fc, c->dfc, c->vfc, lr, momentum, decay, 1);
    tk_sgd_step(CLASSES, c->fc + weights, c->dfc + weights, c->vfc + weights, lr, momentum, 0, 1);
}

static void call_case(void *ctx)
{
    bench_case *c = ctx;
    if (c->graph)
        train_step(c);
    else
        tk_plan_run(c->plan, c->batch, c->x, c->features);
}

/* --- requests --- */

/* MiB in a field of /proc/self/status. (Not ru_maxrss: it survives exec, and so may be the
 * parent's.) */
static double status_mib(const char *field)
{
    char line[256];
    unsigned long kib = 0;
    FILE *f = fopen("/proc/self/status", "r");
    if (f == NULL) bench_die("no /proc/self/status");
    while (fgets(line, sizeof line, f))
        if (strncmp(line, field, strlen(field)) == 0) sscanf(line + strlen(field), ": %lu", &kib);
    fclose(f);
    return (double)kib / 1024;
}

static tk_err answer_memory(const bench_case *asked, tk_diag *diag)
{
    const double before = status_mib("VmRSS");
    bench_case *c = find_case(asked, diag);
    if (c == NULL) return TK_BADARG;
    for (int i = 0; i < MEMORY_CALLS; i++)
        call_case(c);
    printf("ok %.1f\n", status_mib("VmHWM") - before);
    return TK_OK;
}

static tk_err answer_case(const bench_case *asked, double seconds, tk_diag *diag)
{
    size_t calls;
    bench_case *c = find_case(asked, diag);
    if (c == NULL) return TK_BADARG;
    const double ms = bench_median_ms(call_case, c, seconds, &calls);
    printf("ok %.4f %zu\n", ms, calls);
    return TK_OK;
}

static void answer_peak(unsigned threads, double seconds)
{
    tk_pool *pool = pool_of(threads);
    const double gflops = peak_gflops(pool, seconds / 3);
    const double gbytes = peak_gbytes(pool, seconds / 3);
    printf("ok %.1f %.1f %.2f\n", gflops, gbytes, 100 * peak_lost(pool, seconds / 3));
}

/* The six words of a case, and where they end. */
static bool parse_case(const char *line, bench_case *c, int *end)
{
    return sscanf(line, "%15s %15s %u %zu %u %15s%n", c->kind, c->arch_name, &c->px, &c->batch,
                  &c->threads, c->precision, end) == 6 &&
           c->batch > 0 && c->threads > 0 && c->threads <= MAX_THREADS;
}

static tk_err answer(const char *line, tk_diag *diag)
{
    bench_case asked = {0};
    double seconds;
    unsigned threads;
    int end = 0;
    if (strcmp(line, "version\n") == 0) {
        printf("ok %s %s\n", TRUNKD_VERSION, tk_isa_name());
        return TK_OK;
    }
    if (sscanf(line, "peak %u %lf", &threads, &seconds) == 2 && threads > 0 &&
        threads <= MAX_THREADS) {
        answer_peak(threads, seconds);
        return TK_OK;
    }
    if (strncmp(line, "memory ", 7) == 0 && parse_case(line + 7, &asked, &end))
        return answer_memory(&asked, diag);
    if (parse_case(line, &asked, &end) && sscanf(line + end, "%lf", &seconds) == 1)
        return answer_case(&asked, seconds, diag);
    return tk_fail(diag, TK_BADARG, "want KIND ARCH PX BATCH THREADS PRECISION SECONDS");
}

int main(void)
{
    tk_diag diag;
    char line[256];
    if (tk_isa_select(getenv("TRUNKD_ISA"), &diag) != TK_OK) bench_die(diag.text);
    while (fgets(line, sizeof line, stdin)) {
        if (answer(line, &diag) != TK_OK) printf("error: %s\n", diag.text);
        fflush(stdout);
    }
    return 0;
}
