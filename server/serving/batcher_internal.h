/* The batcher's insides, for the files that it is made of: batcher.c moves images, admit.c says
 * what is taken in, infer.c makes requests and canvases. Nobody else but tests includes this. */
#ifndef SERVER_SERVING_BATCHER_INTERNAL_H
#define SERVER_SERVING_BATCHER_INTERNAL_H

#include <pthread.h>

#include "serving/batcher.h"
#include "serving/pace.h"
#include "serving/tenants.h"

enum {
    TK__MAX_DECODERS = 64,
    TK__AHEAD = 4, /* passes whose canvases are made ahead */
};

/* Work given to the decode threads by tk_batcher_spread(); lives on its caller's stack. */
typedef struct tk__spread {
    size_t n, next, left; /* batcher.lock */
    void (*fn)(void *ctx, size_t i);
    void *ctx;
    pthread_cond_t done;
    struct tk__spread *after;
} tk__spread;

struct tk_batcher {
    tk_batcher_opts opts;
    pthread_mutex_t lock;
    pthread_cond_t work, ready, answer; /* lock; `ready` on CLOCK_MONOTONIC */
    /* lock: */
    tk__tenants tenants;
    tk__spread *spreads;
    tk_infer *answered;              /* by a pass; for the thread that calls `done`, */
    bool answering;                  /* which is about it */
    tk_infer_image *oldest, *newest; /* ready, of all tenants */
    size_t not_started, decoding, n_ready;
    size_t images, bytes; /* submitted, not answered */
    size_t came;          /* images taken in since the last pass */
    size_t active;        /* tenants with images of these */
    double weight;        /* of these tenants together */
    size_t sweep_steps;   /* see admit.c */
    tk__pace pace;
    tk_batcher_stats stats;
    bool stop;
    /* executor thread: */
    tk_infer_image **batch; /* [max_batch] */
    tk_pass *passes;        /* [max_batch] */
    /* create and destroy: */
    pthread_t executor, answerer, decoders[TK__MAX_DECODERS];
    size_t n_decoders;
    bool executor_runs, answerer_runs;
};

/* -- batcher.c; the caller holds the lock -- */
/* Takes every dead request off the tenant's list of those not started, or off all lists; those that
 * are wholly done with are put on *finished. */
void tk__batcher_sweep(tk_batcher *b, tk__tenant *tenant, int64_t now, tk_infer **finished);
void tk__batcher_sweep_all(tk_batcher *b, int64_t now, tk_infer **finished);

/* -- infer.c; without the lock -- */
/* Sets image->canvas, or image->error. TK_NOMEM. */
TK_MUST tk_err tk__infer_decode(tk_infer_image *image, const tk_image_limits *limits);

/* -- admit.c; the caller holds the lock -- */
/* Is the request taken? TK_OK, or a refusal as tk_batcher_submit() gives it; then it is counted,
 * and retry_ms set. `finished` as above. */
TK_MUST tk_err tk__batcher_admit(tk_batcher *b, tk__tenant *tenant, tk_infer *infer, int64_t now,
                                 tk_infer **finished, tk_diag *diag);

#endif
