/* Reading the committed golden files. */
#ifndef TESTS_GOLDEN_FILE_H
#define TESTS_GOLDEN_FILE_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* A file below tests/golden; free() the bytes. The test fails when it cannot be read. */
static inline uint8_t *golden_read(const char *name, size_t *size)
{
    char path[512];
    snprintf(path, sizeof path, TRUNKD_SOURCE_DIR "/tests/golden/%s", name);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    *size = (size_t)ftell(file);
    rewind(file);
    uint8_t *data = malloc(*size + 1);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, *size, file), *size);
    fclose(file);
    return data;
}

#endif
