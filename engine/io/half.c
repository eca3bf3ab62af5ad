/* Half precision in integer arithmetic, without branches on the data's path that a compiler could
 * not turn into selects. A half is s eeeee mmmmmmmmmm, bias 15; a float s eeeeeeee m(23), bias 127.
 */
#include "engine/half.h"

#include <string.h>

static uint32_t bits_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static float float_of(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static uint16_t to_half(float f)
{
    uint32_t u = bits_of(f);
    uint32_t sign = (u >> 16) & 0x8000u;
    uint32_t a = u & 0x7fffffffu; /* |f| */
    uint32_t half;
    if (a > 0x7f800000u) {
        half = 0x7e00u; /* NaN */
    } else if (a >= 0x477ff000u) {
        half = 0x7c00u; /* 65520 and more round to infinity */
    } else if (a < 0x38800000u) {
        /* Below 2^-14: subnormal. An ulp of 0.5 is 2^-24, so this addition rounds as needed. */
        half = bits_of(float_of(a) + 0.5f) - 0x3f000000u;
    } else {
        /* Rebias by 127 - 15 and round the 13 bits that go: half up, and exact halves to even. */
        half = (a - (112u << 23) + 0xfffu + ((a >> 13) & 1u)) >> 13;
    }
    return (uint16_t)(sign | half);
}

static float from_half(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    uint32_t a = (uint32_t)(half & 0x7fffu) << 13;
    if (a >= 0x0f800000u) return float_of(sign | 0x7f800000u | (a & 0x7fffffu)); /* infinity, NaN */
    /* The multiplication rebiases normals and normalises subnormals alike, exactly. */
    return float_of(sign | bits_of(float_of(a) * 0x1p112f));
}

void tk_f32_to_f16(size_t n, const float *in, uint16_t *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = to_half(in[i]);
}

void tk_f16_to_f32(size_t n, const uint16_t *in, float *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = from_half(in[i]);
}
