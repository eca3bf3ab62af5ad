/* Which version answers: numbers, labels, a label's share; what is loaded when, and how much of it
 * is in memory. Loads are a function of the test's that can be held up. */
#include <assert.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "clock.h"
#include "engine/mem.h"
#include "fixture.h"
#include "serving/shelf.h"

enum { ALICE = 1, BOB = 2, CAROL = 3, LAST = 60, BROKEN = 50, MAX_LOADS = 256 };

/* -- loads -- */

static struct loads {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool held;           /* loads wait */
    size_t begun, ended; /* with what follows */
    uint64_t numbers[MAX_LOADS];
    int64_t tenants[MAX_LOADS];
} loads;

static void hold(bool held)
{
    pthread_mutex_lock(&loads.lock);
    loads.held = held;
    pthread_cond_broadcast(&loads.changed);
    pthread_mutex_unlock(&loads.lock);
}

static void wait_begun(size_t n)
{
    pthread_mutex_lock(&loads.lock);
    while (loads.begun < n)
        pthread_cond_wait(&loads.changed, &loads.lock);
    pthread_mutex_unlock(&loads.lock);
}

static size_t begun(void)
{
    pthread_mutex_lock(&loads.lock);
    const size_t n = loads.begun;
    pthread_mutex_unlock(&loads.lock);
    return n;
}

static tk_snapshot *make(uint64_t number)
{
    tk_snapshot *s;
    assert_int_equal(tk_snapshot_create(&s, fixture_model(number), number, 1, 1, NULL), TK_OK);
    return s;
}

/* Versions 1 to LAST, in which all but Carol have a head; BROKEN cannot be loaded. */
static tk_err load(void *ctx, uint64_t number, int64_t tenant, tk_snapshot **out, tk_diag *diag)
{
    (void)ctx;
    pthread_mutex_lock(&loads.lock);
    if (loads.begun < MAX_LOADS) {
        loads.numbers[loads.begun] = number;
        loads.tenants[loads.begun] = tenant;
    }
    loads.begun++;
    pthread_cond_broadcast(&loads.changed);
    while (loads.held)
        pthread_cond_wait(&loads.changed, &loads.lock);
    loads.ended++;
    pthread_mutex_unlock(&loads.lock);
    if (number == 0 || number > LAST || tenant == CAROL)
        return tk_fail(diag, TK_NOTFOUND, "version %llu: there is none",
                       (unsigned long long)number);
    if (number == BROKEN) return tk_fail(diag, TK_BADDATA, "/secret/path: head bob/colour is cut");
    *out = make(number);
    return TK_OK;
}

/* -- a shelf -- */

static tk_current *current;
static tk_shelf *shelf;

/* `number` is current; labels as given, until a name of NULL. */
static void open_shelf(uint64_t number, size_t pinned, const tk_version_label *labels)
{
    memset(&loads, 0, sizeof loads);
    pthread_mutex_init(&loads.lock, NULL);
    pthread_cond_init(&loads.changed, NULL);
    assert_int_equal(tk_current_create(&current), TK_OK);
    if (number) tk_current_set(current, make(number));
    tk_version_labels list = {0};
    for (; labels && labels->name[0]; labels++)
        list.items[list.n++] = *labels;
    const tk_shelf_opts opts = {.current = current, .pinned = pinned, .load = load};
    assert_int_equal(tk_shelf_create(&shelf, &opts, &list), TK_OK);
}

static void close_shelf(void)
{
    tk_shelf_destroy(shelf);
    tk_current_destroy(current);
    pthread_cond_destroy(&loads.changed);
    pthread_mutex_destroy(&loads.lock);
}

static tk_err write_err;
static size_t written;

static tk_err write_it(void *ctx, const tk_version_label *label, tk_diag *diag)
{
    (void)ctx, (void)label;
    written += write_err == TK_OK;
    return write_err == TK_OK ? TK_OK : tk_fail(diag, write_err, "the disk is full");
}

static tk_err set_label(const char *name, uint64_t version, unsigned percent, tk_diag *diag)
{
    tk_version_label label = {.version = version, .percent = percent};
    snprintf(label.name, sizeof label.name, "%s", name);
    return tk_shelf_label(shelf, &label, write_it, NULL, diag);
}

static tk_err unset_label(const char *name)
{
    tk_version_label label = {.version = 0};
    snprintf(label.name, sizeof label.name, "%s", name);
    return tk_shelf_unlabel(shelf, &label, write_it, NULL, NULL);
}

static void wait_labels_loaded(size_t n)
{
    while (tk_shelf_get_stats(shelf).labelled < n)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
}

/* -- requests -- */

typedef struct asked {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool done, gone, fits;
    tk_err err;
    tk_diag diag;
    tk_snapshot *snapshot;
} asked;

static bool fits(void *user, const tk_snapshot *now, const tk_snapshot *other)
{
    assert(tk_snapshot_number(now) != tk_snapshot_number(other));
    return ((const asked *)user)->fits;
}

static bool gone(void *user)
{
    asked *a = user;
    pthread_mutex_lock(&a->lock);
    const bool is = a->gone;
    pthread_mutex_unlock(&a->lock);
    return is;
}

static void done(void *user, tk_err err, tk_snapshot *snapshot, const tk_diag *diag)
{
    asked *a = user;
    pthread_mutex_lock(&a->lock);
    a->done = true;
    a->err = err;
    a->diag = *diag;
    a->snapshot = snapshot ? tk_snapshot_ref(snapshot) : NULL;
    pthread_cond_signal(&a->changed);
    pthread_mutex_unlock(&a->lock);
}

/* Asks; what is answered at once is done already. */
static asked *ask_with(int64_t tenant, const char *version, size_t bytes, int64_t deadline_ns)
{
    asked *a = calloc(1, sizeof *a);
    assert_non_null(a);
    pthread_mutex_init(&a->lock, NULL);
    pthread_cond_init(&a->changed, NULL);
    a->fits = true;
    tk_pick pick = {.tenant = tenant,
                    .bytes = bytes,
                    .deadline_ns = deadline_ns,
                    .user = a,
                    .fits = fits,
                    .cancelled = gone,
                    .done = done};
    assert_int_equal(tk_want_parse(&pick.want, version), TK_OK);
    tk_snapshot *snapshot;
    tk_diag diag = {{0}};
    const tk_err err = tk_shelf_pick(shelf, &pick, &snapshot, &diag);
    assert_int_equal(pick.retry_ms > 0, err == TK_LIMIT);
    if (err != TK_OK || snapshot) {
        done(a, err, snapshot, &diag);
        tk_snapshot_unref(snapshot);
    }
    return a;
}

static asked *ask_for(int64_t tenant, const char *version)
{
    return ask_with(tenant, version, 0, INT64_MAX);
}

static asked *ask_number(int64_t tenant, uint64_t number)
{
    char text[32];
    snprintf(text, sizeof text, "%llu", (unsigned long long)number);
    return ask_for(tenant, text);
}

static bool is_done(asked *a)
{
    pthread_mutex_lock(&a->lock);
    const bool is = a->done;
    pthread_mutex_unlock(&a->lock);
    return is;
}

static void forget(asked *a)
{
    tk_snapshot_unref(a->snapshot);
    pthread_cond_destroy(&a->changed);
    pthread_mutex_destroy(&a->lock);
    free(a);
}

/* The number of the version that was given, 0 for none, and the error; lets go of it. */
static uint64_t end_of(asked *a, tk_err *err)
{
    pthread_mutex_lock(&a->lock);
    while (!a->done)
        pthread_cond_wait(&a->changed, &a->lock);
    pthread_mutex_unlock(&a->lock);
    const uint64_t number = a->snapshot ? tk_snapshot_number(a->snapshot) : 0;
    *err = a->err;
    forget(a);
    return number;
}

static uint64_t get(int64_t tenant, const char *version)
{
    tk_err err;
    const uint64_t number = end_of(ask_for(tenant, version), &err);
    assert_int_equal(err == TK_OK, number > 0);
    return number;
}

static void assert_refused(int64_t tenant, const char *version, tk_err want)
{
    tk_err err;
    assert_int_equal(end_of(ask_for(tenant, version), &err), 0);
    assert_int_equal(err, want);
}

/* -- tests -- */

static void what_a_request_says_is_understood(void **state)
{
    (void)state;
    tk_want want;
    assert_int_equal(tk_want_parse(&want, ""), TK_OK);
    assert_int_equal(want.kind, TK_WANT_ANY);
    assert_int_equal(tk_want_parse(&want, "latest"), TK_OK);
    assert_int_equal(want.kind, TK_WANT_CURRENT);
    assert_int_equal(tk_want_parse(&want, "007"), TK_OK);
    assert_int_equal(want.kind, TK_WANT_NUMBER);
    assert_int_equal(want.number, 7);
    assert_int_equal(tk_want_parse(&want, "canary-2"), TK_OK);
    assert_int_equal(want.kind, TK_WANT_LABEL);
    assert_string_equal(want.label, "canary-2");
    static const char *const bad[] = {"0",
                                      "-1",
                                      "2.0",
                                      "2 ",
                                      " 2",
                                      "0x10",
                                      "Canary",
                                      "a_b",
                                      "caf\xc3\xa9",
                                      "1000000000000000000",
                                      "abcdefghijklmnopqrstuvwxyz-123456"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(tk_want_parse(&want, bad[i]), TK_BADARG);
}

static void a_labels_share_is_exact(void **state)
{
    (void)state;
    tk_diag diag;
    open_shelf(2, 1, NULL);
    static const unsigned percents[] = {0, 1, 5, 33, 50, 99, 100};
    static const int64_t tenants[] = {ALICE, BOB, 77, 1000003};
    for (size_t p = 0; p < sizeof percents / sizeof *percents; p++) {
        assert_int_equal(set_label("canary", 1, percents[p], &diag), TK_OK);
        for (size_t t = 0; t < sizeof tenants / sizeof *tenants; t++) {
            size_t all = 0;
            for (int hundred = 0; hundred < 10; hundred++) {
                size_t n = 0;
                for (int i = 0; i < 100; i++)
                    n += get(tenants[t], "") == 1;
                assert_int_equal(n, percents[p]);
                all += n;
            }
            assert_int_equal(all, 10 * percents[p]);
        }
    }
    assert_int_equal(get(ALICE, "latest"), 2); /* never shared */
    assert_int_equal(get(ALICE, "2"), 2);
    assert_int_equal(get(ALICE, "canary"), 1);
    close_shelf();
}

static void a_share_goes_only_to_requests_that_the_version_can_answer(void **state)
{
    (void)state;
    tk_diag diag;
    open_shelf(2, 1, NULL);
    assert_int_equal(set_label("canary", 1, 100, &diag), TK_OK);
    tk_pick pick = {.want = {.kind = TK_WANT_ANY}, .tenant = ALICE};
    asked a = {.fits = false};
    pick.user = &a;
    for (int asks = 0; asks < 2; asks++) { /* it says no, or is not asked */
        pick.fits = asks ? NULL : fits;
        tk_snapshot *s;
        assert_int_equal(tk_shelf_pick(shelf, &pick, &s, &diag), TK_OK);
        assert_int_equal(tk_snapshot_number(s), 2);
        tk_snapshot_unref(s);
    }
    tk_current_set(current, make(1)); /* the label's own version */
    assert_int_equal(get(ALICE, ""), 1);
    close_shelf();
}

static void a_version_is_loaded_once_for_all_who_wait_and_nobody_else_does(void **state)
{
    (void)state;
    open_shelf(9, 2, NULL);
    hold(true);
    asked *waiting[6];
    for (int i = 0; i < 6; i++)
        waiting[i] = ask_for(i % 2 ? ALICE : BOB, "4");
    wait_begun(1);
    for (int i = 0; i < 20; i++) { /* while it is loaded */
        assert_int_equal(get(ALICE, ""), 9);
        assert_int_equal(get(BOB, "9"), 9);
    }
    for (int i = 0; i < 6; i++)
        assert_false(is_done(waiting[i]));
    assert_int_equal(tk_shelf_get_stats(shelf).waiting, 6);
    hold(false);
    for (int i = 0; i < 6; i++) {
        tk_err err;
        assert_int_equal(end_of(waiting[i], &err), 4);
    }
    assert_int_equal(get(ALICE, "4"), 4);
    assert_int_equal(begun(), 1);
    close_shelf();
}

static void what_is_not_there_and_what_is_anothers_are_not_found(void **state)
{
    (void)state;
    open_shelf(9, 2, NULL);
    assert_refused(ALICE, "61", TK_NOTFOUND);
    assert_refused(ALICE, "stable", TK_NOTFOUND);
    assert_refused(CAROL, "4", TK_NOTFOUND);
    assert_int_equal(get(ALICE, "4"), 4);
    asked *broken = ask_for(ALICE, "50");
    while (!is_done(broken))
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    assert_null(strstr(broken->diag.text, "secret"));
    assert_non_null(strstr(broken->diag.text, "version 50 cannot be loaded"));
    tk_err err;
    assert_int_equal(end_of(broken, &err), 0);
    assert_int_equal(err, TK_INTERNAL);
    assert_int_equal(tk_shelf_get_stats(shelf).failures, 1);
    close_shelf();
    open_shelf(0, 2, NULL);
    assert_refused(ALICE, "", TK_PRECONDITION);
    assert_refused(ALICE, "latest", TK_PRECONDITION);
    close_shelf();
}

static void no_more_pinned_versions_are_in_memory_than_allowed(void **state)
{
    (void)state;
    const long live = tk_test_alloc_live();
    open_shelf(9, 2, NULL);
    tk_err err;
    asked *one = ask_for(ALICE, "1"), *two = ask_for(ALICE, "2");
    while (!is_done(one) || !is_done(two))
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    asked *three = ask_for(BOB, "3"); /* both are answering: 3 must wait */
    nanosleep(&(struct timespec){0, 150000000}, NULL);
    assert_false(is_done(three));
    assert_int_equal(begun(), 2);
    assert_int_equal(tk_shelf_get_stats(shelf).pinned, 2);
    assert_int_equal(get(ALICE, "2"), 2);   /* only the one picked longest ago left the shelf */
    assert_int_equal(end_of(one, &err), 1); /* lets go */
    assert_int_equal(end_of(three, &err), 3);
    assert_true(tk_shelf_get_stats(shelf).pinned <= 2);
    assert_int_equal(end_of(two, &err), 2);
    for (uint64_t i = 10; i < 40; i++) {
        assert_int_equal(end_of(ask_number(ALICE, i), &err), i);
        assert_true(tk_shelf_get_stats(shelf).pinned <= 2);
    }
    const size_t before = begun();
    assert_int_equal(get(ALICE, "39"), 39); /* the last two are there still */
    assert_int_equal(get(ALICE, "38"), 38);
    assert_int_equal(get(ALICE, "37"), 37);
    assert_int_equal(begun(), before + 1);
    assert_int_equal(get(ALICE, "38"), 38); /* 39 was picked longest ago */
    assert_int_equal(begun(), before + 1);
    close_shelf();
    assert_int_equal(tk_test_alloc_live(), live);
}

static void who_floods_is_refused_and_others_have_their_turn(void **state)
{
    (void)state;
    open_shelf(9, 2, NULL);
    hold(true);
    asked *flood[TK_SHELF_TENANT_WAITING];
    flood[0] = ask_number(ALICE, 10);
    wait_begun(1); /* it is being loaded, and waits still */
    for (uint64_t i = 1; i < TK_SHELF_TENANT_WAITING; i++)
        flood[i] = ask_number(ALICE, 10 + i);
    assert_refused(ALICE, "47", TK_LIMIT);
    assert_int_equal(get(ALICE, ""), 9);
    asked *bob = ask_for(BOB, "48");
    hold(false);
    tk_err err;
    assert_int_equal(end_of(bob, &err), 48);
    pthread_mutex_lock(&loads.lock);
    assert_int_equal(loads.numbers[1], 48); /* right behind the one that was under way */
    assert_int_equal(loads.tenants[1], BOB);
    pthread_mutex_unlock(&loads.lock);
    for (uint64_t i = 0; i < TK_SHELF_TENANT_WAITING; i++)
        assert_int_equal(end_of(flood[i], &err), 10 + i);
    close_shelf();
}

static void bytes_that_wait_are_limited(void **state)
{
    (void)state;
    open_shelf(9, 1, NULL);
    hold(true);
    const size_t most = TK_SHELF_TENANT_BYTES;
    asked *a = ask_with(ALICE, "1", most, INT64_MAX), *b = ask_with(ALICE, "1", 1, INT64_MAX);
    asked *c = ask_with(BOB, "1", most, INT64_MAX), *d = ask_with(77, "1", 1, INT64_MAX);
    tk_err err;
    assert_int_equal(end_of(b, &err), 0);
    assert_int_equal(err, TK_LIMIT); /* of one tenant */
    assert_int_equal(end_of(d, &err), 0);
    assert_int_equal(err, TK_LIMIT); /* of all */
    hold(false);
    assert_int_equal(end_of(a, &err), 1);
    assert_int_equal(end_of(c, &err), 1);
    asked *again = ask_with(ALICE, "2", most, INT64_MAX); /* nothing is left over */
    assert_int_equal(end_of(again, &err), 2);
    close_shelf();
}

static void nothing_is_loaded_for_who_has_gone_or_is_late(void **state)
{
    (void)state;
    open_shelf(9, 2, NULL);
    hold(true);
    asked *first = ask_for(ALICE, "1");
    wait_begun(1);
    asked *a = ask_for(BOB, "2");
    asked *late = ask_with(BOB, "3", 0, tk_now_ns() + 20000000);
    pthread_mutex_lock(&a->lock);
    a->gone = true;
    pthread_mutex_unlock(&a->lock);
    nanosleep(&(struct timespec){0, 40000000}, NULL); /* beyond the deadline */
    hold(false);
    tk_err err;
    assert_int_equal(end_of(first, &err), 1);
    assert_int_equal(end_of(a, &err), 0);
    assert_int_equal(err, TK_CANCELLED);
    assert_int_equal(end_of(late, &err), 0);
    assert_int_equal(err, TK_DEADLINE);
    assert_int_equal(begun(), 1);
    close_shelf();
}

static void labelled_versions_stay_in_memory(void **state)
{
    (void)state;
    tk_diag diag;
    open_shelf(9, 1, NULL);
    assert_int_equal(set_label("stable", 3, 0, &diag), TK_OK);
    assert_int_equal(set_label("now", 9, 0, &diag), TK_OK); /* the current one: no load */
    assert_int_equal(begun(), 1);
    for (uint64_t i = 10; i < 14; i++) {
        tk_err err;
        assert_int_equal(end_of(ask_number(ALICE, i), &err), i);
    }
    tk_current_set(current, make(8)); /* a label stays where it is */
    assert_int_equal(get(ALICE, "stable"), 3);
    assert_int_equal(get(ALICE, "3"), 3); /* by its number, too */
    assert_int_equal(get(ALICE, "now"), 9);
    assert_int_equal(get(ALICE, "latest"), 8);
    assert_int_equal(begun(), 5);
    assert_int_equal(set_label("stable", 4, 0, &diag), TK_OK);
    assert_int_equal(get(ALICE, "stable"), 4);
    tk_version_labels list;
    bool loaded[TK_VERSION_LABELS_MAX];
    tk_shelf_labels(shelf, &list, loaded);
    assert_int_equal(list.n, 2);
    assert_string_equal(list.items[0].name, "now");
    assert_int_equal(list.items[1].version, 4);
    assert_true(loaded[0] && loaded[1]);
    assert_int_equal(unset_label("stable"), TK_OK);
    assert_refused(ALICE, "stable", TK_NOTFOUND);
    tk_shelf_labels(shelf, &list, loaded);
    assert_int_equal(list.n, 1);
    close_shelf();
}

static void a_label_that_cannot_be_kept_is_refused(void **state)
{
    (void)state;
    tk_diag diag;
    open_shelf(9, 1, NULL);
    written = 0;
    assert_int_equal(set_label("stable", 3, 0, &diag), TK_OK);
    assert_int_equal(set_label("stable", BROKEN, 0, &diag), TK_BADDATA);
    assert_non_null(strstr(diag.text, "is cut")); /* an admin may know */
    assert_int_equal(set_label("stable", 61, 0, &diag), TK_NOTFOUND);
    assert_int_equal(written, 1);
    write_err = TK_NOSPACE;
    assert_int_equal(set_label("stable", 4, 0, &diag), TK_NOSPACE);
    assert_int_equal(unset_label("stable"), TK_NOSPACE);
    write_err = TK_OK;
    assert_int_equal(get(ALICE, "stable"), 3);
    close_shelf();
}

static void labels_are_loaded_at_the_start_and_a_broken_one_harms_nobody(void **state)
{
    (void)state;
    static const tk_version_label labels[] = {
        {"canary", BROKEN, 100}, {"now", 9, 0}, {"stable", 3, 0}, {.version = 0}};
    open_shelf(9, 1, labels);
    wait_labels_loaded(2);
    assert_int_equal(begun(), 2); /* `now` is the current one */
    assert_int_equal(get(ALICE, "stable"), 3);
    assert_int_equal(get(ALICE, ""), 9);
    assert_refused(ALICE, "canary", TK_INTERNAL);
    assert_refused(CAROL, "canary", TK_NOTFOUND); /* as if there were no such label */
    assert_int_equal(begun(), 4);                 /* it was tried again, each time */
    close_shelf();
}

/* Files of old versions are written anew when a head is deleted. */
static void after_a_rewrite_nothing_of_the_old_files_is_given_out(void **state)
{
    (void)state;
    tk_diag diag;
    tk_snapshot *all[TK_SHELF_ALL];
    open_shelf(9, 2, NULL);
    assert_int_equal(set_label("stable", 3, 0, &diag), TK_OK);
    assert_int_equal(set_label("now", 9, 0, &diag), TK_OK);
    assert_int_equal(get(ALICE, "4"), 4);
    hold(true);
    asked *five = ask_for(ALICE, "5");
    wait_begun(3);
    tk_shelf_rewritten(shelf); /* while 5 is loaded from its old file */
    const size_t n = tk_shelf_all(shelf, all);
    assert_int_equal(n, 1);
    assert_int_equal(tk_snapshot_number(all[0]), 9);
    tk_snapshot_unref(all[0]);
    hold(false);
    tk_err err;
    assert_int_equal(end_of(five, &err), 5);
    wait_labels_loaded(2);
    assert_int_equal(get(ALICE, "stable"), 3);
    assert_int_equal(get(ALICE, "4"), 4);
    size_t fives = 0;
    pthread_mutex_lock(&loads.lock);
    for (size_t i = 0; i < loads.begun; i++)
        fives += loads.numbers[i] == 5;
    pthread_mutex_unlock(&loads.lock);
    assert_int_equal(fives, 2);
    assert_int_equal(begun(), 6); /* 3, 4, 5; then 3, 5, 4 again */
    close_shelf();
}

static void *label_main(void *arg)
{
    tk_err *err = arg;
    *err = set_label("stable", 3, 0, NULL);
    return NULL;
}

static void a_label_set_during_a_rewrite_has_the_new_file(void **state)
{
    (void)state;
    pthread_t thread;
    tk_err err;
    open_shelf(9, 1, NULL);
    hold(true);
    assert_int_equal(pthread_create(&thread, NULL, label_main, &err), 0);
    wait_begun(1);
    tk_shelf_rewritten(shelf); /* while 3 is loaded from its old file */
    hold(false);
    pthread_join(thread, NULL);
    assert_int_equal(err, TK_OK);
    wait_labels_loaded(1);
    assert_int_equal(get(ALICE, "stable"), 3);
    assert_int_equal(begun(), 2);
    close_shelf();
}

static void the_end_answers_those_who_wait(void **state)
{
    (void)state;
    open_shelf(9, 1, NULL);
    hold(true);
    asked *a = ask_for(ALICE, "1"), *b = ask_for(BOB, "2");
    wait_begun(1);
    hold(false);
    tk_shelf_destroy(shelf);
    shelf = NULL;
    tk_err err_a, err_b;
    (void)end_of(b, &err_b);
    assert_true(is_done(a));
    (void)end_of(a, &err_a);
    assert_true(err_b == TK_BUSY || err_b == TK_OK);
    close_shelf();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_a_request_says_is_understood),
        cmocka_unit_test(a_labels_share_is_exact),
        cmocka_unit_test(a_share_goes_only_to_requests_that_the_version_can_answer),
        cmocka_unit_test(a_version_is_loaded_once_for_all_who_wait_and_nobody_else_does),
        cmocka_unit_test(what_is_not_there_and_what_is_anothers_are_not_found),
        cmocka_unit_test(no_more_pinned_versions_are_in_memory_than_allowed),
        cmocka_unit_test(who_floods_is_refused_and_others_have_their_turn),
        cmocka_unit_test(bytes_that_wait_are_limited),
        cmocka_unit_test(nothing_is_loaded_for_who_has_gone_or_is_late),
        cmocka_unit_test(labelled_versions_stay_in_memory),
        cmocka_unit_test(a_label_that_cannot_be_kept_is_refused),
        cmocka_unit_test(labels_are_loaded_at_the_start_and_a_broken_one_harms_nobody),
        cmocka_unit_test(after_a_rewrite_nothing_of_the_old_files_is_given_out),
        cmocka_unit_test(a_label_set_during_a_rewrite_has_the_new_file),
        cmocka_unit_test(the_end_answers_those_who_wait),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
