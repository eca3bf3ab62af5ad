/* What a server did between two answers of GetStatus: the stages of classification, by the growth
 * of their histograms. */
#ifndef TRUNKCTL_STAGES_H
#define TRUNKCTL_STAGES_H

#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "trunkd/v1/admin.pb-c.h"

enum { TK__STAGES = 16 }; /* more than any server sends; what is above is left out */

typedef struct tk__stage {
    const char *name;             /* the later answer's */
    double per_s, p50_ms, p99_ms; /* NaN: nothing in this time */
} tk__stage;

/* Fills `stages` from two answers of one run of the server, `seconds` apart. Returns how many. */
size_t tk__stages_compare(tk__stage stages[TK__STAGES], const Trunkd__V1__GetStatusResponse *before,
                          const Trunkd__V1__GetStatusResponse *now, double seconds);
/* Of a counter, from one answer to the next. */
double tk__grown(uint64_t before, uint64_t now);

/* A table with a heading; returns the lines printed. Without stages (an older server): none. */
size_t tk__stages_print(size_t n, const tk__stage *stages);
/* {"decode": {"per_s", "p50_ms", "p99_ms"}, ...} */
json_t *tk__stages_json(size_t n, const tk__stage *stages);
json_t *tk__real_or_null(double x); /* JSON has no NaN */

#endif
