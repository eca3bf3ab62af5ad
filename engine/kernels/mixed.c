/* Which kernels of mixed precision run. */
#include "kernels/mixed.h"

const tk__mixed *tk__mixed_get(void)
{
#if defined(__x86_64__)
    if (tk_precision_native(TK_PRECISION_BF16)) return &tk__mixed_avx512;
#endif
    return &tk__mixed_portable;
}
