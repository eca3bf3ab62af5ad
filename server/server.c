/* See server.h. */
#include "server.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "api/api.h"
#include "engine/file.h"
#include "engine/isa.h"
#include "engine/mem.h"
#include "http.h"
#include "jobs/jobs.h"
#include "log.h"
#include "metrics.h"
#include "rpc/accept_guard.h"
#include "rpc/rpc.h"
#include "serving/batcher.h"
#include "serving/shelf.h"
#include "store/store.h"

enum {
    RPC_WORKERS = 8,
    MAX_REQUEST = 256,       /* images of one request */
    QUEUE_BYTES = 512 << 20, /* of images that wait */
};

struct tk_server {
    const tk_config *config;
    tk_store *store;
    tk_batcher *batcher;
    tk_current *current;
    tk_shelf *shelf;
    tk_jobs *jobs;
    tk_api *api;
    tk_rpc_server *rpc;
    tk_metrics *metrics;
    tk_http *http; /* NULL: off */
    bool wrote_port;
};

/* -- the trunk's settings: chosen at the first start, fixed from then on -- */

static tk_err wanted_trunk(const tk_config *c, tk_trunk *out, tk_diag *diag)
{
    tk_arch arch = TK_RESNET20;
    tk_err err = c->arch ? tk_arch_parse(c->arch, &arch, diag) : TK_OK;
    if (err != TK_OK) return err;
    const bool small = arch == TK_RESNET20 || arch == TK_RESNET32 || arch == TK_RESNET56;
    const unsigned px = c->px ? (unsigned)c->px : small ? 32 : 224;
    err = tk_arch_check_px(arch, px, diag);
    if (err != TK_OK) return err;
    *out = (tk_trunk){.preproc = tk_preproc_default(px)};
    snprintf(out->arch, sizeof out->arch, "%s", tk_arch_name(arch));
    if (c->resize) out->preproc.resize = (unsigned)c->resize;
    if (c->resize_mode && strcmp(c->resize_mode, "squash") == 0)
        out->preproc.mode = TK_RESIZE_SQUASH;
    return tk_preproc_check(&out->preproc, diag);
}

static const char *mode_name(tk_resize_mode mode)
{
    return mode == TK_RESIZE_SQUASH ? "squash" : "short";
}

/* Flags that were given must be what the store has. */
static tk_err compare_trunk(const tk_config *c, const tk_trunk *have, tk_diag *diag)
{
    static const char fixed[] =
        "it is fixed at a store's first start; leave the flag out, or use another store";
    if (c->arch && strcmp(c->arch, have->arch) != 0) {
        return tk_fail(diag, TK_PRECONDITION, "--arch is %s, but this store's trunk is a %s: %s",
                       c->arch, have->arch, fixed);
    }
    if (c->px && c->px != have->preproc.crop) {
        return tk_fail(diag, TK_PRECONDITION,
                       "--px is %" PRIu64 ", but this store's trunk has %u: %s", c->px,
                       have->preproc.crop, fixed);
    }
    if (c->resize && c->resize != have->preproc.resize) {
        return tk_fail(diag, TK_PRECONDITION,
                       "--resize is %" PRIu64 ", but this store's trunk has %u: %s", c->resize,
                       have->preproc.resize, fixed);
    }
    if (c->resize_mode && strcmp(c->resize_mode, mode_name(have->preproc.mode)) != 0) {
        return tk_fail(diag, TK_PRECONDITION,
                       "--resize-mode is %s, but this store's trunk has %s: %s", c->resize_mode,
                       mode_name(have->preproc.mode), fixed);
    }
    return TK_OK;
}

static tk_err settle_trunk(tk_server *s, tk_diag *diag)
{
    tk_trunk trunk;
    tk_err err = tk_store_trunk_get(s->store, &trunk, diag);
    if (err == TK_OK) return compare_trunk(s->config, &trunk, diag);
    if (err != TK_NOTFOUND) return err;
    err = wanted_trunk(s->config, &trunk, diag);
    if (err == TK_OK) err = tk_store_trunk_set(s->store, &trunk, diag);
    if (err != TK_OK) return err;
    tk_log(TK_LOG_INFO, "trunk chosen",
           (tk_log_field[]){tk_log_str("arch", trunk.arch), tk_log_int("px", trunk.preproc.crop),
                            tk_log_int("resize", trunk.preproc.resize),
                            tk_log_str("mode", mode_name(trunk.preproc.mode)), tk_log_end()});
    return TK_OK;
}

/* -- versions -- */

/* Why the version is not served in the precision that was asked for. */
static void log_refusal(uint64_t number, const tk_precision_choice *choice)
{
    const tk_head *head = choice->refused[choice->asked];
    const tk_precision_check *c = head ? &head->checks[choice->asked] : NULL;
    char why[256];
    if (!c)
        snprintf(why, sizeof why,
                 "never measured in it: made without held-out images, imported, or by an older "
                 "trunkd");
    else if (c->n == 0)
        snprintf(why, sizeof why, "never measured: no image of this head is held out");
    else
        snprintf(why, sizeof why, "%s %.2f %%, in fp32 %.2f %%, tolerance %.2f points, %zu images",
                 c->agreement ? "agreement" : "accuracy", 100 * c->accuracy, 100 * c->fp32,
                 c->tolerance, c->n);
    tk_log(TK_LOG_WARN, "precision not admitted, fp32 instead",
           (tk_log_field[]){tk_log_int("version", (int64_t)number),
                            tk_log_str("asked", tk_precision_wish_name(choice->asked)),
                            tk_log_str("head", head ? head->id : "-"), tk_log_str("reason", why),
                            tk_log_end()});
}

static void log_measured(uint64_t number, const tk_precision_choice *choice)
{
    char ms[TK_PRECISION_COUNT][32];
    tk_log_field fields[TK_PRECISION_COUNT + 4] = {tk_log_int("version", (int64_t)number),
                                                   tk_log_int("images", (int64_t)choice->images)};
    size_t n = 2;
    for (tk_precision p = TK_PRECISION_FP32; p < TK_PRECISION_COUNT; p++) {
        if (choice->ms[p] <= 0) continue;
        snprintf(ms[p], sizeof ms[p], "%.3f ms", choice->ms[p]);
        fields[n++] = tk_log_str(tk_precision_name(p), ms[p]);
    }
    fields[n++] = tk_log_str("chosen", tk_precision_name(choice->served));
    fields[n] = tk_log_end();
    tk_log(TK_LOG_INFO, "precisions measured", fields);
}

static void log_choice(uint64_t number, const tk_precision_choice *choice)
{
    tk_log(TK_LOG_INFO, "version loaded",
           (tk_log_field[]){tk_log_int("version", (int64_t)number),
                            tk_log_str("plan", choice->plan), tk_log_end()});
    if (choice->asked == TK_PRECISION_AUTO)
        log_measured(number, choice);
    else if (choice->asked != choice->served)
        log_refusal(number, choice);
    else if (!tk_precision_native(choice->served))
        tk_log(TK_LOG_WARN, "this CPU lacks instructions for the precision: slower than fp32",
               (tk_log_field[]){tk_log_int("version", (int64_t)number),
                                tk_log_str("precision", tk_precision_name(choice->served)),
                                tk_log_end()});
}

static tk_err load_version(tk_server *s, uint64_t number, const char *path, tk_snapshot **out,
                           tk_diag *diag)
{
    *out = NULL;
    tk_model *model;
    unsigned asked;
    tk_err err = tk_precision_wish_parse(s->config->precision, &asked, diag);
    if (err == TK_OK) err = tk_model_load(&model, path, false, diag);
    if (err != TK_OK) return err;
    err = tk_snapshot_create_as(out, model, number, s->config->batch, (unsigned)s->config->threads,
                                asked, diag);
    if (err == TK_OK) log_choice(number, tk_snapshot_choice(*out));
    return err;
}

static void serve_version(tk_server *s, tk_snapshot *snapshot)
{
    const tk_log_field fields[] = {
        tk_log_int("version", (int64_t)tk_snapshot_number(snapshot)),
        tk_log_str("arch", tk_arch_name(tk_snapshot_arch(snapshot))),
        tk_log_int("px", tk_snapshot_preproc(snapshot)->crop),
        tk_log_int("heads", (int64_t)tk_snapshot_heads(snapshot)),
        tk_log_int("bytes", (int64_t)tk_snapshot_bytes(snapshot)),
        tk_log_str("precision", tk_precision_name(tk_snapshot_choice(snapshot)->served)),
        tk_log_end(),
    };
    tk_metrics_version_served(s->metrics, tk_snapshot_number(snapshot));
    tk_current_set(s->current, snapshot);
    tk_log(TK_LOG_INFO, "version served", fields);
}

static tk_err prepare_hook(void *ctx, uint64_t number, const char *path, void **snapshot,
                           tk_diag *diag)
{
    tk_snapshot *made = NULL;
    const tk_err err = load_version(ctx, number, path, &made, diag);
    *snapshot = made;
    return err;
}

static void publish_hook(void *ctx, uint64_t number, void *snapshot)
{
    (void)number;
    tk_server *s = ctx;
    serve_version(s, snapshot);
    tk_metrics_version_committed(s->metrics);
}

static void discard_hook(void *ctx, void *snapshot)
{
    (void)ctx;
    tk_snapshot_unref(snapshot);
}

static void rewritten_hook(void *ctx)
{
    const tk_server *s = ctx;
    tk_shelf_rewritten(s->shelf);
}

/* *file is which one, "" when there is none. */
static tk_err load_file(tk_server *s, uint64_t number, int64_t tenant, tk_object *file,
                        tk_snapshot **out, tk_diag *diag)
{
    tk_err err = tk_store_version_file(s->store, tenant, number, file, diag);
    if (err != TK_OK) return err;
    char *path = tk_store_object_path(s->store, file->sha);
    err = path ? load_version(s, number, path, out, diag) : tk_fail(diag, TK_NOMEM, "no memory");
    tk_free(path);
    return err;
}

/* A version for a label or a pin. The deletion of a head may take its file away meanwhile: then
 * there is another. */
static tk_err load_hook(void *ctx, uint64_t number, int64_t tenant, tk_snapshot **out,
                        tk_diag *diag)
{
    tk_server *s = ctx;
    tk_object was, is;
    *out = NULL;
    tk_err err = load_file(s, number, tenant, &was, out, diag);
    if (err != TK_OK && was.sha[0] &&
        tk_store_version_file(s->store, tenant, number, &is, NULL) == TK_OK &&
        strcmp(was.sha, is.sha) != 0)
        err = load_file(s, number, tenant, &is, out, diag);
    if (err != TK_OK && err != TK_NOTFOUND)
        tk_log(TK_LOG_ERROR, "version not loaded",
               (tk_log_field[]){tk_log_int("version", (int64_t)number),
                                tk_log_str("reason", diag->text), tk_log_end()});
    return err;
}

/* Serves what the store calls current, if there is anything yet. */
static tk_err load_current(tk_server *s, tk_diag *diag)
{
    tk_version version;
    tk_err err = tk_store_version_get(s->store, TK_ALL, 0, 0, &version, diag);
    if (err == TK_PRECONDITION) return TK_OK;
    if (err != TK_OK) return err;
    char *path = tk_store_object_path(s->store, version.sha);
    tk_snapshot *snapshot = NULL;
    err = path ? load_version(s, version.number, path, &snapshot, diag) : TK_NOMEM;
    tk_free(path);
    tk_version_fini(&version);
    if (err == TK_OK) serve_version(s, snapshot);
    return err;
}

/* -- start -- */

static unsigned inference_threads(const tk_config *c)
{
    if (c->threads) return (unsigned)c->threads;
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    return cores > 0 ? (unsigned)cores : 1;
}

static void log_job(void *ctx, tk_job_log level, uint64_t job, const char *text)
{
    (void)ctx;
    tk_log(level == TK_JOB_WARN ? TK_LOG_WARN : TK_LOG_INFO, "job",
           (tk_log_field[]){tk_log_int("job", (int64_t)job), tk_log_str("message", text),
                            tk_log_end()});
}

static void log_grpc(const char *line)
{
    tk_log(TK_LOG_WARN, "grpc", (tk_log_field[]){tk_log_str("message", line), tk_log_end()});
}

/* -- watched from outside -- */

static void count_job(void *ctx, tk_job_state state)
{
    static const tk_job_end ends[] = {[TK_JOB_COMMITTED] = TK_JOB_END_COMMITTED,
                                      [TK_JOB_REJECTED] = TK_JOB_END_REJECTED,
                                      [TK_JOB_FAILED] = TK_JOB_END_FAILED,
                                      [TK_JOB_CANCELLED] = TK_JOB_END_CANCELLED};
    const tk_server *s = ctx;
    tk_store_stats stats;
    if (tk_job_state_ended(state)) tk_metrics_job_ended(s->metrics, ends[state]);
    if (tk_store_stat(s->store, &stats, NULL) == TK_OK)
        tk_metrics_jobs(s->metrics, stats.queued_jobs, stats.running_job != 0);
}

static void probe(void *ctx, tk_metrics_gauges *out)
{
    const tk_server *s = ctx;
    const tk_batcher_stats b = tk_batcher_get_stats(s->batcher);
    out->queue_images = b.queue;
    out->away[TK_AWAY_QUEUE_FULL] = b.refused_full;
    out->away[TK_AWAY_TENANT_FULL] = b.refused_tenant;
    out->away[TK_AWAY_RATE] = b.refused_rate;
    out->away[TK_AWAY_DEADLINE] = b.refused_deadline;
    out->away[TK_AWAY_LATE] = b.late;
    out->away[TK_AWAY_CANCELLED] = b.cancelled;
    out->shed = tk__accept_guard_shed();
    const tk_shelf_stats shelf = tk_shelf_get_stats(s->shelf);
    out->versions_labelled = shelf.labelled;
    out->versions_pinned = shelf.pinned;
    out->loads = shelf.loads;
    out->load_failures = shelf.failures;
    out->version_waits = shelf.waiting;
}

static tk_err start_watch(tk_server *s, tk_diag *diag)
{
    const char *address = s->config->http;
    if (tk_metrics_create(&s->metrics) != TK_OK)
        return tk_fail(diag, TK_NOMEM, "no memory for the metrics");
    tk_metrics_set_isa(s->metrics, tk_isa_name());
    if (!address || strcmp(address, "off") == 0) return TK_OK;
    tk_diag why = {{0}};
    const tk_err err = tk_http_start(&s->http, address, s->metrics, &why);
    if (err != TK_OK) return tk_fail(diag, err, "--http: %.450s", why.text);
    tk_log(TK_LOG_INFO, "http listening",
           (tk_log_field[]){tk_log_str("address", address),
                            tk_log_int("port", tk_http_port(s->http)), tk_log_end()});
    if (!tk_http_is_local(s->http))
        tk_log(TK_LOG_WARN, "other machines may read the metrics, which name tenants",
               (tk_log_field[]){tk_log_str("address", address), tk_log_end()});
    return TK_OK;
}

/* Makes the folders above the default store; a store named by hand must lie in one that exists. */
static tk_err make_parents(const tk_config *c, tk_diag *diag)
{
    if (c->store != c->default_store) return TK_OK;
    char path[sizeof c->default_store];
    snprintf(path, sizeof path, "%s", c->store);
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        if (mkdir(path, 0755) != 0 && errno != EEXIST)
            return tk_fail_errno(diag, "cannot make %s", path);
        *slash = '/';
    }
    return TK_OK;
}

/* -- settings that a reload changes -- */

static tk_store_opts store_limits(const tk_config *c)
{
    return (tk_store_opts){.max_tenant_bytes = c->max_tenant_bytes,
                           .max_tenant_jobs = (uint32_t)c->max_queued_jobs};
}

static tk_batcher_limits queue_limits(const tk_config *c)
{
    const uint64_t half = c->queue / 2 > MAX_REQUEST ? c->queue / 2 : MAX_REQUEST;
    return (tk_batcher_limits){.max_images = c->queue,
                               .max_tenant_images = c->tenant_queue ? c->tenant_queue : half,
                               .max_tenant_rate = c->tenant_rate,
                               .max_delay_us = (unsigned)(c->delay_ms * 1000)};
}

static tk_api_settings api_settings(const tk_config *c)
{
    return (tk_api_settings){.max_upload_bytes = c->max_upload_bytes,
                             .access_log = strcmp(c->access_log, "yes") == 0};
}

void tk_server_reload(tk_server *s)
{
    const tk_store_opts store = store_limits(s->config);
    const tk_batcher_limits queue = queue_limits(s->config);
    const tk_api_settings api = api_settings(s->config);
    tk_store_set_limits(s->store, &store);
    tk_batcher_set_limits(s->batcher, &queue);
    tk_api_set(s->api, &api);
}

static tk_err open_store(tk_server *s, tk_diag *diag)
{
    const tk_config *c = s->config;
    tk_err err = make_parents(c, diag);
    if (err != TK_OK) return err;
    const tk_store_opts opts = store_limits(c);
    err = tk_store_open(&s->store, c->store, &opts, diag);
    if (err != TK_OK) return err;
    tk_log(TK_LOG_INFO, "store opened",
           (tk_log_field[]){tk_log_str("dir", c->store), tk_log_end()});
    return settle_trunk(s, diag);
}

/* What an admin has set of tenants. */
static tk_err load_limits(tk_server *s, tk_diag *diag)
{
    tk_tenants list;
    tk_err err = tk_store_tenant_list(s->store, &list, diag);
    for (size_t i = 0; err == TK_OK && i < list.n; i++) {
        const tk_tenant_limits *l = &list.items[i].limits;
        if (l->weight > 0 || l->rate > 0 || l->images > 0 || l->bytes > 0)
            err = tk_batcher_set_tenant(s->batcher, list.items[i].id, l);
    }
    tk_tenants_fini(&list);
    return err;
}

/* The versions beside the current one. */
static tk_err start_shelf(tk_server *s, tk_diag *diag)
{
    tk_version_labels labels;
    tk_err err = tk_store_version_label_list(s->store, &labels, diag);
    if (err != TK_OK) return err;
    const tk_shelf_opts opts = {
        .current = s->current, .pinned = s->config->pinned_versions, .load = load_hook, .ctx = s};
    err = tk_shelf_create(&s->shelf, &opts, &labels);
    if (err != TK_OK) return tk_fail(diag, err, "no memory or threads for versions");
    tk_metrics_set_probe(s->metrics, probe, s);
    return TK_OK;
}

/* Decoding comes in bursts, when a pass has been answered: beside the threads of inference, if
 * there are cores for that, it does not take theirs. */
static unsigned decode_threads(const tk_config *c)
{
    if (c->decode_threads) return (unsigned)c->decode_threads;
    const long online = sysconf(_SC_NPROCESSORS_ONLN), left = online - (long)inference_threads(c);
    return left > 0 ? (unsigned)left : 0; /* 0: one per core */
}

static tk_err start_serving(tk_server *s, tk_diag *diag)
{
    const tk_config *c = s->config;
    tk_err err = tk_current_create(&s->current);
    if (err != TK_OK) return tk_fail(diag, err, "no memory to serve");
    const tk_batcher_limits limits = queue_limits(c);
    const size_t bytes = QUEUE_BYTES;
    const tk_batcher_opts opts = {.max_batch = c->batch,
                                  .max_delay_us = limits.max_delay_us,
                                  .max_images = limits.max_images,
                                  .max_bytes = bytes,
                                  .max_tenant_images = limits.max_tenant_images,
                                  .max_tenant_bytes = bytes / 2,
                                  .max_tenant_rate = limits.max_tenant_rate,
                                  .decode_threads = decode_threads(c),
                                  .metrics = s->metrics};
    err = tk_batcher_create(&s->batcher, &opts, diag);
    if (err == TK_OK) err = load_limits(s, diag);
    if (err == TK_OK) err = load_current(s, diag);
    return err == TK_OK ? start_shelf(s, diag) : err;
}

static tk_err start_jobs(tk_server *s, tk_diag *diag)
{
    const tk_config *c = s->config;
    const tk_jobs_opts opts = {
        .trainer = c->trainer,
        .threads = (unsigned)c->trainer_threads,
        .memory_limit = c->trainer_memory,
        .hooks = {.ctx = s,
                  .prepare = prepare_hook,
                  .publish = publish_hook,
                  .discard = discard_hook,
                  .rewritten = rewritten_hook},
        .log = log_job,
        .moved = count_job,
        .moved_ctx = s,
    };
    return tk_jobs_start(&s->jobs, s->store, &opts, diag);
}

static tk_err start_rpc(tk_server *s, tk_diag *diag)
{
    const tk_config *c = s->config;
    const tk_api_opts api = {.store = s->store,
                             .jobs = s->jobs,
                             .batcher = s->batcher,
                             .current = s->current,
                             .shelf = s->shelf,
                             .threads = inference_threads(c),
                             .precision = c->precision,
                             .metrics = s->metrics,
                             .settings = api_settings(c)};
    tk_err err = tk_api_create(&s->api, &api, diag);
    if (err != TK_OK) return err;
    const bool optional = c->tls_client && strcmp(c->tls_client, "optional") == 0;
    tk_rpc_opts opts = {.address = c->listen,
                        .tls = {.cert = c->tls_cert,
                                .key = c->tls_key,
                                .client_ca = c->tls_client_ca,
                                .client_optional = optional},
                        .workers = RPC_WORKERS,
                        .max_connections = (unsigned)c->max_connections,
                        .authenticate = tk_api_authenticate,
                        .tenant_named = tk_api_tenant_named,
                        .ctx = s->api,
                        .began = tk_api_call_began,
                        .ended = tk_api_call_ended,
                        .log = log_grpc};
    opts.methods = tk_api_methods(&opts.n_methods);
    err = tk_rpc_server_start(&s->rpc, &opts, diag);
    if (err != TK_OK) return err;
    tk_rpc_server_set_serving(s->rpc, true);
    tk_http_set(s->http, TK_HTTP_READY);
    return TK_OK;
}

static tk_err announce(tk_server *s, tk_diag *diag)
{
    const tk_config *c = s->config;
    const int port = tk_server_port(s);
    tk_log(TK_LOG_INFO, "listening",
           (tk_log_field[]){tk_log_str("address", c->listen), tk_log_int("port", port),
                            tk_log_str("tls", !c->tls_cert       ? "no"
                                              : c->tls_client_ca ? "mutual"
                                                                 : "yes"),
                            tk_log_str("isa", tk_isa_name()),
                            tk_log_int("threads", inference_threads(c)), tk_log_end()});
    if (!c->port_file) return TK_OK;
    char text[16];
    const int n = snprintf(text, sizeof text, "%d\n", port);
    const tk_err err = tk_file_write(c->port_file, text, (size_t)n, diag);
    s->wrote_port = err == TK_OK;
    return err;
}

tk_err tk_server_start(tk_server **out, const tk_config *config, tk_diag *diag)
{
    *out = NULL;
    tk_server *s = tk_calloc(1, sizeof *s);
    if (!s) return tk_fail(diag, TK_NOMEM, "no memory for the server");
    s->config = config;
    tk_err err = tk_isa_select(config->isa, diag);
    if (err == TK_OK) err = start_watch(s, diag);
    if (err == TK_OK) err = open_store(s, diag);
    if (err == TK_OK) err = start_serving(s, diag);
    if (err == TK_OK) err = start_jobs(s, diag);
    if (err == TK_OK) err = start_rpc(s, diag);
    if (err == TK_OK) err = announce(s, diag);
    if (err != TK_OK) {
        tk_server_stop(s);
        return err;
    }
    *out = s;
    return TK_OK;
}

void tk_server_pulse(tk_server *s)
{
    (void)tk_batcher_get_stats(s->batcher);
}

int tk_server_port(const tk_server *s)
{
    return tk_rpc_server_port(s->rpc);
}

void tk_server_stop(tk_server *s)
{
    if (!s) return;
    tk_http_set(s->http, TK_HTTP_DRAINING);
    if (s->wrote_port) unlink(s->config->port_file);
    if (s->api) tk_api_shutdown(s->api);
    if (s->rpc) tk_rpc_server_stop(s->rpc, (unsigned)s->config->grace_s * 1000);
    tk_api_destroy(s->api);
    tk_jobs_stop(s->jobs);
    tk_metrics_set_probe(s->metrics, NULL, NULL);
    tk_batcher_destroy(s->batcher); /* before the shelf: its requests hold versions */
    tk_shelf_destroy(s->shelf);
    tk_current_destroy(s->current);
    tk_store_close(s->store);
    tk_http_stop(s->http); /* last: it says why nothing is answered */
    tk_metrics_destroy(s->metrics);
    tk_free(s);
}
