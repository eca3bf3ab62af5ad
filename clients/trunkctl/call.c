/* Asking the server: the connection from flags, environment and config file, and unary calls. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

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

/* A setting from where it is named first. */
static const char *setting(const char *flag, const char *variable, const char *config)
{
    return flag ? flag : env(variable) ? env(variable) : config;
}

/* Any of TLS's settings asks for it, unless "no" is said. False: *why. */
static bool find_tls(const tk__ctl *ctl, const tk__config *config, tk_client_tls *tls, bool *wanted,
                     char **why)
{
    tls->ca = setting(ctl->tls_ca, "TRUNKD_TLS_CA", config->tls_ca);
    tls->cert = setting(ctl->tls_client_cert, "TRUNKD_TLS_CLIENT_CERT", config->tls_client_cert);
    tls->key = setting(ctl->tls_client_key, "TRUNKD_TLS_CLIENT_KEY", config->tls_client_key);
    tls->name = setting(ctl->tls_name, "TRUNKD_TLS_NAME", config->tls_name);
    const char *said = setting(ctl->tls ? "yes" : NULL, "TRUNKD_TLS", config->tls);
    *wanted = said ? strcmp(said, "yes") == 0 : tls->ca || tls->cert || tls->key || tls->name;
    if (!said || *wanted || strcmp(said, "no") == 0) return true;
    *why = tk__format("%s is \"%s\", but must be yes or no",
                      env("TRUNKD_TLS") ? "TRUNKD_TLS" : "tls in the config file", said);
    return false;
}

static void warn_of_mode(const char *key)
{
    struct stat st;
    if (!key || stat(key, &st) != 0 || !(st.st_mode & 07)) return;
    fprintf(stderr,
            "trunkctl: %s: every user of this machine may reach the key; run: chmod 600 %s\n", key,
            key);
}

/* Opens ctl->client; false with *why. */
static bool open_client(tk__ctl *ctl, const tk__config *config, char **why)
{
    char *token = NULL;
    tk_client_tls tls = {0};
    if (!find_tls(ctl, config, &tls, &ctl->by_tls, why)) return false;
    if (!find_token(ctl, config, &token, why)) return false;
    const char *server = setting(ctl->server, "TRUNKD_SERVER", config->server);
    if (!server) server = TK__DEFAULT_SERVER;
    ctl->address = tk__copy(server);
    tk_client_status status;
    if (ctl->by_tls) warn_of_mode(tls.key);
    tk_client_silence();
    ctl->client = tk_client_open_tls(server, token, ctl->by_tls ? &tls : NULL, &status);
    free(token);
    if (!ctl->client) *why = tk__copy(status.text);
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

static void hint_at_connection(const tk__ctl *ctl, const tk_client_status *status)
{
    if (ctl->by_tls && strncmp(status->text, "no TLS with", 11) == 0) {
        fputs("TLS: --tls-ca, --tls-client-cert, --tls-client-key and --tls-name, or their "
              "variables; TRUNKD_TLS=no goes without\n",
              stderr);
        return;
    }
    if (!ctl->by_tls && strstr(status->text, "Socket closed"))
        fputs("The server may expect TLS: --tls, or --tls-ca FILE\n", stderr);
    fprintf(stderr,
            "Is trunkd running at %s? Another address: --server, TRUNKD_SERVER, "
            "~/.config/trunkd/config\n",
            ctl->address ? ctl->address : "?");
}

int tk__rpc_failed(const tk__ctl *ctl, const tk_client_status *status)
{
    tk__fail("%s: %s", tk_client_code_text(status->code), status->text);
    if (status->code == TK_CLIENT_UNAVAILABLE) hint_at_connection(ctl, status);
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
