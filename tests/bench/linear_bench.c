/* The linear layer against OpenBLAS's serial build, on one thread: why the engine has its own
 * matrix products. Prints a line per shape: images x features -> classes, GFLOP/s of both, and
 * their ratio (best of the rounds).
 *
 * OpenBLAS is only measured against, not linked into the engine, for a second reason too: Debian's
 * serial build (0.3.21) hands one work buffer to concurrent callers, and so gives wrong products
 * when several threads of one process call it. */
#include <stdio.h>
#include <string.h>

#include <cblas.h>

#include "bench.h"
#include "engine/isa.h"
#include "engine/linear.h"
#include "engine/mem.h"

typedef struct shape {
    size_t n, f, c;
} shape;

static const shape shapes[] = {
    {1, 64, 10},     {1, 512, 10}, {1, 512, 100},   {1, 2048, 1000},   {8, 512, 100},
    {8, 2048, 1000}, {64, 64, 20}, {128, 512, 200}, {128, 2048, 1000},
};

typedef void product(const shape *s, const float *x, const float *w, const float *b, float *y);

static void ours(const shape *s, const float *x, const float *w, const float *b, float *y)
{
    tk_linear_forward(s->n, s->f, s->c, x, w, b, y);
}

static void openblas(const shape *s, const float *x, const float *w, const float *b, float *y)
{
    const int n = (int)s->n, f = (int)s->f, c = (int)s->c;
    for (size_t i = 0; i < s->n; i++)
        memcpy(y + i * s->c, b, s->c * sizeof *y);
    if (n == 1)
        cblas_sgemv(CblasRowMajor, CblasNoTrans, c, f, 1.0f, w, f, x, 1, 1.0f, y, 1);
    else
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, n, c, f, 1.0f, x, f, w, f, 1.0f, y, c);
}

/* Seconds of one call. */
static double time_of(product *run, const shape *s, const float *x, const float *w, const float *b,
                      float *y)
{
    const size_t times = 1 + 20000000 / (s->n * s->f * s->c);
    const double start = bench_now_ms();
    for (size_t i = 0; i < times; i++)
        run(s, x, w, b, y);
    return (bench_now_ms() - start) / 1e3 / (double)times;
}

static void measure(const shape *s)
{
    enum { ROUNDS = 15 };
    float *x = bench_normals(s->n * s->f, 1), *w = bench_normals(s->c * s->f, 2),
          *b = bench_normals(s->c, 3);
    float *y = bench_normals(s->n * s->c, 4);
    double best[2] = {1e9, 1e9};
    for (int round = 0; round < ROUNDS; round++) {
        const double a = time_of(ours, s, x, w, b, y), o = time_of(openblas, s, x, w, b, y);
        if (a < best[0]) best[0] = a;
        if (o < best[1]) best[1] = o;
    }
    const double flop = 2e-9 * (double)(s->n * s->f * s->c);
    printf("%4zu x %4zu -> %4zu  %8.1f  %8.1f  %6.2f\n", s->n, s->f, s->c, flop / best[0],
           flop / best[1], best[1] / best[0]);
    tk_free(x);
    tk_free(w);
    tk_free(b);
    tk_free(y);
}

int main(void)
{
    printf(
        "# %s against %s, one thread, GFLOP/s\n#                        ours  OpenBLAS   ratio\n",
        tk_isa_name(), openblas_get_config());
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        measure(&shapes[i]);
    return 0;
}
