/* Counting what a client sees while it keeps asking: requests, failures, versions, latency. */
#ifndef TRUNKCTL_LOAD_H
#define TRUNKCTL_LOAD_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

enum { TK__LOAD_STEPS = 16, TK__LOAD_BUCKETS = 40 * TK__LOAD_STEPS };

typedef struct tk__load {
    int64_t started_ns;
    uint64_t requests, failed; /* failed ones are among the requests */
    uint64_t images, unreadable;
    uint64_t first_version, last_version, changes; /* of the version that answered */
    uint64_t slowest_us;
    uint64_t latency[TK__LOAD_BUCKETS]; /* by log2(us) in steps of 1/16 */
} tk__load;

void tk__load_begin(tk__load *load);
void tk__load_count(tk__load *load, bool answered, int64_t took_ns, uint64_t version,
                    uint64_t images);
/* Latency below which the share `q` of the answered requests lies, ms, up to 4 % too long. */
double tk__load_quantile(const tk__load *load, double q);
json_t *tk__load_json(const tk__load *load);
/* Two lines for a person. */
void tk__load_print(const tk__load *load);
/* Writes name=value lines to `path`, whole or not at all. False: it could not (errno). */
bool tk__load_write(const tk__load *load, const char *path);

#endif
