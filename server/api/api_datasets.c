/* trunkd.v1.DataSets. An upload is a stream written straight into a pack in the store's tmp/:
 * memory is bounded by one message. Every image is decoded once, on the decode threads, before it
 * is added; only good images bring a new label into being. The data set exists from the moment the
 * store has it, just before the answer; a stream that ends otherwise leaves nothing. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/api_internal.h"
#include "engine/image.h"
#include "engine/mem.h"
#include "heads/model.h"
#include "heads/pack.h"
#include "log.h"

enum {
    BAD_NAMED = 100,  /* bad images that the answer names */
    SLAB = 256,       /* images checked at a time */
    CHECK_SIDE = 256, /* allows scaled decoding in the check: every byte is still read */
};

typedef struct upload {
    tk_pack_writer *writer; /* NULL before the manifest and after the end */
    char *path;
    bool over; /* answered or failed: the rest of the stream is ignored */
    char name[TK_NAME_SIZE];
    bool refuse, fixed;
    uint64_t expected, seen, bytes;
    size_t n_labels, cap_labels;
    tk_label_count *labels; /* in the pack's order */
    size_t *sorted;         /* [n_labels] indices by label, when fixed */
    uint64_t skipped;
    size_t n_bad;
    struct {
        char file[TK_PACK_NAME_MAX + 1], reason[512];
    } * bad; /* [BAD_NAMED] */
} upload;

static void upload_destroy(upload *u)
{
    tk_pack_abort(u->writer);
    for (size_t i = 0; i < u->n_labels; i++)
        tk_free(u->labels[i].label);
    tk_free(u->labels);
    tk_free(u->sorted);
    tk_free(u->bad);
    tk_free(u->path);
    tk_free(u);
}

void tk__upload_start(tk_rpc_call *call)
{
    upload *u = tk_calloc(1, sizeof *u);
    if (!u) tk_rpc_fail(call, TK_NOMEM, "no memory for the upload");
    tk_rpc_set_user(call, u);
}

void tk__upload_free(tk_rpc_call *call)
{
    upload *u = tk_rpc_user(call);
    if (u) upload_destroy(u);
}

/* -- labels -- */

static tk_err add_label(upload *u, const char *label, tk_diag *diag)
{
    if (u->n_labels == u->cap_labels) {
        const size_t cap = u->cap_labels ? 2 * u->cap_labels : 32;
        tk_label_count *more = tk_realloc(u->labels, cap * sizeof *more);
        if (!more) return tk_fail(diag, TK_NOMEM, "no memory for %zu labels", cap);
        u->labels = more;
        u->cap_labels = cap;
    }
    char *copy = tk_strdup(label);
    if (!copy) return tk_fail(diag, TK_NOMEM, "no memory for a label");
    u->labels[u->n_labels++] = (tk_label_count){.label = copy};
    return TK_OK;
}

static int by_pair(const void *a, const void *b)
{
    return strcmp(((const tk_label_count *)a)->label, ((const tk_label_count *)b)->label);
}

/* The manifest's labels: their order is the pack's. u->sorted finds one by bisection. */
static tk_err fix_labels(upload *u, size_t n, char **labels, tk_diag *diag)
{
    u->fixed = n > 0;
    for (size_t i = 0; i < n; i++) {
        char what[40];
        uint32_t index;
        snprintf(what, sizeof what, "manifest.labels[%zu]", i);
        tk_err err = tk__api_text_check(labels[i], TK_LABEL_MAX, what, diag);
        if (err == TK_OK) err = tk_pack_label(u->writer, labels[i], &index, diag);
        if (err == TK_OK && index != i) {
            err = tk_fail(diag, TK_BADARG, "manifest.labels[%zu] \"%s\" is there twice", i,
                          labels[i]);
        }
        if (err == TK_OK) err = add_label(u, labels[i], diag);
        if (err != TK_OK) return err;
    }
    if (!u->fixed) return TK_OK;
    /* Sort copies of the records, whose `images` carries the index meanwhile. */
    tk_label_count *copies = tk_calloc(n, sizeof *copies);
    u->sorted = tk_calloc(n, sizeof *u->sorted);
    if (copies && u->sorted) {
        for (size_t i = 0; i < n; i++)
            copies[i] = (tk_label_count){u->labels[i].label, i};
        qsort(copies, n, sizeof *copies, by_pair);
        for (size_t i = 0; i < n; i++)
            u->sorted[i] = (size_t)copies[i].images;
    }
    tk_free(copies);
    return copies && u->sorted ? TK_OK : tk_fail(diag, TK_NOMEM, "no memory for %zu labels", n);
}

static bool find_fixed(const upload *u, const char *label, uint32_t *index)
{
    size_t lo = 0, hi = u->n_labels;
    while (lo < hi) {
        const size_t mid = lo + (hi - lo) / 2;
        const int order = strcmp(u->labels[u->sorted[mid]].label, label);
        if (order == 0) {
            *index = (uint32_t)u->sorted[mid];
            return true;
        }
        if (order < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return false;
}

/* -- the manifest -- */

static tk_err begin(upload *u, tk_rpc_call *call, const Trunkd__V1__UploadManifest *m,
                    tk_diag *diag)
{
    if (u->writer) return tk_fail(diag, TK_BADARG, "the manifest may come only once");
    tk_err err = tk_name_check(m->name, "data set", diag);
    if (err != TK_OK) return err;
    if (m->bad_images != TRUNKD__V1__BAD_IMAGES__SKIP &&
        m->bad_images != TRUNKD__V1__BAD_IMAGES__REFUSE) {
        return tk_fail(diag, TK_BADARG,
                       "manifest.bad_images is %d, but must be SKIP (0) or REFUSE (1)",
                       (int)m->bad_images);
    }
    if (m->n_labels == 1) {
        return tk_fail(diag, TK_BADARG,
                       "manifest.labels has one entry: a classifier needs at least two");
    }
    if (m->n_labels > TK_HEAD_MAX_CLASSES) {
        return tk_fail(diag, TK_BADARG, "manifest.labels has %zu entries, the limit is %d",
                       m->n_labels, TK_HEAD_MAX_CLASSES);
    }
    tk_store *store = tk__api(call)->o.store;
    err = tk_store_room_check(store, tk__tenant(call), 0, diag);
    if (err != TK_OK) return err;
    snprintf(u->name, sizeof u->name, "%s", m->name);
    u->refuse = m->bad_images == TRUNKD__V1__BAD_IMAGES__REFUSE;
    u->expected = m->expected_images;
    u->path = tk_store_temp_path(store);
    u->bad = tk_calloc(BAD_NAMED, sizeof *u->bad);
    if (!u->path || !u->bad) return tk_fail(diag, TK_NOMEM, "no memory for the upload");
    err = tk_pack_create(&u->writer, u->path, diag);
    return err == TK_OK ? fix_labels(u, m->n_labels, m->labels, diag) : err;
}

/* -- images -- */

/* One slab of images under check; slot i belongs to image i. */
typedef struct slab {
    Trunkd__V1__UploadImage **images;
    tk_err err[SLAB];
    tk_diag reason[SLAB];
} slab;

/* On a decode thread. */
static void check_one(void *ctx, size_t i)
{
    slab *s = ctx;
    const Trunkd__V1__UploadImage *image = s->images[i];
    if (image->data.len > TK_API_IMAGE_MAX) {
        s->err[i] = tk_fail(&s->reason[i], TK_BADDATA, "%zu bytes, the limit is %d",
                            image->data.len, TK_API_IMAGE_MAX);
        return;
    }
    s->err[i] = tk__api_text_check(image->label, TK_LABEL_MAX, "its label", &s->reason[i]);
    if (s->err[i] != TK_OK) return;
    tk_image pixels;
    s->err[i] = tk_image_decode(&pixels, image->data.data, image->data.len, NULL, CHECK_SIDE,
                                &s->reason[i]);
    if (s->err[i] == TK_OK) tk_image_fini(&pixels);
}

/* Skips a bad image, or gives the error that refuses the upload. */
static tk_err bad_image(upload *u, const char *file, const char *reason, tk_diag *diag)
{
    if (u->refuse) {
        return tk_fail(diag, TK_BADDATA, "%s: %s; the upload is refused, as asked", file, reason);
    }
    u->skipped++;
    if (u->n_bad < BAD_NAMED) {
        snprintf(u->bad[u->n_bad].file, sizeof u->bad[u->n_bad].file, "%s", file);
        snprintf(u->bad[u->n_bad].reason, sizeof u->bad[u->n_bad].reason, "%s", reason);
        u->n_bad++;
    }
    return TK_OK;
}

static tk_err add_image(upload *u, const Trunkd__V1__UploadImage *image, tk_err checked,
                        const tk_diag *reason, tk_diag *diag)
{
    char file[TK_PACK_NAME_MAX + 1];
    tk__api_text_copy(file, sizeof file, image->file);
    u->seen++;
    if (!file[0]) snprintf(file, sizeof file, "image %" PRIu64, u->seen);
    if (checked == TK_NOMEM) return tk_fail(diag, TK_NOMEM, "%s: no memory to decode it", file);
    if (checked != TK_OK) return bad_image(u, file, reason->text, diag);
    uint32_t label = 0;
    tk_err err = TK_OK;
    if (!u->fixed) {
        err = tk_pack_label(u->writer, image->label, &label, diag);
        if (err == TK_OK && label == u->n_labels) err = add_label(u, image->label, diag);
    } else if (!find_fixed(u, image->label, &label)) {
        char text[TK_LABEL_MAX + 64];
        snprintf(text, sizeof text, "its label \"%s\" is not in the manifest", image->label);
        return bad_image(u, file, text, diag);
    }
    if (err == TK_OK)
        err = tk_pack_add(u->writer, label, file, image->data.data, image->data.len, diag);
    if (err != TK_OK) return err;
    u->labels[label].images++;
    return TK_OK;
}

static tk_err add_images(upload *u, tk_rpc_call *call, const Trunkd__V1__UploadImages *m,
                         tk_diag *diag)
{
    tk_api *api = tk__api(call);
    if (!u->writer) return tk_fail(diag, TK_BADARG, "the first message must be the manifest");
    for (size_t i = 0; i < m->n_images; i++)
        u->bytes += m->images[i]->data.len;
    const uint64_t most = atomic_load_explicit(&api->max_upload_bytes, memory_order_relaxed);
    if (u->bytes > most) {
        return tk_fail(diag, TK_LIMIT,
                       "the images sent so far have %" PRIu64
                       " bytes, the limit of one data set is %" PRIu64,
                       u->bytes, most);
    }
    tk_err err = tk_store_room_check(api->o.store, tk__tenant(call), u->bytes, diag);
    slab *s = err == TK_OK ? tk_calloc(1, sizeof *s) : NULL;
    if (err == TK_OK && !s) err = tk_fail(diag, TK_NOMEM, "no memory for the upload");
    for (size_t at = 0; err == TK_OK && at < m->n_images; at += SLAB) {
        if (tk_rpc_cancelled(call)) {
            err = tk_fail(diag, TK_CANCELLED, "the upload was cancelled");
            break;
        }
        const size_t n = m->n_images - at < SLAB ? m->n_images - at : SLAB;
        memset(s->reason, 0, sizeof s->reason);
        s->images = m->images + at;
        tk_batcher_spread(api->o.batcher, n, check_one, s);
        for (size_t i = 0; err == TK_OK && i < n; i++) {
            err = add_image(u, s->images[i], s->err[i], &s->reason[i], diag);
        }
    }
    tk_free(s);
    return err;
}

/* Ends the call with an error; what was written goes at once. */
static void give_up(upload *u, tk_rpc_call *call, tk_err err, const tk_diag *diag)
{
    u->over = true;
    tk_pack_abort(u->writer);
    u->writer = NULL;
    tk__fail(call, err, diag);
}

void tk__upload_message(tk_rpc_call *call, const ProtobufCMessage *message)
{
    const Trunkd__V1__UploadRequest *in = (const Trunkd__V1__UploadRequest *)message;
    upload *u = tk_rpc_user(call);
    if (!u || u->over) return;
    tk_diag diag = {{0}};
    tk_err err;
    if (in->part_case == TRUNKD__V1__UPLOAD_REQUEST__PART_MANIFEST) {
        err = begin(u, call, in->manifest, &diag);
    } else if (in->part_case == TRUNKD__V1__UPLOAD_REQUEST__PART_IMAGES) {
        err = add_images(u, call, in->images, &diag);
    } else {
        err = tk_fail(&diag, TK_BADARG, "a message of the upload has neither manifest nor images");
    }
    if (err != TK_OK) give_up(u, call, err, &diag);
}

/* -- the end -- */

static tk_err check_whole(const upload *u, tk_diag *diag)
{
    if (!u->writer)
        return tk_fail(diag, TK_BADARG, "the upload is empty: not even a manifest came");
    if (u->seen == 0) return tk_fail(diag, TK_BADARG, "the upload is empty: no image came");
    if (u->expected != 0 && u->seen != u->expected) {
        return tk_fail(diag, TK_BADARG,
                       "%" PRIu64 " images came, but the manifest expects %" PRIu64, u->seen,
                       u->expected);
    }
    const size_t good = tk_pack_writer_count(u->writer);
    if (good == 0) {
        return tk_fail(diag, TK_BADDATA,
                       "none of the %" PRIu64 " images is usable; the first, %s: %s", u->seen,
                       u->bad[0].file, u->bad[0].reason);
    }
    for (size_t i = 0; i < u->n_labels; i++) {
        if (u->labels[i].images == 0) {
            return tk_fail(diag, TK_BADDATA, "the label \"%.200s\" has no usable image",
                           u->labels[i].label);
        }
    }
    if (u->n_labels < 2) {
        return tk_fail(
            diag, TK_BADDATA,
            "all %zu images have the label \"%.200s\": a classifier needs at least two labels",
            good, u->labels[0].label);
    }
    return TK_OK;
}

static Trunkd__V1__DataSet *put_data_set(tk__region *region, tk_data_set *set)
{
    Trunkd__V1__DataSet *m = tk__new(region, &trunkd__v1__data_set__descriptor);
    if (!m) return NULL;
    m->id = set->id;
    m->name = set->name;
    m->images = set->images;
    m->bytes = set->bytes;
    m->created_ms = set->created_ms;
    m->sha256 = set->sha;
    m->labels = tk__alloc(region, set->n_labels, sizeof *m->labels);
    for (size_t i = 0; m->labels && i < set->n_labels; i++) {
        Trunkd__V1__LabelCount *l = tk__new(region, &trunkd__v1__label_count__descriptor);
        if (!l) return NULL;
        l->label = set->labels[i].label;
        l->images = set->labels[i].images;
        m->labels[m->n_labels++] = l;
    }
    return m;
}

static void reply_upload(upload *u, tk_rpc_call *call, tk_data_set *set)
{
    tk__region region = {NULL, false};
    Trunkd__V1__UploadResponse *m = tk__new(&region, &trunkd__v1__upload_response__descriptor);
    if (m) {
        m->data_set = put_data_set(&region, set);
        m->skipped = u->skipped;
        m->bad = tk__alloc(&region, u->n_bad, sizeof *m->bad);
        for (size_t i = 0; m->bad && i < u->n_bad; i++) {
            Trunkd__V1__BadImage *b = tk__new(&region, &trunkd__v1__bad_image__descriptor);
            if (!b) break;
            b->file = u->bad[i].file;
            b->reason = u->bad[i].reason;
            m->bad[m->n_bad++] = b;
        }
    }
    tk__reply(call, &region, m);
}

static tk_err check_wanted(const tk_rpc_call *call, tk_diag *diag)
{
    return tk_rpc_cancelled(call) ? tk_fail(diag, TK_CANCELLED, "the upload was cancelled") : TK_OK;
}

static tk_err store_set(upload *u, tk_rpc_call *call, tk_data_set *set, tk_diag *diag)
{
    tk_store *store = tk__api(call)->o.store;
    const int64_t tenant = tk__tenant(call);
    const uint64_t images = tk_pack_writer_count(u->writer);
    tk_err err = tk_pack_commit(u->writer, diag);
    u->writer = NULL;
    if (err != TK_OK) return err;
    err = tk_store_data_set_add(store, tenant, u->name, u->path, images, u->labels, u->n_labels,
                                set, diag);
    if (err != TK_OK) return err;
    /* Some clients (Node's) cancel with an ordinary end and a reset right behind it. */
    err = check_wanted(call, diag);
    if (err == TK_OK) return TK_OK;
    tk_diag kept;
    if (tk_store_data_set_delete(store, tenant, set->id, &kept) != TK_OK)
        err = tk_fail(diag, TK_CANCELLED, "the upload was cancelled, but is stored: %s", kept.text);
    tk_data_set_fini(set);
    return err;
}

void tk__upload_end(tk_rpc_call *call)
{
    upload *u = tk_rpc_user(call);
    if (!u || u->over) return;
    tk_diag diag = {{0}};
    tk_data_set set;
    tk_err err = check_wanted(call, &diag);
    if (err == TK_OK) err = check_whole(u, &diag);
    if (err == TK_OK) err = store_set(u, call, &set, &diag);
    if (err != TK_OK) {
        give_up(u, call, err, &diag);
        return;
    }
    u->over = true;
    tk_log(TK_LOG_INFO, "data set stored",
           (tk_log_field[]){
               tk_log_str("tenant", tk_rpc_identity(call)->name),
               tk_log_int("data_set", (int64_t)set.id), tk_log_int("images", (int64_t)set.images),
               tk_log_int("labels", (int64_t)set.n_labels),
               tk_log_int("skipped", (int64_t)u->skipped), tk_log_int("bytes", (int64_t)set.bytes),
               tk__log_trace(call), tk_log_end()});
    reply_upload(u, call, &set);
    tk_data_set_fini(&set);
}

/* -- the rest -- */

void tk__datasets_list(tk_rpc_call *call, const ProtobufCMessage *in)
{
    (void)in;
    tk_diag diag = {{0}};
    tk_data_sets list;
    const tk_err err =
        tk_store_data_set_list(tk__api(call)->o.store, tk__tenant(call), &list, &diag);
    if (err != TK_OK) {
        tk__fail(call, err, &diag);
        return;
    }
    tk__region region = {NULL, false};
    Trunkd__V1__ListDataSetsResponse *m =
        tk__new(&region, &trunkd__v1__list_data_sets_response__descriptor);
    if (m) m->data_sets = tk__alloc(&region, list.n, sizeof *m->data_sets);
    for (size_t i = 0; m && m->data_sets && i < list.n; i++) {
        m->data_sets[m->n_data_sets++] = put_data_set(&region, &list.items[i]);
    }
    tk__reply(call, &region, m);
    tk_data_sets_fini(&list);
}

void tk__datasets_get(tk_rpc_call *call, const ProtobufCMessage *message)
{
    const Trunkd__V1__GetDataSetRequest *in = (const Trunkd__V1__GetDataSetRequest *)message;
    tk_diag diag = {{0}};
    tk_data_set set;
    const tk_err err =
        tk_store_data_set_get(tk__api(call)->o.store, tk__tenant(call), in->id, &set, &diag);
    if (err != TK_OK) {
        tk__fail(call, err, &diag);
        return;
    }
    tk__region region = {NULL, false};
    tk__reply(call, &region, put_data_set(&region, &set));
    tk_data_set_fini(&set);
}

void tk__datasets_delete(tk_rpc_call *call, const ProtobufCMessage *message)
{
    const Trunkd__V1__DeleteDataSetRequest *in = (const Trunkd__V1__DeleteDataSetRequest *)message;
    tk_diag diag = {{0}};
    const tk_err err =
        tk_store_data_set_delete(tk__api(call)->o.store, tk__tenant(call), in->id, &diag);
    if (err != TK_OK) {
        tk__fail(call, err, &diag);
        return;
    }
    tk_log(TK_LOG_INFO, "data set deleted",
           (tk_log_field[]){tk_log_str("tenant", tk_rpc_identity(call)->name),
                            tk_log_int("data_set", (int64_t)in->id), tk__log_trace(call),
                            tk_log_end()});
    const Trunkd__V1__Empty out = TRUNKD__V1__EMPTY__INIT;
    tk_rpc_reply(call, &out.base);
}
