/* Weights of tenants and priorities of their requests: who gets how much of a busy queue, and that
 * nobody gets past others by asking. Counts and orders only. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "batcher_fixture.h"
#include "engine/mem.h"
#include "serving/fair.h"
#include "serving/tenants.h"

enum { ALICE = 1, BOB = 2, CAROL = 3, FLOOD = 60 };

static const int64_t second = 1000000000;

static tk_snapshot *model;

/* -- a simulated queue -- */

static unsigned draw(uint64_t *seed, unsigned below)
{
    *seed = *seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (unsigned)(*seed >> 33) % below;
}

/* Always busy, items of any cost. */
static void shares_are_as_the_weights(void **state)
{
    (void)state;
    static const double weights[] = {0.01, 0.1, 0.5, 1, 1, 2, 7, 100};
    enum { N = sizeof weights / sizeof weights[0], ROUNDS = 2000000 };
    tk__fair fair = {0};
    tk__flow flows[N] = {{0}};
    double got[N] = {0}, all = 0, sum = 0;
    uint64_t seed = 3;
    assert_int_equal(tk__fair_reserve(&fair, N), TK_OK);
    for (size_t i = 0; i < N; i++) {
        tk__fair_add(&fair, &flows[i]);
        sum += weights[i];
    }
    for (unsigned i = 0; i < ROUNDS; i++) {
        tk__flow *first = tk__fair_first(&fair);
        const size_t at = (size_t)(first - flows);
        const double cost = 1 + draw(&seed, 20);
        got[at] += cost;
        all += cost;
        tk__fair_charge(&fair, first, cost / weights[at]);
    }
    for (size_t i = 0; i < N; i++)
        if (fabs(got[i] / all / (weights[i] / sum) - 1) > 0.05)
            fail_msg("weight %g got %g of %g", weights[i], got[i], all);
    tk__fair_fini(&fair);
}

/* Two of three tenants are busy now and then only: what they leave is shared, and the pauses earn
 * them nothing. */
static void a_pause_earns_nothing_whatever_the_weight(void **state)
{
    (void)state;
    enum { HEAVY, STEADY, N };
    static const double weights[] = {10, 1};
    tk__fair fair = {0};
    tk__flow flows[N] = {{0}};
    assert_int_equal(tk__fair_reserve(&fair, N), TK_OK);
    tk__fair_add(&fair, &flows[STEADY]);
    for (int i = 0; i < 1000; i++)
        tk__fair_charge(&fair, &flows[STEADY], 1);
    tk__fair_add(&fair, &flows[HEAVY]);
    unsigned got[N] = {0};
    for (int i = 0; i < 110; i++) {
        tk__flow *first = tk__fair_first(&fair);
        got[first - flows]++;
        tk__fair_charge(&fair, first, 1 / weights[first - flows]);
    }
    assert_in_range(got[STEADY], 9, 11);
    tk__fair_fini(&fair);
}

/* -- the batcher -- */

static asked *submit(tk_batcher *b, int64_t tenant, unsigned priority, size_t n, unsigned *counter)
{
    asked *a = ask_as(tenant, model, n);
    a->counter = counter;
    a->infer->priority = priority;
    tk_diag diag;
    if (tk_batcher_submit(b, a->infer, &diag) != TK_OK) fail_msg("%s", diag.text);
    return a;
}

static void settle(asked *a)
{
    assert_int_equal(wait_for(a), TK_OK);
    forget(a);
}

static void weigh(tk_batcher *b, int64_t tenant, double weight)
{
    assert_int_equal(tk_batcher_set_tenant(b, tenant, &(tk_tenant_limits){.weight = weight}),
                     TK_OK);
}

/* Both wait with as much; how many of alice's are among the first `n` that are done? */
static unsigned of_the_first(unsigned n, asked *const alice[FLOOD])
{
    unsigned mine = 0;
    for (size_t i = 0; i < FLOOD; i++)
        mine += alice[i]->order <= n;
    return mine;
}

static unsigned share_of_alice(double first, double then)
{
    tk_batcher *b = start((tk_batcher_opts){.decode_threads = 1});
    weigh(b, ALICE, first);
    unsigned counter = 0;
    asked *alice[FLOOD], *bob[FLOOD];
    stall s;
    stall_begin(&s, b, 1);
    for (size_t i = 0; i < FLOOD; i++) {
        alice[i] = submit(b, ALICE, TK_PRIORITY_DEFAULT, 1, &counter);
        bob[i] = submit(b, BOB, TK_PRIORITY_DEFAULT, 1, &counter);
    }
    if (then != first) weigh(b, ALICE, then);
    stall_end(&s);
    for (size_t i = 0; i < FLOOD; i++) {
        assert_int_equal(wait_for(alice[i]), TK_OK);
        assert_int_equal(wait_for(bob[i]), TK_OK);
    }
    const unsigned mine = of_the_first(40, alice);
    for (size_t i = 0; i < FLOOD; i++) {
        forget(alice[i]);
        forget(bob[i]);
    }
    tk_batcher_destroy(b);
    return mine;
}

static void passes_are_filled_by_weight_at_once(void **state)
{
    (void)state;
    assert_in_range(share_of_alice(1, 1), 20 - BATCH, 20 + BATCH);
    assert_in_range(share_of_alice(3, 3), 30 - BATCH, 30 + BATCH);
    assert_in_range(share_of_alice(0.25, 0.25), 8 - BATCH, 8 + BATCH);
    assert_in_range(share_of_alice(1, 3), 30 - BATCH, 30 + BATCH); /* while they waited */
}

static void the_more_urgent_of_a_tenants_own_comes_first(void **state)
{
    (void)state;
    tk_batcher *b = start((tk_batcher_opts){.decode_threads = 1});
    unsigned counter = 0;
    stall s;
    stall_begin(&s, b, 1);
    asked *low = submit(b, ALICE, 5, 8, &counter);
    asked *usual[10], *urgent[10];
    for (size_t i = 0; i < 10; i++) {
        usual[i] = submit(b, ALICE, TK_PRIORITY_DEFAULT, 1, &counter);
        urgent[i] = submit(b, ALICE, 1, 1, &counter);
    }
    stall_end(&s);
    assert_int_equal(wait_for(low), TK_OK);
    for (size_t i = 0; i < 10; i++) { /* a pass ends as a whole, in any order */
        assert_int_equal(wait_for(urgent[i]), TK_OK);
        assert_int_equal(wait_for(usual[i]), TK_OK);
        assert_in_range(urgent[i]->order, 1, 10 + BATCH);
        assert_in_range(usual[i]->order, 10 - BATCH, 20 + BATCH);
    }
    assert_int_equal(low->order, 21);
    for (size_t i = 0; i < 10; i++) {
        forget(urgent[i]);
        forget(usual[i]);
    }
    forget(low);
    tk_batcher_destroy(b);
}

/* The same traffic, with all of alice's at `priority`: the sum of the places of bob's answers. */
static unsigned places_of_bob(unsigned priority)
{
    tk_batcher *b = start((tk_batcher_opts){.decode_threads = 1});
    unsigned counter = 0, places = 0;
    asked *alice[FLOOD], *bob[FLOOD];
    stall s;
    stall_begin(&s, b, 1);
    for (size_t i = 0; i < FLOOD; i++) {
        alice[i] = submit(b, ALICE, priority, 1, &counter);
        bob[i] = submit(b, BOB, 5, 1, &counter);
    }
    stall_end(&s);
    for (size_t i = 0; i < FLOOD; i++) {
        assert_int_equal(wait_for(bob[i]), TK_OK);
        places += bob[i]->order;
        settle(alice[i]);
        forget(bob[i]);
    }
    tk_batcher_destroy(b);
    return places;
}

static void a_priority_is_no_help_against_another_tenant(void **state)
{
    (void)state;
    const int usual = (int)places_of_bob(5), asking = (int)places_of_bob(1);
    assert_true(abs(usual - asking) <= FLOOD * BATCH / 2); /* the order within a pass is anyone's */
}

static void the_dead_leave_every_lane(void **state)
{
    (void)state;
    tk_batcher *b = start((tk_batcher_opts){.decode_threads = 1, .max_tenant_images = 10});
    stall s;
    stall_begin(&s, b, 1);
    asked *gone[10];
    for (unsigned i = 0; i < 10; i++) {
        gone[i] = submit(b, ALICE, 1 + i % 5, 1, NULL);
        if (i > 0) set_gone(gone[i]);
    }
    asked *one = submit(b, ALICE, 3, 9, NULL); /* there is room, as the nine are swept */
    for (unsigned i = 1; i < 10; i++) {
        assert_int_equal(wait_for(gone[i]), TK_CANCELLED);
        forget(gone[i]);
    }
    stall_end(&s);
    settle(gone[0]);
    settle(one);
    tk_batcher_destroy(b);
}

/* -- limits of one tenant -- */

static int64_t fake_now;

static int64_t fake_clock(void)
{
    return fake_now;
}

static tk_err try_(tk_batcher *b, int64_t tenant, size_t n, tk_diag *diag, uint32_t *retry_ms)
{
    asked *a = ask_as(tenant, model, n);
    const tk_err err = tk_batcher_submit(b, a->infer, diag);
    if (retry_ms) *retry_ms = a->infer->retry_ms;
    if (err == TK_OK) assert_int_equal(wait_for(a), TK_OK);
    forget(a);
    return err;
}

static void an_admins_rate_replaces_the_servers(void **state)
{
    (void)state;
    tk_diag diag;
    uint32_t retry_ms;
    fake_now = second;
    tk_batcher *b =
        start((tk_batcher_opts){.decode_threads = 1, .max_tenant_rate = 2, .clock = fake_clock});
    assert_int_equal(try_(b, ALICE, 2, &diag, NULL), TK_OK);
    assert_int_equal(try_(b, ALICE, 1, &diag, NULL), TK_LIMIT);
    assert_non_null(strstr(diag.text, "a tenant's limit is 2 images a second (--tenant-rate)"));
    assert_int_equal(tk_batcher_set_tenant(b, ALICE, &(tk_tenant_limits){.rate = 10, .change = 2}),
                     TK_OK);
    assert_int_equal(/* an older one that comes late */
                     tk_batcher_set_tenant(b, ALICE, &(tk_tenant_limits){.rate = 99, .change = 1}),
                     TK_OK);
    fake_now += second;
    assert_int_equal(try_(b, ALICE, 10, &diag, NULL), TK_OK);
    assert_int_equal(try_(b, ALICE, 1, &diag, &retry_ms), TK_LIMIT);
    assert_non_null(strstr(diag.text, "your limit is 10 images a second, of which"));
    assert_int_equal(retry_ms, 100);
    assert_int_equal(try_(b, BOB, 2, &diag, NULL), TK_OK);
    assert_int_equal(try_(b, BOB, 1, &diag, NULL), TK_LIMIT);
    assert_int_equal(tk_batcher_set_tenant(b, ALICE, &(tk_tenant_limits){.change = 3}), TK_OK);
    fake_now += second;
    assert_int_equal(try_(b, ALICE, 2, &diag, NULL), TK_OK);
    assert_int_equal(try_(b, ALICE, 1, &diag, NULL), TK_LIMIT);
    tk_batcher_destroy(b);
}

static void an_admins_part_of_the_queue_replaces_the_servers(void **state)
{
    (void)state;
    tk_diag diag;
    uint32_t retry_ms;
    tk_batcher *b = start((tk_batcher_opts){.decode_threads = 1, .max_tenant_images = 4});
    assert_int_equal(tk_batcher_set_tenant(b, ALICE, &(tk_tenant_limits){.images = 6}), TK_OK);
    assert_int_equal(tk_batcher_set_tenant(b, CAROL, &(tk_tenant_limits){.bytes = 1}), TK_OK);
    stall s;
    stall_begin(&s, b, 1);
    asked *a = submit(b, ALICE, 3, 6, NULL), *bobs = submit(b, BOB, 3, 4, NULL);
    assert_int_equal(try_(b, ALICE, 1, &diag, &retry_ms), TK_LIMIT);
    assert_non_null(strstr(diag.text, "your limit is 6; try again"));
    assert_true(retry_ms > 0);
    assert_int_equal(try_(b, ALICE, 7, &diag, &retry_ms), TK_LIMIT);
    assert_non_null(strstr(diag.text, "7 images were sent, your limit is 6"));
    assert_int_equal(retry_ms, 0); /* it never will */
    assert_int_equal(try_(b, BOB, 1, &diag, NULL), TK_LIMIT);
    assert_non_null(strstr(diag.text, "a tenant's limit is 4 (--tenant-queue)"));
    assert_int_equal(try_(b, CAROL, 1, &diag, &retry_ms), TK_LIMIT);
    assert_non_null(strstr(diag.text, "your limit is 1 bytes"));
    assert_int_equal(retry_ms, 0);
    stall_end(&s);
    settle(a);
    settle(bobs);
    tk_batcher_destroy(b);
}

static void what_is_set_outlasts_idle_times(void **state)
{
    (void)state;
    tk__tenants tenants = {.rate = 10};
    tk__tenant *set = tk__tenants_get(&tenants, 1, 0);
    tk__tenant_set(&tenants, set, &(tk_tenant_limits){.weight = 2}, 0);
    for (int64_t id = 2; id < 2000; id++)
        assert_non_null(tk__tenants_get(&tenants, id, 0));
    assert_true(tenants.n <= 64);
    assert_ptr_equal(tk__tenants_get(&tenants, 1, 0), set);
    assert_true(set->weight == 2);
    tk__tenants_fini(&tenants);
}

static void bounds_are_named(void **state)
{
    (void)state;
    static const struct {
        tk_tenant_limits limits;
        const char *words;
    } bad[] = {
        {{.weight = 0.009}, "weight is 0.009, but must be 0.01 to 100"},
        {{.weight = 101}, "weight is 101"},
        {{.weight = -1}, "weight is -1"},
        {{.weight = (double)NAN}, "weight is "},
        {{.rate = (double)INFINITY}, "rate is inf, but must be 0.01 to 1e+06"},
        {{.rate = -0.5}, "rate is -0.5"},
        {{.images = 1000001}, "images is 1e+06"},
        {{.bytes = 65535}, "bytes is 65535"},
        {{.bytes = UINT64_MAX}, "bytes is 1.84467e+19"},
    };
    tk_diag diag;
    assert_int_equal(tk_tenant_limits_check(&(tk_tenant_limits){0}, &diag), TK_OK);
    assert_int_equal(
        tk_tenant_limits_check(&(tk_tenant_limits){0.01, 1e6, 1000000, 65536, 0}, &diag), TK_OK);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(tk_tenant_limits_check(&bad[i].limits, &diag), TK_BADARG);
        if (!strstr(diag.text, bad[i].words)) fail_msg("%s", diag.text);
    }
}

static int set_up(void **state)
{
    (void)state;
    pictures_make();
    tk_model *m = fixture_model(1);
    tk_diag diag;
    if (tk_snapshot_create(&model, m, 1, BATCH, 1, &diag) == TK_OK) return 0;
    fprintf(stderr, "%s\n", diag.text);
    return -1;
}

static int tear_down(void **state)
{
    (void)state;
    tk_snapshot_unref(model);
    pictures_free();
    return tk_test_alloc_live() == 0 ? 0 : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shares_are_as_the_weights),
        cmocka_unit_test(a_pause_earns_nothing_whatever_the_weight),
        cmocka_unit_test(passes_are_filled_by_weight_at_once),
        cmocka_unit_test(the_more_urgent_of_a_tenants_own_comes_first),
        cmocka_unit_test(a_priority_is_no_help_against_another_tenant),
        cmocka_unit_test(the_dead_leave_every_lane),
        cmocka_unit_test(an_admins_rate_replaces_the_servers),
        cmocka_unit_test(an_admins_part_of_the_queue_replaces_the_servers),
        cmocka_unit_test(what_is_set_outlasts_idle_times),
        cmocka_unit_test(bounds_are_named),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
