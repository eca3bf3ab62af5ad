/* A tenant's limits over the wire: the code, the sentence, when to try again, and who counts it. */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/mem.h"
#include "trunkd_process.h"

enum { MANY = 256 };

static trunkd server;
static fixture_bytes image, many[MANY];

static Trunkd__V1__GetStatusResponse *status_of_server(void)
{
    Trunkd__V1__Empty empty;
    trunkd__v1__empty__init(&empty);
    const answer a = ask(server.admin, "/trunkd.v1.Admin/GetStatus", &empty,
                         &trunkd__v1__get_status_response__descriptor);
    assert_non_null(a.message);
    return (Trunkd__V1__GetStatusResponse *)a.message;
}

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
    Trunkd__V1__GetStatusResponse *s = status_of_server();
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
    Trunkd__V1__GetStatusResponse *s = status_of_server();
    assert_int_equal(s->requests, answered);
    assert_int_equal(s->refused, CALLS - answered);
    assert_int_equal(s->failures, 0);
    assert_int_equal(s->queue, 0);
    tk_client_free_message(&s->base);
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
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
