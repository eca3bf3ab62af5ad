/* What an admin may set of one tenant; 0 stands for what everybody has. */
#ifndef SERVER_TENANT_LIMITS_H
#define SERVER_TENANT_LIMITS_H

#include <stdint.h>

#include "engine/err.h"

typedef struct tk_tenant_limits {
    double weight;          /* of its turns, beside the others' 1; 0.01 to 100 */
    double rate;            /* images/s; 0.01 to 1,000,000 */
    uint64_t images, bytes; /* in the queue; 1 to 1,000,000, 64 KiB to 1 TiB */
    uint64_t change;        /* given by the store: of two, the later one holds */
} tk_tenant_limits;

/* TK_BADARG: field, value and bounds. */
TK_MUST tk_err tk_tenant_limits_check(const tk_tenant_limits *limits, tk_diag *diag);

#endif
