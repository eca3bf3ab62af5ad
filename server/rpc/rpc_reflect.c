/* grpc.reflection.v1 and v1alpha, which have the same messages: what grpcurl and its like ask
 * before they can call anything. The answers come out of the descriptors that are built in
 * (proto/descriptors.h): a FileDescriptorSet, cut into files here by a walk over the wire format,
 * with an index of every symbol. The bytes are our own compiler's, so the walk only asserts. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "descriptors.h"
#include "engine/mem.h"
#include "grpc/reflection/v1/reflection.pb-c.h"
#include "rpc/pb_check.h"
#include "rpc/rpc_internal.h"

typedef struct span {
    const unsigned char *at, *end;
} span;

typedef struct proto_file {
    span whole; /* a FileDescriptorProto */
    span name;
} proto_file;

typedef struct symbol {
    char *name; /* "inference.ModelInferRequest.id" */
    size_t file;
} symbol;

struct tk__rpc_reflect {
    size_t n_files, n_symbols, room;
    proto_file *files;
    symbol *symbols; /* sorted by name */
    bool failed;     /* out of memory */
};

/* -- the walk -- */

static uint64_t varint(span *s)
{
    uint64_t value = 0;
    for (unsigned shift = 0;; shift += 7) {
        assert(s->at < s->end && shift < 64);
        const unsigned char byte = *s->at++;
        value |= (uint64_t)(byte & 0x7F) << shift;
        if (byte < 0x80) return value;
    }
}

/* The next length-delimited field: its number, 0 at the end. Numbers are stepped over; descriptors
 * have no other wire types. */
static unsigned next_field(span *s, span *body)
{
    while (s->at < s->end) {
        const uint64_t tag = varint(s);
        const uint64_t value = varint(s);
        assert((tag & 7) == 0 || (tag & 7) == 2);
        if ((tag & 7) == 0) continue;
        assert(value <= (uint64_t)(s->end - s->at));
        *body = (span){s->at, s->at + value};
        s->at += value;
        return (unsigned)(tag >> 3);
    }
    return 0;
}

static bool same(span a, const char *text, size_t len)
{
    return (size_t)(a.end - a.at) == len && memcmp(a.at, text, len) == 0;
}

/* -- symbols -- */

/* What has a name, and where in a descriptor its parts are. */
typedef enum element {
    IN_FILE,
    MESSAGE,
    FIELD,
    ONEOF,
    ENUM,
    VALUE,
    SERVICE,
    METHOD,
    KINDS
} element;

static const struct part {
    unsigned number;
    element kind;
} parts[KINDS][4] = {
    [IN_FILE] = {{4, MESSAGE}, {5, ENUM}, {6, SERVICE}},
    [MESSAGE] = {{2, FIELD}, {3, MESSAGE}, {4, ENUM}, {8, ONEOF}},
    [ENUM] = {{2, VALUE}},
    [SERVICE] = {{2, METHOD}},
};

static const struct part *find_part(element kind, unsigned number)
{
    for (size_t i = 0; i < sizeof parts[kind] / sizeof parts[kind][0]; i++)
        if (parts[kind][i].number == number) return &parts[kind][i];
    return NULL;
}

static span find_field(span s, unsigned number)
{
    span body;
    for (unsigned found; (found = next_field(&s, &body)) != 0;)
        if (found == number) return body;
    return (span){s.end, s.end};
}

/* "scope.name", or "name" in no package. */
static char *full_name(const char *scope, span name)
{
    const int len = (int)(name.end - name.at);
    const size_t size = strlen(scope) + 1 + (size_t)len + 1;
    char *out = tk_calloc(size, 1);
    if (out)
        snprintf(out, size, "%s%s%.*s", scope, scope[0] ? "." : "", len, (const char *)name.at);
    return out;
}

static void add_symbol(tk__rpc_reflect *r, char *name, size_t file)
{
    if (r->n_symbols == r->room) {
        const size_t room = r->room ? 2 * r->room : 256;
        symbol *grown = tk_realloc(r->symbols, room * sizeof *grown);
        if (!grown) {
            tk_free(name);
            r->failed = true;
            return;
        }
        r->symbols = grown;
        r->room = room;
    }
    r->symbols[r->n_symbols++] = (symbol){name, file};
}

/* The parts of a descriptor of this kind, and theirs. Its own name is `scope`; values of an enum
 * are named in the scope around it. */
static void index_parts(tk__rpc_reflect *r, size_t file, element kind, span s, const char *scope,
                        const char *around)
{
    span body;
    for (unsigned number; (number = next_field(&s, &body)) != 0;) {
        const struct part *part = find_part(kind, number);
        if (!part) continue;
        const char *outer = kind == ENUM ? around : scope;
        char *name = full_name(outer, find_field(body, 1));
        if (!name) {
            r->failed = true;
            return;
        }
        index_parts(r, file, part->kind, body, name, outer);
        add_symbol(r, name, file);
    }
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const symbol *)a)->name, ((const symbol *)b)->name);
}

tk_err tk__rpc_reflect_create(tk__rpc_reflect **out)
{
    tk__rpc_reflect *r = *out = tk_calloc(1, sizeof *r);
    if (!r) return TK_NOMEM;
    const span set = {tk_proto_descriptors, tk_proto_descriptors + tk_proto_descriptors_size};
    span body;
    for (span s = set; next_field(&s, &body) != 0;)
        r->n_files++;
    r->files = tk_calloc(r->n_files, sizeof *r->files);
    if (!r->files) return TK_NOMEM;
    size_t i = 0;
    for (span s = set; next_field(&s, &body) != 0; i++) {
        r->files[i] = (proto_file){body, find_field(body, 1)};
        char *package = full_name("", find_field(body, 2));
        if (!package) return TK_NOMEM;
        index_parts(r, i, IN_FILE, body, package, "");
        tk_free(package);
    }
    if (r->failed) return TK_NOMEM;
    qsort(r->symbols, r->n_symbols, sizeof *r->symbols, by_name);
    return TK_OK;
}

void tk__rpc_reflect_destroy(tk__rpc_reflect *r)
{
    if (!r) return;
    for (size_t i = 0; i < r->n_symbols; i++)
        tk_free(r->symbols[i].name);
    tk_free(r->symbols);
    tk_free(r->files);
    tk_free(r);
}

/* -- answers -- */

typedef Grpc__Reflection__V1__ServerReflectionRequest request;
typedef Grpc__Reflection__V1__ServerReflectionResponse response;

#define ASKED(name)    GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_##name
#define ANSWERED(name) GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_##name

/* n_files when there is none. */
static size_t file_by_name(const tk__rpc_reflect *r, const char *name, size_t len)
{
    size_t i = 0;
    while (i < r->n_files && !same(r->files[i].name, name, len))
        i++;
    return i;
}

static size_t file_of_symbol(const tk__rpc_reflect *r, char *name)
{
    const symbol key = {name, 0};
    const symbol *found = bsearch(&key, r->symbols, r->n_symbols, sizeof *r->symbols, by_name);
    return found ? found->file : r->n_files;
}

/* Marks the file and all that it imports. */
static void mark(const tk__rpc_reflect *r, size_t index, bool *wanted)
{
    if (index == r->n_files || wanted[index]) return;
    wanted[index] = true;
    span s = r->files[index].whole, body;
    for (unsigned number; (number = next_field(&s, &body)) != 0;)
        if (number == 3)
            mark(r, file_by_name(r, (const char *)body.at, (size_t)(body.end - body.at)), wanted);
}

/* A view of our constant bytes: packing only reads them, though the type does not say so. */
static ProtobufCBinaryData view(span s)
{
    ProtobufCBinaryData data = {.len = (size_t)(s.end - s.at)};
    memcpy(&data.data, &s.at, sizeof data.data);
    return data;
}

static void answer(tk_rpc_call *call, response *out)
{
    tk_rpc_send(call, &out->base); /* there is room: see tk_rpc_next */
}

static void send_error(tk_rpc_call *call, response *out, int code, const char *what,
                       const char *name)
{
    char text[300];
    snprintf(text, sizeof text, "%s%.200s", what, name);
    text[tk__utf8_valid((const uint8_t *)text, strlen(text))] =
        '\0'; /* the cut may split a character */
    Grpc__Reflection__V1__ErrorResponse error = GRPC__REFLECTION__V1__ERROR_RESPONSE__INIT;
    error.error_code = code;
    error.error_message = text;
    out->message_response_case = ANSWERED(ERROR_RESPONSE);
    out->error_response = &error;
    answer(call, out);
}

/* The file first, then those it imports. */
static void send_files(tk_rpc_call *call, response *out, size_t index, const char *what,
                       const char *name)
{
    const tk__rpc_reflect *r = call->server->reflect;
    if (index == r->n_files) {
        send_error(call, out, GRPC_STATUS_NOT_FOUND, what, name);
        return;
    }
    bool *wanted = tk_calloc(r->n_files, sizeof *wanted);
    ProtobufCBinaryData *list = tk_calloc(r->n_files, sizeof *list);
    if (wanted && list) {
        Grpc__Reflection__V1__FileDescriptorResponse files =
            GRPC__REFLECTION__V1__FILE_DESCRIPTOR_RESPONSE__INIT;
        mark(r, index, wanted);
        list[files.n_file_descriptor_proto++] = view(r->files[index].whole);
        for (size_t i = 0; i < r->n_files; i++)
            if (wanted[i] && i != index)
                list[files.n_file_descriptor_proto++] = view(r->files[i].whole);
        files.file_descriptor_proto = list;
        out->message_response_case = ANSWERED(FILE_DESCRIPTOR_RESPONSE);
        out->file_descriptor_response = &files;
        answer(call, out);
    } else {
        tk_rpc_fail(call, TK_NOMEM, "no memory for the answer");
    }
    tk_free(wanted);
    tk_free(list);
}

/* The services of the table, which is sorted by path: "/service/method". */
static void send_services(tk_rpc_call *call, response *out)
{
    const tk_rpc_server *server = call->server;
    Grpc__Reflection__V1__ServiceResponse *all = tk_calloc(server->n_methods, sizeof *all);
    Grpc__Reflection__V1__ServiceResponse **list = tk_calloc(server->n_methods, sizeof *list);
    Grpc__Reflection__V1__ListServiceResponse services =
        GRPC__REFLECTION__V1__LIST_SERVICE_RESPONSE__INIT;
    const char *last = "";
    size_t last_len = 0;
    bool ok = all && list;
    for (size_t i = 0; ok && i < server->n_methods; i++) {
        const char *name = server->methods[i]->path + 1;
        const size_t len = strcspn(name, "/");
        if (len == last_len && memcmp(name, last, len) == 0) continue;
        last = name;
        last_len = len;
        Grpc__Reflection__V1__ServiceResponse *one = list[services.n_service] =
            &all[services.n_service];
        grpc__reflection__v1__service_response__init(one);
        one->name =
            full_name("", (span){(const unsigned char *)name, (const unsigned char *)name + len});
        ok = one->name != NULL;
        services.n_service += ok;
    }
    services.service = list;
    out->message_response_case = ANSWERED(LIST_SERVICES_RESPONSE);
    out->list_services_response = &services;
    if (ok)
        answer(call, out);
    else
        tk_rpc_fail(call, TK_NOMEM, "no memory for the answer");
    for (size_t i = 0; i < services.n_service; i++)
        tk_free(all[i].name);
    tk_free(list);
    tk_free(all);
}

static void on_ask(tk_rpc_call *call, const ProtobufCMessage *message)
{
    request *in;
    memcpy(&in, &message, sizeof in); /* goes back within the answer, whose type is not const */
    const tk__rpc_reflect *r = call->server->reflect;
    response out = GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__INIT;
    out.valid_host = in->host;
    out.original_request = in;
    switch (in->message_request_case) {
    case ASKED(LIST_SERVICES):
        send_services(call, &out);
        break;
    case ASKED(FILE_BY_FILENAME):
        send_files(call, &out, file_by_name(r, in->file_by_filename, strlen(in->file_by_filename)),
                   "there is no file ", in->file_by_filename);
        break;
    case ASKED(FILE_CONTAINING_SYMBOL):
        send_files(call, &out, file_of_symbol(r, in->file_containing_symbol), "there is no symbol ",
                   in->file_containing_symbol);
        break;
    case ASKED(FILE_CONTAINING_EXTENSION):
    case ASKED(ALL_EXTENSION_NUMBERS_OF_TYPE):
        send_error(call, &out, GRPC_STATUS_UNIMPLEMENTED, "extensions are not told", "");
        break;
    case ASKED(_NOT_SET):
    default: /* unpacking never sets anything else */
        send_error(call, &out, GRPC_STATUS_UNIMPLEMENTED,
                   "message_request is none of file_by_filename, file_containing_symbol and "
                   "list_services",
                   "");
        break;
    }
    tk_rpc_next(call);
}

#define REFLECTION                                                                                 \
    .kind = TK_RPC_BIDI_STREAM, .flags = TK_RPC_PUBLIC, .max_request = 4096,                       \
    .in = &grpc__reflection__v1__server_reflection_request__descriptor,                            \
    .out = &grpc__reflection__v1__server_reflection_response__descriptor, .on_msg = on_ask,        \
    .on_end = tk_rpc_finish

const tk_rpc_method tk__rpc_reflect_methods[2] = {
    {.path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", REFLECTION},
    {.path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", REFLECTION},
};
