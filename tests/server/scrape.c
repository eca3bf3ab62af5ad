/* See scrape.h. */
#include "scrape.h"

#include <arpa/inet.h>
#include <math.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cmocka.h>

/* -- HTTP -- */

int scrape_dial(int port)
{
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    const struct timeval limit = {.tv_sec = 20};
    struct sockaddr_in to = {.sin_family = AF_INET};
    to.sin_port = htons((uint16_t)port);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_true(fd >= 0);
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit), 0);
    assert_int_equal(connect(fd, (const struct sockaddr *)&to, sizeof to), 0);
    return fd;
}

char *scrape_exchange(int port, const char *request)
{
    const int fd = scrape_dial(port);
    size_t n = 0, room = 1 << 16;
    char *text = malloc(room);
    assert_non_null(text);
    (void)send(fd, request, strlen(request), MSG_NOSIGNAL); /* it may hang up half-way */
    for (ssize_t got; (got = recv(fd, text + n, room - 1 - n, 0)) > 0;) {
        n += (size_t)got;
        if (room - n > 1024) continue;
        room *= 2;
        text = realloc(text, room);
        assert_non_null(text);
    }
    text[n] = '\0';
    close(fd);
    return text;
}

char *scrape_get(int port, const char *path, int *status)
{
    char request[256];
    snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", path);
    char *text = scrape_exchange(port, request);
    *status = 0;
    (void)sscanf(text, "HTTP/1.1 %d", status);
    return text;
}

const char *scrape_body(const char *answer)
{
    const char *end = strstr(answer, "\r\n\r\n");
    return end ? end + 4 : "";
}

/* -- the format -- */

enum { NAMES = 128, SAMPLES = 8192, TEXT = 512 };

typedef struct family {
    char name[TEXT], type[16];
    bool helped, sampled;
} family;

typedef struct reader {
    family families[NAMES];
    size_t n_families, n_samples;
    char *samples[SAMPLES];
    const family *current;              /* whose samples are being read */
    char group[TEXT];                   /* of buckets: labels without le; "": none open */
    double cumulative, infinite, bound; /* of the open group */
} reader;

static bool name_char(char c, bool first)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == ':' ||
           (!first && c >= '0' && c <= '9');
}

/* Takes a name off *line. */
static void take_name(const char **line, char out[TEXT], bool label)
{
    size_t n = 0;
    while (name_char((*line)[n], n == 0) && !(label && (*line)[n] == ':'))
        n++;
    if (n == 0 || n >= TEXT) fail_msg("no name: %s", *line);
    memcpy(out, *line, n);
    out[n] = '\0';
    *line += n;
}

static family *family_of(reader *r, const char *name)
{
    for (size_t i = 0; i < r->n_families; i++)
        if (strcmp(r->families[i].name, name) == 0) return &r->families[i];
    assert_true(r->n_families < NAMES);
    family *f = &r->families[r->n_families++];
    *f = (family){.helped = false};
    snprintf(f->name, sizeof f->name, "%s", name);
    return f;
}

static void read_comment(reader *r, const char *line)
{
    const bool help = strncmp(line, "# HELP ", 7) == 0;
    char name[TEXT];
    if (!help && strncmp(line, "# TYPE ", 7) != 0) fail_msg("neither HELP nor TYPE: %s", line);
    const char *at = line + 7;
    take_name(&at, name, false);
    family *f = family_of(r, name);
    if (*at++ != ' ' || !*at || f->sampled) fail_msg("misplaced or empty: %s", line);
    if (help) {
        if (f->helped) fail_msg("HELP again: %s", line);
        f->helped = true;
        return;
    }
    if (f->type[0]) fail_msg("TYPE again: %s", line);
    if (strcmp(at, "counter") != 0 && strcmp(at, "gauge") != 0 && strcmp(at, "histogram") != 0)
        fail_msg("no type: %s", line);
    snprintf(f->type, sizeof f->type, "%s", at);
}

/* Takes {a="b",...}; `group` gets the labels without le, `le` its value. */
static void take_labels(const char **line, char group[TEXT], char le[TEXT])
{
    const char *at = *line;
    size_t n = 0;
    group[0] = le[0] = '\0';
    if (*at != '{') return;
    do {
        char name[TEXT], value[TEXT];
        size_t k = 0;
        at++;
        take_name(&at, name, true);
        if (*at++ != '=' || *at++ != '"') fail_msg("no value: %s", *line);
        for (; *at && *at != '"'; at++) {
            if (*at == '\\' && *++at != '\\' && *at != '"' && *at != 'n')
                fail_msg("escape: %s", *line);
            assert_true(k + 1 < TEXT);
            value[k++] = *at;
        }
        value[k] = '\0';
        if (*at++ != '"') fail_msg("open quote: %s", *line);
        if (strcmp(name, "le") == 0)
            memcpy(le, value, k + 1);
        else
            n += (size_t)snprintf(group + n, TEXT - n, "%s=%s;", name, value);
        assert_true(n < TEXT);
    } while (*at == ',');
    if (*at != '}') fail_msg("open brace: %s", *line);
    *line = at + 1;
}

static double take_value(const char *text, const char *line)
{
    char *end;
    if (strcmp(text, "+Inf") == 0) return (double)INFINITY;
    const double value = strtod(text, &end);
    if (!*text || *end || !isfinite(value)) fail_msg("no number: %s", line);
    return value;
}

/* "x_bucket", "x_sum", "x_count" of the histogram x, or a plain name. */
static family *family_of_sample(reader *r, const char *name, const char **part)
{
    static const char *const parts[] = {"_bucket", "_sum", "_count"};
    *part = "";
    for (size_t i = 0; i < 3; i++) {
        const size_t n = strlen(name), k = strlen(parts[i]);
        if (n <= k || strcmp(name + n - k, parts[i]) != 0) continue;
        for (size_t f = 0; f < r->n_families; f++) {
            family *at = &r->families[f];
            if (strlen(at->name) != n - k || strncmp(at->name, name, n - k) != 0) continue;
            if (strcmp(at->type, "histogram") != 0) continue;
            *part = parts[i];
            return at;
        }
    }
    return family_of(r, name);
}

static void read_bucket(reader *r, const char *group, const char *le, double value,
                        const char *line)
{
    const double bound = take_value(le, line);
    char key[TEXT];
    snprintf(key, sizeof key, "%.500s#", group); /* never "" */
    if (strcmp(r->group, key) != 0) {
        if (r->group[0]) fail_msg("the histogram before has no _count: %s", line);
        snprintf(r->group, sizeof r->group, "%s", key);
        r->cumulative = r->infinite = -1;
        r->bound = -(double)INFINITY;
    }
    if (bound <= r->bound || value < r->cumulative) fail_msg("not rising: %s", line);
    r->bound = bound;
    r->cumulative = value;
    if (isinf(bound)) r->infinite = value;
}

static void read_count(reader *r, const char *group, double value, const char *line)
{
    char key[TEXT];
    snprintf(key, sizeof key, "%.500s#", group);
    if (strcmp(r->group, key) != 0 || r->infinite < 0 || r->infinite > value || r->infinite < value)
        fail_msg("not what the bucket +Inf says: %s", line);
    r->group[0] = '\0';
}

static void read_sample(reader *r, const char *line)
{
    const char *at = line, *part;
    char name[TEXT], group[TEXT], le[TEXT];
    take_name(&at, name, false);
    take_labels(&at, group, le);
    const size_t n = (size_t)(at - line);
    if (*at++ != ' ') fail_msg("no space before the value: %s", line);
    const double value = take_value(at, line);
    family *f = family_of_sample(r, name, &part);
    if (!f->helped || !f->type[0]) fail_msg("no HELP or TYPE before: %s", line);
    if (f->sampled && r->current != f) fail_msg("apart from its fellows: %s", line);
    if (value < 0) fail_msg("negative: %s", line);
    f->sampled = true;
    r->current = f;
    if (strcmp(part, "_bucket") == 0) read_bucket(r, group, le, value, line);
    if (strcmp(part, "_count") == 0) read_count(r, group, value, line);
    for (size_t i = 0; i < r->n_samples; i++)
        if (strncmp(r->samples[i], line, n + 1) == 0) fail_msg("twice: %s", line);
    assert_true(r->n_samples < SAMPLES);
    r->samples[r->n_samples++] = strdup(line);
}

void scrape_check(const char *text)
{
    reader *r = calloc(1, sizeof *r);
    assert_non_null(r);
    if (!*text || text[strlen(text) - 1] != '\n') fail_msg("the last line has no end");
    for (const char *end; *text; text = end + 1) {
        char line[2 * TEXT];
        end = strchr(text, '\n');
        const size_t n = (size_t)(end - text);
        assert_true(n > 0 && n < sizeof line);
        memcpy(line, text, n);
        line[n] = '\0';
        if (line[0] == '#')
            read_comment(r, line);
        else
            read_sample(r, line);
    }
    if (r->group[0]) fail_msg("the last histogram has no _count");
    for (size_t i = 0; i < r->n_samples; i++)
        free(r->samples[i]);
    free(r);
}

double scrape_value(const char *text, const char *sample)
{
    const size_t n = strlen(sample);
    while (text) {
        if (strncmp(text, sample, n) == 0 && text[n] == ' ') return strtod(text + n, NULL);
        text = strchr(text, '\n');
        text += text != NULL;
    }
    return -1;
}
