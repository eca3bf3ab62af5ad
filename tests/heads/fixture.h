/* Small made-up data sets for the tests of heads/. Images are 32 x 32 PNG: a striped square whose
 * colour and stripes say the class, with seeded noise. */
#ifndef TESTS_HEADS_FIXTURE_H
#define TESTS_HEADS_FIXTURE_H

#include <stddef.h>
#include <stdint.h>

#include "engine/image.h"
#include "engine/pool.h"
#include "heads/model.h"

typedef enum fixture_task { FIXTURE_COLOUR, FIXTURE_STRIPES } fixture_task;
enum { FIXTURE_CLASSES = 3, FIXTURE_PNG_MAX = 16384 };

/* A fresh folder for this test program, removed with everything in it by fixture_clean(). */
const char *fixture_dir(void);
void fixture_clean(void);
/* DIR/name in one of a few rotating buffers. */
const char *fixture_path(const char *name);
/* A new folder DIR/name. */
const char *fixture_folder(const char *name);

/* The PNG file of one image, into `png` [FIXTURE_PNG_MAX]; its size. */
size_t fixture_png(uint8_t *png, fixture_task task, unsigned class, uint64_t seed, uint64_t index);
/* Writes a pack of `n` images, classes in turn. */
void fixture_pack(const char *path, fixture_task task, size_t n, uint64_t seed);
tk_preproc fixture_preproc(void); /* 32 px, no margin */
tk_pool *fixture_pool(void);      /* two threads, one for the program */
/* A ResNet-20 with random weights and, for each id, a random head of FIXTURE_CLASSES classes. */
tk_model *fixture_model(uint64_t seed, size_t n_heads, const char *const *ids);

/* Whole file; *size its length; tk_free(). */
uint8_t *fixture_read(const char *path, size_t *size);
void fixture_write(const char *path, const void *data, size_t size);

#endif
