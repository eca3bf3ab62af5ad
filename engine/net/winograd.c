/* Winograd convolutions: packing, forward (which is the data gradient too, with flipped weights)
 * and the weight gradient. Tasks work on blocks of tiles whose transforms stay in the cache. */
#include "net/winograd.h"

#include <string.h>

#include "net/positions.h"

enum {
    BLOCK_FLOATS = 16 * 1024, /* what a task's transformed tiles may take, if they are enough */
    MIN_TILES = 14,           /* enough: a register tile, so that weights are worth reading */
    SKEW = 16,                /* keeps points off each other's cache sets */
    DW_TILES = 32,            /* tiles whose transforms a weight gradient holds at a time */
    SMALL = 32 * 32,          /* ic * oc: a copy of the weight gradient per task is cheap */
    SHARED_FLOATS = 1 << 19,  /* the transforms held at a time where it is not */
};

static size_t points_of(size_t m)
{
    return (m + 2) * (m + 2);
}

/* Rows of a matrix of which two share a word if its numbers are bfloat16. */
static size_t rows_of(const tk__conv *geo, size_t n)
{
    return geo->bf16 ? tk__div_up(n, 2) : n;
}

static tk__wino tiles_of(const tk__conv *geo, size_t m)
{
    return (tk__wino){
        .geo = *geo, .m = m, .th = tk__div_up(geo->oh, m), .tw = tk__div_up(geo->ow, m)};
}

/* --- packing --- */

size_t tk__wino_pack_size(size_t m, size_t ic, size_t oc)
{
    return points_of(m) * ic * tk__div_up(oc, TK__LANES) * TK__LANES;
}

typedef struct pack_state {
    const tk__exec *ex;
    bool bf16;
    size_t m, ic, oc, rs, cs;
    const float *const *tap;
    const float *scale;
    float *packed;
} pack_state;

/* 16 x 16 weights of every tap, rows by input channel. One of the strides is 1. */
static void gather(const pack_state *s, size_t i0, size_t j0, float *block)
{
    for (size_t t = 0; t < 9; t++, block += TK__LANES * TK__LANES) {
        const float *src = s->tap[t] + i0 * s->rs + j0 * s->cs;
        if (s->cs != 1)
            s->ex->kn->transpose(src, s->cs, block, TK__LANES);
        else
            for (size_t i = 0; i < TK__LANES; i++)
                memcpy(block + i * TK__LANES, src + i * s->rs, TK__LANES * sizeof *block);
        for (size_t i = 0; s->scale != NULL && i < TK__LANES * TK__LANES; i++)
            block[i] *= s->scale[j0 + i % TK__LANES];
    }
}

static void pack_task(void *ctx, size_t task, size_t thread)
{
    const pack_state *s = ctx;
    (void)thread;
    float block[9 * TK__LANES * TK__LANES];
    const size_t nr = tk__conv_nr(s->ex, s->bf16), groups = s->oc / TK__LANES;
    const size_t i0 = task / groups * TK__LANES, j0 = task % groups * TK__LANES;
    const size_t panel = j0 / nr * nr, width = tk__min_size(nr, s->oc - panel);
    const size_t at = panel * s->ic * points_of(s->m) + i0 * width;
    gather(s, i0, j0, block);
    if (s->bf16)
        s->ex->mixed->wino_weights(s->m, block, (uint32_t *)s->packed + at / 2 + j0 - panel, width,
                                   s->ic / 2 * width);
    else
        s->ex->kn->wino_weights(s->m, block, TK__LANES, s->packed + at + j0 - panel, width,
                                s->ic * width);
}

void tk__wino_pack(const tk__exec *ex, bool bf16, size_t m, size_t ic, size_t oc,
                   const float *const tap[9], size_t rs, size_t cs, const float *scale,
                   float *packed)
{
    pack_state s = {ex, bf16, m, ic, oc, rs, cs, tap, scale, packed};
    tk_pool_run(ex->pool, ic / TK__LANES * (oc / TK__LANES), pack_task, &s);
}

/* --- forward --- */

/* Blocks are whole tile rows, or whole images when a tile row's last rows would be cut short. */
static size_t block_tile_rows(const tk__conv *geo, size_t m)
{
    const tk__wino w = tiles_of(geo, m);
    const size_t fit = BLOCK_FLOATS / (points_of(m) * (geo->ic + TK__NR_MAX / 2));
    const size_t rows = tk__max_size(1, tk__max_size(fit, MIN_TILES) / w.tw);
    if (rows >= w.th) return rows / w.th * w.th;
    return geo->oh % m == 0 ? rows : w.th;
}

size_t tk__wino_block_rows(const tk__conv *geo, size_t m)
{
    const size_t th = tk__div_up(geo->oh, m), rows = block_tile_rows(geo, m);
    const size_t pixels = rows % th == 0 ? rows / th * geo->oh * geo->ow : rows * m * geo->ow;
    return tk__min_size(pixels, geo->n * geo->oh * geo->ow);
}

static size_t forward_scratch(const tk__conv *geo, size_t m)
{
    const tk__wino w = tiles_of(geo, m);
    const size_t tiles = block_tile_rows(geo, m) * w.tw;
    return points_of(m) * (tiles * (geo->ic + TK__NR_MAX) + 2 * SKEW);
}

typedef struct run_state {
    const tk__exec *ex;
    const tk__conv_job *job;
    tk__wino all;           /* every tile of the batch */
    size_t tile_rows, rows; /* of the batch; of a block */
    size_t panels, splits;  /* per task; tasks per block */
} run_state;

/* What the output transform will touch is fetched during the products: a product of some rows asks
 * for as many pixels of the block, m * m products for all. First the residual's, then y's. */
static void look_ahead(const run_state *s, const tk__wino *w, size_t p, size_t j, tk__gemm *g)
{
    const tk__conv *geo = &w->geo;
    const size_t row = w->t0 / w->tw, pass = w->m * w->m;
    const size_t first = (row / w->th * geo->oh + row % w->th * w->m) * geo->ow;
    const size_t pixel = first + p % pass * w->tiles;
    const float *map = p < pass ? s->job->residual : p < 2 * pass ? s->job->y : NULL;
    if (map == NULL || pixel + w->tiles > geo->n * geo->oh * geo->ow) return;
    g->ahead = map + pixel * geo->oc + j;
    g->ahead_pitch = geo->oc;
    g->ahead_lines = g->n / TK__LANES;
}

static void products(const run_state *s, const tk__wino *w, const float *v, size_t point, size_t j,
                     float *u, size_t u_point)
{
    const tk__kernels *kn = s->ex->kn;
    const size_t ic = w->geo.ic, oc = w->geo.oc, points = points_of(w->m);
    const size_t width = tk__panel_width(kn, oc - j);
    const float *weights = s->job->packed + j * ic * points;
    for (size_t p = 0; p < points; p++) {
        tk__gemm g = {.m = w->tiles,
                      .n = width,
                      .k = ic,
                      .a = v + p * point,
                      .rs = ic,
                      .cs = 1,
                      .b = weights + p * ic * width,
                      .ldb = width,
                      .c = u + p * u_point,
                      .ldc = width};
        look_ahead(s, w, p, j, &g);
        kn->gemm(&g);
    }
}

/* As products(), of rows of bfloat16 numbers. */
static void mixed_products(const run_state *s, const tk__wino *w, const uint16_t *v, size_t point,
                           size_t j, float *u, size_t u_point)
{
    const size_t ic = w->geo.ic, points = points_of(w->m);
    const size_t width = tk__lowp_width(w->geo.oc - j);
    const uint32_t *weights = (const uint32_t *)s->job->packed + j * (ic / 2) * points;
    for (size_t p = 0; p < points; p++)
        s->ex->mixed->lowp->gemm(
            &(tk__lowp_gemm){.m = w->tiles,
                             .n = width,
                             .segments = 1,
                             .steps = ic / 2,
                             .a = (const unsigned char *)(v + p * point),
                             .pitch = ic * sizeof *v,
                             .b = (const unsigned char *)(weights + p * (ic / 2) * width),
                             .out_kind = TK__SUMS,
                             .out = u + p * u_point,
                             .ldo = width});
}

static void run_task(void *ctx, size_t task, size_t thread)
{
    const run_state *s = ctx;
    const tk__conv_job *job = s->job;
    const tk__kernels *kn = s->ex->kn;
    const size_t block = task / s->splits, row0 = block * s->rows;
    const size_t rows = tk__min_size(s->rows, s->tile_rows - row0), oc = job->geo.oc;
    tk__wino w = s->all;
    w.t0 = row0 * w.tw;
    w.tiles = rows * w.tw;
    float *v = s->ex->scratch + thread * s->ex->scratch_each;
    const bool bf16 = job->geo.bf16;
    const size_t point = w.tiles * job->geo.ic + (bf16 ? 2 * SKEW : SKEW);
    float *u = v + points_of(w.m) * (bf16 ? point / 2 : point);
    if (bf16)
        s->ex->mixed->wino_input(&w, &job->in, (uint16_t *)v, job->geo.ic, point);
    else
        kn->wino_input(&w, &job->in, v, job->geo.ic, point);
    const size_t nr = tk__conv_nr(s->ex, bf16), j0 = task % s->splits * s->panels * nr;
    const size_t j1 = tk__min_size(j0 + s->panels * nr, oc);
    for (size_t j = j0; j < j1; j += nr) {
        const size_t width = tk__min_size(nr, oc - j), u_point = w.tiles * width + SKEW;
        if (bf16)
            mixed_products(s, &w, (uint16_t *)v, point, j, u, u_point);
        else
            products(s, &w, v, point, j, u, u_point);
        kn->wino_output(&w, u, width, u_point,
                        &(tk__wino_out){.y = job->y,
                                        .c0 = j,
                                        .cols = width,
                                        .accumulate = job->accumulate,
                                        .bias = job->bias,
                                        .residual = job->residual,
                                        .relu = job->relu});
    }
    if (job->post == NULL) return;
    const size_t each = tk__wino_block_rows(&job->geo, w.m), m0 = block * each;
    job->post(job->post_ctx, block, m0, tk__min_size(m0 + each, w.geo.n * w.geo.oh * w.geo.ow));
}

/* Few blocks: smaller ones, and columns spread over tasks too, whichever leaves the least to the
 * busiest thread. The price of a split is that each task transforms the input anew, that of small
 * blocks that each reads the weights anew. Nothing here changes a result. */
static void plan_tasks(run_state *s)
{
    const size_t threads = tk_pool_threads(s->ex->pool), nr = tk__conv_nr(s->ex, s->job->geo.bf16);
    const size_t ic = s->job->geo.ic, panels = tk__div_up(s->job->geo.oc, nr), most = s->rows;
    double best = -1;
    for (size_t splits = 1; splits <= panels && splits <= threads; splits++) {
        const size_t per_task = tk__div_up(panels, splits);
        for (size_t rows = most; rows > 0; rows--) {
            const size_t tasks = tk__div_up(s->tile_rows, rows) * tk__div_up(panels, per_task);
            const double tiles = (double)(rows * s->all.tw);
            /* in units of a tile's product with one panel's column block of weights */
            const double work = (double)per_task * (tiles * (double)(ic + 16) + 6.0 * (double)ic);
            const double cost =
                (double)tk__div_up(tasks, threads) * (work + tiles * (double)ic / 2);
            if (best >= 0 && cost >= best) continue;
            best = cost;
            s->rows = rows;
            s->panels = per_task;
        }
    }
    s->splits = tk__div_up(panels, s->panels);
}

void tk__wino_run(const tk__exec *ex, const tk__conv_job *job, size_t m)
{
    run_state s = {.ex = ex, .job = job, .all = tiles_of(&job->geo, m)};
    s.tile_rows = job->geo.n * s.all.th;
    s.rows = tk__min_size(block_tile_rows(&job->geo, m), s.tile_rows);
    s.panels = tk__div_up(job->geo.oc, tk__conv_nr(ex, job->geo.bf16));
    s.splits = 1;
    if (job->post == NULL && tk__div_up(s.tile_rows, s.rows) < 4 * tk_pool_threads(ex->pool))
        plan_tasks(&s);
    tk_pool_run(ex->pool, tk__div_up(s.tile_rows, s.rows) * s.splits, run_task, &s);
}

/* --- weight gradient --- */

/* Small layers: chunks of tiles are tasks, each with its own sum over its tiles. Large ones: the
 * transforms of as many tiles as fit are shared, and tasks are points times slices of dW's rows. */
typedef struct dw_state {
    const tk__exec *ex;
    tk__wino all;
    size_t tiles, chunk, chunks; /* of the batch; per chunk */
    tk__input in;
    const float *dy;
    float *v, *w; /* shared transforms of x and dy */
    size_t v_point, w_point;
    float *du;       /* [chunks or 1][points][ic][oc] */
    size_t t0, held; /* the chunk at work */
    size_t slices;   /* of dW's rows */
    float *dw;
} dw_state;

static size_t du_floats(const dw_state *s)
{
    return points_of(s->all.m) * s->all.geo.ic * s->all.geo.oc;
}

static bool is_small(const tk__conv *geo)
{
    return geo->ic * geo->oc <= SMALL;
}

static dw_state plan_dw(const tk__exec *ex, const tk__conv *geo, size_t m)
{
    dw_state s = {.ex = ex, .all = tiles_of(geo, m)};
    s.tiles = geo->n * s.all.th * s.all.tw;
    if (is_small(&s.all.geo)) {
        s.chunks =
            tk__min_size((size_t)4 * tk_pool_threads(ex->pool), tk__div_up(s.tiles, DW_TILES));
    } else {
        const size_t fit = SHARED_FLOATS / (points_of(m) * (geo->ic + geo->oc));
        s.chunks = tk__div_up(s.tiles, tk__max_size(fit, DW_TILES));
    }
    s.chunk = tk__div_up(s.tiles, s.chunks);
    s.chunks = tk__div_up(s.tiles, s.chunk);
    return s;
}

static size_t transform_floats(const tk__conv *geo, size_t m, size_t tiles)
{
    return points_of(m) * (rows_of(geo, tiles) * (geo->ic + geo->oc) + 2 * SKEW);
}

size_t tk__wino_partials(const tk__exec *ex, const tk__conv *geo, size_t m)
{
    const dw_state s = plan_dw(ex, geo, m);
    if (is_small(&s.all.geo)) return (size_t)4 * tk_pool_threads(ex->pool) * du_floats(&s);
    const size_t fit = SHARED_FLOATS / (points_of(m) * (geo->ic + geo->oc));
    return du_floats(&s) +
           transform_floats(geo, m, tk__min_size(s.tiles, tk__max_size(fit, DW_TILES)));
}

size_t tk__wino_scratch(const tk__conv *geo, size_t m)
{
    tk__conv back = *geo;
    back.ic = geo->oc;
    back.oc = geo->ic;
    const size_t forward = tk__max_size(forward_scratch(geo, m), forward_scratch(&back, m));
    return is_small(geo) ? tk__max_size(forward, transform_floats(geo, m, DW_TILES)) : forward;
}

/* du of one point, rows i0..i1-1, (+)= the product of the transforms of `tiles` tiles. */
static void mixed_point_product(const dw_state *s, const float *v, const float *w, size_t tiles,
                                size_t i0, size_t i1, bool accumulate, float *du)
{
    const size_t ic = s->all.geo.ic, oc = s->all.geo.oc;
    for (size_t j = 0; j < oc; j += TK__LOWP_NR)
        s->ex->mixed->lowp->gemm(&(tk__lowp_gemm){.m = i1 - i0,
                                                  .n = tk__lowp_width(oc - j),
                                                  .segments = tk__div_up(tiles, 2),
                                                  .steps = 1,
                                                  .a = (const unsigned char *)(v + i0),
                                                  .pitch = sizeof *v,
                                                  .segment_pitch = ic * sizeof *v,
                                                  .b = (const unsigned char *)(w + j),
                                                  .b_pitch = oc * sizeof *w,
                                                  .out_kind = TK__SUMS,
                                                  .accumulate = accumulate,
                                                  .out = du + i0 * oc + j,
                                                  .ldo = oc});
}

static void point_product(const dw_state *s, const float *v, const float *w, size_t tiles,
                          size_t i0, size_t i1, bool accumulate, float *du)
{
    const tk__kernels *kn = s->ex->kn;
    const size_t ic = s->all.geo.ic, oc = s->all.geo.oc;
    if (s->all.geo.bf16) {
        mixed_point_product(s, v, w, tiles, i0, i1, accumulate, du);
        return;
    }
    for (size_t j = 0; j < oc; j += kn->nr)
        kn->gemm(&(tk__gemm){.m = i1 - i0,
                             .n = tk__panel_width(kn, oc - j),
                             .k = tiles,
                             .a = v + i0,
                             .rs = 1,
                             .cs = ic,
                             .b = w + j,
                             .ldb = oc,
                             .c = du + i0 * oc + j,
                             .ldc = oc,
                             .accumulate = accumulate});
}

/* The transforms of a run of tiles to v and w. */
static void transform(const dw_state *s, const tk__wino *run, float *v, size_t v_point, float *w,
                      size_t w_point)
{
    const size_t ic = s->all.geo.ic, oc = s->all.geo.oc;
    if (s->all.geo.bf16) {
        s->ex->mixed->wino_input_pairs(run, &s->in, (uint32_t *)v, ic, v_point);
        s->ex->mixed->wino_dy_pairs(run, s->dy, (uint32_t *)w, oc, w_point);
    } else {
        s->ex->kn->wino_input(run, &s->in, v, ic, v_point);
        s->ex->kn->wino_dy(run, s->dy, w, oc, w_point);
    }
}

static void small_task(void *ctx, size_t task, size_t thread)
{
    const dw_state *s = ctx;
    const size_t ic = s->all.geo.ic, oc = s->all.geo.oc, points = points_of(s->all.m);
    const size_t begin = task * s->chunk, end = tk__min_size(begin + s->chunk, s->tiles);
    float *du = s->du + task * du_floats(s);
    float *v = s->ex->scratch + thread * s->ex->scratch_each;
    for (size_t t = begin; t < end; t += DW_TILES) {
        tk__wino w = s->all;
        w.t0 = t;
        w.tiles = tk__min_size(DW_TILES, end - t);
        const size_t rows = rows_of(&w.geo, w.tiles), vp = rows * ic + SKEW, wp = rows * oc + SKEW;
        float *dy = v + points * vp;
        transform(s, &w, v, vp, dy, wp);
        for (size_t p = 0; p < points; p++)
            point_product(s, v + p * vp, dy + p * wp, w.tiles, 0, ic, t > begin, du + p * ic * oc);
    }
}

/* Transforms a piece of the chunk at work. */
static void transform_task(void *ctx, size_t task, size_t thread)
{
    const dw_state *s = ctx;
    (void)thread;
    const size_t at = task * DW_TILES, row = rows_of(&s->all.geo, at);
    tk__wino w = s->all;
    w.t0 = s->t0 + at;
    w.tiles = tk__min_size(DW_TILES, s->held - at);
    transform(s, &w, s->v + row * s->all.geo.ic, s->v_point, s->w + row * s->all.geo.oc,
              s->w_point);
}

static void product_task(void *ctx, size_t task, size_t thread)
{
    const dw_state *s = ctx;
    (void)thread;
    const size_t ic = s->all.geo.ic, oc = s->all.geo.oc, p = task / s->slices;
    const size_t rows = tk__div_up(ic, s->slices), i0 = task % s->slices * rows;
    if (i0 >= ic) return;
    point_product(s, s->v + p * s->v_point, s->w + p * s->w_point, s->held, i0,
                  tk__min_size(i0 + rows, ic), s->t0 > 0, s->du + p * ic * oc);
}

/* One row (input channel) of dW from the sum of the chunks' du, which are added in order. */
static void finish_task(void *ctx, size_t i, size_t thread)
{
    const dw_state *s = ctx;
    (void)thread;
    const size_t ic = s->all.geo.ic, oc = s->all.geo.oc, points = points_of(s->all.m);
    for (size_t c = 1; is_small(&s->all.geo) && c < s->chunks; c++)
        for (size_t p = 0; p < points; p++)
            s->ex->kn->add(oc, s->du + (p * ic + i) * oc,
                           s->du + c * du_floats(s) + (p * ic + i) * oc);
    s->ex->kn->wino_dw(s->all.m, oc, s->du + i * oc, ic * oc, s->dw + i * oc, ic * oc);
}

static void run_shared(dw_state *s, float *partials)
{
    const size_t ic = s->all.geo.ic, points = points_of(s->all.m);
    const size_t want = (size_t)4 * tk_pool_threads(s->ex->pool);
    s->v = partials + du_floats(s);
    s->slices = tk__min_size(tk__div_up(want, points), tk__div_up(ic, 28));
    for (size_t c = 0; c < s->chunks; c++) {
        s->t0 = c * s->chunk;
        s->held = tk__min_size(s->chunk, s->tiles - s->t0);
        s->v_point = rows_of(&s->all.geo, s->held) * ic + SKEW;
        s->w_point = rows_of(&s->all.geo, s->held) * s->all.geo.oc + SKEW;
        s->w = s->v + points * s->v_point;
        tk_pool_run(s->ex->pool, tk__div_up(s->held, DW_TILES), transform_task, s);
        tk_pool_run(s->ex->pool, points * s->slices, product_task, s);
    }
}

void tk__wino_dw(const tk__exec *ex, const tk__conv *geo, size_t m, const tk__input *in,
                 const float *dy, float *dw, float *partials)
{
    dw_state s = plan_dw(ex, geo, m);
    s.in = *in;
    s.dy = dy;
    s.dw = dw;
    s.du = partials;
    if (is_small(&s.all.geo))
        tk_pool_run(ex->pool, s.chunks, small_task, &s);
    else
        run_shared(&s, partials);
    tk_pool_run(ex->pool, geo->ic, finish_task, &s);
}

/* --- the choice --- */

/* Cycles of an image, with one vector multiply-add per cycle, what the transforms of 16 channels of
 * a tile take (measured), and the weights read at `images` images a time. */
static double cost(const tk__conv *g, tk__conv_way way, size_t images)
{
    enum { WEIGHT_BYTES_PER_CYCLE = 8 };
    const double ic = (double)g->ic / TK__LANES, oc = (double)g->oc / TK__LANES;
    const double product = ic * oc * TK__LANES;
    const size_t m = way;
    const double points = tk__is_winograd(way) ? (double)points_of(m) : (double)(g->ky * g->kx);
    const double weights = points * product * 64 / WEIGHT_BYTES_PER_CYCLE / (double)images;
    if (way == TK__DIRECT) return (double)(g->oh * g->ow) * points * product + weights;
    if (way == TK__BY_POSITION) return tk__positions_cost(g) + weights;
    const double tiles = (double)(tk__div_up(g->oh, m) * tk__div_up(g->ow, m));
    const double transforms = m == 2 ? 70 * ic + 60 * oc : 200 * ic + 150 * oc;
    return tiles * (points * product + transforms) + weights;
}

static bool can(const tk__conv *g, tk__conv_way way)
{
    if (way == TK__BY_POSITION) return !g->bf16; /* which it lacks, and others gain more by */
    if (!tk__is_winograd(way)) return true;
    return g->ky == 3 && g->kx == 3 && g->stride == 1 && g->ic % TK__LANES == 0 &&
           g->oc % TK__LANES == 0 && g->ic <= TK__MAX_C && g->oc <= TK__MAX_C;
}

tk__conv_way tk__conv_choose(const tk__conv *geo, size_t images)
{
    static const tk__conv_way ways[] = {TK__BY_POSITION, TK__WINOGRAD_2, TK__WINOGRAD_4};
    tk__conv_way best = TK__DIRECT;
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
        if (can(geo, ways[i]) && cost(geo, ways[i], images) < cost(geo, best, images))
            best = ways[i];
    return best;
}
