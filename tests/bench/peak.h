/* What the machine can do at best, measured: the roof that the benchmarks are held against. */
#ifndef BENCH_PEAK_H
#define BENCH_PEAK_H

#include "engine/pool.h"

/* fp32 GFLOP/s (a multiply-add is two) of all threads of the pool, from loops of fused
 * multiply-adds that stay in registers, in the chosen instruction set (engine/isa.h). The best of
 * `seconds`. */
double peak_gflops(tk_pool *pool, double seconds);

/* GB/s (1e9 bytes) between memory and all threads of the pool: a = b + s * c over arrays far larger
 * than the caches, counted as McCalpin's STREAM does: two reads and one write per element. The best
 * of `seconds`. */
double peak_gbytes(tk_pool *pool, double seconds);

/* Part of the time, 0..1, in which the threads of the pool were kept from running while all of them
 * had work: by other processes or, on a virtual machine, by its host. Pauses above 20 us, in which
 * nothing but interrupts should fall. Takes `seconds`. */
double peak_lost(tk_pool *pool, double seconds);

#endif
