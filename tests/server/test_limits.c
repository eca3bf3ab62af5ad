/* A tenant's limits over the wire: the code, the sentence, when to try again, and who counts it. */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/mem.h"
#include "inference/open_inference_grpc.pb-c.h"
#include "trunkd_process.h"

enum { MANY = 256 };

static trunkd server;
static fixture_bytes image, many[MANY];

static void assert_limited(const answer *a, const char *words)
{
    assert_null(a->message);
    assert_int_equal(a->status.code, TK_CLIENT_RESOURCE_EXHAUSTED);
    if (!strstr(a->status.text, words)) fail_msg("expected \"%s\" in: %s", words, a->status.text);
    assert_true(a->status.retry_ms > 0);
}

/* 256 images at one a second: the next has its turn in minutes, however slow this machine is. */
static void a_tenant_over_its_rate_is_told_when_to_come_back(void **state)
{
    (void)state;
    trunkd_start(&server, (const char *const[]){"--tenant-rate", "1", NULL});
    answer a = classify(server.alice, many, MANY, "type", 1);
    assert_int_equal(a.status.code, TK_CLIENT_OK);
    assert_int_equal(a.status.retry_ms, 0);
    tk_client_free_message(a.message);
    a = classify(server.alice, &image, 1, "type", 1);
    assert_limited(&a, "limit is 1 images a second (--tenant-rate)");
    assert_true(a.status.retry_ms > 1000 && a.status.retry_ms <= MANY * 1000);
    a = classify(server.bob, &image, 1, NULL, 1);
    assert_int_equal(a.status.code, TK_CLIENT_OK);
    tk_client_free_message(a.message);
    Trunkd__V1__GetStatusResponse *s = trunkd_status(&server);
    assert_int_equal(s->refused, 1);
    assert_int_equal(s->failures, 0);
    assert_int_equal(s->requests, 2);
    tk_client_free_message(&s->base);
    assert_int_equal(trunkd_end(&server, SIGTERM), 0);
}

typedef struct caller {
    pthread_t thread;
    answer a;
} caller;

static void *call_main(void *arg)
{
    caller *c = arg;
    c->a = classify(server.alice, many, MANY, "type", 1);
    return NULL;
}

/* Many calls at once of a tenant whose part holds one of them: each is answered or refused with its
 * limit, nothing else, and the server's counts agree with what the callers saw. */
static void a_full_part_of_the_queue_is_a_limit_and_no_failure(void **state)
{
    (void)state;
    enum { CALLS = 12 };
    trunkd_start(&server, (const char *const[]){"--queue", "300", "--tenant-queue", "256", NULL});
    caller callers[CALLS];
    for (size_t i = 0; i < CALLS; i++)
        assert_int_equal(pthread_create(&callers[i].thread, NULL, call_main, &callers[i]), 0);
    size_t answered = 0;
    for (size_t i = 0; i < CALLS; i++) {
        pthread_join(callers[i].thread, NULL);
        if (callers[i].a.message)
            answered++;
        else
            assert_limited(&callers[i].a, "limit is 256 (--tenant-queue)");
        tk_client_free_message(callers[i].a.message);
    }
    assert_true(answered > 0);
    Trunkd__V1__GetStatusResponse *s = trunkd_status(&server);
    assert_int_equal(s->requests, answered);
    assert_int_equal(s->refused, CALLS - answered);
    assert_int_equal(s->failures, 0);
    assert_int_equal(s->queue, 0);
    tk_client_free_message(&s->base);
    assert_int_equal(trunkd_end(&server, SIGTERM), 0);
}

/* -- what an admin sets of one tenant -- */

static answer set_limits(tk_client *client, const char *tenant, double weight, double rate)
{
    char name[64];
    snprintf(name, sizeof name, "%s", tenant);
    Trunkd__V1__TenantLimits limits;
    trunkd__v1__tenant_limits__init(&limits);
    limits.weight = weight;
    limits.rate = rate;
    Trunkd__V1__SetTenantLimitsRequest in;
    trunkd__v1__set_tenant_limits_request__init(&in);
    in.tenant = name;
    in.limits = &limits;
    return ask(client, "/trunkd.v1.Admin/SetTenantLimits", &in,
               &trunkd__v1__tenant_limits__descriptor);
}

static void assert_set(const char *tenant, double weight, double rate)
{
    const answer a = set_limits(server.admin, tenant, weight, rate);
    if (!a.message) fail_msg("%s", a.status.text);
    const Trunkd__V1__TenantLimits *holds = (const Trunkd__V1__TenantLimits *)a.message;
    assert_true(holds->weight == weight && holds->rate == rate);
    tk_client_free_message(a.message);
}

static void assert_refused(const answer *a, int code, const char *words)
{
    assert_null(a->message);
    assert_int_equal(a->status.code, code);
    if (!strstr(a->status.text, words)) fail_msg("expected \"%s\" in: %s", words, a->status.text);
}

static double rate_of(const char *tenant)
{
    Trunkd__V1__Empty empty;
    trunkd__v1__empty__init(&empty);
    const answer a = ask(server.admin, "/trunkd.v1.Admin/ListTenants", &empty,
                         &trunkd__v1__list_tenants_response__descriptor);
    assert_non_null(a.message);
    const Trunkd__V1__ListTenantsResponse *list = (Trunkd__V1__ListTenantsResponse *)a.message;
    double rate = -1;
    for (size_t i = 0; i < list->n_tenants; i++)
        if (strcmp(list->tenants[i]->name, tenant) == 0) rate = list->tenants[i]->limits->rate;
    tk_client_free_message(a.message);
    return rate;
}

static int classify_many(tk_client *client, answer *a)
{
    *a = classify(client, many, MANY, NULL, 1);
    tk_client_free_message(a->message);
    return a->status.code;
}

static void what_an_admin_sets_holds_at_once_and_after_a_restart(void **state)
{
    (void)state;
    trunkd_start(&server, NULL);
    answer a;
    assert_int_equal(classify_many(server.alice, &a), TK_CLIENT_OK);
    assert_set("alice", 2, 1);
    assert_int_equal(classify_many(server.alice, &a), TK_CLIENT_OK); /* the one second's */
    a = classify(server.alice, &image, 1, NULL, 1);
    assert_limited(&a, "your limit is 1 images a second, of which");
    assert_int_equal(classify_many(server.bob, &a), TK_CLIENT_OK);
    assert_int_equal(classify_many(server.bob, &a), TK_CLIENT_OK);

    a = set_limits(server.admin, "alice", 200, 1);
    assert_refused(&a, TK_CLIENT_INVALID_ARGUMENT, "weight is 200, but must be 0.01 to 100");
    a = set_limits(server.admin, "carol", 1, 1);
    assert_refused(&a, TK_CLIENT_NOT_FOUND, "there is none of that name");
    a = set_limits(server.alice, "alice", 100, 0);
    assert_refused(&a, TK_CLIENT_PERMISSION_DENIED, "admin");
    assert_int_equal(trunkd_end(&server, SIGKILL), 128 + SIGKILL); /* answered is durable */

    trunkd_start(&server, NULL);
    assert_true(rate_of("alice") == 1);
    assert_true(rate_of("bob") == 0);
    assert_int_equal(classify_many(server.alice, &a), TK_CLIENT_OK);
    a = classify(server.alice, &image, 1, NULL, 1);
    assert_limited(&a, "your limit is 1 images a second");
    assert_set("alice", 0, 0);
    assert_int_equal(classify_many(server.alice, &a), TK_CLIENT_OK);
    assert_int_equal(classify_many(server.alice, &a), TK_CLIENT_OK);
    assert_int_equal(trunkd_end(&server, SIGTERM), 0);
}

static answer classify_at(unsigned priority)
{
    Trunkd__V1__ClassifyRequest in;
    trunkd__v1__classify_request__init(&in);
    ProtobufCBinaryData data = {image.size, image.data};
    in.n_images = 1;
    in.images = &data;
    in.priority = priority;
    return ask(server.alice, "/trunkd.v1.Classifier/Classify", &in,
               &trunkd__v1__classify_response__descriptor);
}

static answer infer_at(int64_t priority)
{
    char model[] = "type", name[] = "image", type[] = "BYTES", key[] = "priority";
    ProtobufCBinaryData data = {image.size, image.data};
    int64_t shape = 1;
    Inference__InferTensorContents contents;
    inference__infer_tensor_contents__init(&contents);
    contents.n_bytes_contents = 1;
    contents.bytes_contents = &data;
    Inference__ModelInferRequest__InferInputTensor input, *inputs[] = {&input};
    inference__model_infer_request__infer_input_tensor__init(&input);
    input.name = name;
    input.datatype = type;
    input.n_shape = 1;
    input.shape = &shape;
    input.contents = &contents;
    Inference__InferParameter value;
    inference__infer_parameter__init(&value);
    value.parameter_choice_case = INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_INT64_PARAM;
    value.int64_param = priority;
    Inference__ModelInferRequest__ParametersEntry entry, *entries[] = {&entry};
    inference__model_infer_request__parameters_entry__init(&entry);
    entry.key = key;
    entry.value = &value;
    Inference__ModelInferRequest in;
    inference__model_infer_request__init(&in);
    in.model_name = model;
    in.n_inputs = 1;
    in.inputs = inputs;
    in.n_parameters = 1;
    in.parameters = entries;
    return ask(server.alice, "/inference.GRPCInferenceService/ModelInfer", &in,
               &inference__model_infer_response__descriptor);
}

static void a_priority_is_one_of_five(void **state)
{
    (void)state;
    trunkd_start(&server, NULL);
    for (unsigned priority = 0; priority <= 5; priority++) {
        const answer a = classify_at(priority), b = infer_at(priority);
        assert_int_equal(a.status.code, TK_CLIENT_OK);
        assert_int_equal(b.status.code, TK_CLIENT_OK);
        tk_client_free_message(a.message);
        tk_client_free_message(b.message);
    }
    answer a = classify_at(6);
    assert_refused(&a, TK_CLIENT_INVALID_ARGUMENT,
                   "priority is 6, but must be 1 (the most urgent) to 5, or 0 for 3");
    a = classify_at(UINT32_MAX);
    assert_refused(&a, TK_CLIENT_INVALID_ARGUMENT, "priority is 4294967295");
    a = infer_at(6);
    assert_refused(&a, TK_CLIENT_INVALID_ARGUMENT, "priority is 6");
    a = infer_at(-1);
    assert_refused(&a, TK_CLIENT_INVALID_ARGUMENT, "priority is 18446744073709551615");
    assert_int_equal(trunkd_end(&server, SIGTERM), 0);
}

static int set_up(void **state)
{
    (void)state;
    trunkd_prepare(&server, 1);
    image = fixture_jpeg(40, 50, 1);
    for (size_t i = 0; i < MANY; i++)
        many[i] = image;
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    if (server.pid) trunkd_end(&server, SIGKILL);
    trunkd_remove(&server);
    free(image.data);
    return tk_test_alloc_live() == 0 ? 0 : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_tenant_over_its_rate_is_told_when_to_come_back),
        cmocka_unit_test(a_full_part_of_the_queue_is_a_limit_and_no_failure),
        cmocka_unit_test(what_an_admin_sets_holds_at_once_and_after_a_restart),
        cmocka_unit_test(a_priority_is_one_of_five),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
