/* Alice's question: what is on my photographs? Counts of answers by label, for one head. */
#ifndef TRUNKCTL_TALLY_H
#define TRUNKCTL_TALLY_H

#include <stdint.h>
#include <stdio.h>

#include <jansson.h>

typedef struct tk__tally_row {
    char *label;
    uint64_t count;
    double score; /* sum of the answers' scores */
} tk__tally_row;

typedef struct tk__tally {
    char *head;
    size_t n;
    tk__tally_row *rows;
    uint64_t total;
} tk__tally;

/* Counts one answer. */
void tk__tally_add(tk__tally *tally, const char *label, double score);
/* Sorts by falling count, then label. */
void tk__tally_sort(tk__tally *tally);
/* A table with a bar per label; sorts first. Returns the lines printed. */
size_t tk__tally_print(tk__tally *tally, FILE *out);
json_t *tk__tally_json(tk__tally *tally);
void tk__tally_free(tk__tally *tally); /* its fields, not itself */

#endif
