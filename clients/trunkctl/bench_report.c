/* What `trunkctl bench` found: see bench_report.h. */
#include "bench_report.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ctl.h"
#include "json.h"
#include "stages.h"
#include "term.h"

static const char *const end_names[TK__GEN_ENDS] = {"ok", "refused", "failed"};

enum { QUANTILES = 4 };
static const double quantiles[QUANTILES] = {0.5, 0.9, 0.99, 0.999};
static const char *const quantile_names[QUANTILES] = {"p50", "p90", "p99", "p999"};

static double ms(double ns)
{
    return ns * 1e-6;
}

static double longest_ms(const tk__histogram *h)
{
    return h->n ? ms((double)h->longest_ns) : (double)NAN;
}

static double per_s(const tk__bench *b, uint64_t n)
{
    return b->result.seconds > 0 ? (double)n / b->result.seconds : (double)NAN;
}

double tk__bench_goodput(const tk__bench *b)
{
    return per_s(b, b->result.good);
}

/* Between the two answers; 0 when they are not of one run of the server, or not known. */
static double server_seconds(const tk__bench *b)
{
    if (!b->before || !b->after || b->after->uptime_ms <= b->before->uptime_ms) return 0;
    return (double)(b->after->uptime_ms - b->before->uptime_ms) * 1e-3;
}

/* Images of a pass; NaN: none, or not known. */
static double images_a_pass(const tk__bench *b)
{
    if (server_seconds(b) <= 0) return (double)NAN;
    const double passes = tk__grown(b->before->batches, b->after->batches);
    return passes > 0 ? tk__grown(b->before->images, b->after->images) / passes : (double)NAN;
}

/* -- for a person -- */

static void print_head(const tk__bench *b)
{
    const tk__gen_opts *o = &b->load;
    if (o->concurrency)
        printf("closed loop, %llu in flight", (unsigned long long)o->concurrency);
    else
        printf("open loop, %g calls/s", o->rate);
    printf("; %s", b->call);
    if (b->batch)
        printf(", %llu image%s a call", (unsigned long long)b->batch, b->batch == 1 ? "" : "s");
    printf("; %zu tenant%s, %zu connection%s; %.1f s after %.1f s of warm-up\n", o->n_tenants,
           o->n_tenants == 1 ? "" : "s", o->n_clients, o->n_clients == 1 ? "" : "s",
           b->result.seconds, o->warm_up_s);
}

static void print_rates(const tk__bench *b)
{
    const tk__gen_result *r = &b->result;
    printf("answered   %.1f calls/s", per_s(b, r->latency[TK__GEN_OK].n));
    if (b->batch) printf(", %.1f images/s", per_s(b, r->images));
    if (r->unreadable) printf("; %llu images could not be read", (unsigned long long)r->unreadable);
    putchar('\n');
    if (b->load.deadline_ms) {
        printf("goodput    %.1f calls/s", tk__bench_goodput(b));
        if (b->batch) printf(", %.1f images/s", per_s(b, r->good_images));
        printf(" within %u ms\n", b->load.deadline_ms);
    }
    printf("refused    %.1f calls/s; failed %.1f calls/s", per_s(b, r->latency[TK__GEN_REFUSED].n),
           per_s(b, r->latency[TK__GEN_FAILED].n));
    if (r->unsent)
        printf("; %llu not sent, with %d in flight", (unsigned long long)r->unsent,
               TK__GEN_IN_FLIGHT_MAX);
    fputs("\ncodes     ", stdout);
    for (int code = 0; code < TK__GEN_CODES; code++)
        if (r->codes[code])
            printf(" %s %llu", tk_client_code_text(code), (unsigned long long)r->codes[code]);
    putchar('\n');
    if (r->failure[0]) {
        fputs("failure    ", stdout);
        tk__put(stdout, r->failure);
        putchar('\n');
    }
}

static void cell(tk__table *table, double value)
{
    if (isfinite(value))
        tk__table_cell(table, value < 100 ? "%.2f" : "%.0f", value);
    else
        tk__table_cell(table, "-");
}

static void print_latency(const tk__bench *b)
{
    static const char *const titles[] = {"LATENCY MS", "CALLS", "MEAN",  "P50",
                                         "P90",        "P99",   "P99.9", "LONGEST"};
    tk__table table;
    tk__table_init(&table, "lrrrrrrr");
    for (size_t i = 0; i < sizeof(titles) / sizeof(titles[0]); i++)
        tk__table_cell(&table, "%s", titles[i]);
    for (size_t end = 0; end < TK__GEN_ENDS; end++) {
        const tk__histogram *h = &b->result.latency[end];
        if (!h->n && end != TK__GEN_OK) continue;
        tk__table_cell(&table, "%s", end_names[end]);
        tk__table_cell(&table, "%llu", (unsigned long long)h->n);
        cell(&table, ms(tk__histogram_mean(h)));
        for (size_t q = 0; q < QUANTILES; q++)
            cell(&table, ms(tk__histogram_quantile(h, quantiles[q])));
        cell(&table, longest_ms(h));
    }
    tk__table_print(&table, stdout, 0);
}

/* The least and the most that a tenant got. */
static void print_tenants(const tk__bench *b)
{
    uint64_t least = UINT64_MAX, most = 0;
    for (size_t i = 0; i < b->load.n_tenants; i++) {
        const uint64_t ok = b->result.by_tenant[i][TK__GEN_OK];
        if (ok < least) least = ok;
        if (ok > most) most = ok;
    }
    if (b->load.n_tenants > 1)
        printf("tenants    %.1f to %.1f calls/s answered\n", per_s(b, least), per_s(b, most));
}

void tk__bench_print(const tk__bench *b)
{
    print_head(b);
    print_rates(b);
    print_tenants(b);
    print_latency(b);
    printf("generator  took %.2f cores", b->result.client_cpus);
    if (b->result.lag.n)
        printf("; started calls late by %.2f ms in half of them, %.2f ms in 1 of 100, at most "
               "%.2f ms",
               ms(tk__histogram_quantile(&b->result.lag, 0.5)),
               ms(tk__histogram_quantile(&b->result.lag, 0.99)), longest_ms(&b->result.lag));
    putchar('\n');
    const double seconds = server_seconds(b);
    if (seconds <= 0) return;
    printf("server     ");
    if (isfinite(images_a_pass(b))) printf("%.1f images a pass, ", images_a_pass(b));
    printf("%.1f refused/s\n", tk__grown(b->before->refused, b->after->refused) / seconds);
    tk__stage stages[TK__STAGES];
    tk__stages_print(tk__stages_compare(stages, b->before, b->after, seconds), stages);
}

/* -- JSON -- */

static json_t *count(uint64_t n)
{
    return json_integer(n <= INT64_MAX ? (json_int_t)n : INT64_MAX);
}

static json_t *latency_json(const tk__histogram *h)
{
    json_t *o = json_object();
    json_object_set_new(o, "count", count(h->n));
    json_object_set_new(o, "mean", tk__real_or_null(ms(tk__histogram_mean(h))));
    for (size_t q = 0; q < QUANTILES; q++)
        json_object_set_new(o, quantile_names[q],
                            tk__real_or_null(ms(tk__histogram_quantile(h, quantiles[q]))));
    json_object_set_new(o, "max", tk__real_or_null(longest_ms(h)));
    return o;
}

static json_t *server_json(const tk__bench *b)
{
    const double seconds = server_seconds(b);
    if (seconds <= 0) return json_null();
    tk__stage stages[TK__STAGES];
    const size_t n = tk__stages_compare(stages, b->before, b->after, seconds);
    json_t *o = json_object();
    json_object_set_new(o, "seconds", json_real(seconds));
    json_object_set_new(o, "batch_images", tk__real_or_null(images_a_pass(b)));
    json_object_set_new(
        o, "refused_per_s",
        tk__real_or_null(tk__grown(b->before->refused, b->after->refused) / seconds));
    json_object_set_new(o, "stages", tk__stages_json(n, stages));
    return o;
}

static json_t *tenants_json(const tk__bench *b)
{
    json_t *all = json_array();
    for (size_t i = 0; i < b->load.n_tenants; i++) {
        json_t *one = json_object();
        json_object_set_new(one, "weight", json_real(b->load.tenants[i].weight));
        for (size_t end = 0; end < TK__GEN_ENDS; end++)
            json_object_set_new(one, end_names[end], count(b->result.by_tenant[i][end]));
        json_array_append_new(all, one);
    }
    return all;
}

static void put_settings(json_t *o, const tk__bench *b)
{
    const tk__gen_opts *l = &b->load;
    json_object_set_new(o, "mode", json_string(l->concurrency ? "closed" : "open"));
    json_object_set_new(o, "call", json_string(b->call));
    json_object_set_new(o, "concurrency", l->concurrency ? count(l->concurrency) : json_null());
    json_object_set_new(o, "rate", l->concurrency ? json_null() : json_real(l->rate));
    json_object_set_new(o, "batch", count(b->batch));
    json_object_set_new(o, "connections", count(l->n_clients));
    json_object_set_new(o, "deadline_ms", l->deadline_ms ? count(l->deadline_ms) : json_null());
    json_object_set_new(o, "warm_up_s", json_real(l->warm_up_s));
    json_object_set_new(o, "seed", count(l->seed));
}

json_t *tk__bench_json(const tk__bench *b)
{
    const tk__gen_result *r = &b->result;
    json_t *o = json_object(), *codes = json_object(), *latency = json_object();
    put_settings(o, b);
    json_object_set_new(o, "seconds", json_real(r->seconds));
    json_object_set_new(o, "requests", count(r->requests));
    for (size_t end = 0; end < TK__GEN_ENDS; end++) {
        json_object_set_new(o, end_names[end], count(r->latency[end].n));
        json_object_set_new(latency, end_names[end], latency_json(&r->latency[end]));
    }
    json_object_set_new(o, "unsent", count(r->unsent));
    json_object_set_new(o, "good", count(r->good));
    json_object_set_new(o, "images", count(r->images));
    json_object_set_new(o, "unreadable", count(r->unreadable));
    json_object_set_new(o, "offered_per_s", tk__real_or_null(per_s(b, r->requests)));
    json_object_set_new(o, "requests_per_s", tk__real_or_null(per_s(b, r->latency[TK__GEN_OK].n)));
    json_object_set_new(o, "images_per_s", tk__real_or_null(per_s(b, r->images)));
    json_object_set_new(o, "goodput_per_s", tk__real_or_null(tk__bench_goodput(b)));
    json_object_set_new(o, "goodput_images_per_s", tk__real_or_null(per_s(b, r->good_images)));
    for (int code = 0; code < TK__GEN_CODES; code++)
        if (r->codes[code])
            json_object_set_new(codes, tk_client_code_text(code), count(r->codes[code]));
    json_object_set_new(o, "codes", codes);
    json_object_set_new(o, "first_failure",
                        r->failure[0] ? tk__json_text(r->failure) : json_null());
    json_object_set_new(o, "latency_ms", latency);
    json_object_set_new(o, "start_lag_ms", r->lag.n ? latency_json(&r->lag) : json_null());
    json_object_set_new(o, "client_cpus", json_real(r->client_cpus));
    json_object_set_new(o, "server", server_json(b));
    json_object_set_new(o, "tenants", tenants_json(b));
    return o;
}

/* -- CSV -- */

static void put_real(FILE *file, double x)
{
    fputc(',', file);
    if (isfinite(x)) fprintf(file, "%.6g", x);
}

static void put_heading(FILE *file)
{
    fputs("mode,call,concurrency,rate,batch,connections,tenants,deadline_ms,seconds,requests,ok,"
          "refused,failed,unsent,requests_per_s,images_per_s,goodput_per_s,goodput_images_per_s",
          file);
    for (size_t end = 0; end < TK__GEN_ENDS; end++) {
        for (size_t q = 0; q < QUANTILES; q++)
            fprintf(file, ",%s_%s_ms", end_names[end], quantile_names[q]);
        fprintf(file, ",%s_max_ms", end_names[end]);
    }
    fputs(",client_cpus,batch_images\n", file);
}

static void put_line(FILE *file, const tk__bench *b)
{
    const tk__gen_opts *l = &b->load;
    const tk__gen_result *r = &b->result;
    fprintf(file, "%s,%s,%llu,%.6g,%llu,%zu,%zu,%u,%.3f,%llu,%llu,%llu,%llu,%llu",
            l->concurrency ? "closed" : "open", b->call, (unsigned long long)l->concurrency,
            l->concurrency ? 0 : l->rate, (unsigned long long)b->batch, l->n_clients, l->n_tenants,
            l->deadline_ms, r->seconds, (unsigned long long)r->requests,
            (unsigned long long)r->latency[TK__GEN_OK].n,
            (unsigned long long)r->latency[TK__GEN_REFUSED].n,
            (unsigned long long)r->latency[TK__GEN_FAILED].n, (unsigned long long)r->unsent);
    put_real(file, per_s(b, r->latency[TK__GEN_OK].n));
    put_real(file, per_s(b, r->images));
    put_real(file, tk__bench_goodput(b));
    put_real(file, per_s(b, r->good_images));
    for (size_t end = 0; end < TK__GEN_ENDS; end++) {
        for (size_t q = 0; q < QUANTILES; q++)
            put_real(file, ms(tk__histogram_quantile(&r->latency[end], quantiles[q])));
        put_real(file, longest_ms(&r->latency[end]));
    }
    put_real(file, r->client_cpus);
    put_real(file, images_a_pass(b));
    fputc('\n', file);
}

bool tk__bench_csv(const tk__bench *b, const char *path)
{
    FILE *file = fopen(path, "ae");
    if (!file) return false;
    const bool fresh = fseek(file, 0, SEEK_END) == 0 && ftell(file) == 0;
    if (fresh) put_heading(file);
    put_line(file, b);
    const bool fine = !ferror(file);
    return fclose(file) == 0 && fine;
}
