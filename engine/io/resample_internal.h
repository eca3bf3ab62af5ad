/* Antialiased bilinear resampling of 8-bit RGB, the arithmetic of PIL's Image.resize. */
#ifndef ENGINE_IO_RESAMPLE_INTERNAL_H
#define ENGINE_IO_RESAMPLE_INTERNAL_H

#include "engine/image.h"

/* One axis: of `in` pixels resized to `out`, the pixels from..from+n of the result are wanted. */
typedef struct tk__span {
    unsigned in, out, from, n;
} tk__span;

/* Writes the wanted window of the resized image, [y.n][x.n][3] bytes. x.in and y.in are the image's
 * size. TK_NOMEM is the only failure. */
TK_MUST tk_err tk__resample(const uint8_t *rgb, const tk__span *x, const tk__span *y, uint8_t *to);

#endif
