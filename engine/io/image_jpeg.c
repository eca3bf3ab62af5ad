/* JPEG through libjpeg-turbo. Its errors come back by longjmp, so that everything that lives across
 * the jump is in one struct. Warnings that mean lost picture data are errors here; harmless ones
 * (bytes between segments, odd version numbers) are not. */
#include <jerror.h>
#include <setjmp.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>

#include "engine/mem.h"
#include "image_internal.h"

/* Progressive pictures come in some ten scans; thousands of empty ones are an attack on our time.
 */
enum { MAX_SCANS = 64 };

typedef struct decoder {
    struct jpeg_decompress_struct jpeg;
    struct jpeg_error_mgr errors;
    struct jpeg_progress_mgr progress;
    jmp_buf escape;
    tk_err err;
    char message[JMSG_LENGTH_MAX];
    const uint8_t *data;
    size_t size;
    const tk_image_limits *limits;
    unsigned short_side, orientation;
    tk_image image;
    uint8_t *row; /* CMYK only: one line */
    tk_diag *diag;
} decoder;

static decoder *decoder_of(j_common_ptr jpeg)
{
    return jpeg->client_data;
}

/* Never returns; libjpeg relies on that. */
static void on_error(j_common_ptr jpeg)
{
    decoder *d = decoder_of(jpeg);
    jpeg->err->format_message(jpeg, d->message);
    bool no_memory = jpeg->err->msg_code == JERR_OUT_OF_MEMORY;
    d->err = tk_fail(d->diag, no_memory ? TK_NOMEM : TK_BADDATA, "JPEG: %s", d->message);
    longjmp(d->escape, 1);
}

static void on_message(j_common_ptr jpeg, int level)
{
    if (level >= 0) return; /* a trace */
    switch (jpeg->err->msg_code) {
    case JWRN_ADOBE_XFORM:
    case JWRN_EXTRANEOUS_DATA:
    case JWRN_JFIF_MAJOR:
        return;
    default:
        on_error(jpeg);
    }
}

static void on_progress(j_common_ptr jpeg)
{
    decoder *d = decoder_of(jpeg);
    if (d->jpeg.input_scan_number <= MAX_SCANS) return;
    d->err = tk_fail(d->diag, TK_LIMIT, "JPEG: more than %d scans", MAX_SCANS);
    longjmp(d->escape, 1);
}

static unsigned find_orientation(const struct jpeg_decompress_struct *jpeg)
{
    for (jpeg_saved_marker_ptr m = jpeg->marker_list; m; m = m->next) {
        if (m->data_length > 6 && memcmp(m->data, "Exif\0\0", 6) == 0)
            return tk__exif_orientation(m->data + 6, m->data_length - 6);
    }
    return 1;
}

/* 1/8, 1/4, 1/2 or 1: the smallest that keeps the short side at least twice `wanted`. */
static unsigned scale_denominator(unsigned w, unsigned h, unsigned wanted)
{
    unsigned side = w < h ? w : h;
    unsigned denominator = wanted ? 8 : 1;
    while (denominator > 1 && (side + denominator - 1) / denominator < 2 * (uint64_t)wanted)
        denominator /= 2;
    return denominator;
}

/* a * b / 255, rounded */
static unsigned scale255(unsigned a, unsigned b)
{
    unsigned t = a * b + 128;
    return ((t >> 8) + t) >> 8;
}

/* Files hold CMYK inverted, as Adobe writes it: 255 is no ink. */
static void cmyk_to_rgb(const uint8_t *cmyk, size_t n, uint8_t *rgb)
{
    for (size_t i = 0; i < n; i++, cmyk += 4, rgb += 3) {
        unsigned light = cmyk[3]; /* what black leaves */
        for (int c = 0; c < 3; c++)
            rgb[c] = (uint8_t)(light - scale255(255u - cmyk[c], light));
    }
}

static tk_err choose_output(decoder *d)
{
    struct jpeg_decompress_struct *jpeg = &d->jpeg;
    tk_err err = tk__image_check_size(jpeg->image_width, jpeg->image_height, d->limits, d->diag);
    if (err != TK_OK) return err;
    const J_COLOR_SPACE space = jpeg->jpeg_color_space;
    if (space == JCS_GRAYSCALE || space == JCS_YCbCr || space == JCS_RGB)
        jpeg->out_color_space = JCS_RGB;
    else if (space == JCS_CMYK || space == JCS_YCCK)
        jpeg->out_color_space = JCS_CMYK;
    else
        return tk_fail(d->diag, TK_BADDATA,
                       "JPEG: a picture of %d components is not grey, RGB or CMYK",
                       jpeg->num_components);
    jpeg->scale_num = 1;
    jpeg->scale_denom = scale_denominator(jpeg->image_width, jpeg->image_height, d->short_side);
    return TK_OK;
}

static tk_err read_rows(decoder *d)
{
    struct jpeg_decompress_struct *jpeg = &d->jpeg;
    const bool cmyk = jpeg->out_color_space == JCS_CMYK;
    if (cmyk) d->row = tk_calloc(jpeg->output_width, 4);
    if (cmyk && !d->row) return tk_fail(d->diag, TK_NOMEM, "JPEG: out of memory");
    while (jpeg->output_scanline < jpeg->output_height) {
        uint8_t *rgb = d->image.rgb + (size_t)jpeg->output_scanline * d->image.w * 3;
        uint8_t *row = cmyk ? d->row : rgb;
        (void)jpeg_read_scanlines(jpeg, &row, 1);
        if (cmyk) cmyk_to_rgb(d->row, d->image.w, rgb);
    }
    return TK_OK;
}

static tk_err decode(decoder *d)
{
    struct jpeg_decompress_struct *jpeg = &d->jpeg;
    jpeg_create_decompress(jpeg);
    d->progress.progress_monitor = on_progress;
    jpeg->progress = &d->progress;
    jpeg_mem_src(jpeg, d->data, d->size);
    jpeg_save_markers(jpeg, JPEG_APP0 + 1, 0xffff);
    (void)jpeg_read_header(jpeg, TRUE);
    tk_err err = choose_output(d);
    if (err != TK_OK) return err;
    d->orientation = find_orientation(jpeg);
    (void)jpeg_start_decompress(jpeg);
    err = tk__image_alloc(&d->image, jpeg->output_width, jpeg->output_height, d->diag);
    if (err == TK_OK) err = read_rows(d);
    if (err == TK_OK) (void)jpeg_finish_decompress(jpeg);
    return err;
}

static tk_err decode_guarded(decoder *d)
{
    if (setjmp(d->escape)) return d->err;
    return decode(d);
}

tk_err tk__jpeg_decode(tk_image *out, const uint8_t *data, size_t size,
                       const tk_image_limits *limits, unsigned short_side, unsigned *orientation,
                       tk_diag *diag)
{
    decoder d = {
        .data = data, .size = size, .limits = limits, .short_side = short_side, .diag = diag};
    d.jpeg.err = jpeg_std_error(&d.errors);
    d.jpeg.client_data = &d;
    d.errors.error_exit = on_error;
    d.errors.emit_message = on_message;
    tk_err err = decode_guarded(&d);
    jpeg_destroy_decompress(&d.jpeg);
    tk_free(d.row);
    if (err != TK_OK) tk_image_fini(&d.image);
    *out = d.image;
    *orientation = d.orientation;
    return err;
}
