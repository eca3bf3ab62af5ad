/* The low-precision plan: as plan.c, a convolution with folded weights per unit, but maps are
 * bfloat16 or bytes. */
#include "net/plan_lowp.h"

#include <string.h>

#include "engine/mem.h"
#include "net/lowp_internal.h"

enum { INPUT_STRIPS = 4 }; /* tasks per image for loading and pooling */

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

/* Is m the map that the stem's max pool reads? */
static bool before_pool(const tk__layout *l, int m)
{
    return l->unit[0].pool_after && m == l->unit[0].out;
}

/* Max pooling only chooses among values, so the map before it takes the range of the one after. */
static void choose_scales(tk__lowp_plan *p, const tk_calibration *ranges)
{
    for (int m = 0; m < (int)p->layout.maps; m++)
        p->map_scale[m] = ranges->limit[before_pool(&p->layout, m) ? m + 1 : m] /
                          (m == TK__INPUT_MAP ? 127.0f : 255.0f);
}

/* --- memory --- */

/* The next `bytes` from *used on, with slack for copies that run over. */
static void *place(unsigned char *base, size_t *used, size_t bytes)
{
    void *at = base != NULL ? base + *used : NULL;
    *used += tk__div_up(bytes + TK__LOWP_SLACK, TK__LOWP_ALIGN) * TK__LOWP_ALIGN;
    return at;
}

/* Places everything from `base` on (NULL: only counts) and returns the bytes used. */
static size_t lay_out(tk__lowp_plan *p, unsigned char *base)
{
    const tk__layout *l = &p->layout;
    size_t used = 0, scratch = 0;
    for (size_t i = 0; i < l->units; i++) {
        tk__lowp_unit *u = &p->unit[i];
        u->packed = place(base, &used, u->segments * u->steps * 4 * u->geo.oc);
        u->bias = place(base, &used, u->geo.oc * sizeof *u->bias);
        if (p->precision == TK_PRECISION_INT8)
            u->scale = place(base, &used, u->geo.oc * sizeof *u->scale);
        scratch = tk__max_size(scratch, tk__lowp_scratch(u));
    }
    p->maps = place(base, &used, p->route.bytes);
    const tk__conv *stem = &p->unit[0].geo;
    p->input = place(base, &used, p->max_batch * stem->ih * stem->iw * stem->ic);
    p->scratch_each = tk__div_up(scratch + TK__LOWP_SLACK, TK__LOWP_ALIGN) * TK__LOWP_ALIGN;
    p->scratch = place(base, &used, p->scratch_each * tk_pool_threads(p->pool));
    return used;
}

/* --- creation --- */

static tk_err check_ranges(const tk__layout *l, const tk_calibration *ranges, tk_diag *diag)
{
    if (ranges == NULL || ranges->maps != l->maps)
        return tk_fail(diag, TK_BADARG, "int8 needs the ranges of %zu maps, not of %u", l->maps,
                       ranges == NULL ? 0 : ranges->maps);
    for (size_t m = 0; m < l->maps; m++) {
        const float limit = ranges->limit[m];
        if (!before_pool(l, (int)m) && !(limit > 0.0f && limit <= 3e38f))
            return tk_fail(diag, TK_BADARG, "the range of map %zu is %g", m, (double)limit);
    }
    return TK_OK;
}

static void plan_route(tk__lowp_plan *p)
{
    size_t bytes[TK__MAX_MAPS];
    for (size_t m = 0; m < p->layout.maps; m++)
        bytes[m] = map_bytes(p, (int)m);
    tk__route_plan(&p->route, &p->layout, p->max_batch, bytes);
}

static tk_err build(tk__lowp_plan *p, const tk_params *params)
{
    plan_route(p);
    for (size_t i = 0; i < p->layout.units; i++)
        tk__lowp_describe(p, i);
    p->bytes = lay_out(p, NULL);
    p->block = tk_aligned_calloc(p->bytes, 1);
    if (p->block == NULL) return TK_NOMEM;
    (void)lay_out(p, p->block);
    const tk__conv *stem = &p->unit[0].geo;
    if (p->precision == TK_PRECISION_INT8)
        memset(p->input, TK__U8_ZERO, p->max_batch * stem->ih * stem->iw * stem->ic);
    return tk__lowp_pack(p, params) ? TK_OK : TK_NOMEM;
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
    tk__layout_init(&p->layout, params->arch, px, TK__PLAN_IMAGES);
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

const tk__layout *tk__lowp_layout(const tk__lowp_plan *plan)
{
    return &plan->layout;
}

const tk__route *tk__lowp_route(const tk__lowp_plan *plan)
{
    return &plan->route;
}

tk_pool *tk__lowp_pool(const tk__lowp_plan *plan)
{
    return plan->pool;
}

tk_precision tk__lowp_precision(const tk__lowp_plan *plan)
{
    return plan->precision;
}

size_t tk__lowp_winograd(const tk__lowp_plan *plan)
{
    size_t n = 0;
    for (size_t i = 0; i < plan->layout.units; i++)
        n += plan->unit[i].way == TK__WINOGRAD;
    return n;
}

/* --- run --- */

typedef struct image_state {
    const tk__lowp_plan *plan;
    tk__pool_shape shape;
    const void *x;
    void *y;
    float scale; /* of a u8 map; 0: it is bfloat16 */
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

/* A map in fp32, image by image. */
static void widen_task(void *ctx, size_t image, size_t thread)
{
    const image_state *s = ctx;
    const size_t count = s->shape.ih * s->shape.iw * s->shape.c;
    float *y = (float *)s->y + image * count;
    (void)thread;
    if (s->scale == 0.0f) {
        const uint16_t *x = (const uint16_t *)s->x + image * count;
        for (size_t i = 0; i < count; i++)
            y[i] = tk__from_bf16(x[i]);
    } else {
        const uint8_t *x = (const uint8_t *)s->x + image * count;
        for (size_t i = 0; i < count; i++)
            y[i] = (float)x[i] * s->scale;
    }
}

typedef struct run_state {
    const tk__lowp_plan *plan;
    const tk__side *side;
    float *z; /* of the whole batch; NULL: not wanted */
    const bool *rows;
} run_state;

static void run_side(const run_state *r, size_t stage, size_t i0, size_t n)
{
    const tk__lowp_plan *p = r->plan;
    const int tap = p->layout.tap[stage];
    const tk__map *m = &p->layout.map[tap];
    image_state s = {.plan = p,
                     .shape = {.ih = m->h, .iw = m->w, .c = m->c},
                     .x = tk__lowp_map(p, tap, i0),
                     .y = tk__side_map(r->side),
                     .scale = p->kind[tap] == TK__MAP_U8 ? p->map_scale[tap] : 0.0f};
    tk_pool_run(p->pool, n, widen_task, &s);
    tk__side_run(r->side, stage, n, tk__side_map(r->side), r->z + i0 * tk__side_width(r->side),
                 r->rows);
}

static void run_pool(const tk__lowp_plan *p, const tk__unit *u, size_t i0, size_t n)
{
    const tk__map *a = &p->layout.map[u->out], *b = a + 1;
    image_state s = {.plan = p,
                     .shape = {a->h, a->w, b->h, b->w, a->c},
                     .x = tk__lowp_map(p, u->out, i0),
                     .y = tk__lowp_map(p, u->out + 1, i0)};
    tk_pool_run(p->pool, n * INPUT_STRIPS, max_pool_task, &s);
}

static void run_unit(void *ctx, size_t i, size_t i0, size_t n)
{
    const run_state *r = ctx;
    const tk__unit *u = &r->plan->layout.unit[i];
    tk__lowp_conv(r->plan, i, i0, n);
    if (u->pool_after) run_pool(r->plan, u, i0, n);
    const int stage = r->z != NULL ? tk__tap_of(&r->plan->layout, u->out) : -1;
    if (stage >= 0) run_side(r, (size_t)stage, i0, n);
}

void tk__lowp_run(tk__lowp_plan *plan, size_t n, const float *x, float *features,
                  const tk__side *side, float *z, const bool *rows)
{
    image_state s = {.plan = plan, .x = x};
    tk_pool_run(plan->pool, n * INPUT_STRIPS, load_task, &s);
    tk__route_run(&plan->route, n, run_unit, &(run_state){plan, side, z, rows});
    const int last = (int)plan->layout.maps - 1;
    const tk__map *m = &plan->layout.map[last];
    s = (image_state){.plan = plan,
                      .shape = {.ih = m->h, .iw = m->w, .c = m->c},
                      .x = tk__lowp_map(plan, last, 0),
                      .y = features};
    tk_pool_run(plan->pool, n, avg_pool_task, &s);
}
