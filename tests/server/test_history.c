/* GetHistory over the wire: versions made through the store's own functions, with known accuracies
 * and curves, and the matrix, the metrics and the names that alice, bob and an admin get of them.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/mem.h"
#include "store/store.h"
#include "trunkd_process.h"

#define PB(name)                                                                                   \
    &trunkd__v1__##name##__descriptor /* generated names: only the preprocessor can join them */

static trunkd server;

static void must(tk_err err, const tk_diag *diag)
{
    if (err == TK_OK) return;
    fprintf(stderr, "%s: %s\n", tk_err_text(err), diag->text);
    abort();
}

/* A running job of `tenant`, which has measured the other head at two steps. */
static uint64_t make_job(tk_store *store, int64_t tenant, const char *head, const char *other,
                         double first, double second)
{
    tk_diag diag;
    tk_data_set set;
    char label_a[] = "a", label_b[] = "b";
    const tk_label_count labels[] = {{label_a, 1}, {label_b, 1}};
    char *path = tk_store_temp_path(store);
    FILE *f = fopen(path, "w");
    if (!f || fputs("a pack", f) < 0 || fclose(f) != 0) abort();
    must(tk_store_data_set_add(store, tenant, "photos", path, 2, labels, 2, &set, &diag), &diag);
    tk_job job = {.tenant = tenant, .data_set = set.id, .tolerance = 1, .seed = 1};
    snprintf(job.head, sizeof job.head, "%s", head);
    must(tk_store_job_add(store, &job, &diag), &diag);
    job.state = TK_JOB_RUNNING;
    for (uint64_t step = 1; step <= 2; step++) {
        tk_measure heads[2] = {{.accuracy = step == 1 ? first : second, .n = 100},
                               {.accuracy = 0.01, .n = 100, .agreement = true}};
        snprintf(heads[0].head, sizeof heads[0].head, "%s", other);
        snprintf(heads[1].head, sizeof heads[1].head, "%s", other);
        const tk_job_event event = {.sequence = step,
                                    .state = TK_JOB_RUNNING,
                                    .stage = "train",
                                    .step = step,
                                    .n_heads = 2,
                                    .heads = heads};
        must(tk_store_job_update(store, &job, &event, NULL, NULL, &diag), &diag);
    }
    const uint64_t id = job.id;
    tk_job_fini(&job);
    tk_data_set_fini(&set);
    tk_free(path);
    return id;
}

/* The next version: the file and heads of version `file`, measured on 100 images. */
static void add_version(tk_store *store, uint64_t file, uint64_t job, double type, double colour)
{
    tk_diag diag;
    tk_version from, now;
    uint64_t number;
    must(tk_store_version_get(store, TK_ALL, file, TK_WITH_LABELS, &from, &diag), &diag);
    must(tk_store_version_get(store, TK_ALL, 0, 0, &now, &diag), &diag);
    must(tk_store_version_next(store, &number, &diag), &diag);
    tk_object model = {.bytes = from.bytes};
    memcpy(model.sha, from.sha, sizeof model.sha);
    for (size_t i = 0; i < from.n_heads; i++) {
        from.heads[i].n = 100;
        from.heads[i].accuracy = strcmp(from.heads[i].name, "type") == 0 ? type : colour;
    }
    const tk_commit commit = {.expect_current = now.number,
                              .number = number,
                              .model = &model,
                              .reason = "",
                              .heads = from.heads,
                              .n_heads = from.n_heads,
                              .job = job,
                              .outcome = "commit",
                              .judged = job ? "{\"gate\":[]}" : NULL};
    must(tk_store_version_commit(store, &commit, &diag), &diag);
    tk_version_fini(&from);
    tk_version_fini(&now);
}

/* Versions 1 and 2 are not measured. Alice trains type (3), bob trains colour (4), an admin rolls
 * back to 3 (5), bob trains colour again (6). */
static void make_versions(void)
{
    char path[300];
    tk_diag diag;
    tk_store *store;
    tk_tenant alice, bob;
    snprintf(path, sizeof path, "%s/store", server.dir);
    must(tk_store_open(&store, path, NULL, &diag), &diag);
    must(tk_store_tenant_find(store, "alice", &alice, &diag), &diag);
    must(tk_store_tenant_find(store, "bob", &bob, &diag), &diag);
    add_version(store, 1, make_job(store, alice.id, "type", "bob/colour", 0.40, 0.55), 0.80, 0.60);
    add_version(store, 2, make_job(store, bob.id, "colour", "alice/type", 0.70, 0.60), 0.79, 0.70);
    add_version(store, 3, 0, 0.80, 0.60);
    add_version(store, 2, make_job(store, bob.id, "colour", "alice/type", 0.50, 0.75), 0.78, 0.65);
    tk_store_close(store);
}

static Trunkd__V1__History *get(tk_client *client, char *head)
{
    Trunkd__V1__GetHistoryRequest in;
    trunkd__v1__get_history_request__init(&in);
    in.n_heads = head ? 1 : 0;
    in.heads = &head;
    const answer a = ask(client, "/trunkd.v1.Heads/GetHistory", &in, PB(history));
    if (!a.message) fail_msg("%s: %s", tk_client_code_text(a.status.code), a.status.text);
    return (Trunkd__V1__History *)a.message;
}

static void assert_near(double got, double want)
{
    if (!(fabs(got - want) < 1e-9)) fail_msg("got %.12g, expected %.12g", got, want);
}

static void the_matrix_and_its_metrics_are_right(void **state)
{
    (void)state;
    Trunkd__V1__History *h = get(server.admin, NULL);
    assert_int_equal(h->n_heads, 2);
    assert_int_equal(h->n_versions, 6);
    assert_string_equal(h->heads[0]->head, "alice/type"); /* both are of version 1: by name */
    assert_int_equal(h->versions[0]->number, 1);
    assert_int_equal(h->versions[0]->cells[0]->images, 0);
    assert_false(h->versions[0]->cells[0]->trained);
    assert_string_equal(h->versions[0]->trained, "");
    assert_string_equal(h->versions[2]->trained, "alice/type");
    assert_true(h->versions[2]->cells[0]->trained);
    assert_false(h->versions[2]->cells[1]->trained);
    assert_near(h->versions[2]->cells[1]->lowest->value, 0.40);
    assert_null(h->versions[2]->cells[0]->lowest);
    assert_near(h->versions[3]->cells[0]->accuracy, 0.79);
    assert_int_equal(h->versions[5]->job, 3);
    assert_int_equal(h->heads[0]->since, 3);
    assert_near(h->heads[0]->change->value, -0.02);
    assert_near(h->heads[0]->forgetting->value, 0.02);
    assert_near(h->heads[0]->lowest->value, 0.50);
    assert_int_equal(h->heads[1]->since, 6); /* just trained */
    assert_null(h->heads[1]->change);
    assert_null(h->heads[1]->lowest);
    assert_near(h->acc->value, (0.78 + 0.65) / 2);
    assert_int_equal(h->acc->heads, 2);
    assert_near(h->bwt->value, -0.02);
    assert_int_equal(h->bwt->heads, 1);
    assert_near(h->forgetting->value, 0.02);
    assert_near(h->min_acc->value, 0.50);
    tk_client_free_message(&h->base);
}

static void a_tenant_sees_its_own_heads_and_others_without_their_names(void **state)
{
    (void)state;
    Trunkd__V1__History *h = get(server.alice, NULL);
    assert_int_equal(h->n_heads, 1);
    assert_string_equal(h->heads[0]->head, "type");
    assert_int_equal(h->n_versions, 6);
    assert_int_equal(h->versions[5]->n_cells, 1);
    assert_string_equal(h->versions[2]->trained, "type");
    assert_int_equal(h->versions[2]->job, 1);
    assert_string_equal(h->versions[5]->trained, "other-1");
    assert_int_equal(h->versions[5]->job, 0);
    assert_near(h->acc->value, 0.78);
    tk_client_free_message(&h->base);
    char type[] = "type", full[] = "bob/colour", colour[] = "colour";
    h = get(server.bob, colour);
    assert_int_equal(h->n_heads, 1);
    assert_null(h->bwt);
    tk_client_free_message(&h->base);
    h = get(server.admin, full);
    assert_int_equal(h->n_heads, 1);
    tk_client_free_message(&h->base);
    char *foreign[] = {type};
    Trunkd__V1__GetHistoryRequest in;
    trunkd__v1__get_history_request__init(&in);
    in.n_heads = 1;
    in.heads = foreign;
    const answer a = ask(server.bob, "/trunkd.v1.Heads/GetHistory", &in, PB(history));
    assert_null(a.message);
    assert_int_equal(a.status.code, TK_CLIENT_NOT_FOUND);
}

static int set_up(void **state)
{
    (void)state;
    trunkd_prepare(&server, 2);
    make_versions();
    trunkd_start(&server, NULL);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    (void)trunkd_end(&server, 15);
    trunkd_remove(&server);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_matrix_and_its_metrics_are_right),
        cmocka_unit_test(a_tenant_sees_its_own_heads_and_others_without_their_names),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
