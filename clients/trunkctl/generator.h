/* A load generator: many unary calls in flight at a server, either N at any time (closed loop: the
 * next call starts when one ends) or at the times of a Poisson process (open loop: whatever the
 * server does). Between the warm-up's end and the end it counts: closed loop the calls that end
 * then, open loop those that are meant to start then, however long they take. Latency in the open
 * loop counts from when the call was *meant* to start, so that a server that stalls, or a generator
 * that is late, cannot hide what its clients would have waited.
 *
 * Threads: one takes the answers (and, closed loop, starts the next call), one starts calls at
 * their times (open loop), and the caller's watches over both. */
#ifndef TRUNKCTL_GENERATOR_H
#define TRUNKCTL_GENERATOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "histogram.h"
#include "rpc_client.h"

enum {
    TK__GEN_CODES = 17,           /* gRPC's */
    TK__GEN_IN_FLIGHT_MAX = 20000 /* calls; of the open loop more than that are not sent */
};

typedef struct tk__gen_tenant {
    char *token;   /* NULL: the client's own */
    double weight; /* of all calls its part is weight / sum of weights */
} tk__gen_tenant;

typedef struct tk__gen_opts {
    tk_client **clients; /* the connections, used in turn */
    size_t n_clients;
    const tk__gen_tenant *tenants;
    size_t n_tenants;
    const char *path;
    const ProtobufCMessageDescriptor *out_type;
    tk_client_packed **requests; /* sent in turn */
    size_t n_requests;
    uint64_t concurrency; /* closed loop, 1..TK__GEN_IN_FLIGHT_MAX; 0: open loop */
    double rate;          /* open loop: calls a second */
    double warm_up_s, seconds;
    uint64_t calls;       /* counting ends with so many, too; 0: with the time alone */
    unsigned timeout_ms;  /* of a call, as its gRPC deadline */
    unsigned deadline_ms; /* an answer within it is a good one; 0: any is */
    uint64_t seed;
    bool progress; /* a line on standard error */
    /* Images answered, and those that the server could not read, of an OK answer. */
    void (*look)(const ProtobufCMessage *answer, uint64_t *images, uint64_t *unreadable);
    void (*at_window)(void *arg, bool end); /* where counting begins and ends; caller's thread */
    void *arg;
} tk__gen_opts;

/* How a call ended. */
typedef enum tk__gen_end {
    TK__GEN_OK,
    TK__GEN_REFUSED, /* RESOURCE_EXHAUSTED, or DEADLINE_EXCEEDED before the deadline */
    TK__GEN_FAILED,  /* everything else */
    TK__GEN_ENDS,
} tk__gen_end;

typedef struct tk__gen_result {
    double seconds;    /* that were counted; fewer than asked after `calls` or Ctrl-C */
    uint64_t requests; /* ended in all ways + unsent */
    uint64_t unsent;   /* open loop: too many were in flight */
    uint64_t good;     /* OK within the deadline */
    uint64_t images, good_images, unreadable;
    uint64_t codes[TK__GEN_CODES];
    tk__histogram latency[TK__GEN_ENDS]; /* .n: how many ended so */
    tk__histogram lag;                   /* open loop: how late calls were started */
    uint64_t (*by_tenant)[TK__GEN_ENDS]; /* [n_tenants] */
    double client_cpus;                  /* that the generator itself took */
    char failure[256];                   /* the server's sentence of the first that failed */
} tk__gen_result;

/* Runs until all that was started has ended. False: out of memory or threads. Ctrl-C (stop.h) ends
 * the counting early, and then the calls in flight after two seconds. Free with tk__gen_free(). */
bool tk__generate(const tk__gen_opts *opts, tk__gen_result *result);
void tk__gen_free(tk__gen_result *result);

#endif
