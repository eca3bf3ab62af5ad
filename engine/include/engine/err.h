/* Errors of the whole project: one enum, made from one table, and an optional sentence for a person. */
#ifndef ENGINE_ERR_H
#define ENGINE_ERR_H

#if defined(__GNUC__)
#define TK_MUST __attribute__((warn_unused_result))
#define TK_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#else
#define TK_MUST
#define TK_PRINTF(fmt, args)
#endif

/* code, text */
#define TK_ERRORS(X)                                                                               \
    X(TK_OK, "ok")                                                                                 \
    X(TK_NOMEM, "out of memory")                                                                   \
    X(TK_BADARG, "invalid argument")                                                               \
    X(TK_BADDATA, "invalid data")                                                                  \
    X(TK_NOTFOUND, "not found")                                                                    \
    X(TK_EXISTS, "already exists")                                                                 \
    X(TK_DENIED, "permission denied")                                                              \
    X(TK_UNAUTHENTICATED, "not authenticated")                                                     \
    X(TK_PRECONDITION, "not possible in the present state")                                        \
    X(TK_LIMIT, "limit exceeded")                                                                  \
    X(TK_BUSY, "busy")                                                                             \
    X(TK_CANCELLED, "cancelled")                                                                   \
    X(TK_DEADLINE, "deadline exceeded")                                                            \
    X(TK_DIVERGED, "training diverged")                                                            \
    X(TK_NOSPACE, "no space left on the device")                                                   \
    X(TK_IO, "input or output failed")                                                             \
    X(TK_INTERNAL, "internal error")

typedef enum tk_err {
#define TK_ERR_ENUM(code, text) code,
    TK_ERRORS(TK_ERR_ENUM)
#undef TK_ERR_ENUM
} tk_err;

/* The name of the error in words; never NULL. Any thread. */
const char *tk_err_text(tk_err err);

/* A sentence for a person. Functions that take a `tk_diag *` accept NULL. */
typedef struct tk_diag {
    char text[512];
} tk_diag;

/* Writes the sentence (cut at the buffer's end) if `diag` is not NULL and returns `err`, so that a
 * failure is one line: return tk_fail(diag, TK_BADDATA, "tensor %s: ...", name); */
tk_err tk_fail(tk_diag *diag, tk_err err, const char *fmt, ...) TK_PRINTF(3, 4);

/* The same for a failed system call: maps errno to TK_NOSPACE, TK_NOTFOUND, TK_NOMEM or TK_IO and
 * appends strerror(errno). */
tk_err tk_fail_errno(tk_diag *diag, const char *fmt, ...) TK_PRINTF(2, 3);

#endif
