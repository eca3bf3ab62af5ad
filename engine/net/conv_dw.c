/* The weight gradient: dW = patches^T dY, a product whose long side, the pixels, is summed over.
 *
 * Tasks are slices of K (rows of dW) times chunks of pixels. A slice is written by one task per
 * chunk; with several chunks each has its own partial dW, and these are added in order. */
#include <string.h>

#include "net/positions.h"
#include "net/winograd.h"

enum {
    SLICE = 224,        /* rows of dW a task owns, at most */
    BLOCK_PIXELS = 256, /* pixels whose patches are held at a time */
    PAD = 16,
    STRIP = 16, /* pixels on their way to bfloat16, an even number */
};

typedef struct dw_state {
    const tk__exec *ex;
    tk__conv geo;
    tk__input in;
    const float *dy;
    float *dw; /* [chunks][k][oc] */
    size_t k, slice, slices;
    size_t pixels, chunk, chunks;
    size_t most_chunks; /* grows with the number of images, which `chunks` need not */
} dw_state;

size_t tk__conv_dw_scratch(void)
{
    return (size_t)BLOCK_PIXELS * (TK__NR_MAX + SLICE + PAD);
}

static dw_state plan(const tk__exec *ex, const tk__conv *geo)
{
    dw_state s = {.ex = ex,
                  .geo = *geo,
                  .k = geo->ky * geo->kx * geo->ic,
                  .pixels = geo->n * geo->oh * geo->ow};
    const size_t threads = tk_pool_threads(ex->pool), want = 4 * threads;
    s.slices = tk__div_up(s.k, SLICE);
    s.most_chunks =
        tk__min_size(tk__div_up(want, s.slices), tk__div_up(s.pixels, (size_t)4 * BLOCK_PIXELS));
    s.chunk = tk__div_up(s.pixels, s.most_chunks);
    s.chunks = tk__div_up(s.pixels, s.chunk);
    /* few tasks: narrower slices, until every thread has as many */
    while (s.slices * s.chunks < want && s.slices * s.chunks % threads != 0 && s.slices < s.k)
        s.slices++;
    s.slice = tk__div_up(s.k, s.slices);
    s.slices = tk__div_up(s.k, s.slice);
    return s;
}

/* Two pixels a word, as mixed.h says: their patches (in the first half of the memory; floats pass
 * through the second), and columns j.. of their gradients. */
static void pair_patches(const dw_state *s, size_t p, size_t count, size_t k0, size_t pitch,
                         float *patches)
{
    float *strip = patches + (size_t)BLOCK_PIXELS / 2 * (SLICE + PAD);
    uint32_t *out = (uint32_t *)patches;
    for (size_t q = 0; q < count; q += STRIP) {
        const size_t rows = tk__min_size(STRIP, count - q);
        s->ex->kn->im2col(&s->geo, &s->in, p + q, rows, k0, pitch - PAD, strip, pitch);
        for (size_t r = 0; r < rows; r += 2, out += pitch)
            s->ex->mixed->pair(pitch - PAD, strip + r * pitch,
                               r + 1 < rows ? strip + (r + 1) * pitch : NULL, out);
    }
}

static void pair_dy(const dw_state *s, size_t p, size_t count, size_t j, size_t width,
                    uint32_t *out)
{
    const size_t n = s->geo.oc;
    const float *dy = s->dy + p * n + j;
    for (size_t q = 0; q < count; q += 2, dy += 2 * n, out += width)
        s->ex->mixed->pair(width, dy, q + 1 < count ? dy + n : NULL, out);
}

/* accumulate() for some pixels, of bfloat16 operands. */
static void mixed_accumulate(const dw_state *s, float *panel, float *patches, size_t k0,
                             size_t rows, size_t p, size_t count, bool more, float *dw)
{
    const size_t n = s->geo.oc, pitch = rows + PAD;
    pair_patches(s, p, count, k0, pitch, patches);
    for (size_t j = 0; j < n; j += TK__LOWP_NR) {
        const size_t width = tk__lowp_width(n - j);
        pair_dy(s, p, count, j, width, (uint32_t *)panel);
        s->ex->mixed->lowp->gemm(&(tk__lowp_gemm){.m = rows,
                                                  .n = width,
                                                  .segments = tk__div_up(count, 2),
                                                  .steps = 1,
                                                  .a = (const unsigned char *)patches,
                                                  .pitch = sizeof *patches,
                                                  .segment_pitch = pitch * sizeof *patches,
                                                  .b = (const unsigned char *)panel,
                                                  .out_kind = TK__SUMS,
                                                  .accumulate = more,
                                                  .out = dw + k0 * n + j,
                                                  .ldo = n});
    }
}

/* dw[k0..k1)[oc] (+)= the sum over pixels p0..p1 of patch x dy. */
static void accumulate(const dw_state *s, size_t thread, size_t k0, size_t k1, size_t p0, size_t p1,
                       float *dw)
{
    const tk__kernels *kn = s->ex->kn;
    const size_t n = s->geo.oc, rows = k1 - k0, pitch = rows + PAD;
    float *panel = s->ex->scratch + thread * s->ex->scratch_each;
    float *patches = panel + (size_t)BLOCK_PIXELS * TK__NR_MAX;
    const size_t block = tk__div_up(p1 - p0, tk__div_up(p1 - p0, BLOCK_PIXELS));
    for (size_t p = p0; p < p1; p += block) {
        const size_t count = tk__min_size(block, p1 - p);
        if (s->geo.bf16) {
            mixed_accumulate(s, panel, patches, k0, rows, p, count, p > p0, dw);
            continue;
        }
        kn->im2col(&s->geo, &s->in, p, count, k0, rows, patches, pitch);
        for (size_t j = 0; j < n; j += kn->nr) {
            const size_t cols = tk__min_size(kn->nr, n - j), width = tk__panel_width(kn, cols);
            for (size_t q = 0; q < count; q++) {
                memcpy(panel + q * width, s->dy + (p + q) * n + j, cols * sizeof *panel);
                memset(panel + q * width + cols, 0, (width - cols) * sizeof *panel);
            }
            kn->gemm(&(tk__gemm){.m = rows,
                                 .n = cols,
                                 .k = count,
                                 .a = patches,
                                 .rs = 1,
                                 .cs = pitch,
                                 .b = panel,
                                 .ldb = width,
                                 .c = dw + k0 * n + j,
                                 .ldc = n,
                                 .accumulate = p > p0});
        }
    }
}

static void dw_task(void *ctx, size_t task, size_t thread)
{
    const dw_state *s = ctx;
    const size_t chunk = task / s->slices, k0 = task % s->slices * s->slice;
    const size_t p0 = chunk * s->chunk;
    accumulate(s, thread, k0, tk__min_size(k0 + s->slice, s->k), p0,
               tk__min_size(p0 + s->chunk, s->pixels), s->dw + chunk * s->k * s->geo.oc);
}

typedef struct sum_state {
    const tk__kernels *kn;
    const float *partials;
    float *dw;
    size_t count, piece, chunks;
} sum_state;

static void sum_task(void *ctx, size_t task, size_t thread)
{
    const sum_state *s = ctx;
    (void)thread;
    const size_t at = task * s->piece, n = tk__min_size(s->piece, s->count - at);
    memcpy(s->dw + at, s->partials + at, n * sizeof *s->dw);
    for (size_t c = 1; c < s->chunks; c++)
        s->kn->add(n, s->dw + at, s->partials + c * s->count + at);
}

size_t tk__conv_partials(const tk__exec *ex, const tk__conv *geo)
{
    if (tk__is_winograd(geo->way)) return tk__wino_partials(ex, geo, geo->way);
    const dw_state s = plan(ex, geo);
    return s.most_chunks > 1 ? s.most_chunks * s.k * geo->oc : 0;
}

void tk__conv_dw(const tk__exec *ex, const tk__conv *geo, const tk__input *in, const float *dy,
                 float *dw, float *partials)
{
    if (geo->way == TK__BY_POSITION && tk__positions_suit_dw(geo)) {
        tk__positions_dw(ex, geo, in, dy, dw);
        return;
    }
    if (tk__is_winograd(geo->way)) {
        tk__wino_dw(ex, geo, geo->way, in, dy, dw, partials);
        return;
    }
    dw_state s = plan(ex, geo);
    s.in = *in;
    s.dy = dy;
    s.dw = s.chunks > 1 ? partials : dw;
    tk_pool_run(ex->pool, s.slices * s.chunks, dw_task, &s);
    if (s.chunks <= 1) return;
    sum_state sum = {.kn = ex->kn,
                     .partials = partials,
                     .dw = dw,
                     .count = s.k * geo->oc,
                     .piece = 4096,
                     .chunks = s.chunks};
    tk_pool_run(ex->pool, tk__div_up(sum.count, sum.piece), sum_task, &sum);
}

/* One slice of dW for all images in turn: no two tasks share a square. */
typedef struct squares_state {
    dw_state dw;
    float *squares;
} squares_state;

static void squares_task(void *ctx, size_t task, size_t thread)
{
    const squares_state *q = ctx;
    const dw_state *s = &q->dw;
    const size_t n = s->geo.oc, pixels = s->geo.oh * s->geo.ow;
    const size_t k0 = task * s->slice, k1 = tk__min_size(k0 + s->slice, s->k);
    for (size_t i = 0; i < s->geo.n; i++) {
        accumulate(s, thread, k0, k1, i * pixels, (i + 1) * pixels, s->dw);
        s->ex->kn->add_squares((k1 - k0) * n, q->squares + k0 * n, s->dw + k0 * n);
    }
}

void tk__conv_dw_squares(const tk__exec *ex, const tk__conv *geo, const tk__input *in,
                         const float *dy, float *one, float *squares)
{
    squares_state q = {.dw = plan(ex, geo), .squares = squares};
    q.dw.geo.bf16 = 0;
    q.dw.in = *in;
    q.dw.dy = dy;
    q.dw.dw = one;
    tk_pool_run(ex->pool, q.dw.slices, squares_task, &q);
}
