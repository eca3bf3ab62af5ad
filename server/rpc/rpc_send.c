/* What goes out: a ring of packed messages and, once, the status. One send is under way at a time,
 * started by whichever thread finds none under way; its completion, on the call's completion-queue
 * thread, is the flow control and starts the next. The last message and the status leave in one
 * batch. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <grpc/slice.h>

#include "rpc/pb_check.h"
#include "rpc/rpc_internal.h"
#include "rpc/status.h"

void tk__rpc_drop_queue_locked(tk_rpc_call *call)
{
    for (; call->queued > 0; call->queued--) {
        grpc_byte_buffer_destroy(call->queue[call->first]);
        call->first = (call->first + 1) % TK__RPC_QUEUE;
    }
}

static grpc_byte_buffer *pop_locked(tk_rpc_call *call)
{
    if (call->queued == 0) return NULL;
    grpc_byte_buffer *message = call->queue[call->first];
    call->first = (call->first + 1) % TK__RPC_QUEUE;
    call->queued--;
    return message;
}

static void push_locked(tk_rpc_call *call, grpc_byte_buffer *message)
{
    call->queue[(call->first + call->queued) % TK__RPC_QUEUE] = message;
    call->queued++;
}

static grpc_metadata retry_hint(uint32_t ms)
{
    char text[16];
    snprintf(text, sizeof text, "%" PRIu32, ms);
    return (grpc_metadata){.key = grpc_slice_from_static_string("grpc-retry-pushback-ms"),
                           .value = grpc_slice_from_copied_string(text)};
}

/* Starts the next send when there is one and none is under way. The caller holds a reference. */
static void pump(tk_rpc_call *call)
{
    grpc_op ops[3] = {0};
    size_t n = 0;
    pthread_mutex_lock(&call->lock);
    const bool status = call->over && call->queued <= 1;
    if (call->sending || call->done || (call->queued == 0 && !status)) {
        pthread_mutex_unlock(&call->lock);
        return;
    }
    if (!call->metadata_sent) ops[n++].op = GRPC_OP_SEND_INITIAL_METADATA;
    call->metadata_sent = true;
    grpc_byte_buffer *message = pop_locked(call);
    if (message) {
        ops[n].op = GRPC_OP_SEND_MESSAGE;
        ops[n++].data.send_message.send_message = message;
    }
    call->sending = true;
    call->done = status;
    pthread_mutex_unlock(&call->lock);

    grpc_slice why = grpc_empty_slice();
    grpc_metadata retry = {.value = grpc_empty_slice()}; /* as `why`, the core takes a copy */
    if (status) {
        why = grpc_slice_from_copied_string(call->why.text);
        ops[n].op = GRPC_OP_SEND_STATUS_FROM_SERVER;
        ops[n].data.send_status_from_server.status = call->code;
        ops[n].data.send_status_from_server.status_details = &why;
        if (call->retry_ms > 0 && call->code != GRPC_STATUS_OK) {
            retry = retry_hint(call->retry_ms);
            ops[n].data.send_status_from_server.trailing_metadata = &retry;
            ops[n].data.send_status_from_server.trailing_metadata_count = 1;
        }
        n++;
    }
    tk_rpc_ref(call);
    if (grpc_call_start_batch(call->grpc, ops, n, &call->sent, NULL) != GRPC_CALL_OK)
        tk_rpc_unref(call);
    grpc_slice_unref(why);
    grpc_slice_unref(retry.value);
    if (message) grpc_byte_buffer_destroy(message);
}

void tk__rpc_on_sent(void *self, bool ok)
{
    tk_rpc_call *call = self;
    pthread_mutex_lock(&call->lock);
    call->sending = false;
    if (!ok) {
        call->done = true; /* the stream is gone; `closed` tells the method */
        tk__rpc_drop_queue_locked(call);
    }
    const bool tell = ok && !call->over && call->method->on_writable;
    const bool next = ok && call->wants_next;
    if (next) call->wants_next = false;
    pthread_mutex_unlock(&call->lock);
    if (ok) pump(call);
    if (next) tk__rpc_receive(call);
    if (tell) tk__rpc_call_schedule(call, TK__DO_WRITABLE);
    tk_rpc_unref(call);
}

bool tk__rpc_end(tk_rpc_call *call, grpc_status_code code, const char *text)
{
    pthread_mutex_lock(&call->lock);
    const bool first = !call->over;
    if (first) {
        call->over = true;
        call->code = code;
        call->over_ns = tk_now_ns();
        snprintf(call->why.text, sizeof call->why.text, "%s", text ? text : "");
        /* The sentence may quote foreign bytes, or be cut inside a character. */
        call->why.text[tk__utf8_valid((const uint8_t *)call->why.text, strlen(call->why.text))] = 0;
    }
    pthread_mutex_unlock(&call->lock);
    if (first) pump(call);
    return first;
}

void tk_rpc_reply(tk_rpc_call *call, const ProtobufCMessage *out)
{
    grpc_byte_buffer *message = tk__rpc_encode(out);
    pthread_mutex_lock(&call->lock);
    const bool first = !call->over;
    if (first) {
        push_locked(call, message);
        call->over = true;
        call->code = GRPC_STATUS_OK;
        call->over_ns = tk_now_ns();
    }
    pthread_mutex_unlock(&call->lock);
    if (first)
        pump(call);
    else
        grpc_byte_buffer_destroy(message);
}

bool tk_rpc_send(tk_rpc_call *call, const ProtobufCMessage *out)
{
    pthread_mutex_lock(&call->lock);
    bool room = !call->over && call->queued + call->sending < TK__RPC_QUEUE;
    pthread_mutex_unlock(&call->lock);
    if (!room) return false; /* before the work of packing */
    grpc_byte_buffer *message = tk__rpc_encode(out);
    pthread_mutex_lock(&call->lock);
    room = !call->over && call->queued + call->sending < TK__RPC_QUEUE;
    if (room) push_locked(call, message);
    pthread_mutex_unlock(&call->lock);
    if (room)
        pump(call);
    else
        grpc_byte_buffer_destroy(message);
    return room;
}

void tk_rpc_finish(tk_rpc_call *call)
{
    tk__rpc_end(call, GRPC_STATUS_OK, NULL);
}

void tk_rpc_retry_after(tk_rpc_call *call, uint32_t ms)
{
    pthread_mutex_lock(&call->lock);
    if (!call->over) call->retry_ms = ms;
    pthread_mutex_unlock(&call->lock);
}

void tk_rpc_fail(tk_rpc_call *call, tk_err err, const char *fmt, ...)
{
    tk_diag text;
    va_list args;
    va_start(args, fmt);
    vsnprintf(text.text, sizeof text.text, fmt, args);
    va_end(args);
    /* "Failed" without an error is our own mistake, and must not look like success. */
    tk__rpc_end(call, tk__status_code(err == TK_OK ? TK_INTERNAL : err), text.text);
}
