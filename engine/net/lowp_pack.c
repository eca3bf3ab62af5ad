/* Weights of a low-precision plan: batch norm folded in fp32, transformed for Winograd where asked
 * for, rounded or quantised, and packed into panels. */
#include <math.h>

#include "engine/mem.h"
#include "net/graph_internal.h"
#include "net/lowp_internal.h"

/* Batch norm into the convolution: w [k][oc] = W * s, bias = beta - mean * s,
 * s = gamma / sqrt(var + eps). */
static void fold(const tk__lowp_plan *p, const tk_params *params, size_t i, float *w)
{
    const tk__unit *u = &p->layout.unit[i];
    const size_t n = p->unit[i].geo.oc, count = params->table[u->conv].count;
    const float *gamma = tk__param_at(params, u->gamma), *beta = tk__param_at(params, u->beta);
    const float *mean = tk__param_at(params, u->mean), *var = tk__param_at(params, u->var);
    const float *weights = tk__param_at(params, u->conv);
    for (size_t j0 = 0; j0 < n; j0 += TK__LOWP_NR) {
        const size_t width = tk__lowp_width(n - j0);
        float scale[TK__LOWP_NR];
        for (size_t j = 0; j < width; j++) {
            scale[j] = gamma[j0 + j] / sqrtf(var[j0 + j] + TK__BN_EPS);
            p->unit[i].bias[j0 + j] = beta[j0 + j] - mean[j0 + j] * scale[j];
        }
        for (size_t at = j0; at < count; at += n)
            for (size_t j = 0; j < width; j++)
                w[at + j] = weights[at + j] * scale[j];
    }
}

/* Where row k of the panel of column j0 begins in the packed matrix, in elements; its columns are
 * `group` elements (a word) apart. */
static size_t packed_at(const tk__lowp_unit *u, size_t rows, size_t group, size_t k, size_t j0)
{
    const size_t run = rows / u->segments; /* K of a segment; its last word may be padded */
    const size_t word = k / run * u->steps + k % run / group, words = u->segments * u->steps;
    return (j0 * words + word * tk__lowp_width(u->geo.oc - j0)) * group + k % run % group;
}

/* w [rows][oc] */
static void pack_bf16(const tk__lowp_unit *u, size_t rows, const float *w)
{
    uint16_t *packed = (void *)u->packed;
    const size_t n = u->geo.oc;
    for (size_t j0 = 0; j0 < n; j0 += TK__LOWP_NR)
        for (size_t k = 0; k < rows; k++) {
            uint16_t *to = packed + packed_at(u, rows, 2, k, j0);
            for (size_t j = 0; j < tk__lowp_width(n - j0); j++)
                to[2 * j] = tk__to_bf16(w[k * n + j0 + j]);
        }
}

/* A panel, symmetric, a scale per column: its largest weight becomes 127. `in_scale` is what a step
 * of the input means; `in_zero` the byte that means 0, whose share of the sums goes into the bias.
 */
static void pack_int8(const tk__lowp_unit *u, size_t rows, const float *w, size_t j0,
                      float in_scale, int in_zero)
{
    const size_t n = u->geo.oc, width = tk__lowp_width(n - j0);
    float most[TK__LOWP_NR] = {0}, inverse[TK__LOWP_NR];
    int32_t sum[TK__LOWP_NR] = {0};
    for (size_t k = 0; k < rows; k++)
        for (size_t j = 0; j < width; j++) {
            const float v = fabsf(w[k * n + j0 + j]);
            most[j] = v > most[j] ? v : most[j];
        }
    for (size_t j = 0; j < width; j++)
        inverse[j] = most[j] > 0.0f ? 127.0f / most[j] : 0.0f;
    for (size_t k = 0; k < rows; k++) {
        int8_t *to = (int8_t *)u->packed + packed_at(u, rows, 4, k, j0);
        for (size_t j = 0; j < width; j++) {
            const int q = (int)lrintf(w[k * n + j0 + j] * inverse[j]);
            to[4 * j] = (int8_t)q;
            sum[j] += q;
        }
    }
    for (size_t j = 0; j < width; j++) {
        u->scale[j0 + j] = in_scale * most[j] / 127.0f;
        u->bias[j0 + j] -= u->scale[j0 + j] * (float)(in_zero * sum[j]);
    }
}

/* U = G g G' of one 3x3 kernel, g [9] to u [16] (kernels/lowp_winograd.h). */
static void transform_weights(const float g[9], float u[TK__POSITIONS])
{
    float rows[4][3];
    for (size_t i = 0; i < 3; i++) {
        rows[0][i] = g[i];
        rows[1][i] = 0.5f * (g[i] + g[3 + i] + g[6 + i]);
        rows[2][i] = 0.5f * (g[i] - g[3 + i] + g[6 + i]);
        rows[3][i] = g[6 + i];
    }
    for (size_t i = 0; i < 4; i++) {
        u[4 * i] = rows[i][0];
        u[4 * i + 1] = 0.5f * (rows[i][0] + rows[i][1] + rows[i][2]);
        u[4 * i + 2] = 0.5f * (rows[i][0] - rows[i][1] + rows[i][2]);
        u[4 * i + 3] = rows[i][2];
    }
}

/* w [9][ic][oc] */
static void pack_winograd(const tk__lowp_unit *u, size_t ic, const float *w)
{
    uint16_t *packed = (void *)u->packed;
    const size_t n = u->geo.oc;
    for (size_t j0 = 0; j0 < n; j0 += TK__LOWP_NR)
        for (size_t c = 0; c < ic; c++) {
            size_t at[TK__POSITIONS];
            for (size_t i = 0; i < TK__POSITIONS; i++)
                at[i] = packed_at(u, TK__POSITIONS * ic, 2, i * ic + c, j0);
            for (size_t j = 0; j < tk__lowp_width(n - j0); j++) {
                float g[9], t[TK__POSITIONS];
                for (size_t tap = 0; tap < 9; tap++)
                    g[tap] = w[(tap * ic + c) * n + j0 + j];
                transform_weights(g, t);
                for (size_t i = 0; i < TK__POSITIONS; i++)
                    packed[at[i] + 2 * j] = tk__to_bf16(t[i]);
            }
        }
}

typedef struct pack_state {
    const tk__lowp_plan *plan;
    const tk_params *params;
    float *folded; /* one unit's weights, per thread */
    size_t folded_each;
} pack_state;

static void pack_task(void *ctx, size_t i, size_t thread)
{
    const pack_state *s = ctx;
    const tk__lowp_plan *p = s->plan;
    const int in = p->layout.unit[i].in;
    float *w = s->folded + thread * s->folded_each;
    fold(p, s->params, i, w);
    const size_t rows = s->params->table[p->layout.unit[i].conv].count / p->unit[i].geo.oc;
    if (p->unit[i].way == TK__WINOGRAD)
        pack_winograd(&p->unit[i], rows / 9, w);
    else if (p->precision == TK_PRECISION_BF16)
        pack_bf16(&p->unit[i], rows, w);
    else
        for (size_t j0 = 0; j0 < p->unit[i].geo.oc; j0 += TK__LOWP_NR)
            pack_int8(&p->unit[i], rows, w, j0, p->map_scale[in],
                      in == TK__INPUT_MAP ? TK__U8_ZERO : 0);
}

bool tk__lowp_pack(tk__lowp_plan *p, const tk_params *params)
{
    pack_state s = {.plan = p, .params = params};
    for (size_t i = 0; i < p->layout.units; i++) {
        const size_t count = params->table[p->layout.unit[i].conv].count;
        if (s.folded_each < count) s.folded_each = count;
    }
    s.folded = tk_aligned_calloc(s.folded_each * tk_pool_threads(p->pool), sizeof *s.folded);
    if (s.folded == NULL) return false;
    tk_pool_run(p->pool, p->layout.units, pack_task, &s);
    tk_free(s.folded);
    return true;
}
