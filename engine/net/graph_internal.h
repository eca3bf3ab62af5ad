/* The training graph's inside, shared by its forward and its backward. */
#ifndef NET_GRAPH_INTERNAL_H
#define NET_GRAPH_INTERNAL_H

#include "engine/graph.h"
#include "net/layout.h"
#include "net/norm.h"
#include "net/side.h"

typedef struct tk__graph_side tk__graph_side;

struct tk_graph {
    tk_arch arch;
    tk__layout layout;
    tk__exec ex;
    size_t max_batch;
    size_t n; /* images of the last forward */
    tk_bn_mode mode;
    tk__graph_side *side; /* or NULL */

    float *block; /* everything below lies in it */
    size_t floats;
    /* [max_batch][h][w][c]; 0: a copy of the input. NULL: kept as `pre` of its maker only, and
     * normalised by whoever reads it (tk__graph_input()). */
    float *act[TK__MAX_MAPS];
    bool lazy[TK__MAX_MAPS]; /* act is NULL */
    /* Every other block's output is not kept but made anew when backward comes to it, in the memory
     * of the gradients, which take turns there. */
    bool remade[TK__MAX_MAPS];
    int spare_holds; /* the map that is there now */
    float *turns;
    size_t spare_at, grad_at[TK__MAX_MAPS]; /* floats from `turns` on */
    size_t branch_at[TK__MAX_UNITS];        /* of the gradient of a unit's convolution's output */
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
};

/* y of unit i from its convolution's output. */
void tk__graph_apply(const tk_graph *g, size_t i);
/* Makes map m anew if it is one that is not kept. Not while a gradient lies in its place. */
void tk__graph_need_map(tk_graph *g, int m);
/* Map m as the convolutions read it. */
tk__input tk__graph_input(const tk_graph *g, int m);

/* graph_side.c */
void tk__graph_side_destroy(tk__graph_side *side); /* NULL is fine */
size_t tk__graph_side_bytes(const tk__graph_side *side);
/* z of a stage, from its map, which has just been made. */
void tk__graph_side_forward(const tk_graph *graph, size_t stage);
/* dx, the gradient of the stage's map, += what comes through the side from dz [n][S][rank]. */
void tk__graph_side_dx(const tk_graph *graph, size_t stage, const float *dz, float *dx);

static inline const float *tk__param_at(const tk_params *params, size_t index)
{
    return params->data + params->table[index].offset;
}

#endif
