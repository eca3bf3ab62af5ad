/* The RPC layer when it is crowded: slow consumers, slow uploads, many callers at once, a stop with
 * calls in flight, no file descriptors left, a message of 200 MB. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/mem.h"
#include "rpc/accept_guard.h"
#include "rpc_fixture.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SANITIZED = 1 };
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif
#else
enum { SANITIZED = 0 };
#endif

#define EVENT_TYPE    &trunkd__v1__job_event__descriptor
#define UPLOAD_TYPE   &trunkd__v1__upload_response__descriptor
#define CLASSIFY_TYPE &trunkd__v1__classify_response__descriptor

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

/* -- slow ends -- */

static void slow_reader_of_a_stream_holds_the_sender_back(void **state)
{
    rpc_fixture *f = *state;
    enum { N = 3000 };
    tk_client *client = rpc_fixture_tenant(f);
    static const char *const paths[] = {WATCH, WATCH_WORK};
    for (unsigned p = 0; p < 2; p++) {
        const unsigned long before = rpc_fixture_seen(f, EV_QUEUED);
        const unsigned long full = rpc_fixture_seen(f, EV_FULL);
        Trunkd__V1__WatchJobRequest request;
        trunkd__v1__watch_job_request__init(&request);
        request.after = N;
        request.id = 65536;
        tk_client_call *call = tk_client_start(client, paths[p], EVENT_TYPE, 60000);
        assert_true(tk_client_send(call, &request.base));
        tk_client_send_end(call);
        assert_true(rpc_fixture_wait(f, EV_FULL, full + 1));
        uint64_t i = 0;
        for (ProtobufCMessage *m; (m = tk_client_receive(call)); i++) {
            assert_int_equal(((Trunkd__V1__JobEvent *)m)->sequence, i);
            tk_client_free_message(m);
            /* 8 in the queue, and what HTTP/2's window and the sockets hold: far less than 190 MB.
             */
            const unsigned long ahead = rpc_fixture_seen(f, EV_QUEUED) - before - i;
            if (ahead > 1000) fail_msg("%lu messages ahead of the reader", ahead);
        }
        tk_client_status status;
        assert_int_equal(tk_client_finish(call, &status), TK_CLIENT_OK);
        assert_int_equal(i, N);
    }
    tk_client_close(client);
}

static void stream_cancelled_with_a_full_queue_is_freed(void **state)
{
    rpc_fixture *f = *state;
    tk_client *client = rpc_fixture_tenant(f);
    Trunkd__V1__WatchJobRequest request;
    trunkd__v1__watch_job_request__init(&request);
    request.after = 100000;
    request.id = 65536;
    tk_client_call *call = tk_client_start(client, WATCH, EVENT_TYPE, 0);
    assert_true(tk_client_send(call, &request.base));
    tk_client_send_end(call);
    assert_true(rpc_fixture_wait(f, EV_FULL, 1));
    tk_client_cancel(call);
    tk_client_status status;
    assert_int_equal(tk_client_finish(call, &status), TK_CLIENT_CANCELLED);
    assert_true(rpc_fixture_wait(f, EV_FREED, 1));
    assert_int_equal(rpc_fixture_seen(f, EV_CANCELLED), 1);
    tk_client_close(client);
}

enum { CHUNKS = 400, CHUNK = 256 * 1024 };

typedef struct uploader {
    rpc_fixture *f;
    tk_client_call *call;
} uploader;

static void *upload_chunks(void *arg)
{
    uploader *u = arg;
    uint8_t *head = tk_calloc(1, CHUNK);
    Trunkd__V1__UploadRequest request;
    trunkd__v1__upload_request__init(&request);
    Trunkd__V1__UploadImages images;
    trunkd__v1__upload_images__init(&images);
    Trunkd__V1__UploadImage image, *list[] = {&image};
    trunkd__v1__upload_image__init(&image);
    image.data = (ProtobufCBinaryData){.len = CHUNK - 64, .data = head};
    images.n_images = 1;
    images.images = list;
    request.part_case = TRUNKD__V1__UPLOAD_REQUEST__PART_IMAGES;
    request.images = &images;
    for (unsigned i = 0; i < CHUNKS && tk_client_send(u->call, &request.base); i++) {
        pthread_mutex_lock(&u->f->lock);
        u->f->sent_chunks++;
        pthread_cond_broadcast(&u->f->changed);
        pthread_mutex_unlock(&u->f->lock);
    }
    tk_client_send_end(u->call);
    tk_free(head);
    return NULL;
}

/* Waits until the uploader has not got rid of another chunk for 100 ms: it is held back, or done.
 */
static void wait_until_held_back(rpc_fixture *f)
{
    pthread_mutex_lock(&f->lock);
    for (;;) {
        const unsigned long before = f->sent_chunks;
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += 100000000;
        if (until.tv_nsec >= 1000000000) {
            until.tv_sec++;
            until.tv_nsec -= 1000000000;
        }
        int late = 0;
        while (late == 0 && f->sent_chunks == before)
            late = pthread_cond_timedwait(&f->changed, &f->lock, &until);
        if (late == ETIMEDOUT && before > 0) break;
    }
    pthread_mutex_unlock(&f->lock);
}

static void slow_taker_of_an_upload_holds_the_client_back(void **state)
{
    rpc_fixture *f = *state;
    rpc_fixture_gate(f, false);
    tk_client *client = rpc_fixture_tenant(f);
    uploader u = {f, tk_client_start(client, UPLOAD, UPLOAD_TYPE, 60000)};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, upload_chunks, &u), 0);
    wait_until_held_back(f);
    rpc_fixture_gate(f, true);
    pthread_join(thread, NULL);
    ProtobufCMessage *answer = tk_client_receive(u.call);
    assert_non_null(answer);
    assert_int_equal(((Trunkd__V1__UploadResponse *)answer)->data_set->images, CHUNKS);
    tk_client_free_message(answer);
    tk_client_status status;
    assert_int_equal(tk_client_finish(u.call, &status), TK_CLIENT_OK);
    /* 100 MB were to be sent; at most 32 of them were on the way at any time. */
    pthread_mutex_lock(&f->lock);
    const unsigned long most_ahead = f->most_ahead;
    pthread_mutex_unlock(&f->lock);
    assert_in_range(most_ahead, 1, 128);
    tk_client_close(client);
}

/* -- many at once -- */

enum { THREADS = 6, CALLS = 150 };

typedef struct caller {
    rpc_fixture *f;
    tk_client *client;
    unsigned seed, ok, cancelled, wrong;
    tk_client_status first_wrong;
} caller;

static unsigned random_below(unsigned *seed, unsigned n)
{
    *seed = *seed * 1664525u + 1013904223u;
    return (*seed >> 16) % n;
}

static void tally(caller *c, const tk_client_status *status)
{
    if (status->code == TK_CLIENT_OK)
        c->ok++;
    else if (status->code == TK_CLIENT_CANCELLED)
        c->cancelled++;
    else if (c->wrong++ == 0)
        c->first_wrong = *status;
}

static void *call_many(void *arg)
{
    static const char *const paths[] = {CLASSIFY, LATER, WORK, PARK, CLASSIFY};
    caller *c = arg;
    tk_client_status status;
    for (unsigned i = 0; i < CALLS; i++) {
        const size_t bytes = random_below(&c->seed, 3) == 0 ? 100000 : 50;
        rpc_fixture_classify(c->client, paths[random_below(&c->seed, 5)], bytes, "a", 60000,
                             &status);
        tally(c, &status);
    }
    return NULL;
}

/* Each call is cancelled at some moment of its life. */
static void *cancel_many(void *arg)
{
    static const char *const paths[] = {CLASSIFY, LATER, WORK, UPLOAD, WATCH, WATCH_WORK};
    caller *c = arg;
    tk_client_status status;
    for (unsigned i = 0; i < CALLS; i++) {
        const unsigned kind = random_below(&c->seed, 6), when = random_below(&c->seed, 4);
        tk_client_call *call = tk_client_start(c->client, paths[kind], CLASSIFY_TYPE, 60000);
        if (when == 0) tk_client_cancel(call);
        tk_client_send_bytes(call, "", 0);
        if (when == 1) tk_client_cancel(call);
        tk_client_send_end(call);
        if (when == 2) tk_client_cancel(call);
        tk_client_finish(call, &status);
        tally(c, &status);
    }
    return NULL;
}

static void run_callers(rpc_fixture *f, caller *callers, void *(*with)(void *))
{
    pthread_t threads[THREADS];
    tk_client *shared = rpc_fixture_tenant(f);
    for (unsigned i = 0; i < THREADS; i++) {
        /* Half of them share one connection. */
        callers[i] = (caller){.f = f, .seed = i + 1};
        callers[i].client = i % 2 ? shared : rpc_fixture_tenant(f);
        assert_int_equal(pthread_create(&threads[i], NULL, with, &callers[i]), 0);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        if (callers[i].client != shared) tk_client_close(callers[i].client);
        if (callers[i].wrong > 0)
            fail_msg("%u calls failed, the first with %s: %s", callers[i].wrong,
                     tk_client_code_text(callers[i].first_wrong.code), callers[i].first_wrong.text);
    }
    tk_client_close(shared);
}

static void many_callers_at_once_all_get_their_own_answer(void **state)
{
    rpc_fixture *f = *state;
    caller callers[THREADS];
    run_callers(f, callers, call_many);
    for (unsigned i = 0; i < THREADS; i++)
        assert_int_equal(callers[i].ok, CALLS);
    assert_int_equal(rpc_fixture_seen(f, EV_BEGUN), THREADS * CALLS);
}

static void calls_cancelled_at_any_moment_are_freed_once(void **state)
{
    rpc_fixture *f = *state;
    caller callers[THREADS];
    run_callers(f, callers, cancel_many);
    tk_client_status status;
    tk_client *client = rpc_fixture_tenant(f);
    assert_int_equal(rpc_fixture_classify(client, WORK, 10, "a", 60000, &status), TK_CLIENT_OK);
    tk_client_close(client);
}

/* -- stop -- */

enum { IN_FLIGHT = 6 };

typedef struct waiter {
    pthread_t thread;
    tk_client *client;
    const char *path;
    size_t bytes;
    tk_client_status status;
} waiter;

static void *wait_for_answer(void *arg)
{
    waiter *w = arg;
    rpc_fixture_classify(w->client, w->path, w->bytes, "a", 60000, &w->status);
    return NULL;
}

/* Calls that wait at the gate, half on workers, half parked; one after the other. */
static void start_waiters(rpc_fixture *f, waiter *waiters, unsigned n, size_t bytes)
{
    rpc_fixture_gate(f, false);
    for (unsigned i = 0; i < n; i++) {
        waiters[i] = (waiter){.client = rpc_fixture_tenant(f), .path = i % 2 ? WORK : PARK};
        waiters[i].bytes = bytes;
        assert_int_equal(pthread_create(&waiters[i].thread, NULL, wait_for_answer, &waiters[i]), 0);
        assert_true(rpc_fixture_wait(f, EV_PARKED, i + 1));
    }
}

static void join_waiters(waiter *waiters, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        pthread_join(waiters[i].thread, NULL);
        tk_client_close(waiters[i].client);
    }
}

typedef struct stopper {
    pthread_t thread;
    rpc_fixture *f;
    unsigned grace_ms;
} stopper;

static void *stop_server(void *arg)
{
    stopper *s = arg;
    tk_rpc_server_stop(s->f->server, s->grace_ms);
    return NULL;
}

/* Calls until a call fails: the stop has begun. Returns that call's code. */
static int call_until_refused(const rpc_fixture *f)
{
    tk_client *late = rpc_fixture_tenant(f);
    tk_client_status status;
    while (rpc_fixture_classify(late, CLASSIFY, 1, "a", 5000, &status) == TK_CLIENT_OK) {
    }
    tk_client_close(late);
    return status.code;
}

static void stop_within_grace_loses_no_call_in_flight(void **state)
{
    rpc_fixture *f = *state;
    waiter waiters[IN_FLIGHT];
    start_waiters(f, waiters, IN_FLIGHT, 1000);
    stopper s = {.f = f, .grace_ms = 60000};
    assert_int_equal(pthread_create(&s.thread, NULL, stop_server, &s), 0);
    const int late = call_until_refused(f);
    rpc_fixture_gate(f, true);
    join_waiters(waiters, IN_FLIGHT);
    pthread_join(s.thread, NULL);
    f->server = NULL;
    /* CANCELLED is the core's answer to a call whose headers crossed its GOAWAY on the wire; one
     * that came in the very moment of the stop waits in the core for its deadline
     * (wait_for_calls()). */
    if (late != TK_CLIENT_CANCELLED && late != TK_CLIENT_DEADLINE_EXCEEDED)
        assert_int_equal(late, TK_CLIENT_UNAVAILABLE);
    for (unsigned i = 0; i < IN_FLIGHT; i++)
        if (waiters[i].status.code != TK_CLIENT_OK)
            fail_msg("%s: %s", waiters[i].path, waiters[i].status.text);
    assert_int_equal(rpc_fixture_seen(f, EV_CANCELLED), 0);
}

static void stop_after_grace_cancels_what_still_runs(void **state)
{
    rpc_fixture *f = *state;
    waiter waiters[IN_FLIGHT];
    start_waiters(f, waiters, IN_FLIGHT, 1000);
    stopper s = {.f = f, .grace_ms = 50};
    assert_int_equal(pthread_create(&s.thread, NULL, stop_server, &s), 0);
    assert_true(rpc_fixture_wait(f, EV_CANCELLED, IN_FLIGHT));
    rpc_fixture_gate(f, true); /* workers that are inside a callback come back */
    pthread_join(s.thread, NULL);
    f->server = NULL;
    join_waiters(waiters, IN_FLIGHT);
    for (unsigned i = 0; i < IN_FLIGHT; i++)
        assert_int_equal(waiters[i].status.code, TK_CLIENT_UNAVAILABLE);
}

/* -- shortages -- */

static int raw_connect(const rpc_fixture *f)
{
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    struct sockaddr_in to = {.sin_family = AF_INET};
    to.sin_port = htons((uint16_t)tk_rpc_server_port(f->server));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(fd, (const struct sockaddr *)&to, sizeof to) == 0) return fd;
    close(fd);
    return -1;
}

static void listener_survives_want_of_descriptors(void **state)
{
    rpc_fixture *f = *state;
    tk_client *early = rpc_fixture_tenant(f);
    tk_client_status status;
    assert_int_equal(rpc_fixture_classify(early, CLASSIFY, 10, "a", 30000, &status), TK_CLIENT_OK);
    assert_true(tk__accept_guard_calls() > 0); /* ours is the one that the core calls */

    struct rlimit old, few;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
    few = old;
    few.rlim_cur = 100;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
    int ours[100], n = 0;
    const uint64_t shed = tk__accept_guard_shed();
    /* Both ends are in this process: soon there is none left for the server's end, or for ours. */
    for (int fd; n < 100 && (fd = raw_connect(f)) >= 0;)
        ours[n++] = fd;
    for (int fd; n < 100 && (fd = open("/dev/null", O_RDONLY | O_CLOEXEC)) >= 0;)
        ours[n++] = fd;
    /* Leave room for our end alone, again and again, until the server had to shed. */
    while (tk__accept_guard_shed() == shed) {
        assert_true(n > 0);
        close(ours[--n]);
        const int fd = raw_connect(f);
        if (fd < 0) continue;
        char byte;
        /* While other threads hold the server's spare places, a connection waits for the next. */
        const struct timeval patience = {.tv_usec = 200000};
        assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience), 0);
        const ssize_t got = recv(fd, &byte, 1, 0);
        if (got == 0 || (got < 0 && errno != EAGAIN)) assert_true(tk__accept_guard_shed() > shed);
        close(fd);
    }
    assert_int_equal(rpc_fixture_classify(early, CLASSIFY, 10, "a", 30000, &status), TK_CLIENT_OK);
    while (n > 0)
        close(ours[--n]);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);

    tk_client *later = rpc_fixture_tenant(f);
    assert_true(tk_client_wait_ready(later, 30000));
    assert_int_equal(rpc_fixture_classify(later, CLASSIFY, 10, "a", 30000, &status), TK_CLIENT_OK);
    tk_client_close(later);
    tk_client_close(early);
}

/* Peak resident memory in KiB since the last reset; 0 where the kernel does not tell. */
static long peak_kib(bool reset)
{
    if (reset) {
        FILE *clear = fopen("/proc/self/clear_refs", "w");
        if (!clear) return 0;
        fputs("5", clear);
        fclose(clear);
    }
    long kib = 0;
    char line[256];
    FILE *status = fopen("/proc/self/status", "r");
    while (status && fgets(line, sizeof line, status))
        if (strncmp(line, "VmHWM:", 6) == 0) kib = strtol(line + 6, NULL, 10);
    if (status) fclose(status);
    return kib;
}

/* The core holds what it has read of a message until the message is whole, within its quota; so the
 * quota, and not the client, decides what a refusal costs. */
static long refuse_200_mb(const rpc_fixture *f, tk_client_status *status)
{
    tk_client *client = rpc_fixture_tenant(f), *other = rpc_fixture_tenant(f);
    const size_t size = (size_t)200 << 20;
    char *data = tk_calloc(size, 1);
    memset(data, 1, size);
    const long before = peak_kib(true);
    tk_client_call *call = tk_client_start(client, CLASSIFY, CLASSIFY_TYPE, 60000);
    tk_client_send_bytes(call, data, size);
    tk_client_finish(call, status);
    const long growth = peak_kib(false) - before;
    tk_free(data);
    assert_int_equal(status->code, TK_CLIENT_RESOURCE_EXHAUSTED);
    tk_client_status good;
    assert_int_equal(rpc_fixture_classify(other, CLASSIFY, 10, "a", 30000, &good), TK_CLIENT_OK);
    tk_client_close(other);
    tk_client_close(client);
    return growth;
}

/* With memory to spare: near its quota the core may drop the stream before it has seen the size,
 * which is RESOURCE_EXHAUSTED too, in words of its own. */
static void message_of_200_mb_is_refused_with_its_size_and_the_limit(void **state)
{
    (void)state;
    rpc_fixture f;
    const tk_rpc_opts opts = {.memory_quota = (size_t)1 << 30};
    rpc_fixture_start(&f, &opts);
    tk_client_status status;
    refuse_200_mb(&f, &status);
    if (!strstr(status.text, "209715200") || !strstr(status.text, "67108864"))
        fail_msg("neither size nor limit in \"%s\"", status.text);
    rpc_fixture_stop(&f);
}

static void message_of_200_mb_costs_no_more_than_the_quota(void **state)
{
    (void)state;
    rpc_fixture f;
    const tk_rpc_opts opts = {.memory_quota = 32 << 20};
    rpc_fixture_start(&f, &opts);
    tk_client_status status;
    /* The sending side copies its 200 MB once. */
    const long server_mb = refuse_200_mb(&f, &status) / 1024 - 200;
    if (!SANITIZED && server_mb > 80) fail_msg("refusing 200 MB took %ld MB", server_mb);
    rpc_fixture_stop(&f);
}

static void requests_over_the_servers_memory_are_refused_for_now(void **state)
{
    (void)state;
    rpc_fixture f;
    const tk_rpc_opts opts = {.memory_quota = 16 << 20};
    const size_t bytes =
        LARGE_LIMIT - 100; /* three of them fit in twice the quota, a fourth does not */
    rpc_fixture_start(&f, &opts);
    waiter waiters[3];
    start_waiters(&f, waiters, 3, bytes);
    tk_client *client = rpc_fixture_tenant(&f);
    tk_client_status status;
    assert_int_equal(rpc_fixture_classify(client, CLASSIFY, bytes, "a", 30000, &status),
                     TK_CLIENT_RESOURCE_EXHAUSTED);
    assert_non_null(strstr(status.text, "memory for requests"));
    assert_true(status.retry_ms > 0);
    rpc_fixture_gate(&f, true);
    join_waiters(waiters, 3);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(waiters[i].status.code, TK_CLIENT_OK);
    assert_true(rpc_fixture_wait(&f, EV_FREED, 3));
    assert_int_equal(rpc_fixture_classify(client, CLASSIFY, bytes, "a", 30000, &status),
                     TK_CLIENT_OK);
    tk_client_close(client);
    rpc_fixture_stop(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(slow_reader_of_a_stream_holds_the_sender_back),
        CASE(stream_cancelled_with_a_full_queue_is_freed),
        CASE(slow_taker_of_an_upload_holds_the_client_back),
        CASE(many_callers_at_once_all_get_their_own_answer),
        CASE(calls_cancelled_at_any_moment_are_freed_once),
        CASE(stop_within_grace_loses_no_call_in_flight),
        CASE(stop_after_grace_cancels_what_still_runs),
        CASE(listener_survives_want_of_descriptors),
        cmocka_unit_test(message_of_200_mb_is_refused_with_its_size_and_the_limit),
        cmocka_unit_test(message_of_200_mb_costs_no_more_than_the_quota),
        cmocka_unit_test(requests_over_the_servers_memory_are_refused_for_now),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
