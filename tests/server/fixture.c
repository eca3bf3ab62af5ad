/* See fixture.h. */
#include "fixture.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>
#include <png.h>

#include "engine/mem.h"
#include "engine/rng.h"

void fixture_add_head(tk_model *model, const char *id, size_t classes, const char *stem,
                      uint64_t seed)
{
    char names[64][32];
    const char *labels[64];
    assert(classes <= 64);
    for (size_t i = 0; i < classes; i++) {
        snprintf(names[i], sizeof names[i], "%s-%zu", stem, i);
        labels[i] = names[i];
    }
    const size_t features = tk_arch_features(model->trunk->arch);
    tk_head *head;
    tk_err err = tk_head_create(&head, id, classes, features, labels, NULL);
    assert(err == TK_OK);
    const uint64_t stream = tk_rng_stream(id);
    for (size_t i = 0; i < classes * features; i++) {
        head->weight[i] = 0.3F * tk_rng_normal(seed, stream, i);
    }
    head->tolerance = 1.0;
    head->best = 0.5;
    err = tk_model_add_head(model, head);
    assert(err == TK_OK);
}

tk_model *fixture_model(uint64_t seed)
{
    const tk_preproc preproc = tk_preproc_default(32);
    tk_model *model;
    const tk_err err = tk_model_create(&model, TK_RESNET20, &preproc, NULL);
    assert(err == TK_OK);
    tk_params_init(model->trunk, seed);
    fixture_add_head(model, "alice/type", FIXTURE_TYPES, "type", seed);
    fixture_add_head(model, "bob/colour", FIXTURE_COLOURS, "colour", seed);
    return model;
}

/* Slopes with some noise, so that JPEG has something to do and PNG cannot make it tiny. */
static uint8_t *picture(unsigned w, unsigned h, uint64_t seed)
{
    uint8_t *rgb = malloc((size_t)w * h * 3);
    assert(rgb);
    unsigned base[3], slope[3];
    for (uint64_t c = 0; c < 3; c++) {
        base[c] = tk_rng_below(seed, 1, c, 200);
        slope[c] = 1 + tk_rng_below(seed, 2, c, 7);
    }
    for (unsigned y = 0; y < h; y++) {
        for (unsigned x = 0; x < w; x++) {
            for (unsigned c = 0; c < 3; c++) {
                const unsigned v = base[c] + slope[c] * (c == 1 ? y : x) / 2 +
                                   tk_rng_below(seed, 3, ((uint64_t)y * w + x) * 3 + c, 8);
                rgb[((size_t)y * w + x) * 3 + c] = (uint8_t)(v & 255);
            }
        }
    }
    return rgb;
}

fixture_bytes fixture_png(unsigned w, unsigned h, uint64_t seed)
{
    uint8_t *rgb = picture(w, h, seed);
    png_image image = {.version = PNG_IMAGE_VERSION, .width = w, .height = h};
    image.format = PNG_FORMAT_RGB;
    png_alloc_size_t size = 0;
    int ok = png_image_write_to_memory(&image, NULL, &size, 0, rgb, 0, NULL);
    assert(ok);
    fixture_bytes out = {malloc(size), 0};
    assert(out.data);
    ok = png_image_write_to_memory(&image, out.data, &size, 0, rgb, 0, NULL);
    assert(ok);
    out.size = size;
    free(rgb);
    return out;
}

fixture_bytes fixture_jpeg(unsigned w, unsigned h, uint64_t seed)
{
    uint8_t *rgb = picture(w, h, seed);
    struct jpeg_error_mgr error;
    struct jpeg_compress_struct jpeg = {.err = jpeg_std_error(&error)};
    jpeg_create_compress(&jpeg);
    unsigned char *data = NULL;
    unsigned long size = 0;
    jpeg_mem_dest(&jpeg, &data, &size);
    jpeg.image_width = w;
    jpeg.image_height = h;
    jpeg.input_components = 3;
    jpeg.in_color_space = JCS_RGB;
    jpeg_set_defaults(&jpeg);
    jpeg_start_compress(&jpeg, TRUE);
    while (jpeg.next_scanline < h) {
        JSAMPROW row = rgb + (size_t)jpeg.next_scanline * w * 3;
        jpeg_write_scanlines(&jpeg, &row, 1);
    }
    jpeg_finish_compress(&jpeg);
    jpeg_destroy_compress(&jpeg);
    free(rgb);
    return (fixture_bytes){data, size};
}

static void put_u32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (24 - 8 * i));
}

/* CRC-32 of PNG chunks. */
static uint32_t crc(const uint8_t *p, size_t n)
{
    uint32_t c = UINT32_MAX;
    for (size_t i = 0; i < n; i++) {
        c ^= p[i];
        for (int k = 0; k < 8; k++)
            c = c & 1 ? 0xEDB88320U ^ (c >> 1) : c >> 1;
    }
    return ~c;
}

static size_t put_chunk(uint8_t *at, const char *type, const uint8_t *data, size_t n)
{
    put_u32(at, (uint32_t)n);
    memcpy(at + 4, type, 4);
    memcpy(at + 8, data, n);
    put_u32(at + 8 + n, crc(at + 4, 4 + n));
    return 12 + n;
}

void fixture_images(fixture_bytes *images, size_t n)
{
    for (unsigned i = 0; i < n; i++)
        images[i] = i % 2 ? fixture_jpeg(64, 48, i) : fixture_png(36, 40, i);
}

void fixture_images_free(fixture_bytes *images, size_t n)
{
    for (size_t i = 0; i < n; i++)
        free(images[i].data);
}

fixture_bytes fixture_png_bomb(unsigned w, unsigned h)
{
    static const uint8_t signature[8] = {0x89, 'P', 'N', 'G', 13, 10, 26, 10};
    static const uint8_t zlib[2] = {0x78, 0x9c};
    uint8_t ihdr[13] = {[8] = 8, [9] = 2}; /* 8 bits, RGB */
    put_u32(ihdr, w);
    put_u32(ihdr + 4, h);
    fixture_bytes out = {malloc(128), sizeof signature};
    assert(out.data);
    memcpy(out.data, signature, sizeof signature);
    out.size += put_chunk(out.data + out.size, "IHDR", ihdr, sizeof ihdr);
    out.size += put_chunk(out.data + out.size, "IDAT", zlib, sizeof zlib);
    return out;
}
