/* The low-precision plan: as plan.c, each unit is one matrix product of patches and folded weights,
 * but maps are bfloat16 or bytes, and patches are copied once per block of rows, whole rows, so
 * that all columns use them from the second cache. A 1x1 convolution without a stride reads its
 * input where it lies.
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
    BLOCK_ROWS = 168,         /* rows a task holds at most: a multiple of the tile's */
    BLOCK_BYTES = 320 * 1024, /* and bytes: they stay in the second cache */
    BLOCK_STEPS = 128,        /* of K at a time: a panel's part then stays in the first */
    INPUT_STRIPS = 4,         /* tasks per image for loading and pooling */
};

typedef struct lowp_unit {
    tk__conv geo;          /* of one image, ic in bytes; the stem's reads the padded input */
    size_t pitch, steps;   /* bytes from patch to patch; words of a patch */
    bool in_place;         /* patches are the input's pixels */
    unsigned char *packed; /* panels of [steps][width] words */
    float *scale, *bias;   /* [oc]; scale is NULL for bf16 */
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
    size_t scratch_each; /* per thread: sums, then patches */
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

/* Patches an odd number of lines apart spread over the cache's sets. */
static void describe_unit(tk__lowp_plan *p, size_t i)
{
    const tk__unit *u = &p->layout.unit[i];
    lowp_unit *lu = &p->unit[i];
    lu->geo = tk__unit_geo(&p->layout, u, 1);
    if (u->in == TK__INPUT_MAP) {
        lu->geo.ih += 2 * u->pad;
        lu->geo.iw += 2 * u->pad;
        lu->geo.pad_y = lu->geo.pad_x = 0;
    }
    lu->geo.ic *= p->kn->element;
    const size_t bytes = lu->geo.ky * lu->geo.kx * lu->geo.ic;
    lu->steps = div_up(bytes, 4);
    lu->in_place = u->k == 1 && u->stride == 1;
    lu->pitch = lu->in_place ? bytes : (div_up(lu->steps * 4, ALIGN) | 1) * ALIGN;
}

/* The most rows a task holds, a multiple of the tile's. */
static size_t block_rows(const lowp_unit *u)
{
    const size_t rows = min_size(BLOCK_ROWS, BLOCK_BYTES / u->pitch);
    return rows < TK__LOWP_MR ? TK__LOWP_MR : rows / TK__LOWP_MR * TK__LOWP_MR;
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
    size_t used = 0, patches = 0, slots[SLOTS];
    for (size_t i = 0; i < l->units; i++) {
        lowp_unit *u = &p->unit[i];
        u->packed = place(base, &used, u->steps * 4 * u->geo.oc);
        u->bias = place(base, &used, u->geo.oc * sizeof *u->bias);
        if (p->precision == TK_PRECISION_INT8)
            u->scale = place(base, &used, u->geo.oc * sizeof *u->scale);
        if (!u->in_place && patches < block_rows(u) * u->pitch) patches = block_rows(u) * u->pitch;
    }
    plan_slots(p, slots);
    for (int s = 0; s < SLOTS; s++)
        p->slot[s] = place(base, &used, slots[s]);
    const tk__conv *stem = &p->unit[0].geo;
    p->input = place(base, &used, p->max_batch * stem->ih * stem->iw * stem->ic);
    p->scratch_each = BLOCK_ROWS * TK__LOWP_NR * 4 + div_up(patches, ALIGN) * ALIGN + ALIGN;
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

/* Element (k, j) of a packed matrix with `group` elements to a word: word k / group of column j. */
static size_t packed_at(size_t steps, size_t n, size_t group, size_t k, size_t j)
{
    const size_t panel = j / TK__LOWP_NR * TK__LOWP_NR, width = tk__lowp_width(n - panel);
    return ((panel * steps + k / group * width) + j - panel) * group + k % group;
}

static void pack_bf16(const lowp_unit *u, size_t rows, const float *w)
{
    uint16_t *packed = (void *)u->packed;
    for (size_t k = 0; k < rows; k++)
        for (size_t j = 0; j < u->geo.oc; j++)
            packed[packed_at(u->steps, u->geo.oc, 2, k, j)] = tk__to_bf16(w[k * u->geo.oc + j]);
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
            ((int8_t *)u->packed)[packed_at(u->steps, n, 4, k, j)] = (int8_t)q;
            sum += q;
        }
        u->scale[j] = in_scale * most / 127.0f;
        u->bias[j] -= u->scale[j] * (float)(in_zero * sum);
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
    if (p->precision == TK_PRECISION_BF16)
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

typedef struct conv_state {
    const tk__lowp_plan *plan;
    const lowp_unit *unit;
    tk__lowp_gemm gemm; /* what all tiles share; pointers at the first element */
    const unsigned char *x;
    size_t m;      /* rows of all images */
    size_t rows;   /* per block */
    size_t panels; /* per task */
    size_t column_tasks;
    size_t steps; /* at a time */
} conv_state;

static const unsigned char *at_element(const void *map, tk__lowp_kind kind, size_t i)
{
    return (const unsigned char *)map + i * (kind == TK__MAP_BF16 ? 2 : 1);
}

/* Columns j.. of rows m0.. of the output. */
static tk__lowp_gemm panel_job(const conv_state *s, size_t m0, size_t j)
{
    tk__lowp_gemm g = s->gemm;
    const size_t at = m0 * g.ldo + j;
    g.n = tk__lowp_width(g.ldo - j);
    g.bias += j;
    if (g.scale != NULL) g.scale += j;
    if (g.residual != NULL) g.residual = at_element(g.residual, g.residual_kind, at);
    g.out = (unsigned char *)g.out + (at_element(g.out, g.out_kind, at) - (unsigned char *)g.out);
    return g;
}

static void conv_task(void *ctx, size_t task, size_t thread)
{
    const conv_state *s = ctx;
    const lowp_unit *u = s->unit;
    const tk__lowp_kernels *kn = s->plan->kn;
    const size_t m0 = task / s->column_tasks * s->rows, rows = min_size(s->rows, s->m - m0);
    const size_t j_begin = task % s->column_tasks * s->panels * TK__LOWP_NR;
    const size_t j_end = min_size(j_begin + s->panels * TK__LOWP_NR, u->geo.oc);
    unsigned char *sums = s->plan->scratch + thread * s->plan->scratch_each;
    unsigned char *patches = sums + BLOCK_ROWS * TK__LOWP_NR * 4;
    if (!u->in_place) kn->patches(&u->geo, s->x, m0, rows, patches, u->pitch);
    const unsigned char *a = u->in_place ? s->x + m0 * u->pitch : patches;
    for (size_t j = j_begin; j < j_end; j += TK__LOWP_NR) {
        tk__lowp_gemm g = panel_job(s, m0, j);
        g.m = rows;
        g.sums = sums;
        for (size_t k = 0; k < u->steps; k += g.steps) {
            g.steps = min_size(s->steps, u->steps - k);
            g.a = a + k * 4;
            g.b = u->packed + (j * u->steps + k * g.n) * 4;
            g.first = k == 0;
            g.last = k + g.steps == u->steps;
            kn->gemm(&g);
        }
    }
}

/* Blocks of nearly equal size. Few rows (one image, late layers): columns are spread over tasks
 * too, at the price of copying the patches once per task. No sum depends on it. */
static void plan_tasks(conv_state *s)
{
    const size_t threads = tk_pool_threads(s->plan->pool), most = block_rows(s->unit);
    const size_t panels = div_up(s->unit->geo.oc, TK__LOWP_NR),
                 want = threads > 1 ? 4 * threads : 1;
    size_t blocks = max_size(div_up(s->m, most), min_size(want, div_up(s->m, 4 * TK__LOWP_MR)));
    if (blocks > threads) blocks = div_up(blocks, threads) * threads;
    s->rows = div_up(div_up(s->m, blocks), TK__LOWP_MR) * TK__LOWP_MR;
    blocks = div_up(s->m, s->rows);
    s->panels = panels;
    if (blocks < want) s->panels = div_up(panels, min_size(panels, div_up(want, blocks)));
    s->column_tasks = div_up(panels, s->panels);
    s->steps = div_up(s->unit->steps, div_up(s->unit->steps, BLOCK_STEPS));
}

static void *map_of(const tk__lowp_plan *p, int m)
{
    return m == TK__NO_MAP ? NULL : m == TK__INPUT_MAP ? p->input : p->slot[p->slot_of[m]];
}

static void run_unit(tk__lowp_plan *p, size_t i, size_t n)
{
    const tk__unit *u = &p->layout.unit[i];
    const lowp_unit *lu = &p->unit[i];
    conv_state s = {.plan = p,
                    .unit = lu,
                    .gemm = {.pitch = lu->pitch,
                             .scale = lu->scale,
                             .bias = lu->bias,
                             .residual = map_of(p, u->residual),
                             .relu = u->relu,
                             .out = map_of(p, u->out),
                             .out_kind = p->kind[u->out],
                             .ldo = lu->geo.oc},
                    .x = map_of(p, u->in),
                    .m = n * lu->geo.oh * lu->geo.ow};
    if (u->residual != TK__NO_MAP) {
        s.gemm.residual_kind = p->kind[u->residual];
        s.gemm.residual_scale = p->map_scale[u->residual];
    }
    if (s.gemm.out_kind == TK__MAP_U8) s.gemm.inverse = 1.0f / p->map_scale[u->out];
    plan_tasks(&s);
    tk_pool_run(p->pool, div_up(s.m, s.rows) * s.column_tasks, conv_task, &s);
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
