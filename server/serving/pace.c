/* See pace.h. An exponential mean in which an image counts, not a pass; one hiccup (a machine that
 * slept) must not make an estimate of its own. */
#include "serving/pace.h"

enum { MEMORY = 128, /* images */ ENOUGH = 3 /* passes */, MOST = 4 /* times the estimate */ };

static void learn_pass(tk__pace *pace, int64_t now, size_t n, size_t came)
{
    const double images = (double)n, share = images / (images + MEMORY);
    double x = (double)(now - pace->last_ns) / images;
    if (pace->passes == 0) {
        pace->image_ns = x;
    } else {
        if (x > MOST * pace->image_ns) x = MOST * pace->image_ns;
        pace->image_ns += (x - pace->image_ns) * share;
    }
    pace->inflow += ((double)came / images - pace->inflow) * share;
    if (pace->passes < ENOUGH) pace->passes++;
}

void tk__pace_pass(tk__pace *pace, int64_t now, size_t n, size_t came, bool busy)
{
    if (pace->busy && n > 0 && now > pace->last_ns) learn_pass(pace, now, n, came);
    if (!busy) pace->inflow = 0;
    pace->last_ns = now;
    pace->busy = busy;
}

int64_t tk__pace_of(const tk__pace *pace, size_t images)
{
    return pace->passes < ENOUGH ? -1 : (int64_t)(pace->image_ns * (double)images);
}
