/* The Open Inference Protocol over the wire: models, their versions and statistics, and the server.
 */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "oip_fixture.h"

static void models_are_described(void **state)
{
    (void)state;
    char name[] = "type", version[] = "2";
    Inference__ModelMetadataRequest ask_metadata;
    inference__model_metadata_request__init(&ask_metadata);
    ask_metadata.name = name;
    ask_metadata.version = version;
    Inference__ModelMetadataResponse *m = oip_answered(oip_server.alice, METHOD("ModelMetadata"),
                                                       &ask_metadata, OIP(model_metadata_response));
    assert_string_equal(m->name, "type");
    assert_string_equal(m->platform, "trunkd_resnet20");
    assert_int_equal(m->n_versions, 1);
    assert_string_equal(m->versions[0], "2");
    assert_int_equal(m->n_inputs, 1);
    assert_string_equal(m->inputs[0]->name, "image");
    assert_string_equal(m->inputs[0]->datatype, "BYTES");
    assert_int_equal(m->inputs[0]->n_shape, 1);
    assert_int_equal(m->inputs[0]->shape[0], -1);
    assert_int_equal(m->n_outputs, 3);
    assert_string_equal(m->outputs[2]->name, "features");
    assert_int_equal(m->outputs[2]->shape[0], -1);
    assert_int_equal(m->outputs[2]->shape[1], OIP_FEATURES);
    assert_int_equal(m->outputs[1]->shape[1], FIXTURE_TYPES);
    tk_client_free_message(&m->base);
    oip_assert_refused(oip_server.bob, METHOD("ModelMetadata"), &ask_metadata,
                       OIP(model_metadata_response), TK_CLIENT_NOT_FOUND,
                       "you have no model \"type\"");
    char whole[] = "bob/colour"; /* as an admin sees it */
    ask_metadata.name = whole;
    m = oip_answered(oip_server.admin, METHOD("ModelMetadata"), &ask_metadata,
                     OIP(model_metadata_response));
    assert_string_equal(m->name, "bob/colour");
    assert_int_equal(m->outputs[0]->shape[1], FIXTURE_COLOURS);
    tk_client_free_message(&m->base);

    Inference__ModelConfigRequest ask_config;
    inference__model_config_request__init(&ask_config);
    ask_config.name = name;
    Inference__ModelConfigResponse *c = oip_answered(oip_server.alice, METHOD("ModelConfig"),
                                                     &ask_config, OIP(model_config_response));
    assert_string_equal(c->config->name, "type");
    assert_string_equal(c->config->backend, "trunkd");
    assert_int_equal(c->config->max_batch_size, 0);
    assert_int_equal(c->config->input[0]->data_type, INFERENCE__DATA_TYPE__TYPE_STRING);
    assert_int_equal(c->config->output[1]->dims[1], FIXTURE_TYPES);
    assert_int_equal(c->config->n_parameters, 7);
    assert_string_equal(c->config->parameters[1]->key, "px");
    assert_string_equal(c->config->parameters[1]->value->string_value, "32");
    tk_client_free_message(&c->base);
    oip_assert_refused(oip_server.bob, METHOD("ModelConfig"), &ask_config,
                       OIP(model_config_response), TK_CLIENT_NOT_FOUND,
                       "you have no model \"type\"");
}

static void expect_ready(tk_client *client, const char *name, const char *version, bool ready)
{
    char copy[64], number[32];
    snprintf(copy, sizeof copy, "%s", name);
    snprintf(number, sizeof number, "%s", version);
    Inference__ModelReadyRequest in;
    inference__model_ready_request__init(&in);
    in.name = copy;
    in.version = number;
    Inference__ModelReadyResponse *out =
        oip_answered(client, METHOD("ModelReady"), &in, OIP(model_ready_response));
    assert_int_equal(out->ready, ready);
    tk_client_free_message(&out->base);
}

static void readiness_leaks_nothing(void **state)
{
    (void)state;
    expect_ready(oip_server.alice, "type", "", true);
    expect_ready(oip_server.alice, "type", "2", true);
    expect_ready(oip_server.alice, "type", "1", true);
    expect_ready(oip_server.alice, "type", "latest", true);
    expect_ready(oip_server.alice, "type", "3", false);
    expect_ready(oip_server.alice, "colour", "1", false);
    expect_ready(oip_server.alice, "colour", "", false);
    expect_ready(oip_server.alice, "bob/colour", "", false);
    expect_ready(oip_server.alice, "nothing", "", false);
    expect_ready(oip_server.bob, "colour", "", true);
    expect_ready(oip_server.admin, "bob/colour", "", true);
    expect_ready(oip_server.admin, "colour", "", false);
    expect_ready(oip_server.admin, "/", "", false);
}

/* The index is `lines`: lines of name, version and state. */
static void expect_index(tk_client *client, bool ready, const char *lines)
{
    char have[600] = "";
    size_t n = 0;
    Inference__RepositoryIndexRequest in;
    inference__repository_index_request__init(&in);
    in.ready = ready;
    Inference__RepositoryIndexResponse *out =
        oip_answered(client, METHOD("RepositoryIndex"), &in, OIP(repository_index_response));
    for (size_t i = 0; i < out->n_models && n < sizeof have; i++)
        n += (size_t)snprintf(have + n, sizeof have - n, "%s %s %s\n", out->models[i]->name,
                              out->models[i]->version, out->models[i]->state);
    assert_string_equal(have, lines);
    tk_client_free_message(&out->base);
}

/* ModelMetadata's versions are `list`, a blank after each. */
static void expect_versions(tk_client *client, const char *name, const char *version,
                            const char *list)
{
    char model[64], asked[32], have[200] = "";
    size_t n = 0;
    Inference__ModelMetadataRequest in;
    inference__model_metadata_request__init(&in);
    snprintf(model, sizeof model, "%s", name);
    snprintf(asked, sizeof asked, "%s", version);
    in.name = model;
    in.version = asked;
    Inference__ModelMetadataResponse *out =
        oip_answered(client, METHOD("ModelMetadata"), &in, OIP(model_metadata_response));
    for (size_t i = 0; i < out->n_versions && n < sizeof have; i++)
        n += (size_t)snprintf(have + n, sizeof have - n, "%s ", out->versions[i]);
    assert_string_equal(have, list);
    tk_client_free_message(&out->base);
}

/* All that can be asked for, the caller's own, and which of it is in memory; what is deleted is
 * gone from both lists. */
static void every_version_that_can_be_asked_for_is_listed(void **state)
{
    (void)state;
    trunkd t;
    char name[] = "colour";
    trunkd_prepare(&t, 3);
    trunkd_start(&t, (const char *const[]){"--trainer", "/bin/false", NULL});
    expect_index(t.alice, false, "type 1 UNAVAILABLE\ntype 2 UNAVAILABLE\ntype 3 READY\n");
    expect_index(t.alice, true, "type 3 READY\n");
    expect_versions(t.alice, "type", "", "1 2 3 ");
    expect_versions(t.alice, "type", "latest", "3 ");
    expect_versions(t.alice, "type", "1", "1 "); /* and now it is in memory */
    expect_index(t.alice, true, "type 1 READY\ntype 3 READY\n");
    expect_versions(t.admin, "bob/colour", "", "1 2 3 ");
    expect_index(t.bob, false, "colour 1 READY\ncolour 2 UNAVAILABLE\ncolour 3 READY\n");
    expect_index(t.admin, false,
                 "alice/type 1 READY\nalice/type 2 UNAVAILABLE\nalice/type 3 READY\n"
                 "bob/colour 1 READY\nbob/colour 2 UNAVAILABLE\nbob/colour 3 READY\n");
    Trunkd__V1__DeleteHeadRequest head;
    trunkd__v1__delete_head_request__init(&head);
    head.name = name;
    tk_client_free_message(
        oip_answered(t.bob, "/trunkd.v1.Heads/Delete", &head, &trunkd__v1__empty__descriptor));
    expect_index(t.bob, false, "");
    expect_versions(t.alice, "type", "", "1 2 3 4 ");
    Inference__ModelMetadataRequest gone;
    inference__model_metadata_request__init(&gone);
    gone.name = name;
    oip_assert_refused(t.bob, METHOD("ModelMetadata"), &gone, OIP(model_metadata_response),
                       TK_CLIENT_NOT_FOUND, "you have no model \"colour\"");
    assert_int_equal(trunkd_end(&t, SIGTERM), 0);
    trunkd_remove(&t);
}

static void the_index_knows_one_repository(void **state)
{
    (void)state;
    char name[] = "elsewhere";
    Inference__RepositoryIndexRequest in;
    inference__repository_index_request__init(&in);
    in.repository_name = name;
    oip_assert_refused(oip_server.alice, METHOD("RepositoryIndex"), &in,
                       OIP(repository_index_response), TK_CLIENT_NOT_FOUND,
                       "there is no repository \"elsewhere\"");
}

static void the_server_describes_itself(void **state)
{
    (void)state;
    Inference__ServerLiveRequest in; /* all three are empty messages */
    inference__server_live_request__init(&in);
    Inference__ServerLiveResponse *live =
        oip_answered(oip_server.nobody, METHOD("ServerLive"), &in, OIP(server_live_response));
    assert_true(live->live);
    tk_client_free_message(&live->base);
    Inference__ServerReadyResponse *ready =
        oip_answered(oip_server.nobody, METHOD("ServerReady"), &in, OIP(server_ready_response));
    assert_true(ready->ready);
    tk_client_free_message(&ready->base);
    Inference__ServerMetadataResponse *m = oip_answered(oip_server.alice, METHOD("ServerMetadata"),
                                                        &in, OIP(server_metadata_response));
    assert_string_equal(m->name, "trunkd");
    assert_string_equal(m->version, TRUNKD_VERSION);
    assert_int_equal(m->n_extensions, 3);
    assert_string_equal(m->extensions[2], "statistics");
    tk_client_free_message(&m->base);
    oip_assert_refused(oip_server.nobody, METHOD("ServerMetadata"), &in,
                       OIP(server_metadata_response), TK_CLIENT_UNAUTHENTICATED, "no token");
}

/* -- statistics -- */

/* `name` "" asks for all. Fails unless there is one at version 2, which is returned first. */
static Inference__ModelStatisticsResponse *statistics_of(tk_client *client, const char *name,
                                                         const char *version)
{
    char model[64], number[32];
    snprintf(model, sizeof model, "%s", name);
    snprintf(number, sizeof number, "%s", version);
    Inference__ModelStatisticsRequest in;
    inference__model_statistics_request__init(&in);
    in.name = model;
    in.version = number;
    Inference__ModelStatisticsResponse *out =
        oip_answered(client, METHOD("ModelStatistics"), &in, OIP(model_statistics_response));
    assert_true(out->n_model_stats >= 1);
    assert_string_equal(out->model_stats[0]->version, "2");
    return out;
}

static void statistics_count_the_callers_requests_and_nobody_elses(void **state)
{
    (void)state;
    oip_question q;
    Inference__ModelStatisticsResponse *before = statistics_of(oip_server.alice, "type", "2"),
                                       *after;
    Inference__ModelStatisticsResponse *bobs = statistics_of(oip_server.bob, "", "");
    assert_string_equal(bobs->model_stats[0]->name, "colour");
    for (int i = 0; i < 4; i++) {
        oip_files_typed(&q);
        oip_assert_answers(&q, 0, OIP_IMAGES, false);
    }
    oip_files_typed(&q);
    q.files[1].len = 10;
    oip_refused(&q, BAD, "image 1 of 3");
    after = statistics_of(oip_server.alice, "", "latest");
    const Inference__ModelStatistics *a = before->model_stats[0], *b = after->model_stats[0];
    const Inference__InferStatistics *x = a->inference_stats, *y = b->inference_stats;
    assert_string_equal(b->name, "type");
    assert_int_equal(y->success->count - x->success->count, 4);
    assert_int_equal(y->fail->count - x->fail->count, 1);
    assert_int_equal(b->inference_count - a->inference_count, 4 * OIP_IMAGES);
    assert_int_equal(y->queue->count, y->success->count);
    assert_int_equal(y->compute_infer->count, y->success->count);
    assert_true(y->compute_infer->ns > x->compute_infer->ns);
    assert_true(y->compute_input->ns > x->compute_input->ns);
    /* The stages of a request lie within it. */
    assert_true(y->queue->ns + y->compute_input->ns + y->compute_infer->ns +
                    y->compute_output->ns <=
                y->success->ns);
    uint64_t passes = 0, images = 0;
    for (size_t i = 0; i < b->n_batch_stats; i++) {
        passes += b->batch_stats[i]->compute_infer->count;
        images += b->batch_stats[i]->compute_infer->count * b->batch_stats[i]->batch_size;
        if (i > 0) assert_true(b->batch_stats[i]->batch_size > b->batch_stats[i - 1]->batch_size);
    }
    assert_int_equal(passes, b->execution_count);
    /* Those of requests that failed for another image went through the trunk, too. */
    assert_true(images >= b->inference_count);
    assert_true(b->last_inference > UINT64_C(1600000000000));
    assert_true(b->memory_usage[0]->byte_size >= FIXTURE_TYPES * OIP_FEATURES * sizeof(float));
    Inference__ModelStatisticsResponse *bobs_after = statistics_of(oip_server.bob, "colour", "2");
    assert_int_equal(bobs_after->model_stats[0]->execution_count,
                     bobs->model_stats[0]->execution_count);
    assert_int_equal(bobs_after->model_stats[0]->last_inference,
                     bobs->model_stats[0]->last_inference);
    tk_client_free_message(&before->base);
    tk_client_free_message(&after->base);
    tk_client_free_message(&bobs->base);
    tk_client_free_message(&bobs_after->base);
}

static void statistics_of_what_is_not_the_callers_are_not_found(void **state)
{
    (void)state;
    static const char *const cases[][3] = {{"colour", "", "you have no model \"colour\""},
                                           {"bob/colour", "2", "\"bob/colour\" in version \"2\""},
                                           {"nothing", "", "you have no model \"nothing\""},
                                           {"type", "3", "\"type\" in version \"3\""}};
    char model[64], number[32];
    Inference__ModelStatisticsRequest in;
    inference__model_statistics_request__init(&in);
    in.name = model;
    in.version = number;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        strcpy(model, cases[i][0]);
        strcpy(number, cases[i][1]);
        oip_assert_refused(oip_server.alice, METHOD("ModelStatistics"), &in,
                           OIP(model_statistics_response), TK_CLIENT_NOT_FOUND, cases[i][2]);
    }
    strcpy(model, "type");
    strcpy(number, "0");
    oip_assert_refused(oip_server.alice, METHOD("ModelStatistics"), &in,
                       OIP(model_statistics_response), BAD, "the version is \"0\"");
    oip_assert_refused(oip_server.nobody, METHOD("ModelStatistics"), &in,
                       OIP(model_statistics_response), TK_CLIENT_UNAUTHENTICATED, "no token");
    model[0] = number[0] = '\0';
    Inference__ModelStatisticsResponse *all = oip_answered(
        oip_server.admin, METHOD("ModelStatistics"), &in, OIP(model_statistics_response));
    bool alices = false, bobs = false;
    for (size_t i = 0; i < all->n_model_stats; i++) {
        alices |= strcmp(all->model_stats[i]->name, "alice/type") == 0;
        bobs |= strcmp(all->model_stats[i]->name, "bob/colour") == 0;
    }
    assert_true(alices && bobs);
    tk_client_free_message(&all->base);
}

/* -- before anything was learned, and at the end -- */

static void an_empty_server_is_ready_and_has_no_model(void **state)
{
    (void)state;
    trunkd empty;
    trunkd_prepare(&empty, 0);
    trunkd_start(&empty, NULL);
    Inference__ServerReadyRequest in;
    inference__server_ready_request__init(&in);
    Inference__ServerReadyResponse *ready =
        oip_answered(empty.nobody, METHOD("ServerReady"), &in, OIP(server_ready_response));
    assert_true(ready->ready);
    tk_client_free_message(&ready->base);
    Inference__RepositoryIndexResponse *index =
        oip_answered(empty.alice, METHOD("RepositoryIndex"), &in, OIP(repository_index_response));
    assert_int_equal(index->n_models, 0);
    tk_client_free_message(&index->base);
    expect_ready(empty.alice, "type", "", false);
    oip_question q;
    oip_files_typed(&q);
    oip_assert_refused(empty.alice, METHOD("ModelInfer"), &q.in, OIP(model_infer_response),
                       TK_CLIENT_NOT_FOUND, "you have no model \"type\"");
    /* A stream that waits does not hold up the stop. */
    tk_client_call *call = tk_client_start(empty.alice, METHOD("ModelStreamInfer"),
                                           OIP(model_stream_infer_response), 60000);
    assert_true(tk_client_send(call, &q.in.base));
    tk_client_free_message(tk_client_receive(call));
    kill(empty.pid, SIGTERM);
    assert_null(tk_client_receive(call));
    tk_client_status status;
    assert_int_equal(tk_client_finish(call, &status), TK_CLIENT_UNAVAILABLE);
    assert_int_equal(trunkd_end(&empty, SIGTERM), 0);
    trunkd_remove(&empty);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(models_are_described),
        cmocka_unit_test(readiness_leaks_nothing),
        cmocka_unit_test(every_version_that_can_be_asked_for_is_listed),
        cmocka_unit_test(the_index_knows_one_repository),
        cmocka_unit_test(the_server_describes_itself),
        cmocka_unit_test(statistics_count_the_callers_requests_and_nobody_elses),
        cmocka_unit_test(statistics_of_what_is_not_the_callers_are_not_found),
        cmocka_unit_test(an_empty_server_is_ready_and_has_no_model),
    };
    return cmocka_run_group_tests(tests, oip_set_up, oip_tear_down);
}
