/* The queue of images: same answers whatever the batch, one version per request, limits, and an end
 * to every request. The decode threads are held up where a test needs a queue that stands still. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "batcher_fixture.h"
#include "engine/mem.h"

static tk_snapshot *one, *two; /* two versions with different weights */

static size_t answers_per_image(void)
{
    return FIXTURE_TYPES + FIXTURE_COLOURS;
}

/* The answer for each picture, each asked for alone. */
static void ask_alone(tk_snapshot *snapshot, tk_top want[PICTURES][FIXTURE_TYPES + FIXTURE_COLOURS])
{
    tk_batcher *b = start((tk_batcher_opts){.decode_threads = 1});
    for (size_t i = 0; i < PICTURES; i++) {
        asked *a = ask(snapshot, i, 1);
        assert_int_equal(tk_batcher_submit(b, a->infer, NULL), TK_OK);
        assert_int_equal(wait_for(a), TK_OK);
        assert_null(a->infer->images[0].error);
        memcpy(want[i], a->infer->images[0].top, answers_per_image() * sizeof **want);
        forget(a);
    }
    const tk_batcher_stats stats = tk_batcher_get_stats(b);
    assert_int_equal(stats.images, PICTURES);
    assert_int_equal(stats.batches, PICTURES);
    assert_int_equal(stats.queue, 0);
    tk_batcher_destroy(b);
}

static void answers_are_bit_identical_whatever_the_batch(void **state)
{
    (void)state;
    tk_top want[PICTURES][FIXTURE_TYPES + FIXTURE_COLOURS];
    ask_alone(one, want);
    tk_batcher *b = start((tk_batcher_opts){.decode_threads = 3, .max_delay_us = 500});
    for (int round = 0; round < 2; round++) {
        asked *all[10];
        for (size_t i = 0; i < 10; i++) {
            all[i] = ask(one, i, 1 + i % 5);
            assert_int_equal(tk_batcher_submit(b, all[i]->infer, NULL), TK_OK);
        }
        for (size_t i = 0; i < 10; i++) {
            assert_int_equal(wait_for(all[i]), TK_OK);
            for (size_t k = 0; k < 1 + i % 5; k++) {
                assert_memory_equal(all[i]->infer->images[k].top, want[(i + k) % PICTURES],
                                    answers_per_image() * sizeof **want);
            }
            forget(all[i]);
        }
    }
    const tk_batcher_stats stats = tk_batcher_get_stats(b);
    assert_true(stats.batches < stats.images); /* there were batches of more than one */
    tk_batcher_destroy(b);
}

static void a_request_is_answered_wholly_by_its_version(void **state)
{
    (void)state;
    tk_top want[2][PICTURES][FIXTURE_TYPES + FIXTURE_COLOURS];
    ask_alone(one, want[0]);
    ask_alone(two, want[1]);
    assert_memory_not_equal(want[0][0], want[1][0], sizeof want[0][0]);
    tk_batcher *b = start((tk_batcher_opts){.decode_threads = 2, .max_delay_us = 500});
    asked *all[8];
    for (size_t i = 0; i < 8;
         i++) { /* 7 images need two batches at least, and the versions alternate */
        all[i] = ask(i % 2 ? two : one, i, 7);
        assert_int_equal(tk_batcher_submit(b, all[i]->infer, NULL), TK_OK);
    }
    for (size_t i = 0; i < 8; i++) {
        assert_int_equal(wait_for(all[i]), TK_OK);
        for (size_t k = 0; k < 7; k++) {
            assert_memory_equal(all[i]->infer->images[k].top, want[i % 2][(i + k) % PICTURES],
                                sizeof want[0][0]);
        }
        forget(all[i]);
    }
    tk_batcher_destroy(b);
}

static void one_bad_image_has_its_reason_and_the_rest_an_answer(void **state)
{
    (void)state;
    tk_batcher *b = start((tk_batcher_opts){.decode_threads = 2});
    asked *a = ask(one, 0, 4);
    a->infer->images[1].size = 0;
    a->infer->images[2].size /= 2; /* truncated */
    assert_int_equal(tk_batcher_submit(b, a->infer, NULL), TK_OK);
    assert_int_equal(wait_for(a), TK_OK);
    assert_null(a->infer->images[0].error);
    assert_non_null(a->infer->images[1].error);
    assert_true(strlen(a->infer->images[1].error) > 5);
    assert_non_null(a->infer->images[2].error);
    assert_null(a->infer->images[3].error);
    assert_int_equal(tk_batcher_get_stats(b).images, 2);
    forget(a);
    tk_batcher_destroy(b);
}

static void a_full_queue_refuses_and_names_limit_and_value(void **state)
{
    (void)state;
    tk_batcher *b = start((tk_batcher_opts){.decode_threads = 1, .max_images = 5});
    stall s;
    stall_begin(&s, b, 1);
    asked *first = ask(one, 0, 3), *second = ask(one, 0, 3), *third = ask(one, 0, 2);
    assert_int_equal(tk_batcher_submit(b, first->infer, NULL), TK_OK);
    tk_diag diag;
    assert_int_equal(tk_batcher_submit(b, second->infer, &diag), TK_LIMIT);
    assert_non_null(strstr(diag.text, "3 images wait"));
    assert_non_null(strstr(diag.text, "limit is 5"));
    assert_int_equal(tk_batcher_submit(b, third->infer, NULL), TK_OK);
    assert_int_equal(tk_batcher_get_stats(b).queue, 5);
    stall_end(&s);
    assert_int_equal(wait_for(first), TK_OK);
    assert_int_equal(wait_for(third), TK_OK);
    assert_int_equal(tk_batcher_submit(b, second->infer, NULL), TK_OK); /* there is room again */
    assert_int_equal(wait_for(second), TK_OK);
    forget(first), forget(second), forget(third);
    tk_batcher_destroy(b);
}

static void a_full_queue_counts_bytes_too(void **state)
{
    (void)state;
    const size_t bytes = pictures[0].size;
    tk_batcher *b = start((tk_batcher_opts){.decode_threads = 1, .max_bytes = bytes});
    stall s;
    stall_begin(&s, b, 1);
    asked *first = ask(one, 0, 1), *second = ask(one, 0, 1);
    assert_int_equal(tk_batcher_submit(b, first->infer, NULL), TK_OK);
    tk_diag diag;
    assert_int_equal(tk_batcher_submit(b, second->infer, &diag), TK_LIMIT);
    assert_non_null(strstr(diag.text, "bytes"));
    stall_end(&s);
    assert_int_equal(wait_for(first), TK_OK);
    forget(first), forget(second);
    tk_batcher_destroy(b);
}

static void a_cancelled_request_costs_no_pass(void **state)
{
    (void)state;
    tk_batcher *b = start((tk_batcher_opts){.decode_threads = 1});
    stall s;
    stall_begin(&s, b, 1);
    asked *a = ask(one, 0, 8), *other = ask(one, 0, 1);
    assert_int_equal(tk_batcher_submit(b, a->infer, NULL), TK_OK);
    assert_int_equal(tk_batcher_submit(b, other->infer, NULL), TK_OK);
    set_gone(a);
    stall_end(&s);
    assert_int_equal(wait_for(a), TK_CANCELLED);
    assert_int_equal(wait_for(other), TK_OK);
    assert_int_equal(tk_batcher_get_stats(b).images, 1);
    forget(a), forget(other);
    tk_batcher_destroy(b);
}

static void cancelled_requests_make_room_in_a_full_queue(void **state)
{
    (void)state;
    tk_batcher *b = start((tk_batcher_opts){.decode_threads = 1, .max_images = 4});
    stall s;
    stall_begin(&s, b, 1);
    asked *a = ask(one, 0, 4), *other = ask(one, 0, 4);
    assert_int_equal(tk_batcher_submit(b, a->infer, NULL), TK_OK);
    assert_int_equal(tk_batcher_submit(b, other->infer, NULL), TK_LIMIT);
    set_gone(a);
    assert_int_equal(tk_batcher_submit(b, other->infer, NULL), TK_OK);
    assert_int_equal(wait_for(a), TK_CANCELLED); /* already, while all decode threads are held up */
    stall_end(&s);
    assert_int_equal(wait_for(other), TK_OK);
    forget(a), forget(other);
    tk_batcher_destroy(b);
}

static void a_late_request_is_dropped_with_its_deadline(void **state)
{
    (void)state;
    tk_batcher *b = start((tk_batcher_opts){.decode_threads = 1});
    asked *a = ask(one, 0, 3);
    a->infer->deadline_ns = 1; /* long ago */
    assert_int_equal(tk_batcher_submit(b, a->infer, NULL), TK_OK);
    assert_int_equal(wait_for(a), TK_DEADLINE);
    assert_non_null(strstr(a->reason, "deadline"));
    assert_int_equal(tk_batcher_get_stats(b).images, 0);
    forget(a);
    tk_batcher_destroy(b);
}

static void a_small_request_does_not_wait_behind_a_large_one(void **state)
{
    (void)state;
    tk_batcher *b = start((tk_batcher_opts){.decode_threads = 1});
    stall s;
    stall_begin(&s, b, 1);
    unsigned counter = 0;
    asked *large = ask(one, 0, 16), *small = ask(one, 0, 1);
    large->counter = small->counter = &counter;
    assert_int_equal(tk_batcher_submit(b, large->infer, NULL), TK_OK);
    assert_int_equal(tk_batcher_submit(b, small->infer, NULL), TK_OK);
    stall_end(&s);
    assert_int_equal(wait_for(large), TK_OK);
    assert_int_equal(wait_for(small), TK_OK);
    assert_int_equal(small->order, 1);
    forget(large), forget(small);
    tk_batcher_destroy(b);
}

static void a_lone_request_does_not_wait_for_the_delay(void **state)
{
    (void)state;
    /* A delay of a minute: the test would time out if it were waited for. */
    tk_batcher *b = start((tk_batcher_opts){.decode_threads = 2, .max_delay_us = 60000000});
    asked *a = ask(one, 0, BATCH + 1);
    assert_int_equal(tk_batcher_submit(b, a->infer, NULL), TK_OK);
    assert_int_equal(wait_for(a), TK_OK);
    forget(a);
    tk_batcher_destroy(b);
}

static void destroy_ends_what_still_waits(void **state)
{
    (void)state;
    const long live = tk_test_alloc_live();
    tk_batcher *b = start((tk_batcher_opts){.decode_threads = 2, .max_delay_us = 1000});
    asked *all[10];
    for (size_t i = 0; i < 10; i++) {
        all[i] = ask(one, i, 9);
        assert_int_equal(tk_batcher_submit(b, all[i]->infer, NULL), TK_OK);
    }
    tk_batcher_destroy(b);
    for (size_t i = 0; i < 10; i++) {
        assert_true(all[i]->done);
        assert_true(all[i]->err == TK_OK || all[i]->err == TK_CANCELLED);
        forget(all[i]);
    }
    assert_int_equal(tk_test_alloc_live(), live);
}

/* -- many at once, while versions change -- */

typedef struct client {
    tk_batcher *batcher;
    tk_current *current;
    size_t seed, wrong;
    tk_top (*want)[PICTURES][FIXTURE_TYPES + FIXTURE_COLOURS];
} client;

static void *client_main(void *arg)
{
    client *c = arg;
    for (size_t i = 0; i < 10; i++) {
        const size_t first = (c->seed * 7 + i) % PICTURES, n = 1 + (c->seed + i) % 4;
        tk_snapshot *snapshot = tk_current_get(c->current);
        asked *a = ask(snapshot, first, n);
        const size_t version = tk_snapshot_number(snapshot) - 1;
        tk_snapshot_unref(snapshot);
        if (i % 5 == 4) set_gone(a);
        if (tk_batcher_submit(c->batcher, a->infer, NULL) != TK_OK) {
            c->wrong++;
        } else if (wait_for(a) == TK_OK) {
            for (size_t k = 0; k < n; k++) {
                c->wrong +=
                    memcmp(a->infer->images[k].top, c->want[version][(first + k) % PICTURES],
                           sizeof c->want[0][0]) != 0;
            }
        } else if (i % 5 != 4) {
            c->wrong++;
        }
        forget(a);
    }
    return NULL;
}

static void many_clients_get_right_answers_while_versions_swap(void **state)
{
    (void)state;
    static tk_top want[2][PICTURES][FIXTURE_TYPES + FIXTURE_COLOURS];
    ask_alone(one, want[0]);
    ask_alone(two, want[1]);
    tk_batcher *b = start((tk_batcher_opts){.decode_threads = 2, .max_delay_us = 1000});
    tk_current *current;
    assert_int_equal(tk_current_create(&current), TK_OK);
    tk_current_set(current, tk_snapshot_ref(one));
    client clients[4];
    pthread_t threads[4];
    for (size_t i = 0; i < 4; i++) {
        clients[i] = (client){b, current, i, 0, want};
        assert_int_equal(pthread_create(&threads[i], NULL, client_main, &clients[i]), 0);
    }
    for (int i = 0; i < 60; i++) {
        tk_current_set(current, tk_snapshot_ref(i % 2 ? one : two));
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    for (size_t i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(clients[i].wrong, 0);
    }
    tk_batcher_destroy(b);
    tk_current_destroy(current);
}

static void add_one(void *ctx, size_t i)
{
    ((int *)ctx)[i]++;
}

static void spread_work_is_done_once_each_beside_requests(void **state)
{
    (void)state;
    tk_batcher *b = start((tk_batcher_opts){.decode_threads = 2});
    asked *a = ask(one, 0, 10);
    assert_int_equal(tk_batcher_submit(b, a->infer, NULL), TK_OK);
    int counts[500] = {0};
    tk_batcher_spread(b, 500, add_one, counts);
    for (size_t i = 0; i < 500; i++)
        assert_int_equal(counts[i], 1);
    tk_batcher_spread(b, 0, add_one, counts);
    assert_int_equal(wait_for(a), TK_OK);
    forget(a);
    tk_batcher_destroy(b);
}

static int set_up(void **state)
{
    (void)state;
    if (tk_snapshot_create(&one, fixture_model(11), 1, BATCH, 2, NULL) != TK_OK) return -1;
    if (tk_snapshot_create(&two, fixture_model(12), 2, BATCH, 2, NULL) != TK_OK) return -1;
    pictures_make();
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    pictures_free();
    tk_snapshot_unref(one);
    tk_snapshot_unref(two);
    return tk_test_alloc_live() == 0 ? 0 : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_are_bit_identical_whatever_the_batch),
        cmocka_unit_test(a_request_is_answered_wholly_by_its_version),
        cmocka_unit_test(one_bad_image_has_its_reason_and_the_rest_an_answer),
        cmocka_unit_test(a_full_queue_refuses_and_names_limit_and_value),
        cmocka_unit_test(a_full_queue_counts_bytes_too),
        cmocka_unit_test(a_cancelled_request_costs_no_pass),
        cmocka_unit_test(cancelled_requests_make_room_in_a_full_queue),
        cmocka_unit_test(a_late_request_is_dropped_with_its_deadline),
        cmocka_unit_test(a_small_request_does_not_wait_behind_a_large_one),
        cmocka_unit_test(a_lone_request_does_not_wait_for_the_delay),
        cmocka_unit_test(destroy_ends_what_still_waits),
        cmocka_unit_test(many_clients_get_right_answers_while_versions_swap),
        cmocka_unit_test(spread_work_is_done_once_each_beside_requests),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
