/* Between the sniffing door (image.c) and the decoders of each format. */
#ifndef ENGINE_IO_IMAGE_INTERNAL_H
#define ENGINE_IO_IMAGE_INTERNAL_H

#include "engine/image.h"

/* Decoders: `limits` is filled in; on failure *out is zero. *orientation is EXIF's, 1..8. */
TK_MUST tk_err tk__jpeg_decode(tk_image *out, const uint8_t *data, size_t size,
                               const tk_image_limits *limits, unsigned short_side,
                               unsigned *orientation, tk_diag *diag);
TK_MUST tk_err tk__png_decode(tk_image *out, const uint8_t *data, size_t size,
                              const tk_image_limits *limits, unsigned *orientation, tk_diag *diag);

/* Checks what a header claims, before anything is allocated by it. */
TK_MUST tk_err tk__image_check_size(uint64_t w, uint64_t h, const tk_image_limits *limits,
                                    tk_diag *diag);
TK_MUST tk_err tk__image_alloc(tk_image *out, unsigned w, unsigned h, tk_diag *diag);

/* The orientation tag of a TIFF structure, as EXIF embeds it; 1 (upright) when there is none or the
 * bytes make no sense: a camera's odd metadata are no reason to refuse its picture. */
unsigned tk__exif_orientation(const uint8_t *tiff, size_t size);
/* Turns the picture upright, orientation 1..8. */
TK_MUST tk_err tk__image_orient(tk_image *image, unsigned orientation, tk_diag *diag);

#endif
