/* Preprocessing against torchvision (golden files by tests/golden/preproc.py), canvases and views.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/image.h"
#include "engine/mem.h"
#include "golden_file.h"

typedef struct golden {
    const char *name, *kind;
    tk_resize_mode mode;
    unsigned resize, crop;
} golden;

static const golden GOLDEN[] = {
    {"photo", "jpg", TK_RESIZE_SHORT, 64, 56},      {"progressive", "jpg", TK_RESIZE_SHORT, 37, 32},
    {"grey", "jpg", TK_RESIZE_SQUASH, 41, 41},      {"rotated", "jpg", TK_RESIZE_SHORT, 48, 48},
    {"cmyk", "jpg", TK_RESIZE_SHORT, 40, 32},       {"ycck", "jpg", TK_RESIZE_SHORT, 40, 32},
    {"palette", "png", TK_RESIZE_SHORT, 32, 32},    {"rgba", "png", TK_RESIZE_SQUASH, 32, 32},
    {"grey_alpha", "png", TK_RESIZE_SHORT, 32, 27}, {"grey16", "png", TK_RESIZE_SHORT, 24, 24},
    {"rgb16", "png", TK_RESIZE_SHORT, 24, 19},      {"bits", "png", TK_RESIZE_SHORT, 32, 32},
    {"interlaced", "png", TK_RESIZE_SHORT, 29, 24}, {"enlarged", "png", TK_RESIZE_SHORT, 48, 48},
    {"narrow", "png", TK_RESIZE_SHORT, 32, 32},     {"pixel", "png", TK_RESIZE_SHORT, 16, 16},
};

static tk_preproc preproc_of(const golden *g)
{
    tk_preproc p = tk_preproc_default(224);
    p.mode = g->mode;
    p.resize = g->resize;
    p.crop = g->crop;
    assert_int_equal(tk_preproc_check(&p, NULL), TK_OK);
    return p;
}

static tk_image decode_golden(const golden *g)
{
    char name[64];
    size_t size;
    tk_image image;
    tk_diag diag = {.text = ""};
    snprintf(name, sizeof name, "preproc/%s.%s", g->name, g->kind);
    uint8_t *data = golden_read(name, &size);
    tk_err err = tk_image_decode(&image, data, size, NULL, 0, &diag);
    assert_string_equal(diag.text, "");
    assert_int_equal(err, TK_OK);
    free(data);
    return image;
}

static uint8_t *canvas_of(const tk_preproc *p, const tk_image *image, unsigned side)
{
    uint8_t *canvas = malloc((size_t)side * side * 3);
    assert_non_null(canvas);
    assert_int_equal(tk_preproc_canvas(p, image, side, canvas, NULL), TK_OK);
    return canvas;
}

/* The promise is a mean of 1 level; the same decoder libraries give the very same bytes. One level
 * is left to other builds of libjpeg. */
static void canvases_equal_torchvisions(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof GOLDEN / sizeof GOLDEN[0]; i++) {
        const golden *g = &GOLDEN[i];
        const tk_preproc p = preproc_of(g);
        tk_image image = decode_golden(g);
        uint8_t *canvas = canvas_of(&p, &image, g->crop);
        char name[64];
        size_t size;
        snprintf(name, sizeof name, "preproc/%s.rgb", g->name);
        uint8_t *want = golden_read(name, &size);
        assert_int_equal(size, g->crop * g->crop * 3);
        unsigned sum = 0, worst = 0;
        for (size_t j = 0; j < size; j++) {
            unsigned away = (unsigned)abs(canvas[j] - want[j]);
            sum += away;
            if (away > worst) worst = away;
        }
        if (worst > 0)
            print_message("%s: mean %.3f, max %u\n", g->name, (double)sum / (double)size, worst);
        assert_true(worst <= (strcmp(g->kind, "jpg") == 0 ? 1 : 0));
        free(want);
        free(canvas);
        tk_image_fini(&image);
    }
}

/* torch: Normalize(mean, std)(ToTensor()(v)) for v = 0, 128, 255 in each channel. */
static void bytes_become_torchs_floats(void **state)
{
    (void)state;
    static const float want[3][3] = {{-0x1.0f177a00p+1f, -0x1.04924800p+1f, -0x1.cdf01200p+0f},
                                     {0x1.2f5e6400p-4f, 0x1.a4369000p-3f, 0x1.b4ba7800p-2f},
                                     {0x1.1fdc3a00p+1f, 0x1.36db6e00p+1f, 0x1.51eb8600p+1f}};
    static const uint8_t bytes[3] = {0, 128, 255};
    tk_preproc p = tk_preproc_default(224);
    p.resize = p.crop = 1;
    for (int v = 0; v < 3; v++) {
        const uint8_t canvas[3] = {bytes[v], bytes[v], bytes[v]};
        const tk_view view = tk_view_centre(&p, 1);
        float out[3];
        tk_view_render(&p, canvas, 1, &view, out);
        for (int c = 0; c < 3; c++)
            assert_true(out[c] == want[v][c]);
    }
}

static void a_margin_does_not_move_the_centre_view(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof GOLDEN / sizeof GOLDEN[0]; i++) {
        tk_preproc p = preproc_of(&GOLDEN[i]);
        if (p.resize - p.crop < 4) p.crop = p.resize - 7;
        tk_image image = decode_golden(&GOLDEN[i]);
        const size_t n = (size_t)p.crop * p.crop * 3;
        float *tight = malloc(n * sizeof *tight), *cut = malloc(n * sizeof *cut);
        for (unsigned side = p.crop; side <= p.resize; side++) {
            uint8_t *canvas = canvas_of(&p, &image, side);
            const tk_view view = tk_view_centre(&p, side);
            tk_view_render(&p, canvas, side, &view, side == p.crop ? tight : cut);
            if (side > p.crop) assert_memory_equal(cut, tight, n * sizeof *cut);
            free(canvas);
        }
        free(tight);
        free(cut);
        tk_image_fini(&image);
    }
}

/* A canvas whose red is x and whose green is y. */
enum { SIDE = 40 };
static tk_preproc ruler(uint8_t *canvas)
{
    for (unsigned y = 0; y < SIDE; y++) {
        for (unsigned x = 0; x < SIDE; x++) {
            canvas[(y * SIDE + x) * 3] = (uint8_t)(x + 1);
            canvas[(y * SIDE + x) * 3 + 1] = (uint8_t)(y + 1);
            canvas[(y * SIDE + x) * 3 + 2] = 0;
        }
    }
    return (tk_preproc){.resize = SIDE, .crop = 32, .std = {1, 1, 1}};
}

static int red(const float *out, int x, int y)
{
    return (int)lrintf(out[(y * 32 + x) * 3] * 255);
}

static int green(const float *out, int x, int y)
{
    return (int)lrintf(out[(y * 32 + x) * 3 + 1] * 255);
}

static void a_view_cuts_pads_and_mirrors(void **state)
{
    (void)state;
    static uint8_t canvas[SIDE * SIDE * 3];
    static float out[32 * 32 * 3];
    const tk_preproc p = ruler(canvas);
    tk_view_render(&p, canvas, SIDE, &(tk_view){.x = 3, .y = 5, .w = 32, .h = 32}, out);
    assert_int_equal(red(out, 0, 0), 4);
    assert_int_equal(green(out, 0, 0), 6);
    assert_int_equal(red(out, 31, 31), 35);
    tk_view_render(&p, canvas, SIDE, &(tk_view){.x = 3, .y = 5, .w = 32, .h = 32, .flip = 1}, out);
    assert_int_equal(red(out, 0, 0), 35);
    assert_int_equal(green(out, 0, 0), 6);
    /* Outside is black, before normalising. */
    tk_view_render(&p, canvas, SIDE, &(tk_view){.x = -2, .y = 10, .w = 32, .h = 32}, out);
    assert_int_equal(red(out, 1, 0), 0);
    assert_int_equal(red(out, 2, 0), 1);
    assert_int_equal(green(out, 2, 29), 40);
    assert_int_equal(green(out, 2, 30), 0);
}

static void a_scaled_view_interpolates(void **state)
{
    (void)state;
    static uint8_t canvas[SIDE * SIDE * 3];
    static float out[32 * 32 * 3];
    const tk_preproc p = ruler(canvas);
    for (int flip = 0; flip < 2; flip++) {
        const tk_view view = {.x = 4, .y = 20, .w = 16, .h = 8, .flip = flip};
        tk_view_render(&p, canvas, SIDE, &view, out);
        for (int i = 0; i < 32; i++) {
            /* Pixel centres: source x = 4 + (i + 1/2) / 2 - 1/2, held at the view's edges. */
            double x = fmin(fmax(4 + (i + 0.5) / 2 - 0.5, 4), 19);
            double y = fmin(fmax(20 + (i + 0.5) / 4 - 0.5, 20), 27);
            const float *at = out + (i * 32 + (flip ? 31 - i : i)) * 3;
            assert_true(fabs((double)at[0] * 255 - (x + 1)) < 1e-3);
            assert_true(fabs((double)at[1] * 255 - (y + 1)) < 1e-3);
        }
    }
}

static void random_views_are_seeded_varied_and_inside(void **state)
{
    (void)state;
    static uint8_t canvas[SIDE * SIDE * 3];
    const tk_preproc p = ruler(canvas);
    const tk_augment crop = {.pad = 4, .scale_min = 1, .flip = 1};
    const tk_augment scaled = {.scale_min = 0.25f};
    int flips = 0, left = 99, right = -99;
    double smallest = 1, largest = 0;
    for (uint64_t i = 0; i < 2000; i++) {
        tk_view v = tk_view_random(&p, SIDE, &crop, 1, i, 2);
        tk_view again = tk_view_random(&p, SIDE, &crop, 1, i, 2);
        assert_memory_equal(&v, &again, sizeof v);
        assert_true(v.w == 32 && v.h == 32);
        flips += v.flip;
        left = v.x < left ? v.x : left;
        right = v.x > right ? v.x : right;
        assert_true(v.y >= -4 && v.y <= SIDE + 4 - 32);
        v = tk_view_random(&p, SIDE, &scaled, 1, i, 2);
        assert_true(v.x >= 0 && v.y >= 0 && v.x + (int)v.w <= SIDE && v.y + (int)v.h <= SIDE);
        assert_int_equal(v.flip, 0);
        double area = (double)v.w * v.h / (SIDE * SIDE);
        smallest = fmin(smallest, area);
        largest = fmax(largest, area);
        double ratio = (double)v.w / v.h;
        assert_true(ratio > 0.70 && ratio < 1.42); /* 3/4..4/3, rounded to pixels */
    }
    assert_true(flips > 900 && flips < 1100);
    assert_true(left == -4 && right == SIDE + 4 - 32);
    assert_true(smallest > 0.22 && smallest < 0.3 && largest > 0.9);
    /* Another view, image or seed is another cut. */
    tk_view a = tk_view_random(&p, SIDE, &scaled, 1, 5, 0);
    tk_view others[] = {tk_view_random(&p, SIDE, &scaled, 1, 5, 1),
                        tk_view_random(&p, SIDE, &scaled, 1, 6, 0),
                        tk_view_random(&p, SIDE, &scaled, 2, 5, 0)};
    for (int i = 0; i < 3; i++)
        assert_memory_not_equal(&a, &others[i], sizeof a);
}

static void defaults_are_the_usual_ones(void **state)
{
    (void)state;
    assert_int_equal(tk_preproc_default(224).resize, 256);
    assert_int_equal(tk_preproc_default(64).resize, 73);
    assert_int_equal(tk_preproc_default(32).resize, 32);
    tk_diag diag;
    tk_preproc p = tk_preproc_default(224);
    p.resize = 223;
    assert_int_equal(tk_preproc_check(&p, &diag), TK_BADARG);
    assert_non_null(strstr(diag.text, "resize (223)"));
    p = tk_preproc_default(224);
    p.std[1] = 0;
    assert_int_equal(tk_preproc_check(&p, &diag), TK_BADARG);
    p.std[1] = NAN;
    assert_int_equal(tk_preproc_check(&p, &diag), TK_BADARG);
    p = tk_preproc_default(224);
    p.mode = (tk_resize_mode)9;
    assert_int_equal(tk_preproc_check(&p, &diag), TK_BADARG);
}

/* 16384 x 1 pixels resize to four million columns, of which a canvas needs a few. */
static void an_extremely_narrow_image_costs_little(void **state)
{
    (void)state;
    tk_image image = {.w = 16384, .h = 1, .rgb = calloc(16384, 3)};
    assert_non_null(image.rgb);
    memset(image.rgb, 77, 16384 * 3);
    const tk_preproc p = tk_preproc_default(224);
    uint8_t *canvas = canvas_of(&p, &image, 224);
    for (size_t i = 0; i < 224 * 224 * 3; i++)
        assert_int_equal(canvas[i], 77);
    free(canvas);
    free(image.rgb);
}

static void resizing_survives_no_memory(void **state)
{
    (void)state;
    const golden *g = &GOLDEN[0];
    const tk_preproc p = preproc_of(g);
    tk_image image = decode_golden(g);
    uint8_t *canvas = malloc((size_t)g->crop * g->crop * 3);
    long live = tk_test_alloc_live();
    for (long n = 0;; n++) {
        tk_test_alloc_fail_after(n);
        tk_err err = tk_preproc_canvas(&p, &image, g->crop, canvas, NULL);
        tk_test_alloc_fail_after(-1);
        assert_int_equal(tk_test_alloc_live(), live);
        if (err == TK_OK) break;
        assert_int_equal(err, TK_NOMEM);
        assert_true(n < 100);
    }
    free(canvas);
    tk_image_fini(&image);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(canvases_equal_torchvisions),
        cmocka_unit_test(bytes_become_torchs_floats),
        cmocka_unit_test(a_margin_does_not_move_the_centre_view),
        cmocka_unit_test(a_view_cuts_pads_and_mirrors),
        cmocka_unit_test(a_scaled_view_interpolates),
        cmocka_unit_test(random_views_are_seeded_varied_and_inside),
        cmocka_unit_test(defaults_are_the_usual_ones),
        cmocka_unit_test(an_extremely_narrow_image_costs_little),
        cmocka_unit_test(resizing_survives_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
