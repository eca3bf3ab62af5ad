/* The one queue of trunk work: images of all tenants, decoded by threads of its own, gathered into
 * batches, run by one executor thread on the engine's pool.
 *
 *     submit -> [requests] -> decode threads -> [canvases] -> executor -> done
 *
 * The next image to decode is taken from each waiting request in turn, so that a request of one
 * image does not wait behind one of 256. A batch starts when it is full, when its oldest image has
 * waited `max_delay_us`, or at once when no further image is on its way; all its images have the
 * same version. Cancelled and late requests are dropped before their images cost a decode or a
 * pass. The same image gets the same answer, to the bit, whatever the batch. */
#ifndef SERVER_SERVING_BATCHER_H
#define SERVER_SERVING_BATCHER_H

#include <stdbool.h>

#include "metrics.h"
#include "serving/snapshot.h"

typedef struct tk_batcher tk_batcher;

typedef struct tk_batcher_opts {
    size_t max_batch;        /* images of one pass; 0: 16. Snapshots must be made for as many. */
    unsigned max_delay_us;   /* 0 is none */
    size_t max_images;       /* submitted and unanswered; 0: 1024 */
    size_t max_bytes;        /* the same, encoded bytes; 0: 512 MiB */
    unsigned decode_threads; /* 0: one per online core */
    tk_image_limits image_limits;
    tk_metrics *metrics; /* borrowed; may be NULL */
} tk_batcher_opts;

typedef struct tk_infer tk_infer;

typedef struct tk_infer_image {
    const void *data; /* in: encoded bytes, borrowed until `done` */
    size_t size;
    const tk_top *top; /* out: for each head its k[h] best, one head after the other */
    char *error;       /* out: why the image could not be read, or NULL; `top` means nothing then */
    /* the batcher's: */
    tk_infer *infer;
    uint8_t *canvas;
    int64_t ready_ns, waited_ns; /* waited_ns: from submit to its decoding */
    struct tk_infer_image *next;
} tk_infer_image;

/* One request: images and the heads they all go through. Made by the caller, lent to the batcher by
 * tk_batcher_submit() until `done`, freed by tk_infer_destroy(), also from inside `done`. */
struct tk_infer {
    tk_snapshot *snapshot; /* a reference */
    size_t n_images;
    tk_infer_image *images;
    size_t n_heads;
    const tk_head **heads; /* of the snapshot */
    size_t *k;             /* [n_heads] */
    int64_t deadline_ns;   /* CLOCK_MONOTONIC; INT64_MAX: none */
    void *user;
    /* Has the asker gone? Any thread, under the batcher's lock: must only look at a flag. NULL:
     * never. */
    bool (*cancelled)(void *user);
    /* Called once, from the executor or a decode thread, with no lock held. TK_OK: every image has
     * its answer or its error. TK_CANCELLED, TK_DEADLINE or TK_NOMEM otherwise. Must not block. */
    void (*done)(tk_infer *infer, tk_err err, const char *reason);
    /* the batcher's, under its lock: */
    int64_t submitted_ns;
    size_t started; /* images given to a decode thread */
    size_t left;    /* images not done with */
    size_t bytes;
    tk_err err;
    const char *reason;
    struct tk_infer *next;
    tk_top *tops; /* [n_images][sum of k] */
};

/* Takes a reference of the snapshot. k[h] becomes top_k, at most the head's classes (0: 1). The
 * caller fills images[].data and .size, deadline_ns, cancelled, done, user. */
TK_MUST tk_err tk_infer_create(tk_infer **out, tk_snapshot *snapshot, size_t n_images,
                               size_t n_heads, const tk_head *const *heads, size_t top_k);
void tk_infer_destroy(tk_infer *infer); /* NULL is fine */

TK_MUST tk_err tk_batcher_create(tk_batcher **out, const tk_batcher_opts *opts, tk_diag *diag);
/* Requests not yet answered end with TK_CANCELLED. No submit may follow or run meanwhile. Joins. */
void tk_batcher_destroy(tk_batcher *batcher); /* NULL is fine */

/* TK_BUSY, with the limit and its value, when the queue is full: `done` is not called then. Does
 * not block. Any thread. */
TK_MUST tk_err tk_batcher_submit(tk_batcher *batcher, tk_infer *infer, tk_diag *diag);

/* Runs fn(ctx, i) for i in 0..n-1 on the decode threads, between the images of requests, and
 * returns when all are done: uploads are checked this way. Any thread but the batcher's own. */
void tk_batcher_spread(tk_batcher *batcher, size_t n, void (*fn)(void *ctx, size_t i), void *ctx);

typedef struct tk_batcher_stats {
    uint64_t images, batches; /* passed through the trunk since start */
    size_t queue;             /* submitted, not answered */
} tk_batcher_stats;
tk_batcher_stats tk_batcher_get_stats(tk_batcher *batcher);

#endif
