/* Peaks by brute force. Each round cuts the same work into a few tasks per thread and is timed
 * whole; the fastest round counts, since whatever else the machine does only slows a round down. */
#include "peak.h"

#include <string.h>

#include "bench.h"
#include "engine/isa.h"
#include "engine/mem.h"

enum {
    TASKS_EACH = 4,
    CHAINS = 12, /* sums in flight: two units of latency 4 need 8; 12 vectors and two factors fit 16
                    registers */
    STEPS = 200000,
    MAX_LANES = 16,
};

/* Seconds of the fastest round within `seconds`. */
static double fastest(tk_pool *pool, size_t tasks, tk_pool_fn *fn, void *ctx, double seconds)
{
    const double end = bench_now_ms() + seconds * 1e3;
    double best = 1e30;
    for (int round = 0; round < 3 || bench_now_ms() < end; round++) {
        const double start = bench_now_ms();
        tk_pool_run(pool, tasks, fn, ctx);
        const double took = bench_now_ms() - start;
        if (round > 0 && took < best) best = took; /* the first one wakes the threads */
    }
    return best / 1e3;
}

/* --- arithmetic --- */

/* STEPS times acc[i] = acc[i] * x + y over CHAINS vectors of the given type; the factor below one
 * keeps the numbers finite and normal. All of them go to `sink`, so that no chain is optimised
 * away. */
#define FMA_LOOP(name, isa, vector, set1, fma, store)                                              \
    isa static void name(float *sink)                                                              \
    {                                                                                              \
        vector acc[CHAINS];                                                                        \
        const vector x = set1(0.999f), y = set1(0.001f);                                           \
        for (int i = 0; i < CHAINS; i++)                                                           \
            acc[i] = set1((float)i);                                                               \
        for (int step = 0; step < STEPS; step++)                                                   \
            _Pragma("GCC unroll 12") for (int i = 0; i < CHAINS; i++) acc[i] = fma(acc[i], x, y);  \
        for (int i = 0; i < CHAINS; i++)                                                           \
            store(sink + i * MAX_LANES, acc[i]);                                                   \
    }

typedef void fma_loop(float *sink); /* [CHAINS][MAX_LANES] */

#if defined(__x86_64__)
#include <immintrin.h>
FMA_LOOP(fma_avx512, __attribute__((target("avx512f"))), __m512, _mm512_set1_ps, _mm512_fmadd_ps,
         _mm512_storeu_ps)
FMA_LOOP(fma_avx2, __attribute__((target("avx2,fma"))), __m256, _mm256_set1_ps, _mm256_fmadd_ps,
         _mm256_storeu_ps)
#endif

/* What plain C gives: vectors of 4, a multiplication and an addition. */
typedef float vec4 __attribute__((vector_size(16)));

static inline vec4 vec4_set1(float v)
{
    return (vec4){v, v, v, v};
}

static inline vec4 vec4_fma(vec4 a, vec4 x, vec4 y)
{
    return a * x + y;
}

static inline void vec4_store(float *to, vec4 v)
{
    memcpy(to, &v, sizeof v);
}

FMA_LOOP(fma_plain, , vec4, vec4_set1, vec4_fma, vec4_store)

static fma_loop *choose_loop(size_t *lanes)
{
#if defined(__x86_64__)
    if (strcmp(tk_isa_name(), "avx512") == 0) {
        *lanes = 16;
        return fma_avx512;
    }
    if (strcmp(tk_isa_name(), "avx2") == 0) {
        *lanes = 8;
        return fma_avx2;
    }
#endif
    *lanes = 4;
    return fma_plain;
}

static void fma_task(void *ctx, size_t task, size_t thread)
{
    fma_loop *const *loop = ctx;
    volatile float keep;
    float sink[CHAINS * MAX_LANES];
    (void)task, (void)thread;
    (*loop)(sink);
    keep = sink[0];
    (void)keep;
}

double peak_gflops(tk_pool *pool, double seconds)
{
    size_t lanes;
    fma_loop *loop = choose_loop(&lanes);
    const size_t tasks = (size_t)TASKS_EACH * tk_pool_threads(pool);
    const double took = fastest(pool, tasks, fma_task, &loop, seconds);
    return 2.0 * (double)(tasks * lanes) * CHAINS * STEPS / took / 1e9;
}

/* --- memory --- */

typedef struct triad {
    size_t n; /* per task */
    float *a;
    const float *b, *c;
} triad;

static void triad_task(void *ctx, size_t task, size_t thread)
{
    const triad *t = ctx;
    float *restrict a = t->a + task * t->n;
    const float *restrict b = t->b + task * t->n, *restrict c = t->c + task * t->n;
    (void)thread;
    for (size_t i = 0; i < t->n; i++)
        a[i] = b[i] + 3.0f * c[i];
}

double peak_gbytes(tk_pool *pool, double seconds)
{
    const size_t floats = (size_t)32 << 20; /* 128 MiB an array */
    const size_t tasks = (size_t)TASKS_EACH * tk_pool_threads(pool);
    float *a = bench_floats(floats), *b = bench_floats(floats), *c = bench_floats(floats);
    triad t = {.n = floats / tasks, .a = a, .b = b, .c = c};
    const double took = fastest(pool, tasks, triad_task, &t, seconds);
    tk_free(a), tk_free(b), tk_free(c);
    return 3.0 * (double)(tasks * t.n * sizeof *a) / took / 1e9;
}

/* --- what others take --- */

typedef struct vigil {
    double ms;
    double *lost; /* [threads], ms */
} vigil;

static void vigil_task(void *ctx, size_t task, size_t thread)
{
    const double pause = 0.02;
    const vigil *v = ctx;
    (void)thread;
    double now = bench_now_ms(), lost = 0;
    for (const double end = now + v->ms; now < end;) {
        const double before = now;
        now = bench_now_ms();
        if (now - before > pause) lost += now - before;
    }
    v->lost[task] = lost;
}

double peak_lost(tk_pool *pool, double seconds)
{
    const size_t threads = tk_pool_threads(pool);
    double *lost = tk_calloc(threads, sizeof *lost), sum = 0;
    if (lost == NULL) bench_die("out of memory");
    tk_pool_run(pool, threads, vigil_task, &(vigil){seconds * 1e3, lost});
    for (size_t i = 0; i < threads; i++)
        sum += lost[i];
    tk_free(lost);
    return sum / (seconds * 1e3 * (double)threads);
}
