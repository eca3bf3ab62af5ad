/* Memory that a register tile of the matrix product asks for while it multiplies, so that it is in
 * the first cache (or, for what comes next, the second) when it is wanted: hints, at most two in a
 * step of k. */
#ifndef KERNELS_PREFETCH_H
#define KERNELS_PREFETCH_H

#include "kernels/kernels.h"
#include "kernels/tile.h"

/* tk__gemm's `ahead`, line by line. */
typedef struct prefetch_rows {
    const float *at;
    size_t line, rows; /* of the row at hand; rows left */
} prefetch_rows;

TK__INLINE bool prefetches(const tk__gemm *g)
{
    return g->far || g->ahead != NULL;
}

TK__INLINE prefetch_rows prefetch_begin(const tk__gemm *g, size_t i0, size_t rows)
{
    if (g->ahead == NULL) return (prefetch_rows){0};
    return (prefetch_rows){.at = g->ahead + i0 * g->ahead_pitch, .rows = rows};
}

TK__INLINE void prefetch_output(const tk__gemm *g, size_t i)
{
    const size_t first = i * g->ldc, last = first + g->n - 1;
    __builtin_prefetch(g->c + first, 1, 3);
    __builtin_prefetch(g->c + last, 1, 3);
    if (g->residual == NULL) return;
    __builtin_prefetch(g->residual + first, 0, 3);
    __builtin_prefetch(g->residual + last, 0, 3);
}

/* In step k of the tile of rows i0..i0+rows-1. */
TK__INLINE void prefetch_step(const tk__gemm *g, size_t i0, size_t k, size_t rows,
                              prefetch_rows *next)
{
    if (g->far && k < rows) prefetch_output(g, i0 + k);
    if (next->rows == 0) return;
    __builtin_prefetch(next->at + next->line * TK__LANES, 0, 2);
    if (++next->line < g->ahead_lines) return;
    next->line = 0;
    next->at += g->ahead_pitch;
    next->rows--;
}

#endif
