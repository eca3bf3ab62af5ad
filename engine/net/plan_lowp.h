/* The low-precision side of an inference plan; plan.c dispatches to it. */
#ifndef NET_PLAN_LOWP_H
#define NET_PLAN_LOWP_H

#include "engine/net.h"
#include "engine/pool.h"
#include "engine/precision.h"
#include "net/side.h"

typedef struct tk__lowp_plan tk__lowp_plan;

/* `precision` is not fp32; `ranges` is for int8 only. Arguments other than the ranges are checked
 * by the caller. */
TK_MUST tk_err tk__lowp_create(tk__lowp_plan **out, const tk_params *params, unsigned px,
                               size_t max_batch, tk_precision precision,
                               const tk_calibration *ranges, tk_pool *pool, tk_diag *diag);
void tk__lowp_destroy(tk__lowp_plan *plan); /* NULL is fine */
/* z may be NULL: without the side. */
void tk__lowp_run(tk__lowp_plan *plan, size_t n, const float *x, float *features,
                  const tk__side *side, float *z, const bool *rows);
size_t tk__lowp_bytes(const tk__lowp_plan *plan);
const tk__layout *tk__lowp_layout(const tk__lowp_plan *plan);
const tk__route *tk__lowp_route(const tk__lowp_plan *plan);
tk_pool *tk__lowp_pool(const tk__lowp_plan *plan);
tk_precision tk__lowp_precision(const tk__lowp_plan *plan);
/* Convolutions that go by Winograd, all of them F(2x2). */
size_t tk__lowp_winograd(const tk__lowp_plan *plan);

/* Widens ranges->limit[map] to the largest finite magnitude among values[count] of an fp32 map. */
void tk__calibrate_map(tk_calibration *ranges, int map, size_t count, const float *values);

#endif
