/* Where the server is and who asks: see config.h. The config file holds a secret, so modes wider
 * than 0600 are refused, as ssh does with its keys. */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ctl.h"

enum { LINE_MAX_BYTES = 4096 };

char *tk__config_path(void)
{
    const char *base = getenv("XDG_CONFIG_HOME"), *home = getenv("HOME");
    if (base && *base) return tk__format("%s/trunkd/config", base);
    return home && *home ? tk__format("%s/.config/trunkd/config", home) : NULL;
}

/* Cuts blanks at both ends, in place. */
static char *trim(char *text)
{
    text += strspn(text, " \t\r\n");
    for (size_t n = strlen(text); n && strchr(" \t\r\n", text[n - 1]);)
        text[--n] = '\0';
    return text;
}

/* Where the value of `name` goes; NULL: there is no such setting. */
static char **field_of(tk__config *out, const char *name)
{
    const struct {
        const char *name;
        char **field;
    } all[] = {
        {"server", &out->server},
        {"token", &out->token},
        {"tls", &out->tls},
        {"tls-ca", &out->tls_ca},
        {"tls-client-cert", &out->tls_client_cert},
        {"tls-client-key", &out->tls_client_key},
        {"tls-name", &out->tls_name},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (strcmp(name, all[i].name) == 0) return all[i].field;
    return NULL;
}

/* One line of the file. False: *why says what is wrong with it. */
static bool take_line(tk__config *out, char *text, const char *path, unsigned line, char **why)
{
    text = trim(text);
    if (*text == '\0' || *text == '#') return true;
    char *value = strchr(text, '=');
    if (value) *value++ = '\0';
    char **field = field_of(out, trim(text));
    if (!value || !field) {
        *why = tk__format("%s:%u: expected \"server = HOST:PORT\", \"token = TOKEN\", "
                          "\"tls = yes|no\", tls-ca, tls-client-cert, tls-client-key or tls-name",
                          path, line);
        return false;
    }
    free(*field);
    *field = tk__copy(trim(value));
    return true;
}

/* The file is this user's and nobody else's to read. */
static bool private_enough(FILE *file, const char *path, char **why)
{
    struct stat st;
    if (fstat(fileno(file), &st) != 0)
        *why = tk__format("%s: %s", path, strerror(errno));
    else if (!S_ISREG(st.st_mode))
        *why = tk__format("%s: not a file", path);
    else if (st.st_uid != geteuid() && st.st_uid != 0)
        *why = tk__format("%s: belongs to another user", path);
    else if (st.st_mode & 077)
        *why = tk__format(
            "%s: its mode is %04o, so other users may reach the token in it; run: chmod 600 %s",
            path, (unsigned)(st.st_mode & 07777), path);
    else
        return true;
    return false;
}

bool tk__config_read(tk__config *out, const char *path, char **why)
{
    *out = (tk__config){0};
    *why = NULL;
    FILE *file = fopen(path, "re");
    if (!file && errno == ENOENT) return true;
    if (!file) {
        *why = tk__format("%s: %s", path, strerror(errno));
        return false;
    }
    char text[LINE_MAX_BYTES];
    bool fine = private_enough(file, path, why);
    for (unsigned line = 1; fine && fgets(text, sizeof(text), file); line++)
        fine = take_line(out, text, path, line, why);
    fclose(file);
    if (!fine) tk__config_free(out);
    return fine;
}

void tk__config_free(tk__config *config)
{
    free(config->server);
    free(config->token);
    free(config->tls);
    free(config->tls_ca);
    free(config->tls_client_cert);
    free(config->tls_client_key);
    free(config->tls_name);
    *config = (tk__config){0};
}

char *tk__token_read(const char *path, char **why)
{
    *why = NULL;
    char text[LINE_MAX_BYTES] = "";
    FILE *file = fopen(path, "re");
    const bool read = file && fgets(text, sizeof(text), file);
    if (!file || (!read && ferror(file)))
        *why = tk__format("token file %s: %s", path, strerror(errno));
    if (file) fclose(file);
    const char *token = trim(text);
    if (!*why && *token == '\0') *why = tk__format("token file %s: its first line is empty", path);
    return *why ? NULL : tk__copy(token);
}
