/* CSV (RFC 4180): quoted fields, doubled quotes, line feeds inside quotes, CRLF, a byte order mark.
 * Read as a stream with bounded memory; every mistake is named by file and line. */
#ifndef TRUNKCTL_CSV_H
#define TRUNKCTL_CSV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

typedef struct tk__csv {
    const char *path; /* for messages */
    FILE *file;
    unsigned long line;   /* of the next character, from 1 */
    unsigned long record; /* line where the present record began */
    size_t n;             /* fields of the present record */
    char **fields;        /* valid until the next call */
    char *text;           /* of the record, fields one after another */
    size_t used, size;
    size_t *starts;
    char why[512];
} tk__csv;

/* False: csv->why. `path` must outlive the reader. Close it either way. */
bool tk__csv_open(tk__csv *csv, const char *path);
/* The next record; blank lines are skipped. False at the end, or at a mistake: then why is not
 * empty. */
bool tk__csv_next(tk__csv *csv);
/* Index of a column named by the present record (the header), or -1. */
int tk__csv_column(const tk__csv *csv, const char *name);
void tk__csv_close(tk__csv *csv);

/* Writes one field, quoted when it must be. */
void tk__csv_put(FILE *out, const char *text);

#endif
