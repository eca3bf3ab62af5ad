/* The walk over the wire format: https://protobuf.dev/programming-guides/encoding/. A cursor steps
 * through tag, value, tag, value; a length-delimited value of a sub-message field is walked by one
 * level of recursion, which is what the depth limit bounds. */
#include "rpc/pb_check.h"

enum { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };

typedef struct cursor {
    const uint8_t *at, *end;
} cursor;

/* What all levels of one walk share. */
typedef struct walk {
    size_t fields;
    tk_diag *diag;
} walk;

/* Continuation bytes that must follow `lead`, or -1; *low and *high bound the first of them (which
 * is where overlong forms, surrogates and code points past U+10FFFF are refused). */
static int utf8_tail(uint8_t lead, uint8_t *low, uint8_t *high)
{
    *low = 0x80;
    *high = 0xBF;
    if (lead >= 0xC2 && lead <= 0xDF) return 1;
    if (lead >= 0xE0 && lead <= 0xEF) {
        if (lead == 0xE0) *low = 0xA0;
        if (lead == 0xED) *high = 0x9F;
        return 2;
    }
    if (lead >= 0xF0 && lead <= 0xF4) {
        if (lead == 0xF0) *low = 0x90;
        if (lead == 0xF4) *high = 0x8F;
        return 3;
    }
    return -1;
}

size_t tk__utf8_valid(const uint8_t *data, size_t len)
{
    size_t i = 0;
    while (i < len) {
        if (data[i] != 0 && data[i] < 0x80) {
            i++;
            continue;
        }
        uint8_t low, high;
        int tail = utf8_tail(data[i], &low, &high);
        if (tail < 0 || len - i <= (size_t)tail) return i;
        if (data[i + 1] < low || data[i + 1] > high) return i;
        for (int k = 2; k <= tail; k++)
            if ((data[i + (size_t)k] & 0xC0) != 0x80) return i;
        i += (size_t)tail + 1;
    }
    return len;
}

static bool read_varint(cursor *c, uint64_t *out)
{
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 70 && c->at < c->end; shift += 7) {
        const uint8_t byte = *c->at++;
        if (shift == 63 && byte > 1) return false;
        value |= (uint64_t)(byte & 0x7F) << shift;
        if (byte < 0x80) {
            *out = value;
            return true;
        }
    }
    return false;
}

/* Steps over one value; a length-delimited one is handed out as *body. */
static bool skip_value(cursor *c, unsigned wire, cursor *body)
{
    uint64_t n = 0;
    if (wire == WIRE_VARINT) return read_varint(c, &n);
    if (wire == WIRE_64)
        n = 8;
    else if (wire == WIRE_32)
        n = 4;
    else if (wire != WIRE_BYTES || !read_varint(c, &n))
        return false;
    if (n > (uint64_t)(c->end - c->at)) return false;
    *body = (cursor){c->at, c->at + n};
    c->at += n;
    return true;
}

static unsigned wire_of(ProtobufCType type)
{
    switch (type) {
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_SINT32:
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_BOOL:
    case PROTOBUF_C_TYPE_ENUM:
        return WIRE_VARINT;
    case PROTOBUF_C_TYPE_FIXED64:
    case PROTOBUF_C_TYPE_SFIXED64:
    case PROTOBUF_C_TYPE_DOUBLE:
        return WIRE_64;
    case PROTOBUF_C_TYPE_FIXED32:
    case PROTOBUF_C_TYPE_SFIXED32:
    case PROTOBUF_C_TYPE_FLOAT:
        return WIRE_32;
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_BYTES:
    case PROTOBUF_C_TYPE_MESSAGE:
        return WIRE_BYTES;
    }
    return WIRE_BYTES;
}

/* The elements of a packed repeated field; `wire` is theirs. */
static bool check_packed(cursor body, unsigned wire, walk *w)
{
    while (body.at < body.end) {
        cursor none;
        if (!skip_value(&body, wire, &none) || ++w->fields > TK_PB_MAX_FIELDS) return false;
    }
    return true;
}

static tk_err check_string(const ProtobufCMessageDescriptor *type,
                           const ProtobufCFieldDescriptor *field, cursor body, walk *w)
{
    const size_t len = (size_t)(body.end - body.at), valid = tk__utf8_valid(body.at, len);
    if (valid == len) return TK_OK;
    return tk_fail(w->diag, TK_BADDATA, "field %s.%s %s at byte %zu", type->name, field->name,
                   body.at[valid] == 0 ? "has a NUL" : "is not valid UTF-8", valid);
}

static tk_err check_message(const ProtobufCMessageDescriptor *type, cursor c, unsigned depth,
                            walk *w);

/* A known field's value. `seen` has a bit for each of the type's first 64 fields. */
static tk_err check_field(const ProtobufCMessageDescriptor *type,
                          const ProtobufCFieldDescriptor *field, unsigned wire, cursor body,
                          unsigned depth, uint64_t *seen, walk *w)
{
    const unsigned expected = wire_of(field->type);
    const bool repeated = field->label == PROTOBUF_C_LABEL_REPEATED;
    if (wire != expected) {
        if (repeated && wire == WIRE_BYTES && check_packed(body, expected, w)) return TK_OK;
        if (w->fields > TK_PB_MAX_FIELDS)
            return tk_fail(w->diag, TK_LIMIT, "more than %d fields", TK_PB_MAX_FIELDS);
        return tk_fail(w->diag, TK_BADDATA, "field %s.%s has wire type %u instead of %u",
                       type->name, field->name, wire, expected);
    }
    if (field->type == PROTOBUF_C_TYPE_STRING) return check_string(type, field, body, w);
    if (field->type != PROTOBUF_C_TYPE_MESSAGE) return TK_OK;
    const size_t index = (size_t)(field - type->fields);
    if (!repeated && index < 64) {
        if (*seen >> index & 1)
            return tk_fail(w->diag, TK_BADDATA, "field %s.%s comes twice", type->name, field->name);
        *seen |= (uint64_t)1 << index;
    }
    return check_message(field->descriptor, body, depth + 1, w);
}

static tk_err check_message(const ProtobufCMessageDescriptor *type, cursor c, unsigned depth,
                            walk *w)
{
    if (depth > TK_PB_MAX_DEPTH)
        return tk_fail(w->diag, TK_BADDATA, "%s is nested more than %d deep", type->name,
                       TK_PB_MAX_DEPTH);
    uint64_t seen = 0;
    while (c.at < c.end) {
        if (++w->fields > TK_PB_MAX_FIELDS)
            return tk_fail(w->diag, TK_LIMIT, "more than %d fields", TK_PB_MAX_FIELDS);
        uint64_t tag;
        cursor body = {c.at, c.at};
        if (!read_varint(&c, &tag) || tag > UINT32_MAX || tag >> 3 == 0)
            return tk_fail(w->diag, TK_BADDATA, "%s has a bad field tag", type->name);
        const unsigned wire = (unsigned)(tag & 7), number = (unsigned)(tag >> 3);
        if (!skip_value(&c, wire, &body))
            return tk_fail(w->diag, TK_BADDATA, "field %u of %s is cut short or malformed", number,
                           type->name);
        const ProtobufCFieldDescriptor *field =
            protobuf_c_message_descriptor_get_field(type, number);
        if (!field) continue;
        tk_err err = check_field(type, field, wire, body, depth, &seen, w);
        if (err != TK_OK) return err;
    }
    return TK_OK;
}

tk_err tk__pb_check(const ProtobufCMessageDescriptor *type, const uint8_t *data, size_t len,
                    tk_diag *diag)
{
    walk w = {.diag = diag};
    if (len == 0) return TK_OK;
    return check_message(type, (cursor){data, data + len}, 1, &w);
}
