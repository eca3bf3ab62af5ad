/* Kernels of the low-precision plans: one table per precision and instruction set, filled the same
 * way; the portable ones are the oracles.
 *
 * The matrix product walks K in steps of four bytes: two bfloat16 or four bytes of a row of A, and
 * as many for each column of B. B is packed in panels of up to 32 columns, [steps][width] words of
 * four bytes, width = tk__lowp_width(). Sums are fp32 (bf16) or int32 (int8). Every output element
 * is one chain over k in rising order, whatever tile it falls into.
 *
 * bf16 rounds to nearest even; NaN goes through. int8 rounds to nearest even, saturates, and takes
 * NaN for the smallest value. */
#ifndef KERNELS_LOWP_H
#define KERNELS_LOWP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "engine/precision.h"
#include "kernels/kernels.h"

enum {
    TK__LOWP_NR = 32,    /* columns of a panel */
    TK__LOWP_MR = 14,    /* rows of a register tile */
    TK__LOWP_SLACK = 64, /* bytes that copies may read and write beyond a buffer's contents */
    TK__WINOGRAD_CHANNELS = 512, /* at most */
    TK__U8_ZERO = 128,           /* the byte that stands for 0 in the quantised input image */
};

/* What a map holds; sums are fp32 and come without an epilogue but `accumulate` (bf16 only). A byte
 * q of a u8 map means q * scale; it is made by round(v * inverse). */
typedef enum tk__lowp_kind { TK__MAP_BF16, TK__MAP_U8, TK__SUMS } tk__lowp_kind;

/* out[m][n] = relu?(a[m][k] b[k][n] * scale + bias + residual). A row of A is `segments` runs of
 * `steps` words: of a convolution that reads its input in place, a run for each row of taps. */
typedef struct tk__lowp_gemm {
    size_t m, n, segments, steps; /* n: 16 or 32 */
    const unsigned char *a;       /* run s of row i at a + i * pitch + s * segment_pitch, bytes */
    size_t pitch, segment_pitch;
    const unsigned char *b; /* [segments * steps][n] words */
    size_t b_pitch;         /* bytes from row to row of b; 0: they lie close */
    const float *scale;     /* [n]; int8 only */
    const float *bias;      /* [n] */
    tk__lowp_kind residual_kind, out_kind;
    const void *residual; /* laid out as out, or NULL */
    float residual_scale, inverse;
    bool accumulate; /* sums only: add to what out holds */
    bool relu;       /* -0 becomes 0. u8 output is never negative, with or without */
    void *out;
    size_t ldo; /* elements from row to row */
} tk__lowp_gemm;

/* A 3x3 convolution with padding 1 as F(2x2, 3x3), all in bfloat16 (lowp_winograd.h). Tiles of 2x2
 * output pixels are counted through the batch. */
typedef struct tk__winograd {
    size_t h, w, ic, oc;      /* input and output are both h x w */
    size_t tiles_y, tiles_x;  /* per image */
    const uint16_t *x;        /* [n][h][w][ic] */
    const float *bias;        /* [oc] */
    const uint16_t *residual; /* as y, or NULL */
    bool relu;
    uint16_t *y; /* [n][h][w][oc] */
} tk__winograd;

typedef struct tk__lowp_kernels {
    const char *name; /* "bf16 portable", ... */
    size_t element;   /* bytes of a map's element */
    void (*gemm)(const tk__lowp_gemm *g);
    /* n values of the input image: bfloat16 (inverse is not used), or bytes around TK__U8_ZERO */
    void (*load)(size_t n, const float *x, float inverse, void *y);
    /* Patch rows m0..m0+rows-1 into out, `pitch` bytes from row to row. geo->ic counts bytes. */
    void (*patches)(const tk__conv *geo, const unsigned char *x, size_t m0, size_t rows,
                    unsigned char *out, size_t pitch);
    /* Tiles tile0.. into v [16][tiles][ic]; columns j..j+n-1 of tiles from m [16][tiles][NR]. bf16
     * only. */
    void (*winograd_in)(const tk__winograd *w, size_t tile0, size_t tiles, uint16_t *v);
    void (*winograd_out)(const tk__winograd *w, size_t tile0, size_t tiles, size_t j, size_t n,
                         const float *m);
    /* Output rows y0..y1-1 of one image; values are 0 and above, or NaN, not -0. */
    void (*max_pool)(const tk__pool_shape *s, size_t y0, size_t y1, const void *x, void *y);
    void (*avg_pool)(size_t rows, size_t c, const uint16_t *x, float *y); /* of bfloat16 */
} tk__lowp_kernels;

extern const tk__lowp_kernels tk__bf16_portable, tk__int8_portable;
#if defined(__x86_64__)
extern const tk__lowp_kernels tk__bf16_avx512, tk__int8_avx512;
#endif

/* The table for a precision that is not fp32: the CPU's own, or the portable one. */
const tk__lowp_kernels *tk__lowp_get(tk_precision precision);

static inline size_t tk__lowp_width(size_t n)
{
    return n < TK__LOWP_NR ? n : TK__LOWP_NR;
}

/* Round to nearest even; a NaN stays one. */
static inline uint16_t tk__to_bf16(float v)
{
    uint32_t u;
    memcpy(&u, &v, sizeof u);
    const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    return (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40u : rounded);
}

static inline float tk__from_bf16(uint16_t h)
{
    const uint32_t u = (uint32_t)h << 16;
    float v;
    memcpy(&v, &u, sizeof v);
    return v;
}

/* 0..255; NaN becomes 0. Adding 1.5 * 2^23 rounds to an integer, to nearest even. */
static inline uint8_t tk__to_u8(float v)
{
    const float low = v > 0.0f ? v : 0.0f, clipped = low < 255.0f ? low : 255.0f;
    return (uint8_t)(int)((clipped + 12582912.0f) - 12582912.0f);
}

#endif
