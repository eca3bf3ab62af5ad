/* foreign_store: prepares what a test in another language needs, in a new folder under TMPDIR: a
 * store with two versions and two tenants (tests/server/trunkd_process.h), and two pictures, each
 * as a file and as its RGB pixels. Prints NAME=VALUE lines. */
#include <stdio.h>
#include <stdlib.h>

#include "engine/image.h"
#include "fixture.h"
#include "trunkd_process.h"

static void write_file(const trunkd *t, const char *name, const void *data, size_t size)
{
    char path[300];
    snprintf(path, sizeof path, "%s/%s", t->dir, name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, size, f) != size || fclose(f) != 0) {
        perror(path);
        exit(1);
    }
}

static void write_picture(const trunkd *t, const char *name, fixture_bytes picture)
{
    tk_diag diag = {{0}};
    tk_image rgb;
    if (tk_image_decode(&rgb, picture.data, picture.size, NULL, 0, &diag) != TK_OK) {
        fprintf(stderr, "%s: %s\n", name, diag.text);
        exit(1);
    }
    char pixels[64];
    snprintf(pixels, sizeof pixels, "%s.rgb", name);
    write_file(t, name, picture.data, picture.size);
    write_file(t, pixels, rgb.rgb, (size_t)rgb.w * rgb.h * 3);
    tk_image_fini(&rgb);
    free(picture.data);
}

int main(void)
{
    trunkd t;
    trunkd_prepare(&t, 2);
    write_picture(&t, "picture.png", fixture_png(48, 40, 1)); /* width, height, seed */
    write_picture(&t, "picture.jpg", fixture_jpeg(64, 32, 2));
    printf("dir=%s\nadmin=%s\nalice=%s\nbob=%s\n", t.dir, t.admin_token, t.alice_token,
           t.bob_token);
    return 0;
}
