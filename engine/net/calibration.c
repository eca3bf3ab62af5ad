/* Ranges of maps: where to clip so that eight bits lose least. */
#include <math.h>

#include "net/plan_lowp.h"

enum { BINS = 2048, CANDIDATES = 128, LEAST_CANDIDATE = 16 };

static float largest(size_t count, const float *values)
{
    float most = 0;
    for (size_t i = 0; i < count; i++) {
        const float v = fabsf(values[i]);
        if (v > most && v <= 3e38f) most = v;
    }
    return most;
}

/* Squared error of `levels` steps up to `limit`, and of clipping there. bins[i] counts magnitudes
 * around (i + 1/2) * width. */
static double clip_error(const uint32_t bins[BINS], double width, double limit, double levels)
{
    const double step = limit / levels;
    double error = 0;
    for (size_t i = 0; i < BINS; i++) {
        const double v = ((double)i + 0.5) * width, q = (double)(int)(v / step + 0.5);
        const double off = v - step * (q < levels ? q : levels);
        error += bins[i] * off * off;
    }
    return error;
}

static float best_limit(size_t count, const float *values, double levels)
{
    const float most = largest(count, values);
    if (most == 0.0f) return 1.0f; /* nothing to represent */
    uint32_t bins[BINS] = {0};
    const float per_unit = (float)BINS / most;
    for (size_t i = 0; i < count; i++) {
        const float at = fabsf(values[i]) * per_unit;
        if (at > 0.0f && at <= (float)BINS) /* every step represents zero */
            bins[at < (float)BINS ? (size_t)at : BINS - 1]++;
    }
    double least = INFINITY, best = (double)most;
    for (int i = CANDIDATES; i >= LEAST_CANDIDATE; i--) {
        const double limit = (double)most * i / CANDIDATES;
        const double error = clip_error(bins, (double)most / BINS, limit, levels);
        if (error < least) {
            least = error;
            best = limit;
        }
    }
    return (float)best;
}

void tk__calibrate_map(tk_calibration *ranges, int map, size_t images, size_t count,
                       const float *values)
{
    const float limit = best_limit(count, values, map == TK__INPUT_MAP ? 127 : 255);
    const float weight = (float)images / (float)(images + ranges->images);
    ranges->limit[map] += (limit - ranges->limit[map]) * weight;
}
