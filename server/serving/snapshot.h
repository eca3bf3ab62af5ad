/* A version in memory: the trunk's inference plan, every head, the preprocessing. Immutable once
 * made (but for tallies of its use) and counted by reference: a request holds the version that
 * answers it, a commit only replaces the pointer to the current one (tk_current). */
#ifndef SERVER_SERVING_SNAPSHOT_H
#define SERVER_SERVING_SNAPSHOT_H

#include <stddef.h>
#include <stdint.h>

#include "engine/plan.h"
#include "heads/model.h"
#include "serving/precision_choice.h"

typedef struct tk_snapshot tk_snapshot;

/* Makes version `number` ready to serve in fp32 with one reference, the caller's. Takes `model`
 * (also on failure): the heads move over, the trunk is packed into a plan and freed. Each snapshot
 * has a pool of its own (`threads` counts the executor; 0: one per core), for a plan packs its
 * weights on its pool while the version before is still being served on another. Any thread. */
TK_MUST tk_err tk_snapshot_create(tk_snapshot **out, tk_model *model, uint64_t number,
                                  size_t max_batch, unsigned threads, tk_diag *diag);
/* The same in `asked`, a tk_precision or TK_PRECISION_AUTO, as far as the version admits it:
 * tk_snapshot_choice() tells. */
TK_MUST tk_err tk_snapshot_create_as(tk_snapshot **out, tk_model *model, uint64_t number,
                                     size_t max_batch, unsigned threads, unsigned asked,
                                     tk_diag *diag);
tk_snapshot *tk_snapshot_ref(tk_snapshot *snapshot); /* returns its argument; any thread */
void tk_snapshot_unref(tk_snapshot *snapshot);       /* NULL is fine; any thread */

/* Has `fn` called by whoever lets go of the last reference, when all of its memory is free again.
 * Before other threads know the snapshot. */
void tk_snapshot_on_end(tk_snapshot *snapshot, void (*fn)(void *ctx), void *ctx);

uint64_t tk_snapshot_number(const tk_snapshot *snapshot);
tk_arch tk_snapshot_arch(const tk_snapshot *snapshot);
const tk_preproc *tk_snapshot_preproc(const tk_snapshot *snapshot);
const tk_precision_choice *tk_snapshot_choice(const tk_snapshot *snapshot);
size_t tk_snapshot_bytes(const tk_snapshot *snapshot); /* of the plan and the heads */
size_t tk_snapshot_head_bytes(const tk_snapshot *snapshot, const tk_head *head);

/* Heads lie sorted by id, "tenant/name", so that those of one tenant are neighbours. Borrowed. */
size_t tk_snapshot_heads(const tk_snapshot *snapshot);
const tk_head *tk_snapshot_head(const tk_snapshot *snapshot, size_t i);
const tk_head *tk_snapshot_find(const tk_snapshot *snapshot, const char *tenant, const char *name);
/* Returns how many heads the tenant has; *first is the index of the first. */
size_t tk_snapshot_of_tenant(const tk_snapshot *snapshot, const char *tenant, size_t *first);

/* One class of an answer. */
typedef struct tk_top {
    uint32_t label; /* index into the head's labels */
    float score;    /* softmax probability */
} tk_top;

/* One image of a pass, and the heads it goes through. */
typedef struct tk_pass {
    const uint8_t *canvas; /* [crop][crop][3], from tk_preproc_canvas() */
    const float *rendered; /* instead: [crop][crop][3], scaled and normalised; NULL: the canvas */
    size_t n_heads;
    const tk_head *const *heads; /* of this snapshot */
    const size_t *k;             /* [n_heads], 1..classes */
    tk_top *top;                 /* out: k[0] entries for heads[0], best first, then k[1], ... */
    /* out, each NULL when not wanted: every class of heads[0], then of heads[1], ... */
    float *logits, *probabilities;
    float *features; /* out, or NULL: the trunk's [features] */
} tk_pass;

/* Runs 1..max_batch images through the trunk and each through its heads. The answer for one image
 * does not depend on the rest of the batch, to the bit. Equal scores are ordered by label index.
 * One thread at a time: the batcher's executor. */
void tk_snapshot_run(tk_snapshot *snapshot, size_t n, const tk_pass *passes);
/* How long the last run took, up to the features and from there on; before the first, the warm-up
 * that creation ends with. The same thread. */
int64_t tk_snapshot_trunk_ns(const tk_snapshot *snapshot);
int64_t tk_snapshot_heads_ns(const tk_snapshot *snapshot);

/* -- tallies of each head since the version was loaded; any thread -- */

typedef struct tk_tally {
    uint64_t count;
    int64_t ns; /* all together */
} tk_tally;

/* Times of one request; of its images the mean. */
typedef struct tk_request_times {
    int64_t total_ns, queue_ns, decode_ns, trunk_ns, heads_ns;
} tk_request_times;

/* Passes with so many images of the head; the times are the whole pass's. */
typedef struct tk_pass_tally {
    uint64_t count;
    int64_t trunk_ns, heads_ns;
} tk_pass_tally;

typedef struct tk_head_tallies {
    int64_t last_ms; /* when the last request ended, since 1970; 0: none yet */
    uint64_t images, passes;
    tk_tally success, fail, queue, decode, trunk, heads; /* by request */
} tk_head_tallies;

/* A request that the head answered, or not. tk_snapshot_run() counts passes by itself. */
void tk_snapshot_tally(tk_snapshot *snapshot, const tk_head *head, bool ok, size_t images,
                       const tk_request_times *times);
/* passes[i] is of i + 1 images, in tk_snapshot_max_batch() entries. */
void tk_snapshot_read_tallies(tk_snapshot *snapshot, const tk_head *head, tk_head_tallies *out,
                              tk_pass_tally *passes);
size_t tk_snapshot_max_batch(const tk_snapshot *snapshot);

/* The version that new requests get. */
typedef struct tk_current tk_current;
TK_MUST tk_err tk_current_create(tk_current **out);
void tk_current_destroy(tk_current *current);     /* NULL is fine */
tk_snapshot *tk_current_get(tk_current *current); /* a new reference, or NULL: none yet */
void tk_current_set(tk_current *current, tk_snapshot *snapshot); /* takes the reference */

#endif
