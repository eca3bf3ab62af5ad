/* Arithmetic on sizes. */
#ifndef KERNELS_SIZES_H
#define KERNELS_SIZES_H

#include <stddef.h>

static inline size_t tk__min_size(size_t a, size_t b)
{
    return a < b ? a : b;
}

static inline size_t tk__max_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

static inline size_t tk__div_up(size_t a, size_t b)
{
    return (a + b - 1) / b;
}

#endif
