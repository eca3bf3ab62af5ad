#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "engine/mem.h"
#include "engine/rng.h"

void bench_die(const char *what)
{
    fprintf(stderr, "bench: %s\n", what);
    exit(1);
}

float *bench_floats(size_t n)
{
    float *p = tk_aligned_calloc(n, sizeof *p);
    if (p == NULL) bench_die("out of memory");
    return p;
}

float *bench_normals(size_t n, uint64_t stream)
{
    float *p = bench_floats(n);
    for (size_t i = 0; i < n; i++)
        p[i] = tk_rng_normal(1, stream, i);
    return p;
}

double bench_now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static int by_size(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median_ms(bench_fn *call, void *ctx, double seconds, size_t *calls)
{
    enum { MAX_CALLS = 20000 };
    static double times[MAX_CALLS];
    call(ctx);
    const double end = bench_now_ms() + seconds * 1e3;
    size_t n = 0;
    while (n < MAX_CALLS && (n < 3 || bench_now_ms() < end)) {
        const double start = bench_now_ms();
        call(ctx);
        times[n++] = bench_now_ms() - start;
    }
    qsort(times, n, sizeof *times, by_size);
    if (calls != NULL) *calls = n;
    return times[n / 2];
}
