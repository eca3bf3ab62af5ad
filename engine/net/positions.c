/* Convolutions by position: forward (which is the data gradient too, with turned weights) and the
 * weight gradient. The products are small, so that everything hangs on the order of the loops: a
 * piece of weights is the outer loop, and is read from memory once for a block of images, which
 * stay in the cache with their outputs. */
#include "net/positions.h"

#include <string.h>

enum {
    BLOCK_FLOATS = 136 * 1024, /* inputs that a task holds, but for one image at least */
    POST_ROWS = 64,            /* of a block of `post` */
    SKEW = 16,                 /* keeps images off each other's cache sets */
    SLICE = 128,               /* input channels of the weight gradient that a task owns */
    DW_FLOATS = 96 * 1024,     /* inputs that such a task holds, likewise */
};

/* One axis of a geometry: output position o, tap t reads input position o * stride + t - pad. */
typedef struct axis {
    size_t taps, in, out, stride;
    ptrdiff_t pad;
} axis;

static axis axis_y(const tk__conv *g)
{
    return (axis){g->ky, g->ih, g->oh, g->stride, g->pad_y};
}

static axis axis_x(const tk__conv *g)
{
    return (axis){g->kx, g->iw, g->ow, g->stride, g->pad_x};
}

static ptrdiff_t input_of(const axis *a, size_t o, size_t t)
{
    return (ptrdiff_t)(o * a->stride + t) - a->pad;
}

static bool inside(const axis *a, size_t o, size_t t)
{
    const ptrdiff_t i = input_of(a, o, t);
    return t < a->taps && i >= 0 && i < (ptrdiff_t)a->in;
}

/* Taps inside, over all positions. */
static size_t taps_inside(const axis *a)
{
    size_t n = 0;
    for (size_t o = 0; o < a->out; o++)
        for (size_t t = 0; t < a->taps; t++)
            n += inside(a, o, t);
    return n;
}

/* Positions from o on at which tap t is inside. */
static size_t run_length(const axis *a, size_t o, size_t t)
{
    size_t run = 0;
    while (o + run < a->out && inside(a, o + run, t))
        run++;
    return run;
}

/* A whole image as one patch: im2col then copies images. */
static tk__conv whole_image(const tk__conv *g)
{
    tk__conv w = *g;
    w.oh = w.ow = w.stride = 1;
    w.pad_y = w.pad_x = 0;
    w.ky = g->ih;
    w.kx = g->iw;
    return w;
}

static size_t image_floats(const tk__conv *g)
{
    return g->ih * g->iw * g->ic;
}

/* Images of so many floats that a block may hold. */
static size_t most_images(size_t images, size_t floats, size_t fit)
{
    return tk__min_size(images, tk__max_size(1, fit / floats));
}

/* Images per block, all of nearly equal size. Need not grow with the number of images. */
static size_t even_images(size_t images, size_t most)
{
    return tk__div_up(images, tk__div_up(images, most));
}

/* --- forward --- */

/* Where the output lies: position (oy, ox) of image i at y + i * image + oy * row + ox * pixel. */
typedef struct places {
    float *y;
    const float *residual;
    size_t image, row, pixel;
} places;

typedef struct run_state {
    const tk__exec *ex;
    const tk__conv_job *job;
    axis y, x;
    places to;
    size_t kc;             /* input channels multiplied at a time */
    size_t images, blocks; /* per block; of the batch */
    size_t panels, splits; /* per task; tasks per block */
} run_state;

/* What a task works on. */
typedef struct run_block {
    const run_state *s;
    size_t i0, images, pitch;
    const float *x; /* [images][pitch] */
    float *weights; /* a piece, where they do not come packed */
} run_block;

static size_t run_images(const tk__conv *g)
{
    return most_images(g->n, image_floats(g) + SKEW, BLOCK_FLOATS);
}

static size_t run_scratch(const tk__conv *g)
{
    return run_images(g) * (image_floats(g) + SKEW) + tk__k_block(g->ic) * TK__NR_MAX;
}

static places places_of(const tk__conv_job *job)
{
    const tk__conv *g = &job->geo;
    const bool finer = job->out_step > 0;
    const size_t step = finer ? job->out_step : 1, w = finer ? job->out_w : g->ow;
    const size_t at = finer ? (job->out_y * w + job->out_x) * g->oc : 0;
    return (places){.y = job->y + at,
                    .residual = job->residual != NULL ? job->residual + at : NULL,
                    .image = (finer ? job->out_h : g->oh) * w * g->oc,
                    .row = step * w * g->oc,
                    .pixel = step * g->oc};
}

/* Columns j.. of the block's images at one position: to zero, or bias, residual and ReLU. Products
 * of no terms do both. */
static void finish(const run_block *b, size_t oy, size_t ox, size_t j, bool zero)
{
    const tk__conv_job *job = b->s->job;
    const places *to = &b->s->to;
    const size_t at = b->i0 * to->image + oy * to->row + ox * to->pixel + j;
    const size_t cols = tk__min_size(b->s->ex->kn->nr, job->geo.oc - j);
    const bool residual = !zero && to->residual != NULL;
    b->s->ex->kn->gemm(&(tk__gemm){.m = b->images,
                                   .n = cols,
                                   .a = b->x,
                                   .cs = 1,
                                   .b = b->weights,
                                   .c = to->y + at,
                                   .ldc = to->image,
                                   .accumulate = !zero,
                                   .bias = zero || job->bias == NULL ? NULL : job->bias + j,
                                   .residual = residual ? to->residual + at : NULL,
                                   .relu = !zero && job->relu});
}

static void finish_all(const run_block *b, size_t j, bool zero)
{
    const tk__conv *g = &b->s->job->geo;
    for (size_t oy = 0; oy < g->oh; oy++)
        for (size_t ox = 0; ox < g->ow; ox++)
            finish(b, oy, ox, j, zero);
}

/* Adds the product `p`, which holds what all positions share, of a run of positions from (oy, ox)
 * on. Its rows are the images of one position or the positions of one image, whichever are more. */
static void run_positions(const run_block *b, tk__gemm *p, const float *x, size_t oy, size_t ox,
                          size_t run, size_t j)
{
    const places *to = &b->s->to;
    const size_t step = b->s->job->geo.stride * b->s->job->geo.ic;
    float *y = to->y + b->i0 * to->image + oy * to->row + ox * to->pixel + j;
    const bool by_image = run > b->images;
    p->m = by_image ? run : b->images;
    p->rs = by_image ? step : b->pitch;
    p->ldc = by_image ? to->pixel : to->image;
    for (size_t i = 0; i < (by_image ? b->images : run); i++) {
        p->a = x + i * (by_image ? b->pitch : step);
        p->c = y + i * (by_image ? to->image : to->pixel);
        b->s->ex->kn->gemm(p);
    }
}

/* Input channels k0..k0+k-1 of tap (ty, tx), columns j.. */
static void run_piece(const run_block *b, size_t ty, size_t tx, size_t k0, size_t k, size_t j)
{
    const run_state *s = b->s;
    const tk__conv_job *job = s->job;
    const tk__conv *g = &job->geo;
    const size_t cols = tk__min_size(s->ex->kn->nr, g->oc - j), tap = ty * g->kx + tx;
    const size_t width = tk__panel_width(s->ex->kn, cols);
    tk__gemm p = {.n = cols, .k = k, .cs = 1, .b = b->weights, .ldb = width, .accumulate = true};
    if (job->taps != NULL)
        tk__pack_piece(s->ex->kn, job->taps, tap, k0, k, j, cols, b->weights);
    else
        p.b = job->packed + j * g->ky * g->kx * g->ic + (tap * g->ic + k0) * width;
    for (size_t oy = 0; oy < g->oh; oy++)
        for (size_t ox = 0, run; inside(&s->y, oy, ty) && ox < g->ow; ox += tk__max_size(run, 1)) {
            run = run_length(&s->x, ox, tx);
            if (run == 0) continue;
            const size_t iy = (size_t)input_of(&s->y, oy, ty);
            const size_t ix = (size_t)input_of(&s->x, ox, tx);
            run_positions(b, &p, b->x + (iy * g->iw + ix) * g->ic + k0, oy, ox, run, j);
        }
}

static bool ever_inside(const axis *a, size_t t)
{
    for (size_t o = 0; o < a->out; o++)
        if (inside(a, o, t)) return true;
    return false;
}

static void run_columns(const run_block *b, size_t j)
{
    const run_state *s = b->s;
    const tk__conv_job *job = s->job;
    const tk__conv *g = &job->geo;
    if (!job->accumulate) finish_all(b, j, true);
    for (size_t ty = 0; ty < g->ky; ty++)
        for (size_t tx = 0; ever_inside(&s->y, ty) && tx < g->kx; tx++)
            for (size_t k0 = 0; ever_inside(&s->x, tx) && k0 < g->ic; k0 += s->kc)
                run_piece(b, ty, tx, k0, tk__min_size(s->kc, g->ic - k0), j);
    if (job->bias != NULL || job->residual != NULL || job->relu) finish_all(b, j, false);
}

static void run_task(void *ctx, size_t task, size_t thread)
{
    const run_state *s = ctx;
    const tk__conv *g = &s->job->geo;
    const tk__kernels *kn = s->ex->kn;
    float *x = s->ex->scratch + thread * s->ex->scratch_each;
    const size_t i0 = task / s->splits * s->images, pitch = image_floats(g) + SKEW;
    const run_block b = {.s = s,
                         .i0 = i0,
                         .images = tk__min_size(s->images, g->n - i0),
                         .pitch = pitch,
                         .x = x,
                         .weights = x + s->images * pitch};
    const tk__conv whole = whole_image(g);
    kn->im2col(&whole, &s->job->in, i0, b.images, 0, image_floats(g), x, pitch);
    const size_t j0 = task % s->splits * s->panels * kn->nr;
    for (size_t j = j0; j < tk__min_size(j0 + s->panels * kn->nr, g->oc); j += kn->nr)
        run_columns(&b, j);
}

size_t tk__positions_block_rows(const tk__conv *g)
{
    const size_t pixels = g->oh * g->ow;
    return tk__min_size(g->n, tk__max_size(1, POST_ROWS / pixels)) * pixels;
}

static void post_task(void *ctx, size_t block, size_t thread)
{
    const run_state *s = ctx;
    const tk__conv *g = &s->job->geo;
    (void)thread;
    const size_t each = tk__positions_block_rows(g), m0 = block * each;
    s->job->post(s->job->post_ctx, block, m0, tk__min_size(m0 + each, g->n * g->oh * g->ow));
}

/* Tasks are blocks of images; few of them are split by columns, until every thread has as many. */
void tk__positions_run(const tk__exec *ex, const tk__conv_job *job)
{
    const tk__conv *g = &job->geo;
    const size_t threads = tk_pool_threads(ex->pool), panels = tk__div_up(g->oc, ex->kn->nr);
    run_state s = {.ex = ex,
                   .job = job,
                   .y = axis_y(g),
                   .x = axis_x(g),
                   .to = places_of(job),
                   .kc = tk__k_block(g->ic)};
    s.images = even_images(g->n, run_images(g));
    s.blocks = tk__div_up(g->n, s.images);
    s.splits = 1;
    while (s.blocks < 4 * threads && s.splits < panels && s.blocks * s.splits % threads != 0)
        s.splits++;
    s.panels = tk__div_up(panels, s.splits);
    s.splits = tk__div_up(panels, s.panels);
    tk_pool_run(ex->pool, s.blocks * s.splits, run_task, &s);
    if (job->post == NULL) return;
    const size_t rows = g->n * g->oh * g->ow;
    tk_pool_run(ex->pool, tk__div_up(rows, tk__positions_block_rows(g)), post_task, &s);
}

/* --- weight gradient --- */

/* dW[t] = the sum over the positions p that tap t is inside at, over the images: X_q' dY_p. A task
 * owns some rows (input channels) of every tap, all columns. */
typedef struct dw_state {
    const tk__exec *ex;
    const tk__conv *geo;
    const tk__input *in;
    const float *dy;
    float *dw;
    axis y, x;
    size_t slice, images;
} dw_state;

static size_t dw_rows(const tk__conv *g)
{
    return tk__div_up(g->ic, tk__div_up(g->ic, SLICE));
}

static size_t dw_images(const tk__conv *g)
{
    return most_images(g->n, g->ih * g->iw * (dw_rows(g) + SKEW), DW_FLOATS);
}

static size_t dw_scratch(const tk__conv *g)
{
    return dw_images(g) *
           (g->ih * g->iw * (dw_rows(g) + SKEW) + g->oh * g->ow * (size_t)TK__NR_MAX);
}

/* Columns j.. of dy for a block of images, as panels [position][image][width]. */
static void copy_panel(const dw_state *s, size_t i0, size_t images, size_t j, size_t cols,
                       float *panel)
{
    const tk__conv *g = s->geo;
    const size_t pixels = g->oh * g->ow, width = tk__panel_width(s->ex->kn, cols);
    for (size_t p = 0; p < pixels; p++)
        for (size_t i = i0; i < i0 + images; i++, panel += width) {
            memcpy(panel, s->dy + (i * pixels + p) * g->oc + j, cols * sizeof *panel);
            memset(panel + cols, 0, (width - cols) * sizeof *panel);
        }
}

/* A block of images of one tap. `product` holds all that is the same for every position. With
 * stride 1, positions beside each other are one product. */
static void dw_tap(const dw_state *s, size_t images, size_t ty, size_t tx, const float *x,
                   const float *dy, tk__gemm *product)
{
    const tk__conv *g = s->geo;
    for (size_t oy = 0; oy < g->oh; oy++)
        for (size_t ox = 0, run; inside(&s->y, oy, ty) && ox < g->ow; ox += tk__max_size(run, 1)) {
            run = run_length(&s->x, ox, tx);
            if (run == 0) continue;
            if (g->stride > 1) run = 1;
            const size_t iy = (size_t)input_of(&s->y, oy, ty);
            const size_t ix = (size_t)input_of(&s->x, ox, tx);
            product->k = run * images;
            product->a = x + (iy * g->iw + ix) * images * product->cs;
            product->b = dy + (oy * g->ow + ox) * images * product->ldb;
            s->ex->kn->gemm(product);
            product->accumulate = true;
        }
    if (product->accumulate) return;
    product->k = 0; /* the tap is never inside */
    s->ex->kn->gemm(product);
}

static void dw_block(const dw_state *s, size_t i0, size_t images, size_t c0, size_t rows,
                     float *scratch)
{
    const tk__conv *g = s->geo, whole = whole_image(g);
    const tk__kernels *kn = s->ex->kn;
    const size_t pitch = rows + SKEW, pixels = g->ih * g->iw;
    float *x = scratch, *dy = x + pixels * images * pitch;
    for (size_t q = 0; q < pixels; q++)
        kn->im2col(&whole, s->in, i0, images, q * g->ic + c0, rows, x + q * images * pitch, pitch);
    for (size_t j = 0; j < g->oc; j += kn->nr) {
        const size_t cols = tk__min_size(kn->nr, g->oc - j);
        copy_panel(s, i0, images, j, cols, dy);
        for (size_t t = 0; t < g->ky * g->kx; t++)
            dw_tap(s, images, t / g->kx, t % g->kx, x, dy,
                   &(tk__gemm){.m = rows,
                               .n = cols,
                               .rs = 1,
                               .cs = pitch,
                               .a = x,
                               .b = dy,
                               .ldb = tk__panel_width(kn, cols),
                               .c = s->dw + (t * g->ic + c0) * g->oc + j,
                               .ldc = g->oc,
                               .accumulate = i0 > 0});
    }
}

static void dw_task(void *ctx, size_t task, size_t thread)
{
    const dw_state *s = ctx;
    const size_t c0 = task * s->slice, rows = tk__min_size(s->slice, s->geo->ic - c0);
    for (size_t i0 = 0; i0 < s->geo->n; i0 += s->images)
        dw_block(s, i0, tk__min_size(s->images, s->geo->n - i0), c0, rows,
                 s->ex->scratch + thread * s->ex->scratch_each);
}

void tk__positions_dw(const tk__exec *ex, const tk__conv *geo, const tk__input *in, const float *dy,
                      float *dw)
{
    dw_state s = {.ex = ex,
                  .geo = geo,
                  .in = in,
                  .dy = dy,
                  .dw = dw,
                  .y = axis_y(geo),
                  .x = axis_x(geo),
                  .images = even_images(geo->n, dw_images(geo))};
    /* many threads take narrower slices, which hold less */
    const size_t slices =
        tk__min_size(2 * (size_t)tk_pool_threads(ex->pool), tk__div_up(geo->ic, 28));
    s.slice = tk__min_size(dw_rows(geo), tk__div_up(geo->ic, slices));
    tk_pool_run(ex->pool, tk__div_up(geo->ic, s.slice), dw_task, &s);
}

/* --- the choice --- */

size_t tk__positions_scratch(const tk__conv *geo)
{
    tk__conv back = *geo;
    back.ih = geo->oh, back.iw = geo->ow, back.ic = geo->oc;
    return tk__max_size(tk__max_size(run_scratch(geo), run_scratch(&back)), dw_scratch(geo));
}

/* Products of one pixel and one tap, of an image. */
static double products_of(const tk__conv *geo)
{
    const axis y = axis_y(geo), x = axis_x(geo);
    return (double)(taps_inside(&y) * taps_inside(&x));
}

bool tk__positions_suit_dw(const tk__conv *geo)
{
    /* a sum over few images is soon written: measured */
    const double all = (double)(geo->oh * geo->ow * geo->ky * geo->kx);
    return products_of(geo) * (1 + 10.0 / (double)even_images(geo->n, dw_images(geo))) < all;
}

double tk__positions_cost(const tk__conv *geo)
{
    const double products = products_of(geo);
    const double ic = (double)geo->ic, oc = (double)geo->oc / TK__LANES;
    /* each block of input channels reads the outputs and writes them */
    return products * oc * (ic + 8 * (double)tk__div_up(geo->ic, tk__k_block(geo->ic)));
}
