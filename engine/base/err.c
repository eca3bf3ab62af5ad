/* The error table in words, and the sentence that may go with an error. */
#include "engine/err.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *tk_err_text(tk_err err)
{
    static const char *const texts[] = {
#define TK_ERR_TEXT(code, text) [code] = (text),
        TK_ERRORS(TK_ERR_TEXT)
#undef TK_ERR_TEXT
    };
    size_t i = (size_t)err;
    return i < sizeof texts / sizeof texts[0] ? texts[i] : "unknown error";
}

tk_err tk_fail(tk_diag *diag, tk_err err, const char *fmt, ...)
{
    if (diag) {
        va_list args;
        va_start(args, fmt);
        (void)vsnprintf(diag->text, sizeof diag->text, fmt, args);
        va_end(args);
    }
    return err;
}

static tk_err err_of_errno(int code)
{
    switch (code) {
    case ENOSPC:
    case EDQUOT:
        return TK_NOSPACE;
    case ENOENT:
    case ENOTDIR:
        return TK_NOTFOUND;
    case ENOMEM:
        return TK_NOMEM;
    default:
        return TK_IO;
    }
}

tk_err tk_fail_errno(tk_diag *diag, const char *fmt, ...)
{
    int code = errno;
    if (diag) {
        char reason[128];
        if (strerror_r(code, reason, sizeof reason) != 0)
            (void)snprintf(reason, sizeof reason, "errno %d", code);
        va_list args;
        va_start(args, fmt);
        (void)vsnprintf(diag->text, sizeof diag->text, fmt, args);
        va_end(args);
        size_t used = strlen(diag->text);
        (void)snprintf(diag->text + used, sizeof diag->text - used, ": %s", reason);
    }
    return err_of_errno(code);
}
