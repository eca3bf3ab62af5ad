/* Kernels of training in mixed precision: fp32 maps and weights become the bfloat16 operands of
 * matrix products (lowp.h), whose sums are fp32. One table per instruction set; the portable one is
 * the oracle.
 *
 * An operand is rows of bfloat16 numbers where the product runs along a row, or else words that
 * hold two rows, the first in the low half. What fp32 has beside (tk__kernels) is used as it is. */
#ifndef KERNELS_MIXED_H
#define KERNELS_MIXED_H

#include "kernels/lowp.h"

typedef struct tk__mixed {
    const tk__lowp_kernels *lowp; /* the product, and `load` to round rows */
    /* to[i] = low[i], high[i] (NULL: zeros) */
    void (*pair)(size_t n, const float *low, const float *high, uint32_t *to);

    /* Winograd's transforms as in tk__kernels; pitch, point and ld count elements of the result.
     * Tiles to rows of channels: */
    void (*wino_input)(const tk__wino *w, const tk__input *in, uint16_t *v, size_t pitch,
                       size_t point);
    /* Tiles 2i and 2i + 1 to words [i][channels]; the tile after an odd last one is zero. */
    void (*wino_input_pairs)(const tk__wino *w, const tk__input *in, uint32_t *v, size_t pitch,
                             size_t point);
    void (*wino_dy_pairs)(const tk__wino *w, const float *dy, uint32_t *v, size_t pitch,
                          size_t point);
    /* TK__LANES input channels, 2r and 2r + 1 to words u[r * ld + column]. */
    void (*wino_weights)(size_t m, const float *taps, uint32_t *u, size_t ld, size_t point);
} tk__mixed;

extern const tk__mixed tk__mixed_portable;
#if defined(__x86_64__)
extern const tk__mixed tk__mixed_avx512;
#endif

/* The CPU's own, or the portable one. */
const tk__mixed *tk__mixed_get(void);

#endif
