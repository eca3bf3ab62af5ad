/* Tells a service manager how the process is: systemd's protocol for Type=notify, one datagram for
 * each change. It is thirty lines and stable (sd_notify(3) shows them), so no library is asked for.
 */
#ifndef SERVER_NOTIFY_H
#define SERVER_NOTIFY_H

#include <stdint.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "engine/err.h"

typedef struct tk_notify {
    int fd; /* -1: nobody wants to know */
    struct sockaddr_un to;
    socklen_t to_size;
    uint64_t watchdog_us; /* expects a sign of life that often; 0: none */
} tk_notify;

/* What the manager has put into the environment: NOTIFY_SOCKET ("/path" or "@abstract"; NULL:
 * nobody), WATCHDOG_USEC and WATCHDOG_PID (NULL: none). TK_BADARG: they make no sense. */
TK_MUST tk_err tk_notify_open(tk_notify *out, const char *address, const char *watchdog_us,
                              const char *watchdog_pid, tk_diag *diag);
void tk_notify_close(tk_notify *notify);

/* Lines of "NAME=value", printf's way. One that is lost harms nobody but the manager's view; it is
 * logged. */
void tk_notify_send(const tk_notify *notify, const char *fmt, ...) TK_PRINTF(2, 3);

#endif
