/* The thread pool: every task once, results visible, sleepers woken, nothing left behind. Meant for
 * ThreadSanitizer too. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "engine/mem.h"
#include "engine/pool.h"

enum { MAX_TASKS = 1000 };

typedef struct tally {
    unsigned runs[MAX_TASKS]; /* not atomic: two threads on one task are a race that TSan sees */
    unsigned threads;
    int bad_thread; /* written by whichever task sees it; all write 1 */
} tally;

static void count(void *ctx, size_t task, size_t thread)
{
    tally *t = ctx;
    t->runs[task]++;
    if (thread >= t->threads) t->bad_thread = 1;
}

static void every_task_runs_once_on_a_known_thread(void **state)
{
    (void)state;
    static const size_t sizes[] = {0, 1, 2, 3, 7, 64, MAX_TASKS};
    for (unsigned threads = 1; threads <= 5; threads++) {
        tk_pool *pool;
        assert_int_equal(tk_pool_create(&pool, threads), TK_OK);
        assert_int_equal(tk_pool_threads(pool), threads);
        for (int round = 0; round < 100; round++) {
            const size_t n = sizes[(size_t)round % (sizeof sizes / sizeof *sizes)];
            tally t = {.threads = threads};
            tk_pool_run(pool, n, count, &t);
            for (size_t i = 0; i < MAX_TASKS; i++)
                assert_int_equal(t.runs[i], i < n);
            assert_int_equal(t.bad_thread, 0);
        }
        tk_pool_destroy(pool);
    }
}

/* Each job reads what the one before wrote, without a lock: the pool must order them. */
typedef struct chain {
    size_t from[16], to[16];
} chain;

static void shift(void *ctx, size_t task, size_t thread)
{
    chain *c = ctx;
    (void)thread;
    c->to[task] = c->from[(task + 1) % 16] + 1;
}

static void jobs_see_what_earlier_jobs_wrote(void **state)
{
    (void)state;
    enum { JOBS = 5000 };
    tk_pool *pool;
    chain c = {{0}, {0}};
    assert_int_equal(tk_pool_create(&pool, 4), TK_OK);
    for (size_t i = 0; i < JOBS; i++) {
        tk_pool_run(pool, 16, shift, &c);
        memcpy(c.from, c.to, sizeof c.from);
    }
    for (size_t i = 0; i < 16; i++)
        assert_int_equal(c.from[i], JOBS);
    tk_pool_destroy(pool);
}

/* Longer than the workers spin, so that they sleep between jobs. */
static void sleeping_workers_wake_for_the_next_job(void **state)
{
    (void)state;
    tk_pool *pool;
    tally t = {.threads = 3};
    assert_int_equal(tk_pool_create(&pool, 3), TK_OK);
    for (int i = 0; i < 20; i++) {
        nanosleep(&(struct timespec){.tv_nsec = 500000}, NULL);
        tk_pool_run(pool, 50, count, &t);
    }
    for (size_t i = 0; i < 50; i++)
        assert_int_equal(t.runs[i], 20);
    tk_pool_destroy(pool);
}

/* A slow task on one thread makes the caller sleep for it. */
static void slow(void *ctx, size_t task, size_t thread)
{
    if (task == 0) nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
    count(ctx, task, thread);
}

static void caller_waits_for_the_slowest_task(void **state)
{
    (void)state;
    tk_pool *pool;
    tally t = {.threads = 2};
    assert_int_equal(tk_pool_create(&pool, 2), TK_OK);
    for (int i = 0; i < 10; i++)
        tk_pool_run(pool, 8, slow, &t);
    for (size_t i = 0; i < 8; i++)
        assert_int_equal(t.runs[i], 10);
    tk_pool_destroy(pool);
}

/* The caller may be another thread each time, as long as there is one at a time. */
static void *run_from_thread(void *arg)
{
    tally *t = arg;
    tk_pool *pool;
    if (tk_pool_create(&pool, 2) != TK_OK) return NULL;
    tk_pool_run(pool, 100, count, t);
    tk_pool_destroy(pool);
    return t;
}

static void pools_of_different_threads_do_not_meet(void **state)
{
    (void)state;
    pthread_t ids[3];
    static tally tallies[3];
    memset(tallies, 0, sizeof tallies);
    for (size_t i = 0; i < 3; i++) {
        tallies[i].threads = 2;
        assert_int_equal(pthread_create(&ids[i], NULL, run_from_thread, &tallies[i]), 0);
    }
    for (size_t i = 0; i < 3; i++) {
        void *result;
        pthread_join(ids[i], &result);
        assert_ptr_equal(result, &tallies[i]);
        for (size_t k = 0; k < 100; k++)
            assert_int_equal(tallies[i].runs[k], 1);
    }
}

static void destroy_right_after_create_and_after_work_joins(void **state)
{
    (void)state;
    const long live = tk_test_alloc_live();
    for (int i = 0; i < 50; i++) {
        tk_pool *pool;
        assert_int_equal(tk_pool_create(&pool, 4), TK_OK);
        if (i % 2) {
            tally t = {.threads = 4};
            tk_pool_run(pool, 9, count, &t);
        }
        tk_pool_destroy(pool);
    }
    tk_pool_destroy(NULL);
    assert_int_equal(tk_test_alloc_live(), live);
}

static void creation_survives_running_out_of_memory(void **state)
{
    (void)state;
    const long live = tk_test_alloc_live();
    for (long n = 0;; n++) {
        tk_pool *pool;
        tk_test_alloc_fail_after(n);
        const tk_err err = tk_pool_create(&pool, 2);
        tk_test_alloc_fail_after(-1);
        if (err == TK_OK) {
            tk_pool_destroy(pool);
            break;
        }
        assert_int_equal(err, TK_NOMEM);
        assert_null(pool);
        assert_int_equal(tk_test_alloc_live(), live);
    }
    tk_pool *pool;
    assert_int_equal(tk_pool_create(&pool, 1000000), TK_BADARG);
    assert_null(pool);
    assert_int_equal(tk_pool_create(&pool, 0), TK_OK);
    assert_true(tk_pool_threads(pool) >= 1);
    tk_pool_destroy(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_task_runs_once_on_a_known_thread),
        cmocka_unit_test(jobs_see_what_earlier_jobs_wrote),
        cmocka_unit_test(sleeping_workers_wake_for_the_next_job),
        cmocka_unit_test(caller_waits_for_the_slowest_task),
        cmocka_unit_test(pools_of_different_threads_do_not_meet),
        cmocka_unit_test(destroy_right_after_create_and_after_work_joins),
        cmocka_unit_test(creation_survives_running_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
