/* Versions by number, label and share, over the wire: the real trunkd with models that differ, each
 * answer checked against what its version's own heads say. */
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

#include "engine/mem.h"
#include "inference/open_inference_grpc.pb-c.h"
#include "scrape.h"
#include "serving/batcher.h"
#include "store/store.h"
#include "trunkd_process.h"

enum { IMAGES = 4, MODELS = 3, PX = 32 };

#define PB(name)                                                                                   \
    &trunkd__v1__##name##__descriptor /* generated names: only the preprocessor can join them */

static fixture_bytes images[IMAGES];

/* Alice's head's answer, best first. */
typedef struct scores {
    float value[IMAGES][FIXTURE_TYPES];
    uint32_t label[IMAGES][FIXTURE_TYPES];
} scores;

static scores models[MODELS]; /* fixture_model(1), ... */

/* What serving/ itself answers in this process. */
static void compute(uint64_t seed, scores *out)
{
    const tk_preproc p = tk_preproc_default(PX);
    tk_snapshot *s;
    assert_int_equal(tk_snapshot_create(&s, fixture_model(seed), 1, 1, 1, NULL), TK_OK);
    const tk_head *head = tk_snapshot_find(s, "alice", "type");
    const size_t k = FIXTURE_TYPES;
    for (size_t i = 0; i < IMAGES; i++) {
        static uint8_t canvas[PX * PX * 3];
        tk_top top[FIXTURE_TYPES];
        tk_image rgb;
        assert_int_equal(
            tk_image_decode(&rgb, images[i].data, images[i].size, NULL, p.resize, NULL), TK_OK);
        assert_int_equal(tk_preproc_canvas(&p, &rgb, PX, canvas, NULL), TK_OK);
        tk_image_fini(&rgb);
        const tk_pass pass = {.canvas = canvas, .n_heads = 1, .heads = &head, .k = &k, .top = top};
        tk_snapshot_run(s, 1, &pass);
        for (size_t j = 0; j < k; j++) {
            out->value[i][j] = top[j].score;
            out->label[i][j] = top[j].label;
        }
    }
    tk_snapshot_unref(s);
}

/* -- requests -- */

static answer classify_by(tk_client *client, const char *version, const char *head)
{
    Trunkd__V1__ClassifyRequest in;
    trunkd__v1__classify_request__init(&in);
    ProtobufCBinaryData data[IMAGES];
    char text[64], name[64];
    char *names[] = {name};
    for (size_t i = 0; i < IMAGES; i++)
        data[i] = (ProtobufCBinaryData){images[i].size, images[i].data};
    snprintf(text, sizeof text, "%s", version);
    snprintf(name, sizeof name, "%s", head ? head : "");
    in.n_images = IMAGES;
    in.images = data;
    in.n_heads = head ? 1 : 0;
    in.heads = names;
    in.top_k = FIXTURE_TYPES;
    in.version = text;
    return ask(client, "/trunkd.v1.Classifier/Classify", &in, PB(classify_response));
}

/* Are they the model's answers? */
static bool are_models(size_t n, Trunkd__V1__ImageAnswer *const *answers, const scores *want)
{
    if (n != IMAGES) return false;
    for (size_t i = 0; i < IMAGES; i++) {
        if (answers[i]->n_heads != 1 || answers[i]->heads[0]->n_top != FIXTURE_TYPES) return false;
        for (size_t k = 0; k < FIXTURE_TYPES; k++) {
            const Trunkd__V1__Prediction *p = answers[i]->heads[0]->top[k];
            char label[32];
            snprintf(label, sizeof label, "type-%u", want->label[i][k]);
            if (strcmp(p->label, label) != 0 || p->score != want->value[i][k]) return false;
        }
    }
    return true;
}

static bool is_models(const Trunkd__V1__ClassifyResponse *out, const scores *want)
{
    return are_models(out->n_images, out->images, want);
}

/* Alice asks; the answer must be model `model`'s and name `number`. */
static void expect(const trunkd *t, const char *version, uint64_t number, size_t model)
{
    const answer a = classify_by(t->alice, version, "type");
    if (!a.message)
        fail_msg("\"%s\": %s: %s", version, tk_client_code_text(a.status.code), a.status.text);
    const Trunkd__V1__ClassifyResponse *out = (const Trunkd__V1__ClassifyResponse *)a.message;
    assert_int_equal(out->version, number);
    if (!is_models(out, &models[model - 1])) fail_msg("\"%s\": another model's answer", version);
    tk_client_free_message(a.message);
}

static void assert_code(const answer *a, int code, const char *words)
{
    if (a->message) fail_msg("answered, expected \"%s\"", words);
    if (a->status.code != code || !strstr(a->status.text, words))
        fail_msg("expected %s with \"%s\", got %s: %s", tk_client_code_text(code), words,
                 tk_client_code_text(a->status.code), a->status.text);
}

static void refused(tk_client *client, const char *version, const char *head, int code,
                    const char *words)
{
    const answer a = classify_by(client, version, head);
    assert_code(&a, code, words);
}

static answer set_label(tk_client *client, const char *label, uint64_t version, unsigned percent)
{
    char text[64];
    Trunkd__V1__SetVersionLabelRequest in;
    trunkd__v1__set_version_label_request__init(&in);
    snprintf(text, sizeof text, "%s", label);
    in.label = text;
    in.version = version;
    in.percent = percent;
    return ask(client, "/trunkd.v1.Admin/SetVersionLabel", &in, PB(version_label));
}

static answer delete_label(tk_client *client, const char *label)
{
    char text[64];
    Trunkd__V1__DeleteVersionLabelRequest in;
    trunkd__v1__delete_version_label_request__init(&in);
    snprintf(text, sizeof text, "%s", label);
    in.label = text;
    return ask(client, "/trunkd.v1.Admin/DeleteVersionLabel", &in, PB(empty));
}

static void must(const answer a)
{
    if (!a.message) fail_msg("%s: %s", tk_client_code_text(a.status.code), a.status.text);
    tk_client_free_message(a.message);
}

/* -- tests -- */

static void a_request_is_answered_by_the_version_that_it_names(void **state)
{
    (void)state;
    trunkd t;
    trunkd_prepare(&t, MODELS);
    trunkd_start(&t, (const char *const[]){"--access-log", "yes", NULL});
    expect(&t, "", 3, 3);
    expect(&t, "latest", 3, 3);
    expect(&t, "3", 3, 3);
    for (uint64_t v = 1; v <= MODELS; v++) {
        char text[8];
        snprintf(text, sizeof text, "%llu", (unsigned long long)v);
        expect(&t, text, v, (size_t)v);
    }
    must(set_label(t.admin, "stable", 1, 0));
    expect(&t, "stable", 1, 1);
    assert_int_equal(trunkd_roll_back(&t, 2), 4); /* labels and numbers stay, `latest` goes along */
    expect(&t, "stable", 1, 1);
    expect(&t, "3", 3, 3);
    expect(&t, "latest", 4, 2);
    expect(&t, "4", 4, 2);
    refused(t.alice, "5", "type", TK_CLIENT_NOT_FOUND,
            "you have no head \"type\" in version \"5\"");
    refused(t.alice, "5", NULL, TK_CLIENT_NOT_FOUND, "you have no head in version \"5\"");
    refused(t.alice, "canary", "type", TK_CLIENT_NOT_FOUND,
            "you have no head \"type\" in version \"canary\"");
    refused(t.alice, "1", "colour", TK_CLIENT_NOT_FOUND,
            "you have no head \"colour\" in version \"1\"");
    static const char *const bad[] = {"0", "-1", "1.0", "Stable", "1 ", "9999999999999999999"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        refused(t.alice, bad[i], "type", TK_CLIENT_INVALID_ARGUMENT, bad[i]);
    assert_true(trunkd_logged(&t, "code=OK us="));
    assert_true(trunkd_logged(&t, "images=4 version=1"));
    assert_int_equal(trunkd_end(&t, SIGTERM), 0);
    trunkd_remove(&t);
}

static void labels_are_the_admins_and_checked(void **state)
{
    (void)state;
    trunkd t;
    trunkd_prepare(&t, MODELS);
    trunkd_start(&t, NULL);
    answer a = set_label(t.alice, "stable", 1, 0);
    assert_code(&a, TK_CLIENT_PERMISSION_DENIED, "for admins");
    const struct {
        const char *label;
        uint64_t version;
        unsigned percent;
        int code;
        const char *words;
    } bad[] = {{"latest", 1, 0, TK_CLIENT_INVALID_ARGUMENT, "always the current version"},
               {"7", 1, 0, TK_CLIENT_INVALID_ARGUMENT, "1 to 32 characters"},
               {"", 1, 0, TK_CLIENT_INVALID_ARGUMENT, "1 to 32 characters"},
               {"stable", 0, 0, TK_CLIENT_INVALID_ARGUMENT, "version is missing"},
               {"stable", 1, 101, TK_CLIENT_INVALID_ARGUMENT, "percent is 101, the limit is 100"},
               {"stable", 9, 0, TK_CLIENT_NOT_FOUND, "version 9: there is none"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        a = set_label(t.admin, bad[i].label, bad[i].version, bad[i].percent);
        assert_code(&a, bad[i].code, bad[i].words);
    }
    must(set_label(t.admin, "canary", 2, 20));
    a = set_label(t.admin, "stable", 1, 1);
    assert_code(&a, TK_CLIENT_FAILED_PRECONDITION, "\"canary\" has 20 percent");
    must(delete_label(t.admin, "canary"));
    a = delete_label(t.admin, "canary");
    assert_code(&a, TK_CLIENT_NOT_FOUND, "\"canary\": there is none");
    refused(t.alice, "canary", "type", TK_CLIENT_NOT_FOUND, "in version \"canary\"");
    expect(&t, "", 3, 3);
    assert_int_equal(trunkd_end(&t, SIGTERM), 0);
    trunkd_remove(&t);
}

static void labels_and_shares_outlive_a_kill(void **state)
{
    (void)state;
    trunkd t;
    trunkd_prepare(&t, MODELS);
    trunkd_start(&t, NULL);
    must(set_label(t.admin, "canary", 2, 20));
    must(set_label(t.admin, "stable", 1, 0));
    assert_int_equal(trunkd_end(&t, SIGKILL), 128 + SIGKILL); /* right behind the answer */

    trunkd_start(&t, NULL);
    expect(&t, "stable", 1, 1);
    expect(&t, "canary", 2, 2);
    size_t shared = 0;
    for (int i = 0; i < 100; i++) {
        const answer a = classify_by(t.alice, "", "type");
        assert_non_null(a.message);
        const Trunkd__V1__ClassifyResponse *out = (const Trunkd__V1__ClassifyResponse *)a.message;
        assert_true(out->version == 2 || out->version == 3);
        assert_true(is_models(out, &models[out->version - 1]));
        shared += out->version == 2;
        tk_client_free_message(a.message);
    }
    assert_int_equal(shared, 20);
    Trunkd__V1__Empty nothing;
    trunkd__v1__empty__init(&nothing);
    const answer a =
        ask(t.admin, "/trunkd.v1.Admin/ListVersions", &nothing, PB(list_versions_response));
    const Trunkd__V1__ListVersionsResponse *list =
        (const Trunkd__V1__ListVersionsResponse *)a.message;
    assert_non_null(list);
    assert_int_equal(list->n_labels, 2);
    assert_string_equal(list->labels[0]->label, "canary");
    assert_int_equal(list->labels[0]->percent, 20);
    assert_true(list->labels[1]->loaded);
    tk_client_free_message(a.message);
    assert_int_equal(trunkd_end(&t, SIGTERM), 0);
    trunkd_remove(&t);
}

static tk_client *open_as(const trunkd *t, const char *tenant)
{
    char name[64], address[64];
    snprintf(name, sizeof name, "%s", tenant);
    Trunkd__V1__CreateTenantRequest in;
    trunkd__v1__create_tenant_request__init(&in);
    in.name = name;
    const answer a =
        ask(t->admin, "/trunkd.v1.Admin/CreateTenant", &in, PB(create_tenant_response));
    if (!a.message) fail_msg("%s: %s", tk_client_code_text(a.status.code), a.status.text);
    snprintf(address, sizeof address, "127.0.0.1:%d", t->port);
    tk_client *client =
        tk_client_open(address, ((const Trunkd__V1__CreateTenantResponse *)a.message)->token);
    tk_client_free_message(a.message);
    assert_non_null(client);
    return client;
}

/* A tenant knows only versions that hold a head of its own; what is deleted is gone from those in
 * memory, too, and a tenant of the same name that comes later does not get it. */
static void deleted_heads_are_gone_from_versions_in_memory(void **state)
{
    (void)state;
    trunkd t;
    char name[] = "colour", bob[] = "bob";
    trunkd_prepare(&t, MODELS);
    trunkd_start(&t, (const char *const[]){"--trainer", "/bin/false", NULL});
    must(set_label(t.admin, "stable", 2, 0));
    must(classify_by(t.bob, "1", "colour"));
    must(classify_by(t.bob, "stable", "colour"));
    Trunkd__V1__DeleteHeadRequest head;
    trunkd__v1__delete_head_request__init(&head);
    head.name = name;
    must(ask(t.bob, "/trunkd.v1.Heads/Delete", &head, PB(empty)));
    refused(t.bob, "1", "colour", TK_CLIENT_NOT_FOUND,
            "you have no head \"colour\" in version \"1\"");
    refused(t.bob, "3", NULL, TK_CLIENT_NOT_FOUND, "you have no head in version \"3\"");
    refused(t.bob, "99", NULL, TK_CLIENT_NOT_FOUND, "you have no head in version \"99\"");
    refused(t.bob, "stable", "colour", TK_CLIENT_NOT_FOUND,
            "you have no head \"colour\" in version \"stable\"");
    expect(&t, "1", 1, 1); /* hers as before, from the new files */
    expect(&t, "stable", 2, 2);
    expect(&t, "", 4, 3);

    tk_client *carol = open_as(&t, "carol");
    refused(carol, "1", NULL, TK_CLIENT_NOT_FOUND, "you have no head in version \"1\"");
    refused(carol, "stable", NULL, TK_CLIENT_NOT_FOUND, "you have no head in version \"stable\"");
    tk_client_close(carol);

    char alice[] = "alice";
    Trunkd__V1__DeleteTenantRequest leave;
    trunkd__v1__delete_tenant_request__init(&leave);
    leave.name = bob;
    must(ask(t.admin, "/trunkd.v1.Admin/DeleteTenant", &leave, PB(empty)));
    expect(&t, "1", 1, 1);
    leave.name = alice;
    must(ask(t.admin, "/trunkd.v1.Admin/DeleteTenant", &leave, PB(empty)));
    tk_client *again = open_as(&t, "alice");
    static const char *const versions[] = {"1", "2", "3", "4", "stable"};
    for (size_t i = 0; i < sizeof versions / sizeof *versions; i++)
        refused(again, versions[i], "type", TK_CLIENT_NOT_FOUND, "you have no head \"type\"");
    tk_client_close(again);
    assert_int_equal(trunkd_end(&t, SIGTERM), 0);
    trunkd_remove(&t);
}

/* -- streams -- */

typedef Trunkd__V1__ClassifyStreamResponse stream_answer;

/* One message with the images; `version` (NULL: none) comes in settings before it. */
static void stream_say(tk_client_call *call, const char *version, const char *head)
{
    char text[64], name[64];
    char *names[] = {name};
    Trunkd__V1__ClassifySettings settings;
    trunkd__v1__classify_settings__init(&settings);
    Trunkd__V1__ClassifyStreamRequest in;
    trunkd__v1__classify_stream_request__init(&in);
    ProtobufCBinaryData data[IMAGES];
    if (version) {
        snprintf(text, sizeof text, "%s", version);
        snprintf(name, sizeof name, "%s", head);
        settings.n_heads = 1;
        settings.heads = names;
        settings.top_k = FIXTURE_TYPES;
        settings.version = text;
        in.settings = &settings;
    }
    for (size_t i = 0; i < IMAGES; i++)
        data[i] = (ProtobufCBinaryData){images[i].size, images[i].data};
    in.n_images = IMAGES;
    in.images = data;
    assert_true(tk_client_send(call, &in.base));
}

static tk_client_call *stream_begin(tk_client *client)
{
    tk_client_call *call = tk_client_start(client, "/trunkd.v1.Classifier/ClassifyStream",
                                           PB(classify_stream_response), 60000);
    assert_non_null(call);
    return call;
}

/* Alice's stream to a version. */
static tk_client_call *stream_to(const trunkd *t, const char *version)
{
    tk_client_call *call = stream_begin(t->alice);
    stream_say(call, version, "type");
    return call;
}

/* The next answer must be model `model`'s and name `number`. */
static void stream_hear(tk_client_call *call, uint64_t number, size_t model)
{
    stream_answer *out = (stream_answer *)tk_client_receive(call);
    assert_non_null(out);
    if (out->code) fail_msg("code %u: %s", (unsigned)out->code, out->error);
    assert_int_equal(out->version, number);
    assert_true(are_models(out->n_images, out->images, &models[model - 1]));
    tk_client_free_message(&out->base);
}

static void stream_asks(tk_client_call *call, uint64_t number, size_t model)
{
    stream_say(call, NULL, NULL);
    stream_hear(call, number, model);
}

static void stream_ends(tk_client_call *call, int code, const char *words)
{
    tk_client_status status;
    assert_null(tk_client_receive(call));
    tk_client_finish(call, &status);
    const answer a = {.status = status};
    assert_code(&a, code, words);
}

/* The name is looked up once: neither a new current version nor a label that moves changes who
 * answers. */
static void a_stream_is_answered_by_the_version_that_it_began_with(void **state)
{
    (void)state;
    enum { STREAMS = 5 };
    static const struct {
        const char *version;
        uint64_t number;
        size_t model, later; /* after the change: 0 as before */
    } cases[STREAMS] = {
        {"1", 1, 1, 0}, {"stable", 2, 2, 0}, {"latest", 3, 3, 0}, {"3", 3, 3, 0}, {"", 3, 3, 1}};
    tk_client_call *calls[STREAMS];
    trunkd t;
    trunkd_prepare(&t, MODELS);
    trunkd_start(&t, (const char *const[]){"--pinned-versions", "1", NULL});
    must(set_label(t.admin, "stable", 2, 30)); /* no share for streams */
    for (size_t i = 0; i < STREAMS; i++) {
        calls[i] = stream_to(&t, cases[i].version);
        stream_hear(calls[i], cases[i].number, cases[i].model);
    }
    assert_int_equal(trunkd_roll_back(&t, 1), 4);
    must(set_label(t.admin, "stable", 3, 0));
    for (int round = 0; round < 3; round++) /* two of them take turns in the one pinned place */
        for (size_t i = 0; i < STREAMS; i++)
            stream_asks(calls[i], cases[i].later ? 4 : cases[i].number,
                        cases[i].later ? cases[i].later : cases[i].model);
    for (int n = 0; n < 20; n++) /* many at once, in order */
        stream_say(calls[0], NULL, NULL);
    expect(&t, "2", 2, 2); /* makes room for another meanwhile */
    for (int n = 0; n < 20; n++)
        stream_hear(calls[0], 1, 1);
    for (size_t i = 0; i < STREAMS; i++) {
        tk_client_send_end(calls[i]);
        stream_ends(calls[i], TK_CLIENT_OK, "");
    }
    assert_int_equal(trunkd_end(&t, SIGTERM), 0);
    trunkd_remove(&t);
}

static void a_streams_version_that_is_not_there_ends_it_as_it_ends_a_request(void **state)
{
    (void)state;
    trunkd t;
    tk_client_call *call;
    static const struct {
        const char *version, *head;
        int code;
        const char *words;
    } bad[] = {
        {"9", "type", TK_CLIENT_NOT_FOUND, "you have no head \"type\" in version \"9\""},
        {"canary", "type", TK_CLIENT_NOT_FOUND, "you have no head \"type\" in version \"canary\""},
        {"1", "colour", TK_CLIENT_NOT_FOUND, "you have no head \"colour\" in version \"1\""},
        {"0", "type", TK_CLIENT_INVALID_ARGUMENT, "the version is \"0\""},
        {"Stable", "type", TK_CLIENT_INVALID_ARGUMENT, "the version is \"Stable\""}};
    trunkd_prepare(&t, MODELS);
    trunkd_start(&t, NULL);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        call = stream_begin(t.alice);
        stream_say(call, bad[i].version, bad[i].head);
        stream_ends(call, bad[i].code, bad[i].words);
        refused(t.alice, bad[i].version, bad[i].head, bad[i].code, bad[i].words);
    }
    call = stream_begin(t.alice); /* gone before its version is there */
    stream_say(call, "1", "type");
    tk_client_status status;
    tk_client_cancel(call);
    assert_int_equal(tk_client_finish(call, &status), TK_CLIENT_CANCELLED);
    expect(&t, "1", 1, 1);
    assert_int_equal(trunkd_end(&t, SIGTERM), 0);
    trunkd_remove(&t);
}

/* An open stream is no way round a deletion: the message is refused, and the stream lives. */
static void a_deleted_head_is_gone_from_open_streams(void **state)
{
    (void)state;
    trunkd t;
    char name[] = "type";
    trunkd_prepare(&t, MODELS);
    trunkd_start(&t, (const char *const[]){"--trainer", "/bin/false", NULL});
    tk_client_call *call = stream_to(&t, "2");
    stream_hear(call, 2, 2);
    Trunkd__V1__DeleteHeadRequest head;
    trunkd__v1__delete_head_request__init(&head);
    head.name = name;
    must(ask(t.alice, "/trunkd.v1.Heads/Delete", &head, PB(empty)));
    for (int i = 0; i < 2; i++) {
        stream_say(call, NULL, NULL);
        stream_answer *out = (stream_answer *)tk_client_receive(call);
        assert_non_null(out);
        assert_int_equal(out->code, TK_CLIENT_NOT_FOUND);
        assert_non_null(strstr(out->error, "you have no head \"type\" in version \"2\""));
        tk_client_free_message(&out->base);
    }
    tk_client_send_end(call);
    stream_ends(call, TK_CLIENT_OK, "");
    assert_int_equal(trunkd_end(&t, SIGTERM), 0);
    trunkd_remove(&t);
}

/* -- under load -- */

typedef struct load {
    const trunkd *server;
    const char *version;
    size_t model; /* whose answer it must be; 0: by the version that it names */
    atomic_bool *stop;
    atomic_size_t answered, wrong;
} load;

/* Versions 1 to 3 are the models; of the rollbacks that follow, odd ones of model 1, even ones of
 * model 2. */
static size_t model_of(uint64_t version)
{
    return version <= MODELS ? (size_t)version : version % 2 ? 1 : 2;
}

static void *load_main(void *arg)
{
    load *l = arg;
    while (!atomic_load(l->stop)) {
        const answer a = classify_by(l->server->alice, l->version, "type");
        if (!a.message) {
            fprintf(stderr, "%s: %s\n", tk_client_code_text(a.status.code), a.status.text);
            atomic_fetch_add(&l->wrong, 1);
            continue;
        }
        const Trunkd__V1__ClassifyResponse *out = (const Trunkd__V1__ClassifyResponse *)a.message;
        const size_t model = l->model ? l->model : model_of(out->version);
        const bool right =
            is_models(out, &models[model - 1]) && (l->model == 0 || out->version == l->model);
        atomic_fetch_add(&l->wrong, !right);
        atomic_fetch_add(&l->answered, 1);
        tk_client_free_message(a.message);
    }
    return NULL;
}

static void wait_answers(load *l, size_t n, size_t more)
{
    for (size_t i = 0; i < n; i++) {
        const size_t want = atomic_load(&l[i].answered) + more;
        while (atomic_load(&l[i].answered) < want && atomic_load(&l[i].wrong) == 0)
            nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
}

static void pinned_requests_get_their_version_while_others_are_swapped(void **state)
{
    (void)state;
    trunkd t;
    atomic_bool stop = false;
    load loads[4] = {{.version = "2", .model = 2},
                     {.version = "stable", .model = 1},
                     {.version = ""},
                     {.version = "3", .model = 3}};
    pthread_t threads[4];
    trunkd_prepare(&t, MODELS);
    trunkd_start(&t, (const char *const[]){"--batch", "8", "--delay-ms", "1", NULL});
    must(set_label(t.admin, "stable", 1, 0));
    for (int i = 0; i < 4; i++) {
        loads[i].server = &t;
        loads[i].stop = &stop;
        assert_int_equal(pthread_create(&threads[i], NULL, load_main, &loads[i]), 0);
    }
    for (uint64_t v = 4; v < 12; v++) {
        wait_answers(loads, 4, 3);
        assert_int_equal(trunkd_roll_back(&t, v % 2 ? 1 : 2), v);
    }
    wait_answers(loads, 4, 3);
    atomic_store(&stop, true);
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(atomic_load(&loads[i].wrong), 0);
    }
    assert_int_equal(trunkd_end(&t, SIGTERM), 0);
    trunkd_remove(&t);
}

static void pins_of_many_versions_take_no_more_memory_than_allowed(void **state)
{
    (void)state;
    enum { VERSIONS = 9 };
    static const char *const numbers[] = {"1", "2", "3", "4", "5", "6", "7", "8"};
    trunkd t;
    atomic_bool stop = false;
    load loads[4];
    pthread_t threads[4];
    trunkd_prepare(&t, MODELS);
    trunkd_start(&t,
                 (const char *const[]){"--pinned-versions", "2", "--http", "127.0.0.1:0", NULL});
    for (uint64_t v = 4; v <= VERSIONS; v++)
        assert_int_equal(trunkd_roll_back(&t, v % 2 ? 1 : 2), v);
    const int http = trunkd_http_port(&t);
    memset(loads, 0, sizeof loads);
    loads[0] = (load){.version = ""}; /* is not held up by the others */
    for (size_t i = 1; i < 4; i++)
        loads[i] = (load){.version = numbers[i - 1], .model = i};
    for (size_t i = 0; i < 4; i++) {
        loads[i].server = &t;
        loads[i].stop = &stop;
        assert_int_equal(pthread_create(&threads[i], NULL, load_main, &loads[i]), 0);
    }
    double most = 0, loaded = 0;
    for (int round = 0; round < 5; round++) {
        wait_answers(loads, 4, 2);
        for (size_t i = 0; i < 8; i++) { /* a flood, by a tenant of its own */
            const answer a = classify_by(t.bob, numbers[i], "colour");
            must(a);
        }
        int status;
        char *text = scrape_get(http, "/metrics", &status);
        scrape_check(scrape_body(text));
        const double pinned =
            scrape_value(scrape_body(text), "trunkd_versions_loaded{why=\"pin\"}");
        assert_true(pinned >= 1); /* one makes room, not all */
        most = fmax(most, pinned);
        loaded = scrape_value(scrape_body(text), "trunkd_version_loads_total");
        assert_true(scrape_value(scrape_body(text), "trunkd_version_images_total{version=\"1\"}") >
                    0);
        free(text);
    }
    atomic_store(&stop, true);
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(atomic_load(&loads[i].wrong), 0);
    }
    assert_true(most <= 2);
    assert_true(loaded >= 8); /* they came and went */
    assert_int_equal(trunkd_end(&t, SIGTERM), 0);
    trunkd_remove(&t);
}

/* -- what cannot be loaded -- */

static void spoil(const trunkd *t, uint64_t number)
{
    char dir[300];
    tk_store *store;
    tk_object file;
    snprintf(dir, sizeof dir, "%s/store", t->dir);
    assert_int_equal(tk_store_open(&store, dir, NULL, NULL), TK_OK);
    assert_int_equal(tk_store_version_file(store, TK_ALL, number, &file, NULL), TK_OK);
    char *path = tk_store_object_path(store, file.sha);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs("no model", f);
    assert_int_equal(fclose(f), 0);
    tk_free(path);
    tk_store_close(store);
}

static bool is_ready(tk_client *client, const char *version)
{
    char model[] = "type", number[16];
    Inference__ModelReadyRequest in;
    inference__model_ready_request__init(&in);
    snprintf(number, sizeof number, "%s", version);
    in.name = model;
    in.version = number;
    const answer a = ask(client, "/inference.GRPCInferenceService/ModelReady", &in,
                         &inference__model_ready_response__descriptor);
    if (!a.message) fail_msg("%s: %s", tk_client_code_text(a.status.code), a.status.text);
    const bool ready = ((const Inference__ModelReadyResponse *)a.message)->ready;
    tk_client_free_message(a.message);
    return ready;
}

static void a_version_that_cannot_be_loaded_harms_nobody_else(void **state)
{
    (void)state;
    trunkd t;
    trunkd_prepare(&t, MODELS);
    trunkd_start(&t, NULL);
    must(set_label(t.admin, "canary", 1, 100));
    expect(&t, "", 1, 1);
    assert_int_equal(trunkd_end(&t, SIGTERM), 0);
    spoil(&t, 1);
    trunkd_start(&t, NULL);
    expect(&t, "", 3, 3); /* the current one has the share of a label that is not there */
    expect(&t, "2", 2, 2);
    refused(t.alice, "canary", "type", TK_CLIENT_INTERNAL, "version 1 cannot be loaded");
    refused(t.alice, "1", "type", TK_CLIENT_INTERNAL, "the server's log says why");
    assert_false(is_ready(t.alice, "1"));
    tk_client_call *call = stream_to(&t, "1");
    stream_ends(call, TK_CLIENT_INTERNAL, "version 1 cannot be loaded");
    assert_true(is_ready(t.alice, "2"));
    answer a = set_label(t.admin, "stable", 1, 0);
    if (a.message) fail_msg("a label was set on a broken version");
    assert_true(trunkd_logged(&t, "event=\"version not loaded\" version=1"));
    must(set_label(t.admin, "canary", 2, 100));
    expect(&t, "", 2, 2);
    assert_int_equal(trunkd_end(&t, SIGTERM), 0);
    trunkd_remove(&t);
}

/* -- the Open Inference Protocol -- */

static void the_protocols_versions_are_the_same(void **state)
{
    (void)state;
    trunkd t;
    char model[] = "type", version[16] = "1";
    trunkd_prepare(&t, MODELS);
    trunkd_start(&t, NULL);
    must(set_label(t.admin, "stable", 2, 100));
    Inference__ModelMetadataRequest in;
    inference__model_metadata_request__init(&in);
    in.name = model;
    in.version = version;
    static const char *const cases[][2] = {{"1", "1"}, {"stable", "2"}, {"latest", "3"}, {"", "3"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        strcpy(version, cases[i][0]);
        const answer a = ask(t.alice, "/inference.GRPCInferenceService/ModelMetadata", &in,
                             &inference__model_metadata_response__descriptor);
        if (!a.message) fail_msg("%s: %s", tk_client_code_text(a.status.code), a.status.text);
        const Inference__ModelMetadataResponse *out =
            (const Inference__ModelMetadataResponse *)a.message;
        assert_string_equal(out->versions[out->n_versions - 1], cases[i][1]); /* nobody's share */
        tk_client_free_message(a.message);
    }
    strcpy(version, "4");
    answer a = ask(t.alice, "/inference.GRPCInferenceService/ModelMetadata", &in,
                   &inference__model_metadata_response__descriptor);
    assert_code(&a, TK_CLIENT_NOT_FOUND, "you have no model \"type\" in version \"4\"");
    assert_int_equal(trunkd_end(&t, SIGTERM), 0);
    trunkd_remove(&t);
}

static int set_up(void **state)
{
    (void)state;
    fixture_images(images, IMAGES);
    for (size_t m = 0; m < MODELS; m++)
        compute(m + 1, &models[m]);
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
        cmocka_unit_test(a_request_is_answered_by_the_version_that_it_names),
        cmocka_unit_test(labels_are_the_admins_and_checked),
        cmocka_unit_test(labels_and_shares_outlive_a_kill),
        cmocka_unit_test(deleted_heads_are_gone_from_versions_in_memory),
        cmocka_unit_test(a_stream_is_answered_by_the_version_that_it_began_with),
        cmocka_unit_test(a_streams_version_that_is_not_there_ends_it_as_it_ends_a_request),
        cmocka_unit_test(a_deleted_head_is_gone_from_open_streams),
        cmocka_unit_test(pinned_requests_get_their_version_while_others_are_swapped),
        cmocka_unit_test(pins_of_many_versions_take_no_more_memory_than_allowed),
        cmocka_unit_test(a_version_that_cannot_be_loaded_harms_nobody_else),
        cmocka_unit_test(the_protocols_versions_are_the_same),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
