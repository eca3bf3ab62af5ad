/* The real trunkd as those see it who watch over it: metrics, readiness, the access log, top. */
#include <dirent.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "inference/open_inference_grpc.pb-c.h"
#include "raw_http2.h"
#include "scrape.h"
#include "trunkd_process.h"

#define PB(name)                                                                                   \
    &trunkd__v1__##name##__descriptor /* generated names: only the preprocessor can join them */

enum { PATIENCE_MS = 60000 }; /* a busy machine is no failure */

static trunkd server;
static int http;
static fixture_bytes images[3];

static int setup(void **state)
{
    (void)state;
    for (size_t i = 0; i < 3; i++)
        images[i] = fixture_png(40, 30, i + 1);
    trunkd_prepare(&server, 2);
    trunkd_start(&server, (const char *const[]){"--http", "127.0.0.1:0", "--access-log", "yes",
                                                "--trainer", "/bin/false", NULL});
    http = trunkd_http_port(&server);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    const int status = server.pid ? trunkd_end(&server, SIGTERM) : 0;
    trunkd_remove(&server);
    for (size_t i = 0; i < 3; i++)
        free(images[i].data);
    return status;
}

/* What /metrics says, checked; free(). */
static char *scrape(void)
{
    int status;
    char *got = scrape_get(http, "/metrics", &status);
    assert_int_equal(status, 200);
    char *text = strdup(scrape_body(got));
    assert_non_null(text);
    free(got);
    scrape_check(text);
    return text;
}

/* Waits until the sample has the value: what a call leaves behind is counted when it is freed, a
 * moment after its answer. */
static void expect_sample(const char *sample, double value)
{
    double is = -1;
    for (int ms = 0; ms < PATIENCE_MS; ms += 10) {
        char *text = scrape();
        is = scrape_value(text, sample);
        free(text);
        if (is >= value && is <= value) return;
        nanosleep(&(struct timespec){0, 10000000}, NULL);
    }
    fail_msg("%s is %g, not %g", sample, is, value);
}

static void expect_classify(tk_client *client, const fixture_bytes *bytes, size_t n,
                            const char *head, int code)
{
    const answer a = classify(client, bytes, n, head, 1);
    tk_client_free_message(a.message);
    if (a.status.code != code) fail_msg("%d: %s", a.status.code, a.status.text);
}

static void calls_show_in_the_metrics(void **state)
{
    (void)state;
    char rubbish[] = "this is no image";
    const fixture_bytes bad = {(uint8_t *)rubbish, sizeof rubbish};
    for (int i = 0; i < 4; i++)
        expect_classify(server.alice, images, 3, "type", TK_CLIENT_OK);
    expect_classify(server.alice, images, 1, NULL, TK_CLIENT_OK);
    expect_classify(server.bob, images, 2, "colour", TK_CLIENT_OK);
    expect_classify(server.bob, &bad, 1, "colour", TK_CLIENT_INVALID_ARGUMENT);
    expect_classify(server.bob, images, 1, "nothing", TK_CLIENT_NOT_FOUND);
    expect_classify(server.nobody, images, 1, "type", TK_CLIENT_UNAUTHENTICATED);
    expect_classify(server.admin, images, 1, "type", TK_CLIENT_PERMISSION_DENIED);
    const answer none = ask(server.alice, "/no.such/Method",
                            &(Trunkd__V1__Empty)TRUNKD__V1__EMPTY__INIT, PB(empty));
    assert_int_equal(none.status.code, TK_CLIENT_UNIMPLEMENTED);
#define REQUESTS "trunkd_requests_total{tenant="
#define CLASSIFY "trunkd_rpc_calls_total{method=\"trunkd.v1.Classifier/Classify\",code="
    expect_sample(CLASSIFY "\"OK\"}", 6);
    expect_sample(CLASSIFY "\"INVALID_ARGUMENT\"}", 1);
    expect_sample(CLASSIFY "\"NOT_FOUND\"}", 1);
    expect_sample(CLASSIFY "\"UNAUTHENTICATED\"}", 1);
    expect_sample(CLASSIFY "\"PERMISSION_DENIED\"}", 1);
    expect_sample("trunkd_rpc_calls_total{method=\"unknown\",code=\"UNIMPLEMENTED\"}", 1);
    expect_sample(REQUESTS "\"alice\",head=\"type\",code=\"OK\"}", 5);
    expect_sample(REQUESTS "\"bob\",head=\"colour\",code=\"OK\"}", 1);
    expect_sample(REQUESTS "\"bob\",head=\"colour\",code=\"INVALID_ARGUMENT\"}", 1);
    expect_sample(REQUESTS "\"bob\",head=\"\",code=\"NOT_FOUND\"}", 1);
    expect_sample("trunkd_images_total{tenant=\"alice\",head=\"type\"}", 13);
    expect_sample("trunkd_images_total{tenant=\"bob\",head=\"colour\"}", 2);
    expect_sample("trunkd_stage_seconds_count{stage=\"decode\"}", 16); /* the bad one, too */
    expect_sample("trunkd_stage_seconds_count{stage=\"queue\"}", 15);
    expect_sample("trunkd_stage_seconds_count{stage=\"total\"}", 6);
    expect_sample("trunkd_batch_images_sum", 15);
    expect_sample("trunkd_rpc_in_flight", 0);
    expect_sample("trunkd_queue_images", 0);
    expect_sample("trunkd_version", 2);
    char *text = scrape();
    const double passes = scrape_value(text, "trunkd_batch_images_count");
    assert_true(passes >= 6 && passes <= 15);
    static const char *const stages[] = {"trunk", "head"};
    for (size_t i = 0; i < 2; i++) {
        char sample[80];
        snprintf(sample, sizeof sample, "trunkd_stage_seconds_count{stage=\"%s\"}", stages[i]);
        assert_float_equal(scrape_value(text, sample), passes, 0);
        snprintf(sample, sizeof sample, "trunkd_stage_seconds_sum{stage=\"%s\"}", stages[i]);
        assert_true(scrape_value(text, sample) > 0);
    }
    /* A request takes at least as long as its part of the pass. */
    assert_true(scrape_value(text, "trunkd_stage_seconds_sum{stage=\"total\"}") >=
                scrape_value(text, "trunkd_stage_seconds_sum{stage=\"decode\"}") / 3);
    free(text);
}

static void versions_and_jobs_show_in_the_metrics(void **state)
{
    (void)state;
    (void)trunkd_roll_back(&server, 1);
    expect_sample("trunkd_version", 3);
    expect_sample("trunkd_versions_committed_total", 1);
    expect_sample("trunkd_versions_rolled_back_total", 1);

    static const char *const labels[] = {"x", "y", "x"};
    uint64_t data = 0;
    upload(server.bob, "few", images, labels, 3, &data);
    assert_true(data > 0);
    char head[] = "use";
    Trunkd__V1__SubmitJobRequest in;
    trunkd__v1__submit_job_request__init(&in);
    in.head = head;
    in.data_set = data;
    answer a = ask(server.bob, "/trunkd.v1.Jobs/Submit", &in,
                   PB(job)); /* its trainer fails, again and again */
    if (!a.message) fail_msg("%s", a.status.text);
    Trunkd__V1__CancelJobRequest cancel;
    trunkd__v1__cancel_job_request__init(&cancel);
    cancel.id = ((const Trunkd__V1__Job *)a.message)->id;
    tk_client_free_message(a.message);
    expect_sample("trunkd_jobs_running", 1);
    expect_sample("trunkd_jobs_queued", 0);
    a = ask(server.bob, "/trunkd.v1.Jobs/Cancel", &cancel, PB(job));
    if (!a.message) fail_msg("%s", a.status.text);
    tk_client_free_message(a.message);
    expect_sample("trunkd_jobs_ended_total{outcome=\"cancelled\"}", 1);
    expect_sample("trunkd_jobs_running", 0);
}

static void status_has_the_figures_of_top(void **state)
{
    (void)state;
    const answer a = ask(server.admin, "/trunkd.v1.Admin/GetStatus",
                         &(Trunkd__V1__Empty)TRUNKD__V1__EMPTY__INIT, PB(get_status_response));
    if (!a.message) fail_msg("%s", a.status.text);
    const Trunkd__V1__GetStatusResponse *s = (const Trunkd__V1__GetStatusResponse *)a.message;
    assert_int_equal(s->n_stages, 5);
    assert_string_equal(s->stages[0]->stage, "decode");
    assert_string_equal(s->stages[4]->stage, "total");
    uint64_t total = 0;
    for (size_t i = 0; i < s->stages[0]->n_counts; i++)
        total += s->stages[0]->counts[i];
    assert_int_equal(total, 16); /* an upload's images are not among them */
    tk_client_free_message(a.message);
}

static char *run_top(const char *options)
{
    char program[4096], command[6000];
    const ssize_t n = readlink("/proc/self/exe", program, sizeof program - 16);
    assert_true(n > 0);
    program[n] = '\0';
    strcpy(strrchr(program, '/') + 1, "trunkctl");
    snprintf(command, sizeof command,
             "%s top --server 127.0.0.1:%d --token-file %s/store/admin.token %s", program,
             server.port, server.dir, options);
    FILE *f = popen(command, "r");
    char *text = calloc(1, 65536);
    assert_true(f && text);
    const size_t got = fread(text, 1, 65535, f);
    if (pclose(f) != 0 || got == 0) fail_msg("%s: %s", command, text);
    return text;
}

static void top_shows_one_view_and_ends(void **state)
{
    (void)state;
    char *text = run_top("--once --interval 0.3");
    static const char *const words[] = {"requests ", "images ", "version 3",
                                        "P99 MS",    "decode",  "total"};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (!strstr(text, words[i])) fail_msg("no \"%s\" in: %s", words[i], text);
    assert_null(strchr(text, '\033')); /* no terminal */
    free(text);
    text = run_top("--once --json -i 0.2");
    json_t *o = json_loads(text, 0, NULL);
    if (!o) fail_msg("no JSON: %s", text);
    assert_true(json_is_real(json_object_get(o, "requests_per_s")));
    assert_int_equal(json_integer_value(json_object_get(o, "version")), 3);
    assert_non_null(
        json_object_get(json_object_get(json_object_get(o, "stages"), "total"), "p99_ms"));
    json_decref(o);
    free(text);
}

/* -- traces, with HTTP/2 by hand -- */

/* Calls Heads/List with a token that is none and these traces (up to the first NULL). */
static void call_with_traces(const char *first, const char *second)
{
    raw_bytes out = {.len = 0}, headers = {.len = 0};
    raw_put_call(&headers, "/trunkd.v1.Heads/List", "tk_a-secret-that-is-none");
    raw_put_header(&headers, "traceparent", first);
    if (second) raw_put_header(&headers, "traceparent", second);
    raw_put_hello(&out);
    raw_put_frame(&out, RAW_HEADERS, RAW_END_HEADERS, 1, &headers);
    const int fd = scrape_dial(server.port);
    raw_send(fd, &out);
    assert_true(raw_read_status(fd, TK_CLIENT_UNAUTHENTICATED));
    close(fd);
}

static char *read_log(void)
{
    FILE *f = fopen(server.log, "r");
    char *text = calloc(1, 1 << 20);
    assert_true(f && text);
    (void)fread(text, 1, (1 << 20) - 1, f);
    fclose(f);
    return text;
}

static bool logged(const char *text)
{
    for (int ms = 0; ms < PATIENCE_MS; ms += 10) {
        if (trunkd_logged(&server, text)) return true;
        nanosleep(&(struct timespec){0, 10000000}, NULL);
    }
    return false;
}

#define TRACE(id) "00-" id "-00f067aa0ba902b7-01"

static void a_well_formed_trace_is_logged_and_no_other(void **state)
{
    (void)state;
    call_with_traces(TRACE("11111111111111111111111111111111") "x", NULL);
    call_with_traces(TRACE("2222222222222222222222222222222\n"), NULL);
    call_with_traces(TRACE("33333333333333333333333333333333"),
                     TRACE("44444444444444444444444444444444"));
    call_with_traces(TRACE("5555555555555555555555555555555f"), NULL);
    assert_true(logged("method=trunkd.v1.Heads/List tenant=(none) code=UNAUTHENTICATED"));
    assert_true(logged("trace=5555555555555555555555555555555f"));
    char *text = read_log();
    assert_null(strstr(text, "11111111"));
    assert_null(strstr(text, "22222222"));
    assert_null(strstr(text, "33333333"));
    assert_null(strstr(text, "44444444"));
    free(text);
}

static void the_log_tells_of_calls_and_never_a_token(void **state)
{
    (void)state;
    assert_true(logged("event=call method=trunkd.v1.Classifier/Classify tenant=alice code=OK us="));
    assert_true(logged("images=3 version=2"));
    assert_true(logged("method=trunkd.v1.Classifier/Classify tenant=bob code=NOT_FOUND"));
    assert_true(
        logged("method=trunkd.v1.Classifier/Classify tenant=(admin) code=PERMISSION_DENIED"));
    assert_true(logged("method=(unknown) "));
    assert_true(logged("method=trunkd.v1.DataSets/Upload tenant=bob code=OK"));
    char name[] = "carol";
    Trunkd__V1__CreateTenantRequest in;
    trunkd__v1__create_tenant_request__init(&in);
    in.name = name;
    const answer a =
        ask(server.admin, "/trunkd.v1.Admin/CreateTenant", &in, PB(create_tenant_response));
    if (!a.message) fail_msg("%s", a.status.text);
    const char *fresh = ((const Trunkd__V1__CreateTenantResponse *)a.message)->token;
    assert_true(logged("method=trunkd.v1.Admin/CreateTenant tenant=(admin) code=OK"));
    char *log = read_log(), *metrics = scrape();
    const char *const secrets[] = {server.admin_token,      server.alice_token,
                                   server.bob_token,        fresh,
                                   "a-secret-that-is-none", "Bearer"};
    for (size_t i = 0; i < sizeof secrets / sizeof secrets[0]; i++) {
        assert_null(strstr(log, secrets[i]));
        assert_null(strstr(metrics, secrets[i]));
    }
    free(log);
    free(metrics);
    tk_client_free_message(a.message);
}

/* Three messages with images among them; the call's line comes when it has ended. */
static void stream_images(const char *path, const ProtobufCMessage *const *messages, size_t n,
                          const ProtobufCMessageDescriptor *type)
{
    tk_client_call *call = tk_client_start(server.alice, path, type, 60000);
    assert_non_null(call);
    for (size_t i = 0; i < n; i++)
        assert_true(tk_client_send(call, messages[i]));
    tk_client_send_end(call);
    for (size_t i = 0; i < n; i++) {
        ProtobufCMessage *message = tk_client_receive(call);
        assert_non_null(message);
        tk_client_free_message(message);
    }
    tk_client_status status;
    assert_null(tk_client_receive(call));
    assert_int_equal(tk_client_finish(call, &status), TK_CLIENT_OK);
}

static double total_count(void)
{
    char *text = scrape();
    const double n = scrape_value(text, "trunkd_stage_seconds_count{stage=\"total\"}");
    free(text);
    return n;
}

/* One line, with the images of all its messages; each message is a request of its own elsewhere. */
static void streams_are_logged_with_their_images(void **state)
{
    (void)state;
    ProtobufCBinaryData data[3];
    for (size_t i = 0; i < 3; i++)
        data[i] = (ProtobufCBinaryData){images[i].size, images[i].data};
    Trunkd__V1__ClassifyStreamRequest frame;
    trunkd__v1__classify_stream_request__init(&frame);
    frame.n_images = 3;
    frame.images = data;
    const double before = total_count();
    stream_images("/trunkd.v1.Classifier/ClassifyStream",
                  (const ProtobufCMessage *const[]){&frame.base, &frame.base, &frame.base}, 3,
                  PB(classify_stream_response));
    assert_true(logged("method=trunkd.v1.Classifier/ClassifyStream tenant=alice code=OK"));
    assert_true(logged("images=9 version=3"));
    expect_sample("trunkd_stage_seconds_count{stage=\"total\"}", before + 3);

    char model[] = "type", name[] = "image", datatype[] = "BYTES";
    int64_t shape[] = {2};
    Inference__InferTensorContents contents = INFERENCE__INFER_TENSOR_CONTENTS__INIT;
    contents.n_bytes_contents = 2;
    contents.bytes_contents = data;
    Inference__ModelInferRequest__InferInputTensor
        input = INFERENCE__MODEL_INFER_REQUEST__INFER_INPUT_TENSOR__INIT,
        *inputs[] = {&input};
    input.name = name;
    input.datatype = datatype;
    input.n_shape = 1;
    input.shape = shape;
    input.contents = &contents;
    Inference__ModelInferRequest infer = INFERENCE__MODEL_INFER_REQUEST__INIT;
    infer.model_name = model;
    infer.n_inputs = 1;
    infer.inputs = inputs;
    stream_images("/inference.GRPCInferenceService/ModelStreamInfer",
                  (const ProtobufCMessage *const[]){&infer.base, &infer.base}, 2,
                  &inference__model_stream_infer_response__descriptor);
    assert_true(
        logged("method=inference.GRPCInferenceService/ModelStreamInfer tenant=alice code=OK"));
    assert_true(logged("images=4 version=3"));
    expect_sample("trunkd_stage_seconds_count{stage=\"total\"}", before + 5);
}

static void a_tenant_that_leaves_is_in_no_metric(void **state)
{
    (void)state;
    char name[] = "alice";
    Trunkd__V1__DeleteTenantRequest in;
    trunkd__v1__delete_tenant_request__init(&in);
    in.name = name;
    char *text = scrape();
    assert_non_null(strstr(text, "alice"));
    free(text);
    const answer a = ask(server.admin, "/trunkd.v1.Admin/DeleteTenant", &in, PB(empty));
    if (!a.message) fail_msg("%s", a.status.text);
    tk_client_free_message(a.message);
    text = scrape();
    assert_null(strstr(text, "alice"));
    free(text);
}

/* -- the port beside the calls -- */

static void slow_watchers_hold_no_call_up(void **state)
{
    (void)state;
    enum { SLOW = 60 };
    int fds[SLOW];
    for (int i = 0; i < SLOW; i++) {
        fds[i] = scrape_dial(http);
        (void)send(fds[i], "GET /metr", 9, MSG_NOSIGNAL);
    }
    for (int i = 0; i < 10; i++)
        expect_classify(server.bob, images, 1, "colour", TK_CLIENT_OK);
    int status;
    char *got = scrape_get(http, "/readyz", &status);
    assert_int_equal(status, 200);
    free(got);
    for (int i = 0; i < SLOW; i++)
        close(fds[i]);
}

static void draining_is_not_ready(void **state)
{
    (void)state;
    int status = 0;
    char *got = scrape_get(http, "/readyz", &status);
    assert_int_equal(status, 200);
    free(got);
    /* An upload that does not end keeps the server from stopping. */
    tk_client_call *call =
        tk_client_start(server.bob, "/trunkd.v1.DataSets/Upload", PB(upload_response), 60000);
    char name[] = "late";
    Trunkd__V1__UploadManifest manifest;
    trunkd__v1__upload_manifest__init(&manifest);
    manifest.name = name;
    Trunkd__V1__UploadRequest in;
    trunkd__v1__upload_request__init(&in);
    in.part_case = TRUNKD__V1__UPLOAD_REQUEST__PART_MANIFEST;
    in.manifest = &manifest;
    assert_true(call && tk_client_send(call, &in.base));
    expect_sample("trunkd_rpc_in_flight", 1);
    kill(server.pid, SIGTERM);
    for (int ms = 0; ms < PATIENCE_MS && status != 503; ms += 10) {
        got = scrape_get(http, "/readyz", &status);
        if (status == 503) assert_non_null(strstr(got, "draining"));
        free(got);
        nanosleep(&(struct timespec){0, 10000000}, NULL);
    }
    assert_int_equal(status, 503);
    free(scrape());
    got = scrape_get(http, "/livez", &status);
    assert_int_equal(status, 200);
    free(got);
    tk_client_cancel(call);
    tk_client_status ended;
    tk_client_finish(call, &ended);
    assert_int_equal(trunkd_end(&server, SIGTERM), 0);
}

static bool has_thread(const char *name, long nice)
{
    char path[64], line[512];
    bool found = false;
    snprintf(path, sizeof path, "/proc/%d/task", (int)server.pid);
    DIR *tasks = opendir(path);
    assert_non_null(tasks);
    for (const struct dirent *e; !found && (e = readdir(tasks));) {
        snprintf(path, sizeof path, "/proc/%d/task/%.20s/stat", (int)server.pid, e->d_name);
        FILE *f = fopen(path, "r");
        if (!f) continue;
        const size_t n = fread(line, 1, sizeof line - 1, f);
        fclose(f);
        line[n] = '\0';
        char *is = strchr(line, '('), *end = strrchr(line, ')');
        if (!is || !end) continue;
        *end = '\0';
        long has = -1; /* the 19th field; the first after the name is the 3rd */
        found =
            strcmp(is + 1, name) == 0 &&
            sscanf(end + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %ld",
                   &has) == 1 &&
            has == nice;
    }
    closedir(tasks);
    return found;
}

static void expect_thread(const char *name, long nice)
{
    for (int ms = 0; ms < PATIENCE_MS; ms += 10) {
        if (has_thread(name, nice)) return;
        nanosleep(&(struct timespec){0, 10000000}, NULL);
    }
    fail_msg("there is no thread \"%s\" of nice %ld", name, nice);
}

static void threads_have_names_and_give_way_to_inference(void **state)
{
    (void)state;
    const long own = getpriority(PRIO_PROCESS, 0); /* inherited by the server */
    expect_thread("infer", own);
    static const char *const behind[] = {"decode", "answer", "rpc", "rpc worker", "versions"};
    for (size_t i = 0; i < sizeof behind / sizeof *behind; i++)
        expect_thread(behind[i], own + 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(calls_show_in_the_metrics),
        cmocka_unit_test(threads_have_names_and_give_way_to_inference),
        cmocka_unit_test(versions_and_jobs_show_in_the_metrics),
        cmocka_unit_test(status_has_the_figures_of_top),
        cmocka_unit_test(top_shows_one_view_and_ends),
        cmocka_unit_test(a_well_formed_trace_is_logged_and_no_other),
        cmocka_unit_test(the_log_tells_of_calls_and_never_a_token),
        cmocka_unit_test(streams_are_logged_with_their_images),
        cmocka_unit_test(a_tenant_that_leaves_is_in_no_metric),
        cmocka_unit_test(slow_watchers_hold_no_call_up),
        cmocka_unit_test(draining_is_not_ready),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
