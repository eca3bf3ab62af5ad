/* trunkd.v1.Classifier. A request is checked here, on the completion-queue thread (memory only), or
 * on the shelf's when its version had to be loaded; handed to the batcher, and answered from the
 * batcher's executor. The call is held (tk_rpc_ref) meanwhile, and with it the request message,
 * whose bytes the batcher reads. */
#include <inttypes.h>
#include <string.h>

#include "api/api_internal.h"
#include "engine/mem.h"

enum {
    MAX_IMAGES = 256,
    MAX_HEADS = 64,
    MAX_PREDICTIONS = 1 << 18, /* of one answer: bounds its memory */
};

/* -- the question -- */

static tk_err check_images(const Trunkd__V1__ClassifyRequest *in, tk_diag *diag)
{
    if (in->n_images == 0)
        return tk_fail(diag, TK_BADARG, "images is empty: send 1 to %d", MAX_IMAGES);
    if (in->n_images > MAX_IMAGES) {
        return tk_fail(diag, TK_BADARG, "images has %zu entries, the limit is %d", in->n_images,
                       MAX_IMAGES);
    }
    for (size_t i = 0; i < in->n_images; i++) {
        if (in->images[i].len > TK_API_IMAGE_MAX) {
            return tk_fail(diag, TK_BADARG, "images[%zu] has %zu bytes, the limit is %d", i,
                           in->images[i].len, TK_API_IMAGE_MAX);
        }
    }
    return TK_OK;
}

/* The heads asked for, or all of the tenant's: written to heads[MAX_HEADS]. `snapshot` NULL: a
 * version in which the tenant has none. */
static tk_err find_heads(const Trunkd__V1__ClassifyRequest *in, const tk_snapshot *snapshot,
                         const char *tenant, const tk_head **heads, size_t *n, tk_diag *diag)
{
    if (in->n_heads > MAX_HEADS) {
        return tk_fail(diag, TK_BADARG, "heads has %zu entries, the limit is %d", in->n_heads,
                       MAX_HEADS);
    }
    *n = in->n_heads;
    for (size_t i = 0; i < in->n_heads; i++) {
        heads[i] = snapshot ? tk_snapshot_find(snapshot, tenant, in->heads[i]) : NULL;
        if (!heads[i]) {
            char name[80];
            tk__api_text_copy(name, sizeof name, in->heads[i]);
            return tk_fail(diag, TK_NOTFOUND, "you have no head \"%s\"%s", name,
                           tk__in_version_of(in->version).text);
        }
    }
    if (in->n_heads > 0) return TK_OK;
    size_t first = 0;
    *n = snapshot ? tk_snapshot_of_tenant(snapshot, tenant, &first) : 0;
    if (*n == 0 && in->version[0])
        return tk_fail(diag, TK_NOTFOUND, "you have no head%s",
                       tk__in_version_of(in->version).text);
    if (*n == 0) {
        return tk_fail(
            diag, TK_PRECONDITION,
            "you have no head yet: upload labelled images (DataSets.Upload) and submit a job "
            "(Jobs.Submit) to get one");
    }
    if (*n > MAX_HEADS) {
        return tk_fail(diag, TK_BADARG, "you have %zu heads: name the ones you want, at most %d",
                       *n, MAX_HEADS);
    }
    for (size_t i = 0; i < *n; i++)
        heads[i] = tk_snapshot_head(snapshot, first + i);
    return TK_OK;
}

static tk_err check_answer_size(const Trunkd__V1__ClassifyRequest *in, const tk_head *const *heads,
                                size_t n, tk_diag *diag)
{
    size_t total = 0;
    for (size_t i = 0; i < n; i++) {
        const size_t k = in->top_k == 0 ? 1 : in->top_k;
        total += (k < heads[i]->classes ? k : heads[i]->classes) * in->n_images;
    }
    if (total <= MAX_PREDICTIONS) return TK_OK;
    return tk_fail(diag, TK_BADARG,
                   "top_k %" PRIu32
                   " of %zu heads for %zu images makes %zu predictions, the limit is %d",
                   in->top_k, n, in->n_images, total, MAX_PREDICTIONS);
}

/* -- the answer -- */

static Trunkd__V1__HeadAnswer *put_head(tk__region *region, const tk_head *head, const char *tenant,
                                        size_t k, const tk_top *top)
{
    Trunkd__V1__HeadAnswer *m = tk__new(region, &trunkd__v1__head_answer__descriptor);
    if (!m) return NULL;
    m->head = head->id + strlen(tenant) + 1;
    m->top = tk__alloc(region, k, sizeof *m->top);
    for (size_t i = 0; m->top && i < k; i++) {
        Trunkd__V1__Prediction *p = tk__new(region, &trunkd__v1__prediction__descriptor);
        if (!p) return NULL;
        p->label = head->labels[top[i].label];
        p->score = top[i].score;
        m->top[m->n_top++] = p;
    }
    return m;
}

static Trunkd__V1__ImageAnswer *put_image(tk__region *region, const tk_infer *infer,
                                          const tk_infer_image *image, const char *tenant)
{
    Trunkd__V1__ImageAnswer *m = tk__new(region, &trunkd__v1__image_answer__descriptor);
    if (!m) return NULL;
    if (image->error) {
        m->error = image->error;
        return m;
    }
    m->heads = tk__alloc(region, infer->n_heads, sizeof *m->heads);
    const tk_top *top = image->top;
    for (size_t h = 0; m->heads && h < infer->n_heads; h++) {
        m->heads[h] = put_head(region, infer->heads[h], tenant, infer->k[h], top);
        if (!m->heads[h]) return NULL;
        m->n_heads++;
        top += infer->k[h];
    }
    return m;
}

Trunkd__V1__ImageAnswer **tk__classify_put(tk__region *region, const tk_rpc_call *call,
                                           const tk_infer *infer)
{
    const char *tenant = tk_rpc_identity(call)->name;
    Trunkd__V1__ImageAnswer **list = tk__alloc(region, infer->n_images, sizeof *list);
    for (size_t i = 0; list && i < infer->n_images; i++) {
        list[i] = put_image(region, infer, &infer->images[i], tenant);
        if (!list[i]) return NULL;
    }
    return list;
}

static void answer(tk_rpc_call *call, const tk_infer *infer)
{
    tk__region region = {NULL, false};
    Trunkd__V1__ClassifyResponse *m = tk__new(&region, &trunkd__v1__classify_response__descriptor);
    if (m) {
        m->version = tk_snapshot_number(infer->snapshot);
        m->images = tk__classify_put(&region, call, infer);
        m->n_images = m->images ? infer->n_images : 0;
    }
    if (m && !region.failed) {
        atomic_fetch_add_explicit(&tk__api(call)->requests, 1, memory_order_relaxed);
    }
    tk__reply(call, &region, m);
}

bool tk__classify_all_bad(const tk_infer *infer)
{
    for (size_t i = 0; i < infer->n_images; i++) {
        if (!infer->images[i].error) return false;
    }
    return true;
}

static void refuse_all_bad(tk_rpc_call *call, const tk_infer *infer)
{
    if (infer->n_images == 1) {
        tk_rpc_fail(call, TK_BADDATA, "the image cannot be read: %s", infer->images[0].error);
    } else {
        tk_rpc_fail(call, TK_BADDATA, "none of the %zu images can be read; the first: %s",
                    infer->n_images, infer->images[0].error);
    }
}

static void done(tk_infer *infer, tk_err err, const char *reason)
{
    tk_rpc_call *call = infer->user;
    if (err == TK_OK && tk__classify_all_bad(infer)) err = TK_BADDATA;
    tk__count_infer(call, infer, err); /* before the caller can look */
    if (err == TK_BADDATA) {
        refuse_all_bad(call, infer);
    } else if (err != TK_OK) {
        tk_diag diag;
        err = tk_fail(&diag, err, "%s", reason);
        tk__fail(call, err, &diag);
    } else {
        answer(call, infer);
    }
    tk_infer_destroy(infer);
    tk_rpc_unref(call);
}

static bool cancelled(void *user)
{
    return tk_rpc_cancelled(user);
}

tk_err tk__classify_prepare(tk_rpc_call *call, const Trunkd__V1__ClassifyRequest *in,
                            tk_snapshot *snapshot, tk_infer **out, tk_diag *diag)
{
    const tk_head *heads[MAX_HEADS];
    size_t n = 0;
    unsigned priority;
    *out = NULL;
    tk_err err = check_images(in, diag);
    if (err == TK_OK) err = tk__priority(in->priority, &priority, diag);
    if (err == TK_OK) err = find_heads(in, snapshot, tk_rpc_identity(call)->name, heads, &n, diag);
    if (err == TK_OK) err = check_answer_size(in, heads, n, diag);
    if (err != TK_OK) return err;
    tk_infer *infer;
    err = tk_infer_create(&infer, snapshot, in->n_images, n, heads, in->top_k);
    if (err != TK_OK) return tk_fail(diag, err, "no memory for %zu images", in->n_images);
    for (size_t i = 0; i < in->n_images; i++) {
        infer->images[i].data = in->images[i].data;
        infer->images[i].size = in->images[i].len;
    }
    infer->tenant = tk_rpc_identity(call)->tenant;
    infer->priority = priority;
    infer->deadline_ns = tk_rpc_deadline_ns(call);
    *out = infer;
    return TK_OK;
}

tk_err tk__classify_check(tk_rpc_call *call, const Trunkd__V1__ClassifyRequest *in,
                          const tk_snapshot *snapshot, tk_diag *diag)
{
    const tk_head *heads[MAX_HEADS];
    size_t n;
    unsigned priority;
    const tk_err err = tk__priority(in->priority, &priority, diag);
    if (err != TK_OK) return err;
    return find_heads(in, snapshot, tk_rpc_identity(call)->name, heads, &n, diag);
}

tk_err tk__nothing_learned(tk_diag *diag)
{
    return tk_fail(diag, TK_PRECONDITION,
                   "nothing has been learned yet: upload labelled images (DataSets.Upload) and "
                   "submit a job (Jobs.Submit), which trains the trunk and its first head");
}

/* `snapshot` as find_heads() takes it. */
static tk_err submit(tk_rpc_call *call, const Trunkd__V1__ClassifyRequest *in,
                     tk_snapshot *snapshot, tk_diag *diag)
{
    tk_infer *infer;
    tk_err err = tk__classify_prepare(call, in, snapshot, &infer, diag);
    if (err != TK_OK) return err;
    infer->user = call;
    infer->cancelled = cancelled;
    infer->done = done;
    tk_rpc_note(call, in->n_images, tk_snapshot_number(snapshot));
    tk_rpc_ref(call);
    err = tk_batcher_submit(tk__api(call)->o.batcher, infer, diag);
    if (err != TK_OK) {
        tk_rpc_retry_after(call, infer->retry_ms);
        tk_infer_destroy(infer);
        tk_rpc_unref(call);
    }
    return err;
}

/* Has `other` the heads that the request would get from `current`, and no more? */
static bool fits(const tk_rpc_call *call, const ProtobufCMessage *message,
                 const tk_snapshot *current, const tk_snapshot *other)
{
    const Trunkd__V1__ClassifyRequest *in = (const Trunkd__V1__ClassifyRequest *)message;
    const char *tenant = tk_rpc_identity(call)->name;
    for (size_t i = 0; i < in->n_heads; i++)
        if (!tk_snapshot_find(current, tenant, in->heads[i]) ||
            !tk_snapshot_find(other, tenant, in->heads[i]))
            return false;
    if (in->n_heads > 0) return true;
    size_t a, b;
    const size_t n = tk_snapshot_of_tenant(current, tenant, &a);
    bool same = tk_snapshot_of_tenant(other, tenant, &b) == n;
    for (size_t i = 0; same && i < n; i++)
        same =
            strcmp(tk_snapshot_head(current, a + i)->id, tk_snapshot_head(other, b + i)->id) == 0;
    return same;
}

static void picked(tk_rpc_call *call, const ProtobufCMessage *message, tk_err err,
                   tk_snapshot *snapshot, const tk_diag *why)
{
    const Trunkd__V1__ClassifyRequest *in = (const Trunkd__V1__ClassifyRequest *)message;
    tk_diag diag = *why;
    if (err == TK_PRECONDITION)
        err = tk__nothing_learned(&diag);
    else if (err == TK_OK || err == TK_NOTFOUND)
        err = submit(call, in, snapshot, &diag);
    if (err == TK_OK) return;
    tk__count_infer(call, NULL, err);
    tk__fail(call, err, &diag);
}

void tk__classify(tk_rpc_call *call, const ProtobufCMessage *message)
{
    const Trunkd__V1__ClassifyRequest *in = (const Trunkd__V1__ClassifyRequest *)message;
    tk_diag diag = {{0}};
    const tk_err err = check_images(in, &diag);
    if (err == TK_OK) {
        tk__pick_version(call, message, in->version, fits, picked);
        return;
    }
    tk__count_infer(call, NULL, err);
    tk__fail(call, err, &diag);
}
