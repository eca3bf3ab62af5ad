/* Checks of short texts that come from outside: labels, identifiers, file names. */
#ifndef HEADS_TEXT_H
#define HEADS_TEXT_H

#include <stdbool.h>
#include <stddef.h>

#include "engine/err.h"

/* Well-formed UTF-8 (no overlong form, no surrogate, at most U+10FFFF) without NUL and without
 * control characters? */
bool tk__text_is_clean(const char *s, size_t size);
/* 1..max bytes of clean text, or TK_BADARG naming `what`. */
TK_MUST tk_err tk__text_check(const char *what, const char *s, size_t max, tk_diag *diag);

#endif
