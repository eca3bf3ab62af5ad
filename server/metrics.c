/* See metrics.h. Every counter is an atomic of its own in relaxed order: each is right by itself,
 * and a reader may see one of two that belong together a moment earlier. A histogram keeps plain
 * buckets and its sum; the count is made of the buckets when it is written, so that those two
 * always agree.
 *
 * Series by tenant and head stand in an open-addressed table of pointers that only ever grows: a
 * pointer is published with release order once its names are written, and looked up with acquire.
 * The lock is for making one, and for the probe. */
#include "metrics.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>

#include "engine/mem.h"
#include "process.h"

enum {
    CELLS = 1024, /* a power of two, four times the series */
    SIZE_BUCKETS = 11,
    NAME = 64,
};

typedef atomic_uint_fast64_t counter;

typedef struct series {
    char tenant[NAME], head[NAME]; /* fixed once published */
    uint64_t hash;
    atomic_bool hidden; /* its tenant has left */
    counter requests[TK_METRICS_CODES], images;
} series;

typedef struct method {
    _Atomic(const char *) path; /* NULL: free */
    counter calls[TK_METRICS_CODES];
} method;

/* Requests that a version answered. */
typedef struct answered {
    uint64_t version; /* 0: free */
    uint64_t requests, images;
    uint64_t last; /* answers of all versions, when it was counted last */
} answered;

struct tk_metrics {
    struct times {
        counter buckets[TK_METRICS_TIME_BUCKETS], sum_ns;
    } stages[TK_STAGE_COUNT];
    counter size_buckets[SIZE_BUCKETS + 1], size_sum;
    counter in_flight, version, committed, rolled_back;
    counter jobs_queued, jobs_running, jobs_ended[TK_JOB_END_COUNT];
    method methods[TK_METRICS_METHODS], unknown, other_method;
    series all[TK_METRICS_SERIES], other;
    _Atomic(series *) cells[CELLS];
    atomic_size_t n_series;
    pthread_mutex_t versions_lock;
    answered versions[TK_METRICS_VERSIONS]; /* versions_lock */
    uint64_t answers;                       /* versions_lock */
    pthread_mutex_t lock;
    void (*probe)(void *ctx, tk_metrics_gauges *out); /* lock */
    void *probe_ctx;                                  /* lock */
    const char *isa;
    double started; /* seconds since 1970 */
};

const double tk_metrics_time_bounds[TK_METRICS_TIME_BUCKETS - 1] = {
    0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30};

/* The same in nanoseconds: compared as whole numbers, a time that equals a bound lies below it. */
static const uint64_t bounds_ns[TK_METRICS_TIME_BUCKETS - 1] = {
    100000,     250000,     500000,     1000000,     2000000,    5000000,
    10000000,   20000000,   50000000,   100000000,   200000000,  500000000,
    1000000000, 2000000000, 5000000000, 10000000000, 30000000000};

static const uint64_t size_bounds[SIZE_BUCKETS] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024};

static const char *const stage_names[TK_STAGE_COUNT] = {"decode", "queue", "trunk", "head",
                                                        "total"};

static const char *const end_names[TK_JOB_END_COUNT] = {"committed", "rejected", "failed",
                                                        "cancelled"};

static const char *const code_names[TK_METRICS_CODES] = {
    "OK",        "CANCELLED",      "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
    "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
    "ABORTED",   "OUT_OF_RANGE",   "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
    "DATA_LOSS", "UNAUTHENTICATED"};

static const char other[] = "other";

static void add(counter *c, uint64_t n)
{
    atomic_fetch_add_explicit(c, n, memory_order_relaxed);
}

static uint64_t get(const counter *c)
{
    return atomic_load_explicit(c, memory_order_relaxed);
}

static void put(counter *c, uint64_t n)
{
    atomic_store_explicit(c, n, memory_order_relaxed);
}

/* A code that gRPC does not know counts as UNKNOWN. */
static size_t code_index(int code)
{
    return code >= 0 && code < TK_METRICS_CODES ? (size_t)code : 2;
}

const char *tk_metrics_code_name(int code)
{
    return code_names[code_index(code)];
}

/* -- life -- */

tk_err tk_metrics_create(tk_metrics **out)
{
    *out = NULL;
    tk_metrics *m = tk_calloc(1, sizeof *m); /* all atomics are valid as zeroes */
    if (!m) return TK_NOMEM;
    if (pthread_mutex_init(&m->lock, NULL) != 0) {
        tk_free(m);
        return TK_NOMEM;
    }
    pthread_mutex_init(&m->versions_lock, NULL);
    snprintf(m->other.tenant, NAME, "%s", other);
    snprintf(m->other.head, NAME, "%s", other);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    m->started = (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
    *out = m;
    return TK_OK;
}

void tk_metrics_destroy(tk_metrics *m)
{
    if (!m) return;
    pthread_mutex_destroy(&m->versions_lock);
    pthread_mutex_destroy(&m->lock);
    tk_free(m);
}

/* -- times and sizes -- */

void tk_metrics_observe(tk_metrics *m, tk_stage stage, int64_t ns)
{
    if (!m) return;
    const uint64_t value = ns > 0 ? (uint64_t)ns : 0;
    size_t i = 0;
    while (i < TK_METRICS_TIME_BUCKETS - 1 && value > bounds_ns[i])
        i++;
    add(&m->stages[stage].buckets[i], 1);
    add(&m->stages[stage].sum_ns, value);
}

void tk_metrics_pass(tk_metrics *m, size_t images, int64_t trunk_ns, int64_t head_ns)
{
    if (!m) return;
    size_t i = 0;
    while (i < SIZE_BUCKETS && images > size_bounds[i])
        i++;
    add(&m->size_buckets[i], 1);
    add(&m->size_sum, images);
    tk_metrics_observe(m, TK_STAGE_TRUNK, trunk_ns);
    tk_metrics_observe(m, TK_STAGE_HEAD, head_ns);
}

/* -- series by tenant and head -- */

/* FNV-1a over both names, a byte between them that neither can have. */
static uint64_t hash_of(const char *tenant, const char *head)
{
    uint64_t h = UINT64_C(0xcbf29ce484222325);
    for (; *tenant; tenant++)
        h = (h ^ (unsigned char)*tenant) * UINT64_C(0x100000001b3);
    h = (h ^ 0xFF) * UINT64_C(0x100000001b3);
    for (; *head; head++)
        h = (h ^ (unsigned char)*head) * UINT64_C(0x100000001b3);
    return h;
}

/* The pair's series, or NULL with *cell where it belongs. */
static series *look(tk_metrics *m, uint64_t hash, const char *tenant, const char *head,
                    size_t *cell)
{
    for (*cell = hash % CELLS;; *cell = (*cell + 1) % CELLS) {
        series *s = atomic_load_explicit(&m->cells[*cell], memory_order_acquire);
        if (!s) return NULL;
        if (s->hash == hash && strcmp(s->tenant, tenant) == 0 && strcmp(s->head, head) == 0)
            return s;
    }
}

/* A tenant of the same name came after the one that left: from nought. */
static void revive_locked(series *s)
{
    for (size_t i = 0; i < TK_METRICS_CODES; i++)
        put(&s->requests[i], 0);
    put(&s->images, 0);
    atomic_store_explicit(&s->hidden, false, memory_order_release);
}

static series *make(tk_metrics *m, uint64_t hash, const char *tenant, const char *head)
{
    size_t cell;
    pthread_mutex_lock(&m->lock);
    series *s = look(m, hash, tenant, head, &cell);
    const size_t n = atomic_load_explicit(&m->n_series, memory_order_relaxed);
    if (s) {
        if (atomic_load_explicit(&s->hidden, memory_order_relaxed)) revive_locked(s);
    } else if (n < TK_METRICS_SERIES) {
        s = &m->all[n];
        snprintf(s->tenant, sizeof s->tenant, "%s", tenant);
        snprintf(s->head, sizeof s->head, "%s", head);
        s->hash = hash;
        atomic_store_explicit(&m->cells[cell], s, memory_order_release);
        atomic_store_explicit(&m->n_series, n + 1, memory_order_release);
    } else {
        s = &m->other;
    }
    pthread_mutex_unlock(&m->lock);
    return s;
}

static series *find(tk_metrics *m, const char *tenant, const char *head)
{
    size_t cell;
    if (strlen(tenant) >= NAME || strlen(head) >= NAME) return &m->other; /* no valid name is */
    if (strcmp(tenant, other) == 0 && strcmp(head, other) == 0) return &m->other;
    const uint64_t hash = hash_of(tenant, head);
    series *s = look(m, hash, tenant, head, &cell);
    if (s && !atomic_load_explicit(&s->hidden, memory_order_acquire)) return s;
    const bool full = atomic_load_explicit(&m->n_series, memory_order_relaxed) >= TK_METRICS_SERIES;
    return !s && full ? &m->other : make(m, hash, tenant, head);
}

void tk_metrics_classified(tk_metrics *m, const char *tenant, const char *head, int code,
                           uint64_t images)
{
    if (!m) return;
    series *s = find(m, tenant, head);
    add(&s->requests[code_index(code)], 1);
    if (code == 0) add(&s->images, images);
}

void tk_metrics_forget(tk_metrics *m, const char *tenant)
{
    if (!m) return;
    pthread_mutex_lock(&m->lock);
    const size_t n = atomic_load_explicit(&m->n_series, memory_order_relaxed);
    for (size_t i = 0; i < n; i++)
        if (strcmp(m->all[i].tenant, tenant) == 0)
            atomic_store_explicit(&m->all[i].hidden, true, memory_order_release);
    pthread_mutex_unlock(&m->lock);
}

/* -- answers by version -- */

void tk_metrics_answered(tk_metrics *m, uint64_t version, uint64_t images)
{
    if (!m) return;
    pthread_mutex_lock(&m->versions_lock);
    answered *at = &m->versions[0]; /* its own, or the one that answered longest ago */
    for (size_t i = 0; i < TK_METRICS_VERSIONS && at->version != version; i++) {
        answered *a = &m->versions[i];
        if (a->version == version || a->last < at->last) at = a;
    }
    if (at->version != version) *at = (answered){.version = version};
    at->requests++;
    at->images += images;
    at->last = ++m->answers;
    pthread_mutex_unlock(&m->versions_lock);
}

/* -- calls -- */

void tk_metrics_call_began(tk_metrics *m)
{
    if (m) add(&m->in_flight, 1);
}

/* The method's counters; the first call of a method takes a free place. */
static method *method_of(tk_metrics *m, const char *path)
{
    if (!path) return &m->unknown;
    for (size_t i = 0; i < TK_METRICS_METHODS; i++) {
        method *at = &m->methods[i];
        const char *is = atomic_load_explicit(&at->path, memory_order_acquire);
        if (!is && atomic_compare_exchange_strong_explicit(
                       &at->path, &is, path, memory_order_acq_rel, memory_order_acquire))
            return at;
        if (is == path) return at; /* also when another thread has just put it there */
    }
    return &m->other_method;
}

void tk_metrics_call_ended(tk_metrics *m, const char *path, int code)
{
    if (!m) return;
    add(&method_of(m, path)->calls[code_index(code)], 1);
    atomic_fetch_sub_explicit(&m->in_flight, 1, memory_order_relaxed);
}

/* -- versions and jobs -- */

void tk_metrics_version_served(tk_metrics *m, uint64_t number)
{
    if (m) put(&m->version, number);
}

void tk_metrics_version_committed(tk_metrics *m)
{
    if (m) add(&m->committed, 1);
}

void tk_metrics_version_rolled_back(tk_metrics *m)
{
    if (m) add(&m->rolled_back, 1);
}

void tk_metrics_jobs(tk_metrics *m, uint64_t queued, uint64_t running)
{
    if (!m) return;
    put(&m->jobs_queued, queued);
    put(&m->jobs_running, running);
}

void tk_metrics_job_ended(tk_metrics *m, tk_job_end end)
{
    if (m) add(&m->jobs_ended[end], 1);
}

/* -- figures that others keep -- */

void tk_metrics_set_probe(tk_metrics *m, void (*fn)(void *ctx, tk_metrics_gauges *out), void *ctx)
{
    if (!m) return;
    pthread_mutex_lock(&m->lock);
    m->probe = fn;
    m->probe_ctx = ctx;
    pthread_mutex_unlock(&m->lock);
}

void tk_metrics_set_isa(tk_metrics *m, const char *isa)
{
    if (m) m->isa = isa;
}

/* -- reading -- */

const char *tk_metrics_stage_name(tk_stage stage)
{
    return stage_names[stage];
}

void tk_metrics_read(tk_metrics *m, tk_stage stage, tk_metrics_times *out)
{
    *out = (tk_metrics_times){.sum = 0};
    if (!m) return;
    for (size_t i = 0; i < TK_METRICS_TIME_BUCKETS; i++)
        out->counts[i] = get(&m->stages[stage].buckets[i]);
    out->sum = (double)get(&m->stages[stage].sum_ns) * 1e-9;
}

uint64_t tk_metrics_in_flight(const tk_metrics *m)
{
    return m ? get(&m->in_flight) : 0;
}

/* -- writing -- */

void tk__metrics_label(FILE *to, const char *text)
{
    for (; *text; text++) {
        if (*text == '\\' || *text == '"')
            fprintf(to, "\\%c", *text);
        else if (*text == '\n')
            fputs("\\n", to);
        else
            fputc(*text, to);
    }
}

static void head_of(FILE *to, const char *name, const char *type, const char *help)
{
    fprintf(to, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void one(FILE *to, const char *name, const char *type, const char *help, uint64_t value)
{
    head_of(to, name, type, help);
    fprintf(to, "%s %" PRIu64 "\n", name, value);
}

static void one_real(FILE *to, const char *name, const char *type, const char *help, double value)
{
    head_of(to, name, type, help);
    fprintf(to, "%s %.3f\n", name, value);
}

static void write_stages(tk_metrics *m, FILE *to)
{
    head_of(to, "trunkd_stage_seconds", "histogram",
            "Time in a stage of classification: decode and queue by image, trunk and head by pass, "
            "total by request answered OK.");
    for (tk_stage s = TK_STAGE_DECODE; s < TK_STAGE_COUNT; s++) {
        tk_metrics_times t;
        tk_metrics_read(m, s, &t);
        uint64_t sum = 0;
        for (size_t i = 0; i < TK_METRICS_TIME_BUCKETS - 1; i++) {
            sum += t.counts[i];
            fprintf(to, "trunkd_stage_seconds_bucket{stage=\"%s\",le=\"%g\"} %" PRIu64 "\n",
                    stage_names[s], tk_metrics_time_bounds[i], sum);
        }
        sum += t.counts[TK_METRICS_TIME_BUCKETS - 1];
        fprintf(to,
                "trunkd_stage_seconds_bucket{stage=\"%s\",le=\"+Inf\"} %" PRIu64 "\n"
                "trunkd_stage_seconds_sum{stage=\"%s\"} %.9f\n"
                "trunkd_stage_seconds_count{stage=\"%s\"} %" PRIu64 "\n",
                stage_names[s], sum, stage_names[s], t.sum, stage_names[s], sum);
    }
}

static void write_sizes(const tk_metrics *m, FILE *to)
{
    head_of(to, "trunkd_batch_images", "histogram", "Images of one pass through the trunk.");
    uint64_t sum = 0;
    for (size_t i = 0; i < SIZE_BUCKETS; i++) {
        sum += get(&m->size_buckets[i]);
        fprintf(to, "trunkd_batch_images_bucket{le=\"%" PRIu64 "\"} %" PRIu64 "\n", size_bounds[i],
                sum);
    }
    sum += get(&m->size_buckets[SIZE_BUCKETS]);
    fprintf(to,
            "trunkd_batch_images_bucket{le=\"+Inf\"} %" PRIu64 "\n"
            "trunkd_batch_images_sum %" PRIu64 "\ntrunkd_batch_images_count %" PRIu64 "\n",
            sum, get(&m->size_sum), sum);
}

static void write_names(FILE *to, const char *name, const series *s)
{
    fprintf(to, "%s{tenant=\"", name);
    tk__metrics_label(to, s->tenant);
    fputs("\",head=\"", to);
    tk__metrics_label(to, s->head);
    fputc('"', to);
}

static void write_requests(FILE *to, const series *s)
{
    for (size_t c = 0; c < TK_METRICS_CODES; c++) {
        const uint64_t n = get(&s->requests[c]);
        if (n == 0) continue;
        write_names(to, "trunkd_requests_total", s);
        fprintf(to, ",code=\"%s\"} %" PRIu64 "\n", code_names[c], n);
    }
}

static void write_images(FILE *to, const series *s)
{
    if (get(&s->images) == 0) return;
    write_names(to, "trunkd_images_total", s);
    fprintf(to, "} %" PRIu64 "\n", get(&s->images));
}

static void write_each(tk_metrics *m, FILE *to, void (*write)(FILE *to, const series *s))
{
    const size_t n = atomic_load_explicit(&m->n_series, memory_order_acquire);
    for (size_t i = 0; i < n; i++)
        if (!atomic_load_explicit(&m->all[i].hidden, memory_order_acquire)) write(to, &m->all[i]);
    write(to, &m->other);
}

static void write_series(tk_metrics *m, FILE *to)
{
    head_of(
        to, "trunkd_requests_total", "counter",
        "Inference requests by tenant, head and status; one for several heads counts for each.");
    write_each(m, to, write_requests);
    head_of(to, "trunkd_images_total", "counter",
            "Images of inference requests answered OK, by tenant and head.");
    write_each(m, to, write_images);
}

static void write_versions(tk_metrics *m, FILE *to)
{
    answered all[TK_METRICS_VERSIONS];
    pthread_mutex_lock(&m->versions_lock);
    memcpy(all, m->versions, sizeof all);
    pthread_mutex_unlock(&m->versions_lock);
    head_of(to, "trunkd_version_requests_total", "counter",
            "Inference requests answered OK, by the version that answered; the last 32 versions.");
    for (size_t i = 0; i < TK_METRICS_VERSIONS; i++)
        if (all[i].version)
            fprintf(to, "trunkd_version_requests_total{version=\"%" PRIu64 "\"} %" PRIu64 "\n",
                    all[i].version, all[i].requests);
    head_of(to, "trunkd_version_images_total", "counter", "Their images.");
    for (size_t i = 0; i < TK_METRICS_VERSIONS; i++)
        if (all[i].version)
            fprintf(to, "trunkd_version_images_total{version=\"%" PRIu64 "\"} %" PRIu64 "\n",
                    all[i].version, all[i].images);
}

static void write_loads(const tk_metrics_gauges *g, FILE *to)
{
    head_of(to, "trunkd_versions_loaded", "gauge",
            "Labels whose version is in memory, and pinned versions in memory.");
    fprintf(to,
            "trunkd_versions_loaded{why=\"label\"} %" PRIu64 "\n"
            "trunkd_versions_loaded{why=\"pin\"} %" PRIu64 "\n",
            g->versions_labelled, g->versions_pinned);
    one(to, "trunkd_version_loads_total", "counter", "Versions loaded for labels and pins.",
        g->loads);
    one(to, "trunkd_version_load_failures_total", "counter", "Those that could not be loaded.",
        g->load_failures);
    one(to, "trunkd_version_waits", "gauge", "Requests that wait for a version to be loaded.",
        g->version_waits);
}

static void write_method(FILE *to, const method *at, const char *path)
{
    for (size_t c = 0; c < TK_METRICS_CODES; c++) {
        const uint64_t n = get(&at->calls[c]);
        if (n == 0) continue;
        fputs("trunkd_rpc_calls_total{method=\"", to);
        tk__metrics_label(to, path[0] == '/' ? path + 1 : path);
        fprintf(to, "\",code=\"%s\"} %" PRIu64 "\n", code_names[c], n);
    }
}

static void write_methods(const tk_metrics *m, FILE *to)
{
    head_of(to, "trunkd_rpc_calls_total", "counter", "Finished calls by method and status.");
    for (size_t i = 0; i < TK_METRICS_METHODS; i++) {
        const char *path = atomic_load_explicit(&m->methods[i].path, memory_order_acquire);
        if (path) write_method(to, &m->methods[i], path);
    }
    write_method(to, &m->unknown, "unknown");
    write_method(to, &m->other_method, other);
}

static void write_jobs(const tk_metrics *m, FILE *to)
{
    one(to, "trunkd_version", "gauge", "The version being served; 0: none yet.", get(&m->version));
    one(to, "trunkd_versions_committed_total", "counter",
        "Versions that came into service since start, of any kind.", get(&m->committed));
    one(to, "trunkd_versions_rolled_back_total", "counter", "Those of them that are rollbacks.",
        get(&m->rolled_back));
    one(to, "trunkd_jobs_queued", "gauge", "Jobs that wait.", get(&m->jobs_queued));
    one(to, "trunkd_jobs_running", "gauge", "Jobs that train: 0 or 1.", get(&m->jobs_running));
    head_of(to, "trunkd_jobs_ended_total", "counter", "Jobs that ended since start, by outcome.");
    for (size_t i = 0; i < TK_JOB_END_COUNT; i++)
        fprintf(to, "trunkd_jobs_ended_total{outcome=\"%s\"} %" PRIu64 "\n", end_names[i],
                get(&m->jobs_ended[i]));
}

static tk_metrics_gauges ask_probe(tk_metrics *m)
{
    tk_metrics_gauges g = {0};
    pthread_mutex_lock(&m->lock);
    if (m->probe) m->probe(m->probe_ctx, &g);
    pthread_mutex_unlock(&m->lock);
    return g;
}

static void write_process(const tk_metrics *m, FILE *to)
{
    tk_process p;
    tk_process_read(&p);
    one(to, "process_resident_memory_bytes", "gauge", "Resident memory.", p.resident_bytes);
    one_real(to, "process_cpu_seconds_total", "counter", "User and system time.", p.cpu_seconds);
    one(to, "process_open_fds", "gauge", "Open file descriptors.", p.open_fds);
    one(to, "process_max_fds", "gauge", "Limit of open file descriptors.", p.max_fds);
    one_real(to, "process_start_time_seconds", "gauge", "When it started, since 1970.", m->started);
}

static void write_away(const tk_metrics_gauges *g, FILE *to)
{
    static const char *const reasons[TK_AWAY_COUNT] = {"queue_full", "tenant_full", "rate",
                                                       "deadline",   "late",        "cancelled"};
    head_of(to, "trunkd_requests_away_total", "counter",
            "Requests that were refused (full, rate, deadline) or left the queue without a pass.");
    for (size_t i = 0; i < TK_AWAY_COUNT; i++)
        fprintf(to, "trunkd_requests_away_total{reason=\"%s\"} %" PRIu64 "\n", reasons[i],
                g->away[i]);
}

void tk_metrics_write(tk_metrics *m, FILE *to)
{
    const tk_metrics_gauges g = ask_probe(m);
    head_of(to, "trunkd_build_info", "gauge", "What runs; always 1.");
    fprintf(to, "trunkd_build_info{version=\"%s\",isa=\"%s\"} 1\n", TRUNKD_VERSION,
            m->isa ? m->isa : "");
    write_stages(m, to);
    write_sizes(m, to);
    write_series(m, to);
    write_versions(m, to);
    write_methods(m, to);
    one(to, "trunkd_rpc_in_flight", "gauge", "Calls that have begun and not ended.",
        get(&m->in_flight));
    write_away(&g, to);
    one(to, "trunkd_queue_images", "gauge", "Images submitted and not answered.", g.queue_images);
    one(to, "trunkd_connections_shed_total", "counter",
        "Connections closed for want of file descriptors, or over the limit.", g.shed);
    write_loads(&g, to);
    write_jobs(m, to);
    write_process(m, to);
}
