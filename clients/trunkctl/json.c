/* Any protobuf-c message as JSON, by its descriptor: field names as in the .proto, enums by name,
 * times and 64-bit numbers as numbers, absent sub-messages left out. */
#include "json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ctl.h"

static size_t element_size(ProtobufCType type)
{
    switch (type) {
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
    case PROTOBUF_C_TYPE_DOUBLE:
        return 8;
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_SINT32:
    case PROTOBUF_C_TYPE_SFIXED32:
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32:
    case PROTOBUF_C_TYPE_FLOAT:
        return 4;
    case PROTOBUF_C_TYPE_ENUM:
        return sizeof(int);
    case PROTOBUF_C_TYPE_BOOL:
        return sizeof(protobuf_c_boolean);
    case PROTOBUF_C_TYPE_BYTES:
        return sizeof(ProtobufCBinaryData);
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_MESSAGE:
        return sizeof(void *);
    }
    return 0;
}

json_t *tk__json_text(const char *text)
{
    json_t *value = json_string(text ? text : "");
    if (value) return value;
    char *clean = tk__clean(text); /* not UTF-8 */
    value = json_string(clean);
    free(clean);
    return value;
}

static json_t *enum_value(const ProtobufCEnumDescriptor *type, int number)
{
    const ProtobufCEnumValue *value = protobuf_c_enum_descriptor_get_value(type, number);
    return value ? json_string(value->name) : json_integer(number);
}

/* One element of a field, at `p`. NULL: leave it out. */
static json_t *element(const ProtobufCFieldDescriptor *field, const void *p)
{
    switch (field->type) {
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
        return json_integer(*(const int64_t *)p);
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
        return json_integer((json_int_t) * (const uint64_t *)p);
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_SINT32:
    case PROTOBUF_C_TYPE_SFIXED32:
        return json_integer(*(const int32_t *)p);
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32:
        return json_integer(*(const uint32_t *)p);
    case PROTOBUF_C_TYPE_FLOAT:
        return json_real((double)*(const float *)p);
    case PROTOBUF_C_TYPE_DOUBLE:
        return json_real(*(const double *)p);
    case PROTOBUF_C_TYPE_BOOL:
        return json_boolean(*(const protobuf_c_boolean *)p);
    case PROTOBUF_C_TYPE_ENUM:
        return enum_value(field->descriptor, *(const int *)p);
    case PROTOBUF_C_TYPE_STRING:
        return tk__json_text(*(char *const *)p);
    case PROTOBUF_C_TYPE_BYTES:
        return json_integer((json_int_t)((const ProtobufCBinaryData *)p)
                                ->len); /* none of our answers is made of them */
    case PROTOBUF_C_TYPE_MESSAGE: {
        const ProtobufCMessage *sub = *(ProtobufCMessage *const *)p;
        return sub ? tk__json_of(sub) : NULL;
    }
    }
    return NULL;
}

static json_t *repeated(const ProtobufCFieldDescriptor *field, size_t n, const char *items)
{
    json_t *array = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(array, element(field, items + i * element_size(field->type)));
    return array;
}

json_t *tk__json_of(const ProtobufCMessage *message)
{
    const char *base = (const char *)message;
    json_t *object = json_object();
    for (unsigned i = 0; i < message->descriptor->n_fields; i++) {
        const ProtobufCFieldDescriptor *field = &message->descriptor->fields[i];
        const void *at = base + field->offset;
        const bool oneof = field->flags & PROTOBUF_C_FIELD_FLAG_ONEOF;
        if (oneof &&
            *(const uint32_t *)(const void *)(base + field->quantifier_offset) != field->id)
            continue;
        json_t *value =
            field->label == PROTOBUF_C_LABEL_REPEATED
                ? repeated(field, *(const size_t *)(const void *)(base + field->quantifier_offset),
                           *(const char *const *)at)
                : element(field, at);
        if (value) json_object_set_new(object, field->name, value);
    }
    return object;
}

int tk__json_print(json_t *value, bool lines)
{
    char *text = json_dumps(value, (lines ? JSON_COMPACT : JSON_INDENT(2)) |
                                       JSON_REAL_PRECISION(9) | JSON_ENCODE_ANY);
    json_decref(value);
    if (!text) return tk__fail("out of memory");
    puts(text);
    free(text);
    return TK__DONE;
}

int tk__print_json(const ProtobufCMessage *message)
{
    return tk__json_print(tk__json_of(message), false);
}
