/* The services of trunkd.v1: one table of methods for the RPC layer (rpc/rpc.h). One file per
 * service; everything they share is in a tk_api, which is the RPC layer's ctx. */
#ifndef SERVER_API_API_H
#define SERVER_API_API_H

#include "jobs/jobs.h"
#include "metrics.h"
#include "rpc/rpc.h"
#include "serving/batcher.h"
#include "serving/shelf.h"
#include "store/store.h"

typedef struct tk_api tk_api;

/* What may change while the server runs. */
typedef struct tk_api_settings {
    uint64_t max_upload_bytes; /* of one data set */
    bool access_log;           /* a line for each finished call */
} tk_api_settings;

/* All borrowed; they must outlive the api. */
typedef struct tk_api_opts {
    tk_store *store;
    tk_jobs *jobs;
    tk_batcher *batcher;
    tk_current *current;
    tk_shelf *shelf;
    unsigned threads;      /* of inference, for GetStatus */
    const char *precision; /* that was asked for, for GetStatus */
    tk_metrics *metrics;   /* may be NULL */
    tk_api_settings settings;
} tk_api_opts;

TK_MUST tk_err tk_api_create(tk_api **out, const tk_api_opts *opts, tk_diag *diag);
/* After the RPC server has stopped. NULL is fine. */
void tk_api_destroy(tk_api *api);

void tk_api_set(tk_api *api, const tk_api_settings *settings); /* any thread */

/* For tk_rpc_opts: the table, the check of a bearer token, and the tenant that a client certificate
 * names. `ctx` is the tk_api. */
const tk_rpc_method *tk_api_methods(size_t *n);
tk_err tk_api_authenticate(void *ctx, const char *token, size_t len, tk_identity *out,
                           tk_diag *diag);
tk_err tk_api_tenant_named(void *ctx, const char *name, tk_identity *out, tk_diag *diag);

/* For tk_rpc_opts, too: counts calls, and logs those that ended if asked for. */
void tk_api_call_began(void *ctx);
void tk_api_call_ended(void *ctx, const tk_rpc_ended *call);

/* The server is about to stop: streams that would go on (Watch) end with TK_BUSY and say how to go
 * on. */
void tk_api_shutdown(tk_api *api);

#endif
