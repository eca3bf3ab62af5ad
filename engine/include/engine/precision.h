/* Number formats in which a plan can compute, and the ranges that the integer one needs. */
#ifndef ENGINE_PRECISION_H
#define ENGINE_PRECISION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/err.h"

typedef enum tk_precision {
    TK_PRECISION_FP32,
    TK_PRECISION_BF16, /* weights and maps in bfloat16, sums in fp32 */
    TK_PRECISION_INT8, /* weights s8 (a scale per output channel), maps u8 (a scale per map) */
    TK_PRECISION_COUNT,
} tk_precision;

const char *tk_precision_name(tk_precision precision); /* "fp32", "bf16", "int8" */
TK_MUST tk_err tk_precision_parse(const char *name, tk_precision *out, tk_diag *diag);
/* Has the CPU the instructions, and does the chosen instruction set (isa.h) include them? Without
 * them a plan gives the same results (int8: the same bits), but slower than fp32. */
bool tk_precision_native(tk_precision precision);

enum { TK_CALIBRATION_MAPS = 66 };

/* Ranges of a trunk's maps (activations), found by tk_plan_calibrate() and needed for int8. Plain
 * data: copy it, store it. Map 0 is the normalised input, the others follow in forward order; their
 * number depends on the architecture only. */
typedef struct tk_calibration {
    uint32_t maps;
    /* [maps], > 0: the largest magnitude that the map represents, in the map's own unit; what lies
     * beyond is clipped. The map between the ImageNet stem and its max pool has the range of the
     * map after. */
    float limit[TK_CALIBRATION_MAPS];
} tk_calibration;

#endif
