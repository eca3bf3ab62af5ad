/* trunkd.v1.Admin. An imported trunk is a stream into a file of the store's tmp/; an exported
 * version is read from its immutable file, chunk by chunk, on the pump. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "api/api_internal.h"
#include "engine/isa.h"
#include "engine/mem.h"
#include "engine/tensors.h"
#include "process.h"

enum {
    IMPORT_MAX = 1 << 30, /* bytes of an imported file */
    EXPORT_CHUNK = 256 << 10,
};

static void reply_empty(tk_rpc_call *call)
{
    Trunkd__V1__Empty out;
    trunkd__v1__empty__init(&out);
    tk_rpc_reply(call, &out.base);
}

/* -- tenants and tokens -- */

void tk__admin_create_tenant(tk_rpc_call *call, const ProtobufCMessage *message)
{
    const Trunkd__V1__CreateTenantRequest *in = (const Trunkd__V1__CreateTenantRequest *)message;
    tk_diag diag = {{0}};
    int64_t id;
    tk_token token;
    const tk_err err = tk_store_tenant_create(tk__api(call)->o.store, in->name, &id, &token, &diag);
    if (err != TK_OK) {
        tk__fail(call, err, &diag);
        return;
    }
    tk_log(TK_LOG_INFO, "tenant created",
           (tk_log_field[]){tk_log_str("tenant", in->name), tk_log_str("token_id", token.id),
                            tk__log_trace(call), tk_log_end()});
    Trunkd__V1__CreateTenantResponse out;
    trunkd__v1__create_tenant_response__init(&out);
    out.name = in->name;
    out.token = token.secret;
    out.token_id = token.id;
    tk_rpc_reply(call, &out.base);
}

void tk__admin_list_tenants(tk_rpc_call *call, const ProtobufCMessage *in)
{
    (void)in;
    tk_diag diag = {{0}};
    tk_tenants list;
    const tk_err err = tk_store_tenant_list(tk__api(call)->o.store, &list, &diag);
    if (err != TK_OK) {
        tk__fail(call, err, &diag);
        return;
    }
    tk__region region = {NULL, false};
    Trunkd__V1__ListTenantsResponse *m =
        tk__new(&region, &trunkd__v1__list_tenants_response__descriptor);
    if (m) m->tenants = tk__alloc(&region, list.n, sizeof *m->tenants);
    for (size_t i = 0; m && m->tenants && i < list.n; i++) {
        Trunkd__V1__Tenant *t = tk__new(&region, &trunkd__v1__tenant__descriptor);
        if (!t) break;
        t->name = list.items[i].name;
        t->heads = list.items[i].heads;
        t->data_sets = list.items[i].data_sets;
        t->bytes = list.items[i].bytes;
        t->created_ms = list.items[i].created_ms;
        t->limits = tk__put_limits(&region, &list.items[i].limits);
        m->tenants[m->n_tenants++] = t;
    }
    tk__reply(call, &region, m);
    tk_tenants_fini(&list);
}

void tk__admin_delete_tenant(tk_rpc_call *call, const ProtobufCMessage *message)
{
    const Trunkd__V1__DeleteTenantRequest *in = (const Trunkd__V1__DeleteTenantRequest *)message;
    tk_diag diag = {{0}};
    tk_tenant tenant;
    tk_err err = tk_store_tenant_find(tk__api(call)->o.store, in->name, &tenant, &diag);
    if (err == TK_OK) err = tk_jobs_delete_tenant(tk__api(call)->o.jobs, in->name, &diag);
    if (err == TK_OK) /* there is nobody to have them */
        err = tk_batcher_set_tenant(tk__api(call)->o.batcher, tenant.id,
                                    &(tk_tenant_limits){.change = UINT64_MAX});
    if (err != TK_OK) {
        tk__fail(call, err, &diag);
        return;
    }
    tk_metrics_forget(tk__api(call)->o.metrics, in->name);
    tk_log(TK_LOG_INFO, "tenant deleted",
           (tk_log_field[]){tk__log_trace(call), tk_log_end()}); /* its name is gone */
    reply_empty(call);
}

void tk__admin_issue_token(tk_rpc_call *call, const ProtobufCMessage *message)
{
    const Trunkd__V1__IssueTokenRequest *in = (const Trunkd__V1__IssueTokenRequest *)message;
    tk_diag diag = {{0}};
    tk_token token;
    const tk_err err = tk_store_token_issue(tk__api(call)->o.store, in->tenant, &token, &diag);
    if (err != TK_OK) {
        tk__fail(call, err, &diag);
        return;
    }
    tk_log(TK_LOG_INFO, "token issued",
           (tk_log_field[]){tk_log_str("tenant", in->tenant), tk_log_str("token_id", token.id),
                            tk__log_trace(call), tk_log_end()});
    Trunkd__V1__IssueTokenResponse out;
    trunkd__v1__issue_token_response__init(&out);
    out.token = token.secret;
    out.token_id = token.id;
    tk_rpc_reply(call, &out.base);
}

void tk__admin_revoke_token(tk_rpc_call *call, const ProtobufCMessage *message)
{
    const Trunkd__V1__RevokeTokenRequest *in = (const Trunkd__V1__RevokeTokenRequest *)message;
    tk_diag diag = {{0}};
    const tk_err err = tk_store_token_revoke(tk__api(call)->o.store, in->token_id, &diag);
    if (err != TK_OK) {
        tk__fail(call, err, &diag);
        return;
    }
    tk_log(
        TK_LOG_INFO, "token revoked",
        (tk_log_field[]){tk_log_str("token_id", in->token_id), tk__log_trace(call), tk_log_end()});
    reply_empty(call);
}

/* -- versions -- */

/* The version's own file says what it admits. A file that was written anew since the list was read
 * (a head was deleted) leaves the answer without. */
static void show_precisions(tk_api *api, tk__region *region, Trunkd__V1__Version *m)
{
    tk_model *outline = NULL;
    tk_snapshot *served = tk_current_get(api->o.current);
    char *path = tk_store_object_path(api->o.store, m->sha256);
    if (path && tk_model_outline(&outline, path, NULL) == TK_OK)
        tk__put_precisions(region, m, outline);
    if (served && tk_snapshot_number(served) == m->number)
        m->served_precision =
            tk__print(region, "%s", tk_precision_name(tk_snapshot_choice(served)->served));
    tk_snapshot_unref(served);
    tk_model_destroy(outline);
    tk_free(path);
}

static void show_labels(tk_api *api, tk__region *region, Trunkd__V1__ListVersionsResponse *m)
{
    tk_version_labels labels;
    bool loaded[TK_VERSION_LABELS_MAX];
    tk_shelf_labels(api->o.shelf, &labels, loaded);
    m->labels = tk__alloc(region, labels.n, sizeof *m->labels);
    for (size_t i = 0; m->labels && i < labels.n; i++) {
        Trunkd__V1__VersionLabel *l = tk__new(region, &trunkd__v1__version_label__descriptor);
        if (!l) return;
        l->label = tk__print(region, "%s", labels.items[i].name);
        l->version = labels.items[i].version;
        l->percent = labels.items[i].percent;
        l->loaded = loaded[i];
        m->labels[m->n_labels++] = l;
    }
}

void tk__admin_list_versions(tk_rpc_call *call, const ProtobufCMessage *in)
{
    (void)in;
    tk_diag diag = {{0}};
    tk_versions list;
    const tk_err err = tk_store_version_list(tk__api(call)->o.store, TK_ALL, 0, 0, &list, &diag);
    if (err != TK_OK) {
        tk__fail(call, err, &diag);
        return;
    }
    tk__region region = {NULL, false};
    Trunkd__V1__ListVersionsResponse *m =
        tk__new(&region, &trunkd__v1__list_versions_response__descriptor);
    if (m) m->versions = tk__alloc(&region, list.n, sizeof *m->versions);
    for (size_t i = 0; m && m->versions && i < list.n; i++) {
        Trunkd__V1__Version *v = tk__put_version(&region, &list.items[i]);
        if (!v) break;
        show_precisions(tk__api(call), &region, v);
        m->versions[m->n_versions++] = v;
    }
    if (m) show_labels(tk__api(call), &region, m);
    tk__reply(call, &region, m);
    tk_versions_fini(&list);
}

/* Answers with a version; frees it. */
static void reply_version(tk_rpc_call *call, tk_version *version)
{
    tk__region region = {NULL, false};
    Trunkd__V1__Version *m = tk__put_version(&region, version);
    if (m) show_precisions(tk__api(call), &region, m);
    tk__reply(call, &region, m);
    tk_version_fini(version);
}

void tk__admin_rollback(tk_rpc_call *call, const ProtobufCMessage *message)
{
    const Trunkd__V1__RollbackRequest *in = (const Trunkd__V1__RollbackRequest *)message;
    tk_diag diag = {{0}};
    tk_version version;
    tk_err err = in->version == 0
                     ? tk_fail(&diag, TK_BADARG, "version is missing: which one to go back to")
                     : tk_jobs_rollback(tk__api(call)->o.jobs, in->version, &version, &diag);
    if (err != TK_OK) {
        tk__fail(call, err, &diag);
        return;
    }
    tk_metrics_version_rolled_back(tk__api(call)->o.metrics);
    tk_log(TK_LOG_INFO, "rolled back",
           (tk_log_field[]){tk_log_int("to", (int64_t)in->version),
                            tk_log_int("version", (int64_t)version.number), tk__log_trace(call),
                            tk_log_end()});
    reply_version(call, &version);
}

/* -- status -- */

/* Histograms since start: who asks twice has those of the time between. */
static void fill_stages(tk_metrics *metrics, tk__region *region, Trunkd__V1__GetStatusResponse *m)
{
    m->stage_bounds =
        tk__alloc(region, TK_METRICS_TIME_BUCKETS - 1, sizeof tk_metrics_time_bounds[0]);
    m->stages = tk__alloc(region, TK_STAGE_COUNT, sizeof *m->stages);
    if (!m->stage_bounds || !m->stages) return;
    memcpy(m->stage_bounds, tk_metrics_time_bounds, sizeof tk_metrics_time_bounds);
    m->n_stage_bounds = TK_METRICS_TIME_BUCKETS - 1;
    for (tk_stage s = TK_STAGE_DECODE; s < TK_STAGE_COUNT; s++) {
        Trunkd__V1__StageTimes *t = tk__new(region, &trunkd__v1__stage_times__descriptor);
        if (t) t->counts = tk__alloc(region, TK_METRICS_TIME_BUCKETS, sizeof *t->counts);
        if (!t || !t->counts) return;
        tk_metrics_times times;
        tk_metrics_read(metrics, s, &times);
        t->stage = tk__print(region, "%s", tk_metrics_stage_name(s));
        t->seconds = times.sum;
        memcpy(t->counts, times.counts, sizeof times.counts);
        t->n_counts = TK_METRICS_TIME_BUCKETS;
        m->stages[m->n_stages++] = t;
    }
}

static void fill_precisions(tk__region *region, Trunkd__V1__GetStatusResponse *m,
                            const tk_precision_choice *choice)
{
    m->precision = tk__print(region, "%s", tk_precision_name(choice->served));
    m->precisions_admitted = tk__alloc(region, TK_PRECISION_COUNT, sizeof(char *));
    for (tk_precision p = TK_PRECISION_FP32; m->precisions_admitted && p < TK_PRECISION_COUNT; p++)
        if (choice->admitted[p])
            m->precisions_admitted[m->n_precisions_admitted++] =
                tk__print(region, "%s", tk_precision_name(p));
}

static void fill_network(tk_api *api, tk__region *region, Trunkd__V1__GetStatusResponse *m,
                         tk_trunk *trunk)
{
    tk_snapshot *snapshot = tk_current_get(api->o.current);
    if (snapshot) {
        m->version = tk_snapshot_number(snapshot);
        snprintf(trunk->arch, sizeof trunk->arch, "%s", tk_arch_name(tk_snapshot_arch(snapshot)));
        m->px = tk_snapshot_preproc(snapshot)->crop;
        m->arch = trunk->arch;
        fill_precisions(region, m, tk_snapshot_choice(snapshot));
        tk_snapshot_unref(snapshot);
    } else if (tk_store_trunk_get(api->o.store, trunk, NULL) == TK_OK) {
        m->arch = trunk->arch;
        m->px = trunk->preproc.crop;
    }
}

void tk__admin_status(tk_rpc_call *call, const ProtobufCMessage *in)
{
    (void)in;
    tk_api *api = tk__api(call);
    tk_diag diag = {{0}};
    tk_store_stats stats;
    const tk_err err = tk_store_stat(api->o.store, &stats, &diag);
    if (err != TK_OK) {
        tk__fail(call, err, &diag);
        return;
    }
    const tk_batcher_stats work = tk_batcher_get_stats(api->o.batcher);
    tk__region region = {NULL, false};
    tk_trunk trunk;
    Trunkd__V1__GetStatusResponse *m =
        tk__new(&region, &trunkd__v1__get_status_response__descriptor);
    if (m) {
        fill_network(api, &region, m, &trunk);
        m->server_version = tk__print(&region, "%s", TRUNKD_VERSION);
        m->uptime_ms = (tk_now_ns() - api->started_ns) / 1000000;
        m->precision_asked = tk__print(&region, "%s", api->o.precision ? api->o.precision : "fp32");
        m->isa = tk__print(&region, "%s", tk_isa_name());
        m->threads = api->o.threads;
        m->heads = stats.heads;
        m->tenants = stats.tenants;
        m->requests = atomic_load_explicit(&api->requests, memory_order_relaxed);
        m->failures = atomic_load_explicit(&api->failures, memory_order_relaxed);
        m->images = work.images;
        m->batches = work.batches;
        m->queue = work.queue;
        m->refused =
            work.refused_full + work.refused_tenant + work.refused_rate + work.refused_deadline;
        m->dropped = work.late + work.cancelled;
        m->running_job = stats.running_job;
        m->queued_jobs = stats.queued_jobs;
        m->store_bytes = stats.bytes;
        tk_process process;
        tk_process_read(&process);
        m->resident_bytes = process.resident_bytes;
        m->in_flight = tk_metrics_in_flight(api->o.metrics);
        fill_stages(api->o.metrics, &region, m);
    }
    tk__reply(call, &region, m);
}

/* -- import -- */

typedef struct import {
    FILE *file; /* NULL when closed */
    char *path; /* removed at the end */
    bool over;
    char arch[16];
    uint32_t px;
    uint64_t bytes;
} import;

/* The import is over, one way or the other: the file goes before the caller hears of it. */
static void import_drop(import *i)
{
    i->over = true;
    if (i->file) fclose(i->file);
    i->file = NULL;
    if (i->path) unlink(i->path);
    tk_free(i->path);
    i->path = NULL;
}

void tk__import_free(tk_rpc_call *call)
{
    import *i = tk_rpc_user(call);
    if (!i) return;
    import_drop(i);
    tk_free(i);
}

static tk_err import_begin(tk_rpc_call *call, const Trunkd__V1__ImportTrunkManifest *m,
                           tk_diag *diag)
{
    if (tk_rpc_user(call)) return tk_fail(diag, TK_BADARG, "the manifest may come only once");
    tk_arch arch;
    if (m->arch[0]) {
        const tk_err err = tk_arch_parse(m->arch, &arch, diag);
        if (err != TK_OK) return err;
    }
    import *i = tk_calloc(1, sizeof *i);
    if (!i) return tk_fail(diag, TK_NOMEM, "no memory for the import");
    tk_rpc_set_user(call, i);
    snprintf(i->arch, sizeof i->arch, "%s", m->arch);
    i->px = m->px;
    i->path = tk_store_temp_path(tk__api(call)->o.store);
    if (!i->path) return tk_fail(diag, TK_NOMEM, "no memory for the import");
    i->file = fopen(i->path, "wxe");
    return i->file ? TK_OK : tk_fail_errno(diag, "cannot write a file in the store");
}

static tk_err import_chunk(import *i, const ProtobufCBinaryData *chunk, tk_diag *diag)
{
    if (!i) return tk_fail(diag, TK_BADARG, "the first message must be the manifest");
    i->bytes += chunk->len;
    if (i->bytes > IMPORT_MAX) {
        return tk_fail(diag, TK_LIMIT, "the file has more than %d bytes, the limit of an import",
                       IMPORT_MAX);
    }
    if (chunk->len > 0 && fwrite(chunk->data, 1, chunk->len, i->file) != chunk->len) {
        return tk_fail_errno(diag, "cannot write the file to the store");
    }
    return TK_OK;
}

void tk__import_message(tk_rpc_call *call, const ProtobufCMessage *message)
{
    const Trunkd__V1__ImportTrunkRequest *in = (const Trunkd__V1__ImportTrunkRequest *)message;
    import *i = tk_rpc_user(call);
    if (i && i->over) return;
    tk_diag diag = {{0}};
    tk_err err;
    if (in->part_case == TRUNKD__V1__IMPORT_TRUNK_REQUEST__PART_MANIFEST) {
        err = import_begin(call, in->manifest, &diag);
    } else if (in->part_case == TRUNKD__V1__IMPORT_TRUNK_REQUEST__PART_CHUNK) {
        err = import_chunk(i, &in->chunk, &diag);
    } else {
        err = tk_fail(&diag, TK_BADARG, "a message of the import has neither manifest nor chunk");
    }
    if (err == TK_OK) return;
    i = tk_rpc_user(call);
    if (i) import_drop(i);
    tk__fail(call, err, &diag);
}

/* A model without heads from a file with torchvision's names. */
static tk_err read_foreign(const import *i, const tk_tensors *tensors, tk_model **out,
                           tk_diag *diag)
{
    tk_arch arch = TK_RESNET18;
    tk_err err =
        i->arch[0] ? tk_arch_parse(i->arch, &arch, diag) : tk_arch_guess(tensors, "", &arch, diag);
    const bool small = arch == TK_RESNET20 || arch == TK_RESNET32 || arch == TK_RESNET56;
    const unsigned px = i->px ? i->px : small ? 32 : 224;
    if (err == TK_OK) err = tk_arch_check_px(arch, px, diag);
    if (err == TK_OK) {
        const tk_preproc preproc = tk_preproc_default(px);
        err = tk_model_create(out, arch, &preproc, diag);
    }
    if (err == TK_OK) err = tk_params_load((*out)->trunk, tensors, "", diag);
    if (err == TK_OK && tk_params_nonfinite((*out)->trunk)) {
        err = tk_fail(diag, TK_BADDATA, "the tensor %s has entries that are not finite",
                      tk_params_nonfinite((*out)->trunk));
    }
    return err;
}

/* The trunk of an exported version, and how it wants its images. Its heads stay behind: whose they
 * were is not in the file. */
static tk_err read_exported(const import *i, tk_model **out, tk_diag *diag)
{
    tk_err err = tk_model_load(out, i->path, false, diag);
    if (err != TK_OK) return err;
    while ((*out)->n_heads > 0)
        (void)tk_model_drop_head(*out, (*out)->heads[0]->id);
    tk_model_forget_precisions(*out);
    const char *arch = tk_arch_name((*out)->trunk->arch);
    if (i->arch[0] && strcmp(i->arch, arch) != 0)
        return tk_fail(diag, TK_BADARG, "arch is %s, but the file is a version of %s", i->arch,
                       arch);
    if (i->px && i->px != (*out)->preproc.crop)
        return tk_fail(diag, TK_BADARG, "px is %u, but the file is a version for %zu px", i->px,
                       (size_t)(*out)->preproc.crop);
    return TK_OK;
}

static tk_err read_trunk(const import *i, tk_model **out, tk_diag *diag)
{
    tk_tensors *tensors;
    *out = NULL;
    tk_err err = tk_tensors_open(&tensors, i->path, diag);
    if (err != TK_OK) return err;
    err = tk_tensors_meta(tensors, "trunkd") ? read_exported(i, out, diag)
                                             : read_foreign(i, tensors, out, diag);
    tk_tensors_close(tensors);
    if (err != TK_OK) {
        tk_model_destroy(*out);
        *out = NULL;
    }
    return err;
}

static tk_err import_commit(tk_rpc_call *call, import *i, tk_version *version, tk_diag *diag)
{
    if (!i) return tk_fail(diag, TK_BADARG, "the import is empty: not even a manifest came");
    if (i->bytes == 0) return tk_fail(diag, TK_BADARG, "the import is empty: no chunk came");
    const int closed = fclose(i->file);
    i->file = NULL;
    if (closed != 0) return tk_fail_errno(diag, "cannot write the file to the store");
    tk_model *model;
    tk_err err = read_trunk(i, &model, diag);
    if (err != TK_OK) return err;
    char reason[64];
    snprintf(reason, sizeof reason, "imported %s at %u px", tk_arch_name(model->trunk->arch),
             model->preproc.crop);
    err = tk_jobs_import(tk__api(call)->o.jobs, model, reason, version, diag);
    tk_model_destroy(model);
    return err;
}

void tk__import_end(tk_rpc_call *call)
{
    import *i = tk_rpc_user(call);
    if (i && i->over) return;
    tk_diag diag = {{0}};
    tk_version version;
    const tk_err err = import_commit(call, i, &version, &diag);
    if (i) import_drop(i);
    if (err != TK_OK) {
        tk__fail(call, err, &diag);
        return;
    }
    tk_log(TK_LOG_INFO, "trunk imported",
           (tk_log_field[]){tk_log_int("version", (int64_t)version.number),
                            tk_log_str("reason", version.reason), tk__log_trace(call),
                            tk_log_end()});
    reply_version(call, &version);
}

/* -- export -- */

typedef struct export
{
    tk_pump_item item; /* first */
    tk_rpc_call *call; /* referenced until the stream is over */
    int fd;
    uint64_t offset;
    uint8_t chunk[EXPORT_CHUNK];
}
export;

static void export_destroy(tk_pump_item *item)
{
    tk_free(item);
}

/* Sends as much as the stream takes. False: over, *err says how. */
static bool export_some(export *e, tk_err *err, tk_diag *diag)
{
    for (;;) {
        const ssize_t n = pread(e->fd, e->chunk, sizeof e->chunk, (off_t)e->offset);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) *err = tk_fail_errno(diag, "cannot read the version's file");
        if (n <= 0) return false;
        Trunkd__V1__FileChunk out;
        trunkd__v1__file_chunk__init(&out);
        out.data.data = e->chunk;
        out.data.len = (size_t)n;
        if (!tk_rpc_send(e->call, &out.base)) return true;
        e->offset += (uint64_t)n;
    }
}

static bool export_step(tk_pump_item *item)
{
    export *e = (export *)item;
    tk_diag diag = {{0}};
    tk_err err = TK_OK;
    const bool gone = tk_rpc_cancelled(e->call);
    if (!gone && export_some(e, &err, &diag)) return true;
    if (err != TK_OK)
        tk__fail(e->call, err, &diag);
    else
        tk_rpc_finish(e->call);
    close(e->fd);
    tk_rpc_unref(e->call); /* the call may be gone from here on */
    return false;
}

static tk_err export_open(tk_api *api, uint64_t number, int *fd, tk_diag *diag)
{
    tk_version version;
    const tk_err err = tk_store_version_get(api->o.store, TK_ALL, number, 0, &version, diag);
    if (err != TK_OK) return err;
    char *path = tk_store_object_path(api->o.store, version.sha);
    tk_version_fini(&version);
    if (!path) return tk_fail(diag, TK_NOMEM, "no memory for the export");
    *fd = open(path, O_RDONLY | O_CLOEXEC);
    tk_free(path);
    return *fd >= 0 ? TK_OK : tk_fail_errno(diag, "cannot open the version's file");
}

void tk__admin_export(tk_rpc_call *call, const ProtobufCMessage *message)
{
    const Trunkd__V1__ExportVersionRequest *in = (const Trunkd__V1__ExportVersionRequest *)message;
    tk_api *api = tk__api(call);
    tk_diag diag = {{0}};
    int fd = -1;
    const tk_err err = export_open(api, in->version, &fd, &diag);
    if (err != TK_OK) {
        tk__fail(call, err, &diag);
        return;
    }
    export *e = tk_calloc(1, sizeof *e);
    if (!e) {
        close(fd);
        tk_rpc_fail(call, TK_NOMEM, "no memory for the export");
        return;
    }
    e->item = (tk_pump_item){.step = export_step, .destroy = export_destroy};
    e->call = call;
    e->fd = fd;
    tk_rpc_ref(call);
    tk__stream_attach(call, &e->item);
}
