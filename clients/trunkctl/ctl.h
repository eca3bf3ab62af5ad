/* trunkctl's own vocabulary: what every command is handed, how a command describes itself, and how
 * it asks the server. A command is a row of the table in main.c and one function in a cmd_*.c file.
 *
 * Exit codes: TK__DONE, TK__FAILED (the server refused, or a local mistake), TK__USAGE. */
#ifndef TRUNKCTL_CTL_H
#define TRUNKCTL_CTL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "rpc_client.h"

enum { TK__DONE = 0, TK__FAILED = 1, TK__USAGE = 2 };

typedef struct tk__ctl {
    const char *server, *token,
        *token_file; /* from flags; NULL: environment, then the config file */
    bool tls;        /* these five, too */
    const char *tls_ca, *tls_client_cert, *tls_client_key, *tls_name;
    uint64_t timeout_ms; /* of one unary call */
    bool json, quiet, help;
    char *address;     /* where `client` points */
    bool by_tls;       /* how */
    tk_client *client; /* opened by the first call */
} tk__ctl;

typedef struct tk__cmd {
    const char *name;    /* "dataset upload" */
    const char *args;    /* "DIR|CSV" */
    const char *summary; /* half a line, for the overview */
    const char *text;    /* what it does, with examples */
    int (*run)(tk__ctl *ctl, const struct tk__cmd *cmd, int argc, char **argv);
} tk__cmd;

/* -- options (args.c) -- */

typedef struct tk__list {
    size_t n;
    char **items;
} tk__list;

typedef enum tk__opt_kind {
    TK__FLAG,   /* bool */
    TK__TEXT,   /* const char * */
    TK__NUMBER, /* uint64_t */
    TK__REAL,   /* double */
    TK__MANY,   /* tk__list: may be given again */
} tk__opt_kind;

typedef struct tk__opt {
    const char *name; /* long name */
    char letter;      /* or 0 */
    tk__opt_kind kind;
    void *out;
    const char *arg; /* what the help calls the value */
    const char *help;
} tk__opt;

enum { TK__GO = -1 };

/* Parses argv[1..] into `opts` and the options that every command has (--server, --json, ...), and
 * moves what is left to `rest` (between `min` and `max` of them). TK__GO: go on; anything else is
 * the exit code, the help or the mistake being printed already. Free `rest` with tk__list_free().
 */
int tk__args_parse(tk__ctl *ctl, const tk__cmd *cmd, const tk__opt *opts, size_t n_opts, int argc,
                   char **argv, tk__list *rest, size_t min, size_t max);
/* The same for a command whose only argument is the number of a job. */
int tk__args_parse_id(tk__ctl *ctl, const tk__cmd *cmd, const tk__opt *opts, size_t n_opts,
                      int argc, char **argv, uint64_t *id);
void tk__list_add(tk__list *list, char *item); /* borrows it */
void tk__list_free(tk__list *list);
/* "a,b" -> two items, allocated; free the list with tk__list_free_deep(). Empty items are left out.
 */
tk__list tk__list_split(const char *text);
void tk__list_free_deep(tk__list *list);
/* A whole number or a real one and nothing else; false otherwise. */
bool tk__parse_u64(const char *text, uint64_t *out);
bool tk__parse_real(const char *text, double *out);

/* -- asking the server (call.c) -- */

/* A unary call. NULL: it failed and the reason is on standard error. Free with
 * tk_client_free_message(). */
void *tk__call(tk__ctl *ctl, const char *path, const ProtobufCMessage *in,
               const ProtobufCMessageDescriptor *out);
/* The connection, or NULL with the reason printed. */
tk_client *tk__connect(tk__ctl *ctl);
/* Prints "trunkctl: NOT_FOUND: the server's sentence" and what may help; returns TK__FAILED. */
int tk__rpc_failed(const tk__ctl *ctl, const tk_client_status *status);

/* -- common endings -- */

/* "trunkctl: ..." on standard error, cleaned of control characters. Returns TK__FAILED. */
int tk__fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* The same for a wrong command line; points to the help and returns TK__USAGE. */
int tk__usage(const tk__cmd *cmd, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Prints a message as JSON, indented, with the field names of the .proto. Returns TK__DONE. */
int tk__print_json(const ProtobufCMessage *message);

/* Memory for a command line tool: out of memory ends the program with a sentence. */
void *tk__alloc(size_t n, size_t size); /* zeroed */
void *tk__grow(void *p, size_t n, size_t size);
char *tk__copy(const char *text);
char *tk__format(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* -- the commands, in the order of the overview (cmd_*.c) -- */

int tk__cmd_classify(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv);
int tk__cmd_evaluate(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv);
int tk__cmd_dataset_upload(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv);
int tk__cmd_dataset_list(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv);
int tk__cmd_dataset_get(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv);
int tk__cmd_dataset_delete(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv);
int tk__cmd_finetune(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv);
int tk__cmd_job_list(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv);
int tk__cmd_job_get(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv);
int tk__cmd_job_watch(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv);
int tk__cmd_job_curves(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv);
int tk__cmd_gate_explain(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv);
int tk__cmd_job_cancel(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv);
int tk__cmd_heads(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv);
int tk__cmd_head_delete(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv);
int tk__cmd_validation(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv);
/* validation --history */
int tk__history(tk__ctl *ctl, const tk__list *heads, bool csv);
int tk__cmd_tenant_create(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv);
int tk__cmd_tenant_list(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv);
int tk__cmd_tenant_limits(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv);
int tk__cmd_tenant_delete(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv);
int tk__cmd_token_issue(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv);
int tk__cmd_token_revoke(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv);
int tk__cmd_versions(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv);
int tk__cmd_rollback(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv);
int tk__cmd_version_label(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv);
int tk__cmd_version_unlabel(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv);
int tk__cmd_version_export(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv);
int tk__cmd_trunk_import(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv);
int tk__cmd_status(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv);
int tk__cmd_top(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv);
int tk__cmd_bench(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv);
int tk__cmd_health(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv);

#endif
