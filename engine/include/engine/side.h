/* A side: low-rank paths beside the trunk, which stays as it is. They read the output maps of its
 * stages, x_s [h_s w_s][c_s] of s = 0..S-1, and end in numbers that a head takes beside the
 * features:
 *
 *     z_s = mean over pixels of relu(A_s x_s + b_s),   A_s [rank][c_s], b_s [rank]
 *
 * (Side-tuning with taps: ladder side-tuning, Sung et al. 2022, 2206.06522; adapters of shared
 * networks: Rebuffi et al. 2017, 1705.08045.) Several adapters are one side of the sum of their
 * ranks, row after row: one pass serves all, and no row's result depends on the others, to the bit.
 */
#ifndef ENGINE_SIDE_H
#define ENGINE_SIDE_H

#include "engine/net.h"

enum { TK_MAX_STAGES = 4 };

size_t tk_arch_stages(tk_arch arch);                 /* S: 4 with the ImageNet stem, else 3 */
size_t tk_arch_channels(tk_arch arch, size_t stage); /* c_s */

/* `data` holds A_0 [rank][c_0], b_0 [rank], A_1, b_1, ...: tk_side_size() floats. Gradients lie the
 * same. Side outputs z are [n][S][rank]. */
typedef struct tk_side {
    tk_arch arch;
    size_t rank;
    const float *data;
} tk_side;

size_t tk_side_size(tk_arch arch, size_t rank);
/* Where A_s begins in the data; b_s follows it. */
size_t tk_side_at(tk_arch arch, size_t rank, size_t stage);

#endif
