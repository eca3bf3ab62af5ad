/* Admin.SetTenantLimits, and the priority of a request: whose images come when. */
#include <inttypes.h>

#include "api/api_internal.h"

tk_err tk__priority(uint64_t asked, unsigned *out, tk_diag *diag)
{
    *out = asked ? (unsigned)asked : TK_PRIORITY_DEFAULT;
    if (asked <= TK_PRIORITY_LAST) return TK_OK;
    return tk_fail(diag, TK_BADARG,
                   "priority is %" PRIu64 ", but must be 1 (the most urgent) to %d, or 0 for %d",
                   asked, TK_PRIORITY_LAST, TK_PRIORITY_DEFAULT);
}

Trunkd__V1__TenantLimits *tk__put_limits(tk__region *region, const tk_tenant_limits *limits)
{
    Trunkd__V1__TenantLimits *m = tk__new(region, &trunkd__v1__tenant_limits__descriptor);
    if (!m) return NULL;
    m->weight = limits->weight;
    m->rate = limits->rate;
    m->images = limits->images;
    m->bytes = limits->bytes;
    return m;
}

static tk_err set_limits(tk_rpc_call *call, const Trunkd__V1__SetTenantLimitsRequest *in,
                         tk_tenant_limits *limits, tk_diag *diag)
{
    const tk_api *api = tk__api(call);
    const Trunkd__V1__TenantLimits *m = in->limits;
    if (!m) return tk_fail(diag, TK_BADARG, "limits is missing");
    *limits = (tk_tenant_limits){
        .weight = m->weight, .rate = m->rate, .images = m->images, .bytes = m->bytes};
    tk_err err = tk_tenant_limits_check(limits, diag);
    int64_t id = 0;
    if (err == TK_OK) err = tk_store_tenant_limits_set(api->o.store, in->tenant, limits, &id, diag);
    if (err == TK_OK && tk_batcher_set_tenant(api->o.batcher, id, limits) != TK_OK)
        err = tk_fail(diag, TK_NOMEM, "no memory for the limits, which hold after a restart");
    return err;
}

void tk__admin_set_limits(tk_rpc_call *call, const ProtobufCMessage *message)
{
    const Trunkd__V1__SetTenantLimitsRequest *in =
        (const Trunkd__V1__SetTenantLimitsRequest *)message;
    tk_diag diag = {{0}};
    tk_tenant_limits limits;
    const tk_err err = set_limits(call, in, &limits, &diag);
    if (err != TK_OK) {
        tk__fail(call, err, &diag);
        return;
    }
    tk__region region = {NULL, false};
    char weight[32], rate[32];
    snprintf(weight, sizeof weight, "%g", limits.weight);
    snprintf(rate, sizeof rate, "%g", limits.rate);
    tk_log(TK_LOG_INFO, "tenant limits set",
           (tk_log_field[]){tk_log_str("tenant", in->tenant), tk_log_str("weight", weight),
                            tk_log_str("rate", rate), tk_log_int("images", (int64_t)limits.images),
                            tk_log_int("bytes", (int64_t)limits.bytes), tk__log_trace(call),
                            tk_log_end()});
    tk__reply(call, &region, tk__put_limits(&region, &limits));
}
