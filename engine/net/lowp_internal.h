/* The inside of a low-precision plan, shared by its makers (plan_lowp.c, lowp_pack.c) and its
 * convolutions (lowp_conv.c). */
#ifndef NET_LOWP_INTERNAL_H
#define NET_LOWP_INTERNAL_H

#include "kernels/lowp.h"
#include "net/plan_lowp.h"
#include "net/route.h"

enum { TK__LOWP_ALIGN = 64, TK__POSITIONS = 16 };

/* How a unit's matrix product reads its rows (one per output pixel; A in tk__lowp_gemm) from the
 * input map. The less is copied, the better. */
typedef enum tk__lowp_way {
    TK__IN_PLACE_ROWS,  /* 1x1 without a stride: where they lie, any number at a time */
    TK__IN_PLACE_LINES, /* without padding: a line of output pixels, whose taps in one input line
                           are one run of bytes. The image is loaded with padding of its own. */
    TK__STRIPS,         /* the same from a copy of a block's input lines with zeros around */
    TK__PATCHES,        /* im2col, where lines are shorter than a register tile */
    TK__WINOGRAD, /* F(2x2, 3x3), 3x3 without a stride in bf16; segments are the 16 positions */
} tk__lowp_way;

typedef struct tk__lowp_unit {
    tk__conv geo; /* of one image, ic in bytes; the stem's reads the padded input */
    tk__lowp_way way;
    size_t segments, steps, segment_pitch, pitch; /* of A, as in tk__lowp_gemm */
    unsigned char *packed;                        /* panels of [segments * steps][width] words */
    float *scale, *bias;                          /* [oc]; scale is NULL for bf16 */
} tk__lowp_unit;

/* In an int8 plan maps are u8 with a scale each (zero is zero: they come out of a ReLU), but for
 * shortcut convolutions, which are only ever added, and the last map, which is only averaged: both
 * are bfloat16. The input image is u8 around TK__U8_ZERO. */
struct tk__lowp_plan {
    tk__layout layout;
    const tk__lowp_kernels *kn;
    tk_pool *pool;
    size_t max_batch;
    tk_precision precision;
    unsigned char *block; /* everything below lies in it */
    size_t bytes;
    tk__lowp_unit unit[TK__MAX_UNITS];
    tk__lowp_kind kind[TK__MAX_MAPS];
    float map_scale[TK__MAX_MAPS]; /* of u8 maps */
    tk__route route;
    unsigned char *maps;  /* as the route says */
    unsigned char *input; /* [max_batch][ih][iw][3], with the stem's padding around each image */
    unsigned char *scratch;
    size_t scratch_each; /* per thread: a strip or patches */
};

/* Chooses the way of unit i and what follows from it; all but memory. */
void tk__lowp_describe(tk__lowp_plan *p, size_t i);
/* Bytes of scratch that a task of the unit needs. */
size_t tk__lowp_scratch(const tk__lowp_unit *u);
/* Runs unit i for images i0..i0+n-1. */
void tk__lowp_conv(const tk__lowp_plan *p, size_t i, size_t i0, size_t n);

/* Folds, rounds and packs all weights; false without memory. */
bool tk__lowp_pack(tk__lowp_plan *p, const tk_params *params);

/* Map m of the group that begins with image i0; the input's images are padded. */
static inline void *tk__lowp_map(const tk__lowp_plan *p, int m, size_t i0)
{
    const tk__conv *stem = &p->unit[0].geo;
    if (m == TK__NO_MAP) return NULL;
    if (m == TK__INPUT_MAP) return p->input + i0 * stem->ih * stem->iw * stem->ic;
    return p->maps + tk__route_at(&p->route, m, i0);
}

#endif
