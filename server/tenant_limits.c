/* See tenant_limits.h. */
#include "tenant_limits.h"

static tk_err check(const char *name, double value, double least, double most, tk_diag *diag)
{
    if (value == 0 || (value >= least && value <= most)) return TK_OK; /* NaN is neither */
    return tk_fail(diag, TK_BADARG, "%s is %g, but must be %g to %g, or 0 for what everybody has",
                   name, value, least, most);
}

tk_err tk_tenant_limits_check(const tk_tenant_limits *l, tk_diag *diag)
{
    tk_err err = check("weight", l->weight, 0.01, 100, diag);
    if (err == TK_OK) err = check("rate", l->rate, 0.01, 1e6, diag);
    if (err == TK_OK) err = check("images", (double)l->images, 1, 1e6, diag);
    if (err == TK_OK) err = check("bytes", (double)l->bytes, 65536, 1099511627776.0, diag);
    return err;
}
