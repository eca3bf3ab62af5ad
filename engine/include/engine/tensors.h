/* safetensors files, in and out. The reader trusts nothing: header size, JSON, names, shapes, offsets,
 * overlaps and holes are all checked before a tensor is seen. */
#ifndef ENGINE_TENSORS_H
#define ENGINE_TENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/err.h"
#include "engine/net.h"

typedef enum tk_dtype { TK_F32, TK_F16, TK_BF16, TK_I64, TK_U8, TK_OTHER } tk_dtype;

typedef struct tk_tensor {
    const char *name; /* borrowed */
    tk_dtype dtype;
    unsigned rank; /* 0..8 */
    size_t shape[8];
    size_t count;       /* elements */
    const void *data;   /* borrowed; unaligned when reading */
} tk_tensor;

typedef struct tk_tensors tk_tensors;

/* Reads a file (mapped) or a buffer (borrowed, must outlive the handle). */
TK_MUST tk_err tk_tensors_open(tk_tensors **out, const char *path, tk_diag *diag);
TK_MUST tk_err tk_tensors_parse(tk_tensors **out, const void *data, size_t size, tk_diag *diag);
void tk_tensors_close(tk_tensors *tensors);
size_t tk_tensors_count(const tk_tensors *tensors);
const tk_tensor *tk_tensors_at(const tk_tensors *tensors, size_t i);
const tk_tensor *tk_tensors_find(const tk_tensors *tensors, const char *name); /* or NULL */
/* Value of `__metadata__`[key], or NULL. */
const char *tk_tensors_meta(const tk_tensors *tensors, const char *key);
/* Copies to fp32 (from F32, F16 or BF16); out has tensor->count floats. */
TK_MUST tk_err tk_tensor_to_f32(const tk_tensor *tensor, float *out, tk_diag *diag);

/* Writes a file durably. `meta` is n_meta pairs (key, value), may be NULL. Tensors are F32 or U8. */
typedef struct tk_meta {
    const char *key, *value;
} tk_meta;
TK_MUST tk_err tk_tensors_write(const char *path, const tk_tensor *tensors, size_t n,
                                const tk_meta *meta, size_t n_meta, tk_diag *diag);

/* The trunk inside a safetensors file. `prefix` ("" for torchvision's own files) goes before each name.
 * `num_batches_tracked` and, with an empty prefix, `fc.weight`/`fc.bias` are tolerated (the fc is the
 * caller's to take); any other extra tensor, a missing or a misshapen one, a value that is not finite or
 * a negative variance is TK_BADDATA naming it. On failure the parameters are unspecified. */
TK_MUST tk_err tk_params_load(tk_params *params, const tk_tensors *tensors, const char *prefix,
                              tk_diag *diag);
/* Which architecture do these names and shapes belong to? */
TK_MUST tk_err tk_arch_guess(const tk_tensors *tensors, const char *prefix, tk_arch *out,
                             tk_diag *diag);
/* Appends the trunk's tensors (names prefixed, OIHW copies) to a growing list for tk_tensors_write.
 * Takes `data` laid out as params->data: pass params->data, a Fisher or an anchor; `trained_only`
 * leaves the running statistics out. Free the list with tk_tensor_list_fini(). */
typedef struct tk_tensor_list {
    tk_tensor *items;
    size_t n, cap;
} tk_tensor_list;
TK_MUST tk_err tk_tensor_list_add_trunk(tk_tensor_list *list, const tk_params *params,
                                        const float *data, const char *prefix, bool trained_only);
/* Appends one fp32 tensor; name and data are copied. */
TK_MUST tk_err tk_tensor_list_add(tk_tensor_list *list, const char *name, unsigned rank,
                                  const size_t *shape, const float *data);
/* The same with bytes, as one vector. */
TK_MUST tk_err tk_tensor_list_add_u8(tk_tensor_list *list, const char *name, size_t n,
                                     const uint8_t *data);
void tk_tensor_list_fini(tk_tensor_list *list);

#endif
