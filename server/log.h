/* Logging: one line per event to standard error, as logfmt or JSON, written by one write(2). Values
 * are escaped, so that nothing from outside can forge a line or a field.
 *
 *     tk_log(TK_LOG_INFO, "listening",
 *            (tk_log_field[]){tk_log_str("address", a), tk_log_int("port", p), tk_log_end()});
 *
 * Any thread. */
#ifndef SERVER_LOG_H
#define SERVER_LOG_H

#include <stdbool.h>
#include <stdint.h>

typedef enum tk_log_level { TK_LOG_DEBUG, TK_LOG_INFO, TK_LOG_WARN, TK_LOG_ERROR } tk_log_level;

typedef struct tk_log_field {
    const char *key;  /* NULL: the end */
    const char *text; /* NULL: the number */
    int64_t number;
} tk_log_field;

/* Any thread; holds for the lines that begin after it. Default: logfmt, TK_LOG_INFO. */
void tk_log_init(bool json, tk_log_level least);
void tk_log(tk_log_level level, const char *event, const tk_log_field *fields);

static inline tk_log_field tk_log_str(const char *key, const char *text)
{
    return (tk_log_field){key, text ? text : "", 0};
}

static inline tk_log_field tk_log_int(const char *key, int64_t number)
{
    return (tk_log_field){key, 0, number};
}

static inline tk_log_field tk_log_end(void)
{
    return (tk_log_field){0, 0, 0};
}

#endif
