/* Convolutions of a low-precision plan, as blocks of rows, or of Winograd's tiles, spread over the
 * pool. Whole rows of A, never a part of K: they are used by all columns from the second cache, and
 * B flows past them. */
#include "net/graph_internal.h"
#include "net/lowp_internal.h"

enum {
    BLOCK_ROWS = 168,         /* rows a task holds at most, or a line: a multiple of the tile's */
    BLOCK_BYTES = 320 * 1024, /* and bytes of A: they stay in the second cache */
    BLOCK_TILES = 84,         /* Winograd: tiles a task holds at most, as BLOCK_ROWS */
    WINOGRAD_BYTES = 480 * 1024, /* and bytes of their transforms */
    CACHE_PERIOD = 4096,         /* bytes, of the first cache's sets */
    WINOGRAD_LEAST = 64,         /* input channels from which the transforms pay */
};

/* --- ways --- */

static tk__lowp_way choose_way(const tk__lowp_plan *p, const tk__unit *u, const tk__conv *geo)
{
    const size_t ic = p->layout.map[u->in].c;
    if (p->precision == TK_PRECISION_BF16 && u->k == 3 && u->stride == 1 && ic >= WINOGRAD_LEAST &&
        ic <= TK__WINOGRAD_CHANNELS)
        return TK__WINOGRAD;
    /* rows a multiple of CACHE_PERIOD apart share a set of the first cache and push each other out:
     * copied, a ResNet-50's 2048 -> 512 runs at 437 instead of 360 GFLOP/s */
    if (u->k == 1 && u->stride == 1)
        return geo->ic % CACHE_PERIOD == 0 ? TK__PATCHES : TK__IN_PLACE_ROWS;
    if (u->in != TK__INPUT_MAP && geo->ow < TK__LOWP_MR) return TK__PATCHES;
    return geo->pad_y == 0 ? TK__IN_PLACE_LINES : TK__STRIPS;
}

void tk__lowp_describe(tk__lowp_plan *p, size_t i)
{
    const tk__unit *u = &p->layout.unit[i];
    tk__lowp_unit *lu = &p->unit[i];
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
    lu->steps = tk__div_up(geo->kx * geo->ic, 4);
    lu->segment_pitch = (geo->iw + 2 * (size_t)geo->pad_x) * geo->ic;
    lu->pitch = geo->stride * geo->ic;
    if (lu->way == TK__WINOGRAD) {
        lu->segments = TK__POSITIONS;
        lu->steps = tk__div_up(geo->ic, 4);
    }
    if (lu->way != TK__PATCHES) return;
    lu->steps *= lu->segments;
    lu->segments = 1;
    /* an odd number of cache lines apart: rows spread over the cache's sets */
    lu->pitch = (tk__div_up(lu->steps * 4, TK__LOWP_ALIGN) | 1) * TK__LOWP_ALIGN;
}

/* Input lines under `lines` output lines. */
static size_t strip_lines(const tk__conv *geo, size_t lines)
{
    return (lines - 1) * geo->stride + geo->ky;
}

/* The most rows of A that a task holds; of strips, whole lines. */
static size_t block_rows(const tk__lowp_unit *u)
{
    const size_t ow = u->geo.ow;
    if (u->way == TK__IN_PLACE_LINES || u->way == TK__STRIPS)
        return tk__max_size(1, BLOCK_ROWS / ow) * ow;
    const size_t rows = tk__min_size(BLOCK_ROWS, BLOCK_BYTES / u->pitch);
    return tk__max_size(1, rows / TK__LOWP_MR) * TK__LOWP_MR;
}

/* The most tiles of a Winograd task: their transforms fill a part of the second cache. */
static size_t block_tiles(const tk__lowp_unit *u)
{
    const size_t tiles = tk__min_size(BLOCK_TILES, WINOGRAD_BYTES / (TK__POSITIONS * u->geo.ic));
    return tk__max_size(1, tiles / TK__LOWP_MR) * TK__LOWP_MR;
}

size_t tk__lowp_scratch(const tk__lowp_unit *u)
{
    if (u->way == TK__WINOGRAD)
        return block_tiles(u) * TK__POSITIONS * (u->geo.ic + TK__LOWP_NR * sizeof(float));
    if (u->way == TK__STRIPS)
        return strip_lines(&u->geo, block_rows(u) / u->geo.ow) * u->segment_pitch;
    return u->way == TK__PATCHES ? block_rows(u) * u->pitch : 0;
}

/* --- products of rows --- */

/* Rows are those of A, one per output pixel of the batch. A block is some rows, or some lines of
 * one image. */
typedef struct conv_state {
    const tk__lowp_plan *plan;
    const tk__lowp_unit *unit;
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
static void copy_strip(const tk__lowp_unit *u, const unsigned char *image, size_t y, size_t lines,
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
    const tk__lowp_unit *u = s->unit;
    const unsigned char *x = s->x + image * u->geo.ih * u->geo.iw * u->geo.ic;
    switch (u->way) {
    case TK__IN_PLACE_ROWS:
        return x + y * u->pitch;
    case TK__IN_PLACE_LINES:
        return x + y * u->geo.stride * u->segment_pitch;
    case TK__STRIPS:
        copy_strip(u, x, y, lines, scratch);
        return scratch;
    case TK__PATCHES:
    case TK__WINOGRAD:
        break;
    }
    s->plan->kn->patches(&u->geo, x, y, lines, scratch, u->pitch);
    return scratch;
}

static void conv_task(void *ctx, size_t task, size_t thread)
{
    const conv_state *s = ctx;
    const tk__lowp_unit *u = s->unit;
    const size_t block = task / s->column_tasks, image = block / s->blocks;
    const size_t y = block % s->blocks * s->block_lines;
    const size_t lines = tk__min_size(s->block_lines, s->lines - y);
    const size_t j_begin = task % s->column_tasks * s->panels * TK__LOWP_NR;
    const size_t j_end = tk__min_size(j_begin + s->panels * TK__LOWP_NR, u->geo.oc);
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
    const size_t panels = tk__div_up(s->unit->geo.oc, TK__LOWP_NR);
    const size_t step = s->line_rows == 1 ? TK__LOWP_MR : 1; /* lines that belong together */
    const size_t least = tk__div_up((size_t)4 * TK__LOWP_MR, s->line_rows);
    size_t blocks =
        tk__max_size(tk__div_up(s->lines, block_rows(s->unit) / s->line_rows),
                     tk__min_size(tk__div_up(want, s->images), tk__div_up(s->lines, least)));
    if (s->images * blocks > threads)
        while (s->images * blocks % threads != 0)
            blocks++;
    s->block_lines = tk__div_up(tk__div_up(s->lines, blocks), step) * step;
    s->blocks = tk__div_up(s->lines, s->block_lines);
    const size_t all = s->images * s->blocks;
    s->panels =
        all < want ? tk__div_up(panels, tk__min_size(panels, tk__div_up(want, all))) : panels;
    s->column_tasks = tk__div_up(panels, s->panels);
}

static void run_rows(const tk__lowp_plan *p, size_t i, size_t i0, size_t n)
{
    const tk__unit *u = &p->layout.unit[i];
    const tk__lowp_unit *lu = &p->unit[i];
    conv_state s = {.plan = p,
                    .unit = lu,
                    .gemm = {.segments = lu->segments,
                             .steps = lu->steps,
                             .pitch = lu->pitch,
                             .segment_pitch = lu->segment_pitch,
                             .scale = lu->scale,
                             .bias = lu->bias,
                             .residual = tk__lowp_map(p, u->residual, i0),
                             .relu = u->relu,
                             .out = tk__lowp_map(p, u->out, i0),
                             .out_kind = p->kind[u->out],
                             .ldo = lu->geo.oc},
                    .x = tk__lowp_map(p, u->in, i0),
                    .images = n,
                    .lines = lu->geo.oh,
                    .line_rows = lu->geo.ow};
    if (lu->way == TK__IN_PLACE_ROWS || lu->way == TK__PATCHES) { /* all rows are alike */
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

/* --- Winograd --- */

typedef struct winograd_state {
    const tk__lowp_plan *plan;
    const tk__lowp_unit *unit;
    tk__winograd job;
    size_t tiles, block_tiles;
    size_t panels, column_tasks; /* panels per task */
} winograd_state;

static void winograd_task(void *ctx, size_t task, size_t thread)
{
    const winograd_state *s = ctx;
    const tk__lowp_unit *u = s->unit;
    const tk__lowp_kernels *kn = s->plan->kn;
    const size_t tile0 = task / s->column_tasks * s->block_tiles;
    const size_t tiles = tk__min_size(s->block_tiles, s->tiles - tile0);
    const size_t j_begin = task % s->column_tasks * s->panels * TK__LOWP_NR;
    const size_t j_end = tk__min_size(j_begin + s->panels * TK__LOWP_NR, s->job.oc);
    unsigned char *v = s->plan->scratch + thread * s->plan->scratch_each;
    float *m = (void *)(v + tiles * TK__POSITIONS * u->geo.ic);
    kn->winograd_in(&s->job, tile0, tiles, (void *)v);
    for (size_t j = j_begin; j < j_end; j += TK__LOWP_NR) {
        const size_t n = tk__lowp_width(s->job.oc - j);
        const unsigned char *packed = u->packed + j * TK__POSITIONS * u->steps * 4;
        for (size_t i = 0; i < TK__POSITIONS; i++)
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
    const size_t panels = tk__div_up(s->job.oc, TK__LOWP_NR);
    size_t blocks = tk__max_size(tk__div_up(s->tiles, block_tiles(s->unit)),
                                 tk__min_size(want, tk__div_up(s->tiles, (size_t)2 * TK__LOWP_MR)));
    if (blocks > 1) blocks = tk__div_up(blocks, threads) * threads;
    s->block_tiles = tk__div_up(s->tiles, blocks);
    blocks = tk__div_up(s->tiles, s->block_tiles);
    s->panels =
        blocks < want ? tk__div_up(panels, tk__min_size(panels, tk__div_up(want, blocks))) : panels;
    s->column_tasks = tk__div_up(panels, s->panels);
}

static void run_winograd(const tk__lowp_plan *p, size_t i, size_t i0, size_t n)
{
    const tk__unit *u = &p->layout.unit[i];
    const tk__conv *geo = &p->unit[i].geo;
    winograd_state s = {.plan = p,
                        .unit = &p->unit[i],
                        .job = {.h = geo->oh,
                                .w = geo->ow,
                                .ic = p->layout.map[u->in].c,
                                .oc = geo->oc,
                                .tiles_y = tk__div_up(geo->oh, 2),
                                .tiles_x = tk__div_up(geo->ow, 2),
                                .x = tk__lowp_map(p, u->in, i0),
                                .bias = p->unit[i].bias,
                                .residual = tk__lowp_map(p, u->residual, i0),
                                .relu = u->relu,
                                .y = tk__lowp_map(p, u->out, i0)}};
    s.tiles = n * s.job.tiles_y * s.job.tiles_x;
    plan_tiles(&s);
    tk_pool_run(p->pool, tk__div_up(s.tiles, s.block_tiles) * s.column_tasks, winograd_task, &s);
}

void tk__lowp_conv(const tk__lowp_plan *p, size_t i, size_t i0, size_t n)
{
    if (p->unit[i].way == TK__WINOGRAD)
        run_winograd(p, i, i0, n);
    else
        run_rows(p, i, i0, n);
}
