/* Versions change, the server stops, the server is killed: all under load, and nobody gets a wrong
 * answer. */
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "engine/file.h"
#include "engine/tensors.h"
#include "trunkd_process.h"

enum { CLIENTS = 3, IMAGES = 5, ROLLBACKS = 8 };

static fixture_bytes images[IMAGES];

/* The scores of one answer, all classes of all images in the order of the answer. */
typedef struct scores {
    uint64_t version;
    float value[IMAGES][FIXTURE_TYPES];
    char label[IMAGES][16]; /* the best */
} scores;

static scores read_scores(const ProtobufCMessage *message)
{
    const Trunkd__V1__ClassifyResponse *out = (const Trunkd__V1__ClassifyResponse *)message;
    scores s;
    memset(&s, 0, sizeof s);
    s.version = out->version;
    for (size_t i = 0; i < out->n_images && i < IMAGES; i++) {
        const Trunkd__V1__HeadAnswer *head = out->images[i]->heads[0];
        for (size_t k = 0; k < head->n_top && k < FIXTURE_TYPES; k++)
            s.value[i][k] = head->top[k]->score;
        snprintf(s.label[i], sizeof s.label[i], "%s", head->top[0]->label);
    }
    return s;
}

static scores ask_scores(const trunkd *t)
{
    const answer a = classify(t->alice, images, IMAGES, "type", FIXTURE_TYPES);
    if (!a.message) fail_msg("%s: %s", tk_client_code_text(a.status.code), a.status.text);
    const scores s = read_scores(a.message);
    tk_client_free_message(a.message);
    return s;
}

static bool same(const scores *a, const scores *b)
{
    return memcmp(a->value, b->value, sizeof a->value) == 0 &&
           memcmp(a->label, b->label, sizeof a->label) == 0;
}

/* -- load -- */

typedef struct load {
    const trunkd *server;
    const scores *models; /* what even versions answer, and odd ones */
    atomic_bool stop;
    atomic_llong killed_ns; /* when the server was told to stop; 0: not yet */
    atomic_size_t answered, failed, wrong, lost, versions_seen;
} load;

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void *load_main(void *arg)
{
    load *l = arg;
    uint64_t last = 0;
    while (!atomic_load(&l->stop)) {
        const int64_t begun = now_ns();
        const answer a = classify(l->server->alice, images, IMAGES, "type", FIXTURE_TYPES);
        if (!a.message) {
            atomic_fetch_add(&l->failed, 1);
            const long long killed = atomic_load(&l->killed_ns);
            /* Begun before the server was told to stop, yet not answered: lost, unless its headers
             * crossed the core's GOAWAY on the wire, which the core answers with a bare CANCELLED.
             */
            const bool crossed = killed != 0 && a.status.code == TK_CLIENT_CANCELLED &&
                                 strcmp(a.status.text, "CANCELLED") == 0;
            if ((killed == 0 || begun < killed) && !crossed) {
                fprintf(stderr, "lost: %s: %s\n", tk_client_code_text(a.status.code),
                        a.status.text);
                atomic_fetch_add(&l->lost, 1);
            }
            if (killed != 0) break;
            continue;
        }
        const scores s = read_scores(a.message);
        tk_client_free_message(a.message);
        atomic_fetch_add(&l->answered, 1);
        if (!same(&s, &l->models[s.version % 2])) atomic_fetch_add(&l->wrong, 1);
        if (s.version != last) atomic_fetch_add(&l->versions_seen, 1);
        last = s.version;
    }
    return NULL;
}

static void start_load(load *l, const trunkd *server, const scores *models,
                       pthread_t threads[CLIENTS])
{
    memset(l, 0, sizeof *l);
    l->server = server;
    l->models = models;
    for (int i = 0; i < CLIENTS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, load_main, l), 0);
}

static void wait_answers(load *l, size_t more)
{
    const size_t want = atomic_load(&l->answered) + more;
    while (atomic_load(&l->answered) < want && atomic_load(&l->lost) == 0) {
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
}

static void versions_swap_under_load_without_a_failed_or_wrong_answer(void **state)
{
    (void)state;
    trunkd t;
    trunkd_prepare(&t, 2);
    trunkd_start(&t, (const char *const[]){"--batch", "4", "--delay-ms", "1", NULL});
    scores models[2];
    models[0] = ask_scores(&t);
    assert_int_equal(models[0].version, 2);
    assert_int_equal(trunkd_roll_back(&t, 1), 3);
    models[1] = ask_scores(&t);
    assert_int_equal(models[1].version, 3);
    assert_false(same(&models[0], &models[1]));

    load l;
    pthread_t threads[CLIENTS];
    start_load(&l, &t, models, threads);
    for (uint64_t i = 0; i < ROLLBACKS; i++) {
        wait_answers(&l, 2 * CLIENTS);
        assert_int_equal(trunkd_roll_back(&t, 2 - i % 2), 4 + i);
    }
    wait_answers(&l, 2 * CLIENTS);
    atomic_store(&l.stop, true);
    for (int i = 0; i < CLIENTS; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(atomic_load(&l.failed), 0);
    assert_int_equal(atomic_load(&l.wrong), 0);
    assert_true(atomic_load(&l.versions_seen) > CLIENTS); /* the swaps were seen */
    assert_int_equal(trunkd_end(&t, SIGTERM), 0);
    trunkd_remove(&t);
}

static void sigterm_under_load_answers_all_that_was_asked(void **state)
{
    (void)state;
    trunkd t;
    trunkd_prepare(&t, 2);
    trunkd_start(&t, NULL);
    scores models[2];
    models[0] = models[1] = ask_scores(&t);
    load l;
    pthread_t threads[CLIENTS];
    start_load(&l, &t, models, threads);
    wait_answers(&l, 3 * CLIENTS);
    atomic_store(&l.killed_ns, now_ns());
    kill(t.pid, SIGTERM);
    for (int i = 0; i < CLIENTS; i++)
        pthread_join(threads[i], NULL); /* each ends with its first refusal */
    assert_int_equal(atomic_load(&l.lost), 0);
    assert_int_equal(atomic_load(&l.wrong), 0);
    assert_int_equal(trunkd_end(&t, SIGTERM), 0); /* a second signal does no harm */
    assert_true(trunkd_logged(&t, "event=stopped"));
    trunkd_remove(&t);
}

static uint64_t upload_some(const trunkd *t)
{
    static const char *const labels[] = {"a", "b", "a", "b", "a"};
    uint64_t id;
    const tk_client_status status = upload(t->alice, "kept", images, labels, IMAGES, &id);
    if (status.code != TK_CLIENT_OK)
        fail_msg("%s: %s", tk_client_code_text(status.code), status.text);
    return id;
}

static void after_a_kill_the_answers_are_the_same_and_nothing_acknowledged_is_lost(void **state)
{
    (void)state;
    trunkd t;
    trunkd_prepare(&t, 2);
    trunkd_start(&t, NULL);
    const scores before = ask_scores(&t);
    assert_int_equal(trunkd_roll_back(&t, 1), 3);
    const scores rolled = ask_scores(&t);
    assert_int_equal(trunkd_roll_back(&t, 2), 4);
    const uint64_t id = upload_some(&t);
    assert_int_equal(trunkd_end(&t, SIGKILL), 128 + SIGKILL); /* right behind the answer */

    trunkd_start(&t, NULL);
    const scores after = ask_scores(&t);
    assert_int_equal(after.version, 4);
    assert_true(same(&before, &after));
    assert_false(same(&rolled, &after));
    Trunkd__V1__GetDataSetRequest in;
    trunkd__v1__get_data_set_request__init(&in);
    in.id = id;
    const answer a =
        ask(t.alice, "/trunkd.v1.DataSets/Get", &in, &trunkd__v1__data_set__descriptor);
    assert_non_null(a.message);
    assert_int_equal(((const Trunkd__V1__DataSet *)a.message)->images, IMAGES);
    tk_client_free_message(a.message);
    assert_int_equal(trunkd_end(&t, SIGTERM), 0);
    trunkd_remove(&t);
}

static void a_fresh_store_gives_advice_and_keeps_its_trunk(void **state)
{
    (void)state;
    trunkd t;
    trunkd_prepare(&t, 0);
    trunkd_start(&t, NULL);
    const answer a = classify(t.alice, images, 1, NULL, 1);
    assert_int_equal(a.status.code, TK_CLIENT_FAILED_PRECONDITION);
    assert_non_null(strstr(a.status.text, "nothing has been learned yet"));
    assert_int_equal(trunkd_end(&t, SIGTERM), 0);
    /* The trunk was chosen at that start. */
    char store[300];
    snprintf(store, sizeof store, "%s/store", t.dir);
    assert_int_equal(
        trunkd_run(&t, (const char *const[]){"--store", store, "--arch", "resnet32", NULL}), 1);
    assert_true(trunkd_logged(&t, "--arch is resnet32, but this store's trunk is a resnet20"));
    assert_int_equal(trunkd_run(&t, (const char *const[]){"--store", store, "--px", "1", NULL}), 2);
    trunkd_remove(&t);
}

/* A file as torchvision would save it: the trunk's own names, and an fc that is nobody's head. */
static fixture_bytes torchvision_file(const char *path)
{
    tk_params *trunk;
    tk_tensor_list list = {NULL, 0, 0};
    assert_int_equal(tk_params_create(&trunk, TK_RESNET32), TK_OK);
    tk_params_init(trunk, 5);
    assert_int_equal(tk_tensor_list_add_trunk(&list, trunk, trunk->data, "", false), TK_OK);
    static const float fc[2 * 64];
    assert_int_equal(tk_tensor_list_add(&list, "fc.weight", 2, (const size_t[]){2, 64}, fc), TK_OK);
    assert_int_equal(tk_tensor_list_add(&list, "fc.bias", 1, (const size_t[]){2}, fc), TK_OK);
    assert_int_equal(tk_tensors_write(path, list.items, list.n, NULL, 0, NULL), TK_OK);
    tk_tensor_list_fini(&list);
    tk_params_destroy(trunk);
    tk_map map;
    assert_int_equal(tk_map_open(&map, path, NULL), TK_OK);
    const fixture_bytes out = {malloc(map.size), map.size};
    assert_non_null(out.data);
    memcpy(out.data, map.data, map.size);
    tk_map_close(&map);
    return out;
}

static void a_trunk_is_imported_as_the_first_version(void **state)
{
    (void)state;
    trunkd t;
    trunkd_prepare(&t, 0);
    trunkd_start(&t, NULL);
    char path[300];
    snprintf(path, sizeof path, "%s/import", t.dir);
    fixture_bytes file = torchvision_file(path);
    Trunkd__V1__Version *version;
    tk_client_status status = import_trunk(t.admin, file, "", &version);
    if (status.code != TK_CLIENT_OK) fail_msg("%s", status.text);
    assert_int_equal(version->number, 1);
    assert_true(version->current);
    assert_int_equal(version->n_heads, 0);
    assert_non_null(strstr(version->reason, "resnet32 at 32 px"));
    tk_client_free_message(&version->base);
    const answer a = classify(t.alice, images, 1, NULL, 1);
    assert_int_equal(a.status.code, TK_CLIENT_FAILED_PRECONDITION);
    assert_non_null(strstr(a.status.text, "you have no head yet"));
    free(file.data);
    file = export_version(t.admin, 1, &status); /* and what is exported is a trunk again */
    status = import_trunk(t.admin, file, "resnet32", &version);
    if (status.code != TK_CLIENT_OK) fail_msg("%s", status.text);
    assert_int_equal(version->number, 2);
    assert_non_null(strstr(version->reason, "resnet32 at 32 px"));
    tk_client_free_message(&version->base);
    assert_int_equal(trunkd_end(&t, SIGTERM), 0);
    trunkd_start(&t,
                 (const char *const[]){"--arch", "resnet32", NULL}); /* what the store has now */
    assert_int_equal(trunkd_end(&t, SIGTERM), 0);
    free(file.data);
    trunkd_remove(&t);
}

static void a_second_server_on_the_store_is_refused(void **state)
{
    (void)state;
    trunkd t;
    trunkd_prepare(&t, 1);
    trunkd_start(&t, NULL);
    char store[300];
    snprintf(store, sizeof store, "%s/store", t.dir);
    assert_int_equal(
        trunkd_run(&t, (const char *const[]){"--store", store, "--listen", "127.0.0.1:0", NULL}),
        1);
    assert_true(trunkd_logged(&t, "cannot start"));
    (void)ask_scores(&t);
    assert_int_equal(trunkd_end(&t, SIGTERM), 0);
    trunkd_remove(&t);
}

static int set_up(void **state)
{
    (void)state;
    fixture_images(images, IMAGES);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    fixture_images_free(images, IMAGES);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(versions_swap_under_load_without_a_failed_or_wrong_answer),
        cmocka_unit_test(sigterm_under_load_answers_all_that_was_asked),
        cmocka_unit_test(after_a_kill_the_answers_are_the_same_and_nothing_acknowledged_is_lost),
        cmocka_unit_test(a_fresh_store_gives_advice_and_keeps_its_trunk),
        cmocka_unit_test(a_trunk_is_imported_as_the_first_version),
        cmocka_unit_test(a_second_server_on_the_store_is_refused),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
