/* Bidirectional streams over a loopback port: order, back-pressure, every way to end, and server
 * reflection, which is one. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "engine/mem.h"
#include "grpc/reflection/v1/reflection.pb-c.h"
#include "rpc_fixture.h"

static int setup(void **state)
{
    static rpc_fixture fixture;
    rpc_fixture_start(&fixture, NULL);
    *state = &fixture;
    return 0;
}

static int teardown(void **state)
{
    rpc_fixture_stop(*state);
    return 0;
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

#define EVENT_TYPE &trunkd__v1__job_event__descriptor

static void say(tk_client_call *call, uint64_t sequence, uint64_t size)
{
    Trunkd__V1__WatchJobRequest request;
    trunkd__v1__watch_job_request__init(&request);
    request.id = size;
    request.after = sequence;
    assert_true(tk_client_send(call, &request.base));
}

static void expect(tk_client_call *call, uint64_t sequence, uint64_t size)
{
    ProtobufCMessage *message = tk_client_receive(call);
    assert_non_null(message);
    const Trunkd__V1__JobEvent *event = (const Trunkd__V1__JobEvent *)message;
    assert_int_equal(event->sequence, sequence);
    assert_int_equal(strlen(event->message), size);
    tk_client_free_message(message);
}

static void pause_ms(long ms)
{
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
}

/* -- order and back-pressure -- */

static void every_message_is_answered_in_order_from_any_thread(void **state)
{
    rpc_fixture *f = *state;
    tk_client *client = rpc_fixture_tenant(f);
    static const char *const paths[] = {CHAT, CHAT_WORK, CHAT_LATER};
    for (size_t p = 0; p < 3; p++) {
        tk_client_call *call = tk_client_start(client, paths[p], EVENT_TYPE, 30000);
        for (uint64_t i = 0; i < 10; i++) { /* one by one */
            say(call, i, 3);
            expect(call, i, 3);
        }
        for (uint64_t i = 0; i < 40; i++) /* all at once */
            say(call, i, i);
        tk_client_send_end(call);
        for (uint64_t i = 0; i < 40; i++)
            expect(call, i, i);
        assert_null(tk_client_receive(call));
        tk_client_status status;
        assert_int_equal(tk_client_finish(call, &status), TK_CLIENT_OK);
    }
    tk_client_close(client);
}

static void a_client_that_does_not_read_is_held_back(void **state)
{
    enum { MESSAGES = 200, SIZE = 1 << 20 };
    rpc_fixture *f = *state;
    tk_client *client = rpc_fixture_tenant(f);
    tk_client_call *call = tk_client_start(client, CHAT, EVENT_TYPE, 120000);
    for (uint64_t i = 0; i < MESSAGES; i++)
        say(call, i, SIZE);
    tk_client_send_end(call);
    assert_true(rpc_fixture_wait(f, EV_QUEUED, 8));
    unsigned long before, now = rpc_fixture_seen(f, EV_QUEUED);
    do { /* until nothing moves */
        before = now;
        pause_ms(200);
        now = rpc_fixture_seen(f, EV_QUEUED);
    } while (now != before);
    assert_in_range(now, 8, MESSAGES / 2);
    for (uint64_t i = 0; i < MESSAGES; i++)
        expect(call, i, SIZE);
    assert_null(tk_client_receive(call));
    tk_client_status status;
    assert_int_equal(tk_client_finish(call, &status), TK_CLIENT_OK);
    assert_int_equal(rpc_fixture_seen(f, EV_FULL), 0);
    tk_client_close(client);
}

/* -- ends -- */

static void a_stream_without_messages_ends_well(void **state)
{
    rpc_fixture *f = *state;
    tk_client *client = rpc_fixture_tenant(f);
    tk_client_call *call = tk_client_start(client, CHAT, EVENT_TYPE, 30000);
    tk_client_send_end(call);
    assert_null(tk_client_receive(call));
    tk_client_status status;
    assert_int_equal(tk_client_finish(call, &status), TK_CLIENT_OK);
    tk_client_close(client);
}

static void garbage_after_good_messages_ends_the_stream(void **state)
{
    rpc_fixture *f = *state;
    tk_client *client = rpc_fixture_tenant(f);
    tk_client_call *call = tk_client_start(client, CHAT, EVENT_TYPE, 30000);
    say(call, 5, 1);
    expect(call, 5, 1);
    assert_true(tk_client_send_bytes(call, "\xff\xff", 2));
    assert_null(tk_client_receive(call));
    tk_client_status status;
    assert_int_equal(tk_client_finish(call, &status), TK_CLIENT_INVALID_ARGUMENT);
    assert_non_null(strstr(status.text, "message 2: not a valid trunkd.v1.WatchJobRequest"));
    assert_true(rpc_fixture_wait(f, EV_CANCELLED, 1));
    tk_client_close(client);
}

/* One of the two counts, whole; the other leaves no trace. */
static void two_threads_that_end_a_stream_at_once_end_it_once(void **state)
{
    enum { STREAMS = 300, AT_ONCE = 10 };
    rpc_fixture *f = *state;
    tk_client *client = rpc_fixture_tenant(f);
    for (int i = 0; i < STREAMS; i += AT_ONCE) {
        tk_client_call *calls[AT_ONCE];
        for (int k = 0; k < AT_ONCE; k++) {
            calls[k] = tk_client_start(client, CHAT_ENDS, EVENT_TYPE, 30000);
            say(calls[k], 0, 0);
        }
        for (int k = 0; k < AT_ONCE; k++) {
            expect(calls[k], 0, 0);
            assert_null(tk_client_receive(calls[k]));
            tk_client_status status;
            tk_client_finish(calls[k], &status);
            if (status.code == TK_CLIENT_UNAVAILABLE)
                assert_string_equal(status.text, "ended the other way");
            else
                assert_int_equal(status.code, TK_CLIENT_OK);
        }
    }
    assert_true(rpc_fixture_wait(f, EV_FREED, STREAMS));
    assert_int_equal(rpc_fixture_seen(f, EV_ENDED), STREAMS);
    assert_int_equal(rpc_fixture_seen(f, EV_QUEUED), STREAMS);
    assert_int_equal(rpc_fixture_seen(f, EV_CANCELLED), 0);
    tk_client_close(client);
}

static void a_token_is_asked_for_before_the_first_message(void **state)
{
    rpc_fixture *f = *state;
    tk_client *nobody = tk_client_open(f->address, NULL);
    tk_client_call *call = tk_client_start(nobody, CHAT, EVENT_TYPE, 30000);
    assert_null(tk_client_receive(call));
    tk_client_status status;
    assert_int_equal(tk_client_finish(call, &status), TK_CLIENT_UNAUTHENTICATED);
    assert_int_equal(rpc_fixture_seen(f, EV_BEGUN), 0);
    tk_client_close(nobody);
}

static void cancel_while_waiting_and_while_being_answered(void **state)
{
    rpc_fixture *f = *state;
    tk_client *client = rpc_fixture_tenant(f);
    tk_client_status status;
    tk_client_call *idle = tk_client_start(client, CHAT, EVENT_TYPE, 30000);
    say(idle, 1, 1);
    expect(idle, 1, 1);
    tk_client_cancel(idle);
    assert_int_equal(tk_client_finish(idle, &status), TK_CLIENT_CANCELLED);
    assert_true(rpc_fixture_wait(f, EV_CANCELLED, 1));
    rpc_fixture_gate(f, false);
    tk_client_call *busy = tk_client_start(client, CHAT_PARK, EVENT_TYPE, 30000);
    say(busy, 1, 1);
    assert_true(rpc_fixture_wait(f, EV_PARKED, 1));
    tk_client_cancel(busy);
    assert_int_equal(tk_client_finish(busy, &status), TK_CLIENT_CANCELLED);
    assert_true(rpc_fixture_wait(f, EV_CANCELLED, 2));
    rpc_fixture_gate(f, true);
    assert_true(rpc_fixture_wait(f, EV_FREED, 2));
    tk_client_close(client);
}

static void *stop(void *arg)
{
    rpc_fixture *f = arg;
    tk_rpc_server_stop(f->server, 60000);
    return NULL;
}

static void a_stop_ends_waiting_streams_and_lets_answers_out(void **state)
{
    rpc_fixture *f = *state;
    tk_client *client = rpc_fixture_tenant(f);
    rpc_fixture_gate(f, false);
    tk_client_call *fresh = tk_client_start(client, CHAT, EVENT_TYPE, 0);
    tk_client_call *idle = tk_client_start(client, CHAT, EVENT_TYPE, 0);
    tk_client_call *busy = tk_client_start(client, CHAT_PARK, EVENT_TYPE, 0);
    say(idle, 1, 1);
    expect(idle, 1, 1);
    say(busy, 2, 2);
    assert_true(rpc_fixture_wait(f, EV_PARKED, 1));
    pthread_t stopper;
    assert_int_equal(pthread_create(&stopper, NULL, stop, f), 0);
    tk_client_status status;
    assert_null(tk_client_receive(idle));
    assert_int_equal(tk_client_finish(idle, &status), TK_CLIENT_UNAVAILABLE);
    assert_non_null(strstr(status.text, "shutting down"));
    assert_null(tk_client_receive(fresh));
    assert_int_equal(tk_client_finish(fresh, &status), TK_CLIENT_UNAVAILABLE);
    rpc_fixture_gate(f, true);
    expect(busy, 2, 2);
    assert_null(tk_client_receive(busy));
    assert_int_equal(tk_client_finish(busy, &status), TK_CLIENT_UNAVAILABLE);
    pthread_join(stopper, NULL);
    f->server = NULL;
    tk_client_close(client);
}

/* -- reflection -- */

#define V1      "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
#define V1ALPHA "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"

typedef Grpc__Reflection__V1__ServerReflectionRequest request;
typedef Grpc__Reflection__V1__ServerReflectionResponse response;

#define ASKED(name)    GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_##name
#define ANSWERED(name) GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_##name

static tk_client_call *reflect(tk_client *client, const char *path)
{
    return tk_client_start(client, path,
                           &grpc__reflection__v1__server_reflection_response__descriptor, 30000);
}

/* The answer, for tk_client_free_message; the question comes back in it. */
static response *look_up(tk_client_call *call, int what, const char *name)
{
    char copy[300];
    snprintf(copy, sizeof copy, "%s", name);
    request in = GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__INIT;
    Grpc__Reflection__V1__ExtensionRequest extension =
        GRPC__REFLECTION__V1__EXTENSION_REQUEST__INIT;
    char host[] = "here";
    in.host = host;
    in.message_request_case = what;
    in.file_by_filename = copy; /* the same place for every string */
    if (what == ASKED(FILE_CONTAINING_EXTENSION)) {
        extension.containing_type = copy;
        in.file_containing_extension = &extension;
    }
    assert_true(tk_client_send(call, &in.base));
    response *out = (response *)tk_client_receive(call);
    assert_non_null(out);
    assert_string_equal(out->valid_host, "here");
    assert_int_equal(out->original_request->message_request_case, what);
    return out;
}

static void expect_error(tk_client_call *call, int what, const char *name, int code,
                         const char *words)
{
    response *out = look_up(call, what, name);
    assert_int_equal(out->message_response_case, ANSWERED(ERROR_RESPONSE));
    assert_int_equal(out->error_response->error_code, code);
    assert_non_null(strstr(out->error_response->error_message, words));
    tk_client_free_message(&out->base);
}

/* The files come as whole descriptors, which begin with field 1, the name. */
static void expect_files(tk_client_call *call, int what, const char *name, const char *const *files)
{
    response *out = look_up(call, what, name);
    assert_int_equal(out->message_response_case, ANSWERED(FILE_DESCRIPTOR_RESPONSE));
    const Grpc__Reflection__V1__FileDescriptorResponse *got = out->file_descriptor_response;
    size_t n = 0;
    for (; files[n]; n++) {
        assert_in_range(n, 0, got->n_file_descriptor_proto - 1);
        const ProtobufCBinaryData *data = &got->file_descriptor_proto[n];
        const size_t len = strlen(files[n]);
        assert_true(data->len > 2 + len);
        assert_int_equal(data->data[0], 0x0A);
        assert_int_equal(data->data[1], len);
        assert_memory_equal(data->data + 2, files[n], len);
    }
    assert_int_equal(n, got->n_file_descriptor_proto);
    tk_client_free_message(&out->base);
}

static void reflection_lists_the_services_of_the_table(void **state)
{
    rpc_fixture *f = *state;
    tk_client *client = tk_client_open(f->address, NULL); /* no token */
    static const char *const paths[] = {V1, V1ALPHA};
    static const char *const wanted[] = {"grpc.health.v1.Health",
                                         "grpc.reflection.v1.ServerReflection",
                                         "grpc.reflection.v1alpha.ServerReflection",
                                         "test.Echo",
                                         "trunkd.v1.Admin",
                                         "trunkd.v1.Classifier",
                                         "trunkd.v1.DataSets",
                                         "trunkd.v1.Jobs"};
    for (size_t p = 0; p < 2; p++) {
        tk_client_call *call = reflect(client, paths[p]);
        response *out = look_up(call, ASKED(LIST_SERVICES), "*");
        assert_int_equal(out->message_response_case, ANSWERED(LIST_SERVICES_RESPONSE));
        assert_int_equal(out->list_services_response->n_service, sizeof wanted / sizeof *wanted);
        for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
            assert_string_equal(out->list_services_response->service[i]->name, wanted[i]);
        tk_client_free_message(&out->base);
        tk_client_send_end(call);
        assert_null(tk_client_receive(call));
        tk_client_status status;
        assert_int_equal(tk_client_finish(call, &status), TK_CLIENT_OK);
    }
    tk_client_close(client);
}

static void reflection_finds_files_and_symbols_with_what_they_import(void **state)
{
    rpc_fixture *f = *state;
    tk_client *client = tk_client_open(f->address, NULL);
    tk_client_call *call = reflect(client, V1);
    static const char *const oip[] = {"inference/open_inference_grpc.proto",
                                      "inference/model_config.proto", NULL};
    static const char *const config[] = {"inference/model_config.proto", NULL};
    static const char *const jobs[] = {"trunkd/v1/jobs.proto", "trunkd/v1/common.proto", NULL};
    static const char *const health[] = {"grpc/health/v1/health.proto", NULL};
    static const char *const alpha[] = {"grpc/reflection/v1alpha/reflection.proto", NULL};
    expect_files(call, ASKED(FILE_BY_FILENAME), oip[0], oip);
    expect_files(call, ASKED(FILE_BY_FILENAME), config[0], config);
    static const char *const in_oip[] = {
        "inference.GRPCInferenceService",                     /* a service */
        "inference.GRPCInferenceService.ModelInfer",          /* a method */
        "inference.ModelInferRequest",                        /* a message */
        "inference.ModelInferRequest.InferInputTensor",       /* one in another */
        "inference.ModelInferRequest.InferInputTensor.shape", /* a field */
        "inference.InferParameter.parameter_choice",          /* a oneof */
        "inference.ModelInferRequest.ParametersEntry",        /* of a map */
    };
    for (size_t i = 0; i < sizeof in_oip / sizeof *in_oip; i++)
        expect_files(call, ASKED(FILE_CONTAINING_SYMBOL), in_oip[i], oip);
    expect_files(call, ASKED(FILE_CONTAINING_SYMBOL), "inference.DataType", config);
    expect_files(call, ASKED(FILE_CONTAINING_SYMBOL), "inference.TYPE_BF16", config);
    expect_files(call, ASKED(FILE_CONTAINING_SYMBOL), "trunkd.v1.Jobs.Watch", jobs);
    expect_files(call, ASKED(FILE_CONTAINING_SYMBOL), "grpc.health.v1.HealthCheckResponse.SERVING",
                 health);
    expect_files(call, ASKED(FILE_CONTAINING_SYMBOL), "grpc.reflection.v1alpha.ServerReflection",
                 alpha);
    tk_client_cancel(call);
    tk_client_status status;
    assert_int_equal(tk_client_finish(call, &status), TK_CLIENT_CANCELLED);
    tk_client_close(client);
}

static void reflection_says_what_it_does_not_know_and_goes_on(void **state)
{
    rpc_fixture *f = *state;
    tk_client *client = tk_client_open(f->address, NULL);
    tk_client_call *call = reflect(client, V1ALPHA);
    expect_error(call, ASKED(FILE_BY_FILENAME), "no.proto", 5, "there is no file no.proto");
    expect_error(call, ASKED(FILE_BY_FILENAME), "", 5, "there is no file");
    static const char *const no_symbols[] = {
        "",          "inference",  "inference.DataType.TYPE_BF16",
        "test.Echo", "trunkd.v1.", ".trunkd.v1.Jobs"};
    for (size_t i = 0; i < sizeof no_symbols / sizeof *no_symbols; i++)
        expect_error(call, ASKED(FILE_CONTAINING_SYMBOL), no_symbols[i], 5, "there is no symbol");
    char large[299]; /* cut in the answer, between characters */
    large[0] = 'x';
    for (size_t i = 1; i + 2 < sizeof large; i += 2)
        memcpy(large + i, "\xc3\xa4", 2);
    large[297] = '\0';
    expect_error(call, ASKED(FILE_CONTAINING_SYMBOL), large, 5, "there is no symbol x");
    expect_error(call, ASKED(FILE_CONTAINING_EXTENSION), "x.Y", 12, "extensions");
    expect_error(call, ASKED(ALL_EXTENSION_NUMBERS_OF_TYPE), "x.Y", 12, "extensions");
    expect_error(call, ASKED(_NOT_SET), "", 12, "message_request");
    static const char *const health[] = {"grpc/health/v1/health.proto", NULL};
    expect_files(call, ASKED(FILE_CONTAINING_SYMBOL), "grpc.health.v1.Health", health);
    tk_client_send_end(call);
    assert_null(tk_client_receive(call));
    tk_client_status status;
    assert_int_equal(tk_client_finish(call, &status), TK_CLIENT_OK);
    tk_client_close(client);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(every_message_is_answered_in_order_from_any_thread),
        CASE(a_client_that_does_not_read_is_held_back),
        CASE(a_stream_without_messages_ends_well),
        CASE(garbage_after_good_messages_ends_the_stream),
        CASE(two_threads_that_end_a_stream_at_once_end_it_once),
        CASE(a_token_is_asked_for_before_the_first_message),
        CASE(cancel_while_waiting_and_while_being_answered),
        CASE(a_stop_ends_waiting_streams_and_lets_answers_out),
        CASE(reflection_lists_the_services_of_the_table),
        CASE(reflection_finds_files_and_symbols_with_what_they_import),
        CASE(reflection_says_what_it_does_not_know_and_goes_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
