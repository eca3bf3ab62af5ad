/* See tenants.h. */
#include "serving/tenants.h"

#include <assert.h>
#include <math.h>

#include "engine/mem.h"

/* -- the table -- */

static size_t bucket_of(const tk__tenants *t, int64_t id)
{
    uint64_t x = (uint64_t)id * UINT64_C(0x9E3779B97F4A7C15);
    return (size_t)(x >> 32) & (t->n_buckets - 1);
}

double tk__tenant_rate(const tk__tenants *t, const tk__tenant *tenant)
{
    return tenant->own.rate > 0 ? tenant->own.rate : t->rate;
}

static void refill(const tk__tenants *t, tk__tenant *tenant, int64_t now)
{
    const double rate = tk__tenant_rate(t, tenant);
    if (now <= tenant->tokens_ns) return;
    tenant->tokens += (double)(now - tenant->tokens_ns) * 1e-9 * rate;
    if (tenant->tokens > rate) tenant->tokens = rate;
    tenant->tokens_ns = now;
}

static bool has_own(const tk__tenant *tenant)
{
    const tk_tenant_limits *own = &tenant->own;
    return own->weight > 0 || own->rate > 0 || own->images > 0 || own->bytes > 0;
}

/* Frees the records that say nothing a new one would not say. */
static void drop_idle(tk__tenants *t, int64_t now)
{
    for (size_t i = 0; i < t->n_buckets; i++) {
        for (tk__tenant **at = &t->buckets[i]; *at;) {
            tk__tenant *tenant = *at;
            refill(t, tenant, now);
            if (tenant->images > 0 || tenant->tokens < tk__tenant_rate(t, tenant) ||
                has_own(tenant)) {
                at = &tenant->chain;
                continue;
            }
            tk__fair_remove(&t->decode, &tenant->decode);
            tk__fair_remove(&t->pass, &tenant->pass);
            *at = tenant->chain;
            tk_free(tenant);
            t->n--;
        }
    }
}

static tk_err grow(tk__tenants *t)
{
    const size_t old = t->n_buckets, n = old ? 2 * old : 64;
    tk__tenant **from = t->buckets, **to = tk_calloc(n, sizeof(tk__tenant *));
    if (!to) return TK_NOMEM;
    t->buckets = to;
    t->n_buckets = n;
    for (size_t i = 0; i < old; i++) {
        for (tk__tenant *next, *tenant = from[i]; tenant; tenant = next) {
            next = tenant->chain;
            tk__tenant **at = &to[bucket_of(t, tenant->id)];
            tenant->chain = *at;
            *at = tenant;
        }
    }
    tk_free(from);
    return TK_OK;
}

/* Room for one more. Idle records go first, so that the table follows those who are active, and
 * what it costs is shared by as many that were made since the last time. */
static tk_err make_room(tk__tenants *t, int64_t now)
{
    if (t->n == t->n_buckets) {
        drop_idle(t, now);
        if (2 * t->n >= t->n_buckets && grow(t) != TK_OK) return TK_NOMEM;
    }
    const tk_err err = tk__fair_reserve(&t->decode, t->n + 1);
    return err == TK_OK ? tk__fair_reserve(&t->pass, t->n + 1) : err;
}

tk__tenant *tk__tenants_get(tk__tenants *t, int64_t id, int64_t now)
{
    tk__tenant *tenant = t->n_buckets ? t->buckets[bucket_of(t, id)] : NULL;
    while (tenant && tenant->id != id)
        tenant = tenant->chain;
    if (tenant) return tenant;
    if (make_room(t, now) != TK_OK) return NULL;
    tenant = tk_calloc(1, sizeof *tenant);
    if (!tenant) return NULL;
    tenant->id = id;
    tenant->weight = 1;
    tenant->tokens = t->rate;
    tenant->tokens_ns = now;
    tk__tenant **at = &t->buckets[bucket_of(t, id)];
    tenant->chain = *at;
    *at = tenant;
    t->n++;
    return tenant;
}

void tk__tenants_set_rate(tk__tenants *t, double rate, int64_t now)
{
    for (size_t i = 0; i < t->n_buckets; i++) {
        for (tk__tenant *tenant = t->buckets[i]; tenant; tenant = tenant->chain) {
            refill(t, tenant, now);
            /* Who had no rate owes nothing. */
            if (tk__tenant_rate(t, tenant) <= 0) tenant->tokens = rate;
        }
    }
    t->rate = rate;
}

void tk__tenant_set(const tk__tenants *t, tk__tenant *tenant, const tk_tenant_limits *own,
                    int64_t now)
{
    if (own->change < tenant->own.change) return;
    refill(t, tenant, now);
    const bool had_rate = tk__tenant_rate(t, tenant) > 0;
    tenant->own = *own;
    tenant->weight = own->weight > 0 ? own->weight : 1;
    if (!had_rate) tenant->tokens = tk__tenant_rate(t, tenant);
}

void tk__tenants_fini(tk__tenants *t)
{
    for (size_t i = 0; i < t->n_buckets; i++) {
        for (tk__tenant *next, *tenant = t->buckets[i]; tenant; tenant = next) {
            next = tenant->chain;
            tk_free(tenant);
        }
    }
    tk_free(t->buckets);
    tk__fair_fini(&t->decode);
    tk__fair_fini(&t->pass);
    *t = (tk__tenants){0};
}

/* -- one tenant -- */

tk__tenant *tk__tenant_of_decode(tk__flow *flow)
{
    return flow ? (tk__tenant *)(void *)((char *)flow - offsetof(tk__tenant, decode)) : NULL;
}

tk__tenant *tk__tenant_of_pass(tk__flow *flow)
{
    return flow ? (tk__tenant *)(void *)((char *)flow - offsetof(tk__tenant, pass)) : NULL;
}

int64_t tk__tenant_spend(const tk__tenants *t, tk__tenant *tenant, size_t n, int64_t now)
{
    const double rate = tk__tenant_rate(t, tenant);
    if (rate <= 0) return 0;
    refill(t, tenant, now);
    const double asked = (double)n, need = asked < rate ? asked : rate;
    const double missing = need - tenant->tokens; /* less than a millionth is rounding */
    if (missing > 1e-6) return (int64_t)fmax(round(missing / rate * 1e9), 1);
    tenant->tokens -= asked;
    return 0;
}

static tk__lane *lane_of(tk__tenant *tenant, const tk_infer *infer)
{
    assert(infer->priority >= 1 && infer->priority <= TK_PRIORITY_LAST);
    return &tenant->lanes[infer->priority - 1];
}

void tk__tenant_push(tk__tenant *tenant, tk_infer *infer)
{
    tk__lane *lane = lane_of(tenant, infer);
    infer->next = NULL;
    if (lane->last)
        lane->last->next = infer;
    else
        lane->first = infer;
    lane->last = infer;
    lane->requests++;
    tenant->requests++;
}

tk_infer *tk__tenant_pop_lane(tk__tenant *tenant, size_t at)
{
    tk__lane *lane = &tenant->lanes[at];
    tk_infer *infer = lane->first;
    assert(infer);
    lane->first = infer->next;
    if (!lane->first) lane->last = NULL;
    lane->requests--;
    tenant->requests--;
    infer->next = NULL;
    return infer;
}

tk_infer *tk__tenant_pop(tk__tenant *tenant)
{
    size_t at = 0;
    while (at + 1 < TK_PRIORITY_LAST && !tenant->lanes[at].first)
        at++;
    return tk__tenant_pop_lane(tenant, at);
}

size_t tk__tenant_requests_until(const tk__tenant *tenant, unsigned priority)
{
    size_t n = 0;
    for (size_t at = 0; at < priority; at++)
        n += tenant->lanes[at].requests;
    return n;
}

void tk__tenant_ready_push(tk__tenant *tenant, tk_infer_image *image)
{
    tk__lane *lane = lane_of(tenant, image->infer);
    image->next = NULL;
    if (lane->ready)
        lane->ready_last->next = image;
    else
        lane->ready = image;
    lane->ready_last = image;
}

tk_infer_image *tk__tenant_ready(const tk__tenant *tenant)
{
    for (size_t at = 0; at < TK_PRIORITY_LAST; at++)
        if (tenant->lanes[at].ready) return tenant->lanes[at].ready;
    return NULL;
}

tk_infer_image *tk__tenant_ready_pop(tk__tenant *tenant)
{
    tk_infer_image *image = tk__tenant_ready(tenant);
    assert(image);
    tk__lane *lane = lane_of(tenant, image->infer);
    lane->ready = image->next;
    if (!lane->ready) lane->ready_last = NULL;
    return image;
}
