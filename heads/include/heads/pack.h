/* A data set in one file: encoded images with labels, in upload order. Written once as a stream
 * with bounded memory, then immutable; read through a mapping. The reader trusts nothing. Layout:
 * see pack.c. */
#ifndef HEADS_PACK_H
#define HEADS_PACK_H

#include <stddef.h>
#include <stdint.h>

#include "engine/err.h"

enum { TK_PACK_NAME_MAX = 255, TK_PACK_IMAGE_MAX = 64 << 20 };

typedef struct tk_pack_item {
    uint32_t label;   /* index into the labels */
    const char *name; /* the uploader's file name, for messages; NUL-terminated */
    const uint8_t *data;
    size_t size;
} tk_pack_item;

typedef struct tk_pack_writer tk_pack_writer;
/* The file appears at `path` only by tk_pack_commit(). */
TK_MUST tk_err tk_pack_create(tk_pack_writer **out, const char *path, tk_diag *diag);
/* Label index for a name; new names are appended (at most TK_HEAD_MAX_CLASSES). */
TK_MUST tk_err tk_pack_label(tk_pack_writer *w, const char *label, uint32_t *index, tk_diag *diag);
TK_MUST tk_err tk_pack_add(tk_pack_writer *w, uint32_t label, const char *name, const void *data,
                           size_t size, tk_diag *diag);
/* Writes index and labels, syncs, renames. Frees the writer either way. */
TK_MUST tk_err tk_pack_commit(tk_pack_writer *w, tk_diag *diag);
void tk_pack_abort(tk_pack_writer *w); /* removes the temporary; NULL is fine */
size_t tk_pack_writer_count(const tk_pack_writer *w);

/* Only read: any number of threads. */
typedef struct tk_pack tk_pack;
TK_MUST tk_err tk_pack_open(tk_pack **out, const char *path, tk_diag *diag);
void tk_pack_close(tk_pack *pack);
size_t tk_pack_count(const tk_pack *pack);
size_t tk_pack_classes(const tk_pack *pack);
const char *tk_pack_label_name(const tk_pack *pack, uint32_t label);
tk_pack_item tk_pack_get(const tk_pack *pack, size_t i); /* borrowed; i < count */

#endif
