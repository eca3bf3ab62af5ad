/* What the tests of the queue share: pictures, requests that can be waited for, and ways to make
 * the queue stand still: decode threads held up, or the executor. */
#ifndef TESTS_SERVER_BATCHER_FIXTURE_H
#define TESTS_SERVER_BATCHER_FIXTURE_H

#include <pthread.h>
#include <stdbool.h>

#include "fixture.h"
#include "serving/batcher.h"

enum { PICTURES = 6, BATCH = 4 };

extern fixture_bytes pictures[PICTURES];
void pictures_make(void);
void pictures_free(void);

typedef struct asked {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool done;
    unsigned order; /* when it was done, among those that share a counter */
    unsigned *counter;
    tk_err err;
    char reason[128];
    bool gone; /* what `cancelled` answers */
    tk_infer *infer;
} asked;

/* Images first..first+n-1 of `pictures` (cyclic), through both heads, all classes of each. */
asked *ask(tk_snapshot *snapshot, size_t first, size_t n);
/* The same of a tenant, always of the same picture, so that every image costs the same. */
asked *ask_as(int64_t tenant, tk_snapshot *snapshot, size_t n);
tk_err wait_for(asked *a);
void set_gone(asked *a);
void forget(asked *a);

/* A batcher with passes of BATCH images. */
tk_batcher *start(tk_batcher_opts opts);

/* Fills every decode thread (and one of ours) with work that waits. */
typedef struct stall {
    tk_batcher *batcher;
    pthread_t thread;
    pthread_barrier_t in, out;
    size_t n;
} stall;
void stall_begin(stall *s, tk_batcher *batcher, size_t decoders);
void stall_end(stall *s);

/* Holds the executor up, after a pass of one image of `tenant`. */
typedef struct plug {
    pthread_barrier_t in, out;
    tk_infer *infer;
} plug;
void plug_begin(plug *p, tk_batcher *batcher, tk_snapshot *snapshot, int64_t tenant);
void plug_end(plug *p);
/* Waits until `n` images are decoded and wait for a pass. */
void wait_ready(tk_batcher *batcher, size_t n);

#endif
