/* The `traceparent` header of W3C's Trace Context: "00-" trace id (32 hex digits) "-" parent id
 * (16)
 * "-" flags (2), lower case. Whoever sends anything else has no trace. */
#include <string.h>

#include "rpc/rpc_internal.h"

/* n lower-case hex digits, not all of them zero if `some`. */
static bool is_hex(const uint8_t *text, size_t n, bool some)
{
    bool zero = true;
    for (size_t i = 0; i < n; i++) {
        const uint8_t c = text[i];
        if (!(c >= '0' && c <= '9') && !(c >= 'a' && c <= 'f')) return false;
        zero = zero && c == '0';
    }
    return !some || !zero;
}

bool tk__rpc_trace_parse(const uint8_t *text, size_t len, char *out)
{
    enum { VERSION = 0, TRACE = 3, PARENT = 36, FLAGS = 53, LENGTH = 55 };
    out[0] = '\0';
    if (len != LENGTH || text[TRACE - 1] != '-' || text[PARENT - 1] != '-' ||
        text[FLAGS - 1] != '-' || !is_hex(text + VERSION, 2, false) || memcmp(text, "ff", 2) == 0 ||
        !is_hex(text + TRACE, 32, true) || !is_hex(text + PARENT, 16, true) ||
        !is_hex(text + FLAGS, 2, false))
        return false;
    memcpy(out, text + TRACE, 32);
    out[32] = '\0';
    return true;
}
