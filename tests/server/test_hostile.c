/* Clients that mean harm, or were never tested, against the real trunkd: noise in every method's
 * messages, far too many images, connections and calls that are opened and left, resets without
 * end, floods of headers. After each of them honest callers are answered; at the end memory and
 * descriptors are where they were. Seeded, so that a failure comes again. */
#include <dirent.h>
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "api/api.h"
#include "inference/open_inference_grpc.pb-c.h"
#include "raw_http2.h"
#include "scrape.h"
#include "trunkd_process.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SANITIZED = 1 }; /* their own bookkeeping counts as memory */
#else
enum { SANITIZED = 0 };
#endif

#define CLASSIFY "/trunkd.v1.Classifier/Classify"
#define STREAM   "/trunkd.v1.Classifier/ClassifyStream"
#define UPLOAD   "/trunkd.v1.DataSets/Upload"
#define INFER    "/inference.GRPCInferenceService/ModelInfer"

static trunkd server;
static int http;
static fixture_bytes image;

/* -- how the server is -- */

static long resident_kib(void)
{
    char path[64], line[256];
    long kib = 0;
    snprintf(path, sizeof path, "/proc/%d/status", (int)server.pid);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f))
        if (strncmp(line, "VmRSS:", 6) == 0) kib = strtol(line + 6, NULL, 10);
    fclose(f);
    return kib;
}

static long descriptors(void)
{
    char path[64];
    long n = 0;
    snprintf(path, sizeof path, "/proc/%d/fd", (int)server.pid);
    DIR *dir = opendir(path);
    assert_non_null(dir);
    while (readdir(dir))
        n++;
    closedir(dir);
    return n;
}

static void pause_ms(long ms)
{
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
}

/* What all began with; set up by the first honest call. */
static struct level {
    long kib, fds;
} level;

/* Without a call meanwhile: it gives memory back when it has had none for five seconds. */
static void expect_level(void)
{
    enum { SLACK_KIB = 48 << 10, SLACK_FDS = 4 };
    long kib = 0, fds = 0;
    for (int ms = 0; ms < 60000; ms += 250) {
        kib = resident_kib();
        fds = descriptors();
        if ((SANITIZED || kib <= level.kib + SLACK_KIB) && fds <= level.fds + SLACK_FDS) return;
        pause_ms(250);
    }
    fail_msg("%ld KiB after %ld, %ld descriptors after %ld", kib, level.kib, fds, level.fds);
}

static double calls_in_flight(void)
{
    int status;
    char *text = scrape_get(http, "/metrics", &status);
    const double n = scrape_value(scrape_body(text), "trunkd_rpc_in_flight");
    free(text);
    return n;
}

static void expect_in_flight(double n)
{
    double is = -1;
    for (int ms = 0; ms < 60000; ms += 50) {
        is = calls_in_flight();
        if (is >= n && is <= n) return;
        pause_ms(50);
    }
    fail_msg("%g calls in flight, expected %g", is, n);
}

static void honest_call(void)
{
    const answer a = classify(server.alice, &image, 1, "type", 1);
    if (!a.message) fail_msg("%s: %s", tk_client_code_text(a.status.code), a.status.text);
    tk_client_free_message(a.message);
}

/* By a connection of its own, which is new. */
static void honest_newcomer(void)
{
    raw_bytes out = {.len = 0}, headers = {.len = 0};
    const int fd = scrape_dial(server.port);
    raw_put_hello(&out);
    raw_put_call(&headers, "/inference.GRPCInferenceService/ServerLive", NULL);
    raw_put_frame(&out, RAW_HEADERS, RAW_END_HEADERS, 1, &headers);
    const raw_bytes empty = {.data = {0}, .len = 5};
    raw_put_frame(&out, RAW_DATA, RAW_END_STREAM, 1, &empty);
    raw_send(fd, &out);
    assert_true(raw_read_status(fd, TK_CLIENT_OK));
    close(fd);
}

/* -- noise -- */

static uint64_t seed;

static uint32_t below(uint32_t n)
{
    seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(seed >> 33) % n;
}

static void put_varint(raw_bytes *to, uint64_t x)
{
    unsigned char bytes[10];
    size_t n = 0;
    for (; x > 127; x >>= 7)
        bytes[n++] = (unsigned char)(x | 128);
    bytes[n++] = (unsigned char)x;
    raw_put(to, bytes, n);
}

static uint64_t any_number(void)
{
    static const uint64_t numbers[] = {
        0, 1, 2, 3, 255, 256, 65536, 0x7fffffff, 0xffffffff, UINT64_MAX, 1ULL << 62, 10000};
    return numbers[below(sizeof numbers / sizeof *numbers)];
}

static void put_text(raw_bytes *to)
{
    static const char *const texts[] = {
        "",      "1",     "latest",   "carol",         "other/head", "BYTES",
        "FP32",  "UINT8", "image",    "logits",        "../../x",    "\xff\xfe",
        "a%n%s", "-1",    "resnet20", "probabilities", "x\ny"};
    const char *text = texts[below(sizeof texts / sizeof *texts)];
    put_varint(to, strlen(text));
    raw_put(to, text, strlen(text));
}

static void put_message(raw_bytes *to, const ProtobufCMessageDescriptor *type, int depth);

/* One field as its type has it, with any value. */
static void put_field(raw_bytes *to, const ProtobufCFieldDescriptor *field, int depth)
{
    raw_bytes inner = {.len = 0};
    switch (field->type) {
    case PROTOBUF_C_TYPE_FIXED64:
    case PROTOBUF_C_TYPE_SFIXED64:
    case PROTOBUF_C_TYPE_DOUBLE:
        put_varint(to, (uint64_t)field->id << 3 | 1);
        raw_put(to, &(uint64_t){any_number()}, 8);
        break;
    case PROTOBUF_C_TYPE_FIXED32:
    case PROTOBUF_C_TYPE_SFIXED32:
    case PROTOBUF_C_TYPE_FLOAT:
        put_varint(to, (uint64_t)field->id << 3 | 5);
        raw_put(to, &(uint32_t){(uint32_t)any_number()}, 4);
        break;
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_BYTES:
        put_varint(to, (uint64_t)field->id << 3 | 2);
        put_text(to);
        break;
    case PROTOBUF_C_TYPE_MESSAGE:
        put_varint(to, (uint64_t)field->id << 3 | 2);
        if (depth > 0) put_message(&inner, field->descriptor, depth - 1);
        put_varint(to, inner.len);
        raw_put(to, inner.data, inner.len);
        break;
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_SINT32:
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_BOOL:
    case PROTOBUF_C_TYPE_ENUM:
        put_varint(to, (uint64_t)field->id << 3);
        put_varint(to, any_number());
        break;
    }
}

static void put_message(raw_bytes *to, const ProtobufCMessageDescriptor *type, int depth)
{
    for (uint32_t n = type->n_fields ? below(5) : 0; n > 0 && to->len < 2000; n--)
        put_field(to, &type->fields[below(type->n_fields)], depth);
}

/* Half of them as they should be but for their values, half with bytes changed, cut or added. */
static void make_noise(raw_bytes *out, const ProtobufCMessageDescriptor *type)
{
    out->len = 0;
    put_message(out, type, 2);
    if (below(2) == 0) return;
    for (uint32_t n = 1 + below(4); n > 0 && out->len > 0; n--)
        out->data[below((uint32_t)out->len)] = (unsigned char)below(256);
    if (below(4) == 0) out->len = below((uint32_t)out->len + 1);
    if (below(4) == 0) raw_put(out, "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", 11);
}

static bool streams_in(const tk_rpc_method *m)
{
    return m->kind == TK_RPC_CLIENT_STREAM || m->kind == TK_RPC_BIDI_STREAM;
}

/* Nothing that a client sends is our own mistake, or harms the connection. */
static void assert_answer_is_known(const tk_rpc_method *m, const tk_client_status *status)
{
    switch (status->code) {
    case TK_CLIENT_OK:
    case TK_CLIENT_INVALID_ARGUMENT:
    case TK_CLIENT_NOT_FOUND:
    case TK_CLIENT_ALREADY_EXISTS:
    case TK_CLIENT_FAILED_PRECONDITION:
    case TK_CLIENT_RESOURCE_EXHAUSTED:
        return;
    default:
        fail_msg("%s: %s: %s", m->path, tk_client_code_text(status->code), status->text);
    }
}

static void make_noisy_call(const tk_rpc_method *m)
{
    static raw_bytes noise;
    tk_client *client = m->flags & TK_RPC_ADMIN ? server.admin : server.alice;
    tk_client_call *call = tk_client_start(client, m->path, m->out, 60000);
    tk_client_status status;
    assert_non_null(call);
    bool open = true;
    for (uint32_t n = streams_in(m) ? 1 + below(4) : 1; open && n > 0; n--) {
        make_noise(&noise, m->in);
        open = tk_client_send_bytes(call, noise.data, noise.len);
    }
    tk_client_send_end(call);
    for (ProtobufCMessage *message; (message = tk_client_receive(call));)
        tk_client_free_message(message);
    tk_client_finish(call, &status);
    assert_answer_is_known(m, &status);
}

static void noise_in_any_message_is_refused_by_its_right_code(void **state)
{
    (void)state;
    const int rounds = SANITIZED ? 15 : 60;
    size_t n;
    const tk_rpc_method *methods = tk_api_methods(&n);
    for (size_t m = 0; m < n; m++) {
        seed = m + 1;
        for (int i = 0; i < rounds; i++)
            make_noisy_call(&methods[m]);
        honest_call();
    }
}

/* -- too much of it -- */

enum { CROWD = 10000 };

static void expect_refusal(const answer a, const char *words)
{
    if (a.message) fail_msg("answered, expected \"%s\"", words);
    if (a.status.code != TK_CLIENT_INVALID_ARGUMENT || !strstr(a.status.text, words))
        fail_msg("%s: %s", tk_client_code_text(a.status.code), a.status.text);
}

static void ten_thousand_images_are_refused_with_their_number(void **state)
{
    (void)state;
    static uint8_t one[100];
    static fixture_bytes crowd[CROWD];
    static ProtobufCBinaryData data[CROWD];
    for (size_t i = 0; i < CROWD; i++) {
        crowd[i] = (fixture_bytes){one, sizeof one};
        data[i] = (ProtobufCBinaryData){sizeof one, one};
    }
    expect_refusal(classify(server.alice, crowd, CROWD, "type", 1),
                   "images has 10000 entries, the limit is 256");

    Trunkd__V1__ClassifyStreamRequest frame;
    trunkd__v1__classify_stream_request__init(&frame);
    frame.n_images = CROWD;
    frame.images = data;
    tk_client_call *call = tk_client_start(
        server.alice, STREAM, &trunkd__v1__classify_stream_response__descriptor, 60000);
    assert_true(tk_client_send(call, &frame.base));
    tk_client_send_end(call);
    Trunkd__V1__ClassifyStreamResponse *out =
        (Trunkd__V1__ClassifyStreamResponse *)tk_client_receive(call);
    assert_non_null(out);
    assert_int_equal(out->code, TK_CLIENT_INVALID_ARGUMENT);
    assert_non_null(strstr(out->error, "images has 10000 entries, the limit is 256"));
    tk_client_free_message(&out->base);
    tk_client_status status;
    assert_int_equal(tk_client_finish(call, &status), TK_CLIENT_OK);

    char model[] = "type", name[] = "image", datatype[] = "BYTES";
    int64_t shape[] = {CROWD};
    Inference__InferTensorContents contents = INFERENCE__INFER_TENSOR_CONTENTS__INIT;
    contents.n_bytes_contents = CROWD;
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
    expect_refusal(ask(server.alice, INFER, &infer, &inference__model_infer_response__descriptor),
                   "inputs[0].shape[0] is 10000, the limits are 1 and 256");
    honest_call();
}

/* -- connections and calls that are opened and left -- */

enum { IDLE = 2500 };

static void thousands_of_idle_connections_cost_little(void **state)
{
    (void)state;
    enum { EACH_KIB = 64 };
    static int fds[IDLE];
    raw_bytes hello = {.len = 0};
    raw_put_hello(&hello);
    const long before = resident_kib();
    for (size_t i = 0; i < IDLE; i++) {
        fds[i] = scrape_dial(server.port);
        if (i % 2) raw_send(fds[i], &hello); /* the others not even that */
    }
    honest_call();
    honest_newcomer();
    const long each = (resident_kib() - before) / IDLE;
    if (!SANITIZED && each > EACH_KIB) fail_msg("%ld KiB for each connection", each);
    for (size_t i = 0; i < IDLE; i++)
        close(fds[i]);
    honest_newcomer();
}

enum { STREAMS = 100, CALLERS = 101, CALLS = 10000 }; /* of a connection; the limit */

/* Headers, and the first bytes of a message that does not come. */
static void open_half(int fd)
{
    static const char *const paths[] = {CLASSIFY, STREAM, UPLOAD, INFER};
    const raw_bytes half = {.data = {0, 0, 1}, .len = 3};
    raw_bytes out = {.len = 0};
    raw_put_hello(&out);
    for (uint32_t i = 0; i < STREAMS; i++) {
        raw_bytes headers = {.len = 0};
        raw_put_call(&headers, paths[i % 4], server.alice_token);
        raw_put_frame(&out, RAW_HEADERS, RAW_END_HEADERS, 2 * i + 1, &headers);
        raw_put_frame(&out, RAW_DATA, 0, 2 * i + 1, &half);
    }
    raw_send(fd, &out);
}

static void half_open_calls_are_held_to_their_limit(void **state)
{
    (void)state;
    int fds[CALLERS];
    for (size_t i = 0; i < CALLERS / 2; i++) {
        fds[i] = scrape_dial(server.port);
        open_half(fds[i]);
    }
    expect_in_flight(CALLERS / 2 * STREAMS);
    honest_call();
    honest_newcomer();
    for (size_t i = CALLERS / 2; i < CALLERS; i++) {
        fds[i] = scrape_dial(server.port);
        open_half(fds[i]);
    }
    expect_in_flight(CALLS);
    const answer a = classify(server.alice, &image, 1, "type", 1);
    assert_null(a.message);
    assert_int_equal(a.status.code, TK_CLIENT_RESOURCE_EXHAUSTED);
    assert_non_null(strstr(a.status.text, "too many calls at once, the server's limit is 10000"));
    assert_true(a.status.retry_ms > 0);
    for (size_t i = 0; i < CALLERS; i++)
        close(fds[i]);
    expect_in_flight(0);
    honest_call();
}

static void resets_without_end_hold_nobody_up(void **state)
{
    (void)state;
    enum { RESETS = 5000, AT_ONCE = 50 };
    const raw_bytes cancel = {.data = {0, 0, 0, 8}, .len = 4};
    raw_bytes out = {.len = 0};
    const int fd = scrape_dial(server.port);
    raw_put_hello(&out);
    for (uint32_t i = 0; i < RESETS; i++) {
        raw_bytes headers = {.len = 0};
        raw_put_call(&headers, CLASSIFY, server.alice_token);
        raw_put_frame(&out, RAW_HEADERS, RAW_END_HEADERS, 2 * i + 1, &headers);
        raw_put_frame(&out, RAW_RST_STREAM, 0, 2 * i + 1, &cancel);
        if (i % AT_ONCE < AT_ONCE - 1) continue;
        if (send(fd, out.data, out.len, MSG_NOSIGNAL) < 0) break; /* it may hang up */
        out.len = 0;
    }
    honest_call();
    honest_newcomer();
    close(fd);
    expect_in_flight(0);
}

static void floods_of_headers_are_cut_off(void **state)
{
    (void)state;
    enum { FRAMES = 1000, GROWTH_KIB = 64 << 10 }; /* 13 MB */
    char value[121];
    memset(value, 'x', sizeof value - 1);
    value[sizeof value - 1] = '\0';
    raw_bytes out = {.len = 0}, headers = {.len = 0}, more = {.len = 0};
    for (int i = 0; i < 100; i++)
        raw_put_header(&more, "x-flood", value); /* 13 KB */

    int fd = scrape_dial(server.port);
    raw_put_hello(&out);
    raw_put_call(&headers, CLASSIFY, server.alice_token);
    raw_put_frame(&out, RAW_HEADERS, 0, 1, &headers);
    raw_put_frame(&out, RAW_CONTINUATION, RAW_END_HEADERS, 1, &more);
    raw_send(fd, &out);
    assert_true(raw_read_status(fd, TK_CLIENT_RESOURCE_EXHAUSTED));
    close(fd);

    const long before = resident_kib();
    fd = scrape_dial(server.port);
    out.len = 0;
    raw_put_hello(&out);
    raw_put_frame(&out, RAW_HEADERS, 0, 1, &headers);
    raw_send(fd, &out);
    out.len = 0;
    raw_put_frame(&out, RAW_CONTINUATION, 0, 1, &more); /* and never the last */
    for (int i = 0; i < FRAMES; i++)
        if (send(fd, out.data, out.len, MSG_NOSIGNAL) < 0) break;
    honest_call();
    honest_newcomer();
    const long growth = resident_kib() - before;
    if (!SANITIZED && growth > GROWTH_KIB) fail_msg("%ld KiB for 13 MB of headers", growth);
    close(fd);
}

static void memory_and_descriptors_are_where_they_were(void **state)
{
    (void)state;
    expect_level();
    honest_call();
}

static int set_up(void **state)
{
    struct rlimit limit;
    (void)state;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return -1;
    limit.rlim_cur = limit.rlim_max; /* both ends of idle connections are on this machine */
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0) return -1;
    image = fixture_jpeg(48, 40, 1);
    trunkd_prepare(&server, 2);
    trunkd_start(&server,
                 (const char *const[]){"--http", "127.0.0.1:0", "--trainer", "/bin/false", NULL});
    http = trunkd_http_port(&server);
    for (int i = 0; i < 20; i++)
        honest_call();
    level = (struct level){resident_kib(), descriptors()};
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    const int status = trunkd_end(&server, SIGTERM);
    trunkd_remove(&server);
    free(image.data);
    return status;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(noise_in_any_message_is_refused_by_its_right_code),
        cmocka_unit_test(ten_thousand_images_are_refused_with_their_number),
        cmocka_unit_test(thousands_of_idle_connections_cost_little),
        cmocka_unit_test(half_open_calls_are_held_to_their_limit),
        cmocka_unit_test(resets_without_end_hold_nobody_up),
        cmocka_unit_test(floods_of_headers_are_cut_off),
        cmocka_unit_test(memory_and_descriptors_are_where_they_were),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
