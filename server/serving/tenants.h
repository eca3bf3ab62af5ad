/* What the batcher knows of each tenant: its part of the queue, its place in the two orders (who
 * decodes next, whose images fill the next pass), its rate. Found by id in a hash table; a record
 * lasts while its tenant has anything in the queue or a rate to pay off, and longer when nobody
 * needs the room. The batcher's lock guards all of it. Inside server/serving only. */
#ifndef SERVER_SERVING_TENANTS_H
#define SERVER_SERVING_TENANTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "serving/batcher.h"
#include "serving/fair.h"

typedef struct tk__tenant {
    int64_t id;
    struct tk__tenant *chain; /* of its bucket */
    tk_infer *first, *last;   /* requests with images not started; whose turn it is first */
    tk_infer_image *ready, *ready_last; /* with a canvas, oldest first */
    size_t requests;                    /* in the list */
    size_t images, bytes;               /* submitted, not answered */
    size_t ahead;                       /* being decoded, or ready */
    size_t sweep_steps;                 /* see admit.c */
    tk__flow decode, pass;
    struct tk__tenant *aside; /* while a batch is made */
    double tokens;            /* images it may send at once, at tokens_ns; below 0: a debt */
    int64_t tokens_ns;
} tk__tenant;

typedef struct tk__tenants {
    tk__tenant **buckets; /* [n_buckets], a power of two */
    size_t n_buckets, n;
    double rate;           /* images/s of each; 0: any */
    tk__fair decode, pass; /* have room for all tenants */
} tk__tenants;

/* The tenant's record, made when it has none. NULL: out of memory. */
tk__tenant *tk__tenants_get(tk__tenants *tenants, int64_t id, int64_t now);
/* Another rate from now on; debts stay. */
void tk__tenants_set_rate(tk__tenants *tenants, double rate, int64_t now);
void tk__tenants_fini(tk__tenants *tenants); /* a zeroed one is fine */

tk__tenant *tk__tenant_of_decode(tk__flow *flow);
tk__tenant *tk__tenant_of_pass(tk__flow *flow);

/* Takes `n` images from the rate: one second's images may come at once, and a request of more waits
 * for as much and is paid off afterwards. 0: taken. Otherwise nothing was, and it is how many ns to
 * wait until it can be. */
int64_t tk__tenant_spend(const tk__tenants *tenants, tk__tenant *tenant, size_t n, int64_t now);

/* The list of requests. */
void tk__tenant_push(tk__tenant *tenant, tk_infer *infer);
tk_infer *tk__tenant_pop(tk__tenant *tenant); /* there is one */

#endif
