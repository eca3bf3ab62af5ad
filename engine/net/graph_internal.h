/* The training graph's inside, shared by its forward and its backward. */
#ifndef NET_GRAPH_INTERNAL_H
#define NET_GRAPH_INTERNAL_H

#include "engine/graph.h"
#include "net/layout.h"
#include "net/norm.h"

/* Gradients that live at once: of a unit's output, of its convolution, and of its input. */
enum { TK__SLOTS = 3 };

struct tk_graph {
    tk_arch arch;
    tk__layout layout;
    tk__exec ex;
    size_t max_batch;
    size_t n; /* images of the last forward */
    tk_bn_mode mode;

    float *block; /* everything below lies in it */
    size_t floats;
    /* [max_batch][h][w][c]; 0: a copy of the input. NULL: kept as `pre` of its maker only, and
     * normalised by whoever reads it (tk__graph_input()). */
    float *act[TK__MAX_MAPS];
    bool lazy[TK__MAX_MAPS]; /* act is NULL */
    /* Every other block's output is not kept but made anew, in `spare`, when backward comes to it. */
    bool remade[TK__MAX_MAPS];
    float *spare;
    int spare_holds;
    size_t maker[TK__MAX_MAPS]; /* the unit that makes the map; none for 0 and the max pool's */
    float *pre[TK__MAX_UNITS];  /* the convolution's output, before batch norm */
    /* of the last forward: its statistics, and batch norm as pre * scale + shift */
    float *mean[TK__MAX_UNITS], *invstd[TK__MAX_UNITS];
    float *scale[TK__MAX_UNITS], *shift[TK__MAX_UNITS];
    uint8_t *argmax; /* the stem's max pool */
    float *features;
    float *coef;     /* 3 * the widest map's channels */
    float *sums;     /* statistics by chunk */
    float *packed;   /* weights of the unit at work, */
    float *partials; /* or its weight gradient by chunk: the same memory */
    float *slot[TK__SLOTS];        /* gradients of maps, which take turns */
    int grad_slot[TK__MAX_MAPS];   /* that of a map */
    int branch_slot[TK__MAX_UNITS]; /* that of a unit's convolution's output */
};

/* Geometry of a unit for n images. */
tk__conv tk__unit_geo(const tk__layout *l, const tk__unit *u, size_t n);

/* y of unit i from its convolution's output. */
void tk__graph_apply(const tk_graph *g, size_t i);
/* Map m as the convolutions read it. */
tk__input tk__graph_input(const tk_graph *g, int m);

static inline const float *tk__param_at(const tk_params *params, size_t index)
{
    return params->data + params->table[index].offset;
}

#endif
