/* 3x3 convolutions of stride 1 by Winograd's minimal filtering (kernels/winograd.h), and the choice
 * between the ways (conv.h). */
#ifndef NET_WINOGRAD_H
#define NET_WINOGRAD_H

#include "net/conv.h"

static inline bool tk__is_winograd(tk__conv_way way)
{
    return way == TK__WINOGRAD_2 || way == TK__WINOGRAD_4;
}

/* The packed weights: for each panel of columns, for each point, [ic][width]. */
size_t tk__wino_pack_size(size_t m, size_t ic, size_t oc);
/* Transforms and packs a convolution's weights, in bfloat16 as words of two input channels: element
 * (input channel i, output channel j) of tap t is tap[t][i * rs + j * cs], times scale[j] unless
 * NULL. */
void tk__wino_pack(const tk__exec *ex, bool bf16, size_t m, size_t ic, size_t oc,
                   const float *const tap[9], size_t rs, size_t cs, const float *scale,
                   float *packed);

/* Floats of scratch that a thread needs for each of the functions below. */
size_t tk__wino_scratch(const tk__conv *geo, size_t m);
size_t tk__wino_block_rows(const tk__conv *geo, size_t m);
void tk__wino_run(const tk__exec *ex, const tk__conv_job *job, size_t m);

/* As tk__conv_dw(). `partials`: tk__wino_partials() floats. */
size_t tk__wino_partials(const tk__exec *ex, const tk__conv *geo, size_t m);
void tk__wino_dw(const tk__exec *ex, const tk__conv *geo, size_t m, const tk__input *in,
                 const float *dy, float *dw, float *partials);

#endif
