/* Convolution: packing of weights, forward, and the data gradient, which is a forward convolution
 * of dy with flipped weights, one for each phase of the stride. */
#include "net/conv.h"

#include <assert.h>
#include <string.h>

#include "net/positions.h"
#include "net/winograd.h"

enum {
    BLOCK_ROWS = 168, /* patch rows a task holds: a multiple of every register tile's height */
    BLOCK_K = 256,    /* patch columns it holds: panel and tile then fit the first cache */
    K_PAD = 16,       /* keeps rows off each other's cache sets */
    ROUND_ROWS = 8,   /* patch rows on their way to bfloat16 */
};

/* Blocks of nearly equal size. */
size_t tk__k_block(size_t k)
{
    return tk__div_up(tk__div_up(k, tk__div_up(k, BLOCK_K)), TK__LANES) * TK__LANES;
}

/* --- packing --- */

static size_t pack_size(size_t k, size_t n)
{
    return k * tk__div_up(n, TK__LANES) * TK__LANES;
}

size_t tk__conv_pack_size(const tk__conv *geo)
{
    if (tk__is_winograd(geo->way)) return tk__wino_pack_size(geo->way, geo->ic, geo->oc);
    return pack_size(geo->ky * geo->kx * geo->ic, geo->oc);
}

size_t tk__conv_dx_pack_size(const tk__conv *geo)
{
    if (tk__is_winograd(geo->way)) return tk__wino_pack_size(geo->way, geo->oc, geo->ic);
    return pack_size(geo->ky * geo->kx * geo->oc, geo->ic);
}

/* A matrix [k][n], packed. */
typedef struct pack_job {
    const tk__exec *ex;
    bool bf16; /* rows 2p and 2p + 1 of a tap share words; without scale */
    size_t k, n;
    size_t count, rows; /* k = count of taps * rows */
    tk__taps taps;
    float *packed;
} pack_job;

static void pack_straight(const tk__taps *taps, const float *src, size_t rows, size_t j0,
                          size_t cols, size_t width, float *out)
{
    for (size_t p = 0; p < rows; p++, out += width) {
        memcpy(out, src + p * taps->rs, cols * sizeof *out);
        for (size_t j = 0; taps->scale != NULL && j < cols; j++)
            out[j] *= taps->scale[j0 + j];
        for (size_t j = cols; j < width; j++)
            out[j] = 0.0f;
    }
}

/* Columns lie apart, rows beside each other: 16 x 16 at a time, and what is left one by one. */
static void pack_transposed(const tk__kernels *kn, const float *src, size_t cs, size_t all,
                            size_t cols, size_t width, float *out)
{
    const size_t rows = all / TK__LANES * TK__LANES, whole = cols / TK__LANES * TK__LANES;
    for (size_t p = 0; p < rows; p += TK__LANES)
        for (size_t j = 0; j < whole; j += TK__LANES)
            kn->transpose(src + j * cs + p, cs, out + p * width + j, width);
    for (size_t p = 0; p < all; p++)
        for (size_t j = p < rows ? whole : 0; j < width; j++)
            out[p * width + j] = j < cols ? src[j * cs + p] : 0.0f;
}

void tk__pack_piece(const tk__kernels *kn, const tk__taps *taps, size_t t, size_t p0, size_t rows,
                    size_t j0, size_t cols, float *out)
{
    const float *src = taps->tap[t] + p0 * taps->rs + j0 * taps->cs;
    const size_t width = tk__panel_width(kn, cols);
    if (taps->cs == 1)
        pack_straight(taps, src, rows, j0, cols, width, out);
    else
        pack_transposed(kn, src, taps->cs, rows, cols, width, out);
}

static void pack_straight_pairs(const pack_job *job, const float *src, size_t cols, uint32_t *out)
{
    const size_t rs = job->taps.rs;
    for (size_t p = 0; p < job->rows; p += 2, out += cols, src += 2 * rs)
        job->ex->mixed->pair(cols, src, p + 1 < job->rows ? src + rs : NULL, out);
}

static void pack_transposed_pairs(const pack_job *job, const float *src, size_t cols, uint32_t *out)
{
    const size_t cs = job->taps.cs;
    float block[TK__LANES * TK__LANES];
    for (size_t p = 0; p < job->rows; p += TK__LANES)
        for (size_t j = 0; j < cols; j += TK__LANES) {
            job->ex->kn->transpose(src + j * cs + p, cs, block, TK__LANES);
            for (size_t r = 0; r < TK__LANES; r += 2)
                job->ex->mixed->pair(TK__LANES, block + r * TK__LANES, block + (r + 1) * TK__LANES,
                                     out + (p + r) / 2 * cols + j);
        }
}

/* tk__pack_piece() of a whole tap, in words of two rows. */
static void pack_pairs(const pack_job *job, size_t tap, size_t j0, size_t cols)
{
    const float *src = job->taps.tap[tap] + j0 * job->taps.cs;
    uint32_t *out =
        (uint32_t *)job->packed + j0 * tk__div_up(job->k, 2) + tap * (job->rows / 2) * cols;
    assert(job->taps.scale == NULL && (job->count == 1 || job->rows % 2 == 0));
    if (job->taps.cs == 1)
        pack_straight_pairs(job, src, cols, out);
    else
        pack_transposed_pairs(job, src, cols, out);
}

static void pack_task(void *ctx, size_t task, size_t thread)
{
    const pack_job *job = ctx;
    (void)thread;
    const size_t nr = tk__conv_nr(job->ex, job->bf16), j0 = task / job->count * nr;
    const size_t tap = task % job->count, cols = tk__min_size(nr, job->n - j0);
    if (job->bf16) {
        pack_pairs(job, tap, j0, cols);
        return;
    }
    tk__pack_piece(job->ex->kn, &job->taps, tap, 0, job->rows, j0, cols,
                   job->packed + j0 * job->k +
                       tap * job->rows * tk__panel_width(job->ex->kn, cols));
}

static void pack_run(const tk__exec *ex, pack_job *job)
{
    job->ex = ex;
    job->k = job->count * job->rows;
    tk_pool_run(ex->pool, tk__div_up(job->n, tk__conv_nr(ex, job->bf16)) * job->count, pack_task,
                job);
}

static void pack_direct(const tk__exec *ex, bool bf16, size_t k, size_t n, const float *w,
                        const float *scale, float *packed)
{
    /* pieces of K as `taps`, so that narrow matrices are spread over threads too */
    size_t taps = 1;
    while (taps < 8 && k % (taps * 4) == 0 && k / (taps * 2) >= 64)
        taps *= 2;
    pack_job job = {.bf16 = bf16,
                    .n = n,
                    .count = taps,
                    .rows = k / taps,
                    .taps = {.rs = n, .cs = 1, .scale = scale},
                    .packed = packed};
    for (size_t t = 0; t < taps; t++)
        job.taps.tap[t] = w + t * job.rows * n;
    pack_run(ex, &job);
}

/* Tap t of the weights, turned round by half a turn for the data gradient. */
static void pack_winograd(const tk__exec *ex, const tk__conv *geo, const float *w,
                          const float *scale, bool turned, float *packed)
{
    const float *tap[9];
    for (size_t t = 0; t < 9; t++)
        tap[t] = w + (turned ? 8 - t : t) * geo->ic * geo->oc;
    if (turned)
        tk__wino_pack(ex, geo->bf16, geo->way, geo->oc, geo->ic, tap, 1, geo->oc, scale, packed);
    else
        tk__wino_pack(ex, geo->bf16, geo->way, geo->ic, geo->oc, tap, geo->oc, 1, scale, packed);
}

void tk__conv_pack(const tk__exec *ex, const tk__conv *geo, const float *w, const float *scale,
                   float *packed)
{
    if (tk__is_winograd(geo->way))
        pack_winograd(ex, geo, w, scale, false, packed);
    else
        pack_direct(ex, geo->bf16, geo->ky * geo->kx * geo->ic, geo->oc, w, scale, packed);
}

/* --- forward --- */

typedef struct conv_state {
    const tk__exec *ex;
    const tk__conv_job *job;
    size_t m, k, kc; /* rows, columns of the patches; columns held at a time */
    size_t rows;     /* per block */
    size_t panels;   /* per task */
    size_t column_tasks;
} conv_state;

size_t tk__conv_block_rows(const tk__conv *geo)
{
    if (tk__is_winograd(geo->way)) return tk__wino_block_rows(geo, geo->way);
    if (geo->way == TK__BY_POSITION) return tk__positions_block_rows(geo);
    return tk__min_size(geo->n * geo->oh * geo->ow, BLOCK_ROWS);
}

size_t tk__conv_scratch(const tk__conv *geo)
{
    /* patches, and the widest output block that is scattered (data gradient: ic columns) */
    const size_t widest = geo->ic > geo->oc ? geo->ic : geo->oc;
    const size_t forward = BLOCK_ROWS * (BLOCK_K + K_PAD + widest), dw = tk__conv_dw_scratch();
    const size_t direct = forward > dw ? forward : dw;
    if (tk__is_winograd(geo->way)) return tk__max_size(direct, tk__wino_scratch(geo, geo->way));
    if (geo->way == TK__BY_POSITION) return tk__max_size(direct, tk__positions_scratch(geo));
    return direct;
}

/* Adds or copies a block of rows to their places in the finer output. */
static void scatter(const tk__conv_job *job, const float *rows, size_t m0, size_t m1)
{
    const tk__conv *g = &job->geo;
    for (size_t m = m0; m < m1; m++, rows += g->oc) {
        const size_t ox = m % g->ow, oy = m / g->ow % g->oh, img = m / (g->ow * g->oh);
        const size_t y = oy * job->out_step + job->out_y, x = ox * job->out_step + job->out_x;
        float *to = job->y + ((img * job->out_h + y) * job->out_w + x) * g->oc;
        if (job->accumulate)
            for (size_t j = 0; j < g->oc; j++)
                to[j] += rows[j];
        else
            memcpy(to, rows, g->oc * sizeof *to);
    }
}

/* Patches of bfloat16 numbers, an odd last one filled up with a zero. They take the first half of
 * their memory; floats pass through the second, a few rows at a time. */
static void round_patches(const conv_state *s, size_t m0, size_t m1, size_t k0, size_t kc,
                          float *patches)
{
    const size_t pitch = kc + K_PAD;
    float *strip = patches + (size_t)BLOCK_ROWS / 2 * (BLOCK_K + K_PAD);
    uint16_t *out = (uint16_t *)patches;
    for (size_t m = m0; m < m1; m += ROUND_ROWS) {
        const size_t rows = tk__min_size(ROUND_ROWS, m1 - m);
        s->ex->kn->im2col(&s->job->geo, &s->job->in, m, rows, k0, kc, strip, pitch);
        for (size_t r = 0; r < rows; r++, out += pitch + pitch % 2) {
            s->ex->mixed->lowp->load(kc, strip + r * pitch, 0, out);
            if (kc % 2 == 1) out[kc] = 0;
        }
    }
}

/* Columns j.. of the block's rows, as far as columns k0.. of the patches go. */
static void mixed_product(const conv_state *s, const float *patches, size_t rows, size_t k0,
                          size_t kc, size_t j, float *out)
{
    const tk__conv_job *job = s->job;
    const size_t n = job->geo.oc, width = tk__lowp_width(n - j), pitch = kc + K_PAD;
    const uint32_t *packed = (const uint32_t *)job->packed;
    s->ex->mixed->lowp->gemm(&(tk__lowp_gemm){
        .m = rows,
        .n = width,
        .segments = 1,
        .steps = tk__div_up(kc, 2),
        .a = (const unsigned char *)patches,
        .pitch = (pitch + pitch % 2) * sizeof(uint16_t),
        .b = (const unsigned char *)(packed + j * tk__div_up(s->k, 2) + k0 / 2 * width),
        .out_kind = TK__SUMS,
        .accumulate = k0 > 0 || (job->out_step == 0 && job->accumulate),
        .out = out + j,
        .ldo = n});
}

/* What this thread is to copy in after columns k0.. of the task's rows: their next columns, or the
 * first ones of the task that it takes up next if all are equally fast. Each of the products
 * between asks for a share of it. Only where rows are read as they lie. */
static void look_ahead(const conv_state *s, tk__gemm *g, size_t task, size_t k0, size_t panel)
{
    const tk__conv *geo = &s->job->geo;
    const size_t next = (task + tk_pool_threads(s->ex->pool)) / s->column_tasks;
    const bool same = k0 + s->kc < s->k;
    const size_t m = (same ? task / s->column_tasks : next) * s->rows, k = same ? k0 + s->kc : 0;
    if (geo->ky * geo->kx > 1 || geo->stride > 1 || m + g->m > s->m) return;
    const size_t lines = tk__div_up(tk__min_size(s->kc, s->k - k), TK__LANES);
    const size_t each = tk__div_up(lines, s->panels), begin = panel * each;
    if (begin >= lines) return;
    g->ahead = s->job->in.x + m * geo->ic + k + begin * TK__LANES;
    g->ahead_pitch = geo->ic;
    g->ahead_lines = tk__min_size(each, lines - begin);
}

static void conv_task(void *ctx, size_t task, size_t thread)
{
    const conv_state *s = ctx;
    const tk__conv_job *job = s->job;
    const tk__kernels *kn = s->ex->kn;
    const size_t nr = tk__conv_nr(s->ex, job->geo.bf16);
    const size_t n = job->geo.oc, block = task / s->column_tasks;
    const size_t m0 = block * s->rows, m1 = tk__min_size(m0 + s->rows, s->m);
    const size_t j_begin = task % s->column_tasks * s->panels * nr;
    const size_t j_end = tk__min_size(j_begin + s->panels * nr, n);
    float *patches = s->ex->scratch + thread * s->ex->scratch_each;
    float *held = patches + (size_t)BLOCK_ROWS * (BLOCK_K + K_PAD);
    const bool direct = job->out_step == 0;
    float *out = direct ? job->y + m0 * n : held;

    for (size_t k0 = 0; k0 < s->k; k0 += s->kc) {
        const size_t kc = tk__min_size(s->kc, s->k - k0), pitch = kc + K_PAD;
        const bool first = k0 == 0, last = k0 + kc == s->k;
        if (job->geo.bf16) {
            round_patches(s, m0, m1, k0, kc, patches);
            for (size_t j = j_begin; j < j_end; j += nr)
                mixed_product(s, patches, m1 - m0, k0, kc, j, out);
            continue;
        }
        kn->im2col(&job->geo, &job->in, m0, m1 - m0, k0, kc, patches, pitch);
        for (size_t j = j_begin; j < j_end; j += nr) {
            const size_t cols = tk__min_size(nr, n - j), width = tk__panel_width(kn, cols);
            tk__gemm g = {.m = m1 - m0,
                          .n = cols,
                          .k = kc,
                          .a = patches,
                          .rs = pitch,
                          .cs = 1,
                          .b = job->packed + j * s->k + k0 * width,
                          .ldb = width,
                          .c = out + j,
                          .ldc = n,
                          .accumulate = !first || (direct && job->accumulate),
                          .bias = last && job->bias != NULL ? job->bias + j : NULL,
                          .residual =
                              last && job->residual != NULL ? job->residual + m0 * n + j : NULL,
                          .relu = last && job->relu,
                          .far = direct && (first || job->residual != NULL)};
            look_ahead(s, &g, task, k0, (j - j_begin) / nr);
            kn->gemm(&g);
        }
    }
    if (!direct) scatter(job, held, m0, m1);
    if (job->post != NULL) job->post(job->post_ctx, block, m0, m1);
}

/* Few rows (one image, late layers): columns are spread over tasks too, at the price of copying the
 * patches once per task. Never with `post`, which wants whole rows. */
static void plan_tasks(conv_state *s)
{
    const size_t nr = tk__conv_nr(s->ex, s->job->geo.bf16);
    const size_t panels = tk__div_up(s->job->geo.oc, nr);
    const size_t want = (size_t)4 * tk_pool_threads(s->ex->pool);
    s->rows = tk__conv_block_rows(&s->job->geo);
    s->panels = panels;
    if (s->job->post == NULL && s->job->out_step == 0 && tk__div_up(s->m, s->rows) < want) {
        const size_t blocks = tk__min_size(want, tk__div_up(s->m, 56));
        s->rows = tk__min_size(BLOCK_ROWS, tk__div_up(tk__div_up(s->m, blocks), 14) * 14);
        const size_t splits = tk__div_up(want, tk__div_up(s->m, s->rows));
        s->panels = tk__div_up(panels, tk__min_size(splits, panels));
    }
    s->column_tasks = tk__div_up(panels, s->panels);
}

void tk__conv_run(const tk__exec *ex, const tk__conv_job *job)
{
    const tk__conv *g = &job->geo;
    if (tk__is_winograd(g->way)) {
        tk__wino_run(ex, job, g->way);
        return;
    }
    if (g->way == TK__BY_POSITION) {
        tk__positions_run(ex, job);
        return;
    }
    conv_state s = {.ex = ex, .job = job, .m = g->n * g->oh * g->ow, .k = g->ky * g->kx * g->ic};
    s.kc = tk__k_block(s.k);
    plan_tasks(&s);
    tk_pool_run(ex->pool, tk__div_up(s.m, s.rows) * s.column_tasks, conv_task, &s);
}

void tk__conv_run_once(const tk__exec *ex, const tk__conv_job *job, const float *w, float *packed)
{
    const tk__conv *g = &job->geo;
    tk__conv_job once = *job;
    tk__taps taps = {.rs = g->oc, .cs = 1};
    if (g->way == TK__BY_POSITION) {
        assert(g->ky * g->kx <= sizeof taps.tap / sizeof *taps.tap);
        for (size_t t = 0; t < g->ky * g->kx; t++)
            taps.tap[t] = w + t * g->ic * g->oc;
        once.taps = &taps;
    } else {
        tk__conv_pack(ex, g, w, NULL, packed);
        once.packed = packed;
    }
    tk__conv_run(ex, &once);
}

/* --- data gradient --- */

/* Along one axis, input position s * a + p is touched by tap r from output a + (p + pad - r) / s,
 * for the taps r that make the division exact. In rising order of that offset they are r = last,
 * last - s,
 * ..., and the first offset is -pad_out. */
typedef struct phase {
    size_t taps, last;
    ptrdiff_t pad_out;
    size_t size; /* input positions of this phase */
} phase;

static phase phase_of(size_t p, size_t k, size_t stride, size_t pad, size_t size)
{
    phase ph = {.size = size > p ? (size - p - 1) / stride + 1 : 0};
    for (size_t r = 0; r < k; r++)
        if ((p + pad + k * stride - r) % stride == 0) {
            ph.taps++;
            ph.last = r;
        }
    if (ph.taps > 0)
        ph.pad_out = -(((ptrdiff_t)(p + pad) - (ptrdiff_t)ph.last) / (ptrdiff_t)stride);
    return ph;
}

static void dx_phase(const tk__exec *ex, const tk__conv *g, const float *w, const float *dy,
                     float *dx, bool accumulate, float *packed, size_t py, size_t px)
{
    const size_t s = g->stride;
    const phase y = phase_of(py, g->ky, s, (size_t)g->pad_y, g->ih);
    const phase x = phase_of(px, g->kx, s, (size_t)g->pad_x, g->iw);
    if (y.taps * x.taps * y.size * x.size == 0) return;
    tk__taps taps = {.rs = 1, .cs = g->oc};
    for (size_t ty = 0; ty < y.taps; ty++)
        for (size_t tx = 0; tx < x.taps; tx++)
            taps.tap[ty * x.taps + tx] =
                w + ((y.last - ty * s) * g->kx + x.last - tx * s) * g->ic * g->oc;
    tk__conv_job job = {.geo = {.n = g->n,
                                .ih = g->oh,
                                .iw = g->ow,
                                .ic = g->oc,
                                .oh = y.size,
                                .ow = x.size,
                                .oc = g->ic,
                                .ky = y.taps,
                                .kx = x.taps,
                                .stride = 1,
                                .pad_y = y.pad_out,
                                .pad_x = x.pad_out,
                                .way = g->way,
                                .bf16 = g->bf16},
                        .in = {.x = dy},
                        .y = dx,
                        .accumulate = accumulate};
    if (s > 1) {
        job.out_step = s;
        job.out_y = py;
        job.out_x = px;
        job.out_h = g->ih;
        job.out_w = g->iw;
    }
    if (g->way == TK__BY_POSITION) {
        job.taps = &taps;
    } else {
        pack_job pack = {.bf16 = g->bf16,
                         .n = g->ic,
                         .count = y.taps * x.taps,
                         .rows = g->oc,
                         .taps = taps,
                         .packed = packed};
        pack_run(ex, &pack);
        job.packed = packed;
    }
    tk__conv_run(ex, &job);
}

/* Stride 1: one convolution of dy, wholly by Winograd. */
static void dx_winograd(const tk__exec *ex, const tk__conv *g, const float *w, const float *dy,
                        float *dx, bool accumulate, float *packed)
{
    tk__conv_job job = {
        .geo = *g, .in = {.x = dy}, .packed = packed, .y = dx, .accumulate = accumulate};
    job.geo.ih = g->oh, job.geo.iw = g->ow, job.geo.ic = g->oc;
    job.geo.oh = g->ih, job.geo.ow = g->iw, job.geo.oc = g->ic;
    job.geo.pad_y = 2 - g->pad_y, job.geo.pad_x = 2 - g->pad_x;
    pack_winograd(ex, g, w, NULL, true, packed);
    tk__conv_run(ex, &job);
}

void tk__conv_dx(const tk__exec *ex, const tk__conv *g, const float *w, const float *dy, float *dx,
                 bool accumulate, float *packed)
{
    if (tk__is_winograd(g->way)) {
        dx_winograd(ex, g, w, dy, dx, accumulate, packed);
        return;
    }
    assert(g->ky == g->kx && g->pad_y == g->pad_x && g->pad_y >= 0 && g->ky * g->kx <= 49);
    /* phases without a tap (1x1 with a stride) leave their pixels alone */
    if (g->stride > g->ky && !accumulate) memset(dx, 0, g->n * g->ih * g->iw * g->ic * sizeof *dx);
    for (size_t py = 0; py < g->stride; py++)
        for (size_t px = 0; px < g->stride; px++)
            dx_phase(ex, g, w, dy, dx, accumulate, packed, py, px);
}
