/* See config_file.h. */
#include "config_file.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "engine/mem.h"

enum { FILE_MAX = 64 << 10 };

static const char blanks[] = " \t\r";

tk_err tk__config_file_read(const char *path, char **text, tk_diag *diag)
{
    *text = NULL;
    FILE *file = fopen(path, "re");
    if (!file) return tk_fail(diag, TK_BADARG, "--config %s: %s", path, strerror(errno));
    char *all = tk_calloc(FILE_MAX + 1, 1);
    const size_t n = all ? fread(all, 1, FILE_MAX + 1, file) : 0;
    const int error = ferror(file) ? errno : 0;
    fclose(file);
    tk_err err = TK_OK;
    if (!all)
        err = tk_fail(diag, TK_NOMEM, "no memory for %s", path);
    else if (error)
        err = tk_fail(diag, TK_BADARG, "--config %s: %s", path, strerror(error));
    else if (n > FILE_MAX)
        err = tk_fail(diag, TK_BADARG, "--config %s has more than %d bytes", path, FILE_MAX);
    else if (memchr(all, '\0', n))
        err = tk_fail(diag, TK_BADARG, "--config %s is no text: it has a zero byte", path);
    if (err != TK_OK) {
        tk_free(all);
        return err;
    }
    *text = all; /* n <= FILE_MAX, so a zero follows */
    return TK_OK;
}

/* Cuts blanks at both ends, in place. */
static char *trim(char *text)
{
    text += strspn(text, blanks);
    for (size_t n = strlen(text); n > 0 && strchr(blanks, text[n - 1]); n--)
        text[n - 1] = '\0';
    return text;
}

static void cut_comment(char *text)
{
    for (char *hash = strchr(text, '#'); hash; hash = strchr(hash + 1, '#')) {
        if (hash != text && !strchr(blanks, hash[-1])) continue;
        *hash = '\0';
        return;
    }
}

/* The line at *at without its newline; NULL at the end. */
static char *take_line(char **at)
{
    char *text = *at;
    if (*text == '\0') return NULL;
    char *end = strchr(text, '\n');
    *at = end ? end + 1 : text + strlen(text);
    if (end) *end = '\0';
    return text;
}

tk_err tk__config_file_next(const char *path, char **at, tk__config_line *line, tk_diag *diag)
{
    line->name = line->value = NULL;
    char *text;
    while ((text = take_line(at))) {
        line->number++;
        cut_comment(text);
        text = trim(text);
        if (*text == '\0') continue;
        char *value = strchr(text, '=');
        if (!value || value == text)
            return tk_fail(diag, TK_BADARG, "%s:%u: \"%.60s\" is not \"name = value\"", path,
                           line->number, text);
        *value = '\0';
        line->name = trim(text);
        line->value = trim(value + 1);
        if (*line->value == '"' || *line->value == '\'')
            return tk_fail(diag, TK_BADARG, "%s:%u: %s: values stand without quotes", path,
                           line->number, line->name);
        return TK_OK;
    }
    return TK_OK;
}
