/* The one queue of trunk work: images of all tenants, decoded by threads of its own, gathered into
 * batches, run by one executor thread on the engine's pool.
 *
 *     submit -> [requests] -> decode threads -> [canvases] -> executor -> done
 *
 * Tenants are served fairly (fair.h), twice: the next image to decode is the tenant's that has had
 * the least decoded (by bytes; an image costs 32 KiB besides), and a pass is filled from the
 * tenants that have had the fewest images in passes, each in proportion to its weight. Among the
 * requests of one tenant the images are taken in turn, so that a request of one image does not wait
 * behind one of 256; those of a more urgent priority come before the others, which moves nobody
 * past another tenant. Canvases are made only some passes ahead of the executor, and the last
 * pass's worth of that room is for tenants who have none. So an image of a tenant that has nothing
 * else in the queue waits for the pass that runs and is in the next, however much others have sent;
 * with more such tenants than a pass has room they take turns.
 *
 * A batch starts when it is full, when its oldest image has waited `max_delay_us`, or at once when
 * no further image is on its way; all its images have the same version. Cancelled and late requests
 * are dropped before their images cost a decode or a pass. The same image gets the same answer, to
 * the bit, whatever the batch.
 *
 * Not all that is sent is taken. Each tenant has its own limit of images, of bytes and of images
 * per second; the last eighth of the queue is kept for tenants with little in it (nothing, or at
 * most a 32nd); and a request whose deadline would pass before its turn comes is refused at once.
 */
#ifndef SERVER_SERVING_BATCHER_H
#define SERVER_SERVING_BATCHER_H

#include <stdbool.h>

#include "metrics.h"
#include "serving/snapshot.h"
#include "tenant_limits.h"

typedef struct tk_batcher tk_batcher;

typedef struct tk_batcher_opts {
    size_t max_batch;      /* images of one pass; 0: 16. Snapshots must be made for as many. */
    unsigned max_delay_us; /* 0 is none */
    size_t max_images;     /* submitted and unanswered; 0: 1024 */
    size_t max_bytes;      /* the same, encoded bytes; 0: 512 MiB */
    size_t max_tenant_images, max_tenant_bytes; /* of one tenant; 0: no limit of its own */
    double max_tenant_rate;                     /* images/s of one tenant; 0: no limit */
    unsigned decode_threads;                    /* 0: one per online core */
    tk_image_limits image_limits;
    int64_t (*clock)(void); /* for tests, with no max_delay_us; NULL: CLOCK_MONOTONIC */
    tk_metrics *metrics;    /* borrowed; may be NULL */
} tk_batcher_opts;

typedef struct tk_infer tk_infer;

typedef enum tk_image_form {
    TK_IMAGE_ENCODED, /* the bytes of a JPEG or PNG */
    TK_IMAGE_PIXELS,  /* RGB, [h][w][3] */
    TK_IMAGE_PLANES,  /* [3][crop][crop] float: prepared and normalised already */
} tk_image_form;

/* Among the requests of one tenant; 1 is the most urgent. */
enum { TK_PRIORITY_DEFAULT = 3, TK_PRIORITY_LAST = 5 };

/* Of a value of TK_IMAGE_PLANES: far beyond what normalised pixels have, far below what overflows.
 */
#define TK_PLANES_MAX 1000.0F

typedef struct tk_infer_image {
    const void *data; /* in: borrowed until `done` */
    size_t size;      /* bytes */
    tk_image_form form;
    unsigned w, h;     /* of TK_IMAGE_PIXELS */
    const tk_top *top; /* out: for each head its k[h] best, one head after the other */
    /* out, the caller's memory, as in tk_pass; NULL: not wanted */
    float *logits, *probabilities, *features;
    char *error; /* out: why the image could not be read, or NULL; `top` means nothing then */
    /* the batcher's: */
    tk_infer *infer;
    uint8_t *canvas;
    int64_t ready_ns, waited_ns;                     /* waited_ns: from submit to its decoding */
    int64_t decode_ns, queue_ns, trunk_ns, heads_ns; /* queue_ns: all its waiting */
    struct tk_infer_image *next;                     /* of its tenant's that are ready */
    struct tk_infer_image *newer, *older;            /* of all that are ready */
} tk_infer_image;

/* One request: images and the heads they all go through. Made by the caller, lent to the batcher by
 * tk_batcher_submit() until `done`, freed by tk_infer_destroy(), also from inside `done`. */
struct tk_infer {
    tk_snapshot *snapshot; /* a reference */
    int64_t tenant;        /* who asks */
    unsigned priority;     /* 1..TK_PRIORITY_LAST */
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
    /* Called once, from a thread of the batcher, with no lock held. TK_OK: every image has
     * its answer or its error. TK_CANCELLED, TK_DEADLINE or TK_NOMEM otherwise. Must not block. */
    void (*done)(tk_infer *infer, tk_err err, const char *reason);
    uint32_t retry_ms; /* out, when submit refuses: try again after so long; 0: it is no use */
    /* the batcher's, under its lock: */
    int64_t submitted_ns;
    size_t started; /* images given to a decode thread */
    size_t left;    /* images not done with */
    size_t bytes;
    tk_err err;
    const char *reason;
    struct tk_infer *next;
    struct tk__tenant *of;
    tk_top *tops; /* [n_images][sum of k] */
};

/* Takes a reference of the snapshot; of TK_PRIORITY_DEFAULT. k[h] becomes top_k, at most the head's
 * classes (0: 1). The caller fills tenant, images[].data and .size (.form and what is wanted
 * besides, too), deadline_ns, cancelled, done, user. */
TK_MUST tk_err tk_infer_create(tk_infer **out, tk_snapshot *snapshot, size_t n_images,
                               size_t n_heads, const tk_head *const *heads, size_t top_k);
void tk_infer_destroy(tk_infer *infer); /* NULL is fine */
/* Counts the request with each head it was for (tk_snapshot_tally), from inside `done`. */
void tk_infer_tally(const tk_infer *infer, bool ok);

TK_MUST tk_err tk_batcher_create(tk_batcher **out, const tk_batcher_opts *opts, tk_diag *diag);
/* Requests not yet answered end with TK_CANCELLED. No submit may follow or run meanwhile. Joins. */
void tk_batcher_destroy(tk_batcher *batcher); /* NULL is fine */

/* For how many images canvases are made ahead of the trunk: more of one caller's in the queue gain
 * it nothing. Any thread. */
size_t tk_batcher_ahead(const tk_batcher *batcher);

/* What may change while it runs; as in tk_batcher_opts, but that 0 images is no default. */
typedef struct tk_batcher_limits {
    size_t max_images, max_tenant_images;
    double max_tenant_rate;
    unsigned max_delay_us;
} tk_batcher_limits;
/* For what is submitted from now on; what waits stays. Any thread. */
void tk_batcher_set_limits(tk_batcher *batcher, const tk_batcher_limits *limits);

/* What an admin has set of the tenant; holds for what is submitted from now on, its weight for what
 * waits, too. TK_NOMEM. Any thread. */
TK_MUST tk_err tk_batcher_set_tenant(tk_batcher *batcher, int64_t tenant,
                                     const tk_tenant_limits *limits);

/* When it fails `done` is not called. TK_LIMIT, with the limit and its value: the queue is full, or
 * the tenant's part of it, or the tenant sends too fast. TK_DEADLINE: too much is ahead for the
 * deadline to be met. TK_NOMEM. Does not block. Any thread. */
TK_MUST tk_err tk_batcher_submit(tk_batcher *batcher, tk_infer *infer, tk_diag *diag);

/* Runs fn(ctx, i) for i in 0..n-1 on the decode threads, between the images of requests, and
 * returns when all are done: uploads are checked this way. Any thread but the batcher's own. */
void tk_batcher_spread(tk_batcher *batcher, size_t n, void (*fn)(void *ctx, size_t i), void *ctx);

typedef struct tk_batcher_stats {
    uint64_t images, batches; /* passed through the trunk since start */
    uint64_t decoded;         /* images that were given to a decoder, also broken ones */
    /* requests that submit refused: a full queue, a tenant's limit of images or bytes, its rate, a
     * deadline that could not be met */
    uint64_t refused_full, refused_tenant, refused_rate, refused_deadline;
    uint64_t late, cancelled; /* requests dropped while they waited */
    size_t queue;             /* images submitted, not answered */
    size_t ready;             /* of these, decoded and not yet in a pass */
    size_t tenants;           /* that have any images in the queue */
} tk_batcher_stats;
tk_batcher_stats tk_batcher_get_stats(tk_batcher *batcher);

#endif
