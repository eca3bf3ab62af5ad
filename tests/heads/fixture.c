/* See fixture.h. */
#include "fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>
#include <png.h>

#include "engine/mem.h"
#include "engine/rng.h"
#include "heads/pack.h"

static char root[64];

const char *fixture_dir(void)
{
    if (!root[0]) {
        snprintf(root, sizeof root, "%s", "test-heads-XXXXXX");
        assert_non_null(mkdtemp(root));
    }
    return root;
}

void fixture_clean(void)
{
    char command[128];
    if (!root[0]) return;
    snprintf(command, sizeof command, "rm -rf -- '%s'", root);
    assert_int_equal(system(command), 0);
    root[0] = 0;
}

const char *fixture_path(const char *name)
{
    static char paths[8][512];
    static unsigned turn;
    char *path = paths[turn++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", fixture_dir(), name);
    return path;
}

const char *fixture_folder(const char *name)
{
    const char *path = fixture_path(name);
    assert_int_equal(mkdir(path, 0700), 0);
    return path;
}

static void paint(uint8_t *rgb, fixture_task task, unsigned class, uint64_t seed, uint64_t index)
{
    const unsigned colour =
        task == FIXTURE_COLOUR ? class : tk_rng_below(seed, 1, index, FIXTURE_CLASSES);
    const unsigned stripes =
        task == FIXTURE_STRIPES ? class : tk_rng_below(seed, 2, index, FIXTURE_CLASSES);
    for (unsigned y = 0; y < 32; y++)
        for (unsigned x = 0; x < 32; x++)
            for (unsigned k = 0; k < 3; k++) {
                const unsigned phase = stripes == 0 ? x : stripes == 1 ? y : x + y;
                const unsigned value = (k == colour ? 150 : 60) + (phase / 4 % 2) * 60;
                const size_t at = (y * 32 + x) * 3 + k;
                rgb[at] = (uint8_t)(value + tk_rng_below(seed, 3 + index, at, 40));
            }
}

size_t fixture_png(uint8_t *png, fixture_task task, unsigned class, uint64_t seed, uint64_t index)
{
    static uint8_t rgb[32 * 32 * 3];
    png_image image = {
        .version = PNG_IMAGE_VERSION, .width = 32, .height = 32, .format = PNG_FORMAT_RGB};
    png_alloc_size_t size = FIXTURE_PNG_MAX;
    paint(rgb, task, class, seed, index);
    assert_true(png_image_write_to_memory(&image, png, &size, 0, rgb, 0, NULL));
    return size;
}

void fixture_pack(const char *path, fixture_task task, size_t n, uint64_t seed)
{
    static const char *const labels[2][FIXTURE_CLASSES] = {{"red", "green", "blue"},
                                                           {"vertical", "horizontal", "diagonal"}};
    static uint8_t png[FIXTURE_PNG_MAX];
    tk_pack_writer *w;
    assert_int_equal(tk_pack_create(&w, path, NULL), TK_OK);
    for (size_t i = 0; i < n; i++) {
        const unsigned class = (unsigned)(i % FIXTURE_CLASSES);
        uint32_t label;
        char name[32];
        const size_t size = fixture_png(png, task, class, seed, i);
        assert_int_equal(tk_pack_label(w, labels[task][class], &label, NULL), TK_OK);
        snprintf(name, sizeof name, "%zu.png", i);
        assert_int_equal(tk_pack_add(w, label, name, png, size, NULL), TK_OK);
    }
    assert_int_equal(tk_pack_commit(w, NULL), TK_OK);
}

tk_preproc fixture_preproc(void)
{
    return tk_preproc_default(32);
}

tk_pool *fixture_pool(void)
{
    static tk_pool *pool;
    if (!pool) assert_int_equal(tk_pool_create(&pool, 2), TK_OK);
    return pool;
}

tk_model *fixture_model(uint64_t seed, size_t n_heads, const char *const *ids)
{
    static const char *const labels[FIXTURE_CLASSES] = {"red", "green", "blue"};
    const tk_preproc preproc = fixture_preproc();
    tk_model *model;
    assert_int_equal(tk_model_create(&model, TK_RESNET20, &preproc, NULL), TK_OK);
    tk_params_init(model->trunk, seed);
    for (size_t h = 0; h < n_heads; h++) {
        tk_head *head;
        assert_int_equal(tk_head_create(&head, ids[h], FIXTURE_CLASSES, 64, labels, NULL), TK_OK);
        for (size_t i = 0; i < FIXTURE_CLASSES * 64; i++)
            head->weight[i] = 0.5f * tk_rng_normal(seed, 77 + h, i);
        assert_int_equal(tk_model_add_head(model, head), TK_OK);
    }
    return model;
}

uint8_t *fixture_read(const char *path, size_t *size)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    assert_int_equal(fseek(f, 0, SEEK_END), 0);
    *size = (size_t)ftell(f);
    rewind(f);
    uint8_t *data = tk_calloc(*size + 1, 1);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, *size, f), *size);
    fclose(f);
    return data;
}

void fixture_write(const char *path, const void *data, size_t size)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, size, f), size);
    assert_int_equal(fclose(f), 0);
}
