/* dataset upload, list, get, delete. An upload goes out in messages of about 256 KiB with one
 * message and one file in memory at a time, as fast as the server takes them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ctl.h"
#include "images.h"
#include "term.h"
#include "trunkd/v1/datasets.pb-c.h"

enum { MESSAGE_BYTES = 256 << 10, MESSAGE_IMAGES = 1024 };

/* One message on its way: `batch` has room for MESSAGE_IMAGES. */
typedef struct upload {
    tk_client_call *call;
    Trunkd__V1__UploadImage *batch;
    Trunkd__V1__UploadImage **pointers;
    size_t n, bytes;
} upload;

/* Sends what is gathered; false when the call is over. */
static bool flush_batch(upload *up)
{
    if (up->n == 0) return true;
    Trunkd__V1__UploadImages images;
    trunkd__v1__upload_images__init(&images);
    images.n_images = up->n;
    images.images = up->pointers;
    Trunkd__V1__UploadRequest request;
    trunkd__v1__upload_request__init(&request);
    request.part_case = TRUNKD__V1__UPLOAD_REQUEST__PART_IMAGES;
    request.images = &images;
    const bool sent = tk_client_send(up->call, &request.base);
    for (size_t i = 0; i < up->n; i++)
        free(up->batch[i].data.data);
    up->n = up->bytes = 0;
    return sent;
}

/* Reads one file into the batch. TK__GO, or TK__FAILED with the reason printed. */
static int gather(upload *up, const tk__image *image)
{
    char why[600];
    uint8_t *data = NULL;
    size_t capacity = 0, size = 0;
    if (!tk__read_image(image->path, &data, &capacity, &size, why, sizeof(why))) {
        free(data);
        return tk__fail("%s", why);
    }
    Trunkd__V1__UploadImage *slot = &up->batch[up->n];
    trunkd__v1__upload_image__init(slot);
    slot->label = image->label;
    slot->file = image->name;
    slot->data = (ProtobufCBinaryData){.len = size, .data = tk__grow(data, size, 1)};
    up->pointers[up->n++] = slot;
    up->bytes += size + strlen(image->label) + strlen(image->name) + 32;
    return TK__GO;
}

static bool send_manifest(upload *up, char *name, bool refuse_bad, size_t expected)
{
    Trunkd__V1__UploadManifest manifest;
    trunkd__v1__upload_manifest__init(&manifest);
    manifest.name = name;
    manifest.bad_images =
        refuse_bad ? TRUNKD__V1__BAD_IMAGES__REFUSE : TRUNKD__V1__BAD_IMAGES__SKIP;
    manifest.expected_images = expected;
    Trunkd__V1__UploadRequest request;
    trunkd__v1__upload_request__init(&request);
    request.part_case = TRUNKD__V1__UPLOAD_REQUEST__PART_MANIFEST;
    request.manifest = &manifest;
    return tk_client_send(up->call, &request.base);
}

/* Sends all images. False: a local file failed, and is named already; a call that is over is not a
 * failure here. */
static bool send_images(upload *up, const tk__images *images, bool quiet)
{
    tk__progress progress;
    tk__progress_begin(&progress, "uploading", images->n, quiet);
    bool fine = true, open = true;
    for (size_t i = 0; i < images->n && fine && open; i++) {
        if (up->n == MESSAGE_IMAGES || up->bytes >= MESSAGE_BYTES) open = flush_batch(up);
        if (open) fine = gather(up, &images->items[i]) == TK__GO;
        tk__progress_at(&progress, i);
    }
    if (fine && open) open = flush_batch(up);
    if (fine && open) tk_client_send_end(up->call);
    if (!fine) tk_client_cancel(up->call);
    for (size_t i = 0; i < up->n; i++)
        free(up->batch[i].data.data);
    tk__progress_end(&progress);
    return fine;
}

/* Prints a data set in a line or two. */
static void print_data_set(const Trunkd__V1__DataSet *set, bool labels)
{
    char bytes[32], when[32];
    char *name = tk__clean(set->name);
    printf("data set %llu  %s: %llu images, %zu labels, %s, %s\n", (unsigned long long)set->id,
           name, (unsigned long long)set->images, set->n_labels,
           tk__bytes(set->bytes, bytes, sizeof(bytes)),
           tk__when(set->created_ms, when, sizeof(when)));
    free(name);
    if (!labels) return;
    tk__table table;
    tk__table_init(&table, "lr");
    for (size_t i = 0; i < set->n_labels; i++) {
        tk__table_cell(&table, "%s", set->labels[i]->label);
        tk__table_cell(&table, "%llu", (unsigned long long)set->labels[i]->images);
    }
    tk__table_print(&table, stdout, 2);
}

static void print_upload(const tk__ctl *ctl, const Trunkd__V1__UploadResponse *answer,
                         const tk__images *images)
{
    if (ctl->json) {
        tk__print_json(&answer->base);
    } else if (answer->data_set && ctl->quiet) {
        printf("%llu\n", (unsigned long long)answer->data_set->id);
    } else if (answer->data_set) {
        print_data_set(answer->data_set, false);
    }
    for (size_t i = 0; i < answer->n_bad; i++) {
        char *file = tk__clean(answer->bad[i]->file), *reason = tk__clean(answer->bad[i]->reason);
        fprintf(stderr, "skipped %s: %s\n", file, reason);
        free(file);
        free(reason);
    }
    if (answer->skipped > answer->n_bad)
        fprintf(stderr, "and %llu more\n", (unsigned long long)(answer->skipped - answer->n_bad));
    if (images->passed_over && !ctl->quiet)
        fprintf(stderr, "%zu files that are no .jpg, .jpeg or .png were passed over\n",
                images->passed_over);
}

static int upload_images(tk__ctl *ctl, const tk__images *images, char *name, bool refuse_bad)
{
    tk_client *client = tk__connect(ctl);
    if (!client) return TK__FAILED;
    upload up = {.call = tk_client_start(client, "/trunkd.v1.DataSets/Upload",
                                         &trunkd__v1__upload_response__descriptor, 0)};
    if (!up.call) return tk__fail("out of memory");
    up.batch = tk__alloc(MESSAGE_IMAGES, sizeof(*up.batch));
    up.pointers = tk__alloc(MESSAGE_IMAGES, sizeof(*up.pointers));
    const bool fine =
        !send_manifest(&up, name, refuse_bad, images->n) || send_images(&up, images, ctl->quiet);
    Trunkd__V1__UploadResponse *answer =
        fine ? (Trunkd__V1__UploadResponse *)tk_client_receive(up.call) : NULL;
    tk_client_status status = {0};
    int code = TK__DONE;
    if (tk_client_finish(up.call, &status) != TK_CLIENT_OK && fine)
        code = tk__rpc_failed(ctl, &status);
    if (!fine) code = TK__FAILED;
    if (code == TK__DONE && answer) print_upload(ctl, answer, images);
    if (answer) tk_client_free_message(&answer->base);
    free(up.batch);
    free(up.pointers);
    return code;
}

/* A data set's name from its folder or file: the last part in small letters, other characters as
 * '-'. Free it. */
static char *name_of(const char *path)
{
    char *copy = tk__copy(path);
    for (size_t n = strlen(copy); n > 1 && copy[n - 1] == '/';)
        copy[--n] = '\0';
    const char *slash = strrchr(copy, '/');
    char *name = tk__copy(slash && slash[1] ? slash + 1 : copy);
    free(copy);
    char *dot = strrchr(name, '.');
    if (dot && strcmp(dot, ".csv") == 0) *dot = '\0';
    if (strlen(name) > 63) name[63] = '\0';
    for (char *p = name; *p; p++) {
        if (*p >= 'A' && *p <= 'Z') *p = (char)(*p - 'A' + 'a');
        const bool letter = (*p >= 'a' && *p <= 'z') || (*p >= '0' && *p <= '9');
        if (!letter && (p == name || !strchr("._-", *p))) *p = p == name ? 'x' : '-';
    }
    return name;
}

int tk__cmd_dataset_upload(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv)
{
    const char *name = NULL;
    bool refuse_bad = false;
    tk__list rest, where = {0};
    tk__csv_opts csv = {.where = &where};
    const tk__opt opts[] = {
        {"name", 'n', TK__TEXT, &name, "NAME",
         "its name: a-z 0-9 . _ - (default: from the folder or file)"},
        {"refuse-bad", 0, TK__FLAG, &refuse_bad, NULL,
         "refuse the whole upload at the first image that cannot be read"},
        {"file-column", 0, TK__TEXT, &csv.file_column, "NAME",
         "the CSV's column of files (default: file)"},
        {"label-column", 0, TK__TEXT, &csv.label_column, "NAME",
         "the CSV's column of labels (default: label)"},
        {"where", 0, TK__MANY, &where, "COLUMN=VALUE",
         "only the CSV's rows that have this value (repeat for and)"},
    };
    int code =
        tk__args_parse(ctl, cmd, opts, sizeof(opts) / sizeof(opts[0]), argc, argv, &rest, 1, 1);
    if (code == TK__GO) {
        tk__images images;
        char *given = name ? tk__copy(name) : name_of(rest.items[0]);
        if (tk__images_labelled(&images, rest.items[0], &csv))
            code = upload_images(ctl, &images, given, refuse_bad);
        else
            code = tk__fail("%s", images.why);
        free(given);
        tk__images_free(&images);
        tk__list_free(&rest);
    }
    tk__list_free(&where);
    return code;
}

int tk__cmd_dataset_list(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv)
{
    tk__list rest;
    const int code = tk__args_parse(ctl, cmd, NULL, 0, argc, argv, &rest, 0, 0);
    if (code != TK__GO) return code;
    Trunkd__V1__Empty request;
    trunkd__v1__empty__init(&request);
    Trunkd__V1__ListDataSetsResponse *answer =
        tk__call(ctl, "/trunkd.v1.DataSets/List", &request.base,
                 &trunkd__v1__list_data_sets_response__descriptor);
    if (!answer) return TK__FAILED;
    if (ctl->json)
        tk__print_json(&answer->base);
    else if (answer->n_data_sets == 0)
        puts("No data set. Upload one: trunkctl dataset upload DIR");
    for (size_t i = 0; i < answer->n_data_sets && !ctl->json; i++)
        print_data_set(answer->data_sets[i], false);
    tk_client_free_message(&answer->base);
    return TK__DONE;
}

/* Parses "ID" as the only argument. TK__GO or an exit code. */
static int parse_id(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv, uint64_t *id)
{
    tk__list rest;
    int code = tk__args_parse(ctl, cmd, NULL, 0, argc, argv, &rest, 1, 1);
    if (code != TK__GO) return code;
    if (!tk__parse_u64(rest.items[0], id))
        code = tk__usage(cmd, "\"%s\" is not a data set's number", rest.items[0]);
    tk__list_free(&rest);
    return code;
}

int tk__cmd_dataset_get(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv)
{
    Trunkd__V1__GetDataSetRequest request;
    trunkd__v1__get_data_set_request__init(&request);
    const int code = parse_id(ctl, cmd, argc, argv, &request.id);
    if (code != TK__GO) return code;
    Trunkd__V1__DataSet *answer =
        tk__call(ctl, "/trunkd.v1.DataSets/Get", &request.base, &trunkd__v1__data_set__descriptor);
    if (!answer) return TK__FAILED;
    if (ctl->json)
        tk__print_json(&answer->base);
    else if (ctl->quiet)
        printf("%llu\n", (unsigned long long)answer->images);
    else
        print_data_set(answer, true);
    tk_client_free_message(&answer->base);
    return TK__DONE;
}

int tk__cmd_dataset_delete(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv)
{
    Trunkd__V1__DeleteDataSetRequest request;
    trunkd__v1__delete_data_set_request__init(&request);
    const int code = parse_id(ctl, cmd, argc, argv, &request.id);
    if (code != TK__GO) return code;
    ProtobufCMessage *answer =
        tk__call(ctl, "/trunkd.v1.DataSets/Delete", &request.base, &trunkd__v1__empty__descriptor);
    if (answer && !ctl->quiet) puts("deleted");
    tk_client_free_message(answer);
    return answer ? TK__DONE : TK__FAILED;
}
