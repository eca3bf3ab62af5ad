/* See trunkd_process.h. */
#define _XOPEN_SOURCE 700 /* nftw, mkdtemp */
#include "trunkd_process.h"

#include <assert.h>
#include <fcntl.h>
#include <ftw.h>
#include <math.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "engine/mem.h"
#include "store/store.h"

extern char **environ;

enum { MAX_FLAGS = 24, PATIENCE_MS = 60000 };

static void must(tk_err err, const tk_diag *diag)
{
    if (err == TK_OK) return;
    fprintf(stderr, "%s: %s\n", tk_err_text(err), diag->text);
    abort();
}

/* -- the store -- */

static void commit_model(tk_store *store, uint64_t number, tk_model *model,
                         const int64_t tenants[2])
{
    static const char *const names[2] = {"type", "colour"};
    tk_diag diag = {{0}};
    char *path = tk_store_temp_path(store);
    must(tk_model_save(model, path, &diag), &diag);
    tk_object object;
    must(tk_store_stage(store, path, false, &object, &diag), &diag);
    tk_version_head heads[2];
    for (size_t i = 0; i < 2; i++) {
        heads[i] = (tk_version_head){.tenant = tenants[i],
                                     .n_labels = model->heads[i]->classes,
                                     .labels = model->heads[i]->labels,
                                     .tolerance = 1,
                                     .best = 0.5,
                                     .accuracy = 0.5,
                                     .change = (double)NAN,
                                     .top5 = (double)NAN};
        snprintf(heads[i].id, sizeof heads[i].id, "%s", model->heads[i]->id);
        snprintf(heads[i].name, sizeof heads[i].name, "%s", names[i]);
    }
    const tk_trunk trunk = {.arch = "resnet20", .preproc = model->preproc};
    tk_commit commit = {.expect_current = number - 1,
                        .model = &object,
                        .reason = "prepared",
                        .heads = heads,
                        .n_heads = 2,
                        .trunk = number == 1 ? &trunk : NULL};
    must(tk_store_version_next(store, &commit.number, &diag), &diag);
    assert(commit.number == number);
    must(tk_store_version_commit(store, &commit, &diag), &diag);
    tk_store_unstage(store, &object);
    tk_free(path);
    tk_model_destroy(model);
}

static void read_line(const char *path, char *out, size_t size)
{
    FILE *f = fopen(path, "r");
    assert(f);
    const char *line = fgets(out, (int)size, f);
    assert(line);
    out[strcspn(out, "\n")] = '\0';
    fclose(f);
}

void trunkd_prepare(trunkd *t, unsigned models)
{
    trunkd_prepare_with(t, models, fixture_model);
}

void trunkd_prepare_with(trunkd *t, unsigned models, tk_model *(*make)(uint64_t number))
{
    *t = (trunkd){.pid = 0};
    const char *tmp = getenv("TMPDIR");
    snprintf(t->dir, sizeof t->dir, "%s/trunkd-test-XXXXXX", tmp ? tmp : "/tmp");
    char *made = mkdtemp(t->dir);
    assert(made);
    snprintf(t->log, sizeof t->log, "%s/log", t->dir);
    snprintf(t->port_file, sizeof t->port_file, "%s/port", t->dir);
    char path[300];
    snprintf(path, sizeof path, "%s/store", t->dir);
    tk_diag diag = {{0}};
    tk_store *store;
    must(tk_store_open(&store, path, NULL, &diag), &diag);
    int64_t tenants[2];
    tk_token token;
    must(tk_store_tenant_create(store, "alice", &tenants[0], &token, &diag), &diag);
    snprintf(t->alice_token, sizeof t->alice_token, "%s", token.secret);
    must(tk_store_tenant_create(store, "bob", &tenants[1], &token, &diag), &diag);
    snprintf(t->bob_token, sizeof t->bob_token, "%s", token.secret);
    for (uint64_t number = 1; number <= models; number++)
        commit_model(store, number, make(number), tenants);
    tk_store_close(store);
    snprintf(path, sizeof path, "%s/store/admin.token", t->dir);
    read_line(path, t->admin_token, sizeof t->admin_token);
}

/* -- the process -- */

static pid_t running[16]; /* 0: free; so that a test that fails half-way leaves no server behind */

static void kill_all(void)
{
    for (size_t i = 0; i < sizeof running / sizeof running[0]; i++) {
        if (running[i] > 0) kill(running[i], SIGKILL);
    }
}

/* abort() and assert() do not reach atexit's functions; when this returns, abort() ends the
 * process. */
static void on_abort(int signal)
{
    (void)signal;
    kill_all();
}

static void note(pid_t from, pid_t to)
{
    static bool registered;
    if (!registered) {
        registered = atexit(kill_all) == 0;
        signal(SIGABRT, on_abort);
    }
    for (size_t i = 0; i < sizeof running / sizeof running[0]; i++) {
        if (running[i] != from) continue;
        running[i] = to;
        return;
    }
}

static pid_t spawn(const trunkd *t, char *const *argv)
{
    char program[4096];
    const ssize_t n = readlink("/proc/self/exe", program, sizeof program - 16);
    assert(n > 0);
    program[n] = '\0';
    strcpy(strrchr(program, '/') + 1, "trunkd");
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, t->log, O_WRONLY | O_CREAT | O_APPEND,
                                     0600);
    pid_t pid;
    const int err = posix_spawn(&pid, program, &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (err != 0) {
        fprintf(stderr, "%s: %s\n", program, strerror(err));
        abort();
    }
    note(0, pid);
    return pid;
}

/* argv: its strings are never written to, though posix_spawn's type does not say so. */
static size_t put_flags(char **argv, size_t n, const char *const *flags)
{
    for (; flags && *flags; flags++) {
        assert(n < MAX_FLAGS);
        argv[n++] = tk_strdup(*flags);
    }
    argv[n] = NULL;
    return n;
}

static void free_flags(char **argv)
{
    for (size_t i = 0; argv[i]; i++)
        tk_free(argv[i]);
}

static void print_log(const trunkd *t)
{
    FILE *f = fopen(t->log, "r");
    char line[1024];
    while (f && fgets(line, sizeof line, f))
        fputs(line, stderr);
    if (f) fclose(f);
}

/* Waits for the port file: the server answers from then on. */
static void wait_for_port(trunkd *t)
{
    for (int ms = 0; ms < PATIENCE_MS; ms += 10) {
        FILE *f = fopen(t->port_file, "r");
        if (f) {
            const int n = fscanf(f, "%d", &t->port);
            fclose(f);
            if (n == 1) return;
        }
        int status;
        if (waitpid(t->pid, &status, WNOHANG) == t->pid) break;
        nanosleep(&(struct timespec){0, 10000000}, NULL);
    }
    print_log(t);
    fprintf(stderr, "trunkd did not start\n");
    abort();
}

void trunkd_start(trunkd *t, const char *const *flags)
{
    char store[300];
    snprintf(store, sizeof store, "%s/store", t->dir);
    const char *const own[] = {"trunkd",      "--store",     store,        "--listen",
                               "127.0.0.1:0", "--port-file", t->port_file, NULL};
    char *argv[MAX_FLAGS + 1];
    unlink(t->port_file);
    put_flags(argv, put_flags(argv, 0, own), flags);
    t->pid = spawn(t, argv);
    free_flags(argv);
    wait_for_port(t);
    char address[64];
    snprintf(address, sizeof address, "127.0.0.1:%d", t->port);
    t->admin = tk_client_open(address, t->admin_token);
    t->alice = tk_client_open(address, t->alice_token);
    t->bob = tk_client_open(address, t->bob_token);
    t->nobody = tk_client_open(address, NULL);
    assert(t->admin && t->alice && t->bob && t->nobody);
}

static int wait_for_end(pid_t pid)
{
    int status;
    const pid_t ended = waitpid(pid, &status, 0);
    assert(ended == pid);
    note(pid, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int trunkd_end(trunkd *t, int signal)
{
    kill(t->pid, signal);
    const int status = wait_for_end(t->pid);
    t->pid = 0;
    tk_client_close(t->admin);
    tk_client_close(t->alice);
    tk_client_close(t->bob);
    tk_client_close(t->nobody);
    if (signal == SIGTERM && status != 0) print_log(t);
    return status;
}

int trunkd_run(trunkd *t, const char *const *flags)
{
    static const char *const own[] = {"trunkd", NULL};
    char *argv[MAX_FLAGS + 1];
    put_flags(argv, put_flags(argv, 0, own), flags);
    const pid_t pid = spawn(t, argv);
    free_flags(argv);
    return wait_for_end(pid);
}

size_t trunkd_log_lines(const trunkd *t, const char *text)
{
    FILE *f = fopen(t->log, "r");
    char line[8192];
    size_t n = 0;
    while (f && fgets(line, sizeof line, f))
        n += strstr(line, text) != NULL;
    if (f) fclose(f);
    return n;
}

bool trunkd_logged(const trunkd *t, const char *text)
{
    return trunkd_log_lines(t, text) > 0;
}

int trunkd_http_port(const trunkd *t)
{
    FILE *f = fopen(t->log, "r");
    char line[8192];
    int port = 0;
    while (f && fgets(line, sizeof line, f)) {
        const char *at = strstr(line, "event=\"http listening\"");
        if (at && (at = strstr(at, "port="))) port = atoi(at + 5);
    }
    if (f) fclose(f);
    assert(port > 0);
    return port;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

void trunkd_remove(trunkd *t)
{
    nftw(t->dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* -- requests -- */

answer ask(tk_client *client, const char *path, const void *request,
           const ProtobufCMessageDescriptor *type)
{
    answer a;
    tk_client_unary(client, path, request, type, 60000, &a.message, &a.status);
    return a;
}

answer classify(tk_client *client, const fixture_bytes *images, size_t n, const char *head,
                unsigned top_k)
{
    Trunkd__V1__ClassifyRequest in;
    trunkd__v1__classify_request__init(&in);
    ProtobufCBinaryData *data = calloc(n + 1, sizeof *data);
    for (size_t i = 0; i < n; i++)
        data[i] = (ProtobufCBinaryData){images[i].size, images[i].data};
    char name[128];
    snprintf(name, sizeof name, "%s", head ? head : "");
    char *heads[1] = {name};
    in.n_images = n;
    in.images = data;
    in.n_heads = head ? 1 : 0;
    in.heads = heads;
    in.top_k = top_k;
    const answer a = ask(client, "/trunkd.v1.Classifier/Classify", &in,
                         &trunkd__v1__classify_response__descriptor);
    free(data);
    return a;
}

static bool send_image(tk_client_call *call, const fixture_bytes *image, const char *label,
                       size_t index)
{
    char file[32], copy[512];
    snprintf(file, sizeof file, "file-%zu", index);
    snprintf(copy, sizeof copy, "%s", label);
    Trunkd__V1__UploadImage one, *all[1] = {&one};
    trunkd__v1__upload_image__init(&one);
    one.file = file;
    one.label = copy;
    one.data = (ProtobufCBinaryData){image->size, image->data};
    Trunkd__V1__UploadImages images;
    trunkd__v1__upload_images__init(&images);
    images.n_images = 1;
    images.images = all;
    Trunkd__V1__UploadRequest in;
    trunkd__v1__upload_request__init(&in);
    in.part_case = TRUNKD__V1__UPLOAD_REQUEST__PART_IMAGES;
    in.images = &images;
    return tk_client_send(call, &in.base);
}

tk_client_status upload(tk_client *client, const char *name, const fixture_bytes *images,
                        const char *const *labels, size_t n, uint64_t *id)
{
    char copy[128];
    snprintf(copy, sizeof copy, "%s", name);
    tk_client_call *call = tk_client_start(client, "/trunkd.v1.DataSets/Upload",
                                           &trunkd__v1__upload_response__descriptor, 60000);
    assert(call);
    Trunkd__V1__UploadManifest manifest;
    trunkd__v1__upload_manifest__init(&manifest);
    manifest.name = copy;
    manifest.bad_images = TRUNKD__V1__BAD_IMAGES__REFUSE;
    Trunkd__V1__UploadRequest in;
    trunkd__v1__upload_request__init(&in);
    in.part_case = TRUNKD__V1__UPLOAD_REQUEST__PART_MANIFEST;
    in.manifest = &manifest;
    bool ok = tk_client_send(call, &in.base);
    for (size_t i = 0; ok && i < n; i++)
        ok = send_image(call, &images[i], labels[i], i);
    if (ok) tk_client_send_end(call);
    Trunkd__V1__UploadResponse *out = (Trunkd__V1__UploadResponse *)tk_client_receive(call);
    *id = out ? out->data_set->id : 0;
    if (out) tk_client_free_message(&out->base);
    tk_client_status status;
    tk_client_finish(call, &status);
    return status;
}

fixture_bytes export_version(tk_client *client, uint64_t number, tk_client_status *status)
{
    fixture_bytes out = {NULL, 0};
    Trunkd__V1__ExportVersionRequest in;
    trunkd__v1__export_version_request__init(&in);
    in.version = number;
    tk_client_call *call = tk_client_start(client, "/trunkd.v1.Admin/ExportVersion",
                                           &trunkd__v1__file_chunk__descriptor, 60000);
    tk_client_send(call, &in.base);
    tk_client_send_end(call);
    for (Trunkd__V1__FileChunk *c; (c = (Trunkd__V1__FileChunk *)tk_client_receive(call));) {
        out.data = realloc(out.data, out.size + c->data.len);
        memcpy(out.data + out.size, c->data.data, c->data.len);
        out.size += c->data.len;
        tk_client_free_message(&c->base);
    }
    tk_client_finish(call, status);
    return out;
}

tk_client_status import_trunk(tk_client *client, fixture_bytes file, const char *arch,
                              Trunkd__V1__Version **version)
{
    char name[32];
    snprintf(name, sizeof name, "%s", arch);
    tk_client_call *call = tk_client_start(client, "/trunkd.v1.Admin/ImportTrunk",
                                           &trunkd__v1__version__descriptor, 60000);
    Trunkd__V1__ImportTrunkManifest manifest;
    trunkd__v1__import_trunk_manifest__init(&manifest);
    manifest.arch = name;
    Trunkd__V1__ImportTrunkRequest in;
    trunkd__v1__import_trunk_request__init(&in);
    in.part_case = TRUNKD__V1__IMPORT_TRUNK_REQUEST__PART_MANIFEST;
    in.manifest = &manifest;
    (void)tk_client_send(call, &in.base);
    in.part_case = TRUNKD__V1__IMPORT_TRUNK_REQUEST__PART_CHUNK;
    for (size_t at = 0; at < file.size; at += in.chunk.len) {
        in.chunk.len = file.size - at < 100000 ? file.size - at : 100000;
        in.chunk.data = file.data + at;
        if (!tk_client_send(call, &in.base)) break;
    }
    tk_client_send_end(call);
    ProtobufCMessage *made = tk_client_receive(call);
    if (version)
        *version = (Trunkd__V1__Version *)made;
    else
        tk_client_free_message(made);
    tk_client_status status;
    tk_client_finish(call, &status);
    return status;
}

uint64_t trunkd_roll_back(const trunkd *t, uint64_t to)
{
    Trunkd__V1__RollbackRequest in;
    trunkd__v1__rollback_request__init(&in);
    in.version = to;
    const answer a =
        ask(t->admin, "/trunkd.v1.Admin/Rollback", &in, &trunkd__v1__version__descriptor);
    if (!a.message) fprintf(stderr, "rollback: %s\n", a.status.text);
    assert(a.message);
    const uint64_t number = ((const Trunkd__V1__Version *)a.message)->number;
    tk_client_free_message(a.message);
    return number;
}

Trunkd__V1__GetStatusResponse *trunkd_status(const trunkd *t)
{
    Trunkd__V1__Empty empty;
    trunkd__v1__empty__init(&empty);
    const answer a = ask(t->admin, "/trunkd.v1.Admin/GetStatus", &empty,
                         &trunkd__v1__get_status_response__descriptor);
    assert(a.message);
    return (Trunkd__V1__GetStatusResponse *)a.message;
}
