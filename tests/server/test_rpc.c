/* The RPC layer over a loopback port: every kind of call, and every refusal with its code and its
 * words. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/mem.h"
#include "grpc/health/v1/health.pb-c.h"
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

#define EMPTY_TYPE    &trunkd__v1__empty__descriptor
#define CLASSIFY_TYPE &trunkd__v1__classify_response__descriptor
#define UPLOAD_TYPE   &trunkd__v1__upload_response__descriptor
#define EVENT_TYPE    &trunkd__v1__job_event__descriptor
#define HEALTH_TYPE   &grpc__health__v1__health_check_response__descriptor

static void assert_contains(const char *text, const char *part)
{
    if (!strstr(text, part)) fail_msg("\"%s\" does not contain \"%s\"", text, part);
}

/* Sends raw bytes as the only message of a unary call. */
static int call_raw(tk_client *client, const char *path, const void *data, size_t len,
                    tk_client_status *status)
{
    tk_client_call *call = tk_client_start(client, path, CLASSIFY_TYPE, 30000);
    tk_client_send_bytes(call, data, len);
    tk_client_send_end(call);
    tk_client_free_message(tk_client_receive(call));
    return tk_client_finish(call, status);
}

/* -- the kinds of calls -- */

static void unary_call_round_trips_from_callback_thread_and_worker(void **state)
{
    rpc_fixture *f = *state;
    tk_client *client = rpc_fixture_tenant(f);
    static const char *const paths[] = {CLASSIFY, LATER, WORK, PARK};
    static const size_t sizes[] = {0, 1, 5000, 300000, 3000000};
    tk_client_status status;
    for (size_t p = 0; p < 4; p++)
        for (size_t i = 0; i < 5; i++)
            if (rpc_fixture_classify(client, paths[p], sizes[i], "body", 30000, &status) != 0)
                fail_msg("%s with %zu bytes: %s", paths[p], sizes[i], status.text);
    tk_client_close(client);
    assert_int_equal(rpc_fixture_seen(f, EV_CANCELLED), 0);
}

static void handler_sees_who_calls_and_until_when(void **state)
{
    tk_client *client = rpc_fixture_tenant(*state);
    Trunkd__V1__ClassifyRequest request;
    trunkd__v1__classify_request__init(&request);
    tk_client_status status;
    static const struct {
        unsigned timeout_ms;
        const char *expect;
    } cases[] = {{0, "alice"}, {60000, "alice deadline"}};
    for (size_t i = 0; i < 2; i++) {
        ProtobufCMessage *answer;
        assert_true(tk_client_unary(client, CLASSIFY, &request.base, CLASSIFY_TYPE,
                                    cases[i].timeout_ms, &answer, &status));
        const Trunkd__V1__ClassifyResponse *got = (const Trunkd__V1__ClassifyResponse *)answer;
        assert_string_equal(got->images[0]->heads[0]->head, cases[i].expect);
        tk_client_free_message(answer);
    }
    tk_client_close(client);
}

static tk_client_call *start_upload(tk_client *client, const char *path, const char *name)
{
    tk_client_call *call = tk_client_start(client, path, UPLOAD_TYPE, 30000);
    Trunkd__V1__UploadRequest request;
    trunkd__v1__upload_request__init(&request);
    Trunkd__V1__UploadManifest manifest;
    trunkd__v1__upload_manifest__init(&manifest);
    char text[64];
    snprintf(text, sizeof text, "%s", name);
    manifest.name = text;
    request.part_case = TRUNKD__V1__UPLOAD_REQUEST__PART_MANIFEST;
    request.manifest = &manifest;
    assert_true(tk_client_send(call, &request.base));
    return call;
}

static bool send_image(tk_client_call *call, size_t bytes)
{
    Trunkd__V1__UploadRequest request;
    trunkd__v1__upload_request__init(&request);
    Trunkd__V1__UploadImages images;
    trunkd__v1__upload_images__init(&images);
    Trunkd__V1__UploadImage image, *list[] = {&image};
    trunkd__v1__upload_image__init(&image);
    image.data = (ProtobufCBinaryData){.len = bytes, .data = tk_calloc(1, bytes)};
    images.n_images = 1;
    images.images = list;
    request.part_case = TRUNKD__V1__UPLOAD_REQUEST__PART_IMAGES;
    request.images = &images;
    const bool sent = tk_client_send(call, &request.base);
    tk_free(image.data.data);
    return sent;
}

static void client_stream_delivers_every_message(void **state)
{
    tk_client *client = rpc_fixture_tenant(*state);
    static const char *const paths[] = {UPLOAD, UPLOAD_FAST};
    for (size_t p = 0; p < 2; p++) {
        tk_client_call *call = start_upload(client, paths[p], "cars");
        for (size_t i = 0; i < 100; i++)
            assert_true(send_image(call, 20000));
        tk_client_send_end(call);
        Trunkd__V1__UploadResponse *answer = (Trunkd__V1__UploadResponse *)tk_client_receive(call);
        assert_non_null(answer);
        assert_int_equal(answer->data_set->images, 100);
        assert_int_equal(answer->data_set->bytes, 2000000);
        tk_client_free_message(&answer->base);
        tk_client_status status;
        assert_int_equal(tk_client_finish(call, &status), TK_CLIENT_OK);
    }
    tk_client_close(client);
}

static void client_stream_without_messages_still_ends(void **state)
{
    tk_client *client = rpc_fixture_tenant(*state);
    tk_client_call *call = tk_client_start(client, UPLOAD, UPLOAD_TYPE, 30000);
    tk_client_send_end(call);
    ProtobufCMessage *answer = tk_client_receive(call);
    assert_non_null(answer);
    tk_client_free_message(answer);
    tk_client_status status;
    assert_int_equal(tk_client_finish(call, &status), TK_CLIENT_OK);
    tk_client_close(client);
}

static void upload_refused_early_ends_while_the_client_still_sends(void **state)
{
    tk_client *client = rpc_fixture_tenant(*state);
    tk_client_call *call = start_upload(client, UPLOAD, "refuse");
    size_t sent = 0;
    while (sent < 100000 && send_image(call, 20000))
        sent++;
    assert_true(sent < 100000);
    tk_client_status status;
    assert_int_equal(tk_client_finish(call, &status), TK_CLIENT_ALREADY_EXISTS);
    assert_string_equal(status.text, "data set refuse exists");
    tk_client_close(client);
}

static void server_stream_delivers_every_message_in_order(void **state)
{
    tk_client *client = rpc_fixture_tenant(*state);
    static const char *const paths[] = {WATCH, WATCH_WORK};
    for (size_t p = 0; p < 2; p++)
        for (uint64_t n = 0; n <= 300; n += 100) {
            Trunkd__V1__WatchJobRequest request;
            trunkd__v1__watch_job_request__init(&request);
            request.after = n;
            request.id = 100;
            tk_client_call *call = tk_client_start(client, paths[p], EVENT_TYPE, 30000);
            assert_true(tk_client_send(call, &request.base));
            tk_client_send_end(call);
            uint64_t i = 0;
            for (ProtobufCMessage *m; (m = tk_client_receive(call)); i++) {
                assert_int_equal(((Trunkd__V1__JobEvent *)m)->sequence, i);
                tk_client_free_message(m);
            }
            tk_client_status status;
            assert_int_equal(tk_client_finish(call, &status), TK_CLIENT_OK);
            assert_int_equal(i, n);
        }
    tk_client_close(client);
}

/* -- refusals -- */

static void garbage_is_refused_naming_the_message(void **state)
{
    rpc_fixture *f = *state;
    tk_client *client = rpc_fixture_tenant(f);
    tk_client_status status;
    assert_int_equal(call_raw(client, CLASSIFY, "\xff\xff\xff\xff garbage", 12, &status),
                     TK_CLIENT_INVALID_ARGUMENT);
    assert_contains(status.text, "not a valid trunkd.v1.ClassifyRequest");
    assert_int_equal(call_raw(client, WORK,
                              "\x12\x05"
                              "a\xC0\x80xy",
                              7, &status),
                     TK_CLIENT_INVALID_ARGUMENT);
    assert_contains(status.text, "trunkd.v1.ClassifyRequest.heads is not valid UTF-8 at byte 1");
    assert_int_equal(rpc_fixture_seen(f, EV_BEGUN), 0);
    assert_int_equal(rpc_fixture_classify(client, CLASSIFY, 10, "a", 30000, &status), 0);
    tk_client_close(client);
}

static void garbage_inside_an_upload_cancels_it(void **state)
{
    rpc_fixture *f = *state;
    tk_client *client = rpc_fixture_tenant(f);
    tk_client_call *call = start_upload(client, UPLOAD, "cars");
    tk_client_send_bytes(call, "\x0a\xff", 2);
    tk_client_status status;
    assert_int_equal(tk_client_finish(call, &status), TK_CLIENT_INVALID_ARGUMENT);
    assert_contains(status.text, "UploadRequest");
    assert_true(rpc_fixture_wait(f, EV_FREED, 1));
    assert_int_equal(rpc_fixture_seen(f, EV_CANCELLED), 1);
    tk_client_close(client);
}

static void message_that_grows_in_memory_is_refused(void **state)
{
    tk_client *client = rpc_fixture_tenant(*state);
    enum { N = 200000 };
    char *empties = tk_calloc(N, 2); /* field 2, a string of length 0: 2 bytes become 24 */
    for (size_t i = 0; i < N; i++)
        empties[2 * i] = 0x12;
    tk_client_status status;
    assert_int_equal(call_raw(client, CLASSIFY, empties, (size_t)N * 2, &status),
                     TK_CLIENT_RESOURCE_EXHAUSTED);
    assert_contains(status.text, "decoded");
    tk_free(empties);
    tk_client_close(client);
}

static void unary_call_without_a_message_is_refused(void **state)
{
    tk_client *client = rpc_fixture_tenant(*state);
    tk_client_call *call = tk_client_start(client, CLASSIFY, CLASSIFY_TYPE, 30000);
    tk_client_send_end(call);
    tk_client_status status;
    assert_int_equal(tk_client_finish(call, &status), TK_CLIENT_INVALID_ARGUMENT);
    assert_string_equal(status.text, "the request has no message");
    tk_client_close(client);
}

static void unknown_method_is_named(void **state)
{
    tk_client *client = rpc_fixture_tenant(*state);
    tk_client_status status;
    static const char *const paths[] = {"/trunkd.v1.Classifier/Clasify", "/",
                                        "/trunkd.v1.Classifier", CLASSIFY "x"};
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(call_raw(client, paths[i], "", 0, &status), TK_CLIENT_UNIMPLEMENTED);
        assert_contains(status.text, paths[i]);
    }
    tk_client_close(client);
}

static void message_over_the_methods_limit_is_refused_with_limit_and_size(void **state)
{
    rpc_fixture *f = *state;
    tk_client *client = rpc_fixture_tenant(f);
    tk_client_status status;
    assert_int_equal(rpc_fixture_classify(client, OPEN, SMALL_LIMIT, "a", 30000, &status),
                     TK_CLIENT_RESOURCE_EXHAUSTED);
    assert_contains(status.text, "/test.Echo/Open takes messages of up to 4096 bytes");
    assert_contains(status.text, "this one has 4102");
    assert_int_equal(rpc_fixture_classify(client, WORK, LARGE_LIMIT, "a", 30000, &status),
                     TK_CLIENT_RESOURCE_EXHAUSTED);
    assert_int_equal(rpc_fixture_seen(f, EV_BEGUN), 0);
    tk_client_close(client);
}

static int call_with_token(const rpc_fixture *f, const char *path, const char *token,
                           tk_client_status *status)
{
    tk_client *client = tk_client_open(f->address, token);
    assert_non_null(client);
    /* Nothing is sent: the token is looked at before the body. */
    tk_client_call *call = tk_client_start(client, path, EMPTY_TYPE, 30000);
    assert_null(tk_client_receive(call));
    tk_client_finish(call, status);
    tk_client_close(client);
    return status->code;
}

static void token_is_checked_before_the_body_is_read(void **state)
{
    rpc_fixture *f = *state;
    tk_client_status status;
    static const char *const bad[] = {NULL, "", "alices-toke", "alices-token2", "x"};
    for (size_t i = 0; i < 5; i++) {
        assert_int_equal(call_with_token(f, CLASSIFY, bad[i], &status), TK_CLIENT_UNAUTHENTICATED);
        assert_contains(status.text, "authorization: Bearer TOKEN");
    }
    assert_int_equal(call_with_token(f, STATUS, NULL, &status), TK_CLIENT_UNAUTHENTICATED);
    assert_int_equal(call_with_token(f, UPLOAD, NULL, &status), TK_CLIENT_UNAUTHENTICATED);
    tk_client *client = tk_client_open(f->address, NULL);
    assert_int_equal(rpc_fixture_classify(client, OPEN, 5, "a", 30000, &status), TK_CLIENT_OK);
    tk_client_close(client);
}

static void wrong_role_is_refused_with_the_right_one(void **state)
{
    rpc_fixture *f = *state;
    tk_client_status status;
    assert_int_equal(call_with_token(f, STATUS, "alices-token", &status),
                     TK_CLIENT_PERMISSION_DENIED);
    assert_contains(status.text, "is for admins");
    assert_contains(status.text, "alice");
    assert_int_equal(call_with_token(f, CLASSIFY, "root-token", &status),
                     TK_CLIENT_PERMISSION_DENIED);
    assert_contains(status.text, "is for tenants");
    tk_client *admin = rpc_fixture_admin(f);
    Trunkd__V1__Empty nothing;
    trunkd__v1__empty__init(&nothing);
    ProtobufCMessage *answer;
    assert_true(tk_client_unary(admin, STATUS, &nothing.base,
                                &trunkd__v1__get_status_response__descriptor, 30000, &answer,
                                &status));
    assert_int_equal(((Trunkd__V1__GetStatusResponse *)answer)->version, 7);
    tk_client_free_message(answer);
    tk_client_close(admin);
}

/* -- the end before the end -- */

static void cancelled_upload_is_told_once_and_freed_once(void **state)
{
    rpc_fixture *f = *state;
    tk_client *client = rpc_fixture_tenant(f);
    static const char *const paths[] = {UPLOAD, UPLOAD_FAST};
    for (unsigned p = 0; p < 2; p++) {
        tk_client_call *call = start_upload(client, paths[p], "cars");
        assert_true(send_image(call, 1000));
        assert_true(rpc_fixture_wait(f, EV_MESSAGE, 2 * (p + 1)));
        tk_client_cancel(call);
        tk_client_status status;
        assert_int_equal(tk_client_finish(call, &status), TK_CLIENT_CANCELLED);
        assert_true(rpc_fixture_wait(f, EV_FREED, p + 1));
        assert_int_equal(rpc_fixture_seen(f, EV_CANCELLED), p + 1);
        assert_int_equal(rpc_fixture_seen(f, EV_FREED), p + 1);
    }
    tk_client_close(client);
}

static void deadline_ends_a_call_that_nobody_answers(void **state)
{
    rpc_fixture *f = *state;
    rpc_fixture_gate(f, false);
    tk_client *client = rpc_fixture_tenant(f);
    tk_client_status status;
    assert_int_equal(rpc_fixture_classify(client, PARK, 10, "a", 100, &status),
                     TK_CLIENT_DEADLINE_EXCEEDED);
    /* A call that expired before its headers were read never reached the method, and then owes
     * nothing. */
    if (rpc_fixture_seen(f, EV_PARKED) == 1) assert_true(rpc_fixture_wait(f, EV_CANCELLED, 1));
    tk_client_close(client);
}

/* -- what is told of calls that ended -- */

enum { ENDED_MAX = 16 };

static struct ended {
    char path[64], who[64];
    int code;
    uint64_t bytes;
    int64_t ns;
} ended[ENDED_MAX];             /* ended_lock */
static size_t n_ended, n_began; /* ended_lock */
static pthread_mutex_t ended_lock = PTHREAD_MUTEX_INITIALIZER;

static void note_began(void *ctx)
{
    (void)ctx;
    pthread_mutex_lock(&ended_lock);
    n_began++;
    pthread_mutex_unlock(&ended_lock);
}

static void note_ended(void *ctx, const tk_rpc_ended *call)
{
    (void)ctx;
    pthread_mutex_lock(&ended_lock);
    struct ended *e = &ended[n_ended++ % ENDED_MAX];
    snprintf(e->path, sizeof e->path, "%s", call->path ? call->path : "-");
    snprintf(e->who, sizeof e->who, "%s", call->who->name);
    e->code = call->code;
    e->bytes = call->bytes;
    e->ns = call->duration_ns;
    pthread_mutex_unlock(&ended_lock);
}

static const struct ended *find_ended(const char *path, int code)
{
    for (size_t i = 0; i < n_ended && i < ENDED_MAX; i++)
        if (strcmp(ended[i].path, path) == 0 && ended[i].code == code) return &ended[i];
    fail_msg("no call of %s ended with %d", path, code);
    return NULL;
}

static void each_call_is_told_once_with_how_it_ended(void **state)
{
    (void)state;
    rpc_fixture f;
    rpc_fixture_start(&f, &(tk_rpc_opts){.began = note_began, .ended = note_ended});
    tk_client *alice = rpc_fixture_tenant(&f), *nobody = tk_client_open(f.address, NULL);
    tk_client_status status;
    assert_int_equal(rpc_fixture_classify(alice, CLASSIFY, 1000, "a", 30000, &status),
                     TK_CLIENT_OK);
    assert_int_equal(rpc_fixture_classify(nobody, LATER, 10, "a", 30000, &status),
                     TK_CLIENT_UNAUTHENTICATED);
    assert_int_equal(call_raw(alice, "/no.such/Method", "", 0, &status), TK_CLIENT_UNIMPLEMENTED);
    tk_client_call *call = start_upload(alice, UPLOAD, "cars");
    assert_true(send_image(call, 1000));
    assert_true(rpc_fixture_wait(&f, EV_MESSAGE, 2));
    tk_client_cancel(call);
    assert_int_equal(tk_client_finish(call, &status), TK_CLIENT_CANCELLED);
    rpc_fixture_gate(&f, false);
    assert_int_equal(rpc_fixture_classify(alice, PARK, 10, "a", 1000, &status),
                     TK_CLIENT_DEADLINE_EXCEEDED);
    assert_true(rpc_fixture_wait(&f, EV_CANCELLED, 2)); /* the upload, and now this */
    tk_client_close(alice);
    tk_client_close(nobody);
    rpc_fixture_stop(&f); /* from here on nothing is added */
    assert_int_equal(n_ended, 5);
    assert_int_equal(n_began, 5);
    const struct ended *e = find_ended(CLASSIFY, 0);
    assert_string_equal(e->who, "alice");
    assert_true(e->bytes > 1000 && e->bytes < 1100);
    assert_true(e->ns > 0 && e->ns < INT64_C(60000000000));
    assert_string_equal(find_ended(LATER, TK_CLIENT_UNAUTHENTICATED)->who, "");
    find_ended("-", TK_CLIENT_UNIMPLEMENTED);
    assert_true(find_ended(UPLOAD, TK_CLIENT_CANCELLED)->bytes > 1000);
    find_ended(PARK, TK_CLIENT_DEADLINE_EXCEEDED);
}

/* -- health, addresses -- */

static int check_health(tk_client *client, const char *service, tk_client_status *status)
{
    Grpc__Health__V1__HealthCheckRequest request;
    grpc__health__v1__health_check_request__init(&request);
    char name[64];
    snprintf(name, sizeof name, "%s", service);
    request.service = name;
    ProtobufCMessage *answer;
    if (!tk_client_unary(client, "/grpc.health.v1.Health/Check", &request.base, HEALTH_TYPE, 30000,
                         &answer, status))
        return -1;
    const int value = (int)((Grpc__Health__V1__HealthCheckResponse *)answer)->status;
    tk_client_free_message(answer);
    return value;
}

static void health_check_knows_the_services(void **state)
{
    rpc_fixture *f = *state;
    tk_client *client = tk_client_open(f->address, NULL);
    tk_client_status status;
    assert_int_equal(check_health(client, "", &status), 2);
    tk_rpc_server_set_serving(f->server, true);
    assert_int_equal(check_health(client, "", &status), 1);
    assert_int_equal(check_health(client, "trunkd.v1.Classifier", &status), 1);
    assert_int_equal(check_health(client, "trunkd.v1.Class", &status), -1);
    assert_int_equal(status.code, TK_CLIENT_NOT_FOUND);
    tk_client_close(client);
}

static tk_client_call *watch_health(tk_client *client, const char *service)
{
    Grpc__Health__V1__HealthCheckRequest request;
    grpc__health__v1__health_check_request__init(&request);
    char name[64];
    snprintf(name, sizeof name, "%s", service);
    request.service = name;
    tk_client_call *call = tk_client_start(client, "/grpc.health.v1.Health/Watch", HEALTH_TYPE, 0);
    assert_true(tk_client_send(call, &request.base));
    tk_client_send_end(call);
    return call;
}

static void expect_health(tk_client_call *call, int value)
{
    ProtobufCMessage *answer = tk_client_receive(call);
    assert_non_null(answer);
    assert_int_equal(((Grpc__Health__V1__HealthCheckResponse *)answer)->status, value);
    tk_client_free_message(answer);
}

static void health_watch_tells_every_change_and_ends_with_the_server(void **state)
{
    rpc_fixture *f = *state;
    tk_client *client = tk_client_open(f->address, NULL);
    tk_client_call *all = watch_health(client, ""), *unknown = watch_health(client, "nobody");
    tk_client_call *gone = watch_health(client, "trunkd.v1.Jobs");
    tk_client_status status;
    expect_health(all, 2);
    expect_health(unknown, 3);
    expect_health(gone, 2);
    tk_client_cancel(gone);
    assert_int_equal(tk_client_finish(gone, &status), TK_CLIENT_CANCELLED);
    tk_rpc_server_set_serving(f->server, true);
    expect_health(all, 1);
    tk_rpc_server_stop(f->server, 20000);
    f->server = NULL;
    expect_health(all, 2);
    assert_int_equal(tk_client_finish(all, &status), TK_CLIENT_UNAVAILABLE);
    assert_int_equal(tk_client_finish(unknown, &status), TK_CLIENT_UNAVAILABLE);
    assert_contains(status.text, "shutting down");
    tk_client_close(client);
}

static void address_in_use_is_said(void **state)
{
    rpc_fixture *f = *state;
    tk_rpc_server *second;
    tk_diag diag;
    tk_rpc_opts opts = {.address = f->address};
    assert_int_equal(tk_rpc_server_start(&second, &opts, &diag), TK_IO);
    assert_null(second);
    assert_contains(diag.text, f->address);
    assert_contains(diag.text, "in use");
    opts.address = "no-such-host.invalid:1";
    assert_int_equal(tk_rpc_server_start(&second, &opts, &diag), TK_IO);
    assert_contains(diag.text, "no-such-host.invalid:1");
}

static void unix_socket_serves_and_is_not_taken_over(void **state)
{
    (void)state;
    char path[64], address[80];
    snprintf(path, sizeof path, "test_rpc_%ld.sock", (long)getpid());
    snprintf(address, sizeof address, "unix:%s", path);
    tk_rpc_server *first, *second;
    tk_diag diag;
    const tk_rpc_opts opts = {.address = address};
    assert_int_equal(tk_rpc_server_start(&first, &opts, &diag), TK_OK);
    assert_int_equal(tk_rpc_server_start(&second, &opts, &diag), TK_IO);
    assert_contains(diag.text, "in use");
    tk_client *client = tk_client_open(address, NULL);
    tk_client_status status;
    assert_int_equal(check_health(client, "", &status), 2);
    tk_client_close(client);
    tk_rpc_server_stop(first, 1000);
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(unary_call_round_trips_from_callback_thread_and_worker),
        CASE(handler_sees_who_calls_and_until_when),
        CASE(client_stream_delivers_every_message),
        CASE(client_stream_without_messages_still_ends),
        CASE(upload_refused_early_ends_while_the_client_still_sends),
        CASE(server_stream_delivers_every_message_in_order),
        CASE(garbage_is_refused_naming_the_message),
        CASE(garbage_inside_an_upload_cancels_it),
        CASE(message_that_grows_in_memory_is_refused),
        CASE(unary_call_without_a_message_is_refused),
        CASE(unknown_method_is_named),
        cmocka_unit_test(each_call_is_told_once_with_how_it_ended),
        CASE(message_over_the_methods_limit_is_refused_with_limit_and_size),
        CASE(token_is_checked_before_the_body_is_read),
        CASE(wrong_role_is_refused_with_the_right_one),
        CASE(cancelled_upload_is_told_once_and_freed_once),
        CASE(deadline_ends_a_call_that_nobody_answers),
        CASE(health_check_knows_the_services),
        CASE(health_watch_tells_every_change_and_ends_with_the_server),
        CASE(address_in_use_is_said),
        CASE(unix_socket_serves_and_is_not_taken_over),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
