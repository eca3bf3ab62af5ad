/* Runs a check once for every instruction set that this CPU has. */
#ifndef TESTS_EACH_ISA_H
#define TESTS_EACH_ISA_H

#include "engine/isa.h"

typedef void each_isa_fn(void);

static inline void each_isa(each_isa_fn *check)
{
    static const char *const names[] = {"scalar", "avx2", "avx512"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (tk_isa_select(names[i], NULL) != TK_OK) continue;
        check();
    }
    (void)!tk_isa_select(NULL, NULL);
}

#endif
