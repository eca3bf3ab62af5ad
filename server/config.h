/* Configuration: command-line flags, each with an environment twin (--delay-ms is TRUNKD_DELAY_MS)
 * and a name in the file that --config names. A flag wins over the environment, and that over the
 * file. */
#ifndef SERVER_CONFIG_H
#define SERVER_CONFIG_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "engine/err.h"

typedef struct tk_config {
    const char *file; /* --config; NULL: none */
    const char *store, *listen, *port_file;
    const char *tls_cert, *tls_key, *tls_client_ca; /* NULL: plain text; no client certificates */
    const char *tls_client, *allow_plaintext;       /* NULL: "required", "no" */
    const char *arch, *resize_mode; /* NULL: what the store says, or the default for a fresh one */
    uint64_t px, resize;            /* 0: the same */
    uint64_t threads, decode_threads, batch, queue;
    uint64_t pinned_versions;
    uint64_t tenant_queue; /* 0: half of `queue`, at least 256 */
    double delay_ms, tenant_rate;
    uint64_t grace_s;
    const char *trainer; /* NULL: beside this program */
    uint64_t trainer_threads, trainer_memory;
    const char *log_format, *log_level, *isa, *precision;
    const char *http;       /* NULL or "off": none */
    const char *access_log; /* "yes" or "no" */
    uint64_t max_upload_bytes, max_queued_jobs, max_tenant_bytes, max_connections;
    bool help, version;
    char default_store[4096];
    char *text, *live_text; /* what strings of the file point into: at the start, since a reload */
} tk_config;

/* Strings are borrowed from argv and the environment; those of the file last until
 * tk_config_fini(), which is not owed after a failure. `lookup` is getenv (or a test's). TK_BADARG:
 * the sentence names the flag, variable, or file and line, the value and what is allowed. */
TK_MUST tk_err tk_config_parse(tk_config *out, int argc, char **argv,
                               char *(*lookup)(const char *name), tk_diag *diag);
void tk_config_fini(tk_config *config); /* a zeroed one is fine */

/* Lists for a line of the log; "" when there is nothing. */
typedef struct tk_config_changes {
    char taken[1024];   /* "queue=2048 log-level=debug" */
    char restart[1024]; /* what only a restart changes: "batch threads" */
} tk_config_changes;

/* Takes over from `next`, which still wants its fini, what may change while the server runs. No
 * other thread may read those fields of `running`. */
void tk_config_adopt(tk_config *running, tk_config *next, tk_config_changes *changes);
/* The manual: what the program is, every flag, examples, exit status. */
void tk_config_help(FILE *to);

#endif
