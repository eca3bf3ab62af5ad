/* What register-tiled kernels need from the compiler: a body that is inlined into each caller,
 * where its tile sizes are constants, and loops over the tile that unroll, so that it stays in
 * registers. */
#ifndef KERNELS_TILE_H
#define KERNELS_TILE_H

#define TK__INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define TK__UNROLL _Pragma("clang loop unroll(full)")
#else
#define TK__UNROLL _Pragma("GCC unroll 16")
#endif

#endif
