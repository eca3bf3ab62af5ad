/* Durable files: written as temporary + fsync + rename + fsync of the folder, or not at all. */
#ifndef ENGINE_FILE_H
#define ENGINE_FILE_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "engine/err.h"

/* A read-only mapping of a whole file. */
typedef struct tk_map {
    const uint8_t *data; /* NULL for an empty file */
    size_t size;
} tk_map;

TK_MUST tk_err tk_map_open(tk_map *out, const char *path, tk_diag *diag);
void tk_map_close(tk_map *map); /* NULL and zeroed are fine */

/* A file that becomes visible at `path` only by tk_file_commit(); until then the bytes live beside
 * it under a temporary name, which tk_file_abort() (or the commit's failure) removes. */
typedef struct tk_file {
    FILE *stream; /* write here; errors are caught at commit */
    char *path, *temp;
} tk_file;

TK_MUST tk_err tk_file_create(tk_file *out, const char *path, tk_diag *diag);
TK_MUST tk_err tk_file_commit(tk_file *file, tk_diag *diag);
void tk_file_abort(tk_file *file);

/* tk_file_create + write + tk_file_commit. */
TK_MUST tk_err tk_file_write(const char *path, const void *data, size_t size, tk_diag *diag);
/* fsync of the folder that holds `path`, so that a rename or unlink in it lasts. */
TK_MUST tk_err tk_file_sync_parent(const char *path, tk_diag *diag);

#endif
