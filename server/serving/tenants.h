/* What the batcher knows of each tenant: its part of the queue, its place in the two orders (who
 * decodes next, whose images fill the next pass), its rate. Found by id in a hash table; a record
 * lasts while its tenant has anything in the queue or a rate to pay off, and longer when nobody
 * needs the room, or for good while an admin has set anything of it. The batcher's lock guards all
 * of it. Inside server/serving only. */
#ifndef SERVER_SERVING_TENANTS_H
#define SERVER_SERVING_TENANTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "serving/batcher.h"
#include "serving/fair.h"

/* What a tenant has of one priority. */
typedef struct tk__lane {
    tk_infer *first, *last; /* requests with images not started; whose turn it is first */
    size_t requests;        /* of these */
    tk_infer_image *ready, *ready_last; /* with a canvas, oldest first */
} tk__lane;

typedef struct tk__tenant {
    int64_t id;
    struct tk__tenant *chain;         /* of its bucket */
    tk_tenant_limits own;             /* set by an admin */
    double weight;                    /* own.weight, or 1 */
    tk__lane lanes[TK_PRIORITY_LAST]; /* by priority - 1: the first with anything is next */
    size_t requests;                  /* in all lanes */
    size_t images, bytes;             /* submitted, not answered */
    size_t ahead;                     /* being decoded, or ready */
    size_t sweep_steps;               /* see admit.c */
    tk__flow decode, pass;
    struct tk__tenant *aside; /* while a batch is made */
    double tokens;            /* images it may send at once, at tokens_ns; below 0: a debt */
    int64_t tokens_ns;
} tk__tenant;

typedef struct tk__tenants {
    tk__tenant **buckets; /* [n_buckets], a power of two */
    size_t n_buckets, n;
    double rate;           /* images/s of each that has none of its own; 0: any */
    tk__fair decode, pass; /* have room for all tenants */
} tk__tenants;

/* The tenant's record, made when it has none. NULL: out of memory. */
tk__tenant *tk__tenants_get(tk__tenants *tenants, int64_t id, int64_t now);
/* Another rate from now on; debts stay. */
void tk__tenants_set_rate(tk__tenants *tenants, double rate, int64_t now);
/* The tenant's own settings; an older change than the one it has is dropped. */
void tk__tenant_set(const tk__tenants *tenants, tk__tenant *tenant, const tk_tenant_limits *own,
                    int64_t now);
/* Images/s of the tenant; 0: any. */
double tk__tenant_rate(const tk__tenants *tenants, const tk__tenant *tenant);
void tk__tenants_fini(tk__tenants *tenants); /* a zeroed one is fine */

tk__tenant *tk__tenant_of_decode(tk__flow *flow);
tk__tenant *tk__tenant_of_pass(tk__flow *flow);

/* Takes `n` images from the rate: one second's images may come at once, and a request of more waits
 * for as much and is paid off afterwards. 0: taken. Otherwise nothing was, and it is how many ns to
 * wait until it can be. */
int64_t tk__tenant_spend(const tk__tenants *tenants, tk__tenant *tenant, size_t n, int64_t now);

/* The lists of requests: behind those of the same priority; the first of the most urgent, or of one
 * lane. */
void tk__tenant_push(tk__tenant *tenant, tk_infer *infer);
tk_infer *tk__tenant_pop(tk__tenant *tenant); /* there is one */
tk_infer *tk__tenant_pop_lane(tk__tenant *tenant, size_t lane);
/* Requests that are as urgent as this priority, or more. */
size_t tk__tenant_requests_until(const tk__tenant *tenant, unsigned priority);

/* The lists of ready images, alike. */
void tk__tenant_ready_push(tk__tenant *tenant, tk_infer_image *image);
tk_infer_image *tk__tenant_ready(const tk__tenant *tenant); /* NULL: none */
tk_infer_image *tk__tenant_ready_pop(tk__tenant *tenant);   /* there is one */

#endif
