/* Which kernels run: chosen once, logged, and forced by name for tests. */
#ifndef ENGINE_ISA_H
#define ENGINE_ISA_H

#include "engine/err.h"

/* Chooses the kernels: "scalar", "avx2", "avx512", or NULL/"auto" for the best the CPU has. Without a
 * call the best is chosen at first use. Not while work runs. TK_BADARG for an unknown name or one
 * that the CPU lacks. `main` reads TRUNKD_ISA and calls this. */
TK_MUST tk_err tk_isa_select(const char *name, tk_diag *diag);
const char *tk_isa_name(void);

#endif
