/* fp32 <-> IEEE 754 half precision, round to nearest even; overflow becomes infinity, NaN stays
 * NaN. */
#ifndef ENGINE_HALF_H
#define ENGINE_HALF_H

#include <stddef.h>
#include <stdint.h>

void tk_f32_to_f16(size_t n, const float *in, uint16_t *out);
void tk_f16_to_f32(size_t n, const uint16_t *in, float *out);

#endif
