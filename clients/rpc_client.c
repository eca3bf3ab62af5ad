/* The client. Every synchronous call has its own completion queue of the "pluck" kind: an operation
 * is started under a tag and the calling thread waits for that tag alone, so nothing here needs a
 * lock.
 *
 * The status operation is started together with the call and plucked last. The core ends it when
 * the server has ended the call and all messages are read, when the deadline has passed or when the
 * call was cancelled; the operations before it then come back without success, which is how send
 * and receive learn of the end.
 *
 * Calls of a tk_client_queue share one completion queue of the "next" kind. Each is one batch of
 * all its operations, and so one event, whose tag is the call. */
#include "rpc_client.h"

#include <limits.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/slice.h>
#include <grpc/support/alloc.h>
#include <grpc/support/log.h>
#include <grpc/support/time.h>

#include "rpc_client_tls.h"

struct tk_client {
    grpc_channel *channel;
    char *header;      /* "Bearer TOKEN", or NULL */
    char *address;     /* with `tls`, for whoever asks why it did not come about */
    tk_client_tls tls; /* copies; without TLS all NULL, and `address`, too */
};

struct tk_client_call {
    const tk_client *client;
    grpc_call *grpc;
    grpc_completion_queue *queue;
    const ProtobufCMessageDescriptor *out_type;
    bool ended;    /* no more messages from us */
    bool received; /* a receive came back empty */
    bool bad_answer;
    grpc_metadata_array initial, trailing;
    grpc_status_code code;
    grpc_slice details;
};

/* Tags of the operations that may be under way at once; only their addresses count. */
static char tag_begin, tag_initial, tag_send, tag_receive, tag_status;

const char *tk_client_code_text(int code)
{
    static const char *const names[] = {
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    };
    if (code < 0 || (size_t)code >= sizeof names / sizeof *names) return "UNKNOWN";
    return names[code];
}

/* -- the channel -- */

static grpc_arg int_arg(const char *key, int value)
{
    grpc_arg arg = {.type = GRPC_ARG_INTEGER};
    memcpy(&arg.key, &key, sizeof key); /* the core's struct wants char *, and only reads */
    arg.value.integer = value;
    return arg;
}

/* `name` NULL: the certificate is for the host of the address. */
static grpc_channel *open_channel(const char *address, grpc_channel_credentials *how,
                                  const char *name)
{
    grpc_arg args[] = {
        int_arg(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, -1),
        int_arg(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100),
        int_arg(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000),
        int_arg(GRPC_ARG_KEEPALIVE_TIME_MS, 30000),
        int_arg(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20000),
        int_arg(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0),
        /* One connection for each client, instead of one for all clients of an address. */
        int_arg("grpc.use_local_subchannel_pool", 1),
        /* A proxy from the environment has no business between trunkctl and its server. */
        int_arg("grpc.enable_http_proxy", 0),
        int_arg(GRPC_SSL_TARGET_NAME_OVERRIDE_ARG, 0),
    };
    const size_t n = sizeof args / sizeof *args;
    args[n - 1].type = GRPC_ARG_STRING;
    memcpy(&args[n - 1].value.string, &name, sizeof name); /* only read, too */
    grpc_channel_args list = {.num_args = name ? n : n - 1, .args = args};
    return grpc_channel_create(address, how, &list);
}

static char *bearer(const char *token)
{
    size_t size = strlen(token) + sizeof "Bearer ";
    char *header = malloc(size);
    if (!header) return NULL;
    snprintf(header, size, "Bearer %s", token);
    if (grpc_header_nonbin_value_is_legal(grpc_slice_from_static_string(header))) return header;
    free(header);
    return NULL;
}

/* False: out of memory. NULL stays NULL. */
static bool copy(const char **to, const char *text)
{
    *to = text ? strdup(text) : NULL;
    return !text || *to;
}

static bool remember(tk_client *client, const char *address, const tk_client_tls *tls)
{
    client->address = strdup(address);
    return client->address && copy(&client->tls.ca, tls->ca) &&
           copy(&client->tls.cert, tls->cert) && copy(&client->tls.key, tls->key) &&
           copy(&client->tls.name, tls->name);
}

static void forget(tk_client *client)
{
    const char *const texts[] = {client->tls.ca, client->tls.cert, client->tls.key,
                                 client->tls.name};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        void *text;
        memcpy(&text, &texts[i], sizeof text); /* ours, whatever the type says */
        free(text);
    }
    free(client->address);
}

static void cannot(tk_client_status *why, const char *text)
{
    *why = (tk_client_status){.code = TK_CLIENT_INVALID_ARGUMENT};
    snprintf(why->text, sizeof why->text, "%s", text);
}

tk_client *tk_client_open_tls(const char *address, const char *token, const tk_client_tls *tls,
                              tk_client_status *why)
{
    *why = (tk_client_status){0};
    tk_client *client = calloc(1, sizeof *client);
    if (!client) {
        cannot(why, "out of memory");
        return NULL;
    }
    grpc_init();
    grpc_channel_credentials *how = NULL;
    if (token && !(client->header = bearer(token)))
        cannot(why, "the token has bytes that no token has");
    else if (tls && !remember(client, address, tls))
        cannot(why, "out of memory");
    else
        how = tls ? tk__client_tls_credentials(tls, why) : grpc_insecure_credentials_create();
    if (how) {
        client->channel = open_channel(address, how, tls ? tls->name : NULL);
        grpc_channel_credentials_release(how);
        if (client->channel) return client;
        cannot(why, "out of memory");
    }
    tk_client_close(client);
    return NULL;
}

tk_client *tk_client_open(const char *address, const char *token)
{
    tk_client_status why;
    return tk_client_open_tls(address, token, NULL, &why);
}

/* But for the core's last words before it aborts. */
static void drop_line(gpr_log_func_args *args)
{
    if (strncmp(args->message, "assertion failed", 16) == 0) fprintf(stderr, "%s\n", args->message);
}

void tk_client_silence(void)
{
    gpr_set_log_function(drop_line);
}

void tk_client_close(tk_client *client)
{
    if (!client) return;
    if (client->channel) grpc_channel_destroy(client->channel);
    forget(client);
    free(client->header);
    free(client);
    grpc_shutdown();
}

static gpr_timespec in_ms(unsigned ms)
{
    return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(ms, GPR_TIMESPAN));
}

static void destroy_queue(grpc_completion_queue *queue)
{
    grpc_completion_queue_shutdown(queue);
    while (
        grpc_completion_queue_pluck(queue, NULL, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL).type !=
        GRPC_QUEUE_SHUTDOWN) {
    }
    grpc_completion_queue_destroy(queue);
}

bool tk_client_wait_ready(tk_client *client, unsigned timeout_ms)
{
    const gpr_timespec deadline = in_ms(timeout_ms);
    grpc_completion_queue *queue = grpc_completion_queue_create_for_pluck(NULL);
    grpc_connectivity_state state = grpc_channel_check_connectivity_state(client->channel, 1);
    while (state != GRPC_CHANNEL_READY &&
           gpr_time_cmp(gpr_now(GPR_CLOCK_MONOTONIC), deadline) < 0) {
        grpc_channel_watch_connectivity_state(client->channel, state, deadline, queue, &tag_begin);
        grpc_completion_queue_pluck(queue, &tag_begin, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        state = grpc_channel_check_connectivity_state(client->channel, 1);
    }
    destroy_queue(queue);
    return state == GRPC_CHANNEL_READY;
}

/* -- one call -- */

/* Starts `n` operations and waits until they are done. */
static bool run(tk_client_call *call, const grpc_op *ops, size_t n, void *tag)
{
    if (grpc_call_start_batch(call->grpc, ops, n, tag, NULL) != GRPC_CALL_OK) return false;
    return grpc_completion_queue_pluck(call->queue, tag, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL)
               .success != 0;
}

static void start_batches(const tk_client *client, tk_client_call *call)
{
    grpc_metadata token = {.key = grpc_slice_from_static_string("authorization")};
    grpc_op begin = {.op = GRPC_OP_SEND_INITIAL_METADATA};
    if (client->header) {
        token.value = grpc_slice_from_copied_string(client->header);
        begin.data.send_initial_metadata.count = 1;
        begin.data.send_initial_metadata.metadata = &token;
    }
    const grpc_op initial = {.op = GRPC_OP_RECV_INITIAL_METADATA,
                             .data.recv_initial_metadata.recv_initial_metadata = &call->initial};
    const grpc_op status = {.op = GRPC_OP_RECV_STATUS_ON_CLIENT,
                            .data.recv_status_on_client = {.trailing_metadata = &call->trailing,
                                                           .status = &call->code,
                                                           .status_details = &call->details}};
    grpc_call_start_batch(call->grpc, &status, 1, &tag_status, NULL);
    grpc_call_start_batch(call->grpc, &initial, 1, &tag_initial, NULL);
    run(call, &begin, 1, &tag_begin);
    if (client->header) grpc_slice_unref(token.value);
}

/* Fills a zeroed call; its queue is `queue`. */
static void init_call(tk_client_call *call, const tk_client *client, const char *path,
                      const ProtobufCMessageDescriptor *out_type, unsigned timeout_ms,
                      grpc_completion_queue *queue)
{
    call->client = client;
    call->out_type = out_type;
    call->code = GRPC_STATUS_UNKNOWN;
    call->details = grpc_empty_slice();
    grpc_metadata_array_init(&call->initial);
    grpc_metadata_array_init(&call->trailing);
    call->queue = queue;
    grpc_slice method = grpc_slice_from_copied_string(path);
    call->grpc = grpc_channel_create_call(
        client->channel, NULL, GRPC_PROPAGATE_DEFAULTS, call->queue, method, NULL,
        timeout_ms ? in_ms(timeout_ms) : gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    grpc_slice_unref(method);
}

/* All but the queue. */
static void fini_call(tk_client_call *call)
{
    grpc_slice_unref(call->details);
    grpc_metadata_array_destroy(&call->initial);
    grpc_metadata_array_destroy(&call->trailing);
    grpc_call_unref(call->grpc);
}

tk_client_call *tk_client_start(tk_client *client, const char *path,
                                const ProtobufCMessageDescriptor *out_type, unsigned timeout_ms)
{
    tk_client_call *call = calloc(1, sizeof *call);
    if (!call) return NULL;
    init_call(call, client, path, out_type, timeout_ms,
              grpc_completion_queue_create_for_pluck(NULL));
    start_batches(client, call);
    return call;
}

/* Takes the slice. */
static bool send_slice(tk_client_call *call, grpc_slice slice)
{
    grpc_byte_buffer *buffer = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    const grpc_op op = {.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = buffer};
    bool ok = run(call, &op, 1, &tag_send);
    grpc_byte_buffer_destroy(buffer);
    return ok;
}

bool tk_client_send(tk_client_call *call, const ProtobufCMessage *in)
{
    if (!call || call->ended) return false;
    grpc_slice slice = grpc_slice_malloc(protobuf_c_message_get_packed_size(in));
    protobuf_c_message_pack(in, GRPC_SLICE_START_PTR(slice));
    return send_slice(call, slice);
}

bool tk_client_send_bytes(tk_client_call *call, const void *data, size_t len)
{
    if (!call || call->ended) return false;
    return send_slice(call, grpc_slice_from_copied_buffer(data, len));
}

bool tk_client_send_end(tk_client_call *call)
{
    if (!call || call->ended) return false;
    call->ended = true;
    const grpc_op op = {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT};
    return run(call, &op, 1, &tag_send);
}

static grpc_byte_buffer *receive_buffer(tk_client_call *call)
{
    grpc_byte_buffer *buffer = NULL;
    const grpc_op op = {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &buffer};
    if (!call->received) run(call, &op, 1, &tag_receive);
    if (!buffer) call->received = true;
    return buffer;
}

/* Takes the buffer. NULL: it is no message of the call's type. */
static ProtobufCMessage *unpack(tk_client_call *call, grpc_byte_buffer *buffer)
{
    ProtobufCMessage *message = NULL;
    grpc_byte_buffer_reader reader;
    if (grpc_byte_buffer_reader_init(&reader, buffer)) {
        grpc_slice all = grpc_byte_buffer_reader_readall(&reader);
        message = protobuf_c_message_unpack(call->out_type, NULL, GRPC_SLICE_LENGTH(all),
                                            GRPC_SLICE_START_PTR(all));
        grpc_slice_unref(all);
        grpc_byte_buffer_reader_destroy(&reader);
    }
    grpc_byte_buffer_destroy(buffer);
    call->bad_answer = !message;
    return message;
}

ProtobufCMessage *tk_client_receive(tk_client_call *call)
{
    if (!call) return NULL;
    grpc_byte_buffer *buffer = receive_buffer(call);
    if (!buffer) return NULL;
    ProtobufCMessage *message = unpack(call, buffer);
    if (!message) tk_client_cancel(call);
    return message;
}

void tk_client_free_message(ProtobufCMessage *message)
{
    if (message) protobuf_c_message_free_unpacked(message, NULL);
}

void tk_client_cancel(tk_client_call *call)
{
    if (call) grpc_call_cancel(call->grpc, NULL);
}

/* The core's text, cut at the buffer's end but never inside a UTF-8 sequence. */
static void copy_text(char *to, size_t size, grpc_slice text)
{
    size_t len = GRPC_SLICE_LENGTH(text);
    const uint8_t *from = GRPC_SLICE_START_PTR(text);
    if (len >= size) {
        len = size - 1;
        while (len > 0 && (from[len] & 0xC0) == 0x80)
            len--;
    }
    memcpy(to, from, len);
    to[len] = 0;
}

/* The value of grpc-retry-pushback-ms, or 0. */
static unsigned find_retry(const grpc_metadata_array *trailing)
{
    for (size_t i = 0; i < trailing->count; i++) {
        if (grpc_slice_str_cmp(trailing->metadata[i].key, "grpc-retry-pushback-ms") != 0) continue;
        char text[16];
        copy_text(text, sizeof text, trailing->metadata[i].value);
        const long ms = strtol(text, NULL, 10);
        return ms > 0 && ms <= INT_MAX ? (unsigned)ms : 0;
    }
    return 0;
}

/* "... Peer name NAME is not in peer certificate" */
static bool wrong_name(const char *said, char *text, size_t size)
{
    static const char before[] = "Peer name ", after[] = " is not in peer certificate";
    const char *name = strstr(said, before), *end = strstr(said, after);
    if (!name || !end || end < name + sizeof before - 1) return false;
    name += sizeof before - 1;
    snprintf(text, size, "the server's certificate is not for %.*s", (int)(end - name), name);
    return true;
}

/* In place of what the core says of a handshake: less than a person needs. */
static void explain(const tk_client *client, tk_client_status *status)
{
    char text[512];
    const char *said = status->text;
    const bool in_handshake = strstr(said, "failed to connect") &&
                              (strstr(said, "handshake failed") || strstr(said, "Socket closed") ||
                               strstr(said, "Connection reset"));
    if (wrong_name(said, text, sizeof text) ||
        (in_handshake && tk__client_tls_explain(client->address, &client->tls, text, sizeof text)))
        snprintf(status->text, sizeof status->text, "no TLS with %s: %s", client->address, text);
}

static void write_status(const tk_client_call *call, tk_client_status *status)
{
    if (call->bad_answer) {
        *status = (tk_client_status){.code = TK_CLIENT_INTERNAL};
        snprintf(status->text, sizeof status->text, "the server's answer is not a valid %s",
                 call->out_type->name);
        return;
    }
    status->code = (int)call->code;
    status->retry_ms = call->code == GRPC_STATUS_OK ? 0 : find_retry(&call->trailing);
    copy_text(status->text, sizeof status->text, call->details);
    if (call->code == GRPC_STATUS_OK) status->text[0] = 0;
    if (call->code == GRPC_STATUS_UNAVAILABLE && call->client->address)
        explain(call->client, status);
}

int tk_client_finish(tk_client_call *call, tk_client_status *status)
{
    if (!call) {
        *status = (tk_client_status){.code = TK_CLIENT_UNKNOWN, .text = "out of memory"};
        return status->code;
    }
    const gpr_timespec forever = gpr_inf_future(GPR_CLOCK_MONOTONIC);
    tk_client_send_end(call);
    for (grpc_byte_buffer *rest; (rest = receive_buffer(call));)
        grpc_byte_buffer_destroy(rest);
    grpc_completion_queue_pluck(call->queue, &tag_initial, forever, NULL);
    grpc_completion_queue_pluck(call->queue, &tag_status, forever, NULL);
    write_status(call, status);
    fini_call(call);
    destroy_queue(call->queue);
    free(call);
    return status->code;
}

static void sent_none(const ProtobufCMessageDescriptor *out_type, tk_client_status *status)
{
    status->code = TK_CLIENT_INTERNAL;
    snprintf(status->text, sizeof status->text, "the server sent no %s", out_type->name);
}

bool tk_client_unary(tk_client *client, const char *path, const ProtobufCMessage *in,
                     const ProtobufCMessageDescriptor *out_type, unsigned timeout_ms,
                     ProtobufCMessage **out, tk_client_status *status)
{
    *out = NULL;
    tk_client_call *call = tk_client_start(client, path, out_type, timeout_ms);
    if (tk_client_send(call, in) && tk_client_send_end(call)) *out = tk_client_receive(call);
    if (tk_client_finish(call, status) == TK_CLIENT_OK && !*out) sent_none(out_type, status);
    if (status->code == TK_CLIENT_OK) return true;
    tk_client_free_message(*out);
    *out = NULL;
    return false;
}

/* -- many unary calls -- */

struct tk_client_packed {
    grpc_slice bytes;
};

typedef struct queued_call {
    tk_client_call call; /* its queue is the tk_client_queue's */
    void *tag;
    grpc_byte_buffer *received;
    struct queued_call *before, *after; /* in flight; the queue's lock */
} queued_call;

struct tk_client_queue {
    grpc_completion_queue *queue;
    pthread_mutex_t lock;
    queued_call *in_flight; /* lock */
};

tk_client_packed *tk_client_pack(const ProtobufCMessage *message)
{
    tk_client_packed *packed = malloc(sizeof *packed);
    if (!packed) return NULL;
    packed->bytes = grpc_slice_malloc(protobuf_c_message_get_packed_size(message));
    protobuf_c_message_pack(message, GRPC_SLICE_START_PTR(packed->bytes));
    return packed;
}

size_t tk_client_packed_size(const tk_client_packed *packed)
{
    return GRPC_SLICE_LENGTH(packed->bytes);
}

void tk_client_packed_free(tk_client_packed *packed)
{
    if (!packed) return;
    grpc_slice_unref(packed->bytes);
    free(packed);
}

tk_client_queue *tk_client_queue_create(void)
{
    tk_client_queue *queue = calloc(1, sizeof *queue);
    if (!queue) return NULL;
    if (pthread_mutex_init(&queue->lock, NULL) != 0) {
        free(queue);
        return NULL;
    }
    grpc_init();
    queue->queue = grpc_completion_queue_create_for_next(NULL);
    return queue;
}

void tk_client_queue_destroy(tk_client_queue *queue)
{
    if (!queue) return;
    const gpr_timespec forever = gpr_inf_future(GPR_CLOCK_MONOTONIC);
    grpc_completion_queue_shutdown(queue->queue);
    while (grpc_completion_queue_next(queue->queue, forever, NULL).type != GRPC_QUEUE_SHUTDOWN) {
    }
    grpc_completion_queue_destroy(queue->queue);
    grpc_shutdown();
    pthread_mutex_destroy(&queue->lock);
    free(queue);
}

static void link_call(tk_client_queue *queue, queued_call *q)
{
    pthread_mutex_lock(&queue->lock);
    q->after = queue->in_flight;
    if (q->after) q->after->before = q;
    queue->in_flight = q;
    pthread_mutex_unlock(&queue->lock);
}

static void unlink_call(tk_client_queue *queue, queued_call *q)
{
    pthread_mutex_lock(&queue->lock);
    if (q->after) q->after->before = q->before;
    if (q->before)
        q->before->after = q->after;
    else
        queue->in_flight = q->after;
    pthread_mutex_unlock(&queue->lock);
}

/* The whole call as one batch; its event's tag is `q`. */
static bool start_whole(queued_call *q, const tk_client_packed *in, const char *header)
{
    tk_client_call *call = &q->call;
    grpc_slice bytes = grpc_slice_ref(in->bytes);
    grpc_byte_buffer *message = grpc_raw_byte_buffer_create(&bytes, 1);
    grpc_slice_unref(bytes);
    grpc_metadata token = {.key = grpc_slice_from_static_string("authorization")};
    if (header) token.value = grpc_slice_from_copied_string(header);
    const grpc_op ops[] = {
        {.op = GRPC_OP_SEND_INITIAL_METADATA,
         .data.send_initial_metadata = {.count = header ? 1 : 0, .metadata = &token}},
        {.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = message},
        {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT},
        {.op = GRPC_OP_RECV_INITIAL_METADATA,
         .data.recv_initial_metadata.recv_initial_metadata = &call->initial},
        {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &q->received},
        {.op = GRPC_OP_RECV_STATUS_ON_CLIENT,
         .data.recv_status_on_client = {.trailing_metadata = &call->trailing,
                                        .status = &call->code,
                                        .status_details = &call->details}},
    };
    const bool started =
        grpc_call_start_batch(call->grpc, ops, sizeof ops / sizeof *ops, q, NULL) == GRPC_CALL_OK;
    grpc_byte_buffer_destroy(message);
    if (header) grpc_slice_unref(token.value);
    return started;
}

bool tk_client_queue_start(tk_client_queue *queue, tk_client *client, const tk_client_ask *ask)
{
    char *own = ask->token ? bearer(ask->token) : NULL;
    if (ask->token && !own) return false;
    queued_call *q = calloc(1, sizeof *q);
    bool started = false;
    if (q) {
        q->tag = ask->tag;
        init_call(&q->call, client, ask->path, ask->out_type, ask->timeout_ms, queue->queue);
        link_call(queue, q);
        started = start_whole(q, ask->in, own ? own : client->header);
        if (!started) {
            unlink_call(queue, q);
            fini_call(&q->call);
            free(q);
        }
    }
    free(own);
    return started;
}

bool tk_client_queue_next(tk_client_queue *queue, unsigned wait_ms, tk_client_done *done)
{
    const grpc_event event = grpc_completion_queue_next(queue->queue, in_ms(wait_ms), NULL);
    if (event.type != GRPC_OP_COMPLETE) return false;
    queued_call *q = event.tag;
    unlink_call(queue, q);
    done->tag = q->tag;
    done->answer = q->received ? unpack(&q->call, q->received) : NULL;
    write_status(&q->call, &done->status);
    if (done->status.code == TK_CLIENT_OK && !done->answer)
        sent_none(q->call.out_type, &done->status);
    if (done->status.code != TK_CLIENT_OK) {
        tk_client_free_message(done->answer);
        done->answer = NULL;
    }
    fini_call(&q->call);
    free(q);
    return true;
}

void tk_client_queue_cancel(tk_client_queue *queue)
{
    pthread_mutex_lock(&queue->lock);
    for (queued_call *q = queue->in_flight; q; q = q->after)
        tk_client_cancel(&q->call);
    pthread_mutex_unlock(&queue->lock);
}
