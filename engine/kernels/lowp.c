/* Which low-precision table runs, and the precisions' names. */
#include "kernels/lowp.h"

#include "engine/isa.h"

static const char *const names[TK_PRECISION_COUNT] = {"fp32", "bf16", "int8"};

const char *tk_precision_name(tk_precision precision)
{
    return names[precision];
}

tk_err tk_precision_parse(const char *name, tk_precision *out, tk_diag *diag)
{
    *out = TK_PRECISION_FP32;
    for (unsigned i = 0; i < TK_PRECISION_COUNT; i++)
        if (strcmp(name, names[i]) == 0) {
            *out = (tk_precision)i;
            return TK_OK;
        }
    return tk_fail(diag, TK_BADARG, "unknown precision \"%.32s\": fp32, bf16 or int8", name);
}

bool tk_precision_native(tk_precision precision)
{
    if (precision == TK_PRECISION_FP32) return true;
#if defined(__x86_64__)
    if (tk__kernels_get() != &tk__kernels_avx512) return false;
    return precision == TK_PRECISION_BF16 ? __builtin_cpu_supports("avx512bf16")
                                          : __builtin_cpu_supports("avx512vnni");
#else
    return false;
#endif
}

const tk__lowp_kernels *tk__lowp_get(tk_precision precision)
{
    const bool bf16 = precision == TK_PRECISION_BF16;
#if defined(__x86_64__)
    if (tk_precision_native(precision)) return bf16 ? &tk__bf16_avx512 : &tk__int8_avx512;
#endif
    return bf16 ? &tk__bf16_portable : &tk__int8_portable;
}
