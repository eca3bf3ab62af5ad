/* The port for those who watch over the server: plain HTTP/1.1, answered from memory by one thread
 * of its own, so that it neither waits for the rest of the server nor holds it up.
 *
 *     GET /metrics    Prometheus' text format 0.0.4
 *     GET /livez      200 while the process answers
 *     GET /readyz     200 when calls are served, 503 with a reason before and after
 *
 * HEAD is as good as GET; other methods are 405, other paths 404. Every answer closes its
 * connection. Requests are limited to some KiB, idle connections to seconds; when too many are open
 * the oldest is closed for the newest, so that nobody can keep others out by being slow. There is
 * neither a token nor encryption, and the metrics name tenants: hence an address of this machine,
 * unless somebody asks for another. */
#ifndef SERVER_HTTP_H
#define SERVER_HTTP_H

#include <stdbool.h>

#include "metrics.h"

typedef struct tk_http tk_http;

typedef enum tk_http_state { TK_HTTP_LOADING, TK_HTTP_READY, TK_HTTP_DRAINING } tk_http_state;

/* Listens on `address`, "HOST:PORT": HOST is an IPv4 address, an IPv6 address in brackets, or
 * localhost; port 0 takes a free one. Says TK_HTTP_LOADING at first. `metrics` is borrowed.
 * TK_BADARG: not such an address; TK_IO: it cannot be had. On failure *out is NULL. SIGPIPE must be
 * blocked. */
TK_MUST tk_err tk_http_start(tk_http **out, const char *address, tk_metrics *metrics,
                             tk_diag *diag);
void tk_http_set(tk_http *http, tk_http_state state); /* any thread; NULL is fine */
int tk_http_port(const tk_http *http);
/* Can only this machine reach it? */
bool tk_http_is_local(const tk_http *http);
void tk_http_stop(tk_http *http); /* joins; NULL is fine */

#endif
