/* The program trunkd-trainer as the server meets it: exit status, lines on its standard output,
 * files, and what it does when it is stopped or killed. argv[1] is the program. */
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/mem.h"
#include "fixture.h"
#include "heads/job.h"
#include "heads/pack.h"

static char *program;
extern char **environ;

enum { EPOCHS = 6, DIR_SIZE = 256 };

/* A job directory with job.json for a fresh trunk on the fixture's images. */
static const char *make_job(const char *name, const char *data, const char *extra)
{
    char text[1024], path[256];
    const char *dir = fixture_folder(name);
    const int n = snprintf(text, sizeof text,
                           "{\"job\":\"5\",\"base\":null,\"arch\":\"resnet20\",\"data\":\"%s\","
                           "\"head\":\"a/colour\",\"threads\":2,"
                           "\"set\":{\"epochs\":%d,\"batch\":16,\"fisher_samples\":8}%s}",
                           data, EPOCHS, extra);
    snprintf(path, sizeof path, "%s/job.json", name);
    fixture_write(fixture_path(path), text, (size_t)n);
    return dir;
}

/* A job directory with job.json for a second head on the trunk of `done`. It visits every stage:
 * its rate is so high that the first head is lost, so that there is something to search for on the
 * line. */
static const char *make_second_job(const char *name, const char *data)
{
    char text[1024], path[256];
    const char *dir = fixture_folder(name);
    const int n = snprintf(
        text, sizeof text,
        "{\"job\":\"6\",\"base\":\"%s\",\"data\":\"%s\",\"head\":\"b/stripes\","
        "\"validations\":[{\"head\":\"a/colour\",\"pack\":\"%s\"}],\"threads\":2,"
        "\"recipe\":\"finetune\",\"set\":{\"epochs\":3,\"batch\":8,\"views\":2,\"warm_up\":8,"
        "\"rate\":3,\"clip\":1,\"line_search\":3,\"fisher_samples\":8,\"policy\":0}}",
        fixture_path("done/candidate.safetensors"), data, fixture_path("done/validation.pack"));
    snprintf(path, sizeof path, "%s/job.json", name);
    fixture_write(fixture_path(path), text, (size_t)n);
    return dir;
}

/* Starts the program with standard output to DIR/out. */
static pid_t start(const char *dir, char *const *arguments)
{
    char out[512];
    posix_spawn_file_actions_t actions;
    pid_t pid;
    snprintf(out, sizeof out, "%s/out", dir);
    assert_int_equal(posix_spawn_file_actions_init(&actions), 0);
    assert_int_equal(
        posix_spawn_file_actions_addopen(&actions, 1, out, O_WRONLY | O_CREAT | O_TRUNC, 0600), 0);
    assert_int_equal(posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0), 0);
    assert_int_equal(posix_spawn(&pid, program, &actions, NULL, arguments, environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    return pid;
}

static pid_t start_job(const char *dir)
{
    char job[512];
    snprintf(job, sizeof job, "%s/job.json", dir);
    char normal[] = "--normal-priority", *const arguments[] = {program, normal, job, NULL};
    return start(dir, arguments);
}

/* Exit status, or -signal. */
static int status_of(pid_t pid)
{
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static char *text_of(const char *dir, const char *file)
{
    char path[512];
    size_t size;
    snprintf(path, sizeof path, "%s/%s", dir, file);
    return (char *)fixture_read(path, &size);
}

static bool says(const char *dir, const char *what)
{
    char *out = text_of(dir, "out");
    const bool found = strstr(out, what) != NULL;
    tk_free(out);
    return found;
}

static bool exists(const char *dir, const char *file)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, file);
    return access(path, F_OK) == 0;
}

static const char *data_pack(void)
{
    static char path[512];
    if (!path[0]) {
        snprintf(path, sizeof path, "%s", fixture_path("trainer.pack"));
        fixture_pack(path, FIXTURE_COLOUR, 160, 1);
    }
    return path;
}

static void a_job_is_done_and_a_second_run_repeats_the_last_line(void **state)
{
    (void)state;
    char dir[DIR_SIZE];
    snprintf(dir, sizeof dir, "%s", make_job("done", data_pack(), ""));
    assert_int_equal(status_of(start_job(dir)), 0);
    assert_true(says(dir, "{\"event\":\"progress\",\"stage\":\"train\""));
    assert_true(says(dir, "{\"event\":\"validation\",\"stage\":\"train\""));
    assert_true(says(dir, "{\"event\":\"done\",\"outcome\":\"commit\""));
    assert_true(exists(dir, "result.json") && exists(dir, "candidate.safetensors") &&
                exists(dir, "validation.pack"));
    assert_false(exists(dir, "canvases.train") || exists(dir, "checkpoint.train"));
    char *result = text_of(dir, "result.json");
    assert_non_null(strstr(result, "\"confusion\":[["));
    assert_non_null(strstr(result, "\"name\":\"scratch\""));
    assert_non_null(strstr(result, "\"precisions\":{\"bf16\":{\"admitted\":"));
    assert_true(says(dir, "{\"event\":\"progress\",\"stage\":\"precisions\""));
    assert_true(says(dir, "\"message\":\"int8 against fp32: "));
    tk_free(result);
    assert_int_equal(status_of(start_job(dir)), 0);
    assert_true(says(dir, "{\"event\":\"done\",\"outcome\":\"commit\""));
    assert_false(says(dir, "\"progress\""));
}

static void a_bad_job_fails_with_an_event(void **state)
{
    (void)state;
    char dir[DIR_SIZE];
    snprintf(dir, sizeof dir, "%s", make_job("bad", data_pack(), ",\"tolerance\":-1"));
    assert_int_equal(status_of(start_job(dir)), 1);
    assert_true(says(dir, "{\"event\":\"failed\",\"error\":\"TK_BADDATA\""));
    assert_true(says(dir, "tolerance"));
    assert_false(exists(dir, "result.json"));
    snprintf(dir, sizeof dir, "%s", make_job("no-data", "/nowhere.pack", ""));
    assert_int_equal(status_of(start_job(dir)), 1);
    assert_true(says(dir, "\"TK_NOTFOUND\""));
    snprintf(dir, sizeof dir, "%s", make_job("starved", data_pack(), ",\"memory_limit\":40000000"));
    assert_int_not_equal(status_of(start_job(dir)), 0);
    assert_false(exists(dir, "result.json"));
}

static void bad_usage_is_status_2_and_help_names_every_knob(void **state)
{
    (void)state;
    const char *dir = fixture_folder("usage");
    char help[] = "--help", wrong[] = "--wrong", *const none[] = {program, NULL};
    char *const ask[] = {program, help, NULL}, *const unknown[] = {program, wrong, NULL};
    assert_int_equal(status_of(start(dir, none)), 2);
    assert_int_equal(status_of(start(dir, unknown)), 2);
    assert_int_equal(status_of(start(dir, ask)), 0);
    assert_true(says(dir, "kd+ewc") && says(dir, "kappa") && says(dir, "temperature"));
}

/* Waits until the first validation of joint training stands in the output, or the process has
 * ended. */
static void wait_until_training(const char *dir)
{
    for (int i = 0; i < 12000; i++) {
        if (exists(dir, "out") && says(dir, "{\"event\":\"validation\",\"stage\":\"train\""))
            return;
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
    fail_msg("training did not begin within two minutes");
}

/* Stopped by `signal_number` in the midst, run again: the same candidate as that of an undisturbed
 * run. */
static void stop_and_resume(const char *name, int signal_number, int expected)
{
    char dir[DIR_SIZE], done[512];
    size_t size_a, size_b;
    snprintf(dir, sizeof dir, "%s", make_job(name, data_pack(), ""));
    const pid_t pid = start_job(dir);
    wait_until_training(dir);
    assert_int_equal(kill(pid, signal_number), 0);
    assert_int_equal(status_of(pid), expected);
    assert_false(exists(dir, "result.json"));
    assert_int_equal(status_of(start_job(dir)), 0);
    snprintf(done, sizeof done, "%s/candidate.safetensors", dir);
    uint8_t *a = fixture_read(fixture_path("done/candidate.safetensors"), &size_a);
    uint8_t *b = fixture_read(done, &size_b);
    assert_int_equal(size_a, size_b);
    assert_memory_equal(a, b, size_a);
    tk_free(a);
    tk_free(b);
}

static void sigterm_leaves_a_checkpoint_and_status_3(void **state)
{
    (void)state;
    stop_and_resume("terminated", SIGTERM, 3);
}

static void sigkill_is_survived(void **state)
{
    (void)state;
    stop_and_resume("killed", SIGKILL, -SIGKILL);
}

/* ---- kill -9 in every stage ---- */

/* Starts the job, reads what it prints and kills it when it says that it has come to `stage`. The
 * exit status, or -SIGKILL. */
static int run_until(const char *dir, const char *stage)
{
    char job[512], line[8192], wanted[64];
    char normal[] = "--normal-priority", *const arguments[] = {program, normal, job, NULL};
    int ends[2];
    pid_t pid;
    posix_spawn_file_actions_t actions;
    snprintf(job, sizeof job, "%s/job.json", dir);
    snprintf(wanted, sizeof wanted, "\"progress\",\"stage\":\"%s\"", stage);
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(fcntl(ends[0], F_SETFD, FD_CLOEXEC), 0);
    assert_int_equal(fcntl(ends[1], F_SETFD, FD_CLOEXEC), 0);
    assert_int_equal(posix_spawn_file_actions_init(&actions), 0);
    assert_int_equal(posix_spawn_file_actions_adddup2(&actions, ends[1], 1), 0);
    assert_int_equal(posix_spawn(&pid, program, &actions, NULL, arguments, environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    FILE *f = fdopen(ends[0], "r");
    assert_non_null(f);
    bool reached = false;
    while (!reached && fgets(line, sizeof line, f))
        reached = strstr(line, wanted) != NULL;
    if (reached) assert_int_equal(kill(pid, SIGKILL), 0);
    const int status = status_of(pid);
    fclose(f);
    if (!reached) fail_msg("stage %s was not reached", stage);
    return status;
}

static void assert_same_file(const char *a, const char *b, const char *file)
{
    char path[512];
    size_t size_a, size_b;
    snprintf(path, sizeof path, "%s/%s", a, file);
    uint8_t *bytes_a = fixture_read(path, &size_a);
    snprintf(path, sizeof path, "%s/%s", b, file);
    uint8_t *bytes_b = fixture_read(path, &size_b);
    assert_int_equal(size_a, size_b);
    assert_memory_equal(bytes_a, bytes_b, size_a);
    tk_free(bytes_a);
    tk_free(bytes_b);
}

/* All but the seconds, which come last. */
static char *result_of(const char *dir)
{
    char *result = text_of(dir, "result.json"), *seconds = strstr(result, "\"seconds\":");
    assert_non_null(seconds);
    *seconds = 0;
    return result;
}

static void kill_twice_in(const char *stage, const char *data, const char *peace)
{
    char name[64], dir[DIR_SIZE];
    for (int kills = 0, attempts = 0; kills < 2; attempts++) {
        assert_true(attempts < 10); /* it may be done before the signal is there */
        if (kills == 0) {
            snprintf(name, sizeof name, "killed-in-%s-%d", stage, attempts);
            snprintf(dir, sizeof dir, "%s", make_second_job(name, data));
        }
        kills = run_until(dir, stage) == -SIGKILL && !exists(dir, "result.json") ? kills + 1 : 0;
    }
    assert_int_equal(status_of(start_job(dir)), 0);
    char *a = result_of(peace), *b = result_of(dir);
    assert_string_equal(a, b);
    tk_free(a);
    tk_free(b);
    assert_same_file(peace, dir, "candidate.safetensors");
    assert_same_file(peace, dir, "validation.pack");
}

/* The candidate and the report are those of an undisturbed run. */
static void kill_9_in_any_stage_changes_nothing(void **state)
{
    (void)state;
    char data[512], peace[DIR_SIZE];
    snprintf(data, sizeof data, "%s", fixture_path("second.pack"));
    fixture_pack(data, FIXTURE_STRIPES, 40, 2);
    snprintf(peace, sizeof peace, "%s", make_second_job("second", data));
    assert_int_equal(status_of(start_job(peace)), 0);
    for (tk_stage stage = 0; stage < TK_STAGE_COUNT; stage++)
        kill_twice_in(tk_stage_name(stage), data, peace);
}

static void pack_and_eval_work_without_a_server(void **state)
{
    (void)state;
    char dir[DIR_SIZE], root[DIR_SIZE], image[1024], pack[512], version[512];
    tk_pack *from;
    snprintf(dir, sizeof dir, "%s", fixture_folder("tools"));
    snprintf(root, sizeof root, "%s", fixture_folder("tools/images"));
    assert_int_equal(tk_pack_open(&from, data_pack(), NULL), TK_OK);
    for (uint32_t l = 0; l < FIXTURE_CLASSES; l++) {
        char folder[64];
        snprintf(folder, sizeof folder, "tools/images/%s", tk_pack_label_name(from, l));
        fixture_folder(folder);
    }
    for (size_t i = 0; i < 12; i++) {
        const tk_pack_item item = tk_pack_get(from, i);
        snprintf(image, sizeof image, "%s/%s/%s", root, tk_pack_label_name(from, item.label),
                 item.name);
        fixture_write(image, item.data, item.size);
    }
    tk_pack_close(from);
    snprintf(pack, sizeof pack, "%s/out.pack", dir);
    snprintf(version, sizeof version, "%s", fixture_path("done/candidate.safetensors"));
    char make[] = "pack", judge[] = "eval", head[] = "a/colour", nobody[] = "b/x";
    assert_int_equal(status_of(start(dir, (char *const[]){program, make, root, pack, NULL})), 0);
    assert_true(says(dir, "{\"images\":12}"));
    assert_int_equal(
        status_of(start(dir, (char *const[]){program, judge, version, pack, head, NULL})), 0);
    assert_true(says(dir, "\"head\":\"a/colour\",\"n\":12,"));
    char how[] = "--precision", eight[] = "int8", half[] = "fp16";
    assert_int_equal(status_of(start(dir, (char *const[]){program, judge, how, eight, version, pack,
                                                          head, NULL})),
                     0);
    assert_true(says(dir, "\"n\":12,") && says(dir, "\"precision\":\"int8\"") &&
                says(dir, "\"alike\":") && says(dir, "\"admitted\":"));
    assert_int_equal(status_of(start(dir, (char *const[]){program, judge, how, half, version, pack,
                                                          head, NULL})),
                     2);
    assert_int_equal(
        status_of(start(dir, (char *const[]){program, judge, version, pack, nobody, NULL})), 1);
}

static int clean(void **state)
{
    (void)state;
    fixture_clean();
    return 0;
}

int main(int argc, char **argv)
{
    if (argc != 2) return 2;
    program = argv[1];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_job_is_done_and_a_second_run_repeats_the_last_line),
        cmocka_unit_test(a_bad_job_fails_with_an_event),
        cmocka_unit_test(bad_usage_is_status_2_and_help_names_every_knob),
        cmocka_unit_test(sigterm_leaves_a_checkpoint_and_status_3),
        cmocka_unit_test(sigkill_is_survived),
        cmocka_unit_test(kill_9_in_any_stage_changes_nothing),
        cmocka_unit_test(pack_and_eval_work_without_a_server),
    };
    return cmocka_run_group_tests(tests, NULL, clean);
}
