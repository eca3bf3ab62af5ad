/* How fast is the queue worked off? A running estimate from passes that ended while enough images
 * waited for the next one: only then does the time between two ends say what an image costs.
 * Without such passes nothing is known, and nothing is refused by it. No locks. Inside
 * server/serving only. */
#ifndef SERVER_SERVING_PACE_H
#define SERVER_SERVING_PACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct tk__pace {
    double image_ns; /* estimate */
    double inflow;   /* images taken in for each that is done; 0 while nothing waits */
    unsigned passes; /* it was made of */
    int64_t last_ns; /* the last pass's end */
    bool busy;       /* enough waited then */
} tk__pace;

/* A pass of `n` images ended at `now`, and `came` were taken in since the last; does a full pass
 * still wait? */
void tk__pace_pass(tk__pace *pace, int64_t now, size_t n, size_t came, bool busy);
/* How long `images` take, in ns; -1: not known. */
int64_t tk__pace_of(const tk__pace *pace, size_t images);

#endif
