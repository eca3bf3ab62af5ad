/* See http.h. libmicrohttpd's daemon has one thread, on which everything here but start, set and
 * stop runs. Its time limit is for idle connections only; one that sends a byte now and then is
 * what `open` is for: a connection beyond KEPT shuts the oldest one down, and the daemon finds it
 * closed. */
#include "http.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <microhttpd.h>
#include <netinet/in.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "engine/mem.h"

enum {
    CONNECTIONS = 32, /* the daemon's own limit; those shut down count until it has noticed */
    KEPT = 24,
    IDLE_S = 10,
    MEMORY = 8192, /* of one connection: bounds what a request may be */
    BACKLOG = 64,
};

typedef struct address {
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } at;
    socklen_t len;
} address;

struct tk_http {
    tk_metrics *metrics;
    struct MHD_Daemon *daemon;
    int listener, port; /* listener: -1 once it is the daemon's */
    bool local;
    atomic_int state; /* a tk_http_state; relaxed: it stands by itself */
    /* the daemon's thread: */
    struct {
        int fd; /* -1: free, or shut down */
        uint64_t number;
    } open[CONNECTIONS];
    uint64_t connections;
};

/* -- the address -- */

static tk_err bad_address(const char *text, tk_diag *diag)
{
    return tk_fail(diag, TK_BADARG,
                   "the address \"%.100s\" is not HOST:PORT with an IP address ([::1] for IPv6) or "
                   "localhost, and a port from 0 to 65535",
                   text);
}

/* "65535" and nothing else. */
static bool parse_port(const char *text, in_port_t *out)
{
    unsigned long port = 0;
    const size_t n = strspn(text, "0123456789");
    if (n == 0 || n > 5 || text[n]) return false;
    port = strtoul(text, NULL, 10);
    *out = htons((uint16_t)port);
    return port <= 65535;
}

static tk_err parse_address(const char *text, address *out, tk_diag *diag)
{
    char host[64];
    const char *colon = strrchr(text, ':');
    size_t n = colon ? (size_t)(colon - text) : 0;
    in_port_t port;
    if (n == 0 || n >= sizeof host || !parse_port(colon + 1, &port)) return bad_address(text, diag);
    const bool v6 = text[0] == '[' && text[n - 1] == ']';
    if (v6) text++, n -= 2;
    memcpy(host, text, n);
    host[n] = '\0';
    *out = (address){.len = 0};
    if (v6) {
        out->at.v6.sin6_family = AF_INET6;
        out->at.v6.sin6_port = port;
        out->len = sizeof out->at.v6;
        if (inet_pton(AF_INET6, host, &out->at.v6.sin6_addr) == 1) return TK_OK;
    } else {
        out->at.v4.sin_family = AF_INET;
        out->at.v4.sin_port = port;
        out->len = sizeof out->at.v4;
        if (strcmp(host, "localhost") == 0) strcpy(host, "127.0.0.1");
        if (inet_pton(AF_INET, host, &out->at.v4.sin_addr) == 1) return TK_OK;
    }
    return bad_address(v6 ? text - 1 : text, diag);
}

static bool is_local(const address *a)
{
    if (a->at.any.sa_family == AF_INET6) return IN6_IS_ADDR_LOOPBACK(&a->at.v6.sin6_addr);
    return ntohl(a->at.v4.sin_addr.s_addr) >> 24 == 127;
}

static tk_err listen_on(tk_http *http, const char *text, tk_diag *diag)
{
    address a;
    const tk_err err = parse_address(text, &a, diag);
    if (err != TK_OK) return err;
    const int family = a.at.any.sa_family, on = 1;
    http->local = is_local(&a);
    http->listener = socket(family, SOCK_STREAM, 0);
    if (http->listener < 0) return tk_fail_errno(diag, "no socket for %s", text);
    /* The trainer must not inherit it; nor may accepting ever wait. */
    if (fcntl(http->listener, F_SETFD, FD_CLOEXEC) != 0 ||
        fcntl(http->listener, F_SETFL, O_NONBLOCK) != 0 ||
        setsockopt(http->listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0)
        return tk_fail_errno(diag, "the socket for %s cannot be set up", text);
    if (family == AF_INET6)
        (void)setsockopt(http->listener, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
    if (bind(http->listener, &a.at.any, a.len) != 0 || listen(http->listener, BACKLOG) != 0 ||
        getsockname(http->listener, &a.at.any, &a.len) != 0)
        return tk_fail(diag, TK_IO, "cannot listen on %s: %s", text, strerror(errno));
    http->port = ntohs(family == AF_INET6 ? a.at.v6.sin6_port : a.at.v4.sin_port);
    return TK_OK;
}

/* -- connections -- */

static void opened(tk_http *http, int fd)
{
    size_t n = 0, oldest = 0, place = CONNECTIONS;
    for (size_t i = 0; i < CONNECTIONS; i++) {
        if (http->open[i].fd < 0) {
            place = i;
            continue;
        }
        if (n++ == 0 || http->open[i].number < http->open[oldest].number) oldest = i;
    }
    if (n >= KEPT) {
        (void)shutdown(http->open[oldest].fd, SHUT_RDWR);
        http->open[oldest].fd = -1;
        place = oldest;
    }
    http->open[place].fd = fd; /* there is a place: KEPT is less than all */
    http->open[place].number = http->connections++;
}

static void closed(tk_http *http, int fd)
{
    for (size_t i = 0; i < CONNECTIONS; i++)
        if (http->open[i].fd == fd) http->open[i].fd = -1;
}

static void on_connection(void *ctx, struct MHD_Connection *connection, void **unused,
                          enum MHD_ConnectionNotificationCode what)
{
    (void)unused;
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    if (!info) return;
    if (what == MHD_CONNECTION_NOTIFY_STARTED)
        opened(ctx, info->connect_fd);
    else
        closed(ctx, info->connect_fd);
}

/* -- answers -- */

/* Takes the response. */
static enum MHD_Result send_response(struct MHD_Connection *connection, unsigned code,
                                     struct MHD_Response *response, const char *type)
{
    if (!response) return MHD_NO; /* closes the connection */
    bool ok = MHD_add_response_header(response, "Content-Type", type) == MHD_YES &&
              MHD_add_response_header(response, "Connection", "close") == MHD_YES &&
              MHD_add_response_header(response, "Cache-Control", "no-store") == MHD_YES;
    if (ok && code == MHD_HTTP_METHOD_NOT_ALLOWED)
        ok = MHD_add_response_header(response, "Allow", "GET, HEAD") == MHD_YES;
    const enum MHD_Result sent = ok ? MHD_queue_response(connection, code, response) : MHD_NO;
    MHD_destroy_response(response);
    return sent;
}

/* `text` lasts as long as the process. MHD's type wants it writable, and only reads. */
static enum MHD_Result say(struct MHD_Connection *connection, unsigned code, const char *text)
{
    void *bytes;
    memcpy(&bytes, &text, sizeof bytes);
    return send_response(
        connection, code,
        MHD_create_response_from_buffer(strlen(text), bytes, MHD_RESPMEM_PERSISTENT),
        "text/plain; charset=utf-8");
}

static enum MHD_Result send_metrics(tk_http *http, struct MHD_Connection *connection)
{
    char *text = NULL;
    size_t size = 0;
    FILE *file = open_memstream(&text, &size);
    if (!file) return say(connection, MHD_HTTP_INTERNAL_SERVER_ERROR, "out of memory\n");
    tk_metrics_write(http->metrics, file);
    const bool whole = !ferror(file);
    if (fclose(file) != 0 || !whole) {
        free(text); // NOLINT: open_memstream's
        return say(connection, MHD_HTTP_INTERNAL_SERVER_ERROR, "out of memory\n");
    }
    struct MHD_Response *response =
        MHD_create_response_from_buffer(size, text, MHD_RESPMEM_MUST_FREE);
    if (!response) free(text);
    return send_response(connection, MHD_HTTP_OK, response,
                         "text/plain; version=0.0.4; charset=utf-8");
}

static enum MHD_Result send_ready(tk_http *http, struct MHD_Connection *connection)
{
    switch ((tk_http_state)atomic_load_explicit(&http->state, memory_order_relaxed)) {
    case TK_HTTP_READY:
        return say(connection, MHD_HTTP_OK, "ready\n");
    case TK_HTTP_DRAINING:
        return say(connection, MHD_HTTP_SERVICE_UNAVAILABLE,
                   "draining: the server is stopping and takes no new calls\n");
    case TK_HTTP_LOADING:
        break;
    }
    return say(connection, MHD_HTTP_SERVICE_UNAVAILABLE,
               "loading: the store or the current version is still being read\n");
}

static enum MHD_Result answer(void *ctx, struct MHD_Connection *connection, const char *url,
                              const char *method, const char *version, const char *body,
                              size_t *body_size, void **state)
{
    (void)version, (void)body, (void)body_size, (void)state;
    const bool metrics = strcmp(url, "/metrics") == 0, live = strcmp(url, "/livez") == 0;
    if (!metrics && !live && strcmp(url, "/readyz") != 0)
        return say(connection, MHD_HTTP_NOT_FOUND, "there are /metrics, /livez and /readyz\n");
    if (strcmp(method, "GET") != 0 && strcmp(method, "HEAD") != 0)
        return say(connection, MHD_HTTP_METHOD_NOT_ALLOWED, "only GET and HEAD\n");
    if (metrics) return send_metrics(ctx, connection);
    return live ? say(connection, MHD_HTTP_OK, "alive\n") : send_ready(ctx, connection);
}

/* Paths are taken as they come: "%2F" is none of ours, and "%00" must not end one. */
static size_t leave_escapes(void *ctx, struct MHD_Connection *connection, char *text)
{
    (void)ctx, (void)connection;
    return strlen(text);
}

/* -- life -- */

static tk_err start_daemon(tk_http *http, tk_diag *diag)
{
    http->daemon = MHD_start_daemon(
        MHD_USE_POLL_INTERNAL_THREAD | MHD_USE_ITC, 0, NULL, NULL, answer, http,
        MHD_OPTION_LISTEN_SOCKET, http->listener, MHD_OPTION_CONNECTION_LIMIT,
        (unsigned)CONNECTIONS, MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)IDLE_S,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)MEMORY, MHD_OPTION_CONNECTION_MEMORY_INCREMENT,
        (size_t)1024, MHD_OPTION_NOTIFY_CONNECTION, on_connection, http,
        MHD_OPTION_UNESCAPE_CALLBACK, leave_escapes, NULL, MHD_OPTION_END);
    if (!http->daemon) return tk_fail(diag, TK_NOMEM, "no memory or thread for the HTTP port");
    http->listener = -1;
    return TK_OK;
}

tk_err tk_http_start(tk_http **out, const char *text, tk_metrics *metrics, tk_diag *diag)
{
    *out = NULL;
    tk_http *http = tk_calloc(1, sizeof *http);
    if (!http) return tk_fail(diag, TK_NOMEM, "no memory for the HTTP port");
    http->metrics = metrics;
    http->listener = -1;
    for (size_t i = 0; i < CONNECTIONS; i++)
        http->open[i].fd = -1;
    atomic_init(&http->state, TK_HTTP_LOADING);
    tk_err err = listen_on(http, text, diag);
    if (err == TK_OK) err = start_daemon(http, diag);
    if (err == TK_OK)
        *out = http;
    else
        tk_http_stop(http);
    return err;
}

void tk_http_set(tk_http *http, tk_http_state state)
{
    if (http) atomic_store_explicit(&http->state, (int)state, memory_order_relaxed);
}

int tk_http_port(const tk_http *http)
{
    return http->port;
}

bool tk_http_is_local(const tk_http *http)
{
    return http->local;
}

void tk_http_stop(tk_http *http)
{
    if (!http) return;
    if (http->daemon) MHD_stop_daemon(http->daemon); /* closes the listener, too */
    if (http->listener >= 0) close(http->listener);
    tk_free(http);
}
