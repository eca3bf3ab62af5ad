/* Counters of the running server: a registry of atomics that every thread adds to without a lock,
 * and that is written out as Prometheus' text format (server/http.h) and read by GetStatus.
 *
 *     tk_metrics_observe(metrics, TK_STAGE_DECODE, ns);      hot: a few relaxed additions
 *     tk_metrics_write(metrics, file);                       /metrics
 *
 * Adding accepts a NULL registry and does nothing then. Figures are since start. What names a
 * tenant or a head is bounded: the first TK_METRICS_SERIES pairs have series of their own, the
 * rest share one that is called "other", "other". Any thread unless said otherwise. */
#ifndef SERVER_METRICS_H
#define SERVER_METRICS_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "engine/err.h"

typedef struct tk_metrics tk_metrics;

enum {
    TK_METRICS_SERIES = 256,      /* pairs of tenant and head */
    TK_METRICS_METHODS = 64,      /* of RPC; more are counted as "other" */
    TK_METRICS_VERSIONS = 32,     /* that answered last */
    TK_METRICS_CODES = 17,        /* gRPC's status codes, 0 to 16 */
    TK_METRICS_TIME_BUCKETS = 18, /* the last one: more than all bounds */
};

/* Where a Classify request spends its time. */
typedef enum tk_stage {
    TK_STAGE_DECODE, /* of one image, to its canvas */
    TK_STAGE_QUEUE,  /* of one image: waiting for a decode thread, then for its pass */
    TK_STAGE_TRUNK,  /* of one pass: rendering and the trunk */
    TK_STAGE_HEAD,   /* of one pass: all its heads */
    TK_STAGE_TOTAL, /* of one request answered OK: from its headers, in a stream its message, to its
                     answer on the way */
    TK_STAGE_COUNT,
} tk_stage;

/* How a job ended. */
typedef enum tk_job_end {
    TK_JOB_END_COMMITTED,
    TK_JOB_END_REJECTED,
    TK_JOB_END_FAILED,
    TK_JOB_END_CANCELLED,
    TK_JOB_END_COUNT,
} tk_job_end;

TK_MUST tk_err tk_metrics_create(tk_metrics **out);
void tk_metrics_destroy(tk_metrics *m); /* NULL is fine; nobody may add any more */

/* -- adding -- */

void tk_metrics_observe(tk_metrics *m, tk_stage stage, int64_t ns);
/* One pass through the trunk. */
void tk_metrics_pass(tk_metrics *m, size_t images, int64_t trunk_ns, int64_t head_ns);
/* One request for inference and one head it was for; `head` "" when it ended before a head was
 * known. `images` count when the code is 0. The first call for a pair takes a lock. */
void tk_metrics_classified(tk_metrics *m, const char *tenant, const char *head, int code,
                           uint64_t images);
/* A request that this version answered OK, with so many images. Takes a lock. */
void tk_metrics_answered(tk_metrics *m, uint64_t version, uint64_t images);
/* Series of a tenant that has left are written no more. Takes a lock. */
void tk_metrics_forget(tk_metrics *m, const char *tenant);

void tk_metrics_call_began(tk_metrics *m);
/* `path` must live as long as the process (the method's table); NULL: no such method. */
void tk_metrics_call_ended(tk_metrics *m, const char *path, int code);

/* "OK", "NOT_FOUND", ... */
const char *tk_metrics_code_name(int code);

void tk_metrics_version_served(tk_metrics *m, uint64_t number);
void tk_metrics_version_committed(tk_metrics *m);
void tk_metrics_version_rolled_back(tk_metrics *m);
void tk_metrics_jobs(tk_metrics *m, uint64_t queued, uint64_t running);
void tk_metrics_job_ended(tk_metrics *m, tk_job_end end);

/* -- figures that others keep -- */

/* Why a request was not taken in, or left the queue without a pass. */
typedef enum tk_turned_away {
    TK_AWAY_QUEUE_FULL,  /* refused: of images or bytes */
    TK_AWAY_TENANT_FULL, /* refused: its tenant's part */
    TK_AWAY_RATE,        /* refused: its tenant's rate */
    TK_AWAY_DEADLINE,    /* refused: it could not be met */
    TK_AWAY_LATE,        /* dropped: too late for the deadline */
    TK_AWAY_CANCELLED,   /* dropped */
    TK_AWAY_COUNT,
} tk_turned_away;

typedef struct tk_metrics_gauges {
    uint64_t queue_images; /* submitted, not answered */
    uint64_t away[TK_AWAY_COUNT];
    uint64_t shed;                               /* connections closed for want of descriptors */
    uint64_t versions_labelled, versions_pinned; /* in memory */
    uint64_t loads, load_failures;               /* of versions for labels and pins */
    uint64_t version_waits;                      /* requests that wait for a version */
} tk_metrics_gauges;
/* Asks `fn` whenever figures are read, until set to NULL; returns when no call of the old one is
 * under way. `fn` must be quick. */
void tk_metrics_set_probe(tk_metrics *m, void (*fn)(void *ctx, tk_metrics_gauges *out), void *ctx);
/* A label of trunkd_build_info besides the version. Before other threads run; borrowed. */
void tk_metrics_set_isa(tk_metrics *m, const char *isa);

/* -- reading -- */

typedef struct tk_metrics_times {
    uint64_t counts[TK_METRICS_TIME_BUCKETS]; /* not cumulative */
    double sum;                               /* seconds */
} tk_metrics_times;
/* Upper bounds in seconds, rising; the last bucket has none. */
extern const double tk_metrics_time_bounds[TK_METRICS_TIME_BUCKETS - 1];
const char *tk_metrics_stage_name(tk_stage stage);
void tk_metrics_read(tk_metrics *m, tk_stage stage, tk_metrics_times *out);
uint64_t tk_metrics_in_flight(const tk_metrics *m);

/* All of it in Prometheus' text format 0.0.4. Errors of the file are the caller's to ask for. */
void tk_metrics_write(tk_metrics *m, FILE *to);
/* `text` as a label's value: backslash, double quote and line feed escaped. */
void tk__metrics_label(FILE *to, const char *text);

#endif
