/* What `trunkctl bench` found, for a person, as JSON, and as a line of a CSV. */
#ifndef TRUNKCTL_BENCH_REPORT_H
#define TRUNKCTL_BENCH_REPORT_H

#include <stdbool.h>

#include <jansson.h>

#include "generator.h"
#include "trunkd/v1/admin.pb-c.h"

typedef struct tk__bench {
    tk__gen_opts load;
    tk__gen_result result;
    const char *call; /* "classify", ... */
    uint64_t batch;   /* images of a call */
    /* The server's state where counting began and ended; NULL: not known. */
    Trunkd__V1__GetStatusResponse *before, *after;
} tk__bench;

void tk__bench_print(const tk__bench *b);
json_t *tk__bench_json(const tk__bench *b);
/* Appends a line, behind a heading when the file is empty. False: it could not (errno). */
bool tk__bench_csv(const tk__bench *b, const char *path);
/* OK within the deadline, calls a second. */
double tk__bench_goodput(const tk__bench *b);

#endif
