/* Counting what a client sees while it keeps asking: see load.h. */
#include "load.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ctl.h"
#include "term.h"

void tk__load_begin(tk__load *load)
{
    *load = (tk__load){.started_ns = tk__now_ns()};
}

void tk__load_count(tk__load *load, bool answered, int64_t took_ns, uint64_t version,
                    uint64_t images)
{
    load->requests++;
    if (!answered) {
        load->failed++;
        return;
    }
    const uint64_t us = took_ns > 1000 ? (uint64_t)took_ns / 1000 : 1;
    const double bucket = ceil(log2((double)us) * TK__LOAD_STEPS);
    load->latency[bucket < TK__LOAD_BUCKETS ? (size_t)bucket : TK__LOAD_BUCKETS - 1]++;
    if (us > load->slowest_us) load->slowest_us = us;
    load->images += images;
    if (load->first_version == 0) load->first_version = version;
    load->changes += load->last_version != 0 && load->last_version != version;
    load->last_version = version;
}

double tk__load_quantile(const tk__load *load, double q)
{
    const uint64_t answered = load->requests - load->failed;
    uint64_t seen = 0;
    for (size_t i = 0; i < TK__LOAD_BUCKETS && answered; i++) {
        seen += load->latency[i];
        if ((double)seen >= q * (double)answered) return exp2((double)i / TK__LOAD_STEPS) * 1e-3;
    }
    return 0;
}

static double seconds(const tk__load *load)
{
    return (double)(tk__now_ns() - load->started_ns) * 1e-9;
}

json_t *tk__load_json(const tk__load *load)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:f}", "requests",
                     (json_int_t)load->requests, "failed", (json_int_t)load->failed, "images",
                     (json_int_t)load->images, "unreadable", (json_int_t)load->unreadable,
                     "first_version", (json_int_t)load->first_version, "last_version",
                     (json_int_t)load->last_version, "version_changes", (json_int_t)load->changes,
                     "p50_ms", tk__load_quantile(load, 0.5), "p99_ms",
                     tk__load_quantile(load, 0.99), "max_ms", (double)load->slowest_us * 1e-3,
                     "seconds", seconds(load));
}

void tk__load_print(const tk__load *load)
{
    printf("%llu requests, %llu failed, %llu images in %.1f s\n",
           (unsigned long long)load->requests, (unsigned long long)load->failed,
           (unsigned long long)load->images, seconds(load));
    if (load->requests == load->failed) return;
    printf("latency: half within %.1f ms, 99 %% within %.1f ms, slowest %.1f ms; versions %llu to "
           "%llu\n",
           tk__load_quantile(load, 0.5), tk__load_quantile(load, 0.99),
           (double)load->slowest_us * 1e-3, (unsigned long long)load->first_version,
           (unsigned long long)load->last_version);
}

bool tk__load_write(const tk__load *load, const char *path)
{
    char *temp = tk__format("%s.tmp", path);
    FILE *file = fopen(temp, "we");
    bool fine = file != NULL;
    if (file) {
        fprintf(file,
                "requests=%llu\nfailed=%llu\nimages=%llu\nunreadable=%llu\nfirst_version=%"
                "llu\nlast_version=%llu\n"
                "version_changes=%llu\np50_ms=%.1f\np99_ms=%.1f\nmax_ms=%.1f\nseconds=%.1f\n",
                (unsigned long long)load->requests, (unsigned long long)load->failed,
                (unsigned long long)load->images, (unsigned long long)load->unreadable,
                (unsigned long long)load->first_version, (unsigned long long)load->last_version,
                (unsigned long long)load->changes, tk__load_quantile(load, 0.5),
                tk__load_quantile(load, 0.99), (double)load->slowest_us * 1e-3, seconds(load));
        fine = fclose(file) == 0 && rename(temp, path) == 0;
    }
    free(temp);
    return fine;
}
