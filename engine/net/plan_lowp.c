/* The low-precision plan: as plan.c, each unit is one matrix product with folded weights, but maps
 * are bfloat16 or bytes, and the rows of A are copied as little as possible:
 *
 *   - a 1x1 convolution without a stride reads its input where it lies, any rows at a time;
 *   - others take whole lines of output pixels, whose taps in one input line are one run of bytes:
 *     in place if there is no padding (the image is loaded with its own), else from a strip, the
 *     input lines of a block with zeros around them;
 *   - 3x3 convolutions without a stride go by Winograd's F(2x2, 3x3) in a bf16 plan;
 *   - where lines are shorter than a register tile, patches are copied (im2col).
 *
 * In an int8 plan maps are u8 with a scale each (zero is zero: they come out of a ReLU), but for
 * shortcut convolutions, which are only ever added, and the last map, which is only averaged: both
 * are bfloat16. The input image is u8 around TK__U8_ZERO. */
#include "net/plan_lowp.h"

#include <assert.h>
#include <math.h>

#include "engine/mem.h"
#include "kernels/lowp.h"
#include "net/graph_internal.h"

enum {
    SLOTS = 4, /* maps alive at once: a block's input, shortcut, branch, and the one being made */
    ALIGN = 64,
    BLOCK_ROWS = 168,         /* rows a task holds at most, or a line: a multiple of the tile's */
    BLOCK_BYTES = 320 * 1024, /* and bytes of A: they stay in the second cache */
    BLOCK_TILES = 84,         /* of Winograd: a multiple of the tile's rows */
    WINOGRAD_LEAST = 64,      /* channels from which its transforms pay */
    WINOGRAD_BYTES = 480 * 1024,
    POSITIONS = 16,
    INPUT_STRIPS = 4, /* tasks per image for loading and pooling */
};

typedef enum way {
    IN_PLACE_ROWS,
    IN_PLACE_LINES,
    STRIPS,
    PATCHES,
    WINOGRAD, /* segments are the 16 positions of the transform */
} way;

typedef struct lowp_unit {
    tk__conv geo; /* of one image, ic in bytes; the stem's reads the padded input */
    way way;
    size_t segments, steps, segment_pitch, pitch; /* of A, as in tk__lowp_gemm */
    unsigned char *packed;                        /* panels of [segments * steps][width] words */
    float *scale, *bias;                          /* [oc]; scale is NULL for bf16 */
} lowp_unit;

struct tk__lowp_plan {
    tk__layout layout;
    const tk__lowp_kernels *kn;
    tk_pool *pool;
    size_t max_batch;
    tk_precision precision;
    unsigned char *block; /* everything below lies in it */
    size_t bytes;
    lowp_unit unit[TK__MAX_UNITS];
    tk__lowp_kind kind[TK__MAX_MAPS];
    float map_scale[TK__MAX_MAPS]; /* of u8 maps */
    int slot_of[TK__MAX_MAPS];
    unsigned char *slot[SLOTS];
    unsigned char *input; /* [max_batch][ih][iw][3], with the stem's padding around each image */
    unsigned char *scratch;
    size_t scratch_each; /* per thread: a strip or patches */
};

static size_t min_size(size_t a, size_t b)
{
    return a < b ? a : b;
}

static size_t max_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

static size_t div_up(size_t a, size_t b)
{
    return (a + b - 1) / b;
}

/* --- what is where --- */

static size_t map_bytes(const tk__lowp_plan *p, int m)
{
    return tk__map_floats(&p->layout.map[m]) * (p->kind[m] == TK__MAP_BF16 ? 2 : 1);
}

static void choose_kinds(tk__lowp_plan *p)
{
    const tk__layout *l = &p->layout;
    for (size_t m = 0; m < l->maps; m++)
        p->kind[m] = p->precision == TK_PRECISION_BF16 ? TK__MAP_BF16 : TK__MAP_U8;
    for (size_t i = 0; i < l->units; i++)
        if (!l->unit[i].relu) p->kind[l->unit[i].out] = TK__MAP_BF16;
    p->kind[l->maps - 1] = TK__MAP_BF16;
}

/* Max pooling only chooses among values, so the map before it takes the range of the one after. */
static void choose_scales(tk__lowp_plan *p, const tk_calibration *ranges)
{
    const tk__layout *l = &p->layout;
    for (size_t m = 0; m < l->maps; m++)
        p->map_scale[m] = ranges->limit[m] / (m == TK__INPUT_MAP ? 127.0f : 255.0f);
    for (size_t i = 0; i < l->units; i++)
        if (l->unit[i].pool_after) p->map_scale[l->unit[i].out] = p->map_scale[l->unit[i].out + 1];
}

static way choose_way(const tk__lowp_plan *p, const tk__unit *u, const tk__conv *geo)
{
    const size_t ic = p->layout.map[u->in].c;
    if (p->precision == TK_PRECISION_BF16 && u->k == 3 && u->stride == 1 && ic >= WINOGRAD_LEAST &&
        ic <= TK__WINOGRAD_CHANNELS)
        return WINOGRAD;
    if (u->k == 1 && u->stride == 1) return IN_PLACE_ROWS;
    if (u->in != TK__INPUT_MAP && geo->ow < TK__LOWP_MR) return PATCHES;
    return geo->pad_y == 0 ? IN_PLACE_LINES : STRIPS;
}

static void describe_unit(tk__lowp_plan *p, size_t i)
{
    const tk__unit *u = &p->layout.unit[i];
    lowp_unit *lu = &p->unit[i];
    tk__conv *geo = &lu->geo;
    *geo = tk__unit_geo(&p->layout, u, 1);
    geo->ic *= p->kn->element;
    if (u->in == TK__INPUT_MAP) {
        geo->ih += 2 * u->pad;
        geo->iw += 2 * u->pad;
        geo->pad_y = geo->pad_x = 0;
    }
    lu->way = choose_way(p, u, geo);
    lu->segments = geo->ky;
    lu->steps = div_up(geo->kx * geo->ic, 4);
    lu->segment_pitch = (geo->iw + 2 * (size_t)geo->pad_x) * geo->ic;
    lu->pitch = geo->stride * geo->ic;
    if (lu->way == WINOGRAD) {
        lu->segments = POSITIONS;
        lu->steps = div_up(geo->ic, 4);
    }
    if (lu->way != PATCHES) return;
    lu->steps *= lu->segments;
    lu->segments = 1;
    /* an odd number of cache lines apart: rows spread over the cache's sets */
    lu->pitch = (div_up(lu->steps * 4, ALIGN) | 1) * ALIGN;
}

/* Input lines under `lines` output lines. */
static size_t strip_lines(const tk__conv *geo, size_t lines)
{
    return (lines - 1) * geo->stride + geo->ky;
}

/* The most rows of A that a task holds; of strips, whole lines. */
static size_t block_rows(const lowp_unit *u)
{
    const size_t ow = u->geo.ow;
    if (u->way == IN_PLACE_LINES || u->way == STRIPS) return max_size(1, BLOCK_ROWS / ow) * ow;
    const size_t rows = min_size(BLOCK_ROWS, BLOCK_BYTES / u->pitch);
    return max_size(1, rows / TK__LOWP_MR) * TK__LOWP_MR;
}

/* The most tiles of a Winograd task: their transforms fill a part of the second cache. */
static size_t block_tiles(const lowp_unit *u)
{
    const size_t tiles = min_size(BLOCK_TILES, WINOGRAD_BYTES / (POSITIONS * u->geo.ic));
    return max_size(1, tiles / TK__LOWP_MR) * TK__LOWP_MR;
}

/* Scratch that a task needs. */
static size_t block_bytes(const lowp_unit *u)
{
    if (u->way == WINOGRAD)
        return block_tiles(u) * POSITIONS * (u->geo.ic + TK__LOWP_NR * sizeof(float));
    if (u->way == STRIPS) return strip_lines(&u->geo, block_rows(u) / u->geo.ow) * u->segment_pitch;
    return u->way == PATCHES ? block_rows(u) * u->pitch : 0;
}

/* --- memory --- */

/* The unit after which map m is no longer read. */
static size_t last_use(const tk__layout *l, int m)
{
    size_t last = 0;
    for (size_t i = 0; i < l->units; i++)
        if (l->unit[i].in == m || l->unit[i].residual == m) last = i;
    return m == (int)l->maps - 1 ? l->units : last;
}

/* Gives every map the first slot whose map is dead, and writes the bytes that each slot needs. */
static void plan_slots(tk__lowp_plan *p, size_t bytes[SLOTS])
{
    const tk__layout *l = &p->layout;
    size_t busy_until[SLOTS] = {0}; /* unit index + 1 */
    memset(bytes, 0, SLOTS * sizeof *bytes);
    for (size_t i = 0; i < l->units; i++) {
        const int made = l->unit[i].out, n = l->unit[i].pool_after ? 2 : 1;
        for (int m = made; m < made + n; m++) {
            int s = 0;
            while (s < SLOTS && busy_until[s] > i)
                s++;
            assert(s < SLOTS);
            const size_t need = p->max_batch * map_bytes(p, m);
            if (bytes[s] < need) bytes[s] = need;
            p->slot_of[m] = s;
            busy_until[s] = n == 2 && m == made ? i + 1 : last_use(l, m) + 1;
        }
    }
}

/* The next `bytes` from *used on, with slack for copies that run over. */
static void *place(unsigned char *base, size_t *used, size_t bytes)
{
    void *at = base != NULL ? base + *used : NULL;
    *used += div_up(bytes + TK__LOWP_SLACK, ALIGN) * ALIGN;
    return at;
}

/* Places everything from `base` on (NULL: only counts) and returns the bytes used. */
static size_t lay_out(tk__lowp_plan *p, unsigned char *base)
{
    const tk__layout *l = &p->layout;
    size_t used = 0, scratch = 0, slots[SLOTS];
    for (size_t i = 0; i < l->units; i++) {
        lowp_unit *u = &p->unit[i];
        u->packed = place(base, &used, u->segments * u->steps * 4 * u->geo.oc);
        u->bias = place(base, &used, u->geo.oc * sizeof *u->bias);
        if (p->precision == TK_PRECISION_INT8)
            u->scale = place(base, &used, u->geo.oc * sizeof *u->scale);
        scratch = max_size(scratch, block_bytes(u));
    }
    plan_slots(p, slots);
    for (int s = 0; s < SLOTS; s++)
        p->slot[s] = place(base, &used, slots[s]);
    const tk__conv *stem = &p->unit[0].geo;
    p->input = place(base, &used, p->max_batch * stem->ih * stem->iw * stem->ic);
    p->scratch_each = div_up(scratch + TK__LOWP_SLACK, ALIGN) * ALIGN;
    p->scratch = place(base, &used, p->scratch_each * tk_pool_threads(p->pool));
    return used;
}

/* --- weights --- */

/* Batch norm into the convolution: w [k][oc] = W * s, bias = beta - mean * s,
 * s = gamma / sqrt(var + eps). */
static void fold(const tk__lowp_plan *p, const tk_params *params, size_t i, float *w)
{
    const tk__unit *u = &p->layout.unit[i];
    const size_t n = p->unit[i].geo.oc, count = params->table[u->conv].count;
    const float *gamma = tk__param_at(params, u->gamma), *beta = tk__param_at(params, u->beta);
    const float *mean = tk__param_at(params, u->mean), *var = tk__param_at(params, u->var);
    const float *weights = tk__param_at(params, u->conv);
    for (size_t j = 0; j < n; j++) {
        const float s = gamma[j] / sqrtf(var[j] + TK__BN_EPS);
        p->unit[i].bias[j] = beta[j] - mean[j] * s;
        for (size_t at = j; at < count; at += n)
            w[at] = weights[at] * s;
    }
}

/* Element (k, j) of the packed matrix, `group` elements to a word: word w of column j. */
static size_t packed_at(const lowp_unit *u, size_t rows, size_t group, size_t k, size_t j)
{
    const size_t run = rows / u->segments; /* K of a segment; its last word may be padded */
    const size_t w = k / run * u->steps + k % run / group, words = u->segments * u->steps;
    const size_t panel = j / TK__LOWP_NR * TK__LOWP_NR, width = tk__lowp_width(u->geo.oc - panel);
    return (panel * words + w * width + j - panel) * group + k % run % group;
}

/* w [rows][oc] */
static void pack_bf16(const lowp_unit *u, size_t rows, const float *w)
{
    uint16_t *packed = (void *)u->packed;
    for (size_t k = 0; k < rows; k++)
        for (size_t j = 0; j < u->geo.oc; j++)
            packed[packed_at(u, rows, 2, k, j)] = tk__to_bf16(w[k * u->geo.oc + j]);
}

/* Symmetric, a scale per column: its largest weight becomes 127. `in_scale` is what a step of the
 * input means; `in_zero` the byte that means 0, whose share of the sums goes into the bias. */
static void pack_int8(const lowp_unit *u, size_t rows, const float *w, float in_scale, int in_zero)
{
    const size_t n = u->geo.oc;
    for (size_t j = 0; j < n; j++) {
        float most = 0;
        for (size_t k = 0; k < rows; k++)
            most = fmaxf(most, fabsf(w[k * n + j]));
        const float inverse = most > 0.0f ? 127.0f / most : 0.0f;
        int32_t sum = 0;
        for (size_t k = 0; k < rows; k++) {
            const int q = (int)lrintf(w[k * n + j] * inverse);
            ((int8_t *)u->packed)[packed_at(u, rows, 4, k, j)] = (int8_t)q;
            sum += q;
        }
        u->scale[j] = in_scale * most / 127.0f;
        u->bias[j] -= u->scale[j] * (float)(in_zero * sum);
    }
}

/* U = G g G' of one 3x3 kernel, g [9] to u [16] (kernels/lowp_winograd.h). */
static void transform_weights(const float g[9], float u[POSITIONS])
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

static void pack_winograd(const lowp_unit *u, size_t ic, const float *w)
{
    uint16_t *packed = (void *)u->packed;
    const size_t n = u->geo.oc;
    for (size_t c = 0; c < ic; c++)
        for (size_t j = 0; j < n; j++) {
            float g[9], at[POSITIONS];
            for (size_t t = 0; t < 9; t++)
                g[t] = w[(t * ic + c) * n + j];
            transform_weights(g, at);
            for (size_t i = 0; i < POSITIONS; i++)
                packed[packed_at(u, POSITIONS * ic, 2, i * ic + c, j)] = tk__to_bf16(at[i]);
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
    if (p->unit[i].way == WINOGRAD)
        pack_winograd(&p->unit[i], rows / 9, w);
    else if (p->precision == TK_PRECISION_BF16)
        pack_bf16(&p->unit[i], rows, w);
    else
        pack_int8(&p->unit[i], rows, w, p->map_scale[in], in == TK__INPUT_MAP ? TK__U8_ZERO : 0);
}

static bool pack_all(tk__lowp_plan *p, const tk_params *params)
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

/* --- creation --- */

static tk_err check_ranges(const tk__layout *l, const tk_calibration *ranges, tk_diag *diag)
{
    if (ranges == NULL || ranges->maps != l->maps)
        return tk_fail(diag, TK_BADARG, "int8 needs the ranges of %zu maps, not of %u", l->maps,
                       ranges == NULL ? 0 : ranges->maps);
    for (size_t m = 0; m < l->maps; m++)
        if (!(ranges->limit[m] > 0.0f && ranges->limit[m] <= 3e38f))
            return tk_fail(diag, TK_BADARG, "the range of map %zu is %g", m,
                           (double)ranges->limit[m]);
    return TK_OK;
}

static tk_err build(tk__lowp_plan *p, const tk_params *params)
{
    for (size_t i = 0; i < p->layout.units; i++)
        describe_unit(p, i);
    p->bytes = lay_out(p, NULL);
    p->block = tk_aligned_calloc(p->bytes, 1);
    if (p->block == NULL) return TK_NOMEM;
    (void)lay_out(p, p->block);
    const tk__conv *stem = &p->unit[0].geo;
    if (p->precision == TK_PRECISION_INT8)
        memset(p->input, TK__U8_ZERO, p->max_batch * stem->ih * stem->iw * stem->ic);
    return pack_all(p, params) ? TK_OK : TK_NOMEM;
}

tk_err tk__lowp_create(tk__lowp_plan **out, const tk_params *params, unsigned px, size_t max_batch,
                       tk_precision precision, const tk_calibration *ranges, tk_pool *pool,
                       tk_diag *diag)
{
    *out = NULL;
    tk__lowp_plan *p = tk_calloc(1, sizeof *p);
    if (p == NULL) return tk_fail(diag, TK_NOMEM, "no memory for an inference plan");
    p->kn = tk__lowp_get(precision);
    p->pool = pool;
    p->max_batch = max_batch;
    p->precision = precision;
    tk__layout_init(&p->layout, params->arch, px);
    choose_kinds(p);
    tk_err err = TK_OK;
    if (precision == TK_PRECISION_INT8) err = check_ranges(&p->layout, ranges, diag);
    if (err == TK_OK) {
        if (precision == TK_PRECISION_INT8) choose_scales(p, ranges);
        err = build(p, params);
        if (err != TK_OK)
            (void)tk_fail(diag, err, "no memory for an inference plan of %s, %u px, batch %zu, %s",
                          tk_arch_name(params->arch), px, max_batch, tk_precision_name(precision));
    }
    if (err != TK_OK) {
        tk__lowp_destroy(p);
        return err;
    }
    *out = p;
    return TK_OK;
}

void tk__lowp_destroy(tk__lowp_plan *plan)
{
    if (plan == NULL) return;
    tk_free(plan->block);
    tk_free(plan);
}

size_t tk__lowp_bytes(const tk__lowp_plan *plan)
{
    return sizeof *plan + plan->bytes;
}

/* --- run --- */

/* Rows are those of A, one per output pixel of the batch. A block is some rows, or some lines of
 * one image. */
typedef struct conv_state {
    const tk__lowp_plan *plan;
    const lowp_unit *unit;
    tk__lowp_gemm gemm; /* what all products share; pointers at the first element */
    const unsigned char *x;
    size_t images, lines, line_rows; /* rows = images * lines * line_rows */
    size_t block_lines, blocks;      /* per image */
    size_t panels, column_tasks;     /* panels per task */
} conv_state;

static const unsigned char *at_element(const void *map, tk__lowp_kind kind, size_t i)
{
    return (const unsigned char *)map + i * (kind == TK__MAP_BF16 ? 2 : 1);
}

/* Columns j.. of output row m0. */
static tk__lowp_gemm panel_job(const conv_state *s, size_t m0, size_t j)
{
    tk__lowp_gemm g = s->gemm;
    const size_t at = m0 * g.ldo + j;
    g.n = tk__lowp_width(g.ldo - j);
    g.b = s->unit->packed + j * g.segments * g.steps * 4;
    g.bias += j;
    if (g.scale != NULL) g.scale += j;
    if (g.residual != NULL) g.residual = at_element(g.residual, g.residual_kind, at);
    g.out = (unsigned char *)g.out + (at_element(g.out, g.out_kind, at) - (unsigned char *)g.out);
    return g;
}

/* The input lines under output lines y.. of an image, with zeros around. */
static void copy_strip(const lowp_unit *u, const unsigned char *image, size_t y, size_t lines,
                       unsigned char *to)
{
    const tk__conv *geo = &u->geo;
    const size_t line = geo->iw * geo->ic, side = (size_t)geo->pad_x * geo->ic;
    ptrdiff_t iy = (ptrdiff_t)(y * geo->stride) - geo->pad_y;
    for (size_t i = 0; i < strip_lines(geo, lines); i++, iy++, to += u->segment_pitch) {
        if (iy < 0 || iy >= (ptrdiff_t)geo->ih) {
            memset(to, 0, u->segment_pitch);
            continue;
        }
        memset(to, 0, side);
        memcpy(to + side, image + (size_t)iy * line, line);
        memset(to + side + line, 0, side);
    }
}

/* The first row of A for `lines` lines from line y of an image. */
static const unsigned char *block_of_a(const conv_state *s, size_t image, size_t y, size_t lines,
                                       unsigned char *scratch)
{
    const lowp_unit *u = s->unit;
    const unsigned char *x = s->x + image * u->geo.ih * u->geo.iw * u->geo.ic;
    switch (u->way) {
    case IN_PLACE_ROWS:
        return x + y * u->pitch;
    case IN_PLACE_LINES:
        return x + y * u->geo.stride * u->segment_pitch;
    case STRIPS:
        copy_strip(u, x, y, lines, scratch);
        return scratch;
    case PATCHES:
    case WINOGRAD:
        break;
    }
    s->plan->kn->patches(&u->geo, x, y, lines, scratch, u->pitch);
    return scratch;
}

static void conv_task(void *ctx, size_t task, size_t thread)
{
    const conv_state *s = ctx;
    const lowp_unit *u = s->unit;
    const size_t block = task / s->column_tasks, image = block / s->blocks;
    const size_t y = block % s->blocks * s->block_lines;
    const size_t lines = min_size(s->block_lines, s->lines - y);
    const size_t j_begin = task % s->column_tasks * s->panels * TK__LOWP_NR;
    const size_t j_end = min_size(j_begin + s->panels * TK__LOWP_NR, u->geo.oc);
    const unsigned char *a =
        block_of_a(s, image, y, lines, s->plan->scratch + thread * s->plan->scratch_each);
    /* rows that lie evenly are one product, whatever their lines */
    const bool even = s->line_rows == 1;
    for (size_t j = j_begin; j < j_end; j += TK__LOWP_NR)
        for (size_t i = 0; i < (even ? 1 : lines); i++) {
            tk__lowp_gemm g = panel_job(s, (image * s->lines + y + i) * s->line_rows, j);
            g.m = even ? lines : s->line_rows;
            g.a = a + i * u->geo.stride * u->segment_pitch;
            s->plan->kn->gemm(&g);
        }
}

/* Blocks of nearly equal size, a multiple of the threads. Few rows (one image, late layers):
 * columns are spread over tasks too, at the price of copying once per task. No sum depends on it.
 */
static void plan_tasks(conv_state *s)
{
    const size_t threads = tk_pool_threads(s->plan->pool), want = threads > 1 ? 4 * threads : 1;
    const size_t panels = div_up(s->unit->geo.oc, TK__LOWP_NR);
    const size_t step = s->line_rows == 1 ? TK__LOWP_MR : 1; /* lines that belong together */
    const size_t least = div_up((size_t)4 * TK__LOWP_MR, s->line_rows);
    size_t blocks = max_size(div_up(s->lines, block_rows(s->unit) / s->line_rows),
                             min_size(div_up(want, s->images), div_up(s->lines, least)));
    if (s->images * blocks > threads)
        while (s->images * blocks % threads != 0)
            blocks++;
    s->block_lines = div_up(div_up(s->lines, blocks), step) * step;
    s->blocks = div_up(s->lines, s->block_lines);
    const size_t all = s->images * s->blocks;
    s->panels = all < want ? div_up(panels, min_size(panels, div_up(want, all))) : panels;
    s->column_tasks = div_up(panels, s->panels);
}

static void *map_of(const tk__lowp_plan *p, int m)
{
    return m == TK__NO_MAP ? NULL : m == TK__INPUT_MAP ? p->input : p->slot[p->slot_of[m]];
}

/* Winograd: blocks of tiles. */
typedef struct winograd_state {
    const tk__lowp_plan *plan;
    const lowp_unit *unit;
    tk__winograd job;
    size_t tiles, block_tiles;
    size_t panels, column_tasks; /* panels per task */
} winograd_state;

static void winograd_task(void *ctx, size_t task, size_t thread)
{
    const winograd_state *s = ctx;
    const lowp_unit *u = s->unit;
    const tk__lowp_kernels *kn = s->plan->kn;
    const size_t tile0 = task / s->column_tasks * s->block_tiles;
    const size_t tiles = min_size(s->block_tiles, s->tiles - tile0);
    const size_t j_begin = task % s->column_tasks * s->panels * TK__LOWP_NR;
    const size_t j_end = min_size(j_begin + s->panels * TK__LOWP_NR, s->job.oc);
    unsigned char *v = s->plan->scratch + thread * s->plan->scratch_each;
    float *m = (void *)(v + tiles * POSITIONS * u->geo.ic);
    kn->winograd_in(&s->job, tile0, tiles, (void *)v);
    for (size_t j = j_begin; j < j_end; j += TK__LOWP_NR) {
        const size_t n = tk__lowp_width(s->job.oc - j);
        const unsigned char *packed = u->packed + j * POSITIONS * u->steps * 4;
        for (size_t i = 0; i < POSITIONS; i++)
            kn->gemm(&(tk__lowp_gemm){.m = tiles,
                                      .n = n,
                                      .segments = 1,
                                      .steps = u->steps,
                                      .a = v + i * tiles * u->geo.ic,
                                      .pitch = u->geo.ic,
                                      .b = packed + i * u->steps * n * 4,
                                      .out_kind = TK__SUMS,
                                      .out = m + i * tiles * TK__LOWP_NR,
                                      .ldo = TK__LOWP_NR});
        kn->winograd_out(&s->job, tile0, tiles, j, n, m);
    }
}

/* As plan_tasks(). */
static void plan_tiles(winograd_state *s)
{
    const size_t threads = tk_pool_threads(s->plan->pool), want = threads > 1 ? 2 * threads : 1;
    const size_t panels = div_up(s->job.oc, TK__LOWP_NR);
    size_t blocks = max_size(div_up(s->tiles, block_tiles(s->unit)),
                             min_size(want, div_up(s->tiles, (size_t)2 * TK__LOWP_MR)));
    if (blocks > 1) blocks = div_up(blocks, threads) * threads;
    s->block_tiles = div_up(s->tiles, blocks);
    blocks = div_up(s->tiles, s->block_tiles);
    s->panels = blocks < want ? div_up(panels, min_size(panels, div_up(want, blocks))) : panels;
    s->column_tasks = div_up(panels, s->panels);
}

static void run_winograd(tk__lowp_plan *p, size_t i, size_t n)
{
    const tk__unit *u = &p->layout.unit[i];
    const tk__conv *geo = &p->unit[i].geo;
    winograd_state s = {.plan = p,
                        .unit = &p->unit[i],
                        .job = {.h = geo->oh,
                                .w = geo->ow,
                                .ic = p->layout.map[u->in].c,
                                .oc = geo->oc,
                                .tiles_y = div_up(geo->oh, 2),
                                .tiles_x = div_up(geo->ow, 2),
                                .x = map_of(p, u->in),
                                .bias = p->unit[i].bias,
                                .residual = map_of(p, u->residual),
                                .relu = u->relu,
                                .y = map_of(p, u->out)}};
    s.tiles = n * s.job.tiles_y * s.job.tiles_x;
    plan_tiles(&s);
    tk_pool_run(p->pool, div_up(s.tiles, s.block_tiles) * s.column_tasks, winograd_task, &s);
}

static void run_unit(tk__lowp_plan *p, size_t i, size_t n)
{
    const tk__unit *u = &p->layout.unit[i];
    const lowp_unit *lu = &p->unit[i];
    conv_state s = {.plan = p,
                    .unit = lu,
                    .gemm = {.segments = lu->segments,
                             .steps = lu->steps,
                             .pitch = lu->pitch,
                             .segment_pitch = lu->segment_pitch,
                             .scale = lu->scale,
                             .bias = lu->bias,
                             .residual = map_of(p, u->residual),
                             .relu = u->relu,
                             .out = map_of(p, u->out),
                             .out_kind = p->kind[u->out],
                             .ldo = lu->geo.oc},
                    .x = map_of(p, u->in),
                    .images = n,
                    .lines = lu->geo.oh,
                    .line_rows = lu->geo.ow};
    if (lu->way == IN_PLACE_ROWS || lu->way == PATCHES) { /* all rows are alike */
        s.images = s.line_rows = 1;
        s.lines = n * lu->geo.oh * lu->geo.ow;
    }
    if (u->residual != TK__NO_MAP) {
        s.gemm.residual_kind = p->kind[u->residual];
        s.gemm.residual_scale = p->map_scale[u->residual];
    }
    if (s.gemm.out_kind == TK__MAP_U8) s.gemm.inverse = 1.0f / p->map_scale[u->out];
    plan_tasks(&s);
    tk_pool_run(p->pool, s.images * s.blocks * s.column_tasks, conv_task, &s);
}

typedef struct image_state {
    const tk__lowp_plan *plan;
    tk__pool_shape shape;
    const void *x;
    void *y;
} image_state;

/* A strip of an image into its padded place. */
static void load_task(void *ctx, size_t task, size_t thread)
{
    const image_state *s = ctx;
    const tk__lowp_plan *p = s->plan;
    (void)thread;
    const size_t px = p->layout.map[TK__INPUT_MAP].h, pad = p->layout.unit[0].pad;
    const size_t image = task / INPUT_STRIPS, strip = task % INPUT_STRIPS;
    const float inverse =
        p->precision == TK_PRECISION_INT8 ? 1.0f / p->map_scale[TK__INPUT_MAP] : 1.0f;
    for (size_t y = strip * px / INPUT_STRIPS; y < (strip + 1) * px / INPUT_STRIPS; y++) {
        const size_t pixel = (image * (px + 2 * pad) + y + pad) * (px + 2 * pad) + pad;
        p->kn->load(px * 3, (const float *)s->x + (image * px + y) * px * 3, inverse,
                    p->input + pixel * 3 * p->kn->element);
    }
}

static void max_pool_task(void *ctx, size_t task, size_t thread)
{
    const image_state *s = ctx;
    const tk__pool_shape *p = &s->shape;
    const size_t element = s->plan->kn->element;
    (void)thread;
    const size_t image = task / INPUT_STRIPS, strip = task % INPUT_STRIPS;
    s->plan->kn->max_pool(p, strip * p->oh / INPUT_STRIPS, (strip + 1) * p->oh / INPUT_STRIPS,
                          (const unsigned char *)s->x + image * p->ih * p->iw * p->c * element,
                          (unsigned char *)s->y + image * p->oh * p->ow * p->c * element);
}

static void avg_pool_task(void *ctx, size_t image, size_t thread)
{
    const image_state *s = ctx;
    const size_t rows = s->shape.ih * s->shape.iw, c = s->shape.c;
    (void)thread;
    s->plan->kn->avg_pool(rows, c, (const uint16_t *)s->x + image * rows * c,
                          (float *)s->y + image * c);
}

void tk__lowp_run(tk__lowp_plan *plan, size_t n, const float *x, float *features)
{
    const tk__layout *l = &plan->layout;
    image_state s = {.plan = plan, .x = x};
    tk_pool_run(plan->pool, n * INPUT_STRIPS, load_task, &s);
    for (size_t i = 0; i < l->units; i++) {
        const int out = l->unit[i].out;
        if (plan->unit[i].way == WINOGRAD)
            run_winograd(plan, i, n);
        else
            run_unit(plan, i, n);
        if (!l->unit[i].pool_after) continue;
        const tk__map *a = &l->map[out], *b = a + 1;
        s = (image_state){.plan = plan,
                          .shape = {a->h, a->w, b->h, b->w, a->c},
                          .x = map_of(plan, out),
                          .y = map_of(plan, out + 1)};
        tk_pool_run(plan->pool, n * INPUT_STRIPS, max_pool_task, &s);
    }
    const int last = (int)l->maps - 1;
    const tk__map *m = &l->map[last];
    s = (image_state){.plan = plan,
                      .shape = {.ih = m->h, .iw = m->w, .c = m->c},
                      .x = map_of(plan, last),
                      .y = features};
    tk_pool_run(plan->pool, n, avg_pool_task, &s);
}
