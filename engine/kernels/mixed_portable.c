/* Kernels of mixed precision without any instruction of bfloat16: the oracle, built without fused
 * multiply-add. */
#include "kernels/mixed.h"
#include "kernels/vec_scalar.h"

TK__INLINE void vec_store_half(uint16_t *p, vec v)
{
    *p = tk__to_bf16(v);
}

TK__INLINE void vec_store_low(uint32_t *p, vec v)
{
    *p = tk__to_bf16(v);
}

TK__INLINE void vec_store_high(uint32_t *p, vec v)
{
    *p |= (uint32_t)tk__to_bf16(v) << 16;
}

#include "kernels/mixed_winograd.h"

const tk__mixed tk__mixed_portable = {.lowp = &tk__bf16_portable, .pair = pair, TK__MIXED_WINOGRAD};
