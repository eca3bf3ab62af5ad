/* See notify.h. */
#include "notify.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "log.h"

static tk_err read_number(const char *name, const char *text, uint64_t *out, tk_diag *diag)
{
    char *end;
    errno = 0;
    *out = strtoull(text, &end, 10);
    if (errno == 0 && *text >= '0' && *text <= '9' && *end == '\0') return TK_OK;
    return tk_fail(diag, TK_BADARG, "%s is \"%s\", but must be a number", name, text);
}

static tk_err set_watchdog(tk_notify *n, const char *us, const char *pid, tk_diag *diag)
{
    uint64_t whose = (uint64_t)getpid();
    tk_err err = us ? read_number("WATCHDOG_USEC", us, &n->watchdog_us, diag) : TK_OK;
    if (err == TK_OK && pid) err = read_number("WATCHDOG_PID", pid, &whose, diag);
    if (whose != (uint64_t)getpid()) n->watchdog_us = 0; /* meant for another process */
    return err;
}

tk_err tk_notify_open(tk_notify *n, const char *address, const char *watchdog_us,
                      const char *watchdog_pid, tk_diag *diag)
{
    *n = (tk_notify){.fd = -1, .to.sun_family = AF_UNIX};
    if (!address) return TK_OK;
    const size_t len = strlen(address);
    if ((*address != '/' && *address != '@') || len < 2 || len >= sizeof n->to.sun_path)
        return tk_fail(diag, TK_BADARG,
                       "NOTIFY_SOCKET is \"%.200s\", but must be /PATH or @NAME of at most %zu "
                       "characters",
                       address, sizeof n->to.sun_path - 1);
    const tk_err err = set_watchdog(n, watchdog_us, watchdog_pid, diag);
    if (err != TK_OK) return err;
    memcpy(n->to.sun_path, address, len);
    if (*address == '@') n->to.sun_path[0] = '\0';
    n->to_size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len);
    n->fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    return n->fd >= 0 ? TK_OK : tk_fail_errno(diag, "no socket for NOTIFY_SOCKET");
}

void tk_notify_close(tk_notify *n)
{
    if (n->fd >= 0) close(n->fd);
    n->fd = -1;
}

void tk_notify_send(const tk_notify *n, const char *fmt, ...)
{
    if (n->fd < 0) return;
    char text[1024];
    va_list args;
    va_start(args, fmt);
    const int len = vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    const size_t size = len < 0 ? 0 : (size_t)len < sizeof text ? (size_t)len : sizeof text - 1;
    const ssize_t sent = sendto(n->fd, text, size, MSG_NOSIGNAL,
                                (const struct sockaddr *)(const void *)&n->to, n->to_size);
    if (sent >= 0) return;
    tk_log(TK_LOG_WARN, "service manager not told",
           (tk_log_field[]){tk_log_str("message", text), tk_log_str("reason", strerror(errno)),
                            tk_log_end()});
}
