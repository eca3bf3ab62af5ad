/* Sides on a plan: the 1x1 convolutions at the taps and their means over pixels. Also what the
 * training graph shares with it (graph_side.c). */
#ifndef NET_SIDE_H
#define NET_SIDE_H

#include "engine/side.h"
#include "net/layout.h"
#include "net/route.h"

/* The stage whose output is map m, or -1. */
int tk__tap_of(const tk__layout *layout, int m);
/* The convolution of stage s for n images: 1x1, c_s -> rank. */
tk__conv tk__side_geo(const tk__layout *layout, size_t stage, size_t rank, size_t n);
/* A_s as convolution weights [c_s][rank]. */
void tk__side_weights(const tk_side *side, size_t stage, float *w);

typedef struct tk__side tk__side;

/* For plans over `route`, whose maps are fp32 or are converted: then `convert`. Copies the weights.
 */
TK_MUST tk_err tk__side_create(tk__side **out, const tk_side *weights, const tk__route *route,
                               bool convert, tk_pool *pool);
void tk__side_destroy(tk__side *side); /* NULL is fine */
size_t tk__side_bytes(const tk__side *side);
/* Room for the map of n images of a group, in fp32; only with `convert`. */
float *tk__side_map(const tk__side *side);
/* z of stage s for n images with maps x [n][h][w][c]: to z [n][S][rank], of these images. `rows` as
 * in tk_plan_run_side(). */
void tk__side_run(const tk__side *side, size_t stage, size_t n, const float *x, float *z,
                  const bool *rows);
/* Floats of z for one image. */
size_t tk__side_width(const tk__side *side);

#endif
