/* trunkd's side of the engine benchmark: a case per line on standard input, an answer per line on
 * standard output, until end of file. engine.py asks the peers in the same words.
 *
 *     infer resnet18 224 8 2.0     ->  ok 43.1 46     median milliseconds per call, calls in 2.0 s
 *     train resnet20 32 128 2.0    ->  ok 61.0 32     forward, cross-entropy, backward, SGD
 *     version                      ->  ok 0.1.0 avx512
 *
 * Environment: BENCH_THREADS (2), TRUNKD_ISA (the best). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/graph.h"
#include "engine/isa.h"
#include "engine/linear.h"
#include "engine/mem.h"
#include "engine/optim.h"
#include "engine/plan.h"
#include "engine/rng.h"

enum { CLASSES = 100, MAX_CASES = 16, MAX_CALLS = 20000 };

/* One case, built at its first line and kept. */
typedef struct bench_case {
    char kind[16], arch_name[16];
    unsigned px;
    size_t batch;
    tk_arch arch;
    tk_params *params;
    float *x, *features;
    tk_plan *plan;         /* infer */
    tk_graph *graph;       /* train, with all that follows */
    float *fc, *dfc, *vfc; /* [CLASSES][features], then [CLASSES] of bias */
    float *logits, *dlogits, *dfeatures, *grads, *velocity;
} bench_case;

static void die(const char *what)
{
    fprintf(stderr, "engine_bench: %s\n", what);
    exit(1);
}

static float *floats(size_t n)
{
    float *p = tk_aligned_calloc(n, sizeof *p);
    if (!p) die("out of memory");
    return p;
}

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static void build_training(bench_case *c, tk_pool *pool)
{
    tk_diag diag;
    size_t head = CLASSES * (tk_arch_features(c->arch) + 1);
    if (tk_graph_create(&c->graph, c->arch, c->px, c->batch, pool, &diag) != TK_OK) die(diag.text);
    c->fc = floats(head);
    c->dfc = floats(head);
    c->vfc = floats(head);
    for (size_t i = 0; i < head; i++)
        c->fc[i] = 0.02f * tk_rng_normal(1, 3, i);
    c->logits = floats(c->batch * CLASSES);
    c->dlogits = floats(c->batch * CLASSES);
    c->dfeatures = floats(c->batch * tk_arch_features(c->arch));
    c->grads = floats(c->params->trained);
    c->velocity = floats(c->params->trained);
}

static void build(bench_case *c, tk_pool *pool)
{
    tk_diag diag;
    if (tk_arch_parse(c->arch_name, &c->arch, &diag) != TK_OK) die(diag.text);
    if (tk_params_create(&c->params, c->arch) != TK_OK) die("out of memory");
    tk_params_init(c->params, 1);
    size_t pixels = c->batch * c->px * c->px * 3;
    c->x = floats(pixels);
    for (size_t i = 0; i < pixels; i++)
        c->x[i] = tk_rng_normal(1, 2, i);
    c->features = floats(c->batch * tk_arch_features(c->arch));
    if (strcmp(c->kind, "train") == 0)
        build_training(c, pool);
    else if (tk_plan_create(&c->plan, c->params, c->px, c->batch, pool, &diag) != TK_OK)
        die(diag.text);
}

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

static void train_step(bench_case *c, tk_pool *pool)
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
    tk_sgd_step_params(c->params, c->grads, c->velocity, lr, momentum, decay, 1, pool);
    tk_sgd_step(weights, c->fc, c->dfc, c->vfc, lr, momentum, decay, 1);
    tk_sgd_step(CLASSES, c->fc + weights, c->dfc + weights, c->vfc + weights, lr, momentum, 0, 1);
}

static void call(bench_case *c, tk_pool *pool)
{
    if (c->graph)
        train_step(c, pool);
    else
        tk_plan_run(c->plan, c->batch, c->x, c->features);
}

static int by_size(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Median milliseconds of the calls that fit into `seconds`, after one that is not counted. */
static double measure(bench_case *c, tk_pool *pool, double seconds, size_t *calls)
{
    static double times[MAX_CALLS];
    call(c, pool);
    double end = now_ms() + seconds * 1e3;
    size_t n = 0;
    while (n < MAX_CALLS && (n < 3 || now_ms() < end)) {
        double start = now_ms();
        call(c, pool);
        times[n++] = now_ms() - start;
    }
    qsort(times, n, sizeof *times, by_size);
    *calls = n;
    return times[n / 2];
}

/* The case of a line, built if it is new. */
static bench_case *find_case(const bench_case *asked, tk_pool *pool)
{
    static bench_case cases[MAX_CASES];
    static size_t n;
    for (size_t i = 0; i < n; i++) {
        const bench_case *c = &cases[i];
        if (strcmp(c->kind, asked->kind) == 0 && strcmp(c->arch_name, asked->arch_name) == 0 &&
            c->px == asked->px && c->batch == asked->batch)
            return &cases[i];
    }
    if (n == MAX_CASES) die("too many cases");
    cases[n] = *asked;
    build(&cases[n], pool);
    return &cases[n++];
}

static void answer(const char *line, tk_pool *pool)
{
    bench_case asked = {0};
    double seconds;
    size_t calls;
    if (strcmp(line, "version\n") == 0) {
        printf("ok %s %s\n", TRUNKD_VERSION, tk_isa_name());
    } else if (sscanf(line, "%15s %15s %u %zu %lf", asked.kind, asked.arch_name, &asked.px,
                      &asked.batch, &seconds) == 5 &&
               asked.batch > 0) {
        double ms = measure(find_case(&asked, pool), pool, seconds, &calls);
        printf("ok %.4f %zu\n", ms, calls);
    } else {
        printf("error: want KIND ARCH PX BATCH SECONDS\n");
    }
    fflush(stdout);
}

int main(void)
{
    tk_diag diag;
    tk_pool *pool;
    char line[256];
    const char *threads = getenv("BENCH_THREADS");
    if (tk_isa_select(getenv("TRUNKD_ISA"), &diag) != TK_OK) die(diag.text);
    if (tk_pool_create(&pool, threads ? (unsigned)strtoul(threads, NULL, 10) : 2) != TK_OK)
        die("no thread pool");
    while (fgets(line, sizeof line, stdin))
        answer(line, pool);
    tk_pool_destroy(pool);
    return 0;
}
