/* A look at packed protobuf bytes before protobuf-c sees them. protobuf-c 1.4 checks neither UTF-8
 * nor depth, cuts strings at an embedded NUL, and merges a repeated singular sub-message in
 * quadratic time; this walk, driven by the message's descriptor, refuses all of that without
 * allocating. */
#ifndef SERVER_RPC_PB_CHECK_H
#define SERVER_RPC_PB_CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <protobuf-c/protobuf-c.h>

#include "engine/err.h"

enum {
    TK_PB_MAX_DEPTH = 16,
    TK_PB_MAX_FIELDS = 1000000, /* of one message and all within it */
};

/* TK_BADDATA and a sentence that names the field when the bytes are not a `type` that may be
 * unpacked: every known field has its wire type, strings are UTF-8 without NUL, a singular
 * sub-message comes once, no groups, no deeper than TK_PB_MAX_DEPTH; TK_LIMIT for more than
 * TK_PB_MAX_FIELDS fields. Unknown fields pass. */
TK_MUST tk_err tk__pb_check(const ProtobufCMessageDescriptor *type, const uint8_t *data, size_t len,
                            tk_diag *diag);

/* Length of the longest prefix that is whole, valid UTF-8 without NUL: `len` when all is well. */
size_t tk__utf8_valid(const uint8_t *data, size_t len);

#endif
