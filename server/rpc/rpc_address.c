/* Binding, with errors a person can act on. The core says only "no port"; its reason is in its log,
 * which is read here, and for unix sockets it takes over the path of a server that is alive, which
 * is looked at before. */
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <grpc/grpc_security.h>

#include "rpc/rpc_internal.h"

/* The path of "unix:PATH" or "unix:///PATH", or NULL. */
static const char *unix_path(const char *address)
{
    if (strncmp(address, "unix:", 5) != 0) return NULL;
    const char *path = address + 5;
    return strncmp(path, "//", 2) == 0 ? path + 2 : path;
}

static bool somebody_listens(const char *path)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof to.sun_path) return false;
    memcpy(to.sun_path, path, strlen(path) + 1);
    const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0) return false;
    const bool alive = connect(fd, (const struct sockaddr *)&to, sizeof to) == 0;
    close(fd);
    return alive;
}

static tk_err explain(const char *address, const char *core, tk_diag *diag)
{
    static const char *const reasons[] = {
        "Address already in use",
        "Permission denied",
        "Cannot assign requested address",
        "No such file or directory",
        "Name or service not known",
        "Temporary failure in name resolution",
        "Too many open files",
        "Address family not supported",
    };
    for (size_t i = 0; i < sizeof reasons / sizeof *reasons; i++)
        if (strstr(core, reasons[i]))
            return tk_fail(diag, TK_IO, "cannot listen on %s: %s", address, reasons[i]);
    return tk_fail(diag, TK_IO, "cannot listen on %s: %.300s", address, core);
}

tk_err tk__rpc_bind(grpc_server *server, const char *address, tk__rpc_tls *tls, int *port,
                    tk_diag *diag)
{
    const char *path = unix_path(address);
    if (path && somebody_listens(path)) return explain(address, "Address already in use", diag);
    tk_diag core = {"not an address (expected HOST:PORT or unix:PATH)"};
    tk__rpc_log_capture(&core);
    grpc_server_credentials *how =
        tls ? tk__rpc_tls_credentials(tls) : grpc_insecure_server_credentials_create();
    *port = grpc_server_add_http2_port(server, address, how);
    grpc_server_credentials_release(how);
    tk__rpc_log_capture(NULL);
    if (*port == 0) return explain(address, core.text, diag);
    if (path && chmod(path, 0660) != 0)
        return tk_fail_errno(diag, "cannot set the mode of %s", path);
    return TK_OK;
}
