/* Images in: JPEG and PNG bytes to RGB, preprocessing equal to torchvision's, and seeded augmentation.
 *
 * Every byte is hostile: dimensions are checked before pixels are allocated. Grey, palette,
 * alpha (dropped, as PIL's convert("RGB") does), 16-bit (the high byte), CMYK and EXIF orientation all
 * end as RGB. */
#ifndef ENGINE_IMAGE_H
#define ENGINE_IMAGE_H

#include <stddef.h>
#include <stdint.h>

#include "engine/err.h"

typedef struct tk_image {
    unsigned w, h;
    uint8_t *rgb; /* [h][w][3], tk_free() */
} tk_image;

typedef struct tk_image_limits {
    unsigned max_side;   /* pixels, 0: 16384 */
    uint64_t max_pixels; /* 0: 64 Mi */
} tk_image_limits;

/* Decodes the bytes of one JPEG or PNG. A truncated image is an error. On failure *out is zero and the
 * sentence says what is wrong with the bytes. Any thread. `limits` may be NULL. `short_side`, when not
 * 0, allows JPEG's scaled decoding as long as the short side stays at least twice that. */
TK_MUST tk_err tk_image_decode(tk_image *out, const void *data, size_t size,
                               const tk_image_limits *limits, unsigned short_side, tk_diag *diag);
void tk_image_fini(tk_image *image);

typedef enum tk_resize_mode {
    TK_RESIZE_SHORT,  /* torchvision Resize(int): the short side, keeping the aspect ratio */
    TK_RESIZE_SQUASH, /* torchvision Resize((px, px)) */
} tk_resize_mode;

/* Stored with the trunk, never guessed: Resize (antialiased bilinear, on 8-bit pixels as PIL does it) ->
 * CenterCrop -> /255 -> (x - mean) / std. */
typedef struct tk_preproc {
    tk_resize_mode mode;
    unsigned resize; /* >= crop */
    unsigned crop;   /* the network's input, px */
    float mean[3], std[3];
} tk_preproc;

/* ImageNet mean and std; resize = crop * 8 / 7 rounded (256 for 224) with the ImageNet stem, = crop
 * with the CIFAR stem. */
tk_preproc tk_preproc_default(unsigned px);
TK_MUST tk_err tk_preproc_check(const tk_preproc *preproc, tk_diag *diag);

/* Resizes and crops to a canvas of side x side RGB bytes, crop <= side <= resize: side = crop is what
 * inference sees; a larger side keeps a margin to draw random crops from. */
TK_MUST tk_err tk_preproc_canvas(const tk_preproc *preproc, const tk_image *image, unsigned side,
                                 uint8_t *canvas, tk_diag *diag);

/* A view of a canvas: what to cut and whether to mirror it. */
typedef struct tk_view {
    int x, y;      /* top left on the canvas; may lie outside by the padding (black there) */
    unsigned w, h; /* what is cut; != crop means bilinear resize to crop */
    int flip;
} tk_view;

typedef struct tk_augment {
    unsigned pad;    /* random crop: padding around the canvas, pixels; not with scale_min < 1 */
    float scale_min; /* < 1: random resized crop of scale_min..1 of the canvas' area, aspect ratio 3/4
                        to 4/3; 1: off */
    int flip;        /* mirror with probability 1/2 */
} tk_augment;

/* The centre view: exactly the pixels that inference sees, whatever the canvas' margin. */
tk_view tk_view_centre(const tk_preproc *preproc, unsigned canvas_side);
/* View `view` of image `index` under `seed`: a pure function of its arguments. */
tk_view tk_view_random(const tk_preproc *preproc, unsigned canvas_side, const tk_augment *augment,
                       uint64_t seed, uint64_t index, uint64_t view);
/* Cuts the view, scales and normalises to [crop][crop][3] floats. */
void tk_view_render(const tk_preproc *preproc, const uint8_t *canvas, unsigned canvas_side,
                    const tk_view *view, float *out);

#endif
