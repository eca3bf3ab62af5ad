/* trunkd-trainer: runs one job and exits. protocol.md is its contract with the server. */
#define _GNU_SOURCE /* SCHED_IDLE, syscall */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "engine/isa.h"
#include "job_file.h"
#include "report.h"
#include "tools.h"

enum { EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_CANCELLED };

static volatile sig_atomic_t stop; /* set by SIGTERM and SIGINT */

static void on_signal(int signal_number)
{
    (void)signal_number;
    stop = 1;
}

static void usage(FILE *to)
{
    fputs(
        "trunkd-trainer " TRUNKD_VERSION ": fine-tunes a trunk for one new head.\n\n"
        "  trunkd-trainer [--normal-priority] DIR/job.json   run the job, or resume it\n"
        "  trunkd-trainer pack DIR OUT.pack                  DIR/CLASS/image -> data set\n"
        "  trunkd-trainer eval [--precision fp32|bf16|int8] VERSION PACK HEAD\n"
        "                                                    accuracy of a head, as JSON; with\n"
        "                                                    another precision than fp32 also how\n"
        "                                                    many images get fp32's answer\n\n"
        "Exit status: 0 done, 1 failed, 2 bad usage, 3 stopped by a signal, to be resumed.\n"
        "Environment: TRUNKD_ISA=scalar|avx2|avx512 forces the kernels.\n\n"
        "Recipes (\"recipe\" in job.json):\n",
        to);
    for (size_t i = 0; i < tk_recipe_count(); i++)
        fprintf(to, "  %-16s %s\n", tk_recipe_name(i), tk_recipe_help(i));
    tk_recipe shown;
    if (tk_recipe_find(&shown, tk_recipe_name(0), TK_RESNET20, NULL) != TK_OK) return;
    fprintf(to,
            "\nHyper-parameters (\"set\" in job.json), with %s's defaults on a small network:\n",
            shown.name);
    for (size_t i = 0; i < tk_recipe_fields(); i++) {
        const tk_recipe_field *f = tk_recipe_field_at(i);
        fprintf(to, "  %-16s %-6g %s (%g..%g)\n", f->name, tk_recipe_get(&shown, f), f->help,
                f->min, f->max);
    }
}

/* ---- callbacks ---- */

static bool cancelled(void *ctx)
{
    (void)ctx;
    return stop != 0;
}

/* Nobody reads standard output any more: the server is gone, and will start this job again. */
static void heard(bool ok)
{
    if (!ok) stop = 1;
}

/* At most four lines a second, and the last of each stage. */
static void on_progress(void *ctx, const tk_job_progress *p)
{
    struct timespec now, *last = ctx;
    clock_gettime(CLOCK_MONOTONIC, &now);
    const double passed =
        (double)(now.tv_sec - last->tv_sec) + 1e-9 * (double)(now.tv_nsec - last->tv_nsec);
    if (passed < 0.25 && p->step != p->steps) return;
    *last = now;
    heard(report_progress(p));
}

static void on_validation(void *ctx, const tk_job_validation *v)
{
    (void)ctx;
    heard(report_validation(v));
}

static void on_log(void *ctx, bool warn, const char *message)
{
    (void)ctx;
    heard(report_log(warn, message));
}

/* ---- the process ---- */

/* Serving comes first: the processor and the disk only when nobody else wants them. Best effort. */
static void yield_to_others(void)
{
    enum { IOPRIO_WHO_PROCESS = 1, IOPRIO_CLASS_IDLE = 3, IOPRIO_CLASS_SHIFT = 13 };
    const struct sched_param none = {0};
    if (sched_setscheduler(0, SCHED_IDLE, &none) != 0 && setpriority(PRIO_PROCESS, 0, 19) != 0)
        fprintf(stderr, "trunkd-trainer: cannot lower the priority: %s\n", strerror(errno));
    syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_CLASS_IDLE << IOPRIO_CLASS_SHIFT);
}

/* A trainer that talks into a pipe ends with the one who reads it. */
static void follow_parent(void)
{
    struct stat st;
    if (fstat(STDOUT_FILENO, &st) == 0 && (S_ISFIFO(st.st_mode) || S_ISSOCK(st.st_mode)))
        prctl(PR_SET_PDEATHSIG, SIGTERM);
}

static void catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal};
    sigemptyset(&action.sa_mask);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    action.sa_handler = SIG_IGN; /* see heard() */
    sigaction(SIGPIPE, &action, NULL);
}

static tk_err limit_memory(unsigned long long bytes, tk_diag *diag)
{
    if (bytes == 0) return TK_OK;
    const struct rlimit limit = {(rlim_t)bytes, (rlim_t)bytes};
    return setrlimit(RLIMIT_AS, &limit) == 0 ? TK_OK : tk_fail_errno(diag, "memory_limit");
}

/* Two trainers never share a directory: a dying one may still be writing its checkpoint. Held until
 * the process ends. */
static tk_err lock_directory(const char *dir, tk_diag *diag)
{
    const int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return tk_fail_errno(diag, "%s", dir);
    while (flock(fd, LOCK_EX) != 0)
        if (errno != EINTR || stop) return tk_fail_errno(diag, "%s: lock", dir);
    return TK_OK;
}

/* ---- the job ---- */

static tk_err run(const char *dir, job_file *file, tk_diag *diag)
{
    struct timespec last = {0};
    tk_job_result result;
    tk_job_opts *opts = &file->opts;
    opts->dir = dir;
    opts->ctx = &last;
    opts->cancelled = cancelled;
    opts->progress = on_progress;
    opts->validation = on_validation;
    opts->log = on_log;
    tk_err err = tk_pool_create(&opts->pool, file->threads);
    if (err != TK_OK) return tk_fail(diag, err, "threads: %s", tk_err_text(err));
    err = tk_job_run(opts, &result, diag);
    if (err == TK_OK) err = report_result(dir, file->job, opts, &result, diag);
    if (err == TK_OK) tk_job_clean(dir);
    tk_job_result_fini(&result);
    tk_pool_destroy(opts->pool);
    return err;
}

static tk_err run_file(const char *path, const char *dir, tk_diag *diag)
{
    char done[4096 + sizeof "/result.json"];
    job_file file;
    snprintf(done, sizeof done, "%s/result.json", dir);
    tk_err err = lock_directory(dir, diag);
    if (err != TK_OK) return err;
    if (access(done, F_OK) == 0) return report_done(dir, diag);
    err = tk_isa_select(getenv("TRUNKD_ISA"), diag);
    if (err == TK_OK) err = job_file_read(&file, path, diag);
    if (err != TK_OK) return err;
    err = limit_memory(file.memory_limit, diag);
    if (err == TK_OK) err = run(dir, &file, diag);
    job_file_fini(&file);
    return err == TK_OK ? report_done(dir, diag) : err;
}

static int run_job(const char *path)
{
    tk_diag diag = {0};
    char dir[4096];
    const char *slash = strrchr(path, '/');
    const size_t n = slash ? (size_t)(slash - path) : 0;
    if (n >= sizeof dir) return EXIT_USAGE;
    snprintf(dir, sizeof dir, "%.*s", slash ? (int)(n ? n : 1) : 1, slash ? path : ".");
    const tk_err err = run_file(path, dir, &diag);
    if (err == TK_OK) return EXIT_DONE;
    if (err == TK_CANCELLED) return EXIT_CANCELLED;
    report_failed(err, diag.text);
    fprintf(stderr, "trunkd-trainer: %s\n", diag.text[0] ? diag.text : tk_err_text(err));
    return EXIT_FAILED;
}

/* eval [--precision NAME] VERSION PACK HEAD */
static int run_eval(int argc, char **argv)
{
    tk_precision precision = TK_PRECISION_FP32;
    tk_diag diag = {0};
    int at = 1;
    if (argc > 2 && strcmp(argv[1], "--precision") == 0) {
        if (tk_precision_parse(argv[2], &precision, &diag) != TK_OK) {
            fprintf(stderr, "trunkd-trainer: --precision: %s\n", diag.text);
            return EXIT_USAGE;
        }
        at = 3;
    }
    if (argc - at == 3) return tool_eval(argv[at], argv[at + 1], argv[at + 2], precision);
    usage(stderr);
    return EXIT_USAGE;
}

int main(int argc, char **argv)
{
    bool normal = false;
    int at = 1;
    if (at < argc && (strcmp(argv[at], "--help") == 0 || strcmp(argv[at], "-h") == 0)) {
        usage(stdout);
        return 0;
    }
    if (at < argc && strcmp(argv[at], "--version") == 0) {
        puts("trunkd-trainer " TRUNKD_VERSION);
        return 0;
    }
    if (at < argc && strcmp(argv[at], "--normal-priority") == 0) normal = true, at++;
    if (argc - at == 3 && strcmp(argv[at], "pack") == 0)
        return tool_pack(argv[at + 1], argv[at + 2]);
    if (at < argc && strcmp(argv[at], "eval") == 0) return run_eval(argc - at, argv + at);
    if (argc - at != 1 || argv[at][0] == '-') {
        usage(stderr);
        return EXIT_USAGE;
    }
    catch_signals();
    follow_parent();
    if (!normal) yield_to_others();
    return run_job(argv[at]);
}
