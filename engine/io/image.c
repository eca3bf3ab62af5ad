/* The door for images: what format the bytes claim to be, limits, and orientation. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "engine/mem.h"
#include "image_internal.h"

static const tk_image_limits DEFAULT_LIMITS = {.max_side = 16384, .max_pixels = 64u << 20};

tk_err tk__image_check_size(uint64_t w, uint64_t h, const tk_image_limits *limits, tk_diag *diag)
{
    if (w == 0 || h == 0)
        return tk_fail(diag, TK_BADDATA, "the image has no pixels: %" PRIu64 " x %" PRIu64, w, h);
    if (w > limits->max_side || h > limits->max_side)
        return tk_fail(diag, TK_LIMIT,
                       "the image is %" PRIu64 " x %" PRIu64 " pixels; the limit is %u on a side",
                       w, h, limits->max_side);
    if (w * h > limits->max_pixels)
        return tk_fail(diag, TK_LIMIT,
                       "the image is %" PRIu64 " x %" PRIu64 " = %" PRIu64
                       " pixels; the limit is %" PRIu64,
                       w, h, w * h, limits->max_pixels);
    return TK_OK;
}

tk_err tk__image_alloc(tk_image *out, unsigned w, unsigned h, tk_diag *diag)
{
    *out = (tk_image){.w = w, .h = h};
    size_t pixels;
    if (tk_mul_size(w, h, &pixels)) out->rgb = tk_calloc(pixels, 3);
    if (out->rgb) return TK_OK;
    *out = (tk_image){0};
    return tk_fail(diag, TK_NOMEM, "no memory for an image of %u x %u pixels", w, h);
}

/* "47 49 46 38 39 61 (GIF89a)" */
static tk_err unknown_format(const uint8_t *data, size_t size, tk_diag *diag)
{
    enum { SHOWN = 8 };
    char hex[3 * SHOWN + 1] = "", text[SHOWN + 1] = "";
    size_t n = size < SHOWN ? size : SHOWN;
    for (size_t i = 0; i < n; i++) {
        (void)snprintf(hex + 3 * i, 4, " %02x", data[i]);
        text[i] = (char)(data[i] >= 0x20 && data[i] < 0x7f ? data[i] : '.');
    }
    return tk_fail(diag, TK_BADDATA, "expected a JPEG or PNG image, but it begins with%s (%s)", hex,
                   text);
}

tk_err tk_image_decode(tk_image *out, const void *data, size_t size, const tk_image_limits *limits,
                       unsigned short_side, tk_diag *diag)
{
    static const uint8_t PNG[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
    static const uint8_t JPEG[3] = {0xff, 0xd8, 0xff};
    *out = (tk_image){0};
    if (size == 0) return tk_fail(diag, TK_BADDATA, "the image is empty (0 bytes)");

    tk_image_limits limit = limits ? *limits : DEFAULT_LIMITS;
    if (limit.max_side == 0) limit.max_side = DEFAULT_LIMITS.max_side;
    if (limit.max_pixels == 0) limit.max_pixels = DEFAULT_LIMITS.max_pixels;

    unsigned orientation = 1;
    tk_err err;
    if (size >= sizeof JPEG && memcmp(data, JPEG, sizeof JPEG) == 0)
        err = tk__jpeg_decode(out, data, size, &limit, short_side, &orientation, diag);
    else if (size >= sizeof PNG && memcmp(data, PNG, sizeof PNG) == 0)
        err = tk__png_decode(out, data, size, &limit, &orientation, diag);
    else
        err = unknown_format(data, size, diag);
    if (err == TK_OK) err = tk__image_orient(out, orientation, diag);
    if (err != TK_OK) tk_image_fini(out);
    return err;
}

void tk_image_fini(tk_image *image)
{
    tk_free(image->rgb);
    *image = (tk_image){0};
}
