/* CSV: see csv.h. A state machine of three states (plain, quoted, a quote seen within quotes). */
#include "csv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ctl.h"

enum { RECORD_MAX = 1 << 20, FIELDS_MAX = 10000 };

typedef enum csv_state { PLAIN, QUOTED, CLOSING } csv_state;

bool tk__csv_open(tk__csv *csv, const char *path)
{
    *csv = (tk__csv){.path = path, .line = 1};
    csv->file = fopen(path, "re");
    if (!csv->file) {
        snprintf(csv->why, sizeof(csv->why), "%s: %s", path, strerror(errno));
        return false;
    }
    int c[3] = {0};
    for (int i = 0; i < 3; i++)
        c[i] = getc(csv->file);
    if (c[0] != 0xef || c[1] != 0xbb || c[2] != 0xbf) rewind(csv->file); /* no byte order mark */
    return true;
}

static bool csv_fail(tk__csv *csv, unsigned long line, const char *what)
{
    snprintf(csv->why, sizeof(csv->why), "%s:%lu: %s", csv->path, line, what);
    return false;
}

static void put(tk__csv *csv, char c)
{
    if (csv->used == csv->size) {
        csv->size = csv->size ? 2 * csv->size : 256;
        csv->text = tk__grow(csv->text, csv->size, 1);
    }
    csv->text[csv->used++] = c;
}

static void begin_field(tk__csv *csv)
{
    csv->starts = tk__grow(csv->starts, csv->n + 1, sizeof(*csv->starts));
    csv->starts[csv->n++] = csv->used;
}

/* Points fields[] into text[] once that no longer moves. */
static bool finish(tk__csv *csv)
{
    put(csv, '\0');
    csv->fields = tk__grow(csv->fields, csv->n, sizeof(*csv->fields));
    for (size_t i = 0; i < csv->n; i++)
        csv->fields[i] = csv->text + csv->starts[i];
    return true;
}

/* The next character with CRLF and a lone CR as LF, counting lines. */
static int next_char(tk__csv *csv)
{
    int c = getc(csv->file);
    if (c == '\r') {
        const int after = getc(csv->file);
        if (after != '\n' && after != EOF) ungetc(after, csv->file);
        c = '\n';
    }
    if (c == '\n') csv->line++;
    return c;
}

/* Reads up to the end of the record. Its first field has begun. */
static bool read_record(tk__csv *csv)
{
    csv_state state = PLAIN;
    for (;;) {
        const int c = next_char(csv);
        if (csv->used > RECORD_MAX || csv->n > FIELDS_MAX)
            return csv_fail(csv, csv->record, "the record is too long; is a quote not closed?");
        if (c == '\0') return csv_fail(csv, csv->line, "a zero byte; is this a CSV file?");
        if (c == EOF && state == QUOTED)
            return csv_fail(csv, csv->record, "a quote is opened and never closed");
        if (state == QUOTED) {
            if (c == '"')
                state = CLOSING;
            else
                put(csv, (char)c);
        } else if (c == '"' && state == CLOSING) { /* "" is a quote */
            put(csv, '"');
            state = QUOTED;
        } else if (c == '"' && csv->used == csv->starts[csv->n - 1]) {
            state = QUOTED;
        } else if (c == EOF || c == '\n') {
            return finish(csv);
        } else if (c == ',') {
            put(csv, '\0');
            begin_field(csv);
            state = PLAIN;
        } else if (state == CLOSING) {
            return csv_fail(csv, csv->line, "text after a closing quote");
        } else {
            put(csv, (char)c);
        }
    }
}

bool tk__csv_next(tk__csv *csv)
{
    for (;;) {
        csv->used = csv->n = 0;
        csv->record = csv->line;
        const int c = getc(csv->file);
        if (c == EOF) {
            if (ferror(csv->file)) csv_fail(csv, csv->line, strerror(errno));
            return false;
        }
        ungetc(c, csv->file);
        begin_field(csv);
        if (!read_record(csv)) return false;
        if (csv->n > 1 || csv->fields[0][0]) return true; /* else a blank line */
    }
}

int tk__csv_column(const tk__csv *csv, const char *name)
{
    for (size_t i = 0; i < csv->n; i++)
        if (strcmp(csv->fields[i], name) == 0) return (int)i;
    return -1;
}

void tk__csv_close(tk__csv *csv)
{
    if (csv->file) fclose(csv->file);
    free(csv->fields);
    free(csv->starts);
    free(csv->text);
    csv->file = NULL;
    csv->fields = NULL;
    csv->starts = NULL;
    csv->text = NULL;
}

void tk__csv_put(FILE *out, const char *text)
{
    if (!strpbrk(text, ",\"\r\n")) {
        fputs(text, out);
        return;
    }
    putc('"', out);
    for (; *text; text++) {
        if (*text == '"') putc('"', out);
        putc(*text, out);
    }
    putc('"', out);
}
