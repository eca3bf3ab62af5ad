/* The command line: a table of options per command feeds both getopt_long and the help, so that
 * neither can say what the other does not know. */
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ctl.h"

enum { FIRST_VALUE = 256, COMMON = 12 };

/* Options of every command; --help among them. */
static void common_opts(tk__ctl *ctl, tk__opt out[COMMON])
{
    const tk__opt opts[COMMON] = {
        {"server", 's', TK__TEXT, &ctl->server, "ADDRESS", "the server: host:port or unix:/path"},
        {"token", 0, TK__TEXT, &ctl->token, "TOKEN",
         "bearer token; other users see it in ps: rather --token-file"},
        {"token-file", 0, TK__TEXT, &ctl->token_file, "FILE",
         "the file whose first line is the token"},
        {"tls", 0, TK__FLAG, &ctl->tls, NULL,
         "encrypt, and trust servers that the system's certificates vouch for"},
        {"tls-ca", 0, TK__TEXT, &ctl->tls_ca, "FILE", "the same, but with these certificates"},
        {"tls-client-cert", 0, TK__TEXT, &ctl->tls_client_cert, "FILE",
         "your own certificate; it may stand in for a token"},
        {"tls-client-key", 0, TK__TEXT, &ctl->tls_client_key, "FILE", "its key"},
        {"tls-name", 0, TK__TEXT, &ctl->tls_name, "NAME",
         "the name in the server's certificate, where it is not the host of --server"},
        {"timeout", 0, TK__NUMBER, &ctl->timeout_ms, "MS",
         "give up on one answer after so many milliseconds"},
        {"json", 0, TK__FLAG, &ctl->json, NULL, "print JSON"},
        {"quiet", 'q', TK__FLAG, &ctl->quiet, NULL, "print only the one value that a script needs"},
        {"help", 'h', TK__FLAG, &ctl->help, NULL, "print this help"},
    };
    memcpy(out, opts, sizeof(opts));
}

static void print_opt(const tk__opt *opt)
{
    char left[64];
    snprintf(left, sizeof(left), "%s%c%c --%s%s%s", opt->letter ? "-" : " ",
             opt->letter ? opt->letter : ' ', opt->letter ? ',' : ' ', opt->name,
             opt->arg ? " " : "", opt->arg ? opt->arg : "");
    printf("  %-36s %s\n", left, opt->help);
}

static void print_help(const tk__cmd *cmd, const tk__opt *opts, size_t n, const tk__opt *common)
{
    printf("trunkctl %s: %s\n\nUsage: trunkctl %s%s%s [OPTIONS]\n\n%s\n", cmd->name, cmd->summary,
           cmd->name, cmd->args[0] ? " " : "", cmd->args, cmd->text);
    if (n) printf("\nOptions:\n");
    for (size_t i = 0; i < n; i++)
        print_opt(&opts[i]);
    printf("\nOptions of every command:\n");
    for (size_t i = 0; i < COMMON; i++)
        print_opt(&common[i]);
}

bool tk__parse_u64(const char *text, uint64_t *out)
{
    char *end;
    if (text[0] < '0' || text[0] > '9') return false;
    errno = 0;
    const unsigned long long value = strtoull(text, &end, 10);
    if (errno || *end) return false;
    *out = value;
    return true;
}

bool tk__parse_real(const char *text, double *out)
{
    char *end;
    errno = 0;
    const double value = strtod(text, &end);
    if (end == text || errno || *end || !isfinite(value)) return false;
    *out = value;
    return true;
}

/* Stores one option's value; false when it is not of the option's kind. */
static bool store(const tk__opt *opt, char *value)
{
    switch (opt->kind) {
    case TK__FLAG:
        *(bool *)opt->out = true;
        return true;
    case TK__TEXT:
        *(const char **)opt->out = value;
        return true;
    case TK__NUMBER:
        return tk__parse_u64(value, opt->out);
    case TK__REAL:
        return tk__parse_real(value, opt->out);
    case TK__MANY:
        tk__list_add(opt->out, value);
        return true;
    }
    return false;
}

/* Fills getopt's tables from ours: `all` has n options. */
static void to_getopt(const tk__opt *all, size_t n, struct option *longs, char *shorts)
{
    *shorts++ = ':';
    for (size_t i = 0; i < n; i++) {
        const bool has_value = all[i].kind != TK__FLAG;
        longs[i] = (struct option){.name = all[i].name,
                                   .has_arg = has_value ? required_argument : no_argument,
                                   .val = FIRST_VALUE + (int)i};
        if (!all[i].letter) continue;
        *shorts++ = all[i].letter;
        if (has_value) *shorts++ = ':';
    }
    *shorts = '\0';
}

static const tk__opt *by_getopt(const tk__opt *all, size_t n, int found)
{
    for (size_t i = 0; i < n; i++)
        if (found == FIRST_VALUE + (int)i || (all[i].letter && found == all[i].letter))
            return &all[i];
    return NULL;
}

/* getopt's loop over `all`. TK__GO or an exit code. */
static int parse_opts(const tk__cmd *cmd, const tk__opt *all, size_t n, int argc, char **argv)
{
    struct option *longs = tk__alloc(n + 1, sizeof(*longs));
    char *shorts = tk__alloc(2 * n + 2, 1);
    to_getopt(all, n, longs, shorts);
    int code = TK__GO;
    optind = 1;
    opterr = 0;
    for (int found;
         code == TK__GO && (found = getopt_long(argc, argv, shorts, longs, NULL)) != -1;) {
        const char *said = argv[optind > 1 ? optind - 1 : 1];
        const tk__opt *opt = by_getopt(all, n, found);
        if (found == ':')
            code = tk__usage(cmd, "%s needs a value", said);
        else if (!opt)
            code = tk__usage(cmd, "unknown option %s", said);
        else if (!store(opt, optarg))
            code = tk__usage(cmd, "--%s: \"%s\" is not a %s", opt->name, optarg,
                             opt->kind == TK__NUMBER ? "whole number" : "number");
    }
    free(longs);
    free(shorts);
    return code;
}

int tk__args_parse(tk__ctl *ctl, const tk__cmd *cmd, const tk__opt *opts, size_t n_opts, int argc,
                   char **argv, tk__list *rest, size_t min, size_t max)
{
    *rest = (tk__list){0};
    const size_t n = n_opts + COMMON;
    tk__opt *all = tk__alloc(n, sizeof(*all));
    if (n_opts) memcpy(all, opts, n_opts * sizeof(*opts));
    common_opts(ctl, all + n_opts);
    int code = parse_opts(cmd, all, n, argc, argv);
    if (code == TK__GO && ctl->help) {
        print_help(cmd, all, n_opts, all + n_opts);
        code = TK__DONE;
    }
    free(all);
    if (code != TK__GO) return code;
    for (int i = optind; i < argc; i++)
        tk__list_add(rest, argv[i]);
    if (rest->n < min)
        code = tk__usage(cmd, "%s: %s is missing", cmd->name, cmd->args);
    else if (rest->n > max)
        code = tk__usage(cmd, "%s: \"%s\" is one argument too many", cmd->name, rest->items[max]);
    if (code != TK__GO) tk__list_free(rest);
    return code;
}

void tk__list_add(tk__list *list, char *item)
{
    list->items = tk__grow(list->items, list->n + 1, sizeof(*list->items));
    list->items[list->n++] = item;
}

void tk__list_free(tk__list *list)
{
    free(list->items);
    *list = (tk__list){0};
}

tk__list tk__list_split(const char *text)
{
    tk__list list = {0};
    for (const char *p = text; p && *p;) {
        const size_t n = strcspn(p, ",");
        if (n) tk__list_add(&list, tk__format("%.*s", (int)n, p));
        p += n + (p[n] == ',');
    }
    return list;
}

void tk__list_free_deep(tk__list *list)
{
    for (size_t i = 0; i < list->n; i++)
        free(list->items[i]);
    tk__list_free(list);
}

int tk__args_parse_id(tk__ctl *ctl, const tk__cmd *cmd, const tk__opt *opts, size_t n_opts,
                      int argc, char **argv, uint64_t *id)
{
    tk__list rest;
    int code = tk__args_parse(ctl, cmd, opts, n_opts, argc, argv, &rest, 1, 1);
    if (code != TK__GO) return code;
    if (!tk__parse_u64(rest.items[0], id))
        code = tk__usage(cmd, "\"%s\" is not a job's number", rest.items[0]);
    tk__list_free(&rest);
    return code;
}
