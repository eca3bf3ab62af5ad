/* Convolution, NHWC, spread over a pool.
 *
 * Directly it is a matrix product of patches and weights. Patches are never stored whole: each task
 * copies a block of patch rows (im2col) into its thread's scratch, where it stays in the cache, and
 * multiplies it by packed weights (kernels.h). 3x3 convolutions of stride 1 may go by Winograd's
 * minimal filtering instead (winograd.h), with 2.25 or 4 times fewer multiplications, more traffic,
 * and a rounding error some 3 or 5 times larger. Small maps, where many taps fall outside, may go
 * position by position (positions.h). The geometry says which: packing, forward and gradients
 * follow its `way`.
 *
 * Where the geometry says `bf16`, the operands of the products are rounded to bfloat16 as they are
 * copied or transformed; x, y, w, their gradients and all sums stay fp32. That is for training, and
 * for any way but by position: output channels are a multiple of TK__LANES, input channels too
 * where dx is asked for, and a job has no bias, residual or ReLU. */
#ifndef NET_CONV_H
#define NET_CONV_H

#include "engine/pool.h"
#include "kernels/mixed.h"
#include "kernels/sizes.h"

/* What the tasks run on: `scratch` holds tk__conv_scratch() floats per thread. */
typedef struct tk__exec {
    const tk__kernels *kn;
    const tk__mixed *mixed; /* for geometries with `bf16`; else NULL */
    tk_pool *pool;
    float *scratch;
    size_t scratch_each;
} tk__exec;

/* Called in a task when rows m0..m1-1 (pixels of the whole batch) of the output are finished, all
 * columns, while they are in a cache. `block` counts from 0. */
typedef void tk__conv_post(void *ctx, size_t block, size_t m0, size_t m1);

/* Weights as they are stored: element (p, j) of tap t's matrix [input channel][output channel] is
 * tap[t][p * rs + j * cs], times scale[j] unless NULL. One of the strides is 1; without cs = 1
 * there is no scale. */
typedef struct tk__taps {
    size_t rs, cs;
    const float *scale;
    const float *tap[49];
} tk__taps;

typedef struct tk__conv_job {
    tk__conv geo;
    tk__input in;
    const float *packed;
    const tk__taps *taps; /* or NULL; by position: instead of `packed`, for weights used once */
    float *y;
    bool accumulate, relu;
    const float *bias, *residual;
    /* Where rows go when y is finer than the output grid (data gradient of a strided convolution):
     * pixel (oy, ox) to (oy * out_step + out_y, ox * out_step + out_x) of [out_h][out_w]. 0: as is.
     */
    size_t out_step, out_y, out_x, out_h, out_w;
    tk__conv_post *post;
    void *post_ctx;
} tk__conv_job;

/* Columns of a panel of packed weights. */
static inline size_t tk__conv_nr(const tk__exec *ex, bool bf16)
{
    return bf16 ? TK__LOWP_NR : ex->kn->nr;
}

/* The way that should be fastest for a geometry of which some `images` pass through at a time. A
 * function of its arguments only: the same network gives the same bits on every machine with the
 * same kernels, and whatever the batch. */
tk__conv_way tk__conv_choose(const tk__conv *geo, size_t images);

/* Rows per block when `post` is set; blocks = ceil(rows / this). Depends on the geometry only. */
size_t tk__conv_block_rows(const tk__conv *geo);
void tk__conv_run(const tk__exec *ex, const tk__conv_job *job);
/* The weight gradient's share of the scratch. */
size_t tk__conv_dw_scratch(void);
/* Floats of scratch a thread needs for any job, data or weight gradient of this geometry. */
size_t tk__conv_scratch(const tk__conv *geo);

/* Floats of the packed weights of forward, and of the data gradient. */
size_t tk__conv_pack_size(const tk__conv *geo);
size_t tk__conv_dx_pack_size(const tk__conv *geo);
/* Packs w [ky][kx][ic][oc], each column times scale[oc] unless NULL. */
void tk__conv_pack(const tk__exec *ex, const tk__conv *geo, const float *w, const float *scale,
                   float *packed);
/* tk__conv_run() for weights w (HWIO) that are used once: the job's `packed` and `taps` are set
 * here. `packed` is scratch of tk__conv_pack_size() floats. */
void tk__conv_run_once(const tk__exec *ex, const tk__conv_job *job, const float *w, float *packed);

/* For the ways: rows of a patch (of `k`) that are multiplied at a time; a function of k only, so
 * that no sum depends on the rest of the batch. */
size_t tk__k_block(size_t k);
/* Rows p0..p0+rows-1, columns j0..j0+cols-1 of tap t, as a panel [rows][tk__panel_width(cols)]. */
void tk__pack_piece(const tk__kernels *kn, const tk__taps *taps, size_t t, size_t p0, size_t rows,
                    size_t j0, size_t cols, float *out);

/* dx [n][ih][iw][ic] (+)= the data gradient of the convolution `geo` (square, symmetric padding)
 * for weights w (HWIO) and dy [n][oh][ow][oc]. `packed` is scratch of tk__conv_dx_pack_size()
 * floats. */
void tk__conv_dx(const tk__exec *ex, const tk__conv *geo, const float *w, const float *dy,
                 float *dx, bool accumulate, float *packed);

/* dw [ky][kx][ic][oc] = the weight gradient. `partials` is scratch of tk__conv_partials() floats.
 * The order of summation depends on the geometry and the pool's number of threads only. */
void tk__conv_dw(const tk__exec *ex, const tk__conv *geo, const tk__input *in, const float *dy,
                 float *dw, float *partials);
size_t tk__conv_partials(const tk__exec *ex, const tk__conv *geo);
/* squares += the square of each image's own weight gradient, image by image. `one` is scratch of
 * the weights' size. */
void tk__conv_dw_squares(const tk__exec *ex, const tk__conv *geo, const tk__input *in,
                         const float *dy, float *one, float *squares);

#endif
