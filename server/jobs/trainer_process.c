/* Starting and watching the trainer. posix_spawn, never a bare fork: gRPC's threads hold locks.
 *
 * DIR/lock is locked by flock and its descriptor handed to the trainer, which needs to know nothing
 * of it: the lock lives as long as the trainer does, also when the server is killed. The file holds
 * the trainer's pid, so that the next server can stop an orphan and can never hit another process:
 * lock held and pid written means that it is this one. */
#define _GNU_SOURCE /* pipe2, sigabbrev_np, posix_spawn_file_actions_addclosefrom_np */
#include "jobs/trainer_process.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine/mem.h"

enum { LOCK_FD = 3, CHUNK = 1 << 14 };

/* -- lines -- */

tk_err tk__lines_feed(tk_lines *lines, const char *data, size_t size, tk_line_fn *fn, void *ctx)
{
    while (size > 0) {
        const char *end = memchr(data, '\n', size);
        const size_t n = end ? (size_t)(end - data) : size;
        if (!lines->skipping && lines->used + n > TK_LINE_MAX) {
            lines->skipping = true;
            lines->dropped++;
        }
        if (!lines->skipping && lines->used + n > lines->cap) {
            const size_t cap = lines->used + n > CHUNK ? TK_LINE_MAX : CHUNK;
            char *buffer = tk_realloc(lines->buffer, cap);
            if (!buffer) return TK_NOMEM;
            lines->buffer = buffer;
            lines->cap = cap;
        }
        if (!lines->skipping && n > 0) {
            memcpy(lines->buffer + lines->used, data, n);
            lines->used += n;
        }
        if (end) {
            if (!lines->skipping && lines->used > 0) fn(ctx, lines->buffer, lines->used);
            lines->used = 0;
            lines->skipping = false;
        }
        const size_t eaten = n + (end ? 1 : 0);
        data += eaten;
        size -= eaten;
    }
    return TK_OK;
}

void tk__lines_fini(tk_lines *lines)
{
    tk_free(lines->buffer);
    *lines = (tk_lines){0};
}

/* Appends to the tail, dropping its beginning. */
static void keep_tail(tk_trainer *trainer, const char *data, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        if (trainer->tail_used == TK_TAIL_SIZE) {
            const size_t half = TK_TAIL_SIZE / 2;
            memmove(trainer->tail, trainer->tail + half, TK_TAIL_SIZE - half);
            trainer->tail_used -= half;
        }
        const char c = data[i];
        trainer->tail[trainer->tail_used++] = c >= ' ' && c <= '~' ? c : ' ';
    }
    while (trainer->tail_used > 0 && trainer->tail[trainer->tail_used - 1] == ' ')
        trainer->tail_used--;
    trainer->tail[trainer->tail_used] = '\0';
    if (size > 0 && trainer->tail_used > 0 && trainer->tail_used < TK_TAIL_SIZE) {
        /* One space stands for the line break that was cut. */
        trainer->tail[trainer->tail_used++] = ' ';
        trainer->tail[trainer->tail_used] = '\0';
    }
}

/* -- the lock -- */

static int open_lock(const char *dir)
{
    const size_t size = strlen(dir) + 8;
    char *path = tk_calloc(size, 1);
    if (!path) {
        errno = ENOMEM;
        return -1;
    }
    (void)snprintf(path, size, "%s/lock", dir);
    const int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    const int code = errno;
    tk_free(path);
    errno = code;
    return fd;
}

bool tk__trainer_orphan(const char *dir, int signal)
{
    const int fd = open_lock(dir);
    if (fd < 0) return false; /* no directory, no trainer */
    bool alive = flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    if (alive && signal) {
        char text[32] = "";
        const ssize_t n = pread(fd, text, sizeof text - 1, 0);
        const long pid = n > 0 ? strtol(text, NULL, 10) : 0;
        /* Not written yet: the server died between the two. The trainer ends by itself on the
         * broken pipe. */
        if (pid > 1) (void)kill((pid_t)pid, signal);
    }
    (void)close(fd);
    return alive;
}

/* -- start -- */

static void close_fd(int *fd)
{
    if (*fd >= 0) (void)close(*fd);
    *fd = -1;
}

static int set_actions(posix_spawn_file_actions_t *actions, int out, int err, int lock)
{
    int code = posix_spawn_file_actions_addopen(actions, 0, "/dev/null", O_RDONLY, 0);
    if (!code) code = posix_spawn_file_actions_adddup2(actions, out, 1);
    if (!code) code = posix_spawn_file_actions_adddup2(actions, err, 2);
    if (!code) code = posix_spawn_file_actions_adddup2(actions, lock, LOCK_FD);
    if (!code) code = posix_spawn_file_actions_addclosefrom_np(actions, LOCK_FD + 1);
    return code;
}

static int set_attributes(posix_spawnattr_t *attr)
{
    sigset_t none, all;
    const short flags = POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF;
    (void)sigemptyset(&none);
    (void)sigfillset(&all);
    (void)sigdelset(&all, SIGKILL);
    (void)sigdelset(&all, SIGSTOP);
    int code = posix_spawnattr_setsigmask(attr, &none);
    if (!code) code = posix_spawnattr_setsigdefault(attr, &all);
    if (!code) code = posix_spawnattr_setpgroup(attr, 0);
    return code ? code : posix_spawnattr_setflags(attr, flags);
}

static int spawn(pid_t *pid, const char *exe, const char *job, const int out[2], const int err[2],
                 int lock)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attr;
    char *const argv[] = {(char *)(uintptr_t)exe, (char *)(uintptr_t)job, NULL};
    int code = posix_spawn_file_actions_init(&actions);
    if (code) return code;
    code = posix_spawnattr_init(&attr);
    if (!code) {
        code = set_actions(&actions, out[1], err[1], lock);
        if (!code) code = set_attributes(&attr);
        if (!code) code = posix_spawn(pid, exe, &actions, &attr, argv, environ);
        (void)posix_spawnattr_destroy(&attr);
    }
    (void)posix_spawn_file_actions_destroy(&actions);
    return code;
}

/* The lock, taken, with an empty file; -1 and errno on failure. */
static int take_lock(const char *dir)
{
    int fd = open_lock(dir);
    if (fd >= 0 && (flock(fd, LOCK_EX | LOCK_NB) != 0 || ftruncate(fd, 0) != 0)) {
        const int code = errno;
        close_fd(&fd);
        errno = code;
    }
    return fd;
}

tk_err tk__trainer_start(tk_trainer *out, const char *exe, const char *dir, tk_diag *diag)
{
    *out = (tk_trainer){.out = -1, .err = -1};
    int pipe_out[2] = {-1, -1}, pipe_err[2] = {-1, -1};
    const size_t size = strlen(dir) + 16;
    char *job = tk_calloc(size, 1);
    if (!job) return tk_fail(diag, TK_NOMEM, "trainer: out of memory");
    (void)snprintf(job, size, "%s/job.json", dir);
    int lock = take_lock(dir);
    int code = 0;
    if (lock < 0 || pipe2(pipe_out, O_CLOEXEC) != 0 || pipe2(pipe_err, O_CLOEXEC) != 0)
        code = errno;
    if (!code) code = spawn(&out->pid, exe, job, pipe_out, pipe_err, lock);
    if (!code) {
        (void)dprintf(lock, "%ld\n", (long)out->pid);
        (void)fcntl(pipe_out[0], F_SETFL, O_NONBLOCK);
        (void)fcntl(pipe_err[0], F_SETFL, O_NONBLOCK);
        out->out = pipe_out[0];
        out->err = pipe_err[0];
        pipe_out[0] = pipe_err[0] = -1;
    }
    for (int i = 0; i < 2; i++) {
        close_fd(&pipe_out[i]);
        close_fd(&pipe_err[i]);
    }
    close_fd(&lock); /* the trainer has it now */
    tk_free(job);
    if (!code) return TK_OK;
    *out = (tk_trainer){.out = -1, .err = -1};
    errno = code;
    return tk_fail_errno(diag, "%s: cannot start the trainer", exe);
}

/* -- while it runs -- */

/* Reads one pipe dry; closes it at its end. */
static tk_err drain(tk_trainer *trainer, int *fd, tk_line_fn *fn, void *ctx)
{
    char buffer[CHUNK];
    tk_err err = TK_OK;
    while (*fd >= 0 && err == TK_OK) {
        const ssize_t n = read(*fd, buffer, sizeof buffer);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
        if (n <= 0)
            close_fd(fd);
        else if (fn)
            err = tk__lines_feed(&trainer->lines, buffer, (size_t)n, fn, ctx);
        else
            keep_tail(trainer, buffer, (size_t)n);
    }
    return err;
}

tk_err tk__trainer_read(tk_trainer *trainer, tk_line_fn *fn, void *ctx)
{
    const tk_err err = drain(trainer, &trainer->err, NULL, NULL);
    return err == TK_OK ? drain(trainer, &trainer->out, fn, ctx) : err;
}

bool tk__trainer_reap(tk_trainer *trainer, int *status)
{
    if (trainer->pid == 0) return true;
    const pid_t pid = waitpid(trainer->pid, status, WNOHANG);
    if (pid == 0 || (pid < 0 && errno == EINTR)) return false;
    if (pid < 0) *status = 0x7f00; /* somebody else reaped it: its files decide */
    trainer->pid = 0;
    return true;
}

void tk__trainer_signal(const tk_trainer *trainer, int signal)
{
    if (trainer->pid > 1) (void)kill(trainer->pid, signal);
}

void tk__trainer_fini(tk_trainer *trainer)
{
    close_fd(&trainer->out);
    close_fd(&trainer->err);
    tk__lines_fini(&trainer->lines);
    trainer->pid = 0;
}

void tk__trainer_describe(int status, char *text, size_t size)
{
    if (WIFSIGNALED(status)) {
        const char *name = sigabbrev_np(WTERMSIG(status));
        (void)snprintf(text, size, "killed by SIG%s", name ? name : "?");
    } else {
        (void)snprintf(text, size, "exit code %d", WEXITSTATUS(status));
    }
}
