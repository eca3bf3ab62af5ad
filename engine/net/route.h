/* The way of a batch through an inference plan: in which order units run for which images, and
 * where their maps lie. The same for every precision.
 *
 * Consecutive blocks form a segment. A group of images passes through a segment before the next
 * group follows, so that the maps within it stay in the cache. Where maps are large a group is
 * small; where they are small, and the weights are what has to be read, it is large. The maps
 * between segments (the borders) hold the whole batch; those within one take turns in a few slots
 * of a group's size. */
#ifndef NET_ROUTE_H
#define NET_ROUTE_H

#include "net/layout.h"

enum { TK__MAX_SEGMENTS = 16, TK__ROUTE_ALIGN = 64 };

typedef struct tk__segment {
    size_t first, last; /* units */
    size_t images;      /* of a group */
} tk__segment;

typedef struct tk__route {
    const tk__layout *layout;
    size_t max_batch, segments;
    tk__segment segment[TK__MAX_SEGMENTS];
    size_t map_bytes[TK__MAX_MAPS]; /* of one image */
    size_t at[TK__MAX_MAPS];        /* bytes from the beginning of the maps' memory on */
    bool border[TK__MAX_MAPS];
    size_t bytes; /* that all maps need, each with TK__ROUTE_ALIGN bytes behind it that copies may
                     run into */
} tk__route;

/* Fills all of *r for the layout (borrowed); map_bytes [maps] is copied. The input map has no
 * place. */
void tk__route_plan(tk__route *r, const tk__layout *layout, size_t max_batch,
                    const size_t *map_bytes);

/* Called for unit i and the images i0..i0+n-1 of the batch. */
typedef void tk__route_unit(void *ctx, size_t i, size_t i0, size_t n);
void tk__route_run(const tk__route *r, size_t n, tk__route_unit *run, void *ctx);

/* Where map m of the group that begins with image i0 lies. */
static inline size_t tk__route_at(const tk__route *r, int m, size_t i0)
{
    return r->at[m] + (r->border[m] ? i0 * r->map_bytes[m] : 0);
}

#endif
