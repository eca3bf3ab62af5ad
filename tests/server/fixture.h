/* What the server's tests share: a small seeded model with heads of two tenants, and images made on
 * the spot. */
#ifndef TESTS_SERVER_FIXTURE_H
#define TESTS_SERVER_FIXTURE_H

#include "heads/model.h"

enum { FIXTURE_TYPES = 5, FIXTURE_COLOURS = 3 };

/* ResNet-20 at 32 px from `seed`, with heads "alice/type" (5 classes "type-0".. ) and "bob/colour"
 * (3 classes "colour-0"..). Aborts on failure. */
tk_model *fixture_model(uint64_t seed);
/* Adds a head with seeded weights and labels "<stem>-0", "<stem>-1", ... */
void fixture_add_head(tk_model *model, const char *id, size_t classes, const char *stem,
                      uint64_t seed);

typedef struct fixture_bytes {
    uint8_t *data; /* free() */
    size_t size;
} fixture_bytes;

/* A w x h picture drawn from `seed`, as PNG or as JPEG. */
fixture_bytes fixture_png(unsigned w, unsigned h, uint64_t seed);
fixture_bytes fixture_jpeg(unsigned w, unsigned h, uint64_t seed);
/* n of them, each another: PNG and JPEG by turns, of two sizes. */
void fixture_images(fixture_bytes *images, size_t n);
void fixture_images_free(fixture_bytes *images, size_t n);
/* A well-formed PNG header that promises w x h pixels, with almost no data behind it. */
fixture_bytes fixture_png_bomb(unsigned w, unsigned h);

#endif
