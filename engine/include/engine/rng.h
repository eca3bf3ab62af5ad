/* Counter-based random numbers: a value is a pure function of (seed, stream, index), so that work can
 * be done in any order, by any thread, and resumed, with the same bits. The mixing function is
 * SplitMix64's finaliser (Steele, Lea, Flood, "Fast splittable pseudorandom number generators",
 * OOPSLA 2014) applied twice; `tests/golden/rng.py` is the same in Python. */
#ifndef ENGINE_RNG_H
#define ENGINE_RNG_H

#include <stddef.h>
#include <stdint.h>

uint64_t tk_rng_u64(uint64_t seed, uint64_t stream, uint64_t index);
/* Uniform in [0, 1) with 24 bits: (u64 >> 40) * 2^-24. */
float tk_rng_uniform(uint64_t seed, uint64_t stream, uint64_t index);
/* Standard normal by Box-Muller on the two halves of one u64, in double, rounded once to float. */
float tk_rng_normal(uint64_t seed, uint64_t stream, uint64_t index);
/* Uniform in [0, n); n > 0. */
uint32_t tk_rng_below(uint64_t seed, uint64_t stream, uint64_t index, uint32_t n);
/* Writes a permutation of 0..n-1 (Fisher-Yates). */
void tk_rng_permutation(uint64_t seed, uint64_t stream, size_t n, uint32_t *out);
/* 64-bit hash of a name (FNV-1a), for use as a stream. */
uint64_t tk_rng_stream(const char *name);

#endif
