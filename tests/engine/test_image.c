/* Decoding images from hostile bytes. What the pixels must be is in test_preproc.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/image.h"
#include "engine/mem.h"
#include "engine/rng.h"
#include "golden_file.h"

static const char *const FILES[] = {
    "preproc/grey.jpg",   "preproc/progressive.jpg", "preproc/cmyk.jpg",
    "preproc/ycck.jpg",   "preproc/palette.png",     "preproc/grey_alpha.png",
    "preproc/grey16.png", "preproc/interlaced.png",
};
enum { N_FILES = sizeof FILES / sizeof FILES[0] };

/* Decodes and frees; checks that a failure leaves nothing and says something. */
static tk_err decode(const uint8_t *data, size_t size, const tk_image_limits *limits, tk_diag *diag)
{
    tk_image image;
    const long live = tk_test_alloc_live();
    *diag = (tk_diag){{0}};
    tk_err err = tk_image_decode(&image, data, size, limits, 0, diag);
    if (err == TK_OK) {
        assert_non_null(image.rgb);
    } else {
        assert_null(image.rgb);
        assert_int_equal(image.w | image.h, 0);
        assert_true(strlen(diag->text) > 0);
    }
    tk_image_fini(&image);
    assert_int_equal(tk_test_alloc_live(), live);
    return err;
}

static void what_is_no_image_is_named(void **state)
{
    (void)state;
    tk_diag diag;
    assert_int_equal(decode((const uint8_t *)"", 0, NULL, &diag), TK_BADDATA);
    assert_string_equal(diag.text, "the image is empty (0 bytes)");
    assert_int_equal(decode((const uint8_t *)"GIF89a\1\2\3", 9, NULL, &diag), TK_BADDATA);
    assert_string_equal(diag.text,
                        "expected a JPEG or PNG image, but it begins with 47 49 46 38 39 61 "
                        "01 02 (GIF89a..)");
    assert_int_equal(decode((const uint8_t *)"\xff", 1, NULL, &diag), TK_BADDATA);
    assert_string_equal(diag.text, "expected a JPEG or PNG image, but it begins with ff (.)");
}

static void every_truncation_is_an_error(void **state)
{
    (void)state;
    tk_diag diag;
    for (size_t f = 0; f < N_FILES; f++) {
        size_t size;
        uint8_t *data = golden_read(FILES[f], &size);
        for (size_t n = 0; n < size; n++) {
            /* A copy of just that length lets AddressSanitizer see a read behind the end. */
            uint8_t *part = malloc(n ? n : 1);
            memcpy(part, data, n);
            assert_int_equal(decode(part, n, NULL, &diag), TK_BADDATA);
            free(part);
        }
        assert_int_equal(decode(data, size, NULL, &diag), TK_OK);
        free(data);
    }
}

static void damaged_bytes_do_no_harm(void **state)
{
    (void)state;
    tk_diag diag;
    const tk_image_limits limits = {.max_side = 512};
    for (size_t f = 0; f < N_FILES; f++) {
        size_t size;
        uint8_t *data = golden_read(FILES[f], &size);
        for (uint64_t round = 0; round < 300; round++) {
            uint32_t at = tk_rng_below(1, f, 2 * round, (uint32_t)size);
            uint8_t kept = data[at];
            data[at] = (uint8_t)tk_rng_below(1, f, 2 * round + 1, 256);
            tk_err err = decode(data, size, &limits, &diag);
            assert_true(err == TK_OK || err == TK_BADDATA || err == TK_LIMIT);
            data[at] = kept;
        }
        free(data);
    }
}

static void put32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (24 - 8 * i));
}

static uint32_t crc_of(const uint8_t *p, size_t n)
{
    uint32_t crc = 0xffffffffu;
    for (size_t i = 0; i < n; i++) {
        crc ^= p[i];
        for (int k = 0; k < 8; k++)
            crc = crc >> 1 ^ (0xedb88320u & (0u - (crc & 1)));
    }
    return ~crc;
}

static void a_huge_image_is_refused_before_it_is_allocated(void **state)
{
    (void)state;
    tk_diag diag;
    size_t size;
    uint8_t *png = golden_read("preproc/palette.png", &size);
    put32(png + 16, 100000);
    put32(png + 20, 100000);
    put32(png + 29, crc_of(png + 12, 17));
    assert_int_equal(decode(png, size, NULL, &diag), TK_LIMIT);
    assert_string_equal(diag.text,
                        "the image is 100000 x 100000 pixels; the limit is 16384 on a side");
    put32(png + 16, 16000);
    put32(png + 20, 16000);
    put32(png + 29, crc_of(png + 12, 17));
    assert_int_equal(decode(png, size, NULL, &diag), TK_LIMIT);
    assert_string_equal(diag.text,
                        "the image is 16000 x 16000 = 256000000 pixels; the limit is 67108864");
    free(png);

    uint8_t *jpeg = golden_read("preproc/grey.jpg", &size); /* 60 x 80 */
    assert_int_equal(decode(jpeg, size, &(tk_image_limits){.max_side = 79}, &diag), TK_LIMIT);
    assert_string_equal(diag.text, "the image is 60 x 80 pixels; the limit is 79 on a side");
    assert_int_equal(decode(jpeg, size, &(tk_image_limits){.max_side = 80}, &diag), TK_OK);
    assert_int_equal(decode(jpeg, size, &(tk_image_limits){.max_pixels = 4799}, &diag), TK_LIMIT);
    assert_int_equal(decode(jpeg, size, &(tk_image_limits){.max_pixels = 4800}, &diag), TK_OK);
    free(jpeg);
}

/* A JPEG with an APP1 segment of `n` bytes put in behind its first marker; free() it. */
static uint8_t *with_app1(const uint8_t *jpeg, size_t size, const void *app1, size_t n)
{
    uint8_t *out = malloc(size + n + 4);
    assert_non_null(out);
    memcpy(out, jpeg, 2);
    memcpy(out + 2, "\xff\xe1", 2);
    out[4] = (uint8_t)((n + 2) >> 8);
    out[5] = (uint8_t)(n + 2);
    memcpy(out + 6, app1, n);
    memcpy(out + 6 + n, jpeg + 2, size - 2);
    return out;
}

/* EXIF as cameras write it, little endian: one directory with one entry. */
static const uint8_t EXIF[32] = {'E', 'x', 'i',  'f', 0, 0, 'I', 'I', '*', 0, 8, 0, 0, 0,
                                 1,   0,   0x12, 1,   3, 0, 1,   0,   0,   0, 6, 0, 0, 0};

static tk_image decode_with_exif(const uint8_t *exif, size_t n)
{
    size_t size;
    tk_image image;
    uint8_t *jpeg = golden_read("preproc/grey.jpg", &size); /* 60 x 80 */
    uint8_t *tagged = with_app1(jpeg, size, exif, n);
    assert_int_equal(tk_image_decode(&image, tagged, size + n + 4, NULL, 0, NULL), TK_OK);
    free(tagged);
    free(jpeg);
    return image;
}

static const uint8_t *pixel(const tk_image *image, unsigned x, unsigned y)
{
    return image->rgb + ((size_t)y * image->w + x) * 3;
}

static void all_eight_orientations_end_upright(void **state)
{
    (void)state;
    /* Where the stored picture's first row begins and ends, seen upright (EXIF 2.3, 4.6.4 A). */
    static const struct {
        bool swapped, begin_right, begin_low, end_right, end_low;
    } want[9] = {
        [1] = {0, 0, 0, 1, 0}, [2] = {0, 1, 0, 0, 0}, [3] = {0, 1, 1, 0, 1}, [4] = {0, 0, 1, 1, 1},
        [5] = {1, 0, 0, 0, 1}, [6] = {1, 1, 0, 1, 1}, [7] = {1, 1, 1, 1, 0}, [8] = {1, 0, 1, 0, 0},
    };
    uint8_t exif[sizeof EXIF];
    memcpy(exif, EXIF, sizeof exif);
    exif[24] = 1;
    tk_image stored = decode_with_exif(exif, 28);
    for (uint8_t o = 1; o <= 8; o++) {
        exif[24] = o;
        tk_image image = decode_with_exif(exif, 28);
        assert_int_equal(image.w, want[o].swapped ? 80 : 60);
        assert_int_equal(image.h, want[o].swapped ? 60 : 80);
        const unsigned right = image.w - 1, low = image.h - 1;
        assert_memory_equal(
            pixel(&stored, 0, 0),
            pixel(&image, want[o].begin_right ? right : 0, want[o].begin_low ? low : 0), 3);
        assert_memory_equal(pixel(&stored, 59, 0),
                            pixel(&image, want[o].end_right ? right : 0, want[o].end_low ? low : 0),
                            3);
        tk_image_fini(&image);
    }
    tk_image_fini(&stored);
}

static void a_big_endian_tag_is_read_too(void **state)
{
    (void)state;
    static const uint8_t exif[] = {'E', 'x', 'i', 'f',  0, 0, 'M', 'M', 0, '*', 0, 0, 0, 8,
                                   0,   1,   1,   0x12, 0, 3, 0,   0,   0, 1,   0, 6, 0, 0};
    tk_image image = decode_with_exif(exif, sizeof exif);
    assert_int_equal(image.w, 80);
    tk_image_fini(&image);
}

static void a_png_can_be_turned_too(void **state)
{
    (void)state;
    size_t size;
    tk_image image;
    uint8_t *png = golden_read("preproc/grey16.png", &size); /* 40 x 30 */
    enum { HEAD = 33, TIFF = 22, CHUNK = TIFF + 12 };        /* signature and IHDR; the new chunk */
    uint8_t *tagged = malloc(size + CHUNK);
    assert_non_null(tagged);
    memcpy(tagged, png, HEAD);
    put32(tagged + HEAD, TIFF);
    memcpy(tagged + HEAD + 4, "eXIf", 4);
    memcpy(tagged + HEAD + 8, EXIF + 6, TIFF);
    put32(tagged + HEAD + 8 + TIFF, crc_of(tagged + HEAD + 4, TIFF + 4));
    memcpy(tagged + HEAD + CHUNK, png + HEAD, size - HEAD);
    assert_int_equal(tk_image_decode(&image, tagged, size + CHUNK, NULL, 0, NULL), TK_OK);
    assert_int_equal(image.w, 30);
    assert_int_equal(image.h, 40);
    tk_image_fini(&image);
    free(tagged);
    free(png);
}

static void odd_exif_is_ignored(void **state)
{
    (void)state;
    for (size_t n = 0; n < 28; n++) { /* cut anywhere */
        tk_image image = decode_with_exif(EXIF, n);
        assert_int_equal(image.w, 60);
        tk_image_fini(&image);
    }
    static const struct {
        uint8_t at, value;
    } changes[] = {{24, 0}, {24, 9}, {25, 1}, {18, 4}, {6, 'M'}, {10, 255}, {13, 255}, {12, 128}};
    for (size_t i = 0; i < sizeof changes / sizeof changes[0]; i++) {
        uint8_t exif[sizeof EXIF];
        memcpy(exif, EXIF, sizeof exif);
        exif[changes[i].at] = changes[i].value;
        tk_image image = decode_with_exif(exif, 28);
        assert_int_equal(image.w, 60);
        tk_image_fini(&image);
    }
}

static void scaled_decoding_keeps_twice_the_side(void **state)
{
    (void)state;
    size_t size;
    uint8_t *jpeg = golden_read("preproc/photo.jpg", &size); /* 400 x 300 */
    static const unsigned cases[][3] = {{0, 400, 300},  {1, 50, 38},    {19, 50, 38},
                                        {20, 100, 75},  {37, 100, 75},  {38, 200, 150},
                                        {75, 200, 150}, {76, 400, 300}, {4000000000u, 400, 300}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        tk_image image;
        assert_int_equal(tk_image_decode(&image, jpeg, size, NULL, cases[i][0], NULL), TK_OK);
        assert_int_equal(image.w, cases[i][1]);
        assert_int_equal(image.h, cases[i][2]);
        tk_image_fini(&image);
    }
    free(jpeg);
}

static void harmless_bytes_between_segments_are_taken(void **state)
{
    (void)state;
    size_t size;
    tk_diag diag;
    uint8_t *jpeg = golden_read("preproc/grey.jpg", &size);
    const size_t first = 4 + jpeg[5]; /* SOI and APP0 */
    uint8_t *padded = malloc(size + 3);
    assert_non_null(padded);
    memcpy(padded, jpeg, first);
    memset(padded + first, 0, 3);
    memcpy(padded + first + 3, jpeg + first, size - first);
    assert_int_equal(decode(padded, size + 3, NULL, &diag), TK_OK);
    free(padded);
    free(jpeg);
}

/* A valid progressive JPEG of one grey block in `scans` scans: DC, then every AC coefficient alone
 * but for its last bit, then the last bits. Each scan is one bit of data, "end of block". Returns
 * the size. */
static size_t build_progressive(uint8_t *to, int scans)
{
    static const uint8_t head[] = {0xff, 0xd8, 0xff, 0xc2, 0,    11, 8, 0, 8, 0, 8, 1,
                                   1,    0x11, 0, /* SOF2: 8 x 8, grey */
                                   0xff, 0xc4, 0,    20,   0x00, 1,  0, 0, 0, 0, 0, 0,
                                   0,    0,    0,    0,    0,    0,  0, 0, 0, 0, /* DC: 0 -> 0 */
                                   0xff, 0xc4, 0,    20,   0x10, 1,  0, 0, 0, 0, 0, 0,
                                   0,    0,    0,    0,    0,    0,  0, 0, 0, 0, /* AC: 0 -> EOB */
                                   0xff, 0xdb, 0,    67,   0};
    size_t n = sizeof head;
    memcpy(to, head, n);
    memset(to + n, 1, 64);
    n += 64;
    for (int i = 0; i < scans; i++) {
        const uint8_t k = (uint8_t)(i == 0 ? 0 : (i - 1) % 63 + 1);
        const uint8_t bits = i == 0 ? 0x00 : i <= 63 ? 0x01 : 0x10;
        const uint8_t scan[] = {0xff, 0xda, 0, 8, 1, 1, 0, k, k, bits, 0x7f};
        memcpy(to + n, scan, sizeof scan);
        n += sizeof scan;
    }
    memcpy(to + n, "\xff\xd9", 2);
    return n + 2;
}

static void endless_scans_are_refused(void **state)
{
    (void)state;
    uint8_t jpeg[2000];
    tk_diag diag;
    assert_int_equal(decode(jpeg, build_progressive(jpeg, 64), NULL, &diag), TK_OK);
    assert_int_equal(decode(jpeg, build_progressive(jpeg, 100), NULL, &diag), TK_LIMIT);
    assert_string_equal(diag.text, "JPEG: more than 64 scans");
}

static void decoding_survives_no_memory(void **state)
{
    (void)state;
    tk_diag diag;
    for (size_t f = 0; f < N_FILES; f++) {
        size_t size;
        uint8_t *data = golden_read(FILES[f], &size);
        for (long n = 0;; n++) {
            tk_test_alloc_fail_after(n);
            tk_err err = decode(data, size, NULL, &diag);
            tk_test_alloc_fail_after(-1);
            if (err == TK_OK) break;
            assert_int_equal(err, TK_NOMEM);
            assert_true(n < 100);
        }
        free(data);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_no_image_is_named),
        cmocka_unit_test(every_truncation_is_an_error),
        cmocka_unit_test(damaged_bytes_do_no_harm),
        cmocka_unit_test(a_huge_image_is_refused_before_it_is_allocated),
        cmocka_unit_test(all_eight_orientations_end_upright),
        cmocka_unit_test(a_big_endian_tag_is_read_too),
        cmocka_unit_test(a_png_can_be_turned_too),
        cmocka_unit_test(odd_exif_is_ignored),
        cmocka_unit_test(scaled_decoding_keeps_twice_the_side),
        cmocka_unit_test(harmless_bytes_between_segments_are_taken),
        cmocka_unit_test(endless_scans_are_refused),
        cmocka_unit_test(decoding_survives_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
