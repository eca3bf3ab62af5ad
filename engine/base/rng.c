/* Counter-based random numbers; the arithmetic is restated in tests/golden/rng.py. */
#include "engine/rng.h"

#include <assert.h>
#include <math.h>

static const uint64_t GOLDEN_GAMMA = 0x9e3779b97f4a7c15u; /* 2^64 / golden ratio, odd */

static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

uint64_t tk_rng_u64(uint64_t seed, uint64_t stream, uint64_t index)
{
    uint64_t key = mix(seed + GOLDEN_GAMMA * (stream + 1));
    return mix(key + GOLDEN_GAMMA * (index + 1));
}

float tk_rng_uniform(uint64_t seed, uint64_t stream, uint64_t index)
{
    return (float)(tk_rng_u64(seed, stream, index) >> 40) * 0x1p-24f;
}

float tk_rng_normal(uint64_t seed, uint64_t stream, uint64_t index)
{
    uint64_t u = tk_rng_u64(seed, stream, index);
    double u1 = (double)((u >> 32) + 1) * 0x1p-32; /* (0, 1]: the logarithm is finite */
    double u2 = (double)(u & 0xffffffffu) * 0x1p-32;
    return (float)(sqrt(-2.0 * log(u1)) * cos(6.283185307179586 * u2));
}

uint32_t tk_rng_below(uint64_t seed, uint64_t stream, uint64_t index, uint32_t n)
{
    assert(n > 0);
    /* Multiply and shift; the bias, at most n / 2^32, does not matter here. */
    return (uint32_t)(((tk_rng_u64(seed, stream, index) >> 32) * n) >> 32);
}

void tk_rng_permutation(uint64_t seed, uint64_t stream, size_t n, uint32_t *out)
{
    assert(n <= UINT32_MAX);
    for (size_t i = 0; i < n; i++)
        out[i] = (uint32_t)i;
    for (size_t i = n; i > 1; i--) {
        uint32_t j = tk_rng_below(seed, stream, i - 1, (uint32_t)i);
        uint32_t last = out[i - 1];
        out[i - 1] = out[j];
        out[j] = last;
    }
}

uint64_t tk_rng_stream(const char *name)
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (const unsigned char *p = (const unsigned char *)name; *p; p++)
        hash = (hash ^ *p) * 0x100000001b3u;
    return hash;
}
