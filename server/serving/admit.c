/* Which requests the batcher takes in: limits of the queue and of each tenant, deadlines that can
 * be met, rates; and when it is worth trying again. All under the batcher's lock. */
#include <math.h>

#include "serving/batcher_internal.h"

enum { SWEEP_STEPS = 64 }; /* requests looked at for each one that finds the queue full */
enum { RETRY_MS = 100, /* when the pace is not known */ MIN_RETRY_MS = 5, MAX_RETRY_MS = 10000 };

/* When `images` more are worked off, in ms. */
static uint32_t retry_ms_locked(const tk_batcher *b, size_t images)
{
    const int64_t ns = tk__pace_of(&b->pace, images), ms = ns / 1000000 + 1;
    if (ns < 0) return RETRY_MS;
    return ms < MIN_RETRY_MS ? MIN_RETRY_MS : ms > MAX_RETRY_MS ? MAX_RETRY_MS : (uint32_t)ms;
}

/* Most images in the queue that leave this request in: the last eighth is for tenants with little
 * in it, so that a few who fill their parts do not shut out the others. */
static size_t queue_limit(const tk_batcher *b, const tk__tenant *t, const tk_infer *r)
{
    const size_t most = b->opts.max_images;
    return t->images == 0 || t->images + r->n_images <= most / 32 ? most : most - most / 8;
}

/* Of the tenant, in the queue; 0: no limit of its own. */
static size_t most_images(const tk_batcher *b, const tk__tenant *t)
{
    return t->own.images ? t->own.images : b->opts.max_tenant_images;
}

static size_t most_bytes(const tk_batcher *b, const tk__tenant *t)
{
    return t->own.bytes ? t->own.bytes : b->opts.max_tenant_bytes;
}

static bool fits_tenant(const tk_batcher *b, const tk__tenant *t, const tk_infer *r)
{
    const size_t images = most_images(b, t), bytes = most_bytes(b, t);
    return (images == 0 || t->images + r->n_images <= images) &&
           (bytes == 0 || t->bytes + r->bytes <= bytes);
}

static bool fits_queue(const tk_batcher *b, const tk__tenant *t, const tk_infer *r)
{
    return b->images + r->n_images <= queue_limit(b, t, r) &&
           b->bytes + r->bytes <= b->opts.max_bytes;
}

/* How many images pass until this tenant has had `own`: with fair turns no more than as many of
 * each tenant, by their weights, and no more than there are and will come meanwhile, as what others
 * send later may have its turn before the tenant's second. */
static size_t shared_locked(const tk_batcher *b, const tk__tenant *t, size_t own, size_t all)
{
    const double weight = b->weight + (t->images == 0 ? t->weight : 0);
    const double turns = ceil((double)own * weight / t->weight);
    const double drain = fmax(1 - b->pace.inflow, 1e-6); /* images fewer for each that is done */
    return (size_t)fmin(turns, (double)all / drain);
}

static tk_err refuse_tenant_locked(tk_batcher *b, const tk__tenant *t, tk_infer *r, tk_diag *diag)
{
    const size_t most = most_images(b, t), bytes = most_bytes(b, t);
    b->stats.refused_tenant++;
    if (most > 0 && r->n_images > most) /* it will never fit */
        return tk_fail(diag, TK_LIMIT, "%zu images were sent, %s is %zu in the queue: send fewer",
                       r->n_images, t->own.images ? "your limit" : "a tenant's limit", most);
    if (bytes > 0 && r->bytes > bytes)
        return tk_fail(diag, TK_LIMIT,
                       "images of %zu bytes were sent, %s is %zu bytes in the queue: send fewer",
                       r->bytes, t->own.bytes ? "your limit" : "a tenant's limit", bytes);
    if (most > 0 && t->images + r->n_images > most) {
        const size_t over = t->images + r->n_images - most;
        r->retry_ms = retry_ms_locked(b, shared_locked(b, t, over, b->images));
        return tk_fail(diag, TK_LIMIT,
                       "your part of the queue is full: %zu images of yours wait and %zu more were "
                       "sent, %s is %zu%s; try again in %u ms",
                       t->images, r->n_images, t->own.images ? "your limit" : "a tenant's limit",
                       most, t->own.images ? "" : " (--tenant-queue)", r->retry_ms);
    }
    r->retry_ms = retry_ms_locked(b, t->images / 2);
    return tk_fail(
        diag, TK_LIMIT,
        "your part of the queue is full: %zu bytes of your images wait and %zu more were "
        "sent, %s is %zu bytes; try again in %u ms",
        t->bytes, r->bytes, t->own.bytes ? "your limit" : "a tenant's limit", bytes, r->retry_ms);
}

static tk_err refuse_queue_locked(tk_batcher *b, const tk__tenant *t, tk_infer *r, tk_diag *diag)
{
    const size_t most = queue_limit(b, t, r);
    b->stats.refused_full++;
    if (b->images + r->n_images > most) {
        r->retry_ms = retry_ms_locked(b, b->images + r->n_images - most);
        return tk_fail(diag, TK_LIMIT,
                       "the queue is full: %zu images wait and %zu more were sent, its limit is "
                       "%zu images (%zu by --queue%s); try again in %u ms",
                       b->images, r->n_images, most, b->opts.max_images,
                       most < b->opts.max_images ? ", less what is kept for tenants with few" : "",
                       r->retry_ms);
    }
    r->retry_ms = retry_ms_locked(b, b->images / 2);
    return tk_fail(diag, TK_LIMIT,
                   "the queue is full: %zu bytes of images wait and %zu more were sent, its limit "
                   "is %zu bytes; try again in %u ms",
                   b->bytes, r->bytes, b->opts.max_bytes, r->retry_ms);
}

/* Would the deadline pass before the request's turn is over, and with it the whole pass? Only a
 * queue of more than a pass tells, and only when its pace is known. A quarter of the estimate is
 * kept for its being wrong: under an overload that lasts, the queue grows to just what is admitted
 * here, and were that a little too much, every request in it would be answered a little too late.
 */
static tk_err check_deadline_locked(tk_batcher *b, const tk__tenant *t, const tk_infer *r,
                                    int64_t now, tk_diag *diag)
{
    const size_t pass = b->opts.max_batch;
    if (r->deadline_ns == INT64_MAX || b->images < pass) return TK_OK;
    /* Of the tenant's own: what is decoded, then its requests in turn. */
    const size_t before = tk__tenant_requests_until(t, r->priority);
    const size_t turns = r->n_images * (before + 1) + t->ahead;
    const size_t mine = t->images + r->n_images, own = turns < mine ? turns : mine;
    const size_t until = shared_locked(b, t, own, b->images + r->n_images);
    const int64_t need = tk__pace_of(&b->pace, (until + pass - 1) / pass * pass);
    const int64_t have = r->deadline_ns > now ? r->deadline_ns - now : 0;
    if (need + need / 4 <= have) return TK_OK;
    b->stats.refused_deadline++;
    return tk_fail(diag, TK_DEADLINE,
                   "the deadline is in %lld ms, but with %zu images in the queue the answer would "
                   "take about %lld ms: nothing was done",
                   (long long)(have / 1000000), b->images, (long long)(need / 1000000));
}

static tk_err check_rate_locked(tk_batcher *b, tk__tenant *t, tk_infer *r, int64_t now,
                                tk_diag *diag)
{
    const int64_t wait = tk__tenant_spend(&b->tenants, t, r->n_images, now);
    if (wait == 0) return TK_OK;
    const int64_t ms = (wait + 999999) / 1000000;
    r->retry_ms = ms < UINT32_MAX ? (uint32_t)ms : UINT32_MAX;
    b->stats.refused_rate++;
    return tk_fail(diag, TK_LIMIT,
                   "too fast: %zu images were sent, %s limit is %g images a second%s, of which "
                   "one second's may come at once; try again in %u ms",
                   r->n_images, t->own.rate > 0 ? "your" : "a tenant's",
                   tk__tenant_rate(&b->tenants, t), t->own.rate > 0 ? "" : " (--tenant-rate)",
                   r->retry_ms);
}

/* Dead requests are looked for when there is no room, but one who is refused all the time must not
 * make everyone wait for a look at the whole queue each time: steps are saved up for it. */
static bool may_sweep(size_t *saved, size_t steps)
{
    *saved += SWEEP_STEPS;
    if (*saved < steps) return false;
    *saved = 0;
    return true;
}

tk_err tk__batcher_admit(tk_batcher *b, tk__tenant *t, tk_infer *r, int64_t now,
                         tk_infer **finished, tk_diag *diag)
{
    if (!fits_tenant(b, t, r) && may_sweep(&t->sweep_steps, t->requests))
        tk__batcher_sweep(b, t, now, finished);
    if (!fits_tenant(b, t, r)) return refuse_tenant_locked(b, t, r, diag);
    if (!fits_queue(b, t, r) && may_sweep(&b->sweep_steps, b->tenants.decode.n + b->not_started))
        tk__batcher_sweep_all(b, now, finished);
    if (!fits_queue(b, t, r)) return refuse_queue_locked(b, t, r, diag);
    const tk_err err = check_deadline_locked(b, t, r, now, diag);
    if (err != TK_OK) return err;
    return check_rate_locked(b, t, r, now, diag); /* the last: what is refused is not spent */
}
