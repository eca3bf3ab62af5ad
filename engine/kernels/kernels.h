/* The kernels: one table per instruction set, all filled the same way; the scalar one is the
 * oracle.
 *
 * The matrix product works on packed panels. B, a matrix [k][n], is cut into panels of `nr`
 * columns, each stored [k][width] and zero beyond the matrix, width = tk__panel_width(). A is read
 * in place with two strides, so one kernel serves forward (rows are patches), the weight gradient
 * (rows are patch columns) and the data gradient. Every output element is one chain of
 * multiply-adds over k in rising order, whatever tile it falls into: a result never depends on its
 * neighbours.
 *
 * The other kernels run over `rows` x `c` arrays, channels last. They are written once and compiled
 * for each instruction set: batch norm (norm.h) and Winograd's transforms (winograd.h) in terms of
 * its vector, the rest (elementwise.h, im2col.h) as plain loops. NaN goes through all of them. */
#ifndef KERNELS_KERNELS_H
#define KERNELS_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* c[m][n] (+)= a[m][k] b[k][n], then bias, residual and ReLU in that order where asked for. */
typedef struct tk__gemm {
    size_t m, n, k; /* n <= nr; any may be 0 (k = 0: a product of zeros) */
    const float *a; /* a[i * rs + p * cs] */
    size_t rs, cs;  /* one of them is 1 */
    const float *b; /* b[p * ldb + j], readable up to the next multiple of TK__LANES columns */
    size_t ldb;
    float *c; /* c[i * ldc + j] */
    size_t ldc;
    bool accumulate;       /* add to what c holds */
    const float *bias;     /* [n], or NULL */
    const float *residual; /* laid out as c, or NULL */
    bool relu;
    bool far; /* a hint: c and residual are in no near cache */
    /* A hint, or NULL: for every row i the caller reads `ahead_lines` cache lines from ahead + i *
     * ahead_pitch on next. */
    const float *ahead;
    size_t ahead_pitch, ahead_lines;
} tk__gemm;

enum {
    TK__LANES = 16,   /* panels are padded to this many columns */
    TK__NR_MAX = 64,  /* the widest panel of any instruction set */
    TK__MAX_C = 2048, /* channels that a normalised input or a Winograd transform may have */
};

/* How a convolution is computed (net/conv.h). The value of a Winograd way is its tile size. */
typedef enum tk__conv_way {
    TK__DIRECT = 0,
    TK__BY_POSITION = 1,
    TK__WINOGRAD_2 = 2,
    TK__WINOGRAD_4 = 4,
} tk__conv_way;

/* Geometry of a convolution: y[n][oh][ow][oc] from x[n][ih][iw][ic]. Output pixel (oy, ox), tap
 * (ty, tx) reads input pixel (oy * stride + ty - pad_y, ox * stride + tx - pad_x), zero outside. */
typedef struct tk__conv {
    size_t n, ih, iw, ic, oh, ow, oc, ky, kx, stride;
    ptrdiff_t pad_y, pad_x;
    tk__conv_way way;
    size_t bf16; /* 1: products of bfloat16 operands with fp32 sums (mixed.h); 0: fp32 */
} tk__conv;

typedef struct tk__pool_shape {
    size_t ih, iw, oh, ow, c; /* 3x3, stride 2, padding 1 */
} tk__pool_shape;

/* What a kernel reads: x itself, or with `scale` and `shift` [channels] relu(x * scale + shift), so
 * that batch norm and ReLU need no map of their own. Then channels are a multiple of TK__LANES.
 * Padding is zero either way. */
typedef struct tk__input {
    const float *x, *scale, *shift;
} tk__input;

/* Where a ReLU let nothing through: act <= 0, or, without `act`, u * scale + shift <= 0 for the u
 * at hand, or nowhere (all NULL). A NaN lets through, as in PyTorch. */
typedef struct tk__mask {
    const float *act, *scale, *shift;
} tk__mask;

/* A run of Winograd tiles (winograd.h): tiles t0..t0+tiles-1 of the batch in the order image, tile
 * row, tile column. A tile is m x m outputs of a 3x3 convolution of stride 1. Its (m + 2)^2
 * transformed values ("points") lie `point` floats apart, consecutive tiles `pitch`. */
typedef struct tk__wino {
    tk__conv geo;
    size_t m;      /* 2 or 4 */
    size_t th, tw; /* tiles of an image: ceil(oh / m), ceil(ow / m) */
    size_t t0, tiles;
} tk__wino;

/* Where output tiles go: columns c0..c0+cols-1 of y, then as tk__gemm. */
typedef struct tk__wino_out {
    float *y;
    size_t c0, cols;
    bool accumulate;
    const float *bias;     /* [oc], or NULL */
    const float *residual; /* laid out as y, or NULL */
    bool relu;
} tk__wino_out;

typedef struct tk__kernels {
    const char *name; /* "scalar", "avx2", "avx512" */
    size_t nr;        /* panel width, a multiple of TK__LANES */
    size_t mr;        /* rows of a register tile: blocks of a multiple of it waste nothing */
    void (*gemm)(const tk__gemm *g);
    /* Columns k0..k0+kc-1 of the patch rows (output pixels of the batch) m0..m0+rows-1 into out,
     * `pitch` floats from row to row. Column (ty * kx + tx) * ic + channel is tap (ty, tx). */
    void (*im2col)(const tk__conv *geo, const tk__input *in, size_t m0, size_t rows, size_t k0,
                   size_t kc, float *out, size_t pitch);

    /* 16 x 16: to[j * to_ld + i] = from[i * ld + j] */
    void (*transpose)(const float *from, size_t ld, float *to, size_t to_ld);

    /* Winograd's transforms. Input: tiles, all channels, to v. */
    void (*wino_input)(const tk__wino *w, const tk__input *in, float *v, size_t pitch,
                       size_t point);
    /* Tiles of the output's gradient to v, for the weight gradient. */
    void (*wino_dy)(const tk__wino *w, const float *dy, float *v, size_t pitch, size_t point);
    /* Products u, whose column 0 is output channel c0, to y. */
    void (*wino_output)(const tk__wino *w, const float *u, size_t pitch, size_t point,
                        const tk__wino_out *out);
    /* taps [9][TK__LANES][TK__LANES], `rows` input channels of each, to u[r * ld + column]. */
    void (*wino_weights)(size_t m, const float *taps, size_t rows, float *u, size_t ld,
                         size_t point);
    /* du, `count` values of each point, to the nine taps of dw, `tap` floats apart. */
    void (*wino_dw)(size_t m, size_t count, const float *du, size_t point, float *dw, size_t tap);

    /* Batch norm; c is a multiple of TK__LANES. y = relu?(u * scale + shift (+ residual)) */
    void (*bn_apply)(size_t rows, size_t c, const float *u, const float *scale, const float *shift,
                     const float *residual, bool relu, float *y);
    /* mean[c] and m2[c] = sum of squared distances from it, over rows >= 1 */
    void (*moments)(size_t rows, size_t c, const float *u, float *mean, float *m2);
    /* g = dy, or 0 where the mask says so; written to g_out unless NULL (dy itself is fine).
     * sum_g[c] += g; sum_gu[c] += g * (u - mean). */
    void (*bn_reduce)(size_t rows, size_t c, const float *dy, const tk__mask *mask, const float *u,
                      const float *mean, float *g_out, float *sum_g, float *sum_gu);
    /* du = g * ka + u * kb + kc, g as above; du may be dy */
    void (*bn_dx)(size_t rows, size_t c, const float *dy, const tk__mask *mask, const float *u,
                  const float *ka, const float *kb, const float *kc, float *du);
    /* Both at once for constant statistics: du = g * ka. du and g_out may be dy. */
    void (*bn_frozen)(size_t rows, size_t c, const float *dy, const tk__mask *mask, const float *u,
                      const float *mean, const float *ka, float *g_out, float *du, float *sum_g,
                      float *sum_gu);

    /* Output rows y0..y1-1 of one image (in->x, y, argmax point at the image). The first of equal
     * values wins, as in PyTorch; argmax (the tap, 0..8) may be NULL. */
    void (*max_pool)(const tk__pool_shape *s, size_t y0, size_t y1, const tk__input *in, float *y,
                     uint8_t *argmax);
    /* One image: dx is overwritten. */
    void (*max_pool_dx)(const tk__pool_shape *s, const float *dy, const uint8_t *argmax, float *dx);
    /* y[c] = mean over rows; dx[rows][c] = dy[c] / rows */
    void (*avg_pool)(size_t rows, size_t c, const float *x, float *y);
    void (*avg_pool_dx)(size_t rows, size_t c, const float *dy, float *dx);

    void (*add)(size_t n, float *y, const float *x);         /* y += x */
    void (*add_squares)(size_t n, float *y, const float *x); /* y += x * x */
    void (*scale)(size_t n, float *y, float factor);
    double (*sum_squares)(size_t n, const float *x); /* in double, the same order for every table */
    /* y[r] = sum over k of w[r][k] x[k], + bias[r] unless NULL: one image through a head */
    void (*matvec)(size_t rows, size_t k, const float *w, const float *x, const float *bias,
                   float *y);
    void (*sgd)(size_t n, float *w, const float *g, float *v, float lr, float momentum, float decay,
                bool nesterov);
} tk__kernels;

extern const tk__kernels tk__kernels_scalar;
#if defined(__x86_64__)
extern const tk__kernels tk__kernels_avx2, tk__kernels_avx512;
#endif

/* The chosen table. */
const tk__kernels *tk__kernels_get(void);

/* Width of a panel that holds n >= 1 columns: n rounded up to the lanes, at most nr. */
static inline size_t tk__panel_width(const tk__kernels *kn, size_t n)
{
    const size_t w = (n + TK__LANES - 1) / TK__LANES * TK__LANES;
    return w < kn->nr ? w : kn->nr;
}

#endif
