/* Endings and memory that every command shares. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ctl.h"
#include "term.h"

static void complain(const char *fmt, va_list args) __attribute__((format(printf, 1, 0)));
static void complain(const char *fmt, va_list args)
{
    char text[2048];
    vsnprintf(text, sizeof(text), fmt, args);
    fputs("trunkctl: ", stderr);
    tk__put(stderr, text);
    fputc('\n', stderr);
}

int tk__fail(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    complain(fmt, args);
    va_end(args);
    return TK__FAILED;
}

int tk__usage(const tk__cmd *cmd, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    complain(fmt, args);
    va_end(args);
    if (cmd)
        fprintf(stderr, "Usage: trunkctl %s%s%s [OPTIONS]\n", cmd->name, cmd->args[0] ? " " : "",
                cmd->args);
    fprintf(stderr, "See: trunkctl help%s%s\n", cmd ? " " : "", cmd ? cmd->name : "");
    return TK__USAGE;
}

static void *or_die(void *p)
{
    if (!p) {
        fputs("trunkctl: out of memory\n", stderr);
        exit(TK__FAILED);
    }
    return p;
}

void *tk__alloc(size_t n, size_t size)
{
    return or_die(calloc(n ? n : 1, size ? size : 1));
}

void *tk__grow(void *p, size_t n, size_t size)
{
    if (size && n > SIZE_MAX / size) return or_die(NULL);
    return or_die(realloc(p, n && size ? n * size : 1));
}

char *tk__copy(const char *text)
{
    return or_die(strdup(text));
}

char *tk__format(const char *fmt, ...)
{
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    const int n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    char *text = tk__alloc(n < 0 ? 1 : (size_t)n + 1, 1);
    if (n >= 0) vsnprintf(text, (size_t)n + 1, fmt, again);
    va_end(again);
    return text;
}
