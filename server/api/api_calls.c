/* Every call, whatever its method: counted, and one line of the log for each that ended if that was
 * asked for. Only what is named here gets into the line: never a header, a token or a message. */
#include <string.h>

#include "api/api_internal.h"

void tk_api_call_began(void *ctx)
{
    const tk_api *api = ctx;
    tk_metrics_call_began(api->o.metrics);
}

tk_log_field tk__log_trace(const tk_rpc_call *call)
{
    const char *trace = tk_rpc_trace(call);
    return trace[0] ? tk_log_str("trace", trace) : tk_log_end();
}

/* No tenant can have these names. */
static const char *caller(const tk_identity *who)
{
    if (who->admin) return "(admin)";
    return who->name[0] ? who->name : "(none)";
}

static void log_access(const tk_rpc_ended *call)
{
    tk_log_field fields[10] = {tk_log_str("method", call->path ? call->path + 1 : "(unknown)"),
                               tk_log_str("tenant", caller(call->who)),
                               tk_log_str("code", tk_metrics_code_name(call->code)),
                               tk_log_int("us", call->duration_ns / 1000),
                               tk_log_int("bytes", (int64_t)call->bytes)};
    size_t n = 5;
    if (call->images) fields[n++] = tk_log_int("images", (int64_t)call->images);
    if (call->version) fields[n++] = tk_log_int("version", (int64_t)call->version);
    if (call->trace[0]) fields[n++] = tk_log_str("trace", call->trace);
    fields[n] = tk_log_end();
    tk_log(TK_LOG_INFO, "call", fields);
}

/* Limits and deadlines are no failures; the batcher counts them. */
void tk__count_infer(tk_rpc_call *call, const tk_infer *infer, tk_err err)
{
    tk_api *api = tk__api(call);
    const char *tenant = tk_rpc_identity(call)->name;
    const size_t skip = strlen(tenant) + 1; /* a head's id is "tenant/name" */
    const int code = tk_rpc_code(err);
    if (err == TK_BUSY || err == TK_INTERNAL || err == TK_IO)
        atomic_fetch_add_explicit(&api->failures, 1, memory_order_relaxed);
    if (!infer) tk_metrics_classified(api->o.metrics, tenant, "", code, 0);
    if (infer) tk_infer_tally(infer, err == TK_OK);
    if (infer && err == TK_OK)
        tk_metrics_answered(api->o.metrics, tk_snapshot_number(infer->snapshot), infer->n_images);
    for (size_t h = 0; infer && h < infer->n_heads; h++)
        tk_metrics_classified(api->o.metrics, tenant, infer->heads[h]->id + skip, code,
                              infer->n_images);
}

void tk_api_call_ended(void *ctx, const tk_rpc_ended *call)
{
    const tk_api *api = ctx;
    tk_metrics_call_ended(api->o.metrics, call->path, call->code);
    if (call->images > 0 && call->code == 0 && !call->stream) /* a stream's requests do it */
        tk_metrics_observe(api->o.metrics, TK_STAGE_TOTAL, call->duration_ns);
    if (atomic_load_explicit(&api->access_log, memory_order_relaxed)) log_access(call);
}
