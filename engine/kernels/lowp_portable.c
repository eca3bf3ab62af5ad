/* The portable low-precision kernels: the oracles of the others, and what runs on a CPU without
 * the instructions. */
#include "kernels/lowp_elementwise.h"

typedef float wino_lane;
enum { WINO_LANES = 1 };

static inline float wino_load(const uint16_t *p)
{
    return tk__from_bf16(*p);
}

static inline void wino_store(uint16_t *p, float v)
{
    *p = tk__to_bf16(v);
}

static inline float wino_sums(const float *p)
{
    return *p;
}

static inline float relu(float v)
{
    return (v < 0.0f ? 0.0f : v) + 0.0f;
}

static inline float wino_relu(float v)
{
    return relu(v);
}

#include "kernels/lowp_winograd.h"

static float residual_at(const tk__lowp_gemm *g, size_t at)
{
    if (g->residual_kind == TK__MAP_U8)
        return (float)((const uint8_t *)g->residual)[at] * g->residual_scale;
    return tk__from_bf16(((const uint16_t *)g->residual)[at]);
}

/* Row i from its sums. Products and sums round one by one, as in the vector kernels. */
static void finish_row(const tk__lowp_gemm *g, size_t i, const float *sums)
{
    for (size_t j = 0; j < g->n; j++) {
        const size_t at = i * g->ldo + j;
        float v = g->scale != NULL ? sums[j] * g->scale[j] : sums[j];
        v += g->bias[j];
        if (g->residual != NULL) v += residual_at(g, at);
        if (g->relu) v = relu(v);
        if (g->out_kind == TK__MAP_U8)
            ((uint8_t *)g->out)[at] = tk__to_u8(v * g->inverse);
        else
            ((uint16_t *)g->out)[at] = tk__to_bf16(v);
    }
}

static float upper_half(uint32_t word)
{
    const uint32_t u = word & 0xffff0000u;
    float v;
    memcpy(&v, &u, sizeof v);
    return v;
}

/* Adds the products of word `a` of a row and the words b[n] beside it. */
static void bf16_step(size_t n, const unsigned char *a, const unsigned char *b, float *sums)
{
    uint32_t pair, word[TK__LOWP_NR];
    memcpy(&pair, a, sizeof pair);
    memcpy(word, b, n * 4);
    const float low = upper_half(pair << 16), high = upper_half(pair);
    for (size_t j = 0; j < n; j++) {
        sums[j] += low * upper_half(word[j] << 16);
        sums[j] += high * upper_half(word[j]);
    }
}

static void gemm_bf16(const tk__lowp_gemm *g)
{
    const size_t row = g->b_pitch != 0 ? g->b_pitch : g->n * 4;
    for (size_t i = 0; i < g->m; i++) {
        float sums[TK__LOWP_NR] = {0};
        const unsigned char *b = g->b, *a = g->a + i * g->pitch;
        for (size_t r = 0; r < g->segments; r++, a += g->segment_pitch)
            for (size_t s = 0; s < g->steps; s++, b += row)
                bf16_step(g->n, a + 4 * s, b, sums);
        float *out = (float *)g->out + i * g->ldo;
        if (g->out_kind == TK__SUMS)
            for (size_t j = 0; j < g->n; j++)
                out[j] = g->accumulate ? out[j] + sums[j] : sums[j];
        else
            finish_row(g, i, sums);
    }
}

static void int8_step(size_t n, const uint8_t *a, const int8_t *b, int32_t *sums)
{
    for (size_t j = 0; j < n; j++, b += 4)
        sums[j] += a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3];
}

static void gemm_int8(const tk__lowp_gemm *g)
{
    for (size_t i = 0; i < g->m; i++) {
        int32_t sums[TK__LOWP_NR] = {0};
        float values[TK__LOWP_NR];
        const unsigned char *b = g->b, *a = g->a + i * g->pitch;
        for (size_t r = 0; r < g->segments; r++, a += g->segment_pitch)
            for (size_t s = 0; s < g->steps; s++, b += g->n * 4)
                int8_step(g->n, a + 4 * s, (const int8_t *)b, sums);
        for (size_t j = 0; j < g->n; j++)
            values[j] = (float)sums[j];
        finish_row(g, i, values);
    }
}

const tk__lowp_kernels tk__bf16_portable = {
    .name = "bf16 portable", .gemm = gemm_bf16, TK__LOWP_BF16, TK__LOWP_WINOGRAD};
const tk__lowp_kernels tk__int8_portable = {
    .name = "int8 portable", .gemm = gemm_int8, TK__LOWP_INT8};
