/* Unrolls the table of architectures into maps and units. */
#include "net/layout.h"

#include <assert.h>
#include <string.h>

#include "net/arch_internal.h"

static int add_map(tk__layout *l, size_t h, size_t w, size_t c)
{
    assert(l->maps < TK__MAX_MAPS);
    l->map[l->maps] = (tk__map){h, w, c};
    return (int)l->maps++;
}

/* `at` is the unit's place in the table, `total` the number of units there: the trained part holds
 * (weight, gamma, beta) per unit, the running part (mean, var). */
static tk__unit *add_unit(tk__layout *l, size_t at, size_t total, int in, size_t oc, size_t k,
                          size_t stride)
{
    assert(l->units < TK__MAX_UNITS);
    const tk__map m = l->map[in];
    const size_t pad = k / 2;
    tk__unit *u = &l->unit[l->units++];
    *u = (tk__unit){.conv = 3 * at,
                    .gamma = 3 * at + 1,
                    .beta = 3 * at + 2,
                    .mean = 3 * total + 2 * at,
                    .var = 3 * total + 2 * at + 1,
                    .in = in,
                    .residual = TK__NO_MAP,
                    .k = k,
                    .stride = stride,
                    .pad = pad,
                    .relu = true};
    u->out = add_map(l, (m.h + 2 * pad - k) / stride + 1, (m.w + 2 * pad - k) / stride + 1, oc);
    return u;
}

/* Returns the block's output map. The shortcut runs before the last convolution, which adds it. */
static int add_block(tk__layout *l, const tk__block *b, size_t at, size_t total, int in)
{
    const size_t last = at + (b->bottleneck ? 2 : 1);
    int x = add_unit(l, at, total, in, b->mid, b->bottleneck ? 1 : 3, b->bottleneck ? 1 : b->stride)
                ->out;
    if (b->bottleneck) x = add_unit(l, at + 1, total, x, b->mid, 3, b->stride)->out;
    int shortcut = in;
    if (b->downsample) {
        tk__unit *down = add_unit(l, last + 1, total, in, b->out, 1, b->stride);
        down->relu = false;
        shortcut = down->out;
    }
    tk__unit *u = add_unit(l, last, total, x, b->out, b->bottleneck ? 1 : 3, 1);
    u->residual = shortcut;
    return u->out;
}

void tk__layout_init(tk__layout *l, tk_arch arch, size_t px, size_t images)
{
    const tk__arch_desc *desc = tk__arch_describe(arch);
    const size_t total = tk__arch_units(arch);
    const bool imagenet = desc->stem == TK__STEM_IMAGENET;
    memset(l, 0, sizeof *l);
    l->images = images;
    int x = add_map(l, px, px, 3);
    tk__unit *stem = add_unit(l, 0, total, x, desc->width[0], imagenet ? 7 : 3, imagenet ? 2 : 1);
    x = stem->out;
    if (imagenet) {
        const tk__map m = l->map[x];
        stem->pool_after = true;
        x = add_map(l, (m.h - 1) / 2 + 1, (m.w - 1) / 2 + 1, m.c);
    }
    size_t at = 1;
    unsigned end = desc->blocks[0]; /* of the stage */
    for (unsigned i = 0; i < tk__arch_blocks(arch); i++) {
        const tk__block b = tk__arch_block(arch, i);
        x = add_block(l, &b, at, total, x);
        at += (b.bottleneck ? 3u : 2u) + b.downsample;
        if (i + 1 < end) continue;
        l->tap[l->stages++] = x;
        if (l->stages < desc->stages) end += desc->blocks[l->stages];
    }
    assert(at == total && l->units == total && x == (int)l->maps - 1);
}

size_t tk__map_floats(const tk__map *map)
{
    return map->h * map->w * map->c;
}

tk__conv tk__unit_geo(const tk__layout *l, const tk__unit *u, size_t n)
{
    const tk__map *in = &l->map[u->in], *out = &l->map[u->out];
    tk__conv geo = {.n = n,
                    .ih = in->h,
                    .iw = in->w,
                    .ic = in->c,
                    .oh = out->h,
                    .ow = out->w,
                    .oc = out->c,
                    .ky = u->k,
                    .kx = u->k,
                    .stride = u->stride,
                    .pad_y = (ptrdiff_t)u->pad,
                    .pad_x = (ptrdiff_t)u->pad,
                    .bf16 = l->bf16};
    geo.way = l->images == TK__ALL_DIRECT ? TK__DIRECT : tk__conv_choose(&geo, l->images);
    return geo;
}
