/* The registry of metrics, and the trace ids of calls. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/mem.h"
#include "metrics.h"
#include "rpc/rpc_internal.h"
#include "scrape.h"

static int setup(void **state)
{
    tk_metrics *m;
    if (tk_metrics_create(&m) != TK_OK) return -1;
    *state = m;
    return 0;
}

static int teardown(void **state)
{
    tk_metrics_destroy(*state);
    return 0;
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

/* What is written, checked; free(). */
static char *written(tk_metrics *m)
{
    char *text = NULL;
    size_t size = 0;
    FILE *to = open_memstream(&text, &size);
    assert_non_null(to);
    tk_metrics_write(m, to);
    assert_int_equal(fclose(to), 0);
    scrape_check(text);
    return text;
}

static double value(tk_metrics *m, const char *sample)
{
    char *text = written(m);
    const double x = scrape_value(text, sample);
    free(text);
    return x;
}

static void a_time_lies_in_the_first_bucket_that_reaches_it(void **state)
{
    tk_metrics *m = *state;
    static const int64_t ns[] = {-5,      0,       99999,       100000,      100001,   250000,
                                 1000000, 1000001, 30000000000, 30000000001, INT64_MAX};
    static const size_t bucket[] = {0, 0, 0, 0, 1, 1, 3, 4, 16, 17, 17};
    for (size_t i = 0; i < sizeof ns / sizeof ns[0]; i++) {
        tk_metrics_times before, after;
        tk_metrics_read(m, TK_STAGE_QUEUE, &before);
        tk_metrics_observe(m, TK_STAGE_QUEUE, ns[i]);
        tk_metrics_read(m, TK_STAGE_QUEUE, &after);
        for (size_t b = 0; b < TK_METRICS_TIME_BUCKETS; b++)
            assert_int_equal(after.counts[b] - before.counts[b], b == bucket[i]);
    }
    assert_float_equal(value(m, "trunkd_stage_seconds_bucket{stage=\"queue\",le=\"0.0001\"}"), 4,
                       0);
    assert_float_equal(value(m, "trunkd_stage_seconds_bucket{stage=\"queue\",le=\"0.001\"}"), 7, 0);
    assert_float_equal(value(m, "trunkd_stage_seconds_bucket{stage=\"queue\",le=\"30\"}"), 9, 0);
    assert_float_equal(value(m, "trunkd_stage_seconds_count{stage=\"queue\"}"), 11, 0);
    assert_float_equal(value(m, "trunkd_stage_seconds_count{stage=\"decode\"}"), 0, 0);
}

static void times_add_up(void **state)
{
    tk_metrics *m = *state;
    tk_metrics_observe(m, TK_STAGE_DECODE, 1500000);
    tk_metrics_observe(m, TK_STAGE_DECODE, 500000);
    tk_metrics_times t;
    tk_metrics_read(m, TK_STAGE_DECODE, &t);
    assert_float_equal(t.sum, 0.002, 1e-12);
    assert_float_equal(value(m, "trunkd_stage_seconds_sum{stage=\"decode\"}"), 0.002, 1e-12);
}

static void a_pass_counts_its_images_and_both_its_stages(void **state)
{
    tk_metrics *m = *state;
    tk_metrics_pass(m, 1, 1000, 1000);
    tk_metrics_pass(m, 16, 1000, 1000);
    tk_metrics_pass(m, 17, 1000, 1000);
    tk_metrics_pass(m, 2000, 1000, 1000);
    char *text = written(m);
    assert_float_equal(scrape_value(text, "trunkd_batch_images_bucket{le=\"1\"}"), 1, 0);
    assert_float_equal(scrape_value(text, "trunkd_batch_images_bucket{le=\"16\"}"), 2, 0);
    assert_float_equal(scrape_value(text, "trunkd_batch_images_bucket{le=\"32\"}"), 3, 0);
    assert_float_equal(scrape_value(text, "trunkd_batch_images_bucket{le=\"1024\"}"), 3, 0);
    assert_float_equal(scrape_value(text, "trunkd_batch_images_bucket{le=\"+Inf\"}"), 4, 0);
    assert_float_equal(scrape_value(text, "trunkd_batch_images_sum"), 2034, 0);
    assert_float_equal(scrape_value(text, "trunkd_stage_seconds_count{stage=\"trunk\"}"), 4, 0);
    assert_float_equal(scrape_value(text, "trunkd_stage_seconds_count{stage=\"head\"}"), 4, 0);
    free(text);
}

static void requests_count_by_tenant_head_and_code(void **state)
{
    tk_metrics *m = *state;
    tk_metrics_classified(m, "alice", "type", 0, 5);
    tk_metrics_classified(m, "alice", "type", 0, 2);
    tk_metrics_classified(m, "alice", "type", 14, 100);
    tk_metrics_classified(m, "alice", "", 5, 1);
    tk_metrics_classified(m, "bob", "type", 99, 1);
    tk_metrics_classified(m, "bob", "type", -1, 1);
    char *text = written(m);
    static const char *const samples[] = {
        "trunkd_requests_total{tenant=\"alice\",head=\"type\",code=\"OK\"}",
        "trunkd_requests_total{tenant=\"alice\",head=\"type\",code=\"UNAVAILABLE\"}",
        "trunkd_requests_total{tenant=\"alice\",head=\"\",code=\"NOT_FOUND\"}",
        "trunkd_requests_total{tenant=\"bob\",head=\"type\",code=\"UNKNOWN\"}",
        "trunkd_images_total{tenant=\"alice\",head=\"type\"}",
        "trunkd_images_total{tenant=\"bob\",head=\"type\"}"};
    static const double expected[] = {2, 1, 1, 2, 7, -1};
    for (size_t i = 0; i < 6; i++)
        assert_float_equal(scrape_value(text, samples[i]), expected[i], 0);
    free(text);
}

/* Neither name may run into the other. */
static void names_that_join_alike_have_series_of_their_own(void **state)
{
    tk_metrics *m = *state;
    tk_metrics_classified(m, "ab", "c", 0, 1);
    tk_metrics_classified(m, "a", "bc", 0, 2);
    assert_float_equal(value(m, "trunkd_images_total{tenant=\"ab\",head=\"c\"}"), 1, 0);
    assert_float_equal(value(m, "trunkd_images_total{tenant=\"a\",head=\"bc\"}"), 2, 0);
}

static void label_values_are_escaped(void **state)
{
    tk_metrics *m = *state;
    tk_metrics_classified(m, "a\"b\\c\nd", "\"} 1\nforged 7", 0, 3);
    char *text = written(m);
    assert_float_equal(
        scrape_value(text,
                     "trunkd_images_total{tenant=\"a\\\"b\\\\c\\nd\",head=\"\\\"} 1\\nforged 7\"}"),
        3, 0);
    assert_null(strstr(text, "\nforged"));
    free(text);
}

static size_t lines_with(const char *text, const char *prefix)
{
    size_t n = 0;
    for (; (text = strstr(text, prefix)); text++)
        n++;
    return n;
}

static void pairs_beyond_the_bound_share_other(void **state)
{
    tk_metrics *m = *state;
    char head[80];
    for (int i = 0; i < 1000; i++) {
        snprintf(head, sizeof head, "head-%d", i);
        tk_metrics_classified(m, "alice", head, 0, 1);
    }
    for (int i = 0; i < 3; i++) /* an early one keeps its own */
        tk_metrics_classified(m, "alice", "head-0", 0, 1);
    memset(head, 'x', 70); /* longer than a name can be */
    head[70] = '\0';
    tk_metrics_classified(m, "alice", head, 0, 1);
    tk_metrics_classified(m, "other", "other", 0, 1);
    char *text = written(m);
    assert_int_equal(lines_with(text, "\ntrunkd_images_total{"), TK_METRICS_SERIES + 1);
    assert_float_equal(scrape_value(text, "trunkd_images_total{tenant=\"alice\",head=\"head-0\"}"),
                       4, 0);
    assert_float_equal(scrape_value(text, "trunkd_images_total{tenant=\"other\",head=\"other\"}"),
                       1000 - TK_METRICS_SERIES + 2, 0);
    free(text);
}

static void a_tenant_that_left_is_written_no_more(void **state)
{
    tk_metrics *m = *state;
    tk_metrics_classified(m, "alice", "type", 0, 5);
    tk_metrics_classified(m, "bob", "colour", 0, 7);
    tk_metrics_forget(m, "alice");
    char *text = written(m);
    assert_null(strstr(text, "alice"));
    assert_non_null(strstr(text, "bob"));
    free(text);
    tk_metrics_classified(m, "alice", "type", 0, 1); /* another one of that name */
    assert_float_equal(value(m, "trunkd_images_total{tenant=\"alice\",head=\"type\"}"), 1, 0);
}

static void calls_count_by_method_and_code(void **state)
{
    tk_metrics *m = *state;
    static char paths[80][16];
    for (int i = 0; i < 4; i++)
        tk_metrics_call_began(m);
    tk_metrics_call_ended(m, "/a.B/C", 0);
    tk_metrics_call_ended(m, "/a.B/D", 7);
    tk_metrics_call_ended(m, NULL, 12);
    assert_int_equal(tk_metrics_in_flight(m), 1);
    char *text = written(m);
    assert_float_equal(scrape_value(text, "trunkd_rpc_calls_total{method=\"a.B/C\",code=\"OK\"}"),
                       1, 0);
    assert_float_equal(
        scrape_value(text, "trunkd_rpc_calls_total{method=\"a.B/D\",code=\"PERMISSION_DENIED\"}"),
        1, 0);
    assert_float_equal(
        scrape_value(text, "trunkd_rpc_calls_total{method=\"unknown\",code=\"UNIMPLEMENTED\"}"), 1,
        0);
    assert_float_equal(scrape_value(text, "trunkd_rpc_in_flight"), 1, 0);
    free(text);
    for (int i = 0; i < 80; i++) {
        snprintf(paths[i], sizeof paths[i], "/m/%d", i);
        tk_metrics_call_ended(m, paths[i], 0);
    }
    assert_float_equal(value(m, "trunkd_rpc_calls_total{method=\"other\",code=\"OK\"}"),
                       80 - (TK_METRICS_METHODS - 2), 0);
}

/* -- many threads -- */

enum { THREADS = 6, ROUNDS = 20000, HEADS = 40 };

static const char *const shared_paths[3] = {"/a/a", "/b/b", "/c/c"};

static void *add_many(void *arg)
{
    tk_metrics *m = arg;
    for (int i = 0; i < ROUNDS; i++) {
        char head[16];
        snprintf(head, sizeof head, "h%d", i % HEADS);
        tk_metrics_call_began(m);
        tk_metrics_observe(m, TK_STAGE_TOTAL, 1000 * (i % 50000));
        tk_metrics_pass(m, (size_t)(i % 20) + 1, 10, 10);
        tk_metrics_classified(m, "alice", head, 0, 1);
        tk_metrics_call_ended(m, shared_paths[i % 3], i % 2);
    }
    return NULL;
}

static void concurrent_adds_sum_up_while_they_are_read(void **state)
{
    tk_metrics *m = *state;
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, add_many, m), 0);
    for (int i = 0; i < 20; i++)
        free(written(m)); /* well-formed at any moment */
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    const double all = (double)THREADS * ROUNDS;
    char *text = written(m);
    assert_float_equal(scrape_value(text, "trunkd_stage_seconds_count{stage=\"total\"}"), all, 0);
    assert_float_equal(scrape_value(text, "trunkd_batch_images_count"), all, 0);
    assert_float_equal(scrape_value(text, "trunkd_rpc_in_flight"), 0, 0);
    double images = 0, calls = 0;
    for (int i = 0; i < HEADS; i++) {
        char sample[80];
        snprintf(sample, sizeof sample, "trunkd_images_total{tenant=\"alice\",head=\"h%d\"}", i);
        images += scrape_value(text, sample);
    }
    for (int i = 0; i < 6; i++) {
        char sample[80];
        snprintf(sample, sizeof sample, "trunkd_rpc_calls_total{method=\"%s\",code=\"%s\"}",
                 shared_paths[i / 2] + 1, i % 2 ? "CANCELLED" : "OK");
        calls += scrape_value(text, sample);
    }
    assert_float_equal(images, all, 0);
    assert_float_equal(calls, all, 0);
    assert_int_equal(lines_with(text, "\ntrunkd_images_total{"), HEADS);
    free(text);
}

/* -- the rest -- */

static void say_figures(void *ctx, tk_metrics_gauges *out)
{
    out->queue_images = *(const uint64_t *)ctx;
    out->shed = 3;
}

static void the_probe_is_asked_until_it_is_taken_away(void **state)
{
    tk_metrics *m = *state;
    uint64_t queue = 17;
    tk_metrics_set_probe(m, say_figures, &queue);
    assert_float_equal(value(m, "trunkd_queue_images"), 17, 0);
    assert_float_equal(value(m, "trunkd_connections_shed_total"), 3, 0);
    tk_metrics_set_probe(m, NULL, NULL);
    assert_float_equal(value(m, "trunkd_queue_images"), 0, 0);
}

static void versions_jobs_and_the_process_are_told(void **state)
{
    tk_metrics *m = *state;
    tk_metrics_version_served(m, 7);
    tk_metrics_version_committed(m);
    tk_metrics_version_rolled_back(m);
    tk_metrics_jobs(m, 4, 1);
    tk_metrics_job_ended(m, TK_JOB_END_REJECTED);
    tk_metrics_set_isa(m, "scalar");
    char *text = written(m);
    assert_float_equal(scrape_value(text, "trunkd_version"), 7, 0);
    assert_float_equal(scrape_value(text, "trunkd_versions_committed_total"), 1, 0);
    assert_float_equal(scrape_value(text, "trunkd_versions_rolled_back_total"), 1, 0);
    assert_float_equal(scrape_value(text, "trunkd_jobs_queued"), 4, 0);
    assert_float_equal(scrape_value(text, "trunkd_jobs_running"), 1, 0);
    assert_float_equal(scrape_value(text, "trunkd_jobs_ended_total{outcome=\"rejected\"}"), 1, 0);
    assert_float_equal(scrape_value(text, "trunkd_jobs_ended_total{outcome=\"failed\"}"), 0, 0);
    assert_true(scrape_value(text, "process_resident_memory_bytes") > 1e5);
    assert_true(scrape_value(text, "process_open_fds") >= 3);
    assert_true(scrape_value(text, "process_start_time_seconds") > 1.6e9);
    assert_true(scrape_value(text, "process_cpu_seconds_total") >= 0);
    assert_non_null(
        strstr(text, "trunkd_build_info{version=\"" TRUNKD_VERSION "\",isa=\"scalar\"} 1\n"));
    free(text);
}

static void answers_count_by_version_and_old_versions_make_room(void **state)
{
    tk_metrics *m = *state;
    for (uint64_t v = 1; v <= TK_METRICS_VERSIONS; v++)
        tk_metrics_answered(m, v, 2);
    tk_metrics_answered(m, 1, 5);
    tk_metrics_answered(m, 1000, 1); /* takes the place of 2, which answered longest ago */
    char *text = written(m);
    assert_float_equal(scrape_value(text, "trunkd_version_requests_total{version=\"1\"}"), 2, 0);
    assert_float_equal(scrape_value(text, "trunkd_version_images_total{version=\"1\"}"), 7, 0);
    assert_float_equal(scrape_value(text, "trunkd_version_requests_total{version=\"2\"}"), -1, 0);
    assert_float_equal(scrape_value(text, "trunkd_version_requests_total{version=\"3\"}"), 1, 0);
    assert_float_equal(scrape_value(text, "trunkd_version_images_total{version=\"1000\"}"), 1, 0);
    free(text);
}

static void without_a_registry_adding_does_nothing(void **state)
{
    (void)state;
    tk_metrics_observe(NULL, TK_STAGE_TOTAL, 1);
    tk_metrics_pass(NULL, 1, 1, 1);
    tk_metrics_classified(NULL, "a", "b", 0, 1);
    tk_metrics_call_began(NULL);
    tk_metrics_call_ended(NULL, "/a/b", 0);
    tk_metrics_answered(NULL, 1, 1);
    tk_metrics_forget(NULL, "a");
    tk_metrics_set_probe(NULL, NULL, NULL);
    tk_metrics_destroy(NULL);
    assert_int_equal(tk_metrics_in_flight(NULL), 0);
}

static void no_memory_is_said(void **state)
{
    (void)state;
    tk_metrics *m;
    const long before = tk_test_alloc_live();
    tk_test_alloc_fail_after(0);
    assert_int_equal(tk_metrics_create(&m), TK_NOMEM);
    tk_test_alloc_fail_after(-1);
    assert_null(m);
    assert_int_equal(tk_test_alloc_live(), before);
}

static void only_a_well_formed_traceparent_is_taken(void **state)
{
    (void)state;
    static const char good[] = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    static const struct {
        size_t at;
        const char *instead;
    } wrong[] = {
        {2, "_"},                                /* not a dash */
        {35, "0"},                               /* the same */
        {52, "a"},                               /* the same */
        {0, "ff"},                               /* the version that is none */
        {0, "0g"},                               /* not hex */
        {3, "4BF"},                              /* upper case */
        {3, "00000000000000000000000000000000"}, /* no trace */
        {36, "0000000000000000"},                /* no parent */
        {40, "z"},
        {53, "0x"},
        {10, "\n"}, /* not hex */
    };
    char out[33], text[80];
    assert_true(tk__rpc_trace_parse((const uint8_t *)good, 55, out));
    assert_string_equal(out, "4bf92f3577b34da6a3ce929d0e0e4736");
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        snprintf(text, sizeof text, "%s", good);
        memcpy(text + wrong[i].at, wrong[i].instead, strlen(wrong[i].instead));
        assert_false(tk__rpc_trace_parse((const uint8_t *)text, 55, out));
        assert_string_equal(out, "");
    }
    snprintf(text, sizeof text, "%s-more", good);
    for (size_t n = 0; n < 60; n++)
        assert_int_equal(tk__rpc_trace_parse((const uint8_t *)text, n, out), n == 55);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(a_time_lies_in_the_first_bucket_that_reaches_it),
        CASE(times_add_up),
        CASE(a_pass_counts_its_images_and_both_its_stages),
        CASE(requests_count_by_tenant_head_and_code),
        CASE(names_that_join_alike_have_series_of_their_own),
        CASE(label_values_are_escaped),
        CASE(pairs_beyond_the_bound_share_other),
        CASE(a_tenant_that_left_is_written_no_more),
        CASE(calls_count_by_method_and_code),
        CASE(concurrent_adds_sum_up_while_they_are_read),
        CASE(the_probe_is_asked_until_it_is_taken_away),
        CASE(versions_jobs_and_the_process_are_told),
        CASE(answers_count_by_version_and_old_versions_make_room),
        cmocka_unit_test(without_a_registry_adding_does_nothing),
        cmocka_unit_test(no_memory_is_said),
        cmocka_unit_test(only_a_well_formed_traceparent_is_taken),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
