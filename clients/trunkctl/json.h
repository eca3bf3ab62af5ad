/* JSON out: see json.c. jansson escapes control characters, so its output is safe on a terminal. */
#ifndef TRUNKCTL_JSON_H
#define TRUNKCTL_JSON_H

#include <jansson.h>
#include <protobuf-c/protobuf-c.h>

#include "term.h"

json_t *tk__json_of(const ProtobufCMessage *message);
json_t *tk__json_text(const char *text); /* not UTF-8: cleaned */
/* Prints and releases `value`; on one line when `lines`. Returns an exit code. */
int tk__json_print(json_t *value, bool lines);

#endif
