/* Preprocessing as torchvision has it (Resize, CenterCrop, ToTensor, Normalize), split in two: a
 * canvas of bytes, made once per image, and views cut from it, normalised to floats. */
#include <assert.h>
#include <math.h>
#include <stdbool.h>

#include "engine/image.h"
#include "engine/rng.h"
#include "resample_internal.h"

enum { MAX_RESIZE = 4096, CIFAR_PX = 32 };

tk_preproc tk_preproc_default(unsigned px)
{
    return (tk_preproc){
        .mode = TK_RESIZE_SHORT,
        .resize = px == CIFAR_PX ? px : (px * 16 + 7) / 14, /* 8/7, rounded */
        .crop = px,
        .mean = {0.485f, 0.456f, 0.406f},
        .std = {0.229f, 0.224f, 0.225f},
    };
}

tk_err tk_preproc_check(const tk_preproc *preproc, tk_diag *diag)
{
    if (preproc->mode != TK_RESIZE_SHORT && preproc->mode != TK_RESIZE_SQUASH)
        return tk_fail(diag, TK_BADARG, "preprocessing: unknown resize mode %d",
                       (int)preproc->mode);
    if (preproc->crop == 0 || preproc->resize < preproc->crop || preproc->resize > MAX_RESIZE)
        return tk_fail(
            diag, TK_BADARG,
            "preprocessing: crop (%u) must be at least 1, and resize (%u) between crop and %d",
            preproc->crop, preproc->resize, MAX_RESIZE);
    for (int c = 0; c < 3; c++) {
        double mean = (double)preproc->mean[c], std = (double)preproc->std[c];
        if (!isfinite(mean) || !isfinite(std) || std <= 0)
            return tk_fail(
                diag, TK_BADARG,
                "preprocessing: mean %g and std %g of channel %d must be finite, and std "
                "positive",
                mean, std, c);
    }
    return TK_OK;
}

/* CenterCrop's margin: half of `spare`, rounded half to even as Python's round(). */
static unsigned centre(unsigned spare)
{
    unsigned half = spare / 2;
    return spare % 2 ? half + half % 2 : half;
}

/* The canvas lies such that its own centre is the centre of the resized image to the pixel. The
 * rounding above grows by 0 or 1 for each spare pixel, so that the canvas never leaves the image.
 */
static tk__span span_of(const tk_preproc *preproc, unsigned in, unsigned resized, unsigned side)
{
    return (tk__span){
        .in = in,
        .out = resized,
        .from = centre(resized - preproc->crop) - centre(side - preproc->crop),
        .n = side,
    };
}

tk_err tk_preproc_canvas(const tk_preproc *preproc, const tk_image *image, unsigned side,
                         uint8_t *canvas, tk_diag *diag)
{
    assert(side >= preproc->crop && side <= preproc->resize);
    unsigned w = preproc->resize, h = preproc->resize;
    if (preproc->mode == TK_RESIZE_SHORT) {
        const uint64_t longer = image->w > image->h ? image->w : image->h;
        const uint64_t shorter = image->w > image->h ? image->h : image->w;
        const uint64_t length = preproc->resize * longer / shorter;
        if (length > INT32_MAX)
            return tk_fail(diag, TK_LIMIT, "the image is too narrow to resize: %u x %u pixels",
                           image->w, image->h);
        if (image->w > image->h)
            w = (unsigned)length;
        else
            h = (unsigned)length;
    }
    const tk__span x = span_of(preproc, image->w, w, side);
    const tk__span y = span_of(preproc, image->h, h, side);
    if (tk__resample(image->rgb, &x, &y, canvas) != TK_OK)
        return tk_fail(diag, TK_NOMEM, "no memory to resize an image of %u x %u pixels", image->w,
                       image->h);
    return TK_OK;
}

tk_view tk_view_centre(const tk_preproc *preproc, unsigned canvas_side)
{
    const int margin = (int)centre(canvas_side - preproc->crop);
    return (tk_view){.x = margin, .y = margin, .w = preproc->crop, .h = preproc->crop};
}

/* The numbers of one view, drawn one after the other. */
typedef struct draws {
    uint64_t seed, stream, next;
} draws;

static float draw_uniform(draws *d)
{
    return tk_rng_uniform(d->seed, d->stream, d->next++);
}

static int draw_below(draws *d, unsigned n)
{
    return (int)tk_rng_below(d->seed, d->stream, d->next++, n);
}

/* Area scale_min..1 of the canvas, aspect ratio 3/4..4/3 uniform in its logarithm; what does not
 * fit is drawn again, and after ten times the whole canvas is taken (RandomResizedCrop's rule). */
static tk_view draw_resized_crop(draws *d, unsigned side, float scale_min)
{
    const double area = (double)side * side;
    for (int attempt = 0; attempt < 10; attempt++) {
        double scale = (double)scale_min + (1.0 - (double)scale_min) * (double)draw_uniform(d);
        double ratio = exp(log(4.0 / 3.0) * (2.0 * (double)draw_uniform(d) - 1.0));
        unsigned w = (unsigned)lrint(sqrt(area * scale * ratio));
        unsigned h = (unsigned)lrint(sqrt(area * scale / ratio));
        if (w < 1 || h < 1 || w > side || h > side) continue;
        int x = draw_below(d, side - w + 1);
        int y = draw_below(d, side - h + 1);
        return (tk_view){.x = x, .y = y, .w = w, .h = h};
    }
    return (tk_view){.w = side, .h = side};
}

tk_view tk_view_random(const tk_preproc *preproc, unsigned canvas_side, const tk_augment *augment,
                       uint64_t seed, uint64_t index, uint64_t view)
{
    draws d = {.seed = tk_rng_u64(seed, tk_rng_stream("view"), index), .stream = view};
    tk_view v;
    if (augment->scale_min < 1.0f) {
        v = draw_resized_crop(&d, canvas_side, augment->scale_min);
    } else {
        const unsigned positions = canvas_side + 2 * augment->pad - preproc->crop + 1;
        const int x = draw_below(&d, positions) - (int)augment->pad;
        const int y = draw_below(&d, positions) - (int)augment->pad;
        v = (tk_view){.x = x, .y = y, .w = preproc->crop, .h = preproc->crop};
    }
    if (augment->flip) v.flip = draw_below(&d, 2);
    return v;
}

/* ToTensor and Normalize of every byte, rounded as torch rounds: ((v / 255) - mean) / std. */
typedef struct normaliser {
    float of[3][256];
} normaliser;

static void normaliser_init(normaliser *norm, const tk_preproc *preproc)
{
    for (int c = 0; c < 3; c++) {
        for (int v = 0; v < 256; v++)
            norm->of[c][v] = ((float)v / 255.0f - preproc->mean[c]) / preproc->std[c];
    }
}

/* One line of a view that needs no scaling; `from` is NULL where the line is padding. */
static void copy_row(const normaliser *norm, const uint8_t *from, int side, const tk_view *view,
                     float *out)
{
    for (int i = 0; i < (int)view->w; i++, out += 3) {
        const int x = view->x + (view->flip ? (int)view->w - 1 - i : i);
        const bool inside = from && x >= 0 && x < side;
        for (int c = 0; c < 3; c++)
            out[c] = norm->of[c][inside ? from[x * 3 + c] : 0];
    }
}

/* Where a scaled view of `length` pixels is read: two neighbours and the second one's share. */
typedef struct tap {
    unsigned a, b;
    float share;
} tap;

/* Pixel i of the result, `step` source pixels wide each. */
static tap tap_at(unsigned i, float step, unsigned length)
{
    float at = ((float)i + 0.5f) * step - 0.5f;
    if (at < 0) at = 0;
    unsigned a = (unsigned)at;
    if (a > length - 1) a = length - 1;
    return (tap){.a = a, .b = a + 1 < length ? a + 1 : a, .share = at - (float)a};
}

/* One line of a scaled view from two lines of the canvas, which begin at the view's left edge. */
static void scale_row(const tk_preproc *preproc, const uint8_t *top, const uint8_t *low,
                      float low_share, const tk_view *view, float *out)
{
    const unsigned crop = preproc->crop;
    const float step = (float)view->w / (float)crop;
    float gain[3], bias[3];
    for (int c = 0; c < 3; c++) {
        gain[c] = 1.0f / (255.0f * preproc->std[c]);
        bias[c] = -preproc->mean[c] / preproc->std[c];
    }
    for (unsigned i = 0; i < crop; i++, out += 3) {
        const tap x = tap_at(view->flip ? crop - 1 - i : i, step, view->w);
        for (unsigned c = 0; c < 3; c++) {
            const float ta = top[x.a * 3 + c], tb = top[x.b * 3 + c];
            const float la = low[x.a * 3 + c], lb = low[x.b * 3 + c];
            const float t = ta + (tb - ta) * x.share, l = la + (lb - la) * x.share;
            out[c] = (t + (l - t) * low_share) * gain[c] + bias[c];
        }
    }
}

static void render_scaled(const tk_preproc *preproc, const uint8_t *canvas, size_t side,
                          const tk_view *view, float *out)
{
    assert(view->x >= 0 && view->y >= 0 && (size_t)view->x + view->w <= side &&
           (size_t)view->y + view->h <= side);
    const uint8_t *corner = canvas + ((size_t)view->y * side + (size_t)view->x) * 3;
    const float step = (float)view->h / (float)preproc->crop;
    for (unsigned i = 0; i < preproc->crop; i++) {
        const tap y = tap_at(i, step, view->h);
        scale_row(preproc, corner + y.a * side * 3, corner + y.b * side * 3, y.share, view,
                  out + (size_t)i * preproc->crop * 3);
    }
}

void tk_view_render(const tk_preproc *preproc, const uint8_t *canvas, unsigned canvas_side,
                    const tk_view *view, float *out)
{
    const unsigned crop = preproc->crop;
    if (view->w != crop || view->h != crop) {
        render_scaled(preproc, canvas, canvas_side, view, out);
        return;
    }
    normaliser norm;
    normaliser_init(&norm, preproc);
    const int side = (int)canvas_side;
    for (unsigned i = 0; i < crop; i++) {
        const int y = view->y + (int)i;
        const uint8_t *from = y >= 0 && y < side ? canvas + (size_t)y * canvas_side * 3 : NULL;
        copy_row(&norm, from, side, view, out + (size_t)i * crop * 3);
    }
}
