/* versions, version label, rollback, version export, trunk import: the admin's view of what is
 * served. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ctl.h"
#include "term.h"
#include "trunkd/v1/admin.pb-c.h"

enum { CHUNK = 256 << 10 };

/* "fp32, bf16, int8 *": what the version admits, and a star at the one in which it is served. */
static void precisions_cell(tk__table *table, const Trunkd__V1__Version *v)
{
    char text[128] = "-";
    size_t at = 0;
    for (size_t i = 0; i < v->n_precisions && at < sizeof(text); i++) {
        const Trunkd__V1__Precision *p = v->precisions[i];
        if (!p->admitted) continue;
        at += (size_t)snprintf(text + at, sizeof(text) - at, "%s%.16s%s", at ? ", " : "", p->name,
                               strcmp(p->name, v->served_precision) == 0 ? " *" : "");
    }
    tk__table_cell(table, "%s", text);
}

typedef Trunkd__V1__ListVersionsResponse listing;

/* "canary 5 %, stable": of the version; "(not loaded)" where it cannot answer. */
static void labels_cell(tk__table *table, const listing *list, uint64_t version)
{
    char text[640] = "";
    size_t at = 0;
    for (size_t i = 0; i < list->n_labels && at < sizeof(text); i++) {
        const Trunkd__V1__VersionLabel *l = list->labels[i];
        if (l->version != version) continue;
        at += (size_t)snprintf(text + at, sizeof(text) - at, "%s%.40s", at ? ", " : "", l->label);
        if (l->percent && at < sizeof(text))
            at += (size_t)snprintf(text + at, sizeof(text) - at, " %u %%", (unsigned)l->percent);
        if (!l->loaded && at < sizeof(text))
            at += (size_t)snprintf(text + at, sizeof(text) - at, " (not loaded)");
    }
    tk__table_cell(table, "%s", text[0] ? text : "-");
}

static void version_row(tk__table *table, const listing *list, const Trunkd__V1__Version *v)
{
    char buf[64], job[32] = "-", heads[512] = "";
    if (v->job) snprintf(job, sizeof(job), "%llu", (unsigned long long)v->job);
    size_t at = 0;
    for (size_t i = 0; i < v->n_heads && at < sizeof(heads); i++)
        at += (size_t)snprintf(heads + at, sizeof(heads) - at, "%s%.80s %.1f %%", i ? ", " : "",
                               v->heads[i]->head, 100 * v->heads[i]->accuracy);
    tk__table_cell(table, "%llu%s", (unsigned long long)v->number, v->current ? " *" : "");
    labels_cell(table, list, v->number);
    tk__table_cell(table, "%s", tk__when(v->created_ms, buf, sizeof(buf)));
    tk__table_cell(table, "%s", job);
    tk__table_cell(table, "%s", tk__bytes(v->bytes, buf, sizeof(buf)));
    precisions_cell(table, v);
    tk__table_cell(table, "%s", heads);
    tk__table_cell(table, "%s", v->reason);
}

static int print_versions(const listing *list)
{
    tk__table table;
    tk__table_init(&table, "lllrrlll");
    static const char *const titles[] = {"VERSION", "LABELS",     "MADE",  "JOB",
                                         "SIZE",    "PRECISIONS", "HEADS", "REASON"};
    for (size_t i = 0; i < sizeof(titles) / sizeof(*titles); i++)
        tk__table_cell(&table, "%s", titles[i]);
    for (size_t i = 0; i < list->n_versions; i++)
        version_row(&table, list, list->versions[i]);
    tk__table_print(&table, stdout, 0);
    return TK__DONE;
}

static void check_row(tk__table *table, const Trunkd__V1__Version *v,
                      const Trunkd__V1__Precision *p, const Trunkd__V1__HeadPrecision *h)
{
    char buf[32];
    const bool measured = h && h->images > 0;
    const bool served = strcmp(p->name, v->served_precision) == 0;
    tk__table_cell(table, "%llu%s", (unsigned long long)v->number, v->current ? " *" : "");
    tk__table_cell(table, "%s%s", p->name, served ? " *" : "");
    tk__table_cell(table, "%s", h ? h->head : "-");
    tk__table_cell(table, "%s", measured ? tk__percent(h->accuracy, buf, sizeof(buf)) : "-");
    tk__table_cell(table, "%s", measured ? tk__points(h->change, buf, sizeof(buf)) : "-");
    tk__table_cell(table, "%s", measured ? tk__percent(h->alike, buf, sizeof(buf)) : "-");
    if (measured)
        tk__table_cell(table, "%.1f", h->tolerance);
    else
        tk__table_cell(table, "-");
    tk__table_cell(table, "%llu", (unsigned long long)(h ? h->images : 0));
    tk__table_cell(table, "%s%s",
                   !measured     ? "not measured"
                   : h->admitted ? "admitted"
                                 : "refused",
                   measured && h->agreement ? " (agreement)" : "");
}

/* Each head in each precision against fp32. */
static int print_checks(size_t n, Trunkd__V1__Version *const *versions)
{
    tk__table table;
    tk__table_init(&table, "lllrrrrrl");
    static const char *const titles[] = {"VERSION", "PRECISION", "HEAD",   "ACCURACY", "CHANGE",
                                         "ALIKE",   "TOLERANCE", "IMAGES", "VERDICT"};
    for (size_t i = 0; i < sizeof(titles) / sizeof(*titles); i++)
        tk__table_cell(&table, "%s", titles[i]);
    for (size_t i = 0; i < n; i++)
        for (size_t k = 1; k < versions[i]->n_precisions; k++) { /* the first is fp32 itself */
            const Trunkd__V1__Precision *p = versions[i]->precisions[k];
            if (p->n_heads == 0) check_row(&table, versions[i], p, NULL);
            for (size_t h = 0; h < p->n_heads; h++)
                check_row(&table, versions[i], p, p->heads[h]);
        }
    tk__table_print(&table, stdout, 0);
    return TK__DONE;
}

int tk__cmd_versions(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv)
{
    bool precision = false;
    const tk__opt opts[] = {
        {"precision", 0, TK__FLAG, &precision, NULL, "every head in bf16 and int8, against fp32"}};
    tk__list rest;
    const int code = tk__args_parse(ctl, cmd, opts, 1, argc, argv, &rest, 0, 0);
    if (code != TK__GO) return code;
    Trunkd__V1__Empty request;
    trunkd__v1__empty__init(&request);
    Trunkd__V1__ListVersionsResponse *answer =
        tk__call(ctl, "/trunkd.v1.Admin/ListVersions", &request.base,
                 &trunkd__v1__list_versions_response__descriptor);
    if (!answer) return TK__FAILED;
    if (ctl->json)
        tk__print_json(&answer->base);
    else if (ctl->quiet)
        for (size_t i = 0; i < answer->n_versions; i++)
            printf("%llu\n", (unsigned long long)answer->versions[i]->number);
    else if (answer->n_versions == 0)
        puts("No version yet: the first job, or trunkctl trunk import, makes it.");
    else if (precision)
        print_checks(answer->n_versions, answer->versions);
    else
        print_versions(answer);
    tk_client_free_message(&answer->base);
    return TK__DONE;
}

/* Prints the version that an admin's action has made; takes it. */
static int version_answer(const tk__ctl *ctl, Trunkd__V1__Version *version)
{
    if (!version) return TK__FAILED;
    if (ctl->json)
        tk__print_json(&version->base);
    else if (ctl->quiet)
        printf("%llu\n", (unsigned long long)version->number);
    else
        print_versions(&(listing){.n_versions = 1, .versions = &version});
    tk_client_free_message(&version->base);
    return TK__DONE;
}

/* -- labels -- */

static int set_label(tk__ctl *ctl, char *label, uint64_t version, uint32_t percent)
{
    Trunkd__V1__SetVersionLabelRequest request;
    trunkd__v1__set_version_label_request__init(&request);
    request.label = label;
    request.version = version;
    request.percent = percent;
    Trunkd__V1__VersionLabel *answer =
        tk__call(ctl, "/trunkd.v1.Admin/SetVersionLabel", &request.base,
                 &trunkd__v1__version_label__descriptor);
    if (!answer) return TK__FAILED;
    if (ctl->json)
        tk__print_json(&answer->base);
    else if (!ctl->quiet)
        printf("%s is version %llu, %u %% of the requests that name none\n", answer->label,
               (unsigned long long)answer->version, (unsigned)answer->percent);
    tk_client_free_message(&answer->base);
    return TK__DONE;
}

int tk__cmd_version_label(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv)
{
    uint64_t version = 0, percent = 0;
    const tk__opt opts[] = {{"percent", 0, TK__NUMBER, &percent, "N",
                             "its share of the requests that name no version (default 0)"}};
    tk__list rest;
    int code = tk__args_parse(ctl, cmd, opts, 1, argc, argv, &rest, 2, 2);
    if (code != TK__GO) return code;
    if (!tk__parse_u64(rest.items[1], &version))
        code = tk__usage(cmd, "\"%s\" is not a version's number", rest.items[1]);
    else if (percent > 100)
        code = tk__usage(cmd, "--percent is 0 to 100");
    else
        code = set_label(ctl, rest.items[0], version, (uint32_t)percent);
    tk__list_free(&rest);
    return code;
}

int tk__cmd_version_unlabel(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv)
{
    tk__list rest;
    const int code = tk__args_parse(ctl, cmd, NULL, 0, argc, argv, &rest, 1, 1);
    if (code != TK__GO) return code;
    Trunkd__V1__DeleteVersionLabelRequest request;
    trunkd__v1__delete_version_label_request__init(&request);
    request.label = rest.items[0];
    Trunkd__V1__Empty *answer = tk__call(ctl, "/trunkd.v1.Admin/DeleteVersionLabel", &request.base,
                                         &trunkd__v1__empty__descriptor);
    tk__list_free(&rest);
    if (!answer) return TK__FAILED;
    tk_client_free_message(&answer->base);
    return TK__DONE;
}

/* Parses an optional or required version number. */
static int parse_number(tk__ctl *ctl, const tk__cmd *cmd, const tk__opt *opts, size_t n, int argc,
                        char **argv, size_t least, uint64_t *out)
{
    tk__list rest;
    int code = tk__args_parse(ctl, cmd, opts, n, argc, argv, &rest, least, 1);
    if (code != TK__GO) return code;
    if (rest.n && !tk__parse_u64(rest.items[0], out))
        code = tk__usage(cmd, "\"%s\" is not a version's number", rest.items[0]);
    tk__list_free(&rest);
    return code;
}

int tk__cmd_rollback(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv)
{
    Trunkd__V1__RollbackRequest request;
    trunkd__v1__rollback_request__init(&request);
    const int code = parse_number(ctl, cmd, NULL, 0, argc, argv, 1, &request.version);
    if (code != TK__GO) return code;
    return version_answer(ctl, tk__call(ctl, "/trunkd.v1.Admin/Rollback", &request.base,
                                        &trunkd__v1__version__descriptor));
}

/* Receives the file's chunks into `file`. False: writing failed (errno), the call being cancelled.
 */
static bool receive_file(tk_client_call *call, FILE *file, uint64_t *bytes)
{
    bool fine = true;
    for (ProtobufCMessage *message; (message = tk_client_receive(call));) {
        const Trunkd__V1__FileChunk *chunk = (const Trunkd__V1__FileChunk *)message;
        if (fine && fwrite(chunk->data.data, 1, chunk->data.len, file) != chunk->data.len) {
            fine = false;
            tk_client_cancel(call);
        }
        *bytes += chunk->data.len;
        tk_client_free_message(message);
    }
    return fine;
}

static int export_to(tk__ctl *ctl, uint64_t version, const char *path)
{
    tk_client *client = tk__connect(ctl);
    if (!client) return TK__FAILED;
    char *temp = tk__format("%s.part", path);
    FILE *file = fopen(temp, "we");
    int code = TK__DONE;
    if (!file) code = tk__fail("%s: %s", temp, strerror(errno));
    if (file) {
        Trunkd__V1__ExportVersionRequest request;
        trunkd__v1__export_version_request__init(&request);
        request.version = version;
        tk_client_status status = {0};
        uint64_t bytes = 0;
        tk_client_call *call = tk_client_start(client, "/trunkd.v1.Admin/ExportVersion",
                                               &trunkd__v1__file_chunk__descriptor, 0);
        if (call && tk_client_send(call, &request.base)) tk_client_send_end(call);
        bool fine = !call || receive_file(call, file, &bytes);
        if (fclose(file) != 0) fine = false;
        const int reason = errno;
        if (tk_client_finish(call, &status) != TK_CLIENT_OK && fine)
            code = tk__rpc_failed(ctl, &status);
        else if (!fine || rename(temp, path) != 0)
            code = tk__fail("%s: %s", path, strerror(fine ? errno : reason));
        char size[32];
        if (code == TK__DONE && !ctl->quiet)
            printf("%s: %s\n", path, tk__bytes(bytes, size, sizeof(size)));
        if (code != TK__DONE) unlink(temp);
    }
    free(temp);
    return code;
}

int tk__cmd_version_export(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv)
{
    const char *output = NULL;
    uint64_t version = 0;
    const tk__opt opts[] = {{"output", 'o', TK__TEXT, &output, "FILE",
                             "where to write (default: version-N.safetensors)"}};
    const int code = parse_number(ctl, cmd, opts, 1, argc, argv, 0, &version);
    if (code != TK__GO) return code;
    char *path = output    ? tk__copy(output)
                 : version ? tk__format("version-%llu.safetensors", (unsigned long long)version)
                           : tk__copy("version-current.safetensors");
    const int done = export_to(ctl, version, path);
    free(path);
    return done;
}

/* Streams the file into the call. False: reading it failed (errno), the call being cancelled. */
static bool send_file(tk_client_call *call, FILE *file, uint64_t size, bool quiet)
{
    uint8_t *buffer = tk__alloc(CHUNK, 1);
    tk__progress progress;
    tk__progress_begin(&progress, "importing", size, quiet);
    bool open = true;
    uint64_t sent = 0;
    for (size_t n; open && (n = fread(buffer, 1, CHUNK, file)) > 0;) {
        Trunkd__V1__ImportTrunkRequest request;
        trunkd__v1__import_trunk_request__init(&request);
        request.part_case = TRUNKD__V1__IMPORT_TRUNK_REQUEST__PART_CHUNK;
        request.chunk = (ProtobufCBinaryData){.len = n, .data = buffer};
        open = tk_client_send(call, &request.base);
        tk__progress_at(&progress, sent += n);
    }
    tk__progress_end(&progress);
    free(buffer);
    if (ferror(file)) {
        tk_client_cancel(call);
        return false;
    }
    if (open) tk_client_send_end(call);
    return true;
}

static int import_from(tk__ctl *ctl, const char *path, char *arch, uint32_t px)
{
    FILE *file = fopen(path, "re");
    struct stat st = {0};
    if (!file || fstat(fileno(file), &st) != 0) {
        if (file) fclose(file);
        return tk__fail("%s: %s", path, strerror(errno));
    }
    tk_client *client = tk__connect(ctl);
    int code = TK__FAILED;
    if (client) {
        tk_client_call *call = tk_client_start(client, "/trunkd.v1.Admin/ImportTrunk",
                                               &trunkd__v1__version__descriptor, 0);
        Trunkd__V1__ImportTrunkManifest manifest;
        trunkd__v1__import_trunk_manifest__init(&manifest);
        manifest.arch = arch;
        manifest.px = px;
        Trunkd__V1__ImportTrunkRequest request;
        trunkd__v1__import_trunk_request__init(&request);
        request.part_case = TRUNKD__V1__IMPORT_TRUNK_REQUEST__PART_MANIFEST;
        request.manifest = &manifest;
        tk_client_status status = {0};
        const bool begun = call && tk_client_send(call, &request.base);
        const bool fine = !begun || send_file(call, file, (uint64_t)st.st_size, ctl->quiet);
        if (!fine) tk__fail("%s: %s", path, strerror(errno));
        Trunkd__V1__Version *version =
            fine && call ? (Trunkd__V1__Version *)tk_client_receive(call) : NULL;
        const bool ok = tk_client_finish(call, &status) == TK_CLIENT_OK;
        if (!ok && fine) tk__rpc_failed(ctl, &status);
        if (ok && fine)
            code = version_answer(ctl, version);
        else if (version)
            tk_client_free_message(&version->base);
    }
    fclose(file);
    return code;
}

int tk__cmd_trunk_import(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv)
{
    const char *arch = NULL;
    uint64_t px = 0;
    const tk__opt opts[] = {
        {"arch", 0, TK__TEXT, &arch, "NAME",
         "resnet18, resnet34, resnet50, resnet20, resnet32 or resnet56"},
        {"px", 0, TK__NUMBER, &px, "N", "input size in pixels"},
    };
    tk__list rest;
    int code = tk__args_parse(ctl, cmd, opts, 2, argc, argv, &rest, 1, 1);
    if (code != TK__GO) return code;
    if (px > 10000) {
        code = tk__usage(cmd, "--px %llu is too large", (unsigned long long)px);
    } else {
        char *name = tk__copy(arch ? arch : "");
        code = import_from(ctl, rest.items[0], name, (uint32_t)px);
        free(name);
    }
    tk__list_free(&rest);
    return code;
}
