/* Writing for people: text from a server made harmless, tables, progress. */
#ifndef TRUNKCTL_TERM_H
#define TRUNKCTL_TERM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* Writes `text` with everything that could steer a terminal replaced by '?': control characters
 * (line feeds too, as a name with one could fake a line of output), bytes that are not UTF-8, and
 * the bidirectional overrides. */
void tk__put(FILE *out, const char *text);
/* The same as a new string. */
char *tk__clean(const char *text);
/* Columns that a cleaned text takes on a terminal. */
size_t tk__width(const char *text);

/* -- tables: rows of cells, printed at the end with columns as wide as needed -- */

typedef struct tk__table {
    size_t columns, n; /* n: cells */
    const char *align; /* one 'l' or 'r' per column */
    char **cells;      /* cleaned, owned */
} tk__table;

/* `align` has one letter per column and must outlive the table. */
void tk__table_init(tk__table *table, const char *align);
/* Adds the next cell, row by row. */
void tk__table_cell(tk__table *table, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Prints with `indent` spaces before each row; returns the rows printed. Frees the table. */
size_t tk__table_print(tk__table *table, FILE *out, unsigned indent);

/* "83.7 %" of a fraction, "+0.3" of a difference of fractions in points, into the caller's buffer.
 */
const char *tk__percent(double fraction, char *buf, size_t size);
const char *tk__points(double difference, char *buf, size_t size);
/* "1.5 MiB", "12 s", "3 min 5 s", "2024-11-20 11:07" (local time) */
const char *tk__bytes(uint64_t bytes, char *buf, size_t size);
const char *tk__seconds(double seconds, char *buf, size_t size);
const char *tk__when(int64_t ms, char *buf, size_t size);

/* "[######------]" of `width` columns. */
void tk__bar(FILE *out, double fraction, unsigned width);

/* -- progress of something countable, on standard error: a line that is redrawn on a terminal, a
 * line now and then elsewhere -- */

typedef struct tk__progress {
    const char *what; /* "uploading" */
    uint64_t total;
    bool tty, quiet;
    int64_t started_ns, shown_ns;
} tk__progress;

void tk__progress_begin(tk__progress *progress, const char *what, uint64_t total, bool quiet);
void tk__progress_at(tk__progress *progress, uint64_t done);
void tk__progress_end(tk__progress *progress); /* clears the line */

int64_t tk__now_ns(void); /* CLOCK_MONOTONIC */

#endif
