/* EXIF orientation: finding the tag in hostile bytes, and turning the picture.
 *
 *     TIFF header: "II*\0" (little endian) or "MM\0*" (big endian), u32 offset of the first
 * directory directory:   u16 count, then entries of 12 bytes: u16 tag, u16 type, u32 count, value
 */
#include <stdbool.h>
#include <string.h>

#include "engine/mem.h"
#include "image_internal.h"

enum { TAG_ORIENTATION = 0x0112, TYPE_SHORT = 3 };

typedef struct tiff {
    const uint8_t *data;
    size_t size;
    int big_endian;
} tiff;

/* The n <= 4 bytes at `at`, which the caller has checked to be inside. */
static uint32_t number(const tiff *t, size_t at, size_t n)
{
    uint32_t value = 0;
    for (size_t i = 0; i < n; i++)
        value = value << 8 | t->data[at + (t->big_endian ? i : n - 1 - i)];
    return value;
}

unsigned tk__exif_orientation(const uint8_t *data, size_t size)
{
    tiff t = {.data = data, .size = size};
    if (size < 8) return 1;
    if (memcmp(data, "MM\0*", 4) == 0)
        t.big_endian = 1;
    else if (memcmp(data, "II*\0", 4) != 0)
        return 1;
    size_t directory = number(&t, 4, 4);
    if (directory > size - 2) return 1;
    size_t entries = number(&t, directory, 2);
    size_t room = (size - directory - 2) / 12;
    if (entries > room) entries = room;
    for (size_t i = 0; i < entries; i++) {
        size_t at = directory + 2 + 12 * i;
        if (number(&t, at, 2) != TAG_ORIENTATION) continue;
        uint32_t value = number(&t, at + 8, 2);
        bool usable = number(&t, at + 2, 2) == TYPE_SHORT && value >= 1 && value <= 8;
        return usable ? value : 1;
    }
    return 1;
}

/* Orientations 5 to 8 swap the axes; the mirrored source axis is listed per orientation:
 *     1 -    2 x    3 x,y    4 y    5 -    6 y    7 x,y    8 x */
tk_err tk__image_orient(tk_image *image, unsigned orientation, tk_diag *diag)
{
    if (orientation <= 1 || orientation > 8) return TK_OK;
    const bool swap = orientation >= 5;
    const bool mirror_x = orientation == 2 || orientation == 3 || orientation >= 7;
    const bool mirror_y =
        orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    const size_t w = image->w, h = image->h;

    tk_image upright;
    tk_err err = swap ? tk__image_alloc(&upright, image->h, image->w, diag)
                      : tk__image_alloc(&upright, image->w, image->h, diag);
    if (err != TK_OK) return err;
    uint8_t *to = upright.rgb;
    for (size_t y = 0; y < upright.h; y++) {
        for (size_t x = 0; x < upright.w; x++, to += 3) {
            size_t sx = swap ? y : x, sy = swap ? x : y;
            if (mirror_x) sx = w - 1 - sx;
            if (mirror_y) sy = h - 1 - sy;
            memcpy(to, image->rgb + (sy * w + sx) * 3, 3);
        }
    }
    tk_image_fini(image);
    *image = upright;
    return TK_OK;
}
