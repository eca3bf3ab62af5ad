/* Which table of kernels runs: the best the CPU has, asked once, or the one that was selected. */
#include "engine/isa.h"

#include <stdatomic.h>
#include <string.h>

#include "kernels/kernels.h"

/* Set by tk_isa_select() or at first use; the tables are constant, so relaxed order is enough. */
static _Atomic(const tk__kernels *) chosen;

#if defined(__x86_64__)
static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
}

static const tk__kernels *best(void)
{
    if (has_avx512()) return &tk__kernels_avx512;
    return has_avx2() ? &tk__kernels_avx2 : &tk__kernels_scalar;
}
#else
static bool has_avx2(void)
{
    return false;
}

static bool has_avx512(void)
{
    return false;
}

static const tk__kernels *best(void)
{
    return &tk__kernels_scalar;
}
#endif

tk_err tk_isa_select(const char *name, tk_diag *diag)
{
    const tk__kernels *table = NULL;
    if (name == NULL || strcmp(name, "auto") == 0) {
        table = best();
    } else if (strcmp(name, "scalar") == 0) {
        table = &tk__kernels_scalar;
    } else if (strcmp(name, "avx2") != 0 && strcmp(name, "avx512") != 0) {
        return tk_fail(diag, TK_BADARG,
                       "unknown instruction set \"%.32s\": scalar, avx2, avx512 or auto", name);
#if defined(__x86_64__)
    } else if (strcmp(name, "avx2") == 0 && has_avx2()) {
        table = &tk__kernels_avx2;
    } else if (strcmp(name, "avx512") == 0 && has_avx512()) {
        table = &tk__kernels_avx512;
#endif
    } else {
        return tk_fail(diag, TK_BADARG, "this CPU lacks %s", name);
    }
    atomic_store_explicit(&chosen, table, memory_order_relaxed);
    return TK_OK;
}

const tk__kernels *tk__kernels_get(void)
{
    const tk__kernels *table = atomic_load_explicit(&chosen, memory_order_relaxed);
    if (table == NULL) {
        table = best();
        atomic_store_explicit(&chosen, table, memory_order_relaxed);
    }
    return table;
}

const char *tk_isa_name(void)
{
    return tk__kernels_get()->name;
}
