/* UTF-8 as RFC 3629 (section 4) defines it, less the control characters, which would let a name
 * forge lines in a log or a terminal. */
#include "text.h"

#include <stdint.h>
#include <string.h>

/* Length of the well-formed sequence at s, or 0. */
static size_t sequence(const uint8_t *s, size_t left)
{
    const uint8_t a = s[0];
    if (a < 0x80) return a >= 0x20 && a != 0x7f ? 1 : 0;
    const size_t n = a >= 0xc2 && a <= 0xdf   ? 2
                     : a >= 0xe0 && a <= 0xef ? 3
                     : a >= 0xf0 && a <= 0xf4 ? 4
                                              : 0;
    if (n == 0 || n > left) return 0;
    for (size_t i = 1; i < n; i++)
        if ((s[i] & 0xc0) != 0x80) return 0;
    const uint8_t b = s[1];
    if (a == 0xc2 && b < 0xa0) return 0; /* C1 controls */
    if (a == 0xe0 && b < 0xa0) return 0; /* overlong */
    if (a == 0xed && b > 0x9f) return 0; /* surrogates */
    if (a == 0xf0 && b < 0x90) return 0; /* overlong */
    if (a == 0xf4 && b > 0x8f) return 0; /* above U+10FFFF */
    return n;
}

bool tk__text_is_clean(const char *s, size_t size)
{
    const uint8_t *p = (const uint8_t *)s;
    for (size_t i = 0; i < size;) {
        const size_t n = sequence(p + i, size - i);
        if (n == 0) return false;
        i += n;
    }
    return true;
}

tk_err tk__text_check(const char *what, const char *s, size_t max, tk_diag *diag)
{
    const size_t size = s ? strlen(s) : 0;
    if (size == 0) return tk_fail(diag, TK_BADARG, "%s: empty", what);
    if (size > max)
        return tk_fail(diag, TK_BADARG, "%s: %zu bytes, at most %zu are allowed", what, size, max);
    if (!tk__text_is_clean(s, size))
        return tk_fail(diag, TK_BADARG, "%s: not UTF-8 text without control characters", what);
    return TK_OK;
}
