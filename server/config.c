/* See config.h. One table gives parsing, environment names, names in the file and the manual. */
#include "config.h"

#include <arpa/inet.h>
#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config_file.h"
#include "engine/mem.h"

typedef enum value_kind { TEXT, CHOICE, COUNT, BYTES, REAL } value_kind;

typedef struct option {
    const char *name, *arg;
    value_kind kind;
    size_t offset;    /* into tk_config */
    double min, max;  /* of numbers */
    const char *help; /* of CHOICE: begins with the choices, up to the first colon */
} option;

#define AT(field) offsetof(tk_config, field)

static const option options[] = {
    {"config", "FILE", TEXT, AT(file), 0, 0,
     "lines of \"name = value\" with the names of these flags; # begins a comment. A flag wins "
     "over a variable, and that over the file. SIGHUP reads it again: what can change while the "
     "server runs does so, and the log names what needs a restart"},
    {"store", "DIR", TEXT, AT(store), 0, 0,
     "where everything that lasts is kept; made when missing. Default: /var/lib/trunkd for root, "
     "else "
     "$XDG_DATA_HOME/trunkd, else ~/.local/share/trunkd. The first start writes an admin token to "
     "DIR/admin.token"},
    {"listen", "ADDR", TEXT, AT(listen), 0, 0,
     "HOST:PORT, or unix:PATH. Port 0 takes a free one. Anything but this machine's own addresses "
     "(127.0.0.1, ::1, localhost, unix:) needs --tls-cert. Default: 127.0.0.1:7700"},
    {"tls-cert", "FILE", TEXT, AT(tls_cert), 0, 0,
     "the server's certificate and its chain, PEM; with --tls-key. Both are read again when they "
     "change: new connections get the new one. Default: plain text"},
    {"tls-key", "FILE", TEXT, AT(tls_key), 0, 0, "the key of --tls-cert, PEM, not encrypted"},
    {"tls-client-ca", "FILE", TEXT, AT(tls_client_ca), 0, 0,
     "ask clients for certificates, and take those that these certificates (PEM) have signed. One "
     "with the URI trunkd:tenant:NAME, or without such a URI the common name NAME, acts for tenant "
     "NAME and needs no token; every other one needs a token, and so does an admin"},
    {"tls-client", "HOW", CHOICE, AT(tls_client), 0, 0,
     "required|optional: whether a client may come without a certificate. Default: required, with "
     "--tls-client-ca"},
    {"allow-plaintext", "YES|NO", CHOICE, AT(allow_plaintext), 0, 0,
     "yes|no: listen without TLS where other machines can connect, as something else encrypts. "
     "Default: no"},
    {"port-file", "PATH", TEXT, AT(port_file), 0, 0,
     "write the port to PATH once the server answers, for scripts; removed at the end"},
    {"arch", "NAME", CHOICE, AT(arch), 0, 0,
     "resnet18|resnet34|resnet50|resnet20|resnet32|resnet56: the trunk that a fresh store will "
     "train; "
     "kept in the store from the first start on, and fixed. Default: resnet20"},
    {"px", "N", COUNT, AT(px), 32, 448,
     "the trunk's input size, fixed like --arch: 32 with resnet20/32/56, 64 to 448 with the "
     "others. "
     "Default: 32, or 224"},
    {"resize", "N", COUNT, AT(resize), 32, 1024,
     "images are resized to N before the centre is cropped to --px; fixed like --arch. Default: px "
     "* "
     "8/7, or px with resnet20/32/56"},
    {"resize-mode", "MODE", CHOICE, AT(resize_mode), 0, 0,
     "short|squash: resize the short side and keep the shape, or both sides; fixed like --arch. "
     "Default: "
     "short"},
    {"threads", "N", COUNT, AT(threads), 1, 1024, "threads of inference. Default: one per core"},
    {"decode-threads", "N", COUNT, AT(decode_threads), 1, 64,
     "threads that decode images. Default: one per core that --threads leaves, or per core"},
    {"batch", "N", COUNT, AT(batch), 1, 1024,
     "most images of one pass through the trunk. Default: 16"},
    {"delay-ms", "MS", REAL, AT(delay_ms), 0, 1000,
     "how long an image may wait for others to share its pass; none waits when none is on its way. "
     "Default: 2"},
    {"queue", "N", COUNT, AT(queue), 256, 1000000,
     "most images that wait for an answer, of all tenants; more are refused. Default: 1024"},
    {"tenant-queue", "N", COUNT, AT(tenant_queue), 256, 1000000,
     "the same of one tenant. Default: half of --queue, at least 256"},
    {"tenant-rate", "N", REAL, AT(tenant_rate), 1, 1e6,
     "images a second of one tenant; one second's may come at once, more are refused. Default: "
     "none"},
    {"pinned-versions", "N", COUNT, AT(pinned_versions), 1, 64,
     "most versions in memory beside the current and the labelled ones, for requests that name "
     "them "
     "by number; each takes as much memory as the current one. Default: 2"},
    {"grace-s", "S", COUNT, AT(grace_s), 0, 3600,
     "how long running calls may go on after SIGTERM. Default: 20"},
    {"trainer", "PATH", TEXT, AT(trainer), 0, 0,
     "the program that trains. Default: trunkd-trainer beside this one"},
    {"trainer-threads", "N", COUNT, AT(trainer_threads), 1, 1024,
     "its threads; it runs at idle priority. Default: one per core"},
    {"trainer-memory", "BYTES", BYTES, AT(trainer_memory), 0, 1e15, "its limit. Default: none"},
    {"max-upload-bytes", "BYTES", BYTES, AT(max_upload_bytes), 1, 1e15,
     "of one data set. Default: 16G"},
    {"max-tenant-bytes", "BYTES", BYTES, AT(max_tenant_bytes), 1, 1e15,
     "of all data sets of a tenant. Default: 16G"},
    {"max-queued-jobs", "N", COUNT, AT(max_queued_jobs), 1, 100000,
     "of one tenant, queued or running. Default: 16"},
    {"max-connections", "N", COUNT, AT(max_connections), 1, 1000000, "Default: 4096"},
    {"isa", "NAME", CHOICE, AT(isa), 0, 0,
     "auto|scalar|avx2|avx512: kernels to use. Default: auto, the best the processor has"},
    {"precision", "NAME", CHOICE, AT(precision), 0, 0,
     "fp32|bf16|int8|auto: the numbers that inference computes with. A version that does not admit "
     "bf16 or int8 (a head would lose more than its tolerance; trunkctl versions --precision) is "
     "served in fp32. auto measures at load and takes the fastest that is admitted. Default: fp32"},
    {"http", "ADDR", TEXT, AT(http), 0, 0,
     "HOST:PORT for GET /metrics (Prometheus), /livez and /readyz, or off. HOST is an IP address "
     "or "
     "localhost; port 0 takes a free one, which the log tells. It asks for no token, and the "
     "metrics name tenants: choose an address that only those can reach who may see that, such as "
     "127.0.0.1:7701. Default: off"},
    {"access-log", "YES|NO", CHOICE, AT(access_log), 0, 0,
     "yes|no: one line for every finished call: method, tenant, code, microseconds, bytes, images, "
     "version, and the trace id of a traceparent header. Default: no"},
    {"log-format", "FORMAT", CHOICE, AT(log_format), 0, 0,
     "logfmt|json: of the lines on standard error. Default: logfmt"},
    {"log-level", "LEVEL", CHOICE, AT(log_level), 0, 0,
     "debug|info|warn|error: the least that is logged. Default: info"},
};
enum { N_OPTIONS = sizeof options / sizeof options[0] };

/* What a reload may change. The server looks at these when it is told (tk_server_reload()), or at
 * its end. */
static const size_t live[] = {
    AT(queue),     AT(tenant_queue),     AT(tenant_rate),      AT(delay_ms),
    AT(grace_s),   AT(max_upload_bytes), AT(max_tenant_bytes), AT(max_queued_jobs),
    AT(log_level), AT(log_format),       AT(access_log),
};

static bool one_of(const char *choices, const char *value)
{
    const size_t len = strlen(value);
    const char *end = strchr(choices, ':');
    for (const char *c = choices; c && c < end;) {
        const size_t n = strcspn(c, "|:");
        if (n == len && strncmp(c, value, n) == 0) return true;
        c += n + 1;
    }
    return false;
}

/* "64", "16G", "1.5"; false when it is not such a number. */
static bool number(const char *text, value_kind kind, double *out)
{
    char *end;
    errno = 0;
    if (!isdigit((unsigned char)text[0])) return false;
    *out = strtod(text, &end);
    if (errno != 0 || !isfinite(*out)) return false;
    if (kind == BYTES && *end) {
        const char *unit = strchr("KMGT", toupper((unsigned char)*end));
        if (!unit) return false;
        *out = ldexp(*out, 10 * (int)(1 + (unit - "KMGT")));
        end++;
    }
    return *end == '\0' && (kind == REAL || *out == floor(*out));
}

/* `source` is what the person wrote: "--px", "TRUNKD_PX" or "FILE:3: px". */
static tk_err set(tk_config *c, const option *o, const char *source, const char *value,
                  tk_diag *diag)
{
    char *field = (char *)c + o->offset;
    if (o->kind == TEXT || o->kind == CHOICE) {
        if (o->kind == CHOICE && !one_of(o->help, value)) {
            return tk_fail(diag, TK_BADARG, "%s is \"%s\", but must be one of %.*s", source, value,
                           (int)strcspn(o->help, ":"), o->help);
        }
        if (!*value) return tk_fail(diag, TK_BADARG, "%s is empty", source);
        memcpy(field, &value, sizeof value);
        return TK_OK;
    }
    double x;
    if (!number(value, o->kind, &x) || x < o->min || x > o->max) {
        return tk_fail(diag, TK_BADARG, "%s is \"%s\", but must be a %snumber from %.0f to %.0f%s",
                       source, value, o->kind == REAL ? "" : "whole ", o->min, o->max,
                       o->kind == BYTES ? " (K, M, G, T may follow)" : "");
    }
    if (o->kind == REAL) {
        memcpy(field, &x, sizeof x);
    } else {
        const uint64_t n = (uint64_t)x;
        memcpy(field, &n, sizeof n);
    }
    return TK_OK;
}

static void env_name(const option *o, char out[64])
{
    snprintf(out, 64, "TRUNKD_%s", o->name);
    for (char *p = out; *p; p++)
        *p = *p == '-' ? '_' : (char)toupper((unsigned char)*p);
}

static tk_err from_environment(tk_config *c, char *(*lookup)(const char *), tk_diag *diag)
{
    for (size_t i = 0; i < N_OPTIONS; i++) {
        char name[64];
        env_name(&options[i], name);
        const char *value = lookup(name);
        if (!value) continue;
        const tk_err err = set(c, &options[i], name, value, diag);
        if (err != TK_OK) return err;
    }
    return TK_OK;
}

/* One argument; *used is how many of argv it took. */
static tk_err from_argument(tk_config *c, char **argv, int left, int *used, tk_diag *diag)
{
    const char *arg = argv[0];
    *used = 1;
    if (strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0) {
        c->help = true;
        return TK_OK;
    }
    if (strcmp(arg, "--version") == 0) {
        c->version = true;
        return TK_OK;
    }
    const size_t n = strcspn(arg, "=");
    for (size_t i = 0; strncmp(arg, "--", 2) == 0 && i < N_OPTIONS; i++) {
        const option *o = &options[i];
        if (strlen(o->name) != n - 2 || strncmp(arg + 2, o->name, n - 2) != 0) continue;
        char source[64];
        snprintf(source, sizeof source, "--%s", o->name);
        if (arg[n] == '=') return set(c, o, source, arg + n + 1, diag);
        if (left < 2) return tk_fail(diag, TK_BADARG, "%s needs a value (%s)", source, o->arg);
        *used = 2;
        return set(c, o, source, argv[1], diag);
    }
    return tk_fail(diag, TK_BADARG, "unknown argument \"%s\"; see trunkd --help", arg);
}

static tk_err from_arguments(tk_config *c, int argc, char **argv, tk_diag *diag)
{
    tk_err err = TK_OK;
    int used;
    for (int i = 1; err == TK_OK && i < argc; i += used)
        err = from_argument(c, argv + i, argc - i, &used, diag);
    return err;
}

/* The option that may stand in the file under this name, or N_OPTIONS. */
static size_t find_setting(const char *name)
{
    size_t i = 0;
    while (i < N_OPTIONS && (options[i].offset == AT(file) || strcmp(options[i].name, name) != 0))
        i++;
    return i;
}

static tk_err from_file(tk_config *c, const char *path, tk_diag *diag)
{
    tk_err err = tk__config_file_read(path, &c->text, diag);
    unsigned seen[N_OPTIONS] = {0}; /* at which line; 0: not yet */
    char *at = c->text;
    tk__config_line line = {0};
    while (err == TK_OK && (err = tk__config_file_next(path, &at, &line, diag)) == TK_OK &&
           line.name) {
        const size_t i = find_setting(line.name);
        if (i == N_OPTIONS)
            return tk_fail(diag, TK_BADARG, "%s:%u: there is no setting \"%s\"; see trunkd --help",
                           path, line.number, line.name);
        if (seen[i])
            return tk_fail(diag, TK_BADARG, "%s:%u: %s is given in line %u already", path,
                           line.number, line.name, seen[i]);
        seen[i] = line.number;
        char source[400];
        snprintf(source, sizeof source, "%.300s:%u: %s", path, line.number, line.name);
        err = set(c, &options[i], source, line.value, diag);
    }
    return err;
}

static tk_err default_store(tk_config *c, char *(*lookup)(const char *), tk_diag *diag)
{
    const char *data = lookup("XDG_DATA_HOME"), *home = lookup("HOME");
    int n;
    if (geteuid() == 0)
        n = snprintf(c->default_store, sizeof c->default_store, "/var/lib/trunkd");
    else if (data && *data)
        n = snprintf(c->default_store, sizeof c->default_store, "%s/trunkd", data);
    else if (home && *home)
        n = snprintf(c->default_store, sizeof c->default_store, "%s/.local/share/trunkd", home);
    else
        return tk_fail(diag, TK_BADARG, "no HOME to keep a store in: give --store DIR");
    if (n < 0 || (size_t)n >= sizeof c->default_store) {
        return tk_fail(diag, TK_BADARG,
                       "the default path of the store is too long: give --store DIR");
    }
    c->store = c->default_store;
    return TK_OK;
}

/* Whether only this machine can connect: an address that says so by itself, nothing looked up. */
static bool is_local(const char *listen)
{
    if (strncmp(listen, "unix:", 5) == 0 || strncmp(listen, "unix-abstract:", 14) == 0) return true;
    char host[64];
    const bool bracket = *listen == '[';
    const size_t n = strcspn(listen + bracket, bracket ? "]" : ":");
    if (n >= sizeof host) return false;
    memcpy(host, listen + bracket, n);
    host[n] = '\0';
    struct in_addr v4;
    struct in6_addr v6;
    if (bracket) return inet_pton(AF_INET6, host, &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
    if (inet_pton(AF_INET, host, &v4) == 1) return ntohl(v4.s_addr) >> 24 == 127;
    return strcmp(host, "localhost") == 0;
}

/* Flags that only make sense together, and the one thing that must not happen by accident. */
static tk_err check_transport(const tk_config *c, tk_diag *diag)
{
    if (!c->tls_cert != !c->tls_key)
        return tk_fail(diag, TK_BADARG, "%s is given without %s",
                       c->tls_cert ? "--tls-cert" : "--tls-key",
                       c->tls_cert ? "--tls-key" : "--tls-cert");
    if (c->tls_client_ca && !c->tls_cert)
        return tk_fail(diag, TK_BADARG,
                       "--tls-client-ca is given without --tls-cert and --tls-key");
    if (c->tls_client && !c->tls_client_ca)
        return tk_fail(diag, TK_BADARG, "--tls-client is %s, but there is no --tls-client-ca",
                       c->tls_client);
    if (c->tls_cert || is_local(c->listen)) return TK_OK;
    if (c->allow_plaintext && strcmp(c->allow_plaintext, "yes") == 0) return TK_OK;
    return tk_fail(
        diag, TK_BADARG,
        "--listen is \"%s\", which other machines may reach, and tokens and images would "
        "go there in clear text: give --tls-cert and --tls-key, or --allow-plaintext yes "
        "if something else encrypts (a proxy, a tunnel)",
        c->listen);
}

static void set_defaults(tk_config *c)
{
    *c = (tk_config){.listen = "127.0.0.1:7700",
                     .batch = 16,
                     .queue = 1024,
                     .delay_ms = 2,
                     .pinned_versions = 2,
                     .grace_s = 20,
                     .max_upload_bytes = UINT64_C(16) << 30,
                     .max_queued_jobs = 16,
                     .log_format = "logfmt",
                     .log_level = "info",
                     .isa = "auto",
                     .precision = "fp32",
                     .access_log = "no"};
}

/* All that is set, the least important first. The file is known when the others were read. */
static tk_err gather(tk_config *c, int argc, char **argv, char *(*lookup)(const char *name),
                     tk_diag *diag)
{
    tk_err err = TK_OK;
    const char *file = NULL;
    do {
        set_defaults(c);
        if (file) err = from_file(c, file, diag);
        if (err == TK_OK) err = from_environment(c, lookup, diag);
        if (err == TK_OK) err = from_arguments(c, argc, argv, diag);
        if (file || err != TK_OK || c->help || c->version) return err;
        file = c->file;
    } while (file);
    return err;
}

tk_err tk_config_parse(tk_config *c, int argc, char **argv, char *(*lookup)(const char *name),
                       tk_diag *diag)
{
    tk_err err = gather(c, argc, argv, lookup, diag);
    if (err == TK_OK && (c->help || c->version)) return TK_OK;
    if (err == TK_OK) err = check_transport(c, diag);
    if (err == TK_OK && !c->store) err = default_store(c, lookup, diag);
    if (err != TK_OK) tk_config_fini(c);
    return err;
}

void tk_config_fini(tk_config *c)
{
    tk_free(c->text);
    tk_free(c->live_text);
    c->text = c->live_text = NULL;
}

/* -- a reload -- */

enum { VALUE_SIZE = sizeof(uint64_t) };
static_assert(sizeof(char *) == VALUE_SIZE && sizeof(double) == VALUE_SIZE,
              "options are taken over without a look at their kind");

static bool is_text(const option *o)
{
    return o->kind == TEXT || o->kind == CHOICE;
}

static const char *text_of(const tk_config *c, const option *o)
{
    const char *text;
    memcpy(&text, (const char *)c + o->offset, sizeof text);
    return text;
}

static bool same(const tk_config *a, const tk_config *b, const option *o)
{
    if (!is_text(o))
        return memcmp((const char *)a + o->offset, (const char *)b + o->offset, VALUE_SIZE) == 0;
    const char *x = text_of(a, o), *y = text_of(b, o);
    return x && y ? strcmp(x, y) == 0 : x == y;
}

/* The value as a person would write it. 0 stands for an option that was left out. */
static void print_value(const tk_config *c, const option *o, char *out, size_t size)
{
    uint64_t n;
    double x;
    memcpy(&n, (const char *)c + o->offset, sizeof n);
    memcpy(&x, (const char *)c + o->offset, sizeof x);
    if (n == 0 && (is_text(o) || o->min > 0))
        snprintf(out, size, "default");
    else if (is_text(o))
        snprintf(out, size, "%s", text_of(c, o));
    else if (o->kind == REAL)
        snprintf(out, size, "%g", x);
    else
        snprintf(out, size, "%" PRIu64, n);
}

static void append(char *list, size_t size, const char *name, const char *value)
{
    const size_t n = strlen(list);
    snprintf(list + n, size - n, "%s%s%s%s", n ? " " : "", name, value ? "=" : "",
             value ? value : "");
}

static bool is_live(const option *o)
{
    for (size_t i = 0; i < sizeof live / sizeof live[0]; i++)
        if (live[i] == o->offset) return true;
    return false;
}

void tk_config_adopt(tk_config *running, tk_config *next, tk_config_changes *changes)
{
    *changes = (tk_config_changes){{0}, {0}};
    for (size_t i = 0; i < N_OPTIONS; i++) {
        const option *o = &options[i];
        const bool differs = !same(running, next, o);
        if (differs && !is_live(o))
            append(changes->restart, sizeof changes->restart, o->name, NULL);
        if (!is_live(o)) continue;
        char value[64];
        print_value(next, o, value, sizeof value);
        if (differs) append(changes->taken, sizeof changes->taken, o->name, value);
        memcpy((char *)running + o->offset, (const char *)next + o->offset, VALUE_SIZE);
    }
    tk_free(running->live_text); /* every live string points into the new one now */
    running->live_text = next->text;
    next->text = NULL;
}

/* Prints `text` in lines of at most 78 characters, each after `indent` spaces. */
static void wrap(FILE *to, const char *text, int indent)
{
    int column = 0;
    while (*text) {
        const int n = (int)strcspn(text, " ");
        if (column > 0 && indent + column + 1 + n > 78) {
            fputc('\n', to);
            column = 0;
        }
        if (column == 0)
            fprintf(to, "%*s%.*s", indent, "", n, text);
        else
            fprintf(to, " %.*s", n, text);
        column += n + (column > 0);
        text += n;
        text += *text == ' ';
    }
    fputc('\n', to);
}

void tk_config_help(FILE *to)
{
    fputs(
        "trunkd " TRUNKD_VERSION
        " - one shared trunk, many heads: serves image classifiers and learns "
        "new ones\n\n"
        "usage: trunkd [--FLAG VALUE]...\n\n"
        "Serves the heads of many tenants on one shared ResNet trunk over gRPC, and fine-tunes "
        "the\n"
        "trunk for new heads without letting the old ones degrade. Stop it with SIGTERM or "
        "SIGINT:\n"
        "running calls are finished first, and a running job goes on at the next start. SIGHUP "
        "reads\n"
        "the file of --config again.\n\n"
        "FLAGS (each also as a variable: --delay-ms is TRUNKD_DELAY_MS; and as a line of a file:\n"
        "delay-ms = 5)\n\n",
        to);
    for (size_t i = 0; i < N_OPTIONS; i++) {
        fprintf(to, "  --%s %s\n", options[i].name, options[i].arg);
        wrap(to, options[i].help, 6);
    }
    fputs("  --version\n      print the version\n  -h, --help\n      print this\n\n"
          "EXAMPLES\n\n"
          "  A server to try things with, and a first tenant:\n"
          "      trunkd --store ./store &\n"
          "      trunkctl --token \"$(cat ./store/admin.token)\" tenant create alice\n\n"
          "  ResNet-18 at 64 px, on every interface, with two threads kept for other things:\n"
          "      trunkd --listen 0.0.0.0:7700 --tls-cert cert.pem --tls-key key.pem \\\n"
          "             --arch resnet18 --px 64 --threads 6\n\n"
          "  In a script, on a free port:\n"
          "      trunkd --listen 127.0.0.1:0 --port-file port &\n\n"
          "EXIT STATUS\n\n"
          "  0 stopped by a signal, 1 failed (the last line on standard error says why), 2 wrong "
          "usage\n",
          to);
}
