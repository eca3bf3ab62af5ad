/* The images of a pack, decoded once and kept as 8-bit canvases in a mapped file, from which
 * training and validation cut their views. */
#ifndef HEADS_CANVASES_H
#define HEADS_CANVASES_H

#include <stdint.h>

#include "engine/image.h"
#include "engine/pool.h"
#include "heads/pack.h"
#include "heads/watch.h"

/* Once open it is only read: any number of threads. */
typedef struct tk_canvases tk_canvases;

/* Decodes every image of `pack` to side x side on `pool` and keeps the result in the file `path`; a
 * complete file from before is used as it is. crop <= side <= resize. An image that cannot be
 * decoded is marked, not an error: see tk_canvases_ok(). TK_CANCELLED leaves the file to be redone.
 */
TK_MUST tk_err tk_canvases_open(tk_canvases **out, const char *path, const tk_pack *pack,
                                const tk_preproc *preproc, unsigned side, tk_pool *pool,
                                const tk_watch *watch, tk_diag *diag);
void tk_canvases_close(tk_canvases *canvases); /* keeps the file; NULL is fine */

size_t tk_canvases_count(const tk_canvases *canvases);
bool tk_canvases_ok(const tk_canvases *canvases, size_t image);

/* What to cut: the images, and of each which of its views. */
typedef struct tk_cut {
    const tk_augment *augment; /* NULL: the centre view, as inference sees it */
    uint64_t seed;
    const uint32_t *images, *views; /* [n]; views may be NULL with augment NULL */
} tk_cut;

/* Renders n views to x [n][crop][crop][3] on the pool. */
void tk_canvases_render(const tk_canvases *canvases, const tk_cut *cut, size_t n, float *x,
                        tk_pool *pool);

#endif
