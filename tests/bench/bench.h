/* What the benchmark programs share: memory that is there or the program ends, a clock, and the
 * time of a call. */
#ifndef BENCH_BENCH_H
#define BENCH_BENCH_H

#include <stddef.h>
#include <stdint.h>
#include <stdnoreturn.h>

noreturn void bench_die(const char *what);
/* Aligned and zero, or normal numbers from a stream of seed 1; free with tk_free(). */
float *bench_floats(size_t n);
float *bench_normals(size_t n, uint64_t stream);

double bench_now_ms(void);

/* What a measurement calls over and over. */
typedef void bench_fn(void *ctx);
/* Median milliseconds of the calls that fit into `seconds` (at least 3), after one that is not
 * counted. *calls, unless NULL, is their number. */
double bench_median_ms(bench_fn *call, void *ctx, double seconds, size_t *calls);

#endif
