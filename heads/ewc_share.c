/* See ewc_share.h. The 255 values of a share are tabulated once per pass. */
#include "heads/ewc_share.h"

#include <math.h>
#include <string.h>

#include "engine/mem.h"

enum { CODES = 256, STEPS = 8 };

static void tabulate(float largest, float *values)
{
    values[0] = 0;
    for (int c = 1; c < CODES; c++)
        values[c] = (float)((double)largest * exp2((double)(c - (CODES - 1)) / STEPS));
}

static uint8_t encode(float value, float largest)
{
    if (value <= 0) return 0;
    const double code = CODES - 1 + STEPS * log2((double)value / (double)largest);
    return code < 1 ? 0 : (uint8_t)lround(code);
}

tk_err tk_ewc_share_create(tk_ewc_share *out, size_t n, float *fisher)
{
    float values[CODES];
    *out = (tk_ewc_share){.n = n, .weight = 1};
    out->codes = tk_calloc(n, 1);
    if (!out->codes) {
        *out = (tk_ewc_share){0};
        return TK_NOMEM;
    }
    for (size_t j = 0; j < n; j++)
        if (fisher[j] > out->largest) out->largest = fisher[j];
    if (out->largest == 0) out->largest = 1;
    tabulate(out->largest, values);
    for (size_t j = 0; j < n; j++) {
        out->codes[j] = encode(fisher[j], out->largest);
        fisher[j] = values[out->codes[j]];
    }
    return TK_OK;
}

tk_err tk_ewc_share_clone(tk_ewc_share *out, const tk_ewc_share *from)
{
    *out = (tk_ewc_share){0};
    if (from->n == 0) return TK_OK;
    uint8_t *codes = tk_calloc(from->n, 1);
    if (!codes) return TK_NOMEM;
    memcpy(codes, from->codes, from->n);
    *out = *from;
    out->codes = codes;
    return TK_OK;
}

void tk_ewc_share_fini(tk_ewc_share *share)
{
    tk_free(share->codes);
    *share = (tk_ewc_share){0};
}

void tk_ewc_share_add(const tk_ewc_share *share, double factor, float *fisher)
{
    float values[CODES];
    tabulate(share->largest, values);
    const double scale = factor * share->weight;
    for (size_t j = 0; j < share->n; j++) {
        const double sum = (double)fisher[j] + scale * (double)values[share->codes[j]];
        fisher[j] = sum > 0 ? (float)sum : 0;
    }
}
