/* Tenants in the queue: who is next, how much each may have in it and how fast, and what happens to
 * those whose deadline comes first. Counts and orders only; where time matters the clock is ours.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "batcher_fixture.h"
#include "engine/mem.h"
#include "serving/batcher_internal.h"
#include "serving/fair.h"

enum { ALICE = 1, BOB = 2, CAROL = 3 };

static const int64_t ms = 1000000, second = 1000000000;

static tk_snapshot *model;

/* -- the order -- */

static void equal_flows_take_turns_and_a_pause_earns_nothing(void **state)
{
    (void)state;
    tk__fair fair = {0};
    tk__flow a = {0}, b = {0};
    assert_int_equal(tk__fair_reserve(&fair, 2), TK_OK);
    assert_null(tk__fair_first(&fair));
    tk__fair_add(&fair, &a);
    for (int i = 0; i < 100; i++) { /* a alone for a while */
        assert_ptr_equal(tk__fair_first(&fair), &a);
        tk__fair_charge(&fair, &a, 1);
    }
    tk__fair_add(&fair, &b);
    const tk__flow *want[] = {&b, &a, &b, &a, &b, &a};
    for (size_t i = 0; i < 6; i++) {
        tk__flow *first = tk__fair_first(&fair);
        assert_ptr_equal(first, want[i]);
        tk__fair_charge(&fair, first, 1);
    }
    tk__fair_remove(&fair, &b); /* b goes, and comes back before anything was done: no gain */
    tk__fair_add(&fair, &b);
    tk__fair_charge(&fair, tk__fair_first(&fair), 1);
    tk__fair_charge(&fair, tk__fair_first(&fair), 1);
    assert_true(llabs((long long)(a.start - b.start)) <= 1);
    tk__fair_fini(&fair);
}

static void one_set_aside_keeps_its_turn(void **state)
{
    (void)state;
    tk__fair fair = {0};
    tk__flow a = {0}, b = {0};
    assert_int_equal(tk__fair_reserve(&fair, 2), TK_OK);
    tk__fair_add(&fair, &a);
    tk__fair_add(&fair, &b);
    tk__fair_remove(&fair, &a);
    for (int i = 0; i < 10; i++)
        tk__fair_charge(&fair, &b, 1);
    tk__fair_restore(&fair, &a);
    for (int i = 0; i < 9; i++) { /* what b had, a may have, too */
        assert_ptr_equal(tk__fair_first(&fair), &a);
        tk__fair_charge(&fair, &a, 1);
    }
    tk__fair_fini(&fair);
}

static unsigned draw(uint64_t *seed, unsigned below)
{
    *seed = *seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (unsigned)(*seed >> 33) % below;
}

static void busy_flows_get_the_same_within_two_items(void **state)
{
    (void)state;
    enum { N = 50, MOST = 20 };
    tk__fair fair = {0};
    tk__flow flows[N] = {{0}};
    uint64_t got[N] = {0}, seed = 1;
    assert_int_equal(tk__fair_reserve(&fair, N), TK_OK);
    for (size_t i = 0; i < N; i++)
        tk__fair_add(&fair, &flows[i]);
    for (unsigned i = 0; i < 20000; i++) {
        tk__flow *first = tk__fair_first(&fair);
        const unsigned cost = first == &flows[0] ? MOST : 1 + draw(&seed, MOST);
        got[first - flows] += cost;
        tk__fair_charge(&fair, first, cost);
        tk__flow *any = &flows[draw(&seed, N)]; /* out and in again changes nothing */
        tk__fair_remove(&fair, any);
        tk__fair_restore(&fair, any);
        assert_int_equal(fair.n, N);
    }
    for (size_t i = 1; i < N; i++)
        assert_true(llabs((long long)(got[i] - got[0])) <= 2 * MOST);
    tk__fair_fini(&fair);
}

/* -- the pace -- */

static void the_pace_is_known_from_busy_passes_only(void **state)
{
    (void)state;
    tk__pace pace = {0};
    int64_t now = 0;
    for (int i = 0; i < 10; i++)
        tk__pace_pass(&pace, now += second, 16, 16, false); /* mostly idle between them */
    assert_int_equal(tk__pace_of(&pace, 1), -1);
    tk__pace_pass(&pace, now += second, 16, 16, true);
    for (int i = 0; i < 10; i++)
        tk__pace_pass(&pace, now += 32 * ms, 16, 16, true);
    assert_int_equal(tk__pace_of(&pace, 10), 20 * ms);
    tk__pace_pass(&pace, now += 3600 * second, 16, 16, true); /* the machine slept */
    assert_true(tk__pace_of(&pace, 10) < 30 * ms);
    tk__pace_pass(&pace, now, 16, 16, true); /* a clock that stands says nothing */
    for (int i = 0; i < 200; i++)
        tk__pace_pass(&pace, now += 64 * ms, 16, 8, true);
    const int64_t slower = tk__pace_of(&pace, 10);
    assert_true(slower > 39 * ms && slower < 41 * ms);
    assert_true(pace.inflow > 0.49 && pace.inflow < 0.51);
    tk__pace_pass(&pace, now += 64 * ms, 16, 8, false);
    assert_true(pace.inflow == 0);
}

/* -- records -- */

static void records_of_idle_tenants_make_room_for_others(void **state)
{
    (void)state;
    tk__tenants tenants = {.rate = 10};
    tk__tenant *kept = tk__tenants_get(&tenants, 1, 0);
    kept->images = 1;
    const tk__tenant *indebted = tk__tenants_get(&tenants, 2, 0);
    assert_int_equal(tk__tenant_spend(&tenants, tk__tenants_get(&tenants, 2, 0), 100, 0), 0);
    for (int64_t id = 3; id < 5000; id++) {
        assert_non_null(tk__tenants_get(&tenants, id, 0));
        assert_true(tenants.n <= 64);
    }
    assert_ptr_equal(tk__tenants_get(&tenants, 1, 0), kept);
    assert_ptr_equal(tk__tenants_get(&tenants, 2, 0), indebted);
    for (int64_t id = -100; id < 100; id++) { /* all busy: the table grows instead */
        tk__tenant *t = tk__tenants_get(&tenants, id, 0);
        assert_int_equal(t->id, id);
        t->images = 1;
    }
    for (int64_t id = -100; id < 100; id++)
        assert_int_equal(tk__tenants_get(&tenants, id, 0)->images, 1);
    tk__tenants_fini(&tenants);
}

/* -- the batcher: order -- */

static asked *submit(tk_batcher *b, int64_t tenant, size_t n, unsigned *counter)
{
    asked *a = ask_as(tenant, model, n);
    a->counter = counter;
    tk_diag diag;
    if (tk_batcher_submit(b, a->infer, &diag) != TK_OK) fail_msg("%s", diag.text);
    return a;
}

static void settle(asked *a, tk_err want)
{
    assert_int_equal(wait_for(a), want);
    forget(a);
}

static void a_flood_waits_its_turn_in_decoding(void **state)
{
    (void)state;
    tk_batcher *b = start((tk_batcher_opts){.decode_threads = 1});
    unsigned counter = 0;
    stall s;
    stall_begin(&s, b, 1);
    asked *flood[60], *few[3];
    for (size_t i = 0; i < 60; i++)
        flood[i] = submit(b, ALICE, 1, &counter);
    for (size_t i = 0; i < 3; i++)
        few[i] = submit(b, BOB, 1, &counter);
    assert_int_equal(tk_batcher_get_stats(b).tenants, 2);
    stall_end(&s);
    for (unsigned i = 0; i < 3; i++) { /* as many of alice's as of bob's, and one pass */
        assert_int_equal(wait_for(few[i]), TK_OK);
        assert_true(few[i]->order <= 2 * (i + 1) + BATCH);
        forget(few[i]);
    }
    for (size_t i = 0; i < 60; i++)
        settle(flood[i], TK_OK);
    assert_int_equal(tk_batcher_get_stats(b).tenants, 0);
    tk_batcher_destroy(b);
}

static void one_large_request_is_no_way_around_it(void **state)
{
    (void)state;
    tk_batcher *b = start((tk_batcher_opts){.decode_threads = 1});
    unsigned counter = 0;
    stall s;
    stall_begin(&s, b, 1);
    asked *large = submit(b, ALICE, 40, &counter), *more = submit(b, ALICE, 40, &counter),
          *few = submit(b, BOB, 20, &counter);
    stall_end(&s);
    assert_int_equal(wait_for(few), TK_OK);
    assert_int_equal(few->order, 1);
    assert_true(tk_batcher_get_stats(b).images <= 20 + 20 + 2 * BATCH);
    forget(few);
    settle(large, TK_OK);
    settle(more, TK_OK);
    tk_batcher_destroy(b);
}

/* The executor is behind and all canvases are the flood's: another tenant's image is decoded all
 * the same, and is in the next pass. */
static void a_flood_of_canvases_does_not_keep_others_out_of_the_next_pass(void **state)
{
    (void)state;
    enum { AHEAD = 4 * BATCH };
    tk_batcher *b = start((tk_batcher_opts){.decode_threads = 2});
    unsigned counter = 0;
    plug p;
    plug_begin(&p, b, model, CAROL);
    asked *flood[40], *one_more = NULL;
    for (size_t i = 0; i < 40; i++)
        flood[i] = submit(b, ALICE, 1, &counter);
    wait_ready(b, AHEAD);
    one_more = submit(b, BOB, 1, &counter);
    wait_ready(b, AHEAD + 1);
    assert_int_equal(tk_batcher_get_stats(b).decoded, 1 + AHEAD + 1); /* not more of the flood */
    plug_end(&p);
    assert_int_equal(wait_for(one_more), TK_OK);
    assert_true(one_more->order <= BATCH);
    forget(one_more);
    for (size_t i = 0; i < 40; i++)
        settle(flood[i], TK_OK);
    assert_int_equal(tk_batcher_get_stats(b).decoded, 42);
    assert_int_equal(tk_batcher_get_stats(b).images, 42);
    tk_batcher_destroy(b);
    tk_infer_destroy(p.infer);
}

/* None of these can be read, so each ends where it is decoded, one after the other. */
static asked *submit_junk(tk_batcher *b, int64_t tenant, size_t size, unsigned *counter)
{
    static const uint8_t junk[1 << 20];
    asked *a = ask_as(tenant, model, 1);
    a->counter = counter;
    a->infer->images[0].data = junk;
    a->infer->images[0].size = size;
    assert_int_equal(tk_batcher_submit(b, a->infer, NULL), TK_OK);
    return a;
}

static void bytes_count_in_the_order_of_decoding(void **state)
{
    (void)state;
    enum { HEAVY = 3, LIGHT = 20 };
    tk_batcher *b = start((tk_batcher_opts){.decode_threads = 1});
    unsigned counter = 0;
    stall s;
    stall_begin(&s, b, 1);
    asked *heavy[HEAVY], *light[LIGHT];
    for (size_t i = 0; i < HEAVY; i++)
        heavy[i] = submit_junk(b, ALICE, 1 << 20, &counter);
    for (size_t i = 0; i < LIGHT; i++)
        light[i] = submit_junk(b, BOB, 1 << 10, &counter);
    stall_end(&s);
    for (size_t i = 0; i < HEAVY; i++) { /* a MiB is worth more than 20 small images */
        assert_int_equal(wait_for(heavy[i]), TK_OK);
        assert_non_null(heavy[i]->infer->images[0].error);
        assert_int_equal(heavy[i]->order, i == 0 ? 1 : 1 + LIGHT + i);
        forget(heavy[i]);
    }
    for (size_t i = 0; i < LIGHT; i++) {
        assert_int_equal(wait_for(light[i]), TK_OK);
        assert_int_equal(light[i]->order, 2 + i);
        forget(light[i]);
    }
    assert_int_equal(tk_batcher_get_stats(b).images, 0);
    tk_batcher_destroy(b);
}

static void hundreds_of_tenants_are_all_answered(void **state)
{
    (void)state;
    enum { N = 500 };
    tk_batcher *b = start((tk_batcher_opts){.decode_threads = 2});
    stall s;
    stall_begin(&s, b, 2);
    asked *all[N];
    for (size_t i = 0; i < N; i++) {
        all[i] = ask_as((int64_t)i, model, 1);
        if (i % 10) all[i]->infer->images[0].size = 0; /* broken: costs no pass */
        assert_int_equal(tk_batcher_submit(b, all[i]->infer, NULL), TK_OK);
    }
    assert_int_equal(tk_batcher_get_stats(b).tenants, N);
    stall_end(&s);
    for (size_t i = 0; i < N; i++)
        settle(all[i], TK_OK);
    assert_int_equal(tk_batcher_get_stats(b).images, N / 10);
    tk_batcher_destroy(b);
}

/* -- limits -- */

/* The request must be refused with this in the sentence; gives what it says about trying again. */
static uint32_t refused(tk_batcher *b, int64_t tenant, size_t n, tk_err want, const char *words)
{
    asked *a = ask_as(tenant, model, n);
    tk_diag diag = {{0}};
    assert_int_equal(tk_batcher_submit(b, a->infer, &diag), want);
    if (!strstr(diag.text, words)) fail_msg("expected \"%s\" in: %s", words, diag.text);
    const uint32_t retry = a->infer->retry_ms;
    forget(a);
    return retry;
}

static void a_tenants_limit_is_its_own(void **state)
{
    (void)state;
    tk_batcher *b = start((tk_batcher_opts){.decode_threads = 1, .max_tenant_images = 4});
    stall s;
    stall_begin(&s, b, 1);
    asked *a = submit(b, ALICE, 3, NULL);
    assert_true(refused(b, ALICE, 2, TK_LIMIT, "3 images of yours wait and 2 more") > 0);
    assert_true(refused(b, ALICE, 2, TK_LIMIT, "limit is 4 (--tenant-queue)") > 0);
    asked *other = submit(b, BOB, 4, NULL), *last = submit(b, ALICE, 1, NULL);
    set_gone(a); /* makes room at once */
    asked *again = submit(b, ALICE, 3, NULL);
    settle(a, TK_CANCELLED);
    stall_end(&s);
    settle(other, TK_OK);
    settle(last, TK_OK);
    settle(again, TK_OK);
    settle(submit(b, ALICE, 4, NULL), TK_OK);
    const tk_batcher_stats stats = tk_batcher_get_stats(b);
    assert_int_equal(stats.refused_tenant, 2);
    assert_int_equal(stats.refused_full + stats.refused_rate + stats.refused_deadline, 0);
    assert_int_equal(stats.cancelled, 1);
    assert_int_equal(stats.late, 0);
    assert_int_equal(stats.decoded, 4 + 1 + 3 + 4); /* nothing of what was cancelled */
    tk_batcher_destroy(b);
}

static void a_tenants_bytes_are_limited_too(void **state)
{
    (void)state;
    const size_t size = pictures[0].size;
    tk_batcher *b = start((tk_batcher_opts){.decode_threads = 1, .max_tenant_bytes = 2 * size});
    stall s;
    stall_begin(&s, b, 1);
    asked *a = submit(b, ALICE, 2, NULL);
    assert_true(refused(b, ALICE, 1, TK_LIMIT, "bytes") > 0);
    asked *other = submit(b, BOB, 1, NULL);
    stall_end(&s);
    settle(a, TK_OK);
    settle(other, TK_OK);
    tk_batcher_destroy(b);
}

static void the_last_eighth_is_for_tenants_with_little(void **state)
{
    (void)state;
    tk_batcher *b = start((tk_batcher_opts){.decode_threads = 1, .max_images = 64});
    stall s;
    stall_begin(&s, b, 1);
    asked *a = submit(b, ALICE, 28, NULL), *other = submit(b, BOB, 28, NULL);
    assert_true(refused(b, ALICE, 1, TK_LIMIT, "limit is 56 images (64 by --queue") > 0);
    asked *third = submit(b, CAROL, 1, NULL), *fourth = submit(b, CAROL, 1, NULL);
    refused(b, CAROL, 1, TK_LIMIT, "58 images wait and 1 more");
    asked *whole = submit(b, CAROL + 1, 6, NULL);
    refused(b, CAROL + 2, 1, TK_LIMIT, "limit is 64 images");
    assert_int_equal(tk_batcher_get_stats(b).refused_full, 3);
    stall_end(&s);
    asked *all[] = {a, other, third, fourth, whole};
    for (size_t i = 0; i < 5; i++)
        settle(all[i], TK_OK);
    tk_batcher_destroy(b);
}

/* -- time -- */

static _Atomic int64_t time_now = 1000000000;

static int64_t our_clock(void)
{
    return time_now;
}

static void the_rate_allows_a_seconds_images_at_once(void **state)
{
    (void)state;
    tk_batcher *b =
        start((tk_batcher_opts){.decode_threads = 1, .max_tenant_rate = 10, .clock = our_clock});
    for (int i = 0; i < 5; i++)
        settle(submit(b, ALICE, 2, NULL), TK_OK);
    assert_int_equal(refused(b, ALICE, 1, TK_LIMIT, "limit is 10 images a second"), 100);
    settle(submit(b, BOB, 10, NULL), TK_OK); /* each its own */
    time_now += 99 * ms;
    assert_int_equal(refused(b, ALICE, 1, TK_LIMIT, "--tenant-rate"), 1);
    time_now += 1 * ms; /* a refusal costs nothing */
    settle(submit(b, ALICE, 1, NULL), TK_OK);
    assert_int_equal(refused(b, ALICE, 25, TK_LIMIT, "25 images were sent"), 1000);
    time_now += 3600 * second; /* unused seconds are not saved up */
    settle(submit(b, ALICE, 25, NULL), TK_OK);
    assert_int_equal(refused(b, ALICE, 1, TK_LIMIT, "too fast"), 1600); /* it is paid off first */
    time_now += 1600 * ms;
    settle(submit(b, ALICE, 1, NULL), TK_OK);
    assert_int_equal(tk_batcher_get_stats(b).refused_rate, 4);
    tk_batcher_destroy(b);
}

static void a_deadline_passed_in_the_queue_costs_no_decode(void **state)
{
    (void)state;
    tk_batcher *b = start((tk_batcher_opts){.decode_threads = 1, .clock = our_clock});
    stall s;
    stall_begin(&s, b, 1);
    asked *late = ask_as(ALICE, model, 5);
    late->infer->deadline_ns = time_now + 10 * ms;
    assert_int_equal(tk_batcher_submit(b, late->infer, NULL), TK_OK);
    asked *other = submit(b, ALICE, 1, NULL);
    time_now += 10 * ms;
    stall_end(&s);
    assert_int_equal(wait_for(late), TK_DEADLINE);
    assert_non_null(strstr(late->reason, "deadline could not be met"));
    forget(late);
    settle(other, TK_OK);
    const tk_batcher_stats stats = tk_batcher_get_stats(b);
    assert_int_equal(stats.decoded, 1);
    assert_int_equal(stats.images, 1);
    assert_int_equal(stats.late, 1);
    assert_int_equal(stats.queue, 0);
    tk_batcher_destroy(b);
}

static void what_ends_after_its_decoding_costs_no_pass(void **state)
{
    (void)state;
    tk_batcher *b = start((tk_batcher_opts){.decode_threads = 1, .clock = our_clock});
    plug p;
    plug_begin(&p, b, model, CAROL);
    asked *late = ask_as(ALICE, model, 2);
    late->infer->deadline_ns = time_now + 10 * ms;
    assert_int_equal(tk_batcher_submit(b, late->infer, NULL), TK_OK);
    asked *gone = submit(b, BOB, 2, NULL), *other = submit(b, BOB, 1, NULL);
    wait_ready(b, 5);
    time_now += 10 * ms;
    set_gone(gone);
    plug_end(&p);
    settle(late, TK_DEADLINE);
    settle(gone, TK_CANCELLED);
    settle(other, TK_OK);
    const tk_batcher_stats stats = tk_batcher_get_stats(b);
    assert_int_equal(stats.decoded, 6);
    assert_int_equal(stats.images, 2); /* the plug's, and other's */
    assert_int_equal(stats.late, 1);
    assert_int_equal(stats.cancelled, 1);
    tk_batcher_destroy(b);
    tk_infer_destroy(p.infer);
}

/* In a long queue an image that would be late with the next pass is given up, not computed. */
static void what_cannot_be_in_time_costs_no_pass(void **state)
{
    (void)state;
    tk_batcher *b = start((tk_batcher_opts){.decode_threads = 1, .clock = our_clock});
    plug p;
    plug_begin(&p, b, model, CAROL);
    asked *late = ask_as(ALICE, model, 1), *soon = ask_as(BOB, model, 1);
    late->infer->deadline_ns = time_now + 29 * ms;
    soon->infer->deadline_ns = time_now + 31 * ms;
    assert_int_equal(tk_batcher_submit(b, late->infer, NULL), TK_OK);
    assert_int_equal(tk_batcher_submit(b, soon->infer, NULL), TK_OK);
    asked *others = submit(b, CAROL, 2, NULL);
    wait_ready(b, 4);
    pthread_mutex_lock(&b->lock); /* a pass of four takes 40 ms, or 30 with luck */
    b->pace = (tk__pace){.image_ns = 10e6, .passes = 100, .busy = true};
    pthread_mutex_unlock(&b->lock);
    plug_end(&p);
    settle(late, TK_DEADLINE);
    settle(soon, TK_OK);
    settle(others, TK_OK);
    const tk_batcher_stats stats = tk_batcher_get_stats(b);
    assert_int_equal(stats.images, 1 + 3);
    assert_int_equal(stats.late, 1);
    tk_batcher_destroy(b);
    tk_infer_destroy(p.infer);
}

/* A millisecond passes with each look: an image takes a few. */
static int64_t ticking_clock(void)
{
    return time_now += 1 * ms;
}

static void a_deadline_that_cannot_be_met_is_refused_at_once(void **state)
{
    (void)state;
    tk_batcher *b = start((tk_batcher_opts){.decode_threads = 1, .clock = ticking_clock});
    stall s;
    stall_begin(&s, b, 1);
    asked *first = submit(b, ALICE, 100, NULL);
    asked *soon = ask_as(ALICE, model, 100); /* nothing is known of the pace: it is taken */
    soon->infer->deadline_ns = time_now + 50 * ms;
    assert_int_equal(tk_batcher_submit(b, soon->infer, NULL), TK_OK);
    stall_end(&s);
    settle(first, TK_OK);
    settle(soon, TK_DEADLINE);

    stall_begin(&s, b, 1);
    asked *few = ask_as(BOB, model, 1); /* a short queue refuses nobody */
    few->infer->deadline_ns = time_now + 1 * ms;
    assert_int_equal(tk_batcher_submit(b, few->infer, NULL), TK_OK);
    asked *ahead = submit(b, ALICE, 400, NULL);
    const uint64_t decoded = tk_batcher_get_stats(b).decoded;
    asked *hopeless = ask_as(ALICE, model, 200);
    hopeless->infer->deadline_ns = time_now + 200 * ms;
    tk_diag diag;
    assert_int_equal(tk_batcher_submit(b, hopeless->infer, &diag), TK_DEADLINE);
    assert_non_null(strstr(diag.text, "401 images in the queue"));
    assert_int_equal(hopeless->infer->retry_ms, 0);
    forget(hopeless);
    asked *modest = ask_as(CAROL, model, 1); /* its turn is soon, however much alice has sent */
    modest->infer->deadline_ns = time_now + 400 * ms;
    assert_int_equal(tk_batcher_submit(b, modest->infer, NULL), TK_OK);
    asked *patient = ask_as(ALICE, model, 200);
    patient->infer->deadline_ns = time_now + 3600 * second;
    assert_int_equal(tk_batcher_submit(b, patient->infer, NULL), TK_OK);
    assert_int_equal(tk_batcher_get_stats(b).refused_deadline, 1);
    assert_int_equal(tk_batcher_get_stats(b).decoded, decoded);
    stall_end(&s);
    settle(few, TK_DEADLINE);
    settle(ahead, TK_OK);
    settle(patient, TK_OK);
    wait_for(modest); /* whether it was in time is the clock's */
    forget(modest);
    tk_batcher_destroy(b);
}

/* Of eleven tenants with an image each one sends a second: all the others' next ones may have their
 * turns before, if they keep coming. */
static void a_second_turn_comes_after_what_others_send_meanwhile(void **state)
{
    (void)state;
    enum { OTHERS = 10 };
    tk_batcher *b = start((tk_batcher_opts){.decode_threads = 1, .clock = our_clock});
    plug p;
    plug_begin(&p, b, model, CAROL);
    asked *others[OTHERS], *first = submit(b, ALICE, 1, NULL);
    for (size_t i = 0; i < OTHERS; i++)
        others[i] = submit(b, 100 + (int64_t)i, 1, NULL);
    wait_ready(b, 1 + OTHERS);
    /* Three passes of four take 120 ms, six 240, and a quarter more. */
    pthread_mutex_lock(&b->lock);
    b->pace = (tk__pace){.image_ns = 10e6, .passes = 100, .busy = true, .inflow = 1};
    pthread_mutex_unlock(&b->lock);
    asked *again = ask_as(ALICE, model, 1);
    again->infer->deadline_ns = time_now + 160 * ms;
    assert_int_equal(tk_batcher_submit(b, again->infer, NULL), TK_DEADLINE);
    pthread_mutex_lock(&b->lock);
    b->pace.inflow = 0;
    pthread_mutex_unlock(&b->lock);
    assert_int_equal(tk_batcher_submit(b, again->infer, NULL), TK_OK);
    plug_end(&p);
    settle(first, TK_OK);
    settle(again, TK_OK);
    for (size_t i = 0; i < OTHERS; i++)
        settle(others[i], TK_OK);
    tk_batcher_destroy(b);
    tk_infer_destroy(p.infer);
}

/* -- memory -- */

static void a_new_tenant_without_memory_is_refused_and_nothing_is_left(void **state)
{
    (void)state;
    const long live = tk_test_alloc_live();
    tk_batcher *b = start((tk_batcher_opts){.decode_threads = 1});
    asked *a = ask_as(ALICE, model, 1);
    for (long n = 0;; n++) {
        tk_diag diag = {{0}};
        a->infer->images[0].size =
            0; /* the decoder, whose errors need memory, sees it at the end */
        tk_test_alloc_fail_after(n);
        stall s;
        stall_begin(&s, b, 1);
        const tk_err err = tk_batcher_submit(b, a->infer, &diag);
        tk_test_alloc_fail_after(-1);
        stall_end(&s);
        if (err == TK_OK) {
            assert_true(n > 2); /* the table, both orders, the record */
            break;
        }
        assert_int_equal(err, TK_NOMEM);
        assert_non_null(strstr(diag.text, "memory"));
        assert_int_equal(tk_batcher_get_stats(b).queue, 0);
    }
    settle(a, TK_OK);
    tk_batcher_destroy(b);
    assert_int_equal(tk_test_alloc_live(), live);
}

static int set_up(void **state)
{
    (void)state;
    pictures_make();
    return tk_snapshot_create(&model, fixture_model(11), 1, BATCH, 2, NULL) == TK_OK ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    pictures_free();
    tk_snapshot_unref(model);
    return tk_test_alloc_live() == 0 ? 0 : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equal_flows_take_turns_and_a_pause_earns_nothing),
        cmocka_unit_test(one_set_aside_keeps_its_turn),
        cmocka_unit_test(busy_flows_get_the_same_within_two_items),
        cmocka_unit_test(the_pace_is_known_from_busy_passes_only),
        cmocka_unit_test(records_of_idle_tenants_make_room_for_others),
        cmocka_unit_test(a_flood_waits_its_turn_in_decoding),
        cmocka_unit_test(one_large_request_is_no_way_around_it),
        cmocka_unit_test(a_flood_of_canvases_does_not_keep_others_out_of_the_next_pass),
        cmocka_unit_test(bytes_count_in_the_order_of_decoding),
        cmocka_unit_test(hundreds_of_tenants_are_all_answered),
        cmocka_unit_test(a_tenants_limit_is_its_own),
        cmocka_unit_test(a_tenants_bytes_are_limited_too),
        cmocka_unit_test(the_last_eighth_is_for_tenants_with_little),
        cmocka_unit_test(the_rate_allows_a_seconds_images_at_once),
        cmocka_unit_test(a_deadline_passed_in_the_queue_costs_no_decode),
        cmocka_unit_test(what_ends_after_its_decoding_costs_no_pass),
        cmocka_unit_test(what_cannot_be_in_time_costs_no_pass),
        cmocka_unit_test(a_deadline_that_cannot_be_met_is_refused_at_once),
        cmocka_unit_test(a_second_turn_comes_after_what_others_send_meanwhile),
        cmocka_unit_test(a_new_tenant_without_memory_is_refused_and_nothing_is_left),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
