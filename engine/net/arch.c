/* The table of architectures; everything else about a ResNet's shape follows from a row of it. */
#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "arch_internal.h"

static const tk__arch_desc descs[TK_ARCH_COUNT] = {
    [TK_RESNET18] = {"resnet18", TK__STEM_IMAGENET, false, 4, {2, 2, 2, 2}, {64, 128, 256, 512}},
    [TK_RESNET34] = {"resnet34", TK__STEM_IMAGENET, false, 4, {3, 4, 6, 3}, {64, 128, 256, 512}},
    [TK_RESNET50] = {"resnet50", TK__STEM_IMAGENET, true, 4, {3, 4, 6, 3}, {64, 128, 256, 512}},
    [TK_RESNET20] = {"resnet20", TK__STEM_CIFAR, false, 3, {3, 3, 3}, {16, 32, 64}},
    [TK_RESNET32] = {"resnet32", TK__STEM_CIFAR, false, 3, {5, 5, 5}, {16, 32, 64}},
    [TK_RESNET56] = {"resnet56", TK__STEM_CIFAR, false, 3, {9, 9, 9}, {16, 32, 64}},
};

enum { MIN_PX = 64, MAX_PX = 448, CIFAR_PX = 32 };

const tk__arch_desc *tk__arch_describe(tk_arch arch)
{
    assert((unsigned)arch < TK_ARCH_COUNT);
    return &descs[arch];
}

unsigned tk__arch_blocks(tk_arch arch)
{
    const tk__arch_desc *desc = tk__arch_describe(arch);
    unsigned blocks = 0;
    for (unsigned s = 0; s < desc->stages; s++)
        blocks += desc->blocks[s];
    return blocks;
}

tk__block tk__arch_block(tk_arch arch, unsigned i)
{
    const tk__arch_desc *desc = tk__arch_describe(arch);
    unsigned stage = 0;
    for (; i >= desc->blocks[stage]; stage++) {
        i -= desc->blocks[stage];
        assert(stage + 1 < desc->stages);
    }
    size_t expansion = desc->bottleneck ? 4 : 1;
    tk__block block = {
        .bottleneck = desc->bottleneck,
        .mid = desc->width[stage],
        .out = desc->width[stage] * expansion,
        .stride = stage > 0 && i == 0 ? 2 : 1,
    };
    if (i > 0)
        block.in = block.out;
    else if (stage > 0)
        block.in = desc->width[stage - 1] * expansion;
    else
        block.in = desc->width[0]; /* the stem */
    block.downsample = block.stride != 1 || block.in != block.out;
    (void)snprintf(block.prefix, sizeof block.prefix, "layer%u.%u", stage + 1, i);
    return block;
}

const char *tk_arch_name(tk_arch arch)
{
    return tk__arch_describe(arch)->name;
}

tk_err tk_arch_parse(const char *name, tk_arch *out, tk_diag *diag)
{
    for (unsigned i = 0; i < TK_ARCH_COUNT; i++) {
        if (strcmp(name, descs[i].name) == 0) {
            *out = (tk_arch)i;
            return TK_OK;
        }
    }
    *out = TK_RESNET18;
    return tk_fail(
        diag, TK_BADARG,
        "unknown architecture \"%.64s\"; known are resnet18, resnet34, resnet50, resnet20, "
        "resnet32, resnet56",
        name);
}

size_t tk_arch_features(tk_arch arch)
{
    return tk__arch_block(arch, tk__arch_blocks(arch) - 1).out;
}

size_t tk__arch_units(tk_arch arch)
{
    size_t n = 1;
    for (unsigned i = 0; i < tk__arch_blocks(arch); i++) {
        const tk__block b = tk__arch_block(arch, i);
        n += (b.bottleneck ? 3u : 2u) + b.downsample;
    }
    return n;
}

size_t tk_arch_maps(tk_arch arch)
{
    const size_t input = 1, pooled = tk__arch_describe(arch)->stem == TK__STEM_IMAGENET;
    return input + tk__arch_units(arch) + pooled;
}

tk_err tk_arch_check_px(tk_arch arch, unsigned px, tk_diag *diag)
{
    const tk__arch_desc *desc = tk__arch_describe(arch);
    if (desc->stem == TK__STEM_CIFAR) {
        if (px == CIFAR_PX) return TK_OK;
        return tk_fail(diag, TK_BADARG, "%s takes images of %d px, not %u", desc->name, CIFAR_PX,
                       px);
    }
    if (px >= MIN_PX && px <= MAX_PX) return TK_OK;
    return tk_fail(diag, TK_BADARG, "%s takes images of %d to %d px, not %u", desc->name, MIN_PX,
                   MAX_PX, px);
}
