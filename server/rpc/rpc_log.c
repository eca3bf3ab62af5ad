/* The core writes a line to standard error for every broken handshake, which lets a stranger fill
 * the disk. This hook hands on a few lines per window and counts the rest. */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <grpc/support/log.h>

#include "rpc/rpc_internal.h"

enum { WINDOW_S = 10, LINES = 5 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static void (*sink)(const char *line); /* lock */
static time_t window;                  /* lock; its first second */
static unsigned lines, dropped;        /* lock; of this window */

static _Thread_local tk_diag *capture;

/* Whether a line may go out now; *missed is what was dropped in the window before. */
static bool admit_locked(bool always, unsigned *missed)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    *missed = 0;
    if (lines == 0 || now.tv_sec - window >= WINDOW_S) {
        *missed = dropped;
        window = now.tv_sec;
        lines = dropped = 0;
    }
    const bool admitted = always || lines < LINES;
    if (admitted)
        lines++;
    else
        dropped++;
    return admitted;
}

static void on_log(gpr_log_func_args *args)
{
    if (capture) tk_fail(capture, TK_IO, "%s", args->message);
    unsigned missed;
    pthread_mutex_lock(&lock);
    /* The core aborts after a failed assertion: those words are never dropped. */
    const bool admitted =
        admit_locked(strncmp(args->message, "assertion failed", 16) == 0, &missed);
    void (*const to)(const char *) = sink;
    pthread_mutex_unlock(&lock);
    if (!to || !admitted) return;
    char line[640];
    if (missed > 0) {
        snprintf(line, sizeof line, "grpc: %u lines like these were dropped", missed);
        to(line);
    }
    snprintf(line, sizeof line, "grpc: %s", args->message);
    to(line);
}

void tk__rpc_log_install(void (*to)(const char *line))
{
    pthread_mutex_lock(&lock);
    sink = to;
    pthread_mutex_unlock(&lock);
    gpr_set_log_function(on_log);
}

void tk__rpc_log_capture(tk_diag *into)
{
    capture = into;
}
