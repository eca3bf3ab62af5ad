/* The services over the wire: the real trunkd on a loopback port, with a model of two tenants. Each
 * kind of bad input gets its status and a sentence, and after each the server still answers. */
#include <dirent.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "engine/mem.h"
#include "engine/tensors.h"
#include "serving/snapshot.h"
#include "trunkd_process.h"

static trunkd server;
static fixture_bytes good[4];

#define PB(name)                                                                                   \
    &trunkd__v1__##name##__descriptor /* generated names: only the preprocessor can join them */

static void assert_status(const tk_client_status *status, int code, const char *words)
{
    if (status->code != code || !strstr(status->text, words)) {
        fail_msg("expected %s with \"%s\", got %s: %s", tk_client_code_text(code), words,
                 tk_client_code_text(status->code), status->text);
    }
}

/* Asks, and expects this refusal. */
static void assert_refused(tk_client *client, const char *path, const void *in,
                           const ProtobufCMessageDescriptor *type, int code, const char *words)
{
    const answer a = ask(client, path, in, type);
    assert_null(a.message);
    assert_status(&a.status, code, words);
}

static void *assert_answered(tk_client *client, const char *path, const void *in,
                             const ProtobufCMessageDescriptor *type)
{
    const answer a = ask(client, path, in, type);
    if (!a.message) fail_msg("%s: %s: %s", path, tk_client_code_text(a.status.code), a.status.text);
    return a.message;
}

static void assert_still_serving(void)
{
    const answer a = classify(server.alice, good, 1, "type", 1);
    assert_int_equal(a.status.code, TK_CLIENT_OK);
    tk_client_free_message(a.message);
}

/* -- Classify -- */

/* What serving/ itself answers in this process: alice's head, all classes. */
static void expected(uint64_t seed, const fixture_bytes *image, tk_top top[FIXTURE_TYPES])
{
    tk_snapshot *s;
    assert_int_equal(tk_snapshot_create(&s, fixture_model(seed), 1, 1, 1, NULL), TK_OK);
    const tk_preproc *p = tk_snapshot_preproc(s);
    tk_image rgb;
    uint8_t canvas[32 * 32 * 3];
    assert_int_equal(tk_image_decode(&rgb, image->data, image->size, NULL, p->resize, NULL), TK_OK);
    assert_int_equal(tk_preproc_canvas(p, &rgb, 32, canvas, NULL), TK_OK);
    const tk_head *head = tk_snapshot_find(s, "alice", "type");
    const size_t k = FIXTURE_TYPES;
    const tk_pass pass = {.canvas = canvas, .n_heads = 1, .heads = &head, .k = &k, .top = top};
    tk_snapshot_run(s, 1, &pass);
    tk_image_fini(&rgb);
    tk_snapshot_unref(s);
}

static void classify_answers_what_the_engine_computes(void **state)
{
    (void)state;
    const answer a =
        classify(server.alice, good, 4, "type", 99); /* top_k beyond the classes is clamped */
    assert_int_equal(a.status.code, TK_CLIENT_OK);
    const Trunkd__V1__ClassifyResponse *out = (const Trunkd__V1__ClassifyResponse *)a.message;
    assert_int_equal(out->version, 2);
    assert_int_equal(out->n_images, 4);
    for (size_t i = 0; i < 4; i++) {
        tk_top want[FIXTURE_TYPES];
        expected(2, &good[i], want);
        assert_string_equal(out->images[i]->error, "");
        assert_int_equal(out->images[i]->n_heads, 1);
        const Trunkd__V1__HeadAnswer *head = out->images[i]->heads[0];
        assert_string_equal(head->head, "type");
        assert_int_equal(head->n_top, FIXTURE_TYPES);
        for (size_t k = 0; k < FIXTURE_TYPES; k++) {
            char label[16];
            snprintf(label, sizeof label, "type-%u", want[k].label);
            assert_string_equal(head->top[k]->label, label);
            assert_memory_equal(&head->top[k]->score, &want[k].score,
                                sizeof(float)); /* to the bit */
        }
    }
    tk_client_free_message(a.message);
}

static void without_names_all_heads_of_the_tenant_answer(void **state)
{
    (void)state;
    const answer a = classify(server.bob, good, 1, NULL, 0);
    assert_int_equal(a.status.code, TK_CLIENT_OK);
    const Trunkd__V1__ClassifyResponse *out = (const Trunkd__V1__ClassifyResponse *)a.message;
    assert_int_equal(out->images[0]->n_heads, 1);
    assert_string_equal(out->images[0]->heads[0]->head, "colour");
    assert_int_equal(out->images[0]->heads[0]->n_top, 1);
    tk_client_free_message(a.message);
}

static void a_foreign_head_looks_like_one_that_does_not_exist(void **state)
{
    (void)state;
    const answer foreign = classify(server.alice, good, 1, "colour", 1);
    const answer unknown = classify(server.alice, good, 1, "nothing", 1);
    assert_status(&foreign.status, TK_CLIENT_NOT_FOUND, "you have no head \"colour\"");
    assert_status(&unknown.status, TK_CLIENT_NOT_FOUND, "you have no head \"nothing\"");
    const answer whole = classify(server.alice, good, 1, "bob/colour", 1);
    assert_status(&whole.status, TK_CLIENT_NOT_FOUND, "you have no head");
    assert_still_serving();
}

static void bad_images_are_named_and_the_rest_answered(void **state)
{
    (void)state;
    fixture_bytes bomb = fixture_png_bomb(100000, 100000);
    const fixture_bytes images[] = {
        good[0], {good[1].data, 0}, {good[1].data, good[1].size / 2}, bomb, good[2]};
    const answer a = classify(server.alice, images, 5, "type", 1);
    assert_int_equal(a.status.code, TK_CLIENT_OK);
    const Trunkd__V1__ClassifyResponse *out = (const Trunkd__V1__ClassifyResponse *)a.message;
    for (size_t i = 0; i < 5; i++) {
        const bool bad = i > 0 && i < 4;
        assert_int_equal(out->images[i]->n_heads, bad ? 0 : 1);
        assert_int_equal(out->images[i]->error[0] != '\0', bad);
    }
    assert_non_null(strstr(out->images[3]->error, "100000"));
    tk_client_free_message(a.message);
    for (size_t i = 1; i < 4; i++) { /* each alone */
        const answer alone = classify(server.alice, &images[i], 1, "type", 1);
        assert_status(&alone.status, TK_CLIENT_INVALID_ARGUMENT, "the image cannot be read: ");
        assert_still_serving();
    }
    const answer all = classify(server.alice, images + 1, 3, "type", 1);
    assert_status(&all.status, TK_CLIENT_INVALID_ARGUMENT,
                  "none of the 3 images can be read; the first: ");
    free(bomb.data);
}

static void classify_checks_its_fields(void **state)
{
    (void)state;
    const answer none = classify(server.alice, good, 0, "type", 1);
    assert_status(&none.status, TK_CLIENT_INVALID_ARGUMENT, "images is empty");
    fixture_bytes *many = calloc(257, sizeof *many);
    for (size_t i = 0; i < 257; i++)
        many[i] = good[0];
    const answer a = classify(server.alice, many, 257, "type", 1);
    assert_status(&a.status, TK_CLIENT_INVALID_ARGUMENT,
                  "images has 257 entries, the limit is 256");
    free(many);
    fixture_bytes large = {calloc(1, (32 << 20) + 1), (32 << 20) + 1};
    const answer b = classify(server.alice, &large, 1, "type", 1);
    assert_status(&b.status, TK_CLIENT_INVALID_ARGUMENT,
                  "images[0] has 33554433 bytes, the limit is 33554432");
    free(large.data);
    assert_still_serving();
}

/* -- who may call -- */

static void callers_without_a_valid_token_are_refused(void **state)
{
    (void)state;
    char address[64];
    snprintf(address, sizeof address, "127.0.0.1:%d", server.port);
    const answer none = classify(server.nobody, good, 1, "type", 1);
    assert_status(&none.status, TK_CLIENT_UNAUTHENTICATED, "token");
    char wrong[64];
    snprintf(wrong, sizeof wrong, "%s", server.alice_token);
    wrong[10] = wrong[10] == 'x' ? 'y' : 'x';
    tk_client *client = tk_client_open(address, wrong);
    const answer a = classify(client, good, 1, "type", 1);
    assert_status(&a.status, TK_CLIENT_UNAUTHENTICATED, "token");
    tk_client_close(client);
    assert_still_serving();
}

static void roles_are_kept_apart(void **state)
{
    (void)state;
    Trunkd__V1__Empty empty;
    trunkd__v1__empty__init(&empty);
    assert_refused(server.alice, "/trunkd.v1.Admin/GetStatus", &empty, PB(get_status_response),
                   TK_CLIENT_PERMISSION_DENIED, "admin");
    const answer a = classify(server.admin, good, 1, "type", 1);
    assert_status(&a.status, TK_CLIENT_PERMISSION_DENIED, "tenant");
}

/* -- hostile calls -- */

static void an_unknown_method_is_unimplemented(void **state)
{
    (void)state;
    Trunkd__V1__Empty empty;
    trunkd__v1__empty__init(&empty);
    assert_refused(server.alice, "/trunkd.v1.Classifier/Guess", &empty, PB(classify_response),
                   TK_CLIENT_UNIMPLEMENTED, "/trunkd.v1.Classifier/Guess");
    assert_still_serving();
}

static int send_raw(const char *path, const void *data, size_t size, tk_client_status *status)
{
    tk_client_call *call = tk_client_start(server.alice, path, PB(classify_response), 60000);
    tk_client_send_bytes(call, data, size);
    tk_client_send_end(call);
    tk_client_free_message(tk_client_receive(call));
    return tk_client_finish(call, status);
}

static void garbage_is_not_a_message(void **state)
{
    (void)state;
    static const uint8_t garbage[] = {0xFF, 0xFF, 0xFF, 0xFF, 0x0A, 0x80, 0x80, 0x01, 0x0B, 0x13};
    tk_client_status status;
    send_raw("/trunkd.v1.Classifier/Classify", garbage, sizeof garbage, &status);
    assert_int_equal(status.code, TK_CLIENT_INVALID_ARGUMENT);
    assert_true(strlen(status.text) > 5);
    send_raw("/trunkd.v1.DataSets/Upload", garbage, sizeof garbage, &status);
    assert_int_equal(status.code, TK_CLIENT_INVALID_ARGUMENT);
    assert_still_serving();
}

static void a_message_of_200_megabytes_is_refused(void **state)
{
    (void)state;
    const size_t size = 200 << 20;
    uint8_t *data = calloc(1, size);
    assert_non_null(data);
    tk_client_status status;
    send_raw("/trunkd.v1.Classifier/Classify", data, size, &status);
    assert_int_equal(status.code, TK_CLIENT_RESOURCE_EXHAUSTED);
    free(data);
    assert_still_serving();
}

/* -- DataSets -- */

static size_t count_data_sets(tk_client *client)
{
    Trunkd__V1__Empty empty;
    trunkd__v1__empty__init(&empty);
    Trunkd__V1__ListDataSetsResponse *out =
        assert_answered(client, "/trunkd.v1.DataSets/List", &empty, PB(list_data_sets_response));
    const size_t n = out->n_data_sets;
    tk_client_free_message(&out->base);
    return n;
}

static size_t count_temporaries(void)
{
    char path[300];
    snprintf(path, sizeof path, "%s/store/tmp", server.dir);
    DIR *dir = opendir(path);
    assert_non_null(dir);
    size_t n = 0;
    for (const struct dirent *e; (e = readdir(dir));)
        n += e->d_name[0] != '.';
    closedir(dir);
    return n;
}

static void an_upload_is_kept_whole_and_only_its_owner_sees_it(void **state)
{
    (void)state;
    static const char *const labels[] = {"b", "a", "b", "ü"};
    uint64_t id;
    const tk_client_status status = upload(server.alice, "photos", good, labels, 4, &id);
    assert_status(&status, TK_CLIENT_OK, "");
    Trunkd__V1__GetDataSetRequest in;
    trunkd__v1__get_data_set_request__init(&in);
    in.id = id;
    Trunkd__V1__DataSet *set =
        assert_answered(server.alice, "/trunkd.v1.DataSets/Get", &in, PB(data_set));
    assert_string_equal(set->name, "photos");
    assert_int_equal(set->images, 4);
    assert_int_equal(set->n_labels, 3);
    assert_string_equal(set->labels[0]->label, "b"); /* in the order in which they came */
    assert_int_equal(set->labels[0]->images, 2);
    assert_int_equal(strlen(set->sha256), 64);
    tk_client_free_message(&set->base);
    assert_refused(server.bob, "/trunkd.v1.DataSets/Get", &in, PB(data_set), TK_CLIENT_NOT_FOUND,
                   "data set");
    assert_int_equal(count_data_sets(server.bob), 0);
    Trunkd__V1__DeleteDataSetRequest gone;
    trunkd__v1__delete_data_set_request__init(&gone);
    gone.id = id;
    assert_refused(server.bob, "/trunkd.v1.DataSets/Delete", &gone, PB(empty), TK_CLIENT_NOT_FOUND,
                   "data set");
    Trunkd__V1__Empty *empty =
        assert_answered(server.alice, "/trunkd.v1.DataSets/Delete", &gone, PB(empty));
    tk_client_free_message(&empty->base);
    assert_int_equal(count_data_sets(server.alice), 0);
}

static void assert_upload_refused(const char *name, const fixture_bytes *images,
                                  const char *const *labels, size_t n, int code, const char *words)
{
    uint64_t id;
    const tk_client_status status = upload(server.alice, name, images, labels, n, &id);
    assert_status(&status, code, words);
    assert_int_equal(count_data_sets(server.alice), 0);
    assert_still_serving();
}

static void a_data_set_needs_two_labels_and_images(void **state)
{
    (void)state;
    static const char *const same[] = {"a", "a", "a", "a"}, *const two[] = {"a", "b"};
    static const char *const control[] = {"a", "b\n"}, *const broken[] = {"a", ""};
    char longest[300];
    memset(longest, 'x', 257);
    longest[257] = '\0';
    const char *const lengthy[] = {"a", longest};
    const int bad = TK_CLIENT_INVALID_ARGUMENT;
    assert_upload_refused("one", good, same, 4, bad, "at least two labels");
    assert_upload_refused("none", good, same, 0, bad, "no image came");
    assert_upload_refused("No Good", good, two, 2, bad, "data set");
    assert_upload_refused("control", good, control, 2, bad, "control character");
    assert_upload_refused("empty-label", good, broken, 2, bad, "label is empty");
    assert_upload_refused("long-label", good, lengthy, 2, bad, "257 bytes, the limit is 256");
    const fixture_bytes truncated[] = {good[0], {good[1].data, good[1].size - 100}};
    assert_upload_refused("truncated", truncated, two, 2, bad, "file-1: ");
    assert_int_equal(count_temporaries(), 0);
}

/* A manifest with options, then the images of `good` with these labels; expects a refusal, or
 * returns the answer. */
static Trunkd__V1__UploadResponse *upload_with(Trunkd__V1__UploadManifest *manifest,
                                               const char *const *labels,
                                               const fixture_bytes *images, size_t n,
                                               tk_client_status *status)
{
    tk_client_call *call =
        tk_client_start(server.alice, "/trunkd.v1.DataSets/Upload", PB(upload_response), 60000);
    Trunkd__V1__UploadRequest in;
    trunkd__v1__upload_request__init(&in);
    in.part_case = TRUNKD__V1__UPLOAD_REQUEST__PART_MANIFEST;
    in.manifest = manifest;
    tk_client_send(call, &in.base);
    Trunkd__V1__UploadImage one[8], *all[8];
    char text[8][2][32];
    for (size_t i = 0; i < n; i++) {
        trunkd__v1__upload_image__init(&one[i]);
        snprintf(text[i][0], 32, "%s", labels[i]);
        snprintf(text[i][1], 32, "file-%zu", i);
        one[i].label = text[i][0];
        one[i].file = text[i][1];
        one[i].data = (ProtobufCBinaryData){images[i].size, images[i].data};
        all[i] = &one[i];
    }
    Trunkd__V1__UploadImages batch;
    trunkd__v1__upload_images__init(&batch);
    batch.n_images = n;
    batch.images = all;
    in.part_case = TRUNKD__V1__UPLOAD_REQUEST__PART_IMAGES;
    in.images = &batch;
    tk_client_send(call, &in.base);
    tk_client_send_end(call);
    Trunkd__V1__UploadResponse *out = (Trunkd__V1__UploadResponse *)tk_client_receive(call);
    tk_client_finish(call, status);
    return out;
}

static void bad_images_of_an_upload_can_be_skipped_by_name(void **state)
{
    (void)state;
    static const char *const labels[] = {"a", "b", "c", "a"};
    char name[] = "skipped", a[] = "a", b[] = "b", *fixed[] = {b, a};
    Trunkd__V1__UploadManifest manifest;
    trunkd__v1__upload_manifest__init(&manifest);
    manifest.name = name;
    manifest.n_labels = 2;
    manifest.labels = fixed;
    const fixture_bytes images[] = {good[0], good[1], good[2], {good[3].data, 0}};
    tk_client_status status;
    Trunkd__V1__UploadResponse *out = upload_with(&manifest, labels, images, 4, &status);
    assert_status(&status, TK_CLIENT_OK, "");
    assert_int_equal(out->skipped, 2);
    assert_int_equal(out->n_bad, 2);
    assert_string_equal(out->bad[0]->file, "file-2");
    assert_non_null(strstr(out->bad[0]->reason, "\"c\" is not in the manifest"));
    assert_string_equal(out->bad[1]->file, "file-3");
    assert_int_equal(out->data_set->images, 2);
    assert_string_equal(out->data_set->labels[0]->label, "b"); /* the manifest's order */
    Trunkd__V1__DeleteDataSetRequest gone;
    trunkd__v1__delete_data_set_request__init(&gone);
    gone.id = out->data_set->id;
    tk_client_free_message(&out->base);
    Trunkd__V1__Empty *empty =
        assert_answered(server.alice, "/trunkd.v1.DataSets/Delete", &gone, PB(empty));
    tk_client_free_message(&empty->base);
}

static void an_upload_is_held_to_its_manifest(void **state)
{
    (void)state;
    static const char *const labels[] = {"a", "b", "a", "b"};
    char name[] = "held", a[] = "a", b[] = "b", c[] = "c", *three[] = {a, b, c},
         *twice[] = {a, b, a};
    tk_client_status status;
    Trunkd__V1__UploadManifest manifest;
    trunkd__v1__upload_manifest__init(&manifest);
    manifest.name = name;
    manifest.expected_images = 5;
    assert_null(upload_with(&manifest, labels, good, 4, &status));
    assert_status(&status, TK_CLIENT_INVALID_ARGUMENT, "4 images came, but the manifest expects 5");
    manifest.expected_images = 0;
    manifest.n_labels = 3;
    manifest.labels = three;
    assert_null(upload_with(&manifest, labels, good, 4, &status));
    assert_status(&status, TK_CLIENT_INVALID_ARGUMENT, "\"c\" has no usable image");
    manifest.labels = twice;
    assert_null(upload_with(&manifest, labels, good, 4, &status));
    assert_status(&status, TK_CLIENT_INVALID_ARGUMENT, "there twice");
    manifest.n_labels = 1;
    assert_null(upload_with(&manifest, labels, good, 4, &status));
    assert_status(&status, TK_CLIENT_INVALID_ARGUMENT, "at least two");
    assert_int_equal(count_data_sets(server.alice), 0);
}

static void a_cancelled_upload_leaves_nothing(void **state)
{
    (void)state;
    char name[] = "cancelled";
    tk_client_call *call =
        tk_client_start(server.alice, "/trunkd.v1.DataSets/Upload", PB(upload_response), 60000);
    Trunkd__V1__UploadManifest manifest;
    trunkd__v1__upload_manifest__init(&manifest);
    manifest.name = name;
    Trunkd__V1__UploadRequest in;
    trunkd__v1__upload_request__init(&in);
    in.part_case = TRUNKD__V1__UPLOAD_REQUEST__PART_MANIFEST;
    in.manifest = &manifest;
    assert_true(tk_client_send(call, &in.base));
    for (int i = 0; i < 6000 && count_temporaries() == 0; i++) /* a minute */
        nanosleep(&(struct timespec){0, 10000000}, NULL);
    assert_int_equal(count_temporaries(), 1); /* it has begun */
    tk_client_cancel(call);
    tk_client_status status;
    assert_int_equal(tk_client_finish(call, &status), TK_CLIENT_CANCELLED);
    for (int i = 0; i < 6000 && count_temporaries() > 0; i++)
        nanosleep(&(struct timespec){0, 10000000}, NULL);
    assert_int_equal(count_temporaries(), 0);
    assert_int_equal(count_data_sets(server.alice), 0);
    assert_still_serving();
}

/* -- Heads -- */

static void a_tenant_sees_its_own_heads_only(void **state)
{
    (void)state;
    Trunkd__V1__Empty empty;
    trunkd__v1__empty__init(&empty);
    Trunkd__V1__ListHeadsResponse *list =
        assert_answered(server.alice, "/trunkd.v1.Heads/List", &empty, PB(list_heads_response));
    assert_int_equal(list->version, 2);
    assert_int_equal(list->n_heads, 1);
    assert_string_equal(list->heads[0]->name, "type");
    assert_string_equal(list->heads[0]->tenant, "");
    assert_int_equal(list->heads[0]->n_labels, FIXTURE_TYPES);
    tk_client_free_message(&list->base);
    list = assert_answered(server.admin, "/trunkd.v1.Heads/List", &empty, PB(list_heads_response));
    assert_int_equal(list->n_heads, 2);
    assert_string_equal(list->heads[1]->name, "bob/colour");
    assert_string_equal(list->heads[1]->tenant, "bob");
    tk_client_free_message(&list->base);

    char name[] = "colour";
    Trunkd__V1__GetHeadRequest get;
    trunkd__v1__get_head_request__init(&get);
    get.name = name;
    assert_refused(server.alice, "/trunkd.v1.Heads/Get", &get, PB(head), TK_CLIENT_NOT_FOUND,
                   "colour");
    Trunkd__V1__Head *head = assert_answered(server.bob, "/trunkd.v1.Heads/Get", &get, PB(head));
    assert_string_equal(head->name, "colour");
    assert_int_equal(head->born_version, 1);
    tk_client_free_message(&head->base);
    Trunkd__V1__DeleteHeadRequest gone;
    trunkd__v1__delete_head_request__init(&gone);
    gone.name = name;
    assert_refused(server.alice, "/trunkd.v1.Heads/Delete", &gone, PB(empty), TK_CLIENT_NOT_FOUND,
                   "colour");
}

static void validation_is_shown_per_version(void **state)
{
    (void)state;
    Trunkd__V1__GetValidationRequest in;
    trunkd__v1__get_validation_request__init(&in);
    in.history = true;
    Trunkd__V1__GetValidationResponse *out = assert_answered(
        server.alice, "/trunkd.v1.Heads/GetValidation", &in, PB(get_validation_response));
    assert_int_equal(out->n_validations, 2);
    assert_string_equal(out->validations[0]->head, "type");
    assert_int_equal(out->validations[0]->version, 1);
    assert_int_equal(out->validations[1]->version, 2);
    tk_client_free_message(&out->base);
    char name[] = "colour", *names[] = {name};
    in.n_heads = 1;
    in.heads = names;
    assert_refused(server.alice, "/trunkd.v1.Heads/GetValidation", &in, PB(get_validation_response),
                   TK_CLIENT_NOT_FOUND, "colour");
}

/* -- Admin -- */

static void tenants_and_tokens_come_and_go(void **state)
{
    (void)state;
    char name[] = "carol", bad[] = "Carol!";
    Trunkd__V1__CreateTenantRequest create;
    trunkd__v1__create_tenant_request__init(&create);
    create.name = bad;
    assert_refused(server.admin, "/trunkd.v1.Admin/CreateTenant", &create,
                   PB(create_tenant_response), TK_CLIENT_INVALID_ARGUMENT, "tenant");
    create.name = name;
    Trunkd__V1__CreateTenantResponse *made = assert_answered(
        server.admin, "/trunkd.v1.Admin/CreateTenant", &create, PB(create_tenant_response));
    assert_refused(server.admin, "/trunkd.v1.Admin/CreateTenant", &create,
                   PB(create_tenant_response), TK_CLIENT_ALREADY_EXISTS, "carol");
    char address[64];
    snprintf(address, sizeof address, "127.0.0.1:%d", server.port);
    tk_client *carol = tk_client_open(address, made->token);
    const answer no_heads = classify(carol, good, 1, NULL, 1);
    assert_status(&no_heads.status, TK_CLIENT_FAILED_PRECONDITION, "you have no head yet");
    Trunkd__V1__RevokeTokenRequest revoke;
    trunkd__v1__revoke_token_request__init(&revoke);
    revoke.token_id = made->token_id;
    Trunkd__V1__Empty *empty =
        assert_answered(server.admin, "/trunkd.v1.Admin/RevokeToken", &revoke, PB(empty));
    tk_client_free_message(&empty->base);
    const answer revoked = classify(carol, good, 1, NULL, 1);
    assert_int_equal(revoked.status.code, TK_CLIENT_UNAUTHENTICATED);
    tk_client_close(carol);
    tk_client_free_message(&made->base);
    Trunkd__V1__Empty none;
    trunkd__v1__empty__init(&none);
    Trunkd__V1__ListTenantsResponse *list = assert_answered(
        server.admin, "/trunkd.v1.Admin/ListTenants", &none, PB(list_tenants_response));
    assert_int_equal(list->n_tenants, 3);
    assert_int_equal(list->tenants[0]->heads, 1);
    tk_client_free_message(&list->base);
}

static void status_counts_what_was_answered(void **state)
{
    (void)state;
    Trunkd__V1__Empty empty;
    trunkd__v1__empty__init(&empty);
    Trunkd__V1__GetStatusResponse *before = assert_answered(
        server.admin, "/trunkd.v1.Admin/GetStatus", &empty, PB(get_status_response));
    const answer a = classify(server.alice, good, 3, "type", 1);
    tk_client_free_message(a.message);
    Trunkd__V1__GetStatusResponse *after = assert_answered(
        server.admin, "/trunkd.v1.Admin/GetStatus", &empty, PB(get_status_response));
    assert_int_equal(after->requests, before->requests + 1);
    assert_int_equal(after->images, before->images + 3);
    assert_int_equal(after->failures, 0);
    assert_int_equal(after->queue, 0);
    assert_int_equal(after->version, 2);
    assert_string_equal(after->arch, "resnet20");
    assert_int_equal(after->px, 32);
    assert_int_equal(after->heads, 2);
    assert_true(after->resident_bytes > 1000000);
    tk_client_free_message(&before->base);
    tk_client_free_message(&after->base);
}

static void an_exported_version_is_the_model(void **state)
{
    (void)state;
    Trunkd__V1__Empty empty;
    trunkd__v1__empty__init(&empty);
    Trunkd__V1__ListVersionsResponse *list = assert_answered(
        server.admin, "/trunkd.v1.Admin/ListVersions", &empty, PB(list_versions_response));
    assert_int_equal(list->n_versions, 2);
    assert_int_equal(list->versions[0]->number, 2);
    assert_true(list->versions[0]->current);
    assert_string_equal(list->versions[0]->heads[0]->head, "alice/type");
    tk_client_status status;
    fixture_bytes file = export_version(server.admin, 1, &status);
    assert_status(&status, TK_CLIENT_OK, "");
    assert_int_equal(file.size, list->versions[1]->bytes);
    tk_client_free_message(&list->base);
    tk_tensors *tensors;
    assert_int_equal(tk_tensors_parse(&tensors, file.data, file.size, NULL), TK_OK);
    assert_non_null(tk_tensors_find(tensors, "head.bob/colour.weight"));
    tk_tensors_close(tensors);
    free(file.data);
    file = export_version(server.admin, 77, &status);
    assert_status(&status, TK_CLIENT_NOT_FOUND, "77");
    assert_null(file.data);
}

/* It is understood: what is in the way are the heads that are here. */
static void an_exported_version_can_be_imported(void **state)
{
    (void)state;
    tk_client_status status;
    const fixture_bytes file = export_version(server.admin, 1, &status);
    assert_status(&status, TK_CLIENT_OK, "");
    status = import_trunk(server.admin, file, "resnet18", NULL);
    assert_status(&status, TK_CLIENT_INVALID_ARGUMENT, "the file is a version of resnet20");
    status = import_trunk(server.admin, file, "", NULL);
    assert_status(&status, TK_CLIENT_FAILED_PRECONDITION, "2 heads");
    status = import_trunk(server.admin, (fixture_bytes){file.data, file.size - 9}, "", NULL);
    assert_int_equal(status.code, TK_CLIENT_INVALID_ARGUMENT);
    free(file.data);
    assert_int_equal(count_temporaries(), 0);
}

static void a_bad_import_is_refused_with_its_reason(void **state)
{
    (void)state;
    uint8_t junk[] = "not safetensors at all";
    tk_client_status status =
        import_trunk(server.admin, (fixture_bytes){junk, 22}, "resnet20", NULL);
    assert_int_equal(status.code, TK_CLIENT_INVALID_ARGUMENT);
    status = import_trunk(server.admin, (fixture_bytes){junk, 1}, "resnet99", NULL);
    assert_status(&status, TK_CLIENT_INVALID_ARGUMENT, "resnet99");
    status = import_trunk(server.admin, (fixture_bytes){NULL, 0}, "", NULL);
    assert_status(&status, TK_CLIENT_INVALID_ARGUMENT, "no chunk came");
    assert_int_equal(count_temporaries(), 0);
    assert_still_serving();
}

static void rollback_refuses_what_is_not_there(void **state)
{
    (void)state;
    Trunkd__V1__RollbackRequest in;
    trunkd__v1__rollback_request__init(&in);
    assert_refused(server.admin, "/trunkd.v1.Admin/Rollback", &in, PB(version),
                   TK_CLIENT_INVALID_ARGUMENT, "version is missing");
    in.version = 99;
    assert_refused(server.admin, "/trunkd.v1.Admin/Rollback", &in, PB(version), TK_CLIENT_NOT_FOUND,
                   "99");
}

/* -- */

static int set_up(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 4; i++)
        good[i] = i % 2 ? fixture_jpeg(90, 70, i) : fixture_png(40, 50, i);
    trunkd_prepare(&server, 2);
    trunkd_start(&server, NULL);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    const int status = trunkd_end(&server, SIGTERM);
    trunkd_remove(&server);
    for (unsigned i = 0; i < 4; i++)
        free(good[i].data);
    return status;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(classify_answers_what_the_engine_computes),
        cmocka_unit_test(without_names_all_heads_of_the_tenant_answer),
        cmocka_unit_test(a_foreign_head_looks_like_one_that_does_not_exist),
        cmocka_unit_test(bad_images_are_named_and_the_rest_answered),
        cmocka_unit_test(classify_checks_its_fields),
        cmocka_unit_test(callers_without_a_valid_token_are_refused),
        cmocka_unit_test(roles_are_kept_apart),
        cmocka_unit_test(an_unknown_method_is_unimplemented),
        cmocka_unit_test(garbage_is_not_a_message),
        cmocka_unit_test(a_message_of_200_megabytes_is_refused),
        cmocka_unit_test(an_upload_is_kept_whole_and_only_its_owner_sees_it),
        cmocka_unit_test(a_data_set_needs_two_labels_and_images),
        cmocka_unit_test(bad_images_of_an_upload_can_be_skipped_by_name),
        cmocka_unit_test(an_upload_is_held_to_its_manifest),
        cmocka_unit_test(a_cancelled_upload_leaves_nothing),
        cmocka_unit_test(a_tenant_sees_its_own_heads_only),
        cmocka_unit_test(validation_is_shown_per_version),
        cmocka_unit_test(tenants_and_tokens_come_and_go),
        cmocka_unit_test(status_counts_what_was_answered),
        cmocka_unit_test(an_exported_version_is_the_model),
        cmocka_unit_test(an_exported_version_can_be_imported),
        cmocka_unit_test(a_bad_import_is_refused_with_its_reason),
        cmocka_unit_test(rollback_refuses_what_is_not_there),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
