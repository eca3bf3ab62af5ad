/* The geometry of a convolution with a square kernel and "same" padding. */
#ifndef TESTS_ENGINE_GEOMETRY_H
#define TESTS_ENGINE_GEOMETRY_H

#include "kernels/kernels.h"

static inline tk__conv make_geo(size_t n, size_t h, size_t w, size_t ic, size_t oc, size_t k,
                                size_t stride)
{
    const size_t pad = k / 2;
    return (tk__conv){.n = n,
                      .ih = h,
                      .iw = w,
                      .ic = ic,
                      .oh = (h + 2 * pad - k) / stride + 1,
                      .ow = (w + 2 * pad - k) / stride + 1,
                      .oc = oc,
                      .ky = k,
                      .kx = k,
                      .stride = stride,
                      .pad_y = (ptrdiff_t)pad,
                      .pad_x = (ptrdiff_t)pad};
}

#endif
