/* PNG through libpng. Its errors come back by longjmp, so that everything that lives across the
 * jump is in one struct. Chunks that do not change the pixels are skipped unread (text and colour
 * profiles can unpack to much more than they weigh), except EXIF's. */
#include <setjmp.h>
#include <stdbool.h>
#include <string.h>

#include <png.h>

#include "engine/mem.h"
#include "image_internal.h"

enum { MAX_CHUNK = 1 << 20 };

typedef struct decoder {
    png_structp png;
    png_infop info;
    const uint8_t *data;
    size_t size, at;
    const tk_image_limits *limits;
    tk_image image;
    unsigned orientation;
    bool no_memory;
    tk_err err;
    tk_diag *diag;
} decoder;

static void on_error(png_structp png, png_const_charp message)
{
    decoder *d = png_get_error_ptr(png);
    d->err = d->no_memory ? tk_fail(d->diag, TK_NOMEM, "PNG: out of memory")
                          : tk_fail(d->diag, TK_BADDATA, "PNG: %s", message);
    png_longjmp(png, 1);
}

static void on_warning(png_structp png, png_const_charp message)
{
    (void)png, (void)message;
}

static void *on_malloc(png_structp png, png_alloc_size_t size)
{
    decoder *d = png_get_mem_ptr(png);
    void *p = tk_calloc(size, 1);
    if (!p) d->no_memory = true;
    return p;
}

static void on_free(png_structp png, void *p)
{
    (void)png;
    tk_free(p);
}

static void on_read(png_structp png, png_bytep to, size_t n)
{
    decoder *d = png_get_io_ptr(png);
    if (n > d->size - d->at) png_error(png, "the file is truncated");
    memcpy(to, d->data + d->at, n);
    d->at += n;
}

/* Every kind of PNG to 8-bit RGB. */
static void choose_output(png_structp png)
{
    png_set_palette_to_rgb(png);
    png_set_expand_gray_1_2_4_to_8(png);
    png_set_strip_16(png);
    png_set_gray_to_rgb(png);
    png_set_strip_alpha(png);
}

static void find_orientation(decoder *d)
{
    png_bytep exif = NULL;
    png_uint_32 size = 0;
    if (png_get_eXIf_1(d->png, d->info, &size, &exif) == PNG_INFO_eXIf)
        d->orientation = tk__exif_orientation(exif, size);
}

static tk_err decode(decoder *d)
{
    png_structp png = d->png;
    png_set_read_fn(png, d, on_read);
    png_set_user_limits(png, 0x7fffffff, 0x7fffffff); /* ours are checked below */
    png_set_chunk_malloc_max(png, MAX_CHUNK);
    png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_NEVER, NULL, -1);
    png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_AS_DEFAULT, (png_const_bytep) "eXIf", 1);
    png_read_info(png, d->info);
    tk_err err = tk__image_check_size(png_get_image_width(png, d->info),
                                      png_get_image_height(png, d->info), d->limits, d->diag);
    if (err != TK_OK) return err;
    choose_output(png);
    int passes = png_set_interlace_handling(png);
    png_read_update_info(png, d->info);
    size_t stride = png_get_rowbytes(png, d->info);
    unsigned w = png_get_image_width(png, d->info), h = png_get_image_height(png, d->info);
    if (stride != (size_t)w * 3) return tk_fail(d->diag, TK_INTERNAL, "PNG: unexpected row size");
    err = tk__image_alloc(&d->image, w, h, d->diag);
    if (err != TK_OK) return err;
    for (int pass = 0; pass < passes; pass++) {
        for (unsigned y = 0; y < h; y++)
            png_read_row(png, d->image.rgb + y * stride, NULL);
    }
    png_read_end(png, d->info);
    find_orientation(d);
    return TK_OK;
}

static tk_err decode_guarded(decoder *d)
{
    if (setjmp(png_jmpbuf(d->png))) return d->err;
    return decode(d);
}

tk_err tk__png_decode(tk_image *out, const uint8_t *data, size_t size,
                      const tk_image_limits *limits, unsigned *orientation, tk_diag *diag)
{
    decoder d = {.data = data, .size = size, .limits = limits, .orientation = 1, .diag = diag};
    d.png = png_create_read_struct_2(PNG_LIBPNG_VER_STRING, &d, on_error, on_warning, &d, on_malloc,
                                     on_free);
    d.info = d.png ? png_create_info_struct(d.png) : NULL;
    tk_err err = d.info ? decode_guarded(&d) : tk_fail(diag, TK_NOMEM, "PNG: out of memory");
    png_destroy_read_struct(&d.png, &d.info, NULL);
    if (err != TK_OK) tk_image_fini(&d.image);
    *out = d.image;
    *orientation = d.orientation;
    return err;
}
