/* The trainer as a process: start, pipes, signals, end; and the lock by which an orphan is found.
 */
#ifndef SERVER_JOBS_TRAINER_PROCESS_H
#define SERVER_JOBS_TRAINER_PROCESS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "engine/err.h"

enum { TK_LINE_MAX = 1 << 20, TK_TAIL_SIZE = 400 };

/* Gathers bytes to lines of at most TK_LINE_MAX; a longer one is dropped and counted. */
typedef struct tk_lines {
    char *buffer;
    size_t used, cap, dropped;
    bool skipping; /* inside a line that was too long */
} tk_lines;
typedef void tk_line_fn(void *ctx, const char *line, size_t size);

TK_MUST tk_err tk__lines_feed(tk_lines *lines, const char *data, size_t size, tk_line_fn *fn,
                              void *ctx);
void tk__lines_fini(tk_lines *lines);

typedef struct tk_trainer {
    pid_t pid;    /* 0: none */
    int out, err; /* read ends, non-blocking; -1: ended */
    tk_lines lines;
    char tail[TK_TAIL_SIZE + 1]; /* the end of standard error, printable ASCII */
    size_t tail_used;
} tk_trainer;

/* Starts `exe DIR/job.json` in its own process group, with default signals, /dev/null as input,
 * both outputs piped, and no descriptor of ours but the lock DIR/lock as 3. The lock must be free:
 * tk__trainer_orphan(). */
TK_MUST tk_err tk__trainer_start(tk_trainer *out, const char *exe, const char *dir, tk_diag *diag);
/* Reads what there is of both outputs; lines go to `fn`. */
TK_MUST tk_err tk__trainer_read(tk_trainer *trainer, tk_line_fn *fn, void *ctx);
/* Has it ended? *status is waitpid's. */
bool tk__trainer_reap(tk_trainer *trainer, int *status);
void tk__trainer_signal(const tk_trainer *trainer, int signal);
void tk__trainer_fini(tk_trainer *trainer); /* it must have ended */

/* Sends `signal` to a trainer that another server started in `dir` and that still lives; false:
 * there is none. */
bool tk__trainer_orphan(const char *dir, int signal);

/* "exit code 3", "killed by SIGKILL". */
void tk__trainer_describe(int status, char *text, size_t size);

#endif
