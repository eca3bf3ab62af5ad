/* The store: what it keeps, whom it shows it to, what it refuses, and that what is deleted is gone.
 */
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/file.h"
#include "engine/mem.h"
#include "store/db.h"
#include "store_fixture.h"

static char *read_admin_token(const store_fixture *f)
{
    tk_diag diag;
    char path[128];
    (void)snprintf(path, sizeof path, "%s/admin.token", f->dir);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    tk_map map;
    assert_ok(tk_map_open(&map, path, &diag));
    char *token = tk_calloc(map.size, 1);
    memcpy(token, map.data, map.size - 1); /* without the newline */
    tk_map_close(&map);
    return token;
}

static void first_start_makes_one_admin_token(void **state)
{
    (void)state;
    tk_diag diag;
    store_fixture f;
    tk_principal who;
    fixture_open(&f, NULL);
    char *token = read_admin_token(&f);
    assert_int_equal(strlen(token), 46);
    assert_int_equal(strncmp(token, "tk_", 3), 0);
    assert_ok(tk_store_authenticate(f.store, token, strlen(token), &who, &diag));
    assert_true(who.admin);
    assert_int_equal(who.tenant, TK_ALL);
    fixture_reopen(&f, NULL);
    char *again = read_admin_token(&f);
    assert_string_equal(token, again);
    assert_ok(tk_store_authenticate(f.store, token, strlen(token), &who, &diag));
    tk_free(token);
    tk_free(again);
    fixture_close(&f);
}

static void a_store_has_one_server(void **state)
{
    (void)state;
    tk_diag diag;
    store_fixture f;
    tk_store *second;
    fixture_open(&f, NULL);
    assert_err(tk_store_open(&second, f.dir, NULL, &diag), TK_BUSY, "another server");
    assert_null(second);
    fixture_close(&f);
}

static void names_follow_the_rule(void **state)
{
    (void)state;
    tk_diag diag;
    char longest[65];
    memset(longest, 'a', 64);
    longest[63] = '\0';
    assert_ok(tk_name_check(longest, "head", &diag));
    longest[63] = 'a';
    longest[64] = '\0';
    assert_err(tk_name_check(longest, "head", &diag), TK_BADARG, "head name");
    assert_ok(tk_name_check("0.a_b-c", "head", &diag));
    const char *const bad[] = {"", ".a", "_a", "-a", "A", "a b", "a/b", "\xc3\xa4", "a\n", "a%"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_int_equal(tk_name_check(bad[i], "head", &diag), TK_BADARG);
    assert_int_equal(tk_name_check(NULL, "head", &diag), TK_BADARG);
}

static void tenants_have_unique_names_and_their_own_tokens(void **state)
{
    (void)state;
    tk_diag diag;
    store_fixture f;
    tk_principal who;
    tk_token token;
    tk_tenants list;
    tk_tenant bob;
    int64_t id;
    fixture_open(&f, NULL);
    assert_err(tk_store_tenant_create(f.store, "alice", &id, &token, &diag), TK_EXISTS, "alice");
    assert_int_equal(tk_store_tenant_create(f.store, "Alice", &id, &token, &diag), TK_BADARG);
    assert_ok(tk_store_authenticate(f.store, f.bob_token.secret, 46, &who, &diag));
    assert_int_equal(who.tenant, f.bob);
    assert_string_equal(who.name, "bob");
    assert_false(who.admin);
    assert_ok(tk_store_tenant_list(f.store, &list, &diag));
    assert_int_equal(list.n, 2);
    assert_string_equal(list.items[0].name, "alice");
    tk_tenants_fini(&list);
    assert_ok(tk_store_tenant_find(f.store, "bob", &bob, &diag));
    assert_int_equal(bob.id, f.bob);
    assert_int_equal(tk_store_tenant_find(f.store, "carol", &bob, &diag), TK_NOTFOUND);
    fixture_close(&f);
}

static void a_revoked_token_is_dead_at_once_and_after_a_restart(void **state)
{
    (void)state;
    tk_diag diag, unknown;
    store_fixture f;
    tk_principal who;
    tk_token second;
    fixture_open(&f, NULL);
    assert_ok(tk_store_token_issue(f.store, "alice", &second, &diag));
    assert_ok(tk_store_token_revoke(f.store, f.alice_token.id, &diag));
    assert_int_equal(tk_store_authenticate(f.store, f.alice_token.secret, 46, &who, &diag),
                     TK_UNAUTHENTICATED);
    assert_int_equal(tk_store_authenticate(f.store,
                                           "tk_0123456789012345678901234567890123456789012", 46,
                                           &who, &unknown),
                     TK_UNAUTHENTICATED);
    assert_string_equal(diag.text, unknown.text);
    assert_int_equal(tk_store_authenticate(f.store, "", 0, &who, &diag), TK_UNAUTHENTICATED);
    assert_int_equal(tk_store_authenticate(f.store, second.secret, 45, &who, &diag),
                     TK_UNAUTHENTICATED);
    assert_int_equal(tk_store_token_revoke(f.store, f.alice_token.id, &diag), TK_NOTFOUND);
    fixture_reopen(&f, NULL);
    assert_int_equal(tk_store_authenticate(f.store, f.alice_token.secret, 46, &who, &diag),
                     TK_UNAUTHENTICATED);
    assert_ok(tk_store_authenticate(f.store, second.secret, 46, &who, &diag));
    assert_int_equal(tk_store_token_issue(f.store, "nobody", &second, &diag), TK_NOTFOUND);
    fixture_close(&f);
}

/* What a client certificate names. */
static void a_tenant_without_a_live_token_is_shut_out(void **state)
{
    (void)state;
    tk_diag diag;
    store_fixture f;
    tk_token second;
    int64_t tenant;
    fixture_open(&f, NULL);
    assert_ok(tk_store_token_issue(f.store, "alice", &second, &diag));
    assert_ok(tk_store_tenant_live(f.store, "alice", &tenant, &diag));
    assert_int_equal(tenant, f.alice);
    assert_ok(tk_store_tenant_live(f.store, "bob", &tenant, &diag));
    assert_int_equal(tenant, f.bob);
    const char *const unknown[] = {"", "alic", "alice2", "ALICE", "zoe"};
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        assert_int_equal(tk_store_tenant_live(f.store, unknown[i], &tenant, &diag), TK_NOTFOUND);
        assert_int_equal(tenant, 0);
    }
    char longest[200];
    memset(longest, 'a', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    assert_int_equal(tk_store_tenant_live(f.store, longest, &tenant, &diag), TK_NOTFOUND);

    assert_ok(tk_store_token_revoke(f.store, f.alice_token.id, &diag));
    assert_ok(tk_store_tenant_live(f.store, "alice", &tenant, &diag));
    assert_ok(tk_store_token_revoke(f.store, second.id, &diag));
    assert_int_equal(tk_store_tenant_live(f.store, "alice", &tenant, &diag), TK_NOTFOUND);
    fixture_reopen(&f, NULL);
    assert_int_equal(tk_store_tenant_live(f.store, "alice", &tenant, &diag), TK_NOTFOUND);
    assert_ok(tk_store_tenant_shut_out(f.store, f.bob, &diag));
    assert_int_equal(tk_store_tenant_live(f.store, "bob", &tenant, &diag), TK_NOTFOUND);
    assert_ok(tk_store_token_issue(f.store, "alice", &second, &diag));
    assert_ok(tk_store_tenant_live(f.store, "alice", &tenant, &diag));
    fixture_close(&f);
}

static void the_last_admin_token_cannot_be_revoked(void **state)
{
    (void)state;
    tk_diag diag;
    store_fixture f;
    tk_principal who;
    tk_token second;
    fixture_open(&f, NULL);
    char *token = read_admin_token(&f);
    assert_ok(tk_store_authenticate(f.store, token, 46, &who, &diag));
    assert_err(tk_store_token_revoke(f.store, who.token_id, &diag), TK_PRECONDITION, "last admin");
    assert_ok(tk_store_authenticate(f.store, token, 46, &who, &diag));
    assert_ok(tk_store_token_issue(f.store, NULL, &second, &diag));
    assert_ok(tk_store_token_revoke(f.store, who.token_id, &diag));
    assert_err(tk_store_token_revoke(f.store, second.id, &diag), TK_PRECONDITION, "last admin");
    /* With every admin token lost but not revoked, a restart makes no new one. */
    fixture_reopen(&f, NULL);
    assert_ok(tk_store_authenticate(f.store, second.secret, 46, &who, &diag));
    tk_free(token);
    fixture_close(&f);
}

typedef struct auth_race {
    tk_store *store;
    const char *secret;
    atomic_bool stop;
    atomic_uint failures, calls;
} auth_race;

static void *authenticate_for_ever(void *arg)
{
    auth_race *race = arg;
    tk_principal who;
    while (!atomic_load(&race->stop)) {
        atomic_fetch_add(&race->calls, 1);
        if (tk_store_authenticate(race->store, race->secret, 46, &who, NULL) != TK_OK ||
            strcmp(who.name, "alice") != 0)
            atomic_fetch_add(&race->failures, 1);
    }
    return NULL;
}

static void authentication_goes_on_while_tokens_come_and_go(void **state)
{
    (void)state;
    tk_diag diag;
    store_fixture f;
    fixture_open(&f, NULL);
    auth_race race = {.store = f.store, .secret = f.alice_token.secret};
    pthread_t threads[2];
    for (size_t i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, authenticate_for_ever, &race), 0);
    for (int i = 0; i < 40; i++) {
        tk_token token;
        tk_principal who;
        assert_ok(tk_store_token_issue(f.store, i % 2 ? "bob" : NULL, &token, &diag));
        assert_ok(tk_store_authenticate(f.store, token.secret, 46, &who, &diag));
        if (i % 3 == 0) assert_ok(tk_store_token_revoke(f.store, token.id, &diag));
    }
    atomic_store(&race.stop, true);
    for (size_t i = 0; i < 2; i++)
        (void)pthread_join(threads[i], NULL);
    assert_int_equal(race.failures, 0);
    fixture_close(&f);
}

static void a_data_set_comes_back_as_it_went_in(void **state)
{
    (void)state;
    tk_diag diag;
    store_fixture f;
    tk_data_set set;
    tk_data_sets list;
    fixture_open(&f, NULL);
    const uint64_t id = fixture_data_set(f.store, f.alice, 100000, 1);
    (void)fixture_data_set(f.store, f.alice, 10, 2);
    fixture_reopen(&f, NULL);
    assert_ok(tk_store_data_set_get(f.store, f.alice, id, &set, &diag));
    assert_string_equal(set.name, "cars");
    assert_int_equal(set.images, 5);
    assert_int_equal(set.bytes, 100000);
    assert_int_equal(set.n_labels, 2);
    assert_string_equal(set.labels[1].label, "blue");
    assert_int_equal(set.labels[1].images, 2);
    char *path = tk_store_object_path(f.store, set.sha);
    tk_map map;
    assert_ok(tk_map_open(&map, path, &diag));
    assert_int_equal(map.size, 100000);
    tk_map_close(&map);
    tk_free(path);
    tk_data_set_fini(&set);
    assert_ok(tk_store_data_set_list(f.store, f.alice, &list, &diag));
    assert_int_equal(list.n, 2);
    assert_int_equal(list.items[1].id, id); /* newest first */
    tk_data_sets_fini(&list);
    assert_int_equal(fixture_entries(f.dir, "tmp"), 0);
    fixture_close(&f);
}

static void what_is_foreign_looks_unknown(void **state)
{
    (void)state;
    tk_diag diag, unknown;
    store_fixture f;
    tk_data_set set;
    tk_data_sets list;
    fixture_open(&f, NULL);
    const uint64_t id = fixture_data_set(f.store, f.alice, 10, 1);
    assert_int_equal(tk_store_data_set_get(f.store, f.bob, id, &set, &diag), TK_NOTFOUND);
    assert_int_equal(tk_store_data_set_delete(f.store, f.bob, id, &unknown), TK_NOTFOUND);
    assert_string_equal(diag.text, unknown.text);
    assert_ok(tk_store_data_set_delete(f.store, f.alice, id, &diag));
    assert_int_equal(tk_store_data_set_get(f.store, f.bob, id, &set, &unknown), TK_NOTFOUND);
    assert_string_equal(unknown.text, diag.text[0] ? unknown.text : "");
    const uint64_t second = fixture_data_set(f.store, f.alice, 10, 1);
    assert_int_equal(second, id + 1); /* an id is never given twice */
    assert_ok(tk_store_data_set_list(f.store, f.bob, &list, &diag));
    assert_int_equal(list.n, 0);
    tk_data_sets_fini(&list);
    tk_job job = {.tenant = f.bob, .head = "colour", .data_set = second, .tolerance = 1, .seed = 1};
    assert_err(tk_store_job_add(f.store, &job, &diag), TK_NOTFOUND, "there is none");
    assert_int_equal(tk_store_data_set_get(f.store, f.alice, UINT64_MAX, &set, &diag), TK_NOTFOUND);
    fixture_close(&f);
}

static void a_deleted_data_set_is_gone_from_the_disk(void **state)
{
    (void)state;
    tk_diag diag;
    store_fixture f;
    fixture_open(&f, NULL);
    const uint64_t first = fixture_data_set(f.store, f.alice, 5000, 7);
    const uint64_t twin = fixture_data_set(f.store, f.bob, 5000, 7); /* the same content */
    assert_int_equal(fixture_objects(f.store), 1);
    assert_ok(tk_store_data_set_delete(f.store, f.alice, first, &diag));
    assert_int_equal(fixture_objects(f.store), 1);
    assert_ok(tk_store_data_set_delete(f.store, f.bob, twin, &diag));
    assert_int_equal(fixture_objects(f.store), 0);
    fixture_close(&f);
}

static void a_data_set_in_use_cannot_be_deleted(void **state)
{
    (void)state;
    tk_diag diag;
    store_fixture f;
    fixture_open(&f, NULL);
    const uint64_t id = fixture_data_set(f.store, f.alice, 10, 1);
    tk_job job = {.tenant = f.alice, .head = "type", .data_set = id, .tolerance = 1, .seed = 1};
    assert_ok(tk_store_job_add(f.store, &job, &diag));
    char words[32];
    (void)snprintf(words, sizeof words, "job %llu", (unsigned long long)job.id);
    assert_err(tk_store_data_set_delete(f.store, f.alice, id, &diag), TK_PRECONDITION, words);
    job.state = TK_JOB_CANCELLED;
    assert_ok(tk_store_job_update(f.store, &job, NULL, NULL, NULL, &diag));
    assert_ok(tk_store_data_set_delete(f.store, f.alice, id, &diag));
    assert_err(tk_store_job_update(f.store, &job, NULL, NULL, NULL, &diag), TK_PRECONDITION,
               "ended");
    tk_job_fini(&job);
    fixture_close(&f);
}

static void limits_name_field_limit_and_value(void **state)
{
    (void)state;
    tk_diag diag;
    store_fixture f;
    tk_data_set set;
    const tk_store_opts opts = {.max_tenant_bytes = 1000,
                                .max_tenant_data_sets = 2,
                                .max_tenant_jobs = 1,
                                .max_tenant_heads = 1};
    const tk_label_count labels[] = {{(char[]){"red"}, 3}, {(char[]){"blue"}, 2}};
    fixture_open(&f, &opts);
    const uint64_t id = fixture_data_set(f.store, f.alice, 900, 1);
    char *path = fixture_file(f.store, 200, 2);
    assert_err(tk_store_data_set_add(f.store, f.alice, "b", path, 5, labels, 2, &set, &diag),
               TK_LIMIT, "limit 1000, value 1100");
    assert_int_not_equal(access(path, F_OK), 0);
    assert_int_equal(fixture_objects(f.store), 1);
    tk_free(path);
    assert_err(tk_store_room_check(f.store, f.alice, UINT64_MAX, &diag), TK_LIMIT, "bytes stored");
    assert_ok(tk_store_room_check(f.store, f.bob, 1000, &diag));
    (void)fixture_data_set(f.store, f.alice, 1, 3);
    path = fixture_file(f.store, 1, 4);
    assert_err(tk_store_data_set_add(f.store, f.alice, "c", path, 5, labels, 2, &set, &diag),
               TK_LIMIT, "data sets: limit 2, value 3");
    tk_free(path);
    tk_job job = {.tenant = f.alice, .head = "type", .data_set = id, .tolerance = 1, .seed = 1};
    assert_ok(tk_store_job_add(f.store, &job, &diag));
    tk_job more = {.tenant = f.alice, .head = "type", .data_set = id, .tolerance = 1, .seed = 1};
    assert_err(tk_store_job_add(f.store, &more, &diag), TK_LIMIT, "jobs queued: limit 1, value 2");
    tk_job_fini(&job);
    fixture_close(&f);
}

/* The next job, which starts at `now` and ends; its tenant. */
static int64_t run_next(store_fixture *f, int64_t now, uint64_t *id)
{
    tk_diag diag;
    tk_job job;
    assert_ok(tk_store_job_next(f->store, &job, &diag));
    const int64_t tenant = job.tenant;
    *id = job.id;
    job.state = TK_JOB_RUNNING;
    job.started_ms = now;
    assert_ok(tk_store_job_update(f->store, &job, NULL, NULL, NULL, &diag));
    tk_job again;
    assert_ok(tk_store_job_next(f->store, &again, &diag)); /* the running one goes on */
    assert_true(again.id == job.id);
    tk_job_fini(&again);
    job.state = TK_JOB_CANCELLED;
    assert_ok(tk_store_job_update(f->store, &job, NULL, NULL, NULL, &diag));
    tk_job_fini(&job);
    return tenant;
}

static void tenants_take_turns_with_their_jobs(void **state)
{
    (void)state;
    tk_diag diag;
    store_fixture f;
    fixture_open(&f, NULL);
    const int64_t order[] = {f.alice, f.alice, f.alice, f.bob, f.alice, f.bob};
    const int64_t turns[] = {f.alice, f.bob, f.alice, f.bob, f.alice, f.alice};
    uint64_t id, last[2] = {0, 0};
    for (size_t i = 0; i < 6; i++) {
        tk_job job = {.tenant = order[i],
                      .head = "type",
                      .data_set = fixture_data_set(f.store, order[i], 10, 1 + (unsigned)i),
                      .tolerance = 1,
                      .seed = 1};
        assert_ok(tk_store_job_add(f.store, &job, &diag));
        tk_job_fini(&job);
    }
    for (size_t i = 0; i < 6; i++) {
        assert_true(run_next(&f, 100 + (int64_t)i, &id) == turns[i]);
        assert_true(id > last[turns[i] == f.bob]); /* each tenant's own in order */
        last[turns[i] == f.bob] = id;
    }
    fixture_close(&f);
}

static void a_data_set_of_one_label_trains_nothing(void **state)
{
    (void)state;
    tk_diag diag;
    store_fixture f;
    tk_data_set set;
    const tk_label_count labels[] = {{(char[]){"red"}, 3}, {(char[]){"blue"}, 0}};
    fixture_open(&f, NULL);
    char *path = fixture_file(f.store, 10, 1);
    assert_ok(tk_store_data_set_add(f.store, f.alice, "a", path, 3, labels, 2, &set, &diag));
    tk_job job = {.tenant = f.alice, .head = "type", .data_set = set.id, .tolerance = 1, .seed = 1};
    assert_err(tk_store_job_add(f.store, &job, &diag), TK_BADDATA, "at least 2 labels");
    tk_data_set_fini(&set);
    tk_free(path);
    fixture_close(&f);
}

/* -- versions -- */

static tk_version_head make_head(const store_fixture *f, int64_t tenant, const char *id,
                                 char **labels, uint32_t *confusion, double accuracy)
{
    (void)f;
    tk_version_head head = {.tenant = tenant,
                            .n_labels = 2,
                            .labels = labels,
                            .tolerance = 1,
                            .best = accuracy,
                            .accuracy = accuracy,
                            .top5 = 1,
                            .n = 10,
                            .confusion = confusion};
    (void)snprintf(head.id, sizeof head.id, "%s", id);
    (void)snprintf(head.name, sizeof head.name, "%s", strchr(id, '/') + 1);
    return head;
}

static char *labels_of_colour[] = {(char[]){"red"}, (char[]){"blue"}};

static tk_err commit_two(store_fixture *f, uint64_t expect, uint64_t number, double accuracy,
                         char **bobs_labels, tk_diag *diag)
{
    uint32_t confusion[] = {4, 1, 70000, 5};
    const char *const ids[] = {"alice/type", "bob/colour"};
    tk_object file, pack;
    fixture_model(f->store, ids, 2, number, &file);
    char *path = fixture_file(f->store, 300, (unsigned)number);
    assert_int_equal(tk_store_stage(f->store, path, false, &pack, diag), TK_OK);
    tk_free(path);
    tk_version_head heads[] = {
        make_head(f, f->alice, ids[0], labels_of_colour, confusion, accuracy),
        make_head(f, f->bob, ids[1], bobs_labels, NULL, accuracy / 2)};
    memcpy(heads[0].pack, pack.sha, sizeof pack.sha);
    const tk_commit commit = {.expect_current = expect,
                              .number = number,
                              .model = &file,
                              .reason = "as good as before",
                              .heads = heads,
                              .n_heads = 2};
    const tk_err err = tk_store_version_commit(f->store, &commit, diag);
    tk_store_unstage(f->store, &file);
    tk_store_unstage(f->store, &pack);
    return err;
}

static void a_version_comes_back_with_its_validations(void **state)
{
    (void)state;
    tk_diag diag;
    store_fixture f;
    tk_version v;
    tk_versions list;
    tk_head_history history;
    uint64_t next;
    fixture_open(&f, NULL);
    assert_err(tk_store_version_get(f.store, TK_ALL, 0, 0, &v, &diag), TK_PRECONDITION,
               "no version yet");
    assert_ok(tk_store_version_next(f.store, &next, &diag));
    assert_int_equal(next, 1);
    assert_ok(commit_two(&f, 0, 1, 0.8, labels_of_colour, &diag));
    assert_ok(commit_two(&f, 1, 2, 0.9, labels_of_colour, &diag));
    fixture_reopen(&f, NULL);
    assert_ok(
        tk_store_version_get(f.store, f.alice, 0, TK_WITH_LABELS | TK_WITH_CONFUSION, &v, &diag));
    assert_int_equal(v.number, 2);
    assert_true(v.current);
    assert_int_equal(v.n_heads, 1); /* her own */
    assert_string_equal(v.heads[0].id, "alice/type");
    assert_string_equal(v.heads[0].labels[1], "blue");
    assert_int_equal(v.heads[0].confusion[2], 70000);
    assert_true(fabs(v.heads[0].change - 0.1) < 1e-12);
    assert_int_equal(v.heads[0].born, 1);
    assert_int_equal(v.heads[0].pack_bytes, 300);
    tk_version_fini(&v);
    assert_ok(tk_store_version_list(f.store, TK_ALL, 0, 0, &list, &diag));
    assert_int_equal(list.n, 2);
    assert_int_equal(list.items[1].n_heads, 2);
    assert_null(list.items[1].heads[0].labels);
    assert_true(isnan(list.items[1].heads[0].change));
    tk_versions_fini(&list);
    assert_ok(tk_store_head_get(f.store, f.bob, "colour", true, TK_WITH_LABELS, &history, &diag));
    assert_int_equal(history.n, 2);
    assert_int_equal(history.items[0].version, 1);
    assert_null(history.items[0].head.confusion);
    tk_head_history_fini(&history);
    assert_int_equal(tk_store_head_get(f.store, f.bob, "type", false, 0, &history, &diag),
                     TK_NOTFOUND);
    assert_ok(tk_store_head_get(f.store, TK_ALL, "alice/type", false, 0, &history, &diag));
    tk_head_history_fini(&history);
    fixture_close(&f);
}

static void heads_are_found_in_every_version_the_newest_when_there_are_too_many(void **state)
{
    (void)state;
    tk_diag diag;
    store_fixture f;
    tk_head_places places;
    fixture_open(&f, NULL);
    assert_ok(commit_two(&f, 0, 1, 0.8, labels_of_colour, &diag));
    assert_ok(commit_two(&f, 1, 2, 0.9, labels_of_colour, &diag));
    const struct {
        int64_t tenant;
        const char *head;
        size_t limit, n, first; /* first: the version of the first line */
        const char *id;         /* its head */
    } cases[] = {
        {TK_ALL, "", 100, 4, 1, "alice/type"}, {TK_ALL, "", 2, 2, 2, "alice/type"},
        {f.bob, "", 100, 2, 1, "bob/colour"},  {f.bob, "colour", 1, 1, 2, "bob/colour"},
        {f.bob, "type", 100, 0, 0, ""},        {TK_ALL, "type", 100, 0, 0, ""},
        {f.bob, "bob/colour", 100, 0, 0, ""},  {TK_ALL, "bob/colour", 9, 2, 1, "bob/colour"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_ok(tk_store_head_places(f.store, cases[i].tenant, cases[i].head, cases[i].limit,
                                       &places, &diag));
        assert_int_equal(places.n, cases[i].n);
        if (places.n > 0) {
            assert_int_equal(places.items[0].version, cases[i].first);
            assert_string_equal(places.items[0].head, cases[i].id);
            assert_int_equal(places.items[places.n - 1].version, 2);
        }
        tk_head_places_fini(&places);
    }
    fixture_close(&f);
}

static tk_err set_label(store_fixture *f, const char *name, uint64_t version, unsigned percent,
                        tk_diag *diag)
{
    tk_version_label label = {.version = version, .percent = percent};
    (void)snprintf(label.name, sizeof label.name, "%s", name);
    return tk_store_version_label_set(f->store, &label, diag);
}

static void labels_name_versions_and_one_may_have_a_share(void **state)
{
    (void)state;
    tk_diag diag;
    store_fixture f;
    tk_version_labels list;
    fixture_open(&f, NULL);
    assert_ok(commit_two(&f, 0, 1, 0.8, labels_of_colour, &diag));
    assert_ok(commit_two(&f, 1, 2, 0.9, labels_of_colour, &diag));
    assert_ok(set_label(&f, "stable", 1, 0, &diag));
    assert_ok(set_label(&f, "canary", 2, 5, &diag));
    assert_err(set_label(&f, "stable", 1, 1, &diag), TK_PRECONDITION, "\"canary\" has 5 percent");
    assert_err(set_label(&f, "stable", 3, 0, &diag), TK_NOTFOUND, "version 3");
    assert_err(set_label(&f, "stable", 0, 0, &diag), TK_NOTFOUND, "version 0");
    assert_err(set_label(&f, "stable", UINT64_MAX, 0, &diag), TK_NOTFOUND, "there is none");
    assert_err(set_label(&f, "canary", 2, 101, &diag), TK_BADARG, "percent is 101");
    assert_ok(set_label(&f, "canary", 1, 10, &diag)); /* moved */
    fixture_reopen(&f, NULL);
    assert_ok(tk_store_version_label_list(f.store, &list, &diag));
    assert_int_equal(list.n, 2);
    assert_string_equal(list.items[0].name, "canary");
    assert_int_equal(list.items[0].version, 1);
    assert_int_equal(list.items[0].percent, 10);
    assert_string_equal(list.items[1].name, "stable");
    assert_int_equal(list.items[1].percent, 0);
    assert_ok(tk_store_version_label_delete(f.store, "canary", &diag));
    assert_err(tk_store_version_label_delete(f.store, "canary", &diag), TK_NOTFOUND, "\"canary\"");
    assert_ok(set_label(&f, "stable", 1, 100, &diag));
    for (int i = 1; i < TK_VERSION_LABELS_MAX; i++)
        assert_ok(set_label(&f, (char[]){'a', (char)('0' + i), '\0'}, 1, 0, &diag));
    assert_err(set_label(&f, "more", 1, 0, &diag), TK_LIMIT, "the limit is 8");
    assert_ok(set_label(&f, "stable", 2, 0, &diag)); /* one of those that are there */
    fixture_close(&f);
}

static void names_of_labels_follow_the_rule(void **state)
{
    (void)state;
    tk_diag diag;
    static const char *const good[] = {"a", "stable", "canary-2", "l8test",
                                       "abcdefghijklmnopqrstuvwxyz-12345"};
    static const char *const bad[] = {"",    "2",           "-a",
                                      "A",   "a_b",         "a b",
                                      "a/b", "caf\xc3\xa9", "abcdefghijklmnopqrstuvwxyz-123456"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        assert_ok(tk_version_label_check(good[i], &diag));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_err(tk_version_label_check(bad[i], &diag), TK_BADARG, "1 to 32 characters");
    assert_err(tk_version_label_check("latest", &diag), TK_BADARG, "always the current version");
}

static void a_version_without_a_head_of_ones_own_looks_unknown(void **state)
{
    (void)state;
    tk_diag diag;
    tk_diag unknown;
    store_fixture f;
    tk_object file;
    tk_version v;
    fixture_open(&f, NULL);
    assert_ok(commit_two(&f, 0, 1, 0.8, labels_of_colour, &diag));
    assert_ok(tk_store_version_file(f.store, f.alice, 1, &file, &diag));
    assert_ok(tk_store_version_get(f.store, TK_ALL, 1, 0, &v, &diag));
    assert_string_equal(file.sha, v.sha);
    assert_int_equal(file.bytes, v.bytes);
    tk_version_fini(&v);
    assert_ok(tk_store_version_file(f.store, TK_ALL, 1, &file, &diag));
    const int64_t carol = f.bob + 100;
    assert_int_equal(tk_store_version_file(f.store, carol, 1, &file, &diag), TK_NOTFOUND);
    assert_string_equal(file.sha, "");
    assert_int_equal(tk_store_version_file(f.store, carol, 7, &file, &unknown), TK_NOTFOUND);
    diag.text[strcspn(diag.text, "1")] = '7';
    assert_string_equal(diag.text, unknown.text);
    assert_err(tk_store_version_file(f.store, TK_ALL, UINT64_MAX, &file, &diag), TK_NOTFOUND,
               "there is none");
    fixture_close(&f);
}

static void a_commit_that_fails_half_way_leaves_nothing(void **state)
{
    (void)state;
    tk_diag diag;
    store_fixture f;
    tk_version v;
    tk_head_history history;
    char *broken[] = {(char[]){"red"}, (char[]){"\xff\xfe"}};
    fixture_open(&f, NULL);
    assert_ok(commit_two(&f, 0, 1, 0.8, labels_of_colour, &diag));
    const size_t objects = fixture_objects(f.store);
    assert_err(commit_two(&f, 1, 2, 0.9, broken, &diag), TK_BADDATA, "UTF-8");
    assert_err(commit_two(&f, 0, 2, 0.9, labels_of_colour, &diag), TK_PRECONDITION,
               "current version is 1");
    assert_err(commit_two(&f, 1, 1, 0.9, labels_of_colour, &diag), TK_PRECONDITION,
               "cannot follow");
    assert_ok(tk_store_version_get(f.store, TK_ALL, 0, 0, &v, &diag));
    assert_int_equal(v.number, 1);
    tk_version_fini(&v);
    assert_ok(tk_store_head_get(f.store, f.alice, "type", true, 0, &history, &diag));
    assert_int_equal(history.n, 1);
    tk_head_history_fini(&history);
    assert_int_equal(fixture_objects(f.store), objects);
    fixture_close(&f);
}

static void start_removes_what_a_crash_left(void **state)
{
    (void)state;
    tk_diag diag;
    store_fixture f;
    tk_object object;
    fixture_open(&f, NULL);
    (void)fixture_data_set(f.store, f.alice, 100, 1);
    char *path = fixture_file(f.store, 100, 2);
    assert_ok(tk_store_stage(f.store, path, false, &object, &diag)); /* never named by a record */
    tk_free(path);
    path = fixture_file(f.store, 100, 3);
    tk_free(path);
    assert_int_equal(fixture_objects(f.store), 2);
    assert_int_equal(fixture_entries(f.dir, "tmp"), 1);
    fixture_reopen(&f, NULL);
    assert_int_equal(fixture_objects(f.store), 1);
    assert_int_equal(fixture_entries(f.dir, "tmp"), 0);
    fixture_close(&f);
}

static void a_missing_current_version_is_said_at_start(void **state)
{
    (void)state;
    tk_diag diag;
    store_fixture f;
    tk_version v;
    fixture_open(&f, NULL);
    assert_ok(commit_two(&f, 0, 1, 0.8, labels_of_colour, &diag));
    assert_ok(tk_store_version_get(f.store, TK_ALL, 0, 0, &v, &diag));
    char *path = tk_store_object_path(f.store, v.sha);
    assert_int_equal(unlink(path), 0);
    tk_free(path);
    tk_version_fini(&v);
    tk_store_close(f.store);
    assert_err(tk_store_open(&f.store, f.dir, NULL, &diag), TK_BADDATA, "missing");
    fixture_close(&f);
}

static void trunk_settings_hold_until_there_is_a_version(void **state)
{
    (void)state;
    tk_diag diag;
    store_fixture f;
    tk_trunk trunk = {.arch = "resnet20", .preproc = tk_preproc_default(32)}, back;
    trunk.preproc.mode = TK_RESIZE_SQUASH;
    fixture_open(&f, NULL);
    assert_int_equal(tk_store_trunk_get(f.store, &back, &diag), TK_NOTFOUND);
    assert_ok(tk_store_trunk_set(f.store, &trunk, &diag));
    fixture_reopen(&f, NULL);
    assert_ok(tk_store_trunk_get(f.store, &back, &diag));
    assert_string_equal(back.arch, "resnet20");
    assert_memory_equal(&back.preproc, &trunk.preproc, sizeof back.preproc);
    assert_ok(commit_two(&f, 0, 1, 0.8, labels_of_colour, &diag));
    assert_int_equal(tk_store_trunk_set(f.store, &trunk, &diag), TK_PRECONDITION);
    fixture_close(&f);
}

static void jobs_and_events_come_back(void **state)
{
    (void)state;
    tk_diag diag;
    store_fixture f;
    tk_job back;
    tk_job_events events;
    uint64_t first;
    fixture_open(&f, NULL);
    const uint64_t id = fixture_data_set(f.store, f.alice, 10, 1);
    tk_setting *set = tk_calloc(1, sizeof *set);
    *set = (tk_setting){.name = "kappa", .value = 0.1};
    tk_job job = {.tenant = f.alice,
                  .head = "type",
                  .data_set = id,
                  .recipe = "kd",
                  .set = set,
                  .n_set = 1,
                  .retention = TK_RETAIN_NOTHING,
                  .tolerance = 2.5,
                  .seed = 7};
    assert_ok(tk_store_job_add(f.store, &job, &diag));
    assert_ok(tk_store_event_reserve(f.store, job.id, 4000, &first, &diag));
    for (uint64_t i = 0; i < 2100; i++) {
        tk_measure heads[] = {
            {.head = "alice/type", .accuracy = 0.5, .change = (double)NAN, .n = 9}};
        tk_job_event event = {.sequence = first + i,
                              .state = TK_JOB_RUNNING,
                              .stage = "train",
                              .step = i,
                              .loss_kd = 0.25,
                              .n_heads = 1,
                              .heads = heads};
        if (i % 100 == 0 || i > 2090) assert_ok(tk_store_event_add(f.store, job.id, &event, &diag));
    }
    fixture_reopen(&f, NULL);
    assert_ok(tk_store_job_get(f.store, f.alice, job.id, &back, &diag));
    assert_int_equal(back.n_set, 1);
    assert_true(back.set[0].value == 0.1);
    assert_string_equal(back.tenant_name, "alice");
    assert_int_equal(back.retention, TK_RETAIN_NOTHING);
    assert_int_equal(back.seed, 7);
    tk_job_fini(&back);
    assert_int_equal(tk_store_job_get(f.store, f.bob, job.id, &back, &diag), TK_NOTFOUND);
    assert_ok(tk_store_event_list(f.store, job.id, first + 1999, 3, &events, &diag));
    assert_int_equal(events.n, 3);
    assert_int_equal(events.items[0].step, 2000);
    assert_true(events.items[0].loss_kd == 0.25);
    assert_int_equal(events.items[0].n_heads, 1);
    assert_true(isnan(events.items[0].heads[0].change));
    tk_job_events_fini(&events);
    assert_ok(tk_store_event_reserve(f.store, job.id, 1, &first, &diag));
    assert_int_equal(first, 4001);
    tk_job_fini(&job);
    fixture_close(&f);
}

static void old_events_make_room(void **state)
{
    (void)state;
    tk_diag diag;
    store_fixture f;
    tk_job_events events;
    fixture_open(&f, NULL);
    const uint64_t id = fixture_data_set(f.store, f.alice, 10, 1);
    tk_job job = {.tenant = f.alice, .head = "type", .data_set = id, .tolerance = 1, .seed = 1};
    assert_ok(tk_store_job_add(f.store, &job, &diag));
    for (uint64_t i = 1; i <= 2200; i++) {
        tk_job_event event = {.sequence = i, .state = TK_JOB_RUNNING, .stage = "train"};
        assert_ok(tk_store_event_add(f.store, job.id, &event, &diag));
    }
    assert_ok(tk_store_event_list(f.store, job.id, 0, 10000, &events, &diag));
    assert_in_range(events.n, 2000, 2064);
    assert_int_equal(events.items[events.n - 1].sequence, 2200);
    tk_job_events_fini(&events);
    tk_job_fini(&job);
    fixture_close(&f);
}

/* A job that ends as rejected, with what the gate said. */
static tk_err reject(store_fixture *f, const char *judged, uint64_t *id, tk_diag *diag)
{
    tk_job job = {.tenant = f->alice,
                  .head = "type",
                  .data_set = fixture_data_set(f->store, f->alice, 10, 1),
                  .tolerance = 1,
                  .seed = 1};
    assert_ok_(tk_store_job_add(f->store, &job, diag), diag, "job", __FILE__, __LINE__);
    *id = job.id;
    job.state = TK_JOB_REJECTED;
    job.ended_ms = 1234;
    (void)snprintf(job.outcome, sizeof job.outcome, "reject");
    const tk_err err = tk_store_job_update(f->store, &job, NULL, NULL, judged, diag);
    tk_job_fini(&job);
    return err;
}

#define JUDGED(n01)                                                                                \
    "{\"gate\":[{\"head\":\"bob/colour\",\"best\":0.5,\"tolerance\":1,\"sigma\":0.5,\"n\":4,"      \
    "\"right_before\":2,\"n01\":" n01 ",\"n10\":0,\"before\":0.5,\"after\":0.25,\"floor\":0.49,"   \
    "\"drop\":25,\"se\":25,\"source\":\"validation\",\"resolved\":false,\"admitted\":false}],"     \
    "\"precisions\":{\"bf16\":{\"admitted\":true,\"heads\":[{\"head\":\"bob/colour\",\"n\":4,"     \
    "\"accuracy\":0.5,\"fp32\":0.5,\"alike\":1,\"tolerance\":1,\"source\":\"agreement\","          \
    "\"admitted\":true}]}}}"

static void a_decision_cannot_be_changed(void **state)
{
    (void)state;
    tk_diag diag;
    store_fixture f;
    tk_decision d;
    tk_db *db;
    uint64_t id;
    char path[128];
    fixture_open(&f, NULL);
    assert_ok(reject(&f, JUDGED("1"), &id, &diag));
    (void)snprintf(path, sizeof path, "%s/trunkd.sqlite", f.dir);
    assert_ok(tk__db_open(&db, path, &diag));
    assert_true(tk__db_run(db, &diag, "UPDATE decisions SET outcome = 'commit'", "") != TK_OK);
    assert_non_null(strstr(diag.text, "cannot be changed"));
    assert_true(tk__db_run(db, &diag, "DELETE FROM decisions", "") != TK_OK);
    assert_non_null(strstr(diag.text, "cannot be deleted"));
    tk__db_close(db);
    fixture_reopen(&f, NULL);
    assert_ok(tk_store_decision_get(f.store, f.alice, id, &d, &diag));
    assert_string_equal(d.outcome, "reject");
    assert_int_equal(d.decided_ms, 1234);
    assert_true(d.judged.heads[0].gate.sigma == 0.5);
    assert_int_equal(d.judged.n_checks, 1);
    assert_int_equal(d.judged.checks[0].precision, TK_PRECISION_BF16);
    assert_true(d.judged.checks[0].check.agreement);
    tk_decision_fini(&d);
    fixture_close(&f);
}

static void a_record_of_the_gate_that_contradicts_itself_is_refused(void **state)
{
    (void)state;
    tk_diag diag;
    tk_judgement judged;
    assert_ok(tk_judgement_parse(JUDGED("2"), &judged, &diag));
    tk_judgement_fini(&judged);
    static const char *const bad[][2] = {
        {JUDGED("3"), "contradict"}, /* three lost, of two that were right */
        {JUDGED("-1"), "n01"},
        {JUDGED("\"1\""), "n01"},
        {"{}", "no list of heads"},
        {"{\"gate\":[{}]}", "without a valid"},
        {"{\"gate\":[],\"precisions\":{\"int4\":{\"heads\":[{}]}}}", "without a valid"},
        {"{\"gate\":[],\"training\":{\"probe_accuracy\":1.5}}", "probe_accuracy"},
        {"{\"gate\":[],\"training\":{\"trials\":[{\"strength\":1}]}}", "without a valid"},
        {"{\"gate\":[],\"training\":{\"trials\":[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]}}", "too many"},
        {"{\"gate\":[],\"remarks\":[7]}", "no text"},
        {"not JSON", "no list of heads"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_err(tk_judgement_parse(bad[i][0], &judged, &diag), TK_BADDATA, bad[i][1]);
}

static void a_store_of_the_first_schema_is_brought_up_to_date(void **state)
{
    (void)state;
    tk_diag diag;
    store_fixture f;
    tk_decision d;
    tk_db *db;
    uint64_t id;
    char path[128];
    fixture_open(&f, NULL);
    assert_ok(reject(&f, NULL, &id, &diag));
    tk_store_close(f.store);
    (void)snprintf(path, sizeof path, "%s/trunkd.sqlite", f.dir);
    assert_ok(tk__db_open(&db, path, &diag));
    assert_ok(
        tk__db_script(db,
                      "DROP TABLE decisions; DROP TABLE curves; DROP TABLE lows; DROP TABLE labels;"
                      " DROP TABLE tenant_limits;"
                      " PRAGMA user_version = 1",
                      &diag));
    tk__db_close(db);
    assert_ok(tk_store_open(&f.store, f.dir, NULL, &diag));
    assert_err(tk_store_decision_get(f.store, f.alice, id, &d, &diag), TK_PRECONDITION,
               "before decisions were kept");
    assert_ok(reject(&f, JUDGED("1"), &id, &diag));
    assert_ok(tk_store_decision_get(f.store, f.alice, id, &d, &diag));
    tk_decision_fini(&d);
    fixture_close(&f);
}

static void out_of_memory_leaves_nothing_behind(void **state)
{
    (void)state;
    tk_diag diag;
    store_fixture f;
    tk_data_set set;
    const tk_label_count labels[] = {{(char[]){"red"}, 3}, {(char[]){"blue"}, 2}};
    fixture_open(&f, NULL);
    tk_err err =
        tk_store_data_set_delete(f.store, f.alice, fixture_data_set(f.store, f.alice, 9, 9), &diag);
    assert_int_equal(err, TK_OK); /* the table of pins stays */
    const long live = tk_test_alloc_live();
    err = TK_NOMEM;
    for (long n = 0; err != TK_OK; n++) {
        char *path = fixture_file(f.store, 100, 1);
        const long with_path = tk_test_alloc_live();
        tk_test_alloc_fail_after(n);
        err = tk_store_data_set_add(f.store, f.alice, "a", path, 5, labels, 2, &set, &diag);
        tk_test_alloc_fail_after(-1);
        if (err != TK_OK) {
            assert_int_equal(err, TK_NOMEM);
            assert_int_equal(tk_test_alloc_live(), with_path);
            assert_int_equal(fixture_entries(f.dir, "tmp"), 0);
        }
        tk_free(path);
        assert_true(n < 200);
    }
    tk_data_set_fini(&set);
    assert_int_equal(tk_test_alloc_live(), live);
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(first_start_makes_one_admin_token),
        cmocka_unit_test(a_store_has_one_server),
        cmocka_unit_test(names_follow_the_rule),
        cmocka_unit_test(tenants_have_unique_names_and_their_own_tokens),
        cmocka_unit_test(a_revoked_token_is_dead_at_once_and_after_a_restart),
        cmocka_unit_test(a_tenant_without_a_live_token_is_shut_out),
        cmocka_unit_test(the_last_admin_token_cannot_be_revoked),
        cmocka_unit_test(authentication_goes_on_while_tokens_come_and_go),
        cmocka_unit_test(a_data_set_comes_back_as_it_went_in),
        cmocka_unit_test(what_is_foreign_looks_unknown),
        cmocka_unit_test(a_deleted_data_set_is_gone_from_the_disk),
        cmocka_unit_test(a_data_set_in_use_cannot_be_deleted),
        cmocka_unit_test(limits_name_field_limit_and_value),
        cmocka_unit_test(tenants_take_turns_with_their_jobs),
        cmocka_unit_test(a_data_set_of_one_label_trains_nothing),
        cmocka_unit_test(a_version_comes_back_with_its_validations),
        cmocka_unit_test(heads_are_found_in_every_version_the_newest_when_there_are_too_many),
        cmocka_unit_test(labels_name_versions_and_one_may_have_a_share),
        cmocka_unit_test(names_of_labels_follow_the_rule),
        cmocka_unit_test(a_version_without_a_head_of_ones_own_looks_unknown),
        cmocka_unit_test(a_commit_that_fails_half_way_leaves_nothing),
        cmocka_unit_test(start_removes_what_a_crash_left),
        cmocka_unit_test(a_missing_current_version_is_said_at_start),
        cmocka_unit_test(trunk_settings_hold_until_there_is_a_version),
        cmocka_unit_test(jobs_and_events_come_back),
        cmocka_unit_test(old_events_make_room),
        cmocka_unit_test(a_decision_cannot_be_changed),
        cmocka_unit_test(a_record_of_the_gate_that_contradicts_itself_is_refused),
        cmocka_unit_test(a_store_of_the_first_schema_is_brought_up_to_date),
        cmocka_unit_test(out_of_memory_leaves_nothing_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
