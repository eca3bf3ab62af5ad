/* What a ResNet is made of, for those who build its parameters, graph and plan. */
#ifndef ENGINE_NET_ARCH_INTERNAL_H
#define ENGINE_NET_ARCH_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>

#include "engine/side.h"

typedef enum tk__stem {
    TK__STEM_IMAGENET, /* conv1 7x7 stride 2 pad 3, bn1, ReLU, max pool 3x3 stride 2 pad 1 */
    TK__STEM_CIFAR,    /* conv1 3x3 stride 1 pad 1, bn1, ReLU */
} tk__stem;

typedef struct tk__arch_desc {
    const char *name;
    tk__stem stem;
    bool bottleneck; /* 1x1, 3x3, 1x1 (x4 wide) instead of 3x3, 3x3 */
    unsigned stages;
    unsigned blocks[TK_MAX_STAGES];
    size_t width[TK_MAX_STAGES]; /* channels of the 3x3 convolutions; the stem has width[0] */
} tk__arch_desc;

/* One residual block: y = ReLU(branch(x) + shortcut(x)).
 * Basic:      conv1 3x3/stride in->mid, bn1, ReLU, conv2 3x3 mid->out, bn2             (mid == out)
 * Bottleneck: conv1 1x1 in->mid, bn1, ReLU, conv2 3x3/stride mid->mid, bn2, ReLU,
 *             conv3 1x1 mid->out, bn3                                                (out == 4 mid)
 * Shortcut: x itself, or with `downsample` downsample.0 1x1/stride in->out, downsample.1 (bn).
 * 3x3 convolutions have padding 1; none has a bias. */
typedef struct tk__block {
    char prefix[32]; /* "layer1.0" */
    bool bottleneck, downsample;
    size_t in, mid, out; /* channels */
    unsigned stride;     /* 1 or 2 */
} tk__block;

const tk__arch_desc *tk__arch_describe(tk_arch arch);
unsigned tk__arch_blocks(tk_arch arch); /* of all stages */
/* Convolutions, each with its batch norm, in the order in which tk_params.table names them: the
 * downsample after its block's last. */
size_t tk__arch_units(tk_arch arch);
/* Block i (0..blocks-1) in forward order. */
tk__block tk__arch_block(tk_arch arch, unsigned i);

#endif
