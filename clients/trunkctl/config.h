/* Where the server is and who asks: flags, then environment, then ~/.config/trunkd/config. */
#ifndef TRUNKCTL_CONFIG_H
#define TRUNKCTL_CONFIG_H

#include <stdbool.h>

#define TK__DEFAULT_SERVER "127.0.0.1:7700"

typedef struct tk__config {
    char *server; /* NULL: not set */
    char *token;
    char *tls; /* "yes" or "no" */
    char *tls_ca, *tls_client_cert, *tls_client_key, *tls_name;
} tk__config;

/* Reads `path` into *out: lines of "server = ...", "token = ...", "tls = ..." and so on, '#' begins
 * a comment. A file that is not there is an empty one. False, with a sentence in *why (free it),
 * when others may read it, or a line is none of these. */
bool tk__config_read(tk__config *out, const char *path, char **why);
void tk__config_free(tk__config *config);
/* $XDG_CONFIG_HOME/trunkd/config or ~/.config/trunkd/config; NULL when there is no home. Free it.
 */
char *tk__config_path(void);
/* The first line of a token file, without blanks at its ends. NULL: *why says why. Free either. */
char *tk__token_read(const char *path, char **why);

#endif
