/* Jobs over the wire, with a script in the trainer's place: what Submit refuses, what Watch shows
 * and to whom, how a job is cancelled. The real trainer is tested elsewhere. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "trunkd_process.h"

#define PB(name)                                                                                   \
    &trunkd__v1__##name##__descriptor /* generated names: only the preprocessor can join them */

static trunkd server;
static fixture_bytes images[4];
static uint64_t alices, bobs; /* data sets */

/* Tells progress and one validation of both tenants' heads, then fails for good; a job for the head
 * "slow" sleeps until it is killed. "judged" ends in a rejection, with the gate's record about
 * alice's head and bob's; in that of "liar" the judgement does not follow from the counts. */
static const char script[] =
    "#!/bin/sh\n"
    "if grep -q bob/slow \"$1\"; then exec sleep 600; fi\n"
    "echo "
    "'{\"event\":\"progress\",\"stage\":\"train\",\"step\":1,\"steps\":2,\"epoch\":1,\"epochs\":1,"
    "\"rate\":0.1,"
    "\"loss\":{\"total\":1.5,\"ce\":1.0,\"kd\":0.25,\"ewc\":0.25},\"eta_s\":1.0}'\n"
    "echo "
    "'{\"event\":\"validation\",\"stage\":\"train\",\"step\":2,\"epoch\":1,\"loss\":{\"total\":1."
    "25,\"ce\":1,\"kd\":0.25},\"heads\":["
    "{\"head\":\"alice/type\",\"accuracy\":0.5,\"change\":-0.25,\"floor\":0.74,\"n\":40},"
    "{\"head\":\"bob/colour\",\"accuracy\":0.75,\"change\":0.25,\"n\":30}]}'\n"
    "if grep -q -e bob/judged -e bob/liar \"$1\"; then\n"
    "if grep -q bob/liar \"$1\"; then lost=2; else lost=3; fi\n"
    "sed s/LOST/$lost/ >\"${1%/*}/result.json\" <<'END'\n"
    "{\"outcome\":\"reject\",\"reason\":\"head \\\"alice/type\\\" would fall\",\"gate\":["
    "{\"head\":\"alice/"
    "type\",\"best\":0.8,\"tolerance\":1,\"sigma\":0,\"n\":40,\"right_before\":30,"
    "\"n01\":LOST,\"n10\":1,\"before\":0.75,\"after\":0.7,\"floor\":0.75,\"drop\":5,\"se\":5,"
    "\"source\":\"validation\",\"resolved\":false,\"admitted\":false},"
    "{\"head\":\"bob/colour\",\"best\":1,\"tolerance\":3,\"sigma\":0,\"n\":10,\"right_before\":10,"
    "\"n01\":0,\"n10\":0,\"before\":1,\"after\":1,\"floor\":0.97,\"drop\":0,\"se\":0,"
    "\"source\":\"agreement\",\"resolved\":false,\"admitted\":true}],"
    "\"precisions\":{\"bf16\":{\"admitted\":false,\"heads\":[{\"head\":\"alice/type\",\"n\":40,"
    "\"accuracy\":0.65,\"fp32\":0.7,\"alike\":0.9,\"tolerance\":1,\"source\":\"validation\","
    "\"admitted\":false}]}},\"remarks\":[\"17 images occur with more than one label\"],"
    "\"training\":{\"probe_accuracy\":0.5,\"adapter_accuracy\":null,\"joint_accuracy\":0.75,"
    "\"trials\":[{\"strength\":1,\"epochs\":12,\"admissible\":false,\"improved\":false,\"worth\":"
    "null},"
    "{\"strength\":3,\"epochs\":6,\"admissible\":true,\"improved\":true,\"worth\":0.75}],"
    "\"curve\":[]}}\n"
    "END\n"
    "exit 0; fi\n"
    "echo '{\"event\":\"failed\",\"error\":\"TK_BADDATA\",\"reason\":\"the script says so\"}'\n"
    "exit 1\n";

static Trunkd__V1__SubmitJobRequest request(char *head, uint64_t data_set)
{
    Trunkd__V1__SubmitJobRequest in;
    trunkd__v1__submit_job_request__init(&in);
    in.head = head;
    in.data_set = data_set;
    return in;
}

static void assert_refused(tk_client *client, const Trunkd__V1__SubmitJobRequest *in, int code,
                           const char *words)
{
    const answer a = ask(client, "/trunkd.v1.Jobs/Submit", in, PB(job));
    if (a.message || a.status.code != code || !strstr(a.status.text, words)) {
        fail_msg("expected %s with \"%s\", got %s: %s", tk_client_code_text(code), words,
                 tk_client_code_text(a.status.code), a.status.text);
    }
}

static uint64_t submit(tk_client *client, char *head, uint64_t data_set)
{
    const Trunkd__V1__SubmitJobRequest in = request(head, data_set);
    const answer a = ask(client, "/trunkd.v1.Jobs/Submit", &in, PB(job));
    if (!a.message) fail_msg("%s: %s", tk_client_code_text(a.status.code), a.status.text);
    const uint64_t id = ((const Trunkd__V1__Job *)a.message)->id;
    tk_client_free_message(a.message);
    return id;
}

static void submit_names_what_is_wrong(void **state)
{
    (void)state;
    char head[] = "use", bad_head[] = "Not A Name", recipe[] = "magic", scratch[] = "scratch",
         kappa[] = "kappa", no_such[] = "no-such-setting";
    const int bad = TK_CLIENT_INVALID_ARGUMENT;
    Trunkd__V1__SubmitJobRequest in = request(bad_head, bobs);
    assert_refused(server.bob, &in, bad, "head");
    in = request(head, 0);
    assert_refused(server.bob, &in, bad, "data_set is missing");
    in = request(head, 4711);
    assert_refused(server.bob, &in, TK_CLIENT_NOT_FOUND, "data set");
    in = request(head, alices); /* somebody else's looks the same */
    assert_refused(server.bob, &in, TK_CLIENT_NOT_FOUND, "data set");
    in = request(head, bobs);
    in.recipe = recipe;
    assert_refused(server.bob, &in, bad, "kd+ewc"); /* the recipes that there are */
    in.recipe = scratch;
    assert_refused(server.bob, &in, TK_CLIENT_FAILED_PRECONDITION, "trains a fresh trunk");
    in = request(head, bobs);
    in.tolerance = -1;
    assert_refused(server.bob, &in, bad, "tolerance is -1");
    in = request(head, bobs);
    in.fallback = (Trunkd__V1__Fallback)7;
    assert_refused(server.bob, &in, bad, "fallback is 7");
    in = request(head, bobs);
    in.retention = (Trunkd__V1__Retention)9;
    assert_refused(server.bob, &in, bad, "retention is 9");
    Trunkd__V1__Setting setting, *set[1] = {&setting};
    trunkd__v1__setting__init(&setting);
    in = request(head, bobs);
    in.n_set = 1;
    in.set = set;
    setting.name = kappa;
    setting.value = -5;
    assert_refused(server.bob, &in, bad, "kappa");
    setting.name = no_such;
    setting.value = 1;
    assert_refused(server.bob, &in, bad, "no-such-setting");
    in = request(head, bobs);
    assert_refused(server.admin, &in, TK_CLIENT_PERMISSION_DENIED, "tenants");
}

typedef struct watched {
    size_t events, validations;
    uint64_t last;
    int state; /* of the job on the last event; -1: none came */
    char reason[128], others[64], own[64];
    double other_change;
    tk_client_status status;
} watched;

static watched watch(tk_client *client, uint64_t job, uint64_t after)
{
    watched w = {.state = -1};
    Trunkd__V1__WatchJobRequest in;
    trunkd__v1__watch_job_request__init(&in);
    in.id = job;
    in.after = after;
    tk_client_call *call = tk_client_start(client, "/trunkd.v1.Jobs/Watch", PB(job_event), 60000);
    tk_client_send(call, &in.base);
    tk_client_send_end(call);
    for (Trunkd__V1__JobEvent *e; (e = (Trunkd__V1__JobEvent *)tk_client_receive(call));) {
        w.events++;
        if (e->sequence <= after && !e->job)
            fail_msg("event %llu came again", (unsigned long long)e->sequence);
        w.last = e->sequence;
        w.validations += e->n_heads > 0;
        for (size_t i = 0; i < e->n_heads; i++) {
            const Trunkd__V1__HeadAccuracy *h = e->heads[i];
            snprintf(h->own ? w.own : w.others, 64, "%s", h->head);
            if (!h->own) w.other_change = h->change;
        }
        if (e->job) {
            w.state = (int)e->job->state;
            snprintf(w.reason, sizeof w.reason, "%s", e->job->reason);
        }
        tk_client_free_message(&e->base);
    }
    tk_client_finish(call, &w.status);
    return w;
}

static void watch_shows_a_job_to_its_end_and_others_without_their_names(void **state)
{
    (void)state;
    char head[] = "use";
    const uint64_t job = submit(server.bob, head, bobs);
    watched w = watch(server.bob, job, 0);
    assert_int_equal(w.status.code, TK_CLIENT_OK);
    assert_int_equal(w.state, TRUNKD__V1__JOB_STATE__FAILED);
    assert_non_null(strstr(w.reason, "the script says so"));
    assert_int_equal(w.validations, 1);
    assert_string_equal(w.own, "colour");
    assert_string_equal(w.others, "other-1");
    assert_float_equal(w.other_change, -0.25, 1e-9);
    /* Again, from an event on; then from behind the last: the end is told once more. */
    const watched tail = watch(server.bob, job, w.last - 1);
    assert_int_equal(tail.events, 1);
    assert_int_equal(tail.state, TRUNKD__V1__JOB_STATE__FAILED);
    const watched none = watch(server.bob, job, w.last);
    assert_int_equal(none.events, 1);
    assert_int_equal(none.state, TRUNKD__V1__JOB_STATE__FAILED);
    /* An admin sees the names; another tenant sees nothing. */
    const watched admin = watch(server.admin, job, 0);
    assert_string_equal(admin.others, "bob/colour");
    const watched foreign = watch(server.alice, job, 0);
    assert_int_equal(foreign.status.code, TK_CLIENT_NOT_FOUND);
    const watched unknown = watch(server.bob, 4711, 0);
    assert_int_equal(unknown.status.code, TK_CLIENT_NOT_FOUND);
    Trunkd__V1__GetJobRequest get;
    trunkd__v1__get_job_request__init(&get);
    get.id = job;
    const answer a = ask(server.alice, "/trunkd.v1.Jobs/Get", &get, PB(job));
    assert_int_equal(a.status.code, TK_CLIENT_NOT_FOUND);
}

static void a_running_job_can_be_cancelled_and_watched_meanwhile(void **state)
{
    (void)state;
    char slow[] = "slow", waiting[] = "waiting";
    const uint64_t first = submit(server.bob, slow, bobs),
                   second = submit(server.bob, waiting, bobs);
    Trunkd__V1__CancelJobRequest in;
    trunkd__v1__cancel_job_request__init(&in);
    in.id = second; /* queued: at once */
    answer a = ask(server.bob, "/trunkd.v1.Jobs/Cancel", &in, PB(job));
    assert_non_null(a.message);
    assert_int_equal(((const Trunkd__V1__Job *)a.message)->state, TRUNKD__V1__JOB_STATE__CANCELLED);
    tk_client_free_message(a.message);
    in.id = first;
    a = ask(server.alice, "/trunkd.v1.Jobs/Cancel", &in, PB(job));
    assert_int_equal(a.status.code, TK_CLIENT_NOT_FOUND);
    a = ask(server.bob, "/trunkd.v1.Jobs/Cancel", &in, PB(job));
    assert_non_null(a.message);
    tk_client_free_message(a.message);
    const watched w = watch(server.bob, first, 0);
    assert_int_equal(w.state, TRUNKD__V1__JOB_STATE__CANCELLED);
    a = ask(server.bob, "/trunkd.v1.Jobs/Cancel", &in, PB(job));
    assert_int_equal(a.status.code, TK_CLIENT_FAILED_PRECONDITION);
    Trunkd__V1__ListJobsRequest list;
    trunkd__v1__list_jobs_request__init(&list);
    a = ask(server.bob, "/trunkd.v1.Jobs/List", &list, PB(list_jobs_response));
    assert_non_null(a.message);
    const Trunkd__V1__ListJobsResponse *jobs = (const Trunkd__V1__ListJobsResponse *)a.message;
    assert_int_equal(jobs->n_jobs, 3);
    assert_int_equal(jobs->jobs[0]->id, second); /* newest first */
    tk_client_free_message(a.message);
    a = ask(server.alice, "/trunkd.v1.Jobs/List", &list, PB(list_jobs_response));
    assert_int_equal(((const Trunkd__V1__ListJobsResponse *)a.message)->n_jobs, 0);
    tk_client_free_message(a.message);
}

static Trunkd__V1__Decision *explain(tk_client *client, uint64_t job)
{
    Trunkd__V1__ExplainGateRequest in;
    trunkd__v1__explain_gate_request__init(&in);
    in.id = job;
    const answer a = ask(client, "/trunkd.v1.Jobs/ExplainGate", &in, PB(decision));
    if (!a.message) fail_msg("%s: %s", tk_client_code_text(a.status.code), a.status.text);
    return (Trunkd__V1__Decision *)a.message;
}

static void the_gate_explains_itself_and_judges_again(void **state)
{
    (void)state;
    char judged[] = "judged", liar[] = "liar";
    const uint64_t job = submit(server.bob, judged, bobs), lied = submit(server.bob, liar, bobs);
    assert_int_equal(watch(server.bob, lied, 0).state, TRUNKD__V1__JOB_STATE__REJECTED);
    Trunkd__V1__Decision *d = explain(server.bob, job);
    assert_string_equal(d->outcome, "reject");
    assert_string_equal(d->reason, "head \"other-1\" would fall");
    assert_int_equal(d->base_version, 1);
    assert_int_equal(strlen(d->base_sha256), 64);
    assert_int_equal(d->version, 0);
    assert_int_equal(d->n_heads, 2);
    assert_string_equal(d->heads[0]->head, "other-1");
    assert_false(d->heads[0]->own);
    assert_int_equal(d->heads[0]->right_after, 28);
    assert_true(d->heads[0]->same && !d->heads[0]->admitted && !d->heads[0]->resolved);
    assert_string_equal(d->heads[1]->head, "colour");
    assert_true(d->heads[1]->own && d->heads[1]->agreement && d->heads[1]->admitted);
    assert_int_equal(d->n_precisions, 1);
    assert_string_equal(d->precisions[0]->name, "bf16");
    assert_string_equal(d->precisions[0]->heads[0]->head, "other-1");
    assert_false(d->precisions[0]->admitted);
    assert_int_equal(d->n_alternatives, 2); /* no adapter was trained */
    assert_string_equal(d->alternatives[1]->name, "joint");
    assert_float_equal(d->alternatives[1]->accuracy, 0.75, 0);
    assert_int_equal(d->n_trials, 2);
    assert_false(d->trials[0]->admitted);
    assert_float_equal(d->trials[0]->worth, 0, 0);
    assert_float_equal(d->trials[1]->strength, 3, 0);
    assert_true(d->trials[1]->improved);
    assert_int_equal(d->n_remarks, 1);
    assert_string_equal(d->remarks[0], "17 images occur with more than one label");
    assert_true(d->same);
    assert_non_null(strstr(d->again, "\"other-1\": 75.0 % before, 70.0 % after"));
    tk_client_free_message(&d->base);
    d = explain(server.admin, job);
    assert_string_equal(d->heads[0]->head, "alice/type");
    tk_client_free_message(&d->base);
    d = explain(server.bob, lied); /* 30 less 2 and 1 more are 29, not 28 */
    assert_false(d->same || d->heads[0]->same);
    assert_true(d->heads[1]->same);
    tk_client_free_message(&d->base);
}

static void a_decision_and_a_curve_are_for_the_owner_of_the_job(void **state)
{
    (void)state;
    char fails[] = "use", head[] = "judged";
    const uint64_t failed = submit(server.bob, fails, bobs),
                   judged = submit(server.bob, head, bobs);
    (void)watch(server.bob, judged, 0);
    Trunkd__V1__ExplainGateRequest gate;
    trunkd__v1__explain_gate_request__init(&gate);
    Trunkd__V1__GetCurveRequest curve;
    trunkd__v1__get_curve_request__init(&curve);
    const struct {
        tk_client *who;
        uint64_t job;
        int gate, curve;
    } cases[] = {{server.bob, judged, TK_CLIENT_OK, TK_CLIENT_OK},
                 {server.admin, judged, TK_CLIENT_OK, TK_CLIENT_OK},
                 {server.alice, judged, TK_CLIENT_NOT_FOUND, TK_CLIENT_NOT_FOUND},
                 {server.bob, 4711, TK_CLIENT_NOT_FOUND, TK_CLIENT_NOT_FOUND},
                 {server.bob, 0, TK_CLIENT_NOT_FOUND, TK_CLIENT_NOT_FOUND},
                 {server.bob, UINT64_MAX, TK_CLIENT_NOT_FOUND, TK_CLIENT_NOT_FOUND},
                 {server.bob, failed, TK_CLIENT_FAILED_PRECONDITION, TK_CLIENT_OK}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        gate.id = curve.id = cases[i].job;
        answer a = ask(cases[i].who, "/trunkd.v1.Jobs/ExplainGate", &gate, PB(decision));
        tk_client_free_message(a.message);
        if (a.status.code != cases[i].gate) fail_msg("case %zu: %s", i, a.status.text);
        a = ask(cases[i].who, "/trunkd.v1.Jobs/GetCurve", &curve, PB(curve));
        tk_client_free_message(a.message);
        if (a.status.code != cases[i].curve) fail_msg("case %zu: %s", i, a.status.text);
    }
}

static void a_curve_has_heads_floors_and_losses(void **state)
{
    (void)state;
    char head[] = "judged";
    const uint64_t job = submit(server.bob, head, bobs);
    assert_int_equal(watch(server.bob, job, 0).state, TRUNKD__V1__JOB_STATE__REJECTED);
    Trunkd__V1__GetCurveRequest in;
    trunkd__v1__get_curve_request__init(&in);
    in.id = job;
    const answer a = ask(server.bob, "/trunkd.v1.Jobs/GetCurve", &in, PB(curve));
    assert_non_null(a.message);
    const Trunkd__V1__Curve *c = (const Trunkd__V1__Curve *)a.message;
    assert_int_equal(c->n_points, 1);
    assert_string_equal(c->points[0]->stage, "train");
    assert_int_equal(c->points[0]->step, 2);
    assert_int_equal(c->points[0]->n_heads, 2);
    assert_string_equal(c->points[0]->heads[0]->head, "other-1");
    assert_float_equal(c->points[0]->heads[0]->floor, 0.74, 1e-9);
    assert_float_equal(c->points[0]->heads[1]->floor, 0, 0);
    assert_float_equal(c->points[0]->losses->kd, 0.25, 1e-9);
    tk_client_free_message(a.message);
}

static void a_data_set_in_use_cannot_be_deleted_and_a_stop_ends_the_watch(void **state)
{
    (void)state;
    char slow[] = "slow";
    const uint64_t job = submit(server.bob, slow, bobs);
    Trunkd__V1__DeleteDataSetRequest gone;
    trunkd__v1__delete_data_set_request__init(&gone);
    gone.id = bobs;
    const answer a = ask(server.bob, "/trunkd.v1.DataSets/Delete", &gone, PB(empty));
    assert_int_equal(a.status.code, TK_CLIENT_FAILED_PRECONDITION);
    Trunkd__V1__WatchJobRequest in;
    trunkd__v1__watch_job_request__init(&in);
    in.id = job;
    tk_client_call *call =
        tk_client_start(server.bob, "/trunkd.v1.Jobs/Watch", PB(job_event), 60000);
    tk_client_send(call, &in.base);
    tk_client_send_end(call);
    tk_client_free_message(tk_client_receive(call)); /* it is being watched */
    kill(server.pid, SIGTERM);
    for (ProtobufCMessage *e; (e = tk_client_receive(call));)
        tk_client_free_message(e);
    tk_client_status status;
    assert_int_equal(tk_client_finish(call, &status), TK_CLIENT_UNAVAILABLE);
    assert_non_null(strstr(status.text, "the server is stopping"));
    assert_int_equal(trunkd_end(&server, SIGTERM), 0);
}

static int set_up(void **state)
{
    (void)state;
    static const char *const labels[] = {"a", "b", "a", "b"};
    for (unsigned i = 0; i < 4; i++)
        images[i] = fixture_png(32, 32, i);
    trunkd_prepare(&server, 1);
    char path[300];
    snprintf(path, sizeof path, "%s/trainer", server.dir);
    FILE *f = fopen(path, "w");
    if (!f || fputs(script, f) < 0 || fclose(f) != 0 || chmod(path, 0700) != 0) return -1;
    trunkd_start(&server, (const char *const[]){"--trainer", path, NULL});
    upload(server.alice, "hers", images, labels, 4, &alices);
    upload(server.bob, "his", images, labels, 4, &bobs);
    return alices != 0 && bobs != 0 ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    trunkd_remove(&server);
    for (unsigned i = 0; i < 4; i++)
        free(images[i].data);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(submit_names_what_is_wrong),
        cmocka_unit_test(watch_shows_a_job_to_its_end_and_others_without_their_names),
        cmocka_unit_test(a_running_job_can_be_cancelled_and_watched_meanwhile),
        cmocka_unit_test(the_gate_explains_itself_and_judges_again),
        cmocka_unit_test(a_decision_and_a_curve_are_for_the_owner_of_the_job),
        cmocka_unit_test(a_curve_has_heads_floors_and_losses),
        cmocka_unit_test(
            a_data_set_in_use_cannot_be_deleted_and_a_stop_ends_the_watch), /* last: it stops */
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
