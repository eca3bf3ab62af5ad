/* Ranges of maps. The plain maximum: with eight bits, clipping anything costs features more than
 * finer steps bring (least squared error as the criterion: 5.9 against 2.1 % of error in the
 * features of a trained ResNet-18, 1.0 against 1.0 % of a ResNet-20). */
#include <math.h>

#include "net/plan_lowp.h"

void tk__calibrate_map(tk_calibration *ranges, int map, size_t count, const float *values)
{
    float most = fmaxf(ranges->limit[map], 1e-6f); /* a map of zeros needs a range too */
    for (size_t i = 0; i < count; i++) {
        const float v = fabsf(values[i]);
        if (v > most && v <= 3e38f) most = v;
    }
    ranges->limit[map] = most;
}
