/* Any bytes as an image: decoded at several scales, resized and cut. The last byte picks the scale.
 */
#include <assert.h>
#include <string.h>

#include "engine/image.h"
#include "engine/mem.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const tk_image_limits limits = {.max_side = 2048, .max_pixels = 1 << 18};
    static uint8_t canvas[36 * 36 * 3];
    static float out[32 * 32 * 3];
    tk_preproc preproc = tk_preproc_default(32);
    preproc.resize = 40;
    tk_image image;
    tk_diag diag = {.text = ""};
    const long live = tk_test_alloc_live();
    const unsigned short_side = size ? data[size - 1] % 64u : 0;
    tk_err err = tk_image_decode(&image, data, size, &limits, short_side, &diag);
    assert((err == TK_OK) == (image.rgb != NULL));
    assert((err == TK_OK) == (diag.text[0] == '\0'));
    if (err == TK_OK) {
        assert(image.w > 0 && image.h > 0 && (uint64_t)image.w * image.h <= limits.max_pixels);
        err = tk_preproc_canvas(&preproc, &image, 36, canvas, &diag);
        assert(err == TK_OK);
        const tk_view view = tk_view_centre(&preproc, 36);
        tk_view_render(&preproc, canvas, 36, &view, out);
    }
    tk_image_fini(&image);
    assert(tk_test_alloc_live() == live);
    return 0;
}
