/* Between byte buffers of the core and protobuf-c messages: the door through which foreign bytes
 * come in. */
#include <string.h>

#include <grpc/byte_buffer_reader.h>
#include <grpc/slice.h>

#include "engine/mem.h"
#include "rpc/pb_check.h"
#include "rpc/rpc_internal.h"

/* Room for protobuf-c's structs beside the bytes themselves: 8 x the message + 64 KiB in all, as
 * much as any honest message takes (packed integers grow from 1 byte to 8). */
static size_t budget_of(size_t len)
{
    return 8 * len + 65536;
}

/* The wire bytes in one piece: the only slice in place, or a copy in `scratch`. NULL: out of
 * memory. */
static const uint8_t *gather(grpc_byte_buffer_reader *reader, size_t len, tk__rpc_scratch *scratch)
{
    grpc_slice *slice;
    if (!grpc_byte_buffer_reader_peek(reader, &slice)) return NULL;
    if (GRPC_SLICE_LENGTH(*slice) == len) return GRPC_SLICE_START_PTR(*slice);
    if (scratch->size < len) {
        tk_free(scratch->data);
        scratch->data = tk_realloc(NULL, len);
        scratch->size = scratch->data ? len : 0;
        if (!scratch->data) return NULL;
    }
    size_t at = 0;
    do {
        const size_t n = GRPC_SLICE_LENGTH(*slice);
        if (n > len - at) return NULL;
        memcpy(scratch->data + at, GRPC_SLICE_START_PTR(*slice), n);
        at += n;
    } while (grpc_byte_buffer_reader_peek(reader, &slice));
    return at == len ? scratch->data : NULL;
}

static tk_err unpack(const tk_rpc_method *method, const uint8_t *data, size_t len,
                     tk__rpc_arena *arena, const ProtobufCMessage **out, tk_diag *diag)
{
    tk_diag why;
    tk_err err = tk__pb_check(method->in, data, len, &why);
    if (err != TK_OK) return tk_fail(diag, err, "not a valid %s: %s", method->in->name, why.text);
    bool room = tk__rpc_arena_reset(arena, budget_of(len), len + len / 8 + 1024);
    ProtobufCAllocator allocator = tk__rpc_arena_allocator(arena);
    if (room) *out = protobuf_c_message_unpack(method->in, &allocator, len, data);
    if (*out) return TK_OK;
    if (arena->full == TK__ARENA_OVER_METER)
        return tk_fail(diag, TK_BUSY,
                       "the server's memory for requests is in use: a %s of %zu bytes does not fit "
                       "into its limit of %zu bytes now; try again in %d ms",
                       method->in->name, len, arena->meter->limit, TK__RPC_RETRY_MS);
    if (arena->full == TK__ARENA_OVER_BUDGET)
        return tk_fail(diag, TK_LIMIT, "a %s of %zu bytes may not take more than %zu bytes decoded",
                       method->in->name, len, budget_of(len));
    return tk_fail(diag, TK_BADDATA, "not a valid %s", method->in->name);
}

tk_err tk__rpc_decode(const tk_rpc_method *method, grpc_byte_buffer *buffer, tk__rpc_arena *arena,
                      tk__rpc_scratch *scratch, const ProtobufCMessage **out, tk_diag *diag)
{
    *out = NULL;
    const size_t len = grpc_byte_buffer_length(buffer);
    if (len > method->max_request)
        return tk_fail(diag, TK_LIMIT, "%s takes messages of up to %zu bytes; this one has %zu",
                       method->path, method->max_request, len);
    if (len == 0) return unpack(method, (const uint8_t *)"", 0, arena, out, diag);
    grpc_byte_buffer_reader reader;
    if (!grpc_byte_buffer_reader_init(&reader, buffer))
        return tk_fail(diag, TK_BADDATA, "the message cannot be read");
    const uint8_t *data = gather(&reader, len, scratch);
    tk_err err = data ? unpack(method, data, len, arena, out, diag)
                      : tk_fail(diag, TK_NOMEM, "no memory for a message of %zu bytes", len);
    grpc_byte_buffer_reader_destroy(&reader);
    if (scratch->size > TK__RPC_SCRATCH_KEPT) {
        tk_free(scratch->data);
        *scratch = (tk__rpc_scratch){0};
    }
    return err;
}

grpc_byte_buffer *tk__rpc_encode(const ProtobufCMessage *message)
{
    grpc_slice slice = grpc_slice_malloc(protobuf_c_message_get_packed_size(message));
    protobuf_c_message_pack(message, GRPC_SLICE_START_PTR(slice));
    grpc_byte_buffer *buffer = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    return buffer;
}
