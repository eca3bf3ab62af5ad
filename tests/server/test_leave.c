/* A tenant leaves, and every byte of the store is searched for what it was: its name, its labels,
 * its images as they were sent and as they were decoded, its head's weights and its share of the
 * Fisher. All of it must have been there before, and none of it may be there after, while the
 * server goes on; also when the server is killed in the midst and asked again. */
#define _GNU_SOURCE /* memmem, nftw */
#include <ftw.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/file.h"
#include "engine/image.h"
#include "trunkd_process.h"

#define PB(name)                                                                                   \
    &trunkd__v1__##name##__descriptor /* generated names: only the preprocessor can join them */

enum { IMAGES = 24, NEEDLES = 40, NEEDLE = 64, KILLS = 6, SETTINGS = 5, BOBS_EPOCHS = 10000 };

static const char name[] = "zebedee-quagga", head_name[] = "spots";
static const char head_id[] = "zebedee-quagga/spots";
static const char *const label_names[] = {"okapi-left", "okapi-right", "okapi-none"};

static trunkd server;
static fixture_bytes images[IMAGES];
static const char *flags[3] = {"--trainer"}; /* and its path */

/* ---- needles ---- */

typedef struct needle {
    char what[32];
    uint8_t bytes[NEEDLE];
    size_t size, found;
} needle;

/* Those of the images that are held out lie, decoded, in the directory of a job that trains. */
static const char decoded[] = "an image decoded";
static needle needles[NEEDLES];
static size_t n_needles;
static const char *found_in[NEEDLES];

static void add_needle(const char *what, const void *bytes, size_t size)
{
    needle *n = &needles[n_needles++];
    assert_true(n_needles <= NEEDLES && size <= NEEDLE);
    *n = (needle){.size = size};
    snprintf(n->what, sizeof n->what, "%s", what);
    memcpy(n->bytes, bytes, size);
}

static int search_file(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)ftw;
    static char paths[NEEDLES][512];
    tk_map map;
    if (type != FTW_F || tk_map_open(&map, path, NULL) != TK_OK) return 0;
    for (size_t i = 0; i < n_needles && map.data; i++) {
        if (!memmem(map.data, map.size, needles[i].bytes, needles[i].size)) continue;
        needles[i].found++;
        snprintf(paths[i], sizeof paths[i], "%s", path);
        found_in[i] = paths[i];
    }
    tk_map_close(&map);
    return 0;
}

static void search(void)
{
    char store[300];
    snprintf(store, sizeof store, "%s/store", server.dir);
    for (size_t i = 0; i < n_needles; i++)
        needles[i].found = 0;
    assert_int_equal(nftw(store, search_file, 16, FTW_PHYS), 0);
}

/* How many images lie decoded in the store. */
static size_t count_decoded(void)
{
    size_t n = 0;
    search();
    for (size_t i = 0; i < n_needles; i++)
        n += needles[i].found && strcmp(needles[i].what, decoded) == 0;
    return n;
}

static void assert_all_are_there(void)
{
    assert_true(count_decoded() > 0);
    for (size_t i = 0; i < n_needles; i++)
        if (!needles[i].found && strcmp(needles[i].what, decoded) != 0)
            fail_msg("%s is not in the store: nothing to prove", needles[i].what);
}

static void assert_none_is_there(void)
{
    search();
    for (size_t i = 0; i < n_needles; i++)
        if (needles[i].found) fail_msg("%s is still in %s", needles[i].what, found_in[i]);
}

/* The head as it lies in a version's file: some of its weights, and of its share of the Fisher. */
static int take_head(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)ftw;
    tk_model *model;
    if (type != FTW_F || tk_model_load(&model, path, true, NULL) != TK_OK) return 0;
    const tk_head *head = tk_model_head(model, head_id);
    if (head) {
        add_needle("the head's weights", head->weight, NEEDLE);
        assert_true(head->share.n > NEEDLE);
        add_needle("the head's share", head->share.codes, NEEDLE);
    }
    tk_model_destroy(model);
    return head != NULL;
}

static void collect_needles(void)
{
    char objects[300];
    n_needles = 0;
    add_needle("the name", name, strlen(name));
    add_needle("a label", "okapi-", 6);
    for (size_t i = 0; i < IMAGES; i++) {
        tk_image image;
        if (i % 8 == 0) add_needle("an image as sent", images[i].data + images[i].size / 2, NEEDLE);
        assert_int_equal(tk_image_decode(&image, images[i].data, images[i].size, NULL, 0, NULL),
                         TK_OK);
        add_needle(decoded, image.rgb + 32 * 32, NEEDLE);
        tk_image_fini(&image);
    }
    snprintf(objects, sizeof objects, "%s/store/objects", server.dir);
    assert_int_equal(nftw(objects, take_head, 16, FTW_PHYS), 1);
}

/* ---- requests ---- */

static void must(const answer *a)
{
    if (!a->message) fail_msg("%s: %s", tk_client_code_text(a->status.code), a->status.text);
    tk_client_free_message(a->message);
}

static tk_client *open_tenant(void)
{
    char address[64], copy[64];
    Trunkd__V1__CreateTenantRequest in;
    trunkd__v1__create_tenant_request__init(&in);
    snprintf(copy, sizeof copy, "%s", name);
    in.name = copy;
    const answer a =
        ask(server.admin, "/trunkd.v1.Admin/CreateTenant", &in, PB(create_tenant_response));
    if (!a.message) fail_msg("%s: %s", tk_client_code_text(a.status.code), a.status.text);
    const Trunkd__V1__CreateTenantResponse *made =
        (const Trunkd__V1__CreateTenantResponse *)a.message;
    snprintf(address, sizeof address, "127.0.0.1:%d", server.port);
    tk_client *client = tk_client_open(address, made->token);
    assert_non_null(client);
    tk_client_free_message(a.message);
    return client;
}

static uint64_t send_images(tk_client *client)
{
    const char *labels[IMAGES];
    uint64_t id;
    for (size_t i = 0; i < IMAGES; i++)
        labels[i] = label_names[i % 3];
    const tk_client_status status = upload(client, "set", images, labels, IMAGES, &id);
    if (status.code != TK_CLIENT_OK) fail_msg("%s", status.text);
    return id;
}

static uint64_t submit(tk_client *client, const char *head, const char *recipe, uint64_t data,
                       double epochs)
{
    char copies[SETTINGS + 2][32];
    const char *const settings[] = {"epochs", "batch", "warm_up", "fisher_samples", "rate"};
    const double values[] = {epochs, 8, 4, 4, 1e-6};
    Trunkd__V1__Setting set[SETTINGS], *all[SETTINGS];
    Trunkd__V1__SubmitJobRequest in;
    trunkd__v1__submit_job_request__init(&in);
    for (size_t i = 0; i < SETTINGS; i++) {
        trunkd__v1__setting__init(&set[i]);
        snprintf(copies[i], sizeof copies[i], "%s", settings[i]);
        set[i].name = copies[i];
        set[i].value = values[i];
        all[i] = &set[i];
    }
    snprintf(copies[SETTINGS], sizeof copies[0], "%s", head);
    snprintf(copies[SETTINGS + 1], sizeof copies[0], "%s", recipe);
    in.head = copies[SETTINGS];
    in.recipe = copies[SETTINGS + 1];
    in.data_set = data;
    in.n_set = SETTINGS;
    in.set = all;
    in.tolerance = 50;
    const answer a = ask(client, "/trunkd.v1.Jobs/Submit", &in, PB(job));
    if (!a.message) fail_msg("%s: %s", tk_client_code_text(a.status.code), a.status.text);
    const uint64_t id = ((const Trunkd__V1__Job *)a.message)->id;
    tk_client_free_message(a.message);
    return id;
}

static Trunkd__V1__JobState state_of(tk_client *client, uint64_t id)
{
    Trunkd__V1__GetJobRequest in;
    trunkd__v1__get_job_request__init(&in);
    in.id = id;
    const answer a = ask(client, "/trunkd.v1.Jobs/Get", &in, PB(job));
    if (!a.message) fail_msg("%s: %s", tk_client_code_text(a.status.code), a.status.text);
    const Trunkd__V1__Job *job = (const Trunkd__V1__Job *)a.message;
    const Trunkd__V1__JobState state = job->state;
    if (state == TRUNKD__V1__JOB_STATE__FAILED) print_error("%s\n", job->reason);
    tk_client_free_message(a.message);
    return state;
}

static void sleep_ms(long ms)
{
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
}

static void wait_for(tk_client *client, uint64_t job)
{
    for (int i = 0; i < 6000; i++, sleep_ms(20)) {
        const Trunkd__V1__JobState state = state_of(client, job);
        if (state == TRUNKD__V1__JOB_STATE__COMMITTED) return;
        assert_true(state == TRUNKD__V1__JOB_STATE__QUEUED ||
                    state == TRUNKD__V1__JOB_STATE__RUNNING);
    }
    fail_msg("job %llu does not end", (unsigned long long)job);
}

static void cancel(tk_client *client, uint64_t job)
{
    Trunkd__V1__CancelJobRequest in;
    trunkd__v1__cancel_job_request__init(&in);
    in.id = job;
    const answer a = ask(client, "/trunkd.v1.Jobs/Cancel", &in, PB(job));
    must(&a);
}

static answer ask_to_leave(void)
{
    char copy[64];
    Trunkd__V1__DeleteTenantRequest in;
    trunkd__v1__delete_tenant_request__init(&in);
    snprintf(copy, sizeof copy, "%s", name);
    in.name = copy;
    return ask(server.admin, "/trunkd.v1.Admin/DeleteTenant", &in, PB(empty));
}

/* ---- the story ---- */

/* A tenant with a head; *bob's job that was trained beside it says its name in its report. */
static tk_client *move_in(uint64_t bobs_data)
{
    tk_client *client = open_tenant();
    wait_for(client, submit(client, head_name, "probe", send_images(client), 1));
    wait_for(server.bob, submit(server.bob, "beside", "probe", bobs_data, 1));
    return client;
}

/* Bob's job that does not end by itself has the tenant's held-out images in its directory. */
static uint64_t start_long_job(uint64_t bobs_data)
{
    const uint64_t job = submit(server.bob, "long", "kd", bobs_data, BOBS_EPOCHS);
    for (int i = 0; i < 3000; i++, sleep_ms(20)) {
        if (count_decoded() > 0) return job;
        assert_int_not_equal(state_of(server.bob, job), TRUNKD__V1__JOB_STATE__COMMITTED);
    }
    fail_msg("the job does not begin");
    return 0;
}

static uint64_t send_bobs(void)
{
    fixture_bytes own[12];
    const char *labels[12];
    uint64_t id;
    for (unsigned i = 0; i < 12; i++) {
        own[i] = fixture_png(32, 32, 500 + i);
        labels[i] = i % 2 ? "odd" : "even";
    }
    const tk_client_status status = upload(server.bob, "bobs", own, labels, 12, &id);
    if (status.code != TK_CLIENT_OK) fail_msg("%s", status.text);
    for (unsigned i = 0; i < 12; i++)
        free(own[i].data);
    return id;
}

static uint64_t bobs_data;
static long leave_ms; /* how long it takes here, to spread the kills over it */

static long now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void who_leaves_is_gone_from_every_byte(void **state)
{
    (void)state;
    bobs_data = send_bobs();
    const answer before = classify(server.alice, images, 4, "type", FIXTURE_TYPES);
    assert_non_null(before.message);
    tk_client *client = move_in(bobs_data);
    collect_needles();
    const uint64_t job = start_long_job(bobs_data);
    assert_all_are_there();
    const long began = now_ms();
    const answer a = ask_to_leave();
    must(&a);
    leave_ms = now_ms() - began;
    assert_none_is_there();
    /* It is shut out, and the others go on: the same answers, and Bob's job under way. */
    const answer refused = classify(client, images, 1, head_name, 1);
    assert_int_equal(refused.status.code, TK_CLIENT_UNAUTHENTICATED);
    tk_client_close(client);
    const answer after = classify(server.alice, images, 4, "type", FIXTURE_TYPES);
    assert_non_null(after.message);
    const Trunkd__V1__ClassifyResponse *x = (const Trunkd__V1__ClassifyResponse *)before.message;
    const Trunkd__V1__ClassifyResponse *y = (const Trunkd__V1__ClassifyResponse *)after.message;
    for (size_t i = 0; i < 4; i++)
        for (size_t k = 0; k < FIXTURE_TYPES; k++)
            assert_true(x->images[i]->heads[0]->top[k]->score ==
                        y->images[i]->heads[0]->top[k]->score);
    tk_client_free_message(before.message);
    tk_client_free_message(after.message);
    const Trunkd__V1__JobState bobs = state_of(server.bob, job);
    assert_true(bobs == TRUNKD__V1__JOB_STATE__QUEUED || bobs == TRUNKD__V1__JOB_STATE__RUNNING);
    cancel(server.bob, job);
}

static void a_rollback_does_not_bring_it_back(void **state)
{
    (void)state;
    Trunkd__V1__RollbackRequest in;
    trunkd__v1__rollback_request__init(&in);
    in.version = 2; /* which it had made */
    const answer a = ask(server.admin, "/trunkd.v1.Admin/Rollback", &in, PB(version));
    must(&a);
    assert_none_is_there();
    const answer gone = ask_to_leave();
    assert_int_equal(gone.status.code, TK_CLIENT_NOT_FOUND);
}

/* Killed at a moment between the request and its end. Asked again, the server does what is left. */
static void killed_in_the_midst_it_is_asked_again(void **state)
{
    (void)state;
    size_t undone = 0, done = 0;
    for (long k = 0; k < KILLS; k++) {
        tk_client *client = move_in(bobs_data);
        collect_needles();
        char copy[64];
        Trunkd__V1__DeleteTenantRequest in;
        trunkd__v1__delete_tenant_request__init(&in);
        snprintf(copy, sizeof copy, "%s", name);
        in.name = copy;
        tk_client_call *call =
            tk_client_start(server.admin, "/trunkd.v1.Admin/DeleteTenant", PB(empty), 60000);
        assert_non_null(call);
        tk_client_send(call, &in.base);
        tk_client_send_end(call);
        sleep_ms(k * leave_ms / (KILLS - 2)); /* the last one comes late */
        tk_client_close(client);
        kill(server.pid, SIGKILL);
        tk_client_status status;
        tk_client_finish(call, &status);
        trunkd_end(&server, SIGKILL);
        trunkd_start(&server, flags);
        const answer again = ask_to_leave();
        undone += again.message != NULL;
        done += again.message == NULL;
        if (!again.message) assert_int_equal(again.status.code, TK_CLIENT_NOT_FOUND);
        tk_client_free_message(again.message);
        assert_none_is_there();
    }
    print_message("%zu kills before the transaction, %zu after it\n", undone, done);
}

/* The trainer beside this program, without its idle priority, which would wait for every other
 * test. Gives the path of the script. */
static const char *write_trainer(void)
{
    static char path[300];
    char self[4096];
    const ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n <= 0) abort();
    self[n] = 0;
    *strrchr(self, '/') = 0;
    snprintf(path, sizeof path, "%s/trainer", server.dir);
    FILE *f = fopen(path, "w");
    if (!f) abort();
    fprintf(f, "#!/bin/sh\nexec '%s/trunkd-trainer' --normal-priority \"$1\"\n", self);
    if (fclose(f) != 0 || chmod(path, 0700) != 0) abort();
    return path;
}

int main(void)
{
    for (unsigned i = 0; i < IMAGES; i++)
        images[i] = fixture_png(32, 32, 100 + i);
    trunkd_prepare(&server, 1);
    flags[1] = write_trainer();
    trunkd_start(&server, flags);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(who_leaves_is_gone_from_every_byte),
        cmocka_unit_test(a_rollback_does_not_bring_it_back),
        cmocka_unit_test(killed_in_the_midst_it_is_asked_again),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    failed += trunkd_end(&server, SIGTERM) != 0;
    trunkd_remove(&server);
    for (unsigned i = 0; i < IMAGES; i++)
        free(images[i].data);
    return failed;
}
