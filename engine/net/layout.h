/* A trunk as the graph and the plan see it: maps (activations) and the units that make one from
 * others. A unit is a convolution, its batch norm, an optional residual and an optional ReLU. */
#ifndef NET_LAYOUT_H
#define NET_LAYOUT_H

#include "engine/net.h"
#include "engine/side.h"
#include "net/conv.h"

enum { TK__MAX_UNITS = 64, TK__MAX_MAPS = 66, TK__NO_MAP = -1, TK__INPUT_MAP = 0 };

/* layout.images of the inference plan: kernels are chosen for small batches, the same whatever the
 * batch, so that an answer does not depend on it. And of the reference: nothing is chosen. */
enum { TK__PLAN_IMAGES = 4, TK__ALL_DIRECT = 0 };

typedef struct tk__map {
    size_t h, w, c; /* of one image, NHWC */
} tk__map;

typedef struct tk__unit {
    size_t conv, gamma, beta, mean, var; /* indices into tk_params.table */
    int in, out, residual;               /* maps; residual may be TK__NO_MAP */
    size_t k, stride, pad;
    bool relu;
    bool pool_after; /* the stem's max pool makes map out + 1 from map out */
} tk__unit;

/* Units stand in an order of execution: each one's inputs are made by earlier ones. The last map is
 * what average pooling reads. */
typedef struct tk__layout {
    size_t units, maps;
    size_t images; /* that are thought to pass at a time, for the choice of kernels */
    bool bf16;     /* geometries say so: the training graph's */
    tk__unit unit[TK__MAX_UNITS];
    tk__map map[TK__MAX_MAPS];
    size_t stages;
    int tap[TK_MAX_STAGES]; /* the output map of each stage */
} tk__layout;

void tk__layout_init(tk__layout *l, tk_arch arch, size_t px, size_t images);
/* Geometry of a unit for n images. */
tk__conv tk__unit_geo(const tk__layout *l, const tk__unit *u, size_t n);
/* Floats of one image's map. */
size_t tk__map_floats(const tk__map *map);

#endif
