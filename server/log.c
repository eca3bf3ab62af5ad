/* See log.h. A line is put together in a buffer on the stack; what does not fit is cut, never the
 * line's shape. */
#include "log.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { LINE = 8192, TAIL = 16 }; /* TAIL: room kept for closing quote, brace and newline */

static atomic_bool as_json; /* relaxed, both: a line looks once */
static _Atomic tk_log_level least_level = TK_LOG_INFO;

typedef struct line {
    char text[LINE];
    size_t n;
    bool json;
} line;

static void put(line *l, const char *s, size_t n)
{
    if (l->n + n > LINE - TAIL) return;
    memcpy(l->text + l->n, s, n);
    l->n += n;
}

static void puts_(line *l, const char *s)
{
    put(l, s, strlen(s));
}

/* Length of the well-formed UTF-8 sequence at s, or 0. NUL ends the string and stops every read. */
static size_t utf8_length(const unsigned char *s)
{
    size_t n;
    uint32_t least, c;
    if (s[0] < 0x80) return 1;
    if (s[0] >= 0xC2 && s[0] <= 0xDF)
        n = 2, least = 0x80, c = s[0] & 0x1FU;
    else if ((s[0] & 0xF0) == 0xE0)
        n = 3, least = 0x800, c = s[0] & 0x0FU;
    else if (s[0] >= 0xF0 && s[0] <= 0xF4)
        n = 4, least = 0x10000, c = s[0] & 0x07U;
    else
        return 0;
    for (size_t i = 1; i < n; i++) {
        if ((s[i] & 0xC0) != 0x80) return 0;
        c = c << 6 | (s[i] & 0x3FU);
    }
    return c >= least && c <= 0x10FFFF && (c < 0xD800 || c > 0xDFFF) ? n : 0;
}

/* JSON's string escapes serve logfmt's quoted values as well. */
static void put_quoted(line *l, const char *text)
{
    puts_(l, "\"");
    for (const unsigned char *s = (const unsigned char *)text; *s;) {
        char escape[8];
        const size_t n = utf8_length(s);
        if (*s == '"' || *s == '\\') {
            const char pair[2] = {'\\', (char)*s};
            put(l, pair, 2);
        } else if (n == 0) {
            puts_(l, "\\ufffd");
        } else if (*s < 0x20 || *s == 0x7F) {
            snprintf(escape, sizeof escape, "\\u%04x", (unsigned)*s);
            puts_(l, escape);
        } else {
            put(l, (const char *)s, n);
        }
        s += n ? n : 1;
    }
    l->text[l->n++] = '"'; /* fits: TAIL */
}

static bool plain(const char *text)
{
    if (!*text) return false;
    for (const char *s = text; *s; s++) {
        if (*s <= ' ' || *s > '~' || *s == '"' || *s == '=' || *s == '\\') return false;
    }
    return true;
}

static void put_field(line *l, const char *key, const char *text, int64_t number)
{
    if (l->n + strlen(key) + 32 > LINE - TAIL) return;
    if (l->n > (l->json ? 1 : 0)) puts_(l, l->json ? "," : " ");
    if (l->json)
        put_quoted(l, key), puts_(l, ":");
    else
        puts_(l, key), puts_(l, "=");
    if (!text) {
        char digits[24];
        snprintf(digits, sizeof digits, "%" PRId64, number);
        puts_(l, digits);
    } else if (!l->json && plain(text) && strlen(text) < LINE / 2) {
        puts_(l, text);
    } else {
        put_quoted(l, text);
    }
}

void tk_log_init(bool json, tk_log_level least)
{
    atomic_store_explicit(&as_json, json, memory_order_relaxed);
    atomic_store_explicit(&least_level, least, memory_order_relaxed);
}

void tk_log(tk_log_level level, const char *event, const tk_log_field *fields)
{
    static const char *const names[] = {"debug", "info", "warn", "error"};
    if (level < atomic_load_explicit(&least_level, memory_order_relaxed)) return;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    struct tm utc;
    gmtime_r(&now.tv_sec, &utc);
    char time[64];
    const size_t n = strftime(time, sizeof time, "%Y-%m-%dT%H:%M:%S", &utc);
    snprintf(time + n, sizeof time - n, ".%03ldZ", now.tv_nsec / 1000000);
    line l;
    l.n = 0;
    l.json = atomic_load_explicit(&as_json, memory_order_relaxed);
    if (l.json) puts_(&l, "{");
    put_field(&l, "time", time, 0);
    put_field(&l, "level", names[level], 0);
    put_field(&l, "event", event, 0);
    for (; fields->key; fields++)
        put_field(&l, fields->key, fields->text, fields->number);
    if (l.json) l.text[l.n++] = '}';
    l.text[l.n++] = '\n';
    /* A full or closed standard error must not stop the server. */
    const ssize_t written = write(STDERR_FILENO, l.text, l.n);
    (void)written;
}
