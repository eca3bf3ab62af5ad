/* The supervisor with a fake trainer: commit, reject, retry, cancel, restart, orphans, a base that
 * changes, and what watchers see. */
#define _GNU_SOURCE /* mount, environ */
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "engine/mem.h"
#include "jobs/jobs.h"
#include "store_fixture.h"

/* What the hooks were told. */
typedef struct served {
    atomic_uint prepared, published, discarded;
    atomic_uint_fast64_t number;
    atomic_bool refuse;
    tk_store *fill; /* prepare fills its disk, discard makes room again; NULL: no */
} served;

/* To the last page: with a file, and then with records until the log cannot take one more. */
static void fill_disk(tk_store *store)
{
    char path[128], block[4096] = {1};
    tk_token token;
    (void)snprintf(path, sizeof path, "%s/filler", tk_store_dir(store));
    FILE *file = fopen(path, "wb");
    while (file && fwrite(block, 1, sizeof block, file) == sizeof block) {
    }
    if (file) (void)fclose(file);
    for (int i = 0; i < 10000 && tk_store_token_issue(store, NULL, &token, NULL) == TK_OK; i++) {
    }
}

static void free_disk(tk_store *store)
{
    char path[128];
    (void)snprintf(path, sizeof path, "%s/filler", tk_store_dir(store));
    (void)unlink(path);
}

static tk_err prepare(void *ctx, uint64_t number, const char *path, void **snapshot, tk_diag *diag)
{
    served *s = ctx;
    (void)number;
    if (atomic_load(&s->refuse)) return tk_fail(diag, TK_NOMEM, "no room to serve it");
    tk_model *model;
    const tk_err err = tk_model_load(&model, path, false, diag);
    if (err != TK_OK) return err;
    if (s->fill && atomic_load(&s->prepared) == 0) fill_disk(s->fill);
    atomic_fetch_add(&s->prepared, 1);
    *snapshot = model;
    return TK_OK;
}

static void publish(void *ctx, uint64_t number, void *snapshot)
{
    served *s = ctx;
    tk_model_destroy(snapshot);
    atomic_store(&s->number, number);
    atomic_fetch_add(&s->published, 1);
}

static void discard(void *ctx, void *snapshot)
{
    served *s = ctx;
    tk_model_destroy(snapshot);
    if (s->fill) free_disk(s->fill);
    atomic_fetch_add(&s->discarded, 1);
}

typedef struct scene {
    store_fixture f;
    tk_jobs *jobs;
    served served;
    uint64_t data; /* alice's */
} scene;

static void start(scene *s)
{
    tk_diag diag;
    const tk_jobs_opts opts = {.trainer = FAKE_TRAINER,
                               .threads = 1,
                               .retry_ms = 1,
                               .cancel_ms = 500,
                               .hooks = {&s->served, prepare, publish, discard}};
    assert_ok(tk_jobs_start(&s->jobs, s->f.store, &opts, &diag));
}

static void set_scene(scene *s)
{
    tk_diag diag;
    const tk_trunk trunk = {.arch = "resnet20", .preproc = tk_preproc_default(32)};
    *s = (scene){.jobs = NULL};
    fixture_open(&s->f, NULL);
    assert_ok(tk_store_trunk_set(s->f.store, &trunk, &diag));
    s->data = fixture_data_set(s->f.store, s->f.alice, 1000, 1);
    start(s);
}

static void end_scene(scene *s)
{
    tk_jobs_stop(s->jobs);
    fixture_close(&s->f);
}

static uint64_t submit_as(scene *s, int64_t tenant, uint64_t data, const char *head,
                          tk_retention retention)
{
    tk_diag diag;
    tk_job job;
    const tk_job_request request = {
        .tenant = tenant, .head = head, .data_set = data, .retention = retention};
    assert_ok(tk_jobs_submit(s->jobs, &request, &job, &diag));
    const uint64_t id = job.id;
    tk_job_fini(&job);
    return id;
}

static uint64_t submit(scene *s, const char *head)
{
    return submit_as(s, s->f.alice, s->data, head, TK_RETAIN_VALIDATION);
}

static void nap(void)
{
    const struct timespec tick = {.tv_nsec = 2000000};
    (void)nanosleep(&tick, NULL);
}

static int64_t seconds(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec;
}

/* Waits for the job's end; free *job. */
static void wait_end(scene *s, uint64_t id, tk_job *job)
{
    tk_diag diag;
    for (const int64_t late = seconds() + 60;;) {
        assert_ok(tk_jobs_get(s->jobs, TK_ALL, id, job, &diag));
        if (tk_job_state_ended(job->state)) return;
        tk_job_fini(job);
        assert_true(seconds() < late);
        nap();
    }
}

/* Waits until the job has an event with this message. */
static void wait_message(scene *s, uint64_t id, const char *message)
{
    tk_diag diag;
    uint64_t after = 0;
    for (const int64_t late = seconds() + 60;;) {
        tk_job_event event;
        bool ended;
        assert_ok(tk_jobs_next(s->jobs, id, after, &event, &ended, &diag));
        const bool found = strstr(event.message, message) != NULL;
        if (event.sequence)
            after = event.sequence;
        else
            nap();
        tk_job_event_fini(&event);
        if (found) return;
        assert_false(ended);
        assert_true(seconds() < late);
    }
}

static void commit_one(scene *s, const char *head)
{
    tk_job job;
    wait_end(s, submit(s, head), &job);
    assert_int_equal(job.state, TK_JOB_COMMITTED);
    tk_job_fini(&job);
}

static void assert_no_job_dirs(scene *s)
{
    tk_jobs_stop(
        s->jobs); /* the directory goes after the record; the thread's end is a moment to look */
    s->jobs = NULL;
    assert_int_equal(fixture_entries(s->f.dir, "jobs"), 0);
}

static void a_job_ends_in_a_version_that_is_served(void **state)
{
    (void)state;
    tk_diag diag;
    scene s;
    tk_job job;
    tk_version v;
    char *record;
    set_scene(&s);
    const uint64_t id = submit(&s, "ok");
    wait_end(&s, id, &job);
    assert_int_equal(job.state, TK_JOB_COMMITTED);
    assert_string_equal(job.outcome, "commit");
    assert_string_equal(job.recipe, "scratch"); /* the default of a fresh trunk */
    assert_string_equal(job.reason, "because the fake says so");
    assert_int_equal(job.version, 1);
    assert_int_equal(job.attempts, 1);
    assert_true(job.started_ms >= job.submitted_ms && job.ended_ms >= job.started_ms);
    assert_int_equal(job.n_heads, 1);
    assert_true(job.heads[0].accuracy == 0.75);
    tk_job_fini(&job);
    commit_one(&s, "ok-two");
    assert_ok(
        tk_store_version_get(s.f.store, TK_ALL, 0, TK_WITH_LABELS | TK_WITH_CONFUSION, &v, &diag));
    assert_int_equal(v.number, 2);
    assert_int_equal(v.n_heads, 2);
    assert_string_equal(v.heads[0].id, "alice/ok");
    assert_string_equal(v.heads[0].labels[0], "red");
    assert_int_equal(v.heads[0].confusion[3], 3);
    assert_true(v.heads[0].best == 0.75);
    assert_true(v.heads[0].change == 0);
    assert_true(v.heads[0].pack_bytes > 0);
    tk_version_fini(&v);
    assert_int_equal(s.served.published, 2);
    assert_int_equal(s.served.number, 2);
    assert_ok(tk_store_job_record(s.f.store, s.f.alice, id, &record, &diag));
    assert_null(strstr(record, "confusion"));
    tk_free(record);
    assert_int_equal(tk_store_job_record(s.f.store, s.f.bob, id, &record, &diag), TK_NOTFOUND);
    assert_no_job_dirs(&s);
    assert_int_equal(fixture_objects(s.f.store), 5); /* data set, two versions, two packs */
    end_scene(&s);
}

static void probe_and_reject_are_told_apart(void **state)
{
    (void)state;
    tk_diag diag;
    scene s;
    tk_job job;
    tk_version v;
    set_scene(&s);
    wait_end(&s, submit(&s, "reject"), &job);
    assert_int_equal(job.state, TK_JOB_REJECTED);
    assert_string_equal(job.outcome, "reject");
    tk_job_fini(&job);
    assert_int_equal(tk_store_version_get(s.f.store, TK_ALL, 0, 0, &v, &diag), TK_PRECONDITION);
    wait_end(&s, submit(&s, "probe"), &job);
    assert_int_equal(job.state, TK_JOB_COMMITTED);
    assert_string_equal(job.outcome, "probe");
    tk_job_fini(&job);
    assert_no_job_dirs(&s);
    end_scene(&s);
}

static void every_judged_job_leaves_a_decision(void **state)
{
    (void)state;
    tk_diag diag;
    scene s;
    tk_job job;
    tk_version v;
    tk_decision d;
    set_scene(&s);
    commit_one(&s, "ok");
    const uint64_t second = submit(&s, "ok-two"), refused = submit(&s, "reject"),
                   failed = submit(&s, "baddata");
    wait_end(&s, failed, &job);
    tk_job_fini(&job);
    assert_ok(tk_store_decision_get(s.f.store, s.f.alice, second, &d, &diag));
    assert_string_equal(d.outcome, "commit");
    assert_string_equal(d.reason, "because the fake says so");
    assert_int_equal(d.base_version, 1);
    assert_int_equal(d.version, 2);
    assert_true(d.decided_ms > 0);
    assert_int_equal(d.judged.n_heads, 1);
    assert_string_equal(d.judged.heads[0].id, "alice/ok");
    assert_int_equal(d.judged.heads[0].gate.right_before, 6);
    assert_true(d.judged.heads[0].gate.admitted);
    for (uint64_t number = 1; number <= 2; number++) {
        assert_ok(tk_store_version_get(s.f.store, TK_ALL, number, 0, &v, &diag));
        assert_string_equal(number == 1 ? d.base_sha : d.sha, v.sha);
        tk_version_fini(&v);
    }
    tk_decision_fini(&d);
    assert_ok(tk_store_decision_get(s.f.store, s.f.alice, refused, &d, &diag));
    assert_string_equal(d.outcome, "reject");
    assert_int_equal(d.base_version, 2);
    assert_int_equal(d.version, 0);
    assert_string_equal(d.sha, "");
    assert_int_equal(d.judged.n_heads, 2);
    assert_int_equal(d.judged.heads[1].gate.n01, 3);
    assert_false(d.judged.heads[1].gate.admitted);
    tk_decision_fini(&d);
    assert_err(tk_store_decision_get(s.f.store, s.f.alice, failed, &d, &diag), TK_PRECONDITION,
               "it failed");
    assert_err(tk_store_decision_get(s.f.store, s.f.bob, second, &d, &diag), TK_NOTFOUND, "job 2");
    assert_err(tk_store_decision_get(s.f.store, TK_ALL, 77, &d, &diag), TK_NOTFOUND, "job 77");
    end_scene(&s);
}

static void a_resumed_job_has_each_point_of_its_curve_once(void **state)
{
    (void)state;
    tk_diag diag;
    scene s;
    tk_job job;
    tk_job_events curve;
    tk_lessons lessons;
    set_scene(&s);
    commit_one(&s, "ok");
    const uint64_t id = submit(&s, "curve");
    wait_end(&s, id, &job);
    assert_int_equal(job.state, TK_JOB_COMMITTED);
    assert_int_equal(job.attempts, 2);
    tk_job_fini(&job);
    assert_ok(tk_store_curve_list(s.f.store, id, &curve, &diag));
    /* finish() measures step 3 once more, which sends training back to it */
    static const struct {
        const char *stage;
        uint64_t step;
    } want[] = {{"warm-up", 0}, {"train", 1}, {"train", 2}, {"train", 3}};
    assert_int_equal(curve.n, 4);
    for (size_t i = 0; i < 4; i++) {
        assert_string_equal(curve.items[i].stage, want[i].stage);
        assert_int_equal(curve.items[i].step, want[i].step);
    }
    assert_int_equal(curve.items[2].n_heads, 2);
    assert_true(curve.items[2].heads[0].floor == 0.25);
    assert_true(isnan(curve.items[2].heads[1].floor));
    assert_true(curve.items[2].loss_kd == 0.4);
    tk_job_events_fini(&curve);
    assert_ok(tk_store_lessons(s.f.store, &lessons, &diag));
    assert_int_equal(lessons.n, 2);
    assert_int_equal(lessons.items[1].version, 2);
    assert_string_equal(lessons.items[1].head, "alice/curve");
    double low = 1;
    for (size_t i = 0; i < lessons.n_lows; i++)
        if (lessons.lows[i].version == 2 && strcmp(lessons.lows[i].head, "alice/ok") == 0)
            low = lessons.lows[i].accuracy;
    assert_true(low == 0.1);
    tk_lessons_fini(&lessons);
    end_scene(&s);
}

static void a_trainer_that_dies_once_resumes(void **state)
{
    (void)state;
    scene s;
    tk_job job;
    set_scene(&s);
    wait_end(&s, submit(&s, "once"), &job);
    assert_int_equal(job.state, TK_JOB_COMMITTED);
    assert_int_equal(job.attempts, 2);
    assert_int_equal(job.failures, 1);
    tk_job_fini(&job);
    end_scene(&s);
}

static void a_trainer_that_always_dies_fails_with_its_last_words(void **state)
{
    (void)state;
    scene s;
    tk_job job;
    set_scene(&s);
    wait_end(&s, submit(&s, "dies"), &job);
    assert_int_equal(job.state, TK_JOB_FAILED);
    assert_int_equal(job.attempts, 3);
    assert_non_null(strstr(job.reason, "SIGKILL"));
    assert_non_null(strstr(job.reason, "out of cheese"));
    tk_job_fini(&job);
    commit_one(&s, "ok"); /* the next one is not held up */
    assert_no_job_dirs(&s);
    end_scene(&s);
}

static void garbage_is_retried_and_then_fails(void **state)
{
    (void)state;
    scene s;
    tk_job job;
    set_scene(&s);
    wait_end(&s, submit(&s, "garbage"), &job);
    assert_int_equal(job.state, TK_JOB_FAILED);
    assert_non_null(strstr(job.reason, "result.json"));
    tk_job_fini(&job);
    wait_end(&s, submit(&s, "silent"), &job);
    assert_int_equal(job.state, TK_JOB_FAILED);
    assert_non_null(strstr(job.reason, "no valid result"));
    tk_job_fini(&job);
    end_scene(&s);
}

static void a_failure_that_repeats_itself_is_not_retried(void **state)
{
    (void)state;
    scene s;
    tk_job job;
    set_scene(&s);
    wait_end(&s, submit(&s, "baddata"), &job);
    assert_int_equal(job.state, TK_JOB_FAILED);
    assert_string_equal(job.reason, "image 3 is no image");
    assert_int_equal(job.attempts, 1);
    tk_job_fini(&job);
    end_scene(&s);
}

static void a_candidate_that_lost_a_head_is_refused(void **state)
{
    (void)state;
    tk_diag diag;
    scene s;
    tk_job job;
    tk_version v;
    set_scene(&s);
    commit_one(&s, "ok");
    wait_end(&s, submit(&s, "thief"), &job);
    assert_int_equal(job.state, TK_JOB_FAILED);
    assert_non_null(strstr(job.reason, "head alice/ok is missing"));
    tk_job_fini(&job);
    assert_ok(tk_store_version_get(s.f.store, TK_ALL, 0, 0, &v, &diag));
    assert_int_equal(v.number, 1);
    tk_version_fini(&v);
    end_scene(&s);
}

static void a_version_that_cannot_be_served_is_not_committed(void **state)
{
    (void)state;
    tk_diag diag;
    scene s;
    tk_job job;
    tk_version v;
    set_scene(&s);
    atomic_store(&s.served.refuse, true);
    wait_end(&s, submit(&s, "ok"), &job);
    assert_int_equal(job.state, TK_JOB_FAILED);
    assert_non_null(strstr(job.reason, "no room to serve it"));
    assert_int_equal(job.attempts, 1); /* the commit was tried again, not the training */
    assert_int_equal(job.failures, 3);
    tk_job_fini(&job);
    assert_int_equal(tk_store_version_get(s.f.store, TK_ALL, 0, 0, &v, &diag), TK_PRECONDITION);
    assert_int_equal(fixture_objects(s.f.store), 1);
    end_scene(&s);
}

static void a_commit_on_a_full_disk_waits_for_room(void **state)
{
    (void)state;
    tk_diag diag;
    scene s = {.jobs = NULL};
    tk_job job;
    tk_versions versions;
    const tk_trunk trunk = {.arch = "resnet20", .preproc = tk_preproc_default(32)};
    fixture_dir(s.f.dir, sizeof s.f.dir);
    if (mount("tmpfs", s.f.dir, "tmpfs", 0, "size=12m") != 0) {
        print_message("no right to mount a small disk: skipped\n");
        (void)rmdir(s.f.dir);
        skip();
    }
    assert_ok(tk_store_open(&s.f.store, s.f.dir, NULL, &diag));
    assert_ok(tk_store_tenant_create(s.f.store, "alice", &s.f.alice, &s.f.alice_token, &diag));
    assert_ok(tk_store_trunk_set(s.f.store, &trunk, &diag));
    s.data = fixture_data_set(s.f.store, s.f.alice, 1000, 1);
    s.served.fill = s.f.store;
    start(&s);
    wait_end(&s, submit(&s, "ok"), &job);
    assert_int_equal(job.state, TK_JOB_COMMITTED);
    assert_int_equal(job.attempts, 1); /* trained once, committed at the second try */
    tk_job_fini(&job);
    assert_int_equal(s.served.discarded, 1);
    assert_int_equal(s.served.published, 1);
    assert_ok(tk_store_version_list(s.f.store, TK_ALL, 0, 0, &versions, &diag));
    assert_int_equal(versions.n, 1);
    tk_versions_fini(&versions);
    tk_jobs_stop(s.jobs);
    tk_store_close(s.f.store);
    assert_int_equal(umount(s.f.dir), 0);
    assert_int_equal(rmdir(s.f.dir), 0);
}

static void cancel_stops_running_and_queued_jobs(void **state)
{
    (void)state;
    tk_diag diag;
    scene s;
    tk_job job;
    set_scene(&s);
    const uint64_t running = submit(&s, "hang"), stubborn = submit(&s, "stubborn"),
                   queued = submit(&s, "ok");
    wait_message(&s, running, "hanging");
    assert_int_equal(tk_jobs_cancel(s.jobs, s.f.bob, running, &job, &diag), TK_NOTFOUND);
    assert_ok(tk_jobs_cancel(s.jobs, s.f.alice, queued, &job, &diag));
    assert_int_equal(job.state, TK_JOB_CANCELLED);
    tk_job_fini(&job);
    assert_ok(tk_jobs_cancel(s.jobs, s.f.alice, running, &job, &diag));
    tk_job_fini(&job);
    wait_end(&s, running, &job);
    assert_int_equal(job.state, TK_JOB_CANCELLED);
    tk_job_fini(&job);
    assert_err(tk_jobs_cancel(s.jobs, s.f.alice, running, &job, &diag), TK_PRECONDITION, "ended");
    wait_message(&s, stubborn, "hanging");
    assert_ok(tk_jobs_cancel(s.jobs, s.f.alice, stubborn, &job, &diag));
    tk_job_fini(&job);
    wait_end(&s, stubborn, &job);
    assert_int_equal(job.state, TK_JOB_CANCELLED);
    tk_job_fini(&job);
    assert_ok(tk_store_data_set_delete(s.f.store, s.f.alice, s.data, &diag));
    assert_no_job_dirs(&s);
    end_scene(&s);
}

static void a_stopped_server_takes_its_job_up_again(void **state)
{
    (void)state;
    tk_diag diag;
    scene s;
    tk_job job;
    set_scene(&s);
    const uint64_t id = submit(&s, "hang"), next = submit(&s, "ok");
    wait_message(&s, id, "hanging");
    tk_jobs_stop(s.jobs);
    fixture_reopen(&s.f, NULL);
    assert_ok(tk_store_job_get(s.f.store, s.f.alice, id, &job, &diag));
    assert_int_equal(job.state, TK_JOB_RUNNING);
    tk_job_fini(&job);
    start(&s);
    wait_end(&s, id, &job);
    assert_int_equal(job.state, TK_JOB_COMMITTED);
    assert_int_equal(job.attempts, 2);
    assert_int_equal(job.failures, 0);
    tk_job_fini(&job);
    wait_end(&s, next, &job);
    assert_int_equal(job.state, TK_JOB_COMMITTED);
    assert_string_equal(job.recipe, "kd+ewc"); /* decided when it ran: there was a trunk by then */
    assert_int_equal(job.version, 2);
    tk_job_fini(&job);
    end_scene(&s);
}

/* This program as a server on `dir`: starts a job that hangs, says its id, and waits to be killed.
 */
static void serve(const char *dir, const char *head)
{
    tk_diag diag;
    scene s = {.jobs = NULL};
    tk_tenant alice;
    tk_data_sets sets;
    assert_ok(tk_store_open(&s.f.store, dir, NULL, &diag));
    assert_ok(tk_store_tenant_find(s.f.store, "alice", &alice, &diag));
    assert_ok(tk_store_data_set_list(s.f.store, alice.id, &sets, &diag));
    start(&s);
    const uint64_t id = submit_as(&s, alice.id, sets.items[0].id, head, TK_RETAIN_VALIDATION);
    if (strcmp(head, "hang") == 0) wait_message(&s, id, "hanging");
    (void)dprintf(1, "%llu\n", (unsigned long long)id);
    for (;;)
        (void)pause();
}

static pid_t spawn_server(const char *dir, const char *head, int out)
{
    pid_t pid;
    posix_spawn_file_actions_t actions;
    char *const argv[] = {(char[]){"test_jobs"}, (char[]){"serve"}, (char *)(uintptr_t)dir,
                          (char *)(uintptr_t)head, NULL};
    assert_int_equal(posix_spawn_file_actions_init(&actions), 0);
    assert_int_equal(posix_spawn_file_actions_adddup2(&actions, out, 1), 0);
    assert_int_equal(posix_spawn(&pid, "/proc/self/exe", &actions, NULL, argv, environ), 0);
    (void)posix_spawn_file_actions_destroy(&actions);
    return pid;
}

/* Starts a server that submits a job for `head`, and kills it `us` after it said so. */
static uint64_t serve_and_kill(scene *s, const char *head, long us)
{
    int fds[2];
    char text[32] = "";
    tk_store_close(s->f.store);
    s->f.store = NULL;
    assert_int_equal(pipe(fds), 0);
    const pid_t server = spawn_server(s->f.dir, head, fds[1]);
    (void)close(fds[1]);
    assert_true(read(fds[0], text, sizeof text - 1) > 0);
    (void)close(fds[0]);
    const struct timespec pause = {.tv_nsec = us * 1000};
    (void)nanosleep(&pause, NULL);
    assert_int_equal(kill(server, SIGKILL), 0);
    assert_int_equal(waitpid(server, NULL, 0), server);
    fixture_reopen(&s->f, NULL);
    return strtoull(text, NULL, 10);
}

/* A server killed with SIGKILL leaves a trainer behind, which must be gone before the next one
 * starts. */
static void an_orphan_is_stopped_before_the_job_resumes(void **state)
{
    (void)state;
    scene s;
    tk_job job;
    set_scene(&s);
    tk_jobs_stop(s.jobs);
    const uint64_t id = serve_and_kill(&s, "hang", 0);
    start(&s);
    wait_end(&s, id, &job);
    assert_int_equal(job.state, TK_JOB_COMMITTED);
    assert_int_equal(job.attempts, 2);
    tk_job_fini(&job);
    end_scene(&s);
}

/* From submission over training and commit to after it: every job ends in exactly one version. */
static void a_server_killed_at_any_moment_commits_each_job_once(void **state)
{
    (void)state;
    enum { ROUNDS = 12 };
    tk_diag diag;
    scene s;
    tk_job job;
    tk_versions versions;
    set_scene(&s);
    for (uint64_t round = 1; round <= ROUNDS; round++) {
        tk_jobs_stop(s.jobs);
        const uint64_t id = serve_and_kill(&s, "ok", (long)(round * 4000));
        start(&s);
        wait_end(&s, id, &job);
        assert_int_equal(job.state, TK_JOB_COMMITTED);
        assert_int_equal(job.version, round);
        assert_int_equal(job.failures, 0);
        tk_job_fini(&job);
    }
    assert_ok(tk_store_version_list(s.f.store, TK_ALL, 0, 0, &versions, &diag));
    assert_int_equal(versions.n, ROUNDS);
    for (size_t i = 0; i < ROUNDS; i++) {
        char *path = tk_store_object_path(s.f.store, versions.items[i].sha);
        assert_int_equal(access(path, R_OK), 0);
        tk_free(path);
    }
    tk_versions_fini(&versions);
    assert_no_job_dirs(&s);
    end_scene(&s);
}

/* Killed between the trainer's end and the commit: the result in the directory is enough. */
static void a_result_that_was_not_committed_is_committed_at_start(void **state)
{
    (void)state;
    scene s;
    tk_job job;
    set_scene(&s);
    atomic_store(&s.served.refuse, true);
    tk_jobs_stop(s.jobs);
    const tk_jobs_opts slow = {.trainer = FAKE_TRAINER,
                               .threads = 1,
                               .retry_ms = 60000,
                               .hooks = {&s.served, prepare, publish, discard}};
    tk_diag diag;
    assert_ok(tk_jobs_start(&s.jobs, s.f.store, &slow, &diag));
    const uint64_t id = submit(&s, "ok");
    wait_message(&s, id, "trying again"); /* in the long wait before the second commit */
    tk_jobs_stop(s.jobs);
    atomic_store(&s.served.refuse, false);
    fixture_reopen(&s.f, NULL);
    start(&s);
    wait_end(&s, id, &job);
    assert_int_equal(job.state, TK_JOB_COMMITTED);
    assert_int_equal(job.attempts, 1);
    tk_job_fini(&job);
    end_scene(&s);
}

static void a_changed_base_starts_the_job_over(void **state)
{
    (void)state;
    tk_diag diag;
    scene s;
    tk_job job;
    tk_version v;
    set_scene(&s);
    commit_one(&s, "ok");
    commit_one(&s, "ok-two");
    const uint64_t id = submit(&s, "hang");
    wait_message(&s, id, "hanging");
    assert_ok(tk_jobs_rollback(s.jobs, 1, &v, &diag));
    assert_int_equal(v.number, 3);
    tk_version_fini(&v);
    /* Nothing of the old attempt is left, so the fake hangs again, now on version 3. */
    wait_message(&s, id, "starting over");
    for (const int64_t late = seconds() + 60;;) {
        assert_ok(tk_jobs_get(s.jobs, TK_ALL, id, &job, &diag));
        const bool again = job.state == TK_JOB_RUNNING && job.base_version == 3;
        tk_job_fini(&job);
        if (again) break;
        assert_true(seconds() < late);
        nap();
    }
    assert_ok(tk_jobs_cancel(s.jobs, s.f.alice, id, &job, &diag));
    tk_job_fini(&job);
    wait_end(&s, id, &job);
    assert_int_equal(job.base_version, 3);
    tk_job_fini(&job);
    commit_one(&s, "ok-three");
    assert_ok(tk_store_version_get(s.f.store, TK_ALL, 0, 0, &v, &diag));
    assert_int_equal(v.number, 4);
    assert_int_equal(v.n_heads, 2); /* ok-two went with the rollback */
    tk_version_fini(&v);
    end_scene(&s);
}

static void rollback_and_deletion_make_versions(void **state)
{
    (void)state;
    tk_diag diag;
    scene s;
    tk_version v, first;
    tk_head_history history;
    set_scene(&s);
    commit_one(&s, "ok");
    commit_one(&s, "ok-two");
    assert_int_equal(tk_jobs_delete_head(s.jobs, s.f.bob, "ok", &diag), TK_NOTFOUND);
    assert_ok(tk_jobs_delete_head(s.jobs, s.f.alice, "ok", &diag));
    assert_int_equal(s.served.number, 3);
    assert_ok(tk_store_version_get(s.f.store, TK_ALL, 0, 0, &v, &diag));
    assert_int_equal(v.number, 3);
    assert_int_equal(v.n_heads, 1);
    assert_string_equal(v.heads[0].id, "alice/ok-two");
    /* Its weights are gone from every file. */
    assert_ok(tk_store_version_get(s.f.store, TK_ALL, 1, 0, &first, &diag));
    assert_int_equal(first.n_heads, 0);
    const char *const shas[] = {v.sha, first.sha};
    for (size_t i = 0; i < 2; i++) {
        tk_model *model;
        char *path = tk_store_object_path(s.f.store, shas[i]);
        assert_ok(tk_model_load(&model, path, true, &diag));
        assert_null(tk_model_head(model, "alice/ok"));
        tk_model_destroy(model);
        tk_free(path);
    }
    tk_version_fini(&first);
    tk_version_fini(&v);
    assert_int_equal(tk_store_head_get(s.f.store, s.f.alice, "ok", true, 0, &history, &diag),
                     TK_NOTFOUND);
    assert_int_equal(fixture_objects(s.f.store),
                     4); /* data set, files of 1 and of 2 = 3, one pack */
    /* Back to a version that had it: it does not come back. */
    assert_ok(tk_jobs_rollback(s.jobs, 2, &v, &diag));
    assert_int_equal(v.number, 4);
    assert_int_equal(v.n_heads, 1);
    tk_version_fini(&v);
    assert_err(tk_jobs_rollback(s.jobs, 4, &v, &diag), TK_PRECONDITION, "current one already");
    assert_int_equal(tk_jobs_rollback(s.jobs, 9, &v, &diag), TK_NOTFOUND);
    end_scene(&s);
}

static void a_head_in_training_cannot_be_deleted(void **state)
{
    (void)state;
    tk_diag diag;
    scene s;
    tk_job job;
    set_scene(&s);
    uint64_t id = submit(&s, "hang");
    wait_message(&s, id, "hanging");
    tk_jobs_stop(s.jobs);
    start(&s);
    wait_end(&s, id, &job);
    assert_int_equal(job.state, TK_JOB_COMMITTED);
    tk_job_fini(&job);
    id = submit(&s, "hang"); /* the same head again */
    wait_message(&s, id, "hanging");
    assert_err(tk_jobs_delete_head(s.jobs, s.f.alice, "hang", &diag), TK_PRECONDITION,
               "trains this head");
    assert_ok(tk_jobs_cancel(s.jobs, s.f.alice, id, &job, &diag));
    tk_job_fini(&job);
    wait_end(&s, id, &job);
    tk_job_fini(&job);
    assert_ok(tk_jobs_delete_head(s.jobs, s.f.alice, "hang", &diag));
    assert_int_equal(s.served.discarded, 0); /* refused before any work was done for it */
    end_scene(&s);
}

static void retention_nothing_keeps_no_images(void **state)
{
    (void)state;
    tk_diag diag;
    scene s;
    tk_job job;
    tk_head_history history;
    set_scene(&s);
    commit_one(&s, "ok");
    assert_int_equal(fixture_objects(s.f.store), 3);
    wait_end(&s, submit_as(&s, s.f.alice, s.data, "ok", TK_RETAIN_NOTHING), &job);
    assert_int_equal(job.state, TK_JOB_COMMITTED);
    tk_job_fini(&job);
    assert_ok(tk_store_head_get(s.f.store, s.f.alice, "ok", true, 0, &history, &diag));
    assert_int_equal(history.n, 2);
    for (size_t i = 0; i < 2; i++)
        assert_string_equal(history.items[i].head.pack, "");
    tk_head_history_fini(&history);
    assert_int_equal(fixture_objects(s.f.store),
                     2); /* the old pack is gone, too: data set, a file for both versions */
    end_scene(&s);
}

static void an_imported_trunk_replaces_only_a_trunk_without_heads(void **state)
{
    (void)state;
    tk_diag diag;
    scene s;
    tk_version v;
    tk_trunk trunk;
    set_scene(&s);
    tk_model *model = fixture_net(NULL, 0, 3);
    assert_ok(tk_jobs_import(s.jobs, model, "imported", &v, &diag));
    assert_int_equal(v.number, 1);
    assert_int_equal(v.job, 0);
    tk_version_fini(&v);
    assert_ok(tk_store_trunk_get(s.f.store, &trunk, &diag));
    assert_string_equal(trunk.arch, "resnet20");
    commit_one(&s, "ok");
    assert_err(tk_jobs_import(s.jobs, model, "imported", &v, &diag), TK_PRECONDITION, "1 heads");
    tk_model_destroy(model);
    assert_int_equal(fixture_entries(s.f.dir, "tmp"), 0);
    end_scene(&s);
}

static void submissions_are_checked(void **state)
{
    (void)state;
    tk_diag diag;
    scene s;
    tk_job job;
    set_scene(&s);
    tk_job_request r = {.tenant = s.f.alice, .head = "Type", .data_set = s.data};
    assert_err(tk_jobs_submit(s.jobs, &r, &job, &diag), TK_BADARG, "head name");
    r.head = "ok";
    r.tolerance = -1;
    assert_err(tk_jobs_submit(s.jobs, &r, &job, &diag), TK_BADARG, "tolerance");
    r.tolerance = (double)NAN;
    assert_err(tk_jobs_submit(s.jobs, &r, &job, &diag), TK_BADARG, "tolerance");
    r.tolerance = 0;
    r.recipe = "alchemy";
    assert_int_equal(tk_jobs_submit(s.jobs, &r, &job, &diag), TK_BADARG);
    r.recipe = NULL;
    const tk_setting bad[] = {{.name = "no-such", .value = 1},
                              {.name = "rate", .value = -5},
                              {.name = "rate", .value = (double)NAN}};
    for (size_t i = 0; i < 3; i++) {
        r.set = &bad[i];
        r.n_set = 1;
        assert_int_equal(tk_jobs_submit(s.jobs, &r, &job, &diag), TK_BADARG);
    }
    r.n_set = 0;
    r.tenant = s.f.bob;
    assert_err(tk_jobs_submit(s.jobs, &r, &job, &diag), TK_NOTFOUND, "data set");
    commit_one(&s, "ok");
    r.tenant = s.f.alice;
    r.recipe = "scratch";
    assert_err(tk_jobs_submit(s.jobs, &r, &job, &diag), TK_PRECONDITION, "fresh trunk");
    end_scene(&s);
}

/* A watcher as the RPC layer has one: woken on another thread, fetching at its own speed. */
typedef struct watcher {
    scene *s;
    pthread_mutex_t lock;
    pthread_cond_t woken;
    unsigned wakes; /* lock */
} watcher;

static void wake(void *ctx)
{
    watcher *w = ctx;
    (void)pthread_mutex_lock(&w->lock);
    w->wakes++;
    (void)pthread_cond_signal(&w->woken);
    (void)pthread_mutex_unlock(&w->lock);
}

static void a_watcher_sees_the_story_in_order(void **state)
{
    (void)state;
    tk_diag diag;
    scene s;
    tk_job_watch *watch;
    watcher w = {.s = &s, .lock = PTHREAD_MUTEX_INITIALIZER, .woken = PTHREAD_COND_INITIALIZER};
    uint64_t after = 0;
    bool ended = false, progress = false, validation = false, message = false;
    tk_job_state last = TK_JOB_QUEUED;
    set_scene(&s);
    const uint64_t id = submit(&s, "once");
    assert_int_equal(tk_jobs_subscribe(s.jobs, s.f.bob, id, wake, &w, &watch, &diag), TK_NOTFOUND);
    assert_ok(tk_jobs_subscribe(s.jobs, s.f.alice, id, wake, &w, &watch, &diag));
    unsigned seen = 0;
    while (!ended) {
        tk_job_event event;
        assert_ok(tk_jobs_next(s.jobs, id, after, &event, &ended, &diag));
        if (event.sequence) {
            assert_true(event.sequence > after);
            after = event.sequence;
            last = event.state;
            progress = progress || (strcmp(event.stage, "train") == 0 && event.steps == 50 &&
                                    event.loss_kd == 0.4);
            validation = validation || (event.n_heads == 1 && event.heads[0].change == -0.01 &&
                                        event.heads[0].tolerance == 1.0);
            message = message || strstr(event.message, "attempt 1 failed") != NULL;
            tk_job_event_fini(&event);
            continue;
        }
        struct timespec late;
        (void)clock_gettime(CLOCK_REALTIME, &late);
        late.tv_sec += 60;
        (void)pthread_mutex_lock(&w.lock);
        while (!ended && w.wakes == seen)
            assert_int_equal(pthread_cond_timedwait(&w.woken, &w.lock, &late), 0);
        seen = w.wakes;
        (void)pthread_mutex_unlock(&w.lock);
    }
    tk_jobs_unsubscribe(s.jobs, watch);
    assert_int_equal(last, TK_JOB_COMMITTED);
    assert_true(progress && validation && message);
    /* Later, and after a restart, the kept part of the story is still there. */
    tk_jobs_stop(s.jobs);
    fixture_reopen(&s.f, NULL);
    start(&s);
    tk_job_event event;
    assert_ok(tk_jobs_next(s.jobs, id, 0, &event, &ended, &diag));
    assert_string_equal(event.message, "attempt 1");
    tk_job_event_fini(&event);
    assert_ok(tk_jobs_next(s.jobs, id, after, &event, &ended, &diag));
    assert_int_equal(event.sequence, 0);
    assert_true(ended);
    end_scene(&s);
}

static void a_missing_trainer_fails_the_job_not_the_server(void **state)
{
    (void)state;
    tk_diag diag;
    scene s;
    tk_job job;
    set_scene(&s);
    tk_jobs_stop(s.jobs);
    const tk_jobs_opts opts = {.trainer = "/nonexistent/trainer", .threads = 1, .retry_ms = 1};
    assert_ok(tk_jobs_start(&s.jobs, s.f.store, &opts, &diag));
    wait_end(&s, submit(&s, "ok"), &job);
    assert_int_equal(job.state, TK_JOB_FAILED);
    assert_non_null(strstr(job.reason, "cannot start the trainer"));
    tk_job_fini(&job);
    end_scene(&s);
}

int main(int argc, char **argv)
{
    if (argc == 4 && strcmp(argv[1], "serve") == 0) serve(argv[2], argv[3]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_job_ends_in_a_version_that_is_served),
        cmocka_unit_test(probe_and_reject_are_told_apart),
        cmocka_unit_test(every_judged_job_leaves_a_decision),
        cmocka_unit_test(a_resumed_job_has_each_point_of_its_curve_once),
        cmocka_unit_test(a_trainer_that_dies_once_resumes),
        cmocka_unit_test(a_trainer_that_always_dies_fails_with_its_last_words),
        cmocka_unit_test(garbage_is_retried_and_then_fails),
        cmocka_unit_test(a_failure_that_repeats_itself_is_not_retried),
        cmocka_unit_test(a_candidate_that_lost_a_head_is_refused),
        cmocka_unit_test(a_version_that_cannot_be_served_is_not_committed),
        cmocka_unit_test(a_commit_on_a_full_disk_waits_for_room),
        cmocka_unit_test(cancel_stops_running_and_queued_jobs),
        cmocka_unit_test(a_stopped_server_takes_its_job_up_again),
        cmocka_unit_test(an_orphan_is_stopped_before_the_job_resumes),
        cmocka_unit_test(a_server_killed_at_any_moment_commits_each_job_once),
        cmocka_unit_test(a_result_that_was_not_committed_is_committed_at_start),
        cmocka_unit_test(a_changed_base_starts_the_job_over),
        cmocka_unit_test(rollback_and_deletion_make_versions),
        cmocka_unit_test(a_head_in_training_cannot_be_deleted),
        cmocka_unit_test(retention_nothing_keeps_no_images),
        cmocka_unit_test(an_imported_trunk_replaces_only_a_trunk_without_heads),
        cmocka_unit_test(submissions_are_checked),
        cmocka_unit_test(a_watcher_sees_the_story_in_order),
        cmocka_unit_test(a_missing_trainer_fails_the_job_not_the_server),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
