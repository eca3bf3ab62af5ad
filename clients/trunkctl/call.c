/* Asking the server: the connection from flags, environment and config file, and unary calls. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config.h"
#include "ctl.h"
#include "term.h"

static const char *env(const char *name)
{
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

/* The token from where it is named first: flags, environment, config file. True with *token NULL:
 * none anywhere, which the server will have its say about. False: a file could not be read, *why
 * says why. */
static bool find_token(const tk__ctl *ctl, const tk__config *config, char **token, char **why)
{
    const char *file = ctl->token_file       ? ctl->token_file
                       : env("TRUNKD_TOKEN") ? NULL
                                             : env("TRUNKD_TOKEN_FILE");
    const char *text = env("TRUNKD_TOKEN") ? env("TRUNKD_TOKEN") : config->token;
    if (ctl->token)
        *token = tk__copy(ctl->token);
    else if (file)
        *token = tk__token_read(file, why);
    else
        *token = text ? tk__copy(text) : NULL;
    return !*why;
}

/* Opens ctl->client; false with *why. */
static bool open_client(tk__ctl *ctl, const tk__config *config, char **why)
{
    char *token = NULL;
    if (!find_token(ctl, config, &token, why)) return false;
    const char *server = ctl->server ? ctl->server : env("TRUNKD_SERVER");
    if (!server) server = config->server ? config->server : TK__DEFAULT_SERVER;
    ctl->address = tk__copy(server);
    ctl->client = tk_client_open(server, token);
    free(token);
    if (!ctl->client) *why = tk__copy("the token has bytes that no token has");
    return ctl->client != NULL;
}

tk_client *tk__connect(tk__ctl *ctl)
{
    if (ctl->client) return ctl->client;
    char *path = tk__config_path(), *why = NULL;
    tk__config config = {0};
    if (!path || tk__config_read(&config, path, &why)) open_client(ctl, &config, &why);
    if (why) tk__fail("%s", why);
    tk__config_free(&config);
    free(path);
    free(why);
    return ctl->client;
}

int tk__rpc_failed(const tk__ctl *ctl, const tk_client_status *status)
{
    tk__fail("%s: %s", tk_client_code_text(status->code), status->text);
    if (status->code == TK_CLIENT_UNAVAILABLE)
        fprintf(stderr,
                "Is trunkd running at %s? Another address: --server, TRUNKD_SERVER, "
                "~/.config/trunkd/config\n",
                ctl->address ? ctl->address : "?");
    if (status->code == TK_CLIENT_UNAUTHENTICATED)
        fputs("A token comes from --token-file, TRUNKD_TOKEN or ~/.config/trunkd/config; the "
              "admin's lies in the "
              "store: STORE/admin.token\n",
              stderr);
    return TK__FAILED;
}

void *tk__call(tk__ctl *ctl, const char *path, const ProtobufCMessage *in,
               const ProtobufCMessageDescriptor *out)
{
    tk_client *client = tk__connect(ctl);
    if (!client) return NULL;
    ProtobufCMessage *answer = NULL;
    tk_client_status status = {0};
    const unsigned timeout = ctl->timeout_ms > 86400000 ? 86400000 : (unsigned)ctl->timeout_ms;
    if (!tk_client_unary(client, path, in, out, timeout, &answer, &status))
        tk__rpc_failed(ctl, &status);
    return answer;
}
